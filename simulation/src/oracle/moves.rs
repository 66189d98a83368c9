//! The lies of a hostile provider, one per round.

use std::collections::BTreeSet;

use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::graph::MemberIndex;
use dcnet::identity::Role;
use dcnet::membership::{EntryKind, sign_registration};
use dcnet::roster::{HalfOpen, Roster};
use dcnet::time::Round;

use super::hostile::{Hostile, Seen};
use super::saved;
use crate::world::at;

/// One move of the provider in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Move {
    /// The true roster for everybody.
    Truth,
    /// Some present meters are called absent.
    LeaveOut,
    /// One meter and as few of its honest neighbours as its L admits.
    LeaveAlmostAlone,
    /// One meter with the corrupted ones and few others.
    Isolate,
    /// Two rosters for everybody, the second without one meter.
    TwoRosters,
    /// The same with a restart of every meter in between.
    TwoRostersAndRestarts,
    /// One roster for one half, another for the other half, then exchanged.
    Equivocate,
    /// Corrupted neighbours claim not to have used their edges to one meter.
    DenyEdges,
    /// Honest meters are said not to have used edges that they used.
    FalseClaims,
    /// A digest of another submission than the meter's.
    FalseDigest,
    /// A log head from before the submissions, or from before the membership changed since.
    OldHead,
    /// A true roster that one meter gets a round later.
    Withhold,
    /// No roster now, but after the next round's.
    Skip,
    /// A roster for a round that has not ended.
    Early,
    /// Meters join and draw between submission and roster.
    MixDraws,
    /// One meter is shown an entry of the log that nobody else sees, and a roster at that head.
    ForkLog,
    /// An honest meter's disk is restored from before its reveal, then a second roster.
    RollBackHonest,
    /// A corrupted meter's disk is restored from before its reveal, then a second roster.
    RollBackCorrupted,
}

/// All moves.
pub const MOVES: [Move; 18] = [
    Move::Truth,
    Move::LeaveOut,
    Move::LeaveAlmostAlone,
    Move::Isolate,
    Move::TwoRosters,
    Move::TwoRostersAndRestarts,
    Move::Equivocate,
    Move::DenyEdges,
    Move::FalseClaims,
    Move::FalseDigest,
    Move::OldHead,
    Move::Withhold,
    Move::Skip,
    Move::Early,
    Move::MixDraws,
    Move::ForkLog,
    Move::RollBackHonest,
    Move::RollBackCorrupted,
];

