//! What each kind of entry does to the log, and when it is refused.

use ciborium::Value;

use super::entry::{self, Entry, EntryError, EntryKind, verify_registration};
use super::{Applied, Invite, MAX_ENTRY, MAX_MEMBERS, Member, Membership, Size};
use crate::cbor::Fields;
use crate::frame::{self, FrameError, Notification};
use crate::graph::{self, Draw, MemberIndex};
use crate::identity::{Certificate, MAX_CERTIFICATE};
use crate::revocation::verify_revocation;
use crate::time::Timestamp;

/// A draw is opened that nobody was invited to, or that is done.
pub(crate) const NO_SUCH_INVITE: &str = "no such invite is open";

/// A registration that began a membership, which may have ended.
pub(crate) const REGISTRATION_USED: &str = "a registration is used twice";

/// An exit of a membership that has ended, or never was.
pub(crate) const NO_SUCH_MEMBERSHIP: &str = "the exit names no membership of its sender";

impl Membership {
    /// Verifies and appends the next entry.
    ///
    /// # Errors
    /// [`EntryError`]; the log is unchanged then. [`EntryError::Known`] and
    /// [`EntryError::Gap`] are no faults of anyone; [`EntryError::Fork`] is proof
    /// that the provider signed two logs; [`EntryError::Rule`], [`EntryError::Unsupported`]
    /// and [`EntryError::Body`] that it signed what no log may contain.
    pub fn append(&mut self, input: &[u8]) -> Result<Applied, EntryError> {
        if input.len() > MAX_ENTRY {
            return Err(FrameError::TooLong.into());
        }
        // Repetitions are common; they need no signature verified again.
        if self.by_hash.contains_key(&frame::digest_of(input)?) {
            return Err(EntryError::Known);
        }
        let (frame, key) = self.verify_provider_frame(input)?;
        let head = self.head();
        // An entry is signed by the key in force before it.
        let is_in_force = |index: Option<u64>| {
            let before = index.map_or(head.index, |index| index.saturating_sub(1));
            *self.provider_key_at(before) == key
        };
        let entry = Entry::read(frame, self.genesis.net, is_in_force)?;
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
        let (hash, index) = (entry.hash, entry.index);
        let applied = self.apply(entry).map_err(EntryError::in_body)?;
        self.hashes.push(hash);
        self.by_hash.insert(hash, index);
        let members = self.size();
        let members = match applied {
            Applied::Joined(_) => members.saturating_add(1),
            Applied::Left(_) | Applied::Revoked(_) => members.saturating_sub(1),
            _ => members,
        };
        self.sizes.push(Size {
            places: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            members,
        });
        Ok(applied)
    }

    /// Does what an entry says that is the provider's and comes next.
    fn apply(&mut self, entry: Entry) -> Result<Applied, EntryError> {
        let (at, index) = (entry.at, entry.index);
        match entry.kind {
            EntryKind::Genesis => Err(EntryError::Rule("a second Genesis")),
            EntryKind::Join => self.join(entry.body, at, index),
            EntryKind::Invite => self.invite(entry.body, entry.hash, index),
            EntryKind::Draw => self.draw(entry.body, at, index),
            EntryKind::Leave => self.leave(entry.body, index),
            EntryKind::Revoke => self.revoke(entry.body, at, index),
            EntryKind::Lapsed => self.lapse(entry.body, index),
            EntryKind::ProviderKey => self.change_provider(entry.body, at, index),
            kind @ EntryKind::Tariff => Err(EntryError::Unsupported(kind)),
        }
    }

