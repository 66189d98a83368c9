//! What is to happen in one simulated run: everything follows from its seed, and it can
//! be made smaller while it still shows a failure.

use std::fmt;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use dcnet::membership::Policy;
use dcnet::time::{DAY_MS, Period};

use crate::fault::{Fault, Injection};
use crate::network::Faults;

/// Length of a round in milliseconds.
pub const ROUND: u64 = 60_000;

/// Time for a net to form, in milliseconds.
pub const FORMING: u64 = 2 * ROUND;

/// From how many meters on a net has the rules of a real one.
const REAL_NET: usize = 64;

/// What a user may fix; the seed decides on the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Meters; 5 to 12 if not given.
    pub meters: Option<usize>,
    /// Rounds in which faults happen; 6 to 12 if not given.
    pub rounds: Option<u64>,
    /// Whether provider and network lie.
    pub hostile: bool,
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where keys, delays and energies come from.
    pub seed: u64,
    /// What the user fixed.
    pub sizes: Sizes,
    /// Meters.
    pub meters: usize,
    /// Rounds in which faults happen.
    pub rounds: u64,
    /// The net's rules.
    pub policy: Policy,
    /// Channels of the net.
    pub channels: usize,
    /// Exclusions within a day that stop a meter.
    pub exclusions_per_day: u32,
    /// When the net begins, in milliseconds after midnight.
    pub begin: u64,
    /// What goes wrong, in order of time.
    pub faults: Vec<Injection>,
}

/// Random choices of a plan.
pub(crate) struct Choice {
    rng: ChaCha20Rng,
}

impl Choice {
    /// Choices that follow from a seed; another purpose gives others.
    pub(crate) fn new(seed: u64, purpose: u8) -> Self {
        let mut bytes = [purpose; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = ChaCha20Rng::from_seed(bytes);
        Self { rng }
    }

    /// A number from a range, both ends included.
    pub(crate) fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.rng.next_u64() % (to.saturating_sub(from) + 1)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        let last = u64::try_from(length).unwrap().saturating_sub(1);
        usize::try_from(self.within(0, last)).unwrap()
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.within(1, 100) <= chance
    }

    /// One number, or its negative.
    pub(crate) fn signed(&mut self, from: u64, to: u64) -> i64 {
        let size = i64::try_from(self.within(from, to)).unwrap();
        if self.percent(50) { size } else { -size }
    }
}

/// Whom a plan's lasting harm may hit, so that most nets can go on without them.
pub(crate) struct Cast {
    pub(crate) meters: usize,
    pub(crate) frail: Vec<usize>,
}

impl Cast {
    pub(crate) fn anybody(&self, choice: &mut Choice) -> usize {
        choice.index(self.meters)
    }

    pub(crate) fn frail(&self, choice: &mut Choice) -> usize {
        self.frail[choice.index(self.frail.len())]
    }

    pub(crate) fn some(&self, choice: &mut Choice) -> Vec<usize> {
        let share = choice.within(10, 70);
        let first = self.anybody(choice);
        let mut all: Vec<usize> = (0..self.meters)
            .filter(|meter| *meter == first || choice.percent(share))
            .collect();
        if choice.percent(10) {
            all = (0..self.meters).collect();
        }
        all
    }
}

fn policy(meters: usize, choice: &mut Choice) -> Policy {
    let others = u32::try_from(meters - 1).unwrap();
    let real = meters >= REAL_NET;
    let group = if real { 30 } else { others.min(4) };
    let minimum_group = u32::try_from(choice.within(3, group.into())).unwrap();
    let degree = u32::try_from(choice.within(3, others.min(9).into())).unwrap();
    Policy {
        period: Period::from_secs(60).unwrap(),
        window_ms: if choice.percent(30) { 6_000 } else { 20_000 },
        minimum_group: if real { 30 } else { minimum_group },
        minimum_neighbours: 3,
        degree: if real { 48 } else { degree },
    }
}

impl Plan {
    /// The plan of a seed.
    ///
    /// # Panics
    /// If there are fewer than five meters.
    pub fn new(seed: u64, sizes: Sizes) -> Self {
        let mut choice = Choice::new(seed, 0x5a);
        let some = usize::try_from(choice.within(5, 12)).unwrap();
        let meters = sizes.meters.unwrap_or(some);
        assert!(meters >= 5, "a plan needs at least five meters");
        let some = choice.within(6, 12);
        let rounds = sizes.rounds.unwrap_or(some);
        let policy = policy(meters, &mut choice);
        let channels = if choice.percent(25) { 2 } else { 1 };
        // A day's change in the middle of everything, or none.
        let midnight = DAY_MS - ROUND * (1 + rounds / 2);
        let begin = if choice.percent(30) { midnight } else { 0 };
        let exclusions_per_day = if choice.percent(20) { 5 } else { 100 };
        let fragile = if choice.percent(70) {
            meters / 5
        } else {
            meters
        };
        let mut cast = Cast {
            meters,
            frail: Vec::new(),
        };
        for _ in 0..fragile {
            let meter = cast.anybody(&mut choice);
            cast.frail.push(meter);
        }
        let mut faults: Vec<Injection> = (0..choice.within(2, 12))
            .map(|_| Injection {
                at: choice.within(0, FORMING + rounds * ROUND),
                fault: Fault::draw(&cast, sizes.hostile, &mut choice),
            })
            .collect();
        if choice.percent(50) {
            let fault = Fault::Weather(Faults {
                loss: u32::try_from(choice.within(0, 3)).unwrap(),
                duplicates: u32::try_from(choice.within(0, 10)).unwrap(),
                delay: choice.within(0, 500),
            });
            faults.push(Injection { at: 0, fault });
        }
        faults.sort_by_key(|injection| injection.at);
        Self {
            seed,
            sizes,
            meters,
            rounds,
            policy,
            channels,
            exclusions_per_day,
            begin,
            faults,
        }
    }

