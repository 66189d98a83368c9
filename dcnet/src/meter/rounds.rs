//! A meter in a round: boundary, submission, roster, reveal, aggregate.

use std::time::Duration;

use chacha20::rand_core::Rng;

use super::checks::{self, Used};
use super::exclusions::is_in_time;
use super::{BUFFERED_ROSTERS, CLOSED_AFTER, DeviceSecrets, Meter, MeterEvent, Purpose, saved};
use crate::aggregate::Aggregate;
use crate::alarm::{Alarm, Refusal, Silence};
use crate::bitmap::Bitmap;
use crate::graph::MemberIndex;
use crate::membership::Membership;
use crate::opening::{Opening, PadSum};
use crate::output::Store;
use crate::pad::{Pad, RosterHash};
use crate::reading::{BlindingSecret, Boundary, Reading, ReadingError};
use crate::reveal::Reveal;
use crate::roster::{Roster, RosterError, SEEN_ROSTERS};
use crate::superposition::{Share, ShortDigest, Submission, self_mask, short};
use crate::time::{CLOCK_SLACK, DAY_MS, Now, Round};
use crate::topic::{Topic, Up};

use super::edges::EdgeKey;

/// Whether the round of a roster has not ended yet. Rosters of rounds to come would only
/// flush what this meter remembers of the last ones, and leave the rounds in between
/// without a roster.
fn is_early(roster: &Roster, membership: &Membership, now: Now) -> bool {
    let period = membership.genesis().policy.period;
    roster.round.end(period) > now.utc.plus(CLOCK_SLACK)
}

/// What a meter keeps of a round it submitted in, until it is final or closed.
#[derive(Clone, Debug)]
pub(super) struct OwnRound {
    /// Index of the log entry named in the submission.
    pub(super) head_index: u64,
    /// Members its newest draw named then, ascending: `d` of them.
    pub(super) drawn: Vec<MemberIndex>,
    /// Edges whose pads are in the submission, by ascending member index. Their keys are kept
    /// as long as the round is.
    pub(super) used: Vec<(MemberIndex, EdgeKey)>,
    /// L as stated in the submission.
    pub(super) required: u32,
    /// Minimum group as stated in the submission.
    pub(super) minimum_group: u32,
    /// Short digest of the submission.
    pub(super) digest: ShortDigest,
    /// What is done.
    pub(super) stage: RoundStage,
}

/// How far a meter is in a round.
#[derive(Clone, Debug)]
pub(super) enum RoundStage {
    /// Submitted; one self-mask per channel is kept for the reveal.
    Submitted {
        /// The stored bytes, the only ones ever published for the round.
        frame: Vec<u8>,
        /// The self-masks.
        masks: Vec<Opening>,
        /// Whether a live connection carried it well within the window. A connection that
        /// breaks before or afterwards is no excuse: the broker is the provider's.
        timely: bool,
    },
    /// One roster was accepted and answered; the self-masks are erased.
    Revealed {
        /// The roster.
        roster: RosterHash,
        /// The stored bytes of the answer.
        frame: Vec<u8>,
    },
    /// A roster was refused, for good; the self-masks are erased.
    Refused,
}

/// A roster of the chain, as far as it is remembered.
#[derive(Clone, Debug)]
pub(super) struct SeenRoster {
    pub(super) round: Round,
    pub(super) included: Bitmap,
    pub(super) hash: RosterHash,
}

