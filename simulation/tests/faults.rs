//! Single faults do what their names say, and the net gets over them.

use dcnet::alarm::Alarm;
use simulation::fault::{Fault, Injection};
use simulation::invariant::Invariant;
use simulation::liveness;
use simulation::network::Network;
use simulation::plan::{Plan, Sizes};
use simulation::run::{Outcome, run};
use simulation::world::{World, policy};

const HOUR: i64 = 3_600_000;

/// A plan of a seed with these faults alone, in the fifth minute.
fn only(seed: u64, faults: impl IntoIterator<Item = Fault>) -> Plan {
    let mut plan = Plan::new(seed, Sizes::default());
    let at = 5 * 60_000 + 30_000;
    let faults = faults.into_iter().map(|fault| Injection { at, fault });
    plan.faults = faults.collect();
    plan
}

fn play(plan: &Plan) -> Outcome {
    let outcome = run(plan, true);
    assert!(!outcome.failed(), "{plan}{:#?}", outcome.report.violations);
    outcome
}

fn told(outcome: &Outcome, what: &str) -> usize {
    outcome
        .story
        .iter()
        .filter(|line| line.contains(what))
        .count()
}

#[test]
fn who_is_away_for_a_day_lapses_alone_and_comes_back_by_its_own_draw() {
    for seed in 0..3 {
        let mut plan = only(seed, [Fault::Absence { meter: 2 }]);
        // In a sparse net others cannot take part without it, and lapse as well.
        plan.policy.degree = u32::try_from(plan.meters - 1).unwrap();
        let outcome = play(&plan);
        assert_eq!(told(&outcome, "provider: Lapsed"), 1, "{plan}");
        assert!(outcome.report.checks[&Invariant::Return] >= 1);
        // The first draw, and the one after the absence.
        assert_eq!(told(&outcome, "meter 2: Drawn"), 2, "{plan}");
    }
}

#[test]
fn who_is_marked_as_lapsed_is_away_until_it_draws() {
    let world = World::new(6, policy(4), &["import"]);
    let mut network = Network::traced(world, 1, 0);
    network.run_until(3 * 60_000 + 40_000);
    assert!(liveness::ever_lapsed(&network).is_empty());
    assert!(network.lapse(3));
    assert!(!network.lapse(3), "nobody lapses twice");
    assert!(!network.lapse(4), "no more than a fifth lapse");
    assert!(liveness::is_away(&network, 3));
    network.run_until(3 * 60_000 + 50_000);
    assert!(!liveness::is_away(&network, 3));
    assert_eq!(liveness::ever_lapsed(&network).len(), 1);
    // It took part a minute ago, and everybody says so.
    let meter = network.meters[3].id();
    for other in 0..6 {
        let alarm = Alarm::FalseLapse { meter };
        assert!(network.alarms(other).contains(&alarm), "meter {other}");
    }
}

#[test]
fn a_provider_without_the_right_time_harms_nobody_for_longer_than_that() {
    for ahead in [-30 * HOUR, -HOUR, -61_000, 900, 59_000, 2 * HOUR, 30 * HOUR] {
        let lasts = 130_000;
        let plan = only(4, [Fault::ProviderClockStep { ahead, lasts }]);
        let outcome = play(&plan);
        assert!(!outcome.needed_a_day, "{ahead} ms ahead");
        assert!(outcome.sums >= 4, "{ahead} ms ahead: {}", outcome.sums);
    }
    for drift in [-40_000, 40_000] {
        let lasts = 150_000;
        play(&only(4, [Fault::ProviderClockDrift { drift, lasts }]));
    }
}
