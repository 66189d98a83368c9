//! The register: a durable pulse total per channel that never decreases, and its value at
//! the boundaries of rounds.
//!
//! It counts in whole pulses and converts only totals into mWh, so that rounding never adds
//! up. Every pulse is counted once, whatever the UTC clock does; the clock decides only on which
//! side of a boundary a pulse lies. A boundary has a value if every channel was observed
//! at that moment. One that passed while the agent was down, or that the clock jumped
//! over, has none: it is unknown, and nobody guesses it. When the clock is set
//! back, boundaries that have a value already keep it.
//!
//! While UTC is not synchronised, as after the start of a board without a battery-backed clock,
//! pulses are counted and no boundary has a value. Once it is, the boundaries that
//! passed meanwhile get theirs, as precisely as a second, for up to two hours back.
//!
//! Pulses that come while the agent is down are not in the total.

use std::path::Path;
use std::sync::Arc;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};

use crate::clock::{self, Moment};
use crate::pulse::Batch;

mod boundaries;
pub mod counting;
mod file;
mod readings;
mod trail;

use boundaries::Boundaries;
pub use file::{Files, RegisterError};
use readings::Readings;
pub use readings::{ReadingLog, SetReading};

/// What a register counts on one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterChannel {
    /// `import`, `export`, …: 1 to 32 of a–z, 0–9, `-` and `_`.
    pub name: String,
    /// The meter's pulse constant.
    pub constant: ImpulsesPerKwh,
}

/// The register of one meter.
#[derive(Debug)]
pub struct Register {
    channels: Vec<RegisterChannel>,
    totals: Vec<Pulses>,
    files: Files,
    readings: Readings,
    boundaries: Boundaries,
    unsaved: u64,
}

impl Register {
    /// Opens the register in `directory`, which is made if there is none, and locks it
    /// against other processes. A channel that is not in it yet starts at zero.
    ///
    /// # Errors
    /// [`RegisterError`]: unreadable, damaged, in use, or counted with other constants
    /// or channels than these.
    pub fn open(directory: &Path, channels: Vec<RegisterChannel>) -> Result<Self, RegisterError> {
        let files = Files::open(directory)?;
        let totals = files.read(&channels)?;
        let mut readings = Readings::open(directory)?;
        for (channel, total) in channels.iter().zip(&totals) {
            readings.begin(&channel.name, channel.constant, *total);
        }
        Ok(Self {
            boundaries: Boundaries::new(channels.len()),
            channels,
            totals,
            files,
            readings,
            unsaved: 0,
        })
    }

    /// What it counts.
    pub fn channels(&self) -> &[RegisterChannel] {
        &self.channels
    }

    /// The total per channel.
    pub fn totals(&self) -> &[Pulses] {
        &self.totals
    }

    /// Pulses that a crash would lose.
    pub fn unsaved(&self) -> u64 {
        self.unsaved
    }

    /// From now on values are taken at the boundaries of rounds of this period; `None` for
    /// none. Without effect if it is the period already.
    pub fn set_period(&mut self, period: Option<Period>) {
        self.boundaries.set_period(period);
    }

    /// Adds a batch while the clocks show `now`, and returns the boundaries for which the value
    /// of every channel is known by that, earliest first. They are to be used only after
    /// [`Register::save`].
    ///
    /// # Errors
    /// [`RegisterError::Overflow`], [`RegisterError::UnknownChannel`]; the batch is then not counted.
    pub fn record(&mut self, batch: &Batch, now: &Moment) -> Result<Vec<Boundary>, RegisterError> {
        let index = batch.channel().0;
        let (Some(total), Some(channel)) = (self.totals.get_mut(index), self.channels.get(index))
        else {
            return Err(RegisterError::UnknownChannel(index));
        };
        let sum = total.0.checked_add(batch.pulses().0);
        let after = sum
            .and_then(|sum| channel.constant.energy(Pulses(sum)))
            .zip(sum);
        let (Some(before), Some((energy, sum))) = (channel.constant.energy(*total), after) else {
            return Err(RegisterError::Overflow(channel.name.clone()));
        };
        *total = Pulses(sum);
        self.unsaved = self.unsaved.saturating_add(batch.pulses().0);
        Ok(self.boundaries.record(batch, before, energy, now))
    }

    /// The clocks show `now`: to be told often, because the length of a round may have become known
    /// or UTC synchronised. Returns boundaries as [`Register::record`].
    pub fn observe(&mut self, now: &Moment) -> Vec<Boundary> {
        self.boundaries.observe(now)
    }

    /// Makes the totals durable: when this returns they survive a crash and a loss of power.
    ///
    /// # Errors
    /// [`RegisterError::Write`]; the totals in memory stay as they are.
    pub fn save(&mut self) -> Result<(), RegisterError> {
        self.files.write(&self.channels, &self.totals)?;
        self.unsaved = 0;
        // The totals are safe, and a reading is not worth a round: the next save tries again.
        if let Err(error) = self.readings.save(clock::utc_timestamp()) {
            tracing::warn!(%error);
        }
        Ok(())
    }

    /// The total of each channel in mWh.
    pub fn energies(&self) -> Vec<MilliwattHours> {
        self.channels
            .iter()
            .zip(&self.totals)
            .map(|(channel, total)| channel.constant.energy(*total).unwrap_or_default())
            .collect()
    }

    /// What the meter's own display should show, per channel: the total, or what was set
    /// last by [`Self::set_reading`] and the energy counted since.
    pub fn readings(&self) -> Vec<MilliwattHours> {
        let channels = self.channels.iter().zip(&self.totals);
        channels
            .map(|(channel, total)| {
                let reading = self.readings.of(&channel.name, channel.constant, *total);
                reading.unwrap_or_default()
            })
            .collect()
    }

    /// Whether the reading of each channel was ever set; else it is the total.
    pub fn are_readings_set(&self) -> Vec<bool> {
        let channels = self.channels.iter();
        channels
            .map(|channel| self.readings.is_set(&channel.name))
            .collect()
    }

    /// The readings that were set, for the household to see and to have older ones forgotten.
    pub fn reading_log(&self) -> Arc<ReadingLog> {
        self.readings.log()
    }

    /// Says what the meter's display shows now. The total stays as it is: it never
    /// decreases, and rounds and bills are made of it. Durable when this returns, and kept
    /// in a log.
    ///
    /// # Errors
    /// [`RegisterError::NoChannel`]; [`RegisterError::Write`].
    pub fn set_reading(
        &mut self,
        channel: &str,
        reading: MilliwattHours,
        at: Timestamp,
    ) -> Result<(), RegisterError> {
        let channels = self.channels.iter().zip(&self.totals);
        let found = channels
            .filter(|(known, _)| known.name == channel)
            .map(|(_, total)| *total)
            .next();
        let Some(total) = found else {
            return Err(RegisterError::NoChannel(channel.to_owned()));
        };
        self.readings.set(channel, reading, total, at)
    }

    /// The latest boundary that has got a value.
    pub fn latest_boundary(&self) -> Option<Timestamp> {
        self.boundaries.latest()
    }
}
