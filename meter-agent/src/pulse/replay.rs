//! Replays a column of a load file as pulses, one row per interval.

use dcnet::time::{Period, Timestamp};
use dcnet::units::{ImpulsesPerKwh, Pulses};

use super::PulseError;
use super::loads::Energies;
use super::open::Begin;
use super::profile::Profile;

/// What follows the last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLastRow {
    /// No more pulses.
    Stop,
    /// The start row again.
    Wrap,
}

/// Row after row of [`Energies`], each spread evenly over one period of UTC.
///
/// With `E(k)` the energy of the rows before the k-th in mWh and `K` the pulse constant,
/// `⌊E(k)·K/10⁶⌋` pulses come before the k-th row: what a row leaves of a pulse is carried
/// into the next, and nothing is lost or invented over any number of rows. If the
/// energy of each row is a whole number of pulses, register differences equal the rows.
///
/// Within its row pulse `j` of `n` comes at `(2j+1)/2n` of the period: strictly
/// inside the interval, never on a boundary.
#[derive(Debug)]
pub struct Replay {
    /// `totals[k]`: energy of the first `k` rows in mWh.
    totals: Vec<u128>,
    constant: ImpulsesPerKwh,
    period: Period,
    after: AfterLastRow,
    begin: Begin,
    began: Option<Timestamp>,
}

impl Replay {
    /// A replay of `energies` that begins when `begin` says so; before that no pulses.
    /// Only the first time that `begin` names is used.
    pub fn new(
        energies: &Energies,
        constant: ImpulsesPerKwh,
        period: Period,
        after: AfterLastRow,
        begin: Begin,
    ) -> Self {
        let mut totals = Vec::with_capacity(energies.rows().len() + 1);
        let mut total = 0u128;
        totals.push(total);
        for energy in energies.rows() {
            total += u128::from(energy.0);
            totals.push(total);
        }
        Self {
            totals,
            constant,
            period,
            after,
            begin,
            began: None,
        }
    }

    fn begun(&mut self, from: Timestamp) -> Result<Option<Timestamp>, PulseError> {
        if self.began.is_some() {
            return Ok(self.began);
        }
        let Some(begin) = *self.begin.borrow() else {
            return Ok(None);
        };
        if begin != self.period.round_at(begin).start(self.period) {
            return Err(PulseError::Begin {
                begin: begin.as_millis(),
                period: self.period.as_secs(),
            });
        }
        if begin < from {
            tracing::info!(
                late_ms = from.since(begin).as_millis(),
                "the replay joins in after its begin; pulses before this moment are not counted"
            );
        }
        self.began = Some(begin);
        Ok(self.began)
    }

    /// The pulses before row `row`, the rows of earlier passes included.
    fn before_row(&self, row: u64) -> u64 {
        let rows = (self.totals.len() as u64).saturating_sub(1).max(1);
        let (passes, index) = match self.after {
            AfterLastRow::Stop => (0, row.min(rows)),
            AfterLastRow::Wrap => (row / rows, row % rows),
        };
        let of_pass = self.totals.last().copied().unwrap_or(0);
        let within = usize::try_from(index)
            .ok()
            .and_then(|index| self.totals.get(index))
            .copied()
            .unwrap_or(of_pass);
        let energy = of_pass
            .saturating_mul(u128::from(passes))
            .saturating_add(within);
        let pulses = energy.saturating_mul(u128::from(self.constant.get())) / 1_000_000;
        u64::try_from(pulses).unwrap_or(u64::MAX)
    }