impl Meter {
    pub(super) fn on_boundary(&mut self, boundary: Boundary, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        let genesis = membership.genesis();
        let (period, window) = (genesis.policy.period, genesis.policy.window_ms);
        if boundary.channels.len() != genesis.channels.len() {
            return;
        }
        let before = self.boundary.replace((boundary.clone(), now));
        let Some((start, at_start)) = before else {
            return;
        };
        let reading = match Reading::between(&start, &boundary, period) {
            Ok(reading) => reading,
            Err(ReadingError::WentBack(channel)) => {
                return self.alarm(Alarm::RegisterWentBack { channel });
            }
            Err(ReadingError::TooMuch(channel)) => {
                return self.alarm(Alarm::ReadingTooLarge { channel });
            }
            // The boundaries lie farther apart: an interval was missed. It is never
            // sent later, where it would stand alone.
            Err(ReadingError::NotOneRound | ReadingError::Channels) => return,
        };
        let round = reading.round();
        let checked = checks::in_step(at_start, now).and_then(|()| self.may_submit(round, now));
        if let Err(reason) = checked {
            return self.event(MeterEvent::Silent { round, reason });
        }
        // At a random moment of the first half of what is left of the window.
        let late = now.utc.since(round.end(period));
        let half = Duration::from_millis(u64::from(window / 2));
        let spread = half.saturating_sub(late).as_micros().max(1);
        let spread = u64::try_from(spread).unwrap_or(1);
        let delay = Duration::from_micros(self.rng.next_u64().checked_rem(spread).unwrap_or(0));
        self.due = Some((now.monotonic.saturating_add(delay), reading));
    }

    /// The rules before a submission.
    fn may_submit(&self, round: Round, now: Now) -> Result<(), Silence> {
        self.may_submit_with_edges(round, now)?;
        let (drawn, live) = self.drawn_and_live();
        if live < usize::try_from(self.required(drawn)).unwrap_or(usize::MAX) {
            return Err(Silence::TooFewNeighbours);
        }
        Ok(())
    }

    /// The rules before a submission but for the edges, which [`Self::blind`] counts as it
    /// uses them.
    fn may_submit_with_edges(&self, round: Round, now: Now) -> Result<(), Silence> {
        if self.stopped.is_some() {
            return Err(Silence::Stopped);
        }
        self.clock.check(now)?;
        if self.is_leaving() {
            return Err(Silence::Leaving);
        }
        let (Some(membership), Some(own)) = (&self.membership, self.active_index()) else {
            return Err(Silence::NotMember);
        };
        if !self.checkpoint_seen || !membership.has_pinned_provider() {
            return Err(Silence::CheckpointNotReached);
        }
        let policy = membership.genesis().policy;
        checks::not_submitted_yet(round.start(policy.period), self.submitted_until)?;
        let window = Duration::from_millis(u64::from(policy.window_ms));
        if now.utc >= round.end(policy.period).plus(window) {
            return Err(Silence::WindowOver);
        }
        let newest = membership.graph().newest(own, u64::MAX);
        let newest = newest
            .filter(|_| self.draw.is_none())
            .ok_or(Silence::DrawIncomplete)?;
        if newest.candidates < self.minimum_group() {
            return Err(Silence::TooFewCandidates);
        }
        Ok(())
    }

    /// L for a draw of which `drawn` members are left; of none the least that holds for
    /// any draw.
    pub(super) fn required(&self, drawn: usize) -> u32 {
        let policy = self
            .membership
            .as_ref()
            .map_or(0, |m| m.genesis().policy.minimum_neighbours);
        checks::required_neighbours(self.config.floors.minimum_neighbours, policy, drawn)
    }

    /// Blinds a reading and publishes it.
    pub(super) fn submit(&mut self, reading: &Reading, now: Now) {
        let round = reading.round();
        let result = self
            .may_submit_with_edges(round, now)
            .and_then(|()| self.blind(reading, now));
        if let Err(reason) = result {
            self.event(MeterEvent::Silent { round, reason });
        }
    }

