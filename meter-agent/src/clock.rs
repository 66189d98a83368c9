//! The two clocks of the machine, and how a time on the monotonic one becomes UTC.
//!
//! Edges are stamped by the kernel on the monotonic clock, which never steps;
//! rounds are intervals of UTC, which does (a board without a battery-backed clock
//! boots in the past). [`UtcMap`] translates stretch by stretch: it follows slow
//! corrections without a gap and starts anew after a step, so that a step moves
//! the boundaries but never loses or repeats a pulse. A [`Moment`] of a time when UTC is known
//! to be right translates what lies before it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dcnet::time::Timestamp;

/// Corrections of the UTC clock up to this size are followed without a gap;
/// larger ones are steps (NTP steps the clock from 128 ms, RFC 5905, section 11.2.3).
pub const STEP: Duration = Duration::from_millis(100);

/// The largest part of itself by which the UTC clock is slewed: 1/2000 (RFC 5905, section 11.3,
/// 500 PPM).
pub const SLEW: u32 = 2000;

/// The UTC clock, as a duration since the epoch; zero before 1970.
pub fn utc() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The UTC clock in whole milliseconds, rounded down.
pub fn utc_timestamp() -> Timestamp {
    timestamp(utc())
}

/// The clock that the kernel stamps GPIO edges with (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The monotonic and the UTC clock at one moment. A thread that loses its processor between two
/// looks would make them seem out of step, so such a look is taken again.
pub fn both() -> (Duration, Duration) {
    let mut tries = 0;
    loop {
        let (before, utc, after) = (monotonic(), utc(), monotonic());
        tries += 1;
        if after.saturating_sub(before) < Duration::from_millis(1) || tries == 10 {
            return (after, utc);
        }
    }
}

/// For how long the machine has been suspended since it was booted. The monotonic clock
/// stands still then (clock_gettime(2)).
fn suspended() -> Duration {
    let booted = |id| {
        let time = rustix::time::clock_gettime(id);
        let nanoseconds = time.tv_sec.saturating_mul(1_000_000_000);
        nanoseconds.saturating_add(time.tv_nsec)
    };
    let mut tries = 0;
    loop {
        let before = booted(rustix::time::ClockId::Monotonic);
        let all = booted(rustix::time::ClockId::Boottime);
        let after = booted(rustix::time::ClockId::Monotonic);
        tries += 1;
        if after.saturating_sub(before) < 1_000_000 || tries == 10 {
            return Duration::from_nanos(u64::try_from(all.saturating_sub(after)).unwrap_or(0));
        }
    }
}

/// What the clocks of the machine show at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The clock of [`monotonic`].
    pub monotonic: Duration,
    /// The UTC clock, right or wrong, since the epoch.
    pub utc: Duration,
    /// Whether the UTC clock is known to be right.
    pub synchronised: bool,
    /// For how long the machine has been suspended since it was booted; `monotonic` stood still
    /// then.
    pub suspended: Duration,
}

impl Moment {
    /// Now; `clock` says whether UTC is right.
    pub fn now(clock: &link::Clock) -> Self {
        // Asked first: UTC is set before it counts as synchronised.
        let synchronised = clock.now().synchronised;
        let (monotonic, utc) = both();
        Self {
            monotonic,
            utc,
            synchronised,
            suspended: suspended(),
        }
    }

    /// The UTC time at which the monotonic clock showed `at`, if UTC is as it is at this moment.
    pub fn utc_of(&self, at: Duration) -> Timestamp {
        timestamp(
            (self.utc + at.saturating_sub(self.monotonic))
                .saturating_sub(self.monotonic.saturating_sub(at)),
        )
    }

    /// What the monotonic clock showed at `at` in UTC, if UTC is as it is at this moment; `None` if
    /// that was before it began.
    pub fn monotonic_of(&self, at: Timestamp) -> Option<Duration> {
        let at = Duration::from_millis(at.as_millis());
        (self.monotonic + at.saturating_sub(self.utc)).checked_sub(self.utc.saturating_sub(at))
    }

    /// Whether UTC was stepped between `before` and this moment.
    pub fn was_stepped_since(&self, before: &Self) -> bool {
        let expected = before.utc + self.monotonic.saturating_sub(before.monotonic);
        self.utc.abs_diff(expected) > STEP
    }

    /// Whether the machine was suspended between `before` and this moment.
    pub fn was_suspended_since(&self, before: &Self) -> bool {
        self.suspended.abs_diff(before.suspended) > STEP
    }
}

/// A time since the epoch in whole milliseconds, rounded down.
pub(crate) fn timestamp(utc: Duration) -> Timestamp {
    Timestamp(u64::try_from(utc.as_millis()).unwrap_or(u64::MAX))
}

/// A stretch of monotonic time and the UTC interval `[from, until)` it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First moment in UTC: the end of the stretch before, unless the clock was stepped.
    pub from: Timestamp,
    /// The moment after the last one.
    pub until: Timestamp,
    /// Whether UTC was stepped, so that the stretch does not join the one before.
    pub stepped: bool,
    /// The monotonic time at which it begins: the end of the stretch before.
    pub begin: Duration,
    monotonic: Duration,
}

