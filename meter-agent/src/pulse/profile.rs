//! Sources whose pulses are a function of UTC: replayed and simulated loads.

use std::time::Duration;

use dcnet::time::Timestamp;
use dcnet::units::Pulses;

use super::{Batch, Channel, NextBatch, PulseError, PulseSource, RoundLength, second_after, turn};
use crate::clock;

/// Pulses as a function of UTC.
///
/// Counting is additive: the pulses of `[a, b)` and of `[b, c)` are together those
/// of `[a, c)`. So nothing is lost or invented however late the ticks come.
pub trait Profile: Send {
    /// The number of pulses in `[from, until)`; successive calls never go back in time.
    ///
    /// # Errors
    /// [`PulseError::Begin`] for a replay with a begin off its grid.
    fn pulses_between(&mut self, from: Timestamp, until: Timestamp) -> Result<Pulses, PulseError>;
}

/// Delivers a [`Profile`] in real time. It follows the UTC clock: after a step
/// forward it catches up at once, after a step back it waits.
#[derive(Debug)]
pub struct ProfileSource<P> {
    channel: Channel,
    profile: P,
    position: Timestamp,
    rounds: Option<RoundLength>,
}

impl<P: Profile> ProfileSource<P> {
    /// A source that delivers what comes at or after `start`.
    pub fn new(channel: Channel, profile: P, start: Timestamp) -> Self {
        Self {
            channel,
            profile,
            position: start,
            rounds: None,
        }
    }

    /// The next batch when the UTC clock shows `now` and the monotonic one `monotonic`; `None`
    /// when there is nothing new.
    ///
    /// # Errors
    /// Those of the profile.
    pub fn advance(
        &mut self,
        now: Timestamp,
        monotonic: Duration,
    ) -> Result<Option<Batch>, PulseError> {
        let until = now.min(second_after(self.position));
        if until <= self.position {
            return Ok(None);
        }
        let pulses = self.profile.pulses_between(self.position, until)?;
        // As long ago on either clock.
        let monotonic_of = |at| monotonic.saturating_sub(now.since(at));
        let span = monotonic_of(self.position)..monotonic_of(until);
        let batch = Batch::new(self.channel, self.position..until, span, pulses);
        self.position = until;
        Ok(batch)
    }
}

impl<P: Profile> PulseSource for ProfileSource<P> {
    fn serve(&mut self, rounds: &RoundLength) {
        self.rounds = Some(rounds.clone());
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            loop {
                // The rest of a second that has begun is delivered with the next one.
                if clock::utc_timestamp() < second_after(self.position) {
                    let period = self.rounds.as_ref().and_then(|rounds| *rounds.borrow());
                    tokio::time::sleep(link::service::until_turn(clock::utc(), turn(period))).await;
                }
                let (monotonic, utc) = clock::both();
                if let Some(batch) = self.advance(clock::timestamp(utc), monotonic)? {
                    return Ok(batch);
                }
            }
        })
    }
}
