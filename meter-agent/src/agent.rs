//! The agent: register, protocol state machine and link put together.
//!
//! Pulses go into the register, its value at each boundary of a round to
//! [`dcnet::meter::Meter`], which runs under [`link::Driver`].
//!
//! **Counting needs nobody.** Register, page, history and Home Assistant go on without a
//! link: while the enrolment cannot be used or is to be judged by a clock that is not
//! synchronised, and after the meter has left its net ([`crate::reach::NoLink`]).
//!
//! **No interval is submitted that was not counted from end to end.** A reading is
//! the difference of two successive boundaries, and the meter keeps the first of them
//! in memory only. It is made when the agent counts already, and when counting
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
use dcnet::meter::{Floors, MeterCommand, MeterEvent};
use dcnet::reading::Boundary;
use link::back_off::BackOff;
use link::database::prepare_directory;
use link::service::{self, Heartbeat, Loops};
use link::{Clock, LinkState, Totals};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::clock;
use crate::config::{Config, IdentityFiles};
use crate::home_assistant::{self, Shown};
use crate::page::Page;
use crate::pulse::input::InputStatistics;
use crate::pulse::{self, LineView, PulseSource};
use crate::reach::Reach;
use crate::register::counting::{CountError, Counted, Rounds, SavePolicy, Watching, count};
use crate::register::{Register, RegisterChannel};
use crate::standing::Standing;
use crate::status::{AlarmFile, Recorder, View};

mod alarms;
mod attend;
mod log;
mod net;
mod pause;
mod taking_part;

use alarms::KeptAlarms;
use attend::attend;
use log::EventLog;
use net::NetView;
pub use pause::Pause;
pub(crate) use taking_part::open_meter;
use taking_part::{Enrolment, MeterLine, TakingPart, Telling};

/// Events that wait for an owner; those that find no room are dropped and counted.
pub const EVENTS: usize = 4096;

/// How often the list of revoked devices is looked at without being told to.
const REVOCATIONS_EVERY: Duration = Duration::from_secs(30);

/// How often an enrolment that cannot be used is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Boundaries between register and meter.
const BOUNDARIES: usize = 64;

/// What an agent is started with.
pub struct AgentOptions {
    /// Who it is and whom it trusts.
    pub identity: IdentityFiles,
    /// Host and port of the broker.
    pub broker: (String, u16),
    /// Waiting time between attempts to connect.
    pub back_off: BackOff,
    /// What the household insists on.
    pub floors: Floors,
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
    /// How often the list of revoked devices is looked at.
    pub revocations_every: Duration,
    /// How often an enrolment that cannot be used is looked at again.
    pub look_again: Duration,
}

impl AgentOptions {
    /// Options of an identity directory. The state is in `state_directory`; the rest is
    /// default: the system's clock, [`SavePolicy::default`].
    pub fn new(
        identity: &IdentityFiles,
        (host, port): (&str, u16),
        floors: Floors,
        state_directory: impl Into<PathBuf>,
        channels: Vec<RegisterChannel>,
        sources: Vec<Box<dyn PulseSource>>,
    ) -> Self {
        Self {
            identity: identity.clone(),
            broker: (host.to_owned(), port),
            back_off: BackOff::default(),
            floors,
            state_directory: state_directory.into(),
            channels,
            sources,
            save: SavePolicy::default(),
            clock: Clock::system(),
            revocations_every: REVOCATIONS_EVERY,
            look_again: LOOK_AGAIN,
        }
    }

    /// Options of a configuration, with its sources opened.
    ///
    /// # Errors
    /// As [`pulse::open`].
    pub fn from_config(config: &Config) -> anyhow::Result<Self> {
        let mut options = Self::new(
            &config.identity,
            (&config.broker_host, config.broker_port),
            config.floors.into(),
            &config.state_directory,
            config.register_channels(),
            pulse::open(&config.channels, None)?,
        );
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
    meter: MeterLine,
    reach: watch::Receiver<Reach>,
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
            meter: self.meter.clone(),
            pause: self.view.pause.clone(),
        }
    }

    /// The loops without which the agent is not alive: of its pulses and of the protocol.
    pub fn loops(&self) -> Loops {
        self.loops.clone()
    }

    /// When notified, the list of revoked devices, and an enrolment that could not be used, is
    /// looked at now, which is then told to the service manager.
    pub fn look_at_revocations(&self) -> Arc<Notify> {
        Arc::clone(&self.look)
    }

    /// Whether there is a way to the net, and how it is, with the changes.
    pub fn reach(&self) -> watch::Receiver<Reach> {
        self.reach.clone()
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
    meter: MeterLine,
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
        // A meter without a link needs no confirmation.
        self.meter.tell(MeterCommand::ConfirmClock).await;
    }

    /// Leaves the net for good; `false` if there is no link to do it by.
    pub async fn leave(&self) -> bool {
        self.meter.tell(MeterCommand::Leave).await
    }
}

