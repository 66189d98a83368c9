//! Plays a plan: faults first, then a quiet time in which the net must recover.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use dcnet::time::{DAY_MS, Round};

use crate::fault::Fault;
use crate::inject::Injector;
use crate::invariant::{Invariant, Report};
use crate::liveness::{self, Expected};
use crate::network::Network;
use crate::plan::{Choice, Plan, ROUND};
use crate::watch::Watch;
use crate::world::{World, floors};

/// Rounds of the quiet time before it is asked why some are not complete.
const QUIET_ROUNDS: u64 = 8;

/// How long a run sleeps until every round of before is closed.
const UNTIL_CLOSED: u64 = DAY_MS + 20 * ROUND;

/// An hour in milliseconds.
const HOUR: u64 = 60 * ROUND;

/// Events after which a run is taken for endless, per meter and plan's minute.
const EVENTS: u64 = 20_000;

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was checked, and what did not hold.
    pub report: Report,
    /// How often each kind of fault happened.
    pub injected: BTreeMap<&'static str, u64>,
    /// Why liveness was not asked of meters or of the whole net, and how often.
    pub excused: BTreeMap<&'static str, u64>,
    /// Rounds with an aggregate.
    pub sums: u64,
    /// Events.
    pub events: u64,
    /// Whether the net needed a day to recover.
    pub needed_a_day: bool,
    /// Wall time of one quiet round.
    pub round_time: Duration,
    /// What happened, in lines, if that was asked for.
    pub story: Vec<String>,
}

impl Outcome {
    /// Whether an invariant was violated.
    pub fn failed(&self) -> bool {
        !self.report.violations.is_empty()
    }
}

struct Run<'a> {
    plan: &'a Plan,
    network: Network,
    injector: Injector,
    watch: Watch,
    outcome: Outcome,
    /// How much later everything is than planned, because days have passed.
    later: u64,
}

/// Moments of a fault, in the order in which they come at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    End,
    Image,
    Begin,
}

fn moments(plan: &Plan) -> Vec<(u64, Moment, usize)> {
    let mut moments = Vec::new();
    for (number, injection) in plan.faults.iter().enumerate() {
        let at = injection.at;
        moments.push((at, Moment::Begin, number));
        match &injection.fault {
            Fault::OldDisk { back, .. } => {
                moments.push((at.saturating_sub(*back), Moment::Image, number));
            }
            Fault::Partition { lasts, .. }
            | Fault::BrokerRestart { lasts }
            | Fault::ClockStep { lasts, .. }
            | Fault::ClockDrift { lasts, .. }
            | Fault::Unsynchronised { lasts, .. }
            | Fault::ProviderClockStep { lasts, .. }
            | Fault::ProviderClockDrift { lasts, .. }
            | Fault::Withhold { lasts, .. } => moments.push((at + lasts, Moment::End, number)),
            _ => {}
        }
    }
    moments.sort_unstable();
    moments
}

/// Plays a plan. A panic of a machine is a violation, too.
///
/// # Panics
/// If the plan itself is impossible, as one for fewer than five meters.
pub fn run(plan: &Plan, story: bool) -> Outcome {
    let names: Vec<&str> = ["import", "export"]
        .into_iter()
        .take(plan.channels)
        .collect();
    let mut world = World::seeded(plan.meters, plan.policy, &names, plan.seed);
    for meter in &mut world.meters {
        meter.floors = floors(plan.policy.minimum_group);
        meter.floors.exclusions_per_day = plan.exclusions_per_day;
    }
    world.provider.lapse_after = Some(Duration::from_millis(DAY_MS));
    let mut network = Network::traced(world, plan.seed, plan.begin);
    let injector = Injector::new(&mut network, Choice::new(plan.seed, 0xa5));
    let watch = Watch::new(&network, story);
    let mut run = Run {
        plan,
        network,
        injector,
        watch,
        outcome: Outcome::default(),
        later: 0,
    };
    let played = catch_unwind(AssertUnwindSafe(|| run.play()));
    let time = run.watch.time(&run.network);
    let survived = played.is_ok();
    run.watch
        .history
        .report
        .check(Invariant::Survival, time, survived, || {
            let payload = played.err();
            let text = payload.as_ref().and_then(|payload| {
                let owned = payload.downcast_ref::<String>().map(String::as_str);
                owned.or_else(|| payload.downcast_ref::<&str>().copied())
            });
            format!("a process panics: {}", text.unwrap_or("no message"))
        });
    run.finish()
}

