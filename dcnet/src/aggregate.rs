//! The aggregate: the sum of the readings on a roster, verified against the sum of
//! the meters' reading commitments (`docs/protocol.md`, "Aggregate").

use curve25519_dalek::scalar::Scalar;

use crate::cbor::{self, Fields};
use crate::commitment::{Commitment, commit};
use crate::frame::{self, Frame, FrameError, Notification};
use crate::identity::{DeviceKey, PublicKey};
use crate::membership::{MAX_CHANNELS, Membership};
use crate::opening::Opening;
use crate::pad::RosterHash;
use crate::time::{Round, Timestamp};
use crate::topic::NetId;
use crate::units::MilliwattHours;

/// Why a round that is fully revealed has no aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disruption {
    /// The value of a channel is no integer below 2⁶³.
    #[error("the sum of channel {0} is no energy")]
    Value(usize),
    /// The aggregate does not open the sum of the reading commitments of a channel.
    #[error("the sum of channel {0} is not the one the meters committed to")]
    Commitment(usize),
}

/// The sum of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Energy of all included meters, in mWh.
    pub energy: MilliwattHours,
    /// The blinding that opens the sum of the reading commitments.
    pub blinding: Scalar,
}

impl Sum {
    /// Accepts an opening only if it decodes and opens the sum of the commitments.
    ///
    /// # Errors
    /// [`Disruption`] for `channel`.
    pub fn verify(
        opening: &Opening,
        commitments: Commitment,
        channel: usize,
    ) -> Result<Self, Disruption> {
        let energy = opening.integer().ok_or(Disruption::Value(channel))?;
        if commit(opening) != commitments {
            return Err(Disruption::Commitment(channel));
        }
        Ok(Self {
            energy: MilliwattHours(energy),
            blinding: opening.blinding,
        })
    }
}

/// A published aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aggregate {
    /// The round.
    pub round: Round,
    /// The roster it is the sum of.
    pub roster: RosterHash,
    /// The log head of that roster.
    pub log_head: [u8; 32],
    /// Members of the net as of that head.
    pub members: u32,
    /// Included members.
    pub included: u32,
    /// One sum per channel.
    pub sums: Vec<Sum>,
}

impl Aggregate {
    /// Signs it with the provider's key.
    pub fn sign(&self, key: &DeviceKey, net: NetId, at: Timestamp) -> Vec<u8> {
        let sums = self.sums.iter().map(|sum| {
            cbor::array([
                cbor::uint(sum.energy.0),
                cbor::bytes(sum.blinding.as_bytes()),
            ])
        });
        let data = cbor::array([
            cbor::uint(self.round.0),
            cbor::bytes(&self.roster),
            cbor::bytes(&self.log_head),
            cbor::uint(self.members),
            cbor::uint(self.included),
            cbor::array(sums),
        ]);
        frame::sign(key, net, at, Notification::Aggregate, data)
    }

    /// Verifies an aggregate of a net's provider.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn verify(input: &[u8], net: NetId, provider: &PublicKey) -> Result<Self, FrameError> {
        Self::read(Frame::verify(input, provider)?, net)
    }

    /// Verifies an aggregate against the log: signed with the key that was in force at
    /// the log head that it names, or a later one.
    ///
    /// # Errors
    /// [`FrameError`]; also for a log head that is not in the log.
    pub fn verify_in(input: &[u8], membership: &Membership) -> Result<Self, FrameError> {
        let (frame, key) = membership.verify_provider_frame(input)?;
        let aggregate = Self::read(frame, membership.net())?;
        let head = membership
            .index_of_entry(&aggregate.log_head)
            .ok_or(FrameError::Bound("log head"))?;
        if !membership.is_provider_key_since(&key, head) {
            return Err(FrameError::Signature);
        }
        Ok(aggregate)
    }

    fn read(frame: Frame, net: NetId) -> Result<Self, FrameError> {
        let mut fields = frame.open(net, Notification::Aggregate)?;
        let round = Round(fields.uint("round", u64::MAX)?);
        let roster = fields.fixed("roster")?;
        let log_head = fields.fixed("log head")?;
        let members = fields.u32("members")?;
        let included = fields.u32("included")?;
        let mut sums = Vec::new();
        for item in fields.array("sums", MAX_CHANNELS)? {
            let mut sum = Fields::of(item, "sum")?;
            let energy = MilliwattHours(sum.uint("energy", i64::MAX as u64)?);
            let blinding = Option::from(Scalar::from_canonical_bytes(sum.fixed("blinding")?));
            sums.push(Sum {
                energy,
                blinding: blinding.ok_or(FrameError::Bound("blinding"))?,
            });
            sum.end()?;
        }
        fields.end()?;
        Ok(Self {
            round,
            roster,
            log_head,
            members,
            included,
            sums,
        })
    }
}
