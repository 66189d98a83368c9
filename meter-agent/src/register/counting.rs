//! Counts pulses from sources into a register, saves it, and hands on its boundaries.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::units::{MilliwattHours, Pulses};
use link::Clock;
use link::service::Heartbeat;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Register, RegisterError};
use crate::clock::{self, Moment};
use crate::power::{Power, PowerMeter};
use crate::pulse::{Batch, PulseError, PulseSource, RoundLength};

/// When a register is saved, apart from every boundary and the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePolicy {
    /// Whenever there is something to save for so long.
    pub every: Duration,
    /// Whenever so many pulses would be lost.
    pub pulses: u64,
}

impl SavePolicy {
    /// [`Self::every`] unless it is configured, in seconds: at most 960 writes a day while little
    /// is used.
    pub const SECONDS: u32 = 90;
    /// [`Self::pulses`] unless it is configured.
    pub const PULSES: u32 = 100;

    /// Saves every so many seconds or pulses.
    pub fn new(seconds: u32, pulses: u32) -> Self {
        Self {
            every: Duration::from_secs(seconds.into()),
            pulses: pulses.into(),
        }
    }
}

impl Default for SavePolicy {
    fn default() -> Self {
        Self::new(Self::SECONDS, Self::PULSES)
    }
}

/// Why counting ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// A source failed.
    #[error(transparent)]
    Source(#[from] PulseError),
    /// The register cannot be saved at the end.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// What has been counted, for those who watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// One per channel, in the order of the register; empty before counting begins.
    pub channels: Vec<CountedChannel>,
    /// Pulses that a crash would lose.
    pub unsaved: u64,
    /// Why the register cannot be saved at present; it is tried again.
    pub save_error: Option<String>,
}

/// What has been counted on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedChannel {
    /// The total.
    pub pulses: Pulses,
    /// The same as energy.
    pub energy: MilliwattHours,
    /// What the meter's own display should show.
    pub reading: MilliwattHours,
    /// Whether somebody has said what that display shows, be it the household or the device
    /// itself; else the reading is only what was counted.
    pub is_reading_set: bool,
    /// The reading when the register was last saved: no crash takes that back. None as long as
    /// the total is not known.
    pub saved_reading: Option<MilliwattHours>,
    /// Its power, as its batches tell it; [`Self::power_at`] says what is known of it.
    pub power: PowerMeter,
    /// Whether it follows a total that a device shows.
    pub is_device: bool,
    /// Whether it counts the pulses of a line, which are told when they come.
    pub is_line: bool,
    /// Up to when everything is counted, on the clock of [`clock::monotonic`]; none before the
    /// first reading of a device.
    pub covered: Option<Duration>,
    /// How often a batch brought what was counted at times that nobody knows
    /// ([`Batch::is_catching_up`]).
    pub catch_ups: u64,
}

impl CountedChannel {
    /// Whether the total says anything: that of a device whose first reading is still to come
    /// does not.
    pub fn is_known(&self) -> bool {
        self.covered.is_some() || self.pulses.0 > 0
    }

    /// What is known of its power at a moment of [`clock::monotonic`]. That no pulse of a replay
    /// has been told of yet does not mean that there was none.
    pub fn power_at(&self, now: Duration) -> Option<Power> {
        let told = match self.is_line || self.is_device {
            true => now,
            false => self.covered.map_or(now, |covered| now.min(covered)),
        };
        self.power.at(told)
    }
}

impl Counted {
    /// `sources` are those of the channels, in their order.
    fn of(register: &Register, sources: &[Box<dyn PulseSource>]) -> Self {
        let start = clock::monotonic();
        let mut counted = Self::default();
        let kinds = sources
            .iter()
            .map(|source| (source.input().is_some(), source.line().is_some()));
        let kinds = kinds.chain(std::iter::repeat((false, false)));
        let channels = register.channels().iter().zip(kinds);
        let channels = channels.zip(register.are_readings_set());
        counted
            .channels
            .extend(
                channels.map(|((channel, (is_device, is_line)), is_set)| CountedChannel {
                    pulses: Pulses(0),
                    energy: MilliwattHours(0),
                    reading: MilliwattHours(0),
                    is_reading_set: is_set || is_device,
                    saved_reading: None,
                    power: match is_device {
                        true => PowerMeter::of_readings(channel.constant),
                        false => PowerMeter::new(channel.constant, start),
                    },
                    is_device,
                    is_line,
                    covered: (!is_device).then_some(start),
                    catch_ups: 0,
                }),
            );
        counted.saved(register);
        counted
    }

