//! The rules of "What a meter checks" that are plain arithmetic, apart from the state they
//! are applied to.

use crate::alarm::Silence;
use crate::bitmap::Bitmap;
use crate::graph::MemberIndex;
use crate::membership::HARD_FLOOR;
use crate::roster::Roster;
use crate::time::{Now, Period, Timestamp};

/// `L = max(own floor ≥ 3, policy, ⌈0.6·d⌉)`: the fewest full drawn edges.
pub(super) fn required_neighbours(own_floor: u32, policy: u32, drawn: usize) -> u32 {
    let drawn = u32::try_from(drawn).unwrap_or(u32::MAX);
    let share = drawn.saturating_mul(3).div_ceil(5);
    own_floor.max(HARD_FLOOR).max(policy).max(share)
}

/// Watches UTC against the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClockWatch {
    /// The newest look at which UTC was synchronised.
    trusted: Option<Now>,
    unconfirmed: bool,
    /// Longest forward jump that needs no confirmation, in milliseconds.
    tolerance_ms: u64,
}

impl ClockWatch {
    pub(super) fn new(now: Now) -> Self {
        Self {
            trusted: now.synchronised.then_some(now),
            unconfirmed: false,
            tolerance_ms: 60_000,
        }
    }

    pub(super) fn set_period(&mut self, period: Period) {
        self.tolerance_ms = u64::from(period.as_secs()).saturating_mul(1000);
    }

    /// Notes both clocks; returns the size in seconds of a jump ahead that needs
    /// confirmation. While it is not synchronised UTC means nothing: a synchronised UTC is
    /// held against the last one that was, however long ago, and the first against none.
    pub(super) fn observe(&mut self, now: Now) -> Option<u64> {
        let last = if now.synchronised {
            self.trusted.replace(now)?
        } else {
            return None;
        };
        let elapsed = now.monotonic.saturating_sub(last.monotonic);
        let ahead = now.utc.since(last.utc.plus(elapsed));
        let tolerance = std::time::Duration::from_millis(self.tolerance_ms);
        if ahead > tolerance {
            self.unconfirmed = true;
            return Some(ahead.as_secs());
        }
        None
    }

    /// A jump from before a restart is still not confirmed.
    pub(super) fn require_confirmation(&mut self) {
        self.unconfirmed = true;
    }

    pub(super) fn confirm(&mut self) {
        self.unconfirmed = false;
    }

    pub(super) fn check(&self, now: Now) -> Result<(), Silence> {
        if !now.synchronised {
            Err(Silence::ClockUnsynchronised)
        } else if self.unconfirmed {
            Err(Silence::ClockUnconfirmed)
        } else {
            Ok(())
        }
    }
}

/// UTC and the monotonic clock agree within 2 % over the interval between two looks at both.
pub(super) fn in_step(start: Now, end: Now) -> Result<(), Silence> {
    let monotonic = end.monotonic.saturating_sub(start.monotonic).as_millis();
    let utc = i128::from(end.utc.as_millis()).saturating_sub(i128::from(start.utc.as_millis()));
    let monotonic = i128::try_from(monotonic).unwrap_or(i128::MAX);
    let difference = utc.saturating_sub(monotonic).saturating_abs();
    if difference.saturating_mul(50) > monotonic {
        Err(Silence::ClockOutOfStep)
    } else {
        Ok(())
    }
}

/// The interval starts at or after the end of the last one submitted from this register.
pub(super) fn not_submitted_yet(
    start: Timestamp,
    submitted_until: Timestamp,
) -> Result<(), Silence> {
    if start < submitted_until {
        Err(Silence::AlreadySubmitted)
    } else {
        Ok(())
    }
}

