//! The meter's side of the coin-flip draw of its neighbours.

use std::time::Duration;

use super::{Meter, MeterEvent, Purpose, Stopped, saved};
use crate::alarm::Alarm;
use crate::cbor;
use crate::frame::{self, Notification};
use crate::graph::{MemberIndex, draw_commitment};
use crate::identity::DeviceId;
use crate::membership::Member;
use crate::output::Store;
use crate::secret::Secret;
use crate::time::{DAY_MS, Now, Timestamp};
use crate::topic::{NetId, Up};

/// Most draws of one meter within 30 days.
const DRAWS_PER_MONTH: usize = 4;

/// Who was away itself blames nobody before it has asked again for so long.
const ASKED_AGAIN: Duration = Duration::from_secs(3600);

/// A meter draws again after this time.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A draw that this meter asked for and that is not done.
#[derive(Clone, Debug)]
pub(super) struct OpenDraw {
    /// What the meter committed to; public only once opened.
    pub(super) nonce: Secret,
    /// The signed request.
    pub(super) request: Vec<u8>,
    /// When it was asked for.
    pub(super) since: Timestamp,
    /// Whether the owner was told that the provider leaves it open.
    pub(super) overdue: bool,
}

impl OpenDraw {
    /// What the request commits to.
    pub(super) fn commitment(&self, net: NetId, meter: DeviceId) -> [u8; 32] {
        draw_commitment(net, meter, self.nonce.expose())
    }
}

impl Meter {
    /// The larger of the owner's and the policy's minimum group.
    pub(super) fn minimum_group(&self) -> u32 {
        let policy = self
            .membership
            .as_ref()
            .map_or(0, |m| m.genesis().policy.minimum_group);
        self.config.floors.minimum_group.max(policy)
    }

    /// Asks for a draw if one is needed: the first once the other members reach the
    /// minimum group, then when the membership has doubled, when half of the draw or so
    /// much that a floor is broken has left, when this meter is marked as lapsed, and
    /// once a year.
    pub(super) fn consider_draw(&mut self, now: Now) {
        // Nobody owes a draw to who is stopped or wants to leave.
        if self.is_leaving() || self.stopped.as_ref().is_some_and(Stopped::is_for_good) {
            return;
        }
        if let Some(draw) = &mut self.draw {
            let waited = now.utc.since(draw.since).as_millis();
            let asking = self
                .connected_since
                .map_or(Duration::ZERO, |since| now.monotonic.saturating_sub(since));
            if waited > u128::from(DAY_MS) && asking >= ASKED_AGAIN && !draw.overdue {
                draw.overdue = true;
                self.alarm(Alarm::DrawAbandoned);
            }
            return;
        }
        let (Some(membership), Some(own)) = (&self.membership, self.active_index()) else {
            return;
        };
        let clock_right = self.clock.check(now).is_ok();
        if self.stopped.is_some() || !clock_right || membership.open_invite(own).is_some() {
            return;
        }
        let members = membership.size();
        let (left, lapsed) = (
            self.drawn().len(),
            membership.member(own).is_some_and(Member::is_lapsed),
        );
        // The fewest full drawn edges that any draw must allow.
        let floor = self.required(0);
        // A draw from fewer would be of no use, except to end the own lapse: of two that
        // lapsed, neither is a candidate of the other.
        let candidates = match lapsed {
            true => members.saturating_sub(1),
            false => membership.candidates_of(own),
        };
        if candidates < self.minimum_group() {
            return;
        }
        // Counted by this meter's own clock: the dates in the log are the provider's.
        let old = self
            .draw_times
            .last()
            .is_some_and(|at| at.plus(YEAR) <= now.utc);
        let needed = membership
            .graph()
            .newest(own, u64::MAX)
            .is_none_or(|newest| {
                let doubled = members >= newest.candidates.saturating_add(1).saturating_mul(2);
                let too_few = newest.candidates < self.minimum_group();
                let shrunk = left.saturating_mul(2) < newest.neighbours.len();
                let emergency = u32::try_from(left).unwrap_or(u32::MAX) < floor;
                doubled || too_few || old || shrunk || emergency || lapsed
            });
        if !needed || !self.has_draws_left(now) {
            return;
        }
        let nonce = self.random_secret();
        let commitment = draw_commitment(self.net, self.id, nonce.expose());
        let data = cbor::array([cbor::bytes(&commitment)]);
        let key = &self.config.key;
        let request = frame::sign(key, self.net, now.utc, Notification::DrawRequest, data);
        let draw = OpenDraw {
            nonce,
            request,
            since: now.utc,
            overdue: false,
        };
        self.draw_times.push(now.utc);
        let times = saved::times_bytes(&self.draw_times);
        self.persist(Store::Net, saved::DRAW_TIMES.to_vec(), Some(times));
        self.persist(Store::Net, saved::DRAW.to_vec(), Some(draw.to_bytes()));
        self.publish_until_answered(Purpose::Draw, self.up(Up::Draw), draw.request.clone(), now);
        self.draw = Some(draw);
    }

