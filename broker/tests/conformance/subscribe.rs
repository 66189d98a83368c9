//! SUBSCRIBE, UNSUBSCRIBE, and what filters match.

use super::*;

fn subscribe_many(version: u8, id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    for (filter, options) in filters {
        body.extend(string(filter.as_bytes()));
        body.push(*options);
    }
    packet(0x82, &body)
}

fn unsubscribe(version: u8, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    for filter in filters {
        body.extend(string(filter.as_bytes()));
    }
    packet(0xa2, &body)
}

// MQTT 3.1.1: 2.3.1-7, 3.8.4-1, 3.8.4-2, 3.8.4-4, 3.8.4-5, 3.9.3-1, 3.9.3-2
// MQTT 5: 2.2.1-6, 2.2.2-1, 3.2.2-10, 3.8.4-1, 3.8.4-2, 3.8.4-5, 3.8.4-6, 3.8.4-7, 3.9.2-1
// MQTT 5: 3.9.2-2, 3.9.3-1, 3.9.3-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suback_has_a_code_for_each_filter_in_order() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let (a, b, c) = (public("a"), public("b"), public("c"));
        let inbox = scene.rig.meter.topic("inbox/#");
        let filters = [(&a[..], 0), (&inbox, 1), (&b, 1), ("a/#/b", 0), (&c, 2)];
        let packet = subscribe_many(version, 0x1234, &filters);
        scene.subscriber.send(&packet).await;
        let (first, body) = scene.subscriber.packet().await.unwrap();
        assert_eq!((first, &body[..2]), (0x90, &[0x12, 0x34][..]));
        let expected: &[u8] = match version {
            4 => &[0, 0x80, 1, 0x80, 1],
            // No properties.
            _ => &[0, 0, 0x87, 1, 0x8f, 1],
        };
        assert_eq!(&body[2..], expected);
        for topic in [&a, &b, &c] {
            scene.publish(topic, 0, topic.as_bytes()).await;
            assert_eq!(scene.message().await.topic, *topic);
        }
        scene.nothing_more().await;
    }
}

// MQTT 3.1.1: 3.8.4-3
// MQTT 5: 3.8.4-3, 3.8.4-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_filter_again_replaces_the_subscription() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topic = public("a");
        scene.publish(&topic, 3, b"kept").await;
        for granted in [0, 1, 0] {
            assert_eq!(scene.subscribe(&topic, granted).await, granted);
            let kept = scene.message().await;
            assert_eq!((kept.retain, kept.qos), (true, granted));
            // Once, with what was granted last.
            scene.publish(&topic, 2, b"live").await;
            let live = scene.message().await;
            assert_eq!((live.retain, live.qos), (false, granted));
            for id in [kept.id, live.id].into_iter().flatten() {
                scene.subscriber.send(&acknowledgement(id)).await;
            }
            scene.nothing_more().await;
        }
        // Nothing that comes in between is lost.
        let count = 50;
        let mut publishing = scene.rig.raw_session(&scene.rig.provider, version).await;
        let task = tokio::spawn(async move {
            for n in 0..count {
                publishing
                    .send(&publish(version, topic.as_bytes(), 2, 1, &[], &[n]))
                    .await;
                publishing.packet().await.unwrap();
            }
            topic
        });
        let again = rig::subscribe(version, 9, &public("a"), 0);
        let mut next = 0;
        while next < count {
            scene.subscriber.send(&again).await;
            loop {
                let (first, body) = scene.subscriber.packet().await.unwrap();
                if first == 0x90 {
                    break;
                }
                let message = Message::parse(version, first, &body);
                if !message.retain {
                    assert_eq!(message.payload, [next]);
                    next += 1;
                }
            }
        }
        task.await.unwrap();
    }
}

