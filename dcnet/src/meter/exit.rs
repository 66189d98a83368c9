//! Leaving a net: the signed exit, the confirmations of the former neighbours, and a
//! meter that lost its state and must leave before it joins anew.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Meter, MeterEvent, Purpose, saved};
use crate::alarm::{Alarm, Loss, Refusal};
use crate::cbor;
use crate::frame::{self, Frame, Notification};
use crate::graph::MemberIndex;
use crate::identity::DeviceId;
use crate::membership::sign_exit;
use crate::output::Store;
use crate::time::{DAY_MS, Now, Timestamp};
use crate::topic::{Topic, Up};

/// Former neighbours that have not confirmed are waited for this long: by then every
/// round that they submitted with the edge is closed.
const CONFIRMATIONS: Duration = Duration::from_millis(2 * DAY_MS);

/// Who, connected, lacks keys with drawn neighbours for so long leaves and joins anew.
const KEYLESS: Duration = Duration::from_millis(DAY_MS);

/// Time between two looks at whether keys are missing.
const LOOK: Duration = Duration::from_secs(600);

/// For how long it has lacked keys is stored anew whenever another so much has passed.
const KEPT: Duration = Duration::from_secs(3600);

/// The date of a Leave that was seen while the clock was not right: it gets one once it is.
const UNDATED: Timestamp = Timestamp(u64::MAX);

/// An exit under way, or done.
#[derive(Clone, Debug)]
pub(super) struct Exit {
    /// The signed exit.
    pub(super) frame: Vec<u8>,
    /// Hash of the Join entry that it ends.
    pub(super) join: [u8; 32],
    /// Whether the meter joins anew afterwards, because it lost its state.
    pub(super) again: bool,
    /// When the Leave entry was seen; [`UNDATED`] until the clock is right.
    pub(super) left: Option<Timestamp>,
    /// Former neighbours.
    pub(super) neighbours: u32,
    /// Those that have not confirmed that they erased the pair key.
    pub(super) awaited: BTreeSet<DeviceId>,
    /// Whether everything is done and erased.
    pub(super) done: bool,
}

/// How far the exit that the owner asked for is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitProgress {
    /// Whether the log says so.
    pub left: bool,
    /// Former neighbours, once it left.
    pub neighbours: u32,
    /// Those that have not confirmed that they erased the pair key.
    pub awaited: u32,
    /// Whether everything is done and erased.
    pub done: bool,
}

impl Meter {
    /// How far the exit is; `None` without one, and for one after which the meter joins
    /// anew, which is no wish of its owner.
    pub fn exit(&self) -> Option<ExitProgress> {
        let exit = self.exit.as_ref().filter(|exit| !exit.again)?;
        Some(ExitProgress {
            left: exit.left.is_some(),
            neighbours: exit.neighbours,
            awaited: u32::try_from(exit.awaited.len()).unwrap_or(u32::MAX),
            done: exit.done,
        })
    }

    /// Whether this meter leaves, or has left.
    pub(super) fn is_leaving(&self) -> bool {
        self.exit.is_some()
    }

