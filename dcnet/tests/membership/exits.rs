//! Exits by the owner: what becomes of rounds, keys and the rest of the state.

use super::*;

#[test]
fn a_meter_that_leaves_is_gone_from_the_next_rounds_and_its_keys_are_erased() {
    let mut network = running(8, policy(4));
    assert_eq!(pair_keys(&network, 7), 7);
    leave(&mut network, 7);
    assert_eq!(included_after(&mut network, 3), [0, 1, 2, 3, 4, 5, 6]);
    assert!(network.heard(7, &MeterEvent::Left));
    let done = MeterEvent::ExitDone {
        confirmed: 7,
        neighbours: 7,
    };
    assert!(network.heard(7, &done), "{:?}", network.meter_events[7]);
    let progress = ExitProgress {
        left: true,
        neighbours: 7,
        awaited: 0,
        done: true,
    };
    assert_eq!(network.meters[7].exit(), Some(progress));
    assert_eq!(pair_keys(&network, 7), 0);
    assert_eq!(kept(&network, 7), ["exit", "log"]);
    for meter in 0..7 {
        assert_eq!(pair_keys(&network, meter), 6, "meter {meter} keeps a key");
    }
    assert_eq!(network.provider.membership().size(), 7);
    // A restart does not bring it back.
    network.restart_meter(7);
    assert_eq!(included_after(&mut network, 3).len(), 7);
    assert_eq!(network.meters[7].exit(), Some(progress));
    // Nor do the rounds of the others leave anything with it.
    assert_eq!(kept(&network, 7), ["exit", "log"]);
}

#[test]
fn a_store_that_says_that_all_is_done_is_emptied() {
    let mut network = running(6, policy(4));
    let before = network.saved[5].clone();
    leave(&mut network, 5);
    network.run_until(network.now + 3 * MINUTE);
    assert_eq!(kept(&network, 5), ["exit", "log"]);
    let mut full = before;
    full.append(&mut network.saved[5]);
    network.restore_disk(5, full);
    assert_eq!(kept(&network, 5), ["exit", "log"]);
}

#[test]
fn a_meter_that_has_left_asks_for_nothing_any_more() {
    let world = World::new(6, policy(4), &["import"]);
    let mut network = Network::new(world, Faults::default(), 7);
    network.keep_published = true;
    network.asleep.fill(true);
    // One asks for its draw, the other has entered and waits for a roster.
    let drawing = network.meters[4].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Draw, .. } if *meter == drawing),
    ));
    network.run_until(MINUTE);
    // It does not confirm, so the exits are not done.
    network.set_online(0, false);
    for (meter, kind) in [(4, Up::Draw), (5, Up::Entered)] {
        let before = network.sent(meter, kind).len();
        network.run_until(network.now + 6 * MINUTE);
        assert!(network.sent(meter, kind).len() > before, "{kind:?}");
        leave(&mut network, meter);
        network.run_until(network.now + MINUTE);
        assert!(network.heard(meter, &MeterEvent::Left), "{kind:?}");
        let asked = network.sent(meter, kind).len();
        network.run_until(network.now + 20 * MINUTE);
        network.restart_meter(meter);
        network.run_until(network.now + 20 * MINUTE);
        assert_eq!(network.sent(meter, kind).len(), asked, "{kind:?}");
        assert!(!kept(&network, meter).contains(&"draw".to_owned()));
    }
}

#[test]
fn an_owner_who_wants_to_leave_is_not_made_a_member_again_by_lost_state() {
    for restart in [false, true] {
        let mut network = running(7, policy(4));
        network.filter = Some(Box::new(|topic, _, _| {
            !matches!(topic, Topic::Up { kind: Up::Exit, .. })
        }));
        network.saved[3].clear();
        network.restart_meter(3);
        network.run_until(network.now + MINUTE);
        assert_eq!(network.alarms(3), [Alarm::StateLost(Loss::State)]);
        assert_eq!(network.meters[3].exit(), None);
        leave(&mut network, 3);
        if restart {
            network.restart_meter(3);
        }
        assert!(network.meters[3].exit().is_some_and(|exit| !exit.left));
        network.filter = None;
        assert_eq!(included_after(&mut network, 10), [0, 1, 2, 4, 5, 6]);
        assert!(network.heard(3, &MeterEvent::Left));
        assert!(network.meters[3].exit().is_some_and(|exit| exit.done));
        assert_eq!(memberships(&network, 3), 1);
    }
}

#[test]
fn an_exit_waits_two_days_for_confirmations_by_a_right_clock() {
    const YEARS: i64 = 3 * 365 * 86_400_000;
    for ahead in [YEARS, -YEARS / 4] {
        let mut network = running(6, policy(4));
        network.asleep.fill(true);
        network.run_until(network.now + MINUTE);
        network.set_online(0, false);
        network.skews[5].ahead = ahead;
        network.skews[5].unsynchronised = true;
        leave(&mut network, 5);
        network.run_until(network.now + MINUTE);
        assert!(network.heard(5, &MeterEvent::Left));
        network.run_until(network.now + 50 * HOUR);
        let waits = |network: &Network| network.meters[5].exit().is_some_and(|exit| !exit.done);
        assert!(waits(&network), "nobody knows how long it has waited");
        network.skews[5].ahead = 0;
        network.skews[5].unsynchronised = false;
        network.restart_meter(5);
        network.run_until(network.now + 47 * HOUR);
        assert!(waits(&network), "a day is missing");
        network.run_until(network.now + 2 * HOUR);
        let done = MeterEvent::ExitDone {
            confirmed: 4,
            neighbours: 5,
        };
        assert!(network.heard(5, &done), "{:?}", network.meters[5].exit());
    }
}

