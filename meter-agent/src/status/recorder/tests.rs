use dcnet::alarm::Alarm;
use dcnet::commitment::Commitment;
use dcnet::opening::Opening;
use dcnet::units::MilliwattHours;

use super::*;

fn policy() -> Policy {
    Policy {
        period: Period::from_secs(60).unwrap(),
        window_ms: 20_000,
        minimum_group: 30,
        minimum_neighbours: 3,
        degree: 48,
    }
}

fn recorder() -> Recorder {
    let recorder = Recorder::default();
    recorder.open(&policy(), &["import".to_owned()]);
    recorder
}

fn boundary(recorder: &Recorder, minute: u64, energy: u64) {
    paused_boundary(recorder, minute, energy, false);
}

fn paused_boundary(recorder: &Recorder, minute: u64, energy: u64, is_paused: bool) {
    let boundary = Boundary {
        at: Timestamp(minute * 60_000),
        channels: vec![MilliwattHours(energy)],
    };
    recorder.boundary(&boundary, is_paused);
}

fn tell(recorder: &Recorder, event: MeterEvent) {
    recorder.event(&event, Timestamp(7));
}

fn submitted(round: u64) -> MeterEvent {
    MeterEvent::Submitted {
        round: Round(round),
        shares: vec![Share {
            superposition: Opening::ZERO,
            commitment: std::iter::empty::<Commitment>().sum(),
        }],
        drawn: 48,
        used: 47,
        required: 29,
    }
}

#[test]
fn a_round_shows_the_reading_beside_what_left_the_house_and_what_became_of_it() {
    let recorder = recorder();
    boundary(&recorder, 5, 1000);
    boundary(&recorder, 6, 1523);
    let view = recorder.view();
    assert_eq!(view.rounds.len(), 1);
    assert_eq!(view.rounds[0].values[0].reading_mwh, Some(523));
    assert_eq!(view.rounds[0].values[0].superposition, None, "nothing left");
    assert!(view.checks.is_empty(), "nothing was decided");

    tell(&recorder, submitted(5));
    let view = recorder.view();
    let round = &view.rounds[0];
    assert_eq!((round.from_ms, round.until_ms), (300_000, 360_000));
    assert_eq!(round.values[0].superposition, Some("0".repeat(64)));
    assert_eq!(round.submission.state, CheckState::Passed);
    assert_eq!(round.reveal.state, CheckState::Open);
    assert_eq!((view.drawn, view.live), (Some(48), Some(47)));

    tell(
        &recorder,
        MeterEvent::Revealed {
            round: Round(5),
            included: 50,
            full: 46,
        },
    );
    tell(
        &recorder,
        MeterEvent::Final {
            round: Round(5),
            included: 50,
            sums: vec![MilliwattHours(25_000)],
        },
    );
    let view = recorder.view();
    let round = &view.rounds[0];
    assert_eq!((round.included, round.full), (Some(50), Some(46)));
    assert_eq!(round.sums_mwh, Some(vec![25_000]));
    assert!(
        view.checks
            .iter()
            .all(|check| check.state == CheckState::Passed)
    );
}

#[test]
fn boundaries_that_are_not_neighbours_give_no_reading() {
    let recorder = recorder();
    boundary(&recorder, 5, 1000);
    boundary(&recorder, 7, 1523);
    assert!(recorder.view().rounds.is_empty());
}

#[test]
fn a_refused_roster_fails_the_reveal_and_a_broken_rule_before_it_the_submission() {
    let recorder = recorder();
    let silent = |round, reason| MeterEvent::Silent {
        round: Round(round),
        reason,
    };
    tell(&recorder, silent(4, Silence::ClockUnsynchronised));
    tell(&recorder, submitted(5));
    tell(&recorder, silent(5, Silence::GroupTooSmall));
    let view = recorder.view();
    let [five, four] = view.rounds.as_slice() else {
        panic!("two rounds")
    };
    assert_eq!(five.submission.state, CheckState::Passed);
    assert_eq!(five.reveal.state, CheckState::Failed);
    assert_eq!(
        five.reveal.reason.as_deref(),
        Some("too few meters were in the sum")
    );
    assert_eq!(four.submission.state, CheckState::Failed);
    let failed: Vec<_> = view
        .checks
        .iter()
        .filter(|check| check.state == CheckState::Failed)
        .collect();
    assert_eq!(failed.len(), 1, "of the newer round: {failed:?}");
}

