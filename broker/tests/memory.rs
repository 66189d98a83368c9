//! What the router keeps of messages stays within `limits.memory_mib`, and who reads at a usual
//! pace misses nothing for it.

mod rig;

use std::fs;
use std::net::SocketAddr;

use rig::*;

/// Little more than the least with these limits.
const MEMORY_MIB: usize = 143;
const LIMITS: &str = "[limits]\nconnections = 400\nfilters = 400\nmemory_mib = 143\n";

/// Of a broker besides what its router keeps.
const REST_MIB: usize = 64;

const METERS: usize = 300;

/// As much as an inbox takes, in messages of [`LENGTH`] bytes.
const FULL: usize = 64;
const LENGTH: usize = 16 * 1024;

/// More than may be taken.
const _: () = assert!(METERS * FULL * LENGTH / 1024 / 1024 > MEMORY_MIB + REST_MIB);

async fn limited() -> Rig {
    Rig::with(|config, _, _| {
        config.limits.connections = 400;
        config.limits.filters = 400;
        config.limits.memory_mib = MEMORY_MIB;
    })
    .await
}

/// Messages of quality of service 0 to the log of an inbox, numbered.
fn numbered(meter: &Identity, numbers: std::ops::Range<usize>, length: usize) -> Vec<u8> {
    let topic = meter.topic("inbox/log");
    let messages = numbers.map(|number| {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(length, b'x');
        publish(4, topic.as_bytes(), 0, 0, &[], &payload)
    });
    messages.collect::<Vec<_>>().concat()
}

fn number(payload: &[u8]) -> usize {
    usize::from_be_bytes(payload[..8].try_into().unwrap())
}

/// A meter's connection with a subscription to its inbox.
async fn subscribed(rig: &Rig, address: SocketAddr, meter: &Identity) -> Raw {
    let mut raw = rig.raw_session_at(address, meter, 4).await;
    raw.send(&subscribe(4, 1, &meter.topic("inbox/#"), 1)).await;
    assert_eq!(raw.packet().await, Some((0x90, vec![0, 1, 1])));
    raw
}

/// Fills the inboxes of many meters that are gone.
async fn fill(rig: &Rig, address: SocketAddr, provider: &mut Raw) {
    for _ in 0..METERS {
        let meter = rig.new_meter();
        let mut raw = subscribed(rig, address, &meter).await;
        raw.send(&[0xe0, 0]).await;
        raw.end().await;
        provider.send(&numbered(&meter, 0..FULL, LENGTH)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_inboxes_take_no_more_than_the_limit() {
    let rig = Rig::stopped().await;
    let daemon = Daemon::with(&rig, LIMITS);
    let mut provider = rig.raw_session_at(daemon.address, &rig.provider, 4).await;
    fill(&rig, daemon.address, &mut provider).await;
    // What the provider sent before has then reached the router's logs.
    let mut last = subscribed(&rig, daemon.address, &rig.meter).await;
    provider.send(&numbered(&rig.meter, 0..1, LENGTH)).await;
    assert_eq!(last.packet().await.unwrap().0, 0x30);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let highest = highest.unwrap().trim().strip_suffix(" kB").unwrap();
    let highest = highest.parse::<usize>().unwrap() / 1024;
    eprintln!("at most {highest} MiB were resident");
    assert!(highest <= MEMORY_MIB + REST_MIB, "{highest} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_many_messages_arrives_whole_beside_full_inboxes() {
    let rig = limited().await;
    let mut provider = rig.raw_session(&rig.provider, 4).await;
    fill(&rig, rig.address(), &mut provider).await;
    let mut reader = rig.client(&rig.meter).await;
    assert!(reader.subscribe(&rig.meter.topic("inbox/#")).await);
    // A log of 4 MiB, fetched as meters do.
    for answer in 0..32 {
        let numbers = answer * 256..(answer + 1) * 256;
        provider
            .send(&numbered(&rig.meter, numbers.clone(), 512))
            .await;
        for expected in numbers {
            assert_eq!(number(&reader.message().await.1), expected);
        }
    }
    let counters = rig.broker().counters();
    assert!(counters.logs_emptied > 0, "others were given up for it");
    assert!(counters.log_bytes <= (MEMORY_MIB * 1024 * 1024) as u64);
    assert_eq!(counters.messages_skipped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_slow_reader_misses_is_counted() {
    const SENT: usize = 500;
    let rig = limited().await;
    let mut provider = rig.raw_session(&rig.provider, 4).await;
    let other = rig.new_meter();
    let mut quick = subscribed(&rig, rig.address(), &other).await;
    let mut slow = subscribed(&rig, rig.address(), &rig.meter).await;
    // Of quality of service 1, so that it must take them before it gets others.
    let topic = rig.meter.topic("inbox/log");
    for sent in 0..SENT {
        let mut payload = sent.to_be_bytes().to_vec();
        payload.resize(LENGTH, b'x');
        provider
            .send(&publish(4, topic.as_bytes(), 2, 1, &[], &payload))
            .await;
        assert_eq!(provider.packet().await, Some((0x40, vec![0, 1])));
    }
    provider.send(&numbered(&other, 0..1, 8)).await;
    assert_eq!(quick.packet().await.unwrap().0, 0x30);
    let mut received = 0;
    loop {
        let (first, body) = slow.packet().await.unwrap();
        assert_eq!(first, 0x32);
        let (id, payload) = body[2 + topic.len()..].split_at(2);
        slow.send(&packet(0x40, id)).await;
        received += 1;
        if number(payload) == SENT - 1 {
            break;
        }
    }
    assert!(received < SENT, "it was too slow");
    let skipped = rig.broker().counters().messages_skipped;
    assert_eq!(received as u64 + skipped, SENT as u64);
}