impl Run<'_> {
    fn play(&mut self) {
        for (time, moment, number) in moments(self.plan) {
            if !self.until(self.plan.begin + self.later + time) {
                return;
            }
            let fault = &self.plan.faults[number].fault;
            let (network, watch) = (&mut self.network, &mut self.watch);
            match moment {
                Moment::Image => self.injector.take_image(number, fault, network),
                Moment::Begin => self.injector.begin(number, fault, network, watch),
                Moment::End => self.injector.end(number, fault, network, watch),
            }
            self.look();
            if let (Moment::Begin, Fault::Absence { meter }) = (moment, fault)
                && !self.a_day(*meter)
            {
                return;
            }
        }
        let end = self.plan.begin + self.later + self.plan.length();
        if self.until(end.max(self.network.now)) {
            self.recover();
        }
        let registers: Vec<Vec<u64>> = (0..self.plan.meters)
            .map(|meter| self.network.register(meter).to_vec())
            .collect();
        let time = self.watch.time(&self.network);
        self.watch.history.conserve(time, &registers);
    }

    /// More than a day in which a meter is away and the others have a few rounds, shortly
    /// before its end: the provider, which looks once an hour, then misses that one alone.
    fn a_day(&mut self, absent: usize) -> bool {
        let begin = self.network.now;
        let was_online = self.network.online[absent];
        self.network.set_online(absent, false);
        self.network.asleep.fill(true);
        let quiet = self.until(begin + 23 * HOUR);
        self.network.asleep.fill(false);
        self.network.asleep[absent] = true;
        let awake = quiet && self.until(begin + 23 * HOUR + 4 * ROUND);
        self.network.asleep.fill(true);
        let over = awake && self.until(begin + 26 * HOUR);
        self.network.asleep.fill(false);
        self.network.set_online(absent, was_online);
        self.later += self.network.now - begin;
        over
    }

    fn look(&mut self) {
        loop {
            let new = self.watch.observe(&self.network);
            self.injector.look(&mut self.network, &mut self.watch, &new);
            if new.is_empty() {
                return;
            }
        }
    }

    /// Goes on to a time and looks at every event; false if there is no end of them.
    fn until(&mut self, end: u64) -> bool {
        let minutes = self.plan.rounds + 30;
        let meters = u64::try_from(self.plan.meters).unwrap_or(u64::MAX);
        while self.network.step(end) {
            self.outcome.events += 1;
            self.look();
            if self.outcome.events > EVENTS * minutes * meters {
                let time = self.watch.time(&self.network);
                let report = &mut self.watch.history.report;
                report.check(Invariant::Survival, time, false, || {
                    "messages cause messages without end".to_owned()
                });
                return false;
            }
        }
        true
    }

    /// Past the window of the next round that ends.
    fn one_round(&mut self) -> bool {
        let next = (self.network.now / ROUND + 1) * ROUND;
        self.until(next + 40_000)
    }

    fn recover(&mut self) {
        self.injector.heal(&mut self.network, &mut self.watch);
        self.watch
            .tell(&self.network, || "*** all faults are over".to_owned());
        self.look();
        let begun = Instant::now();
        let mut rounds = 0;
        while rounds < QUIET_ROUNDS && !(rounds > 1 && self.complete(&self.expected(false))) {
            if !self.one_round() {
                return;
            }
            rounds += 1;
        }
        self.outcome.round_time = begun.elapsed() / u32::try_from(rounds).unwrap_or(1);
        if self.complete(&self.expected(false)) {
            return self.judge(false);
        }
        self.judge(true);
        self.outcome.needed_a_day = true;
        self.watch
            .tell(&self.network, || "*** a day without readings".to_owned());
        self.network.asleep.fill(true);
        if !self.until(self.network.now + UNTIL_CLOSED) {
            return;
        }
        self.network.asleep.fill(false);
        for round in 0..QUIET_ROUNDS {
            if round > 1 && self.complete(&self.expected(false)) {
                break;
            }
            if !self.one_round() {
                return;
            }
        }
        self.judge(false);
        self.nothing_pending();
    }

    fn expected(&self, prompt: bool) -> Expected {
        let rosters: BTreeMap<Round, BTreeSet<usize>> = self
            .network
            .saved_net
            .rosters
            .iter()
            .filter_map(|saved| {
                let log = self.network.provider.membership();
                let roster = dcnet::roster::Roster::verify(&saved.frame, log).ok()?;
                let meter = |member| self.network.meter_of(&log.member(member)?.id);
                Some((roster.round, roster.members().filter_map(meter).collect()))
            })
            .collect();
        let rosters: Vec<BTreeSet<usize>> = rosters.into_values().collect();
        liveness::expected(&self.network, &self.watch.harm, &rosters, prompt)
    }

    /// Those who are missing in the newest round, which should have an aggregate by now.
    fn missing(&self, expected: &Expected) -> BTreeSet<usize> {
        let round = self.network.last_round();
        let aggregate = self.watch.history.aggregate_of(round);
        let included = aggregate.map_or(&[][..], |aggregate| &aggregate.included);
        let mut missing = expected.meters.clone();
        missing.retain(|meter| !included.contains(meter));
        missing
    }

    fn complete(&self, expected: &Expected) -> bool {
        expected.stalled.is_none() && self.missing(expected).is_empty()
    }

    fn judge(&mut self, prompt: bool) {
        let expected = self.expected(prompt);
        if !prompt {
            for reason in expected.excused.values().chain(&expected.stalled) {
                *self.outcome.excused.entry(reason).or_default() += 1;
            }
        }
        for (meter, reason) in &expected.excused {
            let network = &self.network;
            self.watch.tell(network, || {
                format!("*** meter {meter} is excused: {reason}")
            });
        }
        let time = self.watch.time(&self.network);
        if let Some(reason) = expected.stalled {
            return self.watch.tell(&self.network, || {
                format!("*** no rounds asked for: {reason}")
            });
        }
        self.all_returned(&expected);
        let missing = self.missing(&expected);
        let round = self.network.last_round();
        let report = &mut self.watch.history.report;
        report.check(Invariant::Liveness, time, missing.is_empty(), || {
            let late = if prompt { "a few rounds" } else { "a day" };
            format!("{late} after all faults, round {round} has no sum with meters {missing:?}")
        });
    }

    /// Nobody who can take part is still marked as lapsed.
    fn all_returned(&mut self, expected: &Expected) {
        let time = self.watch.time(&self.network);
        for meter in liveness::ever_lapsed(&self.network) {
            let away = liveness::is_away(&self.network, meter);
            if expected.meters.contains(&meter) {
                let report = &mut self.watch.history.report;
                report.check(Invariant::Return, time, !away, || {
                    format!("meter {meter} is still marked as lapsed")
                });
            }
        }
    }

    /// Every round of before the day is over for good.
    fn nothing_pending(&mut self) {
        let log = self.network.provider.membership();
        let today = self.network.last_round().0.saturating_sub(QUIET_ROUNDS + 2);
        let pending: Vec<Round> = self
            .network
            .saved_net
            .rosters
            .iter()
            .filter(|saved| saved.pending)
            .filter_map(|saved| dcnet::roster::Roster::verify(&saved.frame, log).ok())
            .map(|roster| roster.round)
            .filter(|round| round.0 < today)
            .collect();
        let time = self.watch.time(&self.network);
        let report = &mut self.watch.history.report;
        report.check(Invariant::Liveness, time, pending.is_empty(), || {
            format!("rounds {pending:?} are pending after more than a day")
        });
    }

    fn finish(mut self) -> Outcome {
        let newest = self.watch.history.aggregates();
        self.outcome.sums = u64::try_from(newest).unwrap_or(u64::MAX);
        self.outcome.injected = self.injector.injected;
        self.outcome.report = self.watch.history.report;
        self.outcome.story = self.watch.story.unwrap_or_default();
        self.outcome
    }
}
