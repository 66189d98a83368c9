//! The local superposition and the submission that carries it (notification 5;
//! `docs/protocol.md`, "Submission").

use crate::cbor::{self, Fields};
use crate::commitment::Commitment;
use crate::frame::{self, Frame, FrameError, Notification, Signed};
use crate::identity::{DeviceId, DeviceKey};
use crate::labels;
use crate::membership::{MAX_CHANNELS, MAX_MEMBERS};
use crate::opening::Opening;
use crate::reading::{keyed, wide};
use crate::secret::Secret;
use crate::time::{Round, Timestamp};
use crate::topic::NetId;

/// A fresh self-mask: `wide(HMAC-SHA512(device secret, CBOR[label, random, net, round,
/// channel, part]))` for the parts 0 (value) and 1 (blinding). It is uniform if either the
/// device secret or the 32 random bytes are good.
pub fn self_mask(
    device: &Secret,
    random: &[u8; 32],
    net: NetId,
    round: Round,
    channel: u16,
) -> Opening {
    let mac = keyed(device);
    let part = |part: u8| {
        let input = cbor::labelled(
            labels::SELF_MASK,
            [
                cbor::bytes(random),
                cbor::bytes(&net.0),
                cbor::uint(round.0),
                cbor::uint(channel),
                cbor::uint(part),
            ],
        );
        wide(mac.clone(), input)
    };
    Opening {
        value: part(0),
        blinding: part(1),
    }
}

/// What a meter submits for one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Reading + pads + self-mask.
    pub superposition: Opening,
    /// Commitment to the reading.
    pub commitment: Commitment,
}

/// A verified submission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Who sent it.
    pub sender: DeviceId,
    /// The round.
    pub round: Round,
    /// Hash of the newest log entry the meter knew.
    pub log_head: [u8; 32],
    /// Fewest included meters that it will reveal to.
    pub minimum_group: u32,
    /// Fewest full drawn edges that it will reveal with (L).
    pub minimum_neighbours: u32,
    /// Bitmap over its neighbours in log order at that head: which pads it used.
    pub edges: Vec<u8>,
    /// One share per channel of the net.
    pub shares: Vec<Share>,
    /// Digest of the frame.
    pub digest: [u8; 32],
}

/// The digest of a submission as a roster states it.
pub type ShortDigest = [u8; 8];

/// The first 8 bytes of a digest.
pub fn short(digest: &[u8; 32]) -> ShortDigest {
    let mut out = [0; 8];
    out.copy_from_slice(digest.split_at(8).0);
    out
}

impl Submission {
    /// Signs a submission; `digest` and `sender` of `self` are not used.
    pub fn sign(&self, key: &DeviceKey, net: NetId, at: Timestamp) -> Vec<u8> {
        self.sign_with_digest(key, net, at).bytes
    }

    /// As [`Self::sign`], with the digest of the frame.
    pub fn sign_with_digest(&self, key: &DeviceKey, net: NetId, at: Timestamp) -> Signed {
        let shares = self.shares.iter().map(|share| {
            cbor::array([
                cbor::bytes(&share.superposition.to_bytes()),
                cbor::bytes(&share.commitment.to_bytes()),
            ])
        });
        let data = cbor::array([
            cbor::uint(self.round.0),
            cbor::bytes(&self.log_head),
            cbor::uint(self.minimum_group),
            cbor::uint(self.minimum_neighbours),
            cbor::bytes(&self.edges),
            cbor::array(shares),
        ]);
        frame::sign_with_digest(key, net, at, Notification::Submission, data)
    }

    /// Reads a submission with exactly `channels` shares.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read(frame: Frame, net: NetId, channels: usize) -> Result<Self, FrameError> {
        let (sender, digest) = (frame.header().client, frame.digest());
        let mut fields = frame.open(net, Notification::Submission)?;
        let round = Round(fields.uint("round", u64::MAX)?);
        let log_head = fields.fixed("log head")?;
        let minimum_group = fields.u32("minimum group")?;
        let minimum_neighbours = fields.u32("minimum neighbours")?;
        let edges = fields.bytes("edges", MAX_MEMBERS / 8)?;
        let mut shares = Vec::with_capacity(channels);
        for item in fields.array("shares", MAX_CHANNELS)? {
            let mut share = Fields::of(item, "share")?;
            shares.push(Share {
                superposition: Opening::from_bytes(&share.fixed("superposition")?)?,
                commitment: Commitment::from_bytes(&share.fixed("commitment")?)?,
            });
            share.end()?;
        }
        fields.end()?;
        if shares.len() != channels {
            return Err(FrameError::Bound("shares"));
        }
        Ok(Self {
            sender,
            round,
            log_head,
            minimum_group,
            minimum_neighbours,
            edges,
            shares,
            digest,
        })
    }
}
