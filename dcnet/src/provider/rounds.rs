//! Rounds: submissions in, one roster out, reveals in, one verified aggregate out.

mod admission;
mod progress;
mod reveals;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::members::{CLOSED, MAYBE_ROSTERED, TOO_MANY_ANSWERS};
use super::{
    IncludedSubmission, Provider, ProviderEvent, ProviderRecord, REPLIES, ROSTERS_KEPT, SavedRoster,
};
use crate::alarm::{Alarm, Refusal};
use crate::bitmap::Bitmap;
use crate::frame::{Frame, Notification, Unverified};
use crate::graph::MemberIndex;
use crate::identity::DeviceId;
use crate::membership::{EntryError, HARD_FLOOR};
use crate::meter::CLOSED_AFTER;
use crate::pad::RosterHash;
use crate::repeat::LONGEST_INTERVAL;
use crate::roster::{HalfOpen, MAX_HALF_OPEN, Roster, RosterError, SEEN_ROSTERS};
use crate::superposition::{Submission, short};
use crate::time::{CLOCK_SLACK, Now, Round, Timestamp};
use crate::topic::{All, Inbox, Topic};

use admission::{Admission, half_open};

pub(super) use reveals::{IssuedRoster, Offences};

pub use admission::{Dropped, NoRoster};
pub use progress::{FullEdges, Progress};

/// Rosters that late submissions are compared with: of rounds this far back no meter repeats
/// any.
const COMPARED: usize = 8;

/// A submission and the edges it states, resolved to members.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    submission: Submission,
    frame: Vec<u8>,
    /// Members whose pads it used, ascending.
    used: Vec<MemberIndex>,
    /// Those of them that its newest draw named, as of its log head.
    drawn_used: Vec<MemberIndex>,
}

/// A round on the provider's side.
#[derive(Clone, Debug)]
pub(super) enum ProviderRound {
    /// Takes submissions.
    Open(BTreeMap<MemberIndex, Taken>),
    /// Takes reveals.
    Issued(Box<IssuedRoster>),
}

fn place(member: MemberIndex) -> usize {
    usize::try_from(member).unwrap_or(usize::MAX)
}

/// Who used the edge to a member, ascending, by the member's index.
fn users_of(taken: &BTreeMap<MemberIndex, Taken>) -> Vec<Vec<MemberIndex>> {
    let mut users: Vec<Vec<MemberIndex>> = Vec::new();
    if let Some((last, _)) = taken.last_key_value() {
        users.resize(place(*last).saturating_add(1), Vec::new());
    }
    for (user, own) in taken {
        for peer in &own.used {
            // Members that sent nothing may lie past the end; nobody asks for them.
            if let Some(users) = users.get_mut(place(*peer)) {
                users.push(*user);
            }
        }
    }
    users
}

/// What two ascending lists have in common.
fn common<'a>(
    one: &'a [MemberIndex],
    other: &'a [MemberIndex],
) -> impl Iterator<Item = MemberIndex> + 'a {
    let mut other = other.iter().peekable();
    one.iter().copied().filter(move |member| {
        while other.next_if(|next| *next < member).is_some() {}
        other.peek() == Some(&member)
    })
}

impl Provider {
    fn id_of(&self, member: MemberIndex) -> DeviceId {
        self.membership
            .member(member)
            .map_or(DeviceId([0; 16]), |member| member.id)
    }

    fn channels(&self) -> usize {
        self.membership.genesis().channels.len()
    }

    fn window(&self) -> Duration {
        Duration::from_millis(u64::from(self.membership.genesis().policy.window_ms))
    }

    fn end(&self, round: Round) -> Timestamp {
        round.end(self.period())
    }

    /// Members that owe a reveal, or waited too short since they did.
    fn barred(&self, round: Round) -> BTreeSet<MemberIndex> {
        let mut barred = BTreeSet::new();
        for state in self.rounds.values() {
            if let ProviderRound::Issued(issued) = state {
                barred.extend(issued.owing());
            }
        }
        let waiting = self
            .offences
            .iter()
            .filter(|(_, offences)| offences.holds(round));
        barred.extend(waiting.map(|(member, _)| *member));
        barred
    }

