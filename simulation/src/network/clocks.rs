//! Round ends by each meter's own clock, which may be wrong.

use dcnet::meter::MeterCommand;
use dcnet::output::Input;
use dcnet::reading::Boundary;
use dcnet::time::Timestamp;
use dcnet::units::MilliwattHours;

use super::{Happening, Interval, Network};

/// How late a meter may look at its register for a round's end, in milliseconds.
const PUNCTUAL: u64 = 500;

impl Network {
    /// Has a meter look at its clock now, and again at the end of every round by it; to be
    /// called after a change to its skew.
    ///
    /// # Panics
    /// If there is no such meter.
    pub fn look_at_clock(&mut self, meter: usize) {
        self.boundaries[meter].0 += 1;
        let number = self.boundaries[meter].0;
        self.schedule(self.now, Happening::OwnBoundary(meter, number));
    }

    /// Reads the register if a round ends now by the meter's clock; not twice in a row for
    /// one moment, but again if the clock was set back.
    pub(super) fn own_boundary(&mut self, meter: usize, number: u64) {
        if self.boundaries[meter].0 != number {
            return;
        }
        let period = self.world.policy.period;
        let utc = self.clock(meter).utc;
        let at = period.round_at(utc).start(period);
        let wait = period.round_at(utc).end(period).since(utc);
        let wait = u64::try_from(wait.as_millis()).unwrap();
        // A clock that drifts is looked at again before it is due.
        let wait = wait.saturating_sub(wait / 32).max(1);
        self.schedule(self.now + wait, Happening::OwnBoundary(meter, number));
        let seen = self.boundaries[meter].1.as_ref();
        let new = seen.is_none_or(|seen| at != seen.at);
        let late = utc.as_millis() - at.as_millis();
        if new && late <= PUNCTUAL && !self.asleep[meter] {
            self.read_register(meter, at);
        }
    }

    fn read_register(&mut self, meter: usize, at: Timestamp) {
        for channel in 0..self.registers[meter].len() {
            let rise = self.random(5_000_000);
            self.registers[meter][channel] += rise;
        }
        let channels = self.registers[meter].iter().copied();
        let channels = channels.map(MilliwattHours).collect();
        let boundary = Boundary { at, channels };
        let period = self.world.policy.period;
        if let Some(start) = self.boundaries[meter].1.replace(boundary.clone())
            && period.round_at(start.at).end(period) == at
        {
            let round = period.round_at(start.at);
            let intervals = self.intervals.entry((meter, round)).or_default();
            let end = boundary.clone();
            intervals.push(Interval { start, end });
        }
        self.input_meter(meter, Input::Command(MeterCommand::Boundary(boundary)));
    }

    /// The total of a meter's register, per channel.
    ///
    /// # Panics
    /// If there is no such meter.
    pub fn register(&self, meter: usize) -> &[u64] {
        &self.registers[meter]
    }
}
