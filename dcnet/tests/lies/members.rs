//! What one member could use up of what all share.

use dcnet::graph::draw_commitment;
use dcnet::output::Received;

use super::*;

const DAY: u64 = 24 * 60 * MINUTE;

/// What one meter is sent at once of what it asks for.
const AT_ONCE: usize = 2 * 1024 * 1024;

const TOO_MUCH: Refusal = Refusal::Rule("it asked for more than is sent at once");

fn up(network: &Network, meter: usize, kind: Up) -> Topic {
    let (net, meter) = (network.world.net, network.meters[meter].id());
    Topic::Up { net, meter, kind }
}

fn signed(
    network: &Network,
    meter: usize,
    kind: Notification,
    data: Vec<ciborium::Value>,
) -> Vec<u8> {
    let key = &network.world.meters[meter].key;
    let utc = at(network.now).utc;
    frame::sign(key, network.world.net, utc, kind, cbor::array(data))
}

fn whole_log(network: &Network, meter: usize) -> (Topic, Vec<u8>) {
    let request = signed(
        network,
        meter,
        Notification::LogRequest,
        vec![cbor::uint(0u8)],
    );
    (up(network, meter, Up::Log), request)
}

fn rosters_since_the_first(network: &Network, meter: usize) -> (Topic, Vec<u8>) {
    let first = frame::Unverified::parse(&network.saved_net.rosters[0].frame).unwrap();
    let first = first.verify(&network.world.provider.key.public()).unwrap();
    let after = vec![cbor::bytes(&first.digest())];
    let request = signed(network, meter, Notification::RosterRequest, after);
    (up(network, meter, Up::Roster), request)
}

fn registration(network: &Network, meter: usize) -> (Topic, Vec<u8>) {
    let (world, utc) = (&network.world, at(network.now).utc);
    let MeterConfig {
        key, certificate, ..
    } = &world.meters[meter];
    let registration = sign_registration(key, certificate, world.net, utc);
    (up(network, meter, Up::Register), registration)
}

/// Hands the provider one message over and over in one step; bytes and messages that it
/// sends to the meter.
fn answers(
    network: &mut Network,
    meter: usize,
    (topic, payload): (Topic, Vec<u8>),
    times: usize,
) -> (usize, usize) {
    let (before, to) = (network.published.len(), network.meters[meter].id());
    let message = Received { topic, payload };
    network.input_provider(Input::Received(vec![message; times]));
    let sent = network.published[before..].iter();
    let sent = sent
        .filter(|(_, message)| matches!(message.topic, Topic::Inbox { meter, .. } if meter == to));
    let lengths: Vec<usize> = sent.map(|(_, message)| message.payload.len()).collect();
    (lengths.iter().sum(), lengths.len())
}

#[test]
fn who_asks_over_and_over_is_sent_a_bounded_part_and_the_others_all_of_it() {
    type Asked = fn(&Network, usize) -> (Topic, Vec<u8>);
    let asked: [(Asked, usize); 3] = [
        (whole_log, 2048),
        (rosters_since_the_first, 16_384),
        (registration, 2048),
    ];
    for (request, times) in asked {
        let mut network = running();
        network.run_until(network.now + 2 * MINUTE);
        let one = request(&network, VICTIM);
        let (bytes, messages) = answers(&mut network, VICTIM, one.clone(), 1);
        assert!(
            bytes * times > 3 * AT_ONCE,
            "{bytes} bytes are too few to see it"
        );
        network.now += SECOND;

        let refused = provider_refusals(&network).len();
        let (sent, _) = answers(&mut network, VICTIM, one.clone(), times);
        assert!(sent <= AT_ONCE && sent > AT_ONCE / 2, "{sent} bytes");
        let refused = provider_refusals(&network).split_off(refused);
        assert!(refused.len() > times / 2);
        assert!(refused.iter().all(|reason| *reason == TOO_MUCH));

        let other = request(&network, 1);
        assert_eq!(answers(&mut network, 1, other, 1).1, messages);
        network.now += SECOND;
        assert_eq!(answers(&mut network, VICTIM, one, 1).1, messages);
    }
}

