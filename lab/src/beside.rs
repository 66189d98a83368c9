//! This broker beside mosquitto: both run at the same time with the same certificates and
//! permissions, and are measured in turns by the same clients.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::demo::Verdict;
use crate::system;

mod server;
mod traffic;

use server::{Kind, Mode, Servers};
use traffic::{Flow, measure};

/// For memory to settle after the last connection.
const SETTLING: Duration = Duration::from_secs(5);
/// Connections whose making is timed.
const ENTERING: usize = 300;

/// Options of `beside`.
#[derive(Debug, Args)]
pub struct BesideArguments {
    /// How often each of both is measured; the table has the medians
    #[arg(long, value_name = "R", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// How long messages are published each time
    #[arg(long, value_name = "S", default_value_t = 4,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// How many publishers there are when there are many
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(2..=2000))]
    pub publishers: u32,
    /// Idle connections at which memory is measured
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(100..=7000))]
    pub idle: u32,
}

/// What is measured of both, by name; the medians go into the table.
#[derive(Default)]
struct Figures(BTreeMap<String, [Vec<f64>; 2]>);

impl Figures {
    fn add(&mut self, name: String, kind: Kind, value: f64) {
        self.0.entry(name).or_default()[kind as usize].push(value);
    }

    fn table(&self) -> String {
        let mut table = format!(
            "{:<44} {:>12} {:>12} {:>10}\n",
            "median", "this broker", "mosquitto", "quotient"
        );
        for (name, values) in &self.0 {
            let [ours, theirs] = values.each_ref().map(|values| median(values));
            table += &format!(
                "{name:<44} {ours:>12.1} {theirs:>12.1} {:>10.2}\n",
                ours / theirs
            );
        }
        table
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        None => f64::NAN,
        Some(upper) if sorted.len() % 2 == 1 => *upper,
        Some(upper) => (sorted[middle - 1] + upper) / 2.0,
    }
}

/// Measures everything.
///
/// Only for the main thread: its end would be the end of the broker's process.
///
/// # Errors
/// What cannot be made or started, mosquitto among it, or a message that does not arrive.
pub async fn run(
    arguments: &BesideArguments,
    mut out: impl Write,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<Verdict> {
    let mut interrupted = std::pin::pin!(interrupted);
    tokio::select! {
        result = compare(arguments, &mut out) => result.map(|()| Verdict::default()),
        () = &mut interrupted => anyhow::bail!("interrupted"),
    }
}

async fn compare(arguments: &BesideArguments, out: &mut impl Write) -> anyhow::Result<()> {
    let [publishers, idle] = [arguments.publishers, arguments.idle].map(|count| count as usize);
    system::allow_open_files(u64::from(arguments.idle) + 4096)?;
    let meters = publishers.max(idle).max(ENTERING);
    writeln!(out, "making {meters} certificates")?;
    let directory = system::directory()?;
    let mut servers = tokio::task::block_in_place(|| Servers::make(directory.path(), meters))?;
    if !Mode::ALL.contains(&Mode::Plain) {
        writeln!(
            out,
            "SKIPPED without TLS: this broker has no such listener; build with --features plain"
        )?;
    }
    let mut figures = Figures::default();
    for &mode in Mode::ALL {
        for kind in Kind::ALL {
            servers.start(kind).await?;
            let name = mode.name();
            let empty = servers.taken(kind)?;
            let held = traffic::enter_all(&servers, kind, mode, idle, true).await?;
            tokio::time::sleep(SETTLING).await;
            let full = servers.taken(kind)?;
            let mib = |kib: u64| kib as f64 / 1024.0;
            let each = (full.resident - empty.resident) as f64 / idle as f64;
            figures.add(
                format!("MiB, {idle} idle, {name}"),
                kind,
                mib(full.resident),
            );
            figures.add(format!("KiB per idle connection, {name}"), kind, each);
            writeln!(
                out,
                "{} {name}: {:.1} MiB, with {idle} connections {:.1} MiB",
                kind.name(),
                mib(empty.resident),
                mib(full.resident)
            )?;
            drop(held);
            servers.stop(kind).await?;
        }
    }
    for kind in Kind::ALL {
        servers.start(kind).await?;
    }
    let span = Duration::from_secs(arguments.seconds);
    for round in 1..=arguments.rounds {
        for &mode in Mode::ALL {
            for (publishers, window) in [(1, 100), (publishers, 10)] {
                let flow = Flow {
                    mode,
                    publishers,
                    window,
                    span,
                };
                for kind in Kind::ALL {
                    let figure = measure(&servers, kind, &flow).await;
                    let figure = figure.with_context(|| format!("at {}", kind.name()))?;
                    let what = format!("{publishers} to 1, {}", mode.name());
                    writeln!(
                        out,
                        "round {round}, {what}: {} {:.0} messages/s, {:.1} µs each",
                        kind.name(),
                        figure.per_second,
                        figure.microseconds
                    )?;
                    figures.add(format!("messages/s, {what}"), kind, figure.per_second);
                    let name = format!("CPU µs per message, {what}");
                    figures.add(name, kind, figure.microseconds);
                }
            }
            for kind in Kind::ALL {
                let before = servers.taken(kind)?.processor;
                let begun = std::time::Instant::now();
                let held = traffic::enter_all(&servers, kind, mode, ENTERING, false).await?;
                let per_second = ENTERING as f64 / begun.elapsed().as_secs_f64();
                let took = servers.taken(kind)?.processor.saturating_sub(before);
                let name = mode.name();
                figures.add(format!("connections/s, {name}"), kind, per_second);
                let each = took.as_secs_f64() * 1e6 / ENTERING as f64;
                figures.add(format!("CPU µs per connection, {name}"), kind, each);
                drop(held);
            }
        }
    }
    for kind in Kind::ALL {
        servers.stop(kind).await?;
    }
    write!(out, "\n{}", figures.table()).context("cannot write to the terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
