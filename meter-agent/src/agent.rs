//! The agent: register, protocol state machine and link put together.
//!
//! Pulses go into the register, its value at each boundary of a round to
//! [`dcnet::meter::Meter`], which runs under [`link::Driver`].
//!
//! **No interval is submitted that was not counted from end to end.** A reading is
//! the difference of two successive boundaries, and the meter keeps the first of them
//! in memory only. An agent makes its meter and begins to count together, and when counting
//! ends, for whatever reason, the agent ends and its meter with it. So the first boundary
//! after a start has none before it: it opens the first interval, and the one during which
//! the agent was started, or was down, is never submitted. A boundary that passed before UTC was
//! synchronised comes late, with the total of its moment ([`crate::register`]): it opens an
//! interval like any other, and closes one only while the submission window is open.
//!
//! State, all in one directory of mode 0700: `register/` holds the register, and
//! `register/ledger.db` up to when its energy was submitted; both outlive nets.
//! `NET.db` holds the keys and the log of one net.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use dcnet::meter::{Floors, Meter, MeterCommand, MeterConfig, MeterEvent};
use dcnet::output::Store;
use dcnet::reading::Boundary;
use link::credentials::RevocationFile;
use link::service::{self, Heartbeat, Loops};
use link::{Clock, Connection, Control, Driver, LinkState, MeterJournal, Totals};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::clock;
use crate::config::{Config, IdentityFiles};
use crate::home_assistant::{self, Shown};
use crate::identity::Identity;
use crate::page::Page;
use crate::pulse::input::InputStatistics;
use crate::pulse::{self, LineView, PulseSource};
use crate::register::counting::{CountError, Counted, Rounds, SavePolicy, Watching, count};
use crate::register::{Register, RegisterChannel};
use crate::standing::{HasLeft, Standing, Watched};
use crate::status::{AlarmFile, Recorder, View};

mod alarms;
mod attend;
mod log;
mod net;
mod pause;

use alarms::KeptAlarms;
use attend::attend;
use log::EventLog;
use net::NetView;
pub use pause::Pause;

/// Events that wait for an owner; those that find no room are dropped and counted.
pub const EVENTS: usize = 4096;

/// How often the list of revoked devices is looked at without being told to.
const REVOCATIONS_EVERY: Duration = Duration::from_secs(30);

/// Boundaries between register and meter.
const BOUNDARIES: usize = 64;

/// What an agent is started with.
pub struct AgentOptions {
    /// Who it is, whom it trusts, and its floors.
    pub meter: MeterConfig,
    /// The way to the broker, with the same key.
    pub connection: Connection,
    /// Where its state is; made if it does not exist, with mode 0700.
    pub state_directory: PathBuf,
    /// What the register counts.
    pub channels: Vec<RegisterChannel>,
    /// One source for every channel, in the same order.
    pub sources: Vec<Box<dyn PulseSource>>,
    /// When the register is saved apart from boundaries.
    pub save: SavePolicy,
    /// Says whether UTC can be trusted.
    pub clock: Clock,
    /// The list of revoked devices, read again whenever it changed.
    pub revocations: RevocationFile,
    /// How often it is looked at.
    pub revocations_every: Duration,
}

impl AgentOptions {
    /// Options of an identity directory. The state is in `state_directory`; the rest is
    /// default: the system's clock, [`SavePolicy::default`].
    ///
    /// # Errors
    /// As [`Identity::load`] and [`Connection::from_pem_files`].
    pub fn new(
        identity: &IdentityFiles,
        broker: (&str, u16),
        floors: Floors,
        state_directory: impl Into<PathBuf>,
        channels: Vec<RegisterChannel>,
        sources: Vec<Box<dyn PulseSource>>,
    ) -> anyhow::Result<Self> {
        let loaded = Identity::load(identity, clock::utc_timestamp())?;
        let (ca, certificate, key) = (identity.ca(), identity.certificate(), identity.key());
        let (host, port) = broker;
        let revocations = loaded.revocations.clone();
        Ok(Self {
            revocations,
            revocations_every: REVOCATIONS_EVERY,
            meter: loaded.into_meter_config(floors),
            connection: Connection::from_pem_files(host, port, &ca, &certificate, &key)?,
            state_directory: state_directory.into(),
            channels,
            sources,
            save: SavePolicy::default(),
            clock: Clock::system(),
        })
    }

