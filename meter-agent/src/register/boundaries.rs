//! Collects the value of every channel at the boundaries of rounds.
//!
//! **While UTC is right** a boundary lies where the batches say. **While it is not known to
//! be right** nothing is noted; a [`Trail`] per channel holds the totals by the monotonic
//! clock. At the moment UTC is known, so is where the boundaries lie in the trails, and those
//! after the latest one that has a value get theirs, earliest first. The same is done when the
//! length of a round becomes known, and with a batch that was cut before UTC was set.
//!
//! After a gap in what a channel counted, the next boundary is not given out: the interval that it
//! ends is not complete, and nobody could tell from two totals.
//!
//! The trails are given up when the machine was suspended, because the monotonic clock stands
//! still then, and when UTC is set although it counted as synchronised: nobody knows
//! which of both was right.

use std::collections::BTreeMap;
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::units::MilliwattHours;

use super::trail::Trail;
use crate::clock::{Moment, SLEW};
use crate::pulse::Batch;

/// Boundaries that wait for a slower channel; older ones are given up.
const WAITING: usize = 256;

/// So many boundaries at most are looked for in a trail, the newest ones. Only the last one, which
/// opens an interval, and those whose submission window is open are of use.
const LATE: u64 = 32;

/// The UTC of a batch is that of the present clock if it differs by no more, and for older
/// batches by what the clock can have been slewed since.
const SAME_CLOCK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Boundaries {
    period: Option<Period>,
    /// Values per boundary that not every channel has reached yet.
    waiting: BTreeMap<Timestamp, Vec<Option<MilliwattHours>>>,
    latest: Option<Boundary>,
    /// Whether pulses since the latest boundary may be missing.
    has_gap: bool,
    /// Per channel.
    trails: Vec<Trail>,
    /// On the monotonic clock; no trail reaches further back.
    trails_begin: Duration,
    /// The clocks when the trails were begun, and as they were last seen.
    seen: Option<(Moment, Moment)>,
    /// Whether boundaries may lie in the trails that were not looked for yet.
    is_behind: bool,
}

impl Boundaries {
    pub(super) fn new(channels: usize) -> Self {
        Self {
            period: None,
            waiting: BTreeMap::new(),
            latest: None,
            has_gap: false,
            trails: (0..channels).map(|_| Trail::default()).collect(),
            trails_begin: Duration::ZERO,
            seen: None,
            is_behind: false,
        }
    }

    pub(super) fn set_period(&mut self, period: Option<Period>) {
        if self.period != period {
            self.waiting.clear();
            self.period = period;
            self.is_behind = true;
        }
    }

    pub(super) fn latest(&self) -> Option<Timestamp> {
        self.latest.as_ref().map(|boundary| boundary.at)
    }

    /// The clocks show `now`. Returns the boundaries that are complete by that.
    pub(super) fn observe(&mut self, now: &Moment) -> Vec<Boundary> {
        let (began, before) = self.seen.unwrap_or((*now, *now));
        let both_synchronised = before.synchronised && now.synchronised;
        if now.was_suspended_since(&began) || (both_synchronised && now.was_stepped_since(&before))
        {
            self.trails.iter_mut().for_each(Trail::clear);
            self.trails_begin = now.monotonic;
            self.seen = Some((*now, *now));
        } else {
            self.seen = Some((began, *now));
        }
        if !now.synchronised {
            self.is_behind = true;
            return Vec::new();
        }
        if !before.synchronised {
            // It may have been wrong for a while before that was noticed.
            self.waiting.clear();
            let utc = now.utc_of(now.monotonic);
            self.latest.take_if(|latest| latest.at > utc);
        }
        if std::mem::take(&mut self.is_behind) {
            let channels = 0..self.trails.len();
            return channels
                .flat_map(|channel| self.look_back(channel, now))
                .collect();
        }
        Vec::new()
    }

