//! The oracle finds every weakness that `docs/protocol.md` argues against, and nothing in
//! the same scene when the meters obey the rules.

mod played;

use played::{Meters, Played, RIGHT, Roster, Rules};
use simulation::oracle::verdict::{Finding, Verdict};

/// Plays a scene with one rule broken and with all rules kept.
fn compare(weak: Rules, scene: impl Fn(Rules) -> Verdict) -> Verdict {
    let right = scene(RIGHT);
    println!("right: {right}");
    assert!(right.findings.is_empty(), "{right}");
    let weak = scene(weak);
    println!("weak:  {weak}");
    assert!(weak.leaks(), "{weak}");
    weak
}

fn alone(verdict: &Verdict, meter: usize) -> bool {
    let is = |finding: &Finding| matches!(finding, Finding::Alone { meter: found, .. } if *found == meter);
    verdict.findings.iter().any(is)
}

fn beyond(verdict: &Verdict) -> bool {
    let is = |finding: &Finding| matches!(finding, Finding::Beyond { .. });
    verdict.findings.iter().any(is)
}

#[test]
fn a_round_as_it_should_be_gives_one_sum() {
    let mut played = Played::complete(7, RIGHT);
    played.submit_all();
    assert_eq!(played.show_all(&Roster::over("all", 0..7)), 7);
    let verdict = played.judge([5]);
    assert_eq!(verdict.findings, []);
    assert_eq!(verdict.learnt, 1);
    assert_eq!(verdict.sums[0].meters, Meters::from([0, 1, 2, 3, 4, 6]));
    // L = 4 of 6 drawn, one of them corrupted.
    assert_eq!(verdict.sums[0].bound, 4);
}

#[test]
fn without_the_last_reveal_there_is_no_sum() {
    let mut played = Played::complete(7, RIGHT);
    played.submit_all();
    for meter in 0..6 {
        assert!(played.show(meter, &Roster::over("all", 0..7)));
    }
    let verdict = played.judge([]);
    assert_eq!(verdict.findings, []);
    assert_eq!(verdict.learnt, 0);
    // But the last one may be corrupted.
    assert_eq!(played.judge([6]).learnt, 1);
}

/// A meter is said to be absent although its superposition arrived.
fn false_absence(rules: Rules) -> Verdict {
    let mut played = Played::complete(7, rules);
    played.submit_all();
    played.show_all(&Roster::over("without 0", 1..7));
    played.judge([])
}

#[test]
fn the_correction_of_the_thesis_exposes_a_meter_that_is_said_to_be_absent() {
    let weak = Rules {
        self_masks: false,
        reveals: false,
        ..RIGHT
    };
    assert!(alone(&compare(weak, false_absence), 0));
}

#[test]
fn reveals_without_self_masks_expose_a_meter_that_is_said_to_be_absent() {
    let weak = Rules {
        self_masks: false,
        ..RIGHT
    };
    assert!(alone(&compare(weak, false_absence), 0));
}

#[test]
fn two_accepted_rosters_expose_the_meter_by_which_they_differ() {
    let weak = Rules {
        one_roster: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(8, rules);
        played.submit_all();
        played.show_all(&Roster::over("all", 0..8));
        played.show_all(&Roster::over(
            "without 3",
            (0..8).filter(|meter| *meter != 3),
        ));
        played.judge([7])
    });
    assert!(alone(&verdict, 3));
}

/// Eleven meters, d = 10 and L = 6, four of them corrupted.
const CORRUPTED: [usize; 4] = [7, 8, 9, 10];

fn surrounded() -> Roster {
    Roster::over("0 and corrupted meters", [0, 7, 8, 9, 10])
}

