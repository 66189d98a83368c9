//! The oracle over real runs: what a provider and corrupted meters learn of meters that run
//! the real protocol.

use simulation::oracle::hostile::{MOVES, Move};
use simulation::oracle::scenario::{self, Report};

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
