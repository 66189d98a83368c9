//! The command line, and what it means.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dcnet::time::Period;
use meter_agent::pulse::PulseError;
use meter_agent::pulse::loads::Loads;
use simulation::plan::Sizes;

use crate::absence::{Absence, Absences};
use crate::abuse::AbuseArguments;
use crate::beside::BesideArguments;
use crate::chaos::ChaosArguments;
use crate::chaos::process::ProcessArguments;
use crate::joins::JoinsArguments;
use crate::load::LoadArguments;
use crate::oracle::OracleArguments;
use crate::policy;

/// The whole system on one machine, over real sockets.
#[derive(Debug, Parser)]
#[command(name = "lab", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    demo: DemoArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run CA, broker, provider and meters, and show what comes out (the default)
    Demo(DemoArguments),
    /// Count the handshakes of a join, an exit and a return in a simulated net
    Joins(JoinsArguments),
    /// Prove on simulated runs what a provider and corrupted meters can learn
    Oracle(OracleArguments),
    /// Play nets in virtual time in which everything goes wrong, one per seed, and check that
    /// what must hold does; exit code 1 if something does not
    Simulate(SimulateArguments),
    /// Play one seed of `simulate` again and tell what happens, step by step
    Replay(ReplayArguments),
    /// Run the system as processes that are killed, stopped and put on full disks, and check
    /// every published sum; exit code 1 if one is wrong or something stays stuck
    Chaos(ChaosArguments),
    /// Give broker and provider the load of many meters, over as many connections, and measure
    /// them; exit code 1 if a sum is wrong or not of all meters
    Load(LoadArguments),
    /// Attack the broker with everything at once, and check that it lives, stays within bounds and
    /// serves honest clients; exit code 1 if not
    Abuse(AbuseArguments),
    /// Measure the broker beside a mosquitto, in turns
    Beside(BesideArguments),
    /// One of the processes that `chaos`, `load`, `abuse` and `beside` start
    #[command(hide = true)]
    Process(ProcessArguments),
}

/// Options of `simulate`.
#[derive(Debug, Args)]
pub struct SimulateArguments {
    /// The seeds, from the first to before the second
    #[arg(long, value_name = "A..B", value_parser = parse_seeds)]
    pub seeds: Range<u64>,
    /// Seeds that are played at the same time [default: as many as there are cores]
    #[arg(long, value_name = "T")]
    pub threads: Option<NonZeroUsize>,
    /// Sizes of the nets.
    #[command(flatten)]
    pub sizes: SizeArguments,
}

/// Options of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The seed
    #[arg(long, value_name = "N")]
    pub seed: u64,
    /// Leave faults, meters and rounds out as long as it still fails, and tell only what is left
    #[arg(long)]
    pub shrink: bool,
    /// Sizes of the net.
    #[command(flatten)]
    pub sizes: SizeArguments,
}

/// What a seed does not decide.
#[derive(Clone, Copy, Debug, Args)]
pub struct SizeArguments {
    /// How many meters take part [default: 5 to 12, as the seed has it]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(5..=65_536))]
    meters: Option<u32>,
    /// Rounds in which faults happen [default: 6 to 12, as the seed has it]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: Option<u64>,
    /// The provider lies, too: withholds, replays, spoils, signs false rosters and logs
    #[arg(long)]
    hostile: bool,
}

impl From<SizeArguments> for Sizes {
    fn from(arguments: SizeArguments) -> Self {
        Self {
            meters: arguments.meters.and_then(|n| usize::try_from(n).ok()),
            rounds: arguments.rounds,
            hostile: arguments.hostile,
        }
    }
}

