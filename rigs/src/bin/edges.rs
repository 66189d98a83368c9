//! Reads the GPIO channels of a meter agent's configuration as the agent does until SIGTERM, then
//! prints what the edge filter accepted and rejected: `edges FILE`.

use std::path::PathBuf;

use clap::Parser;
use meter_agent::config::{Config, SourceConfig};
use meter_agent::pulse::line::LineSource;
use meter_agent::pulse::{Channel, PulseSource, gpiocdev};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Parser)]
struct Arguments {
    /// The configuration file
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::load(&arguments.config)?;
    let mut terminated = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(());
    let mut sources = pi_sources(&config)?;
    for (index, channel) in config.channels.iter().enumerate() {
        if let SourceConfig::Gpiocdev { line, options } = &channel.source {
            let source = gpiocdev::open(Channel(index), line, options)?;
            sources.push((Channel(index), source));
        }
    }
    anyhow::ensure!(
        sources.len() == config.channels.len(),
        "a channel is read neither with gpiocdev nor with rppal, or this was built without rppal"
    );
    let mut tasks = JoinSet::new();
    for (channel, mut source) in sources {
        let mut stopped = stopped.clone();
        tasks.spawn(async move {
            loop {
                tokio::select! {
                    _ = stopped.changed() => return anyhow::Ok((channel, source.line())),
                    batch = source.next() => {
                        batch?;
                    }
                }
            }
        });
    }
    terminated.recv().await;
    drop(stop);
    while let Some(task) = tasks.join_next().await {
        let (channel, line) = task??;
        let Some(line) = line else { continue };
        let seen = line.borrow().statistics;
        let name = config.channels.get(channel.0).map_or("", |c| &c.name);
        println!(
            "{name} pulses={} rejected={} missed={}",
            seen.pulses, seen.rejected, seen.missed
        );
    }
    Ok(())
}

#[cfg(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
))]
fn pi_sources(config: &Config) -> anyhow::Result<Vec<(Channel, LineSource)>> {
    use meter_agent::pulse::rppal::{PiLine, open};
    let lines: Vec<PiLine> = config
        .channels
        .iter()
        .enumerate()
        .filter_map(|(index, channel)| match &channel.source {
            SourceConfig::Rppal { gpio, options } => Some(PiLine {
                channel: Channel(index),
                gpio: *gpio,
                options: options.clone(),
            }),
            _ => None,
        })
        .collect();
    let sources = open(&lines)?;
    Ok(lines.iter().map(|line| line.channel).zip(sources).collect())
}

#[cfg(not(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
)))]
fn pi_sources(_: &Config) -> anyhow::Result<Vec<(Channel, LineSource)>> {
    Ok(Vec::new())
}
