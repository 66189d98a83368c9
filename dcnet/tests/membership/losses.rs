//! Meters that lost their state, keys or years, and keys in two hands.

use super::*;

#[test]
fn a_meter_that_lost_its_state_leaves_and_joins_anew() {
    let mut network = running(7, policy(4));
    let places = network.provider.membership().members().len();
    network.keep_published = true;
    network.saved[3].clear();
    network.restart_meter(3);
    assert_eq!(included_after(&mut network, 4).len(), 7);
    assert_eq!(network.alarms(3), [Alarm::StateLost(Loss::State)]);
    // It is the same whether it comes before or after the Leave: of two, either could begin
    // a membership, and one of them the meter would not know.
    let mut registrations = network.sent(3, Up::Register);
    assert!(registrations.len() > 1);
    registrations.dedup();
    assert_eq!(registrations.len(), 1);
    let log = network.provider.membership();
    assert_eq!((log.members().len(), log.size()), (places + 1, 7));
    for meter in (0..7).filter(|meter| *meter != 3) {
        assert_eq!(network.alarms(meter), [], "meter {meter}");
    }
}

/// Takes so many pair keys from a meter's disk, and starts it again.
fn forget_keys(network: &mut Network, meter: usize, count: usize) {
    let records = network.saved[meter].keys();
    let edges = records.filter(|(_, key)| key.starts_with(b"edge/"));
    for record in edges.take(count).cloned().collect::<Vec<_>>() {
        network.saved[meter].remove(&record);
    }
    network.restart_meter(meter);
}

#[test]
fn a_meter_that_lacks_keys_with_too_many_neighbours_for_a_day_joins_anew() {
    // Of six drawn neighbours four must have a key.
    let lost = Alarm::StateLost(Loss::Keys {
        live: 3,
        required: 4,
    });
    for (keys, again) in [(2, false), (3, true)] {
        let mut network = running(7, policy(4));
        forget_keys(&mut network, 3, keys);
        sleep(&mut network, 23);
        assert_eq!(network.alarms(3), [], "less than a day has passed");
        sleep(&mut network, 2);
        assert_eq!(included_after(&mut network, 4).len(), 7);
        let alarms = network.alarms(3);
        assert_eq!(alarms == [lost.clone()], again, "{alarms:?}");
        assert_eq!(memberships(&network, 3), 1 + usize::from(again));
    }
}

#[test]
fn a_meter_waits_for_keys_while_it_is_connected() {
    let mut network = running(7, policy(4));
    forget_keys(&mut network, 3, 3);
    for (online, hours) in [(true, 10), (false, 20), (true, 12)] {
        network.set_online(3, online);
        sleep(&mut network, hours);
        assert_eq!(network.alarms(3), []);
    }
    sleep(&mut network, 4);
    assert_eq!(network.alarms(3).len(), 1);
}

#[test]
fn neither_restarts_nor_a_wrong_clock_end_the_wait_for_keys() {
    let mut network = running(7, policy(4));
    forget_keys(&mut network, 3, 3);
    for hours in [9, 9, 5] {
        network.restart_meter(3);
        sleep(&mut network, hours);
        network.skews[3].unsynchronised = true;
        sleep(&mut network, 1);
        network.skews[3].unsynchronised = false;
        assert_eq!(network.alarms(3), [], "it did not wait for a day");
    }
    // Each restart costs an hour at most.
    sleep(&mut network, 5);
    let lost = Alarm::StateLost(Loss::Keys {
        live: 3,
        required: 4,
    });
    assert_eq!(network.alarms(3), [lost]);
    assert_eq!(included_after(&mut network, 4).len(), 7);
    assert!(!kept(&network, 3).contains(&"keyless".to_owned()));
}

#[test]
fn keys_that_come_end_the_wait_for_them() {
    let mut network = Network::new(World::new(7, policy(4), &["import"]), Faults::default(), 7);
    let victim = network.meters[3].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::UpPair { meter, peer, .. } if victim == *meter || victim == *peer),
    ));
    network.run_until(5 * MINUTE);
    sleep(&mut network, 20);
    assert!(kept(&network, 3).contains(&"keyless".to_owned()));
    network.filter = None;
    sleep(&mut network, 1);
    assert!(!kept(&network, 3).contains(&"keyless".to_owned()));
    sleep(&mut network, 5);
    assert_eq!(network.alarms(3), []);
}

