//! Drives a state machine: inputs from the broker, the clock and the owner go in;
//! records go to the journal, messages to the broker, events to the owner.
//!
//! Everything that one call of [`StateMachine::handle`] persists is committed in one
//! transaction, and everything it publishes leaves after that. So a message never
//! leaves before an earlier `Persist` is durable. If the commit fails, the machine's
//! memory is ahead of the disk and nothing of that step is published; starting again
//! from the journal is the only safe way on. The driver does that by itself if it was told
//! how ([`Driver::with_reopen`]), else it ends with an error.
//!
//! The machine is called on tokio's blocking threads, since signatures and fsync
//! take long. The driver waits for nobody but the journal: messages that a slow
//! broker does not take are dropped and counted (the machine repeats them), and so
//! are events beyond [`EVENTS`] that a slow owner does not take. What must not get
//! lost belongs into the journal, not into an event.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use dcnet::output::{Input, Message, Output, StateMachine};
use dcnet::time::Now;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::connection::{Connection, MAX_PAYLOAD};
use crate::counters::{Counters, Totals, add, count};
use crate::journal::Journal;
use crate::network::{FromNetwork, LinkState, Network, ToNetwork};
use crate::service::Heartbeat;

/// Events that wait for the owner.
pub const EVENTS: usize = 1024;
/// Commands that wait for the machine.
pub const COMMANDS: usize = 64;
/// Most messages handed to the machine at once.
pub const BATCH: usize = 512;
/// For sending what is queued, and the farewell, when the driver is stopped.
const FAREWELL: Duration = Duration::from_secs(2);

/// After a journal could not be written or opened, the next try.
const REOPEN_AFTER: Duration = Duration::from_secs(2);

/// Opens a journal again, and makes the machine from what it holds.
pub type Reopen<M, J> = Box<dyn FnMut(Now) -> anyhow::Result<(M, J)> + Send>;

/// A state machine with its journal and connection, ready to run.
pub struct Driver<M, J> {
    machine: M,
    journal: J,
    connection: Connection,
    clock: Clock,
    reopen: Option<Reopen<M, J>>,
    counters: Arc<Counters>,
    heartbeat: Heartbeat,
}

/// The owner's end of a running driver. Keep `control`: the driver stops when it is
/// dropped, for instance by a task that takes only `commands` along.
#[derive(Debug)]
pub struct Handle<C, E> {
    /// Commands to the machine; wait when [`COMMANDS`] are queued.
    pub commands: mpsc::Sender<C>,
    /// Events of the machine; ends when the driver has ended.
    pub events: mpsc::Receiver<E>,
    /// Stops and watches the driver.
    pub control: Control,
}

impl<C, E> Handle<C, E> {
    /// As [`Control::stop`].
    ///
    /// # Errors
    /// As [`Control::join`].
    pub async fn stop(self) -> anyhow::Result<()> {
        self.control.stop().await
    }
}

/// Stops and watches a driver; the driver stops when this is dropped.
#[derive(Debug)]
pub struct Control {
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
    state: watch::Receiver<LinkState>,
    counters: Arc<Counters>,
    heartbeat: Heartbeat,
}

impl Control {
    /// Ends the driver after its present step, sends what is queued if the broker
    /// takes it within two seconds, says farewell to the broker, and closes the journal.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub async fn stop(self) -> anyhow::Result<()> {
        let Self { stop, task, .. } = self;
        let _ = stop.send(());
        task.await.context("the driver panicked")?
    }

    /// Waits for the driver to end by itself, which it does only with an error.
    ///
    /// # Errors
    /// A failed commit, or a panic of the machine.
    pub async fn join(self) -> anyhow::Result<()> {
        // `stop` must live until the task has ended.
        let Self {
            stop: _stop, task, ..
        } = self;
        task.await.context("the driver panicked")?
    }

    /// The counters at this moment.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// The counters themselves, for a metrics page.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Beats while the driver takes inputs and its steps end, at least every [`turn`](crate::service::turn).
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// The state of the link, and its changes.
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }
}