#[test]
fn a_round_that_begins_or_ends_in_a_pause_says_that_nothing_of_it_leaves() {
    let recorder = recorder();
    let pauses = [false, false, true, true, false, false];
    for (minute, is_paused) in (5..).zip(pauses) {
        paused_boundary(&recorder, minute, minute * 500, is_paused);
    }
    tell(&recorder, submitted(5));
    let view = recorder.view();
    let reasons = view.rounds.iter().map(|round| {
        assert_eq!(round.values[0].reading_mwh, Some(500), "it is counted");
        round.submission.reason.as_deref()
    });
    let reasons: Vec<_> = reasons.collect();
    // Of minute 9, the newest, to 5.
    assert_eq!(
        reasons,
        [None, Some(PAUSED), Some(PAUSED), Some(PAUSED), None]
    );
    assert!(view.checks.is_empty(), "nothing was checked");
}

#[test]
fn alarms_of_before_the_start_go_on_and_the_one_that_stopped_the_meter_is_never_forgotten() {
    let first = Recorder::default();
    tell(&first, MeterEvent::Alarm(Alarm::LogFork { index: 7 }));
    let recorder = Recorder::new(first.alarms());
    for _ in 0..2 * ALARMS {
        tell(&recorder, MeterEvent::Alarm(Alarm::DrawAbandoned));
    }
    let alarms = recorder.view().alarms;
    assert_eq!(alarms.len(), ALARMS);
    assert_eq!(alarms[ALARMS - 1], first.alarms()[0]);
    assert!(alarms[ALARMS - 1].is_final && !alarms[0].is_final);
}

#[test]
fn only_the_newest_rounds_and_alarms_are_kept() {
    let recorder = recorder();
    for round in 0..200 {
        tell(&recorder, submitted(round));
        tell(
            &recorder,
            MeterEvent::Alarm(Alarm::ClockJump { seconds: round }),
        );
    }
    tell(&recorder, submitted(3));
    let view = recorder.view();
    let rounds: Vec<u64> = view.rounds.iter().map(|round| round.round).collect();
    assert_eq!(rounds, (190..200).rev().collect::<Vec<_>>());
    assert_eq!(view.alarms.len(), ALARMS);
    assert!(
        view.alarms[0].text.contains("199 s"),
        "{}",
        view.alarms[0].text
    );
}

#[test]
fn it_prints_no_readings() {
    let recorder = recorder();
    boundary(&recorder, 5, 1000);
    assert_eq!(format!("{recorder:?}"), "Recorder(..)");
}

#[test]
fn a_clock_that_jumped_is_unconfirmed_until_somebody_says_so_or_a_submission_shows_it() {
    let recorder = recorder();
    let silent = |round| MeterEvent::Silent {
        round: Round(round),
        reason: Silence::ClockUnconfirmed,
    };
    assert!(!recorder.view().clock_unconfirmed);
    tell(
        &recorder,
        MeterEvent::Alarm(Alarm::ClockJump { seconds: 9000 }),
    );
    assert!(recorder.view().clock_unconfirmed);
    recorder.clock_is_confirmed();
    assert!(!recorder.view().clock_unconfirmed);
    // It was told before a restart.
    tell(&recorder, silent(5));
    assert!(recorder.view().clock_unconfirmed);
    tell(&recorder, submitted(6));
    assert!(!recorder.view().clock_unconfirmed);
}

#[test]
fn what_is_forgotten_is_no_reading_any_more_and_comes_back_with_nothing_that_is_told_later() {
    let recorder = recorder();
    let summed = |round| MeterEvent::Final {
        round: Round(round),
        included: 50,
        sums: vec![MilliwattHours(1)],
    };
    for minute in 5..=10 {
        boundary(&recorder, minute, minute * minute);
        if minute > 5 {
            tell(&recorder, submitted(minute - 1));
        }
    }
    // Two that are over, one that others ended without it, two that are under way.
    tell(&recorder, summed(5));
    tell(&recorder, summed(6));
    let silent = MeterEvent::Silent {
        round: Round(7),
        reason: Silence::GroupTooSmall,
    };
    tell(&recorder, silent);
    for alarm in [Alarm::DrawAbandoned, Alarm::Revoked] {
        tell(&recorder, MeterEvent::Alarm(alarm));
    }
    recorder.forget();
    let rounds = |recorder: &Recorder| {
        let view = |view: &RoundView| (view.round, view.values[0].reading_mwh);
        let views = recorder.view().rounds;
        views.iter().map(view).collect::<Vec<_>>()
    };
    assert_eq!(rounds(&recorder), [(9, None), (8, None)]);
    let alarms = recorder.alarms();
    assert!(alarms.len() == 1 && alarms[0].is_final, "{alarms:?}");
    tell(&recorder, summed(7));
    tell(&recorder, summed(8));
    assert_eq!(rounds(&recorder), [(9, None), (8, None)]);
    recorder.forget();
    let view = recorder.view();
    assert_eq!(rounds(&recorder), [(9, None)]);
    assert!(view.rounds[0].values[0].superposition.is_some(), "it left");
    // Counting goes on from where it was.
    boundary(&recorder, 11, 200);
    assert_eq!(rounds(&recorder)[0], (10, Some(100)));
}