/// What the user wants; checked.
#[derive(Debug)]
pub enum Task {
    /// The demonstration.
    Demo(Plan),
    /// Many simulated nets.
    Simulate(SimulateArguments),
    /// One of them again.
    Replay(ReplayArguments),
    /// Handshakes counted.
    Joins(JoinsArguments),
    /// Proofs about simulated runs.
    Oracle(OracleArguments),
    /// Processes under faults.
    Chaos(ChaosArguments),
    /// Many meters.
    Load(LoadArguments),
    /// Hostile clients.
    Abuse(AbuseArguments),
    /// Two brokers.
    Beside(BesideArguments),
    /// One of these processes.
    Process(ProcessArguments),
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub struct DemoArguments {
    /// How many meters take part [default: 12; 5 in the thesis's scenario]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(5..=1000))]
    meters: Option<u32>,
    /// End after so many measured rounds; exit code 0 only if every sum was verified and right
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rounds: Option<u64>,
    /// Length of a round, such as 2s or 15min; it must divide a day [default: 2s; thesis: 10s]
    #[arg(long, value_parser = parse_period)]
    period: Option<Period>,
    /// Real loads instead of simulated ones: CSV of Wh per interval, .gz or not; the first column is
    /// a timestamp, meter I replays column I, and measured round k carries row K+k
    #[arg(long, value_name = "FILE")]
    loads: Option<PathBuf>,
    /// The row of the first measured round; row 0 is the first line after the heading
    #[arg(long, value_name = "K", default_value_t = 0, requires = "loads")]
    start_row: usize,
    /// Meters that are stopped so that they miss a round: meter I misses measured round R, from 0
    #[arg(long, value_name = "I@R,…", value_delimiter = ',')]
    absent: Vec<Absence>,
    /// Write one JSON object per measured round to this file
    #[arg(long, value_name = "OUT.jsonl")]
    report: Option<PathBuf>,
    /// Play a script instead
    #[arg(
        long,
        value_enum,
        conflicts_with_all = ["meters", "rounds", "loads", "start_row", "absent"]
    )]
    scenario: Option<Scenario>,
    /// Where the scenario writes the sums as text [default: thesis-sums.txt]
    #[arg(long, value_name = "FILE", requires = "scenario")]
    sums: Option<PathBuf>,
}

/// Scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A client fails after its fourth message, the round is corrected, it comes back
    Thesis,
}

/// What a run is to do; checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many meters; numbered from 1.
    pub meters: u32,
    /// Measured rounds until the end; `None` until interrupted.
    pub rounds: Option<u64>,
    /// Length of a round.
    pub period: Period,
    /// What the meters measure.
    pub energy: Energy,
    /// Who misses which round.
    pub absences: Absences,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// The script, if this is one.
    pub script: Option<Script>,
}

/// What the meters measure.
#[derive(Clone, Debug)]
pub enum Energy {
    /// Modelled households.
    Simulated,
    /// Columns of a load file, from a row on.
    Loads {
        /// The file.
        loads: Loads,
        /// The row of the first measured round.
        start_row: usize,
    },
}

/// A scripted run.
#[derive(Clone, Debug)]
pub struct Script {
    /// Where the sums go as text.
    pub sums: PathBuf,
}

/// Why the command line makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The load file is wrong.
    #[error(transparent)]
    Loads(#[from] PulseError),
    /// Options contradict each other or the load file.
    #[error("{0}")]
    Options(String),
}

impl Arguments {
    /// Reads the load file and checks everything against each other.
    ///
    /// # Errors
    /// [`UsageError`] with what to do.
    pub fn task(self) -> Result<Task, UsageError> {
        match self.command {
            Some(Command::Demo(demo)) => demo.plan().map(Task::Demo),
            Some(Command::Simulate(simulate)) => Ok(Task::Simulate(simulate)),
            Some(Command::Replay(replay)) => Ok(Task::Replay(replay)),
            Some(Command::Joins(joins)) => Ok(Task::Joins(joins)),
            Some(Command::Oracle(oracle)) => Ok(Task::Oracle(oracle)),
            Some(Command::Chaos(chaos)) => Ok(Task::Chaos(chaos)),
            Some(Command::Load(load)) => Ok(Task::Load(load)),
            Some(Command::Abuse(abuse)) => Ok(Task::Abuse(abuse)),
            Some(Command::Beside(beside)) => Ok(Task::Beside(beside)),
            Some(Command::Process(process)) => Ok(Task::Process(process)),
            None => self.demo.plan().map(Task::Demo),
        }
    }
}

