//! The membership log: append-only, signed by the provider, hash-chained, and
//! verified entry by entry by every meter (`docs/protocol.md`, "Membership").

mod append;
mod entry;
mod genesis;
mod policy;

use std::collections::{BTreeMap, BTreeSet};

use ciborium::Value;

use crate::cbor;
use crate::frame::{Frame, FrameError, Unverified};
use crate::graph::{KeyGraph, MemberIndex};
use crate::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, PublicKey};
use crate::time::Timestamp;
use crate::topic::NetId;

pub(crate) use append::{NO_SUCH_INVITE, NO_SUCH_MEMBERSHIP, REGISTRATION_USED};
pub use entry::{EntryError, EntryKind, sign_exit, sign_registration, verify_registration};
pub use genesis::{Genesis, NewNet};
pub use policy::{DEFAULT_DEGREE, HARD_FLOOR, Policy};

/// Longest entry in bytes.
pub const MAX_ENTRY: usize = 4096;

/// Most members of a net.
pub const MAX_MEMBERS: usize = 1 << 16;

/// Most channels of a net.
pub const MAX_CHANNELS: usize = 16;

/// A membership: from a Join to the Leave or Revoke that ends it. A meter that joins
/// again is a new member in a new place; places are never used again.
#[derive(Clone, Debug)]
pub struct Member {
    /// The meter's id.
    pub id: DeviceId,
    /// Its signing key.
    pub key: PublicKey,
    /// Index of its Join entry.
    pub joined: u64,
    /// Digest of the signed registration in that entry.
    pub registration: [u8; 32],
    /// Index of the Leave or Revoke entry that ended it.
    pub ended: Option<u64>,
    /// The place that the meter had before, if it joined anew.
    pub earlier: Option<MemberIndex>,
    /// When it was no candidate for draws: from a Lapsed entry to its own next Draw.
    lapsed: Vec<(u64, Option<u64>)>,
}

impl Member {
    /// Whether it was a member as of a log entry.
    pub fn is_active_at(&self, index: u64) -> bool {
        self.joined <= index && self.ended.is_none_or(|ended| ended > index)
    }

    /// Whether it is a member now.
    pub fn is_active(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether it is marked as lapsed now.
    pub fn is_lapsed(&self) -> bool {
        self.lapsed.last().is_some_and(|(_, until)| until.is_none())
    }

    /// When it was no candidate for draws, oldest first: from a Lapsed entry to the entry that
    /// ended it, its own next Draw or its Leave or Revoke; `None` while it goes on.
    pub fn lapses(&self) -> &[(u64, Option<u64>)] {
        &self.lapsed
    }

    fn is_candidate_at(&self, index: u64) -> bool {
        let lapsed = self
            .lapsed
            .iter()
            .any(|(from, until)| *from <= index && until.is_none_or(|until| until > index));
        self.is_active_at(index) && !lapsed
    }
}

/// An invitation that is not answered by a Draw yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invite {
    /// Hash of the Invite entry.
    pub hash: [u8; 32],
    /// What the meter committed to.
    pub commitment: [u8; 32],
    /// Index of the Invite entry; candidates are the members as of it.
    pub index: u64,
}

/// What appending an entry did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A member joined.
    Joined(MemberIndex),
    /// A member was invited to open its draw.
    Invited(MemberIndex),
    /// A member's draw is done.
    Drawn(MemberIndex),
    /// A member left by its own signed exit.
    Left(MemberIndex),
    /// The gateway administrator revoked a member.
    Revoked(MemberIndex),
    /// A member is no candidate for draws until it draws itself.
    Lapsed(MemberIndex),
    /// The provider signs with another key from here on.
    ProviderChanged,
}

/// The head of a log as others may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Index of the newest entry.
    pub index: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// How many there were as of an entry.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    places: u32,
    members: u32,
}

