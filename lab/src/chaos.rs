//! The system as real processes, under faults: broker, provider and meters are killed, stopped,
//! and put on full disks, at random; a third party compares every published sum with what the
//! included households used. When everything is well again, nothing may stay stuck.
//!
//! The processes never outlive this one. The mounted disks do if it is killed with SIGKILL; then
//! they are below the directory that the first line of output names.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use dcnet::time::{Period, Round};
use meter_agent::clock::utc_timestamp;

use crate::cli::parse_period;
use crate::demo::Verdict;
use crate::observer::Observer;
use crate::system::{HOST, provider_state, third_party};
use crate::terminal;

mod disk;
pub mod fault;
pub mod process;
pub mod rounds;
pub mod setting;

use fault::{Fault, Faults, Kind, Station};
use process::Process;
use rounds::{Rounds, Tally};
use setting::Setting;

/// For the first complete round.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// For everything to be well again after the last fault.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(120);
/// Complete rounds at the end, one after the other.
const QUIET_ROUNDS: u64 = 5;
/// How often it is looked after everything.
const LOOK: Duration = Duration::from_millis(50);
/// A process that has ended is started again so much later, as systemd would.
const RESTART: Duration = Duration::from_millis(500);
/// What failed for want of room may end the process so much later.
const AFTERMATH: Duration = Duration::from_secs(15);
/// For a process to end when it is told to.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// Options of `chaos`.
#[derive(Debug, Args)]
pub struct ChaosArguments {
    /// How long faults happen, in minutes, such as 10 or 0.5; some quiet rounds follow
    #[arg(long, value_name = "M", value_parser = parse_minutes)]
    pub minutes: Duration,
    /// How many meters take part
    #[arg(long, value_name = "N", default_value_t = 6,
          value_parser = clap::value_parser!(u32).range(5..=50))]
    pub meters: u32,
    /// Where faults and consumption come from
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Length of a round, such as 2s; it must divide a day
    #[arg(long, default_value = "2s", value_parser = parse_period)]
    pub period: Period,
}

pub(crate) fn parse_minutes(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|minutes| *minutes > 0.0 && *minutes <= 10_080.0)
        .map(|minutes| Duration::from_secs_f64(minutes * 60.0))
        .ok_or_else(|| "expected a number of minutes above 0 and up to 10080".to_owned())
}

/// Where a process stands.
#[derive(Clone, Copy, Debug)]
enum Condition {
    /// Well, perhaps since a full disk was emptied at the second moment.
    Well(Option<Instant>),
    /// Under a fault until a moment.
    Troubled(Kind, Instant),
}

/// A run.
struct Chaos<W> {
    out: W,
    started: Instant,
    period: Period,
    setting: Setting,
    state: PathBuf,
    observer: Observer,
    rounds: Rounds,
    conditions: BTreeMap<Station, Condition>,
    /// When those that ended are started again.
    restarts: BTreeMap<Station, Instant>,
    injected: BTreeMap<(Kind, &'static str), u64>,
    /// Ends of a process whose disk was full.
    ends: u64,
    stuck: BTreeSet<String>,
}

/// Plays it until its end or until `interrupt`, and prints the table.
///
/// Only for the main thread: its end would be the end of the processes.
///
/// # Errors
/// Whatever cannot be started, or breaks that is not to break.
pub async fn run(
    arguments: &ChaosArguments,
    out: impl Write,
    interrupt: impl Future<Output = ()>,
) -> anyhow::Result<Verdict> {
    let mut interrupt = std::pin::pin!(interrupt);
    let mut chaos = tokio::select! {
        chaos = Chaos::start(arguments, out) => chaos?,
        () = &mut interrupt => anyhow::bail!("interrupted before the start"),
    };
    let end = tokio::select! {
        end = chaos.play(arguments) => end,
        // Processes, disks and files go with the run.
        () = &mut interrupt => anyhow::bail!("interrupted"),
    };
    let verdict = end.and_then(|tally| chaos.verdict(&tally));
    let well = verdict.as_ref().is_ok_and(|v| v.faults.is_empty());
    if !well {
        chaos.keep_logs();
    }
    verdict
}

impl<W: Write> Chaos<W> {
    async fn start(arguments: &ChaosArguments, out: W) -> anyhow::Result<Self> {
        let mut setting = Setting::make(arguments.meters, arguments.period, arguments.seed)?;
        let root = setting.directory.path().to_owned();
        for process in setting.processes.values_mut() {
            process.start()?;
        }
        let observer =
            Observer::start(HOST, setting.port, &third_party(&root), setting.net).await?;
        let rounds = Rounds::new(
            (setting.net, setting.provider_key),
            arguments.period,
            setting.meters.clone(),
            setting.consumption.clone(),
        );
        let conditions = setting
            .processes
            .keys()
            .map(|station| (*station, Condition::Well(None)));
        Ok(Self {
            out,
            started: Instant::now(),
            period: arguments.period,
            state: provider_state(&root),
            observer,
            rounds,
            conditions: conditions.collect(),
            restarts: BTreeMap::new(),
            injected: BTreeMap::new(),
            ends: 0,
            stuck: BTreeSet::new(),
            setting,
        })
    }

