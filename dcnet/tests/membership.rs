//! Members leave, come back, lose their state, are revoked or lapse, and the provider
//! changes its key: every aggregate stays true, and nobody can do it for another.

mod support;

use std::time::Duration;

use dcnet::alarm::{Alarm, Loss, Silence};
use dcnet::cbor;
use dcnet::frame::{FrameError, Notification};
use dcnet::identity::{DeviceId, Role};
use dcnet::membership::{EntryError, EntryKind, Member, Policy, sign_exit};
use dcnet::meter::{ExitProgress, MeterEvent, Stopped};
use dcnet::output::{Input, Store};
use dcnet::provider::{ProviderCommand, ProviderEvent};
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::time::Period;
use dcnet::topic::{All, Topic, Up};
use simulation::network::{Faults, Network};
use simulation::world::{World, at, policy};
use support::{append, entry, join_of, leave, pair_keys};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

fn running(meters: usize, policy: Policy) -> Network {
    let mut network = Network::new(
        World::new(meters, policy, &["import"]),
        Faults {
            delay: 20,
            ..Faults::default()
        },
        7,
    );
    network.run_until(5 * MINUTE);
    let last = network.aggregates.last().expect("no round was complete");
    assert_eq!(last.included.len(), meters);
    network
}

fn drawn_by(degree: u32) -> Policy {
    Policy {
        degree,
        ..policy(4)
    }
}

/// Runs on, checks all aggregates and returns who is in the newest one.
fn included_after(network: &mut Network, minutes: u64) -> Vec<usize> {
    let before = network.aggregates.len();
    network.run_until(network.now + minutes * MINUTE);
    network.check_aggregates();
    assert!(network.aggregates.len() > before, "no round was complete");
    let mut included = network.included(network.aggregates.last().unwrap());
    included.sort_unstable();
    included
}

/// What the provider would get for an entry of its own making.
fn outcome(network: &Network, kind: EntryKind, body: ciborium::Value) -> Result<(), EntryError> {
    entry(network, kind, body).map(drop)
}