#[test]
fn a_meter_whose_l_is_not_above_c_stands_alone() {
    let weak = Rules {
        share_of_drawn: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn the_bound_is_reached_and_not_passed() {
    let mut played = Played::complete(11, RIGHT);
    played.submit_all();
    assert_eq!(
        played.show_all(&Roster::over("L full", [0, 1, 2, 7, 8, 9, 10])),
        7
    );
    let verdict = played.judge(CORRUPTED);
    assert_eq!(verdict.findings, []);
    assert_eq!(
        (verdict.sums[0].meters.len(), verdict.sums[0].bound),
        (3, 3)
    );
    // Two corrupted meters more than assumed, and the same answers expose a meter.
    assert!(played.judge([1, 2, 7, 8, 9, 10]).leaks());
}

#[test]
fn counting_established_edges_lets_a_provider_block_the_others() {
    let weak = Rules {
        counts_drawn: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.blocked.extend((1..7).map(|other| (0, other)));
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn a_lapse_that_lowers_d_lets_a_provider_shrink_a_group() {
    let weak = Rules {
        lapse_keeps_d: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.lapsed.extend(1..7);
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn counting_others_draws_lets_joiners_surround_a_meter() {
    let weak = Rules {
        counts_own_only: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        // Eleven meters that drew each other; six corrupted ones came later and drew all.
        let drawn = (0..17).map(|meter| (0..11).filter(|other| *other != meter).collect());
        let mut played = Played::drawn(drawn.collect(), rules);
        played.submit_all();
        played.show_all(&Roster::over("0 and joiners", [0, 11, 12, 13, 14, 15, 16]));
        played.judge(11..17)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn an_old_head_must_not_bring_back_a_smaller_draw() {
    let weak = Rules {
        d_of_submission: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.drawn_before = vec![Meters::from([7, 8, 9, 10]); 11];
        played.submit_all();
        let mut roster = surrounded();
        roster.old_head = true;
        played.show_all(&roster);
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

/// A roster over 0 and five of whom it drew.
fn five() -> Roster {
    Roster::over("0 and five others", [0, 6, 7, 8, 9, 10])
}

#[test]
fn exits_lower_the_bound_and_not_below_it() {
    let mut played = Played::complete(11, RIGHT);
    played.left.extend([1, 2]);
    played.submit_all();
    // d = 8, so L = 5.
    assert_eq!(played.show_all(&five()), 6);
    let verdict = played.judge([8, 9, 10]);
    assert_eq!(verdict.findings, []);
    assert_eq!(
        (verdict.sums[0].meters.len(), verdict.sums[0].bound),
        (3, 3)
    );
}

#[test]
fn an_exit_without_the_meters_signature_must_not_lower_d() {
    let weak = Rules {
        signed_exits: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.said_to_have_left.extend(1..7);
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn exits_after_the_submission_must_not_lower_d() {
    let weak = Rules {
        d_of_submission: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        played.submit_all();
        // Honest and signed, each of them.
        played.left_since.extend(1..6);
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn corrupted_meters_must_not_count_after_they_have_left() {
    let weak = Rules {
        drops_departed: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(11, rules);
        // d = 6, so L = 4; who has left shares pads with 0 still.
        played.left.extend(CORRUPTED);
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn edges_of_an_earlier_draw_must_not_count() {
    let weak = Rules {
        newest_draw: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        // Everybody drew the first seven anew, after a draw that named the corrupted ones.
        let drawn = (0..11).map(|meter| (0..7).filter(|other| *other != meter).collect());
        let mut played = Played::drawn(drawn.collect(), rules);
        played.drawn_before = vec![Meters::from(CORRUPTED); 11];
        // The corrupted ones drew nobody whom they can be seen with.
        for meter in CORRUPTED {
            played.drawn[meter] = Meters::from(CORRUPTED);
        }
        played.submit_all();
        played.show_all(&surrounded());
        played.judge(CORRUPTED)
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn one_register_in_two_nets_gives_two_sums_of_one_reading() {
    let weak = Rules {
        one_register: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(7, rules);
        played.submit_all();
        for meter in 1..7 {
            let submits = played.submit(meter, 1, 0, 0);
            assert_eq!(submits, !rules.one_register);
        }
        played.show_all(&Roster::over("first net", 0..7));
        let mut second = Roster::over("second net", 1..7);
        second.net = 1;
        played.show_all(&second);
        played.judge([6])
    });
    assert!(alone(&verdict, 0));
}

#[test]
fn one_blinding_for_two_channels_reveals_the_difference() {
    let weak = Rules {
        blinding_by_channel: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(7, rules);
        played.channels = 2;
        played.submit_all();
        played.judge([])
    });
    assert!(beyond(&verdict) && alone(&verdict, 0));
}

#[test]
fn a_blinding_without_the_reading_reveals_a_difference_after_a_rollback() {
    let weak = Rules {
        blinding_by_reading: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(7, rules);
        played.submit_all();
        played.roll_back_before_submission(2, 0);
        assert!(played.submit(2, 0, 0, 1));
        played.judge([])
    });
    assert!(beyond(&verdict) && alone(&verdict, 2));
}

#[test]
fn a_second_submission_under_the_same_self_mask_reveals_the_difference() {
    let weak = Rules {
        fresh_masks: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        let mut played = Played::complete(7, rules);
        played.submit_all();
        played.roll_back_before_submission(2, 0);
        assert!(played.submit(2, 0, 0, 1));
        played.judge([])
    });
    assert!(beyond(&verdict) && alone(&verdict, 2));
}

/// Some honest meters answer a second roster over them and the corrupted ones, because
/// their disks were restored.
fn rolled_back(count: usize, corrupted: &[usize]) -> Verdict {
    let mut played = Played::complete(11, RIGHT);
    played.submit_all();
    assert_eq!(played.show_all(&Roster::over("all", 0..11)), 11);
    (0..count).for_each(|meter| played.roll_back(meter, 0));
    // L + 1 members.
    let honest = 0..7 - corrupted.len();
    let second = Roster::over("second", honest.chain(corrupted.iter().copied()));
    assert_eq!(played.show_all(&second), count, "only they answer twice");
    played.judge(corrupted.iter().copied())
}

#[test]
fn rolled_back_meters_leak_only_from_l_minus_c_plus_1_on() {
    // L = 6 of d = 10.
    for (corrupted, enough) in [(&[][..], 7), (&[10], 6), (&[9, 10], 5), (&CORRUPTED, 3)] {
        let first = (0..=7 - corrupted.len()).find(|count| rolled_back(*count, corrupted).leaks());
        println!(
            "{} corrupted: {first:?} rolled-back meters leak",
            corrupted.len()
        );
        assert_eq!(first, Some(enough), "{} corrupted", corrupted.len());
    }
}

#[test]
fn unbound_reveal_pads_let_one_rolled_back_meter_cut_the_graph() {
    let weak = Rules {
        bound_pads: false,
        ..RIGHT
    };
    let verdict = compare(weak, |rules| {
        // Two cliques with one edge between 6 and 7, which the seventh drew.
        let clique = |meter: usize| if meter < 7 { 0..7 } else { 7..14 };
        let drawn = (0..14).map(|meter| {
            let mut drawn: Meters = clique(meter).filter(|other| *other != meter).collect();
            if meter == 6 {
                drawn.insert(7);
            }
            drawn
        });
        let mut played = Played::drawn(drawn.collect(), rules);
        played.submit_all();
        assert_eq!(played.show_all(&Roster::over("all", 0..14)), 14);
        played.roll_back(6, 0);
        let without = (0..14).filter(|meter| *meter != 7);
        assert!(played.show(6, &Roster::over("without 7", without)));
        played.judge([])
    });
    assert!(beyond(&verdict));
}

type Scene = fn(&mut Played);

/// Rules without which the span stays the same in these scenes: what they protect is that
/// a round ends in a sum and that a lie is noticed.
#[test]
fn some_rules_are_a_second_line() {
    let scenes: [(&str, Rules, Scene); 4] = [
        (
            "a second roster after a refused one",
            Rules {
                refuses_for_good: false,
                ..RIGHT
            },
            |played| {
                assert_eq!(played.show_all(&Roster::over("too small", 0..5)), 0);
                played.show_all(&Roster::over("all", 0..11));
            },
        ),
        (
            "a false half-open claim",
            Rules {
                checks_claims: false,
                ..RIGHT
            },
            |played| {
                let mut roster = Roster::over("false claim", 0..11);
                roster.half_open.insert((0, 1));
                played.show_all(&roster);
            },
        ),
        (
            "claims that deny one edge at both ends",
            Rules {
                checks_claims: false,
                ..RIGHT
            },
            |played| {
                let mut roster = Roster::over("denied edge", 0..11);
                roster.half_open.extend([(0, 1), (1, 0)]);
                played.show_all(&roster);
            },
        ),
        (
            "another submission than the meter's",
            Rules {
                checks_digest: false,
                ..RIGHT
            },
            |played| {
                let mut roster = Roster::over("false digests", 0..11);
                roster.submission = Some(99);
                played.show_all(&roster);
            },
        ),
    ];
    for (name, weak, scene) in scenes {
        for rules in [RIGHT, weak] {
            let mut played = Played::complete(11, rules);
            played.submit_all();
            scene(&mut played);
            let verdict = played.judge(CORRUPTED);
            println!("{name}: {verdict}");
            assert_eq!(verdict.findings, [], "{name}");
        }
    }
}
