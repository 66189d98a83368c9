//! Registration, draws and the relaying of handshakes.

use chacha20::rand_core::Rng;
use ciborium::Value;

use super::{Provider, ProviderEvent, ProviderRecord, REPLIES};
use crate::alarm::Refusal;
use crate::cbor;
use crate::frame::{Frame, Notification};
use crate::graph::MemberIndex;
use crate::identity::DeviceId;
use crate::membership::{Applied, EntryError, EntryKind, verify_registration};
use crate::time::Now;
use crate::topic::{All, Inbox, Topic};

impl Provider {
    /// Signs, stores, then sends the next log entry.
    fn append(&mut self, kind: EntryKind, body: Value, now: Now) -> Result<Applied, EntryError> {
        let entry = self
            .membership
            .sign_next(&self.config.key, kind, body, now.utc);
        let applied = self.membership.append(&entry)?;
        let head = self.membership.head();
        self.log.push(entry.clone());
        self.persist(ProviderRecord::Entry {
            index: head.index,
            hash: head.hash,
            kind,
            frame: entry.clone(),
        });
        self.send_all(All::Log, entry);
        Ok(applied)
    }

    pub(super) fn on_register(&mut self, topic: Topic, sender: DeviceId, frame: Vec<u8>, now: Now) {
        if self.membership.index_of(&sender).is_some() {
            return self.send_log(sender, 0);
        }
        let verified = verify_registration(&frame, self.net, &self.config.ca, now.utc);
        let outcome = verified.map_err(Refusal::from).and_then(|certificate| {
            if certificate.id() != sender {
                return Err(Refusal::Topic);
            }
            let body = cbor::array([cbor::bytes(&frame)]);
            self.append(EntryKind::Join, body, now)
                .map_err(Refusal::from)
        });
        match outcome {
            Ok(_) => {
                let members = self.membership.members().len();
                self.event(ProviderEvent::Joined {
                    meter: sender,
                    members,
                });
                self.send_log(sender, 0);
            }
            Err(reason) => self.refuse(topic, reason),
        }
    }

    /// Sends a part of the log and, if that is not all, the newest entry, by which
    /// the meter notices that it must ask on.
    fn send_log(&mut self, meter: DeviceId, from: usize) {
        let part: Vec<Vec<u8>> = self.log.iter().skip(from).take(REPLIES).cloned().collect();
        let complete = from.saturating_add(part.len()) >= self.log.len() && !part.is_empty();
        for entry in part {
            self.send_to(meter, Inbox::Log, entry);
        }
        if let Some(newest) = self.log.last().filter(|_| !complete).cloned() {
            self.send_to(meter, Inbox::Log, newest);
        }
    }

    pub(super) fn on_log_request(&mut self, sender: DeviceId, frame: Frame) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::LogRequest)?;
        let from = fields.uint("from", u64::MAX)?;
        fields.end()?;
        self.send_log(sender, usize::try_from(from).unwrap_or(usize::MAX));
        Ok(())
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
                self.send_log(sender, usize::MAX);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
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
            Err(EntryError::Rule("no such invite is open")) => {
                self.send_log(sender, usize::MAX);
                return Ok(());
            }
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
        let kind = frame.header().notification;
        if !matches!(
            kind,
            Notification::Offer | Notification::Answer | Notification::Confirm
        ) {
            return Err(Refusal::Topic);
        }
        let other = self.membership.index_of(&peer).ok_or(Refusal::Edge)?;
        self.membership
            .graph()
            .origin(member, other)
            .ok_or(Refusal::Edge)?;
        let topic = Topic::InboxPair {
            net: self.net,
            meter: peer,
            peer: sender,
        };
        self.publish(topic, payload, false);
        Ok(())
    }
}
