//! Collects the value of every channel at the boundaries of rounds.

use std::collections::BTreeMap;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::MilliwattHours;

/// Boundaries that wait for a slower channel; older ones are given up.
const WAITING: usize = 256;

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
    /// makes it complete. The first value of a channel holds.
    pub(super) fn note(
        &mut self,
        channel: usize,
        at: Timestamp,
        energy: MilliwattHours,
    ) -> Option<Boundary> {
        let period = self.period?;
        if period.round_at(at).start(period) != at || self.latest.is_some_and(|l| at <= l) {
            return None;
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
