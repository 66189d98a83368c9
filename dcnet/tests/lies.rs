//! What a provider, a corrupted meter or the network may lie about, and what becomes of it.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use curve25519_dalek::scalar::Scalar;
use dcnet::aggregate::Disruption;
use dcnet::alarm::{Alarm, Refusal};
use dcnet::cbor::{self, Fields};
use dcnet::frame::{self, Frame, FrameError, Notification};
use dcnet::identity::{DeviceId, DeviceKey, Role};
use dcnet::membership::{EntryError, EntryKind, Membership, sign_exit, sign_registration};
use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, StateMachine};
use dcnet::provider::{ProviderCommand, ProviderEvent};
use dcnet::reveal::Reveal;
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::superposition::Submission;
use dcnet::time::Day;
use dcnet::topic::{All, Inbox, Topic, Up};

use simulation::network::{Faults, Network};
use simulation::world::{Authority, World, at, policy};
use support::join_of;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const VICTIM: usize = 0;

fn start() -> Network {
    let world = World::new(5, policy(4), &["import"]);
    let mut network = Network::new(world, Faults::default(), 1);
    network.keep_published = true;
    network
}

/// A net whose first rounds are over.
fn running() -> Network {
    let mut network = start();
    network.run_until(3 * MINUTE + 30 * SECOND);
    assert!(network.revealed(VICTIM, network.last_round()));
    network
}

/// A Join of a meter that nobody knows yet, as the next entry of a log.
fn strangers_join(network: &Network, log: &Membership) -> Vec<u8> {
    let (net, utc) = (network.world.net, at(network.now).utc);
    let (key, certificate) = network.world.authority.issue(Role::Meter, Some(net));
    let registration = sign_registration(&key, &certificate, net, utc);
    let body = cbor::array([cbor::bytes(&registration)]);
    log.sign_next(&network.world.provider.key, EntryKind::Join, body, utc)
}

