//! Registration, draws and the relaying of handshakes.

use std::time::Duration;

use chacha20::rand_core::Rng;
use ciborium::Value;

use super::{Provider, ProviderEvent, ProviderRecord, REPLIES};
use crate::alarm::Refusal;
use crate::cbor;
use crate::frame::{self, Frame, Notification};
use crate::graph::MemberIndex;
use crate::identity::{Certificate, DeviceId};
use crate::membership::{
    Applied, EntryError, EntryKind, Member, NO_SUCH_INVITE, NO_SUCH_MEMBERSHIP, REGISTRATION_USED,
    verify_registration,
};
use crate::meter::SHORTEST_LAPSE;
use crate::revocation::{RevocationList, verify_revocation};
use crate::time::{Now, Timestamp};
use crate::topic::{All, Inbox, Topic};

/// Another entry may stand in the same place already.
const UNPROVEN: &str = "the log was restored and is not known to be the newest";

/// A second roster of a round would give readings away.
pub(super) const MAYBE_ROSTERED: &str =
    "the round may have had its roster before the net was restored";

/// The operator has closed the net.
pub(super) const CLOSED: &str = "the net is closed";

/// More would push out what others wait for; who needs it asks again.
pub(super) const TOO_MANY_ANSWERS: &str = "it asked for more than is sent at once";

/// Entries stay in the log of every member for good.
const TOO_MANY_DRAWS: &str = "this device was invited to too many draws in 30 days";

/// A place is never used again, and there are only so many.
const TOO_MANY_JOINS: &str = "this device joined too often in 30 days";

/// How often the provider looks for members that lapse.
const LAPSES_EVERY: Duration = Duration::from_secs(3600);

impl Provider {
    /// Signs, stores, then sends the next log entry.
    fn append(&mut self, kind: EntryKind, body: Value, now: Now) -> Result<Applied, EntryError> {
        if self.unproven {
            return Err(EntryError::Rule(UNPROVEN));
        }
        let key = self.signing_key()?;
        let entry = self.membership.sign_next(&key, kind, body, now.utc);
        let applied = self.membership.append(&entry)?;
        self.count_entry(applied, now.utc);
        let head = self.membership.head();
        self.log.push(entry.clone());
        self.persist(ProviderRecord::Entry {
            index: head.index,
            hash: head.hash,
            kind,
            frame: entry.clone(),
        });
        self.send_all(All::Log, entry);
        self.head_named = Some(now.monotonic);
        // Who joins or draws is there, whether there are rounds or not.
        if let Applied::Joined(member) | Applied::Drawn(member) = applied {
            self.last_seen.insert(member, now.utc);
        }
        Ok(applied)
    }

    /// Counts what a device caused an entry for; at every start again, from the log.
    pub(super) fn count_entry(&mut self, applied: Applied, at: Timestamp) {
        let (quota, member) = match applied {
            Applied::Joined(member) => (&mut self.joins, member),
            Applied::Invited(member) => (&mut self.invites, member),
            _ => return,
        };
        if let Some(member) = self.membership.member(member) {
            quota.note(member.id, at);
        }
    }

    /// When the head of the log is to be named again, on the monotonic clock.
    pub(super) fn next_naming(&self) -> Duration {
        let period = self.membership.genesis().policy.period.duration();
        self.head_named
            .map_or(Duration::ZERO, |named| named.saturating_add(period))
    }

    /// Sends the newest entry again after a period without entry and roster: a meter that
    /// has missed the last one would otherwise not notice, and keep others waiting.
    pub(super) fn name_head(&mut self, now: Now) {
        if now.monotonic < self.next_naming() {
            return;
        }
        self.head_named = Some(now.monotonic);
        if let Some(entry) = self.log.last().cloned() {
            self.send_all(All::Log, entry);
        }
    }