    async fn play(&mut self, arguments: &ChaosArguments) -> anyhow::Result<Tally> {
        self.introduce(arguments)?;
        if !self.until_complete(1, START_PATIENCE).await? {
            self.stick("there was no round with all meters before the first fault".to_owned())?;
            return self.finish().await;
        }
        let disks = !self.setting.disks.is_empty();
        let mut faults = Faults::new(arguments.seed, arguments.meters, disks);
        let end = Instant::now() + arguments.minutes;
        let mut next = Instant::now();
        while Instant::now() < end {
            if Instant::now() >= next {
                self.inject(faults.fault())?;
                next = Instant::now() + faults.pause();
            }
            self.step().await?;
        }
        self.heal()?;
        self.say("quiet   no more faults")?;
        if !self.until_complete(QUIET_ROUNDS, RECOVERY_PATIENCE).await? {
            let reached = self
                .rounds
                .newest()
                .map(|round| terminal::clock(round.start(self.period)));
            self.stick(format!(
                "no {QUIET_ROUNDS} complete rounds within {} s after the last fault; the newest \
                 sum is of {}",
                RECOVERY_PATIENCE.as_secs(),
                reached.unwrap_or_else(|| "no round".to_owned())
            ))?;
        }
        self.finish().await
    }

    fn introduce(&mut self, arguments: &ChaosArguments) -> anyhow::Result<()> {
        let directory = self.setting.directory.path().display().to_string();
        self.say(&format!(
            "{} meters, broker and provider as processes; rounds of {}; seed {}; in {directory}",
            arguments.meters,
            terminal::length(self.period),
            arguments.seed
        ))?;
        if self.setting.disks.is_empty() {
            self.say("SKIPPED full disks: this process may not mount file systems (needs root)")?;
        }
        Ok(())
    }

