//! Sessions, wills, keep-alive, takeover and the end.

use super::*;
use std::time::{Duration, Instant};

// MQTT 3.1.1: 3.1.2-4, 3.1.2-5, 3.1.2-6, 3.1.4-3, 3.2.2-1, 3.2.2-2, 3.2.2-3, 4.4.0-1
// MQTT 5: 3.1.2-4, 3.1.2-5, 3.1.2-6, 3.1.2-23, 3.1.4-4, 3.2.2-2, 3.2.2-3, 4.1.0-2, 4.4.0-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_connection_and_the_client_is_told() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        // It asks for a session that stays.
        let day = [0x11, 0, 1, 0x51, 0x80];
        let properties: &[u8] = if version == 5 { &day } else { &[] };
        for flags in [0, 2, 0] {
            let mut raw = scene.rig.raw(&scene.reader).await;
            raw.send(&connect_with(version, "staying", flags, 60, properties))
                .await;
            let (_, connack) = raw.packet().await.unwrap();
            assert_eq!(connack[..2], [0, 0], "no session present");
            if version == 5 {
                assert_eq!(connack[3..8], [0x11, 0, 0, 0, 0], "session expiry 0");
            }
            // Nothing of the one before: no subscription, no message.
            let topic = public("a");
            scene.publish(&topic, 2, b"before").await;
            ping(&mut raw).await;
            raw.send(&subscribe(version, 1, &topic, 1)).await;
            assert_eq!(raw.packet().await.unwrap().0, 0x90);
            scene.publish(&topic, 2, b"never acknowledged").await;
            assert_eq!(raw.packet().await.unwrap().0, 0x32);
            drop(raw);
            scene.publish(&topic, 2, b"while it was away").await;
        }
    }
}

// MQTT 3.1.1: 4.1.0-1, 4.1.0-2
// MQTT 5: 4.1.0-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_lasts_as_long_as_its_connection() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.subscribe(&topic, 1).await;
        for count in 0..300_u16 {
            scene.publish(&topic, 2, &count.to_be_bytes()).await;
        }
        // More than ever are under way at a time; none is acknowledged until later.
        for count in 0..300_u16 {
            let message = scene.message().await;
            assert_eq!(message.payload, count.to_be_bytes());
            let puback = acknowledgement(message.id.unwrap());
            scene.subscriber.send(&puback).await;
        }
        scene.nothing_more().await;
    }
}

// MQTT 3.1.1: 3.1.2-7
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_outlive_the_session() {
    let mut scene = Scene::of(4).await;
    scene.publish(&public("a"), 3, b"kept").await;
    scene.publisher.send(&[0xe0, 0]).await;
    scene.publisher.end().await;
    scene.subscribe(&public("#"), 1).await;
    assert_eq!(scene.message().await.payload, b"kept");
}

/// CONNECT of the provider with a will; `flags` besides clean and will.
fn with_will(scene: &Scene, flags: u8, properties: &[u8]) -> Vec<u8> {
    let mut will_properties = vec![properties.len() as u8];
    will_properties.extend_from_slice(properties);
    if scene.version == 4 {
        will_properties.clear();
    }
    let fields: [&[u8]; 4] = [
        &string(scene.rig.provider.client_id().as_bytes()),
        &will_properties,
        &string(public("will").as_bytes()),
        &string(b"gone"),
    ];
    raw_connect(scene.version, 0x06 | flags, &fields)
}

/// A connection of the provider with a will.
async fn willing(scene: &Scene, flags: u8, properties: &[u8]) -> Raw {
    let mut raw = scene.rig.raw(&scene.rig.provider).await;
    raw.send(&with_will(scene, flags, properties)).await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
    raw
}

// MQTT 3.1.1: 3.1.2-8, 3.1.2-10, 3.1.2-12, 3.1.2-16, 3.1.2-17
// MQTT 5: 3.1.2-7, 3.1.2-8, 3.1.2-14, 3.1.2-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_published_once_when_the_connection_breaks() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("will"), 1).await;
        for (flags, qos, retain) in [(0, 0, false), (0x08, 1, false), (0x28, 1, true)] {
            drop(willing(&scene, flags, &[]).await);
            let will = scene.message().await;
            assert_eq!((will.qos, will.retain), (qos, false));
            assert_eq!(will.payload, b"gone");
            if let Some(id) = will.id {
                scene.subscriber.send(&acknowledgement(id)).await;
            }
            // A session without a will has none, nor has the next of the same client.
            drop(scene.rig.raw_session(&scene.rig.provider, version).await);
            until("the end of the session", || {
                scene.rig.broker().counters().sessions_open == 1
            })
            .await;
            scene.nothing_more().await;
            let stored = scene.rig.broker().counters().retained;
            assert_eq!(stored, u64::from(retain));
        }
    }
}

