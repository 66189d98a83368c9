//! Everything that is known to kill rumqttd behind its own listeners, replayed
//! against this broker. After each, another pair of clients still talks.

mod rig;

use broker::Refusal;
use rig::*;
use rumqttc::QoS;
use std::time::Duration;
use tokio::net::TcpStream;

fn reset(stream: TcpStream) {
    // Closing with lingering time zero sends RST.
    socket2::SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_outlives_every_known_killer() {
    let rig = Rig::with(|config, _, _| config.limits.handshake_timeout_s = 2).await;
    let mut pair = Pair::start(&rig).await;
    let meter = &rig.meter;
    let id = meter.client_id();
    let inbox = meter.topic("inbox/#");
    let up = meter.topic("up/submission");
    pair.exchange("nothing").await;

    // Several TCP connections that say nothing, for the whole test.
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(rig.address()).await.unwrap());
    }
    pair.exchange("silent TCP connections").await;

    // A topic whose first character is not ASCII; broken UTF-8; empty; wild; with NUL.
    let own = meter.topic("up/é");
    let topics: [&[u8]; 8] = [
        "é/x".as_bytes(),
        own.as_bytes(),
        b"\xff\xfe",
        b"",
        b"#",
        b"dcnet/+/x",
        b"$SYS/x",
        b"a\0b",
    ];
    for topic in topics {
        for version in [4, 5] {
            for flags in [0, 2] {
                let mut raw = rig.raw_session(meter, version).await;
                raw.send(&publish(version, topic, flags, 1, &[], b"x"))
                    .await;
                raw.try_send(&[0xe0, 0]).await;
                raw.end().await;
            }
        }
    }
    for filter in ["é/#", "$share/é/#", "", "a/#/b", "+é"] {
        let mut raw = rig.raw_session(meter, 4).await;
        raw.send(&subscribe(4, 1, filter, 1)).await;
        assert_eq!(
            raw.packet().await,
            Some((0x90, vec![0, 1, 0x80])),
            "{filter}"
        );
    }
    pair.exchange("hostile topics and filters").await;

    // A persistent shared subscriber that leaves unacknowledged messages, and a
    // persistent one of the allowed kind that does.
    for _ in 0..3 {
        let mut raw = rig.raw(meter).await;
        raw.send(&connect_with(4, &id, 0, 60, &[])).await;
        assert_eq!(
            raw.packet().await,
            Some((0x20, vec![0, 0])),
            "no session present"
        );
        raw.send(&subscribe(4, 1, &format!("$share/group/{inbox}"), 1))
            .await;
        assert_eq!(raw.packet().await, Some((0x90, vec![0, 1, 0x80])));
        raw.send(&subscribe(4, 2, &inbox, 1)).await;
        assert_eq!(raw.packet().await, Some((0x90, vec![0, 2, 1])));
        for n in 0..150 {
            pair.provider.publish(&meter.topic("inbox/log"), &[n]).await;
        }
        for _ in 0..20 {
            assert_eq!(raw.packet().await.unwrap().0, 0x32);
        }
        drop(raw);
        pair.exchange("a persistent subscriber that left").await;
    }

    // Subscribers of quality 0 that leave under load, politely and not.
    for round in 0..30 {
        let mut raw = rig.raw_session(meter, 4).await;
        raw.send(&subscribe(4, 1, &inbox, 0)).await;
        assert_eq!(raw.packet().await, Some((0x90, vec![0, 1, 0])));
        for _ in 0..400 {
            let topic = meter.topic("inbox/log");
            let payload = vec![0; 2000];
            pair.provider
                .mqtt
                .publish(topic, QoS::AtMostOnce, false, payload)
                .await
                .unwrap();
        }
        for _ in 0..round {
            assert_eq!(raw.packet().await.unwrap().0, 0x30);
        }
        if round % 2 == 0 {
            raw.send(&[0xe0, 0]).await;
        } else {
            reset(raw.stream.into_inner().0);
        }
    }
    pair.exchange("subscribers leaving under load").await;

    // Connect, reset, connect with the same id; also reset within the handshake.
    for round in 0..20 {
        let mut raw = rig.raw(meter).await;
        raw.send(&connect(4, &id, &[])).await;
        if round % 2 == 0 {
            raw.packet().await.unwrap();
        }
        reset(raw.stream.into_inner().0);
        reset(TcpStream::connect(rig.address()).await.unwrap());
    }
    rig.raw_session(meter, 4).await;
    pair.exchange("connect, reset, connect").await;

    // Quality of service 2 without PUBREL, and PUBRELs without anything.
    for version in [4, 5] {
        let mut raw = rig.raw_session(meter, version).await;
        for n in 1..=100 {
            raw.try_send(&publish(version, up.as_bytes(), 4, n, &[], b"x"))
                .await;
        }
        raw.end().await;
        for first in [0x50, 0x62, 0x70] {
            let mut raw = rig.raw_session(meter, version).await;
            raw.send(&[first, 2, 0, 1]).await;
            raw.end().await;
        }
    }
    assert_eq!(rig.refused(Refusal::Unsupported), 4 + 2 * 4);
    pair.exchange("quality of service 2").await;

    // Topic aliases: set and used, without a topic, zero.
    for (topic, alias) in [
        (up.as_str(), 1),
        ("", 1),
        ("", 0),
        (up.as_str(), 0xffff_u16),
    ] {
        let [high, low] = alias.to_be_bytes();
        let mut raw = rig.raw_session(meter, 5).await;
        let property = [35, high, low];
        raw.send(&publish(5, topic.as_bytes(), 2, 1, &property, b"x"))
            .await;
        let (first, body) = raw.end().await.unwrap();
        assert_eq!((first, body[0]), (0xe0, 0x94), "topic alias invalid");
    }
    pair.exchange("topic aliases").await;

    // Oversized, announced or sent, before and after CONNECT.
    let huge = vec![b'x'; 300 * 1024];
    for version in [4, 5] {
        let mut raw = rig.raw_session(meter, version).await;
        raw.try_send(&publish(version, up.as_bytes(), 2, 1, &[], &huge))
            .await;
        raw.end().await;
        let mut raw = rig.raw_session(meter, version).await;
        raw.try_send(&[0x30, 0xff, 0xff, 0xff, 0x7f]).await;
        raw.end().await;
    }
    let mut raw = rig.raw(meter).await;
    raw.try_send(&[0x10, 0xff, 0xff, 0xff, 0x7f]).await;
    raw.end().await;
    assert_eq!(rig.refused(Refusal::TooLarge), 5);
    let largest = vec![b'x'; 71 * 1024];
    let mut raw = rig.raw_session(meter, 4).await;
    raw.send(&publish(4, up.as_bytes(), 2, 1, &[], &largest))
        .await;
    assert_eq!(raw.packet().await, Some((0x40, vec![0, 1])));
    while pair.provider.message().await.1 != largest {}
    pair.exchange("oversized packets").await;

    // Rubbish instead of TLS, instead of CONNECT, and instead of later packets.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    for round in 0..60 {
        let length = 1 + random(200);
        let rubbish: Vec<u8> = (0..length).map(|_| random(256) as u8).collect();
        match round % 4 {
            0 => {
                let mut tcp = TcpStream::connect(rig.address()).await.unwrap();
                let _ = tokio::io::AsyncWriteExt::write_all(&mut tcp, &rubbish).await;
            }
            1 => {
                let mut raw = rig.raw(meter).await;
                raw.try_send(&rubbish).await;
            }
            version => {
                let mut raw = rig.raw_session(meter, version as u8 + 2).await;
                raw.try_send(&rubbish).await;
            }
        }
    }
    pair.exchange("rubbish").await;

    // Well-framed packets with random contents: the decoder's panics.
    let kinds = [
        0x10, 0x20, 0x30, 0x32, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xa2, 0xb0, 0xc0, 0xd0, 0xe0,
        0xf0,
    ];
    for kind in kinds {
        for version in [4, 5] {
            for _ in 0..4 {
                let mut raw = rig.raw_session(meter, version).await;
                for _ in 0..20 {
                    let length = random(24);
                    let body: Vec<u8> = (0..length).map(|_| random(48) as u8).collect();
                    raw.try_send(&packet(kind, &body)).await;
                }
            }
        }
    }
    pair.exchange("random packets").await;

    // A device that takes its own session over again and again.
    for _ in 0..30 {
        let mut raw = rig.raw(meter).await;
        raw.send(&connect(5, &id, &[])).await;
        raw.send(&subscribe(5, 1, &inbox, 1)).await;
    }
    pair.exchange("takeovers").await;

    until("the silent ones are thrown out", || {
        rig.refused(Refusal::HandshakeTimeout) >= 5
    })
    .await;
    drop(silent);
    pair.exchange("everything").await;
    until("all sessions of the attacker are gone", || {
        rig.broker().counters().sessions_open == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_limited_per_address() {
    let rig = Rig::with(|config, _, _| config.limits.connections_per_address = 3).await;
    let mut pair = Pair::start(&rig).await;
    let _third = TcpStream::connect(rig.address()).await.unwrap();
    let _fourth = TcpStream::connect(rig.address()).await.unwrap();
    until("a refusal", || {
        rig.refused(Refusal::TooManyConnections) == 1
    })
    .await;
    pair.exchange("too many connections").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_reading_is_thrown_out() {
    let rig = Rig::with(|config, _, _| config.limits.write_timeout_s = 1).await;
    let mut pair = Pair::start(&rig).await;
    let mut stuck = rig.raw_session(&rig.meter, 4).await;
    stuck
        .send(&subscribe(4, 1, &rig.meter.topic("inbox/#"), 0))
        .await;
    stuck.packet().await.unwrap();
    let payload = vec![0; 200 * 1024];
    for _ in 0..100 {
        let topic = rig.meter.topic("inbox/log");
        pair.provider
            .mqtt
            .publish(topic, QoS::AtMostOnce, false, payload.clone())
            .await
            .unwrap();
    }
    until("a refusal", || rig.refused(Refusal::SlowReader) == 1).await;
    pair.exchange("a stuck reader").await;
}
