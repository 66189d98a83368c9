//! PUBLISH and PUBACK in both directions, retained messages, properties.

use super::*;
use std::collections::HashSet;

// MQTT 3.1.1: 2.3.1-5, 2.3.1-6, 3.3.4-1, 4.3.1-1, 4.3.2-2, 4.5.0-1
// MQTT 5: 2.2.1-2, 2.2.1-5, 2.2.2-1, 3.3.4-1, 3.4.2-1, 4.3.1-1, 4.3.2-4, 4.5.0-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_quality_of_service_has_its_answer() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let mut third = scene.another("third").await;
        let topic = public("a");
        for raw in [&mut scene.subscriber, &mut third] {
            raw.send(&subscribe(version, 9, &topic, 1)).await;
            assert_eq!(raw.packet().await.unwrap().0, 0x90);
        }
        for (flags, qos) in [(0, 0), (2, 1)] {
            // Shows that quality 0 is not answered and that 1 has its own identifier.
            scene.publish(&topic, flags, b"x").await;
            for raw in [&mut scene.subscriber, &mut third] {
                let message = Message::next(raw, version).await;
                assert_eq!((message.qos, message.dup), (qos, false));
                assert_eq!(message.id.is_some(), qos == 1);
                assert!(message.properties.is_empty(), "a length of zero");
                assert_eq!(message.payload, b"x");
            }
        }
    }
}

// MQTT 3.1.1: 3.3.1-2, 3.3.1-3, 4.3.2-2
// MQTT 5: 3.3.1-2, 3.3.1-3, 4.3.2-2, 4.3.2-5
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dup_flag_of_a_publisher_goes_no_further() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.subscribe(&topic, 1).await;
        for (flags, payload) in [(2, b"1"), (0x0a, b"2"), (0x0a, b"3"), (0x08, b"4")] {
            // The same identifier after its PUBACK is another message.
            scene.publish(&topic, flags, payload).await;
            let message = scene.message().await;
            assert_eq!((message.dup, &message.payload[..]), (false, &payload[..]));
        }
    }
}

// MQTT 3.1.1: 2.3.1-4, 4.3.2-1
// MQTT 5: 2.2.1-4, 4.3.2-1, 4.3.2-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identifiers_are_free_until_they_are_acknowledged() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.subscribe(&topic, 1).await;
        let mut open = HashSet::new();
        for count in 0..90_u8 {
            scene.publish(&topic, 2, &[count]).await;
        }
        for count in 0..90_u8 {
            let message = scene.message().await;
            assert_eq!(message.payload, [count]);
            let id = message.id.unwrap();
            assert!(id != 0 && open.insert(id), "not in use");
            // Every third one is acknowledged only at the end.
            if count % 3 > 0 {
                open.remove(&id);
                scene.subscriber.send(&acknowledgement(id)).await;
            }
        }
        for id in open {
            scene.subscriber.send(&acknowledgement(id)).await;
        }
        scene.nothing_more().await;
    }
}

// MQTT 5: 3.3.4-9, 3.3.4-10, 4.4.0-2, 4.9.0-1, 4.9.0-2, 4.9.0-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_receive_maximum_holds_messages_back_and_nothing_else() {
    let mut scene = Scene::with(5, &[0x21, 0, 2]).await;
    let topic = public("a");
    scene.subscribe(&topic, 1).await;
    for count in 0..4 {
        scene.publish(&topic, 2, &[count]).await;
    }
    let first = scene.message().await;
    scene.message().await;
    scene.nothing_more().await;
    assert_eq!(scene.subscribe(&public("b"), 1).await, 1);
    // A refusal frees its place like any acknowledgement, and nothing is sent again.
    let [high, low] = first.id.unwrap().to_be_bytes();
    scene.subscriber.send(&[0x40, 3, high, low, 0x80]).await;
    let third = scene.message().await;
    assert_eq!((third.payload[0], third.dup), (2, false));
    scene.nothing_more().await;
    let puback = acknowledgement(third.id.unwrap());
    scene.subscriber.send(&puback).await;
    assert_eq!(scene.message().await.payload[0], 3);
}

// MQTT 3.1.1: 3.3.1-4
// MQTT 5: 3.3.1-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_bits_of_quality_are_malformed() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let packet = publish(version, public("a").as_bytes(), 6, 1, &[], b"x");
        scene.publisher.send(&packet).await;
        ends(&mut scene.publisher, version, 0x81).await;
    }
}

