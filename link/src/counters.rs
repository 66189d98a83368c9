//! What the link has done, counted for the owner.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Running counters, shared between the driver and its owner.
        #[derive(Debug, Default)]
        pub struct Counters { $(pub(crate) $name: AtomicU64,)+ }

        /// The counters at one moment; each only grows while the driver lives.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)+ }

        impl Counters {
            /// Reads all counters.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl Totals {
            /// Names and values, for metrics pages.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Connections on which every subscription was granted.
    connects,
    /// Connections or attempts that ended in an error.
    failures,
    /// Messages sent to the broker.
    published,
    /// Of them, acknowledged by the broker.
    acknowledged,
    /// Payload bytes handed to the connection.
    bytes_out,
    /// Messages handed to the machine.
    received,
    /// Payload bytes handed to the machine.
    bytes_in,
    /// Transactions of the journal.
    commits,
    /// Times that the journal could not be written or opened.
    journal_failures,
    /// Inputs that came while there was no journal.
    dropped_no_journal,
    /// Records in them.
    records,
    /// Received, but the topic is none of the protocol's.
    dropped_topic,
    /// Received, but longer than a payload may be.
    dropped_oversized,
    /// Received before the subscriptions were granted, and too many to be kept.
    dropped_early,
    /// To be published while there was no connection.
    dropped_offline,
    /// To be published, but the connection broke first.
    dropped_broken,
    /// To be published, but the outgoing queue was full.
    dropped_full,
    /// To be published, but longer than a payload may be.
    dropped_too_long,
    /// Events the owner did not take in time.
    dropped_events,
}

pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
}