/// A verified membership log.
#[derive(Clone, Debug)]
pub struct Membership {
    genesis: Genesis,
    ca: CaCertificate,
    /// The provider's certificates, each with the first entry that it signs.
    providers: Vec<(u64, Certificate)>,
    /// The provider that this device was enrolled with.
    pinned: PublicKey,
    hashes: Vec<[u8; 32]>,
    by_hash: BTreeMap<[u8; 32], u64>,
    /// After each entry.
    sizes: Vec<Size>,
    members: Vec<Member>,
    /// The newest place of each meter.
    by_id: BTreeMap<DeviceId, MemberIndex>,
    lapsed: u32,
    invites: BTreeMap<MemberIndex, Invite>,
    requests_used: BTreeSet<[u8; 32]>,
    registrations_used: BTreeSet<[u8; 32]>,
    revoked: BTreeSet<DeviceId>,
    graph: KeyGraph,
}

impl Membership {
    /// Opens a log with its Genesis, which must be signed by the provider that it names
    /// and name the CA. `provider` is the one that this device was enrolled with: see
    /// [`Self::has_pinned_provider`].
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn open(
        genesis: &[u8],
        provider: &Certificate,
        ca: &CaCertificate,
    ) -> Result<Self, EntryError> {
        let (genesis, hash) = Genesis::verify(genesis, ca)?;
        Ok(Self {
            providers: vec![(0, genesis.provider.clone())],
            pinned: *provider.key(),
            genesis,
            ca: ca.clone(),
            hashes: vec![hash],
            by_hash: BTreeMap::from([(hash, 0)]),
            sizes: vec![Size::default()],
            members: Vec::new(),
            by_id: BTreeMap::new(),
            lapsed: 0,
            invites: BTreeMap::new(),
            requests_used: BTreeSet::new(),
            registrations_used: BTreeSet::new(),
            revoked: BTreeSet::new(),
            graph: KeyGraph::default(),
        })
    }

    /// Verifies a frame that claims to come from a member of this net.
    pub(crate) fn verify_member_frame(
        &self,
        input: &[u8],
    ) -> Result<(MemberIndex, Frame), FrameError> {
        let frame = Unverified::parse(input)?;
        let member = self
            .index_of(&frame.claimed().client)
            .ok_or(FrameError::Sender)?;
        let key = self
            .member(member)
            .map(|m| m.key)
            .ok_or(FrameError::Sender)?;
        if frame.claimed().net != self.genesis.net {
            return Err(FrameError::Net);
        }
        Ok((member, frame.verify(&key)?))
    }

    /// The Genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The provider's certificate that is in force.
    pub fn provider(&self) -> &Certificate {
        self.providers
            .last()
            .map_or(&self.genesis.provider, |(_, certificate)| certificate)
    }

    /// The key that signs with the log at an entry: the entry after it, rosters and
    /// aggregates that name it.
    pub fn provider_key_at(&self, index: u64) -> &PublicKey {
        let in_force = self.providers.iter().rev().find(|(from, _)| *from <= index);
        in_force
            .map_or(&self.genesis.provider, |(_, certificate)| certificate)
            .key()
    }

    /// Whether a key of the provider was in force at an entry or came after it.
    pub fn is_provider_key_since(&self, key: &PublicKey, index: u64) -> bool {
        self.provider_key_at(index) == key
            || self
                .providers
                .iter()
                .any(|(from, certificate)| *from > index && certificate.key() == key)
    }

    /// Whether the provider that this device was enrolled with signs this log, or did.
    pub fn has_pinned_provider(&self) -> bool {
        self.providers
            .iter()
            .any(|(_, certificate)| *certificate.key() == self.pinned)
    }

    /// Verifies a frame of the provider, whichever of its keys signed it; returns the
    /// key, which must be the one in force at the entry that the frame names.
    pub(crate) fn verify_provider_frame(
        &self,
        input: &[u8],
    ) -> Result<(Frame, PublicKey), FrameError> {
        let mut newest = None;
        for (_, certificate) in self.providers.iter().rev() {
            match Frame::verify(input, certificate.key()) {
                Ok(frame) => return Ok((frame, *certificate.key())),
                Err(error) => newest = newest.or(Some(error)),
            }
        }
        Err(newest.unwrap_or(FrameError::Signature))
    }