    pub(super) fn on_submission(
        &mut self,
        member: MemberIndex,
        frame: Frame,
        payload: Vec<u8>,
        now: Now,
    ) -> Result<(), Refusal> {
        let submission = Submission::read(frame, self.net, self.channels())?;
        let round = submission.round;
        if self.last_roster.is_some_and(|(last, _)| round <= last) {
            self.compare_with_roster(member, &submission);
            // The meter has not seen the roster, or comes too late.
            return self.send_roster(self.id_of(member), round);
        }
        if self.closed {
            return Err(Refusal::Rule(CLOSED));
        }
        if self.may_have_roster(round) {
            return Err(Refusal::Rule(MAYBE_ROSTERED));
        }
        let newest_end = self.end(round);
        if newest_end > now.utc.plus(CLOCK_SLACK) {
            return Err(Refusal::Round);
        }
        if let Some(ProviderRound::Open(taken)) = self.rounds.get(&round)
            && let Some(first) = taken.get(&member)
        {
            if first.submission.digest != submission.digest {
                self.tell_contradiction(member, round);
            }
            return Ok(());
        }
        // A round that was given up stays so: one late submission alone makes no roster.
        let over = now.utc >= newest_end.plus(self.window());
        if over && !self.rounds.contains_key(&round) {
            return Err(Refusal::Rule("the window of the round is over"));
        }
        if self.has_submitted_before(member, round) {
            return Err(Refusal::Rule(
                "this meter submitted in an earlier membership",
            ));
        }
        let taken = self.resolve(member, submission, payload)?;
        let state = self
            .rounds
            .entry(round)
            .or_insert_with(|| ProviderRound::Open(BTreeMap::new()));
        if let ProviderRound::Open(submissions) = state {
            submissions.insert(member, taken);
        }
        Ok(())
    }

    /// Whether the meter submitted in this round before it left and joined anew: its
    /// reading counts once.
    fn has_submitted_before(&self, member: MemberIndex, round: Round) -> bool {
        let Some(ProviderRound::Open(taken)) = self.rounds.get(&round) else {
            return false;
        };
        let before = |place: &MemberIndex| self.membership.member(*place)?.earlier;
        std::iter::successors(before(&member), before).any(|place| taken.contains_key(&place))
    }

    /// An included meter that now sends another submission than the one on the roster.
    fn compare_with_roster(&mut self, member: MemberIndex, submission: &Submission) {
        let round = submission.round;
        let roster = self.newest.iter().find(|roster| roster.round == round);
        let listed = roster.and_then(|roster| roster.digest_of(member));
        if listed.is_some_and(|digest| digest != short(&submission.digest)) {
            self.tell_contradiction(member, round);
        }
    }

    /// Tells the operator of two submissions, once per meter and round.
    fn tell_contradiction(&mut self, member: MemberIndex, round: Round) {
        if self.contradicted.insert((round, member)) {
            let (meter, what) = (self.id_of(member), "submission");
            self.event(ProviderEvent::Alarm(Alarm::Equivocation { meter, what }));
        }
    }

