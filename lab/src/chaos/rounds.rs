//! What a third party sees of the rounds, compared with what the households used; and what the
//! provider's database says at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use dcnet::aggregate::Aggregate;
use dcnet::identity::{DeviceId, PublicKey};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use provider_agent::Store;
use provider_agent::store::RoundStatus;

use super::setting::Consumption;
use crate::observer::Seen;
use crate::terminal;

/// A round without an aggregate is told so much after its end; one may still follow.
const PATIENCE: Duration = Duration::from_secs(15);

/// An aggregate on the public topic.
#[derive(Debug)]
struct Publication {
    at: Timestamp,
    aggregate: Aggregate,
    checked: bool,
}

/// All rounds of a run.
#[derive(Debug)]
pub struct Rounds {
    net: NetId,
    provider: PublicKey,
    period: Period,
    meters: BTreeMap<DeviceId, u32>,
    consumption: Consumption,
    published: BTreeMap<Round, Publication>,
    /// From here on it was not told that nothing was published.
    told: Option<Round>,
    wrong: BTreeMap<Round, BTreeSet<String>>,
}

/// How the rounds went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All rounds from the first complete to the last one.
    pub rounds: u64,
    /// Of these: with every meter in the sum.
    pub complete: u64,
    /// With a sum over fewer.
    pub smaller: u64,
    /// With a roster, but ended without a sum.
    pub lost: u64,
    /// With a roster, and still waiting for its sum.
    pub pending: BTreeSet<Round>,
    /// Sums that the third party saw.
    pub seen: u64,
}

impl Tally {
    /// Rounds for which too few were there.
    pub fn without_roster(&self) -> u64 {
        let pending = u64::try_from(self.pending.len()).unwrap_or(u64::MAX);
        self.rounds
            .saturating_sub(self.complete + self.smaller + self.lost)
            .saturating_sub(pending)
    }
}

impl Rounds {
    /// None yet.
    pub fn new(
        (net, provider): (NetId, PublicKey),
        period: Period,
        meters: BTreeMap<DeviceId, u32>,
        consumption: Consumption,
    ) -> Self {
        Self {
            net,
            provider,
            period,
            meters,
            consumption,
            published: BTreeMap::new(),
            told: None,
            wrong: BTreeMap::new(),
        }
    }

    /// What is wrong, per round.
    pub fn wrong(&self) -> &BTreeMap<Round, BTreeSet<String>> {
        &self.wrong
    }

    /// Takes what came on the public topic.
    pub fn on_seen(&mut self, seen: &Seen) {
        let aggregate = match Aggregate::verify(&seen.payload, self.net, &self.provider) {
            Ok(aggregate) => aggregate,
            Err(error) => {
                let now = self.period.round_at(seen.at);
                self.blame(
                    now,
                    format!("no aggregate of the provider on the topic: {error}"),
                );
                return;
            }
        };
        let round = aggregate.round;
        match self.published.get(&round) {
            Some(first) if first.aggregate == aggregate => {}
            Some(_) => self.blame(
                round,
                "a second, different aggregate was published".to_owned(),
            ),
            None => {
                let publication = Publication {
                    at: seen.at,
                    aggregate,
                    checked: false,
                };
                self.published.insert(round, publication);
            }
        }
    }

    /// Whether there are publications that were not compared yet.
    pub fn has_unchecked(&self) -> bool {
        self.published
            .values()
            .any(|publication| !publication.checked)
    }

    /// Compares what was published since with what the included meters used; a line for each.
    /// The database tells who is included, the signature only how many.
    ///
    /// # Errors
    /// The provider's database cannot be read.
    pub fn check(&mut self, state: &Path) -> anyhow::Result<Vec<String>> {
        let store = Store::open_in(state)?;
        let mut lines = Vec::new();
        let unchecked: Vec<Round> = self
            .published
            .iter()
            .filter_map(|(round, publication)| (!publication.checked).then_some(*round))
            .collect();
        for round in unchecked {
            let included = store.included_in(self.net, round)?;
            let Some(publication) = self.published.get_mut(&round) else {
                continue;
            };
            publication.checked = true;
            let (at, aggregate) = (publication.at, &publication.aggregate);
            let count = usize::try_from(aggregate.included).unwrap_or(usize::MAX);
            let energies: Vec<MilliwattHours> = aggregate.sums.iter().map(|s| s.energy).collect();
            let late = at.since(round.end(self.period));
            let mut faults = self.faults_of(round, &included, &energies);
            if count != included.len() {
                faults.push(format!(
                    "{count} meters are named, {} on the roster",
                    included.len()
                ));
            }
            let verdict = if faults.is_empty() {
                "right".to_owned()
            } else {
                faults.join(", ")
            };
            let sum = energies.first().copied().unwrap_or_default();
            let missing: Vec<String> = self
                .meters
                .iter()
                .filter(|(id, _)| !included.contains(id))
                .map(|(_, number)| number.to_string())
                .collect();
            let missing = match missing.as_slice() {
                [] => String::new(),
                numbers => format!(" (without {})", numbers.join(", ")),
            };
            lines.push(format!(
                "{}{} of {} meters{missing}, {sum}, {:.1} s after its end: {verdict}",
                self.name(round),
                included.len(),
                self.meters.len(),
                late.as_secs_f64()
            ));
            for fault in faults {
                self.blame(round, fault);
            }
        }
        Ok(lines)
    }

