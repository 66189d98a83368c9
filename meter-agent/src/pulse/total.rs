//! From successive readings of a device's total energy to batches of pulses.
//!
//! The channel's constant is the resolution: with 1000 imp/kWh a "pulse" is 1 Wh. With `E(t)`
//! the total in mWh and `K` the constant, `⌊E(t)·K/10⁶⌋` pulses come before `t`, so the pulses of
//! any stretch of time are a difference of two totals and no rounding adds up.
//!
//! **Between two readings** the energy is spread evenly over the time between them, exactly: a
//! reading rarely falls on the boundary of a round. Nothing is delivered for time that
//! no reading covers yet, so a boundary gets its value with the reading after it.
//!
//! **What the device counted unseen**, while the agent was down or for longer than
//! [`LONGEST_GAP`], is caught up in one batch that touches no whole second: the register
//! follows the device, and no boundary lies between its old and its new total. So the
//! energy of a downtime is never that of one round. The first start takes over the
//! device's total in this way.
//!
//! **A total that goes back**, or rises by more than the household can draw, is refused
//! and counted. Time goes on uncovered until the device agrees with itself again; if it
//! insists, the error says so, and the household is shown what to write into the configuration.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use dcnet::time::Timestamp;
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};

use super::{Batch, Channel, second_after};
use crate::clock::{SLEW, STEP, timestamp};
use crate::energy::Kwh;

/// Readings further apart are not joined by a straight line. The slowest devices send
/// every hour.
pub const LONGEST_GAP: Duration = Duration::from_secs(2 * 3600);

/// So many readings in a row that agree with each other, but not with those before, are
/// no disturbance of the wire any more.
pub const INSISTENT: u32 = 3;

/// A device may always rise by this much: there are displays of whole kWh, such as that of an
/// SML meter whose PIN was not entered.
const COARSEST_STEP: u64 = 1_000_000;

/// A total energy that a device showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// As the device shows it.
    pub energy: MilliwattHours,
    /// When, on the monotonic clock.
    pub at: Duration,
}

/// How a device's total is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalOptions {
    /// Added to what the device shows, in mWh: what its predecessor had counted.
    pub offset: i64,
    /// The most power that the household can draw or feed in, in kW.
    pub maximum_kw: u32,
}

impl Default for TotalOptions {
    /// No offset; 100 kW.
    fn default() -> Self {
        Self {
            offset: 0,
            maximum_kw: 100,
        }
    }
}

/// Why a reading is not taken.
///
/// As text it is for the log and has no figures; [`Refused::figures`] has them, for the household
/// alone.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Below what was counted already, by the register or since the start.
    #[error(
        "the device shows less than was counted already; nothing is counted until it shows more. \
         Was the meter swapped or reset? Then correct offset_kwh and restart the agent"
    )]
    Back {
        /// What the device shows.
        shown: MilliwattHours,
        /// The configured offset in mWh.
        offset: i64,
        /// The total so far.
        counted: MilliwattHours,
        /// The offset, in mWh, with which the device goes on where the total is.
        advice: i128,
    },
    /// More than the household can have used since the reading before.
    #[error(
        "the device's total rose by more than maximum_kw = {maximum_kw} allows; it is not counted. \
         If the device is right, restart the agent, which then takes over its total; if the meter \
         was swapped, correct offset_kwh first"
    )]
    Jump {
        /// The total so far.
        counted: MilliwattHours,
        /// The total that is refused, the offset included.
        total: MilliwattHours,
        /// Since the last reading that was taken.
        within: Duration,
        /// The configured bound.
        maximum_kw: u32,
        /// The offset, in mWh, with which the device goes on where the total is.
        advice: i128,
    },
    /// With the offset it is below zero or past 2⁶⁴ mWh.
    #[error("with offset_kwh the device's total is no possible one; correct offset_kwh")]
    Offset {
        /// What the device shows.
        shown: MilliwattHours,
        /// The configured offset in mWh.
        offset: i64,
    },
}

impl Refused {
    /// Under which name such refusals are counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Back { .. } => "total went back",
            Self::Jump { .. } => "total jumped",
            Self::Offset { .. } => "impossible offset",
        }
    }

    /// What was read and what to write, in one line.
    pub fn figures(&self) -> String {
        match self {
            Self::Back {
                shown,
                offset,
                counted,
                advice,
            } => {
                let offset = match offset {
                    0 => String::new(),
                    offset => format!(" (and offset_kwh = {})", Kwh(i128::from(*offset))),
                };
                format!(
                    "the device shows {} kWh{offset}, but {} kWh were counted already; if it was \
                     swapped or reset, write offset_kwh = {}",
                    Kwh::from(*shown),
                    Kwh::from(*counted),
                    Kwh(*advice)
                )
            }
            Self::Jump {
                counted,
                total,
                within,
                maximum_kw,
                advice,
            } => format!(
                "the device's total rose from {} to {} kWh within {} s, which is more than \
                 maximum_kw = {maximum_kw} allows; if it is right, restart the agent; if the meter \
                 was swapped, write offset_kwh = {} first",
                Kwh::from(*counted),
                Kwh::from(*total),
                within.as_secs_f64().ceil(),
                Kwh(*advice)
            ),
            Self::Offset { shown, offset } => format!(
                "the device shows {} kWh, which with offset_kwh = {} is no possible total",
                Kwh::from(*shown),
                Kwh(i128::from(*offset))
            ),
        }
    }
}

