//! The membership log: append-only, signed by the provider, hash-chained, and
//! verified entry by entry by every meter (`docs/protocol.md`, "Membership").

use std::collections::{BTreeMap, BTreeSet};

use ciborium::Value;

use crate::cbor::{self, Fields};
use crate::frame::{self, Frame, FrameError, Notification, Unverified};
use crate::graph::{self, Draw, KeyGraph, MemberIndex};
use crate::identity::{
    CaCertificate, Certificate, DeviceId, DeviceKey, IdentityError, MAX_CERTIFICATE, PublicKey,
    Role,
};
use crate::time::{Period, Timestamp};
use crate::topic::NetId;

/// Longest entry in bytes.
pub const MAX_ENTRY: usize = 4096;

/// Most members of a net.
pub const MAX_MEMBERS: usize = 1 << 16;

/// Most channels of a net.
pub const MAX_CHANNELS: usize = 16;

/// The rules of a net, fixed in its Genesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Length of a round.
    pub period: Period,
    /// How long after the end of a round submissions are taken, in milliseconds.
    pub window_ms: u32,
    /// Fewest included meters of a roster, and fewest candidates of a draw; at least 3.
    pub minimum_group: u32,
    /// Fewest full drawn edges of a meter in a roster; at least 3.
    pub minimum_neighbours: u32,
    /// Neighbours that a draw draws.
    pub degree: u32,
}

/// Default number of drawn neighbours: with 10 % corrupted meters the chance that
/// 60 % of 48 drawn neighbours are corrupted is below 2⁻⁴⁰ for a whole net.
pub const DEFAULT_DEGREE: u32 = 48;

/// The hard floor of neighbours and of the group: the thesis's rule of three.
pub const HARD_FLOOR: u32 = 3;

/// Kinds of entries; the numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// Opens the net.
    Genesis = 0,
    /// A meter joins, by its signed registration.
    Join = 1,
    /// Answers a draw request with the provider's nonce.
    Invite = 2,
    /// Ends a draw with the meter's opened nonce.
    Draw = 3,
    /// A meter leaves, by its signed exit.
    Leave = 4,
    /// The gateway administrator revokes a meter.
    Revoke = 5,
    /// A member is no candidate for draws any more.
    Lapsed = 6,
    /// Prices of a billing period.
    Tariff = 7,
    /// The provider changes its key.
    ProviderKey = 8,
}

impl EntryKind {
    const ALL: [Self; 9] = [
        Self::Genesis,
        Self::Join,
        Self::Invite,
        Self::Draw,
        Self::Leave,
        Self::Revoke,
        Self::Lapsed,
        Self::Tariff,
        Self::ProviderKey,
    ];

    fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == code)
    }
}

/// Why an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A frame in or around it is refused.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A certificate in it is refused.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// It is already in the log.
    #[error("already in the log")]
    Known,
    /// Entries before it are missing.
    #[error("entries from {expected} on are missing")]
    Gap {
        /// The index that comes next.
        expected: u64,
        /// The index of the entry that came.
        index: u64,
    },
    /// The provider signed another entry in the same place, or one with another past.
    #[error("the provider signed a second entry {index}: the log forks")]
    Fork {
        /// Where the two logs part, or the entry whose past differs.
        index: u64,
    },
    /// The Genesis names another CA or provider than this device was enrolled with.
    #[error("the Genesis names another {0} than this device was enrolled with")]
    Trust(&'static str),
    /// A kind that this version does not handle yet.
    #[error("entries of kind {0:?} are not supported by this version")]
    Unsupported(EntryKind),
    /// It breaks a rule of the log.
    #[error("{0}")]
    Rule(&'static str),
}

/// The first entry of a log.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// The net: first 16 bytes of SHA-256 of the entry's payload.
    pub net: NetId,
    /// What people call the net.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Names of its channels, for instance `import`.
    pub channels: Vec<String>,
    /// The provider that signs the log.
    pub provider: Certificate,
}

