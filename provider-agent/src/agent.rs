//! The agent: store, nets and link put together.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::identity::DeviceId;
use dcnet::membership::EntryError;
use dcnet::provider::{Provider, ProviderCommand, ProviderEvent};
use dcnet::topic::{NetId, Topic};
use link::service;
use link::{Clock, Connection, Control, Driver};
use tokio::sync::{Notify, mpsc, watch};

use crate::attend::{about_round, attend};
use crate::config::Config;
use crate::identity::Identity;
use crate::nets::{NetEvent, Nets};
use crate::page::Page;
use crate::page::live::Live;
use crate::publication::PublishedProvider;
use crate::revocations::{Look, Revocations};
use crate::store::{Store, prepare_directory};

/// Name of the file in the state directory that a running agent holds locked.
pub const LOCK_FILE: &str = "agent.lock";

/// How often the files of revocations are looked at.
const REVOCATIONS_EVERY: Duration = Duration::from_secs(10);

/// How often a running agent looks for new nets in its store.
const NEW_NETS_EVERY: Duration = Duration::from_secs(3);

/// Pairs of sender and reason that are remembered so as to log each refusal once.
const REFUSALS: usize = 4096;

/// An agent that is ready to start.
pub struct Agent {
    store: Store,
    nets: Nets,
    revocations: Revocations,
    refused_revocations: Arc<AtomicU64>,
    /// How often the files of revocations are looked at; may be adjusted before the start.
    pub revocations_every: Duration,
    /// When notified, they are looked at now, which is then told to the service manager; may
    /// be replaced before the start.
    pub look: Arc<Notify>,
    /// The connection it will use; may be adjusted before the start.
    pub connection: Connection,
    /// The clock it will use; may be replaced before the start.
    pub clock: Clock,
    /// Where it tells an operator's page how things are; may be replaced before the start.
    pub live: Live,
}

/// A running agent; it stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    /// What happens in the nets. Events that are not taken in time are dropped and
    /// counted; everything that matters is in the store.
    pub events: mpsc::Receiver<NetEvent>,
    /// State of the link, counters, stopping.
    pub control: Control,
    refused_revocations: Arc<AtomicU64>,
    live: Live,
}

/// Why [`Running::log_until`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    NewNet,
}

impl Agent {
    /// Reads the identity, opens the store and continues every net in it where it was:
    /// a pending round waits for the reveals to the same roster.
    ///
    /// # Errors
    /// Identity, state directory or database cannot be used; another agent runs on the
    /// same state directory; a stored log does not verify.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        let mut identity = config.identity()?;
        let refused_revocations = Arc::default();
        report(&identity.revocations.look(), &refused_revocations);
        prepare_directory(&config.state_directory)?;
        let lock = lock(&config.state_directory)?;
        let mut store = Store::open_in(&config.state_directory)?;
        // Another agent may start once the driver has closed this store, not before.
        store.hold(lock);
        let mut machines = Vec::new();
        for net in store.nets()? {
            let machine = continue_net(&store, &identity, net.net, config)
                .with_context(|| format!("cannot continue net {} ({})", net.net, net.name))?;
            machines.push(machine);
        }
        if machines.is_empty() {
            tracing::warn!("there is no net; make one with `provider-agent net create`");
        }
        Ok(Self {
            store,
            nets: Nets::new(machines),
            connection: identity.connection(&config.broker_host, config.broker_port)?,
            revocations: identity.revocations,
            refused_revocations,
            revocations_every: REVOCATIONS_EVERY,
            look: Arc::default(),
            clock: if config.assume_synchronised {
                Clock::assume_synchronised()
            } else {
                Clock::system()
            },
            live: Live::default(),
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
        let nets = self.nets.shown_by(self.live.clone());
        let driver = Driver::new(nets, self.store, self.connection).with_clock(self.clock);
        let handle = driver.start();
        self.live.follow(&handle.control);
        let refused_revocations = Arc::clone(&self.refused_revocations);
        tokio::spawn(tell_revocations(
            self.revocations,
            self.revocations_every,
            self.look,
            handle.commands,
            self.refused_revocations,
        ));
        Running {
            events: handle.events,
            control: handle.control,
            refused_revocations,
            live: self.live,
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

    /// Files of revocations that could not be used since the start; each is logged once.
    pub fn refused_revocations(&self) -> u64 {
        self.refused_revocations.load(Ordering::Relaxed)
    }

    /// Logs events until one of two futures is done, then stops; ends earlier only with an
    /// error.
    async fn log_until(
        mut self,
        mut stop: impl Future<Output = ()> + Unpin,
        new_net: impl Future<Output = ()>,
    ) -> anyhow::Result<End> {
        let mut log = Log::default();
        tokio::pin!(new_net);
        let (last, last_told) = watch::channel(String::new());
        let (heartbeat, link) = (self.control.heartbeat(), self.control.state());
        let attended = attend(heartbeat, link, last_told);
        tokio::pin!(attended);
        loop {
            tokio::select! {
                () = &mut attended => {}
                () = &mut stop => {
                    tracing::info!("stopping");
                    service::stopping();
                    return self.stop().await.map(|()| End::Stopped);
                }
                () = &mut new_net => return self.stop().await.map(|()| End::NewNet),
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(told) = about_round(&event) {
                            last.send_replace(told);
                        }
                        self.live.take(&event);
                        log.write(&event);
                    }
                    None => return self.control.join().await.map(|()| End::Stopped),
                }
            }
        }
    }
}

/// Runs the agent of a configuration until `stop` is done. A net that is made meanwhile is
/// taken up within seconds: since what an agent subscribes to is fixed, by a new start. When
/// `look` is notified, the files of revocations are looked at now.
///
/// # Errors
/// As [`Agent::open`] and [`Control::join`].
pub async fn run(
    config: &Config,
    stop: impl Future<Output = ()>,
    look: Arc<Notify>,
) -> anyhow::Result<()> {
    tokio::pin!(stop);
    let live = Live::default();
    let _page = Page::serve(config, live.clone()).await;
    loop {
        let mut agent = Agent::open(config)?;
        agent.live = live.clone();
        agent.look = Arc::clone(&look);
        let nets = agent.nets();
        tracing::info!(
            nets = nets.len(),
            version = env!("CARGO_PKG_VERSION"),
            "starting"
        );
        let new_net = new_net(
            config.clone(),
            Store::open_in(&config.state_directory)?,
            nets,
        );
        if agent.start().log_until(&mut stop, new_net).await? == End::Stopped {
            return Ok(());
        }
    }
}

/// Waits until the store has a net besides `known` that this agent can run.
async fn new_net(config: Config, mut store: Store, mut known: Vec<NetId>) {
    loop {
        tokio::time::sleep(NEW_NETS_EVERY).await;
        let config = config.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let found = look_for_net(&config, &store, &mut known);
            (store, known, found)
        });
        let Ok((looked, before, found)) = looking.await else {
            // Cancelled: the runtime is being shut down.
            return std::future::pending().await;
        };
        (store, known) = (looked, before);
        match found {
            Ok(None) => {}
            Ok(Some(net)) => return tracing::info!(%net, "taking up a new net"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "cannot take up a new net; mend it and start again");
            }
        }
    }
}

