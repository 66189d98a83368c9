//! `provider-agent round …`.

use clap::Subcommand;
use dcnet::time::Round;
use dcnet::topic::NetId;
use provider_agent::rounds::RoundView;
use provider_agent::{Config, net};

use super::output::{field, json as print_json, line};
use super::{At, existing_store};

/// Looking at rounds.
#[derive(Subcommand)]
pub enum RoundCommand {
    /// Show a round: who was in it, its sums, and whether they verify
    Show {
        #[command(flatten)]
        at: At,
        /// The net: 32 hexadecimal digits
        net: NetId,
        /// The number of the round; `export` lists them
        round: u64,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
pub fn run(command: RoundCommand) -> anyhow::Result<()> {
    let RoundCommand::Show {
        at,
        net,
        round,
        json,
    } = command;
    let config = Config::load(&at.config)?;
    let (store, identity) = (existing_store(&config)?, config.identity()?);
    let log = net::membership(&store, &identity, net)?;
    let round = RoundView::read(&store, &log, Round(round))?;
    if json {
        print_json(&round)
    } else {
        show(&round)
    }
}

fn show(round: &RoundView) -> anyhow::Result<()> {
    field("net", &round.net)?;
    field("round", round.round)?;
    field("interval", format_args!("{} to {}", round.start, round.end))?;
    match &round.lost_why {
        Some(why) => field("status", format_args!("{}: {why}", round.status))?,
        None => field("status", round.status)?,
    }
    field(
        "roster",
        format_args!("{}, stored {}", round.roster_hash, round.roster_issued),
    )?;
    field(
        "log head",
        format_args!("{}, entry {}", round.log_head, round.log_index),
    )?;
    field("members", round.members)?;
    field("half-open edges", round.half_open_edges)?;
    if let Some(aggregated) = &round.aggregated {
        field("aggregate", format_args!("stored {aggregated}"))?;
    }
    if let (Some(sums), Some(powers)) = (&round.sum_kwh, &round.mean_power_w) {
        for ((channel, kwh), (_, watts)) in sums.0.iter().zip(&powers.0) {
            field(channel, format_args!("{kwh} kWh, mean power {watts} W"))?;
        }
    }
    let verified = match (round.verified.aggregate, round.verified.commitments) {
        (true, true) => "signatures; the sums open the meters' commitments",
        (true, false) => "signatures; the meters' commitments are dropped",
        (false, _) => "the roster's signature",
    };
    field("verified", verified)?;
    if let Some(compacted) = &round.compacted {
        field("compacted", compacted)?;
    }
    let silent = Some(("reveal missing", &round.missing)).filter(|(_, meters)| !meters.is_empty());
    let lists = [("included", &round.included), ("absent", &round.absent)];
    for (what, meters) in lists.into_iter().chain(silent) {
        line(format_args!("\n{what}: {}", meters.len()))?;
        for meter in meters {
            line(format_args!("{meter}"))?;
        }
    }
    Ok(())
}