impl DemoArguments {
    fn plan(self) -> Result<Plan, UsageError> {
        let plan = match self.scenario {
            Some(Scenario::Thesis) => self.thesis(),
            None => self.demonstration()?,
        };
        check_absences(&plan)?;
        Ok(plan)
    }

    fn demonstration(self) -> Result<Plan, UsageError> {
        let meters = self.meters.unwrap_or(12);
        let mut rounds = self.rounds;
        let energy = match self.loads {
            None => Energy::Simulated,
            Some(path) => {
                let loads = Loads::read(&path)?;
                rounds = Some(available_rounds(&loads, meters, self.start_row, rounds)?);
                Energy::Loads {
                    loads,
                    start_row: self.start_row,
                }
            }
        };
        Ok(Plan {
            meters,
            rounds,
            period: self.period.unwrap_or(seconds(2)),
            energy,
            absences: Absences::new(self.absent),
            report: self.report,
            script: None,
        })
    }

    fn thesis(self) -> Plan {
        let client = crate::thesis::CLIENT;
        let missed = crate::thesis::MISSED.map(|round| Absence {
            meter: client,
            round,
        });
        Plan {
            meters: crate::thesis::CLIENTS,
            rounds: Some(crate::thesis::ROUNDS),
            period: self.period.unwrap_or(seconds(10)),
            energy: Energy::Simulated,
            absences: Absences::new(missed),
            report: self.report,
            script: Some(Script {
                sums: self.sums.unwrap_or_else(|| "thesis-sums.txt".into()),
            }),
        }
    }
}

fn seconds(seconds: u32) -> Period {
    // 2 and 10 divide a day.
    Period::from_secs(seconds).unwrap_or_else(|| unreachable!("{seconds} s do not divide a day"))
}

/// As many rounds as asked for, or as the file has rows left.
fn available_rounds(
    loads: &Loads,
    meters: u32,
    start_row: usize,
    rounds: Option<u64>,
) -> Result<u64, UsageError> {
    let columns = loads.columns();
    let last = usize::try_from(meters).unwrap_or(usize::MAX);
    if last > columns {
        return Err(UsageError::Options(format!(
            "--meters {meters} needs columns 1 to {meters}, but the load file has only columns 1 to \
             {columns} besides the timestamp; ask for at most {columns} meters"
        )));
    }
    // Says itself which rows there are.
    let left = loads.energies(last, start_row)?.rows().len();
    let left = u64::try_from(left).unwrap_or(u64::MAX);
    match rounds {
        Some(rounds) if rounds > left => Err(UsageError::Options(format!(
            "--rounds {rounds} from --start-row {start_row} needs rows up to {}, but the last row of \
             the load file is {}; ask for at most {left} rounds",
            u64::try_from(start_row)
                .unwrap_or(u64::MAX)
                .saturating_add(rounds)
                - 1,
            loads.rows().saturating_sub(1),
        ))),
        Some(rounds) => Ok(rounds),
        None => Ok(left),
    }
}

fn check_absences(plan: &Plan) -> Result<(), UsageError> {
    let minimum = policy::minimum_group(plan.meters);
    for Absence { meter, round } in plan.absences.iter() {
        if !(1..=plan.meters).contains(&meter) {
            return Err(UsageError::Options(format!(
                "--absent {meter}@{round}: there is no meter {meter}; meters are 1 to {}",
                plan.meters
            )));
        }
        if plan.rounds.is_some_and(|rounds| round >= rounds) {
            return Err(UsageError::Options(format!(
                "--absent {meter}@{round}: there is no measured round {round}; they are 0 to {}",
                plan.rounds.unwrap_or(0).saturating_sub(1)
            )));
        }
        let absent = u32::try_from(plan.absences.in_round(round).len()).unwrap_or(u32::MAX);
        if plan.meters.saturating_sub(absent) < minimum {
            return Err(UsageError::Options(format!(
                "--absent leaves {} of {} meters in round {round}, but the group must have at \
                 least {minimum}: let at most {} be absent at a time",
                plan.meters.saturating_sub(absent),
                plan.meters,
                plan.meters.saturating_sub(minimum)
            )));
        }
    }
    Ok(())
}

