//! Following the membership log.

use ciborium::Value;

use super::{EARLY_ENTRIES, Meter, MeterEvent, Purpose, SHORTEST_LAPSE, saved};
use crate::alarm::Alarm;
use crate::cbor;
use crate::frame::{self, FrameError, Notification};
use crate::graph::MemberIndex;
use crate::membership::{Applied, EntryError, Membership};
use crate::output::Store;
use crate::revocation::RevocationList;
use crate::time::Now;
use crate::topic::{Topic, Up};

impl Meter {
    /// Takes one entry, from wherever it came, and those that waited for it.
    pub(super) fn on_entry(&mut self, topic: Topic, payload: &[u8], now: Now) {
        if self.stopped.is_some() {
            return;
        }
        if self.try_entry(topic, payload, now) {
            self.take_early_entries(topic, now);
            self.retry_buffered_rosters(now);
        }
        self.check_checkpoint();
    }

    /// Applies an entry, or says what is wrong with it; true if the log has grown.
    fn try_entry(&mut self, topic: Topic, payload: &[u8], now: Now) -> bool {
        match self.apply_entry(payload) {
            Ok(applied) => {
                self.take_entry(applied, payload, now);
                return true;
            }
            Err(EntryError::Known) => {}
            Err(EntryError::Gap { index, .. }) => {
                self.log_target = self.log_target.max(index);
                self.keep_early_entry(index, payload);
            }
            Err(EntryError::Fork { index }) => self.stop(Alarm::LogFork { index }),
            Err(error) => {
                // What opens a log is read before its signature is verified.
                if self.membership.is_some() && error.accuses_provider() {
                    self.accuse_of_entry(payload, &error);
                }
                if let EntryError::Frame(frame) = &error {
                    self.suspect_new_key(frame, now);
                }
                self.refuse(topic, error);
            }
        }
        false
    }

    /// The log cannot go on after such an entry. It comes again with every answer, and is
    /// told once.
    fn accuse_of_entry(&mut self, payload: &[u8], error: &EntryError) {
        let digest = frame::digest_of(payload).ok();
        if self.bad_entry != digest {
            self.bad_entry = digest;
            self.alarm(Alarm::BadEntry(error.clone()));
        }
    }

    /// Refuses what claims to be the provider's.
    pub(super) fn refuse_of_provider(&mut self, topic: Topic, error: FrameError, now: Now) {
        self.suspect_new_key(&error, now);
        self.refuse(topic, error);
    }

    /// A signature that does not verify may be by a key that took over in an entry that
    /// this meter has missed, so it asks for the log.
    fn suspect_new_key(&mut self, error: &FrameError, now: Now) {
        if matches!(error, FrameError::Signature | FrameError::Sender) {
            let pace = self.pace();
            self.log_request.suspect(now.monotonic, pace);
        }
    }

    fn take_entry(&mut self, applied: Option<Applied>, payload: &[u8], now: Now) {
        let index = self.membership.as_ref().map_or(0, |m| m.head().index);
        self.persist(Store::Net, saved::log_key(index), Some(payload.to_vec()));
        self.rosters_due = true;
        if let Some(applied) = applied {
            self.after_entry(applied, now);
        }
    }

    /// Keeps a verified entry until those before it come. Two different ones for one
    /// place prove a fork before either can be applied.
    fn keep_early_entry(&mut self, index: u64, payload: &[u8]) {
        if self.membership.is_none() {
            return;
        }
        if self
            .early_entries
            .get(&index)
            .is_some_and(|kept| kept != payload)
        {
            return self.stop(Alarm::LogFork { index });
        }
        if self.early_entries.len() < EARLY_ENTRIES {
            self.early_entries.insert(index, payload.to_vec());
        }
    }

    fn take_early_entries(&mut self, topic: Topic, now: Now) {
        while self.stopped.is_none() {
            let next = self
                .membership
                .as_ref()
                .map_or(0, |m| m.head().index.saturating_add(1));
            self.early_entries = self.early_entries.split_off(&next);
            let Some(payload) = self.early_entries.remove(&next) else {
                return;
            };
            if !self.try_entry(topic, &payload, now) {
                return;
            }
        }
    }

    /// `Ok(None)` when it was the Genesis.
    pub(super) fn apply_entry(&mut self, payload: &[u8]) -> Result<Option<Applied>, EntryError> {
        match &mut self.membership {
            Some(membership) => membership.append(payload).map(Some),
            None => {
                let opened = Membership::open(payload, &self.config.provider, &self.config.ca);
                let membership = match opened {
                    Ok(membership) if membership.net() == self.net => membership,
                    Ok(_) => return Err(EntryError::Trust("net")),
                    // A later entry, before the Genesis is known here.
                    Err(EntryError::Frame(frame::FrameError::Net)) => {
                        return Err(EntryError::Gap {
                            expected: 0,
                            index: 0,
                        });
                    }
                    Err(error) => return Err(error),
                };
                self.adopt(membership);
                Ok(None)
            }
        }
    }

