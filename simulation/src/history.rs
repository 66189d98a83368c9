//! What meters and provider said in a run, and whether it fits together. Knows nothing of
//! the machines: it is fed with what was seen, so a test can feed it with a lie.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::opening::Opening;
use dcnet::pad::RosterHash;
use dcnet::superposition::{ShortDigest, Submission, short};
use dcnet::time::Round;

use crate::invariant::{Invariant, Report};
use crate::network::Interval;

/// A submission that left a meter.
#[derive(Clone, Debug)]
pub struct SubmissionSeen {
    /// When.
    pub time: u64,
    /// Who sent it.
    pub meter: usize,
    /// How often the meter's disk had forgotten something.
    pub disk: u32,
    /// What it says.
    pub submission: Submission,
    /// What its commitments open to, and when the register counted that; `None` if they open
    /// to nothing that the register counted in that round.
    pub reading: Option<(Interval, Vec<Opening>)>,
}

/// A reveal that left a meter.
#[derive(Clone, Debug)]
pub struct RevealSeen {
    /// When.
    pub time: u64,
    /// Who sent it.
    pub meter: usize,
    /// How often the meter's disk had forgotten something.
    pub disk: u32,
    /// The round.
    pub round: Round,
    /// The roster that it answers.
    pub roster: RosterHash,
    /// Full drawn edges of the meter, by that roster and its own submission.
    pub full: usize,
}

/// A roster that was signed.
#[derive(Clone, Debug)]
pub struct RosterSeen {
    /// When.
    pub time: u64,
    /// The round.
    pub round: Round,
    /// Its hash.
    pub hash: RosterHash,
    /// Included meters and the submissions that it states for them.
    pub included: Vec<(usize, ShortDigest)>,
    /// Whether it is the provider's own, and no lie of the simulation.
    pub honest: bool,
}

/// An aggregate that was published.
#[derive(Clone, Debug)]
pub struct AggregateSeen {
    /// When.
    pub time: u64,
    /// The round.
    pub round: Round,
    /// The roster that it is the sum over.
    pub roster: RosterHash,
    /// Included meters.
    pub included: Vec<usize>,
    /// The sum per channel.
    pub sums: Vec<u64>,
}

struct Known {
    round: Round,
    disk: u32,
    minimum_group: u32,
    required: u32,
    interval: Option<Interval>,
}

/// Everything said so far.
pub struct History {
    /// What was checked.
    pub report: Report,
    minimum_group: u32,
    submissions: BTreeMap<(usize, ShortDigest), Known>,
    /// What hid readings: a component of an opening, and which one.
    hidden: BTreeSet<(usize, bool, [u8; 32])>,
    rosters: BTreeMap<RosterHash, RosterSeen>,
    reveals: BTreeMap<(usize, Round, u32), RosterHash>,
    aggregates: BTreeMap<Round, AggregateSeen>,
}

fn overlap(one: &Interval, other: &Interval) -> bool {
    let counts = |interval: &Interval| {
        let ends = interval.start.channels.iter().zip(&interval.end.channels);
        ends.map(|(start, end)| (start.0, end.0))
            .collect::<Vec<_>>()
    };
    let both = counts(one).into_iter().zip(counts(other));
    both.into_iter().any(|(a, b)| a.0 < b.1 && b.0 < a.1)
}

impl History {
    /// Nothing was said yet in a net with this minimum group.
    pub fn new(minimum_group: u32) -> Self {
        Self {
            report: Report::default(),
            minimum_group,
            submissions: BTreeMap::new(),
            hidden: BTreeSet::new(),
            rosters: BTreeMap::new(),
            reveals: BTreeMap::new(),
            aggregates: BTreeMap::new(),
        }
    }

    /// Whether a submission is known.
    pub fn knows(&self, meter: usize, digest: &ShortDigest) -> bool {
        self.submissions.contains_key(&(meter, *digest))
    }