/// A meter's agent.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Opens the register and starts to count and, whenever it can, to take part, as tasks of
    /// the current runtime. Returns when it is known whether it can.
    ///
    /// # Errors
    /// The register is in use, open to others, damaged, or was counted with other channels.
    pub async fn start(options: AgentOptions) -> anyhow::Result<AgentHandle> {
        let AgentOptions {
            identity,
            broker,
            back_off,
            floors,
            state_directory,
            channels,
            sources,
            save,
            clock,
            revocations_every,
            look_again,
        } = options;
        ensure!(
            channels.len() == sources.len(),
            "there are {} channels but {} sources of pulses",
            channels.len(),
            sources.len()
        );
        let net = Arc::new(NetView::new(&channels));
        let (names, directory) = (channels.clone(), state_directory.clone());
        let opening = tokio::task::spawn_blocking(move || open_register(&directory, channels));
        let register = opening.await.context("opening the register panicked")??;

        let span = tracing::info_span!("meter", id = tracing::field::Empty);
        let (alarm_file, alarms) = AlarmFile::open(&state_directory);
        let alarm_file = Arc::new(alarm_file);
        let recorder = Arc::new(Recorder::new(alarms));
        let pause = Pause::open(&state_directory);
        if pause.is_paused() {
            tracing::warn!("this meter is paused: it counts and submits nothing");
        }
        let counters = Arc::new(Counters::default());
        let link_counters = Arc::default();
        let counted = watch::Sender::default();
        let reach = watch::Sender::new(Reach::Link(LinkState::Connecting));
        let (enrolled, standing) = (watch::Sender::default(), watch::Sender::default());
        let commands = watch::Sender::default();
        let meter = MeterLine(commands.subscribe());
        let lines: Vec<_> = sources.iter().map(|source| source.line()).collect();
        let inputs: Vec<_> = sources.iter().map(|source| source.input()).collect();
        let troubles = sources.iter().map(|source| source.trouble()).collect();
        let (pulses, protocol) = (Heartbeat::default(), Heartbeat::default());
        let loops = Loops::new([("pulses", pulses.clone()), ("protocol", protocol.clone())]);
        let look = Arc::new(Notify::new());
        let (owner, events) = mpsc::channel(EVENTS);
        let view = View {
            enrolled: enrolled.subscribe(),
            floors,
            clock: clock.clone(),
            started: clock::monotonic(),
            channels: names,
            counted: counted.subscribe(),
            inputs: inputs.clone(),
            lines: lines.clone(),
            troubles,
            reach: reach.subscribe(),
            standing: standing.subscribe(),
            recorder: Arc::clone(&recorder),
            alarm_file: Arc::clone(&alarm_file),
            reading_log: register.reading_log(),
            pause: pause.clone(),
            link_counters: Arc::clone(&link_counters),
        };

        let (boundary_sender, boundaries) = mpsc::channel(BOUNDARIES);
        let (stop_counting, counting_stopped) = oneshot::channel::<()>();
        let stop = async {
            let _ = counting_stopped.await;
        };
        let watching = Watching {
            counted,
            heartbeat: pulses,
        };
        let rounds = Rounds {
            period: net.period(),
            clock: clock.clone(),
            boundaries: boundary_sender,
        };
        let counting = count(register, sources, save, rounds, watching, stop);
        let counting = tokio::spawn(counting.instrument(span.clone()));
        tokio::spawn(hand_over(
            boundaries,
            Arc::clone(&net),
            (Arc::clone(&recorder), pause),
            meter.clone(),
            Arc::clone(&counters),
        ));
        let (known, is_known) = oneshot::channel();
        let taking_part = TakingPart {
            telling: Telling {
                log: EventLog::new(floors.minimum_group, standing.subscribe()),
                kept: KeptAlarms::new(alarm_file, Arc::clone(&recorder)),
                recorder,
                owner,
                counters: Arc::clone(&counters),
            },
            enrolment: Enrolment {
                identity,
                broker,
                floors,
                back_off,
                state_directory,
                enrolled,
                standing,
                is_staying: false,
            },
            clock,
            look_again,
            revocations_every,
            look: Arc::clone(&look),
            reach,
            commands,
            link_counters: Arc::clone(&link_counters),
            heartbeat: protocol,
            net,
            known: Some(known),
        };
        let (stop_taking_part, taking_part_stopped) = oneshot::channel();
        let taking_part = taking_part.run(taking_part_stopped);
        let running = Running {
            counting,
            stop_counting,
            taking_part: tokio::spawn(taking_part.instrument(span.clone())),
            stop_taking_part,
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(running.run(stopped).instrument(span));
        // It counts already. Whoever looks now sees how the meter stands.
        let _ = is_known.await;
        Ok(AgentHandle {
            events,
            control: AgentControl {
                stop,
                task: Some(task),
                meter,
                reach: view.reach.clone(),
                standing: view.standing.clone(),
                counted: view.counted.clone(),
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

/// Runs the agent of a configuration until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot be started, or ends by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let options = AgentOptions::from_config(&config)?;
    tracing::info!("meter-agent {} starts", env!("CARGO_PKG_VERSION"));
    let AgentHandle {
        mut events,
        mut control,
    } = Agent::start(options).await?;
    let page = Page::serve(config.page, &config.state_directory, &control).await;
    let progress = watch::Sender::default();
    let showing = config.home_assistant.clone().map(|options| {
        let channels = config.channels.iter();
        let shown = Shown {
            channels: channels.map(|channel| channel.name.clone()).collect(),
            counted: control.counted(),
            troubles: control.view.troubles.clone(),
            reach: control.reach(),
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
        never = attended => match never {},
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

/// Opens the register in a state directory; both are closed to others.
fn open_register(
    state_directory: &Path,
    channels: Vec<RegisterChannel>,
) -> anyhow::Result<Register> {
    let register = state_directory.join("register");
    for directory in [state_directory, &register] {
        prepare_directory(directory, "secrets")?;
    }
    Ok(Register::open(&register, channels)?)
}

/// Boundaries of the register to the meter, as the net orders its channels, unless the
/// household has paused it or it has no link.
async fn hand_over(
    mut boundaries: mpsc::Receiver<Boundary>,
    net: Arc<NetView>,
    (recorder, pause): (Arc<Recorder>, Pause),
    meter: MeterLine,
    counters: Arc<Counters>,
) {
    while let Some(boundary) = boundaries.recv().await {
        let Some(boundary) = net.ordered(&boundary).filter(|_| meter.is_open()) else {
            continue;
        };
        let is_paused = pause.is_paused();
        recorder.boundary(&boundary, is_paused);
        if is_paused {
            continue;
        }
        if meter.tell(MeterCommand::Boundary(boundary)).await {
            counters.boundaries.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The parts of an agent; none outlives the others.
struct Running {
    counting: JoinHandle<Result<Register, CountError>>,
    stop_counting: oneshot::Sender<()>,
    taking_part: JoinHandle<anyhow::Result<()>>,
    stop_taking_part: oneshot::Sender<()>,
}

impl Running {
    async fn run(mut self, stop: oneshot::Receiver<()>) -> anyhow::Result<()> {
        tokio::select! {
            // Sent, or the owner is gone.
            _ = stop => {
                drop((self.stop_counting, self.stop_taking_part));
                let (took_part, counted) = tokio::join!(self.taking_part, self.counting);
                counted.context("counting panicked")??;
                took_part.context("taking part panicked")?
            }
            counted = &mut self.counting => {
                drop(self.stop_taking_part);
                let took_part = self.taking_part.await;
                counted.context("counting panicked")?.context("counting pulses has ended")?;
                took_part.context("taking part panicked")??;
                anyhow::bail!("counting pulses has ended")
            }
            took_part = &mut self.taking_part => {
                drop(self.stop_counting);
                let counted = self.counting.await;
                took_part.context("taking part panicked")??;
                counted.context("counting panicked")??;
                anyhow::bail!("the protocol has ended")
            }
        }
    }
}
