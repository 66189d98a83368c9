//! The rules before a submission.

use super::*;

#[test]
fn it_submits_only_while_the_clock_is_synchronised() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].unsynchronised = true;
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::ClockUnsynchronised]
    );
    assert!(!network.submitted(VICTIM, round));
    assert!(network.submitted(1, round));
    network.skews[VICTIM].unsynchronised = false;
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn a_clock_that_loses_synchronisation_between_boundary_and_submission_silences_it() {
    let mut network = start(world());
    network.run_until(4 * MINUTE);
    network.skews[VICTIM].unsynchronised = true;
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::ClockUnsynchronised]
    );
    assert!(!network.submitted(VICTIM, round));
}

#[test]
fn utc_and_the_monotonic_clock_differ_by_at_most_two_percent_over_the_interval() {
    for (ahead, speaks) in [
        (1300, false),
        (-1300, false),
        (1100, true),
        (-1100, true),
        (0, true),
    ] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.skews[VICTIM].ahead = ahead;
        network.run_until(4 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks, "{ahead} ms");
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::ClockOutOfStep], !speaks, "{ahead} ms");
    }
}

/// A meter whose clock jumped two minutes ahead in round 3, at the end of round 4.
fn jumped() -> Network {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].ahead = 120_000;
    network.run_until(5 * MINUTE + 30 * SECOND);
    network
}

#[test]
fn a_jump_ahead_of_more_than_a_period_needs_confirmation() {
    let mut network = jumped();
    let jump = Alarm::ClockJump { seconds: 120 };
    assert_eq!(network.alarms(VICTIM), [jump]);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::ClockUnconfirmed]);
    assert!(!network.submitted(VICTIM, round));
    network.input_meter(VICTIM, Input::Command(MeterCommand::ConfirmClock));
    network.skews[VICTIM].ahead = 0;
    network.run_until(7 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    assert!(network.revealed(VICTIM, network.last_round()));
}

#[test]
fn a_jump_while_the_clock_is_not_synchronised_is_noticed_when_it_is_again() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].unsynchronised = true;
    network.run_until(4 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].ahead = 30 * i64::try_from(HOUR).unwrap();
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert_eq!(network.alarms(VICTIM), []);
    network.skews[VICTIM].unsynchronised = false;
    network.run_until(6 * MINUTE + 30 * SECOND);
    let jump = Alarm::ClockJump { seconds: 108_000 };
    assert_eq!(network.alarms(VICTIM), [jump]);
    network.skews[VICTIM].ahead = 0;
    network.input_meter(VICTIM, Input::Command(MeterCommand::ConfirmClock));
    network.run_until(9 * MINUTE + 30 * SECOND);
    // Nothing of the time to come was submitted, so nothing has to be waited for.
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn a_jump_that_was_not_confirmed_needs_it_after_a_restart_too() {
    let mut network = jumped();
    network.restart_meter(VICTIM);
    network.run_until(7 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert!(!network.submitted(VICTIM, round));
}

/// Gives a meter the boundaries of one round again.
fn boundaries_again(network: &mut Network, round: Round) {
    let period = network.world.policy.period;
    for (at, energy) in [(round.start(period), 0), (round.end(period), 1_000_000)] {
        let channels = vec![MilliwattHours(energy)];
        let boundary = Boundary { at, channels };
        network.input_meter(VICTIM, Input::Command(MeterCommand::Boundary(boundary)));
    }
    network.run_until(network.now + 25 * SECOND);
}

#[test]
fn a_registers_time_is_submitted_once_even_after_a_restart() {
    let mut network = start(world());
    network.run_until(4 * MINUTE + 15 * SECOND);
    let round = network.last_round();
    assert!(network.submitted(VICTIM, round));
    let before = network.sent(VICTIM, Up::Submission);
    network.restart_meter(VICTIM);
    boundaries_again(&mut network, round);
    assert_eq!(network.silences(VICTIM, round), [Silence::AlreadySubmitted]);
    assert_eq!(network.sent(VICTIM, Up::Submission), before);
}

#[test]
fn a_round_that_was_not_submitted_before_a_restart_is_submitted() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.asleep[VICTIM] = true;
    network.run_until(4 * MINUTE);
    network.restart_meter(VICTIM);
    let round = network.last_round();
    boundaries_again(&mut network, round);
    assert!(network.submitted(VICTIM, round));
}