fn refusals(network: &Network, meter: usize) -> Vec<Refusal> {
    let events = network.meter_events[meter].iter();
    let refusal = |event: &MeterEvent| match event {
        MeterEvent::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    events.filter_map(refusal).collect()
}

fn provider_refusals(network: &Network) -> Vec<Refusal> {
    let events = network.provider_events.iter();
    let refusal = |event: &ProviderEvent| match event {
        ProviderEvent::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    events.filter_map(refusal).collect()
}

fn provider_alarms(network: &Network) -> Vec<Alarm> {
    let events = network.provider_events.iter();
    let alarm = |event: &ProviderEvent| match event {
        ProviderEvent::Alarm(alarm) => Some(alarm.clone()),
        _ => None,
    };
    events.filter_map(alarm).collect()
}

fn speaks_next_round(network: &mut Network) -> bool {
    let end = (network.now / MINUTE + 1) * MINUTE + 30 * SECOND;
    network.run_until(end);
    network.submitted(VICTIM, network.last_round())
}

// The log.

#[test]
fn a_second_entry_in_one_place_stops_a_meter_for_good() {
    let mut network = running();
    let head = usize::try_from(network.provider.membership().head().index).unwrap();
    let fork = strangers_join(&network, &network.log_until(head - 1));
    network.show_entry(VICTIM, fork);
    let index = u64::try_from(head).unwrap();
    assert_eq!(network.alarms(VICTIM), [Alarm::LogFork { index }]);
    assert!(!speaks_next_round(&mut network));
    network.restart_meter(VICTIM);
    assert!(!speaks_next_round(&mut network));
}

#[test]
fn an_entry_with_another_past_stops_a_meter() {
    let mut network = running();
    let head = usize::try_from(network.provider.membership().head().index).unwrap();
    let mut other = network.log_until(head - 1);
    let fork = strangers_join(&network, &other);
    other.append(&fork).unwrap();
    let next = strangers_join(&network, &other);
    network.show_entry(VICTIM, next);
    let index = u64::try_from(head).unwrap() + 1;
    assert_eq!(network.alarms(VICTIM), [Alarm::LogFork { index }]);
    assert!(!speaks_next_round(&mut network));
}

#[test]
fn a_true_next_entry_is_taken() {
    let mut network = running();
    let entry = strangers_join(&network, network.provider.membership());
    network.show_entry(VICTIM, entry);
    assert_eq!(network.alarms(VICTIM), []);
}

#[test]
fn a_second_genesis_is_refused() {
    let mut network = running();
    let (key, utc) = (network.world.provider.key.clone(), at(network.now).utc);
    let log = network.provider.membership();
    let body = || cbor::array([]);
    let next = log.sign_next(&key, EntryKind::Genesis, body(), utc);
    network.show_entry(VICTIM, next);
    let rule = EntryError::Rule("a second Genesis");
    assert_eq!(network.alarms(VICTIM), [Alarm::BadEntry(rule)]);
    assert!(speaks_next_round(&mut network));
    // In the place of the first one it is a fork.
    let null = ciborium::Value::Null;
    let data = cbor::array([cbor::uint(0u8), null, cbor::uint(0u8), body()]);
    let net = network.world.net;
    let first = frame::sign(&key, net, utc, Notification::Entry, data);
    network.show_entry(VICTIM, first);
    let alarms = network.alarms(VICTIM);
    assert_eq!(alarms.last(), Some(&Alarm::LogFork { index: 0 }));
    assert!(!speaks_next_round(&mut network));
}

#[test]
fn entries_in_any_order_give_one_log() {
    let network = running();
    let entries = network.saved_net.entries.clone();
    let config = network.world.meters[VICTIM].clone();
    let mut meter = Meter::new(config, Vec::new(), [3; 32], at(0)).unwrap();
    let topic = Topic::All {
        net: network.world.net,
        kind: All::Log,
    };
    let order = std::iter::once(&entries[0]).chain(entries[1..].iter().rev());
    for payload in order {
        let payload = payload.clone();
        let message = dcnet::output::Received { topic, payload };
        meter.handle(Input::Received(vec![message]), at(0));
    }
    let head = meter.membership().unwrap().head();
    assert_eq!(head, network.provider.membership().head());
}

/// Entries that the provider signs although what they contain is forged, by name, as the next
/// of a log.
fn forgeries(network: &Network, log: &Membership) -> Vec<(&'static str, Vec<u8>)> {
    let world = &network.world;
    let (net, utc) = (world.net, at(network.now).utc);
    let next = |kind, body| log.sign_next(&world.provider.key, kind, body, utc);
    let one = |bytes: &[u8]| cbor::array([cbor::bytes(bytes)]);

    let member = &world.meters[1];
    let mut exit = sign_exit(&member.key, net, &join_of(network, 1), utc);
    *exit.last_mut().unwrap() ^= 1;
    let stranger = Authority::new(99);
    let (foreign_key, foreign) = stranger.issue(Role::Meter, Some(net));
    let foreign = sign_registration(&foreign_key, &foreign, net, utc);
    let victim = network.meters[VICTIM].id();
    let revocation = sign_revocation(&member.key, victim, utc);
    let by_member = cbor::array([
        cbor::bytes(member.certificate.der()),
        cbor::bytes(&revocation),
    ]);
    let succession = log.succession(&member.key, &member.certificate, utc);
    vec![
        ("exit", next(EntryKind::Leave, one(&exit))),
        (
            "certificate of another CA",
            next(EntryKind::Join, one(&foreign)),
        ),
        ("revocation by a meter", next(EntryKind::Revoke, by_member)),
        (
            "provider key of a meter",
            next(EntryKind::ProviderKey, succession),
        ),
        ("form", next(EntryKind::Leave, one(&[0; 3]))),
    ]
}

/// The alarms about bad entries of the victim.
fn bad_entries(network: &Network) -> usize {
    let alarms = network.alarms(VICTIM);
    let bad = |alarm: &&Alarm| matches!(alarm, Alarm::BadEntry(EntryError::Body(_)));
    alarms.iter().filter(bad).count()
}

#[test]
fn a_forgery_inside_an_entry_of_the_provider_is_told_once() {
    for place in 0..5 {
        let mut network = running();
        let log = network.provider.membership();
        let (name, forged) = forgeries(&network, log).swap_remove(place);
        let head = log.head();
        let asked = network.sent(VICTIM, Up::Log).len();
        for _ in 0..20 {
            network.show_entry(VICTIM, forged.clone());
        }
        assert_eq!(network.alarms(VICTIM).len(), 1, "{name}");
        assert_eq!(bad_entries(&network), 1, "{name}");
        assert_eq!(network.meters[VICTIM].membership().unwrap().head(), head);
        // It knows whose fault it is, and asks nobody for another key.
        assert_eq!(network.sent(VICTIM, Up::Log).len(), asked, "{name}");
    }
}

#[test]
fn a_forgery_that_comes_early_is_told_when_its_place_comes() {
    for place in 0..5 {
        let mut network = running();
        let mut log = network.provider.membership().clone();
        let entry = strangers_join(&network, &log);
        log.append(&entry).unwrap();
        let (name, forged) = forgeries(&network, &log).swap_remove(place);
        network.show_entry(VICTIM, forged.clone());
        assert_eq!(network.alarms(VICTIM), [], "{name}");
        network.show_entry(VICTIM, entry);
        assert_eq!(bad_entries(&network), 1, "{name}");
        network.show_entry(VICTIM, forged);
        assert_eq!(bad_entries(&network), 1, "{name}");
    }
}

#[test]
fn true_frames_inside_entries_are_no_alarm() {
    let mut network = running();
    let (net, utc) = (network.world.net, at(network.now).utc);
    let exit = sign_exit(
        &network.world.meters[1].key,
        net,
        &join_of(&network, 1),
        utc,
    );
    let mut log = network.provider.membership().clone();
    let provider = &network.world.provider.key;
    let body = cbor::array([cbor::bytes(&exit)]);
    let leave = log.sign_next(provider, EntryKind::Leave, body, utc);
    log.append(&leave).unwrap();
    let join = strangers_join(&network, &log);
    for entry in [join, leave] {
        network.show_entry(VICTIM, entry);
    }
    assert_eq!(network.alarms(VICTIM), []);
    assert!(network.meters[VICTIM].membership().unwrap().head().index > log.head().index);
}

#[test]
fn an_unknown_key_makes_a_meter_ask_for_the_log_once_in_a_while() {
    let mut network = running();
    let log = network.provider.membership();
    let (key, _) = network.world.authority.issue(Role::Provider, None);
    let utc = at(network.now).utc;
    let entry = log.sign_next(&key, EntryKind::Leave, cbor::array([]), utc);
    let (net, meter) = (network.world.net, network.meters[VICTIM].id());
    let kind = Inbox::Log;
    let asked = network.sent(VICTIM, Up::Log).len();
    for _ in 0..20 {
        network.deliver(VICTIM, Topic::Inbox { net, meter, kind }, entry.clone());
    }
    assert_eq!(network.sent(VICTIM, Up::Log).len(), asked + 1);
    // The pace of a net with a window of 20 s.
    network.run_until(network.now + 20 * SECOND);
    network.deliver(VICTIM, Topic::Inbox { net, meter, kind }, entry);
    assert_eq!(network.sent(VICTIM, Up::Log).len(), asked + 2);
    assert_eq!(network.alarms(VICTIM), []);
}

// Draws.

/// The bodies of the victim's Invite and Draw: its signed request and its signed Open.
fn request_and_open(network: &Network) -> (Vec<u8>, Vec<u8>) {
    let sent = network.sent(VICTIM, Up::Draw);
    let key = network.world.meters[VICTIM].key.public();
    let of = |kind| {
        let is =
            |bytes: &&Vec<u8>| Frame::verify(bytes, &key).unwrap().header().notification == kind;
        sent.iter().find(is).unwrap().clone()
    };
    (of(Notification::DrawRequest), of(Notification::Open))
}

fn invite(network: &Network, log: &Membership, request: &[u8], nonce: u8) -> Vec<u8> {
    let body = cbor::array([cbor::bytes(request), cbor::bytes(&[nonce; 32])]);
    let utc = at(network.now).utc;
    log.sign_next(&network.world.provider.key, EntryKind::Invite, body, utc)
}

fn draw(network: &Network, log: &Membership, open: &[u8]) -> Vec<u8> {
    let body = cbor::array([cbor::bytes(open)]);
    let utc = at(network.now).utc;
    log.sign_next(&network.world.provider.key, EntryKind::Draw, body, utc)
}

#[test]
fn a_draw_request_is_good_for_one_invite() {
    let mut network = running();
    let (request, _) = request_and_open(&network);
    let entry = invite(&network, network.provider.membership(), &request, 9);
    network.show_entry(VICTIM, entry);
    let rule = EntryError::Rule("a draw request is used twice");
    assert_eq!(network.alarms(VICTIM), [Alarm::BadEntry(rule)]);
}

/// The log up to and with the victim's Invite.
fn log_at_invite(network: &Network) -> Membership {
    let member = network.member(VICTIM);
    let length = network.saved_net.entries.len();
    let mut logs = (1..length).map(|index| network.log_until(index));
    logs.find(|log| log.open_invite(member).is_some()).unwrap()
}

#[test]
fn no_second_invite_while_one_is_open() {
    let network = running();
    let (request, _) = request_and_open(&network);
    let mut log = log_at_invite(&network);
    let second = invite(&network, &log, &request, 9);
    let rule = EntryError::Rule("a draw of this member is still open");
    assert_eq!(log.append(&second), Err(rule));
}

#[test]
fn a_draw_opens_the_nonce_that_was_committed_to() {
    let network = running();
    let key = &network.world.meters[VICTIM].key;
    let (_, open) = request_and_open(&network);
    let mut log = log_at_invite(&network);
    let hash = log.open_invite(network.member(VICTIM)).unwrap().hash;
    let data = cbor::array([cbor::bytes(&hash), cbor::bytes(&[1; 32])]);
    let (net, utc) = (network.world.net, at(network.now).utc);
    let other = frame::sign(key, net, utc, Notification::Open, data);
    let rule = EntryError::Rule("the nonce is not the one committed to");
    assert_eq!(log.append(&draw(&network, &log, &other)), Err(rule));
    assert!(log.append(&draw(&network, &log, &open)).is_ok());
}

#[test]
fn a_provider_that_knows_the_nonce_gets_no_second_draw() {
    let network = running();
    let (request, open) = request_and_open(&network);
    let none_open = Err(EntryError::Rule("no such invite is open"));
    // The Open again, after the Draw.
    let mut log = network.provider.membership().clone();
    assert_eq!(log.append(&draw(&network, &log, &open)), none_open);
    // Another nonce of the provider's in a log of its own: the Open names another Invite.
    let honest = log_at_invite(&network);
    let before = usize::try_from(honest.head().index).unwrap() - 1;
    for nonce in 0..20 {
        let mut other = network.log_until(before);
        let ground = invite(&network, &other, &request, nonce);
        other.append(&ground).unwrap();
        assert_eq!(other.append(&draw(&network, &other, &open)), none_open);
    }
    // A fresh request of the meter's, which the provider cannot make, does not help.
    let data = cbor::array([cbor::bytes(&[5; 32])]);
    let (net, utc) = (network.world.net, at(network.now).utc);
    let key = &network.world.meters[VICTIM].key;
    let fresh = frame::sign(key, net, utc, Notification::DrawRequest, data.clone());
    let mut log = network.provider.membership().clone();
    let entry = invite(&network, &log, &fresh, 1);
    log.append(&entry).unwrap();
    assert_eq!(log.append(&draw(&network, &log, &open)), none_open);
    let provider = &network.world.provider.key;
    let forged = frame::sign(provider, net, utc, Notification::DrawRequest, data);
    let mut log = network.provider.membership().clone();
    let refused = log.append(&invite(&network, &log, &forged, 1));
    let sender = EntryError::from(FrameError::Sender);
    assert_eq!(refused, Err(EntryError::Body(Box::new(sender))));
}

// Handshakes.

/// A net whose meters ask for draws that never reach the provider.
fn start_without_draws() -> Network {
    let mut network = start();
    network.filter = Some(Box::new(|topic, receiver, _| {
        let is_draw = matches!(topic, Topic::Up { kind: Up::Draw, .. });
        receiver.is_some() || !is_draw
    }));
    network.run_until(MINUTE);
    network
}

/// How often the victim blamed the provider for its draw that is not done.
fn blames(network: &Network) -> usize {
    let alarms = network.alarms(VICTIM);
    alarms
        .iter()
        .filter(|alarm| **alarm == Alarm::DrawAbandoned)
        .count()
}

#[test]
fn a_provider_that_leaves_a_draw_open_for_a_day_is_blamed_by_who_kept_asking() {
    let mut network = start_without_draws();
    (0..5).for_each(|meter| network.set_online(meter, false));
    network.run_until(25 * 60 * MINUTE);
    assert_eq!(blames(&network), 0, "it was away itself");
    network.set_online(VICTIM, true);
    network.run_until(network.now + 50 * MINUTE);
    assert_eq!(blames(&network), 0, "the provider had no hour to answer");
    network.run_until(network.now + 30 * MINUTE);
    assert_eq!(blames(&network), 1);
    network.run_until(network.now + 60 * MINUTE);
    assert_eq!(blames(&network), 1, "told once");
}

#[test]
fn nobody_is_blamed_for_the_draw_of_a_revoked_meter() {
    let mut network = start_without_draws();
    let (key, administrator) = network.world.authority.issue(Role::Administrator, None);
    let device = network.meters[VICTIM].id();
    let revocation = sign_revocation(&key, device, at(network.now).utc);
    network.input_provider(Input::Command(ProviderCommand::Revoked {
        list: RevocationList::new(1, vec![device]),
        administrator,
        revocations: vec![revocation],
    }));
    network.run_until(2 * MINUTE);
    assert_eq!(network.alarms(VICTIM), [Alarm::Revoked]);
    (0..5).for_each(|meter| network.set_online(meter, false));
    network.run_until(25 * 60 * MINUTE);
    network.set_online(VICTIM, true);
    network.run_until(network.now + 90 * MINUTE);
    assert_eq!(network.alarms(VICTIM), [Alarm::Revoked]);
}

#[test]
fn nobody_is_blamed_for_the_draw_of_a_meter_that_left() {
    let mut network = start_without_draws();
    network.input_meter(VICTIM, Input::Command(MeterCommand::Leave));
    (1..5).for_each(|meter| network.set_online(meter, false));
    network.run_until(26 * 60 * MINUTE);
    assert_eq!(network.provider.membership().size(), 4);
    assert_eq!(network.alarms(VICTIM), []);
}

fn kind_of(payload: &[u8]) -> Notification {
    let frame = frame::Unverified::parse(payload).unwrap();
    frame.claimed().notification
}

/// Stops the first handshake message of one kind on its way to the provider and
/// returns sender, receiver and bytes. The sender's repetition passes later.
fn catch(kind: Notification) -> (Network, DeviceId, DeviceId, Vec<u8>) {
    let mut network = start();
    let caught = Rc::new(RefCell::new(None));
    let catcher = Rc::clone(&caught);
    network.filter = Some(Box::new(move |topic, _, payload| {
        let Topic::UpPair { meter, peer, .. } = topic else {
            return true;
        };
        if kind_of(payload) != kind {
            return true;
        }
        let mut caught = catcher.borrow_mut();
        let pair = (*meter, *peer);
        match &*caught {
            None => {
                *caught = Some((pair, payload.to_vec()));
                false
            }
            Some((first, _)) => *first != pair,
        }
    }));
    network.run_until(SECOND);
    network.filter = None;
    let ((sender, receiver), payload) = caught.borrow().clone().unwrap();
    (network, sender, receiver, payload)
}

fn place(network: &Network, id: DeviceId) -> usize {
    network.meters.iter().position(|m| m.id() == id).unwrap()
}

fn inbox(network: &Network, to: DeviceId, from: DeviceId) -> Topic {
    Topic::InboxPair {
        net: network.world.net,
        meter: to,
        peer: from,
    }
}

fn handshake_alarms(network: &Network, meter: usize) -> Vec<&'static str> {
    let alarms = network.alarms(meter).into_iter();
    let reason = |alarm| match alarm {
        Alarm::Handshake { reason, .. } => Some(reason),
        _ => None,
    };
    alarms.filter_map(reason).collect()
}

/// All edges are established in the end, and the sums are true.
fn completes(network: &mut Network) {
    network.run_until(6 * MINUTE + 30 * SECOND);
    let all = network.meters.iter().map(|m| m.live_neighbours().len());
    assert!(all.into_iter().all(|live| live == 4));
    assert!(!network.aggregates.is_empty());
    network.check_aggregates();
}

const HALVES: [Notification; 3] = [
    Notification::Offer,
    Notification::Answer,
    Notification::Confirm,
];

#[test]
fn a_modified_half_is_refused_and_costs_nothing() {
    for kind in HALVES {
        let (mut network, from, to, payload) = catch(kind);
        let receiver = place(&network, to);
        let topic = inbox(&network, to, from);
        for place in [payload.len() - 1, payload.len() - 70] {
            let mut modified = payload.clone();
            modified[place] ^= 1;
            network.deliver(receiver, topic, modified);
        }
        assert_eq!(refusals(&network, receiver).len(), 2, "{kind:?}");
        assert_eq!(handshake_alarms(&network, receiver).len(), 0);
        completes(&mut network);
    }
}

#[test]
fn replayed_halves_change_nothing() {
    let mut network = start();
    network.run_until(3 * MINUTE + 30 * SECOND);
    let halves: Vec<(Topic, Vec<u8>)> = network
        .published
        .iter()
        .filter(|(from, message)| {
            from.is_none() && matches!(message.topic, Topic::InboxPair { .. })
        })
        .map(|(_, message)| (message.topic, message.payload.clone()))
        .collect();
    assert!(halves.len() >= 40);
    for (topic, payload) in halves {
        if let Topic::InboxPair { meter, .. } = topic {
            let receiver = place(&network, meter);
            network.deliver(receiver, topic, payload);
        }
    }
    for meter in 0..5 {
        assert_eq!(network.alarms(meter), []);
    }
    completes(&mut network);
}

/// A half with some of its fields changed by the meter that signs it.
fn forged(
    network: &Network,
    payload: &[u8],
    signer: DeviceId,
    change: impl FnOnce(&mut Vec<ciborium::Value>),
) -> Vec<u8> {
    let key = network.world.meters[place(network, signer)].key.clone();
    let payload_bytes = frame_payload(payload);
    let mut fields = Fields::of(cbor::decode(payload_bytes).unwrap(), "payload").unwrap();
    (0..7).for_each(|_| drop(fields.item("header").unwrap()));
    let Ok(ciborium::Value::Array(mut data)) = fields.item("data") else {
        panic!("no array");
    };
    change(&mut data);
    let utc = at(network.now).utc;
    let net = network.world.net;
    frame::sign(&key, net, utc, kind_of(payload), cbor::array(data))
}

/// The payload of a frame whose payload has 24 to 65535 bytes.
fn frame_payload(frame: &[u8]) -> &[u8] {
    let head = if frame[7] == 0x58 { 9 } else { 10 };
    assert!([0x58, 0x59].contains(&frame[7]));
    &frame[head..frame.len() - 66]
}

#[test]
fn a_half_of_another_origin_is_refused() {
    for kind in HALVES {
        let (mut network, from, to, payload) = catch(kind);
        let receiver = place(&network, to);
        let other = forged(&network, &payload, from, |data| {
            data[2] = cbor::bytes(&[1; 32]);
        });
        network.deliver(receiver, inbox(&network, to, from), other);
        let reason: Refusal = FrameError::Bound("pair").into();
        assert_eq!(refusals(&network, receiver), [reason], "{kind:?}");
        completes(&mut network);
    }
}

#[test]
fn a_wrong_confirmation_tag_is_an_alarm_and_no_key() {
    let (mut network, from, to, payload) = catch(Notification::Confirm);
    let receiver = place(&network, to);
    let wrong = forged(&network, &payload, from, |data| {
        data[3] = cbor::bytes(&[1; 32]);
    });
    let before = network.meters[receiver].live_neighbours().len();
    network.deliver(receiver, inbox(&network, to, from), wrong);
    assert_eq!(
        handshake_alarms(&network, receiver),
        ["a wrong confirmation tag"]
    );
    assert_eq!(network.meters[receiver].live_neighbours().len(), before);
    completes(&mut network);
}

#[test]
fn an_all_zero_secret_is_an_alarm_and_no_key() {
    for kind in [Notification::Offer, Notification::Answer] {
        let (mut network, from, to, payload) = catch(kind);
        let receiver = place(&network, to);
        let zero = forged(&network, &payload, from, |data| {
            data[4] = cbor::bytes(&[0; 32]);
        });
        network.deliver(receiver, inbox(&network, to, from), zero);
        assert_eq!(
            handshake_alarms(&network, receiver),
            ["an all-zero shared secret"]
        );
        let live = network.meters[receiver].live_neighbours();
        assert!(!live.contains(&from));
        completes(&mut network);
    }
}

#[test]
fn a_first_day_that_is_not_about_today_is_refused() {
    let (mut network, from, to, payload) = catch(Notification::Offer);
    let receiver = place(&network, to);
    let Day(today) = at(network.now).utc.day();
    let far = forged(&network, &payload, from, |data| {
        data[3] = cbor::uint(today + 2);
    });
    network.deliver(receiver, inbox(&network, to, from), far);
    assert!(matches!(
        refusals(&network, receiver)[..],
        [Refusal::Rule(_)]
    ));
    completes(&mut network);
}

/// The pair key that a meter has stored for its edge to another, if both have proved it.
fn stored_key(network: &Network, meter: usize, peer: usize) -> Vec<u8> {
    let peer = network.meters[peer].id();
    let prefix = format!("edge/{peer}/").into_bytes();
    let records = network.saved[meter].iter();
    let mut edges = records.filter(|((_, key), _)| key.starts_with(&prefix));
    edges.next().unwrap().1.clone()
}

/// Two meters, the one with the lower id first.
fn lower_and_higher(network: &Network) -> (usize, usize) {
    match network.meters[0].id() < network.meters[1].id() {
        true => (0, 1),
        false => (1, 0),
    }
}

/// Takes the record of an edge from a meter's disk.
fn forget_edge(network: &mut Network, meter: usize, peer: usize) {
    let prefix = format!("edge/{}/", network.meters[peer].id()).into_bytes();
    network.saved[meter].retain(|(_, key), _| !key.starts_with(&prefix));
}

#[test]
fn a_key_in_use_is_not_replaced_and_who_lost_it_is_named_once() {
    let mut network = running();
    let (lower, higher) = lower_and_higher(&network);
    let before = stored_key(&network, higher, lower);
    // A restart alone offers nothing.
    network.restart_meter(lower);
    network.run_until(network.now + 3 * MINUTE);
    assert_eq!(network.alarms(higher), []);
    forget_edge(&mut network, lower, higher);
    network.restart_meter(lower);
    network.run_until(network.now + 20 * MINUTE);
    let alarm = Alarm::Handshake {
        meter: network.meters[lower].id(),
        reason: "it offers another key than the one that is in use",
    };
    assert_eq!(network.alarms(higher), [alarm]);
    assert_eq!(stored_key(&network, higher, lower), before);
    network.check_aggregates();
}

#[test]
fn an_offer_that_nobody_got_for_days_is_made_anew() {
    let mut network = start();
    let (lower, higher) = lower_and_higher(&network);
    let (from, to) = (network.meters[lower].id(), network.meters[higher].id());
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::UpPair { meter, peer, .. } if (*meter, *peer) == (from, to)),
    ));
    network.run_until(3 * MINUTE);
    network.asleep.fill(true);
    network.run_until(3 * 24 * 60 * MINUTE);
    assert_eq!(network.meters[higher].live_neighbours().len(), 3);
    network.filter = None;
    // An offer is repeated every five minutes at least.
    network.run_until(network.now + 6 * MINUTE);
    for (meter, peer) in [(lower, to), (higher, from)] {
        assert!(network.meters[meter].live_neighbours().contains(&peer));
    }
    assert_eq!(refusals(&network, higher), []);
}

