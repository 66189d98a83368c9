//! What holds for packets of every type.

use super::*;
use tokio::io::AsyncReadExt;

// MQTT 3.1.1: 2.2.2-1, 2.2.2-2, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1
// MQTT 5: 2.1.3-1, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1, 3.15.1-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_flags_have_their_value() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        let subscription = [&[0, 1][..], &[0][..usize::from(version == 5)], b"\0\x01a"].concat();
        let with_options = [&subscription[..], &[0]].concat();
        for (kind, valid, body) in [
            (0x40, 0, &[0, 1][..]),
            (0x50, 0, &[0, 1]),
            (0x60, 2, &[0, 1]),
            (0x70, 0, &[0, 1]),
            (0x80, 2, &with_options),
            (0xa0, 2, &subscription),
            (0xc0, 0, &[]),
            (0xe0, 0, &[]),
            (0xf0, 0, &[]),
        ] {
            for flags in [0, 1, 2, 4, 8, 0x0f].into_iter().filter(|f| *f != valid) {
                let mut raw = rig.raw_session(&rig.meter, version).await;
                raw.send(&packet(kind | flags, body)).await;
                ends(&mut raw, version, 0x81).await;
            }
        }
        let mut raw = rig.raw(&rig.meter).await;
        let mut connect = rig::connect(version, &rig.meter.client_id(), &[]);
        connect[0] |= 1;
        raw.send(&connect).await;
        assert_eq!(raw.packet().await, None);
    }
}

// MQTT 3.1.1: 4.8.0-1
// MQTT 5: 3.14.4-1, 3.14.4-2, 4.12.0-7, 4.13.1-1, 4.13.2-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_servers_send_ends_the_connection() {
    for version in [4, 5] {
        let rig = Rig::start().await;
        for (packet, reason) in [
            (&[0x20, 2, 0, 0][..], 0x82),
            (&[0x90, 3, 0, 1, 0], 0x82),
            (&[0xb0, 2, 0, 1], 0x82),
            (&[0xd0, 0], 0x82),
            (&[0xf0, 0], 0x82),
            (&[0x00, 0], 0x81),
            (&[0xc0, 1, 0], 0x81),
            (&[0x40, 1, 0], 0x81),
            (&[0x40, 0xff, 0xff, 0xff, 0xff], 0x81),
        ] {
            let mut raw = rig.raw_session(&rig.meter, version).await;
            let ping_after = [packet, &[0xc0, 0]].concat();
            raw.send(&ping_after).await;
            // The PINGREQ is not answered any more.
            ends(&mut raw, version, reason).await;
        }
    }
}

// MQTT 5: 3.2.2-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_over_the_limit_end_the_connection() {
    let rig = Rig::with(|config, _, _| config.limits.max_packet = 1024).await;
    for version in [4, 5] {
        let mut raw = rig.raw_session(&rig.provider, version).await;
        let packet = publish(version, public("a").as_bytes(), 0, 0, &[], &[0; 1024]);
        raw.try_send(&packet).await;
        ends(&mut raw, version, 0x95).await;
    }
}

// MQTT 5: 1.5.5-1
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_are_as_short_as_they_can_be() {
    let mut scene = Scene::of(5).await;
    let topic = public("a");
    scene.subscribe(&topic, 0).await;
    let head = 2 + topic.len() + 1;
    for length in [head, 127, 128, 16_383, 16_384] {
        let payload = vec![b'x'; length - head];
        scene.publish(&topic, 0, &payload).await;
        let stream = &mut scene.subscriber.stream;
        let expected: Vec<u8> = packet(0x30, &vec![0; length]);
        let mut received = vec![0; expected.len()];
        within("the message", stream.read_exact(&mut received))
            .await
            .unwrap();
        let fixed = expected.len() - length;
        assert_eq!(received[..fixed], expected[..fixed]);
        assert!(received.ends_with(&payload));
    }
    scene.nothing_more().await;
    // The same is asked of clients.
    for padded in [&[0xc0, 0x80, 0][..], &[0xe0, 0x82, 0, 0, 0]] {
        let mut raw = scene.another("padding").await;
        raw.send(padded).await;
        ends(&mut raw, 5, 0x81).await;
    }
}

// MQTT 5: 3.1.2-29, 3.4.2-2, 3.4.2-3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_have_no_reason_in_words() {
    // Whether the client asks for none or leaves it open.
    for properties in [&[0x17, 0][..], &[]] {
        let mut scene = Scene::with(5, properties).await;
        let topic = public("a");
        let refused = publish(5, topic.as_bytes(), 2, 1, &[], b"x");
        scene.subscriber.send(&refused).await;
        let (_, puback) = scene.subscriber.packet().await.unwrap();
        assert_eq!(puback[..3], [0, 1, 0x87]);
        assert!(puback.len() == 3 || puback[3..] == [0]);
        assert_eq!(scene.subscribe("#", 0).await, 0x87);
    }
}

// MQTT 3.1.1: 4.8.0-2
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_beyond_a_limit_is_disconnected_or_told() {
    let rig = Rig::with(|config, _, _| config.limits.topics_per_client = 1).await;
    for (version, told) in [(4, false), (5, true)] {
        let meter = rig.new_meter();
        let mut raw = rig.raw_session(&meter, version).await;
        for (id, name) in [(1, "up/a"), (2, "up/b")] {
            let topic = meter.topic(name);
            raw.send(&publish(version, topic.as_bytes(), 2, id, &[], b"x"))
                .await;
        }
        assert_eq!(raw.packet().await, Some((0x40, vec![0, 1])));
        let second = raw.packet().await;
        match second {
            Some((0x40, body)) if told => assert_eq!(body[..3], [0, 2, 0x97]),
            None if !told => {}
            other => panic!("{other:?}"),
        }
    }
}
