//! The seam to the router: links in, deliveries out. Only this module knows
//! that the router is rumqttd's; another one would take its place here.
//!
//! One thread makes all calls that block. Every subscription is made with
//! quality of service 1 at the router, whatever the client asked for, so that
//! the router has at most 100 unacknowledged messages per link and waits for
//! acknowledgements instead of for a wake-up call: a wake-up that reaches it
//! after the link is gone would panic its thread.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Waker};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use dcnet::time::Timestamp;
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{
    Disconnect, DisconnectReasonCode, Filter, Packet, PubAck, PubAckReason, Publish,
    PublishProperties, QoS, RetainForwardRule, Subscribe, Unsubscribe,
};
use rumqttd::{Notification, Router, RouterConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::codec::{Message, delivery};
use crate::config::Limits;
use crate::counters::Cells;
use crate::logs::{self, Logs, PROBE};

/// Packets on their way to the router before senders have to wait, each begun 4 KiB counting as
/// one.
const QUEUE: u32 = 4096;

/// Marks messages of clients, before their payload; what empties a log is not marked.
const GENUINE: u8 = 0x80;

/// The router's thread has ended; nothing can be routed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouterGone;

type Build = dyn FnMut(&str) -> Result<(LinkTx, LinkRx), RouterGone> + Send;

enum Command {
    Connect(Backend, oneshot::Sender<(Link, Deliveries)>),
    Send(u64, Box<Packet>, OwnedSemaphorePermit),
    Disconnect(u64),
}

/// A running router.
#[derive(Clone)]
pub(crate) struct Backend {
    commands: mpsc::UnboundedSender<Command>,
    permits: Arc<Semaphore>,
    gone: watch::Receiver<bool>,
}

impl Backend {
    /// Starts a router that keeps to `limits`; what its logs take is told in `cells`.
    pub(crate) fn start(limits: &Limits, cells: Arc<Cells>) -> anyhow::Result<Self> {
        let config = RouterConfig {
            // One more for the watchdog, one to empty logs, and room for links about to go.
            max_connections: limits.connections.saturating_add(1024),
            max_outgoing_packet_count: 200,
            max_segment_size: logs::USUAL.segment,
            max_segment_count: logs::USUAL.segments,
            custom_segment: Some(logs::segment_configs()),
            ..RouterConfig::default()
        };
        let sender = Router::new(0, config).spawn();
        // The sender's type cannot be named outside rumqttd.
        let build = move |name: &str| {
            LinkBuilder::new(name, sender.clone())
                .clean_session(true)
                .topic_alias_max(0)
                .build()
                .map(|(tx, rx, _)| (tx, rx))
                .map_err(gone)
        };
        let own = build("logs").map_err(|RouterGone| anyhow!("the router has not started"))?;
        let logs = Logs::new(limits.memory());
        let (commands, inbox) = mpsc::unbounded_channel();
        let (dead, gone) = watch::channel(false);
        let pump = Pump {
            build: Box::new(build),
            links: HashMap::new(),
            free: Vec::new(),
            own,
            logs,
            cells,
        };
        std::thread::Builder::new()
            .name("broker-links".to_owned())
            .spawn(move || pump.run(inbox, &dead))
            .context("cannot start a thread")?;
        let backend = Self {
            commands,
            permits: Arc::new(Semaphore::new(QUEUE as usize)),
            gone,
        };
        Ok(backend)
    }

    /// A new link to the router, without subscriptions.
    pub(crate) async fn connect(&self) -> Result<(Link, Deliveries), RouterGone> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Connect(self.clone(), reply))
            .map_err(|_| RouterGone)?;
        answer.await.map_err(|_| RouterGone)
    }

    /// Returns when the router is gone.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.clone();
        // An error means that the pump ended, which it does only without a router.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Sends a message through the router again and again, and counts in `arrived` those that
    /// arrive; returns when one is not sent, back and acknowledged within `limit`.
    pub(crate) async fn watch(
        &self,
        period: Duration,
        limit: Duration,
        arrived: &AtomicU64,
    ) -> RouterGone {
        let Ok(Ok((link, mut deliveries))) = timeout(limit, self.listen_for_probes()).await else {
            return RouterGone;
        };
        while let Ok(Ok(())) = timeout(limit, probe_once(&link, &mut deliveries)).await {
            arrived.fetch_add(1, Relaxed);
            tokio::time::sleep(period).await;
        }
        RouterGone
    }

    /// A link that gets the watchdog's messages.
    async fn listen_for_probes(&self) -> Result<(Link, Deliveries), RouterGone> {
        let (link, mut deliveries) = self.connect().await?;
        link.subscribe(1, PROBE).await?;
        while !matches!(deliveries.next().await?, Delivery::Subscribed) {}
        Ok((link, deliveries))
    }
}