    /// Everything that is to be looked after, once.
    async fn step(&mut self) -> anyhow::Result<()> {
        tokio::select! {
            seen = self.observer.seen.recv() => {
                let seen = seen.context("the third party's subscription has ended")?;
                self.rounds.on_seen(&seen);
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let stations: Vec<Station> = self.setting.processes.keys().copied().collect();
        for station in stations {
            self.look_after(station)?;
        }
        self.look_at_rounds()
    }

    fn process(&mut self, station: Station) -> anyhow::Result<&mut Process> {
        self.setting
            .processes
            .get_mut(&station)
            .context("there is no such process")
    }

    fn inject(&mut self, fault: Fault) -> anyhow::Result<()> {
        let Fault {
            station,
            kind,
            lasts,
        } = fault;
        // One at a time for each; one that has just ended is on its way back.
        let free = matches!(self.conditions.get(&station), Some(Condition::Well(_)))
            && !self.restarts.contains_key(&station);
        if !free {
            return Ok(());
        }
        match kind {
            Kind::Kill => self.process(station)?.kill()?,
            Kind::Stop => self.process(station)?.pause()?,
            Kind::FullDisk => match self.setting.disks.get(&station) {
                Some(disk) => disk.fill(),
                None => return Ok(()),
            },
        }
        let until = Instant::now() + lasts;
        self.conditions
            .insert(station, Condition::Troubled(kind, until));
        let whom = match station {
            Station::Broker => "broker",
            Station::Provider => "provider",
            Station::Meter(_) => "meters",
        };
        *self.injected.entry((kind, whom)).or_default() += 1;
        self.say(&format!(
            "fault   {station}: {}, for {:.1} s",
            kind.name(),
            lasts.as_secs_f64()
        ))
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        let troubled: Vec<(Station, Kind)> = self
            .conditions
            .iter()
            .filter_map(|(station, condition)| match condition {
                Condition::Troubled(kind, _) => Some((*station, *kind)),
                Condition::Well(_) => None,
            })
            .collect();
        troubled
            .into_iter()
            .try_for_each(|(station, kind)| self.mend(station, kind))
    }

    fn mend(&mut self, station: Station, kind: Kind) -> anyhow::Result<()> {
        let mut emptied = None;
        match kind {
            Kind::Kill => self.process(station)?.start()?,
            Kind::Stop => self.process(station)?.resume()?,
            Kind::FullDisk => {
                if let Some(disk) = self.setting.disks.get(&station) {
                    disk.empty()?;
                }
                emptied = Some(Instant::now());
            }
        }
        self.conditions.insert(station, Condition::Well(emptied));
        Ok(())
    }

    fn look_after(&mut self, station: Station) -> anyhow::Result<()> {
        let now = Instant::now();
        let condition = self.conditions.get(&station).copied();
        let excused = match condition {
            Some(Condition::Troubled(kind, until)) if now >= until => {
                self.mend(station, kind)?;
                kind == Kind::FullDisk
            }
            Some(Condition::Troubled(Kind::FullDisk, _)) => {
                if let Some(disk) = self.setting.disks.get(&station) {
                    disk.fill();
                }
                true
            }
            Some(Condition::Troubled(..)) | None => return Ok(()),
            Some(Condition::Well(emptied)) => {
                emptied.is_some_and(|emptied| now < emptied + AFTERMATH)
            }
        };
        let process = self.process(station)?;
        if let Some(status) = process.ended()? {
            let words = process.last_words(if excused { 1 } else { 12 });
            self.restarts.insert(station, now + RESTART);
            if excused {
                self.ends += 1;
                self.say(&format!("ended   {station}, disk full ({status}): {words}"))?;
            } else {
                self.stick(format!(
                    "{station} ended by itself ({status}):\n    {words}"
                ))?;
            }
        }
        if self.restarts.get(&station).is_some_and(|at| now >= *at) {
            self.restarts.remove(&station);
            self.process(station)?.start()?;
        }
        Ok(())
    }

    fn look_at_rounds(&mut self) -> anyhow::Result<()> {
        // Its database is left alone while it cannot run: opening it would mend what the
        // provider is to mend itself, or wait for its lock.
        let provider = self.conditions.get(&Station::Provider);
        let well = matches!(provider, Some(Condition::Well(_)))
            && self.process(Station::Provider)?.is_started();
        let mut lines = Vec::new();
        if well && self.rounds.has_unchecked() {
            lines = self.rounds.check(&self.state)?;
        }
        lines.extend(self.rounds.silent(utc_timestamp()));
        lines.iter().try_for_each(|line| self.say(line))
    }

    /// Waits until so many complete rounds followed each other; false if they did not.
    async fn until_complete(&mut self, count: u64, patience: Duration) -> anyhow::Result<bool> {
        let from: Round = self.period.round_at(utc_timestamp());
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.step().await?;
            if self.rounds.complete_in_a_row(from) >= count && !self.rounds.has_unchecked() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits for pending rounds, then stops everything.
    async fn finish(&mut self) -> anyhow::Result<Tally> {
        let end = Instant::now() + RECOVERY_PATIENCE;
        while !self.rounds.tally(&self.state)?.pending.is_empty() && Instant::now() < end {
            self.step().await?;
        }
        // The broker last, for their farewells.
        let stations: Vec<Station> = self.setting.processes.keys().copied().rev().collect();
        for station in stations {
            let process = self.process(station)?;
            if !process.is_started() {
                continue;
            }
            match process.terminate(STOP_PATIENCE).await? {
                Some(status) if status.success() => {}
                Some(status) => self.stick(format!("{station} ended badly ({status})"))?,
                None => self.stick(format!("{station} does not end on SIGTERM"))?,
            }
        }
        let tally = self.rounds.tally(&self.state)?;
        for round in &tally.pending {
            let round = terminal::clock(round.start(self.period));
            self.stick(format!("the round of {round} is still pending"))?;
        }
        Ok(tally)
    }

    fn verdict(&mut self, tally: &Tally) -> anyhow::Result<Verdict> {
        let meters = |text| {
            let processes = self.setting.processes.iter();
            let meters = processes.filter(|(station, _)| matches!(station, Station::Meter(_)));
            meters.map(|(_, process)| process.said(text)).sum::<usize>()
        };
        let alarms = meters("alarm: ");
        let mut table = String::from("\nfaults\n");
        for ((kind, whom), count) in &self.injected {
            table += &format!("  {:<32}{count:>6}\n", format!("{}, {whom}", kind.name()));
        }
        table += &format!(
            "  {:<32}{:>6}\n",
            "in all",
            self.injected.values().sum::<u64>()
        );
        table += &format!("  {:<32}{:>6}\n", "ends of a process, disk full", self.ends);
        table += "rounds\n";
        let wrong = self.rounds.wrong().len();
        let lines = [
            ("in all", tally.rounds),
            ("with all meters", tally.complete),
            ("with some meters", tally.smaller),
            ("too few meters, no roster", tally.without_roster()),
            ("lost after the roster", tally.lost),
            ("sums seen by the third party", tally.seen),
        ];
        for (name, count) in lines {
            table += &format!("  {name:<32}{count:>6}\n");
        }
        table += &format!("{:<34}{alarms:>6}\n", "alarms of meters");
        table += &format!("{:<34}{wrong:>6}\n", "wrong");
        table += &format!("{:<34}{:>6}", "stuck", self.stuck.len());
        writeln!(self.out, "{table}").context("cannot write to the terminal")?;
        let wrong = self.rounds.wrong().iter().flat_map(|(round, faults)| {
            let begin = terminal::clock(round.start(self.period));
            faults
                .iter()
                .map(move |fault| format!("wrong: round {round} of {begin}: {fault}"))
        });
        let stuck = self.stuck.iter().map(|stuck| format!("stuck: {stuck}"));
        Ok(Verdict {
            faults: wrong.chain(stuck).collect(),
        })
    }

    fn stick(&mut self, what: String) -> anyhow::Result<()> {
        self.say(&format!("STUCK   {what}"))?;
        self.stuck.insert(what);
        Ok(())
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let (clock, passed) = (terminal::clock(utc_timestamp()), self.started.elapsed());
        writeln!(self.out, "{clock} {:7.1} s  {text}", passed.as_secs_f64())
            .and_then(|()| self.out.flush())
            .context("cannot write to the terminal")
    }

    /// Logs and states outlive a run that failed; the disks do not.
    fn keep_logs(&mut self) {
        self.setting.directory.disable_cleanup(true);
        let directory = self.setting.directory.path().display();
        eprintln!("lab: the logs of the processes are in {directory}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_a_number_above_zero() {
        assert_eq!(parse_minutes("0.5"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_minutes("10"), Ok(Duration::from_secs(600)));
        for text in ["", "0", "-1", "x", "NaN", "inf", "1e9"] {
            assert!(parse_minutes(text).is_err(), "{text}");
        }
    }
}