impl Hostile {
    /// The second half of a round: its submissions are in, now the provider moves.
    pub fn play(&mut self, next: Move, round: Round) {
        let seen = self.seen(round);
        let present: BTreeSet<usize> = seen.iter().map(|seen| seen.meter).collect();
        let honest: BTreeSet<usize> = present.difference(&self.corrupted).copied().collect();
        let everybody = self.everybody();
        let Some(victim) = self.pick(&honest) else {
            return;
        };
        let mut without = present.clone();
        without.remove(&victim);
        match next {
            Move::Truth => self.show(&seen, &present, &everybody, |_| {}),
            Move::LeaveOut => {
                let mut members = present.clone();
                for _ in 0..=self.random(present.len() / 3) {
                    self.pick(&members)
                        .map(|left_out| members.remove(&left_out));
                }
                self.show(&seen, &members, &everybody, |_| {});
            }
            Move::LeaveAlmostAlone => {
                let members = self.almost_alone(&seen, &present, victim);
                self.show(&seen, &members, &everybody, |_| {});
            }
            Move::Isolate => {
                let mut members: BTreeSet<usize> =
                    self.corrupted.intersection(&present).copied().collect();
                members.insert(victim);
                while members.len() < present.len().min(5) {
                    self.pick(&present).map(|other| members.insert(other));
                }
                self.show(&seen, &members, &everybody, |_| {});
            }
            Move::TwoRosters => {
                let second = self.frames(&seen, &without, &everybody, |_| {});
                self.show(&seen, &present, &everybody, |_| {});
                self.hand_over(second);
            }
            Move::TwoRostersAndRestarts => {
                let second = self.frames(&seen, &without, &everybody, |_| {});
                self.show(&seen, &present, &everybody, |_| {});
                for meter in &everybody {
                    self.trace.network.restart_meter(*meter);
                }
                self.hand_over(second);
            }
            Move::Equivocate => {
                let size = 1 + self.random(present.len() / 2);
                let left: BTreeSet<usize> = everybody.iter().rev().take(size).copied().collect();
                let right = everybody.difference(&left).copied().collect();
                let one = self.frames(&seen, &present, &everybody, |_| {});
                let two = self.frames(&seen, &without, &everybody, |_| {});
                let of = |frames: &[(usize, Vec<u8>)],
                          half: &BTreeSet<usize>|
                 -> Vec<(usize, Vec<u8>)> {
                    frames
                        .iter()
                        .filter(|(meter, _)| half.contains(meter))
                        .cloned()
                        .collect()
                };
                let order = [
                    of(&one, &left),
                    of(&two, &right),
                    of(&one, &right),
                    of(&two, &left),
                ];
                self.hand_over(order.concat());
            }
            Move::DenyEdges => {
                let own = self.place_of(&seen, victim);
                let used = seen
                    .iter()
                    .find(|seen| seen.meter == victim)
                    .map(|seen| &seen.used);
                let bad = self
                    .corrupted
                    .intersection(&present)
                    .map(|meter| self.place_of(&seen, *meter));
                let bad: Vec<MemberIndex> = bad
                    .filter(|index| used.is_some_and(|used| used.contains(index)))
                    .collect();
                self.show(&seen, &present, &everybody, |roster| {
                    for non_user in &bad {
                        claim(roster, own, *non_user);
                    }
                });
            }
            Move::FalseClaims => {
                let other = self.pick(&without).unwrap_or(victim);
                let (user, non_user) = (self.place_of(&seen, victim), self.place_of(&seen, other));
                self.show(&seen, &present, &everybody, |roster| {
                    if user != non_user {
                        claim(roster, user, non_user);
                    }
                });
            }
            Move::FalseDigest => {
                let place = self.random(present.len());
                self.show(&seen, &present, &everybody, |roster| {
                    if let Some(digest) = roster.digests.get_mut(place) {
                        digest[0] ^= 1;
                    }
                });
            }
            Move::OldHead => {
                self.head = Some(self.older_head(&seen));
                self.show(&seen, &present, &everybody, |_| {});
                self.head = None;
            }
            Move::Withhold => {
                let frames = self.frames(&seen, &present, &everybody, |_| {});
                for (meter, frame) in frames {
                    if meter == victim {
                        self.later.push((meter, frame));
                    } else {
                        self.trace.show_roster(meter, &frame);
                    }
                }
                return;
            }
            Move::Skip => {
                let frames = self.frames(&seen, &present, &everybody, |_| {});
                self.later.extend(frames);
                return;
            }
            Move::Early => {
                self.show(&seen, &present, &everybody, |roster| {
                    roster.round = roster.round.next()
                });
                self.show(&seen, &present, &everybody, |_| {});
            }
            Move::MixDraws => {
                self.let_in();
                let now = self.trace.network.now;
                self.trace.run_until(now + 5000);
                self.show(&seen, &present, &everybody, |_| {});
            }
            Move::ForkLog => self.fork_log(&seen, &present, &everybody, victim),
            Move::RollBackHonest | Move::RollBackCorrupted => {
                let corrupted = self.corrupted.intersection(&present).next().copied();
                let meter = match next {
                    Move::RollBackCorrupted => corrupted.unwrap_or(victim),
                    _ => victim,
                };
                let disk = self.trace.network.saved[meter].clone();
                let mut without = present.clone();
                let other = present.iter().copied().find(|other| *other != meter);
                other.map(|other| without.remove(&other));
                let second = self.frames(&seen, &without, &everybody, |_| {});
                self.show(&seen, &present, &everybody, |_| {});
                self.trace.roll_back(meter, disk);
                self.hand_over(second);
            }
        }
        let later = std::mem::take(&mut self.later);
        self.hand_over(later);
    }