#[test]
fn an_honest_meter_that_was_refused_asks_again() {
    let mut network = running();
    network.set_online(VICTIM, false);
    support::leave(&mut network, 4);
    network.run_until(4 * MINUTE + 40 * SECOND);
    let request = whole_log(&network, VICTIM);
    answers(&mut network, VICTIM, request, 2048);
    // It is not there yet when the answers arrive.
    network.run_until(network.now + 10);
    let refused = provider_refusals(&network).len();
    network.set_online(VICTIM, true);
    network.run_until(network.now + SECOND / 2);
    let refused = provider_refusals(&network).split_off(refused);
    assert!(refused.contains(&TOO_MUCH));
    let head = |network: &Network| {
        let log = network.meters[VICTIM].membership();
        log.map(Membership::head)
    };
    let newest = network.provider.membership().head();
    assert_ne!(head(&network), Some(newest));
    network.run_until(5 * MINUTE + 10 * SECOND);
    assert_eq!(head(&network), Some(newest));
}

// The log.

/// The victim's device leaves and registers anew; whether it is a member then.
fn join_anew(network: &mut Network) -> bool {
    network.now += SECOND;
    let log = network.provider.membership();
    if log.active(&network.meters[VICTIM].id()).is_some() {
        let key = &network.world.meters[VICTIM].key;
        let join = join_of(network, VICTIM);
        let exit = sign_exit(key, network.world.net, &join, at(network.now).utc);
        network.deliver_up(up(network, VICTIM, Up::Exit), exit);
    }
    let (topic, registration) = registration(network, VICTIM);
    network.deliver_up(topic, registration);
    let log = network.provider.membership();
    log.active(&network.meters[VICTIM].id()).is_some()
}

#[test]
fn who_leaves_and_joins_over_and_over_is_kept_out_for_30_days() {
    let mut network = running();
    let places = network.provider.membership().members().len();
    let joined = (0..20).filter(|_| join_anew(&mut network)).count();
    assert_eq!(joined, 4, "besides the first time");
    let log = network.provider.membership();
    assert_eq!(log.members().len(), places + 4);
    let entries = log.head().index;
    network.restart_provider();
    assert!(!join_anew(&mut network));
    assert_eq!(network.provider.membership().head().index, entries);
    let refused = Refusal::Rule("this device joined too often in 30 days");
    assert_eq!(provider_refusals(&network).last(), Some(&refused));
    network.now += 30 * DAY;
    network.restart_provider();
    assert!(join_anew(&mut network));
}

/// The victim's device asks for a draw and opens it; whether the provider did its part.
fn draw_anew(network: &mut Network, nonce: u8) -> bool {
    let (net, id) = (network.world.net, network.meters[VICTIM].id());
    let (member, nonce) = (network.member(VICTIM), [nonce; 32]);
    let commitment = draw_commitment(net, id, &nonce);
    let request = vec![cbor::bytes(&commitment)];
    let request = signed(network, VICTIM, Notification::DrawRequest, request);
    let topic = up(network, VICTIM, Up::Draw);
    network.deliver_up(topic, request);
    let invite = network.provider.membership().open_invite(member);
    let Some(invite) = invite.map(|invite| invite.hash) else {
        return false;
    };
    let open = vec![cbor::bytes(&invite), cbor::bytes(&nonce)];
    let open = signed(network, VICTIM, Notification::Open, open);
    network.deliver_up(topic, open);
    network.provider.membership().open_invite(member).is_none()
}

#[test]
fn who_draws_over_and_over_is_invited_to_no_more_for_30_days() {
    let mut network = running();
    let drawn = (0..20)
        .filter(|nonce| draw_anew(&mut network, *nonce))
        .count();
    assert_eq!(drawn, 7, "besides the first time");
    network.restart_provider();
    assert!(!draw_anew(&mut network, 20));
    let refused = Refusal::Rule("this device was invited to too many draws in 30 days");
    assert_eq!(provider_refusals(&network).last(), Some(&refused));
    assert!(join_anew(&mut network));
    assert!(!draw_anew(&mut network, 21), "nor by another membership");
    network.now += 30 * DAY;
    assert!(draw_anew(&mut network, 22));
}