#[test]
fn a_registers_time_is_submitted_in_one_net_only() {
    let mut first = start(world());
    first.run_until(4 * MINUTE + 30 * SECOND);
    let last = first.last_round();
    assert!(first.submitted(VICTIM, last));
    let register: Vec<_> = first.saved[VICTIM]
        .iter()
        .filter(|((store, _), _)| *store == Store::Register)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    assert!(!register.is_empty());

    for same_register in [true, false] {
        let mut second = start(world());
        if same_register {
            second.saved[VICTIM].extend(register.iter().cloned());
        }
        second.restart_meter(VICTIM);
        second.run_until(6 * MINUTE + 30 * SECOND);
        let other = second.submitted(1, last);
        assert!(other);
        assert_eq!(second.submitted(VICTIM, last), !same_register);
        if same_register {
            let silent = second.silences(VICTIM, last);
            assert_eq!(silent, [Silence::AlreadySubmitted]);
        }
        assert!(second.submitted(VICTIM, last.next()));
        second.check_aggregates();
    }
}

#[test]
fn it_submits_only_with_a_complete_draw() {
    let mut network = start(world());
    drop_up(&mut network, VICTIM, Up::Draw);
    network.run_until(2 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::DrawIncomplete]);
    assert!(!network.submitted(VICTIM, round));
    network.filter = None;
    network.set_online(VICTIM, false);
    network.set_online(VICTIM, true);
    network.run_until(4 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn it_does_not_submit_while_a_newer_draw_is_under_way() {
    let mut network = start(World::new(10, policy(4), &["import"]));
    let late: BTreeSet<DeviceId> = (5..10).map(|m| network.meters[m].id()).collect();
    (5..10).for_each(|meter| network.set_online(meter, false));
    network.filter = Some(Box::new(move |topic, _, _| {
        up(topic).is_none_or(|(meter, _)| !late.contains(&meter))
    }));
    network.run_until(3 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    // Twice as many members as at the first draw: everybody draws again.
    drop_up(&mut network, VICTIM, Up::Draw);
    (5..10).for_each(|meter| network.set_online(meter, true));
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::DrawIncomplete]);
    assert!(!network.submitted(VICTIM, round));
    assert!(network.submitted(1, round));
    network.filter = None;
    network.set_online(VICTIM, false);
    network.set_online(VICTIM, true);
    network.run_until(6 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    network.check_aggregates();
}

#[test]
fn its_draw_had_at_least_its_minimum_group_of_candidates() {
    for (minimum_group, speaks) in [(6, true), (7, false)] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.world.meters[VICTIM].floors.minimum_group = minimum_group;
        network.restart_meter(VICTIM);
        network.run_until(5 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::TooFewCandidates], !speaks);
    }
}

#[test]
fn a_member_speaks_and_others_do_not() {
    let mut network = start(world());
    drop_up(&mut network, VICTIM, Up::Register);
    let genesis = network.world.genesis.clone();
    network.show_entry(VICTIM, genesis);
    network.run_until(2 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::NotMember]);
    assert!(network.submitted(1, round));
}

#[test]
fn it_waits_until_the_log_reaches_the_checkpoint() {
    let mut world = world();
    let checkpoint = &mut world.meters[VICTIM].checkpoint;
    checkpoint.index = 1000;
    checkpoint.head = [1; 32];
    let mut network = start(world);
    network.run_until(3 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::CheckpointNotReached]
    );
    assert!(!network.submitted(VICTIM, round));
    // The log as it is was confirmed by the administrator.
    let log = network.provider.membership();
    let head = log.head();
    let checkpoint = &mut network.world.meters[VICTIM].checkpoint;
    checkpoint.index = head.index;
    checkpoint.head = head.hash;
    checkpoint.members = 7;
    network.restart_meter(VICTIM);
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn it_stops_when_the_log_is_not_the_one_of_the_checkpoint() {
    for (index, hash, members) in [(3, [1; 32], 3), (0, [1; 32], 0)] {
        let mut world = world();
        let checkpoint = &mut world.meters[VICTIM].checkpoint;
        checkpoint.index = index;
        checkpoint.head = hash;
        checkpoint.members = members;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let alarms = network.alarms(VICTIM);
        assert_eq!(alarms, [Alarm::Checkpoint { index }]);
        assert!(network.sent(VICTIM, Up::Submission).is_empty());
        assert!(network.submitted(1, network.last_round()));
    }
}

#[test]
fn the_checkpoints_number_of_members_must_be_right() {
    for (members, speaks) in [(0, true), (1, false)] {
        let mut world = world();
        world.meters[VICTIM].checkpoint.members = members;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        assert_eq!(network.submitted(VICTIM, network.last_round()), speaks);
        assert_eq!(network.alarms(VICTIM).is_empty(), speaks);
    }
}