    /// How long faults may begin, in milliseconds.
    pub fn length(&self) -> u64 {
        FORMING + self.rounds * ROUND
    }

    /// The command that plays this seed again.
    pub fn command(&self) -> String {
        let mut command = format!("cargo run --release -- replay --seed {}", self.seed);
        if let Some(meters) = self.sizes.meters {
            command += &format!(" --meters {meters}");
        }
        if let Some(rounds) = self.sizes.rounds {
            command += &format!(" --rounds {rounds}");
        }
        if self.sizes.hostile {
            command += " --hostile";
        }
        command
    }

    /// The plan without some of its faults.
    #[must_use]
    pub fn without(&self, gone: std::ops::Range<usize>) -> Self {
        let mut smaller = self.clone();
        smaller.faults.drain(gone);
        smaller
    }

    /// The plan with fewer meters; faults of the others fall away.
    #[must_use]
    pub fn with_meters(&self, meters: usize) -> Self {
        let mut smaller = self.clone();
        let others = u32::try_from(meters.saturating_sub(1)).unwrap_or(u32::MAX);
        smaller.meters = meters;
        smaller.policy.minimum_group = self.policy.minimum_group.min(others);
        smaller.policy.degree = self.policy.degree.min(others);
        let faults = self.faults.iter();
        let kept = faults.filter_map(|injection| {
            let fault = injection.fault.among(meters)?;
            Some(Injection {
                at: injection.at,
                fault,
            })
        });
        smaller.faults = kept.collect();
        smaller
    }

    /// The plan with fewer rounds; later faults fall away.
    #[must_use]
    pub fn with_rounds(&self, rounds: u64) -> Self {
        let mut smaller = self.clone();
        smaller.rounds = rounds;
        let length = smaller.length();
        smaller.faults.retain(|injection| injection.at <= length);
        smaller
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policy {
            window_ms,
            minimum_group,
            degree,
            ..
        } = self.policy;
        writeln!(
            f,
            "seed {}: {} meters, {} rounds of {} s, window {} s, minimum group {minimum_group}, degree {degree}, \
             {} channel(s), {} exclusions a day, begins {} after midnight{}",
            self.seed,
            self.meters,
            self.rounds,
            ROUND / 1000,
            window_ms / 1000,
            self.channels,
            self.exclusions_per_day,
            Clock(self.begin),
            if self.sizes.hostile { ", hostile" } else { "" },
        )?;
        for injection in &self.faults {
            writeln!(f, "  {injection}")?;
        }
        Ok(())
    }
}

/// A time since the beginning, as minutes and seconds.
pub struct Clock(pub u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (minutes, millis) = (self.0 / 60_000, self.0 % 60_000);
        write!(f, "{minutes:02}:{:02}.{:03}", millis / 1000, millis % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: Sizes = Sizes {
        meters: None,
        rounds: None,
        hostile: true,
    };

    #[test]
    fn a_seed_always_gives_the_same_plan_and_another_seed_another() {
        assert_eq!(Plan::new(7, HOSTILE), Plan::new(7, HOSTILE));
        assert_ne!(Plan::new(7, HOSTILE), Plan::new(8, HOSTILE));
        assert_eq!(
            Plan::new(7, HOSTILE).command(),
            "cargo run --release -- replay --seed 7 --hostile"
        );
    }

    #[test]
    fn a_smaller_plan_names_no_meter_that_is_gone() {
        for seed in 0..200 {
            let plan = Plan::new(seed, HOSTILE);
            let smaller = plan.with_meters(5).with_rounds(3);
            assert!(smaller.policy.minimum_group <= 4);
            for injection in &smaller.faults {
                assert!(injection.fault.meters().iter().all(|meter| *meter < 5));
                assert!(injection.at <= smaller.length());
            }
            assert!(smaller.faults.len() <= plan.faults.len());
        }
    }

    #[test]
    fn every_kind_of_fault_is_drawn() {
        for hostile in [false, true] {
            let drawn: std::collections::BTreeSet<&str> = (0..300)
                .flat_map(|seed| Plan::new(seed, Sizes { hostile, ..HOSTILE }).faults)
                .map(|injection| injection.fault.kind())
                .collect();
            let happens = |kind: &&str| hostile || !Fault::LIES.contains(kind);
            let kinds = Fault::kinds().filter(happens);
            assert_eq!(drawn, kinds.collect());
        }
    }
}