    /// All of it is on disk.
    fn saved(&mut self, register: &Register) {
        self.totals(register);
        self.save_error = None;
    }

    /// Takes a batch that the register has recorded; says whether those who watch have to be
    /// told.
    fn batch(&mut self, batch: &Batch, register: &Register) -> bool {
        let Some(channel) = self.channels.get_mut(batch.channel().0) else {
            return false;
        };
        channel.covered = channel.covered.max(Some(batch.monotonic().end));
        channel.catch_ups = channel
            .catch_ups
            .saturating_add(batch.is_catching_up().into());
        let says_something = batch.pulses().0 > 0 || batch.is_catching_up();
        if !says_something && !batch.ends_a_reading() {
            return false;
        }
        self.totals(register);
        self.power(batch);
        true
    }

    fn totals(&mut self, register: &Register) {
        let totals = register.totals().iter().zip(register.energies());
        let totals = totals.zip(register.readings());
        for (channel, ((pulses, energy), reading)) in self.channels.iter_mut().zip(totals) {
            (channel.pulses, channel.energy, channel.reading) = (*pulses, energy, reading);
            if register.unsaved() == 0 {
                channel.saved_reading = channel.is_known().then_some(reading);
            }
        }
        self.unsaved = register.unsaved();
    }

    fn power(&mut self, batch: &Batch) {
        if let Some(channel) = self.channels.get_mut(batch.channel().0) {
            channel.power.observe(batch);
        }
    }
}

/// Those who watch the counting, whether they look or not.
#[derive(Debug, Default)]
pub struct Watching {
    /// Told what has been counted.
    pub counted: watch::Sender<Counted>,
    /// Beats at every turn.
    pub heartbeat: Heartbeat,
}

/// What a register has to know to give boundaries their values, and where those go.
#[derive(Debug)]
pub struct Rounds {
    /// The length of a round; it may become known, or change, later.
    pub period: RoundLength,
    /// Says whether UTC can be trusted. While it cannot, no boundary has a value; those that
    /// passed meanwhile get theirs when it can.
    pub clock: Clock,
    /// Takes the boundaries.
    pub boundaries: mpsc::Sender<Boundary>,
}

/// Boundaries that wait for the disk; older ones are given up.
const WAITING: usize = 4096;
/// After a failed save the next one is tried so much later.
const RETRY: Duration = Duration::from_secs(1);
/// So long batches are still taken after the end was asked for.
const LAST: Duration = Duration::from_millis(100);

/// Counts until `stop` is done, then saves the register.
///
/// Each boundary is sent only after a save that contains it. While saving fails,
/// counting goes on, and the boundaries follow as soon as it works again. If nobody listens
/// to `boundaries` any more, counting goes on just the same; if the listener falls so
/// far behind that the channel is full, boundaries are dropped with a warning.
///
/// # Errors
/// [`CountError`] when a source fails, after a save; or if the last save fails.
pub async fn count(
    mut register: Register,
    sources: Vec<Box<dyn PulseSource>>,
    policy: SavePolicy,
    rounds: Rounds,
    watching: Watching,
    stop: impl Future<Output = ()>,
) -> Result<Register, CountError> {
    let Rounds {
        mut period,
        clock,
        boundaries,
    } = rounds;
    let (sender, mut batches) = mpsc::channel(64 * sources.len().max(1));
    let mut tasks = JoinSet::new();
    let at_start = Counted::of(&register, &sources);
    for mut source in sources {
        source.resume(register.totals());
        source.serve(&period);
        tasks.spawn(forward(source, sender.clone()));
    }
    drop(sender);
    let mut stop = std::pin::pin!(stop);
    let mut waiting = VecDeque::new();
    let (mut saved, mut retry) = (Instant::now(), Instant::now());
    register.set_period(*period.borrow_and_update());
    watching.counted.send_replace(at_start);
    let (mut open, mut synchronised) = (true, true);
    loop {
        watching.heartbeat.beat();
        let now = Moment::now(&clock);
        tell_of_clock(&mut synchronised, &now);
        waiting.extend(register.observe(&now));
        let mut wake = watching.heartbeat.due();
        if !waiting.is_empty() || register.unsaved() >= policy.pulses {
            wake = wake.min(retry);
        } else if register.unsaved() > 0 {
            wake = wake.min(retry.max(saved + policy.every));
        }
        tokio::select! {
            biased;
            () = &mut stop => break,
            Ok(()) = period.changed() => register.set_period(*period.borrow_and_update()),
            received = batches.recv(), if open => match received {
                Some(Ok(batch)) => {
                    waiting.extend(record(&mut register, &batch, &clock));
                    watching
                        .counted
                        .send_if_modified(|counted| counted.batch(&batch, &register));
                }
                Some(Err(error)) => {
                    register.save()?;
                    return Err(error.into());
                }
                // No sources at all: nothing to count, but something to wait for.
                None => open = false,
            },
            () = tokio::time::sleep_until(wake) => {}
        }
        while waiting.len() > WAITING {
            waiting.pop_front();
        }
        let due = !waiting.is_empty()
            || register.unsaved() >= policy.pulses
            || (register.unsaved() > 0 && saved.elapsed() >= policy.every);
        if due && retry <= Instant::now() {
            let (returned, result) = save(register).await;
            register = returned;
            match result {
                Ok(()) => {
                    saved = Instant::now();
                    hand_on(&mut waiting, &boundaries);
                    watching
                        .counted
                        .send_modify(|counted| counted.saved(&register));
                }
                Err(error) => {
                    tracing::error!(%error, "trying again");
                    watching
                        .counted
                        .send_modify(|counted| counted.save_error = Some(error.to_string()));
                    retry = Instant::now() + RETRY;
                }
            }
        }
    }
    // What had been counted when the end was asked for may still be on its way, for example if
    // the disk has held everything up.
    let end = Instant::now() + LAST;
    while let Ok(Some(Ok(batch))) = tokio::time::timeout_at(end, batches.recv()).await {
        waiting.extend(record(&mut register, &batch, &clock));
    }
    register.save()?;
    hand_on(&mut waiting, &boundaries);
    Ok(register)
}

