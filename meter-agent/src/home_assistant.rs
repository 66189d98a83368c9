//! Shows the household's Home Assistant what the agent counts and how its net is, if the
//! configuration has a table `[home_assistant]`.
//!
//! It goes to the household's own broker, over a connection of its own, and nowhere else. A
//! task beside the agent does that. It only watches: whatever happens to it or to that broker, the agent
//! counts and takes part just the same. The one topic it subscribes to says when Home Assistant has
//! started, upon which everything is published again; nothing can be commanded that way.
//!
//! Messages are made when they are sent, one at a time. A broker that is not there leaves none
//! waiting.

use std::collections::HashSet;
use std::mem::Discriminant;
use std::path::PathBuf;
use std::time::Duration;

use dcnet::meter::MeterEvent;
use link::back_off::{BackOff, Waits};
use rumqttc::{
    AsyncClient, ClientError, ConnectionError, Event, EventLoop, LastWill, MqttOptions, Outgoing,
    Packet, QoS,
};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock;
use crate::home_broker::{HomeBroker, addresses, trouble};
use crate::reach::Reach;
use crate::register::counting::Counted;
use crate::standing::Standing;

mod identifier;
mod messages;

use identifier::Identifier;
use messages::{OFFLINE, ONLINE, Topics};

/// Where Home Assistant says that it has started, unless it is told otherwise; not below the
/// prefix of its discovery.
const STATUS: &str = "homeassistant/status";
/// Between two messages of discovery, however often Home Assistant says that it has started.
const PACE: Duration = Duration::from_secs(1);
/// For the farewell to a broker.
const FAREWELL: Duration = Duration::from_secs(2);
/// Messages between this task and its connection.
const QUEUE: usize = 8;

/// How Home Assistant is shown the meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeAssistantOptions {
    /// The household's own broker.
    pub broker: HomeBroker,
    /// Home Assistant's prefix of discovery topics.
    pub discovery_prefix: String,
    /// What the topics of availability and state begin with.
    pub topic_prefix: String,
    /// How often the state is published.
    pub every: Duration,
    /// What Home Assistant calls the meter.
    pub name: String,
}

/// What became of the last round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RoundState {
    /// The blinded reading was submitted.
    Submitted,
    /// The sum over the meters that take part was made possible.
    Revealed,
    /// The sum is published.
    Final,
    /// The meter took no part.
    Silent,
}

impl RoundState {
    const ALL: [Self; 4] = [Self::Submitted, Self::Revealed, Self::Final, Self::Silent];
}

/// What the meter has told since the agent was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of the last round.
    pub round: Option<RoundState>,
    /// How many alarms.
    pub alarms: u64,
}

impl Progress {
    /// Takes an event of the meter into account.
    pub fn follow(&mut self, event: &MeterEvent) {
        match event {
            MeterEvent::Submitted { .. } => self.round = Some(RoundState::Submitted),
            MeterEvent::Revealed { .. } => self.round = Some(RoundState::Revealed),
            MeterEvent::Final { .. } => self.round = Some(RoundState::Final),
            MeterEvent::Silent { .. } => self.round = Some(RoundState::Silent),
            MeterEvent::Alarm(_) => self.alarms = self.alarms.saturating_add(1),
            _ => {}
        }
    }
}

/// What is shown, as the agent has it.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Names of the channels, in the order of the register.
    pub channels: Vec<String>,
    /// What has been counted.
    pub counted: watch::Receiver<Counted>,
    /// Of each channel whose line may be unreadable, why it is.
    pub troubles: Vec<Option<watch::Receiver<Option<String>>>>,
    /// The way to the provider's broker.
    pub reach: watch::Receiver<Reach>,
    /// Where the meter stands in its net.
    pub standing: watch::Receiver<Standing>,
    /// What the meter has told.
    pub progress: watch::Receiver<Progress>,
}

/// The running task; it stops when this is dropped.
#[derive(Debug)]
pub struct Showing {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Showing {
    /// Says that the agent is off and ends, within about two seconds.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(FAREWELL, &mut self.task)
            .await
            .is_err()
        {
            // The broker says it by itself: it was given a last will.
            self.task.abort();
        }
    }
}

