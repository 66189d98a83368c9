//! The provider's side of the protocol for one net, as a pure state machine: keeps
//! the membership log, relays handshakes, issues one roster per round, and adds
//! superpositions and reveals up to a verified aggregate.
//!
//! It never learns more than the sums: what protects the meters is checked by the
//! meters, not here.

mod limits;
mod members;
mod rounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng;

use crate::aggregate::Disruption;
use crate::alarm::{Alarm, Refusal};
use crate::frame::{self, Frame, FrameError, Notification, Unverified};
use crate::graph::MemberIndex;
use crate::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, PublicKey};
use crate::membership::{EntryError, EntryKind, Membership};
use crate::output::{Input, Message, Output, Received, StateMachine};
use crate::pad::RosterHash;
use crate::revocation::RevocationList;
use crate::roster::Roster;
use crate::time::{Now, Period, Round, Timestamp};
use crate::topic::{All, Inbox, NetId, Public, ROOT, Topic, Up};
use crate::units::MilliwattHours;

pub use rounds::{Dropped, FullEdges, NoRoster, Progress};

use limits::{Answers, Quota};
use rounds::ProviderRound;

/// Rosters kept for meters that were away; a meter that missed more than these goes on from
/// what is kept.
const ROSTERS_KEPT: usize = 4096;

/// Aggregates kept for meters that have not seen theirs.
const AGGREGATES_KEPT: usize = 4096;

/// Log entries and rosters sent for one request.
const REPLIES: usize = 256;

/// Invites of one device within 30 days: twice what a meter asks for, which may have lost
/// what it remembers of them.
const INVITES: usize = 8;

/// Joins of one device within 30 days.
const JOINS: usize = 5;

/// What a provider runs a net with.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The provider's key.
    pub key: DeviceKey,
    /// Its certificate.
    pub certificate: Certificate,
    /// The gateway administrator's CA.
    pub ca: CaCertificate,
    /// Least share of the lately seen members in a roster, in percent: below what the
    /// meters ask for, a roster would only leave the round pending.
    pub minimum_presence: u32,
    /// The administrator's newest list of revoked devices, if any.
    pub revoked: Option<RevocationList>,
    /// Another key and certificate, which take over as soon as the net runs.
    pub successor: Option<(DeviceKey, Certificate)>,
    /// Who was in no roster for so long, at least a day, is marked as lapsed; nobody if
    /// `None`.
    pub lapse_after: Option<Duration>,
}

/// What the operator tells a provider.
#[derive(Clone, Debug)]
pub enum ProviderCommand {
    /// What the gateway administrator revoked.
    Revoked {
        /// The newest list.
        list: RevocationList,
        /// Who signed it.
        administrator: Certificate,
        /// Signed revocations of single devices, for the log.
        revocations: Vec<Vec<u8>>,
    },
}

/// A roster that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedRoster {
    /// The roster's frame.
    pub frame: Vec<u8>,
    /// The frames of the included submissions, in the order of the roster; needed
    /// only while the round is pending.
    pub submissions: Vec<Vec<u8>>,
    /// Whether the round still waits for reveals.
    pub pending: bool,
}

/// What a provider starts again from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedNet {
    /// All entries of the log, Genesis first.
    pub entries: Vec<Vec<u8>>,
    /// The newest rosters (at least all that are pending), oldest first.
    pub rosters: Vec<SavedRoster>,
    /// The frames of the newest aggregates, oldest first.
    pub aggregates: Vec<(Round, Vec<u8>)>,
}

/// A change to a provider's durable state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderRecord {
    /// A log entry, before it is sent.
    Entry {
        /// Its index.
        index: u64,
        /// Its hash.
        hash: [u8; 32],
        /// Its kind.
        kind: EntryKind,
        /// Its frame.
        frame: Vec<u8>,
    },
    /// The one roster of a round with the submissions on it, before it is sent.
    Roster {
        /// The round.
        round: Round,
        /// Its hash.
        hash: RosterHash,
        /// Members of the net as of its log head.
        members: u32,
        /// Its frame.
        frame: Vec<u8>,
        /// The included submissions, in the order of the roster.
        submissions: Vec<IncludedSubmission>,
    },
    /// The aggregate of a round, before it is sent.
    Aggregate(Published),
    /// A round ended without an aggregate.
    Lost {
        /// The round.
        round: Round,
        /// How it was disrupted; `None` if reveals were missing when it closed.
        disruption: Option<Disruption>,
        /// Who is known to have owed a reveal when it closed, in the order of the roster; nobody
        /// if it was disrupted, or if an earlier run of the provider issued the roster.
        missing: Vec<DeviceId>,
    },
}

