//! CONNECT and CONNACK.

use super::*;
use std::collections::HashSet;

// MQTT 3.1.1: 3.1.0-1
// MQTT 5: 3.1.0-1, 3.14.0-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_packet_is_connect() {
    let rig = Rig::start().await;
    for first in [
        vec![0xc0, 0],
        subscribe(5, 1, "a", 0),
        publish(4, b"a", 0, 0, &[], b""),
    ] {
        let mut raw = rig.raw(&rig.meter).await;
        raw.send(&first).await;
        assert_eq!(raw.packet().await, None, "no DISCONNECT before CONNACK");
    }
}

// MQTT 3.1.1: 3.1.0-2, 4.8.0-1
// MQTT 5: 3.1.0-2, 4.13.1-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connect_ends_the_session() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let mut raw = rig.raw_session(&rig.meter, version).await;
        raw.send(&rig::connect(version, &rig.meter.client_id(), &[]))
            .await;
        ends(&mut raw, version, 0x82).await;
    }
}

// MQTT 3.1.1: 3.1.2-1, 3.1.2-2, 3.2.2-5
// MQTT 5: 3.1.2-1, 3.1.2-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_and_levels_are_refused() {
    let rig = Rig::start().await;
    let connect = |name: &[u8], level| {
        let mut body = string(name);
        body.extend([level, 2, 0, 60]);
        body.extend(string(rig.meter.client_id().as_bytes()));
        packet(0x10, &body)
    };
    for (name, level, answer) in [
        (&b"MQTT"[..], 3, true),
        (b"MQTT", 6, true),
        (b"MQIsdp", 3, true),
        (b"mqtt", 4, false),
        (b"AMQP", 5, false),
        (b"", 5, false),
    ] {
        let mut raw = rig.raw(&rig.meter).await;
        raw.send(&connect(name, level)).await;
        let expected = answer.then_some((0x20, vec![0, 1]));
        assert_eq!(raw.end().await, expected, "{name:?} {level}");
    }
}

// MQTT 3.1.1: 3.1.2-3, 3.1.2-9, 3.1.2-11, 3.1.2-13, 3.1.2-14, 3.1.2-15, 3.1.2-18, 3.1.2-19
// MQTT 3.1.1: 3.1.2-20, 3.1.2-21, 3.1.2-22, 3.1.3-3, 3.1.3-4, 3.1.3-10, 3.1.3-11, 3.1.4-1
// MQTT 5: 3.1.2-3, 3.1.2-9, 3.1.2-11, 3.1.2-12, 3.1.2-13, 3.1.2-16, 3.1.2-17, 3.1.2-18
// MQTT 5: 3.1.2-19, 3.1.3-3, 3.1.3-4, 3.1.3-11, 3.1.3-12, 3.1.4-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_of_another_form_is_not_answered() {
    let rig = Rig::start().await;
    let id = string(b"x");
    let text = string(b"text");
    for version in [4, 5] {
        let no_properties: &[u8] = if version == 5 { &[0] } else { &[] };
        let faults: &[(&str, u8, &[&[u8]])] = &[
            ("the reserved flag", 0x03, &[&id]),
            ("no client identifier", 0x02, &[]),
            ("a client identifier cut off", 0x02, &[b"\0\x09x"]),
            (
                "a client identifier that is no UTF-8",
                0x02,
                &[b"\0\x01\xff"],
            ),
            ("a surrogate", 0x02, &[b"\0\x03\xed\xa0\x80"]),
            ("U+0000", 0x02, &[b"\0\x01\0"]),
            ("a will without its flag", 0x02, &[&id, &text, &text]),
            ("a will flag without a will", 0x06, &[&id]),
            (
                "a will without a message",
                0x06,
                &[&id, no_properties, &text],
            ),
            (
                "a will topic that is no UTF-8",
                0x06,
                &[&id, no_properties, b"\0\x01\xff", &text],
            ),
            ("quality of a will that is not there", 0x0a, &[&id]),
            ("retaining a will that is not there", 0x22, &[&id]),
            (
                "a will of quality 3",
                0x1e,
                &[&id, no_properties, &text, &text],
            ),
            ("a user flag without a user", 0x82, &[&id]),
            ("a user without its flag", 0x02, &[&id, &text]),
            ("a user that is no UTF-8", 0x82, &[&id, b"\0\x01\xff"]),
            ("a password flag without a password", 0xc2, &[&id, &text]),
            ("a password without its flag", 0x82, &[&id, &text, &text]),
        ];
        for (what, flags, payload) in faults {
            let mut raw = rig.raw(&rig.third_party()).await;
            raw.send(&raw_connect(version, *flags, payload)).await;
            // A longer one may still come if the last field is cut off.
            assert_eq!(raw.packet().await, None, "{what} in version {version}");
        }
    }
    // MQTT 5 alone has passwords without a user.
    let alone = [&id[..], &text];
    let mut raw = rig.raw(&rig.third_party()).await;
    raw.send(&raw_connect(4, 0x42, &alone)).await;
    assert_eq!(raw.packet().await, None);
    let mut raw = rig.raw(&rig.third_party()).await;
    raw.send(&raw_connect(5, 0x42, &alone)).await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
}