    fn blind(&mut self, reading: &Reading, now: Now) -> Result<(), Silence> {
        let round = reading.round();
        let (Some(membership), Some(own)) = (&self.membership, self.index()) else {
            return Err(Silence::NotMember);
        };
        let policy = membership.genesis().policy;
        let channels = reading.channels();
        let (own_id, head) = (self.id, membership.head());
        let neighbours = membership.graph().neighbours(own, head.index);
        let drawn = self.drawn();
        let required = self.required(drawn.len());
        let day = round.day(policy.period);
        let mut bitmap = Bitmap::empty(neighbours.len());
        let mut used = Vec::with_capacity(neighbours.len());
        let mut sums: Vec<PadSum> = (0..channels).map(|_| PadSum::new()).collect();
        let mut pad = Pad::empty();
        for (key, index, edge) in self.live_edges_mut() {
            let Ok(place) = neighbours.binary_search(&index) else {
                continue;
            };
            let Some(pads) = edge.pads(day) else {
                continue;
            };
            for (channel, sum) in (0..).zip(&mut sums) {
                pads.write_submission(round, channel, &mut pad);
                sum.include(pad.bytes(), own_id < key.peer);
            }
            bitmap.set(place);
            used.push((index, key));
        }
        used.sort_unstable_by_key(|(index, _)| *index);
        debug_assert!(
            used.iter()
                .all(|(index, key)| self.is_in_graph(*index, key))
        );
        // Counted here: keys of this round's day may not exist on every live edge.
        let usable = used.iter().filter(|(i, _)| drawn.binary_search(i).is_ok());
        let usable = usable.count();
        if usable < usize::try_from(required).unwrap_or(usize::MAX) {
            return Err(Silence::TooFewNeighbours);
        }
        let device = self.device_secrets(now);
        let blinding = device.blinding.on(day).ok_or(Silence::KeysErased)?;
        let committed = reading.committed(&blinding, self.net);
        let mut masks = Vec::with_capacity(channels);
        let mut shares = Vec::with_capacity(channels);
        for (channel, ((opening, commitment), sum)) in (0..).zip(committed.into_iter().zip(&sums)) {
            let random = self.random();
            let mask = self_mask(&device.mask, &random, self.net, round, channel);
            let superposition = opening + sum.finish() + mask;
            shares.push(Share {
                superposition,
                commitment,
            });
            masks.push(mask);
        }
        let drawn_count = drawn.len();
        let submission = Submission {
            sender: self.id,
            round,
            log_head: head.hash,
            minimum_group: self.minimum_group(),
            minimum_neighbours: required,
            edges: bitmap.as_bytes().to_vec(),
            shares,
            digest: [0; 32],
        };
        let signed = submission.sign_with_digest(&self.config.key, self.net, now.utc);
        let frame = signed.bytes;
        let timely = self.connected_since.is_some() && is_in_time(round, &policy, now);
        let own_round = OwnRound {
            head_index: head.index,
            drawn,
            used,
            required,
            minimum_group: submission.minimum_group,
            digest: short(&signed.digest),
            stage: RoundStage::Submitted {
                frame: frame.clone(),
                masks,
                timely,
            },
        };
        self.submitted_until = round.end(policy.period);
        let until = self.submitted_until.as_millis().to_be_bytes().to_vec();
        self.persist(
            Store::Register,
            saved::SUBMITTED_UNTIL.to_vec(),
            Some(until),
        );
        self.persist(
            Store::Net,
            saved::round_key(round),
            Some(own_round.to_bytes()),
        );
        self.rounds.insert(round, own_round);
        if self.connected_since.is_none() {
            self.unsent.insert(round);
        }
        self.event(MeterEvent::Submitted {
            round,
            shares: submission.shares,
            drawn: drawn_count,
            used: usable,
            required,
        });
        let purpose = Purpose::Submission(round);
        self.publish_until_answered(purpose, self.up(Up::Submission), frame, now);
        Ok(())
    }