/// A submission on a roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncludedSubmission {
    /// The meter.
    pub meter: DeviceId,
    /// The submission's frame.
    pub frame: Vec<u8>,
    /// Its reading commitments, one per channel.
    pub commitments: Vec<[u8; 32]>,
}

/// A verified sum as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The round.
    pub round: Round,
    /// Members of the net.
    pub members: u32,
    /// The included meters.
    pub included: Vec<DeviceId>,
    /// The sum per channel.
    pub sums: Vec<MilliwattHours>,
    /// Hash of the roster.
    pub roster: RosterHash,
    /// Log head of the roster.
    pub log_head: [u8; 32],
    /// The signed frame.
    pub frame: Vec<u8>,
}

/// What a provider tells its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderEvent {
    /// A meter is a member.
    Joined {
        /// The meter.
        meter: DeviceId,
        /// Members now.
        members: usize,
    },
    /// A meter left by its own signed exit.
    Left {
        /// The meter.
        meter: DeviceId,
        /// Members now.
        members: usize,
    },
    /// The log revokes a meter.
    Revoked {
        /// The meter.
        meter: DeviceId,
        /// Members now.
        members: usize,
    },
    /// A meter was away for so long that no draw names it.
    Lapsed {
        /// The meter.
        meter: DeviceId,
    },
    /// The net is signed with the successor's key from here on.
    KeyChanged {
        /// Id of the new key.
        provider: DeviceId,
    },
    /// A meter's draw is done.
    Drawn {
        /// The meter.
        meter: DeviceId,
    },
    /// A meter has enough handshakes to take part.
    Entered {
        /// The meter.
        meter: DeviceId,
    },
    /// The roster of a round was issued.
    RosterIssued {
        /// The round.
        round: Round,
        /// Included meters.
        included: usize,
        /// Meters whose submission was dropped, and why.
        dropped: Vec<(DeviceId, Dropped)>,
    },
    /// A round gets no roster.
    NoRoster {
        /// The round.
        round: Round,
        /// How many submissions there were.
        submissions: usize,
        /// Why there is none.
        reason: NoRoster,
        /// Meters whose submission could not have been on one, and why.
        dropped: Vec<(DeviceId, Dropped)>,
        /// Meters that were waited for and sent none.
        absent: Vec<DeviceId>,
    },
    /// A verified aggregate.
    Aggregated(Published),
    /// A round waits for reveals after its window.
    Pending {
        /// The round.
        round: Round,
        /// Whose have not come to this run of the provider. Only if it also issued the roster
        /// they owe one: what an earlier run was told is not stored.
        missing: Vec<DeviceId>,
    },
    /// A round ended without an aggregate.
    Lost {
        /// The round.
        round: Round,
        /// How it was disrupted; `None` if reveals were missing when it closed.
        disruption: Option<Disruption>,
        /// Who is known to have owed a reveal; nobody if it was disrupted, or if an earlier run
        /// of the provider issued the roster.
        missing: Vec<DeviceId>,
    },
    /// Input was refused.
    Refused {
        /// Where it came from.
        topic: Topic,
        /// Why.
        reason: Refusal,
    },
    /// Something needs attention.
    Alarm(Alarm),
}

/// A provider of one net.
pub struct Provider {
    config: ProviderConfig,
    net: NetId,
    membership: Membership,
    log: Vec<Vec<u8>>,
    rng: ChaCha20Rng,
    outputs: VecDeque<Output<ProviderRecord, ProviderEvent>>,
    answers: Answers,
    invites: Quota,
    joins: Quota,
    wake_at: Option<Duration>,
    /// Since when, on the monotonic clock.
    connected: Option<Duration>,
    entered: BTreeSet<MemberIndex>,