    fn adopt(&mut self, membership: Membership) {
        let genesis = membership.genesis().clone();
        let policy = genesis.policy;
        self.clock.set_period(policy.period);
        self.membership = Some(membership);
        let floors = self.config.floors;
        let (period, degree) = (policy.period.as_secs(), policy.degree);
        for (what, policy, floor) in [
            ("period in seconds", period, floors.minimum_period),
            // Only drawn neighbours count, and a draw names no more than that.
            (
                "number of drawn neighbours",
                degree,
                floors.minimum_neighbours,
            ),
        ] {
            if policy < floor {
                self.stop(Alarm::Floor {
                    what,
                    policy,
                    floor,
                });
            }
        }
        self.event(MeterEvent::NetOpened {
            policy,
            channels: genesis.channels,
        });
    }

    /// What follows from an entry that is in the log now.
    pub(super) fn after_entry(&mut self, applied: Applied, now: Now) {
        let own = self.index();
        match applied {
            Applied::Joined(member) if Some(member) == own => {
                self.repeats.stop(&Purpose::Register);
                self.event(MeterEvent::Joined);
            }
            Applied::Invited(member) if Some(member) == own => self.on_invite(now),
            Applied::Drawn(member) => self.on_draw(member, now),
            Applied::Left(member) if self.is_own_place(member) => self.on_own_leave(member, now),
            Applied::Revoked(member) if self.is_own_place(member) => self.stop(Alarm::Revoked),
            Applied::Left(member) | Applied::Revoked(member) => self.on_end(member, now),
            Applied::Lapsed(member) => self.on_lapse(member, now),
            Applied::ProviderChanged => self.event(MeterEvent::ProviderChanged),
            Applied::Joined(_) | Applied::Invited(_) => {}
        }
    }

    fn is_own_place(&self, member: MemberIndex) -> bool {
        let place = self.membership.as_ref().and_then(|m| m.member(member));
        place.is_some_and(|place| place.id == self.id)
    }

    /// A neighbour, or somebody else, is a member no more: the edge is not used in new
    /// submissions, and its key erased once no round needs it.
    fn on_end(&mut self, member: MemberIndex, now: Now) {
        let place = self.membership.as_ref().and_then(|m| m.member(member));
        let Some(id) = place.map(|place| place.id) else {
            return;
        };
        if self.edges.keys().any(|key| key.peer == id) {
            self.sync_edges(now);
        }
        self.check_emergency();
    }

    /// The provider says that a member is away: false if it was in a roster of the last day.
    /// A clock that is not right says nothing of the provider.
    fn on_lapse(&mut self, member: MemberIndex, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.clock.check(now).is_err() {
            return;
        }
        let period = membership.genesis().policy.period;
        let place = usize::try_from(member).unwrap_or(usize::MAX);
        let took_part = self.seen.iter().any(|seen| {
            let end = seen.round.end(period).plus(SHORTEST_LAPSE);
            seen.included.contains(place) && end > now.utc
        });
        let meter = membership.member(member).map(|meter| meter.id);
        if let Some(meter) = meter.filter(|_| took_part) {
            self.alarm(Alarm::FalseLapse { meter });
        }
    }

    /// Takes a list of revoked devices if it is newer than the one in force, which is
    /// stored: whoever can put an older list in its place brings nobody back.
    pub(super) fn on_revocations(&mut self, list: RevocationList) {
        if list.replaces(self.config.revoked.as_ref()) {
            let value = list.to_bytes();
            self.persist(Store::Net, saved::REVOKED.to_vec(), Some(value));
            self.config.revoked = Some(list);
        }
    }

    /// Compares the log with the gateway administrator's checkpoint, once it is long enough.
    pub(super) fn check_checkpoint(&mut self) {
        if self.checkpoint_seen {
            return;
        }
        let Some(membership) = &self.membership else {
            return;
        };
        let checkpoint = self.config.checkpoint;
        let Some(hash) = membership.hash_at(checkpoint.index) else {
            return;
        };
        if hash == checkpoint.head && membership.members_at(checkpoint.index) == checkpoint.members
        {
            self.checkpoint_seen = true;
        } else {
            self.stop(Alarm::Checkpoint {
                index: checkpoint.index,
            });
        }
    }

    /// Asks for log entries and rosters that are known to be missing, and for both
    /// after a new connection. The provider always answers, if only with its newest.
    pub(super) fn catch_up(&mut self, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.stopped.is_some() || self.connected_since.is_none() {
            return;
        }
        let head = membership.head().index;
        let behind = head < self.log_target || self.head_unknown;
        let pace = self.pace();
        if self.log_request.ask(behind, head, now.monotonic, pace) {
            let data = cbor::array([cbor::uint(head.saturating_add(1))]);
            self.request(Notification::LogRequest, Up::Log, data, now);
        }
        // While the clock is not right, rosters wait for that alone.
        let behind = !self.buffered_rosters.is_empty() && self.clock.check(now).is_ok();
        let last = self.last_roster.map_or(0, |(round, _)| round.0);
        if self.roster_request.ask(behind, last, now.monotonic, pace) {
            let after = self
                .last_roster
                .map_or(Value::Null, |(_, hash)| cbor::bytes(&hash));
            self.request(
                Notification::RosterRequest,
                Up::Roster,
                cbor::array([after]),
                now,
            );
        }
    }

    fn request(&mut self, notification: Notification, kind: Up, data: Value, now: Now) {
        let frame = frame::sign(&self.config.key, self.net, now.utc, notification, data);
        self.publish(self.up(kind), frame);
    }
}
