//! The daemon `provider-agent` and its operator's commands.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use dcnet::membership::{DEFAULT_DEGREE, HARD_FLOOR, Policy};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use link::service;
use manual::Manual;
use provider_agent::export::{self, Span};
use provider_agent::net::{self, Description};
use provider_agent::page::access;
use provider_agent::{Config, Store, agent, utc};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

/// Opens DC-nets, runs their rounds, stores and publishes the verified sums.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct At {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT
    Run {
        #[command(flatten)]
        at: At,
    },
    /// Check the configuration and the files it names; exit code 1 if anything is wrong
    CheckConfig {
        #[command(flatten)]
        at: At,
    },
    /// Set the password of the operator's page. It is asked for, or taken from the first line of
    /// the standard input
    SetPassword {
        #[command(flatten)]
        at: At,
    },
    /// Make and look at nets
    Net {
        #[command(subcommand)]
        command: NetCommand,
    },
    /// Write the rounds of a net to standard output
    Export {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        #[arg(long)]
        net: NetId,
        /// Form of the table
        #[arg(long, default_value = "csv")]
        format: Format,
        /// Rounds that start at or after this: 2026-01-31 or 2026-01-31T18:00:00Z
        #[arg(long, value_name = "MOMENT", value_parser = utc::parse)]
        from: Option<Timestamp>,
        /// Rounds that start before this
        #[arg(long, value_name = "MOMENT", value_parser = utc::parse)]
        to: Option<Timestamp>,
    },
    /// Write man pages and shell completions
    #[command(hide = true)]
    Manual(Manual),
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Csv,
}

#[derive(Subcommand)]
enum NetCommand {
    /// Open a new net and print its id; a running agent takes it up within seconds.
    /// The rules can never be changed: another policy is another net
    Create {
        #[command(flatten)]
        at: At,
        /// What people call the net
        #[arg(long)]
        name: String,
        /// Length of a round; it divides a day: 2s, 30s, 5m, 15m, 1h
        #[arg(long, default_value = "15m", value_parser = duration)]
        period: Duration,
        /// How long submissions are taken after a round's end; default: a third of the
        /// period, at most 1m
        #[arg(long, value_parser = duration)]
        window: Option<Duration>,
        /// Fewest meters in a sum; meters refuse less than 30 unless their owners said otherwise
        #[arg(long, default_value_t = 30, value_name = "N")]
        minimum_group: u32,
        /// Fewest neighbours of a meter that must take part; meters also ask for 60 % of their draw
        #[arg(long, default_value_t = HARD_FLOOR, value_name = "N")]
        minimum_neighbours: u32,
        /// Neighbours that a meter draws
        #[arg(long, default_value_t = DEFAULT_DEGREE, value_name = "N")]
        degree: u32,
        /// Names of the channels
        #[arg(
            long,
            default_value = "import",
            value_delimiter = ',',
            value_name = "NAME,…"
        )]
        channels: Vec<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// List the nets
    List {
        #[command(flatten)]
        at: At,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a net's rules, members and log head, and how to enrol a meter in it
    Show {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let signed: jiff::SignedDuration = text
        .parse()
        .with_context(|| format!("\"{text}\" is no duration; write for instance 2s, 500ms, 15m"))?;
    Duration::try_from(signed).with_context(|| format!("\"{text}\" is negative"))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader such as `head` that has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("provider-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.chain().find_map(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        io.or_else(|| match cause.downcast_ref::<csv::Error>()?.kind() {
            csv::ErrorKind::Io(error) => Some(error.kind()),
            _ => None,
        })
    });
    kind == Some(io::ErrorKind::BrokenPipe)
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { at } => serve(&at.config),
        Command::CheckConfig { at } => {
            for remark in Config::load(&at.config)?.check()? {
                println!("note: {remark}");
            }
            println!("{}: ok", at.config.display());
            Ok(())
        }
        Command::Export {
            at,
            net,
            format: Format::Csv,
            from,
            to,
        } => {
            let store = existing_store(&Config::load(&at.config)?)?;
            let output = BufWriter::new(io::stdout().lock());
            export::csv(&store, net, Span { from, to }, output).map(|_| ())
        }
        Command::Net { command } => run_net(command),
        Command::SetPassword { at } => {
            access::ask_password(&Config::load(&at.config)?.state_directory)?;
            print(format_args!(
                "the page asks for it from now on; the user is {:?}",
                access::USER
            ))
        }
        Command::Manual(manual) => Ok(manual.write(Cli::command())?),
    }
}

