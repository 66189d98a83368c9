//! Boundaries of rounds that pass while nobody knows UTC.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::{ImpulsesPerKwh, Pulses};
use link::Clock;
use meter_agent::clock::{self, Moment, UtcMap};
use meter_agent::pulse::{Batch, Channel, NextBatch, PulseSource};
use meter_agent::register::counting::{Counted, Rounds, SavePolicy, Watching, count};
use meter_agent::register::{Register, RegisterChannel};
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

const MS: Duration = Duration::from_millis(1);
const SECOND: u64 = 1000;

/// 2026-11-22T12:07:00Z.
const BOOT: u64 = 1_795_349_220_000;

fn register(directory: &Path, channels: usize) -> Register {
    let channel = |index: usize| RegisterChannel {
        name: format!("channel-{index}"),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
    };
    Register::open(directory, (0..channels).map(channel).collect()).unwrap()
}

fn period(seconds: u32) -> Option<Period> {
    Some(Period::from_secs(seconds).unwrap())
}

/// Values of the first channel in pulses.
fn values(boundaries: &[Boundary]) -> Vec<(u64, u64)> {
    let value = |boundary: &Boundary| (boundary.at.0, boundary.channels[0].0 / 1000);
    boundaries.iter().map(value).collect()
}

/// A machine in ms of its monotonic clock, which stands at zero when UTC is [`BOOT`].
#[derive(Clone, Debug, Default)]
struct Machine {
    /// From when on the UTC clock is ahead by so much; before the first it is right.
    wrong: BTreeMap<u64, i64>,
    /// Whether UTC counts as synchronised, from when on; before the first it does not.
    synchronised: BTreeMap<u64, bool>,
    /// When the machine was suspended, and for how long.
    suspended: Option<(u64, u64)>,
}

fn at_or_before<T: Copy>(map: &BTreeMap<u64, T>, at: u64) -> Option<T> {
    map.range(..=at).next_back().map(|(_, value)| *value)
}

impl Machine {
    fn suspended_until(&self, at: u64) -> u64 {
        self.suspended
            .filter(|(when, _)| at >= *when)
            .map_or(0, |(_, length)| length)
    }

    fn true_utc(&self, at: u64) -> u64 {
        BOOT + at + self.suspended_until(at)
    }

    fn moment(&self, at: u64) -> Moment {
        let wrong = at_or_before(&self.wrong, at).unwrap_or(0);
        Moment {
            monotonic: Duration::from_millis(at),
            utc: Duration::from_millis(self.true_utc(at).checked_add_signed(wrong).unwrap()),
            synchronised: at_or_before(&self.synchronised, at).unwrap_or(false),
            suspended: Duration::from_millis(self.suspended_until(at)),
        }
    }

    /// The monotonic time of a moment of true UTC; `None` during the suspension.
    fn monotonic(&self, utc: u64) -> Option<u64> {
        let at = utc.checked_sub(BOOT)?;
        match self.suspended {
            Some((when, length)) if at > when => at.checked_sub(length).filter(|at| *at >= when),
            _ => Some(at),
        }
    }
}

/// Cuts time into batches as a GPIO line does, 0.1 s late.
struct Line {
    map: UtcMap,
    pulses: VecDeque<u64>,
}

impl Line {
    fn new(machine: &Machine, pulses: &[u64]) -> Self {
        let mut map = UtcMap::new();
        let start = machine.moment(0);
        map.stretch(start.monotonic, start.monotonic, start.utc);
        Self {
            map,
            pulses: pulses.iter().copied().collect(),
        }
    }

    fn batches(&mut self, now: &Moment) -> Vec<Batch> {
        let end = now.monotonic.saturating_sub(100 * MS);
        let Some(stretch) = self.map.stretch(end, now.monotonic, now.utc) else {
            return Vec::new();
        };
        let mut batches = Vec::new();
        let (mut from, mut begin) = (stretch.from, stretch.begin);
        while from < stretch.until {
            let until = Timestamp(from.0 / SECOND * SECOND + SECOND).min(stretch.until);
            let mut count = 0;
            while let Some(at) = self.pulses.front().map(|at| Duration::from_millis(*at)) {
                if stretch.utc_of(at) >= until {
                    break;
                }
                self.pulses.pop_front();
                count += 1;
            }
            let end = stretch.monotonic_of(until);
            let batch = Batch::new(Channel(0), from..until, begin..end, Pulses(count));
            batches.push(batch.unwrap());
            (from, begin) = (until, end);
        }
        batches
    }
}