/// What a new net is made from.
#[derive(Clone, Debug)]
pub struct NewNet {
    /// What people call the net; 1 to 64 bytes.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Names of its channels; 1 to 16, each 1 to 32 bytes, all different.
    pub channels: Vec<String>,
    /// 16 random bytes that make the net's id unique.
    pub salt: [u8; 16],
}

impl NewNet {
    /// Signs the Genesis of the net.
    pub fn sign(
        &self,
        key: &DeviceKey,
        provider: &Certificate,
        ca: &CaCertificate,
        at: Timestamp,
    ) -> Vec<u8> {
        let policy = &self.policy;
        let body = cbor::array([
            cbor::text(&self.name),
            cbor::bytes(&self.salt),
            cbor::array([
                cbor::uint(policy.period.as_secs()),
                cbor::uint(policy.window_ms),
                cbor::uint(policy.minimum_group),
                cbor::uint(policy.minimum_neighbours),
                cbor::uint(policy.degree),
            ]),
            cbor::array(self.channels.iter().map(|name| cbor::text(name))),
            cbor::bytes(provider.der()),
            cbor::bytes(&ca.fingerprint()),
        ]);
        sign_entry(key, NetId([0; 16]), 0, None, EntryKind::Genesis, body, at)
    }
}

fn sign_entry(
    key: &DeviceKey,
    net: NetId,
    index: u64,
    previous: Option<[u8; 32]>,
    kind: EntryKind,
    body: Value,
    at: Timestamp,
) -> Vec<u8> {
    let previous = previous.map_or(Value::Null, |hash| cbor::bytes(&hash));
    let data = cbor::array([cbor::uint(index), previous, cbor::uint(kind as u64), body]);
    frame::sign(key, net, at, Notification::Entry, data)
}

fn read_policy(item: Value) -> Result<Policy, FrameError> {
    let mut fields = Fields::of(item, "policy")?;
    let period = Period::from_secs(fields.u32("period")?).ok_or(FrameError::Bound("period"))?;
    let policy = Policy {
        period,
        window_ms: fields.u32("window")?,
        minimum_group: fields.u32("minimum group")?,
        minimum_neighbours: fields.u32("minimum neighbours")?,
        degree: fields.u32("degree")?,
    };
    fields.end()?;
    policy.check().map_err(FrameError::Bound)?;
    Ok(policy)
}

impl Policy {
    /// Checks the bounds of every rule.
    ///
    /// # Errors
    /// The name of the field that is out of bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        let members = u32::try_from(MAX_MEMBERS).unwrap_or(u32::MAX);
        let period_ms = self.period.as_secs().saturating_mul(1000);
        if !(100..=period_ms).contains(&self.window_ms) {
            Err("window")
        } else if !(HARD_FLOOR..=members).contains(&self.minimum_group) {
            Err("minimum group")
        } else if !(HARD_FLOOR..=1024).contains(&self.minimum_neighbours) {
            Err("minimum neighbours")
        } else if !(HARD_FLOOR..=1024).contains(&self.degree) {
            Err("degree")
        } else {
            Ok(())
        }
    }
}

/// A member of the net.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its id.
    pub id: DeviceId,
    /// Its signing key.
    pub key: PublicKey,
    /// Index of its Join entry.
    pub joined: u64,
}

/// An invitation that is not answered by a Draw yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invite {
    /// Hash of the Invite entry.
    pub hash: [u8; 32],
    /// What the meter committed to.
    pub commitment: [u8; 32],
    /// Members as of the Invite entry, the meter itself included.
    pub members: u32,
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
}

/// The head of a log as others may name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Index of the newest entry.
    pub index: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

