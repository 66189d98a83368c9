//! Frames: COSE_Sign1 (RFC 9052, section 4.2) around a deterministic CBOR payload
//! with the header of the thesis (section 3.2.2; `docs/protocol.md`, "Frames").
//!
//! There is exactly one way to write a frame, so parsing is a comparison with
//! fixed bytes: tag 18, protected header {alg: EdDSA}, empty unprotected header.

use ciborium::Value;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::cbor::{self, Fields};
use crate::identity::{DeviceId, DeviceKey, PublicKey};
use crate::labels::EXTERNAL_AAD;
use crate::time::Timestamp;
use crate::topic::NetId;

/// Longest frame in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// Protocol identifier in every header.
pub const PROTOCOL: &str = "dcnet";

/// Protocol version in every header.
pub const VERSION: u64 = 1;

/// Tag 18, array of four, protected header `{1: -8}` as a byte string, empty map.
const PREFIX: [u8; 7] = [0xd2, 0x84, 0x43, 0xa1, 0x01, 0x27, 0xa0];

/// Why a frame, or a field in it, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum FrameError {
    /// Longer than the limit for its kind.
    #[error("longer than allowed")]
    TooLong,
    /// Not a COSE_Sign1 of exactly the required form, or no CBOR.
    #[error("not of the form of a frame")]
    Form,
    /// CBOR that is not the one deterministic encoding.
    #[error("not deterministic CBOR")]
    NotDeterministic,
    /// Another protocol or version.
    #[error("another protocol or version")]
    Version,
    /// A field is missing or of the wrong type.
    #[error("field `{0}` is missing or of the wrong type")]
    Field(&'static str),
    /// A field is outside its bound.
    #[error("field `{0}` is outside its bound")]
    Bound(&'static str),
    /// More fields than the kind of frame has.
    #[error("unknown fields")]
    UnknownField,
    /// Not the kind of frame that belongs here.
    #[error("a frame of another kind than expected")]
    Kind,
    /// Signed for another net.
    #[error("a frame of another net")]
    Net,
    /// The client identifier is not the expected sender.
    #[error("a frame of another sender than expected")]
    Sender,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
}

/// Kind of a frame: the thesis's notification codes 1 to 5, then our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notification {
    /// A meter wants to register.
    Register = 1,
    /// A meter has entered: enough of its handshakes are done.
    Entered = 2,
    /// A meter exits.
    Exit = 3,
    /// Correction: the reveal.
    Reveal = 4,
    /// The local superposition.
    Submission = 5,
    /// Commits to a nonce for a draw.
    DrawRequest = 6,
    /// Opens that commitment.
    Open = 7,
    /// First half of a handshake, by the lower id.
    Offer = 8,
    /// Second half, by the higher id.
    Answer = 9,
    /// Key confirmation.
    Confirm = 10,
    /// Asks for log entries.
    LogRequest = 11,
    /// Asks for rosters.
    RosterRequest = 12,
    /// An entry of the membership log.
    Entry = 13,
    /// A roster.
    Roster = 14,
    /// An aggregate.
    Aggregate = 15,
    /// The gateway administrator's view of a log, for joiners.
    Checkpoint = 16,
    /// The gateway administrator's list of revoked devices.
    Revocations = 17,
    /// The gateway administrator's revocation of one device, for a log.
    Revocation = 18,
    /// A new provider key takes over a log.
    ProviderKey = 19,
    /// A former neighbour has erased the pair key of a meter that left.
    Erased = 20,
}

impl Notification {
    const ALL: [Self; 20] = [
        Self::Register,
        Self::Entered,
        Self::Exit,
        Self::Reveal,
        Self::Submission,
        Self::DrawRequest,
        Self::Open,
        Self::Offer,
        Self::Answer,
        Self::Confirm,
        Self::LogRequest,
        Self::RosterRequest,
        Self::Entry,
        Self::Roster,
        Self::Aggregate,
        Self::Checkpoint,
        Self::Revocations,
        Self::Revocation,
        Self::ProviderKey,
        Self::Erased,
    ];

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|n| *n as u64 == code)
    }

    /// The transmission bit is set on submissions and on nothing else.
    fn transmits(self) -> bool {
        self == Self::Submission
    }
}

/// The header that every payload starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DC-net identifier; all zeros in Genesis and revocation lists.
    pub net: NetId,
    /// Client identifier: who signed.
    pub client: DeviceId,
    /// When it was signed.
    pub timestamp: Timestamp,
    /// What it is.
    pub notification: Notification,
}

