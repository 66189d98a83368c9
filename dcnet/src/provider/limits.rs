//! What one meter gets of what all share: answers of the provider, and places in the log.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::identity::DeviceId;
use crate::time::{DAY_MS, Timestamp};

/// Bytes of log entries and rosters sent to those that asked for them, within [`TURN`]: well
/// below what a connection takes, so that they leave room for everything else.
const ANSWERS: usize = 32 * 1024 * 1024;

/// Of them, those sent to one meter.
const ANSWERS_TO_ONE: usize = 2 * 1024 * 1024;

/// Time after which the bytes of answers are counted anew.
const TURN: Duration = Duration::from_secs(1);

/// What was sent to those that asked for it, in this [`TURN`].
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// On the monotonic clock.
    since: Duration,
    sent: usize,
    sent_to: BTreeMap<DeviceId, usize>,
}

impl Answers {
    pub(super) fn turn(&mut self, now: Duration) {
        if now >= self.since.saturating_add(TURN) {
            self.since = now;
            self.sent = 0;
            self.sent_to.clear();
        }
    }

    /// Whether so many bytes may be sent to a meter, which the caller then does.
    pub(super) fn allow(&mut self, meter: DeviceId, bytes: usize) -> bool {
        let to_one = self.sent_to.entry(meter).or_default();
        let (one, all) = (
            to_one.saturating_add(bytes),
            self.sent.saturating_add(bytes),
        );
        let allowed = one <= ANSWERS_TO_ONE && all <= ANSWERS;
        if allowed {
            (*to_one, self.sent) = (one, all);
        }
        allowed
    }
}

/// Time over which entries of one device are counted.
const MONTH: Duration = Duration::from_millis(DAY_MS * 30);

/// The newest entries of one kind that each device caused, by their timestamps in the log.
#[derive(Debug)]
pub(super) struct Quota {
    most: usize,
    entries: BTreeMap<DeviceId, VecDeque<Timestamp>>,
}

impl Quota {
    /// At most so many entries of one device within 30 days.
    pub(super) fn new(most: usize) -> Self {
        let entries = BTreeMap::new();
        Self { most, entries }
    }

    /// An entry of this device is in the log.
    pub(super) fn note(&mut self, device: DeviceId, at: Timestamp) {
        let entries = self.entries.entry(device).or_default();
        entries.push_back(at);
        if entries.len() > self.most {
            entries.pop_front();
        }
    }

    /// Whether the device has caused as many entries within 30 days as it may. What was
    /// written while the clock was ahead does not count.
    pub(super) fn is_used_up(&self, device: &DeviceId, now: Timestamp) -> bool {
        let entries = self.entries.get(device).into_iter().flatten();
        let counted = entries.filter(|at| **at <= now && at.plus(MONTH) > now);
        counted.count() >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_bounded_for_one_and_for_all_until_the_next_turn() {
        let meter = |number: u8| DeviceId([number; 16]);
        let mut answers = Answers::default();
        answers.turn(Duration::from_secs(5));
        assert!(answers.allow(meter(0), ANSWERS_TO_ONE));
        assert!(!answers.allow(meter(0), 1));
        let all = (1..=u8::MAX).filter(|number| answers.allow(meter(*number), ANSWERS_TO_ONE));
        assert_eq!(all.count(), ANSWERS / ANSWERS_TO_ONE - 1);
        answers.turn(Duration::from_millis(5999));
        assert!(!answers.allow(meter(200), 1));
        answers.turn(Duration::from_secs(6));
        assert!(answers.allow(meter(0), 1) && answers.allow(meter(200), 1));
    }

    #[test]
    fn a_quota_is_counted_over_30_days_and_not_by_times_to_come() {
        let (device, day) = (DeviceId([1; 16]), Duration::from_millis(DAY_MS));
        let at = |days: u32| Timestamp(1_000_000).plus(day * days);
        let mut quota = Quota::new(2);
        quota.note(device, at(0));
        assert!(!quota.is_used_up(&device, at(1)));
        quota.note(device, at(1));
        assert!(quota.is_used_up(&device, at(1)));
        assert!(quota.is_used_up(&device, at(29)));
        assert!(!quota.is_used_up(&device, at(30)));
        assert!(!quota.is_used_up(&DeviceId([2; 16]), at(1)));
        // Written while the clock was a year ahead.
        quota.note(device, at(365));
        quota.note(device, at(365));
        assert!(!quota.is_used_up(&device, at(2)));
    }
}