#[test]
fn a_period_below_its_floor_keeps_it_out() {
    for (floor, speaks) in [(60, true), (61, false)] {
        let mut world = world();
        world.meters[VICTIM].floors.minimum_period = floor;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let alarm = Alarm::Floor {
            what: "period in seconds",
            policy: 60,
            floor,
        };
        assert_eq!(network.alarms(VICTIM).contains(&alarm), !speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::Stopped], !speaks);
    }
}

#[test]
fn a_floor_of_neighbours_above_what_the_net_draws_keeps_it_out() {
    let drawn = Policy {
        degree: 6,
        ..policy(4)
    };
    for (floor, speaks) in [(6, true), (7, false)] {
        let mut world = World::new(7, drawn, &["import"]);
        world.meters[VICTIM].floors.minimum_neighbours = floor;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let alarm = Alarm::Floor {
            what: "number of drawn neighbours",
            policy: 6,
            floor,
        };
        // It never calls that an emergency that a new draw could end.
        let alarms = network.alarms(VICTIM);
        assert_eq!(alarms == [alarm], !speaks, "{alarms:?}");
        assert_eq!(network.sent(VICTIM, Up::Draw).is_empty(), !speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::Stopped], !speaks);
    }
}

#[test]
fn drawn_neighbours_count_whether_or_not_their_handshake_succeeded() {
    // Three of six established would be enough by the floor of 3, but L = ⌈0.6·6⌉ = 4.
    for (blocked, speaks) in [(&[1, 2][..], true), (&[1, 2, 3], false)] {
        let mut network = start(world());
        block_handshakes(&mut network, blocked);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::TooFewNeighbours], !speaks);
    }
}

#[test]
fn neighbours_whose_key_begins_tomorrow_do_not_count_today() {
    // Who makes the offer names the key's first day: the end with the smaller id.
    let lower = |network: &Network| -> Vec<usize> {
        let own = network.meters[VICTIM].id();
        (1..7).filter(|m| network.meters[*m].id() < own).collect()
    };
    let fits = |seed: &u64| {
        let world = World::seeded(7, policy(4), &["import"], *seed);
        lower(&start(world)).len() >= 3
    };
    let seed = (0..50).find(fits).unwrap();
    // Six drawn edges are established: four with a key for today are enough, three are not.
    for (tomorrow, speaks) in [(2, true), (3, false)] {
        let mut network = start(World::seeded(7, policy(4), &["import"], seed));
        for meter in lower(&network).into_iter().take(tomorrow) {
            network.skews[meter].ahead = i64::try_from(24 * HOUR).unwrap();
            network.restart_meter(meter);
        }
        network.run_until(4 * MINUTE + 30 * SECOND);
        assert_eq!(network.meters[VICTIM].live_neighbours().len(), 6);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let silent = network.silences(VICTIM, round) == [Silence::TooFewNeighbours];
        assert_eq!(silent, !speaks);
    }
}

#[test]
fn more_than_a_reading_holds_is_an_alarm_and_no_submission() {
    let alarm = Alarm::ReadingTooLarge { channel: 0 };
    for (energy, alarms) in [((1 << 40) - 1, vec![]), (1 << 40, vec![alarm])] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.asleep[VICTIM] = true;
        for (end, total) in [(4 * MINUTE, 1 << 40), (5 * MINUTE, (1 << 40) + energy)] {
            network.run_until(end);
            let boundary = Boundary {
                at: Timestamp(START.as_millis() + end),
                channels: vec![MilliwattHours(total)],
            };
            network.input_meter(VICTIM, Input::Command(MeterCommand::Boundary(boundary)));
        }
        network.run_until(5 * MINUTE + 30 * SECOND);
        assert_eq!(network.alarms(VICTIM), alarms);
        let submitted = network.submitted(VICTIM, network.last_round());
        assert_eq!(submitted, alarms.is_empty());
    }
}

#[test]
fn it_submits_within_the_window_only() {
    for (late, speaks) in [(5 * SECOND, true), (21 * SECOND, false)] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.asleep[VICTIM] = true;
        // The agent hands over the end of the second interval late.
        for (end, late, total) in [(4 * MINUTE, 0, 1 << 40), (5 * MINUTE, late, (1 << 40) + 5)] {
            network.run_until(end + late);
            let boundary = Boundary {
                at: Timestamp(START.as_millis() + end),
                channels: vec![MilliwattHours(total)],
            };
            network.input_meter(VICTIM, Input::Command(MeterCommand::Boundary(boundary)));
        }
        network.run_until(5 * MINUTE + 50 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks, "{late} ms");
        let silent = network.silences(VICTIM, round) == [Silence::WindowOver];
        assert_eq!(silent, !speaks, "{late} ms");
    }
}