impl fmt::Debug for Refused {
    /// Without figures.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// A refused reading, and how serious that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub why: Refused,
    /// How many readings in a row, this one included, agree with each other.
    pub in_a_row: u32,
}

/// A total at a moment, offset included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    energy: u64,
    at: Duration,
}

/// Turns readings into batches. It has no clock of its own.
#[derive(Debug)]
pub struct Totals {
    channel: Channel,
    constant: ImpulsesPerKwh,
    options: TotalOptions,
    /// The register's total, until the first reading is taken.
    register: Option<Pulses>,
    /// The last reading that was taken, and its moment in UTC.
    last: Option<(Point, Timestamp)>,
    /// The last reading that was refused, and how many in a row.
    refused: Option<(Point, u32)>,
    batches: VecDeque<Batch>,
}

impl Totals {
    /// Of one channel. Unless [`Totals::resume`] is called, counting begins with the
    /// first reading.
    pub fn new(channel: Channel, constant: ImpulsesPerKwh, options: TotalOptions) -> Self {
        Self {
            channel,
            constant,
            options,
            register: None,
            last: None,
            refused: None,
            batches: VecDeque::new(),
        }
    }

    /// Whose totals.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The register stands at `total`: what the device shows beyond it is caught up.
    pub fn resume(&mut self, total: Pulses) {
        self.register = Some(total);
    }

    /// The next batch of what was read.
    pub fn next_batch(&mut self) -> Option<Batch> {
        self.batches.pop_front()
    }

    /// Takes a reading, given what both clocks show now. One that comes within a millisecond
    /// of that before is left out: the next one says more.
    ///
    /// # Errors
    /// [`Refusal`]; the total stays as it was.
    pub fn take(
        &mut self,
        reading: Reading,
        monotonic_now: Duration,
        utc_now: Duration,
    ) -> Result<(), Refusal> {
        let shown = reading.energy;
        let total = i128::from(shown.0) + i128::from(self.options.offset);
        let Ok(energy) = u64::try_from(total) else {
            let offset = self.options.offset;
            // It agrees with none, and is told of at once all the same.
            return Err(Refusal {
                why: Refused::Offset { shown, offset },
                in_a_row: INSISTENT,
            });
        };
        let point = Point {
            energy,
            at: reading.at,
        };
        let utc = timestamp(utc_now.saturating_sub(monotonic_now.saturating_sub(reading.at)));
        match self.last {
            None => self.first(shown, point, utc),
            Some((last, last_utc)) => self.further(shown, (last, last_utc), (point, utc)),
        }
    }

    fn first(
        &mut self,
        shown: MilliwattHours,
        point: Point,
        utc: Timestamp,
    ) -> Result<(), Refusal> {
        let reached = self.pulses(point.energy);
        let register = self.register.unwrap_or(Pulses(reached));
        if reached < register.0 {
            let counted = self.least_energy(register);
            return Err(self.back(shown, point, counted));
        }
        if self.register.is_some() {
            tracing::info!(
                channel = self.channel.0,
                "the register follows the device's total; what it counted unseen is in no round"
            );
        }
        self.catch_up(register, point, utc);
        Ok(())
    }

    fn further(
        &mut self,
        shown: MilliwattHours,
        (last, last_utc): (Point, Timestamp),
        (point, utc): (Point, Timestamp),
    ) -> Result<(), Refusal> {
        let elapsed = point.at.saturating_sub(last.at);
        if elapsed < Duration::from_millis(1) {
            return Ok(());
        }
        if point.energy < last.energy {
            return Err(self.back(shown, point, MilliwattHours(last.energy)));
        }
        if !self.plausible(last, point) {
            let why = Refused::Jump {
                counted: MilliwattHours(last.energy),
                total: MilliwattHours(point.energy),
                within: elapsed,
                maximum_kw: self.options.maximum_kw,
                advice: i128::from(last.energy) - i128::from(shown.0),
            };
            return Err(self.refuse(point, why));
        }
        if elapsed > LONGEST_GAP {
            tracing::warn!(
                channel = self.channel.0,
                seconds = elapsed.as_secs(),
                "there was no reading for so long; boundaries in between have no value"
            );
            self.catch_up(Pulses(self.pulses(last.energy)), point, utc);
            return Ok(());
        }
        let expected = utc.minus(elapsed);
        let correction = expected.since(last_utc).max(last_utc.since(expected));
        let stepped = correction > STEP + elapsed / SLEW;
        let from = if stepped { expected } else { last_utc };
        if utc <= from {
            return Ok(());
        }
        if stepped {
            tracing::warn!(
                channel = self.channel.0,
                utc_ms = from.as_millis(),
                "the UTC clock was stepped; boundaries in between have no value"
            );
        }
        self.spread(from..utc, last, point);
        self.settle(point, utc);
        Ok(())
    }

