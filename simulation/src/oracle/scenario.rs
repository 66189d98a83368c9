//! Runs from seeds, each judged for several sets of corrupted meters.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dcnet::time::Round;

use super::changes;
use super::hostile::{Blocked, Hostile};
use super::moves::{MOVES, Move};
use super::trace::Trace;
use super::verdict::Verdict;
use crate::network::{Faults, Network};
use crate::world::{World, at, policy};

pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;

/// Rounds of a run that are looked at.
pub(super) const ROUNDS: u64 = 7;

/// Sets of corrupted meters per run, besides none.
const CORRUPTIONS: usize = 3;

/// A run and what came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What happened, in words.
    pub story: String,
    /// How often the membership changed, by kind.
    pub changes: BTreeMap<&'static str, usize>,
    /// One verdict per set of corrupted meters.
    pub verdicts: Vec<Verdict>,
}

impl Report {
    /// Whether the claim holds for every set.
    pub fn holds(&self) -> bool {
        self.verdicts
            .iter()
            .all(|verdict| verdict.findings.is_empty())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.story)?;
        for (what, times) in self.changes.iter().filter(|(_, times)| **times > 0) {
            write!(f, "; {what}: {times}")?;
        }
        self.verdicts
            .iter()
            .try_for_each(|verdict| write!(f, "\n  {verdict}"))
    }
}

/// Decides a run's size and behaviour: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    pub(super) fn size(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap_or(0)
    }

    pub(super) fn meters(&mut self, count: usize, of: usize) -> BTreeSet<usize> {
        let bound = u64::try_from(of).unwrap_or(1);
        let mut meters = BTreeSet::new();
        while meters.len() < count.min(of) {
            meters.insert(self.size(bound));
        }
        meters
    }
}

/// A net, and what is wrong in it from the start.
pub(super) struct Setting {
    pub(super) world: World,
    pub(super) count: usize,
    pub(super) blocked: Blocked,
    pub(super) faults: Faults,
    pub(super) corrupted: BTreeSet<usize>,
    pub(super) words: String,
}

/// A net of 8 to 13 meters; up to three more join while it runs.
fn setting(seed: u64, dice: &mut Dice) -> Setting {
    let early = 8 + dice.size(6);
    let late = dice.size(4);
    setting_of(seed, early, late, dice)
}

/// A net of so many meters, and so many that join while it runs.
pub(super) fn setting_of(seed: u64, early: usize, late: usize, dice: &mut Dice) -> Setting {
    let count = early + late;
    let channels = if dice.below(2) == 0 {
        &["import"][..]
    } else {
        &["import", "export"]
    };
    let mut rules = policy(4);
    // A sparse graph brings sums close to their bound.
    rules.degree = [5, 6, 8, 48][dice.size(4)];
    let presence = [0, 50, 80][dice.size(3)];
    let mut world = World::seeded(count, rules, channels, seed);
    for meter in &mut world.meters {
        meter.floors.minimum_presence = presence;
        // Exclusions would stop every meter before the oracle has seen much.
        meter.floors.exclusions_per_day = 1000;
        meter.floors.exclusions_per_month = 100;
    }
    let ids: Vec<_> = world.meters.iter().map(|meter| meter.key.id()).collect();
    let mut blocked = Blocked::default();
    blocked.ignored.extend(&ids[early..]);
    for (place, one) in ids.iter().enumerate() {
        for other in &ids[place + 1..] {
            let pair = (*one.min(other), *one.max(other));
            match dice.below(20) {
                0 => drop(blocked.handshakes.insert(pair)),
                1 => drop(blocked.confirmations.insert(pair)),
                _ => {}
            }
        }
    }
    let faults = Faults {
        loss: 0,
        duplicates: u32::try_from(dice.below(10)).unwrap_or(0),
        delay: dice.below(200),
    };
    let corrupted = dice.size(1 + u64::try_from(early / 2).unwrap_or(0));
    let corrupted = dice.meters(corrupted, early);
    let words = format!(
        "{early} meters and {late} that join later, {} of them corrupted, draws of {}, {} channels, presence {presence} %",
        corrupted.len(),
        rules.degree,
        channels.len()
    );
    Setting {
        world,
        count,
        blocked,
        faults,
        corrupted,
        words,
    }
}

