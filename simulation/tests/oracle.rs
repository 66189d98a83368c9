//! The oracle over real runs: what a provider and corrupted meters learn of meters that run
//! the real protocol.

use std::collections::BTreeSet;

use simulation::network::{Faults, Network};
use simulation::oracle::moves::{MOVES, Move};
use simulation::oracle::scenario::{self, Report};
use simulation::oracle::trace::Trace;
use simulation::oracle::verdict::Finding;
use simulation::world::{World, policy};

fn check(reports: impl IntoIterator<Item = Report>) -> Vec<Report> {
    let reports: Vec<Report> = reports.into_iter().collect();
    for report in &reports {
        println!("{report}");
    }
    for report in &reports {
        assert!(report.holds(), "{report}");
    }
    reports
}

fn learnt(reports: &[Report]) -> usize {
    let verdicts = reports.iter().flat_map(|report| &report.verdicts);
    verdicts.map(|verdict| verdict.learnt).sum()
}

/// How many meters the tightest sum has more than it must.
fn slack(reports: &[Report]) -> Option<usize> {
    let verdicts = reports.iter().flat_map(|report| &report.verdicts);
    let sums = verdicts.flat_map(|verdict| &verdict.sums);
    sums.map(|sum| sum.meters.len() - sum.bound).min()
}

#[test]
fn with_an_honest_provider_only_sums_over_rosters_follow() {
    let reports = check((0..6).map(scenario::faulty));
    assert!(learnt(&reports) >= 60, "hardly a round was complete");
}

#[test]
fn with_a_hostile_provider_only_sums_over_accepted_rosters_follow() {
    let reports = check((0..12).map(scenario::hostile));
    assert!(learnt(&reports) >= 60, "hardly a round was complete");
}

fn each(moves: &[Move], seeds: std::ops::Range<u64>) {
    for only in moves {
        check(
            seeds
                .clone()
                .map(|seed| scenario::hostile_only(seed, *only)),
        );
    }
}

#[test]
fn no_single_lie_works_again_and_again() {
    let (lies, _) = MOVES.split_at(MOVES.len() / 2);
    each(lies, 100..101);
}

#[test]
fn no_other_lie_works_again_and_again() {
    let (_, lies) = MOVES.split_at(MOVES.len() / 2);
    each(lies, 100..101);
}

#[test]
fn the_bound_is_reached() {
    let moves = [Move::LeaveAlmostAlone, Move::DenyEdges, Move::Isolate];
    let runs = moves
        .iter()
        .flat_map(|only| (200..204).map(|seed| scenario::hostile_only(seed, *only)));
    let reports = check(runs);
    let slack = slack(&reports);
    println!("slack {slack:?}");
    assert!(slack.is_some_and(|slack| slack <= 1), "{slack:?}");
}

const MINUTE: u64 = 60_000;

/// Six meters after three complete rounds.
fn six_meters() -> Trace {
    let network = Network::new(World::new(6, policy(4), &["import"]), Faults::default(), 1);
    let mut trace = Trace::new(network);
    trace.run_until(3 * MINUTE + MINUTE / 2);
    trace
}

#[test]
fn whoever_knows_all_but_one_meter_learns_its_readings_from_the_same_bytes() {
    let account = six_meters().account(1);
    let honest = account.judge(&BTreeSet::from([4, 5]));
    assert_eq!(honest.findings, []);
    assert_eq!(honest.learnt, account.answers.len() / 6);
    // More than 60 % of the neighbours of meter 0.
    let exposed = account.judge(&(1..6).collect());
    let alone = |finding: &&Finding| matches!(finding, Finding::Alone { meter: 0, .. });
    let rounds = exposed.findings.iter().filter(alone).count();
    assert_eq!(rounds, honest.learnt, "{exposed}");
    assert!(account.within_assumption((1..6).collect()).len() < 5);
}

#[test]
fn bytes_whose_secrets_were_not_seen_are_reported() {
    let mut trace = six_meters();
    // Past the recorder.
    trace.network.run_until(5 * MINUTE);
    let verdict = trace.account(1).judge(&BTreeSet::new());
    let unexplained = |finding: &Finding| matches!(finding, Finding::Unexplained(_));
    assert!(verdict.findings.iter().any(unexplained), "{verdict}");
}
