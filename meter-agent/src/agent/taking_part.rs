//! Taking part in the net, beside the counting: opens the meter's state and runs its link
//! once its enrolment can be used, begins another link when that was renewed, and ends the link
//! when the meter has left. Without a link everything else goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use dcnet::meter::{Floors, Meter, MeterCommand, MeterConfig, MeterEvent};
use dcnet::output::Store;
use dcnet::time::Now;
use link::back_off::BackOff;
use link::credentials::RevocationFile;
use link::service::{self, Heartbeat};
use link::{Clock, Connection, Driver, LinkState, MeterJournal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Counters;
use super::alarms::KeptAlarms;
use super::log::EventLog;
use super::net::NetView;
use crate::config::IdentityFiles;
use crate::identity::{self, Identity};
use crate::reach::{Enrolled, NoLink, Reach};
use crate::standing::{HasLeft, Standing, Watched};
use crate::status::Recorder;

/// What a link is made of.
#[derive(Clone, Debug)]
pub(super) struct Enrolment {
    pub(super) identity: IdentityFiles,
    pub(super) broker: (String, u16),
    pub(super) floors: Floors,
    pub(super) back_off: BackOff,
    pub(super) state_directory: PathBuf,
    pub(super) enrolled: watch::Sender<Option<Enrolled>>,
    pub(super) standing: watch::Sender<Standing>,
    /// Whether the state was opened once, and the meter had not left.
    pub(super) is_staying: bool,
}

/// A meter with all that its link needs.
struct Opened {
    meter: Watched,
    certificates: Certificates,
    journal: MeterJournal,
    config: MeterConfig,
    connection: Connection,
    revocations: RevocationFile,
}

impl Enrolment {
    /// A meter that has left needs no valid certificate for that to be known.
    fn open(&mut self, now: Now) -> Result<Opened, NoLink> {
        let enrolment = |error: anyhow::Error| NoLink::Enrolment(format!("{error:#}"));
        let identity = Identity::read(&self.identity).map_err(enrolment)?;
        let enrolled = Enrolled {
            meter: identity.key.id(),
            net: identity.checkpoint.net,
            end: identity.first_end().1,
        };
        self.enrolled.send_replace(Some(enrolled));
        let validity = identity.valid_at(now.utc).map_err(|error| {
            let error = format!("{error:#}");
            match now.synchronised {
                true => NoLink::Enrolment(error),
                false => NoLink::Clock(error),
            }
        });
        if self.is_staying {
            validity.clone()?;
        }
        let (host, port) = &self.broker;
        let mut connection =
            identity::connection(&self.identity, (host, *port)).map_err(enrolment)?;
        connection.back_off = self.back_off;
        if connection.client_id != enrolled.meter.to_string() {
            return Err(enrolment(anyhow!("the key was exchanged just now")));
        }
        let mut revocations = identity.revocations.clone();
        let Identity {
            certificate,
            provider,
            administrator,
            ..
        } = &identity;
        let certificates = [certificate, provider, administrator].map(|one| one.der().to_vec());
        let config = identity.into_meter_config(self.floors);
        let state = |error: anyhow::Error| NoLink::State(format!("{error:#}"));
        let (meter, journal) =
            open_meter(&self.state_directory, config.clone(), now).map_err(state)?;
        let meter = Watched::told_to(meter, self.standing.clone());
        if self.standing.borrow().exit.is_some_and(|exit| exit.done) {
            return Err(HasLeft(enrolled.net).into());
        }
        self.is_staying = true;
        validity?;
        if let Some(list) = meter.meter().revocations() {
            revocations.in_force(list);
        }
        Ok(Opened {
            meter,
            certificates,
            journal,
            config,
            connection,
            revocations,
        })
    }
}

/// What a link proves itself and others with, as [`identity::certificates`] gives it.
type Certificates = [Vec<u8>; 3];

/// The way to the meter, while it has a link.
#[derive(Clone, Debug)]
pub(super) struct MeterLine(pub(super) watch::Receiver<Option<mpsc::Sender<MeterCommand>>>);

impl MeterLine {
    pub(super) fn is_open(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Whether the meter was told.
    pub(super) async fn tell(&self, command: MeterCommand) -> bool {
        let commands = self.0.borrow().clone();
        match commands {
            Some(commands) => commands.send(command).await.is_ok(),
            None => false,
        }
    }
}

/// Takes part for an agent.
pub(super) struct TakingPart {
    pub(super) enrolment: Enrolment,
    pub(super) clock: Clock,
    /// How often an enrolment that cannot be used is looked at again.
    pub(super) look_again: Duration,
    pub(super) revocations_every: Duration,
    /// Has the enrolment, or the list of revoked devices, looked at now.
    pub(super) look: Arc<Notify>,
    pub(super) reach: watch::Sender<Reach>,
    pub(super) commands: watch::Sender<Option<mpsc::Sender<MeterCommand>>>,
    pub(super) link_counters: Arc<link::Counters>,
    pub(super) heartbeat: Heartbeat,
    pub(super) net: Arc<NetView>,
    pub(super) telling: Telling,
    /// Told when it is known for the first time whether there is a link.
    pub(super) known: Option<oneshot::Sender<()>>,
}

/// How a link ended.
enum End {
    Stopped,
    Left,
    /// The enrolment has other certificates now; whether it was looked at because that was
    /// asked for.
    Renewed(bool),
    Failed,
}

impl TakingPart {
    /// Takes part whenever it can, until it is stopped.
    ///
    /// # Errors
    /// The link has ended, which it does only with an error.
    pub(super) async fn run(mut self, mut stop: oneshot::Receiver<()>) -> anyhow::Result<()> {
        let end = self.until_stopped(&mut stop).await;
        self.telling.kept.finish().await;
        end
    }

    async fn until_stopped(&mut self, stop: &mut oneshot::Receiver<()>) -> anyhow::Result<()> {
        let mut is_asked = false;
        loop {
            let opened = self.open().await;
            if std::mem::take(&mut is_asked) {
                service::reloaded();
            }
            let why = match opened {
                Ok(opened) => {
                    let net = opened.config.checkpoint.net;
                    match self.link(opened, stop).await? {
                        End::Stopped => return Ok(()),
                        End::Left => HasLeft(net).into(),
                        End::Renewed(was_asked) => {
                            is_asked = was_asked;
                            continue;
                        }
                        End::Failed => bail!("the protocol has ended"),
                    }
                }
                Err(why) => why,
            };
            self.without_link(&why);
            match self.wait(&why, stop).await {
                Some(asked) => is_asked = asked,
                None => return Ok(()),
            }
        }
    }

    /// On a thread that may block.
    async fn open(&mut self) -> Result<Opened, NoLink> {
        let (mut enrolment, now) = (self.enrolment.clone(), self.clock.now());
        let mut opening = tokio::task::spawn_blocking(move || {
            let opened = enrolment.open(now);
            (enrolment, opened)
        });
        let opened = loop {
            self.heartbeat.beat();
            tokio::select! {
                opened = &mut opening => break opened,
                () = tokio::time::sleep_until(self.heartbeat.due()) => {}
            }
        };
        let opened = match opened {
            Ok((enrolment, opened)) => {
                self.enrolment = enrolment;
                opened
            }
            Err(error) => Err(NoLink::State(format!("opening it panicked: {error}"))),
        };
        if let Some(Enrolled { meter, net, .. }) = *self.enrolment.enrolled.borrow() {
            let span = tracing::Span::current();
            span.record("id", tracing::field::display(meter));
            if opened.is_ok() {
                let (host, port) = &self.enrolment.broker;
                tracing::info!(%net, broker = %format_args!("{host}:{port}"), "the link starts");
            }
        }
        opened
    }

    fn is_known(&mut self) {
        if let Some(known) = self.known.take() {
            // An owner that does not wait any more does not want to know.
            let _ = known.send(());
        }
    }

    /// Says why there is none, once.
    fn without_link(&mut self, why: &NoLink) {
        let is_new = self.reach.send_if_modified(|reach| {
            let before = std::mem::replace(reach, Reach::None(why.clone()));
            before != *reach
        });
        match why {
            _ if !is_new => {}
            NoLink::Left(_) => tracing::warn!("{why}"),
            _ => tracing::error!("{why}; this meter counts, and submits nothing"),
        }
        self.is_known();
    }

    /// Waits until there may be a link: whether that was asked for, or `None` if it is to stop.
    async fn wait(&mut self, why: &NoLink, stop: &mut oneshot::Receiver<()>) -> Option<bool> {
        let again = Instant::now() + self.look_again;
        let was_synchronised = self.clock.now().synchronised;
        loop {
            self.heartbeat.beat();
            tokio::select! {
                _ = &mut *stop => return None,
                () = self.look.notified() => match why {
                    NoLink::Left(_) => service::reloaded(),
                    _ => return Some(true),
                },
                () = self.telling.kept.due() => self.telling.kept.write().await,
                () = tokio::time::sleep_until(again.min(self.heartbeat.due())) => {}
            }
            let is_known_now = !was_synchronised && self.clock.now().synchronised;
            if !matches!(why, NoLink::Left(_)) && (is_known_now || Instant::now() >= again) {
                return Some(false);
            }
        }
    }

    /// Runs the link until it ends.
    async fn link(
        &mut self,
        opened: Opened,
        stop: &mut oneshot::Receiver<()>,
    ) -> anyhow::Result<End> {
        let Opened {
            meter,
            certificates,
            journal,
            config,
            connection,
            revocations,
        } = opened;
        if let Some(membership) = meter.meter().membership() {
            let genesis = membership.genesis();
            self.telling.log.open(&genesis.policy);
            self.telling
                .recorder
                .open(&genesis.policy, &genesis.channels);
            self.net.open(genesis.policy.period, &genesis.channels);
        }
        let (teller, directory) = (meter.teller(), self.enrolment.state_directory.clone());
        let driver = Driver::new(meter, journal, connection)
            .with_clock(self.clock.clone())
            .with_gauges(Arc::clone(&self.link_counters), self.heartbeat.clone())
            .with_reopen(Box::new(move |now| {
                let (meter, journal) = open_meter(&directory, config.clone(), now)?;
                Ok((Watched::told_to(meter, teller.clone()), journal))
            }));
        let link::Handle {
            commands,
            mut events,
            control,
        } = driver.start();
        let look = Arc::new(Notify::new());
        let telling_revocations = tell_revocations(
            revocations,
            self.revocations_every,
            Arc::clone(&look),
            commands.clone(),
            Arc::clone(&self.telling.counters),
        );
        tokio::spawn(tracing::Instrument::in_current_span(telling_revocations));
        self.commands.send_replace(Some(commands));
        let mut state = control.state();
        self.show(&mut state);
        self.is_known();
        let mut renewal = service::turn_in(self.look_again);
        let end = loop {
            tokio::select! {
                _ = &mut *stop => break End::Stopped,
                () = self.look.notified() => match self.is_renewed(&certificates).await {
                    Ok(true) => break End::Renewed(true),
                    Ok(false) => look.notify_one(),
                    Err(error) => {
                        tracing::warn!("the link goes on with the enrolment as it was: {error:#}");
                        look.notify_one();
                    }
                },
                // With one that has ended there is no other connection, so nobody need ask.
                () = tokio::time::sleep_until(renewal) => {
                    renewal = service::turn_in(self.look_again);
                    if self.has_ended()
                        && let Ok(true) = self.is_renewed(&certificates).await
                    {
                        break End::Renewed(false);
                    }
                }
                event = events.recv() => match event {
                    Some(event) => {
                        let has_left = matches!(event, MeterEvent::ExitDone { .. });
                        self.telling.tell(event, &self.net, &self.clock);
                        if has_left {
                            break End::Left;
                        }
                    }
                    None => break End::Failed,
                },
                () = self.telling.kept.due() => self.telling.kept.write().await,
                Ok(()) = state.changed() => self.show(&mut state),
            }
        };
        self.commands.send_replace(None);
        let ended = match end {
            End::Failed => control.join().await,
            End::Stopped | End::Left | End::Renewed(_) => control.stop().await,
        };
        // So that the owner has every event, whichever way it came to an end.
        while let Some(event) = events.recv().await {
            self.telling.tell(event, &self.net, &self.clock);
        }
        self.show(&mut state);
        ended.map(|()| end)
    }

    /// Whether one of the certificates is not valid any more.
    fn has_ended(&self) -> bool {
        let (now, enrolled) = (self.clock.now(), *self.enrolment.enrolled.borrow());
        now.synchronised && enrolled.is_some_and(|enrolled| now.utc > enrolled.end)
    }

    /// Whether the enrolment has other certificates than these.
    ///
    /// # Errors
    /// They cannot be used, or not before the next start.
    async fn is_renewed(&self, certificates: &Certificates) -> anyhow::Result<bool> {
        let (files, now) = (self.enrolment.identity.clone(), self.clock.now());
        let own = *self.enrolment.enrolled.borrow();
        let before = certificates.clone();
        let looking = tokio::task::spawn_blocking(move || {
            if identity::certificates(&files)? == before {
                return Ok(false);
            }
            let identity = Identity::read(&files)?;
            if now.synchronised {
                identity.valid_at(now.utc)?;
            }
            ensure!(
                own.is_some_and(|own| own.meter == identity.key.id()),
                "there is another key; the next start takes it up"
            );
            Ok(true)
        });
        looking.await?
    }

    fn show(&self, state: &mut watch::Receiver<LinkState>) {
        let state = state.borrow_and_update().clone();
        self.reach.send_replace(Reach::Link(state));
    }
}

/// Opens the journal in a state directory, and the meter that it holds.
pub(crate) fn open_meter(
    directory: &Path,
    config: MeterConfig,
    now: Now,
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
            () = tokio::time::sleep_until(service::turn_in(every)) => false,
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

/// Events of the meter to the log, the register and the owner.
pub(super) struct Telling {
    pub(super) log: EventLog,
    pub(super) recorder: Arc<Recorder>,
    pub(super) kept: KeptAlarms,
    pub(super) owner: mpsc::Sender<MeterEvent>,
    pub(super) counters: Arc<Counters>,
}

impl Telling {
    fn tell(&mut self, event: MeterEvent, net: &NetView, clock: &Clock) {
        self.log.write(&event);
        self.recorder.event(&event, clock.now().utc);
        match &event {
            MeterEvent::NetOpened { policy, channels } => net.open(policy.period, channels),
            MeterEvent::Refused { .. } => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
            MeterEvent::Alarm(_) => {
                self.kept.changed();
                self.counters.alarms.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        if let Err(mpsc::error::TrySendError::Full(_)) = self.owner.try_send(event) {
            self.counters.dropped_events.fetch_add(1, Ordering::Relaxed);
        }
    }
}