    fn before(&self, at: Timestamp, begin: Timestamp) -> u64 {
        if at <= begin {
            return 0;
        }
        let elapsed = at.as_millis() - begin.as_millis();
        let length = u64::from(self.period.as_secs()) * 1000;
        let row = elapsed / length;
        let first = self.before_row(row);
        let count = u128::from(self.before_row(row + 1).saturating_sub(first));
        // Pulse j comes at (2j+1)·length/2n, so before e come all j < e·n/length − 1/2.
        let doubled = 2 * count * u128::from(elapsed % length);
        let length = u128::from(length);
        let passed = (doubled + length).saturating_sub(1) / (2 * length);
        first.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

impl Profile for Replay {
    fn pulses_between(&mut self, from: Timestamp, until: Timestamp) -> Result<Pulses, PulseError> {
        let Some(begin) = self.begun(from)? else {
            return Ok(Pulses(0));
        };
        let count = self
            .before(until, begin)
            .saturating_sub(self.before(from, begin));
        Ok(Pulses(count))
    }
}

#[cfg(test)]
mod tests {
    use dcnet::units::MilliwattHours;
    use proptest::prelude::*;

    use super::*;
    use crate::pulse::begin_at;

    fn replay(
        rows: &[u64],
        constant: u32,
        seconds: u32,
        begin: u64,
        after: AfterLastRow,
    ) -> Replay {
        let rows = rows.iter().map(|&mwh| MilliwattHours(mwh)).collect();
        Replay::new(
            &Energies::new(rows).unwrap(),
            ImpulsesPerKwh::new(constant).unwrap(),
            Period::from_secs(seconds).unwrap(),
            after,
            begin_at(Some(Timestamp(begin))),
        )
    }

    fn count(replay: &mut Replay, from: u64, until: u64) -> u64 {
        replay
            .pulses_between(Timestamp(from), Timestamp(until))
            .unwrap()
            .0
    }

    #[test]
    fn pulses_are_spread_evenly_and_strictly_inside() {
        let mut two = replay(&[2000, 1000], 1000, 2, 10_000, AfterLastRow::Stop);
        assert_eq!(count(&mut two, 0, 10_500), 0);
        assert_eq!(
            count(&mut two, 10_500, 10_501),
            1,
            "first of two at a quarter"
        );
        assert_eq!(count(&mut two, 10_501, 11_500), 0);
        assert_eq!(count(&mut two, 11_500, 11_501), 1);
        assert_eq!(count(&mut two, 12_000, 13_000), 0);
        assert_eq!(
            count(&mut two, 13_000, 13_001),
            1,
            "a single pulse in the middle"
        );
        assert_eq!(
            count(&mut two, 13_001, 1_000_000_000),
            0,
            "after the last row"
        );
    }

    #[test]
    fn rows_start_again_when_told_to_wrap() {
        let mut wrap = replay(&[2000, 1000], 1000, 2, 10_000, AfterLastRow::Wrap);
        assert_eq!(count(&mut wrap, 10_000, 14_000), 3);
        assert_eq!(count(&mut wrap, 14_000, 16_000), 2);
        assert_eq!(count(&mut wrap, 16_000, 18_000), 1);
    }

    #[test]
    fn nothing_comes_before_the_begin_is_known_and_then_all_of_it() {
        let (sender, begin) = tokio::sync::watch::channel(None);
        let mut late = replay(&[5000], 1000, 2, 0, AfterLastRow::Stop);
        late.begin = begin;
        assert_eq!(count(&mut late, 0, 9_000), 0);
        sender.send(Some(Timestamp(10_000))).unwrap();
        assert_eq!(count(&mut late, 9_000, 10_000), 0);
        assert_eq!(count(&mut late, 10_000, 12_000), 5);
        sender.send(Some(Timestamp(20_000))).unwrap();
        assert_eq!(
            count(&mut late, 20_000, 22_000),
            0,
            "a second begin is ignored"
        );
    }

    #[test]
    fn a_begin_off_the_grid_is_an_error() {
        let mut odd = replay(&[1000], 1000, 2, 10_001, AfterLastRow::Stop);
        let error = odd.pulses_between(Timestamp(0), Timestamp(1)).unwrap_err();
        assert!(matches!(
            error,
            PulseError::Begin {
                begin: 10_001,
                period: 2
            }
        ));
    }

    proptest! {
        #[test]
        fn no_energy_is_lost_or_invented(
            rows in prop::collection::vec(0u64..30_000_000, 1..40),
            constant in 1u32..=100_000,
            seconds in prop::sample::select(vec![1u32, 2, 10, 60, 900, 1800]),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let length = u64::from(seconds) * 1000;
            let begin = 7 * 86_400_000;
            let end = begin + length * rows.len() as u64;
            let mut times: Vec<u64> = cuts
                .iter()
                .map(|cut| begin + cut.index((end - begin) as usize) as u64)
                .chain((0..=rows.len() as u64).map(|row| begin + row * length))
                .collect();
            times.sort_unstable();
            let mut replay = replay(&rows, constant, seconds, begin, AfterLastRow::Stop);
            let (mut pulses, mut energy) = (0u128, 0u128);
            for (row, mwh) in rows.iter().enumerate() {
                let start = begin + row as u64 * length;
                energy += u128::from(*mwh);
                for pair in times.windows(2).filter(|p| p[0] >= start && p[1] <= start + length) {
                    pulses += u128::from(count(&mut replay, pair[0], pair[1]));
                }
                prop_assert_eq!(pulses, energy * u128::from(constant) / 1_000_000);
            }
        }
    }
}
