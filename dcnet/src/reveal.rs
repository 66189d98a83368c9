//! The reveal (notification 4): what a meter lets go of once it holds a roster
//! (`docs/protocol.md`, "Reveal").

use crate::cbor;
use crate::frame::{self, Frame, FrameError, Notification};
use crate::identity::{DeviceId, DeviceKey};
use crate::membership::MAX_CHANNELS;
use crate::opening::Opening;
use crate::pad::RosterHash;
use crate::time::{Round, Timestamp};
use crate::topic::NetId;

/// Longest time that a member waits for having revealed late repeatedly, in rounds.
pub(crate) const LONGEST_WAIT: u64 = 64;

/// The first round that a member is in again that revealed so often too late within a day, the
/// last time while the round `last` ran: the first time in a day costs nothing, then it waits
/// 1, 2, 4, … 64 rounds. `None` if it need not wait.
pub(crate) fn next_round_after(last: Round, late: usize) -> Option<Round> {
    let shift = late.checked_sub(2)?;
    let wait = (1_u64 << shift.min(6)).min(LONGEST_WAIT);
    Some(Round(last.0.saturating_add(wait)))
}

/// A verified reveal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reveal {
    /// Who sent it.
    pub sender: DeviceId,
    /// The round.
    pub round: Round,
    /// The roster it answers.
    pub roster: RosterHash,
    /// `self-mask + Σ half-open ±submission pad + Σ full ±reveal pad`, per channel.
    pub openings: Vec<Opening>,
}

impl Reveal {
    /// Signs a reveal; `sender` of `self` is not used.
    pub fn sign(&self, key: &DeviceKey, net: NetId, at: Timestamp) -> Vec<u8> {
        let openings = self
            .openings
            .iter()
            .map(|opening| cbor::bytes(&opening.to_bytes()));
        let data = cbor::array([
            cbor::uint(self.round.0),
            cbor::bytes(&self.roster),
            cbor::array(openings),
        ]);
        frame::sign(key, net, at, Notification::Reveal, data)
    }

    /// Reads a reveal with exactly `channels` openings.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn read(frame: Frame, net: NetId, channels: usize) -> Result<Self, FrameError> {
        let sender = frame.header().client;
        let mut fields = frame.open(net, Notification::Reveal)?;
        let round = Round(fields.uint("round", u64::MAX)?);
        let roster = fields.fixed("roster")?;
        let mut openings = Vec::with_capacity(channels);
        for item in fields.array("openings", MAX_CHANNELS)? {
            let ciborium::Value::Bytes(bytes) = item else {
                return Err(FrameError::Field("opening"));
            };
            let bytes: [u8; 64] = bytes.try_into().map_err(|_| FrameError::Bound("opening"))?;
            openings.push(Opening::from_bytes(&bytes)?);
        }
        fields.end()?;
        if openings.len() != channels {
            return Err(FrameError::Bound("openings"));
        }
        Ok(Self {
            sender,
            round,
            roster,
            openings,
        })
    }
}
