//! Clients that cost little: packets are built once, sent many at a time, and only counted.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::server::{Kind, Mode, Servers};
use crate::device::Device;
use crate::raw::packet::{connect_with, puback, publish, publish_id, subscribe};
use crate::raw::{Raw, tcp};

/// Bytes of a submission.
const PAYLOAD: usize = 288;
/// Most messages that are published and have not arrived: neither broker drops any of so many.
const UNDER_WAY: u64 = 10_000;
/// Handshakes at a time.
const ENTERING: usize = 32;
/// Connections from one address.
const PER_ADDRESS: usize = 500;
/// For what is under way at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who publishes how.
pub struct Flow {
    /// With or without TLS.
    pub mode: Mode,
    /// How many publish.
    pub publishers: usize,
    /// Messages that each has unacknowledged at a time.
    pub window: usize,
    /// For how long.
    pub span: Duration,
}

/// What came of it.
pub struct Figure {
    /// Messages that arrived, per second.
    pub per_second: f64,
    /// Time of processors that the broker took for each.
    pub microseconds: f64,
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    arrived: AtomicU64,
    stop: AtomicBool,
}

/// Publishes and counts.
///
/// # Errors
/// A connection fails, or a message does not arrive.
pub async fn measure(servers: &Servers, kind: Kind, flow: &Flow) -> anyhow::Result<Figure> {
    let counts = Arc::new(Counts::default());
    let mut subscriber = enter(servers, kind, flow.mode, &servers.provider, 0).await?;
    subscriber
        .send(&subscribe(4, 1, "dcnet/1/+/meter/+/up/#", 1))
        .await?;
    subscriber.expect().await?;
    let mut publishers = Vec::new();
    for (number, meter) in servers.meters.iter().take(flow.publishers).enumerate() {
        let raw = enter(servers, kind, flow.mode, meter, number).await?;
        publishers.push((raw, meter.topic("up/submission")));
    }
    let before = servers.taken(kind)?.processor;
    let begun = Instant::now();
    let mut receiving = JoinSet::new();
    receiving.spawn(receive(subscriber, Arc::clone(&counts)));
    let mut sending = JoinSet::new();
    for (raw, topic) in publishers {
        sending.spawn(send(raw, topic, flow.window, Arc::clone(&counts)));
    }
    sleep(flow.span).await;
    counts.stop.store(true, SeqCst);
    while let Some(sent) = sending.join_next().await {
        sent?.context("a publisher lost its connection")?;
    }
    let sent = counts.sent.load(SeqCst);
    let end = Instant::now() + PATIENCE;
    while counts.arrived.load(SeqCst) < sent {
        if receiving.try_join_next().is_some() {
            bail!("the subscriber lost its connection");
        }
        if Instant::now() > end {
            let arrived = counts.arrived.load(SeqCst);
            bail!("{arrived} of {sent} messages arrived");
        }
        sleep(Duration::from_millis(1)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    let processor = servers.taken(kind)?.processor.saturating_sub(before);
    Ok(Figure {
        per_second: sent as f64 / took,
        microseconds: processor.as_secs_f64() * 1e6 / sent as f64,
    })
}

async fn receive(mut raw: Raw, counts: Arc<Counts>) -> io::Result<()> {
    let mut answers = Vec::new();
    loop {
        let mut arrived = 0;
        raw.packets(|first, body| {
            if first >> 4 == 3 {
                arrived += 1;
                let id = publish_id(body).filter(|_| first & 6 != 0);
                answers.extend(id.map(puback).into_iter().flatten());
            }
        })
        .await?;
        counts.arrived.fetch_add(arrived, SeqCst);
        raw.send(&answers).await?;
        answers.clear();
    }
}

async fn send(mut raw: Raw, topic: String, window: usize, counts: Arc<Counts>) -> io::Result<()> {
    let mut batch = Vec::new();
    let (mut open, mut id) = (0, 0_u16);
    loop {
        batch.clear();
        while open < window && !counts.stop.load(SeqCst) {
            let under_way = counts.sent.load(SeqCst) - counts.arrived.load(SeqCst);
            if under_way >= UNDER_WAY {
                break;
            }
            // Far more than are under way.
            id = id % 60_000 + 1;
            batch.extend(publish(4, topic.as_bytes(), 2, id, &[7; PAYLOAD]));
            counts.sent.fetch_add(1, SeqCst);
            open += 1;
        }
        if !batch.is_empty() {
            raw.send(&batch).await?;
        }
        if open == 0 {
            if counts.stop.load(SeqCst) {
                return Ok(());
            }
            sleep(Duration::from_millis(1)).await;
            continue;
        }
        raw.packets(|first, _| open -= usize::from(first == 0x40))
            .await?;
    }
}

/// So many meters, connected and, if so wanted, subscribed to their inboxes.
///
/// # Errors
/// One is not let in.
pub async fn enter_all(
    servers: &Servers,
    kind: Kind,
    mode: Mode,
    count: usize,
    subscribed: bool,
) -> anyhow::Result<Vec<Raw>> {
    let mut entered = Vec::with_capacity(count);
    let mut entering = JoinSet::new();
    let mut meters = servers.meters.iter().take(count).enumerate();
    loop {
        while entering.len() < ENTERING
            && let Some((number, meter)) = meters.next()
        {
            let enter = enter(servers, kind, mode, meter, number);
            let inbox = meter.topic("inbox/#");
            entering.spawn(async move {
                let mut raw = enter.await?;
                if subscribed {
                    raw.send(&subscribe(4, 1, &inbox, 1)).await?;
                    raw.expect().await?;
                }
                io::Result::Ok(raw)
            });
        }
        match entering.join_next().await {
            Some(raw) => entered.push(raw??),
            None => return Ok(entered),
        }
    }
}

/// A session.
fn enter(
    servers: &Servers,
    kind: Kind,
    mode: Mode,
    device: &Device,
    number: usize,
) -> impl Future<Output = io::Result<Raw>> + Send + use<> {
    let address = servers.address(kind, mode);
    let source = Ipv4Addr::new(127, 18, 0, 1 + (number / PER_ADDRESS) as u8);
    let device = device.clone();
    async move {
        let tcp = tcp(source, address).await?;
        let mut hello = Vec::new();
        let mut raw = match mode {
            Mode::Tls => Raw::tls(tcp, &device.tls).await?,
            Mode::Plain => {
                if kind == Kind::Ours {
                    // Without TLS this broker is told by these bytes who connects.
                    hello.extend((device.certificate.len() as u16).to_be_bytes());
                    hello.extend(&device.certificate);
                }
                Raw::over(tcp)
            }
        };
        hello.extend(connect_with(4, 2, 600, &device.id.to_string(), &[]));
        raw.send(&hello).await?;
        match raw.expect().await? {
            (0x20, body) if body.get(1) == Some(&0) => Ok(raw),
            _ => Err(io::Error::other("a client is refused")),
        }
    }
}