// MQTT 3.1.1: 2.3.1-1, 3.8.3-1, 3.8.3-3, 3.8.3-4, 3.10.3-1, 3.10.3-2
// MQTT 5: 2.2.1-3, 3.8.3-1, 3.8.3-2, 3.8.3-4, 3.8.3-5, 3.10.3-1, 3.10.3-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_of_another_form_end_the_connection() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let no_properties: &[u8] = if version == 5 { &[0] } else { &[] };
        let build = |first, body: &[u8]| packet(first, &[&[0, 1], no_properties, body].concat());
        let mut wrong = vec![
            ("no filter", build(0x82, b""), 0x82),
            ("no filter to end", build(0xa2, b""), 0x82),
            ("no options", build(0x82, b"\0\x01a"), 0x81),
            ("quality 3", build(0x82, b"\0\x01a\x03"), 0x81),
            ("reserved bits", build(0x82, b"\0\x01a\x40"), 0x81),
            ("reserved bits", build(0x82, b"\0\x01a\x80"), 0x81),
            ("no UTF-8", build(0x82, b"\0\x01\xff\x01"), 0x81),
            ("no UTF-8", build(0xa2, b"\0\x01\xff"), 0x81),
            ("U+0000", build(0x82, b"\0\x01\0\x01"), 0x81),
            ("cut off", build(0xa2, b"\0\x09a"), 0x81),
            (
                "identifier 0",
                subscribe_many(version, 0, &[("a", 0)]),
                0x82,
            ),
            ("identifier 0", unsubscribe(version, 0, &["a"]), 0x82),
        ];
        if version == 4 {
            for bit in [0x04, 0x08, 0x10, 0x20] {
                let packet = build(0x82, &[0, 1, b'a', bit]);
                wrong.push(("an option of MQTT 5", packet, 0x81));
            }
        } else {
            let packet = build(0x82, b"\0\x01a\x30");
            wrong.push(("retain handling 3", packet, 0x82));
            let shared = subscribe_many(5, 1, &[("$share/group/a", 4)]);
            wrong.push(("no local and shared", shared, 0x82));
        }
        for (what, packet, reason) in wrong {
            let mut raw = rig.raw_session(&rig.meter, version).await;
            raw.send(&packet).await;
            eprintln!("{what}, version {version}");
            ends(&mut raw, version, reason).await;
        }
    }
}

// MQTT 3.1.1: 3.3.2-3, 3.8.3-2, 4.7.1-2, 4.7.1-3, 4.7.3-4
// MQTT 5: 3.3.2-3, 4.7.1-1, 4.7.1-2, 4.7.3-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_match_as_the_standard_says() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let topics = ["a", "A", "a/b", "a//b", "a/b/c", "a/b/", "a b", "/a"];
        for (filter, matched) in [
            ("#", &topics[..]),
            ("+", &["a", "A", "a b"]),
            ("a", &["a"]),
            ("a/#", &["a", "a/b", "a//b", "a/b/c", "a/b/"]),
            ("a/+", &["a/b"]),
            ("a/+/b", &["a//b"]),
            ("+/+", &["a/b", "/a"]),
            ("a/b/+", &["a/b/c", "a/b/"]),
            ("a/+/#", &["a/b", "a//b", "a/b/c", "a/b/"]),
        ] {
            // Each client may use a few filters only.
            scene.reader = scene.rig.third_party();
            scene.subscriber = scene.another("reader").await;
            assert_eq!(scene.subscribe(&public(filter), 0).await, 0, "{filter}");
            for topic in topics {
                scene.publish(&public(topic), 0, b"x").await;
                if matched.contains(&topic) {
                    assert_eq!(scene.message().await.topic, public(topic), "{filter}");
                }
            }
            scene.nothing_more().await;
        }
        for filter in ["a#", "#/a", "a/#/b", "a+", "+a", "a/b+/c", "a/+#"] {
            let code = scene.subscribe(&public(filter), 0).await;
            assert_eq!(code, if version == 5 { 0x8f } else { 0x80 }, "{filter}");
        }
    }
}

