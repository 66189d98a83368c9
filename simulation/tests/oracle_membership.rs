//! The oracle over runs whose membership changes: exits of honest and of corrupted meters,
//! revocations, lapses true and false, meters that lost their state and join anew, new
//! draws, and another key of the provider, between rounds and in the middle of them.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::meter::MeterCommand;
use dcnet::output::Input;
use simulation::network::{Faults, Network};
use simulation::oracle::account::Answer;
use simulation::oracle::changes::{ALL, Change};
use simulation::oracle::hostile::{Blocked, Hostile};
use simulation::oracle::membership;
use simulation::oracle::moves::Move;
use simulation::oracle::scenario::Report;
use simulation::oracle::trace::Trace;
use simulation::oracle::verdict::{Finding, Sum};
use simulation::world::{World, policy};

fn check(reports: impl IntoIterator<Item = Report>) -> Vec<Report> {
    let reports: Vec<Report> = reports.into_iter().collect();
    for report in &reports {
        println!("{report}");
        assert!(report.holds(), "{report}");
    }
    reports
}

fn learnt(reports: &[Report]) -> usize {
    let verdicts = reports.iter().flat_map(|report| &report.verdicts);
    verdicts.map(|verdict| verdict.learnt).sum()
}

fn changes(reports: &[Report]) -> BTreeMap<&'static str, usize> {
    let mut all = BTreeMap::new();
    for (what, times) in reports.iter().flat_map(|report| &report.changes) {
        *all.entry(*what).or_insert(0) += times;
    }
    all
}

#[test]
fn with_an_honest_provider_only_sums_follow_whoever_comes_and_goes() {
    let reports = check((0..8).map(membership::honest));
    println!("{} functions, {:?}", learnt(&reports), changes(&reports));
    assert!(learnt(&reports) >= 60, "hardly a round was complete");
    for (what, times) in changes(&reports) {
        assert!(times > 0, "no {what}");
    }
}

#[test]
fn with_a_hostile_provider_only_sums_follow_whoever_comes_and_goes() {
    let reports = check((0..12).map(membership::hostile));
    println!("{} functions, {:?}", learnt(&reports), changes(&reports));
    assert!(learnt(&reports) >= 60, "hardly a round was complete");
    for (what, times) in changes(&reports) {
        assert!(times > 0, "no {what}");
    }
}

#[test]
fn no_change_helps_a_provider_that_wants_a_small_sum() {
    let lies = [Move::LeaveAlmostAlone, Move::DenyEdges, Move::OldHead];
    for change in ALL {
        let runs = lies
            .iter()
            .map(|lie| membership::hostile_only(300, change, *lie));
        check(runs);
    }
}

/// With everybody drawn by everybody, one full edge less than L is one meter less in a sum.
#[test]
fn false_lapses_that_last_do_not_lower_the_bound() {
    let runs = (500..506)
        .map(|seed| membership::hostile_only(seed, Change::FalseLapse, Move::LeaveAlmostAlone));
    let reports = check(runs);
    assert!(changes(&reports)["lapses"] > 6, "{:?}", changes(&reports));
}

/// The bound counts fewer neighbours once some of a draw have left, and is reached.
#[test]
fn the_bound_is_reached_after_exits() {
    let runs = (400..404)
        .map(|seed| membership::hostile_only(seed, Change::Exodus, Move::LeaveAlmostAlone));
    let reports = check(runs);
    let verdicts = reports.iter().flat_map(|report| &report.verdicts);
    let sums = verdicts.flat_map(|verdict| &verdict.sums);
    let slack = sums.map(|sum| sum.meters.len() - sum.bound).min();
    println!("slack {slack:?}, {:?}", changes(&reports));
    assert!(slack.is_some_and(|slack| slack <= 1), "{slack:?}");
    assert!(changes(&reports)["answers with fewer than were drawn"] > 0);
}

const MINUTE: u64 = 60_000;