    /// Options of a configuration, with its sources opened.
    ///
    /// # Errors
    /// As [`AgentOptions::new`] and [`pulse::open`].
    pub fn from_config(config: &Config) -> anyhow::Result<Self> {
        let mut options = Self::without_sources(config)?;
        options.sources = pulse::open(&config.channels, None)?;
        Ok(options)
    }

    /// As [`AgentOptions::from_config`], with nothing to count.
    pub(crate) fn without_sources(config: &Config) -> anyhow::Result<Self> {
        let mut options = Self::new(
            &config.identity,
            (&config.broker_host, config.broker_port),
            config.floors.into(),
            &config.state_directory,
            config.register_channels(),
            Vec::new(),
        )?;
        options.save = config.save;
        if config.assume_synchronised {
            options.clock = Clock::assume_synchronised();
        }
        Ok(options)
    }
}

/// What an agent has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentTotals {
    /// The link's counters.
    pub link: Totals,
    /// Boundaries handed to the meter.
    pub boundaries: u64,
    /// Inputs that the meter refused.
    pub refused: u64,
    /// Alarms of the meter.
    pub alarms: u64,
    /// Times that the list of revoked devices could not be used any more.
    pub refused_revocations: u64,
    /// Events that the owner did not take in time; of a handle without an owner, all beyond
    /// [`EVENTS`].
    pub dropped_events: u64,
}

#[derive(Debug, Default)]
struct Counters {
    boundaries: AtomicU64,
    refused: AtomicU64,
    alarms: AtomicU64,
    refused_revocations: AtomicU64,
    dropped_events: AtomicU64,
}

/// The owner's end of a running agent.
#[derive(Debug)]
pub struct AgentHandle {
    /// What the meter tells, in order; ends when the agent has ended. They are in the log too:
    /// an owner who does not want them may drop this.
    pub events: mpsc::Receiver<MeterEvent>,
    /// Stops and watches the agent.
    pub control: AgentControl,
}

impl AgentHandle {
    /// As [`AgentControl::stop`].
    ///
    /// # Errors
    /// As [`AgentControl::stop`].
    pub async fn stop(self) -> anyhow::Result<()> {
        self.control.stop().await
    }
}

/// Stops and watches an agent; the agent stops when this is dropped.
#[derive(Debug)]
pub struct AgentControl {
    stop: oneshot::Sender<()>,
    /// Absent when its end was told.
    task: Option<JoinHandle<anyhow::Result<()>>>,
    commands: mpsc::Sender<MeterCommand>,
    link: watch::Receiver<LinkState>,
    standing: watch::Receiver<Standing>,
    counted: watch::Receiver<Counted>,
    lines: Vec<Option<watch::Receiver<LineView>>>,
    inputs: Vec<Option<watch::Receiver<InputStatistics>>>,
    loops: Loops,
    look: Arc<Notify>,
    link_counters: Arc<link::Counters>,
    counters: Arc<Counters>,
    view: View,
}

