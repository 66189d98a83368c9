//! Pair keys: an X25519 handshake between two meters, relayed by the provider,
//! signed by both ends and confirmed (`docs/protocol.md`, "Pair keys").
//!
//! ```text
//! lower id                                   higher id
//!   Offer{pair, origin, first day, X25519}  ──▶
//!         ◀──  Answer{pair, origin, first day, X25519, hash of the Offer}
//!   Confirm{pair, origin, tag}              ──▶
//!         ◀──  Confirm{pair, origin, tag}
//! ```

use hkdf::Hkdf;
use sha2::Sha256;
use x25519_dalek::{PublicKey as X25519Public, StaticSecret};
use zeroize::Zeroize;

use crate::cbor;
use crate::frame::{self, Frame, FrameError, Notification};
use crate::identity::{DeviceId, DeviceKey};
use crate::labels;
use crate::pad::PairKey;
use crate::reading::expand;
use crate::secret::Secret;
use crate::time::{Day, Timestamp};
use crate::topic::NetId;

/// What a handshake is about: both ends must mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The net.
    pub net: NetId,
    /// The end with the lower id: it offers, and later adds pads.
    pub lower: DeviceId,
    /// The end with the higher id: it answers, and later subtracts pads.
    pub higher: DeviceId,
    /// Hash of the Draw entry at which the edge began.
    pub origin: [u8; 32],
}

/// One half of a handshake, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    /// First day of rounds that the key is for.
    pub first_day: Day,
    /// The fresh X25519 public key.
    pub public: [u8; 32],
    /// Digest of the frame.
    pub digest: [u8; 32],
}

/// A fresh X25519 key; erased once the pair key is made.
#[derive(Clone, Debug)]
pub struct Ephemeral(Secret);

impl Ephemeral {
    /// From 32 random bytes.
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The bytes for the journal.
    pub fn secret(&self) -> &Secret {
        &self.0
    }

    /// The public half (RFC 7748, section 6.1).
    pub fn public(&self) -> [u8; 32] {
        X25519Public::from(&StaticSecret::from(*self.0.expose())).to_bytes()
    }

    /// The shared secret; `None` if it is all zeros (RFC 7748, section 6.1).
    fn agree(&self, peer: &[u8; 32]) -> Option<Secret> {
        let shared =
            StaticSecret::from(*self.0.expose()).diffie_hellman(&X25519Public::from(*peer));
        if !shared.was_contributory() {
            return None;
        }
        Some(Secret::filled(|out| out.copy_from_slice(shared.as_bytes())))
    }
}

impl Pair {
    fn fields(&self) -> [ciborium::Value; 3] {
        [
            cbor::bytes(&self.lower.0),
            cbor::bytes(&self.higher.0),
            cbor::bytes(&self.origin),
        ]
    }

    /// Signs the lower end's offer.
    pub fn sign_offer(
        &self,
        key: &DeviceKey,
        ephemeral: &Ephemeral,
        first_day: Day,
        at: Timestamp,
    ) -> Vec<u8> {
        let own = [cbor::uint(first_day.0), cbor::bytes(&ephemeral.public())];
        let data = cbor::array(self.fields().into_iter().chain(own));
        frame::sign(key, self.net, at, Notification::Offer, data)
    }

    /// Signs the higher end's answer to `offer`.
    pub fn sign_answer(
        &self,
        key: &DeviceKey,
        ephemeral: &Ephemeral,
        offer: &Half,
        at: Timestamp,
    ) -> Vec<u8> {
        let own = [
            cbor::uint(offer.first_day.0),
            cbor::bytes(&ephemeral.public()),
            cbor::bytes(&offer.digest),
        ];
        let data = cbor::array(self.fields().into_iter().chain(own));
        frame::sign(key, self.net, at, Notification::Answer, data)
    }

    /// Signs this end's confirmation tag.
    pub fn sign_confirm(&self, key: &DeviceKey, tag: &Secret, at: Timestamp) -> Vec<u8> {
        let data = cbor::array(self.fields().into_iter().chain([cbor::bytes(tag.expose())]));
        frame::sign(key, self.net, at, Notification::Confirm, data)
    }

    fn open(
        &self,
        frame: Frame,
        sender: DeviceId,
        notification: Notification,
    ) -> Result<cbor::Fields, FrameError> {
        if frame.header().client != sender {
            return Err(FrameError::Sender);
        }
        let mut fields = frame.open(self.net, notification)?;
        let same = fields.fixed("lower")? == self.lower.0
            && fields.fixed("higher")? == self.higher.0
            && fields.fixed("origin")? == self.origin;
        if same {
            Ok(fields)
        } else {
            Err(FrameError::Bound("pair"))
        }
    }