// MQTT 3.1.1: 4.3.3-2
// MQTT 5: 3.2.2-11, 4.3.3-8, 4.3.3-9, 4.3.3-10, 4.3.3-11, 4.3.3-12, 4.3.3-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quality_2_is_refused_and_its_message_never_delivered() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.subscribe(&topic, 2).await;
        let packet = publish(version, topic.as_bytes(), 4, 1, &[], b"x");
        scene.publisher.send(&packet).await;
        ends(&mut scene.publisher, version, 0x9b).await;
        for first in [0x50, 0x62, 0x70] {
            let mut raw = scene.another("third").await;
            raw.send(&[first, 2, 0, 1]).await;
            ends(&mut raw, version, 0x82).await;
        }
        scene.nothing_more().await;
    }
}

// MQTT 3.1.1: 1.5.3-1, 1.5.3-2, 2.3.1-1, 3.3.2-1, 3.3.2-2, 4.7.1-1, 4.7.3-1, 4.7.3-2
// MQTT 5: 1.5.4-1, 1.5.4-2, 2.2.1-3, 3.3.2-1, 3.3.2-2, 4.7.0-1, 4.7.3-1, 4.7.3-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_another_form_end_the_connection() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        for (topic, reason) in [
            (&b"a\xff"[..], 0x81),
            (b"\xed\xa0\x80", 0x81),
            (b"\xc0\x80", 0x81),
            (b"a\0b", 0x81),
            (b"a/+", 0x81),
            (b"a/#", 0x81),
            (b"a+", 0x81),
            (b"", 0x82),
        ] {
            for flags in [0, 2] {
                let mut raw = rig.raw_session(&rig.provider, version).await;
                raw.send(&publish(version, topic, flags, 1, &[], b"x"))
                    .await;
                ends(&mut raw, version, reason).await;
            }
        }
        let mut raw = rig.raw_session(&rig.provider, version).await;
        raw.send(&publish(version, public("a").as_bytes(), 2, 0, &[], b"x"))
            .await;
        ends(&mut raw, version, 0x82).await;
        let mut raw = rig.raw_session(&rig.provider, version).await;
        raw.send(&[0x30, 3, 0, 9, b'a']).await;
        ends(&mut raw, version, 0x81).await;
    }
}

// MQTT 3.1.1: 3.3.5-2
// MQTT 5: 4.13.1-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbidden_publish_is_refused_and_never_delivered() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("#"), 0).await;
        let topic = public("a");
        let mut raw = scene.another("third").await;
        raw.send(&publish(version, topic.as_bytes(), 0, 0, &[], b"forbidden"))
            .await;
        ping(&mut raw).await;
        raw.send(&publish(version, topic.as_bytes(), 2, 3, &[], b"forbidden"))
            .await;
        match version {
            // It has no code for it.
            4 => assert_eq!(raw.packet().await, None),
            _ => {
                let (first, body) = raw.packet().await.unwrap();
                assert_eq!((first, &body[..3]), (0x40, &[0, 3, 0x87][..]));
                ping(&mut raw).await;
            }
        }
        scene.nothing_more().await;
    }
}

// MQTT 3.1.1: 3.3.5-2
// MQTT 5: 3.2.2-14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_retained_of_others_than_the_provider() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let topic = rig.meter.topic("up/status");
        let mut raw = rig.raw_session(&rig.meter, version).await;
        raw.send(&publish(version, topic.as_bytes(), 3, 3, &[], b"x"))
            .await;
        ends(&mut raw, version, 0x9a).await;
        assert_eq!(rig.broker().counters().retained, 0);
    }
}

// MQTT 3.1.1: 3.3.1-5, 3.3.1-6, 3.3.1-7, 3.3.1-8, 3.3.1-9, 3.3.1-10, 3.3.1-11, 3.3.1-12
// MQTT 5: 3.3.1-5, 3.3.1-6, 3.3.1-7, 3.3.1-8, 3.3.1-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_retained_message_meets_each_new_subscription() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let mut live = scene.another("live").await;
        let topic = public("a");
        live.send(&subscribe(version, 1, &topic, 1)).await;
        live.packet().await.unwrap();
        let mut count = 0;
        // Flags, payload, and what a new subscription gets then.
        for (flags, payload, kept) in [
            (3, &b"first"[..], Some((1, &b"first"[..]))),
            (3, b"second", Some((1, b"second"))),
            (2, b"passing", Some((1, b"second"))),
            (2, b"", Some((1, b"second"))),
            (1, b"quality 0", Some((0, b"quality 0"))),
            (3, b"", None),
            (2, b"passing", None),
            (1, b"again", Some((0, b"again"))),
            (1, b"", None),
        ] {
            scene.publish(&topic, flags, payload).await;
            let message = Message::next(&mut live, version).await;
            assert_eq!((message.retain, &message.payload[..]), (false, payload));
            if let Some(id) = message.id {
                live.send(&acknowledgement(id)).await;
            }
            count += 1;
            let mut new = scene.another(&format!("new{count}")).await;
            new.send(&subscribe(version, 1, &public("+"), 1)).await;
            assert_eq!(new.packet().await.unwrap().0, 0x90);
            if let Some((qos, payload)) = kept {
                let message = Message::next(&mut new, version).await;
                assert_eq!((message.retain, message.qos), (true, qos));
                assert_eq!(message.payload, payload);
            }
            ping(&mut new).await;
            new.send(&[0xe0, 0]).await;
            new.end().await;
        }
        assert_eq!(scene.rig.broker().counters().retained, 0);
    }
}

