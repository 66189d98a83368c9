//! Puts together what provider and third party say about each round, compares it
//! with the truth, and gives the measured rounds out in their order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dcnet::aggregate::Aggregate;
use dcnet::identity::{DeviceId, PublicKey};
use dcnet::provider::{ProviderEvent, Published};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;

use crate::absence::Absences;
use crate::observer::Seen;
use crate::report::{Line, Status, Sums};
use crate::truth::Truth;

/// Rounds after which one without an aggregate is given out as it stands; at least
/// [`PATIENCE`].
const PATIENCE_ROUNDS: u32 = 3;
/// See [`PATIENCE_ROUNDS`].
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a round.
#[derive(Debug, Default)]
struct Entry {
    issued: bool,
    lost: bool,
    published: Option<Published>,
    seen: Option<(Timestamp, Aggregate)>,
    faults: Vec<String>,
}

/// A measured round, given out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Measured round, from 0.
    pub index: u64,
    /// End of its interval.
    pub end: Timestamp,
    /// As it is reported.
    pub line: Line,
    /// What is wrong with it; the run fails.
    pub faults: Vec<String>,
    /// Meters that are missing although nobody stopped them.
    pub unasked: Vec<u32>,
    /// Hash of the newest log entry of its roster: the key graph follows from the log.
    pub log_head: Option<[u8; 32]>,
}

/// All rounds of a run.
#[derive(Debug)]
pub struct Board {
    net: NetId,
    provider: PublicKey,
    period: Period,
    meters: BTreeMap<DeviceId, u32>,
    truth: Truth,
    start_row: Option<u64>,
    absences: Absences,
    rounds: BTreeMap<Round, Entry>,
    first: Option<Round>,
    given: u64,
}

/// What a [`Board`] is made for.
#[derive(Debug)]
pub struct Setting {
    /// The net.
    pub net: NetId,
    /// The provider's key, from its certificate.
    pub provider: PublicKey,
    /// Length of a round.
    pub period: Period,
    /// Number of each meter.
    pub meters: BTreeMap<DeviceId, u32>,
    /// What the sums must be.
    pub truth: Truth,
    /// Row of the first measured round, if a file is replayed.
    pub start_row: Option<u64>,
    /// Who is to miss which round.
    pub absences: Absences,
}

impl Board {
    /// An empty board.
    pub fn new(setting: Setting) -> Self {
        let Setting {
            net,
            provider,
            period,
            meters,
            truth,
            start_row,
            absences,
        } = setting;
        Self {
            net,
            provider,
            period,
            meters,
            truth,
            start_row,
            absences,
            rounds: BTreeMap::new(),
            first: None,
            given: 0,
        }
    }

    /// From this round on it is measured.
    pub fn begin(&mut self, first: Round) {
        self.first = Some(first);
        self.rounds = self.rounds.split_off(&first);
    }

    /// Takes what the provider says.
    pub fn on_event(&mut self, event: &ProviderEvent) {
        match event {
            ProviderEvent::RosterIssued { round, .. } | ProviderEvent::Pending { round, .. } => {
                if let Some(entry) = self.entry(*round) {
                    entry.issued = true;
                }
            }
            ProviderEvent::NoRoster { round, .. } | ProviderEvent::Lost { round, .. } => {
                if let Some(entry) = self.entry(*round) {
                    entry.lost = true;
                }
            }
            ProviderEvent::Aggregated(published) => {
                if let Some(entry) = self.entry(published.round) {
                    entry.published = Some(published.clone());
                }
            }
            _ => {}
        }
    }

    /// Takes what came on the public topic. Returns the round if it is a new aggregate of the
    /// provider.
    pub fn on_seen(&mut self, seen: &Seen) -> Option<Round> {
        let aggregate = match Aggregate::verify(&seen.payload, self.net, &self.provider) {
            Ok(aggregate) => aggregate,
            Err(error) => {
                tracing::warn!(%error, "not an aggregate of the provider on the public topic");
                return None;
            }
        };
        let round = aggregate.round;
        let entry = self.entry(round)?;
        match &entry.seen {
            Some((_, first)) if *first == aggregate => None,
            Some(_) => {
                let fault = "a second, different aggregate was published".to_owned();
                entry.faults.push(fault);
                None
            }
            None => {
                entry.seen = Some((seen.at, aggregate));
                Some(round)
            }
        }
    }

    /// Whether a published aggregate has every meter in it.
    pub fn is_full(&self, round: Round) -> bool {
        let entry = self.rounds.get(&round);
        let included = entry.and_then(|e| e.seen.as_ref()).map(|(_, a)| a.included);
        included.is_some_and(|n| usize::try_from(n).is_ok_and(|n| n == self.meters.len()))
    }

