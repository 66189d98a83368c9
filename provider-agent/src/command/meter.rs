//! `provider-agent meter …`.

use std::time::Duration;

use clap::Subcommand;
use dcnet::identity::DeviceId;
use dcnet::membership::Membership;
use dcnet::topic::NetId;
use provider_agent::meters::{Absent, MeterView};
use provider_agent::net::{self, LogDates};
use provider_agent::{Config, Store, utc};

use super::output::{field, json as print_json, line};
use super::progress::Progress;
use super::{At, existing_store};

/// Looking at meters.
#[derive(Subcommand)]
pub enum MeterCommand {
    /// List the meters of a net, those that left or were revoked too
    List {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show where a meter stands in a net
    Show {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// The meter: 32 hexadecimal digits
        #[arg(value_parser = device)]
        meter: DeviceId,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say how members that are away for long can be expelled. A provider cannot do that itself:
    /// it can only mark them, which the running agent does. This changes nothing
    ExpelLapsed {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

fn device(text: &str) -> anyhow::Result<DeviceId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| anyhow::anyhow!("\"{text}\" is no meter: write its 32 hexadecimal digits"))?;
    Ok(DeviceId(id))
}

/// A net with what looking at its meters needs.
struct Net {
    config: Config,
    store: Store,
    log: Membership,
    dates: LogDates,
}

impl Net {
    fn open(at: &At, net: NetId) -> anyhow::Result<Self> {
        let config = Config::load(&at.config)?;
        let (store, identity) = (existing_store(&config)?, config.identity()?);
        Ok(Self {
            log: net::membership(&store, &identity, net)?,
            dates: LogDates::read(&store, net)?,
            config,
            store,
        })
    }

    fn meters(&self) -> anyhow::Result<Vec<MeterView>> {
        let mut progress = Progress::new("reading", "meters");
        let mut told = |done, all| progress.at(done, all);
        MeterView::all(&self.store, &self.log, &self.dates, &mut told)
    }
}

/// Runs one of them.
pub fn run(command: MeterCommand) -> anyhow::Result<()> {
    match command {
        MeterCommand::List { at, net, json } => {
            let meters = Net::open(&at, net)?.meters()?;
            if json {
                return print_json(&meters);
            }
            meters.iter().try_for_each(list)
        }
        MeterCommand::Show {
            at,
            net,
            meter,
            json,
        } => {
            let net = Net::open(&at, net)?;
            let meter = MeterView::one(&net.store, &net.log, &net.dates, meter)?;
            if json {
                return print_json(&meter);
            }
            show(&meter)
        }
        MeterCommand::ExpelLapsed { at, net, json } => {
            let opened = Net::open(&at, net)?;
            let after = opened.config.lapse_after();
            let period = opened.log.genesis().policy.period;
            let now = utc::now();
            let is_overdue = |meter: &MeterView| {
                let last = meter
                    .last_round
                    .map(|round| dcnet::time::Round(round).end(period));
                // Who joined or drew lately is there, which only the agent knows.
                after.is_some_and(|after| last.is_some_and(|last| now >= last.plus(after)))
            };
            let absent = Absent::new(net, opened.meters()?, is_overdue);
            if json {
                return print_json(&absent);
            }
            tell_absent(&absent, after)
        }
    }
}

fn list(meter: &MeterView) -> anyhow::Result<()> {
    let last = meter
        .last_round
        .map_or_else(|| "none".to_owned(), |round| round.to_string());
    line(format_args!(
        "{}  {:<8} since entry {}, last round {last}, {} edges",
        meter.meter,
        meter.state.as_str(),
        meter.since_entry,
        meter.edges
    ))
}

fn show(meter: &MeterView) -> anyhow::Result<()> {
    let entry = |index: u64, at: &Option<String>| match at {
        Some(at) => format!("log entry {index} of {at}"),
        None => format!("log entry {index}"),
    };
    field("meter", &meter.meter)?;
    field("place", meter.place)?;
    field("state", meter.state.as_str())?;
    field("since", entry(meter.since_entry, &meter.since))?;
    field("joined", entry(meter.joined_entry, &meter.joined))?;
    let last = match (meter.last_round, &meter.last_round_end) {
        (Some(round), Some(end)) => format!("{round}, which ended {end}"),
        _ => "none".to_owned(),
    };
    field("last round", last)?;
    field("edges", meter.edges)?;
    field("drawn neighbours", meter.drawn)
}

fn tell_absent(absent: &Absent, after: Option<Duration>) -> anyhow::Result<()> {
    line(format_args!(
        "Only the meter itself ends its membership, by its exit, or the gateway administrator, by a \
         revocation. A provider cannot."
    ))?;
    match after {
        Some(after) => line(format_args!(
            "The running agent marks who was on no roster for {} days as lapsed, at most a fifth of \
             all members: no draw names them until they draw themselves.",
            after.as_secs() / 86_400
        ))?,
        None => line(format_args!(
            "The running agent marks nobody as lapsed: lapse_after_days is 0."
        ))?,
    }
    for (what, meters) in [
        ("lapsed", &absent.lapsed),
        ("away, not marked yet", &absent.to_be_marked),
    ] {
        line(format_args!("\n{what}: {}", meters.len()))?;
        meters.iter().try_for_each(list)?;
    }
    match &absent.revoke {
        Some(revoke) => line(format_args!(
            "\nto expel the lapsed ones for ever, the gateway administrator runs, and says what to do \
             with the files:\n  {revoke}"
        )),
        None => line(format_args!("\nthere is nobody to expel")),
    }
}