    /// The device's own secrets, made at the first submission: only then the clock,
    /// and with it the day of the blinding secret, is known to be right.
    fn device_secrets(&mut self, now: Now) -> DeviceSecrets {
        if let Some(device) = &self.device {
            return device.clone();
        }
        let mask = self.random_secret();
        let day = now.utc.minus(Duration::from_millis(DAY_MS)).day();
        let blinding = BlindingSecret::new(day, self.random_secret());
        let device = DeviceSecrets { mask, blinding };
        self.persist(Store::Net, saved::DEVICE.to_vec(), Some(device.to_bytes()));
        self.device = Some(device.clone());
        device
    }

    /// Takes a roster, in the order of the chain.
    pub(super) fn on_roster(&mut self, topic: Topic, payload: Vec<u8>, now: Now) {
        if self.stopped.is_some() {
            return;
        }
        let Some(membership) = &self.membership else {
            return;
        };
        let roster = match Roster::verify(&payload, membership) {
            Ok(roster) => roster,
            Err(RosterError::UnknownHead) => {
                self.head_unknown = true;
                return self.buffer_roster(payload);
            }
            Err(RosterError::Frame(error)) => return self.refuse_of_provider(topic, error, now),
        };
        if self.clock.check(now).is_err() {
            // Whether the round is closed cannot be told now.
            return self.buffer_roster(payload);
        }
        if is_early(&roster, membership, now) {
            return self.refuse(topic, Refusal::Round);
        }
        if let Some((round, hash)) = self.last_roster {
            if roster.round <= round {
                return self.on_old_roster(&roster, now);
            }
            if roster.previous != Some(hash) {
                let is_answer = matches!(topic, Topic::Inbox { .. });
                if !is_answer || !self.may_skip_to(&roster, now) {
                    return self.buffer_roster(payload);
                }
            }
        }
        self.follow_roster(&roster, now);
        self.retry_buffered_rosters(now);
    }

    /// Whether the chain may go on with a roster that does not follow the last one known, which
    /// the provider does not keep for ever: that one is closed by now, and in none of the
    /// rounds up to this one does a submission wait for a roster.
    fn may_skip_to(&self, roster: &Roster, now: Now) -> bool {
        let Some((last, _)) = self.last_roster else {
            return false;
        };
        let is_closed = self.is_closed(last, now);
        is_closed && self.rounds.range(..roster.round).next().is_none()
    }

    /// A roster for a round that the known chain has passed: the same again asks for
    /// the same answer, another one is a second roster.
    fn on_old_roster(&mut self, roster: &Roster, now: Now) {
        let round = roster.round;
        let answer = self.rounds.get(&round).and_then(|own| match &own.stage {
            RoundStage::Revealed { roster, frame } => Some((*roster, frame.clone())),
            _ => None,
        });
        let seen = self.seen.iter().find(|seen| seen.round == round);
        let last = self.last_roster.filter(|(last, _)| *last == round);
        let answered = answer.as_ref().map(|(hash, _)| *hash);
        let known = answered
            .or(seen.map(|seen| seen.hash))
            .or(last.map(|(_, hash)| hash));
        if known.is_some_and(|hash| hash != roster.hash) {
            return self.accuse_of_second_roster(round, roster.hash);
        }
        if let Some((_, frame)) = answer.filter(|_| !self.is_closed(round, now)) {
            self.publish(self.up(Up::Reveal), frame);
        }
    }

    /// Told once, however often it comes.
    fn accuse_of_second_roster(&mut self, round: Round, hash: RosterHash) {
        if self.second_rosters.contains(&(round, hash)) {
            return;
        }
        self.second_rosters.push_back((round, hash));
        if self.second_rosters.len() > SEEN_ROSTERS {
            self.second_rosters.pop_front();
        }
        self.alarm(Alarm::SecondRoster { round });
    }