    rounds: BTreeMap<Round, ProviderRound>,
    last_roster: Option<(Round, RosterHash)>,
    rosters: VecDeque<(Round, RosterHash, Vec<u8>)>,
    seen: VecDeque<crate::bitmap::Bitmap>,
    /// The newest rosters, for submissions that come after theirs.
    newest: VecDeque<Roster>,
    /// Who was told to have sent two submissions of a round, as long as that can be noticed.
    contradicted: BTreeSet<(Round, MemberIndex)>,
    /// Neighbours of members as of the log entry they last named.
    neighbours: BTreeMap<MemberIndex, (u64, Vec<MemberIndex>)>,
    offences: BTreeMap<MemberIndex, rounds::Offences>,
    /// End of the newest round with each member on its roster, or when it joined or drew.
    last_seen: BTreeMap<MemberIndex, Timestamp>,
    /// When this provider started; nobody lapses for what came before.
    started: Option<Timestamp>,
    /// On the monotonic clock.
    lapses_due: Duration,
    /// When the head of the log was last named to every meter, by an entry or a roster, on
    /// the monotonic clock.
    head_named: Option<Duration>,
    aggregates: BTreeMap<Round, Vec<u8>>,
    closed: bool,
    /// No roster for rounds that started earlier.
    resume: Option<Timestamp>,
    /// Since [`Self::resume`], no aggregate has shown that the meters know this log and no
    /// other: nothing is appended.
    unproven: bool,
}

impl Provider {
    /// A provider from what it persisted; a new net is a saved net with only its
    /// Genesis. `seed` is 32 fresh bytes of the operating system's randomness.
    ///
    /// # Errors
    /// [`EntryError`] if the saved log does not verify.
    pub fn new(
        config: ProviderConfig,
        saved: SavedNet,
        seed: [u8; 32],
    ) -> Result<Self, EntryError> {
        let genesis = saved
            .entries
            .first()
            .ok_or(EntryError::Rule("a net without Genesis"))?;
        let mut membership = Membership::open(genesis, &config.certificate, &config.ca)?;
        let mut applied = Vec::with_capacity(saved.entries.len());
        for entry in saved.entries.iter().skip(1) {
            let at = Unverified::parse(entry)?.claimed().timestamp;
            applied.push((membership.append(entry)?, at));
        }
        let mut provider = Self {
            net: membership.net(),
            membership,
            log: saved.entries,
            rng: ChaCha20Rng::from_seed(seed),
            outputs: VecDeque::new(),
            answers: Answers::default(),
            invites: Quota::new(INVITES),
            joins: Quota::new(JOINS),
            wake_at: None,
            connected: None,
            entered: BTreeSet::new(),
            rounds: BTreeMap::new(),
            last_roster: None,
            rosters: VecDeque::new(),
            seen: VecDeque::new(),
            newest: VecDeque::new(),
            contradicted: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            offences: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            started: None,
            lapses_due: Duration::ZERO,
            head_named: None,
            aggregates: saved.aggregates.into_iter().collect(),
            closed: false,
            resume: None,
            unproven: false,
            config,
        };
        for (applied, at) in applied {
            provider.count_entry(applied, at);
        }
        for roster in saved.rosters {
            provider.restore_roster(roster)?;
        }
        provider.signing_key()?;
        Ok(provider)
    }

    /// The net.
    pub fn net(&self) -> NetId {
        self.net
    }

    /// Opens no round and admits nobody any more. Rounds that have their roster are brought to
    /// their end, and members can leave.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it was [closed](Self::close).
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// What it was made from may be older than what it once had published: no round that
    /// started before `at` gets a roster, since it may have had one, and nothing is appended to
    /// the log before an aggregate of a later round proves that the meters know no other.
    ///
    /// `at` must be later than everything that was published, by this provider's clock.
    pub fn resume_after(&mut self, at: Timestamp) {
        self.resume = Some(at);
        let newest = self.aggregates.keys().next_back();
        self.unproven = newest.is_none_or(|round| self.may_have_roster(*round));
    }