    /// A batch took the total of its channel from `before` to `after`. Returns as
    /// [`Boundaries::observe`].
    pub(super) fn record(
        &mut self,
        batch: &Batch,
        before: MilliwattHours,
        after: MilliwattHours,
        now: &Moment,
    ) -> Vec<Boundary> {
        let mut found = self.observe(now);
        let channel = batch.channel().0;
        if batch.follows_a_gap() {
            // What is complete from here on has this channel's total of after the gap.
            self.waiting.clear();
            self.has_gap |= self.latest.is_some();
            if let Some(trail) = self.trails.get_mut(channel) {
                trail.clear();
            }
        }
        if let Some(trail) = self.trails.get_mut(channel) {
            if batch.monotonic().start < self.trails_begin {
                trail.clear();
            } else {
                trail.extend(batch, before, after);
            }
        }
        if !now.synchronised {
            return found;
        }
        if is_of_present_clock(batch, now) {
            let ends = [(batch.from(), before), (batch.until(), after)];
            found.extend(
                ends.into_iter()
                    .filter_map(|(at, energy)| self.note(channel, at, energy)),
            );
        } else {
            found.extend(self.look_back(channel, now));
        }
        found
    }

    /// Notes the boundaries in the trail of a channel.
    fn look_back(&mut self, channel: usize, now: &Moment) -> Vec<Boundary> {
        let covered = self.trails.get(channel).and_then(Trail::covered);
        let (Some(period), Some((first, last))) = (self.period, covered) else {
            return Vec::new();
        };
        let round_at = |at| period.round_at(now.utc_of(at)).0;
        let last = round_at(last);
        let first = round_at(first).max(last.saturating_sub(LATE - 1));
        let mut found = Vec::new();
        for round in first..=last {
            let at = Round(round).start(period);
            let trail = self.trails.get(channel);
            let total = trail
                .zip(now.monotonic_of(at))
                .and_then(|(trail, at)| trail.total_at(at));
            found.extend(total.and_then(|energy| self.note(channel, at, energy)));
        }
        found
    }

    /// The total of a channel at `at` is `energy`. Returns the boundary at `at` if that
    /// makes it complete. The first value of a channel holds.
    fn note(&mut self, channel: usize, at: Timestamp, energy: MilliwattHours) -> Option<Boundary> {
        let period = self.period?;
        if period.round_at(at).start(period) != at || self.latest().is_some_and(|l| at <= l) {
            return None;
        }
        let values = self
            .waiting
            .entry(at)
            .or_insert_with(|| vec![None; self.trails.len()]);
        values.get_mut(channel)?.get_or_insert(energy);
        let complete: Option<Vec<MilliwattHours>> = values.iter().copied().collect();
        if let Some(channels) = complete {
            self.waiting = self.waiting.split_off(&at);
            self.waiting.remove(&at);
            return self.complete(Boundary { at, channels });
        }
        if self.waiting.len() > WAITING {
            self.waiting.pop_first();
        }
        None
    }

    /// The first boundary after a gap is kept back, so that no interval with a gap in it has both of
    /// its ends. A boundary whose total is less than that of an earlier one shows that the clock was wrong
    /// when the earlier one was noted: it is given up.
    fn complete(&mut self, boundary: Boundary) -> Option<Boundary> {
        let goes_back = self.latest.as_ref().is_some_and(|latest| {
            let mut pairs = latest.channels.iter().zip(&boundary.channels);
            pairs.any(|(earlier, later)| later < earlier)
        });
        if goes_back {
            return None;
        }
        self.latest = Some(boundary.clone());
        (!std::mem::take(&mut self.has_gap)).then_some(boundary)
    }
}

/// Whether the clock that a batch was cut by is the UTC clock as it is now.
fn is_of_present_clock(batch: &Batch, now: &Moment) -> bool {
    let end = batch.monotonic().end;
    let age = now.monotonic.saturating_sub(end);
    let (cut, present) = (batch.until(), now.utc_of(end));
    cut.since(present).max(present.since(cut)) <= SAME_CLOCK + age / SLEW
}
