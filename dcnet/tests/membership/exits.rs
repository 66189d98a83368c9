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
    let kept = |key: &[u8]| key == b"device" || key.starts_with(b"round/");
    assert!(!network.saved[7].keys().any(|(_, key)| kept(key)));
    for meter in 0..7 {
        assert_eq!(pair_keys(&network, meter), 6, "meter {meter} keeps a key");
    }
    assert_eq!(network.provider.membership().size(), 7);
    // A restart does not bring it back.
    network.restart_meter(7);
    assert_eq!(included_after(&mut network, 3).len(), 7);
    assert_eq!(network.meters[7].exit(), Some(progress));
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