fn run_net(command: NetCommand) -> anyhow::Result<()> {
    match command {
        NetCommand::Create {
            at,
            name,
            period,
            window,
            minimum_group,
            minimum_neighbours,
            degree,
            channels,
            json,
        } => {
            let config = Config::load(&at.config)?;
            let period = net::period(period)?;
            let window =
                window.unwrap_or_else(|| (period.duration() / 3).min(Duration::from_secs(60)));
            let policy = Policy {
                period,
                window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX),
                minimum_group,
                minimum_neighbours,
                degree,
            };
            let mut store = Store::open_in(&config.state_directory)?;
            let identity = config.identity()?;
            let id = net::create(&mut store, &identity, &name, policy, &channels)?;
            if json {
                print_json(&Description::read(&store, &identity, id)?)
            } else {
                print(format_args!("{id}"))
            }
        }
        NetCommand::List { at, json } => {
            let config = Config::load(&at.config)?;
            let (store, identity) = (existing_store(&config)?, config.identity()?);
            let nets = store.nets()?;
            let nets = nets
                .iter()
                .map(|net| Description::read(&store, &identity, net.net));
            let nets: Vec<Description> = nets.collect::<anyhow::Result<_>>()?;
            if json {
                return print_json(&nets);
            }
            for net in nets {
                print(format_args!(
                    "{}  {} members, {} rounds  {}",
                    net.net, net.members, net.rounds, net.name
                ))?;
            }
            Ok(())
        }
        NetCommand::Show { at, net, json } => {
            let config = Config::load(&at.config)?;
            let (store, identity) = (existing_store(&config)?, config.identity()?);
            let net = Description::read(&store, &identity, net)?;
            if json {
                return print_json(&net);
            }
            print(format_args!("net                 {}", net.net))?;
            print(format_args!("name                {}", net.name))?;
            print(format_args!("period              {} s", net.period_s))?;
            print(format_args!("window              {} ms", net.window_ms))?;
            print(format_args!("minimum group       {}", net.minimum_group))?;
            print(format_args!(
                "minimum neighbours  {}",
                net.minimum_neighbours
            ))?;
            print(format_args!("degree              {}", net.degree))?;
            print(format_args!(
                "channels            {}",
                net.channels.join(", ")
            ))?;
            print(format_args!("members             {}", net.members))?;
            print(format_args!("log index           {}", net.log_index))?;
            print(format_args!("log head            {}", net.log_head))?;
            print(format_args!("rounds              {}", net.rounds))?;
            let newest = net
                .newest_round
                .map_or_else(|| "none".to_owned(), |n| n.to_string());
            print(format_args!("newest aggregate    {newest}"))?;
            print(format_args!(
                "\nto enrol a meter:\n  gateway-admin enrol-meter … {}",
                net.enrolment_options()
            ))
        }
    }
}

/// The store, which must exist: looking at it is no reason to make one.
fn existing_store(config: &Config) -> anyhow::Result<Store> {
    let path = config.store_path();
    anyhow::ensure!(
        path.exists(),
        "{} does not exist; `provider-agent net create` makes it",
        path.display()
    );
    Store::open(&path)
}

fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(format_args!("{}", serde_json::to_string_pretty(value)?))
}

fn serve(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&config.log))
        .with_context(|| {
            format!(
                "in {}: log = {:?} is no level or directive",
                path.display(),
                config.log
            )
        })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let look = Arc::new(Notify::new());
        let asked = Arc::clone(&look);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                service::reloading();
                asked.notify_one();
            }
        });
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        agent::run(&config, stop, look).await
    })
}
