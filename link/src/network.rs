//! The broker's side of the driver: connects, subscribes, polls, and connects again.
//!
//! Each connection has its own rumqttc event loop, dropped when the connection
//! ends: rumqttc keeps unsent and unacknowledged requests across connections and
//! may send them again or drop them silently, while the machine must decide anew
//! what to send. Two loops run side by side on a connection. The receiving one is
//! the only one that polls and never waits for the sending one; it may wait for
//! the driver, which never waits for either. So no queue can lock another.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dcnet::output::{Message, Received};
use dcnet::topic::Topic;
use rumqttc::{
    AsyncClient, Event, EventLoop, Outgoing, Packet, Publish, QoS, SubscribeFilter,
    SubscribeReasonCode,
};
use tokio::sync::{mpsc, watch};

use crate::back_off::Waits;
use crate::connection::{Connection, MAX_PAYLOAD};
use crate::counters::{Counters, add, count};

/// Requests between our queue and rumqttc's event loop.
const REQUESTS: usize = 16;
/// Messages kept that arrive before the subscriptions are granted (retained ones do).
const EARLY: usize = 512;

/// The state of the link, for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Connecting, or waiting for the broker to grant the subscriptions.
    Connecting,
    /// Connected and subscribed.
    Connected,
    /// The connection failed or broke; the next attempt follows after a wait.
    Waiting {
        /// What went wrong.
        error: String,
    },
    /// The broker refused subscriptions: permissions at the broker, or the
    /// certificate, are wrong. The next attempt follows after a wait.
    SubscriptionRefused {
        /// The filters that were refused.
        filters: Vec<String>,
    },
    /// The driver has ended.
    Stopped {
        /// Why, unless it was asked to.
        error: Option<String>,
    },
}

impl fmt::Display for LinkState {
    /// In one line, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting to the broker"),
            Self::Connected => f.write_str("connected to the broker"),
            Self::Waiting { error } => write!(f, "no connection to the broker: {error}"),
            Self::SubscriptionRefused { filters } => {
                write!(
                    f,
                    "the broker refused subscriptions: {}",
                    filters.join(", ")
                )
            }
            Self::Stopped { error: None } => f.write_str("stopped"),
            Self::Stopped { error: Some(error) } => write!(f, "stopped: {error}"),
        }
    }
}

/// What the network tells the driver, in order.
#[derive(Debug)]
pub(crate) enum FromNetwork {
    /// Connected and subscribed; messages for this connection carry its number.
    Up(u64),
    Message(Received),
    Down,
}

/// A message for the connection of that number, and no other.
#[derive(Debug)]
pub(crate) struct ToNetwork {
    pub(crate) connection: u64,
    pub(crate) message: Message,
}

pub(crate) struct Network {
    pub(crate) connection: Connection,
    pub(crate) subscriptions: Vec<String>,
    pub(crate) to_driver: mpsc::Sender<FromNetwork>,
    pub(crate) outgoing: mpsc::Receiver<ToNetwork>,
    /// Payload bytes in `outgoing`.
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) state: Arc<watch::Sender<LinkState>>,
}

/// How a connection ended, other than by our wish.
enum Failure {
    Refused(Vec<String>),
    Error(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.to_string())
    }
}

impl Network {
    /// Runs until the driver drops its end of `outgoing`.
    pub(crate) async fn run(mut self) {
        let mut waits = Waits::new(self.connection.back_off);
        for number in 1.. {
            self.state.send_replace(LinkState::Connecting);
            let (up_since, end) = self.connect_once(number).await;
            let Err(failure) = end else { return };
            count(&self.counters.failures);
            if let Some(since) = up_since {
                waits.was_good_for(since.elapsed());
                let _ = self.to_driver.send(FromNetwork::Down).await;
            }
            let wait = waits.next_wait();
            self.report(failure, wait);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = discard(&mut self.outgoing, &self.queued, &self.counters) => return,
            }
        }
    }

    fn report(&self, failure: Failure, wait: Duration) {
        let broker = format!("{}:{}", self.connection.host, self.connection.port);
        let state = match failure {
            Failure::Refused(filters) => {
                tracing::error!(%broker, ?filters, ?wait, "the broker refused subscriptions; check its permissions and our certificate");
                LinkState::SubscriptionRefused { filters }
            }
            Failure::Error(error) => {
                tracing::warn!(%broker, %error, ?wait, "no connection to the broker");
                LinkState::Waiting { error }
            }
        };
        self.state.send_replace(state);
    }

    /// One connection from beginning to end; `Ok` when the driver stopped. Also
    /// says since when it was up, if it ever was.
    async fn connect_once(&mut self, number: u64) -> (Option<Instant>, Result<(), Failure>) {
        let (client, mut events) = AsyncClient::new(self.connection.mqtt_options(), REQUESTS);
        let mut options = events.network_options();
        options.set_tcp_nodelay(true);
        options.set_connection_timeout(self.connection.timeout.as_secs().max(1));
        events.set_network_options(options);

        let early = tokio::select! {
            early = open(&self.connection, &self.subscriptions, &client, &mut events, &self.counters) => early,
            () = discard(&mut self.outgoing, &self.queued, &self.counters) => return (None, Ok(())),
        };
        let early = match early {
            Ok(early) => early,
            Err(failure) => return (None, Err(failure)),
        };

        count(&self.counters.connects);
        self.state.send_replace(LinkState::Connected);
        tracing::info!(host = %self.connection.host, port = self.connection.port, "connected to the broker");
        // A driver that is gone has dropped `outgoing` too, and the sending loop ends this.
        let _ = self.to_driver.send(FromNetwork::Up(number)).await;
        for message in early {
            let _ = self.to_driver.send(FromNetwork::Message(message)).await;
        }
        let since = Some(Instant::now());
        let end = tokio::select! {
            end = receive(&mut events, &self.to_driver, &self.counters) => end,
            end = send(&client, number, &mut self.outgoing, &self.queued, &self.counters) => end,
        };
        (since, end)
    }
}