// MQTT 3.1.1: 3.1.3-1
// MQTT 5: 3.1.3-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fields_of_a_connect_have_their_order() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("#"), 1).await;
        let no_properties: &[u8] = if version == 5 { &[0] } else { &[] };
        let mut raw = scene.rig.raw(&scene.rig.provider).await;
        let fields: [&[u8]; 6] = [
            &string(scene.rig.provider.client_id().as_bytes()),
            no_properties,
            &string(public("will").as_bytes()),
            &string(b"gone"),
            &string(b"user"),
            &string(b"password"),
        ];
        raw.send(&raw_connect(version, 0xc6, &fields)).await;
        assert_eq!(raw.packet().await.unwrap().1[1], 0);
        drop(raw);
        let will = scene.message().await;
        assert_eq!(
            (will.topic, will.payload),
            (public("will"), b"gone".to_vec())
        );
    }
}

// MQTT 3.1.1: 3.1.4-4, 3.2.0-1
// MQTT 5: 3.1.4-5, 3.2.0-1, 3.2.0-2, 3.2.2-1, 3.2.2-9, 3.2.2-19, 3.2.2-20, 3.1.2-28, 4.12.0-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_connect_gets_one_connack() {
    let rig = Rig::start().await;
    let id = rig.meter.client_id();
    let mut raw = rig.raw(&rig.meter).await;
    raw.send(&rig::connect(4, &id, &[])).await;
    assert_eq!(raw.packet().await, Some((0x20, vec![0, 0])));
    ping(&mut raw).await;
    // It asks for response information.
    let mut raw = rig.raw(&rig.meter).await;
    raw.send(&rig::connect(5, &id, &[0x19, 1])).await;
    let (first, body) = raw.packet().await.unwrap();
    // Meters send no longer packets.
    let [a, b, c, d] = u32::to_be_bytes(72 * 1024);
    let mut properties: Vec<&[u8]> = vec![
        // Session expiry at once, maximum quality of service 1, nothing of it retained.
        &[0x11, 0, 0, 0, 0],
        &[0x24, 1],
        &[0x25, 0],
    ];
    let longest = [0x27, a, b, c, d];
    properties.extend([&longest[..], &[0x29, 0], &[0x2a, 0]]);
    let properties = properties.concat();
    assert_eq!(first, 0x20);
    assert_eq!(&body[..3], [0, 0, properties.len() as u8]);
    assert_eq!(body[3..], properties, "no authentication, no reason");
    ping(&mut raw).await;
}