    /// Checks a submission's minima and resolves its edges at the log head it names.
    fn resolve(
        &mut self,
        member: MemberIndex,
        submission: Submission,
        frame: Vec<u8>,
    ) -> Result<Taken, Refusal> {
        let policy = self.membership.genesis().policy;
        let head = self.membership.index_of_entry(&submission.log_head);
        let head = head.ok_or(Refusal::Rule("the submission names an unknown log head"))?;
        if !self
            .membership
            .member(member)
            .is_some_and(|place| place.is_active_at(head))
        {
            return Err(Refusal::Rule(
                "the sender had left by the log head it names",
            ));
        }
        let floor = policy.minimum_neighbours.max(HARD_FLOOR);
        if submission.minimum_group < policy.minimum_group || submission.minimum_neighbours < floor
        {
            return Err(Refusal::Rule(
                "the submission states minima below the policy",
            ));
        }
        let graph = self.membership.graph();
        let draw = graph.newest(member, head);
        let draw = draw.ok_or(Refusal::Rule(
            "the sender had no draw by the log head it names",
        ))?;
        // The graph changes far less often than a member submits.
        let found = || (head, graph.neighbours(member, head));
        let known = self.neighbours.entry(member).or_insert_with(found);
        if known.0 != head {
            *known = found();
        }
        let neighbours = &known.1;
        let edges = Bitmap::from_bytes(submission.edges.clone(), neighbours.len(), "edges")?;
        let used: Vec<MemberIndex> = edges
            .iter()
            .filter_map(|place| neighbours.get(place).copied())
            .collect();
        let drawn = &draw.neighbours;
        let drawn_used = used
            .iter()
            .filter(|peer| drawn.binary_search(peer).is_ok())
            .copied()
            .collect();
        Ok(Taken {
            submission,
            frame,
            used,
            drawn_used,
        })
    }

    /// Closes windows and rounds whose time has come.
    pub(super) fn advance_rounds(&mut self, now: Now) {
        let rounds: Vec<Round> = self.rounds.keys().copied().collect();
        for round in rounds {
            match self.rounds.get(&round) {
                Some(ProviderRound::Open(taken)) => {
                    let end = self.end(round);
                    let window_over = now.utc >= end.plus(self.window());
                    let all_here = now.utc >= end && self.all_here(round, taken);
                    if window_over || all_here {
                        self.close_window(round, all_here, now);
                    }
                }
                Some(ProviderRound::Issued(_)) => self.watch_pending(round, now),
                None => {}
            }
        }
    }

    /// Whether every submission that is waited for has come; what barred and former members
    /// sent does not end the window for the others.
    fn all_here(&self, round: Round, taken: &BTreeMap<MemberIndex, Taken>) -> bool {
        let mut awaited = self.awaited(round);
        awaited.all(|member| taken.contains_key(&member))
    }

    /// Whose submissions are waited for: members with a draw that owe nothing.
    fn awaited(&self, round: Round) -> impl Iterator<Item = MemberIndex> {
        let barred = self.barred(round);
        let graph = self.membership.graph();
        let members = (0..).zip(self.membership.members());
        let awaited = members.filter(move |(index, member)| {
            let drawn = || graph.newest(*index, u64::MAX).is_some();
            member.is_active() && !barred.contains(index) && drawn()
        });
        awaited.map(|(index, _)| index)
    }

    fn close_window(&mut self, round: Round, all_here: bool, now: Now) {
        let Some(ProviderRound::Open(taken)) = self.rounds.remove(&round) else {
            return;
        };
        let Admission { included, dropped } = self.admissible(round, &taken);
        let half_open = half_open(&included, &taken);
        let given_up = if !all_here && !self.has_listened(round, now) {
            Some(NoRoster::NotListening)
        } else if included.is_empty() {
            Some(NoRoster::TooFew)
        } else if half_open.len() > MAX_HALF_OPEN {
            Some(NoRoster::HalfOpen)
        } else if !self.present_enough(&included) {
            Some(NoRoster::Presence)
        } else {
            None
        };
        let name = |(member, why)| (self.id_of(member), why);
        let dropped = dropped.into_iter().map(name).collect();
        if let Some(reason) = given_up {
            let absent = self
                .awaited(round)
                .filter(|member| !taken.contains_key(member));
            let absent = absent.map(|member| self.id_of(member)).collect();
            // Nothing more is taken for this round.
            self.contradicted.retain(|(told, _)| *told != round);
            return self.event(ProviderEvent::NoRoster {
                round,
                submissions: taken.len(),
                reason,
                dropped,
                absent,
            });
        }
        let number = included.len();
        self.issue(round, &included, half_open, taken, now);
        self.event(ProviderEvent::RosterIssued {
            round,
            included: number,
            dropped,
        });
    }