    /// Reads the lower end's offer for this very pair.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read_offer(&self, frame: Frame) -> Result<Half, FrameError> {
        let digest = frame.digest();
        let mut fields = self.open(frame, self.lower, Notification::Offer)?;
        let half = Half {
            first_day: Day(fields.u32("first day")?),
            public: fields.fixed("public key")?,
            digest,
        };
        fields.end()?;
        Ok(half)
    }

    /// Reads the higher end's answer to the offer with digest `offer`.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read_answer(&self, frame: Frame, offer: &[u8; 32]) -> Result<Half, FrameError> {
        let digest = frame.digest();
        let mut fields = self.open(frame, self.higher, Notification::Answer)?;
        let half = Half {
            first_day: Day(fields.u32("first day")?),
            public: fields.fixed("public key")?,
            digest,
        };
        if fields.fixed::<32>("offer")? != *offer {
            return Err(FrameError::Bound("offer"));
        }
        fields.end()?;
        Ok(half)
    }

    /// Reads the confirmation tag of `sender`.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read_confirm(&self, frame: Frame, sender: DeviceId) -> Result<Secret, FrameError> {
        let mut fields = self.open(frame, sender, Notification::Confirm)?;
        let mut tag = fields.fixed("tag")?;
        fields.end()?;
        Ok(Secret::new(&mut tag))
    }

    /// `K₀ = HKDF-SHA256(X25519, CBOR[label, hash(offer), hash(answer)])`, the key of
    /// the first day; `None` if the X25519 secret is all zeros.
    pub fn derive(
        ephemeral: &Ephemeral,
        peer: &[u8; 32],
        offer: &[u8; 32],
        answer: &[u8; 32],
        first_day: Day,
    ) -> Option<PairKey> {
        let shared = ephemeral.agree(peer)?;
        let mut info = cbor::labelled(labels::PAIR_KEY, [cbor::bytes(offer), cbor::bytes(answer)]);
        let hkdf = Hkdf::<Sha256>::new(None, shared.expose());
        let mut done = false;
        let secret = Secret::filled(|out| done = hkdf.expand(&info, out).is_ok());
        info.zeroize();
        done.then(|| PairKey::new(first_day, secret))
    }

    /// The confirmation tag that `sender` sends:
    /// `HKDF-Expand(K₀, CBOR[label, sender, hash(offer), hash(answer)], 32)`.
    pub fn tag(key: &PairKey, sender: DeviceId, offer: &[u8; 32], answer: &[u8; 32]) -> Secret {
        let info = cbor::labelled(
            labels::CONFIRM,
            [
                cbor::bytes(&sender.0),
                cbor::bytes(offer),
                cbor::bytes(answer),
            ],
        );
        expand(key.secret(), &info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(seed: u8) -> DeviceKey {
        DeviceKey::from_seed(&[seed; 32])
    }

    fn ends() -> (DeviceKey, DeviceKey) {
        let (a, b) = (device(1), device(2));
        if a.id() < b.id() { (a, b) } else { (b, a) }
    }

    fn pair() -> Pair {
        let (lower, higher) = ends();
        Pair {
            net: NetId([1; 16]),
            lower: lower.id(),
            higher: higher.id(),
            origin: [7; 32],
        }
    }

    fn ephemeral(seed: u8) -> Ephemeral {
        Ephemeral::new(Secret::new(&mut [seed; 32]))
    }

    #[test]
    fn both_ends_derive_one_key_and_different_tags() {
        let (lower, higher) = ends();
        let (x, y) = (ephemeral(3), ephemeral(4));
        let offer = pair().sign_offer(&lower, &x, Day(9), Timestamp(0));
        let offer = pair()
            .read_offer(Frame::verify(&offer, &lower.public()).unwrap())
            .unwrap();
        let answer = pair().sign_answer(&higher, &y, &offer, Timestamp(0));
        let answer = Frame::verify(&answer, &higher.public()).unwrap();
        let answer = pair().read_answer(answer, &offer.digest).unwrap();
        let derive = |own: &Ephemeral, peer: &[u8; 32]| {
            Pair::derive(own, peer, &offer.digest, &answer.digest, Day(9)).unwrap()
        };
        let one = derive(&x, &answer.public);
        let two = derive(&y, &offer.public);
        assert!(one.secret().equals(two.secret().expose()));
        let tag = |id| Pair::tag(&one, id, &offer.digest, &answer.digest);
        assert!(!tag(lower.id()).equals(tag(higher.id()).expose()));
    }

    #[test]
    fn an_all_zero_secret_is_refused() {
        assert!(Pair::derive(&ephemeral(1), &[0; 32], &[1; 32], &[2; 32], Day(0)).is_none());
    }

    #[test]
    fn halves_of_another_pair_or_sender_are_refused() {
        let (lower, higher) = ends();
        let offer = |pair: Pair, key: &DeviceKey| {
            let bytes = pair.sign_offer(key, &ephemeral(3), Day(9), Timestamp(0));
            Frame::verify(&bytes, &key.public()).unwrap()
        };
        let other = Pair {
            origin: [8; 32],
            ..pair()
        };
        assert_eq!(
            pair().read_offer(offer(other, &lower)),
            Err(FrameError::Bound("pair"))
        );
        assert_eq!(
            pair().read_offer(offer(pair(), &higher)),
            Err(FrameError::Sender)
        );
        let swapped = Pair {
            lower: higher.id(),
            higher: lower.id(),
            ..pair()
        };
        assert_eq!(
            pair().read_offer(offer(swapped, &lower)),
            Err(FrameError::Bound("pair"))
        );
    }
}