/// Starts to show, as a task of the current runtime. Neither the broker nor the files of the
/// connection need be there yet. `directory` keeps by which name Home Assistant knows the meter.
///
/// # Panics
/// Outside a runtime of tokio.
pub fn start(options: HomeAssistantOptions, directory: PathBuf, shown: Shown) -> Showing {
    let (stop, stopped) = watch::channel(false);
    let publisher = Publisher {
        options,
        directory,
        shown,
    };
    Showing {
        stop,
        task: tokio::spawn(publisher.run(stopped)),
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0:#}")]
    Files(anyhow::Error),
    #[error("{}", trouble(.0))]
    Connection(ConnectionError),
}

impl Trouble {
    /// Of the connection's kinds; `None` of the files'.
    fn kind(&self) -> Option<Discriminant<ConnectionError>> {
        match self {
            Self::Files(_) => None,
            Self::Connection(error) => Some(std::mem::discriminant(error)),
        }
    }
}

/// What was told already, so that a broker that comes and goes for a year does not fill the log.
#[derive(Debug, Default)]
struct Told {
    connected: bool,
    troubles: HashSet<Option<Discriminant<ConnectionError>>>,
}

/// What a connection needs.
struct Prepared {
    topics: Topics,
    discovery: String,
    options: MqttOptions,
}

struct Publisher {
    options: HomeAssistantOptions,
    directory: PathBuf,
    shown: Shown,
}

impl Publisher {
    /// Ends when it is stopped.
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let (mut waits, mut told) = (Waits::new(BackOff::default()), Told::default());
        loop {
            let begun = Instant::now();
            let Err(trouble) = self.connection(&mut told, &mut stop).await else {
                return;
            };
            if waits.was_good_for(begun.elapsed()) {
                told = Told::default();
            }
            if told.troubles.insert(trouble.kind()) {
                told.connected = false;
                tracing::warn!("Home Assistant is shown nothing: {trouble}; trying again");
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(waits.next_wait()) => {}
            }
        }
    }

    /// One connection, from the first byte to the last; good once it was stopped. Nothing of it
    /// is taken over to the next.
    async fn connection(
        &self,
        told: &mut Told,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Trouble> {
        let Prepared {
            topics,
            discovery,
            options,
        } = self.prepare().await.map_err(Trouble::Files)?;
        let (client, mut events) = AsyncClient::new(options, QUEUE);
        let wanted = Notify::new();
        tokio::select! {
            end = self.listen(&client, &mut events, &wanted, told) => end,
            // Only when it is stopped before there is a connection.
            _ = self.show(&client, &topics, &discovery, &wanted, stop) => Ok(()),
        }
    }

    /// Reads files, the system's authorities among them.
    async fn prepare(&self) -> anyhow::Result<Prepared> {
        let (options, directory) = (self.options.clone(), self.directory.clone());
        let channels = self.shown.channels.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let id = Identifier::load(&directory)?;
            let topics = Topics::new(&options, &id);
            options.broker.refuse_providers(addresses)?;
            let mut connection = options.broker.prepare()?;
            // Always the same one, so that the broker says the last will of a connection
            // that broke before the next one is up, not after it.
            connection.set_client_id(id.to_string());
            let will = LastWill::new(&topics.availability, OFFLINE, QoS::AtLeastOnce, true);
            connection.set_last_will(will);
            Ok(Prepared {
                discovery: messages::discovery(&options, &id, &topics, &channels),
                topics,
                options: connection,
            })
        });
        reading.await?
    }

    /// Ends with an error, or well once the farewell was sent. Whenever discovery is to be published
    /// that is `wanted`.
    async fn listen(
        &self,
        client: &AsyncClient,
        events: &mut EventLoop,
        wanted: &Notify,
        told: &mut Told,
    ) -> Result<(), Trouble> {
        loop {
            match events.poll().await.map_err(Trouble::Connection)? {
                Event::Incoming(Packet::ConnAck(_)) => {
                    // It finds room: it is the first request. Without this right at the
                    // broker, the retained discovery has to do.
                    let _ = client.try_subscribe(STATUS, QoS::AtLeastOnce);
                    wanted.notify_one();
                    if !told.connected {
                        told.connected = true;
                        let broker = &self.options.broker;
                        tracing::info!("Home Assistant is shown this meter on {broker}");
                    }
                }
                Event::Incoming(Packet::Publish(message))
                    if message.topic == STATUS && message.payload == ONLINE =>
                {
                    wanted.notify_one();
                }
                Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
                _ => {}
            }
        }
    }

    /// Publishes until it is stopped and has said farewell, or the queue is closed.
    async fn show(
        &self,
        client: &AsyncClient,
        topics: &Topics,
        discovery: &str,
        wanted: &Notify,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), ClientError> {
        let reliably = QoS::AtLeastOnce;
        let mut ticks = tokio::time::interval(self.options.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut announced: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stopped(stop) => break,
                () = wanted.notified() => {
                    if let Some(before) = announced {
                        tokio::time::sleep_until(before + PACE).await;
                    }
                    announced = Some(Instant::now());
                    ticks.reset();
                    client.publish(&topics.discovery, reliably, true, discovery).await?;
                    client.publish(&topics.availability, reliably, true, ONLINE).await?;
                }
                _ = ticks.tick(), if announced.is_some() => {}
            }
            client
                .publish(&topics.state, QoS::AtMostOnce, false, self.state())
                .await?;
        }
        if announced.is_some() {
            client
                .publish(&topics.availability, reliably, true, OFFLINE)
                .await?;
            client.disconnect().await?;
            // The connection ends with it.
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn state(&self) -> String {
        let Shown {
            channels,
            counted,
            troubles,
            reach,
            standing,
            progress,
        } = &self.shown;
        let is_unread = troubles.iter().map(|trouble| {
            let trouble = trouble.as_ref();
            trouble.is_some_and(|trouble| trouble.borrow().is_some())
        });
        messages::state(
            channels,
            &counted.borrow(),
            &is_unread.collect::<Vec<_>>(),
            clock::monotonic(),
            &reach.borrow(),
            &standing.borrow(),
            *progress.borrow(),
        )
    }
}

/// Waits until the task is to end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone, which says the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