async fn forward(
    mut source: Box<dyn PulseSource>,
    batches: mpsc::Sender<Result<Batch, PulseError>>,
) {
    loop {
        let next = source.next().await;
        let failed = next.is_err();
        if batches.send(next).await.is_err() || failed {
            return;
        }
    }
}

fn tell_of_clock(synchronised: &mut bool, now: &Moment) {
    match (
        std::mem::replace(synchronised, now.synchronised),
        now.synchronised,
    ) {
        (true, false) => tracing::warn!(
            "the UTC clock is not synchronised: pulses are counted, and the boundaries of rounds \
             get their values when it is; if it stays so, look at `timedatectl`"
        ),
        (false, true) => tracing::info!(
            "the UTC clock is synchronised: the boundaries of rounds get their values"
        ),
        _ => {}
    }
}

fn record(register: &mut Register, batch: &Batch, clock: &Clock) -> Vec<Boundary> {
    register
        .record(batch, &Moment::now(clock))
        .unwrap_or_else(|error| {
            tracing::error!(%error);
            Vec::new()
        })
}

/// Saves on a thread that may block.
async fn save(mut register: Register) -> (Register, Result<(), RegisterError>) {
    let saving = tokio::task::spawn_blocking(move || {
        let result = register.save();
        (register, result)
    });
    match saving.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is being shut down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn hand_on(waiting: &mut VecDeque<Boundary>, boundaries: &mpsc::Sender<Boundary>) {
    for boundary in waiting.drain(..) {
        if let Err(mpsc::error::TrySendError::Full(boundary)) = boundaries.try_send(boundary) {
            tracing::warn!(
                utc_ms = boundary.at.as_millis(),
                "nobody takes the boundaries of the register; this one is dropped"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use dcnet::units::ImpulsesPerKwh;

    use super::*;

    /// At 500 W and 1000 imp/kWh the pulses are 7.2 s apart, and a replay in rounds of a quarter
    /// hour tells of them every 30 s.
    #[test]
    fn only_of_a_line_is_a_pulse_that_has_not_been_told_of_late() {
        let second = |seconds: f64| Duration::from_secs_f64(seconds);
        let mut power = PowerMeter::new(ImpulsesPerKwh::new(1000).unwrap(), Duration::ZERO);
        for pulse in 1..=4 {
            power.count(Pulses(1), second(7.2 * f64::from(pulse)));
        }
        let replay = CountedChannel {
            pulses: Pulses(4),
            energy: MilliwattHours(4000),
            reading: MilliwattHours(4000),
            is_reading_set: false,
            saved_reading: None,
            power,
            is_device: false,
            is_line: false,
            covered: Some(second(30.0)),
            catch_ups: 0,
        };
        let line = CountedChannel {
            is_line: true,
            ..replay.clone()
        };
        let at = |channel: &CountedChannel| {
            let power = channel.power_at(second(57.6)).unwrap();
            (power.milliwatts, power.is_upper_bound)
        };
        assert_eq!(at(&replay), (500_000, false));
        assert_eq!(at(&line), (125_000, true));
    }
}
