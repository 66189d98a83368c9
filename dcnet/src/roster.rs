//! The roster: who is in a round. There is exactly one per round, and reveal pads
//! are keyed by its hash, so meters that were shown different rosters give no sum
//! (`docs/protocol.md`, "Roster").

use ciborium::Value;

use crate::bitmap::Bitmap;
use crate::cbor::{self, Fields};
use crate::frame::{self, FrameError, MAX_FRAME, Notification};
use crate::graph::MemberIndex;
use crate::identity::DeviceKey;
use crate::membership::{MAX_MEMBERS, Membership};
use crate::pad::RosterHash;
use crate::superposition::ShortDigest;
use crate::time::{Round, Timestamp};

/// Most half-open edges that a roster may list.
pub const MAX_HALF_OPEN: usize = 4096;

/// Rosters looked back on for the share of members that must be present.
pub(crate) const SEEN_ROSTERS: usize = 96;

/// An edge that only one end used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HalfOpen {
    /// The end that used it.
    pub user: MemberIndex,
    /// The end that did not.
    pub non_user: MemberIndex,
}

/// A verified roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// The round.
    pub round: Round,
    /// Hash of the log entry as of which member indices are meant.
    pub log_head: [u8; 32],
    /// Index of that entry.
    pub head_index: u64,
    /// The included members.
    pub included: Bitmap,
    /// The short digest of each included member's submission, in the same order.
    pub digests: Vec<ShortDigest>,
    /// Half-open edges between included members, strictly ascending.
    pub half_open: Vec<HalfOpen>,
    /// Hash of the roster issued before; `None` for the first of a net.
    pub previous: Option<RosterHash>,
    /// When it was signed, by the provider's clock.
    pub issued: Timestamp,
    /// SHA-256 of the payload.
    pub hash: RosterHash,
}

/// Why a roster is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Form, signature or bounds.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// Its log head is not in the log that is known here.
    #[error("its log head is not in the log that is known here")]
    UnknownHead,
}

impl Roster {
    /// Signs a roster; `hash`, `issued` and `head_index` of `self` are not used.
    pub fn sign(&self, key: &DeviceKey, membership: &Membership, at: Timestamp) -> Vec<u8> {
        let half_open = self
            .half_open
            .iter()
            .map(|edge| cbor::array([cbor::uint(edge.user), cbor::uint(edge.non_user)]));
        let data = cbor::array([
            cbor::uint(self.round.0),
            cbor::bytes(&self.log_head),
            cbor::bytes(self.included.as_bytes()),
            cbor::bytes(&self.digests.concat()),
            cbor::array(half_open),
            self.previous.map_or(Value::Null, |hash| cbor::bytes(&hash)),
        ]);
        frame::sign(key, membership.net(), at, Notification::Roster, data)
    }

    /// Verifies a roster of the net's provider against the log: only members as of its
    /// log head are in it.
    ///
    /// # Errors
    /// [`RosterError`].
    pub fn verify(input: &[u8], membership: &Membership) -> Result<Self, RosterError> {
        let (frame, key) = membership.verify_provider_frame(input)?;
        let hash = frame.digest();
        let issued = frame.header().timestamp;
        let mut fields = frame.open(membership.net(), Notification::Roster)?;
        let round = Round(fields.uint("round", u64::MAX)?);
        let log_head: [u8; 32] = fields.fixed("log head")?;
        let included = fields.bytes("included", MAX_MEMBERS / 8)?;
        let digests = fields.bytes("digests", MAX_FRAME)?;
        let half_open = fields.array("half-open edges", MAX_HALF_OPEN)?;
        let previous = fields.fixed_or_null("previous")?;
        fields.end()?;

        let head_index = membership
            .index_of_entry(&log_head)
            .ok_or(RosterError::UnknownHead)?;
        if *membership.provider_key_at(head_index) != key {
            return Err(FrameError::Signature.into());
        }
        let members = usize::try_from(membership.places_at(head_index)).unwrap_or(0);
        let included = Bitmap::from_bytes(included, members, "included")?;
        // Departed members would only fill a group that others find too small.
        let places = membership.members();
        let is_member = |place: usize| {
            let member = places.get(place);
            member.is_some_and(|member| member.is_active_at(head_index))
        };
        if !included.iter().all(is_member) {
            return Err(FrameError::Bound("included").into());
        }
        let (digests, rest) = digests.as_chunks::<8>();
        if !rest.is_empty() || digests.len() != included.count() {
            return Err(FrameError::Bound("digests").into());
        }
        let half_open = read_half_open(half_open, &included)?;
        let digests = digests.to_vec();
        Ok(Self {
            round,
            log_head,
            head_index,
            included,
            digests,
            half_open,
            previous,
            issued,
            hash,
        })
    }

    /// Whether a member is included.
    pub fn includes(&self, member: MemberIndex) -> bool {
        usize::try_from(member).is_ok_and(|member| self.included.contains(member))
    }

    /// Whether an edge is stated to be half-open, used by `user` alone.
    pub fn states_half_open(&self, user: MemberIndex, non_user: MemberIndex) -> bool {
        let edge = HalfOpen { user, non_user };
        self.half_open.binary_search(&edge).is_ok()
    }

    /// The included members, ascending.
    pub fn members(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        self.included
            .iter()
            .filter_map(|member| MemberIndex::try_from(member).ok())
    }

    /// The stated digest of a member's submission.
    pub fn digest_of(&self, member: MemberIndex) -> Option<ShortDigest> {
        let member = usize::try_from(member).ok()?;
        let included = self.included.contains(member);
        let place = included.then(|| self.included.rank(member))?;
        self.digests.get(place).copied()
    }
}

fn read_half_open(items: Vec<Value>, included: &Bitmap) -> Result<Vec<HalfOpen>, FrameError> {
    let mut edges: Vec<HalfOpen> = Vec::with_capacity(items.len());
    for item in items {
        let mut fields = Fields::of(item, "half-open edge")?;
        let edge = HalfOpen {
            user: fields.u32("user")?,
            non_user: fields.u32("non-user")?,
        };
        fields.end()?;
        let both_included = [edge.user, edge.non_user]
            .iter()
            .all(|end| usize::try_from(*end).is_ok_and(|end| included.contains(end)));
        let ascending = edges.last().is_none_or(|last| *last < edge);
        if !both_included || !ascending || edge.user == edge.non_user {
            return Err(FrameError::Bound("half-open edges"));
        }
        edges.push(edge);
    }
    Ok(edges)
}
