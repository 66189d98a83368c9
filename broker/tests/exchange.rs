//! Messages between clients: versions, retained messages, order, bursts,
//! takeover, stop.

mod rig;

use broker::Refusal;
use rig::*;
use rumqttc::v5::mqttbytes::QoS as QoS5;
use rumqttc::v5::mqttbytes::v5::Packet as Packet5;
use rumqttc::v5::{AsyncClient as AsyncClient5, Event as Event5, MqttOptions as MqttOptions5};
use rumqttc::{QoS, TlsConfiguration, Transport};
use std::collections::HashSet;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt_5_and_3_1_1_understand_each_other() {
    let rig = Rig::start().await;
    let mut provider = rig.client(&rig.provider).await;
    assert!(provider.subscribe("dcnet/1/+/meter/+/up/#").await);

    let address = rig.address();
    let id = rig.meter.client_id();
    let mut options = MqttOptions5::new(id, address.ip().to_string(), address.port());
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        rig.tls(Some(&rig.meter)),
    )));
    let (meter, mut events) = AsyncClient5::new(options, 100);
    let inbox = rig.meter.topic("inbox/#");
    meter.subscribe(inbox, QoS5::AtLeastOnce).await.unwrap();
    within("SUBACK", async {
        while !matches!(
            events.poll().await.unwrap(),
            Event5::Incoming(Packet5::SubAck(_))
        ) {}
    })
    .await;

    let up = rig.meter.topic("up/submission");
    meter
        .publish(up.clone(), QoS5::AtLeastOnce, false, "5 to 3.1.1")
        .await
        .unwrap();
    within("PUBACK", async {
        while !matches!(
            events.poll().await.unwrap(),
            Event5::Incoming(Packet5::PubAck(_))
        ) {}
    })
    .await;
    assert_eq!(
        provider.message().await,
        (up, b"5 to 3.1.1".to_vec(), false)
    );

    provider
        .publish(&rig.meter.topic("inbox/roster"), b"3.1.1 to 5")
        .await;
    let payload = within("a message", async {
        loop {
            if let Event5::Incoming(Packet5::Publish(p)) = events.poll().await.unwrap() {
                return p.payload;
            }
        }
    })
    .await;
    assert_eq!(payload, "3.1.1 to 5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_properties_pass_between_mqtt_5_clients() {
    let rig = Rig::start().await;
    let mut provider = rig.raw_session(&rig.provider, 5).await;
    provider
        .send(&subscribe(5, 1, "dcnet/1/+/meter/+/up/#", 1))
        .await;
    assert_eq!(provider.packet().await.unwrap().0, 0x90);
    let mut meter = rig.raw_session(&rig.meter, 5).await;
    let topic = rig.meter.topic("up/status");
    let content_type = [3, 0, 1, b'j'];
    meter
        .send(&publish(5, topic.as_bytes(), 2, 1, &content_type, b"x"))
        .await;
    let (first, body) = provider.packet().await.unwrap();
    assert_eq!(first, 0x32);
    let mut expected = string(topic.as_bytes());
    expected.extend([0, 1, 4]);
    expected.extend(content_type);
    expected.push(b'x');
    assert_eq!(body, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_survive_a_restart() {
    let mut rig = Rig::start().await;
    let topic = |n: usize| format!("dcnet/1/{NET}/public/many/{n}");
    let mut provider = rig.client(&rig.provider).await;
    for n in 0..250 {
        provider
            .retain(&topic(n), format!("value {n}").as_bytes())
            .await;
        provider.acknowledged().await;
    }
    provider.retain(&topic(0), b"").await;
    provider.retain(&topic(1), b"newer").await;
    provider.acknowledged().await;
    provider.acknowledged().await;
    drop(provider);
    rig.restart().await;
    assert_eq!(rig.broker().counters().retained, 249);

    let third = rig.third_party();
    let mut reader = rig.client(&third).await;
    reader
        .mqtt
        .subscribe(format!("dcnet/1/{NET}/public/#"), QoS::AtLeastOnce)
        .await
        .unwrap();
    let mut seen = HashSet::new();
    while seen.len() < 249 {
        let (topic, payload, retain) = reader.message().await;
        assert!(retain, "a replayed message is marked");
        if topic.ends_with("/many/1") {
            assert_eq!(payload, b"newer");
        }
        assert!(seen.insert(topic), "each once");
    }
    assert!(!seen.contains(&topic(0)), "removed by an empty payload");
    // A live one is not marked.
    let provider = rig.client(&rig.provider).await;
    provider.retain(&topic(7), b"live").await;
    assert_eq!(reader.message().await, (topic(7), b"live".to_vec(), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_48_meters_reaches_the_provider_without_loss() {
    const METERS: usize = 48;
    const EACH: usize = 105;
    let rig = Rig::start().await;
    let mut provider = rig.client(&rig.provider).await;
    assert!(provider.subscribe("dcnet/1/+/meter/+/up/#").await);
    let mut meters = Vec::new();
    for _ in 0..METERS {
        let identity = rig.new_meter();
        let client = rig.client(&identity).await;
        meters.push((identity, client));
    }
    for (identity, client) in &meters {
        let (client, identity) = (client.mqtt.clone(), identity.id);
        let base = format!("dcnet/1/{NET}/meter/{identity}/up/pair");
        tokio::spawn(async move {
            for n in 0..EACH {
                let topic = format!("{base}/{n:032x}");
                let payload = vec![b'.'; 700];
                client
                    .publish(topic, QoS::AtLeastOnce, false, payload)
                    .await
                    .unwrap();
            }
        });
    }
    let mut seen = HashSet::new();
    while seen.len() < METERS * EACH {
        let (topic, payload, _) = provider.message().await;
        assert_eq!(payload.len(), 700);
        assert!(seen.insert(topic), "each once");
    }
    let counters = rig.broker().counters();
    let (_, provider) = counters.devices[&rig.provider.id];
    assert_eq!(provider.messages_out, (METERS * EACH) as u64);
    assert!(provider.bytes_out > (METERS * EACH * 700) as u64);
    for (identity, _) in &meters {
        let (_, traffic) = counters.devices[&identity.id];
        assert_eq!(traffic.messages_in, EACH as u64);
        assert!(traffic.bytes_in > (EACH * 700) as u64);
    }
    let sum: u64 = counters.devices.values().map(|(_, t)| t.bytes_in).sum();
    assert_eq!(sum, counters.total.bytes_in, "every byte has its owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_in_any_order_keep_a_client_connected() {
    let rig = Rig::start().await;
    let mut meter = rig.raw_session(&rig.meter, 4).await;
    meter
        .send(&subscribe(4, 1, &rig.meter.topic("inbox/#"), 1))
        .await;
    assert_eq!(meter.packet().await, Some((0x90, vec![0, 1, 1])));
    let provider = rig.client(&rig.provider).await;
    let topic = rig.meter.topic("inbox/roster");
    for round in 0..3 {
        for n in 0..80 {
            provider
                .publish(&topic, format!("{round} {n}").as_bytes())
                .await;
        }
        let mut ids = Vec::new();
        for n in 0..80 {
            let (_, body) = meter.packet().await.unwrap();
            let at = 2 + topic.len();
            ids.push([body[at], body[at + 1]]);
            assert_eq!(
                &body[at + 2..],
                format!("{round} {n}").as_bytes(),
                "in order"
            );
        }
        ids.reverse();
        for id in ids {
            meter.send(&[0x40, 2, id[0], id[1]]).await;
        }
        // One for nothing.
        meter.send(&[0x40, 2, 0xff, 0xff]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_acknowledges_nothing_loses_nothing_and_blocks_nobody() {
    let rig = Rig::start().await;
    let mut pair = Pair::start(&rig).await;
    let mut lazy = rig.raw_session(&rig.meter, 4).await;
    lazy.send(&subscribe(4, 1, &rig.meter.topic("inbox/#"), 1))
        .await;
    lazy.packet().await.unwrap();
    let topic = rig.meter.topic("inbox/log");
    for n in 0..300 {
        pair.provider
            .publish(&topic, format!("{n}").as_bytes())
            .await;
    }
    pair.exchange("300 messages to a client that acknowledges none")
        .await;
    for n in 0..300 {
        let (_, body) = lazy.packet().await.unwrap();
        let at = 2 + topic.len();
        assert_eq!(&body[at + 2..], format!("{n}").as_bytes());
        lazy.send(&[0x40, 2, body[at], body[at + 1]]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_ends_the_older_session_and_the_newer_works() {
    let rig = Rig::start().await;
    let mut pair = Pair::start(&rig).await;
    let mut older = rig.client(&rig.meter).await;
    assert!(older.subscribe(&rig.meter.topic("inbox/#")).await);
    let mut newer = rig.client(&rig.meter).await;
    older.failure().await;
    assert!(newer.subscribe(&rig.meter.topic("inbox/#")).await);
    pair.provider
        .publish(&rig.meter.topic("inbox/log"), b"hello")
        .await;
    assert_eq!(newer.message().await.1, b"hello");
    pair.exchange("a takeover").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_beyond_the_keep_alive_ends_a_session() {
    let rig = Rig::start().await;
    let mut raw = rig.raw(&rig.meter).await;
    raw.send(&connect_with(4, &rig.meter.client_id(), 2, 1, &[]))
        .await;
    raw.packet().await.unwrap();
    let start = std::time::Instant::now();
    assert_eq!(raw.end().await, None);
    assert!(start.elapsed() > Duration::from_millis(1400));
    assert_eq!(rig.refused(Refusal::KeepAlive), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_tells_mqtt_5_clients_why() {
    let mut rig = Rig::start().await;
    let mut raw = rig.raw_session(&rig.meter, 5).await;
    rig.stop().await;
    let (first, body) = raw.end().await.unwrap();
    assert_eq!((first, body[0]), (0xe0, 0x8b));
}
