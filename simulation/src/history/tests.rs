//! Every invariant can fail: a history with one thing wrong in it is reported as just that.

use dcnet::commitment::commit;
use dcnet::identity::DeviceId;
use dcnet::reading::Boundary;
use dcnet::superposition::Share;
use dcnet::time::Timestamp;
use dcnet::units::MilliwattHours;

use super::*;

const ROUND: u64 = 60_000;

/// An opening that only a number tells from others.
fn opening(number: u8) -> Opening {
    let mut bytes = [0; 64];
    (bytes[0], bytes[32]) = (number, number);
    Opening::from_bytes(&bytes).unwrap()
}

fn boundary(round: u64, total: u64) -> Boundary {
    Boundary {
        at: Timestamp(round * ROUND),
        channels: vec![MilliwattHours(total)],
    }
}

/// A meter's submission; its register counts 10 mWh in every round.
fn submission(meter: usize, round: u64, digest: u8) -> SubmissionSeen {
    let reading = opening(10);
    let interval = Interval {
        start: boundary(round, 10 * round),
        end: boundary(round + 1, 10 * (round + 1)),
    };
    let share = Share {
        superposition: reading + opening(100 + digest),
        commitment: commit(&reading),
    };
    SubmissionSeen {
        time: 0,
        meter,
        disk: 0,
        submission: Submission {
            sender: DeviceId([0; 16]),
            round: Round(round),
            log_head: [0; 32],
            minimum_group: 3,
            minimum_neighbours: 3,
            edges: Vec::new(),
            shares: vec![share],
            digest: [digest; 32],
        },
        reading: Some((interval, vec![reading])),
    }
}

fn roster(hash: u8, included: &[(usize, u8)]) -> RosterSeen {
    let included = included.iter();
    RosterSeen {
        time: 0,
        round: Round(1),
        hash: [hash; 32],
        included: included
            .map(|(meter, digest)| (*meter, [*digest; 8]))
            .collect(),
        honest: true,
    }
}

fn reveal(meter: usize, hash: u8) -> RevealSeen {
    RevealSeen {
        time: 0,
        meter,
        disk: 0,
        round: Round(1),
        roster: [hash; 32],
        full: 3,
    }
}

fn aggregate(hash: u8, included: usize, sum: u64) -> AggregateSeen {
    AggregateSeen {
        time: 0,
        round: Round(1),
        roster: [hash; 32],
        included: (0..included).collect(),
        sums: vec![sum],
    }
}

/// Four meters in round 1, on a roster.
fn four() -> History {
    let mut history = History::new(3);
    (0..4).for_each(|meter| history.submission(submission(meter, 1, 1)));
    history.roster(roster(9, &[(0, 1), (1, 1), (2, 1), (3, 1)]));
    history
}

fn violated(history: &History) -> Vec<Invariant> {
    let violations = history.report.violations.iter();
    violations.map(|violation| violation.invariant).collect()
}

#[test]
fn a_history_in_which_all_is_well_has_no_violation() {
    let mut history = four();
    (0..4).for_each(|meter| history.reveal(&reveal(meter, 9)));
    history.aggregate(aggregate(9, 4, 40));
    (0..4).for_each(|meter| history.submission(submission(meter, 2, 2)));
    history.conserve(0, &[vec![30], vec![30], vec![30], vec![30]]);
    assert_eq!(violated(&history), []);
    let fed = [
        Invariant::Truth,
        Invariant::OneRoster,
        Invariant::OneReveal,
        Invariant::Conserved,
    ];
    assert!(fed.iter().all(|checked| history.report.checks[checked] > 0));
}

#[test]
fn a_wrong_sum_and_a_second_sum() {
    let mut history = four();
    history.aggregate(aggregate(9, 4, 41));
    assert_eq!(violated(&history), [Invariant::Truth]);
    history.aggregate(aggregate(9, 4, 40));
    assert_eq!(
        violated(&history),
        [Invariant::Truth, Invariant::OneAggregate]
    );
}