impl AgentControl {
    /// Stops within about two seconds: the register is saved, the farewell to the broker said,
    /// and the state directory free for the next start.
    ///
    /// # Errors
    /// As [`AgentControl::ended`], if that was not told yet; or the register cannot be saved.
    pub async fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        match self.task {
            Some(task) => task.await.context("the agent panicked")?,
            None => Ok(()),
        }
    }

    /// Waits until the agent ends by itself, which it does only with an error. Can be
    /// dropped and called again.
    ///
    /// # Errors
    /// A source of pulses failed, or the journal could not be written.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let Some(task) = &mut self.task else {
            return Ok(());
        };
        let end = task.await;
        self.task = None;
        end.context("the agent panicked")?
    }

    /// What the household may see.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// The way to tell the meter something, which outlives this.
    pub fn orders(&self) -> Orders {
        Orders {
            commands: self.commands.clone(),
            pause: self.view.pause.clone(),
        }
    }

    /// The loops without which the agent is not alive: of its pulses and of the protocol.
    pub fn loops(&self) -> Loops {
        self.loops.clone()
    }

    /// When notified, the list of revoked devices is looked at now, which is then told to the
    /// service manager.
    pub fn look_at_revocations(&self) -> Arc<Notify> {
        Arc::clone(&self.look)
    }

    /// The state of the link, and its changes.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.link.clone()
    }

    /// Where the meter stands in its net, and the changes.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// What has been counted, and the changes.
    pub fn counted(&self) -> watch::Receiver<Counted> {
        self.counted.clone()
    }

    /// The GPIO line of each channel that has one, in the order of the configuration.
    pub fn lines(&self) -> &[Option<watch::Receiver<LineView>>] {
        &self.lines
    }

    /// What has come from the device of each channel that reads one, in the order of the
    /// configuration.
    pub fn inputs(&self) -> &[Option<watch::Receiver<InputStatistics>>] {
        &self.inputs
    }

    /// The counters at this moment.
    pub fn totals(&self) -> AgentTotals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        AgentTotals {
            link: self.link_counters.totals(),
            boundaries: read(&self.counters.boundaries),
            refused: read(&self.counters.refused),
            alarms: read(&self.counters.alarms),
            refused_revocations: read(&self.counters.refused_revocations),
            dropped_events: read(&self.counters.dropped_events),
        }
    }
}

/// What a household may tell its running agent.
#[derive(Clone, Debug)]
pub struct Orders {
    commands: mpsc::Sender<MeterCommand>,
    pause: Pause,
}

impl Orders {
    /// Submits nothing of new intervals, or does again.
    ///
    /// # Errors
    /// As [`Pause::set`].
    pub fn pause(&self, paused: bool) -> anyhow::Result<()> {
        self.pause.set(paused)
    }

    /// A jump of the clock is right.
    pub async fn confirm_clock(&self) {
        // An agent that has ended needs no confirmation.
        let _ = self.commands.send(MeterCommand::ConfirmClock).await;
    }

    /// Leaves the net for good.
    pub async fn leave(&self) {
        // An agent that has ended leaves when `meter-agent leave` says so.
        let _ = self.commands.send(MeterCommand::Leave).await;
    }
}

