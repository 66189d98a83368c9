//! The agent: store, nets and link put together.
//!
//! A step whose records cannot be stored is as if it had not been: nothing of it is published,
//! and the nets are made anew from the store once that can be written.

mod compaction;
mod journal;
mod log;
mod renewal;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::membership::EntryError;
use dcnet::provider::{Provider, ProviderCommand};
use dcnet::time::Period;
use dcnet::topic::NetId;
use link::service;
use link::{Clock, Connection, Control, Driver};
use secrets::permissions::give_to_owner_of;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::attend::{about_round, attend};
use crate::config::Config;
use crate::identity::Identity;
use crate::nets::{NetEvent, Nets};
use crate::page::Page;
use crate::page::kept::KeptAlarms;
use crate::page::live::Live;
use crate::publication::PublishedProvider;
use crate::revocations::{Look, Revocations};
use crate::store::{Fault, Store, prepare_directory};
use crate::traces::Traces;
use crate::utc;
use journal::{Teller, ToldStore};
use log::Log;

pub use journal::StoreState;

/// Name of the file in the state directory that a running agent holds locked.
pub const LOCK_FILE: &str = "agent.lock";

/// How often the files of revocations are looked at.
const REVOCATIONS_EVERY: Duration = Duration::from_secs(10);

/// How often a running agent looks for new and closed nets in its store.
const NEW_NETS_EVERY: Duration = Duration::from_secs(3);

/// How often it is looked whether the disk takes something again before the start.
const ROOM_EVERY: Duration = Duration::from_secs(3);

/// An agent that is ready to start.
pub struct Agent {
    config: Config,
    identity: Identity,
    lock: Arc<File>,
    store: Store,
    nets: Nets,
    closed: Vec<NetId>,
    refused_revocations: Arc<AtomicU64>,
    /// How often the files of revocations are looked at; may be adjusted before the start.
    pub revocations_every: Duration,
    /// When notified, they are looked at now, which is then told to the service manager.
    look: Arc<Notify>,
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
    store: watch::Receiver<StoreState>,
    refused_revocations: Arc<AtomicU64>,
    live: Live,
    periods: BTreeMap<NetId, Period>,
}