    /// The net.
    pub fn net(&self) -> NetId {
        self.genesis.net
    }

    /// The newest entry.
    pub fn head(&self) -> LogHead {
        let index = u64::try_from(self.hashes.len())
            .unwrap_or(u64::MAX)
            .saturating_sub(1);
        LogHead {
            index,
            hash: self.hashes.last().copied().unwrap_or_default(),
        }
    }

    /// The index of the entry with this hash.
    pub fn index_of_entry(&self, hash: &[u8; 32]) -> Option<u64> {
        self.by_hash.get(hash).copied()
    }

    /// The hash of an entry.
    pub fn hash_at(&self, index: u64) -> Option<[u8; 32]> {
        self.hashes.get(usize::try_from(index).ok()?).copied()
    }

    fn size_at(&self, index: u64) -> Size {
        let size = usize::try_from(index)
            .ok()
            .and_then(|index| self.sizes.get(index));
        size.copied().unwrap_or_default()
    }

    /// Number of members as of an entry; 0 for entries that do not exist.
    pub fn members_at(&self, index: u64) -> u32 {
        self.size_at(index).members
    }

    /// Number of places as of an entry, those of former members included: the length
    /// of bitmaps over members.
    pub fn places_at(&self, index: u64) -> u32 {
        self.size_at(index).places
    }

    /// Number of members now.
    pub fn size(&self) -> u32 {
        self.sizes.last().map_or(0, |size| size.members)
    }

    /// How many others a draw of this member chooses from if it is invited now.
    pub fn candidates_of(&self, member: MemberIndex) -> u32 {
        let own = self.member(member);
        let is_one = own.is_some_and(|member| member.is_active() && !member.is_lapsed());
        let all = self.size().saturating_sub(self.lapsed);
        all.saturating_sub(u32::from(is_one))
    }

    /// All places in the order of their Joins, former members included.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member, or a former one.
    pub fn member(&self, index: MemberIndex) -> Option<&Member> {
        self.members.get(usize::try_from(index).ok()?)
    }

    /// The newest place of a meter, whether or not it is still a member.
    pub fn index_of(&self, id: &DeviceId) -> Option<MemberIndex> {
        self.by_id.get(id).copied()
    }

    /// The place of a meter that is a member now.
    pub fn active(&self, id: &DeviceId) -> Option<MemberIndex> {
        let index = self.index_of(id)?;
        self.member(index)?.is_active().then_some(index)
    }

    /// Whether the log revokes a device.
    pub fn is_revoked(&self, id: &DeviceId) -> bool {
        self.revoked.contains(id)
    }

    /// Whether a registration with this digest is in the log.
    pub fn knows_registration(&self, digest: &[u8; 32]) -> bool {
        self.registrations_used.contains(digest)
    }

    /// The open invite of a member.
    pub fn open_invite(&self, member: MemberIndex) -> Option<&Invite> {
        self.invites.get(&member)
    }

    /// Whether an Invite for a draw request with this commitment is in the log.
    pub(crate) fn knows_draw_request(&self, commitment: &[u8; 32]) -> bool {
        self.requests_used.contains(commitment)
    }

    /// The key graph.
    pub fn graph(&self) -> &KeyGraph {
        &self.graph
    }

    /// Signs the entry that would come next; the caller appends it.
    pub fn sign_next(
        &self,
        key: &DeviceKey,
        kind: EntryKind,
        body: Value,
        at: Timestamp,
    ) -> Vec<u8> {
        let head = self.head();
        let index = head.index.saturating_add(1);
        entry::sign(
            key,
            self.genesis.net,
            index,
            Some(head.hash),
            kind,
            body,
            at,
        )
    }

    /// The body of the `ProviderKey` entry by which another key takes over, with its
    /// holder's consent.
    pub fn succession(&self, key: &DeviceKey, certificate: &Certificate, at: Timestamp) -> Value {
        let consent = entry::sign_succession(key, certificate, self.genesis.net, at);
        cbor::array([cbor::bytes(&consent)])
    }
}
