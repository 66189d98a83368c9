//! A provider that lies. The network's own provider keeps the log and relays handshakes,
//! but its rosters reach nobody: every roster that a meter sees is made here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::frame::{Frame, Notification, Unverified};
use dcnet::graph::MemberIndex;
use dcnet::identity::{DeviceId, Role};
use dcnet::membership::{EntryKind, sign_registration};
use dcnet::pad::RosterHash;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::superposition::{Submission, short};
use dcnet::time::Round;
use dcnet::topic::{All, Inbox, Topic, Up};

use super::saved;
use super::trace::Trace;
use crate::network::Network;
use crate::world::at;

/// What the provider lets pass.
#[derive(Debug, Default)]
pub struct Blocked {
    /// Whether the rosters of the network's own provider are withheld.
    pub rosters: bool,
    /// Meters that the provider does not answer: they have not joined yet.
    pub ignored: BTreeSet<DeviceId>,
    /// Pairs whose handshakes are not relayed, lower id first.
    pub handshakes: BTreeSet<(DeviceId, DeviceId)>,
    /// Pairs whose last confirmation is not relayed, so that only the higher end has a key.
    pub confirmations: BTreeSet<(DeviceId, DeviceId)>,
}

impl Blocked {
    fn passes(&self, topic: &Topic, payload: &[u8]) -> bool {
        let roster = matches!(
            topic,
            Topic::All {
                kind: All::Roster,
                ..
            }
        ) || matches!(
            topic,
            Topic::Inbox {
                kind: Inbox::Roster,
                ..
            }
        );
        if roster {
            return !self.rosters;
        }
        match topic {
            Topic::Up { meter, .. } => !self.ignored.contains(meter),
            Topic::UpPair { meter, peer, .. } => {
                let pair = (*meter.min(peer), *meter.max(peer));
                let last = meter > peer
                    && Unverified::parse(payload)
                        .is_ok_and(|frame| frame.claimed().notification == Notification::Confirm);
                !(self.handshakes.contains(&pair) || last && self.confirmations.contains(&pair))
            }
            _ => true,
        }
    }

    /// Lets a network obey these blocks from now on.
    pub fn rule(blocked: &Rc<RefCell<Self>>, network: &mut Network) {
        let blocked = Rc::clone(blocked);
        network.filter = Some(Box::new(move |topic, _, payload| {
            blocked.borrow().passes(topic, payload)
        }));
    }
}

/// What a meter submitted, as the provider reads it.
struct Seen {
    meter: usize,
    used: BTreeSet<MemberIndex>,
    submission: Submission,
}

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
    /// A log head from before the submissions.
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

/// A provider that lies, with the run that it rules.
pub struct Hostile {
    /// The run.
    pub trace: Trace,
    /// What it blocks.
    pub blocked: Rc<RefCell<Blocked>>,
    /// Meters it owns.
    pub corrupted: BTreeSet<usize>,
    rng: ChaCha20Rng,
    /// Frames that are shown after the next round's.
    later: Vec<(usize, Vec<u8>)>,
    /// The roster before each roster.
    chain: BTreeMap<RosterHash, Option<RosterHash>>,
}

impl Hostile {
    /// Takes a network over.
    pub fn new(
        mut network: Network,
        blocked: Blocked,
        corrupted: BTreeSet<usize>,
        seed: u64,
    ) -> Self {
        let blocked = Rc::new(RefCell::new(blocked));
        Blocked::rule(&blocked, &mut network);
        Self {
            trace: Trace::new(network),
            blocked,
            corrupted,
            rng: ChaCha20Rng::seed_from_u64(seed),
            later: Vec::new(),
            chain: BTreeMap::new(),
        }
    }

    /// A random number below a bound.
    pub fn random(&mut self, below: usize) -> usize {
        let below = u64::try_from(below.max(1)).unwrap_or(1);
        usize::try_from(self.rng.next_u64() % below).unwrap_or(0)
    }

