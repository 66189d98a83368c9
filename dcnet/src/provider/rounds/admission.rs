//! Who is on a roster, and why others are not.

use std::collections::BTreeMap;
use std::fmt;

use super::{Taken, common, place, users_of};
use crate::bitmap::Bitmap;
use crate::graph::MemberIndex;
use crate::membership::Member;
use crate::provider::Provider;
use crate::roster::HalfOpen;
use crate::time::Round;

/// Why a submission is not on the roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// Its sender is no member any more.
    Gone,
    /// Its sender owes a reveal, or has to wait because it made others wait.
    Owing,
    /// Too few of those that its sender drew are on the roster and used its pads.
    Neighbours,
    /// Fewer are on the roster than its sender asks for.
    Group,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "left",
            Self::Owing => "made others wait",
            Self::Neighbours => "too few neighbours",
            Self::Group => "too small a group",
        })
    }
}

/// Why a round gets no roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoRoster {
    /// Nobody is left after those were dropped that ask for more than the others offer.
    TooFew,
    /// More edges were used by one end only than a roster can list.
    HalfOpen,
    /// Too many of the lately seen members are missing.
    Presence,
    /// The provider was not connected from the end of the round on, and not all meters have
    /// submitted: those that did so in time may be among the others.
    NotListening,
}

impl fmt::Display for NoRoster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooFew => "too few submissions for what the meters ask for",
            Self::HalfOpen => "too many edges that only one end used",
            Self::Presence => "too many of the lately seen meters are missing",
            Self::NotListening => "the provider was not connected from the end of the round on",
        })
    }
}

/// The submissions of a round, sorted.
pub(super) struct Admission {
    /// Ascending.
    pub(super) included: Vec<MemberIndex>,
    pub(super) dropped: Vec<(MemberIndex, Dropped)>,
}

impl Provider {
    /// The largest set of submissions whose stated minima it meets, and why the others are
    /// not in it.
    pub(super) fn admissible(
        &self,
        round: Round,
        taken: &BTreeMap<MemberIndex, Taken>,
    ) -> Admission {
        let barred = self.barred(round);
        let users = users_of(taken);
        let mut kept = Bitmap::empty(users.len());
        let mut dropped = Vec::new();
        for member in taken.keys() {
            let here = self.membership.member(*member);
            if !here.is_some_and(Member::is_active) {
                dropped.push((*member, Dropped::Gone));
            } else if barred.contains(member) {
                dropped.push((*member, Dropped::Owing));
            } else {
                kept.set(place(*member));
            }
        }
        loop {
            let before = kept.count();
            let refused = |member: &MemberIndex, own: &Taken| {
                let back = users.get(place(*member)).map_or(&[][..], Vec::as_slice);
                let full = common(&own.drawn_used, back)
                    .filter(|peer| kept.contains(place(*peer)))
                    .count();
                let required = usize::try_from(own.submission.minimum_neighbours);
                let group = usize::try_from(own.submission.minimum_group);
                if required.map_or(true, |required| full < required) {
                    Some(Dropped::Neighbours)
                } else if group.map_or(true, |group| before < group) {
                    Some(Dropped::Group)
                } else {
                    None
                }
            };
            let mut next = Bitmap::empty(users.len());
            let mut included = Vec::with_capacity(before);
            for (member, own) in taken {
                if !kept.contains(place(*member)) {
                    continue;
                }
                match refused(member, own) {
                    Some(why) => dropped.push((*member, why)),
                    None => {
                        next.set(place(*member));
                        included.push(*member);
                    }
                }
            }
            if included.len() == before {
                return Admission { included, dropped };
            }
            kept = next;
        }
    }

    /// Whether the meters would find enough of the lately seen members on it.
    pub(super) fn present_enough(&self, included: &[MemberIndex]) -> bool {
        let mut lately = Bitmap::empty(0);
        self.seen.iter().for_each(|seen| lately.include(seen));
        let percent = usize::try_from(self.config.minimum_presence).unwrap_or(100);
        let members = self.membership.members();
        let here = |place: &usize| members.get(*place).is_some_and(Member::is_active);
        let lately = lately.iter().filter(here).count();
        included.len().saturating_mul(100) >= lately.saturating_mul(percent)
    }
}

/// The edges between included members that only one end used, ascending.
pub(super) fn half_open(
    included: &[MemberIndex],
    taken: &BTreeMap<MemberIndex, Taken>,
) -> Vec<HalfOpen> {
    let users = users_of(taken);
    let mut is_in = Bitmap::empty(users.len());
    included.iter().for_each(|member| is_in.set(place(*member)));
    let mut edges = Vec::new();
    for (user, own) in taken
        .iter()
        .filter(|(user, _)| is_in.contains(place(**user)))
    {
        let mut back = users.get(place(*user)).into_iter().flatten().peekable();
        for peer in own.used.iter().filter(|peer| is_in.contains(place(**peer))) {
            while back.next_if(|other| *other < peer).is_some() {}
            if back.peek() != Some(&peer) {
                edges.push(HalfOpen {
                    user: *user,
                    non_user: *peer,
                });
            }
        }
    }
    edges
}