// MQTT 3.1.1: 3.1.3-5, 3.1.3-6
// MQTT 5: 3.1.3-5, 3.1.3-6, 3.1.3-7, 3.2.2-16
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn third_parties_choose_their_identifier_or_get_one() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let reader = rig.third_party();
        for id in [
            "a",
            "0123456789abcdefghijklm",
            "nopqrstuvwxyzABCDEFGHIJ",
            "KLMNOPQRSTUVWXYZ",
        ] {
            let mut raw = rig.raw(&reader).await;
            raw.send(&rig::connect(version, id, &[])).await;
            assert_eq!(raw.packet().await.unwrap().1[1], 0, "{id}");
            raw.send(&[0xe0, 0]).await;
            raw.end().await;
        }
        let mut open = Vec::new();
        let mut given = HashSet::new();
        for _ in 0..3 {
            let mut raw = rig.raw(&reader).await;
            raw.send(&rig::connect(version, "", &[])).await;
            let (_, body) = raw.packet().await.unwrap();
            assert_eq!(body[1], 0);
            if version == 5 {
                let at = body.windows(3).position(|w| w[0] == 0x12 && w[1] == 0);
                let at = at.expect("an assigned client identifier");
                let length = usize::from(body[at + 2]);
                given.insert(body[at + 3..at + 3 + length].to_vec());
            }
            open.push(raw);
        }
        for raw in &mut open {
            ping(raw).await;
        }
        let expected = if version == 5 { 3 } else { 0 };
        assert_eq!(given.len(), expected, "all different");
        // What it was given it may use like one of its own.
        if let Some(id) = given.iter().next() {
            let mut raw = rig.raw(&reader).await;
            let id = std::str::from_utf8(id).unwrap();
            raw.send(&rig::connect(version, id, &[])).await;
            assert_eq!(raw.packet().await.unwrap().1[1], 0);
            assert_eq!(rig.broker().counters().takeovers, 1);
        }
    }
}

// MQTT 3.1.1: 3.1.3-7, 3.1.3-8, 3.1.3-9, 3.2.2-4, 3.2.2-5
// MQTT 5: 3.1.3-8, 3.2.2-6, 3.2.2-7, 3.2.2-8, 4.13.2-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_client_identifiers_are_told() {
    let rig = Rig::start().await;
    let reader = rig.third_party();
    for (version, code) in [(4, 2), (5, 0x85)] {
        let long = "x".repeat(200);
        for (identity, id, flags) in [
            (&reader, "", 0),
            (&reader, &long[..], 2),
            (&reader, "a\nb", 2),
            // An agent's is its own.
            (&rig.meter, "", 2),
            (&rig.meter, "other", 2),
        ] {
            let mut raw = rig.raw(identity).await;
            raw.send(&connect_with(version, id, flags, 60, &[])).await;
            let (first, body) = raw.packet().await.expect("a CONNACK");
            assert_eq!((first, &body[..2]), (0x20, &[0, code][..]), "{id}");
            assert_eq!(raw.packet().await, None);
        }
    }
}

// MQTT 3.1.1: 3.1.4-5
// MQTT 5: 3.1.4-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_after_a_refused_connect() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("#"), 0).await;
        let mut raw = scene.rig.raw(&scene.rig.provider).await;
        let mut bytes = rig::connect(version, "not the provider's", &[]);
        let topic = public("a");
        bytes.extend(publish(version, topic.as_bytes(), 1, 0, &[], b"no"));
        raw.send(&bytes).await;
        raw.end().await;
        scene.publish(&topic, 0, b"yes").await;
        assert_eq!(scene.message().await.payload, b"yes");
        assert_eq!(scene.rig.broker().counters().retained, 0);
    }
}

// MQTT 5: 4.12.0-1, 4.12.0-4, 3.1.2-30
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enhanced_authentication_is_refused() {
    let rig = Rig::start().await;
    let mut raw = rig.raw(&rig.meter).await;
    let mut method = vec![0x15];
    method.extend(string(b"SCRAM-SHA-1"));
    raw.send(&rig::connect(5, &rig.meter.client_id(), &method))
        .await;
    let (first, body) = raw.packet().await.unwrap();
    assert_eq!((first, &body[..2]), (0x20, &[0, 0x8c][..]));
    assert_eq!(raw.packet().await, None);
}

// MQTT 3.1.1: 3.2.2-5
// MQTT 5: 3.1.4-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_come_in_is_told_and_left_outside() {
    let rig = Rig::serving(&[("dashboard", "correct horse")], "").await;
    for (version, code) in [(4, 4), (5, 0x86)] {
        let (mut raw, got) = rig.login(version, "dashboard", "wrong horses").await;
        assert_eq!(got, code);
        assert_eq!(raw.packet().await, None);
    }
    // The administrator has no business here.
    let administrator = rig.ca.issue(dcnet::identity::Role::Administrator, None);
    for (version, code) in [(4, 5), (5, 0x87)] {
        let mut raw = rig.raw(&administrator).await;
        raw.send(&rig::connect(version, "x", &[])).await;
        assert_eq!(raw.packet().await.unwrap().1[1], code);
        assert_eq!(raw.packet().await, None);
    }
}