    fn pick(&mut self, from: &BTreeSet<usize>) -> Option<usize> {
        let place = self.random(from.len());
        from.iter().nth(place).copied()
    }

    fn everybody(&self) -> BTreeSet<usize> {
        (0..self.trace.network.meters.len()).collect()
    }

    /// The submissions of a round, as the provider sees them.
    fn seen(&self, round: Round) -> Vec<Seen> {
        let network = &self.trace.network;
        let log = network.provider.membership();
        let channels = log.genesis().channels.len();
        let mut seen = Vec::new();
        for (meter, config) in network.world.meters.iter().enumerate() {
            let key = config.key.public();
            let submission = network
                .sent(meter, Up::Submission)
                .iter()
                .find_map(|frame| {
                    let frame = Frame::verify(frame, &key).ok()?;
                    let submission = Submission::read(frame, network.world.net, channels).ok()?;
                    (submission.round == round).then_some(submission)
                });
            let (Some(submission), Some(own)) = (submission, log.index_of(&key.id())) else {
                continue;
            };
            let head = log.index_of_entry(&submission.log_head).unwrap_or(0);
            let neighbours = log.graph().neighbours(own, head);
            let bitmap = Bitmap::from_bytes(submission.edges.clone(), neighbours.len(), "edges");
            let used = bitmap
                .iter()
                .flat_map(Bitmap::iter)
                .filter_map(|place| neighbours.get(place));
            let used = used.copied().collect();
            seen.push(Seen {
                meter,
                used,
                submission,
            });
        }
        seen
    }

    fn roster(
        &self,
        seen: &[Seen],
        members: &BTreeSet<usize>,
        previous: Option<RosterHash>,
    ) -> Roster {
        let network = &self.trace.network;
        let log = network.provider.membership();
        let head = log.head();
        let index = |meter: usize| network.member(meter);
        let mut included: Vec<&Seen> = seen.iter().filter(|s| members.contains(&s.meter)).collect();
        included.sort_by_key(|seen| index(seen.meter));
        let mut bitmap = Bitmap::empty(usize::try_from(log.members_at(head.index)).unwrap_or(0));
        let mut half_open = Vec::new();
        for one in &included {
            bitmap.set(usize::try_from(index(one.meter)).unwrap_or(usize::MAX));
            for other in &included {
                let (user, non_user) = (index(one.meter), index(other.meter));
                if one.used.contains(&non_user) && !other.used.contains(&user) {
                    half_open.push(HalfOpen { user, non_user });
                }
            }
        }
        half_open.sort_unstable();
        Roster {
            round: included
                .first()
                .map_or(Round(0), |seen| seen.submission.round),
            log_head: head.hash,
            head_index: head.index,
            included: bitmap,
            digests: included
                .iter()
                .map(|seen| short(&seen.submission.digest))
                .collect(),
            half_open,
            previous,
            hash: [0; 32],
        }
    }

    /// Shows meters a roster over `members` that continues the chain that each of them
    /// knows, changed as the provider likes.
    fn show(
        &mut self,
        seen: &[Seen],
        members: &BTreeSet<usize>,
        audience: &BTreeSet<usize>,
        change: impl Fn(&mut Roster),
    ) {
        let frames = self.frames(seen, members, audience, change);
        self.hand_over(frames);
    }

    fn hand_over(&mut self, frames: Vec<(usize, Vec<u8>)>) {
        for (meter, frame) in frames {
            self.trace.show_roster(meter, &frame);
        }
    }