/// Included are at least `percent` of the members seen in the last rosters, less those
/// that `left` by the roster's log head.
pub(super) fn presence<'a>(
    roster: &Roster,
    seen: impl Iterator<Item = &'a Bitmap>,
    left: impl Fn(usize) -> bool,
    percent: u32,
) -> Result<(), Silence> {
    let mut union = Bitmap::empty(0);
    let mut last = None;
    for bitmap in seen {
        // Most rounds have the same members as the one before.
        if last != Some(bitmap) {
            union.include(bitmap);
        }
        last = Some(bitmap);
    }
    let included = u64::try_from(roster.included.count()).unwrap_or(0);
    let lately = union.iter().filter(|member| !left(*member)).count();
    let lately = u64::try_from(lately).unwrap_or(u64::MAX);
    if included.saturating_mul(100) < lately.saturating_mul(u64::from(percent)) {
        Err(Silence::PresenceTooLow)
    } else {
        Ok(())
    }
}

/// Whether an edge that `own` used is full: both included, and not half-open.
pub(super) fn is_full_if_used(roster: &Roster, own: MemberIndex, peer: MemberIndex) -> bool {
    roster.includes(peer) && !roster.states_half_open(own, peer)
}

/// What a meter did in a round, as far as the roster can contradict it.
pub(super) struct Used<'a> {
    pub(super) own: MemberIndex,
    /// Neighbours whose pads are in the submission, ascending.
    pub(super) peers: &'a [MemberIndex],
}