    /// The place that a meter's submission speaks for.
    fn place_of(&self, seen: &[Seen], meter: usize) -> MemberIndex {
        let mut seen = seen.iter();
        let place = seen.find(|seen| seen.meter == meter).map(|seen| seen.place);
        place.unwrap_or_else(|| self.trace.network.member(meter))
    }

    /// An entry between those that the submissions name and the newest, or the one before:
    /// who has left meanwhile is still a member there.
    fn older_head(&mut self, seen: &[Seen]) -> u64 {
        let log = self.trace.network.provider.membership();
        let newest = log.head().index;
        let named = seen.iter().map(|seen| &seen.submission.log_head);
        let oldest = named.filter_map(|head| log.index_of_entry(head)).min();
        let oldest = oldest.unwrap_or(newest).saturating_sub(1);
        let span = usize::try_from(newest - oldest).unwrap_or(1);
        oldest + u64::try_from(self.random(span)).unwrap_or(0)
    }

    /// Leaves out honest neighbours of a meter as long as L of its drawn edges stay full.
    fn almost_alone(
        &self,
        seen: &[Seen],
        present: &BTreeSet<usize>,
        victim: usize,
    ) -> BTreeSet<usize> {
        let network = &self.trace.network;
        let log = network.provider.membership();
        let mut members = present.clone();
        let Some(own) = seen.iter().find(|seen| seen.meter == victim) else {
            return members;
        };
        let drawn = log.graph().newest(own.place, u64::MAX);
        let drawn = drawn.map_or(&[][..], |draw| &draw.neighbours);
        let required = usize::try_from(own.submission.minimum_neighbours).unwrap_or(usize::MAX);
        let full = |members: &BTreeSet<usize>| {
            let is = |meter: &&usize| {
                let index = self.place_of(seen, **meter);
                own.used.contains(&index) && drawn.contains(&index)
            };
            members.iter().filter(is).count()
        };
        for meter in present {
            let honest = !self.corrupted.contains(meter) && *meter != victim;
            if honest && full(&members) > required && members.len() > 4 {
                members.remove(meter);
            }
        }
        members
    }

    /// Shows one meter a Join that nobody else sees, and a roster at that head.
    fn fork_log(
        &mut self,
        seen: &[Seen],
        present: &BTreeSet<usize>,
        everybody: &BTreeSet<usize>,
        victim: usize,
    ) {
        let network = &self.trace.network;
        let (net, utc) = (network.world.net, at(network.now).utc);
        let (key, certificate) = network.world.authority.issue(Role::Meter, Some(net));
        let registration = sign_registration(&key, &certificate, net, utc);
        let mut log = network.provider.membership().clone();
        let body = cbor::array([cbor::bytes(&registration)]);
        let entry = log.sign_next(&network.world.provider.key, EntryKind::Join, body, utc);
        if log.append(&entry).is_err() {
            return;
        }
        let previous = saved::last_roster(&network.saved[victim]);
        let mut roster = self.roster(seen, present, previous);
        let mut included =
            Bitmap::empty(usize::try_from(log.places_at(log.head().index)).unwrap_or(0));
        roster
            .included
            .iter()
            .for_each(|member| included.set(member));
        roster.included = included;
        roster.log_head = log.head().hash;
        let frame = roster.sign(&network.world.provider.key, &log, utc);
        self.trace.network.show_entry(victim, entry);
        self.trace.show_roster(victim, &frame);
        self.show(seen, present, everybody, |_| {});
    }
}

fn claim(roster: &mut Roster, user: MemberIndex, non_user: MemberIndex) {
    let claim = HalfOpen { user, non_user };
    if let Err(place) = roster.half_open.binary_search(&claim) {
        roster.half_open.insert(place, claim);
    }
}
