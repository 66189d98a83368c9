//! Members leave, come back, lose their state, are revoked or lapse, and the provider
//! changes its key: every aggregate stays true, and nobody can do it for another.

mod exits;
mod losses;
#[path = "../support/mod.rs"]
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

/// What a meter has stored of the net: the first parts of the records' names.
fn kept(network: &Network, meter: usize) -> Vec<String> {
    let records = network.saved[meter].keys();
    let of_net = records.filter(|(store, _)| *store == Store::Net);
    let names = of_net.map(|(_, key)| String::from_utf8_lossy(key).into_owned());
    let mut names: Vec<String> = names
        .map(|name| name.split('/').next().unwrap_or_default().to_owned())
        .collect();
    names.dedup();
    names
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
fn a_meter_draws_again_after_a_year() {
    let six_hours = Policy {
        period: Period::from_secs(21_600).unwrap(),
        ..policy(4)
    };
    let mut network = Network::new(World::new(6, six_hours, &["import"]), Faults::default(), 7);
    assert_eq!(included_after(&mut network, 24 * 60).len(), 6);
    let all = |network: &Network| [0, 1, 2, 3, 4, 5].map(|meter| draws(network, meter));
    sleep(&mut network, 363 * 24);
    assert_eq!(all(&network), [1; 6]);
    sleep(&mut network, 2 * 24);
    assert_eq!(all(&network), [2; 6]);
    assert_eq!(included_after(&mut network, 24 * 60).len(), 6);
    sleep(&mut network, 30 * 24);
    assert_eq!(all(&network), [2; 6], "the next one is due in a year");
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
fn who_is_away_when_it_is_revoked_learns_it_from_the_log_when_it_is_back() {
    let mut network = running(6, policy(4));
    network.set_online(5, false);
    let (key, administrator) = network.world.authority.issue(Role::Administrator, None);
    let (device, utc) = (network.meters[5].id(), at(network.now).utc);
    network.input_provider(Input::Command(ProviderCommand::Revoked {
        list: RevocationList::new(1, vec![device]),
        administrator,
        revocations: vec![sign_revocation(&key, device, utc)],
    }));
    network.run_until(network.now + MINUTE);
    assert_eq!(network.alarms(5), []);
    network.set_online(5, true);
    network.run_until(network.now + 2 * MINUTE);
    assert_eq!(network.alarms(5), [Alarm::Revoked]);
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
fn a_clock_that_is_not_right_accuses_nobody_of_a_false_lapse() {
    let mut network = running(10, policy(4));
    network.skews[0].unsynchronised = true;
    let body = cbor::array([cbor::bytes(&join_of(&network, 9))]);
    assert_eq!(append(&mut network, EntryKind::Lapsed, body), Ok(()));
    network.run_until(network.now + MINUTE);
    let meter = network.meters[9].id();
    assert_eq!(network.alarms(1), [Alarm::FalseLapse { meter }]);
    assert_eq!(network.alarms(0), []);
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