    /// Repeats no submission whose window is long over, and forgets those that never
    /// left this meter: a meter that was away for a day has nothing to tell of it.
    pub(super) fn close_windows(&mut self, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.clock.check(now).is_err() {
            return;
        }
        let policy = membership.genesis().policy;
        let patience = Duration::from_millis(u64::from(policy.window_ms)).saturating_mul(2);
        let over = |round: &Round| now.utc >= round.end(policy.period).plus(patience);
        let silent: Vec<Round> = self.unsent.iter().copied().filter(&over).collect();
        let rounds: Vec<Round> = self.rounds.keys().copied().filter(over).collect();
        for round in rounds {
            self.repeats.stop(&Purpose::Submission(round));
        }
        for round in silent {
            self.forget(round);
            let reason = Silence::WindowOver;
            self.event(MeterEvent::Silent { round, reason });
        }
    }

    fn buffer_roster(&mut self, payload: Vec<u8>) {
        if self.buffered_rosters.len() < BUFFERED_ROSTERS
            && !self.buffered_rosters.contains(&payload)
        {
            self.buffered_rosters.push(payload);
            self.rosters_due = true;
        }
    }

    /// Tries rosters again that came before what they build on.
    pub(super) fn retry_buffered_rosters(&mut self, now: Now) {
        if self.stopped.is_some() || !self.rosters_due || self.clock.check(now).is_err() {
            return;
        }
        self.rosters_due = false;
        self.head_unknown = false;
        while !self.buffered_rosters.is_empty() {
            let Some(membership) = &self.membership else {
                return;
            };
            let last = self.last_roster;
            let (mut next, mut late) = (None, Vec::new());
            let head_unknown = &mut self.head_unknown;
            self.buffered_rosters.retain(|payload| {
                let roster = match Roster::verify(payload, membership) {
                    Ok(roster) => roster,
                    Err(RosterError::UnknownHead) => {
                        *head_unknown = true;
                        return true;
                    }
                    Err(RosterError::Frame(_)) => return false,
                };
                let follows = match last {
                    None => true,
                    Some((_, hash)) => roster.previous == Some(hash),
                };
                let stale = last.is_some_and(|(round, _)| roster.round <= round);
                if is_early(&roster, membership, now) {
                    return false;
                }
                if follows && !stale && next.is_none() {
                    next = Some(roster);
                    return false;
                }
                if stale {
                    late.push(roster);
                }
                !stale
            });
            for roster in late {
                self.on_old_roster(&roster, now);
            }
            match next {
                Some(roster) => self.follow_roster(&roster, now),
                None => return,
            }
        }
    }

    /// The next roster of the chain.
    ///
    /// What this meter answers is stored before the chain moves on: one that dies in
    /// between judges the same roster again, or repeats the stored answer.
    fn follow_roster(&mut self, roster: &Roster, now: Now) {
        let round = roster.round;
        let answer = self.judge(roster, now);
        self.last_roster = Some((round, roster.hash));
        self.rosters_due = true;
        let value = saved::roster_bytes(round, &roster.hash);
        self.persist(Store::Net, saved::LAST_ROSTER.to_vec(), Some(value));
        self.remember_seen(roster);
        // Rounds before it can have no roster any more: there is one chain, and it ascends.
        let hopeless: Vec<Round> = self
            .rounds
            .range(..round)
            .filter(|(_, own)| matches!(own.stage, RoundStage::Submitted { .. }))
            .map(|(round, _)| *round)
            .collect();
        for round in hopeless {
            self.forget(round);
        }
        if let Some(frame) = answer {
            self.publish_until_answered(Purpose::Reveal(round), self.up(Up::Reveal), frame, now);
        }
    }