/// A frame of somebody else, inside an entry, is refused.
fn in_body(error: FrameError) -> Result<(), EntryError> {
    Err(EntryError::Body(Box::new(error.into())))
}

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
fn a_meter_that_lost_its_state_leaves_and_joins_anew() {
    let mut network = running(7, policy(4));
    let places = network.provider.membership().members().len();
    network.saved[3].clear();
    network.restart_meter(3);
    assert_eq!(included_after(&mut network, 4).len(), 7);
    assert_eq!(network.alarms(3), [Alarm::StateLost(Loss::State)]);
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

/// Lets hours pass in which nobody has a reading.
fn sleep(network: &mut Network, hours: u64) {
    network.asleep.fill(true);
    network.run_until(network.now + hours * HOUR);
    network.asleep.fill(false);
}

/// Places of a meter in the log: one for each of its memberships.
fn memberships(network: &Network, meter: usize) -> usize {
    let places = network.provider.membership().members().iter();
    let id = network.meters[meter].id();
    places.filter(|place| place.id == id).count()
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

#[test]
fn only_the_gateway_administrator_revokes_and_who_is_revoked_stays_out() {
    let mut network = running(7, policy(4));
    let (key, administrator) = network.world.authority.issue(Role::Administrator, None);
    let (device, utc) = (network.meters[6].id(), at(network.now).utc);
    let revocation = sign_revocation(&key, device, utc);
    let body = |certificate: &dcnet::identity::Certificate, revocation: &[u8]| {
        cbor::array([cbor::bytes(certificate.der()), cbor::bytes(revocation)])
    };
    let provider = &network.world.provider;
    let forged = sign_revocation(&provider.key, device, utc);
    for body in [
        body(&administrator, &forged),
        body(&provider.certificate, &forged),
        body(&network.world.meters[0].certificate, &revocation),
    ] {
        assert!(matches!(
            outcome(&network, EntryKind::Revoke, body),
            Err(EntryError::Body(_))
        ));
    }
    let list = RevocationList::new(1, vec![device]);
    network.input_provider(Input::Command(ProviderCommand::Revoked {
        list: list.clone(),
        administrator,
        revocations: vec![revocation, forged],
    }));
    assert_eq!(included_after(&mut network, 3), [0, 1, 2, 3, 4, 5]);
    assert_eq!(network.alarms(6), [Alarm::Revoked]);
    let members = 6;
    let meter = device;
    assert!(
        network
            .provider_events
            .contains(&ProviderEvent::Revoked { meter, members })
    );
    for meter in 0..6 {
        assert_eq!(pair_keys(&network, meter), 5);
    }
    network.saved[6].clear();
    network.restart_meter(6);
    assert_eq!(included_after(&mut network, 3).len(), 6);
}

#[test]
fn who_is_away_for_long_is_drawn_by_nobody_until_it_is_back() {
    let mut world = World::new(10, policy(4), &["import"]);
    world.provider.lapse_after = Some(Duration::from_millis(DAY));
    world
        .meters
        .iter_mut()
        .for_each(|m| m.floors.exclusions_per_day = 1000);
    let mut network = Network::new(world, Faults::default(), 9);
    network.run_until(5 * MINUTE);
    network.set_online(9, false);
    // The others need not do a day of rounds.
    (0..9).for_each(|meter| network.set_online(meter, false));
    network.run_until(DAY - 10 * MINUTE);
    (0..9).for_each(|meter| network.set_online(meter, true));
    network.run_until(DAY + 70 * MINUTE);
    let (meter, own) = (network.meters[9].id(), network.member(9));
    assert!(
        network
            .provider_events
            .contains(&ProviderEvent::Lapsed { meter })
    );
    let lapsed = |network: &Network| {
        let log = network.provider.membership();
        log.member(own).is_some_and(Member::is_lapsed)
    };
    assert!(lapsed(&network));
    assert!(network.alarms(0).is_empty(), "{:?}", network.alarms(0));
    // Nobody's counts change: all that drew it still do.
    let log = network.provider.membership();
    assert!((0..9).all(|meter| log.graph().drawn(meter, u64::MAX).contains(&own)));

    // A meter that draws now does not draw it.
    network.saved[0].clear();
    network.restart_meter(0);
    network.run_until(network.now + 3 * MINUTE);
    let log = network.provider.membership();
    let newest = log.graph().newest(network.member(0), u64::MAX).unwrap();
    assert!(!newest.neighbours.contains(&own));

    network.set_online(9, true);
    let included = included_after(&mut network, 5);
    assert!(included.contains(&9), "{included:?}");
    assert!(!lapsed(&network), "its own draw ends the lapse");
}

/// The byte strings of 32 bytes, such as keys, in the records that a meter has stored below a
/// prefix; by record.
fn stored_strings(network: &Network, meter: usize, prefix: &[u8]) -> Vec<Vec<[u8; 32]>> {
    let strings = |value: &Vec<u8>| {
        let marked = value.windows(34).filter(|w| w.starts_with(&[0x58, 32]));
        marked.map(|w| w[2..].try_into().unwrap()).collect()
    };
    let records = network.saved[meter].iter();
    records
        .filter(|((store, key), _)| *store == Store::Net && key.starts_with(prefix))
        .map(|(_, value)| strings(value))
        .collect()
}

#[test]
fn keys_of_days_whose_rounds_are_closed_are_gone_from_the_disk() {
    let mut network = running(6, policy(4));
    let first: Vec<_> = [b"edge/".as_slice(), b"device"]
        .into_iter()
        .flat_map(|prefix| stored_strings(&network, 0, prefix))
        .collect();
    assert_eq!(first.len(), 5 + 1);
    // Nobody need do two days of rounds.
    (0..6).for_each(|meter| network.set_online(meter, false));
    network.run_until(2 * DAY + 10 * MINUTE);
    (0..6).for_each(|meter| network.set_online(meter, true));
    assert_eq!(included_after(&mut network, 10).len(), 6);
    let now: Vec<_> = stored_strings(&network, 0, b"").concat();
    for (place, record) in first.iter().enumerate() {
        let gone = record.iter().filter(|string| !now.contains(string));
        assert!(gone.count() > 0, "record {place} keeps every key");
    }
}

/// Draws that a meter asked for in all its memberships.
fn draws(network: &Network, meter: usize) -> usize {
    let log = network.provider.membership();
    let places = (0..).zip(log.members());
    let own = places.filter(|(_, place)| place.id == network.meters[meter].id());
    own.map(|(place, _)| log.graph().draws(place).len()).sum()
}

#[test]
fn while_others_are_lapsed_nobody_draws_from_too_few_and_who_drew_is_there() {
    let mut world = World::new(5, policy(4), &["import"]);
    world.provider.lapse_after = Some(Duration::from_millis(DAY));
    let mut network = Network::new(world, Faults::default(), 9);
    network.run_until(5 * MINUTE);
    // Without rounds a day passes; who is at home draws again as soon as it is lapsed.
    (0..5).for_each(|meter| network.asleep[meter] = true);
    network.set_online(4, false);
    network.run_until(DAY + 90 * MINUTE);
    let lapses = |network: &Network| {
        let events = network.provider_events.iter();
        let lapsed = events.filter(|event| matches!(event, ProviderEvent::Lapsed { .. }));
        lapsed.count()
    };
    let before = lapses(&network);
    assert!(before > 0);
    let drawn: Vec<usize> = (0..5).map(|meter| draws(&network, meter)).collect();
    network.run_until(DAY + 600 * MINUTE);
    assert!(lapses(&network) <= 5, "who drew was lapsed again");

    // A meter that lost its state has too few candidates while one of the four is lapsed.
    let log = network.provider.membership();
    let away = log.members().iter().filter(|member| member.is_lapsed());
    assert_eq!(away.count(), 1);
    network.saved[0].clear();
    network.restart_meter(0);
    network.run_until(network.now + 60 * MINUTE);
    assert_eq!(draws(&network, 0), drawn[0], "it would be of no use");
    network.set_online(4, true);
    (0..5).for_each(|meter| network.asleep[meter] = false);
    let included = included_after(&mut network, 10);
    assert_eq!(included, [0, 1, 2, 3, 4]);
}

#[test]
fn a_false_lapse_is_an_alarm_and_no_more_than_a_fifth_can_lapse() {
    let mut network = running(10, policy(4));
    let lapse = |network: &Network, meter| cbor::array([cbor::bytes(&join_of(network, meter))]);
    for (meter, outcome) in [
        (0, Ok(())),
        (1, Ok(())),
        (
            2,
            Err(EntryError::Rule("more than a fifth of the members lapse")),
        ),
    ] {
        let body = lapse(&network, meter);
        assert_eq!(append(&mut network, EntryKind::Lapsed, body), outcome);
    }
    network.run_until(network.now + MINUTE);
    let accused: Vec<DeviceId> = (0..2).map(|meter| network.meters[meter].id()).collect();
    for meter in 0..10 {
        let alarms = network.alarms(meter);
        assert_eq!(
            alarms,
            [0, 1].map(|i| Alarm::FalseLapse { meter: accused[i] })
        );
    }
}

#[test]
fn the_provider_changes_its_key_and_the_old_one_is_worth_nothing() {
    let mut network = running(6, policy(4));
    let (old, old_certificate) = (
        network.world.provider.key.clone(),
        network.world.provider.certificate.clone(),
    );
    let successor = network.world.authority.issue(Role::Provider, None);
    network.world.provider.successor = Some(successor.clone());
    network.restart_provider();
    assert_eq!(included_after(&mut network, 3).len(), 6);
    assert!((0..6).all(|meter| network.heard(meter, &MeterEvent::ProviderChanged)));
    assert_eq!(
        network.provider.membership().provider().id(),
        successor.1.id()
    );

    // The old key signs nothing that anybody takes any more.
    let body = cbor::array([cbor::bytes(&join_of(&network, 0))]);
    let by_old = outcome(&network, EntryKind::Lapsed, body);
    assert_eq!(by_old, Err(EntryError::Frame(FrameError::Signature)));
    let mut roster = network.newest_roster();
    roster.round.0 += 1;
    roster.previous = Some(roster.hash);
    let frame = roster.sign(&old, network.provider.membership(), at(network.now).utc);
    network.show_roster(0, frame);
    assert!(network.meter_events[0].iter().any(|event| matches!(
        event,
        MeterEvent::Refused { reason, .. } if reason.to_string().contains("signature")
    )));

    // The successor alone goes on, and meters start again on the whole log.
    (
        network.world.provider.key,
        network.world.provider.certificate,
    ) = successor.clone();
    network.world.provider.successor = None;
    network.restart_provider();
    network.restart_meter(3);
    assert_eq!(included_after(&mut network, 3).len(), 6);

    // A meter enrolled since then pins the successor, one with a stranger stays silent.
    let stranger = network.world.authority.issue(Role::Provider, None).1;
    for (meter, pinned) in [(1, successor.1), (2, stranger)] {
        network.world.meters[meter].provider = pinned;
        network.restart_meter(meter);
    }
    assert_eq!(included_after(&mut network, 3), [0, 1, 3, 4, 5]);
    let silences = network.silences(2, network.last_round());
    assert!(
        silences.contains(&Silence::CheckpointNotReached),
        "{silences:?}"
    );
    assert!(old_certificate.id() != network.world.provider.certificate.id());
}

#[test]
fn a_handover_needs_both_keys() {
    let network = running(5, policy(4));
    let (key, certificate) = network.world.authority.issue(Role::Provider, None);
    let log = network.provider.membership();
    let utc = at(network.now).utc;
    // Consent by another key than the certificate's.
    let forged = log.succession(&network.world.provider.key, &certificate, utc);
    assert_eq!(
        outcome(&network, EntryKind::ProviderKey, forged),
        in_body(FrameError::Sender)
    );
    let (meter_key, meter) = (
        &network.world.meters[0].key,
        &network.world.meters[0].certificate,
    );
    let of_a_meter = log.succession(meter_key, meter, utc);
    assert!(outcome(&network, EntryKind::ProviderKey, of_a_meter).is_err());
    let right = log.succession(&key, &certificate, utc);
    assert_eq!(outcome(&network, EntryKind::ProviderKey, right), Ok(()));
}

#[test]
fn a_meter_left_with_too_few_neighbours_raises_the_emergency_and_draws_again() {
    let mut network = running(12, drawn_by(3));
    let log = network.provider.membership();
    let drawn = log.graph().drawn(network.member(0), u64::MAX);
    let gone = (0..12)
        .find(|meter| network.member(*meter) == drawn[0])
        .unwrap();
    leave(&mut network, gone);
    let included = included_after(&mut network, 4);
    assert_eq!(included.len(), 11);
    let emergency = Alarm::Emergency {
        neighbours: 2,
        required: 3,
    };
    assert_eq!(network.alarms(0), [emergency]);
    let log = network.provider.membership();
    assert_eq!(log.graph().draws(network.member(0)).len(), 2);
}

#[test]
fn a_meter_draws_again_when_half_of_its_draw_has_left() {
    let mut network = running(16, drawn_by(9));
    let own = network.member(0);
    let drawn = network.provider.membership().graph().drawn(own, u64::MAX);
    let drawn: Vec<usize> = (1..16)
        .filter(|meter| drawn.contains(&network.member(*meter)))
        .collect();
    for meter in drawn.iter().take(4) {
        leave(&mut network, *meter);
    }
    assert_eq!(included_after(&mut network, 4).len(), 12);
    let draws = |network: &Network| network.provider.membership().graph().draws(own).len();
    assert_eq!(draws(&network), 1, "five of nine are left");
    leave(&mut network, drawn[4]);
    assert_eq!(included_after(&mut network, 4).len(), 11);
    assert_eq!(draws(&network), 2);
    assert_eq!(network.alarms(0), []);
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