#[test]
fn an_unproved_key_is_replaced_if_the_other_end_lost_it() {
    let mut network = start();
    let (lower, higher) = lower_and_higher(&network);
    let (from, to) = (network.meters[lower].id(), network.meters[higher].id());
    // The answer comes, the confirmation does not.
    network.filter = Some(Box::new(move |topic, _, payload| {
        let of_pair =
            matches!(topic, Topic::UpPair { meter, peer, .. } if (*meter, *peer) == (from, to));
        !of_pair || kind_of(payload) != Notification::Confirm
    }));
    network.run_until(10 * SECOND);
    let unproved = stored_key(&network, higher, lower);
    forget_edge(&mut network, lower, higher);
    network.restart_meter(lower);
    network.filter = None;
    completes(&mut network);
    assert!(stored_key(&network, higher, lower) != unproved);
    for meter in [lower, higher] {
        assert_eq!(network.alarms(meter), []);
    }
}

// Rounds.

#[test]
fn a_frame_on_a_wrong_topic_is_refused() {
    let mut network = running();
    let submission = network.sent(VICTIM, Up::Submission).pop().unwrap();
    let (net, own) = (network.world.net, network.meters[VICTIM].id());
    let other = network.meters[1].id();
    let up = |meter, kind| Topic::Up { net, meter, kind };
    let before = provider_refusals(&network).len();
    network.deliver_up(up(own, Up::Reveal), submission.clone());
    network.deliver_up(up(other, Up::Submission), submission.clone());
    network.deliver_up(
        Topic::All {
            net,
            kind: All::Roster,
        },
        submission,
    );
    let refused = provider_refusals(&network).split_off(before);
    assert_eq!(
        refused,
        [Refusal::Topic, FrameError::Sender.into(), Refusal::Topic]
    );

    let roster = network.saved_net.rosters.last().unwrap().frame.clone();
    network.show_entry(VICTIM, roster.clone());
    network.deliver(VICTIM, up(own, Up::Submission), roster);
    let kind: Refusal = EntryError::Frame(FrameError::Kind).into();
    assert_eq!(refusals(&network, VICTIM), [kind, Refusal::Topic]);
    assert!(speaks_next_round(&mut network));
}