    /// Whether it has asked for fewer draws than it may within 30 days, in all its memberships.
    pub(super) fn has_draws_left(&self, now: Now) -> bool {
        let month = Duration::from_millis(DAY_MS.saturating_mul(30));
        let asked = self.draw_times.iter().filter(|at| at.plus(month) > now.utc);
        asked.count() < DRAWS_PER_MONTH
    }

    /// Continues an open draw: the request until it is invited, then the opened nonce,
    /// forever. Never a new request while one is open.
    pub(super) fn on_invite(&mut self, now: Now) {
        let (Some(membership), Some(own)) = (&self.membership, self.index()) else {
            return;
        };
        let (Some(draw), Some(invite)) = (&self.draw, membership.open_invite(own)) else {
            return;
        };
        let data = cbor::array([cbor::bytes(&invite.hash), cbor::bytes(draw.nonce.expose())]);
        if invite.commitment != draw.commitment(self.net, self.id) {
            return;
        }
        let key = &self.config.key;
        let open = frame::sign(key, self.net, now.utc, Notification::Open, data);
        self.publish_until_answered(Purpose::Draw, self.up(Up::Draw), open, now);
    }

    /// Forgets a draw that the log has finished, after a restart.
    pub(super) fn drop_finished_draw(&mut self) {
        let (Some(draw), Some(own)) = (&self.draw, self.index()) else {
            return;
        };
        let commitment = draw.commitment(self.net, self.id);
        let finished = self.membership.as_ref().is_some_and(|membership| {
            membership.open_invite(own).is_none() && membership.knows_draw_request(&commitment)
        });
        if finished {
            self.draw = None;
            self.persist(Store::Net, saved::DRAW.to_vec(), None);
        }
    }

    /// A draw of any member is in the log.
    pub(super) fn on_draw(&mut self, drawer: MemberIndex, now: Now) {
        let Some(own) = self.index() else { return };
        if drawer == own {
            self.repeats.stop(&Purpose::Draw);
            self.draw = None;
            self.persist(Store::Net, saved::DRAW.to_vec(), None);
            self.entered = false;
            self.emergency = false;
            let newest = self
                .membership
                .as_ref()
                .and_then(|m| m.graph().newest(own, u64::MAX));
            let neighbours = newest.map_or(0, |draw| draw.neighbours.len());
            self.event(MeterEvent::Drawn { neighbours });
        }
        self.follow_graph(drawer, now);
        if drawer == own {
            self.check_emergency();
        }
    }

    /// Tells the owner once if too few drawn neighbours are left to take part.
    pub(super) fn check_emergency(&mut self) {
        let (Some(membership), Some(own)) = (&self.membership, self.active_index()) else {
            return;
        };
        if self.emergency || membership.graph().newest(own, u64::MAX).is_none() {
            return;
        }
        let neighbours = u32::try_from(self.drawn().len()).unwrap_or(u32::MAX);
        let required = self.required(0);
        if neighbours < required {
            self.emergency = true;
            self.alarm(Alarm::Emergency {
                neighbours,
                required,
            });
        }
    }
}