    pub(super) fn on_register(&mut self, topic: Topic, sender: DeviceId, frame: Vec<u8>, now: Now) {
        if self.membership.active(&sender).is_some() {
            if let Err(reason) = self.send_log(sender, 0) {
                self.refuse(topic, reason);
            }
            return;
        }
        if self.closed {
            return self.refuse(topic, Refusal::Rule(CLOSED));
        }
        let verified = verify_registration(&frame, self.net, &self.config.ca, now.utc);
        let outcome = verified.map_err(Refusal::from).and_then(|certificate| {
            if certificate.id() != sender {
                return Err(Refusal::Topic);
            }
            let digest = frame::digest_of(&frame)?;
            let is_new = !self.membership.knows_registration(&digest);
            if is_new && self.joins.is_used_up(&sender, now.utc) {
                return Err(Refusal::Rule(TOO_MANY_JOINS));
            }
            let body = cbor::array([cbor::bytes(&frame)]);
            self.append(EntryKind::Join, body, now)
                .map_err(Refusal::from)
        });
        // Who uses a registration again knows neither of the membership that has ended, nor of
        // any log.
        let used = Refusal::Entry(EntryError::Rule(REGISTRATION_USED));
        if outcome.is_ok() {
            let members = self.size();
            self.event(ProviderEvent::Joined {
                meter: sender,
                members,
            });
        }
        let answered = match &outcome {
            Ok(_) => self.send_log(sender, 0),
            Err(reason) if *reason == used => self.send_log(sender, 0),
            Err(_) => Ok(()),
        };
        for reason in [outcome.map(drop), answered]
            .into_iter()
            .filter_map(Result::err)
        {
            self.refuse(topic, reason);
        }
    }

    fn size(&self) -> usize {
        usize::try_from(self.membership.size()).unwrap_or(usize::MAX)
    }

    /// Writes a signed exit into the log.
    pub(super) fn on_exit(
        &mut self,
        sender: DeviceId,
        exit: Vec<u8>,
        now: Now,
    ) -> Result<(), Refusal> {
        match self.membership.verify_exit(&exit) {
            Ok(_) => {}
            Err(EntryError::Rule(NO_SUCH_MEMBERSHIP)) => {
                // A repetition: the meter has missed the Leave.
                return self.send_log(sender, usize::MAX);
            }
            Err(error) => return Err(error.into()),
        }
        self.append(EntryKind::Leave, cbor::array([cbor::bytes(&exit)]), now)?;
        let members = self.size();
        self.event(ProviderEvent::Left {
            meter: sender,
            members,
        });
        Ok(())
    }

    /// Takes what the gateway administrator revoked, and writes members that are
    /// revoked into the log.
    pub(super) fn on_revocations(
        &mut self,
        list: RevocationList,
        administrator: &Certificate,
        revocations: &[Vec<u8>],
        now: Now,
    ) {
        if list.replaces(self.config.revoked.as_ref()) {
            self.config.revoked = Some(list);
        }
        for revocation in revocations {
            let Ok(meter) = verify_revocation(revocation, administrator) else {
                continue;
            };
            if self.membership.active(&meter).is_none() {
                continue;
            }
            let body = cbor::array([cbor::bytes(administrator.der()), cbor::bytes(revocation)]);
            if self.append(EntryKind::Revoke, body, now).is_ok() {
                let members = self.size();
                self.event(ProviderEvent::Revoked { meter, members });
            }
        }
    }

    /// Lets the successor's key take over.
    pub(super) fn hand_over(&mut self, now: Now) {
        let Some((key, certificate)) = &self.config.successor else {
            return;
        };
        if self.unproven {
            return;
        }
        if self.membership.provider().key() == certificate.key() {
            return;
        }
        let provider = certificate.id();
        let body = self.membership.succession(key, certificate, now.utc);
        if self.append(EntryKind::ProviderKey, body, now).is_ok() {
            self.event(ProviderEvent::KeyChanged { provider });
        } else {
            // The log refuses it, and always will.
            self.config.successor = None;
        }
    }

    /// Marks members that for long were in no roster and neither joined nor drew, up to a
    /// fifth of all.
    pub(super) fn lapse_absent(&mut self, now: Now) {
        let Some(after) = self.config.lapse_after.filter(|_| !self.closed) else {
            return;
        };
        let after = after.max(SHORTEST_LAPSE);
        let started = *self.started.get_or_insert(now.utc);
        if now.monotonic < self.lapses_due {
            return;
        }
        self.lapses_due = now.monotonic.saturating_add(LAPSES_EVERY);
        let absent: Vec<(DeviceId, u64)> = (0..)
            .zip(self.membership.members())
            .filter(|(_, member)| member.is_active() && !member.is_lapsed())
            .filter(|(place, _)| {
                let seen = self.last_seen.get(place).copied().unwrap_or_default();
                now.utc >= seen.max(started).plus(after)
            })
            .map(|(_, member)| (member.id, member.joined))
            .collect();
        for (meter, joined) in absent {
            let Some(join) = self.membership.hash_at(joined) else {
                continue;
            };
            let body = cbor::array([cbor::bytes(&join)]);
            if self.append(EntryKind::Lapsed, body, now).is_err() {
                // More than a fifth would lapse.
                return;
            }
            self.event(ProviderEvent::Lapsed { meter });
        }
    }