#[test]
fn an_exit_dated_in_the_future_is_dated_anew() {
    // A clock that says that it is right, and is not.
    let mut network = running(6, policy(4));
    network.asleep.fill(true);
    network.run_until(network.now + MINUTE);
    network.set_online(0, false);
    network.skews[5].ahead = 300 * 86_400_000;
    network.restart_meter(5);
    leave(&mut network, 5);
    network.run_until(network.now + MINUTE);
    assert!(network.heard(5, &MeterEvent::Left));
    network.skews[5].ahead = 0;
    network.run_until(network.now + 49 * HOUR);
    assert!(network.meters[5].exit().is_some_and(|exit| exit.done));
}

#[test]
fn a_meter_that_leaves_after_its_submission_still_reveals() {
    let mut network = running(6, policy(4));
    let round = network.last_round();
    // It leaves before it sees the roster.
    network.filter = Some(Box::new(|topic, receiver, _| {
        receiver != Some(2)
            || !matches!(
                topic,
                Topic::All {
                    kind: All::Roster,
                    ..
                }
            )
    }));
    network.run_until(network.now + 15_000);
    assert!(network.submitted(2, round) && !network.revealed(2, round));
    leave(&mut network, 2);
    let asked = network.meters[2].exit().unwrap();
    assert!(!asked.left && !asked.done);
    network.run_until(network.now + 1000);
    assert!(network.heard(2, &MeterEvent::Left) && !network.revealed(2, round));
    let exit = network.meters[2].exit().unwrap();
    assert!(exit.left && !exit.done && exit.neighbours == 5);
    assert!(network.meters[2].open_rounds().eq([round]));
    network.filter = None;
    network.set_online(2, false);
    network.set_online(2, true);
    network.run_until(network.now + 2 * MINUTE);
    assert!(network.revealed(2, round));
    assert_eq!(network.meters[2].open_rounds().len(), 0);
    network.check_aggregates();
    let of_round = network.aggregates.iter().find(|a| a.round == round);
    assert_eq!(of_round.unwrap().included.len(), 6);
    assert_eq!(network.aggregates.last().unwrap().included.len(), 5);
}

#[test]
fn an_exit_survives_a_crash_and_a_lost_leave() {
    let mut network = running(6, policy(4));
    let left = network.meters[2].id();
    network.filter = Some(Box::new(|topic, _, _| {
        !matches!(topic, Topic::Up { kind: Up::Exit, .. })
    }));
    leave(&mut network, 2);
    network.run_until(network.now + 10_000);
    network.restart_meter(2);
    assert_eq!(network.provider.membership().size(), 6);
    network.filter = None;
    assert_eq!(included_after(&mut network, 3).len(), 5);
    assert!(network.provider.membership().active(&left).is_none());
    assert!(network.heard(2, &MeterEvent::Left));
}

#[test]
fn only_the_meter_itself_ends_its_membership_and_only_the_present_one() {
    let mut network = running(6, policy(4));
    let join = join_of(&network, 0);
    let utc = at(network.now).utc;
    let net = network.world.net;
    let exit_by = |key| sign_exit(key, net, &join, utc);
    let body = |exit: &[u8]| cbor::array([cbor::bytes(exit)]);
    let foreign = exit_by(&network.world.meters[1].key);
    let unknown = Err(EntryError::Rule(
        "the exit names no membership of its sender",
    ));
    assert_eq!(outcome(&network, EntryKind::Leave, body(&foreign)), unknown);
    let forged = exit_by(&network.world.provider.key);
    assert_eq!(
        outcome(&network, EntryKind::Leave, body(&forged)),
        in_body(FrameError::Sender)
    );
    let own = exit_by(&network.world.meters[0].key);
    assert_eq!(outcome(&network, EntryKind::Leave, body(&own)), Ok(()));

    // Its state is lost, so it leaves and joins anew: the old exit ends nothing any more,
    // and the old registration begins nothing.
    network.keep_published = true;
    network.saved[0].clear();
    network.restart_meter(0);
    assert_eq!(included_after(&mut network, 4).len(), 6);
    assert_eq!(outcome(&network, EntryKind::Leave, body(&own)), unknown);
    let registration = network.sent(0, Up::Register).pop().unwrap();
    leave(&mut network, 0);
    network.run_until(network.now + MINUTE);
    assert_eq!(
        outcome(&network, EntryKind::Join, body(&registration)),
        Err(EntryError::Rule("a registration is used twice"))
    );
}

#[test]
fn who_is_no_member_cannot_leave() {
    let mut network = Network::new(World::new(3, policy(4), &["import"]), Faults::default(), 1);
    leave(&mut network, 0);
    assert!(network.heard(0, &MeterEvent::NotMember));
    network.run_until(MINUTE);
    assert_eq!(network.provider.membership().size(), 3);
    assert_eq!(Notification::Exit as u8, 3, "the thesis's code");
}