/// A verified membership log.
#[derive(Clone, Debug)]
pub struct Membership {
    genesis: Genesis,
    ca: CaCertificate,
    hashes: Vec<[u8; 32]>,
    by_hash: BTreeMap<[u8; 32], u64>,
    /// Number of members after each entry.
    sizes: Vec<u32>,
    members: Vec<Member>,
    by_id: BTreeMap<DeviceId, MemberIndex>,
    invites: BTreeMap<MemberIndex, Invite>,
    requests_used: BTreeSet<[u8; 32]>,
    graph: KeyGraph,
}

struct EntryParts {
    hash: [u8; 32],
    at: Timestamp,
    index: u64,
    previous: Option<[u8; 32]>,
    kind: EntryKind,
    body: Value,
}

fn read_entry(input: &[u8], net: NetId, provider: &PublicKey) -> Result<EntryParts, EntryError> {
    if input.len() > MAX_ENTRY {
        return Err(FrameError::TooLong.into());
    }
    let frame = Frame::verify(input, provider)?;
    let (hash, at) = (frame.digest(), frame.header().timestamp);
    let mut fields = frame.open(net, Notification::Entry)?;
    let index = fields.uint("index", u64::MAX)?;
    let previous = fields.fixed_or_null("previous")?;
    let kind = fields.uint("kind", u64::MAX)?;
    let kind = EntryKind::from_code(kind).ok_or(FrameError::Bound("kind"))?;
    let body = fields.item("body")?;
    fields.end()?;
    Ok(EntryParts {
        hash,
        at,
        index,
        previous,
        kind,
        body,
    })
}