/// A frame whose form, header and bounds are right and whose signature is not
/// verified yet. Only [`Unverified::verify`] and [`verify_batch`] lead on.
#[derive(Clone, Debug)]
pub struct Unverified {
    header: Header,
    data: Value,
    payload: Vec<u8>,
    signature: [u8; 64],
}

/// A frame whose signature was verified against the key of its sender.
#[derive(Clone, Debug)]
pub struct Frame {
    header: Header,
    data: Value,
    digest: [u8; 32],
}

fn byte_string_head(len: usize) -> Vec<u8> {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..24), _) => vec![0x40 | short],
        (Ok(byte), _) => vec![0x58, byte],
        (_, Ok(word)) => {
            let [high, low] = word.to_be_bytes();
            vec![0x59, high, low]
        }
        _ => {
            let [a, b, c, d] = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
            vec![0x5a, a, b, c, d]
        }
    }
}

/// `Sig_structure` of RFC 9052, section 4.4.
fn to_be_signed(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len().saturating_add(32));
    out.extend_from_slice(b"\x84\x6aSignature1\x43\xa1\x01\x27\x47");
    out.extend_from_slice(EXTERNAL_AAD);
    out.extend_from_slice(&byte_string_head(payload.len()));
    out.extend_from_slice(payload);
    out
}

/// A frame that this device has just signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The bytes of the frame.
    pub bytes: Vec<u8>,
    /// SHA-256 of its payload: the digest by which other frames name it.
    pub digest: [u8; 32],
}

/// The header and the data, as they are signed.
fn payload(
    client: DeviceId,
    net: NetId,
    timestamp: Timestamp,
    notification: Notification,
    data: Value,
) -> Vec<u8> {
    cbor::encode(&cbor::array([
        cbor::text(PROTOCOL),
        cbor::uint(VERSION),
        cbor::bytes(&net.0),
        cbor::bytes(&client.0),
        cbor::uint(u64::from(notification.transmits())),
        cbor::uint(timestamp.as_millis()),
        cbor::uint(notification as u64),
        data,
    ]))
}

fn sign_payload(key: &DeviceKey, payload: &[u8]) -> Vec<u8> {
    let signature = key.sign(&to_be_signed(payload));
    let mut out = Vec::with_capacity(payload.len().saturating_add(80));
    out.extend_from_slice(&PREFIX);
    out.extend_from_slice(&byte_string_head(payload.len()));
    out.extend_from_slice(payload);
    out.extend_from_slice(&[0x58, 0x40]);
    out.extend_from_slice(&signature);
    out
}

/// Signs a frame and returns its bytes.
pub fn sign(
    key: &DeviceKey,
    net: NetId,
    timestamp: Timestamp,
    notification: Notification,
    data: Value,
) -> Vec<u8> {
    let payload = payload(key.id(), net, timestamp, notification, data);
    sign_payload(key, &payload)
}

/// As [`sign`], with the digest of the frame.
pub fn sign_with_digest(
    key: &DeviceKey,
    net: NetId,
    timestamp: Timestamp,
    notification: Notification,
    data: Value,
) -> Signed {
    let payload = payload(key.id(), net, timestamp, notification, data);
    Signed {
        bytes: sign_payload(key, &payload),
        digest: Sha256::digest(&payload).into(),
    }
}

/// The digest (SHA-256 of the payload) of a frame that this device made itself.
///
/// # Errors
/// [`FrameError`] if it is no frame.
pub(crate) fn digest_of(input: &[u8]) -> Result<[u8; 32], FrameError> {
    let frame = Unverified::parse(input)?;
    Ok(Sha256::digest(&frame.payload).into())
}

/// Splits a frame of exactly the required form into payload and signature.
fn split(input: &[u8]) -> Option<(&[u8], &[u8; 64])> {
    let rest = input.strip_prefix(&PREFIX)?;
    let (len, rest) = match *rest {
        [head @ 0x40..=0x57, ref rest @ ..] => (usize::from(head & 0x1f), rest),
        [0x58, len, ref rest @ ..] => (usize::from(len), rest),
        [0x59, a, b, ref rest @ ..] => (usize::from(u16::from_be_bytes([a, b])), rest),
        _ => return None,
    };
    let (payload, rest) = rest.split_at_checked(len)?;
    let signature = rest.strip_prefix(&[0x58, 0x40])?.try_into().ok()?;
    let canonical = input
        .len()
        .checked_sub(PREFIX.len())?
        .checked_sub(len)?
        .checked_sub(66)?
        == byte_string_head(len).len();
    canonical.then_some((payload, signature))
}