// MQTT 3.1.1: 3.1.2-10, 3.14.4-3
// MQTT 5: 3.1.2-8, 3.1.2-10, 3.14.4-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_will_is_dropped_by_a_normal_disconnect_only() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("will"), 0).await;
        let mut ends: Vec<(&[u8], bool)> = vec![(&[0xe0, 0], false)];
        if version == 5 {
            ends.extend([
                (&[0xe0, 1, 0][..], false),
                (&[0xe0, 2, 0, 0], false),
                (&[0xe0, 1, 4], true),
                (&[0xe0, 2, 4, 0], true),
                (&[0xe0, 1, 0x81], true),
            ]);
        }
        for (disconnect, published) in ends {
            let mut raw = willing(&scene, 0, &[]).await;
            raw.send(disconnect).await;
            assert_eq!(raw.packet().await, None);
            until("the end of the session", || {
                scene.rig.broker().counters().sessions_open == 1
            })
            .await;
            if published {
                assert_eq!(scene.message().await.payload, b"gone", "{disconnect:?}");
            }
            scene.nothing_more().await;
        }
    }
}

// MQTT 5: 3.1.3-9, 3.1.3-10
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_will_comes_with_the_end_of_its_session() {
    let mut scene = Scene::of(5).await;
    scene.subscribe(&public("will"), 0).await;
    // An hour's delay; the session expires at once, and the will with it.
    let mut properties = vec![0x18, 0, 0, 0x0e, 0x10];
    let mut user = Vec::new();
    for (key, value) in [(b"b", b"1"), (b"a", b"2"), (b"b", b"0")] {
        user.push(0x26);
        user.extend(string(key));
        user.extend(string(value));
    }
    properties.extend(&user);
    drop(willing(&scene, 0, &properties).await);
    let will = scene.message().await;
    assert_eq!(will.properties, user, "in their order, and no more");
    // Nothing of that session is left for the next one to call off.
    drop(willing(&scene, 0, &properties).await);
    scene.message().await;
    scene.rig.raw_session(&scene.rig.provider, 5).await;
    scene.nothing_more().await;
}

// MQTT 3.1.1: 3.1.2-24
// MQTT 5: 3.1.2-22, 3.2.2-22
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_of_one_and_a_half_keep_alives_is_a_broken_connection() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("will"), 0).await;
        let mut connect = with_will(&scene, 0, &[]);
        // One second; it stands after the fixed header, name, level and flags.
        let at = connect.windows(2).position(|w| w == [0, 60]).unwrap();
        connect[at + 1] = 1;
        let mut raw = scene.rig.raw(&scene.rig.provider).await;
        raw.send(&connect).await;
        assert_eq!(raw.packet().await.unwrap().1[1], 0);
        let start = Instant::now();
        ends(&mut raw, version, 0x8d).await;
        let after = start.elapsed();
        assert!(after > Duration::from_millis(1400), "{after:?}");
        assert_eq!(scene.message().await.payload, b"gone");
    }
}

// MQTT 5: 3.2.2-21
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keep_alive_of_the_brokers_own_is_told() {
    let rig = Rig::with(|config, _, _| config.limits.keep_alive_max_s = 30).await;
    for (asked, told) in [(0, true), (31, true), (30, false), (10, false)] {
        let mut raw = rig.raw(&rig.meter).await;
        raw.send(&connect_with(5, &rig.meter.client_id(), 2, asked, &[]))
            .await;
        let (_, body) = raw.packet().await.unwrap();
        let server_keep_alive = body.windows(3).any(|w| w == [0x13, 0, 30]);
        assert_eq!(server_keep_alive, told, "{asked}");
    }
}

// MQTT 3.1.1: 3.1.3-2, 3.1.4-2
// MQTT 5: 3.1.3-2, 3.1.4-3, 3.14.2-1, 3.14.2-2, 3.14.4-1, 3.14.4-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_client_again_ends_its_older_connection() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let mut other = scene.another("another").await;
        let mut newer = scene.another("reader").await;
        let last = scene.subscriber.packet().await;
        match version {
            4 => assert_eq!(last, None),
            _ => {
                let (first, body) = last.expect("a DISCONNECT");
                assert_eq!((first, body[0]), (0xe0, 0x8e));
                // Nothing but the reason in words.
                assert_eq!(body[2], 0x1f);
                assert_eq!(usize::from(body[1]), 3 + usize::from(body[4]));
                assert_eq!(scene.subscriber.packet().await, None);
            }
        }
        ping(&mut newer).await;
        ping(&mut other).await;
    }
}

// MQTT 3.1.1: 3.12.4-1
// MQTT 5: 3.12.4-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ping_is_answered() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let mut raw = rig.raw_session(&rig.meter, version).await;
        raw.send(&[0xc0, 0, 0xc0, 0, 0xc0, 0]).await;
        for _ in 0..3 {
            assert_eq!(raw.packet().await, Some((0xd0, vec![])));
        }
    }
}

// MQTT 3.1.1: 7.1.1-1
// MQTT 5: 4.2.0-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_in_order_however_they_are_cut() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        scene.subscribe(&public("#"), 0).await;
        let topic = public("a");
        let packet = publish(version, topic.as_bytes(), 0, 0, &[], b"whole");
        for byte in &packet {
            scene.publisher.send(&[*byte]).await;
        }
        scene.publisher.send(&packet.repeat(2)).await;
        for _ in 0..3 {
            assert_eq!(scene.message().await.payload, b"whole");
        }
    }
}