    /// The aggregate of a round.
    pub fn aggregate_of(&self, round: Round) -> Option<&AggregateSeen> {
        self.aggregates.get(&round)
    }

    /// How many rounds have an aggregate.
    pub fn aggregates(&self) -> usize {
        self.aggregates.len()
    }

    /// Rounds that have a roster of the provider's own.
    pub fn rounds(&self) -> impl Iterator<Item = Round> + '_ {
        let own = self.rosters.values().filter(|roster| roster.honest);
        own.map(|roster| roster.round)
    }

    /// A submission; the same bytes again are none.
    pub fn submission(&mut self, seen: SubmissionSeen) {
        let SubmissionSeen {
            time,
            meter,
            disk,
            submission,
            reading,
        } = seen;
        let (round, digest) = (submission.round, short(&submission.digest));
        if self.knows(meter, &digest) {
            return;
        }
        let report = &mut self.report;
        report.check(Invariant::Reading, time, reading.is_some(), || {
            format!("meter {meter} commits to what its register never counted in round {round}")
        });
        let own = self.submissions.iter();
        let own = own.filter(|((sender, _), known)| *sender == meter && known.disk == disk);
        let (mut twice, mut overlaps) = (false, false);
        for (_, known) in own {
            twice |= known.round == round;
            overlaps |= match (&known.interval, &reading) {
                (Some(one), Some((other, _))) => overlap(one, other),
                _ => false,
            };
        }
        report.check(Invariant::OneSubmission, time, !twice, || {
            format!("meter {meter} sends a second, different submission for round {round}")
        });
        report.check(Invariant::OneInterval, time, !overlaps, || {
            format!("meter {meter} submits for round {round} what another round has already")
        });
        if let Some((_, openings)) = &reading {
            for (share, opening) in submission.shares.iter().zip(openings) {
                let mask = (share.superposition - *opening).to_bytes();
                let (value, blinding) = mask.split_at(32);
                for (first, part) in [(true, value), (false, blinding)] {
                    let part = part.try_into().unwrap_or([0; 32]);
                    let fresh = self.hidden.insert((meter, first, part));
                    report.check(Invariant::FreshMasks, time, fresh, || {
                        format!("meter {meter} hides its reading of round {round} as another one")
                    });
                }
            }
        }
        let known = Known {
            round,
            disk,
            minimum_group: submission.minimum_group,
            required: submission.minimum_neighbours,
            interval: reading.map(|(interval, _)| interval),
        };
        self.submissions.insert((meter, digest), known);
    }

    /// A roster; the same again is none.
    pub fn roster(&mut self, seen: RosterSeen) {
        if self.rosters.contains_key(&seen.hash) {
            return;
        }
        if seen.honest {
            let round = seen.round;
            let second = self.rounds().any(|known| known == round);
            self.report
                .check(Invariant::OneRoster, seen.time, !second, || {
                    format!("the provider signs a second roster for round {round}")
                });
        }
        self.rosters.insert(seen.hash, seen);
    }

    /// A reveal; the same again is none.
    pub fn reveal(&mut self, seen: &RevealSeen) {
        let RevealSeen {
            time,
            meter,
            disk,
            round,
            roster,
            full,
        } = *seen;
        let report = &mut self.report;
        let key = (meter, round, disk);
        let first = *self.reveals.entry(key).or_insert(roster);
        report.check(Invariant::OneReveal, time, first == roster, || {
            format!("meter {meter} answers two rosters of round {round}")
        });
        let roster = self.rosters.get(&roster).filter(|r| r.round == round);
        let stated = roster.and_then(|roster| {
            let mut included = roster.included.iter();
            included.find(|(included, _)| *included == meter)
        });
        let known = stated.and_then(|stated| self.submissions.get(stated));
        let (Some(roster), Some(known)) = (roster, known) else {
            return report.check(Invariant::RevealChecked, time, false, || {
                format!("meter {meter} reveals for round {round} what no roster asks of it")
            });
        };
        let enough = u32::try_from(full).is_ok_and(|full| full >= known.required);
        report.check(
            Invariant::RevealChecked,
            time,
            enough && known.round == round,
            || {
                let required = known.required;
                format!(
                    "meter {meter} reveals in round {round} with {full} full edges of {required}"
                )
            },
        );
        let (group, size) = (known.minimum_group, roster.included.len());
        let reached = u32::try_from(size).is_ok_and(|size| size >= group);
        report.check(Invariant::Group, time, reached, || {
            format!("meter {meter} reveals in round {round} to {size} meters instead of {group}")
        });
    }

    /// An aggregate.
    pub fn aggregate(&mut self, seen: AggregateSeen) {
        let (time, round) = (seen.time, seen.round);
        let known = self.aggregates.get(&round);
        let same = known.is_none_or(|known| known.roster == seen.roster && known.sums == seen.sums);
        let report = &mut self.report;
        report.check(Invariant::OneAggregate, time, same, || {
            format!("a second, different aggregate of round {round}")
        });
        let roster = self.rosters.get(&seen.roster).filter(|r| r.honest);
        let listed = roster.map_or(&[][..], |roster| &roster.included);
        let meters: Vec<usize> = listed.iter().map(|(meter, _)| *meter).collect();
        let mut truth = vec![0; seen.sums.len()];
        let mut group = self.minimum_group;
        let mut known_all = meters == seen.included;
        for key in listed {
            let Some(known) = self.submissions.get(key) else {
                known_all = false;
                continue;
            };
            group = group.max(known.minimum_group);
            known_all &= known.round == round;
            let energy = known.interval.as_ref().map(Interval::energy);
            for (sum, energy) in truth.iter_mut().zip(energy.unwrap_or_default()) {
                *sum += energy;
            }
        }
        report.check(
            Invariant::Truth,
            time,
            known_all && truth == seen.sums,
            || {
                let sums = &seen.sums;
                format!("round {round} is published as {sums:?} mWh, but the truth is {truth:?}")
            },
        );
        let size = seen.included.len();
        let reached = u32::try_from(size).is_ok_and(|size| size >= group);
        report.check(Invariant::Group, time, reached, || {
            format!("round {round} is a sum over {size} meters instead of {group}")
        });
        self.aggregates.entry(round).or_insert(seen);
    }

    /// Compares all that was submitted and summed up with the registers, at the end.
    pub fn conserve(&mut self, time: u64, registers: &[Vec<u64>]) {
        let mut total = vec![0; registers.first().map_or(0, Vec::len)];
        for (meter, register) in registers.iter().enumerate() {
            let mut rounds: BTreeMap<Round, Vec<u64>> = BTreeMap::new();
            let own = self
                .submissions
                .iter()
                .filter(|((sender, _), _)| *sender == meter);
            for (_, known) in own {
                let energy = known.interval.as_ref().map(Interval::energy);
                let most = rounds
                    .entry(known.round)
                    .or_insert_with(|| vec![0; register.len()]);
                for (most, energy) in most.iter_mut().zip(energy.unwrap_or_default()) {
                    *most = energy.max(*most);
                }
            }
            for (channel, rise) in register.iter().enumerate() {
                let submitted: u64 = rounds.values().map(|energy| energy[channel]).sum();
                self.report
                    .check(Invariant::Conserved, time, submitted <= *rise, || {
                        format!("meter {meter} submitted {submitted} mWh of {rise}")
                    });
                total[channel] += rise;
            }
        }
        for (channel, rise) in total.iter().enumerate() {
            let sums = self.aggregates.values();
            let sum: u64 = sums
                .filter_map(|aggregate| aggregate.sums.get(channel))
                .sum();
            self.report
                .check(Invariant::Conserved, time, sum <= *rise, || {
                    format!("all sums of channel {channel} are {sum} mWh of {rise}")
                });
        }
    }
}

#[cfg(test)]
mod tests;