fn look_for_net(
    config: &Config,
    store: &Store,
    known: &mut Vec<NetId>,
) -> anyhow::Result<Option<NetId>> {
    let nets = store.net_ids()?;
    let Some(net) = nets.into_iter().find(|net| !known.contains(net)) else {
        return Ok(None);
    };
    // One that cannot be run is told once.
    known.push(net);
    // What cannot be started again is not stopped.
    crate::net::membership(store, &config.identity()?, net)?;
    Ok(Some(net))
}

/// Logs and counts files that cannot be used.
fn report(look: &Look, refused: &AtomicU64) {
    for problem in &look.problems {
        refused.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            error = format!("{problem:#}"),
            "a file of revocations is not used"
        );
    }
}

/// Tells the nets what is revoked, and then whenever the files change.
async fn tell_revocations(
    mut revocations: Revocations,
    every: Duration,
    asked: Arc<Notify>,
    commands: mpsc::Sender<ProviderCommand>,
    refused: Arc<AtomicU64>,
) {
    let mut news = revocations.command();
    let mut reload = false;
    loop {
        if let Some(command) = news.take()
            && commands.send(command).await.is_err()
        {
            return;
        }
        if std::mem::take(&mut reload) {
            service::reloaded();
        }
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = asked.notified() => reload = true,
            () = commands.closed() => return,
        }
        let looking = tokio::task::spawn_blocking(move || {
            let look = revocations.look();
            (revocations, look)
        });
        // Cancelled only when the runtime is being shut down.
        let Ok((looked, look)) = looking.await else {
            return;
        };
        revocations = looked;
        report(&look, &refused);
        if look.changed {
            tracing::info!("the gateway administrator's revocations have changed");
            news = revocations.command();
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
    config: &Config,
) -> anyhow::Result<PublishedProvider> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the operating system gives no randomness")?;
    let config = identity.provider_config(config.minimum_presence_percent, config.lapse_after());
    let provider = Provider::new(config, store.load(net)?, seed).map_err(|error| {
        let what = match error {
            EntryError::Trust("provider") => {
                "its log is signed with another key than those in the identity directory; if the \
                 net was handed over to a successor, put the successor's certificate.pem and \
                 key.pem there"
            }
            _ => "what the database holds of it does not verify",
        };
        anyhow::Error::new(error).context(what)
    })?;
    let in_force = provider.membership().provider();
    if in_force.key() != identity.certificate.key() {
        tracing::warn!(%net, provider = %in_force.id(), "{HANDED_OVER}");
    }
    Ok(PublishedProvider::new(
        provider,
        store.newest_aggregate(net)?,
    ))
}

/// What the operator does once a successor has taken over.
const HANDED_OVER: &str = "the net is signed with the successor's key now; once every net says so, \
     stop the agent, move certificate.pem and key.pem from successor/ over the old ones, remove \
     successor/ and start again; give the new certificate to the gateway administrator, who \
     enrols further meters with it";

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
                tracing::warn!(%net, %provider, "{HANDED_OVER}");
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