/// Nine meters, of which the last three leave after two rounds.
fn three_left() -> Trace {
    let world = World::new(9, policy(4), &["import"]);
    let mut trace = Trace::new(Network::new(world, Faults::default(), 1));
    trace.run_until(3 * MINUTE + MINUTE / 2);
    for meter in 6..9 {
        let leave = Input::Command(MeterCommand::Leave);
        trace.network.input_meter(meter, leave);
    }
    trace.run_until(6 * MINUTE + MINUTE / 2);
    trace
}

#[test]
fn corrupted_meters_that_have_left_see_nothing_of_later_rounds() {
    let account = three_left().account(1);
    let verdict = account.judge(&BTreeSet::from([6, 7, 8]));
    assert_eq!(verdict.findings, []);
    let after: Vec<_> = account.answers.iter().filter(|a| a.departed == 3).collect();
    assert!(after.len() >= 12, "{verdict}");
    // d = 5 of 8 drawn, so L = 3, and none of the corrupted is among the full edges.
    assert!(after.iter().all(|answer| answer.required == 3));
    assert!(
        after
            .iter()
            .all(|answer| answer.full.iter().all(|peer| *peer < 6))
    );
    let late = |sum: &&Sum| after.iter().any(|answer| answer.round == sum.round);
    let bounds = verdict.sums.iter().filter(late).map(|sum| sum.bound);
    assert!(bounds.clone().count() >= 2 && bounds.clone().all(|bound| bound == 4));
}

/// The same bytes, judged for more corrupted meters than a net that has shrunk can bear.
#[test]
fn whoever_knows_the_rest_of_a_shrunk_net_learns_the_last_meters_readings() {
    let account = three_left().account(1);
    let rest: BTreeSet<usize> = (1..6).collect();
    let exposed = account.judge(&rest);
    let alone = |finding: &&Finding| matches!(finding, Finding::Alone { meter: 0, .. });
    let found = exposed.findings.iter().filter(alone).count();
    let after = |answer: &&Answer| answer.meter == 0 && answer.departed == 3;
    let rounds = account.answers.iter().filter(after).count();
    assert!(rounds >= 2 && found == rounds, "{exposed}");
    // Before the exits, 6 to 8 hid it.
    assert!(
        exposed
            .sums
            .iter()
            .any(|sum| sum.meters == BTreeSet::from([0, 6, 7, 8]))
    );
    assert!(account.within_assumption(rest).len() < 5);
}

/// Ten meters that drew each other, two of them falsely marked as lapsed for good: L stays
/// 6 of d = 9, so the smallest sum that the provider gets is over seven.
#[test]
fn two_of_ten_that_have_lapsed_still_count() {
    let mut world = World::new(10, policy(4), &["import"]);
    for meter in &mut world.meters {
        meter.floors.minimum_presence = 0;
    }
    let network = Network::new(world, Faults::default(), 1);
    let blocked = Blocked {
        rosters: true,
        ..Blocked::default()
    };
    let mut provider = Hostile::new(network, blocked, BTreeSet::new(), 1);
    provider.trace.run_until(2 * MINUTE + MINUTE / 2);
    provider.blocked.borrow_mut().draws = true;
    assert!(provider.trace.network.lapse(3) && provider.trace.network.lapse(7));
    provider.trace.run_until(3 * MINUTE + MINUTE / 5);
    let round = provider.trace.network.last_round();
    provider.play(Move::LeaveAlmostAlone, round);
    provider.trace.run_until(3 * MINUTE + MINUTE / 2);
    let verdict = provider.trace.account(1).judge(&BTreeSet::new());
    assert_eq!(verdict.findings, [], "{verdict}");
    let of_round = |sum: &&Sum| sum.round == round;
    let sums: Vec<&Sum> = verdict.sums.iter().filter(of_round).collect();
    assert_eq!(sums.len(), 1, "{verdict}");
    assert_eq!((sums[0].meters.len(), sums[0].bound), (7, 7));
}