impl Stretch {
    /// The UTC time of an event at `at` on the monotonic clock, put at the start
    /// of the stretch if it would lie before it. At or past `until` it belongs to
    /// a later stretch.
    pub fn utc_of(&self, at: Duration) -> Timestamp {
        let ahead = at.saturating_sub(self.monotonic);
        let behind = self.monotonic.saturating_sub(at);
        let end = Duration::from_nanos(self.until_nanos());
        timestamp((end + ahead).saturating_sub(behind)).max(self.from)
    }

    /// The monotonic time of a moment of the stretch.
    pub fn monotonic_of(&self, at: Timestamp) -> Duration {
        let before = self.until.since(at);
        self.monotonic.saturating_sub(before).max(self.begin)
    }

    fn until_nanos(&self) -> u64 {
        self.until.as_millis().saturating_mul(1_000_000)
    }
}

/// Translates successive stretches of monotonic time into UTC.
#[derive(Debug, Default)]
pub struct UtcMap {
    last: Option<(Duration, Timestamp)>,
}

impl UtcMap {
    /// A map that has seen no stretch yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The stretch from the end of the one before to `end` on the monotonic clock,
    /// given what both clocks show now. The first call only marks the start.
    /// `None` as well while `end` has not moved on by a millisecond.
    pub fn stretch(
        &mut self,
        end: Duration,
        monotonic_now: Duration,
        utc_now: Duration,
    ) -> Option<Stretch> {
        let to_utc = |at: Duration| {
            timestamp(
                (utc_now + at.saturating_sub(monotonic_now))
                    .saturating_sub(monotonic_now.saturating_sub(at)),
            )
        };
        let until = to_utc(end);
        let Some((last_end, last_until)) = self.last else {
            self.last = Some((end, until));
            return None;
        };
        let expected = to_utc(last_end);
        let correction = expected.since(last_until).max(last_until.since(expected));
        let stepped = correction > STEP;
        let from = if stepped { expected } else { last_until };
        if until <= from || end <= last_end {
            return None;
        }
        self.last = Some((end, until));
        Some(Stretch {
            from,
            until,
            stepped,
            begin: last_end,
            // `until` is rounded down to milliseconds: keep the instant it names exactly.
            monotonic: end.saturating_sub(sub_millisecond(end, monotonic_now, utc_now)),
        })
    }
}

fn sub_millisecond(end: Duration, monotonic_now: Duration, utc_now: Duration) -> Duration {
    let exact = (utc_now + end.saturating_sub(monotonic_now))
        .saturating_sub(monotonic_now.saturating_sub(end));
    Duration::from_nanos(u64::from(exact.subsec_nanos()) % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn stretches_join_while_the_clocks_run_alike() {
        let mut map = UtcMap::new();
        assert_eq!(map.stretch(10 * MS, 10 * MS, 5010 * MS), None);
        let first = map.stretch(60 * MS, 60 * MS, 5060 * MS).unwrap();
        let second = map.stretch(110 * MS, 110 * MS, 5110 * MS).unwrap();
        assert_eq!(
            (first.from, first.until),
            (Timestamp(5010), Timestamp(5060))
        );
        assert_eq!(second.from, first.until);
        assert!(!second.stepped);
        assert_eq!(second.utc_of(100 * MS), Timestamp(5100));
        assert_eq!(second.utc_of(110 * MS), second.until);
        assert_eq!(second.utc_of(109 * MS + MS / 2), Timestamp(5109));
    }

    #[test]
    fn a_small_correction_leaves_no_gap() {
        let mut map = UtcMap::new();
        map.stretch(Duration::ZERO, Duration::ZERO, 1000 * MS);
        map.stretch(50 * MS, 50 * MS, 1050 * MS);
        let stretch = map.stretch(100 * MS, 100 * MS, 1180 * MS).unwrap();
        assert_eq!(stretch.from, Timestamp(1050));
        assert_eq!(stretch.until, Timestamp(1180));
        let stretch = map.stretch(200 * MS, 200 * MS, 1230 * MS).unwrap();
        assert_eq!(
            (stretch.from, stretch.until),
            (Timestamp(1180), Timestamp(1230))
        );
        assert_eq!(
            stretch.utc_of(101 * MS),
            Timestamp(1180),
            "never before the stretch"
        );
    }

    #[test]
    fn a_step_forward_leaves_a_gap_and_a_step_back_an_overlap() {
        let mut map = UtcMap::new();
        map.stretch(Duration::ZERO, Duration::ZERO, 1000 * MS);
        map.stretch(50 * MS, 50 * MS, 1050 * MS);
        let ahead = map.stretch(100 * MS, 100 * MS, 9_001_100 * MS).unwrap();
        assert!(ahead.stepped);
        assert_eq!(
            (ahead.from, ahead.until),
            (Timestamp(9_001_050), Timestamp(9_001_100))
        );
        let back = map.stretch(150 * MS, 150 * MS, 1150 * MS).unwrap();
        assert!(back.stepped);
        assert_eq!((back.from, back.until), (Timestamp(1100), Timestamp(1150)));
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        assert!(monotonic() <= monotonic());
    }
}