    /// Whether whatever a meter sent in a round's window came here, at the latest when it was
    /// repeated. Of what came while there was no connection nothing is known, and who sent it
    /// would count its absence from the roster as an exclusion.
    fn has_listened(&self, round: Round, now: Now) -> bool {
        let Some(since) = self.connected else {
            return false;
        };
        let since = now.utc.minus(now.monotonic.saturating_sub(since));
        let end = self.end(round);
        since.plus(CLOCK_SLACK) <= end || since.plus(LONGEST_INTERVAL) <= end.plus(self.window())
    }

    /// Signs, stores, then sends the one roster of a round.
    fn issue(
        &mut self,
        round: Round,
        included: &[MemberIndex],
        half_open: Vec<HalfOpen>,
        mut taken: BTreeMap<MemberIndex, Taken>,
        now: Now,
    ) {
        taken.retain(|member, _| included.binary_search(member).is_ok());
        let head = self.membership.head();
        let places = self.membership.members().len();
        let mut bitmap = Bitmap::empty(places);
        for member in included {
            bitmap.set(usize::try_from(*member).unwrap_or(usize::MAX));
        }
        let roster = Roster {
            round,
            log_head: head.hash,
            head_index: head.index,
            included: bitmap,
            digests: taken
                .values()
                .map(|taken| short(&taken.submission.digest))
                .collect(),
            half_open,
            previous: self.last_roster.map(|(_, hash)| hash),
            issued: now.utc,
            hash: [0; 32],
        };
        let Ok(key) = self.signing_key() else { return };
        let frame = roster.sign(&key, &self.membership, now.utc);
        // Read back what was signed: a roster that meters would refuse must not go out.
        let roster = match Roster::verify(&frame, &self.membership) {
            Ok(roster) => roster,
            Err(error) => {
                let topic = Topic::All {
                    net: self.net,
                    kind: All::Roster,
                };
                let reason = match error {
                    RosterError::Frame(error) => Refusal::Frame(error),
                    RosterError::UnknownHead => Refusal::Round,
                };
                return self.refuse(topic, reason);
            }
        };
        let submissions = taken
            .iter()
            .map(|(member, taken)| IncludedSubmission {
                meter: self.id_of(*member),
                frame: taken.frame.clone(),
                commitments: taken
                    .submission
                    .shares
                    .iter()
                    .map(|share| share.commitment.to_bytes())
                    .collect(),
            })
            .collect();
        self.persist(ProviderRecord::Roster {
            round,
            hash: roster.hash,
            members: self.membership.size(),
            frame: frame.clone(),
            submissions,
        });
        self.remember_roster(&roster, frame.clone());
        let shares = taken.values().map(|taken| &taken.submission);
        let (channels, at) = (self.channels(), Some(now.monotonic));
        let mut issued = IssuedRoster::new(roster, frame.clone(), shares, channels, at);
        issued.full_edges = FullEdges::of(&taken);
        self.rounds
            .insert(round, ProviderRound::Issued(Box::new(issued)));
        self.send_all(All::Roster, frame);
        self.head_named = Some(now.monotonic);
    }

    fn remember_roster(&mut self, roster: &Roster, frame: Vec<u8>) {
        self.last_roster = Some((roster.round, roster.hash));
        let end = self.end(roster.round);
        self.last_seen
            .extend(roster.members().map(|member| (member, end)));
        self.rosters.push_back((roster.round, roster.hash, frame));
        self.seen.push_back(roster.included.clone());
        if self.rosters.len() > ROSTERS_KEPT {
            self.rosters.pop_front();
        }
        if self.seen.len() > SEEN_ROSTERS {
            self.seen.pop_front();
        }
        self.newest.push_back(roster.clone());
        if self.newest.len() > COMPARED {
            self.newest.pop_front();
        }
        if let Some(oldest) = self.newest.front().map(|roster| roster.round) {
            self.contradicted = self.contradicted.split_off(&(oldest, 0));
        }
    }

