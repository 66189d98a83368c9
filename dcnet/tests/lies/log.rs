//! Of the log: entries, forgeries in them, draws.

use super::*;

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
fn an_entry_of_bad_form_accuses_who_signed_it_with_the_key_in_force() {
    let mut network = running();
    let old = network.world.provider.key.clone();
    network.change_provider_key();
    network.run_until(network.now + MINUTE);
    let (net, utc) = (network.world.net, at(network.now).utc);
    let next = network.provider.membership().head().index + 1;
    let uint = |number: u64| cbor::uint(number);
    let null = || ciborium::Value::Null;
    let bad = [
        cbor::array([uint(next), null(), uint(99), null()]),
        cbor::array([uint(next), null()]),
        cbor::array([null()]),
    ];
    let sign = |key: &DeviceKey, data| frame::sign(key, net, utc, Notification::Entry, data);
    for data in bad.clone() {
        network.show_entry(VICTIM, sign(&old, data));
    }
    assert_eq!(network.alarms(VICTIM), []);
    let signature = Refusal::Entry(FrameError::Signature.into());
    assert_eq!(refusals(&network, VICTIM), vec![signature; 3]);
    for data in bad {
        let new = network.world.provider.key.clone();
        network.show_entry(VICTIM, sign(&new, data));
    }
    assert_eq!(bad_entries(&network), 3);
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