impl<M, J> Driver<M, J>
where
    M: StateMachine + Send + 'static,
    J: Journal<Record = M::Persist>,
{
    /// A driver for `machine`, which must have been made from what `journal` holds.
    pub fn new(machine: M, journal: J, connection: Connection) -> Self {
        Self {
            machine,
            journal,
            connection,
            clock: Clock::system(),
            reopen: None,
            counters: Arc::default(),
            heartbeat: Heartbeat::default(),
        }
    }

    /// What to do once the journal could not be written, a full disk being the usual
    /// reason: machine and journal are dropped, and every few seconds it is tried to get
    /// them anew. Inputs in between are lost, as they are while a process is down.
    pub fn with_reopen(mut self, reopen: Reopen<M, J>) -> Self {
        self.reopen = Some(reopen);
        self
    }

    /// Uses this clock instead of [`Clock::system`].
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Counts and beats there, for those who watch from before there is a driver.
    pub fn with_gauges(mut self, counters: Arc<Counters>, heartbeat: Heartbeat) -> Self {
        (self.counters, self.heartbeat) = (counters, heartbeat);
        self
    }

    /// Starts the driver as a task.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(self) -> Handle<M::Command, M::Event> {
        let (command_sender, commands) = mpsc::channel(COMMANDS);
        let (events, event_receiver) = mpsc::channel(EVENTS);
        let (stop, stopped) = oneshot::channel();
        let (state, state_receiver) = watch::channel(LinkState::Connecting);
        let state = Arc::new(state);
        let (counters, heartbeat) = (self.counters, self.heartbeat);
        let (to_driver, incoming) = mpsc::channel(BATCH);
        let (outgoing, to_network) = mpsc::channel(self.connection.max_queued_messages.max(1));
        let queued = Arc::new(AtomicUsize::new(0));
        let max_queued_bytes = self.connection.max_queued_bytes;
        let network = tokio::spawn(
            Network {
                connection: self.connection,
                subscriptions: self.machine.subscriptions(),
                to_driver,
                outgoing: to_network,
                queued: Arc::clone(&queued),
                counters: Arc::clone(&counters),
                state: Arc::clone(&state),
            }
            .run(),
        );
        let clock = Arc::new(self.clock);
        let running = Running {
            engine: Some(Engine {
                machine: self.machine,
                journal: self.journal,
                clock: Arc::clone(&clock),
                counters: Arc::clone(&counters),
            }),
            clock,
            outbox: Outbox {
                connection: None,
                sender: outgoing,
                queued,
                max_queued_bytes,
                counters: Arc::clone(&counters),
            },
            events,
            counters: Arc::clone(&counters),
            wake: None,
            reopen: self.reopen,
            retry: None,
            problem: String::new(),
            heartbeat: heartbeat.clone(),
        };
        let task = tokio::spawn(async move {
            let end = running.run(incoming, commands, stopped, network).await;
            state.send_replace(LinkState::Stopped {
                error: end.as_ref().err().map(|error| format!("{error:#}")),
            });
            end
        });
        Handle {
            commands: command_sender,
            events: event_receiver,
            control: Control {
                stop,
                task,
                state: state_receiver,
                counters,
                heartbeat,
            },
        }
    }
}

/// The machine and its journal; they only move together.
struct Engine<M, J> {
    machine: M,
    journal: J,
    clock: Arc<Clock>,
    counters: Arc<Counters>,
}

/// What one input led to, once its records are durable.
struct Step<E> {
    publish: Vec<Message>,
    events: Vec<E>,
    wake: Option<Duration>,
}

impl<M, J> Engine<M, J>
where
    M: StateMachine,
    J: Journal<Record = M::Persist>,
{
    fn step(&mut self, input: Input<M::Command>) -> anyhow::Result<Step<M::Event>> {
        self.machine.handle(input, self.clock.now());
        let mut records = Vec::new();
        let mut step = Step {
            publish: Vec::new(),
            events: Vec::new(),
            wake: None,
        };
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Persist(record) => records.push(record),
                Output::Publish(message) => step.publish.push(message),
                Output::Event(event) => step.events.push(event),
                Output::WakeAt(at) => step.wake = Some(at),
            }
        }
        if !records.is_empty() {
            self.journal.commit(&records)?;
            count(&self.counters.commits);
            add(&self.counters.records, records.len());
        }
        Ok(step)
    }
}

/// Hands messages to the connection that is up, without waiting.
struct Outbox {
    connection: Option<u64>,
    sender: mpsc::Sender<ToNetwork>,
    queued: Arc<AtomicUsize>,
    max_queued_bytes: usize,
    counters: Arc<Counters>,
}

impl Outbox {
    fn publish(&self, message: Message) {
        let length = message.payload.len();
        let Some(connection) = self.connection else {
            return count(&self.counters.dropped_offline);
        };
        if length > MAX_PAYLOAD {
            tracing::error!(topic = %message.topic, bytes = length, "dropped a message that is too long to publish");
            return count(&self.counters.dropped_too_long);
        }
        let before = self.queued.fetch_add(length, Ordering::Relaxed);
        let full = before.saturating_add(length) > self.max_queued_bytes;
        let message = ToNetwork {
            connection,
            message,
        };
        if full || self.sender.try_send(message).is_err() {
            self.queued.fetch_sub(length, Ordering::Relaxed);
            count(&self.counters.dropped_full);
        }
    }
}

struct Running<M: StateMachine, J> {
    /// Absent while a step runs, and while the journal cannot be opened.
    engine: Option<Engine<M, J>>,
    clock: Arc<Clock>,
    outbox: Outbox,
    events: mpsc::Sender<M::Event>,
    counters: Arc<Counters>,
    wake: Option<tokio::time::Instant>,
    reopen: Option<Reopen<M, J>>,
    /// When the journal is to be opened again.
    retry: Option<tokio::time::Instant>,
    /// Why it could not be opened, as it was told last.
    problem: String,
    heartbeat: Heartbeat,
}

