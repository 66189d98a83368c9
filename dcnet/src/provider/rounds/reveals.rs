//! From the roster of a round to its verified aggregate, or to its loss.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{FullEdges, ProviderRound};
use crate::aggregate::{Aggregate, Disruption, Sum};
use crate::alarm::{Alarm, Refusal};
use crate::commitment::Commitment;
use crate::frame::Frame;
use crate::graph::MemberIndex;
use crate::identity::DeviceId;
use crate::meter::CLOSED_AFTER;
use crate::opening::Opening;
use crate::provider::{AGGREGATES_KEPT, Provider, ProviderEvent, ProviderRecord, Published};
use crate::reveal::{LONGEST_WAIT, Reveal, next_round_after};
use crate::roster::Roster;
use crate::superposition::Submission;
use crate::time::{DAY_MS, Now, Round};
use crate::topic::{All, Inbox, Public, Topic};

/// A roster that waits for reveals.
#[derive(Clone, Debug)]
pub(in crate::provider) struct IssuedRoster {
    pub(super) roster: Roster,
    pub(super) frame: Vec<u8>,
    /// On the monotonic clock; of one that another run of the provider issued, when this run
    /// first looked at it.
    pub(super) issued: Option<Duration>,
    /// Whether another run of the provider issued it: what that run was told is not stored, so
    /// whose reveal is missing here may have sent it.
    pub(super) restored: bool,
    /// Per channel: superpositions minus the reveals so far.
    totals: Vec<Opening>,
    commitments: Vec<Commitment>,
    pub(super) missing: BTreeSet<MemberIndex>,
    /// What the others revealed.
    revealed: BTreeMap<MemberIndex, Answer>,
    pub(super) reported: bool,
    pub(super) full_edges: Option<FullEdges>,
}

/// The reveal of a member that counts: its first one.
#[derive(Clone, Debug)]
struct Answer {
    digest: [u8; 32],
    /// Whether the operator was told that the member sent another one, too.
    contradicted: bool,
}

/// How often a member made others wait within the last day.
#[derive(Clone, Debug, Default)]
pub(in crate::provider) struct Offences {
    /// On the monotonic clock.
    at: Vec<Duration>,
    /// Not in rosters before this round.
    until: Round,
}

impl Offences {
    /// Whether the member is kept out of this round. The round may be the one before that
    /// in which the offence was noted; what says more was noted while the clock was ahead.
    pub(super) fn holds(&self, round: Round) -> bool {
        (1..=LONGEST_WAIT + 1).contains(&self.until.0.saturating_sub(round.0))
    }
}

impl Provider {
    pub(in crate::provider) fn on_reveal(
        &mut self,
        member: MemberIndex,
        frame: Frame,
        now: Now,
    ) -> Result<(), Refusal> {
        let digest = frame.digest();
        let reveal = Reveal::read(frame, self.net, self.channels())?;
        let round = reveal.round;
        let Some(ProviderRound::Issued(issued)) = self.rounds.get_mut(&round) else {
            // Final already: the aggregate tells the meter to stop repeating.
            if let Some(aggregate) = self.aggregates.get(&round).cloned() {
                self.send_to(reveal.sender, Inbox::Aggregate, aggregate);
            }
            return Ok(());
        };
        if issued.roster.hash != reveal.roster {
            return Err(Refusal::Rule("the reveal answers another roster"));
        }
        if !issued.missing.remove(&member) {
            return self.compare_with_answer(member, round, &digest);
        }
        let contradicted = false;
        let answer = Answer {
            digest,
            contradicted,
        };
        issued.revealed.insert(member, answer);
        for (total, opening) in issued.totals.iter_mut().zip(&reveal.openings) {
            *total -= *opening;
        }
        if issued.reported && !issued.restored {
            self.note_offence(member, round, now);
        }
        if self.is_complete(round) {
            self.complete(round, now);
        }
        Ok(())
    }

    /// A reveal after the first one that a member sent for the roster: the same again, or
    /// not.
    fn compare_with_answer(
        &mut self,
        member: MemberIndex,
        round: Round,
        digest: &[u8; 32],
    ) -> Result<(), Refusal> {
        let Some(ProviderRound::Issued(issued)) = self.rounds.get_mut(&round) else {
            return Ok(());
        };
        let Some(first) = issued.revealed.get_mut(&member) else {
            return Err(Refusal::Rule("the sender is not on the roster"));
        };
        if first.digest == *digest {
            return Ok(());
        }
        if !std::mem::replace(&mut first.contradicted, true) {
            let (meter, what) = (self.id_of(member), "reveal");
            self.event(ProviderEvent::Alarm(Alarm::Equivocation { meter, what }));
        }
        Err(Refusal::Rule("a second, different reveal"))
    }

    fn is_complete(&self, round: Round) -> bool {
        matches!(self.rounds.get(&round), Some(ProviderRound::Issued(i)) if i.missing.is_empty())
    }