fn read_submission(network: &Network, meter: usize, bytes: &[u8]) -> Submission {
    let key = network.world.meters[meter].key.public();
    let frame = Frame::verify(bytes, &key).unwrap();
    Submission::read(frame, network.world.net, 1).unwrap()
}

/// The victim's submission of the round that ends in minute 4, and another one that
/// it signed; rosters do not arrive before the second is delivered.
fn two_submissions(after_roster: bool) -> Network {
    let mut network = running();
    let silent = network.meters[1].id();
    if !after_roster {
        // One submission is late, so that the window stays open.
        network.filter = Some(Box::new(
            move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Submission, .. } if *meter == silent),
        ));
    }
    network.run_until(4 * MINUTE + 12 * SECOND);
    let first = network.sent(VICTIM, Up::Submission).pop().unwrap();
    let mut second = read_submission(&network, VICTIM, &first);
    assert_eq!(second.round, network.last_round());
    second.shares[0].superposition.value += Scalar::ONE;
    let key = network.world.meters[VICTIM].key.clone();
    let (net, meter) = (network.world.net, network.meters[VICTIM].id());
    let second = second.sign(&key, net, at(network.now).utc);
    let topic = Topic::Up {
        net,
        meter,
        kind: Up::Submission,
    };
    network.deliver_up(topic, first);
    assert_eq!(provider_alarms(&network), []);
    network.deliver_up(topic, second);
    network
}