/// A meter's agent.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Opens the state and starts to count and to take part, as tasks of the current runtime.
    ///
    /// # Errors
    /// The state is in use, open to others, damaged or of another identity; the register
    /// was counted with other channels; [`HasLeft`].
    pub async fn start(options: AgentOptions) -> anyhow::Result<AgentHandle> {
        let AgentOptions {
            meter,
            connection,
            state_directory,
            channels,
            sources,
            save,
            clock,
            mut revocations,
            revocations_every,
        } = options;
        ensure!(
            channels.len() == sources.len(),
            "there are {} channels but {} sources of pulses",
            channels.len(),
            sources.len()
        );
        ensure!(
            connection.client_id == meter.key.id().to_string(),
            "the connection to the broker is made with another key than the meter's"
        );
        let net = Arc::new(NetView::new(&channels));
        let (now, floors) = (clock.now(), meter.floors);
        let (names, watched_clock) = (channels.clone(), clock.clone());
        let own_files = state_directory.clone();
        let (directory, config) = (state_directory.clone(), meter.clone());
        let opening = tokio::task::spawn_blocking(move || {
            State::open(&state_directory, channels, meter, now)
        });
        let State {
            meter,
            journal,
            register,
        } = opening.await.context("opening the state panicked")??;

        if let Some(list) = meter.meter().revocations() {
            revocations.in_force(list);
        }
        let standing = meter.standing();
        let span = tracing::info_span!("meter", id = %meter.meter().id());
        let mut log = EventLog::new(floors.minimum_group, standing.clone());
        let (alarm_file, alarms) = AlarmFile::open(&own_files);
        let recorder = Arc::new(Recorder::new(alarms));
        let pause = Pause::open(&own_files);
        if pause.is_paused() {
            tracing::warn!("this meter is paused: it counts and submits nothing");
        }
        let (id, net_id) = (meter.meter().id(), meter.meter().net());
        if let Some(membership) = meter.meter().membership() {
            let genesis = membership.genesis();
            log.open(&genesis.policy);
            recorder.open(&genesis.policy, &genesis.channels);
            span.in_scope(|| net.open(genesis.policy.period, &genesis.channels));
        }
        let teller = meter.teller();
        let driver = Driver::new(meter, journal, connection)
            .with_clock(clock.clone())
            .with_reopen(Box::new(move |now| {
                let (meter, journal) = open_meter(&directory, config.clone(), now)?;
                Ok((Watched::told_to(meter, teller.clone()), journal))
            }));
        let link::Handle {
            commands,
            events,
            control,
        } = driver.start();

        let counters = Arc::new(Counters::default());
        let (boundary_sender, boundaries) = mpsc::channel(BOUNDARIES);
        let counted = watch::Sender::default();
        let watched = counted.subscribe();
        let lines: Vec<_> = sources.iter().map(|source| source.line()).collect();
        let inputs: Vec<_> = sources.iter().map(|source| source.input()).collect();
        let (stop_counting, counting_stopped) = oneshot::channel::<()>();
        let period = net.period();
        let heartbeat = Heartbeat::default();
        let loops = Loops::new([
            ("pulses", heartbeat.clone()),
            ("protocol", control.heartbeat()),
        ]);
        let look = Arc::new(Notify::new());
        let counting = tokio::spawn(
            async move {
                let stop = async {
                    let _ = counting_stopped.await;
                };
                let watching = Watching { counted, heartbeat };
                let rounds = Rounds {
                    period,
                    clock,
                    boundaries: boundary_sender,
                };
                count(register, sources, save, rounds, watching, stop).await
            }
            .instrument(span.clone()),
        );
        tokio::spawn(hand_over(
            boundaries,
            Arc::clone(&net),
            (Arc::clone(&recorder), pause.clone()),
            commands.clone(),
            Arc::clone(&counters),
        ));
        tokio::spawn(
            tell_revocations(
                revocations,
                revocations_every,
                Arc::clone(&look),
                commands.clone(),
                Arc::clone(&counters),
            )
            .instrument(span.clone()),
        );
        let (owner, owner_events) = mpsc::channel(EVENTS);
        let kept = KeptAlarms::new(alarm_file, Arc::clone(&recorder));
        let told = (Arc::clone(&recorder), watched_clock.clone(), kept);
        let telling = tokio::spawn(
            tell(events, log, told, owner, net, Arc::clone(&counters)).instrument(span.clone()),
        );

        let (stop, stopped) = oneshot::channel();
        let (link, link_counters) = (control.state(), control.counters());
        let view = View {
            meter: id,
            net: net_id,
            floors,
            clock: watched_clock,
            started: clock::monotonic(),
            channels: names,
            counted: watched.clone(),
            inputs: inputs.clone(),
            lines: lines.clone(),
            link: link.clone(),
            standing: standing.clone(),
            recorder,
            pause,
            link_counters: Arc::clone(&link_counters),
        };
        let running = Running {
            control,
            counting,
            stop_counting,
            telling,
        };
        Ok(AgentHandle {
            events: owner_events,
            control: AgentControl {
                stop,
                task: Some(tokio::spawn(running.run(stopped).instrument(span))),
                commands,
                link,
                standing,
                counted: watched,
                lines,
                inputs,
                loops,
                look,
                link_counters,
                counters,
                view,
            },
        })
    }
}