    /// Decides on a roster for a round that this meter submitted in: the stored reveal,
    /// or `None` if it stays silent.
    fn judge(&mut self, roster: &Roster, now: Now) -> Option<Vec<u8>> {
        let own = self.index()?;
        let round = roster.round;
        if roster.includes(own) {
            self.repeats.stop(&Purpose::Entered);
        }
        let is_known = self.rounds.contains_key(&round) || self.finished.contains(&round);
        if roster.includes(own) && !is_known {
            self.note_unknown_submission(roster, now);
        }
        let RoundStage::Submitted { timely, .. } = &self.rounds.get(&round)?.stage else {
            return None;
        };
        let timely = *timely;
        self.repeats.stop(&Purpose::Submission(round));
        if !roster.includes(own) {
            let timely = timely && !self.made_others_wait(roster);
            if timely {
                self.count_exclusion(now);
            }
            self.forget(round);
            return None;
        }
        let revealed = self
            .may_reveal(roster, own, now)
            .and_then(|()| self.unblind(roster, now));
        match revealed {
            Ok(frame) => {
                self.note_late_reveal(roster, now);
                Some(frame)
            }
            Err(reason) => {
                if matches!(reason, Silence::WrongDigest | Silence::HalfOpenClaim) {
                    let what = match reason {
                        Silence::WrongDigest => "another submission than the one it signed",
                        _ => "which pads it used",
                    };
                    self.alarm(Alarm::FalseRoster { round, what });
                }
                // What was refused once is refused for good: erase what could answer it.
                self.store_stage(round, RoundStage::Refused);
                self.event(MeterEvent::Silent { round, reason });
                None
            }
        }
    }

    fn store_stage(&mut self, round: Round, stage: RoundStage) {
        if let Some(own_round) = self.rounds.get_mut(&round) {
            own_round.stage = stage;
            // Needed for a reveal only, and there is one.
            own_round.drawn = Vec::new();
            let value = own_round.to_bytes();
            self.persist(Store::Net, saved::round_key(round), Some(value));
        }
    }

    fn remember_seen(&mut self, roster: &Roster) {
        let value = saved::seen_bytes(&roster.included, &roster.hash);
        self.persist(Store::Net, saved::seen_key(roster.round), Some(value));
        self.seen.push_back(SeenRoster {
            round: roster.round,
            included: roster.included.clone(),
            hash: roster.hash,
        });
        while self.seen.len() > SEEN_ROSTERS {
            if let Some(oldest) = self.seen.pop_front() {
                self.persist(Store::Net, saved::seen_key(oldest.round), None);
            }
        }
    }

    /// The rules before a reveal.
    fn may_reveal(&self, roster: &Roster, own: MemberIndex, now: Now) -> Result<(), Silence> {
        let (Some(own_round), Some(membership)) =
            (self.rounds.get(&roster.round), self.membership.as_ref())
        else {
            return Err(Silence::NotMember);
        };
        let period = membership.genesis().policy.period;
        if now.utc >= roster.round.end(period).plus(CLOSED_AFTER) {
            return Err(Silence::Closed);
        }
        // Both are entries of one verified chain, so a later one descends from an earlier.
        if roster.head_index < own_round.head_index {
            return Err(Silence::HeadNotDescendant);
        }
        if roster.digest_of(own) != Some(own_round.digest) {
            return Err(Silence::WrongDigest);
        }
        let peers: Vec<MemberIndex> = own_round.used.iter().map(|(index, _)| *index).collect();
        let used = Used { own, peers: &peers };
        used.claims_hold(roster)?;
        let included = u32::try_from(roster.included.count()).unwrap_or(u32::MAX);
        if included < own_round.minimum_group {
            return Err(Silence::GroupTooSmall);
        }
        let percent = self.config.floors.minimum_presence;
        let lately = self.seen.iter().map(|seen| &seen.included);
        let left = |place: usize| {
            let member = membership.members().get(place);
            member.is_some_and(|member| !member.is_active_at(roster.head_index))
        };
        checks::presence(roster, lately, left, percent)?;
        used.enough_full(roster, &own_round.drawn, own_round.required)
    }

