//! The honest pair: a meter and the provider, who send each other numbered messages and measure
//! when they arrive; and the provider that publishes to attackers.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, EventLoop, MqttOptions, Packet, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::setting::{Setting, Target};
use crate::device::{Device, NET};
use crate::raw::packet::{connect, publish};
use crate::raw::{Raw, tcp};
use crate::system::HOST;

/// Between two messages in each direction.
const PERIOD: Duration = Duration::from_millis(100);
/// For connecting and subscribing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest packet, as the agents have it.
const MAX_PACKET: usize = 256 * 1024;

/// Bytes of what attackers get: 13 times a second in each inbox, and 50 times for all, which
/// fills every buffer on the way to who takes nothing within seconds.
const SHORT: usize = 2 * 1024;
const LONG: usize = 16 * 1024;

/// Retained messages, each as long as a short one.
const RETAINED: usize = 64;

/// What became of the messages.
#[derive(Debug, Default)]
struct Ledger {
    /// When each that has not arrived was sent.
    under_way: BTreeMap<u64, Instant>,
    sent: u64,
    /// How long each took that arrived.
    took: Vec<Duration>,
    again: u64,
    broken: Option<String>,
}

/// A pair at work.
pub struct Pair {
    ledger: Arc<Mutex<Ledger>>,
    senders: JoinSet<()>,
    _receivers: JoinSet<()>,
}

/// How the pair fared.
#[derive(Clone, Debug, Default)]
pub struct Fare {
    /// Messages sent.
    pub sent: u64,
    /// Messages that have not arrived.
    pub missing: usize,
    /// Messages that arrived more than once.
    pub again: u64,
    /// Of those that arrived, sorted.
    pub took: Vec<Duration>,
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pair {
    /// Connects both, and begins.
    ///
    /// # Errors
    /// One of them is not let in.
    pub async fn start(setting: &Setting) -> anyhow::Result<Self> {
        let ledger = Arc::new(Mutex::new(Ledger::default()));
        let broker = setting.target.agents;
        let inbox = setting.meter.topic("inbox/roster");
        let up = setting.meter.topic("up/submission");
        let (provider, provider_events) =
            client(&setting.provider, broker, Some("dcnet/1/+/meter/+/up/#")).await?;
        let filter = setting.meter.topic("inbox/#");
        let (meter, meter_events) = client(&setting.meter, broker, Some(&filter)).await?;
        let mut receivers = JoinSet::new();
        receivers.spawn(receive(provider_events, up.clone(), Arc::clone(&ledger)));
        receivers.spawn(receive(meter_events, inbox.clone(), Arc::clone(&ledger)));
        let mut senders = JoinSet::new();
        senders.spawn(send(provider, inbox, Arc::clone(&ledger)));
        senders.spawn(send(meter, up, Arc::clone(&ledger)));
        Ok(Self {
            ledger,
            senders,
            _receivers: receivers,
        })
    }

    /// How it fares.
    pub fn fare(&self) -> Fare {
        let ledger = lock(&self.ledger);
        let mut took = ledger.took.clone();
        took.sort_unstable();
        Fare {
            sent: ledger.sent,
            missing: ledger.under_way.len(),
            again: ledger.again,
            took,
        }
    }

    /// The age of the oldest message that has not arrived, and why a connection broke.
    pub fn trouble(&self) -> (Duration, Option<String>) {
        let ledger = lock(&self.ledger);
        (oldest(&ledger), ledger.broken.clone())
    }

    /// Sends no more, and waits for what is under way.
    pub async fn finish(&mut self, patience: Duration) -> Fare {
        self.senders.shutdown().await;
        let end = Instant::now() + patience;
        while !lock(&self.ledger).under_way.is_empty() && Instant::now() < end {
            sleep(Duration::from_millis(20)).await;
        }
        self.fare()
    }
}

fn oldest(ledger: &Ledger) -> Duration {
    let oldest = ledger.under_way.first_key_value();
    oldest.map(|(_, at)| at.elapsed()).unwrap_or_default()
}

async fn client(
    device: &Device,
    broker: SocketAddr,
    filter: Option<&str>,
) -> anyhow::Result<(AsyncClient, EventLoop)> {
    let mut options = MqttOptions::new(device.id.to_string(), HOST, broker.port());
    let tls = TlsConfiguration::Rustls(Arc::clone(&device.tls));
    options
        .set_transport(Transport::tls_with_config(tls))
        .set_max_packet_size(MAX_PACKET, MAX_PACKET)
        .set_keep_alive(Duration::from_secs(60));
    let (client, mut events) = AsyncClient::new(options, 64);
    events.network_options.set_tcp_nodelay(true);
    let entering = async {
        loop {
            match events
                .poll()
                .await
                .context("somebody honest cannot connect")?
            {
                Event::Incoming(Packet::ConnAck(ack)) if ack.code != ConnectReturnCode::Success => {
                    bail!("somebody honest is refused: {:?}", ack.code);
                }
                Event::Incoming(Packet::ConnAck(_)) => match filter {
                    Some(filter) => client.try_subscribe(filter, QoS::AtLeastOnce)?,
                    None => return Ok(()),
                },
                Event::Incoming(Packet::SubAck(ack)) => match ack.return_codes.as_slice() {
                    [SubscribeReasonCode::Success(_)] => return Ok(()),
                    _ => bail!("a subscription of somebody honest is refused"),
                },
                _ => {}
            }
        }
    };
    let entered = timeout(PATIENCE, entering).await;
    entered.context("the broker does not answer somebody honest")??;
    Ok((client, events))
}

async fn send(client: AsyncClient, topic: String, ledger: Arc<Mutex<Ledger>>) {
    loop {
        let number = {
            let mut ledger = lock(&ledger);
            let number = ledger.sent;
            ledger.sent += 1;
            ledger.under_way.insert(number, Instant::now());
            number
        };
        let payload = number.to_be_bytes();
        if client
            .publish(&topic, QoS::AtLeastOnce, false, payload)
            .await
            .is_err()
        {
            return;
        }
        sleep(PERIOD).await;
    }
}

async fn receive(mut events: EventLoop, topic: String, ledger: Arc<Mutex<Ledger>>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(message))) if message.topic == topic => {
                let number = message
                    .payload
                    .first_chunk()
                    .map(|n| u64::from_be_bytes(*n));
                let mut ledger = lock(&ledger);
                match number.and_then(|number| ledger.under_way.remove(&number)) {
                    Some(sent) => ledger.took.push(sent.elapsed()),
                    None => ledger.again += 1,
                }
            }
            Ok(_) => {}
            Err(error) => {
                let mut ledger = lock(&ledger);
                ledger.broken.get_or_insert(error.to_string());
                return;
            }
        }
    }
}