/// Why [`Running::log_until`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stopped,
    /// There are other nets or certificates.
    Changed,
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
        let lock = Arc::new(lock(&config.state_directory)?);
        let store = open_store(config, &lock)?;
        let ids = store.net_ids()?;
        let closed = store.closed_nets()?;
        if ids.is_empty() {
            tracing::warn!("there is no net; make one with `provider-agent net create`");
        }
        Ok(Self {
            nets: continue_nets(&store, &identity, &ids, config)?,
            store,
            connection: identity.connection(&config.broker.host, config.broker.port)?,
            config: config.clone(),
            identity,
            lock,
            closed,
            refused_revocations,
            revocations_every: REVOCATIONS_EVERY,
            look: Arc::default(),
            clock: if config.clock.assume_synchronised {
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
        let Self {
            config,
            identity,
            lock,
            store,
            nets,
            refused_revocations,
            live,
            ..
        } = self;
        let rounds_kept = config.retention.rounds;
        let teller = Teller::new(live.clone());
        let state = teller.subscribe();
        let revocations = identity.revocations.clone();
        live.certificate_ends(identity.certificate.not_after());
        let nets = nets.shown_by(live.clone());
        let (ids, path): (Vec<NetId>, _) = (nets.ids().collect(), store.path().to_owned());
        let periods = nets.periods();
        let shown = live.clone();
        let reopen = journal::reopen(path.clone(), teller.clone(), move || {
            let mut store = open_store(&config, &lock)?;
            store.try_writing()?;
            let mut identity = identity.clone();
            // What cannot be used of them is told by the task that watches them.
            identity.revocations.look();
            let nets = continue_nets(&store, &identity, &ids, &config)?;
            Ok((nets.shown_by(shown.clone()), store))
        });
        let driver = Driver::new(nets, ToldStore::new(store, teller), self.connection)
            .with_clock(self.clock)
            .with_reopen(reopen);
        let handle = driver.start();
        live.follow(&handle.control);
        if let Some(kept) = rounds_kept {
            let ended = handle.commands.clone();
            tokio::spawn(compaction::run(path.clone(), kept, ended));
        }
        tokio::spawn(tell_revocations(
            revocations,
            (self.revocations_every, self.look),
            handle.commands,
            state.clone(),
            Arc::clone(&refused_revocations),
        ));
        Running {
            events: handle.events,
            control: handle.control,
            store: state,
            refused_revocations,
            live,
            periods,
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

    /// Whether what happens can be stored, and the changes.
    pub fn store(&self) -> watch::Receiver<StoreState> {
        self.store.clone()
    }

    /// Files of revocations that could not be used since the start; each is logged once.
    pub fn refused_revocations(&self) -> u64 {
        self.refused_revocations.load(Ordering::Relaxed)
    }

    /// Logs events until one of two futures is done, then stops; ends earlier only with an
    /// error: an agent whose store is broken must not go on as if it served.
    async fn log_until(
        mut self,
        mut stop: impl Future<Output = ()> + Unpin,
        changed: impl Future<Output = ()>,
        mut traces: Option<&mut Traces>,
    ) -> anyhow::Result<End> {
        let mut log = Log::default();
        tokio::pin!(changed);
        let (last, last_told) = watch::channel(String::new());
        let (heartbeat, link) = (self.control.heartbeat(), self.control.state());
        let attended = attend(heartbeat, link, self.store(), last_told);
        let broken = broken(self.store());
        tokio::pin!(attended, broken);
        loop {
            tokio::select! {
                () = &mut attended => {}
                () = &mut stop => {
                    tracing::info!("stopping");
                    service::stopping();
                    return self.stop().await.map(|()| End::Stopped);
                }
                problem = &mut broken => {
                    self.stop().await?;
                    bail!("the store cannot be used: {problem}");
                }
                () = &mut changed => return self.stop().await.map(|()| End::Changed),
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Some(told) = about_round(&event) {
                            last.send_replace(told);
                        }
                        self.live.take(&event);
                        if let Some(traces) = &mut traces
                            && let Some(period) = self.periods.get(&event.net)
                        {
                            traces.follow(&event, *period);
                        }
                        log.write(&event);
                    }
                    None => return self.control.join().await.map(|()| End::Stopped),
                }
            }
        }
    }
}

/// Waits until nothing can be stored any more; gives the reason.
async fn broken(mut store: watch::Receiver<StoreState>) -> String {
    let is_broken = |state: &StoreState| matches!(state, StoreState::Broken { .. });
    if let Ok(state) = store.wait_for(is_broken).await
        && let StoreState::Broken { problem } = &*state
    {
        return problem.clone();
    }
    // The driver has ended, which is told elsewhere.
    std::future::pending().await
}

/// Runs the agent of a configuration until `stop` is done. A net that is made or closed
/// meanwhile is taken up within seconds: since what an agent subscribes to is fixed, by a new
/// start. When `reload` is notified, the files of revocations are looked at now, and renewed
/// certificates are taken up, likewise.
///
/// # Errors
/// As [`Agent::open`] and [`Control::join`].
pub async fn run(
    config: &Config,
    stop: impl Future<Output = ()>,
    reload: Arc<Notify>,
) -> anyhow::Result<()> {
    tokio::pin!(stop);
    tokio::select! {
        () = room(config) => {}
        () = &mut stop => return Ok(()),
    }
    let kept = KeptAlarms::open(&config.state_directory);
    let live = kept.live();
    let (end, ended) = oneshot::channel::<()>();
    let keeping = tokio::spawn(kept.follow(live.clone(), async {
        // Dropped when this function ends.
        let _ = ended.await;
    }));
    let _page = Page::serve(config, live.clone()).await;
    let mut traces = config
        .traces
        .endpoint
        .as_deref()
        .map(Traces::new)
        .transpose()?;
    loop {
        let mut agent = Agent::open(config)?;
        agent.live = live.clone();
        let look = Arc::clone(&agent.look);
        let renewed = renewal::renewed(config, agent.identity.clone(), &reload, &look);
        let known = Known {
            nets: agent.nets(),
            closed: agent.closed.clone(),
        };
        tracing::info!(
            nets = known.nets.len(),
            version = env!("CARGO_PKG_VERSION"),
            "starting"
        );
        let store = Store::open_in(&config.state_directory)?;
        let changed = async {
            tokio::select! {
                () = nets_changed(config.clone(), store, known) => {}
                () = renewed => {}
            }
        };
        let running = agent.start().log_until(&mut stop, changed, traces.as_mut());
        if running.await? == End::Stopped {
            break;
        }
    }
    if let Some(traces) = traces {
        tokio::task::spawn_blocking(move || traces.stop()).await?;
    }
    drop(end);
    Ok(keeping.await?)
}

/// Waits while the disk of the database takes nothing, as a running agent does. Whatever else
/// is wrong is told when the database is opened for use.
async fn room(config: &Config) {
    let mut told = None;
    loop {
        let directory = config.state_directory.clone();
        let trying =
            tokio::task::spawn_blocking(move || Store::open_in(&directory)?.try_writing()).await;
        // Cancelled only when the runtime is being shut down.
        let Ok(Err(error)) = trying else { break };
        let Some(fault) = Fault::of_disk(&error) else {
            break;
        };
        if told != Some(fault) {
            let path = config.store_path();
            let problem = fault.advice(&path);
            tracing::error!(
                error = format!("{error:#}"),
                "{problem}; the agent starts then"
            );
            service::status(&format!("not started: {problem}"));
            told = Some(fault);
        }
        tokio::time::sleep(ROOM_EVERY).await;
    }
    if told.is_some() {
        tracing::info!("the database can be written");
    }
}

/// The nets as a running agent took them up.
struct Known {
    nets: Vec<NetId>,
    closed: Vec<NetId>,
}

/// Waits until the store has a net besides the known ones that this agent can run, or another
/// one is closed.
async fn nets_changed(config: Config, mut store: Store, mut known: Known) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(NEW_NETS_EVERY).await;
        let config = config.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let found = look_at_nets(&config, &store, &mut known);
            (store, known, found)
        });
        let Ok((looked, before, found)) = looking.await else {
            // Cancelled: the runtime is being shut down.
            return std::future::pending().await;
        };
        (store, known) = (looked, before);
        match found {
            Ok(false) => {}
            Ok(true) => return,
            Err(error) => {
                let error = format!("{error:#}");
                if error != told {
                    tracing::error!(error, "cannot take up a new net; mend it and start again");
                    told = error;
                }
            }
        }
    }
}