// MQTT 5: 3.2.2-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_of_quality_2_is_refused() {
    let rig = Rig::start().await;
    for (version, code) in [(4, 5), (5, 0x9b)] {
        let no_properties: &[u8] = if version == 5 { &[0] } else { &[] };
        let fields: [&[u8]; 4] = [
            &string(rig.provider.client_id().as_bytes()),
            no_properties,
            &string(public("will").as_bytes()),
            &string(b"gone"),
        ];
        let mut raw = rig.raw(&rig.provider).await;
        raw.send(&raw_connect(version, 0x16, &fields)).await;
        assert_eq!(raw.packet().await.unwrap().1[1], code);
        assert_eq!(raw.packet().await, None);
    }
}

// MQTT 3.1.1: 3.2.2-5
// MQTT 5: 3.2.2-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retained_will_is_refused_of_all_but_the_provider() {
    let rig = Rig::start().await;
    for (version, code) in [(4, 5), (5, 0x9a)] {
        let no_properties: &[u8] = if version == 5 { &[0] } else { &[] };
        for (identity, topic, code) in [
            (&rig.meter, rig.meter.topic("up/status"), code),
            (&rig.provider, public("will"), 0),
        ] {
            let fields: [&[u8]; 4] = [
                &string(identity.client_id().as_bytes()),
                no_properties,
                &string(topic.as_bytes()),
                &string(b"gone"),
            ];
            let mut raw = rig.raw(identity).await;
            raw.send(&raw_connect(version, 0x26, &fields)).await;
            assert_eq!(raw.packet().await.unwrap().1[1], code);
            if code == 0 {
                ping(&mut raw).await;
                raw.send(&[0xe0, 0]).await;
            }
            assert_eq!(raw.packet().await, None);
        }
    }
    assert_eq!(rig.broker().counters().retained, 0);
}

// MQTT 5: 3.1.2-24, 3.1.2-25, 3.14.2-3, 3.14.2-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_packet_is_longer_than_the_client_takes() {
    // Less than a CONNACK needs.
    let rig = Rig::start().await;
    let mut raw = rig.raw(&rig.meter).await;
    let maximum = |size: u8| [0x27, 0, 0, 0, size];
    raw.send(&rig::connect(5, &rig.meter.client_id(), &maximum(20)))
        .await;
    assert_eq!(raw.packet().await, None);

    // Enough for a CONNACK and for short messages, and one at a time.
    let topic = public("a");
    let longest = (2 + 2 + topic.len() + 2 + 1 + 4) as u8;
    let mut properties = maximum(longest).to_vec();
    properties.extend([0x21, 0, 1]);
    let mut scene = Scene::with(5, &properties).await;
    assert_eq!(scene.subscribe(&topic, 1).await, 1);
    scene.publish(&topic, 2, b"fits").await;
    scene.publish(&topic, 2, b"too long").await;
    scene.publish(&topic, 2, b"fits").await;
    for _ in 0..2 {
        let message = scene.message().await;
        assert_eq!(message.payload, b"fits");
        let puback = acknowledgement(message.id.unwrap());
        scene.subscriber.send(&puback).await;
    }
    scene.nothing_more().await;
    // An answer with a code for each of many filters.
    let mut body = vec![0, 9, 0];
    for _ in 0..longest {
        body.extend(string(topic.as_bytes()));
        body.push(0);
    }
    scene.subscriber.send(&packet(0x82, &body)).await;
    ends(&mut scene.subscriber, 5, 0x83).await;

    // The reason in words is left out where it does not fit.
    let mut raw = rig.raw(&rig.meter).await;
    raw.send(&rig::connect(5, &rig.meter.client_id(), &maximum(25)))
        .await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
    let _newer = rig.raw_session(&rig.meter, 5).await;
    assert_eq!(raw.end().await, Some((0xe0, vec![0x8e])));
}
