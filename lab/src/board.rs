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

#[cfg(test)]
mod tests {
    use dcnet::aggregate::Sum;
    use dcnet::identity::DeviceKey;
    use dcnet::opening::Opening;
    use dcnet::provider::NoRoster;

    use super::*;

    const NET: NetId = NetId([7; 16]);
    const FIRST: u64 = 1000;

    fn key(seed: u8) -> DeviceKey {
        DeviceKey::from_seed(&[seed; 32])
    }

    fn id(number: u32) -> DeviceId {
        DeviceId([u8::try_from(number).unwrap(); 16])
    }

    fn period() -> Period {
        Period::from_secs(2).unwrap()
    }

    /// Three meters; meter m measures 10·m + k Wh in measured round k.
    fn board(absent: &str) -> Board {
        let totals = |meter: u128| {
            let rows = (0..5).map(|row| (10 * meter + row) * 1000);
            let mut total = 0;
            let after = rows.map(|row| {
                total += row;
                total
            });
            std::iter::once(0).chain(after).collect()
        };
        let absences = absent.split(',').filter(|text| !text.is_empty());
        let mut board = Board::new(Setting {
            net: NET,
            provider: key(1).public(),
            period: period(),
            meters: (1..=3).map(|number| (id(number), number)).collect(),
            truth: Truth::Loads((1..=3).map(totals).collect()),
            start_row: Some(40),
            absences: Absences::new(absences.map(|text| text.parse().unwrap())),
        });
        board.begin(Round(FIRST));
        board
    }

    fn aggregate(index: u64, wh: u64, included: u32) -> Aggregate {
        Aggregate {
            round: Round(FIRST + index),
            roster: [3; 32],
            log_head: [4; 32],
            members: 3,
            included,
            sums: vec![Sum {
                energy: MilliwattHours(wh * 1000),
                blinding: Opening::ZERO.blinding,
            }],
        }
    }

    fn end(index: u64) -> Timestamp {
        Round(FIRST + index).end(period())
    }

    /// As the third party sees it, half a second after the end of the round.
    fn seen(aggregate: &Aggregate, signer: u8) -> Seen {
        let at = aggregate
            .round
            .end(period())
            .plus(Duration::from_millis(500));
        Seen {
            at,
            payload: aggregate.sign(&key(signer), NET, at),
        }
    }

    fn reported(aggregate: &Aggregate, included: &[u32]) -> ProviderEvent {
        ProviderEvent::Aggregated(Published {
            round: aggregate.round,
            members: aggregate.members,
            included: included.iter().map(|number| id(*number)).collect(),
            sums: aggregate.sums.iter().map(|sum| sum.energy).collect(),
            roster: aggregate.roster,
            log_head: aggregate.log_head,
            frame: Vec::new(),
        })
    }

    fn one(board: &mut Board, aggregate: &Aggregate, included: &[u32]) -> Outcome {
        board.on_event(&reported(aggregate, included));
        board.on_seen(&seen(aggregate, 1));
        let mut outcomes = board.take(end(0));
        assert_eq!(outcomes.len(), 1);
        outcomes.remove(0)
    }

    #[test]
    fn a_right_sum_is_verified() {
        let outcome = one(&mut board(""), &aggregate(0, 60, 3), &[1, 2, 3]);
        assert!(outcome.line.verified && outcome.faults.is_empty());
        assert_eq!(outcome.line.row, Some(40));
        assert_eq!(outcome.line.latency_ms, Some(500));
        let outcome = one(&mut board(""), &aggregate(0, 40, 2), &[3, 1]);
        assert!(outcome.line.verified);
        assert_eq!(outcome.line.included, [1, 3]);
        assert_eq!(outcome.unasked, [2], "missing, but the sum is right");
    }

    #[test]
    fn a_wrong_sum_is_told() {
        let outcome = one(&mut board(""), &aggregate(0, 61, 3), &[1, 2, 3]);
        assert!(!outcome.line.verified);
        assert!(outcome.faults[0].contains("61000 mWh"), "{outcome:?}");
    }

    #[test]
    fn a_sum_of_others_than_the_provider_stored_is_told() {
        for (aggregate, included) in [
            (aggregate(0, 60, 2), &[1, 2, 3][..]),
            (aggregate(0, 60, 3), &[1, 2, 3, 3]),
            (aggregate(0, 30, 3), &[1, 2, 9]),
        ] {
            let outcome = one(&mut board(""), &aggregate, included);
            assert!(!outcome.line.verified, "{outcome:?}");
        }
        let mut board = board("");
        board.on_event(&reported(&aggregate(0, 60, 3), &[1, 2, 3]));
        board.on_seen(&seen(&aggregate(0, 59, 3), 1));
        assert!(!board.take(end(0))[0].line.verified);
    }

    #[test]
    fn a_stopped_meter_in_the_sum_is_told() {
        let outcome = one(&mut board("2@0"), &aggregate(0, 60, 3), &[1, 2, 3]);
        assert!(outcome.faults[0].contains("meter 2 was stopped"));
        let outcome = one(&mut board("2@0"), &aggregate(0, 40, 2), &[1, 3]);
        assert!(outcome.faults.is_empty() && outcome.unasked.is_empty());
    }

    #[test]
    fn a_forged_or_second_aggregate_does_not_count() {
        let mut board = board("");
        let right = aggregate(0, 60, 3);
        board.on_event(&reported(&right, &[1, 2, 3]));
        assert_eq!(board.on_seen(&seen(&right, 2)), None, "another key");
        assert!(board.take(end(0)).is_empty());
        assert_eq!(board.on_seen(&seen(&right, 1)), Some(Round(FIRST)));
        assert_eq!(board.on_seen(&seen(&right, 1)), None, "the same again");
        assert_eq!(board.on_seen(&seen(&aggregate(0, 61, 3), 1)), None);
        let outcome = board.take(end(0)).remove(0);
        assert!(outcome.faults[0].contains("second"), "{outcome:?}");
    }

    #[test]
    fn rounds_are_given_out_in_order_and_late_ones_as_they_stand() {
        let mut board = board("");
        for index in [2, 1] {
            let aggregate = aggregate(index, 60 + 3 * index, 3);
            board.on_event(&reported(&aggregate, &[1, 2, 3]));
            board.on_seen(&seen(&aggregate, 1));
        }
        board.on_event(&ProviderEvent::RosterIssued {
            round: Round(FIRST),
            included: 3,
            dropped: Vec::new(),
        });
        let patience = end(0).plus(PATIENCE);
        assert!(
            board
                .take(patience.minus(Duration::from_millis(1)))
                .is_empty()
        );
        let outcomes = board.take(patience);
        let status: Vec<Status> = outcomes.iter().map(|o| o.line.status).collect();
        assert_eq!(
            status,
            [Status::Pending, Status::Complete, Status::Complete]
        );
        assert!(!outcomes[0].faults.is_empty() && outcomes[2].line.verified);

        board.on_event(&ProviderEvent::NoRoster {
            round: Round(FIRST + 3),
            submissions: 1,
            reason: NoRoster::TooFew,
            dropped: Vec::new(),
            absent: Vec::new(),
        });
        let lost = board.take(end(3)).remove(0);
        assert_eq!(lost.line.status, Status::Lost);
        assert_eq!((lost.line.sum_mwh, lost.line.latency_ms), (None, None));
    }
}