#[test]
fn a_provider_that_blocks_handshakes_gets_no_more_draws_than_any_other() {
    let mut network = Network::new(World::new(7, policy(4), &["import"]), Faults::default(), 7);
    let victim = network.meters[3].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::UpPair { meter, peer, .. } if victim == *meter || victim == *peer),
    ));
    network.run_until(5 * MINUTE);
    sleep(&mut network, 8 * 24);
    assert_eq!(memberships(&network, 3), 4);
    assert_eq!(draws(&network, 3), 4);
    // It has a draw that it can take part with.
    network.filter = None;
    assert_eq!(included_after(&mut network, 10).len(), 7);
    assert_eq!(memberships(&network, 3), 4);
}

#[test]
fn a_meter_that_was_away_for_more_than_400_days_joins_anew_with_new_secrets() {
    let six_hours = Policy {
        period: Period::from_secs(21_600).unwrap(),
        ..policy(4)
    };
    let day = 24 * 60;
    for (days, again) in [(399, false), (403, true)] {
        let world = World::new(6, six_hours, &["import"]);
        let mut network = Network::new(world, Faults::default(), 7);
        assert_eq!(included_after(&mut network, day).len(), 6);
        let before: Vec<_> = [b"edge/".as_slice(), b"device"]
            .into_iter()
            .flat_map(|prefix| stored_strings(&network, 5, prefix))
            .collect();
        assert_eq!(before.len(), 5 + 1);
        // Off, until it starts again from the same disk.
        let disk = network.saved[5].clone();
        network.set_online(5, false);
        sleep(&mut network, days * 24);
        network.restore_disk(5, disk);
        // Whether or not anybody answers it.
        network.run_until(network.now + MINUTE);
        assert_eq!(pair_keys(&network, 5), if again { 0 } else { 5 });
        network.set_online(5, true);
        assert_eq!(included_after(&mut network, 2 * day).len(), 6);
        let old = Alarm::StateLost(Loss::Age);
        assert_eq!(network.alarms(5) == [old], again, "{days} days");
        assert_eq!(memberships(&network, 5), 1 + usize::from(again));
        for meter in 0..5 {
            assert_eq!(network.alarms(meter), [], "{days} days");
        }
        let now: Vec<_> = stored_strings(&network, 5, b"").concat();
        for record in &before {
            let gone = record.iter().filter(|string| !now.contains(string));
            assert!(gone.count() > 0, "a record keeps every key");
        }
    }
}

#[test]
fn a_key_that_is_used_elsewhere_stops_the_meter() {
    let mut network = running(6, policy(4));
    let exit = sign_exit(
        &network.world.meters[0].key,
        network.world.net,
        &join_of(&network, 0),
        at(network.now).utc,
    );
    let topic = Topic::Up {
        net: network.world.net,
        meter: network.meters[0].id(),
        kind: Up::Exit,
    };
    network.deliver_up(topic, exit);
    assert_eq!(included_after(&mut network, 3), [1, 2, 3, 4, 5]);
    assert_eq!(network.alarms(0), [Alarm::KeyUsedElsewhere]);
    let stopped = Stopped::By(Alarm::KeyUsedElsewhere);
    assert_eq!(network.meters[0].stopped(), Some(&stopped));
    assert_eq!(network.meters[1].stopped(), None);
    network.restart_meter(0);
    assert_eq!(network.meters[0].stopped(), Some(&Stopped::Earlier));
}

#[test]
fn a_meter_that_has_kept_a_used_registration_alone_is_not_stuck() {
    let mut network = Network::new(World::new(6, policy(4), &["import"]), Faults::default(), 7);
    network.run_until(5 * MINUTE);
    let mut registered = network.saved[0].clone();
    registered.retain(|(_, key), _| key == b"registration");
    assert_eq!(registered.len(), 1);
    leave(&mut network, 0);
    network.run_until(network.now + MINUTE);
    assert!(network.heard(0, &MeterEvent::Left));
    network.restore_disk(0, registered);
    assert_eq!(included_after(&mut network, 3), [0, 1, 2, 3, 4, 5]);
    assert_eq!(network.alarms(0), [Alarm::StateLost(Loss::State)]);
}