/// Runs a machine up to `end`, with a look every `tick` ms; the period becomes known at `known`.
/// What a source has cut reaches the register `delay` ms later.
fn run(
    machine: &Machine,
    pulses: &[u64],
    (seconds, known): (u32, u64),
    (tick, delay, end): (u64, u64, u64),
) -> Vec<Boundary> {
    let directory = tempfile::tempdir().unwrap();
    let mut register = register(directory.path(), 1);
    let mut line = Line::new(machine, pulses);
    let (mut found, mut queue, mut at) = (Vec::new(), VecDeque::new(), 0);
    while at < end {
        at += tick;
        let now = machine.moment(at);
        if at >= known {
            register.set_period(period(seconds));
        }
        found.extend(register.observe(&now));
        while let Some((_, batch)) = queue.pop_front_if(|(due, _)| *due <= at) {
            found.extend(register.record(&batch, &now).unwrap());
        }
        queue.extend(
            line.batches(&now)
                .into_iter()
                .map(|batch| (at + delay, batch)),
        );
    }
    found
}

/// Pulses that began before a moment.
fn before(pulses: &[u64], at: u64) -> u64 {
    pulses.iter().filter(|pulse| **pulse < at).count() as u64
}

fn minutes(minutes: u64) -> u64 {
    minutes * 60 * SECOND
}

fn synchronised_at(at: u64, ahead: i64) -> Machine {
    Machine {
        wrong: BTreeMap::from([(0, ahead), (at, 0)]),
        synchronised: BTreeMap::from([(at, true)]),
        suspended: None,
    }
}

/// One pulse a second, in the middle of it.
fn steady(end: u64) -> Vec<u64> {
    (0..end / SECOND)
        .map(|second| second * SECOND + 500)
        .collect()
}

#[test]
fn a_boundary_that_passed_before_the_clock_was_set_opens_the_round() {
    for ahead in [-1_000_000_000_300, 0, 86_400_400] {
        let machine = synchronised_at(minutes(9), ahead);
        let end = minutes(24);
        let found = run(&machine, &steady(end), (900, 0), (50, 0, end));
        let (quarter, half) = (BOOT + minutes(8), BOOT + minutes(23));
        // 12:15 is 480 s after the boot, and 12:30 is 1380 s after it.
        let values = values(&found);
        assert_eq!(values.len(), 2, "{values:?}");
        assert_eq!((values[0].0, values[1]), (quarter, (half, 1380)));
        assert!(values[0].1.abs_diff(480) <= 1, "{values:?}");
    }
}

#[test]
fn a_clock_that_was_ahead_does_not_keep_later_boundaries_from_their_value() {
    let mut machine = synchronised_at(0, 0);
    // It is set ahead by an hour, which is noticed a minute later and put right at last.
    machine.wrong = BTreeMap::from([(minutes(10), 3_600_000), (minutes(20), 0)]);
    machine.synchronised = BTreeMap::from([(0, true), (minutes(14), false), (minutes(20), true)]);
    let end = minutes(40);
    let found = run(&machine, &steady(end), (60, 0), (50, 0, end));
    let right: Vec<_> = values(&found)
        .into_iter()
        .filter(|(at, _)| *at <= BOOT + end)
        .collect();
    let late = right.iter().filter(|(at, _)| *at > BOOT + minutes(14));
    assert_eq!(late.clone().count(), 25, "{right:?}");
    for (at, value) in late {
        assert!(value.abs_diff((at - BOOT) / SECOND) <= 1, "{at}: {value}");
    }
}