impl<M, J> Running<M, J>
where
    M: StateMachine + Send + 'static,
    J: Journal<Record = M::Persist>,
{
    async fn run(
        mut self,
        incoming: mpsc::Receiver<FromNetwork>,
        commands: mpsc::Receiver<M::Command>,
        stop: oneshot::Receiver<()>,
        mut network: JoinHandle<()>,
    ) -> anyhow::Result<()> {
        match self.drive(incoming, commands, stop).await {
            Ok(()) => {
                // Closes `outgoing`, at which the network says farewell and ends.
                drop(self);
                if tokio::time::timeout(FAREWELL, &mut network).await.is_err() {
                    network.abort();
                }
                Ok(())
            }
            Err(error) => {
                network.abort();
                tracing::error!(error = format!("{error:#}"), "the driver ends");
                Err(error)
            }
        }
    }

    async fn drive(
        &mut self,
        mut incoming: mpsc::Receiver<FromNetwork>,
        mut commands: mpsc::Receiver<M::Command>,
        mut stop: oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut commanded = true;
        loop {
            self.heartbeat.beat();
            let wake = self.wake;
            tokio::select! {
                _ = &mut stop => return Ok(()),
                n = incoming.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        anyhow::bail!("the network task has ended unexpectedly");
                    }
                    self.deliver(batch.drain(..)).await?;
                }
                command = commands.recv(), if commanded => match command {
                    Some(command) => self.step(Input::Command(command)).await?,
                    None => commanded = false,
                },
                () = sleep_until(wake), if wake.is_some() => {
                    self.wake = None;
                    self.step(Input::Tick).await?;
                }
                () = sleep_until(self.retry), if self.retry.is_some() => self.reopen().await?,
                // Only so that a driver without anything to do turns too.
                () = tokio::time::sleep_until(self.heartbeat.due()) => {}
            }
        }
    }

    async fn deliver(&mut self, batch: impl Iterator<Item = FromNetwork>) -> anyhow::Result<()> {
        let mut messages = Vec::new();
        for item in batch {
            let input = match item {
                FromNetwork::Message(message) => {
                    messages.push(message);
                    continue;
                }
                FromNetwork::Up(number) => (Some(number), Input::Connected),
                FromNetwork::Down => (None, Input::Disconnected),
            };
            self.received(&mut messages).await?;
            self.outbox.connection = input.0;
            self.step(input.1).await?;
        }
        self.received(&mut messages).await
    }

    async fn received(
        &mut self,
        messages: &mut Vec<dcnet::output::Received>,
    ) -> anyhow::Result<()> {
        if messages.is_empty() {
            return Ok(());
        }
        self.step(Input::Received(std::mem::take(messages))).await
    }

    async fn step(&mut self, input: Input<M::Command>) -> anyhow::Result<()> {
        if self.retry.is_some() {
            count(&self.counters.dropped_no_journal);
            return Ok(());
        }
        let mut engine = self.engine.take().context("a step was abandoned")?;
        let stepping = tokio::task::spawn_blocking(move || {
            // Machine and journal are dropped with a step that failed.
            engine.step(input).map(|step| (engine, step))
        });
        let stepped = stepping
            .await
            .context("the state machine or the journal panicked")?;
        let step = match stepped {
            Ok((engine, step)) => {
                self.engine = Some(engine);
                step
            }
            Err(error) => return self.lost_journal(error),
        };
        for message in step.publish {
            self.outbox.publish(message);
        }
        for event in step.events {
            if self.events.try_send(event).is_err() {
                count(&self.counters.dropped_events);
            }
        }
        if let Some(at) = step.wake {
            self.wake = self.clock.instant(at).map(tokio::time::Instant::from_std);
        }
        Ok(())
    }
}

impl<M, J> Running<M, J>
where
    M: StateMachine + Send + 'static,
    J: Journal<Record = M::Persist>,
{
    /// A commit failed, or the journal cannot be opened again.
    fn lost_journal(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.reopen.is_none() {
            return Err(error.context(
                "the journal could not be written, so nothing more is published; \
                 mend the cause (disk full, disk failing?)",
            ));
        }
        count(&self.counters.journal_failures);
        // What follows the outermost message depends on where it failed this time.
        let problem = error.to_string();
        if problem != self.problem {
            tracing::error!(error = format!("{error:#}"), "waiting for the journal");
            self.problem = problem;
        }
        self.wake = None;
        self.retry = Some(tokio::time::Instant::now() + REOPEN_AFTER);
        Ok(())
    }

    /// Makes machine and journal anew; for the machine it is as after a restart.
    async fn reopen(&mut self) -> anyhow::Result<()> {
        let Some(mut reopen) = self.reopen.take() else {
            return Ok(());
        };
        let now = self.clock.now();
        let opening = tokio::task::spawn_blocking(move || {
            let opened = reopen(now);
            (reopen, opened)
        });
        let (reopen, opened) = opening.await.context("opening the journal panicked")?;
        self.reopen = Some(reopen);
        let (machine, journal) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.lost_journal(error),
        };
        tracing::info!("the journal is open again");
        self.retry = None;
        self.problem.clear();
        self.engine = Some(Engine {
            machine,
            journal,
            clock: Arc::clone(&self.clock),
            counters: Arc::clone(&self.counters),
        });
        match self.outbox.connection {
            Some(_) => self.step(Input::Connected).await,
            None => Ok(()),
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