impl Unverified {
    /// Checks form, bounds and header.
    ///
    /// # Errors
    /// [`FrameError`] naming the first rule that is broken.
    pub fn parse(input: &[u8]) -> Result<Self, FrameError> {
        if input.len() > MAX_FRAME {
            return Err(FrameError::TooLong);
        }
        let (payload, signature) = split(input).ok_or(FrameError::Form)?;
        let mut fields = Fields::of(cbor::decode(payload)?, "payload")?;
        if fields.text("protocol", 16)? != PROTOCOL || fields.uint("version", u64::MAX)? != VERSION
        {
            return Err(FrameError::Version);
        }
        let net = NetId(fields.fixed("net")?);
        let client = DeviceId(fields.fixed("client")?);
        let transmission = fields.uint("transmission bit", 1)? == 1;
        let timestamp = Timestamp(fields.uint("timestamp", u64::MAX)?);
        let code = fields.uint("notification", u64::MAX)?;
        let notification = Notification::from_code(code).ok_or(FrameError::Kind)?;
        if transmission != notification.transmits() {
            return Err(FrameError::Field("transmission bit"));
        }
        let data = fields.item("data")?;
        fields.end()?;
        Ok(Self {
            header: Header {
                net,
                client,
                timestamp,
                notification,
            },
            data,
            payload: payload.to_vec(),
            signature: *signature,
        })
    }

    /// The claimed header, for finding the key to verify with. Nothing else may
    /// be done with it.
    pub fn claimed(&self) -> &Header {
        &self.header
    }

    /// Claimed data, for a registration, which carries its own certificate.
    pub(crate) fn claimed_data(&self) -> &Value {
        &self.data
    }

    /// Verifies the signature strictly (RFC 8032, section 5.1.7) and that the
    /// client identifier is the id of `key`.
    ///
    /// # Errors
    /// [`FrameError::Sender`] or [`FrameError::Signature`].
    pub fn verify(self, key: &PublicKey) -> Result<Frame, FrameError> {
        if key.id() != self.header.client {
            return Err(FrameError::Sender);
        }
        if !key.verify(&to_be_signed(&self.payload), &self.signature) {
            return Err(FrameError::Signature);
        }
        Ok(self.trusted())
    }

    /// Takes up a frame from the own store, where only verified frames are put. It is not
    /// verified again: a batch accepts signatures that strict verification may not.
    pub(crate) fn stored(self) -> Frame {
        self.trusted()
    }

    fn trusted(self) -> Frame {
        let digest = Sha256::digest(&self.payload).into();
        Frame {
            header: self.header,
            data: self.data,
            digest,
        }
    }
}

/// Verifies many signatures at about half the cost of one by one (batch
/// verification, RFC 8032, section 8.2). If the batch fails, each is verified on
/// its own, so one bad frame never costs another its place.
///
/// The caller has looked up each key by the claimed client identifier.
pub fn verify_batch(frames: Vec<(Unverified, PublicKey)>) -> Vec<Result<Frame, FrameError>> {
    let together = frames.len() > 1
        && frames
            .iter()
            .all(|(frame, key)| key.id() == frame.header.client)
        && {
            let messages: Vec<Vec<u8>> = frames
                .iter()
                .map(|(frame, _)| to_be_signed(&frame.payload))
                .collect();
            let slices: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
            let signatures: Vec<Signature> = frames
                .iter()
                .map(|(frame, _)| Signature::from_bytes(&frame.signature))
                .collect();
            let keys: Vec<VerifyingKey> = frames.iter().map(|(_, key)| *key.dalek()).collect();
            ed25519_dalek::verify_batch(&slices, &signatures, &keys).is_ok()
        };
    frames
        .into_iter()
        .map(|(frame, key)| {
            if together {
                Ok(frame.trusted())
            } else {
                frame.verify(&key)
            }
        })
        .collect()
}

