//! Time as the protocol sees it: UTC timestamps, rounds, days, and the pair of
//! clocks a state machine is driven by.

use std::fmt;
use std::time::Duration;

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;

/// By how much the clock of the other side, which says that a round has ended, may be ahead.
pub(crate) const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// A point in UTC, in milliseconds since 1970-01-01T00:00:00Z, leap seconds ignored (POSIX).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since the epoch.
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// The timestamp `by` later; saturates.
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }

    /// The timestamp `by` earlier; saturates at the epoch.
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(millis(by)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The UTC day this falls into.
    pub fn day(self) -> Day {
        Day(u32::try_from(self.0 / DAY_MS).unwrap_or(u32::MAX))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Days since 1970-01-01 in UTC; pair keys are ratcheted once per day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub u32);

impl Day {
    /// The first moment of the day.
    pub fn start(self) -> Timestamp {
        Timestamp(u64::from(self.0).saturating_mul(DAY_MS))
    }

    /// The first moment of the next day.
    pub fn end(self) -> Timestamp {
        Timestamp(u64::from(self.0).saturating_add(1).saturating_mul(DAY_MS))
    }
}

/// The length of a round in whole seconds, 1 s to one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(u32);

impl Period {
    /// A period of `seconds`; `None` unless it divides a day evenly, so that no
    /// round straddles midnight and every round has exactly one day.
    pub fn from_secs(seconds: u32) -> Option<Self> {
        86_400_u32.is_multiple_of(seconds).then_some(Self(seconds))
    }

    /// Length in seconds.
    pub fn as_secs(self) -> u32 {
        self.0
    }

    /// Length as a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0))
    }

    /// The round that covers `at`.
    pub fn round_at(self, at: Timestamp) -> Round {
        // A period is never zero.
        Round(
            at.0.checked_div(u64::from(self.0).saturating_mul(1000))
                .unwrap_or(0),
        )
    }
}

/// The number of a round: it covers `[round·period, (round+1)·period)` of UTC
/// (`docs/protocol.md`, "A round").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u64);

impl Round {
    /// First moment of the interval.
    pub fn start(self, period: Period) -> Timestamp {
        Timestamp(
            self.0
                .saturating_mul(u64::from(period.0))
                .saturating_mul(1000),
        )
    }

    /// First moment after the interval.
    pub fn end(self, period: Period) -> Timestamp {
        self.next().start(period)
    }

    /// The day the interval lies in.
    pub fn day(self, period: Period) -> Day {
        self.start(period).day()
    }

    /// The following round.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The time of an input, from both clocks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time since an arbitrary start; used for every deadline.
    pub monotonic: Duration,
    /// The UTC clock, right or wrong.
    pub utc: Timestamp,
    /// Whether the UTC clock is known to be synchronised (NTP, GNSS).
    pub synchronised: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_covers_its_interval_and_nothing_else() {
        let period = Period::from_secs(900).unwrap();
        let round = period.round_at(Timestamp(1_800_000));
        assert_eq!(round, Round(2));
        assert_eq!(round.start(period), Timestamp(1_800_000));
        assert_eq!(round.end(period), Timestamp(2_700_000));
        assert_eq!(period.round_at(Timestamp(2_699_999)), round);
        assert_eq!(period.round_at(round.end(period)), Round(3));
    }

    #[test]
    fn periods_divide_a_day() {
        assert!(Period::from_secs(0).is_none());
        assert!(Period::from_secs(7).is_none());
        assert!(Period::from_secs(86_401).is_none());
        assert!(Period::from_secs(2).is_some());
    }
}
