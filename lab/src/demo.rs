//! The demonstration from start to stop.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use broker::Traffic;
use dcnet::identity::DeviceId;
use dcnet::provider::ProviderEvent;
use dcnet::time::{Round, Timestamp};
use meter_agent::clock::utc_timestamp;
use meter_agent::pulse::simulated::Pace;
use provider_agent::NetEvent;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::board::{Board, Outcome, Setting};
use crate::cli::{Energy, Plan};
use crate::fleet::{Fleet, Parts, Rounds, Usage, state_directory};
use crate::policy;
use crate::report::Report;
use crate::system::{HOST, System, meter_identity};
use crate::terminal;
use crate::thesis::{self, Thesis};
use crate::traffic;
use crate::truth::Truth;

/// What a round stands for in a simulated household: a quarter of an hour.
const SIMULATED_SECONDS: u32 = 900;
/// Simulated life begins at six in the morning.
const SIMULATED_START: Duration = Duration::from_secs(6 * 3600);
/// For all meters to take part, apart from rounds and meters.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The first measured round begins at least so much later than it is chosen.
const LEAD: Duration = Duration::from_millis(300);
/// How often it is looked whether a round is to be given up.
const LOOK: Duration = Duration::from_millis(100);
/// Longest time for the traffic of the last round to end.
const SETTLE: Duration = Duration::from_secs(1);

/// How a run went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What was wrong; empty if everything was right.
    pub faults: Vec<String>,
}

/// Where a run writes to.
struct Outlets<W> {
    out: W,
    report: Option<Report>,
    thesis: Option<Thesis>,
}

impl<W: Write> Outlets<W> {
    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        writeln!(self.out, "{text}")
            .and_then(|()| self.out.flush())
            .context("cannot write to the terminal")
    }

    fn outcome(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        self.say(&terminal::round(outcome))?;
        if let Some(report) = &mut self.report {
            report.add(&outcome.line)?;
        }
        let comment = match &mut self.thesis {
            Some(thesis) => thesis.round(outcome)?,
            None => None,
        };
        comment.map_or(Ok(()), |comment| self.say(&comment))
    }
}

/// Files that a run writes to, made before anything is started.
#[derive(Debug)]
pub struct Files {
    report: Option<Report>,
    thesis: Option<Thesis>,
}

impl Files {
    /// Makes the files that the plan names.
    ///
    /// # Errors
    /// One that cannot be written.
    pub fn create(plan: &Plan) -> anyhow::Result<Self> {
        let report = plan.report.as_deref().map(Report::create).transpose()?;
        let script = plan.script.as_ref();
        let thesis = script.map(|s| Thesis::create(&s.sums)).transpose()?;
        Ok(Self { report, thesis })
    }
}

/// Plays a plan until its end or until `interrupt`, then stops everything.
///
/// # Errors
/// Whatever cannot be started, or breaks.
pub async fn run(
    plan: &Plan,
    files: Files,
    out: impl Write,
    interrupt: impl Future<Output = ()>,
) -> anyhow::Result<Verdict> {
    let Files { report, thesis } = files;
    let mut outlets = Outlets {
        out,
        report,
        thesis,
    };
    let mut interrupt = std::pin::pin!(interrupt);
    let mut system = tokio::select! {
        started = System::start(plan) => started?,
        () = &mut interrupt => bail!("interrupted before the start"),
    };
    if outlets.thesis.is_some() {
        outlets.say(&thesis::introduction())?;
    }
    outlets.say(&terminal::introduction(plan, &system))?;
    let (begin, begins) = watch::channel(None);
    let truth = Truth::of(&plan.energy, plan.meters)?;
    let mut fleet = Fleet::new(parts(plan, &system, &truth, &begins)?);
    let started = tokio::select! {
        started = fleet.start() => started.map(|()| true),
        () = &mut interrupt => Ok(false),
    };
    let board = board(plan, &system, truth);
    let mut run = Run::new(plan, &mut system, fleet, board, begin);
    let end = match started {
        Ok(true) => tokio::select! {
            end = run.rounds(&mut outlets) => end,
            () = &mut interrupt => Ok(()),
        },
        started => started.map(|_| ()),
    };
    let end = match end {
        Ok(()) => run.verdict(&mut outlets).await,
        Err(error) => Err(error),
    };
    let fleet_stopped = run.fleet.stop().await;
    let stopped = system.stop().await;
    let verdict = end?;
    fleet_stopped.and(stopped)?;
    Ok(verdict)
}

