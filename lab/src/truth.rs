//! What the sums must be, known apart from everything the system does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dcnet::time::{Period, Round};
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};
use meter_agent::pulse::input::InputStatistics;
use meter_agent::pulse::{Batch, LineView, NextBatch, PulseSource};
use tokio::sync::watch;

use crate::cli::Energy;

/// Impulses per kWh of every meter of a demonstration: a pulse is 1 Wh.
pub const CONSTANT: u32 = 1000;

/// The constant as a type.
pub fn constant() -> ImpulsesPerKwh {
    ImpulsesPerKwh::new(CONSTANT).unwrap_or_else(|| unreachable!("{CONSTANT} is a valid constant"))
}

/// Rounds whose pulses are remembered.
const ROUNDS_KEPT: usize = 4096;

/// What every simulated source handed out, per round and meter.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<Round, BTreeMap<u32, u64>>>>);

impl Ledger {
    fn add(&self, round: Round, meter: u32, pulses: Pulses) {
        let mut rounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = rounds.entry(round).or_default().entry(meter).or_default();
        *count = count.saturating_add(pulses.0);
        if rounds.len() > ROUNDS_KEPT {
            rounds.pop_first();
        }
    }

    fn pulses(&self, round: Round, meter: u32) -> Option<u64> {
        let rounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.get(&round)?.get(&meter).copied()
    }
}

/// A source whose pulses are entered in a [`Ledger`] as they are handed out.
pub struct Counted {
    source: Box<dyn PulseSource>,
    meter: u32,
    period: Period,
    ledger: Ledger,
}

impl Counted {
    /// Counts what `source` hands out for a meter.
    pub fn new(source: Box<dyn PulseSource>, meter: u32, period: Period, ledger: Ledger) -> Self {
        Self {
            source,
            meter,
            period,
            ledger,
        }
    }

    fn note(&self, batch: &Batch) {
        // A batch stays within a second, so within a round.
        let round = self.period.round_at(batch.from());
        self.ledger.add(round, self.meter, batch.pulses());
    }
}

impl PulseSource for Counted {
    fn line(&self) -> Option<watch::Receiver<LineView>> {
        self.source.line()
    }

    fn input(&self) -> Option<watch::Receiver<InputStatistics>> {
        self.source.input()
    }

    fn resume(&mut self, totals: &[Pulses]) {
        self.source.resume(totals);
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            let batch = self.source.next().await?;
            self.note(&batch);
            Ok(batch)
        })
    }
}

/// The energies that the meters measure.
#[derive(Clone, Debug)]
pub enum Truth {
    /// What the simulated sources handed out.
    Emitted(Ledger),
    /// Energy of the rows before each row, per column from 1, in mWh.
    Loads(Vec<Vec<u128>>),
}

impl Truth {
    /// The truth of a run with `meters`.
    ///
    /// # Errors
    /// If the load file lacks a column or the row.
    pub fn of(energy: &Energy, meters: u32) -> anyhow::Result<Self> {
        let Energy::Loads { loads, start_row } = energy else {
            return Ok(Self::Emitted(Ledger::default()));
        };
        let column = |number: u32| {
            let energies = loads.energies(usize::try_from(number)?, *start_row)?;
            let mut totals = vec![0u128];
            let mut total = 0u128;
            for energy in energies.rows() {
                total = total.saturating_add(u128::from(energy.0));
                totals.push(total);
            }
            anyhow::Ok(totals)
        };
        Ok(Self::Loads(
            (1..=meters).map(column).collect::<anyhow::Result<_>>()?,
        ))
    }

    /// The sum over some meters of measured round `index`; `None` if it is not known.
    ///
    /// Meters count whole pulses, so what a row leaves of one is added to the next.
    pub fn sum(&self, index: u64, round: Round, meters: &[u32]) -> Option<MilliwattHours> {
        meters.iter().try_fold(MilliwattHours(0), |sum, meter| {
            sum.checked_add(self.of_meter(index, round, *meter)?)
        })
    }

    fn of_meter(&self, index: u64, round: Round, meter: u32) -> Option<MilliwattHours> {
        let pulses = match self {
            Self::Emitted(ledger) => ledger.pulses(round, meter)?,
            Self::Loads(columns) => {
                let column = usize::try_from(meter.checked_sub(1)?).ok()?;
                let totals = columns.get(column)?;
                let row = usize::try_from(index).ok()?;
                let pulses = |row: usize| Some(totals.get(row)? * u128::from(CONSTANT) / 1_000_000);
                let until = pulses(row.checked_add(1)?)?;
                u64::try_from(until.checked_sub(pulses(row)?)?).ok()?
            }
        };
        constant().energy(Pulses(pulses))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use meter_agent::pulse::loads::Loads;

    use super::*;

    fn loads(text: &str, start_row: usize) -> Energy {
        Energy::Loads {
            loads: Loads::parse(Path::new("x.csv"), text.as_bytes()).unwrap(),
            start_row,
        }
    }

    #[test]
    fn the_truth_of_a_file_is_its_rows_from_the_start_row_on() {
        let energy = loads("t,a,b\nx,1,2\nx,30,40\nx,500,600\n", 1);
        let truth = Truth::of(&energy, 2).unwrap();
        let sum = |index, meters: &[u32]| truth.sum(index, Round(77), meters).map(|mwh| mwh.0);
        assert_eq!(sum(0, &[1, 2]), Some(70_000));
        assert_eq!(sum(1, &[2]), Some(600_000));
        assert_eq!(sum(1, &[]), Some(0));
        assert_eq!(sum(2, &[1]), None, "past the end of the file");
        assert_eq!(sum(0, &[3]), None, "no such column");
        assert_eq!(sum(0, &[0]), None, "the timestamp");
    }

    #[test]
    fn parts_of_a_pulse_are_carried_over() {
        let truth = Truth::of(&loads("t,a\nx,0.6\nx,0.6\nx,0.8\n", 0), 1).unwrap();
        let rows: Vec<_> = (0..3).map(|row| truth.sum(row, Round(0), &[1])).collect();
        let wh = |wh: u64| Some(MilliwattHours(wh * 1000));
        assert_eq!(rows, [wh(0), wh(1), wh(1)]);
    }

    #[test]
    fn a_ledger_knows_only_what_was_handed_out() {
        let ledger = Ledger::default();
        ledger.add(Round(5), 1, Pulses(2));
        ledger.add(Round(5), 1, Pulses(3));
        ledger.add(Round(5), 2, Pulses(10));
        let truth = Truth::Emitted(ledger);
        let sum = |round, meters: &[u32]| truth.sum(0, Round(round), meters).map(|mwh| mwh.0);
        assert_eq!(sum(5, &[1, 2]), Some(15_000));
        assert_eq!(sum(5, &[1]), Some(5_000));
        assert_eq!(sum(5, &[1, 3]), None);
        assert_eq!(sum(6, &[1]), None);
    }
}
