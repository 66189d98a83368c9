//! `provider-agent net …`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use dcnet::membership::{DEFAULT_DEGREE, HARD_FLOOR, Policy};
use dcnet::topic::NetId;
use provider_agent::comparison::Comparison;
use provider_agent::net::{self, Description};
use provider_agent::{Config, Store, utc};

use super::output::{field, json as print_json, line};
use super::{At, existing_store};

/// Making and looking at nets.
#[derive(Subcommand)]
pub enum NetCommand {
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
    /// Close a net for good: it opens no round and admits nobody any more. Rounds under way are
    /// brought to their end, meters can leave, and everything stored stays
    Close {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell whether the database holds what a published aggregate names: after a restore, before
    /// the agent runs again
    Compare {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// The newest message on dcnet/1/NET/public/aggregate/cbor, as a file
        file: PathBuf,
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

/// Runs one of them.
pub fn run(command: NetCommand) -> anyhow::Result<()> {
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
                line(format_args!("{id}"))
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
                line(format_args!(
                    "{}  {} members, {} rounds{}  {}",
                    net.net,
                    net.members,
                    net.rounds,
                    if net.closed.is_some() { ", closed" } else { "" },
                    net.name
                ))?;
            }
            Ok(())
        }
        NetCommand::Close { at, net, yes, json } => close(&at, net, yes, json),
        NetCommand::Compare {
            at,
            net,
            file,
            json,
        } => compare(&at, net, &file, json),
        NetCommand::Show { at, net, json } => {
            let config = Config::load(&at.config)?;
            let (store, identity) = (existing_store(&config)?, config.identity()?);
            let net = Description::read(&store, &identity, net)?;
            if json {
                return print_json(&net);
            }
            field("net", &net.net)?;
            field("name", &net.name)?;
            if let Some(closed) = &net.closed {
                field("closed", closed)?;
            }
            if let Some(resume) = &net.resume {
                field(
                    "restored",
                    format_args!("no roster for rounds that start before {resume}"),
                )?;
            }
            field("period", format_args!("{} s", net.period_s))?;
            field("window", format_args!("{} ms", net.window_ms))?;
            field("minimum group", net.minimum_group)?;
            field("minimum neighbours", net.minimum_neighbours)?;
            field("degree", net.degree)?;
            field("channels", net.channels.join(", "))?;
            field("members", net.members)?;
            field("log index", net.log_index)?;
            field("log head", &net.log_head)?;
            field("rounds", net.rounds)?;
            let newest = net
                .newest_round
                .map_or_else(|| "none".to_owned(), |n| n.to_string());
            field("newest aggregate", newest)?;
            if net.closed.is_some() {
                return Ok(());
            }
            line(format_args!(
                "\nto enrol a meter:\n  gateway-admin enrol-meter … {}",
                net.enrolment_options()
            ))
        }
    }
}

fn close(at: &At, net: NetId, yes: bool, json: bool) -> anyhow::Result<()> {
    let config = Config::load(&at.config)?;
    let (mut store, identity) = (existing_store(&config)?, config.identity()?);
    let description = Description::read(&store, &identity, net)?;
    if let Some(closed) = &description.closed {
        bail!("net {net} is closed already, since {closed}");
    }
    if !yes {
        confirm(&description)?;
    }
    store.close_net(net, utc::now())?;
    let description = Description::read(&store, &identity, net)?;
    if json {
        return print_json(&description);
    }
    line(format_args!(
        "net {net} is closed; a running agent takes that up within seconds, brings the rounds that \
         have a roster to their end, and goes on serving meters that leave"
    ))?;
    line(format_args!(
        "the protocol has no message that tells the {} members: each household ends its membership \
         with `meter-agent leave`",
        description.members
    ))
}

fn compare(at: &At, net: NetId, file: &Path, json: bool) -> anyhow::Result<()> {
    let config = Config::load(&at.config)?;
    let (store, identity) = (existing_store(&config)?, config.identity()?);
    let shown = file.display();
    let frame = std::fs::read(file).with_context(|| format!("cannot read {shown}"))?;
    let found = Comparison::read(&store, &identity, net, &frame)
        .with_context(|| format!("cannot compare with {shown}"))?;
    if json {
        return print_json(&found);
    }
    let round = found.round;
    if found.is_as_new() {
        return line(format_args!(
            "the database holds all that the sum of round {round} names: its roster, and the log up to the entry \
             that it names. What was published after it may be missing all the same; a restored net shows that by a \
             later round that has a sum"
        ));
    }
    if !found.has_roster {
        line(format_args!("missing: the roster of round {round}"))?;
    }
    if !found.has_log_head {
        line(format_args!(
            "missing: log entries after {}",
            found.log_index
        ))?;
    }
    line(format_args!(
        "the meters know what is missing and never answer this database again: restore a newer backup, or close the \
         net (`provider-agent net close`) and make a new one"
    ))
}

/// Asks on the terminal; an error unless the answer is the net's name.
fn confirm(net: &Description) -> anyhow::Result<()> {
    anyhow::ensure!(
        io::stdin().is_terminal(),
        "closing a net cannot be undone, and there is no terminal to ask on; say --yes"
    );
    eprint!(
        "Closing \"{}\" with {} members cannot be undone. Write its name to close it: ",
        net.name, net.members
    );
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    anyhow::ensure!(answer.trim() == net.name.trim(), "nothing was closed");
    Ok(())
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let signed: jiff::SignedDuration = text
        .parse()
        .with_context(|| format!("\"{text}\" is no duration; write for instance 2s, 500ms, 15m"))?;
    Duration::try_from(signed).with_context(|| format!("\"{text}\" is negative"))
}