#[test]
fn a_sum_over_others_than_the_roster_lists() {
    let mut history = four();
    history.aggregate(aggregate(9, 3, 40));
    assert_eq!(violated(&history), [Invariant::Truth]);
}

#[test]
fn a_second_roster_unless_it_is_a_lie() {
    let mut history = four();
    let mut lie = roster(8, &[(0, 1), (1, 1), (2, 1)]);
    lie.honest = false;
    history.roster(lie);
    assert_eq!(violated(&history), []);
    history.roster(roster(7, &[(0, 1), (1, 1), (2, 1)]));
    assert_eq!(violated(&history), [Invariant::OneRoster]);
}

#[test]
fn a_sum_and_a_reveal_for_too_few() {
    let mut history = four();
    history.roster(RosterSeen {
        honest: false,
        ..roster(8, &[(0, 1), (1, 1)])
    });
    history.reveal(&reveal(0, 8));
    assert_eq!(violated(&history), [Invariant::Group]);

    let mut history = History::new(3);
    (0..2).for_each(|meter| history.submission(submission(meter, 1, 1)));
    history.roster(roster(9, &[(0, 1), (1, 1)]));
    history.aggregate(aggregate(9, 2, 20));
    assert_eq!(violated(&history), [Invariant::Group]);
}

#[test]
fn a_commitment_to_something_else() {
    let mut history = four();
    let mut wrong = submission(4, 1, 1);
    wrong.reading = None;
    history.submission(wrong);
    assert_eq!(violated(&history), [Invariant::Reading]);
}

#[test]
fn a_second_submission_of_one_disk_but_not_of_one_that_forgot() {
    let mut history = four();
    let mut forgetful = submission(0, 1, 2);
    forgetful.disk = 1;
    history.submission(forgetful);
    assert_eq!(violated(&history), []);
    history.submission(submission(1, 1, 2));
    let both = [Invariant::OneSubmission, Invariant::OneInterval];
    assert_eq!(violated(&history), both);
}

#[test]
fn a_time_of_the_register_in_two_rounds() {
    let mut history = four();
    let mut later = submission(0, 2, 2);
    if let Some((interval, _)) = &mut later.reading {
        interval.start = boundary(2, 19);
    }
    history.submission(later);
    assert_eq!(violated(&history), [Invariant::OneInterval]);
}

#[test]
fn a_mask_that_is_used_again_even_by_a_disk_that_forgot() {
    let mut history = four();
    let mut again = submission(0, 1, 2);
    again.disk = 1;
    again.submission.shares[0].superposition = opening(10) + opening(101);
    history.submission(again);
    assert_eq!(violated(&history), [Invariant::FreshMasks; 2]);
}

#[test]
fn a_second_reveal_of_one_disk_but_not_of_one_that_forgot() {
    let mut history = four();
    let mut lie = roster(8, &[(0, 1), (1, 1), (2, 1)]);
    lie.honest = false;
    history.roster(lie);
    history.reveal(&reveal(0, 9));
    history.reveal(&RevealSeen {
        disk: 1,
        ..reveal(0, 8)
    });
    assert_eq!(violated(&history), []);
    history.reveal(&reveal(0, 8));
    assert_eq!(violated(&history), [Invariant::OneReveal]);
}

#[test]
fn a_reveal_for_another_submission_or_with_too_few_full_edges_or_for_no_roster() {
    let mut history = four();
    history.reveal(&RevealSeen {
        full: 2,
        ..reveal(0, 9)
    });
    history.reveal(&reveal(5, 9));
    history.reveal(&reveal(1, 1));
    assert_eq!(violated(&history), [Invariant::RevealChecked; 3]);
}

#[test]
fn more_energy_than_the_registers_counted() {
    let mut history = four();
    history.aggregate(aggregate(9, 4, 40));
    history.conserve(0, &[vec![9], vec![10], vec![10], vec![10]]);
    assert_eq!(violated(&history), [Invariant::Conserved; 2]);
}