    fn frames(
        &mut self,
        seen: &[Seen],
        members: &BTreeSet<usize>,
        audience: &BTreeSet<usize>,
        change: impl Fn(&mut Roster),
    ) -> Vec<(usize, Vec<u8>)> {
        let mut frames = Vec::new();
        for (previous, world) in self.worlds(audience) {
            let members: BTreeSet<usize> = members.intersection(&world).copied().collect();
            let mut roster = self.roster(seen, &members, previous);
            if members.is_empty() {
                continue;
            }
            change(&mut roster);
            let frame = self.trace.network.sign_roster(&roster);
            let key = self.trace.network.world.provider.key.public();
            if let Ok(frame) = Frame::verify(&frame, &key) {
                self.chain.insert(frame.digest(), previous);
            }
            frames.extend(world.into_iter().map(|meter| (meter, frame.clone())));
        }
        frames
    }

    /// Meters that hold different chains of rosters live in different worlds from then
    /// on; one whose chain only ends earlier will catch up.
    fn worlds(&self, audience: &BTreeSet<usize>) -> Vec<(Option<RosterHash>, BTreeSet<usize>)> {
        let mut ends: BTreeMap<Option<RosterHash>, BTreeSet<usize>> = BTreeMap::new();
        for meter in audience {
            let last = saved::last_roster(&self.trace.network.saved[*meter]);
            ends.entry(last).or_default().insert(*meter);
        }
        let follows = |later: Option<RosterHash>, earlier: Option<RosterHash>| {
            let mut at = later;
            while at != earlier {
                match at.and_then(|hash| self.chain.get(&hash)) {
                    Some(previous) => at = *previous,
                    None => return false,
                }
            }
            true
        };
        let mut worlds: Vec<(Option<RosterHash>, BTreeSet<usize>)> = Vec::new();
        for (end, meters) in ends {
            let of = |world: &&mut (Option<RosterHash>, BTreeSet<usize>)| {
                follows(world.0, end) || follows(end, world.0)
            };
            match worlds.iter_mut().find(of) {
                Some(world) => {
                    if follows(end, world.0) {
                        world.0 = end;
                    }
                    world.1.extend(meters);
                }
                None => worlds.push((end, meters)),
            }
        }
        worlds
    }

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
                let own = self.trace.network.member(victim);
                let used = seen
                    .iter()
                    .find(|seen| seen.meter == victim)
                    .map(|seen| &seen.used);
                let bad = self
                    .corrupted
                    .intersection(&present)
                    .map(|meter| self.trace.network.member(*meter));
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
                let (user, non_user) = (
                    self.trace.network.member(victim),
                    self.trace.network.member(other),
                );
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
                let log = self.trace.network.provider.membership().clone();
                let head = log.head().index;
                let older = (0..head)
                    .rev()
                    .find(|index| log.members_at(*index) < log.members_at(head));
                let older = older.map_or(head.saturating_sub(1), |index| {
                    (index + 1).min(head.saturating_sub(1))
                });
                if log.members_at(older) == log.members_at(head) {
                    self.show(&seen, &present, &everybody, |roster| {
                        roster.log_head = log.hash_at(older).unwrap_or(roster.log_head);
                    });
                }
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

    /// Answers the meters that were ignored so far.
    pub fn let_in(&mut self) {
        let ignored = std::mem::take(&mut self.blocked.borrow_mut().ignored);
        for meter in self.everybody() {
            if ignored.contains(&self.trace.network.meters[meter].id()) {
                self.trace.network.set_online(meter, false);
                self.trace.network.set_online(meter, true);
            }
        }
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
        let drawn = log.graph().newest(network.member(victim), u64::MAX);
        let drawn = drawn.map_or(&[][..], |draw| &draw.neighbours);
        let required = usize::try_from(own.submission.minimum_neighbours).unwrap_or(usize::MAX);
        let full = |members: &BTreeSet<usize>| {
            let is = |meter: &&usize| {
                let index = network.member(**meter);
                own.used.contains(&index) && drawn.contains(&index)
            };
            members.iter().filter(is).count()
        };
        for meter in present {
            let honest = !self.corrupted.contains(meter) && *meter != victim;
            if honest && full(&members) > required && members.len() > 5 {
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
            Bitmap::empty(usize::try_from(log.members_at(log.head().index)).unwrap_or(0));
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