fn board(plan: &Plan, system: &System, truth: Truth) -> Board {
    let start_row = match &plan.energy {
        Energy::Loads { start_row, .. } => u64::try_from(*start_row).ok(),
        Energy::Simulated => None,
    };
    Board::new(Setting {
        net: system.net,
        provider: system.provider_key,
        period: plan.period,
        meters: system.meters.clone(),
        truth,
        start_row,
        absences: plan.absences.clone(),
    })
}

fn parts(
    plan: &Plan,
    system: &System,
    truth: &Truth,
    begin: &watch::Receiver<Option<Timestamp>>,
) -> anyhow::Result<Vec<Parts>> {
    let root = system.directory.path();
    let now = utc_timestamp();
    let pace = Pace {
        real: now,
        simulated: now.day().start().plus(SIMULATED_START),
        speed: (SIMULATED_SECONDS / plan.period.as_secs()).max(1),
    };
    let part = |id: &DeviceId, number: u32| {
        let usage = match (&plan.energy, truth) {
            (Energy::Loads { loads, start_row }, _) => Usage::Replay {
                energies: loads.energies(usize::try_from(number)?, *start_row)?,
                begin: begin.clone(),
            },
            (Energy::Simulated, Truth::Emitted(ledger)) => Usage::Simulated {
                seed: u64::from(number),
                pace,
                ledger: ledger.clone(),
            },
            (Energy::Simulated, Truth::Loads(_)) => bail!("a truth of another plan"),
        };
        Ok(Parts {
            number,
            id: *id,
            identity: meter_identity(root, number),
            state: state_directory(root, number),
            broker: (HOST.to_owned(), system.port),
            floors: policy::floors(plan.meters, plan.period).into(),
            period: plan.period,
            usage,
        })
    };
    let by_number: BTreeMap<u32, &DeviceId> =
        system.meters.iter().map(|(id, n)| (*n, id)).collect();
    by_number.into_iter().map(|(n, id)| part(id, n)).collect()
}

/// How far the meters are before the first measured round.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    joined: usize,
    drawn: usize,
    entered: usize,
}

/// The rounds of a run.
struct Run<'a> {
    plan: &'a Plan,
    system: &'a mut System,
    fleet: Fleet,
    board: Board,
    begin: watch::Sender<Option<Timestamp>>,
    first: Option<Round>,
    newest: watch::Sender<Option<Round>>,
    progress: Progress,
    before: Option<Traffic>,
    given: u64,
    faults: Vec<String>,
}

impl<'a> Run<'a> {
    fn new(
        plan: &'a Plan,
        system: &'a mut System,
        fleet: Fleet,
        board: Board,
        begin: watch::Sender<Option<Timestamp>>,
    ) -> Self {
        Self {
            plan,
            system,
            fleet,
            board,
            begin,
            first: None,
            newest: watch::Sender::new(None),
            progress: Progress::default(),
            before: None,
            given: 0,
            faults: Vec::new(),
        }
    }