impl Membership {
    /// Opens a log with its Genesis, which must be signed by `provider` and name
    /// it and the CA.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn open(
        genesis: &[u8],
        provider: &Certificate,
        ca: &CaCertificate,
    ) -> Result<Self, EntryError> {
        let entry = read_entry(genesis, NetId([0; 16]), provider.key())?;
        if entry.kind != EntryKind::Genesis || entry.index != 0 || entry.previous.is_some() {
            return Err(EntryError::Rule("the first entry is no Genesis"));
        }
        let mut fields = Fields::of(entry.body, "genesis")?;
        let name = fields.text("name", 64)?;
        fields.fixed::<16>("salt")?;
        let policy = read_policy(fields.item("policy")?)?;
        let mut channels = Vec::new();
        for item in fields.array("channels", MAX_CHANNELS)? {
            let Value::Text(channel) = item else {
                return Err(FrameError::Field("channel").into());
            };
            if channel.is_empty() || channel.len() > 32 || channels.contains(&channel) {
                return Err(FrameError::Bound("channel").into());
            }
            channels.push(channel);
        }
        if channels.is_empty() {
            return Err(FrameError::Bound("channels").into());
        }
        let der = fields.bytes("provider certificate", MAX_CERTIFICATE)?;
        let fingerprint: [u8; 32] = fields.fixed("CA fingerprint")?;
        fields.end()?;
        if fingerprint != ca.fingerprint() {
            return Err(EntryError::Trust("CA"));
        }
        if der != provider.der() || provider.role() != Role::Provider {
            return Err(EntryError::Trust("provider"));
        }
        let mut net = [0; 16];
        net.copy_from_slice(entry.hash.split_at(16).0);
        let genesis = Genesis {
            net: NetId(net),
            name,
            policy,
            channels,
            provider: provider.clone(),
        };
        Ok(Self {
            genesis,
            ca: ca.clone(),
            hashes: vec![entry.hash],
            by_hash: BTreeMap::from([(entry.hash, 0)]),
            sizes: vec![0],
            members: Vec::new(),
            by_id: BTreeMap::new(),
            invites: BTreeMap::new(),
            requests_used: BTreeSet::new(),
            graph: KeyGraph::default(),
        })
    }

    /// Verifies and appends the next entry.
    ///
    /// # Errors
    /// [`EntryError`]; the log is unchanged then. [`EntryError::Known`] and
    /// [`EntryError::Gap`] are no faults of anyone; [`EntryError::Fork`] is proof
    /// that the provider signed two logs.
    pub fn append(&mut self, input: &[u8]) -> Result<Applied, EntryError> {
        if input.len() > MAX_ENTRY {
            return Err(FrameError::TooLong.into());
        }
        // Repetitions are common; they need no signature verified again.
        if self.by_hash.contains_key(&frame::digest_of(input)?) {
            return Err(EntryError::Known);
        }
        let entry = read_entry(input, self.genesis.net, self.genesis.provider.key())?;
        let head = self.head();
        let expected = head.index.saturating_add(1);
        if entry.index < expected {
            return Err(EntryError::Fork { index: entry.index });
        }
        if entry.index > expected {
            return Err(EntryError::Gap {
                expected,
                index: entry.index,
            });
        }
        if entry.previous != Some(head.hash) {
            return Err(EntryError::Fork { index: entry.index });
        }
        let applied = match entry.kind {
            EntryKind::Genesis => return Err(EntryError::Rule("a second Genesis")),
            EntryKind::Join => self.join(entry.body, entry.at, entry.index)?,
            EntryKind::Invite => self.invite(entry.body, entry.hash)?,
            EntryKind::Draw => self.draw(entry.body, entry.at, entry.index)?,
            kind => return Err(EntryError::Unsupported(kind)),
        };
        self.hashes.push(entry.hash);
        self.by_hash.insert(entry.hash, entry.index);
        self.sizes
            .push(u32::try_from(self.members.len()).unwrap_or(u32::MAX));
        Ok(applied)
    }

    fn join(&mut self, body: Value, at: Timestamp, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "join")?;
        let registration = fields.bytes("registration", MAX_ENTRY)?;
        fields.end()?;
        let certificate = verify_registration(&registration, self.genesis.net, &self.ca, at)?;
        if self.by_id.contains_key(&certificate.id()) {
            return Err(EntryError::Rule("a member joins twice"));
        }
        if self.members.len() >= MAX_MEMBERS {
            return Err(EntryError::Rule("the net is full"));
        }
        let member = MemberIndex::try_from(self.members.len()).unwrap_or(MemberIndex::MAX);
        self.by_id.insert(certificate.id(), member);
        self.members.push(Member {
            id: certificate.id(),
            key: *certificate.key(),
            joined: index,
        });
        Ok(Applied::Joined(member))
    }

    fn invite(&mut self, body: Value, hash: [u8; 32]) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "invite")?;
        let request = fields.bytes("draw request", MAX_ENTRY)?;
        fields.fixed::<32>("nonce")?;
        fields.end()?;
        let (member, commitment) = self.verify_draw_request(&request)?;
        self.requests_used.insert(commitment);
        let members = u32::try_from(self.members.len()).unwrap_or(u32::MAX);
        self.invites.insert(
            member,
            Invite {
                hash,
                commitment,
                members,
            },
        );
        Ok(Applied::Invited(member))
    }

    fn draw(&mut self, body: Value, at: Timestamp, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "draw")?;
        let open = fields.bytes("open", MAX_ENTRY)?;
        fields.end()?;
        let (member, invite, nonce) = self.verify_open(&open)?;
        let id = self
            .member(member)
            .map(|m| m.id)
            .ok_or(EntryError::Rule("no such member"))?;
        let beacon = graph::beacon(self.genesis.net, &invite.hash, id, &nonce);
        let candidates = (0..invite.members)
            .zip(&self.members)
            .filter(|(index, _)| *index != member)
            .map(|(index, candidate)| (index, candidate.id));
        let degree = usize::try_from(self.genesis.policy.degree).unwrap_or(usize::MAX);
        let neighbours = graph::draw_neighbours(&beacon, candidates, degree);
        let candidates = invite.members.saturating_sub(1);
        self.graph.add(
            member,
            Draw {
                entry: index,
                at,
                candidates,
                neighbours,
            },
        );
        self.invites.remove(&member);
        Ok(Applied::Drawn(member))
    }

    /// Verifies a member's draw request: one at a time, and never one twice.
    pub(crate) fn verify_draw_request(
        &self,
        request: &[u8],
    ) -> Result<(MemberIndex, [u8; 32]), EntryError> {
        let (member, frame) = self.verify_member_frame(request)?;
        let mut fields = frame.open(self.genesis.net, Notification::DrawRequest)?;
        let commitment = fields.fixed("commitment")?;
        fields.end()?;
        if self.invites.contains_key(&member) {
            return Err(EntryError::Rule("a draw of this member is still open"));
        }
        if self.requests_used.contains(&commitment) {
            return Err(EntryError::Rule("a draw request is used twice"));
        }
        Ok((member, commitment))
    }

    /// Verifies a member's opened nonce against its open invite.
    pub(crate) fn verify_open(
        &self,
        open: &[u8],
    ) -> Result<(MemberIndex, Invite, [u8; 32]), EntryError> {
        let (member, frame) = self.verify_member_frame(open)?;
        let id = frame.header().client;
        let mut fields = frame.open(self.genesis.net, Notification::Open)?;
        let invite_hash: [u8; 32] = fields.fixed("invite")?;
        let nonce: [u8; 32] = fields.fixed("nonce")?;
        fields.end()?;
        let invite = self
            .invites
            .get(&member)
            .filter(|invite| invite.hash == invite_hash);
        let invite = *invite.ok_or(EntryError::Rule("no such invite is open"))?;
        if graph::draw_commitment(self.genesis.net, id, &nonce) != invite.commitment {
            return Err(EntryError::Rule("the nonce is not the one committed to"));
        }
        Ok((member, invite, nonce))
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

    /// Number of members as of an entry; 0 for entries that do not exist.
    pub fn members_at(&self, index: u64) -> u32 {
        let size = usize::try_from(index)
            .ok()
            .and_then(|index| self.sizes.get(index));
        size.copied().unwrap_or(0)
    }

    /// All members, in the order of their Joins.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member.
    pub fn member(&self, index: MemberIndex) -> Option<&Member> {
        self.members.get(usize::try_from(index).ok()?)
    }

    /// The index of a member.
    pub fn index_of(&self, id: &DeviceId) -> Option<MemberIndex> {
        self.by_id.get(id).copied()
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
        sign_entry(
            key,
            self.genesis.net,
            index,
            Some(head.hash),
            kind,
            body,
            at,
        )
    }
}