    /// Batches of the energy between two totals, evenly over the time `utc` between them.
    fn spread(&mut self, utc: Range<Timestamp>, last: Point, point: Point) {
        let Range {
            start: from,
            end: until,
        } = utc;
        let before = u128::from(last.energy);
        let length = u128::from(until.as_millis().saturating_sub(from.as_millis()).max(1));
        let rise = u128::from(point.energy.saturating_sub(last.energy));
        let per_kwh = u128::from(self.constant.get());
        // Below 2⁶⁴ mWh · 2²³ ms · 2¹⁷ imp/kWh, so within 128 bits.
        let pulses_at = |at: Timestamp| {
            let into = u128::from(at.as_millis().saturating_sub(from.as_millis()));
            (before * length + rise * into) * per_kwh / (1_000_000 * length)
        };
        let elapsed = point.at.saturating_sub(last.at).as_nanos();
        let monotonic_at = |at: Timestamp| {
            let into = u128::from(at.as_millis().saturating_sub(from.as_millis()));
            // Within [`LONGEST_GAP`].
            last.at + Duration::from_nanos(u64::try_from(elapsed * into / length).unwrap_or(0))
        };
        // When they had become so many; `None` while nothing is used.
        let became = |pulses: u128| {
            let into = (pulses * 1_000_000).saturating_sub(before * per_kwh);
            // Below 2⁴³ ns · 2⁶⁴ mWh · 2¹⁷ imp/kWh.
            let nanos = (elapsed * into).checked_div(rise * per_kwh)?;
            Some(last.at + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
        };
        let mut start = from;
        while start < until {
            let end = until.min(second_after(start));
            let count = pulses_at(end).saturating_sub(pulses_at(start));
            let pulses = Pulses(u64::try_from(count).unwrap_or(u64::MAX));
            let monotonic = monotonic_at(start)..monotonic_at(end);
            let last_pulse = became(pulses_at(end)).filter(|_| count > 0);
            let batch = Batch::new(self.channel, start..end, monotonic, pulses)
                .map(|batch| batch.with_last_pulse(last_pulse));
            self.batches.extend(match end == until {
                true => batch.map(Batch::ending_a_reading),
                false => batch,
            });
            start = end;
        }
    }

    /// One batch within a second, up to the first moment from `utc` on for which there is one.
    fn catch_up(&mut self, counted: Pulses, point: Point, utc: Timestamp) {
        let missed = self.pulses(point.energy).saturating_sub(counted.0);
        let second = utc.as_millis() / 1000 * 1000;
        let until = Timestamp(utc.as_millis().max(second + 2));
        let from = Timestamp(until.as_millis() - 1);
        let batch = Batch::new(
            self.channel,
            from..until,
            point.at..point.at,
            Pulses(missed),
        );
        let batch = batch.map(|batch| batch.catching_up().ending_a_reading());
        self.batches.extend(batch);
        self.settle(point, until);
    }

    fn settle(&mut self, point: Point, utc: Timestamp) {
        self.last = Some((point, utc));
        self.refused = None;
    }

    fn back(&mut self, shown: MilliwattHours, point: Point, counted: MilliwattHours) -> Refusal {
        let why = Refused::Back {
            shown,
            offset: self.options.offset,
            counted,
            advice: i128::from(counted.0) - i128::from(shown.0),
        };
        self.refuse(point, why)
    }

    fn refuse(&mut self, point: Point, why: Refused) -> Refusal {
        let in_a_row = match self.refused {
            Some((before, count)) if self.plausible(before, point) => count.saturating_add(1),
            _ => 1,
        };
        self.refused = Some((point, in_a_row));
        Refusal { why, in_a_row }
    }

    /// Whether a device can have got from one total to the other.
    fn plausible(&self, before: Point, after: Point) -> bool {
        let Some(rise) = after.energy.checked_sub(before.energy) else {
            return false;
        };
        let elapsed = after.at.saturating_sub(before.at).as_millis();
        let most = elapsed.saturating_mul(u128::from(self.options.maximum_kw) * 1_000_000);
        u128::from(rise) <= u128::from(COARSEST_STEP) + most / 3_600_000
    }

    fn pulses(&self, energy: u64) -> u64 {
        let pulses = u128::from(energy) * u128::from(self.constant.get()) / 1_000_000;
        u64::try_from(pulses).unwrap_or(u64::MAX)
    }

    /// The least total that is so many pulses.
    fn least_energy(&self, pulses: Pulses) -> MilliwattHours {
        let energy = (u128::from(pulses.0) * 1_000_000).div_ceil(u128::from(self.constant.get()));
        MilliwattHours(u64::try_from(energy).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests;