#[test]
fn boundaries_during_a_loss_of_synchronisation_follow_when_it_is_over() {
    let mut machine = synchronised_at(0, 0);
    machine.synchronised = BTreeMap::from([(0, true), (minutes(5), false), (minutes(20), true)]);
    // The clock has drifted by 3 s meanwhile.
    machine.wrong = BTreeMap::from([(minutes(6), 3000), (minutes(20), 0)]);
    let end = minutes(25);
    let found = run(&machine, &steady(end), (60, 0), (50, 0, end));
    let values = values(&found);
    let expected: Vec<_> = (0..25).map(|minute| BOOT + minutes(minute)).collect();
    assert_eq!(
        values.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        expected
    );
    for (at, value) in values {
        assert!(value.abs_diff((at - BOOT) / SECOND) <= 1, "{at}: {value}");
    }
}

#[test]
fn a_period_that_becomes_known_late_finds_the_boundaries_before_it() {
    let machine = synchronised_at(0, 0);
    let end = minutes(5);
    let found = run(&machine, &steady(end), (60, minutes(3) + 7), (50, 0, end));
    let expected: Vec<_> = (0..5).map(|i| (BOOT + minutes(i), i * 60)).collect();
    assert_eq!(values(&found), expected);
}

#[test]
fn what_passed_before_a_suspension_is_given_up() {
    let mut machine = synchronised_at(minutes(9), -1_000_000);
    machine.suspended = Some((minutes(4) + 20 * SECOND, minutes(60)));
    let end = minutes(12);
    let found = run(&machine, &steady(end), (60, 0), (50, 0, end));
    let resumed = BOOT + minutes(64);
    let values = values(&found);
    assert_eq!(
        values.first().map(|(at, _)| *at),
        Some(resumed + minutes(1))
    );
    assert_eq!(values.len(), 7);
}

#[test]
fn what_passed_before_a_clock_that_counted_as_right_was_stepped_is_given_up() {
    let mut machine = synchronised_at(0, 0);
    machine.wrong = BTreeMap::from([(0, -3_600_000), (minutes(5) + 20 * SECOND, 0)]);
    let end = minutes(10);
    let found = run(&machine, &steady(end), (60, minutes(7)), (50, 0, end));
    let expected: Vec<_> = (6..10).map(|i| (BOOT + minutes(i), i * 60)).collect();
    assert_eq!(values(&found), expected);
}

#[test]
fn a_boundary_never_has_less_than_one_before_it() {
    let mut machine = synchronised_at(0, 0);
    // The clock is set back by five minutes, which is noticed later and put right at last.
    machine.wrong = BTreeMap::from([(minutes(10), -300_000), (minutes(16), 0)]);
    machine.synchronised = BTreeMap::from([(0, true), (minutes(14), false), (minutes(16), true)]);
    let end = minutes(20);
    let found = run(&machine, &steady(end), (60, minutes(10) + 1), (50, 0, end));
    let values = values(&found);
    assert!(values.is_sorted(), "{values:?}");
    assert!(values.is_sorted_by_key(|(_, value)| *value), "{values:?}");
    assert_eq!(values.last(), Some(&(BOOT + minutes(19), 19 * 60)));
}

/// What the one channel had at a boundary of a wrong clock is not joined with what the other
/// one has at that of the right clock.
#[test]
fn a_value_of_a_wrong_clock_does_not_wait_for_a_slower_channel() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = register(directory.path(), 2);
    register.set_period(period(10));
    let mut record = |channel: usize, at: u64, utc: u64, synchronised: bool| {
        let utc = Timestamp(BOOT + utc);
        let monotonic = Duration::from_millis(at - SECOND)..Duration::from_millis(at);
        let batch = Batch::new(
            Channel(channel),
            utc.minus(1000 * MS)..utc,
            monotonic,
            Pulses(1),
        );
        let now = Moment {
            monotonic: Duration::from_millis(at),
            utc: Duration::from_millis(utc.0),
            synchronised,
            suspended: Duration::ZERO,
        };
        register.record(&batch.unwrap(), &now).unwrap()
    };
    // Ahead by 4 s; 10 s after the boot is a boundary.
    assert_eq!(record(0, 6 * SECOND, 10 * SECOND, true), []);
    assert_eq!(record(0, 7 * SECOND, 11 * SECOND, false), []);
    let mut found = Vec::new();
    for at in 8..=10 {
        found.extend(record(0, at * SECOND, at * SECOND, true));
        found.extend(record(1, at * SECOND, at * SECOND, true));
    }
    assert_eq!(values(&found), [(BOOT + 10 * SECOND, 5)]);
}

