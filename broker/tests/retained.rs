//! Retained messages: who may leave them, and what their replay costs at most.

mod rig;

use broker::Refusal;
use rig::*;

/// Messages of a replay, and those that the broker prepares at a time.
const MESSAGES: usize = 64;
const PREPARED: usize = 16;

fn topic(number: usize) -> String {
    format!("dcnet/1/{NET}/public/many/{number:02}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meter_cannot_use_up_the_store() {
    let rig = Rig::with(|config, _, _| config.limits.retained_messages = 3).await;
    let of_meter = |number: usize| rig.meter.topic(&format!("up/pair/{number:032x}"));
    for version in [4, 5] {
        let mut raw = rig.raw_session(&rig.meter, version).await;
        for number in 0..3 {
            raw.try_send(&publish(
                version,
                of_meter(number).as_bytes(),
                1,
                0,
                &[],
                b"x",
            ))
            .await;
        }
        raw.try_send(&publish(version, of_meter(0).as_bytes(), 3, 7, &[], b"x"))
            .await;
        match (version, raw.end().await) {
            // Only what waits for an acknowledgement ends it.
            (4, None) => {}
            (5, Some((0xe0, body))) if body[0] == 0x9a => {}
            (_, last) => panic!("version {version}: {last:x?}"),
        }
    }
    assert_eq!(rig.refused(Refusal::Retain), 4 + 1);
    assert_eq!(rig.broker().counters().retained, 0);
    let mut provider = rig.raw_session(&rig.provider, 4).await;
    for number in 0..3 {
        let packet = publish(4, topic(number).as_bytes(), 3, 1, &[], b"x");
        provider.send(&packet).await;
        assert_eq!(provider.packet().await, Some((0x40, vec![0, 1])));
    }
    assert_eq!(rig.broker().counters().retained, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_subscribes_again_and_again_is_owed_one_replay() {
    let rig = Rig::start().await;
    let mut provider = rig.raw_session(&rig.provider, 4).await;
    for number in 0..MESSAGES {
        let packet = publish(4, topic(number).as_bytes(), 3, 1, &[], b"x");
        provider.send(&packet).await;
        provider.packet().await.unwrap();
    }
    let mut raw = rig.raw(&rig.third_party()).await;
    // One unacknowledged message at a time.
    raw.send(&connect(5, "reader", &[0x21, 0, 1])).await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
    let filter = format!("dcnet/1/{NET}/public/many/#");
    let mut first_message = None;
    for _ in 0..200 {
        raw.send(&subscribe(5, 1, &filter, 1)).await;
        loop {
            match raw.packet().await.unwrap() {
                (0x90, _) => break,
                message => assert_eq!(first_message.replace(message), None, "one at a time"),
            }
        }
    }
    let mut topics = Vec::new();
    loop {
        let (first, body) = match first_message.take() {
            Some(message) => message,
            None => raw.packet().await.unwrap(),
        };
        assert_eq!(first, 0x33, "retained, quality 1");
        let (topic, id) = body[2..].split_at(topic(0).len());
        topics.push(String::from_utf8(topic.to_vec()).unwrap());
        raw.send(&[0x40, 2, id[0], id[1]]).await;
        if topics.last() == Some(&self::topic(MESSAGES - 1)) {
            break;
        }
    }
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.packet().await, Some((0xd0, vec![])), "nothing more");
    assert!(topics.len() <= MESSAGES + PREPARED, "{topics:?}");
    let whole: Vec<String> = (0..MESSAGES).map(topic).collect();
    assert!(topics.ends_with(&whole), "{topics:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscribe_names_no_more_filters_than_one_may_use() {
    let rig = Rig::start().await;
    let most = rig.config.limits.filters_per_client;
    let filter = string(format!("dcnet/1/{NET}/public/#").as_bytes());
    for (version, refused) in [(4, 0x80), (5, 0x97)] {
        let mut raw = rig.raw_session(&rig.meter, version).await;
        let mut body = vec![0, 9];
        body.extend(if version == 5 { &[0][..] } else { &[] });
        for _ in 0..10_000 {
            body.extend_from_slice(&filter);
            body.push(1);
        }
        body.truncate(body.len().min(70 * 1024));
        let each = filter.len() + 1;
        let head = if version == 5 { 3 } else { 2 };
        let count = (body.len() - head) / each;
        body.truncate(head + count * each);
        raw.send(&packet(0x82, &body)).await;
        let (first, suback) = raw.packet().await.unwrap();
        assert_eq!(first, 0x90);
        let codes = &suback[head..];
        assert_eq!(codes.len(), count);
        assert!(codes[..most].iter().all(|code| *code == 1));
        assert!(codes[most..].iter().all(|code| *code == refused));
    }
    assert_eq!(rig.refused(Refusal::Quota), 2, "once for each packet");
}