    /// Sends a part of the log and then, in any case, the newest entry, by which the meter
    /// notices that it must ask on.
    fn send_log(&mut self, meter: DeviceId, from: usize) -> Result<(), Refusal> {
        let Some((newest, before)) = self.log.split_last() else {
            return Ok(());
        };
        if !self.answers.allow(meter, newest.len()) {
            return Err(Refusal::Rule(TOO_MANY_ANSWERS));
        }
        let part = before.iter().skip(from).take(REPLIES);
        let part = part.take_while(|entry| self.answers.allow(meter, entry.len()));
        let entries: Vec<Vec<u8>> = part.chain([newest]).cloned().collect();
        for entry in entries {
            self.send_to(meter, Inbox::Log, entry);
        }
        Ok(())
    }

    pub(super) fn on_log_request(&mut self, sender: DeviceId, frame: Frame) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::LogRequest)?;
        let from = fields.uint("from", u64::MAX)?;
        fields.end()?;
        self.send_log(sender, usize::try_from(from).unwrap_or(usize::MAX))
    }

    pub(super) fn on_draw_request(
        &mut self,
        sender: DeviceId,
        request: Vec<u8>,
        now: Now,
    ) -> Result<(), Refusal> {
        match self.membership.verify_draw_request(&request) {
            Ok(_) => {}
            Err(EntryError::Rule(_)) => {
                // A repetition: the meter has missed the Invite, or even the Draw.
                return self.send_log(sender, usize::MAX);
            }
            Err(error) => return Err(error.into()),
        }
        if self.closed {
            return Err(Refusal::Rule(CLOSED));
        }
        if self.invites.is_used_up(&sender, now.utc) {
            return Err(Refusal::Rule(TOO_MANY_DRAWS));
        }
        let mut nonce = [0; 32];
        self.rng.fill_bytes(&mut nonce);
        let body = cbor::array([cbor::bytes(&request), cbor::bytes(&nonce)]);
        self.append(EntryKind::Invite, body, now)?;
        Ok(())
    }

    pub(super) fn on_open(
        &mut self,
        sender: DeviceId,
        open: Vec<u8>,
        now: Now,
    ) -> Result<(), Refusal> {
        match self.membership.verify_open(&open) {
            Ok(_) => {}
            Err(EntryError::Rule(NO_SUCH_INVITE)) => return self.send_log(sender, usize::MAX),
            Err(error) => return Err(error.into()),
        }
        self.append(EntryKind::Draw, cbor::array([cbor::bytes(&open)]), now)?;
        self.event(ProviderEvent::Drawn { meter: sender });
        Ok(())
    }

    pub(super) fn on_entered(
        &mut self,
        member: MemberIndex,
        sender: DeviceId,
        frame: Frame,
    ) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::Entered)?;
        fields.u32("neighbours")?;
        fields.end()?;
        if self.entered.insert(member) {
            self.event(ProviderEvent::Entered { meter: sender });
        }
        Ok(())
    }

    /// Passes one half of a handshake on, if there is such an edge.
    pub(super) fn relay(
        &mut self,
        sender: DeviceId,
        member: MemberIndex,
        peer: DeviceId,
        frame: Frame,
        payload: Vec<u8>,
    ) -> Result<(), Refusal> {
        let other = self.membership.index_of(&peer).ok_or(Refusal::Edge)?;
        let here = |place| self.membership.member(place).is_some_and(Member::is_active);
        let allowed = match frame.header().notification {
            Notification::Offer | Notification::Answer | Notification::Confirm => {
                self.membership.graph().origin(member, other).is_some()
            }
            // Between a meter that left and a former neighbour.
            Notification::Exit => !here(member),
            Notification::Erased => !here(other),
            _ => return Err(Refusal::Topic),
        };
        if !allowed {
            return Err(Refusal::Edge);
        }
        let topic = Topic::InboxPair {
            net: self.net,
            meter: peer,
            peer: sender,
        };
        self.publish(topic, payload, false);
        Ok(())
    }
}