// MQTT 5: 3.3.1-9, 3.3.1-10, 3.3.1-11
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retain_handling_says_when_retained_messages_come() {
    let mut scene = Scene::of(5).await;
    let topic = public("a");
    scene.publish(&topic, 3, b"kept").await;
    const AT_ONCE: u8 = 0;
    const IF_NEW: u8 = 0x10;
    const NEVER: u8 = 0x20;
    for (options, comes) in [
        (NEVER, false),
        (IF_NEW, false),
        (AT_ONCE, true),
        (AT_ONCE, true),
        (IF_NEW, false),
    ] {
        scene.subscribe(&topic, options).await;
        if comes {
            assert!(scene.message().await.retain);
        }
        scene.nothing_more().await;
    }
    let mut new = scene.another("new").await;
    new.send(&subscribe(5, 1, &topic, IF_NEW)).await;
    new.packet().await.unwrap();
    assert!(Message::next(&mut new, 5).await.retain);
}

// MQTT 5: 3.3.1-12, 3.3.1-13
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retain_as_published_keeps_the_flag() {
    let mut scene = Scene::of(5).await;
    for (name, options) in [("plain", 0), ("kept", 8)] {
        scene.subscribe(&public(name), options).await;
        for (flags, retain) in [(0, false), (1, true)] {
            scene.publish(&public(name), flags, b"x").await;
            let message = scene.message().await;
            assert_eq!(message.retain, retain && options == 8, "{name} {flags}");
        }
    }
}

// MQTT 3.1.1: 3.8.4-6
// MQTT 5: 3.8.4-8
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quality_is_the_lower_of_published_and_granted() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        for granted in [0, 1] {
            assert_eq!(scene.subscribe(&topic, granted).await, granted);
            for published in [0, 1] {
                scene.publish(&topic, published << 1, b"x").await;
                let message = scene.message().await;
                assert_eq!(message.qos, published.min(granted));
                if let Some(id) = message.id {
                    scene.subscriber.send(&acknowledgement(id)).await;
                }
            }
        }
    }
}

// MQTT 3.1.1: 3.3.5-1
// MQTT 5: 3.3.4-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_subscriptions_give_the_highest_quality() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        for (filter, options) in [(public("+"), 0), (topic.clone(), 1), (public("#"), 0)] {
            scene.subscribe(&filter, options).await;
        }
        scene.publish(&topic, 2, b"x").await;
        let message = scene.message().await;
        assert_eq!((message.qos, &message.payload[..]), (1, &b"x"[..]));
    }
}

fn user_property(key: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x26][..], &string(key), &string(value)].concat()
}

// MQTT 5: 1.5.4-3, 1.5.7-1, 3.3.2-4, 3.3.2-13, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18
// MQTT 5: 3.3.2-19, 3.3.2-20
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_of_a_message_reach_everybody_unaltered() {
    let mut scene = Scene::of(5).await;
    let topic = public("a");
    scene.subscribe(&topic, 0).await;
    let properties = [
        vec![1, 1],
        [&[8][..], &string(b"some/answer")].concat(),
        [&[9][..], &string(b"\0\xff")].concat(),
        // U+FEFF stays where it is.
        user_property(b"b", "\u{feff}x".as_bytes()),
        user_property(b"a", b"2"),
        user_property(b"b", b"1"),
        [&[3][..], &string(b"text/plain")].concat(),
    ]
    .concat();
    scene.publish_with(&topic, 1, &properties, b"x").await;
    assert_eq!(scene.message().await.properties, properties, "live");
    scene.rig.restart().await;
    let mut later = scene.another("later").await;
    later.send(&subscribe(5, 1, &topic, 0)).await;
    later.packet().await.unwrap();
    let message = Message::next(&mut later, 5).await;
    assert_eq!(message.properties, properties, "retained, after a restart");
}