/// A device that had counted 10 000 kWh unseen shows it in the middle of the trail.
#[test]
fn no_boundary_lies_between_the_old_and_the_new_total_of_a_device() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = register(directory.path(), 1);
    register.set_period(period(1));
    let unsynchronised = |at: u64| Moment {
        monotonic: Duration::from_millis(at),
        utc: Duration::from_millis(at),
        synchronised: false,
        suspended: Duration::ZERO,
    };
    let mut record = |from: u64, until: u64, pulses: u64, is_catching_up: bool| {
        let monotonic = Duration::from_millis(from)..Duration::from_millis(until);
        let utc = Timestamp(from)..Timestamp(until);
        let batch = Batch::new(Channel(0), utc, monotonic, Pulses(pulses)).unwrap();
        let batch = if is_catching_up {
            batch.catching_up()
        } else {
            batch
        };
        register.record(&batch, &unsynchronised(until)).unwrap()
    };
    let mut found = record(1000, 2000, 1, false);
    found.extend(record(2000, 2450, 1, false));
    found.extend(record(2499, 2500, 10_000_000, true));
    found.extend(record(2500, 3000, 1, false));
    found.extend(record(3000, 4000, 1, false));
    assert_eq!(found, []);
    for phase in [0, 300, 490, 510, 700] {
        let mut now = unsynchronised(4000);
        (now.utc, now.synchronised) = (Duration::from_millis(BOOT + 4000 + phase), true);
        found.extend(register.observe(&now));
    }
    assert!(!found.is_empty());
    for (at, value) in values(&found) {
        assert!(value > 10_000_000, "{at}: {value}");
    }
}

fn histories() -> impl Strategy<Value = (Machine, u64, u64)> {
    let steps = prop::collection::btree_map(0u64..200_000, -5_000_000i64..5_000_000, 0..4);
    let suspended = prop::option::of((1000u64..250_000, 2000u64..600_000));
    // When UTC is set, for how long that goes unnoticed, and when the period is known.
    (steps, suspended, 0u64..250_000, 0u64..5000, 0u64..300_000).prop_map(
        |(mut wrong, suspended, set, lag, known)| {
            wrong.retain(|at, _| *at < set);
            wrong.insert(set, 0);
            let synchronised = BTreeMap::from([(set + lag, true)]);
            let machine = Machine {
                wrong,
                synchronised,
                suspended,
            };
            (machine, set, known)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A boundary has the total of its moment, as precisely as a second, and after the start or
    /// the suspension none is left out that may be useful.
    #[test]
    fn values_are_those_of_the_true_time(
        (machine, set, known) in histories(),
        mut pulses in prop::collection::vec(0u64..300_000, 0..300),
        seconds in prop::sample::select(vec![5u32, 15, 60]),
        tick in prop::sample::select(vec![50u64, 90, 270]),
        delay in 0u64..4000,
    ) {
        pulses.sort_unstable();
        let end = 300_000;
        let found = run(&machine, &pulses, (seconds, known), (tick, delay, end));
        prop_assert!(found.is_sorted_by(|one, next| one.at < next.at));
        for (at, value) in values(&found) {
            let Some(moment) = machine.monotonic(at).or(machine.monotonic(at + SECOND)) else {
                return Err(TestCaseError::fail(format!("{at} passed during the suspension")));
            };
            let least = before(&pulses, moment.saturating_sub(SECOND));
            let most = before(&pulses, moment + SECOND);
            prop_assert!((least..=most).contains(&value), "{least} {value} {most} at {moment}");
        }
        let slack = delay + 2 * tick + 200;
        let begin = machine.suspended.map_or(0, |(when, _)| when) + slack;
        let known = known.max(set + 5000);
        let step = u64::from(seconds) * SECOND;
        let at: Vec<u64> = found.iter().map(|boundary| boundary.at.0).collect();
        for moment in (0..end - slack).step_by(usize::try_from(tick).unwrap()) {
            let utc = machine.true_utc(moment).next_multiple_of(step);
            let Some(moment) = machine.monotonic(utc) else { continue };
            let is_covered = moment >= begin && moment + slack < end;
            if is_covered && known < end && moment + 30 * step > known {
                prop_assert!(at.contains(&utc), "{utc} is missing, at {moment}");
            }
        }
    }
}

/// Delivers what a test gives it.
struct Given(mpsc::Receiver<Batch>);

impl PulseSource for Given {
    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            match self.0.recv().await {
                Some(batch) => Ok(batch),
                None => std::future::pending().await,
            }
        })
    }
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    done.unwrap_or_else(|_| panic!("it took too long until {what}"))
}