impl Frame {
    /// Parses and verifies a frame of `key`'s owner.
    ///
    /// # Errors
    /// As [`Unverified::parse`] and [`Unverified::verify`].
    pub fn verify(input: &[u8], key: &PublicKey) -> Result<Self, FrameError> {
        Unverified::parse(input)?.verify(key)
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// SHA-256 of the payload: the digest by which other frames name this one.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Opens the data of a frame that must be of this net and kind.
    ///
    /// # Errors
    /// [`FrameError::Net`], [`FrameError::Kind`], or that the data is no array.
    pub(crate) fn open(self, net: NetId, notification: Notification) -> Result<Fields, FrameError> {
        if self.header.net != net {
            return Err(FrameError::Net);
        }
        if self.header.notification != notification {
            return Err(FrameError::Kind);
        }
        Fields::of(self.data, "data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> DeviceKey {
        DeviceKey::from_seed(&[1; 32])
    }

    fn frame() -> Vec<u8> {
        let data = cbor::array([cbor::uint(7u32)]);
        sign(
            &key(),
            NetId([9; 16]),
            Timestamp(5),
            Notification::Submission,
            data,
        )
    }

    #[test]
    fn a_signed_frame_verifies_and_opens() {
        let frame = Frame::verify(&frame(), &key().public()).unwrap();
        assert_eq!(frame.header().timestamp, Timestamp(5));
        let mut fields = frame
            .open(NetId([9; 16]), Notification::Submission)
            .unwrap();
        assert_eq!(fields.uint("x", 7), Ok(7));
        fields.end().unwrap();
    }

    #[test]
    fn a_frame_is_signed_with_the_digest_that_its_reader_finds() {
        let data = cbor::array([cbor::uint(7u32)]);
        let (net, kind) = (NetId([9; 16]), Notification::Submission);
        let signed = sign_with_digest(&key(), net, Timestamp(5), kind, data);
        assert_eq!(signed.bytes, frame());
        assert_eq!(digest_of(&signed.bytes), Ok(signed.digest));
        let read = Frame::verify(&signed.bytes, &key().public()).unwrap();
        assert_eq!(read.digest(), signed.digest);
    }

    #[test]
    fn no_bit_flip_of_a_frame_verifies() {
        let bytes = frame();
        for position in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[position / 8] ^= 1 << (position % 8);
            assert!(
                Frame::verify(&changed, &key().public()).is_err(),
                "bit {position}"
            );
        }
    }

    #[test]
    fn truncated_and_extended_frames_are_refused() {
        let bytes = frame();
        for len in 0..bytes.len() {
            assert_eq!(
                Unverified::parse(&bytes[..len]).unwrap_err(),
                FrameError::Form
            );
        }
        let mut longer = bytes;
        longer.push(0);
        assert_eq!(Unverified::parse(&longer).unwrap_err(), FrameError::Form);
        assert_eq!(
            Unverified::parse(&vec![0; MAX_FRAME + 1]).unwrap_err(),
            FrameError::TooLong
        );
    }

    #[test]
    fn a_longer_length_than_needed_is_refused() {
        let bytes = frame();
        // The payload of this frame is longer than 23 and shorter than 256 bytes.
        assert_eq!(bytes[7], 0x58);
        let mut other = bytes[..7].to_vec();
        other.extend_from_slice(&[0x59, 0, bytes[8]]);
        other.extend_from_slice(&bytes[9..]);
        assert_eq!(Unverified::parse(&other).unwrap_err(), FrameError::Form);
    }

    #[test]
    fn another_key_net_or_kind_is_refused() {
        let other = DeviceKey::from_seed(&[2; 32]).public();
        assert_eq!(
            Frame::verify(&frame(), &other).unwrap_err(),
            FrameError::Sender
        );
        let frame = Frame::verify(&frame(), &key().public()).unwrap();
        let wrong_net = frame.clone().open(NetId([0; 16]), Notification::Submission);
        assert_eq!(wrong_net.err(), Some(FrameError::Net));
        let wrong_kind = frame.open(NetId([9; 16]), Notification::Reveal);
        assert_eq!(wrong_kind.err(), Some(FrameError::Kind));
    }

    #[test]
    fn one_bad_signature_in_a_batch_costs_no_other_its_place() {
        let parse = |bytes: &[u8]| (Unverified::parse(bytes).unwrap(), key().public());
        let mut bad = frame();
        *bad.last_mut().unwrap() ^= 1;
        let good = verify_batch(vec![parse(&frame()), parse(&frame())]);
        assert!(good.iter().all(Result::is_ok));
        let mixed = verify_batch(vec![parse(&frame()), parse(&bad), parse(&frame())]);
        let verdicts: Vec<bool> = mixed.iter().map(Result::is_ok).collect();
        assert_eq!(verdicts, [true, false, true]);
    }
}