/// Runs the agent of a configuration until SIGTERM or SIGINT, or until the meter has left
/// its net.
///
/// # Errors
/// It cannot be started, or ends by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let options = AgentOptions::from_config(&config)?;
    let net = options.meter.checkpoint.net;
    tracing::info!(
        id = %options.meter.key.id(), %net,
        broker = %format_args!("{}:{}", config.broker_host, config.broker_port),
        "meter-agent {} starts", env!("CARGO_PKG_VERSION")
    );
    let AgentHandle {
        mut events,
        mut control,
    } = match Agent::start(options).await {
        Err(error) if error.is::<HasLeft>() => {
            tracing::warn!("{error}");
            service::nothing_to_do(&error.to_string());
            return Ok(());
        }
        started => started?,
    };
    let page = Page::serve(config.page, &config.state_directory, &control).await;
    let progress = watch::Sender::default();
    let showing = config.home_assistant.clone().map(|options| {
        let channels = config.channels.iter();
        let shown = Shown {
            channels: channels.map(|channel| channel.name.clone()).collect(),
            counted: control.counted(),
            link: control.link(),
            standing: control.standing(),
            progress: progress.subscribe(),
        };
        home_assistant::start(options, config.state_directory.clone(), shown)
    });
    let attended = attend(&mut events, &control, hangup, progress);
    tokio::select! {
        end = control.ended() => return end,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = attended => tracing::warn!("{}", HasLeft(net)),
    }
    service::stopping();
    page.stop().await;
    let farewell = async {
        if let Some(showing) = showing {
            showing.stop().await;
        }
    };
    let (stopped, ()) = tokio::join!(control.stop(), farewell);
    stopped?;
    tracing::info!("stopped; the register is saved");
    Ok(())
}

/// The opened state of a meter.
struct State {
    meter: Watched,
    journal: MeterJournal,
    register: Register,
}

impl State {
    fn open(
        directory: &Path,
        channels: Vec<RegisterChannel>,
        config: MeterConfig,
        now: dcnet::time::Now,
    ) -> anyhow::Result<Self> {
        let net = config.checkpoint.net;
        // First, because it makes the directories closed to others.
        let (meter, journal) = open_meter(directory, config, now)?;
        let meter = Watched::new(meter);
        let exit = meter.standing().borrow().exit;
        if exit.is_some_and(|exit| exit.done) {
            return Err(HasLeft(net).into());
        }
        let register = Register::open(&directory.join("register"), channels)?;
        Ok(Self {
            meter,
            journal,
            register,
        })
    }
}

/// Opens the journal in a state directory, and the meter that it holds.
pub(crate) fn open_meter(
    directory: &Path,
    config: MeterConfig,
    now: dcnet::time::Now,
) -> anyhow::Result<(Meter, MeterJournal)> {
    let net_file = directory.join(format!("{}.db", config.checkpoint.net));
    let journal = MeterJournal::open(&net_file, &directory.join("register").join("ledger.db"))?;
    let mut saved = journal.load(Store::Net)?;
    saved.extend(journal.load(Store::Register)?);
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).context("the operating system gives no random numbers")?;
    let meter = Meter::new(config, saved, *seed, now).with_context(|| {
        format!(
            "the state in {} and the identity of this meter do not go together; nothing was \
             changed. Restore both from one backup, or enrol this meter again",
            net_file.display()
        )
    })?;
    Ok((meter, journal))
}