impl Used<'_> {
    fn used(&self, peer: MemberIndex) -> bool {
        self.peers.binary_search(&peer).is_ok()
    }

    /// No half-open claim, in either direction, contradicts what this meter used.
    pub(super) fn claims_hold(&self, roster: &Roster) -> Result<(), Silence> {
        let holds = roster.half_open.iter().all(|claim| {
            if claim.user == self.own {
                self.used(claim.non_user)
            } else if claim.non_user == self.own {
                !self.used(claim.user)
            } else {
                true
            }
        });
        if holds {
            Ok(())
        } else {
            Err(Silence::HalfOpenClaim)
        }
    }

    /// Whether the edge to a neighbour is full: used, both included, not half-open.
    fn is_full(&self, roster: &Roster, peer: MemberIndex) -> bool {
        self.used(peer) && is_full_if_used(roster, self.own, peer)
    }

    /// At least `required` of the drawn edges are full.
    pub(super) fn enough_full(
        &self,
        roster: &Roster,
        drawn: &[MemberIndex],
        required: u32,
    ) -> Result<(), Silence> {
        let full = drawn
            .iter()
            .filter(|peer| self.is_full(roster, **peer))
            .count();
        if full < usize::try_from(required).unwrap_or(usize::MAX) {
            Err(Silence::TooFewFullEdges)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn now(monotonic_ms: u64, utc_ms: u64, synchronised: bool) -> Now {
        Now {
            monotonic: Duration::from_millis(monotonic_ms),
            utc: Timestamp(utc_ms),
            synchronised,
        }
    }

    #[test]
    fn required_neighbours_is_the_largest_of_three() {
        assert_eq!(required_neighbours(0, 0, 0), 3);
        assert_eq!(required_neighbours(3, 7, 10), 7);
        assert_eq!(required_neighbours(9, 7, 10), 9);
        assert_eq!(required_neighbours(3, 3, 48), 29);
        assert_eq!(required_neighbours(3, 3, 11), 7);
    }

    #[test]
    fn a_jump_ahead_of_the_last_synchronised_clock_needs_confirmation() {
        let mut clock = ClockWatch::new(now(0, 0, false));
        clock.set_period(Period::from_secs(60).unwrap());
        assert_eq!(clock.observe(now(1000, 9_000_000, true)), None);
        assert_eq!(clock.check(now(1000, 9_000_000, true)), Ok(()));
        assert_eq!(clock.observe(now(2000, 9_061_000, true)), None);
        assert_eq!(clock.observe(now(3000, 9_123_000, true)), Some(61));
        assert_eq!(
            clock.check(now(3000, 9_123_000, true)),
            Err(Silence::ClockUnconfirmed)
        );
        clock.confirm();
        assert_eq!(clock.check(now(3000, 9_123_000, true)), Ok(()));
        assert_eq!(clock.observe(now(4000, 9_500_000, false)), None);
        assert_eq!(
            clock.observe(now(5000, 9_186_001, true)),
            Some(61),
            "held against the last synchronised look, not against the one before"
        );
        clock.confirm();
        assert_eq!(
            clock.check(now(3000, 0, false)),
            Err(Silence::ClockUnsynchronised)
        );
    }

    #[test]
    fn clocks_may_differ_by_two_percent() {
        let start = now(0, 1000, true);
        assert_eq!(in_step(start, now(1000, 2020, true)), Ok(()));
        assert_eq!(in_step(start, now(1000, 1980, true)), Ok(()));
        assert_eq!(
            in_step(start, now(1000, 2021, true)),
            Err(Silence::ClockOutOfStep)
        );
        assert_eq!(
            in_step(start, now(1000, 1979, true)),
            Err(Silence::ClockOutOfStep)
        );
        assert_eq!(
            in_step(start, now(1000, 500, true)),
            Err(Silence::ClockOutOfStep)
        );
    }

    fn roster(included: &[usize], half_open: &[(u32, u32)]) -> Roster {
        let mut bitmap = Bitmap::empty(10);
        included.iter().for_each(|i| bitmap.set(*i));
        let claim = |(user, non_user): &(u32, u32)| crate::roster::HalfOpen {
            user: *user,
            non_user: *non_user,
        };
        Roster {
            round: crate::time::Round(1),
            log_head: [0; 32],
            head_index: 0,
            included: bitmap,
            digests: Vec::new(),
            half_open: half_open.iter().map(claim).collect(),
            previous: None,
            issued: Timestamp(0),
            hash: [0; 32],
        }
    }

    #[test]
    fn claims_about_own_edges_must_be_true_in_both_directions() {
        let used = Used {
            own: 0,
            peers: &[1, 2],
        };
        assert_eq!(
            used.claims_hold(&roster(&[0, 1, 2, 3], &[(0, 1), (3, 0), (2, 3)])),
            Ok(())
        );
        let false_claim = Err(Silence::HalfOpenClaim);
        assert_eq!(
            used.claims_hold(&roster(&[0, 1, 2, 3], &[(0, 3)])),
            false_claim
        );
        assert_eq!(
            used.claims_hold(&roster(&[0, 1, 2, 3], &[(1, 0)])),
            false_claim
        );
    }

    #[test]
    fn absent_unused_and_half_open_neighbours_are_not_full() {
        let used = Used {
            own: 0,
            peers: &[1, 2, 3],
        };
        let roster = roster(&[0, 1, 2, 4], &[(0, 2)]);
        let full: Vec<u32> = (1..5).filter(|peer| used.is_full(&roster, *peer)).collect();
        assert_eq!(full, [1]);
        assert_eq!(used.enough_full(&roster, &[1, 2, 3], 1), Ok(()));
        assert_eq!(
            used.enough_full(&roster, &[1, 2, 3], 2),
            Err(Silence::TooFewFullEdges)
        );
        // Incoming edges add pads but never count.
        assert_eq!(
            used.enough_full(&roster, &[2, 3], 1),
            Err(Silence::TooFewFullEdges)
        );
    }

    #[test]
    fn presence_counts_distinct_members_of_the_last_rosters() {
        let presence = |roster: &Roster, sets: &[&[usize]], percent| {
            let seen: Vec<Bitmap> = sets
                .iter()
                .map(|set| self::roster(set, &[]).included)
                .collect();
            super::presence(roster, seen.iter(), |place| place == 9, percent)
        };
        let four = roster(&[0, 1, 2, 3], &[]);
        assert_eq!(presence(&four, &[&[0, 1, 2], &[2, 3, 4]], 80), Ok(()));
        let too_low = Err(Silence::PresenceTooLow);
        assert_eq!(presence(&four, &[&[0, 1, 2], &[2, 3, 4, 5]], 80), too_low);
        assert_eq!(presence(&four, &[], 80), Ok(()));
        // Who left by then is not missed.
        assert_eq!(presence(&four, &[&[0, 1, 2], &[2, 3, 4, 9]], 80), Ok(()));
    }
}