#[test]
fn of_two_submissions_the_first_wins_and_the_second_is_an_alarm() {
    let mut network = two_submissions(false);
    let alarm = Alarm::Equivocation {
        meter: network.meters[VICTIM].id(),
        what: "submission",
    };
    assert_eq!(provider_alarms(&network), [alarm]);
    let round = network.last_round();
    network.run_until(4 * MINUTE + 40 * SECOND);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn a_second_submission_after_the_roster_is_an_alarm_too() {
    let network = two_submissions(true);
    let alarm = Alarm::Equivocation {
        meter: network.meters[VICTIM].id(),
        what: "submission",
    };
    assert_eq!(provider_alarms(&network), [alarm]);
}

/// Replaces the victim's reveals of the round that ends in minute 4.
fn changed_reveal(change: impl Fn(&mut Reveal)) -> Network {
    let mut network = running();
    let id = network.meters[VICTIM].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == id),
    ));
    network.run_until(4 * MINUTE + 12 * SECOND);
    let key: DeviceKey = network.world.meters[VICTIM].key.clone();
    let sent = network.sent(VICTIM, Up::Reveal).pop().unwrap();
    let frame = Frame::verify(&sent, &key.public()).unwrap();
    let net = network.world.net;
    let mut reveal = Reveal::read(frame, net, 1).unwrap();
    assert_eq!(reveal.round, network.last_round());
    change(&mut reveal);
    let changed = reveal.sign(&key, net, at(network.now).utc);
    let topic = Topic::Up {
        net,
        meter: id,
        kind: Up::Reveal,
    };
    network.deliver_up(topic, changed);
    network
}