    fn faults_of(
        &self,
        round: Round,
        included: &[DeviceId],
        energies: &[MilliwattHours],
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let numbers: BTreeSet<u32> = included
            .iter()
            .filter_map(|id| self.meters.get(id).copied())
            .collect();
        if included.is_empty() || numbers.len() != included.len() {
            faults.push(format!("the roster is not of these meters: {included:?}"));
        }
        match self.consumption.sum(round, numbers.iter().copied()) {
            Some(truth) if energies == [truth] => {}
            Some(truth) => faults.push(format!(
                "WRONG: {energies:?}, but meters {numbers:?} used {truth}"
            )),
            None => faults.push("what was used is not known".to_owned()),
        }
        faults
    }

    /// A line for each round that has had no aggregate for a while.
    pub fn silent(&mut self, now: Timestamp) -> Vec<String> {
        let Some(told) = &mut self.told else {
            self.told = self.published.first_key_value().map(|(first, _)| *first);
            return Vec::new();
        };
        let mut silent = Vec::new();
        while now >= told.end(self.period).plus(PATIENCE) {
            if !self.published.contains_key(told) {
                silent.push(*told);
            }
            *told = told.next();
        }
        let line = |round: Round| format!("{}nothing was published", self.name(round));
        silent.into_iter().map(line).collect()
    }

    /// How many of the newest rounds with an aggregate, none before `from`, follow each other and
    /// have every meter in it.
    pub fn complete_in_a_row(&self, from: Round) -> u64 {
        let mut rounds = self.published.range(from..).rev().peekable();
        let mut count = 0;
        while let Some((round, publication)) = rounds.next() {
            let full = usize::try_from(publication.aggregate.included)
                .is_ok_and(|included| included == self.meters.len());
            if !full {
                break;
            }
            count += 1;
            let before = rounds.peek().map(|(before, _)| before.next());
            if before != Some(*round) {
                break;
            }
        }
        count
    }

    /// The newest round with an aggregate.
    pub fn newest(&self) -> Option<Round> {
        self.published.last_key_value().map(|(round, _)| *round)
    }

    /// Compares every sum in the provider's database, seen by the third party or not, and counts.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tally(&mut self, state: &Path) -> anyhow::Result<Tally> {
        let mut tally = Tally {
            seen: u64::try_from(self.published.len()).unwrap_or(u64::MAX),
            ..Tally::default()
        };
        let (Some((first, _)), Some(last)) = (self.published.first_key_value(), self.newest())
        else {
            return Ok(tally);
        };
        let first = *first;
        tally.rounds = last.0.saturating_sub(first.0).saturating_add(1);
        let store = Store::open_in(state)?;
        let mut rows = Vec::new();
        store.for_each_round(self.net, first, last.next(), |row| {
            rows.push(row);
            Ok(())
        })?;
        let mut finals = BTreeSet::new();
        for row in rows {
            match row.status {
                RoundStatus::Final => {
                    finals.insert(row.round);
                    let included = store.included_in(self.net, row.round)?;
                    for fault in self.faults_of(row.round, &included, &row.sums) {
                        self.blame(row.round, format!("in the database: {fault}"));
                    }
                    if included.len() == self.meters.len() {
                        tally.complete += 1;
                    } else {
                        tally.smaller += 1;
                    }
                }
                RoundStatus::Lost => tally.lost += 1,
                RoundStatus::Pending => {
                    tally.pending.insert(row.round);
                }
            }
        }
        let unknown: Vec<Round> = self
            .published
            .keys()
            .filter(|round| !finals.contains(round))
            .copied()
            .collect();
        for round in unknown {
            self.blame(round, "published, but not in the database".to_owned());
        }
        Ok(tally)
    }

    fn blame(&mut self, round: Round, fault: String) {
        self.wrong.entry(round).or_default().insert(fault);
    }

    fn name(&self, round: Round) -> impl fmt::Display + use<> {
        let begin = terminal::clock(round.start(self.period));
        format!("round   of {begin}: ")
    }
}