    fn join(&mut self, body: Value, at: Timestamp, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "join")?;
        let frame = fields.bytes("registration", MAX_ENTRY)?;
        fields.end()?;
        let certificate = verify_registration(&frame, self.genesis.net, &self.ca, at)?;
        let registration = frame::digest_of(&frame)?;
        let id = certificate.id();
        if self.active(&id).is_some() {
            return Err(EntryError::Rule("a member joins twice"));
        }
        if self.revoked.contains(&id) {
            return Err(EntryError::Rule("a revoked meter joins"));
        }
        // Otherwise a meter that left could be made to join again without wanting to.
        if self.registrations_used.contains(&registration) {
            return Err(EntryError::Rule(REGISTRATION_USED));
        }
        if self.members.len() >= MAX_MEMBERS {
            return Err(EntryError::Rule("the net is full"));
        }
        let member = MemberIndex::try_from(self.members.len()).unwrap_or(MemberIndex::MAX);
        self.registrations_used.insert(registration);
        let earlier = self.by_id.insert(id, member);
        self.members.push(Member {
            id,
            key: *certificate.key(),
            joined: index,
            registration,
            ended: None,
            earlier,
            lapsed: Vec::new(),
        });
        Ok(Applied::Joined(member))
    }

    fn invite(&mut self, body: Value, hash: [u8; 32], index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "invite")?;
        let request = fields.bytes("draw request", MAX_ENTRY)?;
        fields.fixed::<32>("nonce")?;
        fields.end()?;
        let (member, commitment) = self.verify_draw_request(&request)?;
        self.requests_used.insert(commitment);
        let invite = Invite {
            hash,
            commitment,
            index,
        };
        self.invites.insert(member, invite);
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
        let candidates: Vec<_> = (0..)
            .zip(&self.members)
            .filter(|(place, m)| *place != member && m.is_candidate_at(invite.index))
            .map(|(place, candidate)| (place, candidate.id))
            .collect();
        let degree = usize::try_from(self.genesis.policy.degree).unwrap_or(usize::MAX);
        let count = u32::try_from(candidates.len()).unwrap_or(u32::MAX);
        let neighbours = graph::draw_neighbours(&beacon, candidates.into_iter(), degree);
        self.graph.add(
            member,
            Draw {
                entry: index,
                at,
                candidates: count,
                neighbours,
            },
        );
        self.invites.remove(&member);
        self.end_lapse(member, index);
        Ok(Applied::Drawn(member))
    }

    /// Who draws is there: it is a candidate again.
    fn end_lapse(&mut self, member: MemberIndex, index: u64) {
        let place = usize::try_from(member).unwrap_or(usize::MAX);
        let Some(member) = self.members.get_mut(place) else {
            return;
        };
        if let Some((_, until @ None)) = member.lapsed.last_mut() {
            *until = Some(index);
            self.lapsed = self.lapsed.saturating_sub(1);
        }
    }

    fn leave(&mut self, body: Value, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "leave")?;
        let exit = fields.bytes("exit", MAX_ENTRY)?;
        fields.end()?;
        let member = self.verify_exit(&exit)?;
        self.end(member, index);
        Ok(Applied::Left(member))
    }

    fn revoke(&mut self, body: Value, at: Timestamp, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "revoke")?;
        let administrator = fields.bytes("administrator certificate", MAX_CERTIFICATE)?;
        let revocation = fields.bytes("revocation", MAX_ENTRY)?;
        fields.end()?;
        let administrator = Certificate::verify(&administrator, &self.ca, at)?;
        let device = verify_revocation(&revocation, &administrator)?;
        let member = self
            .active(&device)
            .ok_or(EntryError::Rule("who is revoked is no member"))?;
        self.revoked.insert(device);
        self.end(member, index);
        Ok(Applied::Revoked(member))
    }

    /// Ends a membership: its edges are gone, and nothing of it is under way.
    fn end(&mut self, member: MemberIndex, index: u64) {
        self.end_lapse(member, index);
        self.invites.remove(&member);
        self.graph.remove(member, index);
        let place = usize::try_from(member).unwrap_or(usize::MAX);
        if let Some(member) = self.members.get_mut(place) {
            member.ended = Some(index);
        }
    }

    fn lapse(&mut self, body: Value, index: u64) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "lapsed")?;
        let join: [u8; 32] = fields.fixed("join")?;
        fields.end()?;
        let member = self
            .member_joined_by(&join)
            .ok_or(EntryError::Rule("who lapses is no member"))?;
        // With more, the provider could choose who is drawn.
        let lapsed = self.lapsed.saturating_add(1);
        if u64::from(lapsed).saturating_mul(5) > u64::from(self.size()) {
            return Err(EntryError::Rule("more than a fifth of the members lapse"));
        }
        let place = usize::try_from(member).unwrap_or(usize::MAX);
        let found = self.members.get_mut(place);
        let found = found.filter(|member| !member.is_lapsed());
        let found = found.ok_or(EntryError::Rule("a member lapses twice"))?;
        found.lapsed.push((index, None));
        self.lapsed = lapsed;
        Ok(Applied::Lapsed(member))
    }

    fn change_provider(
        &mut self,
        body: Value,
        at: Timestamp,
        index: u64,
    ) -> Result<Applied, EntryError> {
        let mut fields = Fields::of(body, "provider key")?;
        let consent = fields.bytes("consent", MAX_ENTRY)?;
        fields.end()?;
        let certificate = entry::verify_succession(&consent, self.genesis.net, &self.ca, at)?;
        let used = |(_, before): &(u64, Certificate)| before.key() == certificate.key();
        if self.providers.iter().any(used) {
            return Err(EntryError::Rule("a provider key is used twice"));
        }
        self.providers.push((index, certificate));
        Ok(Applied::ProviderChanged)
    }

    /// The member whose membership began with the Join entry of this hash, if it goes on.
    pub(crate) fn member_joined_by(&self, join: &[u8; 32]) -> Option<MemberIndex> {
        let entry = self.index_of_entry(join)?;
        // Places are in the order of their Joins.
        let place = self
            .members
            .binary_search_by_key(&entry, |member| member.joined)
            .ok()?;
        let member = self.members.get(place)?;
        member
            .is_active()
            .then(|| MemberIndex::try_from(place).ok())
            .flatten()
    }

    /// Verifies a member's exit: it names the Join of its present membership.
    pub(crate) fn verify_exit(&self, exit: &[u8]) -> Result<MemberIndex, EntryError> {
        let (sender, frame) = self.verify_member_frame(exit)?;
        let mut fields = frame.open(self.genesis.net, Notification::Exit)?;
        let join: [u8; 32] = fields.fixed("join")?;
        fields.end()?;
        let member = self.member_joined_by(&join);
        member
            .filter(|member| *member == sender)
            .ok_or(EntryError::Rule(NO_SUCH_MEMBERSHIP))
    }

    /// Verifies a member's draw request: one at a time, and never one twice.
    pub(crate) fn verify_draw_request(
        &self,
        request: &[u8],
    ) -> Result<(MemberIndex, [u8; 32]), EntryError> {
        let (member, frame) = self.verify_member_frame(request)?;
        if !self.member(member).is_some_and(Member::is_active) {
            return Err(FrameError::Sender.into());
        }
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
        let invite = *invite.ok_or(EntryError::Rule(NO_SUCH_INVITE))?;
        if graph::draw_commitment(self.genesis.net, id, &nonce) != invite.commitment {
            return Err(EntryError::Rule("the nonce is not the one committed to"));
        }
        Ok((member, invite, nonce))
    }
}