#[test]
fn a_reveal_for_another_roster_is_refused_and_the_true_one_taken() {
    let mut network = changed_reveal(|reveal| reveal.roster[0] ^= 1);
    let round = network.last_round();
    assert!(matches!(
        provider_refusals(&network).last(),
        Some(Refusal::Rule(_))
    ));
    network.filter = None;
    network.run_until(5 * MINUTE);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn of_two_reveals_the_first_counts_and_the_second_is_refused() {
    let mut network = running();
    let (net, meter, late) = (
        network.world.net,
        network.meters[VICTIM].id(),
        network.meters[1].id(),
    );
    // One reveal is late, so that the round stays pending.
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == late),
    ));
    network.run_until(4 * MINUTE + 12 * SECOND);
    let round = network.last_round();
    let first = network.sent(VICTIM, Up::Reveal).pop().unwrap();
    let key = network.world.meters[VICTIM].key.clone();
    let mut second = Reveal::read(Frame::verify(&first, &key.public()).unwrap(), net, 1).unwrap();
    assert_eq!(second.round, round);
    second.openings[0].value += Scalar::ONE;
    let second = second.sign(&key, net, at(network.now).utc);
    let kind = Up::Reveal;
    let topic = Topic::Up { net, meter, kind };
    let refused = Refusal::Rule("a second, different reveal");
    let alarm = Alarm::Equivocation {
        meter,
        what: "reveal",
    };
    for (frame, refusals, alarms) in [
        (&first, 0, 0),
        (&second, 1, 1),
        (&second, 2, 1),
        (&first, 2, 1),
    ] {
        network.deliver_up(topic, frame.clone());
        let told = provider_refusals(&network);
        let told = told.iter().filter(|reason| **reason == refused).count();
        assert_eq!(told, refusals);
        assert_eq!(provider_alarms(&network), vec![alarm.clone(); alarms]);
    }
    network.filter = None;
    network.run_until(5 * MINUTE);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn who_is_silent_until_a_round_closes_is_on_record() {
    let mut network = running();
    let silent = network.meters[VICTIM].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == silent),
    ));
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    (0..5).for_each(|meter| network.asleep[meter] = true);
    network.run_until(24 * 60 * MINUTE + 3 * MINUTE);
    assert_eq!(network.lost, []);
    network.run_until(24 * 60 * MINUTE + 20 * MINUTE);
    assert_eq!(network.lost, [(round, vec![silent])]);
}

#[test]
fn a_sum_that_does_not_open_the_commitments_is_a_disruption_and_no_aggregate() {
    // One mWh less: it decodes, but the meters committed to something else.
    let small = changed_reveal(|reveal| reveal.openings[0].value += Scalar::ONE);
    let blinding = changed_reveal(|reveal| reveal.openings[0].blinding += Scalar::ONE);
    let garbage = changed_reveal(|reveal| {
        reveal.openings[0].value = Scalar::from_bytes_mod_order([0x55; 32]);
    });
    for (mut network, disruption) in [
        (small, Disruption::Commitment(0)),
        (blinding, Disruption::Commitment(0)),
        (garbage, Disruption::Value(0)),
    ] {
        let round = network.last_round();
        let alarm = Alarm::Disrupted { round, disruption };
        assert_eq!(provider_alarms(&network), [alarm]);
        assert_eq!(network.lost, [(round, vec![])], "nobody owed a reveal");
        network.filter = None;
        network.run_until(6 * MINUTE + 30 * SECOND);
        let rounds: BTreeSet<_> = network.aggregates.iter().map(|a| a.round).collect();
        assert!(!rounds.contains(&round));
        assert!(rounds.contains(&network.last_round()));
        network.check_aggregates();
    }
}