    /// Whether a round may have had a roster that is not known here.
    fn may_have_roster(&self, round: Round) -> bool {
        self.resume
            .is_some_and(|at| round.start(self.period()) < at)
    }

    /// Whether the log waits for a proof that it is the newest: see [`Self::resume_after`].
    pub fn is_unproven(&self) -> bool {
        self.unproven
    }

    /// The membership log.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    fn period(&self) -> Period {
        self.membership.genesis().policy.period
    }

    /// The key in force: the provider's own, or the successor's once it took over.
    fn signing_key(&self) -> Result<DeviceKey, EntryError> {
        let in_force = self.membership.provider().key();
        let own = (self.config.certificate.key() == in_force).then_some(&self.config.key);
        let successor = self.config.successor.as_ref();
        let successor = successor.filter(|(_, certificate)| certificate.key() == in_force);
        own.or(successor.map(|(key, _)| key))
            .cloned()
            .ok_or(EntryError::Trust("provider"))
    }

    fn event(&mut self, event: ProviderEvent) {
        self.outputs.push_back(Output::Event(event));
    }

    fn refuse(&mut self, topic: Topic, reason: impl Into<Refusal>) {
        self.event(ProviderEvent::Refused {
            topic,
            reason: reason.into(),
        });
    }

    fn persist(&mut self, record: ProviderRecord) {
        self.outputs.push_back(Output::Persist(record));
    }

    fn publish(&mut self, topic: Topic, payload: Vec<u8>, retain: bool) {
        if self.connected.is_some() {
            self.outputs.push_back(Output::Publish(Message {
                topic,
                payload,
                retain,
            }));
        }
    }

    fn send_to(&mut self, meter: DeviceId, kind: Inbox, payload: Vec<u8>) {
        self.publish(
            Topic::Inbox {
                net: self.net,
                meter,
                kind,
            },
            payload,
            false,
        );
    }

    fn send_all(&mut self, kind: All, payload: Vec<u8>) {
        self.publish(
            Topic::All {
                net: self.net,
                kind,
            },
            payload,
            false,
        );
    }

    fn key_of(&self, id: &DeviceId) -> Option<PublicKey> {
        let index = self.membership.index_of(id)?;
        self.membership.member(index).map(|member| member.key)
    }

    /// Verifies what came together as one batch, then handles it in order.
    fn receive(&mut self, messages: Vec<Received>, now: Now) {
        let mut known = Vec::with_capacity(messages.len());
        let mut frames = Vec::with_capacity(messages.len());
        for Received { topic, payload } in messages {
            let sender = match topic {
                Topic::Up { net, meter, .. } | Topic::UpPair { net, meter, .. }
                    if net == self.net =>
                {
                    meter
                }
                _ => {
                    self.refuse(topic, Refusal::Topic);
                    continue;
                }
            };
            let revoked = self.config.revoked.as_ref();
            let is_revoked = revoked.is_some_and(|list| list.contains(&sender));
            // Who missed its Revoke entry learns only from the log why nobody answers it.
            let asks_for_log = matches!(topic, Topic::Up { kind: Up::Log, .. });
            if is_revoked && !asks_for_log {
                self.refuse(topic, Refusal::Revoked);
                continue;
            }
            if matches!(
                topic,
                Topic::Up {
                    kind: Up::Register,
                    ..
                }
            ) {
                self.on_register(topic, sender, payload, now);
                continue;
            }
            let parsed = Unverified::parse(&payload).and_then(|frame| {
                let claimed = frame.claimed();
                if claimed.client != sender {
                    return Err(FrameError::Sender);
                }
                if claimed.net != self.net {
                    return Err(FrameError::Net);
                }
                Ok((frame, self.key_of(&sender).ok_or(FrameError::Sender)?))
            });
            match parsed {
                Ok(parsed) => {
                    frames.push(parsed);
                    known.push((topic, sender, payload));
                }
                Err(error) => self.refuse(topic, error),
            }
        }
        for (verdict, (topic, sender, payload)) in
            frame::verify_batch(frames).into_iter().zip(known)
        {
            match verdict {
                Ok(frame) => self.dispatch(topic, sender, frame, payload, now),
                Err(error) => self.refuse(topic, error),
            }
        }
    }

    fn dispatch(
        &mut self,
        topic: Topic,
        sender: DeviceId,
        frame: Frame,
        payload: Vec<u8>,
        now: Now,
    ) {
        let Some(member) = self.membership.index_of(&sender) else {
            return;
        };
        let notification = frame.header().notification;
        let outcome = match (topic, notification) {
            (Topic::UpPair { peer, .. }, _) => self.relay(sender, member, peer, frame, payload),
            (Topic::Up { kind: Up::Draw, .. }, Notification::DrawRequest) => {
                self.on_draw_request(sender, payload, now)
            }
            (Topic::Up { kind: Up::Draw, .. }, Notification::Open) => {
                self.on_open(sender, payload, now)
            }
            (Topic::Up { kind: Up::Exit, .. }, Notification::Exit) => {
                self.on_exit(sender, payload, now)
            }
            (
                Topic::Up {
                    kind: Up::Entered, ..
                },
                Notification::Entered,
            ) => self.on_entered(member, sender, frame),
            (Topic::Up { kind: Up::Log, .. }, Notification::LogRequest) => {
                self.on_log_request(sender, frame)
            }
            (
                Topic::Up {
                    kind: Up::Roster, ..
                },
                Notification::RosterRequest,
            ) => self.on_roster_request(sender, frame),
            (
                Topic::Up {
                    kind: Up::Submission,
                    ..
                },
                Notification::Submission,
            ) => self.on_submission(member, frame, payload, now),
            (
                Topic::Up {
                    kind: Up::Reveal, ..
                },
                Notification::Reveal,
            ) => self.on_reveal(member, frame, now),
            _ => Err(Refusal::Topic),
        };
        if let Err(reason) = outcome {
            self.refuse(topic, reason);
        }
    }

    fn connected(&mut self, now: Now) {
        self.connected = Some(now.monotonic);
        // Meters notice by the newest entry and the pending rosters what they missed.
        self.head_named = None;
        for roster in self.pending_rosters() {
            self.send_all(All::Roster, roster);
        }
        if let Some(aggregate) = self.aggregates.values().next_back().cloned() {
            let topic = Topic::Public {
                net: self.net,
                kind: Public::AggregateCbor,
            };
            self.publish(topic, aggregate, true);
        }
    }

    fn schedule_wake(&mut self, now: Now) {
        let housekeeping = now.monotonic.saturating_add(Duration::from_secs(600));
        let next = self
            .next_deadline(now)
            .map_or(housekeeping, |due| due.min(housekeeping));
        let next = next.min(self.next_naming()).max(now.monotonic);
        if self
            .wake_at
            .is_none_or(|wish| next < wish || wish <= now.monotonic)
        {
            self.wake_at = Some(next);
            self.outputs.push_back(Output::WakeAt(next));
        }
    }
}

impl StateMachine for Provider {
    type Persist = ProviderRecord;
    type Event = ProviderEvent;
    type Command = ProviderCommand;

    fn subscriptions(&self) -> Vec<String> {
        vec![format!("{ROOT}/{}/meter/+/up/#", self.net)]
    }

    fn handle(&mut self, input: Input<Self::Command>, now: Now) {
        self.answers.turn(now.monotonic);
        match input {
            Input::Received(messages) => self.receive(messages, now),
            Input::Connected => self.connected(now),
            Input::Disconnected => self.connected = None,
            Input::Tick => {}
            Input::Command(ProviderCommand::Revoked {
                list,
                administrator,
                revocations,
            }) => self.on_revocations(list, &administrator, &revocations, now),
        }
        self.hand_over(now);
        self.name_head(now);
        self.lapse_absent(now);
        self.advance_rounds(now);
        self.schedule_wake(now);
    }

    fn poll_output(&mut self) -> Option<Output<ProviderRecord, ProviderEvent>> {
        self.outputs.pop_front()
    }
}