/// Sends a message and waits until it is back. The router's queue may be full, so that already
/// sending can take for ever.
async fn probe_once(link: &Link, deliveries: &mut Deliveries) -> Result<(), RouterGone> {
    link.publish(&probe()).await?;
    loop {
        if let Delivery::Message { id, .. } = deliveries.next().await? {
            return link.ack(id).await;
        }
    }
}

fn probe() -> Message {
    Message {
        topic: Bytes::from_static(PROBE.as_bytes()),
        payload: Bytes::from_static(b"?"),
        qos: 0,
        retain: false,
        received: Timestamp(0),
        properties: None,
    }
}

/// The sending half of a link; dropping it unregisters the link.
pub(crate) struct Link {
    id: u64,
    backend: Backend,
}

impl Link {
    async fn send(&self, packet: Packet) -> Result<(), RouterGone> {
        let length = match &packet {
            Packet::Publish(publish, _) => publish.payload.len(),
            _ => 0,
        };
        let weight = u32::try_from(1 + length / 4096).map_or(QUEUE, |weight| weight.min(QUEUE));
        let permits = Arc::clone(&self.backend.permits);
        let permit = permits.acquire_many_owned(weight).await;
        let permit = permit.map_err(|_| RouterGone)?;
        self.backend
            .commands
            .send(Command::Send(self.id, Box::new(packet), permit))
            .map_err(|_| RouterGone)
    }

    /// Routes a message. The router never sees it as retained.
    pub(crate) async fn publish(&self, message: &Message) -> Result<(), RouterGone> {
        let (topic, payload) = to_router(message);
        let publish = Publish::new(topic, payload, false);
        let properties: Option<PublishProperties> = message.properties.clone();
        self.send(Packet::Publish(publish, properties)).await
    }

    /// Subscribes; [`Delivery::Subscribed`] follows once it is in effect.
    pub(crate) async fn subscribe(&self, id: u16, filter: &str) -> Result<(), RouterGone> {
        let filters = vec![Filter {
            path: filter.to_owned(),
            qos: QoS::AtLeastOnce,
            nolocal: false,
            preserve_retain: false,
            retain_forward_rule: RetainForwardRule::Never,
        }];
        self.send(Packet::Subscribe(Subscribe { pkid: id, filters }, None))
            .await
    }

    /// Ends a subscription; messages under way may still arrive.
    pub(crate) async fn unsubscribe(&self, filter: &str) -> Result<(), RouterGone> {
        let filters = vec![filter.to_owned()];
        self.send(Packet::Unsubscribe(Unsubscribe { pkid: 1, filters }, None))
            .await
    }

    /// Acknowledges a delivered message; must be called in the order of delivery.
    pub(crate) async fn ack(&self, id: u16) -> Result<(), RouterGone> {
        let puback = PubAck {
            pkid: id,
            reason: PubAckReason::Success,
        };
        self.send(Packet::PubAck(puback, None)).await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.backend.commands.send(Command::Disconnect(self.id));
    }
}

/// What the router sends to a link.
#[expect(clippy::large_enum_variant, reason = "never stored")]
pub(crate) enum Delivery {
    /// A message, to be acknowledged under `id`. `place` is the number of those that the
    /// log of its filter ever had before.
    Message {
        id: u16,
        place: Option<u64>,
        message: Message,
    },
    /// The oldest unconfirmed subscription is in effect.
    Subscribed,
}

/// The receiving half of a link.
pub(crate) struct Deliveries {
    rx: LinkRx,
    open: bool,
}

impl Deliveries {
    /// The next delivery. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Delivery, RouterGone> {
        while self.open {
            match self.rx.next().await {
                Ok(Some(Notification::Forward(forward))) => {
                    let (_, id) = delivery(&forward.publish);
                    return Ok(Delivery::Message {
                        id,
                        place: forward.cursor.map(|(_, place)| place),
                        message: from_payload(forward.publish, forward.properties),
                    });
                }
                // Unscheduled, the router sends nothing more without a wake-up; it
                // does that above 199 packets, which are never under way.
                Ok(Some(Notification::Disconnect(..) | Notification::Unschedule)) | Err(_) => {
                    self.open = false;
                }
                Ok(Some(notification)) => {
                    let packet: Option<Packet> = notification.into();
                    if let Some(Packet::SubAck(..)) = packet {
                        return Ok(Delivery::Subscribed);
                    }
                }
                Ok(None) => {}
            }
        }
        Err(RouterGone)
    }
}

/// Topic and payload as the router gets them, in one piece of memory of their own. Quality of
/// service, retain flag and time, which it does not keep, stand before the payload.
fn to_router(message: &Message) -> (Bytes, Bytes) {
    let Message { topic, payload, .. } = message;
    let mut both = BytesMut::with_capacity(topic.len() + 9 + payload.len());
    both.put_slice(topic);
    both.put_u8(GENUINE | message.qos << 1 | u8::from(message.retain));
    both.put_u64(message.received.as_millis());
    both.put_slice(payload);
    let mut payload = both.freeze();
    (payload.split_to(topic.len()), payload)
}