/// Signs a registration: notification 1 with the meter's own certificate.
pub fn sign_registration(
    key: &DeviceKey,
    certificate: &Certificate,
    net: NetId,
    at: Timestamp,
) -> Vec<u8> {
    let data = cbor::array([cbor::bytes(certificate.der())]);
    frame::sign(key, net, at, Notification::Register, data)
}

/// Verifies a registration: a meter's certificate for this net, issued by the CA,
/// valid at `at`, whose key signed the frame.
///
/// # Errors
/// [`EntryError::Frame`] or [`EntryError::Identity`].
pub fn verify_registration(
    input: &[u8],
    net: NetId,
    ca: &CaCertificate,
    at: Timestamp,
) -> Result<Certificate, EntryError> {
    let frame = Unverified::parse(input)?;
    let mut claimed = Fields::of(frame.claimed_data().clone(), "data")?;
    let der = claimed.bytes("certificate", MAX_CERTIFICATE)?;
    claimed.end()?;
    let certificate = Certificate::verify(&der, ca, at)?;
    if certificate.role() != Role::Meter {
        return Err(IdentityError::Role.into());
    }
    if certificate.net() != Some(net) {
        return Err(IdentityError::Net.into());
    }
    frame
        .verify(certificate.key())?
        .open(net, Notification::Register)?;
    Ok(certificate)
}