    /// Takes up a stored roster; a pending one continues with its stored submissions.
    pub(super) fn restore_roster(&mut self, saved: SavedRoster) -> Result<(), EntryError> {
        let roster =
            Roster::verify(&saved.frame, &self.membership).map_err(|error| match error {
                RosterError::Frame(error) => EntryError::Frame(error),
                RosterError::UnknownHead => {
                    EntryError::Rule("a saved roster names an unknown head")
                }
            })?;
        self.remember_roster(&roster, saved.frame.clone());
        if !saved.pending {
            return Ok(());
        }
        let mut submissions = Vec::with_capacity(saved.submissions.len());
        for frame in &saved.submissions {
            let frame = Unverified::parse(frame)?.stored();
            submissions.push(Submission::read(frame, self.net, self.channels())?);
        }
        if submissions.len() != roster.included.count() {
            return Err(EntryError::Rule("a saved roster lacks submissions"));
        }
        let (round, channels) = (roster.round, self.channels());
        let issued = IssuedRoster::new(roster, saved.frame, submissions.iter(), channels, None);
        self.rounds
            .insert(round, ProviderRound::Issued(Box::new(issued)));
        Ok(())
    }

    pub(super) fn pending_rosters(&self) -> Vec<Vec<u8>> {
        let issued = self.rounds.values().filter_map(|state| match state {
            ProviderRound::Issued(issued) => Some(issued.frame.clone()),
            ProviderRound::Open(_) => None,
        });
        issued.collect()
    }

    pub(super) fn on_roster_request(
        &mut self,
        sender: DeviceId,
        frame: Frame,
    ) -> Result<(), Refusal> {
        let mut fields = frame.open(self.net, Notification::RosterRequest)?;
        let after = fields.fixed_or_null("after")?;
        fields.end()?;
        self.send_rosters(sender, after)
    }

    /// Sends the roster of a round, or the next one: by it the meter notices what it missed.
    fn send_roster(&mut self, meter: DeviceId, round: Round) -> Result<(), Refusal> {
        let place = self.rosters.iter().position(|roster| roster.0 >= round);
        self.send_rosters_from(meter, place.unwrap_or(self.rosters.len()), 1)
    }

    /// Sends the rosters after a known one, at least the newest; to a meter that knows one which
    /// is not kept any more, the last ones.
    fn send_rosters(&mut self, meter: DeviceId, after: Option<RosterHash>) -> Result<(), Refusal> {
        let newest = self.rosters.len().saturating_sub(1);
        let start = match after {
            None => newest,
            Some(hash) => match self.rosters.iter().position(|r| r.1 == hash) {
                Some(known) => known.saturating_add(1).min(newest),
                None => self.rosters.len().saturating_sub(REPLIES),
            },
        };
        self.send_rosters_from(meter, start, REPLIES)
    }

    /// Sends rosters from a place on, as many as one meter gets at once: it asks for the others
    /// when it sees the next one.
    fn send_rosters_from(
        &mut self,
        meter: DeviceId,
        start: usize,
        most: usize,
    ) -> Result<(), Refusal> {
        let wanted = self.rosters.iter().skip(start).take(most);
        let allowed = wanted.take_while(|roster| self.answers.allow(meter, roster.2.len()));
        let frames: Vec<Vec<u8>> = allowed.map(|roster| roster.2.clone()).collect();
        if frames.is_empty() && start < self.rosters.len() {
            return Err(Refusal::Rule(TOO_MANY_ANSWERS));
        }
        for frame in frames {
            self.send_to(meter, Inbox::Roster, frame);
        }
        Ok(())
    }

    /// When the next window or round closes, on the monotonic clock.
    pub(super) fn next_deadline(&self, now: Now) -> Option<Duration> {
        let at = |utc: Timestamp| now.monotonic.saturating_add(utc.since(now.utc));
        let deadline = |(round, state): (&Round, &ProviderRound)| match state {
            ProviderRound::Open(_) => at(self.end(*round).plus(self.window())),
            ProviderRound::Issued(issued)
                if !issued.reported
                    && let Some(connected) = self.connected =>
            {
                let since = issued.issued.unwrap_or(now.monotonic).max(connected);
                since.saturating_add(self.window())
            }
            ProviderRound::Issued(_) => at(self.end(*round).plus(CLOSED_AFTER)),
        };
        self.rounds.iter().map(deadline).min()
    }
}