    /// Whether the log says that this meter has left.
    pub(super) fn has_left(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| exit.left.is_some())
    }

    /// Whether everything of the net that this meter left is erased.
    pub(super) fn is_gone(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| exit.done)
    }

    fn save_exit(&mut self) {
        let value = self.exit.as_ref().map(Exit::to_bytes);
        self.persist(Store::Net, saved::EXIT.to_vec(), value);
    }

    /// The owner wants to leave: nothing is submitted from here on, rounds that wait
    /// for a reveal still get it. An exit that is under way to join anew is the owner's from
    /// here on, after which nothing comes.
    pub(super) fn leave(&mut self, now: Now) {
        if let Some(exit) = &mut self.exit {
            if std::mem::take(&mut exit.again) {
                self.save_exit();
            }
            return;
        }
        let member = self.active_index();
        match member.and_then(|member| self.join_of(member)) {
            Some(join) => self.ask_to_leave(join, false, now),
            None => self.event(MeterEvent::NotMember),
        }
    }

    fn join_of(&self, member: MemberIndex) -> Option<[u8; 32]> {
        let membership = self.membership.as_ref()?;
        membership.hash_at(membership.member(member)?.joined)
    }

    fn ask_to_leave(&mut self, join: [u8; 32], again: bool, now: Now) {
        let frame = sign_exit(&self.config.key, self.net, &join, now.utc);
        self.exit = Some(Exit {
            frame: frame.clone(),
            join,
            again,
            left: None,
            neighbours: 0,
            awaited: BTreeSet::new(),
            done: false,
        });
        self.due = None;
        self.save_exit();
        // One that came after the Leave would begin a membership that nobody asked for.
        self.repeats.stop(&Purpose::Register);
        self.publish_until_answered(Purpose::Exit, self.up(Up::Exit), frame, now);
    }

    /// A meter whose state is lost finds itself in the log by a registration, or with an
    /// open draw, that it does not know. Its neighbours have keys that it has not, or it
    /// can never open its draw, so it leaves and joins anew.
    pub(super) fn consider_joining_anew(&mut self, now: Now) {
        if self.stopped.is_some() || self.is_leaving() || !self.checkpoint_seen {
            return;
        }
        let Some(membership) = &self.membership else {
            return;
        };
        let behind = membership.head().index < self.log_target;
        let Some(other) = membership.active(&self.id).filter(|_| !behind) else {
            return;
        };
        let whole = self.index() == Some(other) && self.knows_its_draw(other);
        if self.connected_since.is_none() || whole {
            return;
        }
        if let Some(join) = self.join_of(other) {
            self.alarm(Alarm::StateLost(Loss::State));
            self.ask_to_leave(join, true, now);
        }
    }

    /// A meter that was away for longer than its secrets can be ratcheted leaves and joins
    /// anew: it has no key with any neighbour any more.
    pub(super) fn leave_outdated(&mut self, now: Now) {
        if self.stopped.is_some() || self.is_leaving() {
            return;
        }
        let join = self.active_index().and_then(|own| self.join_of(own));
        if let Some(join) = join {
            self.alarm(Alarm::StateLost(Loss::Age));
            self.ask_to_leave(join, true, now);
        }
    }

    /// A meter that has lost some of its pair keys, or never got them, waits for a handshake
    /// that may never come: the other end has a key already, which it does not replace. After
    /// a day it leaves and joins anew, if it may then draw.
    pub(super) fn consider_missing_keys(&mut self, now: Now) {
        let passed = now.monotonic.saturating_sub(self.keys_looked);
        if passed < LOOK {
            return;
        }
        let last = std::mem::replace(&mut self.keys_looked, now.monotonic);
        let loss = match self.missing_keys() {
            // Whether an offer could be answered is not known meanwhile.
            Some(_) if self.clock.check(now).is_err() => return,
            Some(loss) => loss,
            None => return self.set_keyless(Duration::ZERO),
        };
        if self.connected_since.is_some_and(|since| since <= last) {
            self.set_keyless(self.keyless.saturating_add(passed).min(KEYLESS));
        }
        if self.keyless < KEYLESS || !self.has_draws_left(now) || !self.rounds.is_empty() {
            return;
        }
        let join = self.active_index().and_then(|own| self.join_of(own));
        if let Some(join) = join {
            self.alarm(Alarm::StateLost(loss));
            self.ask_to_leave(join, true, now);
        }
    }

    /// Stored by the hour, so that a restart costs no more than one of them.
    fn set_keyless(&mut self, keyless: Duration) {
        let hours = |time: Duration| time.as_secs().checked_div(KEPT.as_secs());
        let before = std::mem::replace(&mut self.keyless, keyless);
        if hours(before) != hours(keyless) {
            let value = (!keyless.is_zero()).then(|| saved::keyless_bytes(keyless));
            self.persist(Store::Net, saved::KEYLESS.to_vec(), value);
        }
    }

    /// What keeps a member with a finished draw from taking part, if that is handshakes alone.
    fn missing_keys(&self) -> Option<Loss> {
        let waits = self.stopped.is_some() || self.is_leaving() || self.draw.is_some();
        if waits || self.active_index().is_none() {
            return None;
        }
        let membership = self.membership.as_ref()?;
        let drawn = self.drawn();
        let live = u32::try_from(self.live_of(&drawn).count()).unwrap_or(u32::MAX);
        let required = self.required(drawn.len());
        let usable = drawn.iter().filter(|peer| {
            let peer = membership.member(**peer);
            peer.is_some_and(|peer| !self.is_revoked(&peer.id))
        });
        let usable = u32::try_from(usable.count()).unwrap_or(u32::MAX);
        (live < required && required <= usable).then_some(Loss::Keys { live, required })
    }

    fn knows_its_draw(&self, own: MemberIndex) -> bool {
        let invite = self.membership.as_ref().and_then(|m| m.open_invite(own));
        invite.is_none_or(|invite| {
            let own = self
                .draw
                .as_ref()
                .map(|draw| draw.commitment(self.net, self.id));
            own == Some(invite.commitment)
        })
    }

    /// A membership of this device ended by a signed exit.
    pub(super) fn on_own_leave(&mut self, member: MemberIndex, now: Now) {
        let join = self.join_of(member);
        let asked = self.exit.as_ref().is_some_and(|e| Some(e.join) == join);
        if !asked {
            // The exit of an earlier life, seen while catching up, concerns nobody.
            if self.index() == Some(member) {
                self.stop(Alarm::KeyUsedElsewhere);
            }
            return;
        }
        // Nothing else is owed to a net that it has left.
        self.repeats
            .retain(|purpose| matches!(purpose, Purpose::Submission(_) | Purpose::Reveal(_)));
        if self.exit.as_ref().is_some_and(|exit| exit.again) {
            self.exit = None;
            self.save_exit();
            self.forget_membership();
            return self.register(now);
        }
        let former: BTreeSet<DeviceId> = self.edges.keys().map(|key| key.peer).collect();
        let right = self.clock.check(now).is_ok();
        if let Some(exit) = &mut self.exit {
            exit.left = Some(if right { now.utc } else { UNDATED });
            exit.neighbours = u32::try_from(former.len()).unwrap_or(u32::MAX);
            exit.awaited = former;
        }
        self.save_exit();
        self.forget_draw();
        self.event(MeterEvent::Left);
        self.ask_for_confirmations(now);
    }

    /// A new membership begins with a new registration and its own draw. A registration that
    /// began none yet may still be on its way: if another took its place, the membership that it
    /// begins would be one that this meter does not know.
    fn forget_membership(&mut self) {
        let membership = self.membership.as_ref();
        let used = |own: [u8; 32]| membership.is_some_and(|m| m.knows_registration(&own));
        if self.registered.is_some_and(used) {
            self.registration = None;
            self.registered = None;
        }
        self.entered = false;
        self.set_keyless(Duration::ZERO);
        self.forget_draw();
        self.drop_dead_edges();
    }

    /// An open draw ends with the membership.
    fn forget_draw(&mut self) {
        if self.draw.take().is_some() {
            self.persist(Store::Net, saved::DRAW.to_vec(), None);
        }
    }

    /// Tells former neighbours that do not know yet, until they confirm (notification 3).
    pub(super) fn ask_for_confirmations(&mut self, now: Now) {
        let Some(exit) = &self.exit else { return };
        if exit.left.is_none() || exit.done {
            return;
        }
        let (awaited, frame) = (exit.awaited.clone(), exit.frame.clone());
        for peer in awaited {
            let topic = self.up_pair(peer);
            self.publish_until_answered(Purpose::Former(peer), topic, frame.clone(), now);
        }
    }

    /// A meter that left asks whether its pair key is erased here: answered once it is.
    pub(super) fn on_former_neighbour(
        &mut self,
        peer: DeviceId,
        frame: Frame,
        now: Now,
    ) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::Exit)?;
        let join: [u8; 32] = fields.fixed("join")?;
        fields.end()?;
        let membership = self.membership.as_ref().ok_or(Refusal::Edge)?;
        let joined = membership.index_of_entry(&join).ok_or(Refusal::Edge)?;
        let places = membership.members().iter();
        let ended = places
            .filter(|member| member.id == peer && member.joined == joined)
            .find_map(|member| member.ended)
            .ok_or(Refusal::Rule("its membership goes on"))?;
        let kept = self
            .edges
            .keys()
            .any(|key| key.peer == peer && key.origin < ended);
        if !kept {
            let data = cbor::array([cbor::bytes(&join)]);
            let key = &self.config.key;
            let reply = frame::sign(key, self.net, now.utc, Notification::Erased, data);
            self.publish(self.up_pair(peer), reply);
        }
        Ok(())
    }

    /// A former neighbour has erased the pair key.
    pub(super) fn on_erased(&mut self, peer: DeviceId, frame: Frame) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::Erased)?;
        let join: [u8; 32] = fields.fixed("join")?;
        fields.end()?;
        let exit = self.exit.as_mut().filter(|exit| exit.join == join);
        let exit = exit.ok_or(Refusal::Edge)?;
        if exit.awaited.remove(&peer) {
            self.repeats.stop(&Purpose::Former(peer));
            self.save_exit();
        }
        Ok(())
    }

    /// Ends an exit once no round waits for this meter, and every former neighbour has
    /// confirmed or had the time to.
    pub(super) fn finish_exit(&mut self, now: Now) {
        let right = self.clock.check(now).is_ok();
        let Some(exit) = self.exit.as_mut().filter(|exit| !exit.done) else {
            return;
        };
        let Some(left) = exit.left else { return };
        if right && left > now.utc {
            exit.left = Some(now.utc);
            return self.save_exit();
        }
        let waited = right && now.utc >= left.plus(CONFIRMATIONS);
        if !self.rounds.is_empty() || !(exit.awaited.is_empty() || waited) {
            return;
        }
        let (neighbours, silent) = (exit.neighbours, exit.awaited.len());
        self.repeats.retain(|_| false);
        self.erase_net();
        // Last: who dies before it erases the rest later.
        if let Some(exit) = &mut self.exit {
            exit.done = true;
        }
        self.save_exit();
        let silent = u32::try_from(silent).unwrap_or(u32::MAX);
        self.event(MeterEvent::ExitDone {
            confirmed: neighbours.saturating_sub(silent),
            neighbours,
        });
    }

    /// Erases what nothing needs of a net that this meter left for good. The log stays, by
    /// which it answers former neighbours that leave later.
    fn erase_net(&mut self) {
        let keys: Vec<_> = self.edges.keys().copied().collect();
        for key in keys {
            self.forget_edge(key);
        }
        self.set_keyless(Duration::ZERO);
        self.forget_draw();
        self.device = None;
        (self.registration, self.registered) = (None, None);
        self.draw_times.clear();
        self.last_roster = None;
        self.buffered_rosters.clear();
        self.exclusions.clear();
        self.late_reveals.clear();
        self.handshakes_told.clear();
        let seen = std::mem::take(&mut self.seen);
        let seen = seen.iter().map(|seen| saved::seen_key(seen.round));
        let gone = [
            saved::DEVICE,
            saved::REGISTRATION,
            saved::DRAW_TIMES,
            saved::LAST_ROSTER,
            saved::EXCLUSIONS,
            saved::LATE_REVEALS,
        ];
        for key in seen.chain(gone.map(<[u8]>::to_vec)) {
            self.persist(Store::Net, key, None);
        }
    }

    /// Takes up an exit after a restart.
    pub(super) fn resume_exit(&mut self, now: Now) {
        // Who died right after it stored the Leave has not followed it yet.
        if let Some(member) = self.unfollowed_leave() {
            return self.on_own_leave(member, now);
        }
        let Some(exit) = &self.exit else { return };
        if exit.left.is_none() {
            let (topic, frame): (Topic, _) = (self.up(Up::Exit), exit.frame.clone());
            self.publish_until_answered(Purpose::Exit, topic, frame, now);
        }
        // A store may say that all is done and hold the rest all the same.
        if self.is_gone() && self.registration.is_some() {
            self.erase_net();
        }
        self.ask_for_confirmations(now);
    }

    /// The membership that the exit ends, if the log says so and this meter does not know.
    fn unfollowed_leave(&self) -> Option<MemberIndex> {
        let exit = self.exit.as_ref().filter(|exit| exit.left.is_none())?;
        let membership = self.membership.as_ref()?;
        let joined = membership.index_of_entry(&exit.join)?;
        let places = (0..).zip(membership.members());
        let mut ended = places.filter(|(_, place)| place.joined == joined && !place.is_active());
        let (member, _) = ended.next()?;
        (!membership.is_revoked(&self.id)).then_some(member)
    }
}