/// Twenty seconds with a pulse each, counted under a clock of the year 2001.
#[tokio::test(flavor = "multi_thread")]
async fn counting_gives_boundaries_their_values_once_the_clock_is_synchronised() {
    let directory = tempfile::tempdir().unwrap();
    let synchronised = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&synchronised);
    let (source, batches) = mpsc::channel(100);
    let (sender, mut boundaries) = mpsc::channel(100);
    let (stop, stopped) = oneshot::channel::<()>();
    let counted = watch::Sender::new(Counted::default());
    let mut seen = counted.subscribe();
    let (now, utc) = clock::both();
    // Boundaries lie on points of the trail, so that their values are exact.
    let end = now - Duration::from_nanos(u64::from(utc.subsec_nanos()));
    let round = watch::Sender::new(period(5));
    let task = tokio::spawn(count(
        register(directory.path(), 1),
        vec![Box::new(Given(batches))],
        SavePolicy::default(),
        Rounds {
            period: round.subscribe(),
            clock: Clock::with(move || flag.load(Ordering::Relaxed)),
            boundaries: sender,
        },
        Watching {
            counted,
            ..Watching::default()
        },
        async {
            let _ = stopped.await;
        },
    ));
    for second in 0..20_u32 {
        let until = end - (19 - second) * 1000 * MS;
        let wrong = 1_000_000_000_000 + u64::from(second) * SECOND;
        let batch = Batch::new(
            Channel(0),
            Timestamp(wrong)..Timestamp(wrong + SECOND),
            until - 1000 * MS..until,
            Pulses(1),
        );
        source.send(batch.unwrap()).await.unwrap();
    }
    soon(
        "all is counted",
        seen.wait_for(|counted| {
            counted
                .channels
                .first()
                .is_some_and(|channel| channel.pulses == Pulses(20))
        }),
    )
    .await
    .unwrap();
    assert!(boundaries.try_recv().is_err(), "nobody knows UTC");
    synchronised.store(true, Ordering::Relaxed);
    let last_second = u64::try_from(utc.as_millis()).unwrap() / SECOND * SECOND;
    let mut found = Vec::new();
    for _ in 0..4 {
        found.push(
            soon("there is a boundary", boundaries.recv())
                .await
                .unwrap(),
        );
    }
    for (at, value) in values(&found) {
        assert_eq!(at % (5 * SECOND), 0);
        assert_eq!(value, 20 - (last_second - at) / SECOND);
    }
    assert!(found.is_sorted_by(|one, next| one.at < next.at));
    // Time goes on under the right clock.
    for second in 0..5_u32 {
        let from = end + second * 1000 * MS;
        let utc = Timestamp(last_second + u64::from(second) * SECOND);
        let batch = Batch::new(
            Channel(0),
            utc..utc.plus(1000 * MS),
            from..from + 1000 * MS,
            Pulses(1),
        );
        source.send(batch.unwrap()).await.unwrap();
    }
    let next = soon("there is a boundary", boundaries.recv())
        .await
        .unwrap();
    assert_eq!(next.at, found[3].at.plus(5000 * MS));
    assert_eq!(next.channels[0].0, found[3].channels[0].0 + 5000);
    drop(stop);
    assert_eq!(task.await.unwrap().unwrap().totals(), [Pulses(25)]);
}