    /// Makes and stores the reveal.
    fn unblind(&mut self, roster: &Roster, now: Now) -> Result<Vec<u8>, Silence> {
        let round = roster.round;
        let (own_round, day) = (self.rounds.get(&round), self.day_of(round));
        let (Some(own_round), Some(day), Some(own)) = (own_round, day, self.index()) else {
            return Err(Silence::NotMember);
        };
        let RoundStage::Submitted { masks, .. } = &own_round.stage else {
            return Err(Silence::SecondRoster);
        };
        let mut sums: Vec<PadSum> = masks.iter().map(|_| PadSum::new()).collect();
        let mut pad = Pad::empty();
        let mut full_drawn = 0_usize;
        for (index, key) in &own_round.used {
            let adds = self.id < key.peer;
            let pads = self.edges.get_mut(key).and_then(|edge| edge.pads(day));
            let pads = pads.ok_or(Silence::KeysErased)?;
            let full = checks::is_full_if_used(roster, own, *index);
            let is_drawn = own_round.drawn.binary_search(index).is_ok();
            full_drawn = full_drawn.saturating_add(usize::from(full && is_drawn));
            for (channel, sum) in (0..).zip(&mut sums) {
                if full {
                    pads.write_reveal(&roster.hash, round, channel, &mut pad);
                } else {
                    pads.write_submission(round, channel, &mut pad);
                }
                sum.include(pad.bytes(), adds);
            }
        }
        let openings = masks
            .iter()
            .zip(&sums)
            .map(|(mask, sum)| *mask + sum.finish())
            .collect();
        let reveal = Reveal {
            sender: self.id,
            round,
            roster: roster.hash,
            openings,
        };
        let frame = reveal.sign(&self.config.key, self.net, now.utc);
        let stage = RoundStage::Revealed {
            roster: roster.hash,
            frame: frame.clone(),
        };
        self.store_stage(round, stage);
        self.event(MeterEvent::Revealed {
            round,
            included: roster.included.count(),
            full: full_drawn,
        });
        Ok(frame)
    }

    /// Forgets a round and everything that could still answer for it, keys of departed
    /// neighbours too that were kept for it.
    fn forget(&mut self, round: Round) {
        self.rounds.remove(&round);
        self.unsent.remove(&round);
        self.repeats.stop(&Purpose::Submission(round));
        self.repeats.stop(&Purpose::Reveal(round));
        self.persist(Store::Net, saved::round_key(round), None);
        if self.edges_dead {
            self.drop_dead_edges();
        }
    }

    /// The provider published the aggregate of a roster that this meter answered.
    pub(super) fn finish(&mut self, aggregate: &Aggregate) {
        let round = aggregate.round;
        let answered = match self.rounds.get(&round).map(|own| &own.stage) {
            Some(RoundStage::Revealed { roster, .. }) => *roster == aggregate.roster,
            // It is owed no more.
            Some(RoundStage::Refused) => return self.forget(round),
            _ => false,
        };
        if answered {
            self.forget(round);
            self.finished.push_back(round);
            if self.finished.len() > SEEN_ROSTERS {
                self.finished.pop_front();
            }
            let sums = aggregate.sums.iter().map(|sum| sum.energy).collect();
            let included = aggregate.included;
            self.event(MeterEvent::Final {
                round,
                included,
                sums,
            });
        }
    }

    /// Whether a round is closed by this meter's clock; all are before its net is known.
    pub(super) fn is_closed(&self, round: Round, now: Now) -> bool {
        let period = self.membership.as_ref().map(|m| m.genesis().policy.period);
        period.is_none_or(|period| now.utc >= round.end(period).plus(CLOSED_AFTER))
    }

    /// Closes rounds 24 h after their end by this meter's own clock, once it is right, final or
    /// not.
    pub(super) fn close_rounds(&mut self, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.clock.check(now).is_err() {
            return;
        }
        let period = membership.genesis().policy.period;
        let closed: Vec<Round> = self
            .rounds
            .keys()
            .take_while(|round| now.utc >= round.end(period).plus(CLOSED_AFTER))
            .copied()
            .collect();
        for round in closed {
            self.forget(round);
        }
    }
}
