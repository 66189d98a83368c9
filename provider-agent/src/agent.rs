//! The agent: store, nets and link put together.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use dcnet::identity::DeviceId;
use dcnet::provider::{Provider, ProviderEvent};
use dcnet::topic::{NetId, Topic};
use link::{Clock, Connection, Control, Driver};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::identity::Identity;
use crate::nets::{NetEvent, Nets};
use crate::publication::PublishedProvider;
use crate::store::{Store, prepare_directory};

/// Name of the file in the state directory that a running agent holds locked.
pub const LOCK_FILE: &str = "agent.lock";

/// Pairs of sender and reason that are remembered so as to log each refusal once.
const REFUSALS: usize = 4096;

/// An agent that is ready to start.
pub struct Agent {
    store: Store,
    nets: Nets,
    /// The connection it will use; may be adjusted before the start.
    pub connection: Connection,
    /// The clock it will use; may be replaced before the start.
    pub clock: Clock,
}

/// A running agent; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// What happens in the nets. Events that are not taken in time are dropped and
    /// counted; everything that matters is in the store.
    pub events: mpsc::Receiver<NetEvent>,
    /// State of the link, counters, stopping.
    pub control: Control,
}

impl Agent {
    /// Reads the identity, opens the store and continues every net in it where it was:
    /// a pending round waits for the reveals to the same roster.
    ///
    /// # Errors
    /// Identity, state directory or database cannot be used; another agent runs on the
    /// same state directory; a stored log does not verify.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let identity = config.identity()?;
        prepare_directory(&config.state_directory)?;
        let lock = lock(&config.state_directory)?;
        let mut store = Store::open_in(&config.state_directory)?;
        // Another agent may start once the driver has closed this store, not before.
        store.hold(lock);
        let mut machines = Vec::new();
        for net in store.nets()? {
            let machine = continue_net(&store, &identity, net.net, config.minimum_presence_percent)
                .with_context(|| format!("cannot continue net {} ({})", net.net, net.name))?;
            machines.push(machine);
        }
        if machines.is_empty() {
            tracing::warn!(
                "there is no net; make one with `provider-agent net create` and start again"
            );
        }
        Ok(Self {
            store,
            nets: Nets::new(machines),
            connection: identity.connection(&config.broker_host, config.broker_port)?,
            clock: Clock::system(),
        })
    }

    /// The nets it will run.
    pub fn nets(&self) -> Vec<NetId> {
        self.nets.ids().collect()
    }

    /// Starts the agent as a task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Running {
        let driver = Driver::new(self.nets, self.store, self.connection).with_clock(self.clock);
        let handle = driver.start();
        Running {
            events: handle.events,
            control: handle.control,
        }
    }
}

impl Running {
    /// Stops the agent after its present step; everything it was told is in the store.
    ///
    /// # Errors
    /// As [`Control::stop`].
    pub async fn stop(self) -> anyhow::Result<()> {
        self.control.stop().await
    }

    /// Logs events until `stop` is done, then stops; ends earlier only with an error.
    ///
    /// # Errors
    /// As [`Control::join`].
    pub async fn log_until(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut log = Log::default();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => {
                    tracing::info!("stopping");
                    return self.stop().await;
                }
                event = self.events.recv() => match event {
                    Some(event) => log.write(&event),
                    None => return self.control.join().await,
                }
            }
        }
    }
}

fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another provider-agent runs on {}; a net must never be run twice, so stop that one first",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn continue_net(
    store: &Store,
    identity: &Identity,
    net: NetId,
    minimum_presence: u32,
) -> anyhow::Result<PublishedProvider> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the operating system gives no randomness")?;
    let config = identity.provider_config(minimum_presence);
    let provider = Provider::new(config, store.load(net)?, seed)
        .context("what the database holds of it does not verify")?;
    Ok(PublishedProvider::new(
        provider,
        store.newest_aggregate(net)?,
    ))
}

/// Events as log lines; a refusal once per sender and reason.
#[derive(Default)]
struct Log {
    refused: BTreeSet<(Option<DeviceId>, String)>,
}

impl Log {
    fn write(&mut self, event: &NetEvent) {
        let net = event.net;
        match &event.event {
            ProviderEvent::Joined { meter, members } => {
                tracing::info!(%net, %meter, members, "joined");
            }
            ProviderEvent::Left { meter, members } => {
                tracing::info!(%net, %meter, members, "left by its own exit");
            }
            ProviderEvent::Revoked { meter, members } => {
                tracing::warn!(%net, %meter, members, "revoked by the gateway administrator");
            }
            ProviderEvent::Lapsed { meter } => {
                tracing::info!(%net, %meter, "was away for long: no draw names it until it draws");
            }
            ProviderEvent::KeyChanged { provider } => {
                tracing::warn!(%net, %provider, "the net is signed with the successor's key now");
            }
            ProviderEvent::Drawn { meter } => tracing::debug!(%net, %meter, "drawn"),
            ProviderEvent::Entered { meter } => tracing::info!(%net, %meter, "entered"),
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } => tracing::debug!(%net, %round, included, dropped, "roster issued"),
            ProviderEvent::NoRoster { round, submissions } => {
                tracing::warn!(%net, %round, submissions, "no roster: too few submissions for what the meters ask for");
            }
            ProviderEvent::Aggregated(published) => tracing::info!(
                %net,
                round = %published.round,
                included = published.included.len(),
                members = published.members,
                latency = ?event.latency.unwrap_or_default(),
                "verified aggregate"
            ),
            ProviderEvent::Pending { round, missing } => {
                tracing::warn!(%net, %round, ?missing, "pending: reveals are missing");
            }
            ProviderEvent::Lost { round, missing } => {
                tracing::warn!(%net, %round, ?missing, "lost");
            }
            ProviderEvent::Refused { topic, reason } => {
                let sender = match topic {
                    Topic::Up { meter, .. } | Topic::UpPair { meter, .. } => Some(*meter),
                    _ => None,
                };
                let new = self.refused.len() < REFUSALS
                    && self.refused.insert((sender, reason.to_string()));
                if new {
                    tracing::warn!(%net, %topic, %reason, "refused; repetitions are not logged");
                } else {
                    tracing::debug!(%net, %topic, %reason, "refused");
                }
            }
            ProviderEvent::Alarm(alarm) => tracing::error!(%net, %alarm, "alarm"),
        }
    }
}
