//! A provider that lies. The network's own provider keeps the log and relays handshakes,
//! but its rosters reach nobody: every roster that a meter sees is made here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use dcnet::bitmap::Bitmap;
use dcnet::frame::{Frame, Notification, Unverified};
use dcnet::graph::MemberIndex;
use dcnet::identity::DeviceId;
use dcnet::pad::RosterHash;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::superposition::{Submission, short};
use dcnet::time::{Round, Timestamp};
use dcnet::topic::{All, Inbox, Topic, Up};

use super::saved;
use super::trace::{Trace, place_at};
use crate::network::Network;

/// What the provider lets pass.
#[derive(Debug, Default)]
pub struct Blocked {
    /// Whether the rosters of the network's own provider are withheld.
    pub rosters: bool,
    /// Whether the provider takes no part in draws: who is marked as lapsed stays so.
    pub draws: bool,
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
            Topic::Up { kind: Up::Draw, .. } if self.draws => false,
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
pub(super) struct Seen {
    pub(super) meter: usize,
    /// The meter's place as of the log head that it names.
    pub(super) place: MemberIndex,
    pub(super) used: BTreeSet<MemberIndex>,
    pub(super) submission: Submission,
}

/// A provider that lies, with the run that it rules.
pub struct Hostile {
    /// The run.
    pub trace: Trace,
    /// What it blocks.
    pub blocked: Rc<RefCell<Blocked>>,
    /// Meters it owns.
    pub corrupted: BTreeSet<usize>,
    rng: ChaCha20Rng,
    /// An older log head that rosters name, if not the newest.
    pub(super) head: Option<u64>,
    /// Frames that are shown after the next round's.
    pub(super) later: Vec<(usize, Vec<u8>)>,
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
            head: None,
            later: Vec::new(),
            chain: BTreeMap::new(),
        }
    }

    /// A random number below a bound.
    pub fn random(&mut self, below: usize) -> usize {
        let below = u64::try_from(below.max(1)).unwrap_or(1);
        usize::try_from(self.rng.next_u64() % below).unwrap_or(0)
    }

    pub(super) fn pick(&mut self, from: &BTreeSet<usize>) -> Option<usize> {
        let place = self.random(from.len());
        from.iter().nth(place).copied()
    }

    pub(super) fn everybody(&self) -> BTreeSet<usize> {
        (0..self.trace.network.meters.len()).collect()
    }

    /// The submissions of a round, as the provider sees them.
    pub(super) fn seen(&self, round: Round) -> Vec<Seen> {
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
            let Some(submission) = submission else {
                continue;
            };
            let head = log.index_of_entry(&submission.log_head).unwrap_or(0);
            let Some(own) = place_at(log, &key.id(), head) else {
                continue;
            };
            let neighbours = log.graph().neighbours(own, head);
            let bitmap = Bitmap::from_bytes(submission.edges.clone(), neighbours.len(), "edges");
            let used = bitmap
                .iter()
                .flat_map(Bitmap::iter)
                .filter_map(|place| neighbours.get(place));
            let used = used.copied().collect();
            seen.push(Seen {
                meter,
                place: own,
                used,
                submission,
            });
        }
        seen
    }

    pub(super) fn roster(
        &self,
        seen: &[Seen],
        members: &BTreeSet<usize>,
        previous: Option<RosterHash>,
    ) -> Roster {
        let network = &self.trace.network;
        let log = network.provider.membership();
        let head = self.head.unwrap_or(log.head().index);
        // Meters refuse a roster with somebody who was no member at its head.
        let here = |seen: &&Seen| {
            let place = log.member(seen.place);
            members.contains(&seen.meter) && place.is_some_and(|place| place.is_active_at(head))
        };
        let mut included: Vec<&Seen> = seen.iter().filter(here).collect();
        included.sort_by_key(|seen| seen.place);
        let mut bitmap = Bitmap::empty(usize::try_from(log.places_at(head)).unwrap_or(0));
        let mut half_open = Vec::new();
        for one in &included {
            bitmap.set(usize::try_from(one.place).unwrap_or(usize::MAX));
            for other in &included {
                let (user, non_user) = (one.place, other.place);
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
            log_head: log.hash_at(head).unwrap_or_default(),
            head_index: head,
            included: bitmap,
            digests: included
                .iter()
                .map(|seen| short(&seen.submission.digest))
                .collect(),
            half_open,
            previous,
            issued: Timestamp(0),
            hash: [0; 32],
        }
    }

    /// Shows meters a roster over `members` that continues the chain that each of them
    /// knows, changed as the provider likes.
    pub(super) fn show(
        &mut self,
        seen: &[Seen],
        members: &BTreeSet<usize>,
        audience: &BTreeSet<usize>,
        change: impl Fn(&mut Roster),
    ) {
        let frames = self.frames(seen, members, audience, change);
        self.hand_over(frames);
    }

    pub(super) fn hand_over(&mut self, frames: Vec<(usize, Vec<u8>)>) {
        for (meter, frame) in frames {
            self.trace.show_roster(meter, &frame);
        }
    }

    pub(super) fn frames(
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
            if roster.digests.is_empty() {
                continue;
            }
            change(&mut roster);
            let frame = self.trace.network.sign_roster(&roster);
            let key = self.trace.network.provider_key_at(roster.head_index);
            let key = key.public();
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
}