/// Connects and subscribes; gives the messages that arrived meanwhile.
async fn open(
    connection: &Connection,
    subscriptions: &[String],
    client: &AsyncClient,
    events: &mut EventLoop,
    counters: &Counters,
) -> Result<VecDeque<Received>, Failure> {
    let mut early = VecDeque::new();
    while !matches!(events.poll().await?, Event::Incoming(Packet::ConnAck(_))) {}
    if subscriptions.is_empty() {
        return Ok(early);
    }
    let filters = subscriptions
        .iter()
        .map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
    client.try_subscribe_many(filters)?;
    let granted = async {
        loop {
            match events.poll().await? {
                Event::Incoming(Packet::SubAck(answer)) => return Ok(answer.return_codes),
                Event::Incoming(Packet::Publish(publish)) => {
                    if early.len() >= EARLY {
                        count(&counters.dropped_early);
                    } else if let Some(message) = accept(publish, counters) {
                        early.push_back(message);
                    }
                }
                _ => {}
            }
        }
    };
    let codes = within(
        connection.timeout,
        "the broker does not answer to the subscription",
        granted,
    )
    .await?;
    let refused: Vec<_> = subscriptions
        .iter()
        .enumerate()
        .filter(|(i, _)| {
            !matches!(
                codes.get(*i),
                Some(SubscribeReasonCode::Success(
                    QoS::AtLeastOnce | QoS::ExactlyOnce
                ))
            )
        })
        .map(|(_, filter)| filter.clone())
        .collect();
    if refused.is_empty() {
        Ok(early)
    } else {
        Err(Failure::Refused(refused))
    }
}

async fn within<T>(
    limit: Duration,
    what: &str,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Failure::Error(format!("{what} within {limit:?}"))))
}

/// Polls the event loop until it fails; after our farewell that is a success. The
/// broker closes the connection then (MQTT 3.1.1, 3.14.4). Closing it ourselves with
/// messages unread would reset it, and the broker might never read what we sent last.
async fn receive(
    events: &mut EventLoop,
    to_driver: &mpsc::Sender<FromNetwork>,
    counters: &Counters,
) -> Result<(), Failure> {
    let mut farewell = false;
    loop {
        let event = match events.poll().await {
            Ok(event) => event,
            Err(_) if farewell => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                if let Some(message) = accept(publish, counters) {
                    let _ = to_driver.send(FromNetwork::Message(message)).await;
                }
            }
            Event::Incoming(Packet::PubAck(_)) => count(&counters.acknowledged),
            Event::Outgoing(Outgoing::Publish(_)) => count(&counters.published),
            Event::Outgoing(Outgoing::Disconnect) => farewell = true,
            _ => {}
        }
    }
}

/// Feeds the event loop until the driver stops, then says farewell. Never ends
/// before [`receive`] does, unless the event loop is gone.
async fn send(
    client: &AsyncClient,
    number: u64,
    outgoing: &mut mpsc::Receiver<ToNetwork>,
    queued: &AtomicUsize,
    counters: &Counters,
) -> Result<(), Failure> {
    while let Some(next) = outgoing.recv().await {
        let message = next.message;
        let length = message.payload.len();
        queued.fetch_sub(length, Ordering::Relaxed);
        if next.connection != number {
            count(&counters.dropped_broken);
            continue;
        }
        add(&counters.bytes_out, length);
        let topic = message.topic.to_string();
        client
            .publish(topic, QoS::AtLeastOnce, message.retain, message.payload)
            .await?;
    }
    client.disconnect().await?;
    std::future::pending().await
}

/// Throws away what is queued for a connection that is no more; returns when the
/// driver has stopped.
async fn discard(
    outgoing: &mut mpsc::Receiver<ToNetwork>,
    queued: &AtomicUsize,
    counters: &Counters,
) {
    while let Some(stale) = outgoing.recv().await {
        queued.fetch_sub(stale.message.payload.len(), Ordering::Relaxed);
        count(&counters.dropped_broken);
    }
}

/// The message, if its topic is one of the protocol's and its payload is not too long.
fn accept(publish: Publish, counters: &Counters) -> Option<Received> {
    if publish.payload.len() > MAX_PAYLOAD {
        tracing::debug!(
            bytes = publish.payload.len(),
            "dropped a message that is too long"
        );
        count(&counters.dropped_oversized);
        return None;
    }
    let Ok(topic) = publish.topic.parse::<Topic>() else {
        tracing::debug!("dropped a message on a topic that is none of the protocol's");
        count(&counters.dropped_topic);
        return None;
    };
    count(&counters.received);
    add(&counters.bytes_in, publish.payload.len());
    Some(Received {
        topic,
        payload: publish.payload.to_vec(),
    })
}
