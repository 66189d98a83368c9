//! Collects the value of every channel at the boundaries of rounds.

use std::collections::BTreeMap;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::MilliwattHours;

/// Boundaries that wait for a slower channel; older ones are given up.
const WAITING: usize = 256;

/// Rounds by which the clock must have been set back for its boundaries to have values
/// again: after a wrong jump ahead counting goes on at once. What the meter submitted
/// stays submitted, whatever the clock says.
const STEPPED_BACK: u32 = 2;

#[derive(Debug)]
pub(super) struct Boundaries {
    channels: usize,
    period: Option<Period>,
    /// Values per boundary that not every channel has reached yet.
    waiting: BTreeMap<Timestamp, Vec<Option<MilliwattHours>>>,
    latest: Option<Timestamp>,
}

impl Boundaries {
    pub(super) fn new(channels: usize) -> Self {
        Self {
            channels,
            period: None,
            waiting: BTreeMap::new(),
            latest: None,
        }
    }

    pub(super) fn set_period(&mut self, period: Option<Period>) {
        if self.period != period {
            self.waiting.clear();
            self.period = period;
        }
    }

    pub(super) fn latest(&self) -> Option<Timestamp> {
        self.latest
    }

    /// The total of a channel at `at` is `energy`. Returns the boundary at `at` if that
    /// makes it complete. The first value of a channel holds, unless the clock was set
    /// back by rounds.
    pub(super) fn note(
        &mut self,
        channel: usize,
        at: Timestamp,
        energy: MilliwattHours,
    ) -> Option<Boundary> {
        let period = self.period?;
        if period.round_at(at).start(period) != at {
            return None;
        }
        if let Some(latest) = self.latest.filter(|latest| at <= *latest) {
            if latest.since(at) < period.duration() * STEPPED_BACK {
                return None;
            }
            self.latest = None;
            self.waiting.clear();
        }
        let values = self
            .waiting
            .entry(at)
            .or_insert_with(|| vec![None; self.channels]);
        values.get_mut(channel)?.get_or_insert(energy);
        let complete: Option<Vec<MilliwattHours>> = values.iter().copied().collect();
        if let Some(channels) = complete {
            self.latest = Some(at);
            self.waiting = self.waiting.split_off(&at);
            self.waiting.remove(&at);
            return Some(Boundary { at, channels });
        }
        if self.waiting.len() > WAITING {
            self.waiting.pop_first();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(number: u64) -> Timestamp {
        Timestamp(number * 60_000)
    }

    #[test]
    fn a_wrong_jump_ahead_does_not_silence_the_register() {
        let mut boundaries = Boundaries::new(1);
        boundaries.set_period(Period::from_secs(60));
        let mut note = |at| boundaries.note(0, minute(at), MilliwattHours(at)).is_some();
        assert!(note(10) && note(5000));
        assert!(note(11) && note(12), "the clock is right again");
        assert!(!note(12) && !note(11), "a boundary has one value");
    }
}