    /// Until the last round is given out; for ever if there is no last one.
    async fn rounds(&mut self, outlets: &mut Outlets<impl Write>) -> anyhow::Result<()> {
        let patience = START_PATIENCE
            + self.plan.period.duration() * 4
            + Duration::from_millis(500) * self.plan.meters;
        let give_up = utc_timestamp().plus(patience);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.plan.rounds.is_none_or(|rounds| self.given < rounds) {
            tokio::select! {
                event = self.system.provider.events.recv() => {
                    self.on_event(event.context("the provider has ended")?);
                }
                seen = self.system.observer.seen.recv() => {
                    let seen = seen.context("the third party's subscription has ended")?;
                    if let Some(round) = self.board.on_seen(&seen) {
                        self.published(round, outlets)?;
                    }
                }
                error = self.fleet.failed() => return Err(error),
                _ = look.tick() => {}
            }
            let now = utc_timestamp();
            if self.first.is_none() && now > give_up {
                let Progress {
                    joined,
                    drawn,
                    entered,
                } = self.progress;
                bail!(
                    "after {patience:?} there was no round with all {} meters: {joined} joined, \
                     {drawn} drew their neighbours, {entered} entered; is this machine too slow for \
                     rounds of {}? Try a longer --period or fewer --meters",
                    self.plan.meters,
                    terminal::length(self.plan.period)
                );
            }
            self.count_traffic(now);
            for outcome in self.board.take(now) {
                if self.plan.rounds.is_none_or(|rounds| self.given < rounds) {
                    self.given += 1;
                    self.note(&outcome);
                    outlets.outcome(&outcome)?;
                }
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: NetEvent) {
        let NetEvent { event, .. } = event;
        match &event {
            ProviderEvent::Joined { members, .. } => self.progress.joined = *members,
            ProviderEvent::Drawn { .. } => self.progress.drawn += 1,
            ProviderEvent::Entered { .. } => self.progress.entered += 1,
            ProviderEvent::Alarm(alarm) => tracing::warn!(%alarm, "the provider"),
            ProviderEvent::Refused { topic, reason } => {
                tracing::debug!(%topic, %reason, "the provider refused a message");
            }
            _ => {}
        }
        self.board.on_event(&event);
    }

    fn published(&mut self, round: Round, outlets: &mut Outlets<impl Write>) -> anyhow::Result<()> {
        self.newest.send_if_modified(|newest| {
            newest.replace(round.max(newest.unwrap_or(round))) != *newest
        });
        if self.first.is_none() && self.board.is_full(round) {
            self.measure(outlets)?;
        }
        Ok(())
    }

    /// All meters take part: the next round is the first measured one.
    fn measure(&mut self, outlets: &mut Outlets<impl Write>) -> anyhow::Result<()> {
        let period = self.plan.period;
        let first = period.round_at(utc_timestamp().plus(LEAD)).next();
        self.first = Some(first);
        self.board.begin(first);
        self.begin.send_replace(Some(first.start(period)));
        for (meter, gaps) in self.plan.absences.gaps() {
            let rounds = Rounds {
                period,
                first,
                newest: self.newest.subscribe(),
            };
            self.fleet.keep_gaps(meter, gaps, rounds);
        }
        outlets.say(&format!(
            "All {} meters have entered. Measured from {} UTC on.\n\n{}",
            self.plan.meters,
            terminal::clock(first.start(period)),
            terminal::heading()
        ))
    }

    /// What is sent for a round is sent after its end.
    fn count_traffic(&mut self, now: Timestamp) {
        let due = self
            .first
            .is_some_and(|first| now >= first.end(self.plan.period));
        if due && self.before.is_none() {
            self.before = Some(traffic::of_meters(&self.system.counters()));
        }
    }

    fn note(&mut self, outcome: &Outcome) {
        let faults = outcome.faults.iter();
        self.faults
            .extend(faults.map(|fault| format!("round {}: {fault}", outcome.index)));
    }

    /// The traffic once the last aggregate has reached the meters.
    async fn settled_traffic(&self) -> Traffic {
        let deadline = utc_timestamp().plus(SETTLE);
        let mut traffic = traffic::of_meters(&self.system.counters());
        while utc_timestamp() < deadline {
            tokio::time::sleep(LOOK).await;
            let now = traffic::of_meters(&self.system.counters());
            if now == traffic {
                break;
            }
            traffic = now;
        }
        traffic
    }

    async fn verdict(&mut self, outlets: &mut Outlets<impl Write>) -> anyhow::Result<Verdict> {
        let mut faults = std::mem::take(&mut self.faults);
        if let Some(rounds) = self.plan.rounds {
            if self.given < rounds {
                faults.push(format!(
                    "interrupted after {} of {rounds} rounds",
                    self.given
                ));
            }
            let after = self.settled_traffic().await;
            let average = self
                .before
                .and_then(|before| traffic::average(before, after, self.plan.meters, self.given));
            if let Some(average) = average {
                outlets.say(&format!("\n{}", terminal::traffic(&average)))?;
            }
        }
        if let Some(thesis) = &outlets.thesis {
            faults.extend(thesis.faults());
            let path = thesis.path().display().to_string();
            outlets.say(&format!("The sums are in {path}."))?;
        }
        Ok(Verdict { faults })
    }
}
