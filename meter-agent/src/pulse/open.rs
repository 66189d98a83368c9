//! Opens the sources that a configuration names.

use dcnet::time::Timestamp;
use tokio::sync::watch;

use super::loads::Loads;
use super::optical::HeadChannel;
use super::profile::ProfileSource;
use super::replay::Replay;
use super::simulated::{Household, Simulated};
use super::{Channel, PulseError, PulseSource, mqtt, optical};
use crate::clock;
use crate::config::{ChannelConfig, ReplayConfig, SourceConfig};

/// When replays begin: the start of a round in UTC, or `None` while that is not
/// known. The first time that is named holds.
pub type Begin = watch::Receiver<Option<Timestamp>>;

/// A begin that does not change any more.
pub fn begin_at(begin: Option<Timestamp>) -> Begin {
    watch::Sender::new(begin).subscribe()
}

/// Opens the sources of all channels, in their order. `begin` goes before the begin
/// in the configuration; with neither a replay begins at the next whole period.
///
/// # Errors
/// The first source that cannot be opened.
///
/// # Panics
/// With a source on an MQTT broker outside a runtime of tokio.
pub fn open(
    channels: &[ChannelConfig],
    begin: Option<&Begin>,
) -> Result<Vec<Box<dyn PulseSource>>, PulseError> {
    let mut pi = pi_sources(channels)?.into_iter();
    let mut heads = optical::open(&head_channels(channels))?.into_iter();
    let mut sources: Vec<Box<dyn PulseSource>> = Vec::with_capacity(channels.len());
    for (index, config) in channels.iter().enumerate() {
        let channel = Channel(index);
        let now = clock::utc_timestamp();
        sources.push(match &config.source {
            SourceConfig::Rppal { .. } => pi.next().ok_or(PulseError::NotBuilt("rppal"))?,
            SourceConfig::Gpiocdev { line, options } => gpiocdev(channel, line, options)?,
            SourceConfig::Mqtt(topic) => Box::new(mqtt::open(channel, config.constant, topic)?),
            SourceConfig::Optical(_) => {
                Box::new(heads.next().ok_or(PulseError::NotBuilt("optical"))?)
            }
            SourceConfig::Replay(replay) => {
                let loads = Loads::read(&replay.file)?;
                let profile = Replay::new(
                    &loads.energies(replay.column, replay.start_row)?,
                    config.constant,
                    replay.period,
                    replay.after,
                    begin.cloned().unwrap_or_else(|| configured(replay, now)),
                );
                Box::new(ProfileSource::new(channel, profile, now))
            }
            SourceConfig::Simulated { seed, pace } => {
                let profile = Simulated::new(Household::draw(*seed), config.constant, *pace);
                Box::new(ProfileSource::new(channel, profile, now))
            }
        });
    }
    Ok(sources)
}

/// All optical heads together, because several channels may share one.
fn head_channels(channels: &[ChannelConfig]) -> Vec<HeadChannel> {
    let heads = channels.iter().enumerate();
    heads
        .filter_map(|(index, config)| match &config.source {
            SourceConfig::Optical(options) => Some(HeadChannel {
                channel: Channel(index),
                constant: config.constant,
                options: options.clone(),
            }),
            _ => None,
        })
        .collect()
}

fn configured(replay: &ReplayConfig, now: Timestamp) -> Begin {
    let next = replay.period.round_at(now).end(replay.period);
    begin_at(Some(replay.begin.unwrap_or(next)))
}

#[cfg(feature = "gpiocdev")]
fn gpiocdev(
    channel: Channel,
    line: &crate::config::LineName,
    options: &super::line::LineOptions,
) -> Result<Box<dyn PulseSource>, PulseError> {
    Ok(Box::new(super::gpiocdev::open(channel, line, options)?))
}

#[cfg(not(feature = "gpiocdev"))]
fn gpiocdev(
    _: Channel,
    _: &crate::config::LineName,
    _: &super::line::LineOptions,
) -> Result<Box<dyn PulseSource>, PulseError> {
    Err(PulseError::NotBuilt("gpiocdev"))
}

/// All Raspberry Pi lines together, because they share one poller.
#[cfg(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
))]
fn pi_sources(channels: &[ChannelConfig]) -> Result<Vec<Box<dyn PulseSource>>, PulseError> {
    let lines: Vec<super::rppal::PiLine> = channels
        .iter()
        .enumerate()
        .filter_map(|(index, config)| match &config.source {
            SourceConfig::Rppal { gpio, options } => Some(super::rppal::PiLine {
                channel: Channel(index),
                gpio: *gpio,
                options: options.clone(),
            }),
            _ => None,
        })
        .collect();
    Ok(super::rppal::open(&lines)?
        .into_iter()
        .map(|source| Box::new(source) as Box<dyn PulseSource>)
        .collect())
}

#[cfg(not(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
)))]
fn pi_sources(_: &[ChannelConfig]) -> Result<Vec<Box<dyn PulseSource>>, PulseError> {
    Ok(Vec::new())
}