/// A connection of the provider that publishes to attackers.
///
/// # Errors
/// It is not let in.
pub async fn provider(target: &Target) -> io::Result<Raw> {
    let tcp = tcp(Ipv4Addr::LOCALHOST, target.agents).await?;
    let mut provider = Raw::tls(tcp, &target.busy.tls).await?;
    let hello = connect(4, &target.busy.id.to_string());
    provider.send(&hello).await?;
    provider.expect().await?;
    Ok(provider)
}

/// Leaves retained messages for whoever subscribes.
///
/// # Errors
/// The provider is not let in, or loses its connection.
pub async fn retain(target: &Target) -> io::Result<()> {
    let mut provider = provider(target).await?;
    for number in 0..RETAINED {
        let topic = format!("dcnet/1/{NET}/public/kept/{number}");
        let message = publish(4, topic.as_bytes(), 3, 1, &[7; SHORT]);
        provider.send(&message).await?;
        provider.expect().await?;
    }
    Ok(())
}

/// Publishes to all attackers' inboxes and to all meters, for ever: what they do not take piles
/// up somewhere.
///
/// # Errors
/// It is not let in, or loses its connection.
pub async fn keep_busy(setting: Arc<Target>) -> anyhow::Result<()> {
    let (client, mut events) = client(&setting.busy, setting.agents, None).await?;
    let inboxes: Vec<String> = setting
        .meters
        .iter()
        .map(|meter| meter.topic("inbox/log"))
        .collect();
    let all = format!("dcnet/1/{NET}/all/roster");
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let mut next = inboxes.iter().cycle();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let few = next.by_ref().take(8).map(|inbox| (inbox, SHORT));
                for (topic, length) in few.chain([(&all, LONG)]) {
                    // Whatever does not fit into its queue is not missed.
                    let _ = client.try_publish(topic, QoS::AtMostOnce, false, vec![7; length]);
                }
            }
            event = events.poll() => { event.context("the busy provider lost its connection")?; }
        }
    }
}
