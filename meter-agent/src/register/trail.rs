//! What a channel's total was lately, by the monotonic clock: so a boundary that passed while
//! UTC was unknown gets its value afterwards.
//!
//! There is a point at each whole second of the UTC clock, right or wrong, and at the
//! newest moment. A moment gets the total of the point next to it, so one that was counted up to
//! half a second before or after it; at a whole second of a clock that was right it is exact.
//!
//! Within a trail every moment was counted. Where a channel was not observed, or the device
//! caught up with what it had counted unseen, the trail begins anew.

use std::collections::VecDeque;
use std::time::Duration;

use dcnet::units::MilliwattHours;

use crate::clock::STEP;
use crate::pulse::Batch;

/// Points kept, one per second: two hours. In that time a clock that nothing disciplines drifts
/// by 0.7 s at 100 PPM, so that a longer trail would not be as precise as a second.
pub(super) const LENGTH: usize = 7200;

/// A point further away than this says nothing of a moment.
const NEAR: Duration = Duration::from_secs(1);

/// Of points as near as this to each other the one at a whole second is taken: both clocks
/// cannot be looked at more precisely.
const ALIKE: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug)]
struct Point {
    at: Duration,
    energy: MilliwattHours,
    is_whole_second: bool,
}

/// The trail of one channel.
#[derive(Debug, Default)]
pub(super) struct Trail {
    points: VecDeque<Point>,
}

impl Trail {
    pub(super) fn clear(&mut self) {
        self.points.clear();
    }

    /// A batch took the total from `before` to `after`.
    pub(super) fn extend(&mut self, batch: &Batch, before: MilliwattHours, after: MilliwattHours) {
        let covered = batch.monotonic();
        let newest = self.points.back().map(|point| point.at);
        let joins = newest.is_some_and(|at| at.abs_diff(covered.start) <= STEP);
        if !joins || batch.is_catching_up() {
            self.points.clear();
        }
        let point = |at, energy, utc: dcnet::time::Timestamp| Point {
            at,
            energy,
            is_whole_second: utc.as_millis().is_multiple_of(1000),
        };
        if self.points.is_empty() && !batch.is_catching_up() {
            self.points
                .push_back(point(covered.start, before, batch.from()));
        }
        if self.points.len() > 1 {
            self.points.pop_back_if(|point| !point.is_whole_second);
        }
        let at = covered
            .end
            .max(newest.filter(|_| joins).unwrap_or_default());
        self.points.push_back(point(at, after, batch.until()));
        if self.points.len() > LENGTH {
            self.points.pop_front();
        }
    }

    /// The first and the last moment that it covers.
    pub(super) fn covered(&self) -> Option<(Duration, Duration)> {
        Some((self.points.front()?.at, self.points.back()?.at))
    }

    /// The total at `at`; `None` if it does not cover that moment.
    pub(super) fn total_at(&self, at: Duration) -> Option<MilliwattHours> {
        let (first, last) = self.covered()?;
        if at < first || at > last {
            return None;
        }
        let after = self.points.partition_point(|point| point.at < at);
        // Two on each side: there may be one beside that at a whole second.
        let near = self.points.range(after.saturating_sub(2)..);
        near.take(4)
            .filter(|point| point.at.abs_diff(at) <= NEAR)
            .min_by_key(|point| {
                let distance = point.at.abs_diff(at).as_nanos() / ALIKE.as_nanos();
                (distance, !point.is_whole_second)
            })
            .map(|point| point.energy)
    }
}

#[cfg(test)]
mod tests {
    use dcnet::time::Timestamp;
    use dcnet::units::Pulses;

    use super::*;
    use crate::pulse::Channel;

    const MS: Duration = Duration::from_millis(1);

    /// Batches from one time to the next, in ms, and the total as their number.
    fn trail(times: &[u32]) -> Trail {
        let mut trail = Trail::default();
        for (index, pair) in (0..).zip(times.windows(2)) {
            let utc = Timestamp(u64::from(pair[1]) - 1)..Timestamp(u64::from(pair[1]));
            let batch = Batch::new(Channel(0), utc, pair[0] * MS..pair[1] * MS, Pulses(1));
            let (before, after) = (MilliwattHours(index), MilliwattHours(index + 1));
            trail.extend(&batch.unwrap(), before, after);
        }
        trail
    }

    fn total_at(trail: &Trail, at: u32) -> Option<u64> {
        trail.total_at(at * MS).map(|energy| energy.0)
    }

    #[test]
    fn a_moment_has_the_total_of_the_nearest_point() {
        let trail = trail(&[300, 500, 1000, 1700, 2000, 2600]);
        let found = [299, 300, 600, 700, 1500, 1501, 2000, 2299, 2301, 2600, 2601]
            .map(|at| total_at(&trail, at));
        let expected = [
            None,
            Some(0),
            Some(0),
            Some(2),
            Some(2),
            Some(4),
            Some(4),
            Some(4),
            Some(5),
            Some(5),
            None,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn beside_a_whole_second_it_has_the_total_of_that() {
        let trail = trail(&[1000, 2000, 2004]);
        assert_eq!(total_at(&trail, 2003), Some(1));
    }

    #[test]
    fn a_point_far_away_says_nothing() {
        let trail = trail(&[1000, 6000]);
        let found = [1000, 2000, 2001, 4999, 5000].map(|at| total_at(&trail, at));
        assert_eq!(found, [Some(0), Some(0), None, None, Some(1)]);
    }

    #[test]
    fn it_keeps_two_hours() {
        let times: Vec<u32> = (0..8000).map(|second| second * 1000).collect();
        let trail = trail(&times[1..]);
        assert_eq!(trail.points.len(), LENGTH);
        assert_eq!(trail.covered(), Some((800_000 * MS, 7_999_000 * MS)));
    }
}
