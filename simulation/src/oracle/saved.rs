//! Secrets of a meter as it stored them before it spoke: self-masks, the edges used and
//! their pair keys, and the blinding secret. The formats are those of the meter's
//! records; fields that the oracle does not need are skipped.

use dcnet::cbor::{self, Fields};
use dcnet::frame::FrameError;
use dcnet::graph::MemberIndex;
use dcnet::identity::DeviceId;
use dcnet::opening::Opening;
use dcnet::output::Store;
use dcnet::pad::{PairKey, RosterHash};
use dcnet::reading::BlindingSecret;
use dcnet::secret::Secret;
use dcnet::superposition::ShortDigest;
use dcnet::time::{Day, Round};

use crate::network::Saved;

/// Most items of anything here.
const MANY: usize = 1 << 16;

/// An edge whose pads are in a submission.
#[derive(Clone, Debug)]
pub struct UsedEdge {
    /// The neighbour's place in the log.
    pub index: MemberIndex,
    /// The neighbour.
    pub peer: DeviceId,
    /// The key, of its oldest day that is still stored.
    pub key: PairKey,
}

/// What explains a submission and its reveal.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Digest of the submission.
    pub digest: ShortDigest,
    /// Edges whose pads are in it.
    pub used: Vec<UsedEdge>,
    /// One self-mask per channel.
    pub masks: Vec<Opening>,
    /// Source of the readings' blindings.
    pub blinding: BlindingSecret,
}

/// The records of rounds, undecoded.
pub fn rounds(saved: &Saved) -> impl Iterator<Item = (Round, &[u8])> {
    let first = (Store::Net, b"round/".to_vec());
    saved.range(first..).map_while(|((_, key), value)| {
        let round = std::str::from_utf8(key).ok()?.strip_prefix("round/")?;
        Some((
            Round(u64::from_str_radix(round, 16).ok()?),
            value.as_slice(),
        ))
    })
}

/// The last roster that a meter followed.
pub fn last_roster(saved: &Saved) -> Option<RosterHash> {
    let value = saved.get(&(Store::Net, b"last-roster".to_vec()))?;
    let mut fields = Fields::of(cbor::decode(value).ok()?, "roster").ok()?;
    fields.uint("round", u64::MAX).ok()?;
    fields.fixed("hash").ok()
}

/// Secrets behind a round's record; `None` once they are erased.
///
/// # Errors
/// [`FrameError`] if a record has another form than this reader knows.
pub fn secrets(saved: &Saved, record: &[u8]) -> Result<Option<Secrets>, FrameError> {
    let mut fields = Fields::of(cbor::decode(record)?, "round")?;
    fields.item("head")?;
    fields.item("drawn")?;
    let used = fields.bytes("used", MANY * 28)?;
    fields.item("required")?;
    fields.item("minimum group")?;
    let digest = fields.fixed("digest")?;
    let stage = fields.uint("stage", 9)?;
    let mut submitted = Fields::of(fields.item("stage")?, "stage")?;
    if stage != 0 {
        return Ok(None);
    }
    submitted.item("frame")?;
    let mut masks = Vec::new();
    for item in submitted.array("masks", MANY)? {
        let mut mask = Fields::of(cbor::array([item]), "mask")?;
        masks.push(Opening::from_bytes(&mask.fixed("mask")?)?);
    }
    let (edges, _) = used.as_chunks::<28>();
    let used = edges.iter().map(|edge| used_edge(saved, edge));
    Ok(Some(Secrets {
        digest,
        used: used.collect::<Result<_, _>>()?,
        masks,
        blinding: blinding(saved)?,
    }))
}

fn used_edge(saved: &Saved, edge: &[u8; 28]) -> Result<UsedEdge, FrameError> {
    let mut bytes = edge.iter().copied();
    let index = u32::from_be_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    let peer = DeviceId(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    let origin = u64::from_be_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    let name = format!("edge/{peer}/{origin:016x}").into_bytes();
    let record = saved.get(&(Store::Net, name));
    let record = record.ok_or(FrameError::Field("edge"))?;
    let mut fields = Fields::of(cbor::decode(record)?, "edge")?;
    for name in ["lower", "higher", "origin", "stage"] {
        fields.item(name)?;
    }
    let mut stage = Fields::of(fields.item("stage")?, "stage")?;
    let day = Day(stage.u32("day")?);
    let mut secret = stage.fixed("secret")?;
    let key = PairKey::new(day, Secret::new(&mut secret));
    Ok(UsedEdge { index, peer, key })
}

fn blinding(saved: &Saved) -> Result<BlindingSecret, FrameError> {
    let record = saved.get(&(Store::Net, b"device".to_vec()));
    let record = record.ok_or(FrameError::Field("device"))?;
    let mut fields = Fields::of(cbor::decode(record)?, "device")?;
    fields.item("mask")?;
    let day = Day(fields.u32("day")?);
    let mut secret = fields.fixed("secret")?;
    Ok(BlindingSecret::new(day, Secret::new(&mut secret)))
}