/// A provider that does what it should, over a bad network with absent meters.
pub fn faulty(seed: u64) -> Report {
    let mut dice = Dice(seed);
    let setting = setting(seed, &mut dice);
    let faults = Faults {
        loss: u32::try_from(dice.below(4)).unwrap_or(0),
        ..setting.faults
    };
    let mut network = Network::new(setting.world, faults, seed);
    let blocked = std::rc::Rc::new(std::cell::RefCell::new(setting.blocked));
    Blocked::rule(&blocked, &mut network);
    let mut trace = Trace::new(network);
    let joining = 3 + dice.below(ROUNDS - 2);
    for minute in 2..=ROUNDS + 2 {
        trace.run_until(minute * MINUTE - SECOND);
        for meter in 0..setting.count {
            let absent = minute > 3 && dice.below(12) == 0;
            trace.network.set_online(meter, !absent);
        }
        if minute == joining {
            blocked.borrow_mut().ignored.clear();
        }
        if dice.below(6) == 0 {
            trace
                .network
                .restart_meter(dice.size(u64::try_from(setting.count).unwrap_or(1)));
        }
    }
    (0..setting.count).for_each(|meter| trace.network.set_online(meter, true));
    trace.run_until((ROUNDS + 3) * MINUTE);
    trace.network.check_aggregates();
    let story = format!(
        "an honest provider, {}; absences, restarts and a network that loses {} %; {} aggregates, all true",
        setting.words,
        faults.loss,
        trace.network.aggregates.len()
    );
    judge(
        seed,
        story,
        &trace,
        setting.corrupted,
        setting.count,
        &mut dice,
    )
}

/// A provider that lies.
pub fn hostile(seed: u64) -> Report {
    hostile_with(seed, |dice, _| MOVES[dice(MOVES.len())])
}

/// A provider that plays the same move in every round but the first.
pub fn hostile_only(seed: u64, only: Move) -> Report {
    hostile_with(seed, |_, round| if round == 0 { Move::Truth } else { only })
}

fn hostile_with(seed: u64, choose: impl Fn(&mut dyn FnMut(usize) -> usize, u64) -> Move) -> Report {
    let mut dice = Dice(seed ^ 0x5bd1_e995);
    let mut setting = setting(seed, &mut dice);
    setting.blocked.rosters = true;
    let network = Network::new(setting.world, setting.faults, seed);
    let mut provider = Hostile::new(network, setting.blocked, setting.corrupted.clone(), seed);
    let mut moves = Vec::new();
    let joining = dice.below(ROUNDS);
    for number in 0..ROUNDS {
        let end = (number + 2) * MINUTE;
        provider.trace.run_until(end + 11 * SECOND);
        let period = provider.trace.network.world.policy.period;
        let round = Round(period.round_at(at(end).utc).0 - 1);
        let next = choose(&mut |bound| choice(&mut dice, bound), number);
        provider.play(next, round);
        moves.push(format!("{next:?}"));
        provider.trace.run_until(end + 40 * SECOND);
        if number == joining {
            provider.let_in();
        }
    }
    let story = format!(
        "a hostile provider, {}: {}",
        setting.words,
        moves.join(", ")
    );
    judge(
        seed,
        story,
        &provider.trace,
        setting.corrupted,
        setting.count,
        &mut dice,
    )
}

pub(super) fn choice(dice: &mut Dice, bound: usize) -> usize {
    dice.size(u64::try_from(bound).unwrap_or(1))
}

/// The verdicts on a run.
pub(super) fn judge(
    seed: u64,
    story: String,
    trace: &Trace,
    corrupted: BTreeSet<usize>,
    count: usize,
    dice: &mut Dice,
) -> Report {
    let account = trace.account(seed);
    let mut sets = vec![BTreeSet::new(), account.within_assumption(corrupted)];
    for _ in 1..CORRUPTIONS {
        let size = 1 + dice.size(u64::try_from(count / 2).unwrap_or(1));
        sets.push(account.within_assumption(dice.meters(size, count)));
    }
    sets.sort();
    sets.dedup();
    let verdicts = sets.iter().map(|set| account.judge(set)).collect();
    Report {
        seed,
        story,
        changes: changes::count(trace, &account),
        verdicts,
    }
}