/// Tells the meter the list of revoked devices whenever it has changed.
async fn tell_revocations(
    mut file: RevocationFile,
    every: Duration,
    look: Arc<Notify>,
    commands: mpsc::Sender<MeterCommand>,
    counters: Arc<Counters>,
) {
    let mut told = String::new();
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(every) => false,
            () = look.notified() => true,
            () = commands.closed() => return,
        };
        let looking = tokio::task::spawn_blocking(move || {
            let list = file.changed();
            (file, list)
        });
        // Cancelled only when the runtime is being shut down.
        let Ok((looked, list)) = looking.await else {
            return;
        };
        file = looked;
        match list {
            Ok(Some(list)) => {
                tracing::info!("list {} of revoked devices is in force", list.number());
                if commands.send(MeterCommand::Revoked(list)).await.is_err() {
                    return;
                }
                told.clear();
            }
            Ok(None) => {}
            Err(error) => {
                let error = format!("{error:#}");
                if error != told {
                    counters.refused_revocations.fetch_add(1, Ordering::Relaxed);
                    tracing::error!("{error}");
                    told = error;
                }
            }
        }
        if asked {
            service::reloaded();
        }
    }
}

/// Boundaries of the register to the meter, as the net orders its channels, unless the
/// household has paused it.
async fn hand_over(
    mut boundaries: mpsc::Receiver<Boundary>,
    net: Arc<NetView>,
    (recorder, pause): (Arc<Recorder>, Pause),
    commands: mpsc::Sender<MeterCommand>,
    counters: Arc<Counters>,
) {
    while let Some(boundary) = boundaries.recv().await {
        let Some(boundary) = net.ordered(&boundary) else {
            continue;
        };
        let is_paused = pause.is_paused();
        recorder.boundary(&boundary, is_paused);
        if is_paused {
            continue;
        }
        if commands
            .send(MeterCommand::Boundary(boundary))
            .await
            .is_err()
        {
            return;
        }
        counters.boundaries.fetch_add(1, Ordering::Relaxed);
    }
}

/// Events of the meter to the log, the register and the owner; ends with the driver.
async fn tell(
    mut events: mpsc::Receiver<MeterEvent>,
    mut log: EventLog,
    (recorder, clock, mut kept): (Arc<Recorder>, Clock, KeptAlarms),
    owner: mpsc::Sender<MeterEvent>,
    net: Arc<NetView>,
    counters: Arc<Counters>,
) {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = kept.due() => {
                kept.write().await;
                continue;
            }
        };
        let Some(event) = event else {
            return kept.finish().await;
        };
        log.write(&event);
        recorder.event(&event, clock.now().utc);
        match &event {
            MeterEvent::NetOpened { policy, channels } => net.open(policy.period, channels),
            MeterEvent::Refused { .. } => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            MeterEvent::Alarm(_) => {
                kept.changed();
                counters.alarms.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = owner.try_send(event) {
            counters.dropped_events.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The parts of an agent; none outlives the others.
struct Running {
    control: Control,
    counting: JoinHandle<Result<Register, CountError>>,
    stop_counting: oneshot::Sender<()>,
    /// Ends when the driver has ended.
    telling: JoinHandle<()>,
}

impl Running {
    async fn run(mut self, stop: oneshot::Receiver<()>) -> anyhow::Result<()> {
        tokio::select! {
            // Sent, or the owner is gone.
            _ = stop => {
                drop(self.stop_counting);
                let (driver, counted) = tokio::join!(self.control.stop(), self.counting);
                // So that the owner has every event, whichever way it came to an end.
                let _ = self.telling.await;
                counted.context("counting panicked")??;
                driver
            }
            counted = &mut self.counting => {
                let driver = self.control.stop().await;
                counted.context("counting panicked")?.context("counting pulses has ended")?;
                driver?;
                anyhow::bail!("counting pulses has ended")
            }
            _ = &mut self.telling => {
                drop(self.stop_counting);
                let (driver, counted) = tokio::join!(self.control.join(), self.counting);
                driver?;
                counted.context("counting panicked")??;
                anyhow::bail!("the protocol has ended")
            }
        }
    }
}