    /// Who kept a round pending is in the next roster at once the first time in a day;
    /// each repetition waits twice as long.
    fn note_offence(&mut self, member: MemberIndex, round: Round, now: Now) {
        let current = self.membership.genesis().policy.period.round_at(now.utc);
        let offences = self.offences.entry(member).or_default();
        offences.at.push(now.monotonic);
        offences
            .at
            .retain(|at| now.monotonic.saturating_sub(*at).as_millis() < u128::from(DAY_MS));
        if let Some(next) = next_round_after(current.max(round), offences.at.len()) {
            offences.until = next;
        }
    }

    fn complete(&mut self, round: Round, now: Now) {
        let Some(ProviderRound::Issued(issued)) = self.rounds.remove(&round) else {
            return;
        };
        let sums: Result<Vec<Sum>, Disruption> = issued
            .totals
            .iter()
            .zip(&issued.commitments)
            .enumerate()
            .map(|(channel, (total, commitments))| Sum::verify(total, *commitments, channel))
            .collect();
        let sums = match sums {
            Ok(sums) => sums,
            Err(disruption) => {
                self.persist(ProviderRecord::Lost {
                    round,
                    disruption: Some(disruption),
                    missing: Vec::new(),
                });
                self.event(ProviderEvent::Alarm(Alarm::Disrupted { round, disruption }));
                return self.event(ProviderEvent::Lost {
                    round,
                    disruption: Some(disruption),
                    missing: Vec::new(),
                });
            }
        };
        let roster = &issued.roster;
        let members = self.membership.members_at(roster.head_index);
        let aggregate = Aggregate {
            round,
            roster: roster.hash,
            log_head: roster.log_head,
            members,
            included: u32::try_from(roster.included.count()).unwrap_or(u32::MAX),
            sums,
        };
        let Ok(key) = self.signing_key() else { return };
        let frame = aggregate.sign(&key, self.net, now.utc);
        let published = Published {
            round,
            members,
            included: roster.members().map(|member| self.id_of(member)).collect(),
            sums: aggregate.sums.iter().map(|sum| sum.energy).collect(),
            roster: roster.hash,
            log_head: roster.log_head,
            frame: frame.clone(),
        };
        self.unproven &= self.may_have_roster(round);
        self.persist(ProviderRecord::Aggregate(published.clone()));
        self.send_all(All::Aggregate, frame.clone());
        let topic = Topic::Public {
            net: self.net,
            kind: Public::AggregateCbor,
        };
        // A round that was pending must not take the place of a newer one.
        let newest = self
            .aggregates
            .keys()
            .next_back()
            .is_none_or(|newest| *newest < round);
        self.publish(topic, frame.clone(), newest);
        self.aggregates.insert(round, frame);
        if self.aggregates.len() > AGGREGATES_KEPT {
            self.aggregates.pop_first();
        }
        self.event(ProviderEvent::Aggregated(published));
    }

    /// Reports a round that is late, and closes it after 24 h.
    pub(super) fn watch_pending(&mut self, round: Round, now: Now) {
        let (closed, window) = (self.end(round).plus(CLOSED_AFTER), self.window());
        let Some(ProviderRound::Issued(issued)) = self.rounds.get_mut(&round) else {
            return;
        };
        // Nobody can reveal to a provider that is not there.
        let since = *issued.issued.get_or_insert(now.monotonic);
        let since = self.connected.map(|connected| connected.max(since));
        let late = since.is_some_and(|since| now.monotonic >= since.saturating_add(window));
        if late && !issued.reported {
            issued.reported = true;
            let missing: Vec<MemberIndex> = issued.missing.iter().copied().collect();
            let missing = missing
                .into_iter()
                .map(|member| self.id_of(member))
                .collect();
            self.event(ProviderEvent::Pending { round, missing });
        }
        if now.utc >= closed
            && let Some(ProviderRound::Issued(issued)) = self.rounds.remove(&round)
        {
            let missing = issued.owing();
            let missing: Vec<DeviceId> = missing.map(|member| self.id_of(member)).collect();
            self.persist(ProviderRecord::Lost {
                round,
                disruption: None,
                missing: missing.clone(),
            });
            self.event(ProviderEvent::Lost {
                round,
                disruption: None,
                missing,
            });
        }
    }
}

impl IssuedRoster {
    pub(super) fn new<'a>(
        roster: Roster,
        frame: Vec<u8>,
        submissions: impl Iterator<Item = &'a Submission>,
        channels: usize,
        issued: Option<Duration>,
    ) -> Self {
        let mut totals = vec![Opening::ZERO; channels];
        let mut commitments = vec![std::iter::empty::<Commitment>().sum(); channels];
        for submission in submissions {
            let places = totals.iter_mut().zip(&mut commitments);
            for ((total, commitment), share) in places.zip(&submission.shares) {
                *total += share.superposition;
                *commitment = *commitment + share.commitment;
            }
        }
        let missing = roster.members().collect();
        Self {
            roster,
            frame,
            issued,
            restored: issued.is_none(),
            totals,
            commitments,
            missing,
            revealed: BTreeMap::new(),
            reported: false,
            full_edges: None,
        }
    }

    /// Who is known not to have revealed.
    pub(super) fn owing(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        let known = (!self.restored).then_some(&self.missing);
        known.into_iter().flatten().copied()
    }
}
