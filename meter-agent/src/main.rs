//! The daemon `meter-agent`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use dcnet::units::MilliwattHours;
use manual::Manual;
use meter_agent::config::{Config, check};
use meter_agent::doctor::{self, Verdict};
use meter_agent::energy::{self, EnergyUnit, Kwh};
use meter_agent::page::access::ACCOUNT;
use meter_agent::register::Register;
use meter_agent::{agent, ask, clock, count, leave};
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

/// Reads an electricity meter and takes part in a DC-net.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent. RUST_LOG sets what is logged, for example RUST_LOG=meter_agent=debug
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Tell the running agent that the clock is right although it jumped ahead; until then it
    /// submits nothing
    ConfirmClock {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Leave the net for good. Waits until the open rounds are closed and the former neighbours
    /// have erased their keys; Ctrl-C is safe. An agent that runs is told to do it, and counts on
    Leave {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// End as soon as the net's log says that this meter has left
        #[arg(long)]
        no_wait: bool,
    },
    /// Check the configuration and the files it names; exit code 1 if anything is wrong
    CheckConfig {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Look at everything from the wiring to the broker, and say what is wrong and what to do; exit
    /// code 1 if anything keeps the agent from working
    Doctor {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How long each channel is watched
        #[arg(long, value_name = "N", default_value_t = 10,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
    },
    /// Say what the meter's own display shows now, in kWh, while the agent's service is stopped.
    /// What was counted, and what is billed, stays as it is; each setting is kept in a log
    SetReading {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The channel, such as import
        channel: String,
        /// What the display shows, such as 12345.6
        #[arg(value_name = "KWH", value_parser = kilowatt_hours)]
        reading: MilliwattHours,
    },
    /// Ask the running agent how it is: power, register, link, last rounds, alarms
    Status {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Everything, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Set the password of the household's page, which is needed when it is served to others than
    /// this machine. It is asked for, or taken from the first line of the standard input
    SetPassword {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Count pulses for a while and show them as they come; neither register nor broker are
    /// touched. Ctrl-C ends it with the summary, which is all that a script gets on standard output
    Count {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How long
        #[arg(long, value_name = "N", default_value_t = 60,
              value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
    },
    /// Write man pages and shell completions
    #[command(hide = true)]
    Manual(Manual),
}

fn kilowatt_hours(text: &str) -> Result<MilliwattHours, String> {
    energy::parse(text, EnergyUnit::KilowattHours)
        .map_err(|error| format!("{error}; write it as 12345.6"))
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let result = match Arguments::parse().command {
        Command::Run { config } => start(&config, |config| Box::pin(agent::run(config))),
        Command::ConfirmClock { config } => start(&config, |config| {
            Box::pin(async move {
                let mut agent = ask::running(&config.state_directory).await?;
                let nothing = serde_json::json!({});
                agent.post("/api/confirm-clock", &nothing).await?;
                println!("the agent takes its clock for right");
                Ok(())
            })
        }),
        Command::Leave { config, no_wait } => start(&config, move |config| {
            Box::pin(async move {
                leave::leave(&config, !no_wait, interrupted(), std::io::stdout()).await
            })
        }),
        Command::Doctor { config, seconds } => {
            match examine(&config, Duration::from_secs(seconds)) {
                Ok(false) => return ExitCode::FAILURE,
                examined => examined.map(|_| ()),
            }
        }
        Command::SetReading {
            config,
            channel,
            reading,
        } => set_reading(&config, &channel, reading),
        Command::Status { config, json } => start(&config, move |config| {
            Box::pin(async move {
                let path = if json { "/api/status" } else { "/status.txt" };
                let text = ask::ask(&config.state_directory, path).await?;
                println!("{}", text.trim_end());
                Ok(())
            })
        }),
        Command::SetPassword { config } => set_password(&config),
        Command::Count { config, seconds } => start(&config, move |config| {
            let duration = Duration::from_secs(seconds);
            Box::pin(count::count(config, duration, interrupted()))
        }),
        Command::CheckConfig { config } => return check_config(&config),
        Command::Manual(manual) => manual
            .write(Arguments::command())
            .context("cannot write the manual"),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("meter-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Until Ctrl-C.
async fn interrupted() {
    // Without it Ctrl-C ends the process at once, which loses nothing either.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

type Work = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

fn start(path: &Path, work: impl FnOnce(Config) -> Work) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    runtime()?.block_on(work(config))
}

/// One thread: waking a second one up costs more than what there is to do. What blocks, and what
/// computes for long, is done on threads of its own.
fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Longer than the time between two looks at a file: to make and end a thread for each
        // costs more than to keep one.
        .thread_keep_alive(Duration::from_secs(60))
        .build()
        .context("cannot start the runtime")
}

fn check_config(path: &Path) -> ExitCode {
    let report = check::check(path);
    for note in &report.notes {
        println!("note: {note}");
    }
    for problem in &report.problems {
        eprintln!("{problem}");
    }
    if report.problems.is_empty() {
        println!("{}: ok", path.display());
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether nothing is wrong.
fn examine(path: &Path, duration: Duration) -> anyhow::Result<bool> {
    let mut is_well = true;
    runtime()?.block_on(doctor::examine(path, duration, |finding| {
        is_well &= finding.verdict != Verdict::Problem;
        println!("{finding}");
    }));
    Ok(is_well)
}

fn set_reading(path: &Path, channel: &str, reading: MilliwattHours) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let mut channels = config.channels.iter();
    anyhow::ensure!(
        !channels.any(|known| known.name == channel && known.source.is_device()),
        "{channel}: its device shows the total itself, and the reading follows that; if the meter \
         was swapped, write offset_kwh into {}",
        path.display()
    );
    let directory = config.state_directory.join("register");
    let mut register = Register::open(&directory, config.register_channels())?;
    let place = register.channels().iter().position(|c| c.name == channel);
    let before = place.and_then(|place| register.readings().get(place).copied());
    register.set_reading(channel, reading, clock::utc_timestamp())?;
    println!(
        "{channel}: the reading is {} kWh now; it was {} kWh",
        Kwh::from(reading),
        Kwh::from(before.unwrap_or_default())
    );
    Ok(())
}

fn set_password(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let password = secrets::password::ask("the page")?;
    page::password::set_password(&config.state_directory, &password)?;
    println!(
        "the page asks for it from now on, and is served from the next start of the agent on if it \
         was not for want of one; the user is {:?}",
        ACCOUNT.user
    );
    Ok(())
}