pub(crate) fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..");
    let ends = ends.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    ends.map(|(from, to)| from..to)
        .filter(|seeds: &Range<u64>| !seeds.is_empty())
        .ok_or_else(|| {
            "expected two numbers, the first below the second, such as 0..300".to_owned()
        })
}

pub(crate) fn parse_period(text: &str) -> Result<Period, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => Some(1),
        "m" | "min" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    number
        .parse::<u32>()
        .ok()
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .and_then(Period::from_secs)
        .ok_or_else(|| {
            "expected a length that divides a day evenly, such as 2s, 10s, 15min or 1h".to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let all = std::iter::once("lab").chain(arguments.iter().copied());
        let parsed = Arguments::try_parse_from(all).map_err(|error| error.to_string())?;
        match parsed.task().map_err(|error| error.to_string())? {
            Task::Demo(plan) => Ok(plan),
            task => Err(format!("{task:?}")),
        }
    }

    #[test]
    fn seeds_are_a_range_that_is_not_empty() {
        assert_eq!(parse_seeds("3..10").unwrap(), 3..10);
        for text in ["", "3", "3..", "..3", "3..3", "4..3", "a..b", "-1..3"] {
            assert!(parse_seeds(text).is_err(), "{text}");
        }
        assert!(
            plan(&["simulate", "--seeds", "0..2", "--hostile"])
                .unwrap_err()
                .contains("0..2")
        );
        assert!(plan(&["simulate"]).is_err());
        assert!(plan(&["simulate", "--seeds", "0..2", "--meters", "4"]).is_err());
        assert!(plan(&["replay", "--seed", "x"]).is_err());
    }

    #[test]
    fn without_arguments_it_is_the_demonstration() {
        for arguments in [&[][..], &["demo"]] {
            let plan = plan(arguments).unwrap();
            assert_eq!((plan.meters, plan.rounds), (12, None));
            assert_eq!(plan.period.as_secs(), 2);
            assert!(matches!(plan.energy, Energy::Simulated));
        }
    }

    #[test]
    fn periods_have_a_unit_and_divide_a_day() {
        for (text, seconds) in [("2s", 2), ("15min", 900), ("1m", 60), ("1h", 3600)] {
            assert_eq!(parse_period(text).unwrap().as_secs(), seconds);
        }
        for text in ["", "2", "s", "7s", "0s", "-2s", "2 s", "2d", "99999999h"] {
            assert!(parse_period(text).is_err(), "{text}");
        }
    }

    #[test]
    fn absences_must_leave_a_group() {
        let absent = |list| plan(&["demo", "--meters", "12", "--rounds", "3", "--absent", list]);
        assert_eq!(absent("5@1,12@2").unwrap().absences.iter().count(), 2);
        assert!(absent("1@0,2@0").is_ok());
        assert!(absent("1@0,2@0,3@0").unwrap_err().contains("at least 10"));
        assert!(absent("13@1").unwrap_err().contains("no meter 13"));
        assert!(absent("0@1").unwrap_err().contains("no meter 0"));
        assert!(absent("1@3").unwrap_err().contains("0 to 2"));
        assert!(absent("1").is_err());
    }

    #[test]
    fn the_scenario_has_its_own_sizes() {
        let plan_ = plan(&["demo", "--scenario", "thesis", "--period", "2s"]).unwrap();
        assert_eq!((plan_.meters, plan_.period.as_secs()), (5, 2));
        assert!(plan(&["demo", "--scenario", "thesis", "--meters", "7"]).is_err());
        assert!(plan(&["demo", "--sums", "x"]).is_err());
    }

    #[test]
    fn too_few_meters_are_refused() {
        assert!(plan(&["demo", "--meters", "4"]).is_err());
        assert!(plan(&["demo", "--meters", "5"]).is_ok());
    }
}
