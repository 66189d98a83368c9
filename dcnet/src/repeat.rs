//! Messages that a machine repeats until it sees the protocol's next step: MQTT's
//! acknowledgements prove nothing to it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::output::Message;

/// Longest time between two repetitions.
pub(crate) const LONGEST_INTERVAL: Duration = Duration::from_secs(300);

#[derive(Clone, Debug)]
struct Entry {
    message: Message,
    due: Duration,
    interval: Duration,
}

/// Outstanding messages by purpose; each is repeated with doubling intervals.
#[derive(Clone, Debug)]
pub(crate) struct Repeats<K> {
    entries: BTreeMap<K, Entry>,
}

impl<K: Ord + Copy> Repeats<K> {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }

    /// Repeats `message` from `now + interval` on; the caller publishes it for the first time.
    pub(crate) fn start(&mut self, key: K, message: Message, now: Duration, interval: Duration) {
        let due = now.saturating_add(interval);
        self.entries.insert(
            key,
            Entry {
                message,
                due,
                interval,
            },
        );
    }

    /// Stops repeating; false if nothing was outstanding for that purpose.
    pub(crate) fn stop(&mut self, key: &K) -> bool {
        self.entries.remove(key).is_some()
    }

    /// Stops every repetition whose purpose does not pass the test.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    /// When the next repetition is due.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.entries.values().map(|entry| entry.due).min()
    }

    /// The messages that are due, with their next time moved on.
    pub(crate) fn take_due(&mut self, now: Duration) -> Vec<Message> {
        let mut due = Vec::new();
        for entry in self.entries.values_mut().filter(|entry| entry.due <= now) {
            entry.interval = entry.interval.saturating_mul(2).min(LONGEST_INTERVAL);
            entry.due = now.saturating_add(entry.interval);
            due.push(entry.message.clone());
        }
        due
    }

    /// Everything outstanding, after a new connection; intervals start over.
    pub(crate) fn restart(&mut self, now: Duration, interval: Duration) -> Vec<Message> {
        let mut all = Vec::with_capacity(self.entries.len());
        for entry in self.entries.values_mut() {
            entry.interval = interval;
            entry.due = now.saturating_add(interval);
            all.push(entry.message.clone());
        }
        all
    }
}
