//! A meter and the rosters without it: those that the provider has to answer for, and those
//! that the meter itself is the reason of.

use std::time::Duration;

use super::rounds::{OwnRound, RoundStage};
use super::{Meter, MeterEvent, saved};
use crate::alarm::{Alarm, Silence};
use crate::membership::Policy;
use crate::output::Store;
use crate::reveal::next_round_after;
use crate::roster::Roster;
use crate::time::{DAY_MS, Now, Round, Timestamp};

/// Whether the first three quarters of a window are not over that began at `begin`: whoever
/// gets a message by then has the time for it.
fn is_within_window(begin: Timestamp, policy: &Policy, now: Now) -> bool {
    now.utc.since(begin) < Duration::from_millis(u64::from(policy.window_ms) * 3 / 4)
}

/// Whether a submission that leaves now comes in time for the roster.
pub(super) fn is_in_time(round: Round, policy: &Policy, now: Now) -> bool {
    is_within_window(round.end(policy.period), policy, now)
}

impl Meter {
    /// Whether a roster is without this meter for a reason of its own: a provider that keeps to
    /// the rules has nobody on it that owes a reveal, as who has refused a roster does until
    /// its round is closed; or this meter revealed late, still owed that when the roster of a
    /// round that had ended was issued, or has to wait since.
    pub(super) fn made_others_wait(&self, roster: &Roster) -> bool {
        let mut rounds = self.rounds.values();
        let owes = rounds.any(|own| matches!(own.stage, RoundStage::Refused));
        owes || self.revealed_late(roster)
    }

    fn revealed_late(&self, roster: &Roster) -> bool {
        let (Some(membership), Some(last)) = (&self.membership, self.late_reveals.last()) else {
            return false;
        };
        let period = membership.genesis().policy.period;
        let owed_then = *last >= roster.issued.max(roster.round.end(period));
        let next = next_round_after(period.round_at(*last), self.late_reveals.len());
        owed_then || next.is_some_and(|next| roster.round < next)
    }

    /// A roster with a submission of this meter that it knows nothing of: its disk has lost it,
    /// or the provider made it up. It owes the reveal all the same.
    pub(super) fn note_unknown_submission(&mut self, roster: &Roster, now: Now) {
        let round = roster.round;
        if self.is_closed(round, now) {
            return;
        }
        let owed = OwnRound {
            head_index: roster.head_index,
            drawn: Vec::new(),
            used: Vec::new(),
            required: 0,
            minimum_group: 0,
            digest: [0; 8],
            stage: RoundStage::Refused,
        };
        let value = owed.to_bytes();
        self.persist(Store::Net, saved::round_key(round), Some(value));
        self.rounds.insert(round, owed);
        let reason = Silence::WrongDigest;
        self.event(MeterEvent::Silent { round, reason });
    }

    /// Keeps in mind that an answer to this roster made others wait.
    pub(super) fn note_late_reveal(&mut self, roster: &Roster, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if is_within_window(roster.issued, &membership.genesis().policy, now) {
            return;
        }
        let day = Duration::from_millis(DAY_MS);
        self.late_reveals.push(now.utc);
        self.late_reveals.retain(|at| at.plus(day) > now.utc);
        let value = saved::times_bytes(&self.late_reveals);
        self.persist(Store::Net, saved::LATE_REVEALS.to_vec(), Some(value));
    }

    /// A timely submission is not on the roster: the provider may be taking sums with
    /// chosen gaps.
    pub(super) fn count_exclusion(&mut self, now: Now) {
        let month = Duration::from_millis(DAY_MS.saturating_mul(30));
        self.exclusions.push(now.utc);
        self.exclusions.retain(|at| at.plus(month) > now.utc);
        let value = saved::times_bytes(&self.exclusions);
        self.persist(Store::Net, saved::EXCLUSIONS.to_vec(), Some(value));
        let day = Duration::from_millis(DAY_MS);
        let today = self
            .exclusions
            .iter()
            .filter(|at| at.plus(day) > now.utc)
            .count();
        let period = self
            .membership
            .as_ref()
            .map_or(1, |m| m.genesis().policy.period.as_secs());
        let rounds_a_month = 2_592_000_u32.checked_div(period).unwrap_or(0);
        let floors = self.config.floors;
        let month_limit =
            u64::from(rounds_a_month).saturating_mul(u64::from(floors.exclusions_per_month)) / 100;
        let excluded = self.exclusions.len();
        let too_many_today = today > usize::try_from(floors.exclusions_per_day).unwrap_or(0);
        if too_many_today || u64::try_from(excluded).unwrap_or(u64::MAX) > month_limit.max(1) {
            self.stop(Alarm::Exclusions { excluded });
        }
    }

    /// Submissions that waited for the connection go out now. One that still has the time
    /// to come onto the roster counts as any other: else a broker that lets the meter in
    /// just after it has submitted could hide that it is left out.
    pub(super) fn count_as_timely(&mut self, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if self.clock.check(now).is_err() {
            return;
        }
        let policy = membership.genesis().policy;
        let mut changed = Vec::new();
        for (round, own) in &mut self.rounds {
            if let RoundStage::Submitted { timely, .. } = &mut own.stage
                && !*timely
                && is_in_time(*round, &policy, now)
            {
                *timely = true;
                changed.push((*round, own.to_bytes()));
            }
        }
        for (round, value) in changed {
            self.persist(Store::Net, saved::round_key(round), Some(value));
        }
    }
}