// MQTT 3.1.1: 1.5.3-3, 4.7.2-1, 4.7.3-1, 4.7.3-3
// MQTT 5: 4.7.2-1, 4.7.3-1, 4.7.3-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_beyond_what_the_net_uses_are_refused() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let long = format!("dcnet/{}", "x".repeat(65_529));
        assert_eq!(long.len(), 65_535);
        // With U+FEFF in front it is another filter than without.
        let marked = format!("\u{feff}{}", public("#"));
        let refused = if version == 5 { 0x8f } else { 0x80 };
        for filter in ["$SYS/#", "$SYS/a", "", &marked] {
            assert_eq!(scene.subscribe(filter, 0).await, refused);
        }
        // Third parties send no packet so long.
        let mut raw = scene.rig.raw_session(&scene.rig.meter, version).await;
        raw.send(&rig::subscribe(version, 1, &long, 0)).await;
        assert_eq!(raw.packet().await.unwrap().1.last(), Some(&refused));
        // Nobody publishes to topics of brokers, so no wildcard meets one.
        for topic in ["$SYS/a", &long] {
            let mut raw = scene.rig.raw_session(&scene.rig.provider, version).await;
            raw.send(&publish(version, topic.as_bytes(), 2, 1, &[], b"x"))
                .await;
            match version {
                4 => assert_eq!(raw.packet().await, None),
                _ => assert_eq!(raw.packet().await.unwrap().1[..3], [0, 1, 0x87]),
            }
        }
    }
}

// MQTT 3.1.1: 3.10.4-1, 3.10.4-2, 3.10.4-3, 3.10.4-4, 3.10.4-5, 3.10.4-6
// MQTT 5: 3.10.4-1, 3.10.4-2, 3.10.4-3, 3.10.4-4, 3.10.4-5, 3.10.4-6, 3.11.2-1, 3.11.2-2
// MQTT 5: 3.11.3-1, 3.11.3-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsubscribing_ends_exactly_that_subscription() {
    for version in [4, 5] {
        let mut scene = Scene::of(version).await;
        let (a, b, wild) = (public("a"), public("b"), public("+/x"));
        for filter in [&a, &b, &wild] {
            scene.subscribe(filter, 1).await;
        }
        // One that is on its way is finished afterwards.
        scene.publish(&a, 2, b"under way").await;
        let under_way = scene.message().await;
        let other = public("A");
        let end = unsubscribe(version, 0x4321, &[&other, &a, &wild, &public("+")]);
        scene.subscriber.send(&end).await;
        let (first, body) = scene.subscriber.packet().await.unwrap();
        let expected: &[u8] = match version {
            4 => &[0x43, 0x21],
            _ => &[0x43, 0x21, 0, 0x11, 0, 0, 0x11],
        };
        assert_eq!((first, &body[..]), (0xb0, expected));
        let puback = acknowledgement(under_way.id.unwrap());
        scene.subscriber.send(&puback).await;
        for topic in [&a, &public("y/x"), &b] {
            scene.publish(topic, 2, b"new").await;
        }
        assert_eq!(scene.message().await.topic, b);
        scene.nothing_more().await;
    }
}

// MQTT 5: 3.3.4-3, 3.3.4-4, 3.3.4-5, 3.8.3-3, 4.8.2-1, 4.8.2-2, 4.8.2-3, 4.8.2-4, 4.8.2-5
// MQTT 5: 4.8.2-6
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_offered_is_refused_filter_by_filter() {
    let mut scene = Scene::of(5).await;
    let topic = public("a");
    let shared = format!("$share/group/{topic}");
    assert_eq!(scene.subscribe(&shared, 1).await, 0x9e);
    assert_eq!(scene.subscribe("$share//a", 1).await, 0x9e);
    assert_eq!(scene.subscribe(&topic, 4).await, 0x83, "no local");
    let mut body = vec![0, 9, 2, 0x0b, 7];
    body.extend(string(topic.as_bytes()));
    body.push(0);
    scene.subscriber.send(&packet(0x82, &body)).await;
    assert_eq!(scene.suback().await, 0xa1, "subscription identifiers");
    // None of them is in force, and others work.
    scene.publish(&topic, 2, b"x").await;
    scene.nothing_more().await;
    assert_eq!(scene.subscribe(&topic, 1).await, 1);
    scene.publish(&topic, 2, b"x").await;
    assert!(scene.message().await.properties.is_empty(), "no identifier");
    // In 3.1.1 such a filter is like any that nobody may use.
    let mut scene = Scene::of(4).await;
    assert_eq!(scene.subscribe(&shared, 1).await, 0x80);
}
