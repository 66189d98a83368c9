//! Opens the sources that a configuration names.

use std::sync::Arc;

use dcnet::time::Timestamp;
use tokio::sync::watch;

use super::loads::Loads;
use super::optical::HeadChannel;
use super::profile::ProfileSource;
use super::replay::Replay;
use super::retried::{OpenLine, RetriedLine};
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
/// A GPIO line that is refused is opened again by itself as long as there is another channel
/// that can be counted.
///
/// # Errors
/// The first source that cannot be opened; of GPIO lines only if all channels are refused ones.
///
/// # Panics
/// With a source on an MQTT broker outside a runtime of tokio.
pub fn open(
    channels: &[ChannelConfig],
    begin: Option<&Begin>,
) -> Result<Vec<Box<dyn PulseSource>>, PulseError> {
    let mut refused = Vec::new();
    let mut pi = pi_sources(channels)?.into_iter();
    let mut heads = optical::open(&head_channels(channels))?.into_iter();
    let mut sources: Vec<Box<dyn PulseSource>> = Vec::with_capacity(channels.len());
    for (index, config) in channels.iter().enumerate() {
        let channel = Channel(index);
        let now = clock::utc_timestamp();
        sources.push(match &config.source {
            SourceConfig::Rppal { .. } => {
                let open = pi.next().ok_or(PulseError::NotBuilt("rppal"))?;
                retried(open, &mut refused)
            }
            SourceConfig::Gpiocdev { line, options } => {
                retried(gpiocdev(channel, line, options)?, &mut refused)
            }
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
    if refused.len() == channels.len()
        && let Some(error) = refused.into_iter().next()
    {
        return Err(error);
    }
    Ok(sources)
}

fn retried(open: OpenLine, refused: &mut Vec<PulseError>) -> Box<dyn PulseSource> {
    let (line, error) = RetriedLine::new(open);
    refused.extend(error);
    Box::new(line)
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
) -> Result<OpenLine, PulseError> {
    let (line, options) = (line.clone(), options.clone());
    Ok(Arc::new(move || {
        super::gpiocdev::open(channel, &line, &options)
    }))
}

#[cfg(not(feature = "gpiocdev"))]
fn gpiocdev(
    _: Channel,
    _: &crate::config::LineName,
    _: &super::line::LineOptions,
) -> Result<OpenLine, PulseError> {
    Err(PulseError::NotBuilt("gpiocdev"))
}

/// All Raspberry Pi lines are opened together, because they share one poller. Each takes its own of
/// what was opened last; if that is taken, its reader has ended, and with it those of the others.
#[cfg(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
))]
fn pi_sources(channels: &[ChannelConfig]) -> Result<Vec<OpenLine>, PulseError> {
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
    let count = lines.len();
    let opened = Arc::new(std::sync::Mutex::new(Vec::new()));
    let open_line = |index: usize| -> OpenLine {
        let (lines, opened) = (lines.clone(), Arc::clone(&opened));
        Arc::new(move || {
            let mut opened = opened
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let take = |opened: &mut Vec<_>| opened.get_mut(index).and_then(Option::take);
            if let Some(source) = take(&mut *opened) {
                return Ok(source);
            }
            // Those that nobody has taken hold their lines.
            opened.clear();
            *opened = super::rppal::open(&lines)?.into_iter().map(Some).collect();
            take(&mut *opened).ok_or(PulseError::NotBuilt("rppal"))
        })
    };
    Ok((0..count).map(open_line).collect())
}

#[cfg(not(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
)))]
fn pi_sources(_: &[ChannelConfig]) -> Result<Vec<OpenLine>, PulseError> {
    Ok(Vec::new())
}