fn look_at_nets(config: &Config, store: &Store, known: &mut Known) -> anyhow::Result<bool> {
    if let Some(net) = new_in(&store.closed_nets()?, &mut known.closed) {
        tracing::info!(%net, "closing a net");
        return Ok(true);
    }
    let Some(net) = new_in(&store.net_ids()?, &mut known.nets) else {
        return Ok(false);
    };
    // What cannot be started again is not stopped.
    crate::net::membership(store, &config.identity()?, net)?;
    tracing::info!(%net, "taking up a new net");
    Ok(true)
}

/// The first net that is not known yet; it is from here on, so that one that cannot be run is
/// told once.
fn new_in(nets: &[NetId], known: &mut Vec<NetId>) -> Option<NetId> {
    let net = *nets.iter().find(|net| !known.contains(net))?;
    known.push(net);
    Some(net)
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
    (every, asked): (Duration, Arc<Notify>),
    commands: mpsc::Sender<ProviderCommand>,
    mut store: watch::Receiver<StoreState>,
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
            // What a step that could not be stored did with them is to be done again.
            Ok(()) = store.changed() => news = revocations.command(),
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

pub(crate) fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    give_to_owner_of(directory, &path)?;
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

fn open_store(config: &Config, lock: &Arc<File>) -> anyhow::Result<Store> {
    let mut store = Store::open_in(&config.state_directory)?;
    // Another agent may start once the driver has closed this store, not before.
    store.hold(Arc::clone(lock));
    Ok(store)
}

/// Whether every net of a store can be continued under an identity.
///
/// # Errors
/// Names the net that cannot, and why.
pub(crate) fn check_nets(
    store: &Store,
    identity: &Identity,
    nets: &[NetId],
    config: &Config,
) -> anyhow::Result<()> {
    continue_nets(store, identity, nets, config).map(|_| ())
}

fn continue_nets(
    store: &Store,
    identity: &Identity,
    nets: &[NetId],
    config: &Config,
) -> anyhow::Result<Nets> {
    let machines = nets.iter().map(|net| {
        continue_net(store, identity, *net, config)
            .with_context(|| format!("cannot continue net {net}"))
    });
    Ok(Nets::new(machines.collect::<anyhow::Result<Vec<_>>>()?))
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
    let mut provider = Provider::new(config, store.load(net)?, seed).map_err(|error| {
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
    let standing = store.standing(net)?;
    if let Some(at) = standing.closed {
        tracing::info!(%net, "closed since {}: opens no round", utc::text(at));
        provider.close();
    }
    if let Some(at) = standing.resume {
        provider.resume_after(at);
        if provider.is_unproven() {
            tracing::warn!(%net, resume = utc::text(at), "{RESTORED}");
        }
    }
    Ok(PublishedProvider::new(
        provider,
        store.newest_aggregate(net)?,
    ))
}

/// What the operator must know of a net whose state was restored.
const RESTORED: &str = "the net was restored from a backup: no round that started before that \
     gets a roster, and nobody joins, leaves or draws before a later round has a verified sum; if \
     none comes within some rounds, the meters know more than the backup: close the net and \
     create a new one";

/// What the operator does once a successor has taken over.
const HANDED_OVER: &str = "the net is signed with the successor's key now; once every net says so, \
     stop the agent, move certificate.pem and key.pem from successor/ over the old ones, remove \
     successor/ and start again; give the new certificate to the gateway administrator, who \
     enrols further meters with it";