fn from_payload(publish: Publish, properties: Option<PublishProperties>) -> Message {
    let mut payload = publish.payload;
    let flags = payload.try_get_u8().unwrap_or(0);
    let received = payload.try_get_u64().unwrap_or(0);
    if flags & GENUINE == 0 {
        return nothing(publish.topic);
    }
    Message {
        topic: publish.topic,
        payload,
        qos: (flags >> 1) & 3,
        retain: flags & 1 != 0,
        received: Timestamp(received),
        properties,
    }
}

/// A message that every client is passed over with, since it has expired.
fn nothing(topic: Bytes) -> Message {
    Message {
        topic,
        payload: Bytes::new(),
        qos: 0,
        retain: false,
        received: Timestamp(0),
        properties: Some(PublishProperties {
            message_expiry_interval: Some(0),
            ..PublishProperties::default()
        }),
    }
}

/// Makes all calls to the router that block.
struct Pump {
    build: Box<Build>,
    links: HashMap<u64, LinkTx>,
    /// The router remembers every name it ever saw, so that names are reused.
    free: Vec<u64>,
    /// Empties logs. Nothing is ever delivered to it.
    own: (LinkTx, LinkRx),
    logs: Logs,
    cells: Arc<Cells>,
}

impl Pump {
    fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>, dead: &watch::Sender<bool>) {
        while let Some(command) = inbox.blocking_recv() {
            let result = match command {
                Command::Connect(backend, reply) => {
                    self.connect(backend, reply);
                    Ok(())
                }
                Command::Send(id, packet, _permit) => self.route(id, *packet),
                Command::Disconnect(id) => self.remove(id),
            };
            if result.is_err() {
                break;
            }
        }
        let _ = dead.send(true);
    }

    fn connect(&mut self, backend: Backend, reply: oneshot::Sender<(Link, Deliveries)>) {
        let id = self.free.pop().unwrap_or(self.links.len() as u64);
        match (self.build)(&format!("link-{id}")) {
            Ok((tx, rx)) => {
                self.links.insert(id, tx);
                // If nobody waits any more, dropping the link removes it.
                let _ = reply.send((Link { id, backend }, Deliveries { rx, open: true }));
            }
            // Full or gone; the next packet for any link tells.
            Err(RouterGone) => self.free.push(id),
        }
    }

    fn route(&mut self, id: u64, packet: Packet) -> Result<(), RouterGone> {
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(());
        };
        for filler in self.logs.enter(&packet) {
            send(&mut self.own.0, filler)?;
        }
        let cells = &self.cells;
        cells.log_bytes.store(self.logs.taken() as u64, Relaxed);
        cells.logs_emptied.store(self.logs.emptied(), Relaxed);
        send(link, packet)
    }

    fn remove(&mut self, id: u64) -> Result<(), RouterGone> {
        let Some(mut link) = self.links.remove(&id) else {
            return Ok(());
        };
        self.free.push(id);
        let disconnect = Disconnect {
            reason_code: DisconnectReasonCode::NormalDisconnection,
        };
        send(&mut link, Packet::Disconnect(disconnect, None))
    }
}

fn gone(error: LinkError) -> RouterGone {
    tracing::error!(%error, "the router does not answer");
    RouterGone
}

fn send(link: &mut LinkTx, packet: Packet) -> Result<(), RouterGone> {
    // The future blocks instead of waiting, so one poll completes it.
    match pin!(link.send(packet)).poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(result) => result.map(|_| ()).map_err(gone),
        std::task::Poll::Pending => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longest wait for anything.
    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_router_that_takes_nothing_more_is_noticed() {
        let backend = Backend::start(&Limits::default(), Arc::default()).unwrap();
        let arrived = Arc::new(AtomicU64::new(0));
        let (watched, counted) = (backend.clone(), Arc::clone(&arrived));
        let watchdog = tokio::spawn(async move {
            let (period, limit) = (Duration::from_millis(1), Duration::from_secs(1));
            watched.watch(period, limit, &counted).await
        });
        let served = async {
            // On a machine that stands still for a second the watchdog has ended before.
            while arrived.load(Relaxed) == 0 && !watchdog.is_finished() {
                tokio::task::yield_now().await;
            }
            // As if the router stood still and its queue were full.
            let all = backend.permits.acquire_many(QUEUE).await.unwrap();
            all.forget();
            watchdog.await
        };
        let noticed = timeout(DEADLINE, served).await;
        assert_eq!(noticed.expect("the watchdog waits").unwrap(), RouterGone);

        // Nor does it wait at the start.
        let limit = Duration::from_millis(50);
        let noticed = timeout(DEADLINE, backend.watch(limit, limit, &arrived)).await;
        assert_eq!(noticed.expect("the watchdog waits"), RouterGone);
    }
}