    /// The measured rounds that can be told by now and were not yet given out.
    pub fn take(&mut self, now: Timestamp) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        while let Some(first) = self.first {
            let round = Round(first.0.saturating_add(self.given));
            let end = round.end(self.period);
            let patience = (self.period.duration() * PATIENCE_ROUNDS).max(PATIENCE);
            let entry = self.rounds.get(&round);
            let decided = entry.is_some_and(|entry| {
                entry.lost || (entry.published.is_some() && entry.seen.is_some())
            });
            if !decided && now < end.plus(patience) {
                break;
            }
            let entry = self.rounds.remove(&round).unwrap_or_default();
            outcomes.push(self.outcome(self.given, round, entry));
            self.given = self.given.saturating_add(1);
        }
        outcomes
    }

    fn entry(&mut self, round: Round) -> Option<&mut Entry> {
        let given_out = Round(self.first.map_or(0, |f| f.0.saturating_add(self.given)));
        if round < given_out {
            return None;
        }
        // Before the first measured round only the newest ones matter.
        if self.first.is_none() && self.rounds.len() > 16 {
            self.rounds.pop_first();
        }
        Some(self.rounds.entry(round).or_default())
    }

    fn outcome(&self, index: u64, round: Round, entry: Entry) -> Outcome {
        let end = round.end(self.period);
        let Entry {
            issued,
            published,
            seen,
            mut faults,
            ..
        } = entry;
        let mut line = Line {
            round: round.0,
            row: self.start_row.map(|row| row.saturating_add(index)),
            members: u32::try_from(self.meters.len()).unwrap_or(u32::MAX),
            included: Vec::new(),
            sum_mwh: None,
            verified: false,
            status: Status::Complete,
            latency_ms: None,
        };
        let mut log_head = None;
        let mut unasked = Vec::new();
        match (published, seen) {
            (Some(published), Some((at, aggregate))) => {
                line.members = aggregate.members;
                line.included = self.numbers(&published, &mut faults);
                line.latency_ms = u64::try_from(at.since(end).as_millis()).ok();
                log_head = Some(aggregate.log_head);
                agree(&published, &aggregate, &mut faults);
                let truth = self.truth.sum(index, round, &line.included);
                line.sum_mwh = against_truth(&aggregate, truth, &mut faults);
                unasked = self.attendance(index, &line.included, &mut faults);
                line.verified = faults.is_empty();
            }
            (published, seen) => {
                line.status = if issued {
                    Status::Pending
                } else {
                    Status::Lost
                };
                let why = match (published.is_some(), seen.is_some()) {
                    (true, _) => {
                        "the provider has an aggregate, but it was not on the public topic"
                    }
                    (_, true) => "an aggregate was published that the provider did not report",
                    _ if issued => "reveals are missing",
                    _ => "there is no roster",
                };
                faults.push(why.to_owned());
            }
        }
        Outcome {
            index,
            end,
            line,
            faults,
            unasked,
            log_head,
        }
    }

    fn numbers(&self, published: &Published, faults: &mut Vec<String>) -> Vec<u32> {
        let mut numbers = BTreeSet::new();
        for id in &published.included {
            match self.meters.get(id) {
                Some(number) => {
                    numbers.insert(*number);
                }
                None => faults.push(format!("meter {id} is in the sum, but not one of ours")),
            }
        }
        if numbers.len() != published.included.len() {
            faults.push("the list of included meters is wrong".to_owned());
        }
        numbers.into_iter().collect()
    }

    /// Notes stopped meters that are in the sum; returns those that are missing unasked.
    fn attendance(&self, index: u64, included: &[u32], faults: &mut Vec<String>) -> Vec<u32> {
        let absent = self.absences.in_round(index);
        for meter in &absent {
            if included.contains(meter) {
                faults.push(format!("meter {meter} was stopped, but is in the sum"));
            }
        }
        let numbers = self.meters.values().copied();
        let mut missing: Vec<u32> = numbers
            .filter(|number| !included.contains(number) && !absent.contains(number))
            .collect();
        missing.sort_unstable();
        missing
    }
}

/// The signed frame says what the provider stored.
fn agree(published: &Published, aggregate: &Aggregate, faults: &mut Vec<String>) {
    let sums: Vec<MilliwattHours> = aggregate.sums.iter().map(|sum| sum.energy).collect();
    let included = usize::try_from(aggregate.included);
    if published.sums != sums
        || published.roster != aggregate.roster
        || published.members != aggregate.members
        || included.is_ok_and(|included| included != published.included.len())
    {
        faults.push("the published aggregate is not the one that the provider stored".to_owned());
    }
}

fn against_truth(
    aggregate: &Aggregate,
    truth: Option<MilliwattHours>,
    faults: &mut Vec<String>,
) -> Option<Sums> {
    let [sum] = aggregate.sums.as_slice() else {
        faults.push(format!("{} channels instead of one", aggregate.sums.len()));
        return None;
    };
    match truth {
        Some(truth) if truth == sum.energy => {}
        Some(truth) => faults.push(format!(
            "the sum is {}, but the included meters measured {truth}",
            sum.energy
        )),
        None => faults.push("what the included meters measured is not known".to_owned()),
    }
    Some(Sums {
        import: sum.energy.0,
    })
}