// MQTT 5: 1.5.7-1, 3.3.2-13, 3.3.2-14, 3.3.2-19, 3.3.4-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_of_another_form_end_the_connection() {
    let rig = Rig::start().await;
    let wrong = [
        ([&[8][..], &string(b"a/+")].concat(), 0x81),
        ([&[8][..], &string(b"\xff")].concat(), 0x81),
        ([&[3][..], &string(b"\xff")].concat(), 0x81),
        (user_property(b"\xff", b"x"), 0x81),
        (user_property(b"x", b"\0"), 0x81),
        (vec![0x0b, 1], 0x82),
        (vec![1, 1, 1, 1], 0x82),
        (vec![1, 2], 0x82),
        (vec![0x11, 0, 0, 0, 0], 0x81),
    ];
    for (properties, reason) in wrong {
        let mut raw = rig.raw_session(&rig.provider, 5).await;
        let topic = public("a");
        raw.send(&publish(5, topic.as_bytes(), 0, 0, &properties, b"x"))
            .await;
        ends(&mut raw, 5, reason).await;
    }
}

// MQTT 5: 3.3.2-5, 3.3.2-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_expire_and_tell_what_is_left() {
    let mut scene = Scene::with(5, &[0x21, 0, 1]).await;
    let topic = public("a");
    let expiry = |seconds| [2, 0, 0, 0, seconds];
    // The first one, not acknowledged, holds the others back.
    scene.subscribe(&topic, 1).await;
    scene.publish(&topic, 2, b"first").await;
    let first = scene.message().await;
    scene.publish_with(&topic, 2, &expiry(1), b"short").await;
    scene.publish_with(&topic, 3, &expiry(100), b"long").await;
    // A second reader sees the time pass.
    let mut clock = scene.another("clock").await;
    let (mut left, mut rounds) = (100, 0);
    while left > 98 {
        clock.send(&subscribe(5, 1, &topic, 0)).await;
        assert_eq!(clock.packet().await.unwrap().0, 0x90);
        let message = Message::next(&mut clock, 5).await;
        assert_eq!(message.properties[..4], [2, 0, 0, 0]);
        assert!(message.properties[4] <= left);
        left = message.properties[4];
        rounds += 1;
        assert!(rounds < 100_000);
        tokio::task::yield_now().await;
    }
    scene
        .subscriber
        .send(&acknowledgement(first.id.unwrap()))
        .await;
    let message = scene.message().await;
    assert_eq!(message.payload, b"long");
    assert!(message.properties[4] <= 98, "less than was published");
    scene.nothing_more().await;
    scene.publish_with(&topic, 3, &expiry(0), b"at once").await;
    clock.send(&subscribe(5, 1, &topic, 0)).await;
    assert_eq!(clock.packet().await.unwrap().0, 0x90);
    ping(&mut clock).await;
}

// MQTT 3.1.1: 4.6.0-5, 4.6.0-6
// MQTT 5: 4.6.0-5, 4.6.0-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_client_keep_their_order() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.subscribe(&topic, 1).await;
        let mut bytes = Vec::new();
        for count in 0..200_u16 {
            let payload = count.to_be_bytes();
            bytes.extend(publish(
                version,
                topic.as_bytes(),
                2,
                count + 1,
                &[],
                &payload,
            ));
        }
        scene.publisher.send(&bytes).await;
        for count in 0..200_u16 {
            let message = scene.message().await;
            assert_eq!(message.payload, count.to_be_bytes());
            let puback = acknowledgement(message.id.unwrap());
            scene.subscriber.send(&puback).await;
            let [high, low] = (count + 1).to_be_bytes();
            let puback = scene.publisher.packet().await;
            assert_eq!(puback, Some((0x40, vec![high, low])), "in order, too");
        }
    }
}

// MQTT 5: 3.1.2-26, 3.1.2-27, 3.2.2-17, 3.2.2-18, 3.3.2-7, 3.3.2-8, 3.3.2-9, 3.3.2-11
// MQTT 5: 3.3.2-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topic_aliases_are_refused_and_never_sent() {
    // The subscriber would take ten.
    let mut scene = Scene::with(5, &[0x22, 0, 10]).await;
    let topic = public("a");
    scene.subscribe(&topic, 0).await;
    for _ in 0..3 {
        scene.publish(&topic, 0, b"x").await;
        let message = scene.message().await;
        assert_eq!((message.topic, message.properties), (topic.clone(), vec![]));
    }
    for alias in [0, 1, 10] {
        let mut raw = scene.rig.raw_session(&scene.rig.provider, 5).await;
        let property = [0x23, 0, alias];
        raw.send(&publish(5, topic.as_bytes(), 0, 0, &property, b"x"))
            .await;
        ends(&mut raw, 5, 0x94).await;
    }
    scene.nothing_more().await;
}
