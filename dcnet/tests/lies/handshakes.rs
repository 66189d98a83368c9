//! Of the halves of a handshake.

use super::*;

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
    // Told once, however often it comes.
    for _ in 0..20 {
        network.deliver(receiver, inbox(&network, to, from), wrong.clone());
    }
    assert_eq!(
        handshake_alarms(&network, receiver),
        ["a wrong confirmation tag"]
    );
    assert_eq!(refusals(&network, receiver).len(), 19);
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
        for _ in 0..20 {
            network.deliver(receiver, inbox(&network, to, from), zero.clone());
        }
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

#[test]
fn an_offer_of_before_the_state_was_lost_changes_nothing() {
    let mut network = start();
    let (lower, higher) = lower_and_higher(&network);
    let (from, to) = (network.meters[lower].id(), network.meters[higher].id());
    let offers = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&offers);
    // The answer comes, the confirmation does not.
    network.filter = Some(Box::new(move |topic, _, payload| {
        let of_pair =
            matches!(topic, Topic::UpPair { meter, peer, .. } if (*meter, *peer) == (from, to));
        if of_pair && kind_of(payload) == Notification::Offer {
            seen.borrow_mut().push(payload.to_vec());
        }
        !of_pair || kind_of(payload) != Notification::Confirm
    }));
    network.run_until(10 * SECOND);
    forget_edge(&mut network, lower, higher);
    network.restart_meter(lower);
    network.run_until(20 * SECOND);
    let first = offers.borrow()[0].clone();
    assert!(offers.borrow().iter().any(|offer| *offer != first));
    for restart in [false, true] {
        if restart {
            network.restart_meter(higher);
        }
        network.deliver(higher, inbox(&network, to, from), first.clone());
    }
    assert_eq!(refusals(&network, higher).len(), 2);
    network.filter = None;
    completes(&mut network);
    for meter in [lower, higher] {
        assert_eq!(network.alarms(meter), []);
    }
}
