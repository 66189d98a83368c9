//! A meter's side of the protocol: registration, draws, handshakes, submissions and
//! reveals, as a pure state machine. Before it speaks it checks every rule of
//! `docs/protocol.md`, "What a meter checks"; when one is broken it stays silent.

mod checks;
mod draws;
mod edges;
mod exclusions;
mod exit;
mod log;
mod rounds;
mod saved;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::aggregate::Aggregate;
use crate::alarm::{Alarm, Refusal, Silence};
use crate::catch_up::CatchUp;
use crate::checkpoint::Checkpoint;
use crate::graph::MemberIndex;
use crate::identity::{CaCertificate, Certificate, DeviceId, DeviceKey};
use crate::membership::{HARD_FLOOR, Membership, Policy};
use crate::output::{Input, Message, Output, Received, Record, StateMachine, Store};
use crate::pad::RosterHash;
use crate::reading::{BlindingSecret, Boundary, Reading};
use crate::repeat::Repeats;
use crate::revocation::RevocationList;
use crate::secret::Secret;
use crate::superposition::Share;
use crate::time::{Day, Now, Round, Timestamp};
use crate::topic::{All, Inbox, NetId, ROOT, Topic, Up};
use crate::units::MilliwattHours;

use checks::ClockWatch;
use draws::OpenDraw;
use edges::{Edge, EdgeKey};
use exit::Exit;
use rounds::{OwnRound, SeenRoster};

pub use exit::ExitProgress;
pub use saved::SavedError;

/// Limits of the household that win over any policy of a net.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floors {
    /// Fewest included meters of a roster and candidates of a draw; at least 3.
    pub minimum_group: u32,
    /// Fewest full drawn edges; at least 3.
    pub minimum_neighbours: u32,
    /// Shortest period of a net, in seconds.
    pub minimum_period: u32,
    /// Least share of the lately seen members that a roster must include, in percent.
    pub minimum_presence: u32,
    /// More exclusions than this within a day stop the meter.
    pub exclusions_per_day: u32,
    /// More exclusions than this share of a month's rounds stop the meter, in percent.
    pub exclusions_per_month: u32,
}

impl Default for Floors {
    /// The floors of `docs/protocol.md`: 30 meters, 3 neighbours, 60 s, 80 %, 5 a day, 2 % a month.
    fn default() -> Self {
        Self {
            minimum_group: 30,
            minimum_neighbours: HARD_FLOOR,
            minimum_period: 60,
            minimum_presence: 80,
            exclusions_per_day: 5,
            exclusions_per_month: 2,
        }
    }
}

/// What a meter is enrolled with, and its owner's floors.
#[derive(Clone, Debug)]
pub struct MeterConfig {
    /// The device key.
    pub key: DeviceKey,
    /// Its certificate, of role meter.
    pub certificate: Certificate,
    /// The gateway administrator's CA.
    pub ca: CaCertificate,
    /// The provider that the meter was enrolled with.
    pub provider: Certificate,
    /// The administrator's view of the net's log.
    pub checkpoint: Checkpoint,
    /// The owner's floors.
    pub floors: Floors,
    /// A list of revoked devices by the administrator, if any; no older one than the meter
    /// has stored comes into force.
    pub revoked: Option<RevocationList>,
}

/// What the owner tells a meter.
#[derive(Debug)]
pub enum MeterCommand {
    /// The register's value at a round boundary; boundaries come in order.
    Boundary(Boundary),
    /// A jump of the clock is right.
    ConfirmClock,
    /// Leave the net.
    Leave,
    /// A list of revoked devices by the administrator; only a newer one comes into force.
    Revoked(RevocationList),
}

/// What a meter tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MeterEvent {
    /// The net's rules are known.
    NetOpened {
        /// The rules.
        policy: Policy,
        /// The channels that boundaries must have.
        channels: Vec<String>,
    },
    /// The meter is a member.
    Joined,
    /// It is no member, so it cannot leave.
    NotMember,
    /// Its exit is in the log.
    Left,
    /// Everything of the net it left is erased here.
    ExitDone {
        /// Former neighbours that confirmed that they erased the pair key.
        confirmed: u32,
        /// All former neighbours.
        neighbours: u32,
    },
    /// The provider signs with another key from here on.
    ProviderChanged,
    /// Its draw is done.
    Drawn {
        /// How many neighbours it drew.
        neighbours: usize,
    },
    /// Enough handshakes are done to take part.
    Entered {
        /// Drawn neighbours with a key.
        neighbours: usize,
    },
    /// A submission was published.
    Submitted {
        /// The round.
        round: Round,
        /// What it says, per channel.
        shares: Vec<Share>,
        /// Members that the newest draw named: d.
        drawn: usize,
        /// Those of them whose pads are in the superpositions.
        used: usize,
        /// L: so many of them must be full edges of a roster that is answered.
        required: u32,
    },
    /// A reveal was published.
    Revealed {
        /// The round.
        round: Round,
        /// Meters on the roster.
        included: usize,
        /// Full drawn edges: at least L.
        full: usize,
    },
    /// The aggregate of a round this meter is in.
    Final {
        /// The round.
        round: Round,
        /// Meters in the sum.
        included: u32,
        /// The sum per channel.
        sums: Vec<MilliwattHours>,
    },
    /// The meter stayed silent in a round.
    Silent {
        /// The round.
        round: Round,
        /// Which rule was broken.
        reason: Silence,
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

/// Why a meter takes part no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// An alarm since it was started.
    By(Alarm),
    /// An alarm before it was started, for good; which one is not stored.
    Earlier,
}

impl Stopped {
    /// Whether it outlives a restart: all but the owner's own floors do, which the owner
    /// may lower.
    pub fn is_for_good(&self) -> bool {
        !matches!(self, Self::By(Alarm::Floor { .. }))
    }
}

/// What a message is repeated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Register,
    Draw,
    Edge(EdgeKey),
    Entered,
    Submission(Round),
    Reveal(Round),
    Exit,
    Former(DeviceId),
}

/// The device's own long-lived secrets.
#[derive(Clone, Debug)]
struct DeviceSecrets {
    mask: Secret,
    blinding: BlindingSecret,
}

/// Log entries kept while earlier ones are missing.
const EARLY_ENTRIES: usize = 1024;

/// Rosters kept while log entries or earlier rosters are missing.
const BUFFERED_ROSTERS: usize = 64;

/// Who was in a roster within this time does not lapse.
pub(crate) const SHORTEST_LAPSE: Duration = Duration::from_secs(24 * 3600);

/// A round is closed this long after its end, final or not.
pub(crate) const CLOSED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A meter.
pub struct Meter {
    config: MeterConfig,
    net: NetId,
    id: DeviceId,
    rng: ChaCha20Rng,
    outputs: VecDeque<Output<Record, MeterEvent>>,
    repeats: Repeats<Purpose>,
    wake_at: Option<Duration>,
    connected_since: Option<Duration>,
    stopped: Option<Stopped>,
    clock: ClockWatch,

    membership: Option<Membership>,
    checkpoint_seen: bool,
    log_request: CatchUp,
    /// Entries that came before what they build on, by index; verified.
    early_entries: BTreeMap<u64, Vec<u8>>,
    /// Digest of the newest entry of the provider's that breaks a rule.
    bad_entry: Option<[u8; 32]>,
    /// The highest index of an entry known to exist.
    log_target: u64,
    registration: Option<Vec<u8>>,
    /// Digest of the registration: a membership that began with it is this meter's.
    registered: Option<[u8; 32]>,
    exit: Option<Exit>,
    /// Whether the owner was told of the emergency of the newest draw.
    emergency: bool,
    device: Option<DeviceSecrets>,
    draw: Option<OpenDraw>,
    edges: BTreeMap<EdgeKey, Edge>,
    /// Faults in handshakes that the owner was told of.
    handshakes_told: BTreeSet<(EdgeKey, &'static str)>,
    entered: bool,
    erased_before: Day,
    /// Handshakes wait for the clock.
    edges_due: bool,
    /// Edges that the graph has no more wait for the rounds that used them.
    edges_dead: bool,
    /// How long, connected, it has lacked keys with drawn neighbours, whether or not it was
    /// started again meanwhile, and when it looked last.
    keyless: Duration,
    keys_looked: Duration,
    /// When this meter asked for its draws, by its own clock.
    draw_times: Vec<Timestamp>,

    boundary: Option<(Boundary, Now)>,
    due: Option<(Duration, Reading)>,
    submitted_until: Timestamp,
    rounds: BTreeMap<Round, OwnRound>,
    last_roster: Option<(Round, RosterHash)>,
    roster_request: CatchUp,
    buffered_rosters: Vec<Vec<u8>>,
    /// Something changed that buffered rosters may have waited for.
    rosters_due: bool,
    /// A buffered roster names a log head that is not known here: the log is behind.
    head_unknown: bool,
    /// Rounds whose submission was made without a connection and never left.
    unsent: BTreeSet<Round>,
    seen: VecDeque<SeenRoster>,
    /// Second rosters that the owner was told of.
    second_rosters: VecDeque<(Round, RosterHash)>,
    /// Rounds that this meter has seen the aggregate of, since it was started.
    finished: VecDeque<Round>,
    exclusions: Vec<Timestamp>,
    /// When this meter made others wait for its reveal, within a day before the last time.
    late_reveals: Vec<Timestamp>,
}

impl Meter {
    /// A meter from its enrolment and what it persisted (both stores). `seed` is 32
    /// fresh bytes of the operating system's randomness.
    ///
    /// # Errors
    /// [`SavedError`] if the certificate is no meter's or a saved record cannot be
    /// read: a meter never runs on a state it does not understand.
    pub fn new(
        mut config: MeterConfig,
        saved: Vec<Record>,
        seed: [u8; 32],
        now: Now,
    ) -> Result<Self, SavedError> {
        let net = config.certificate.net().ok_or(SavedError::Certificate)?;
        if config.certificate.id() != config.key.id() || config.checkpoint.net != net {
            return Err(SavedError::Certificate);
        }
        let revoked = config.revoked.take();
        let mut meter = Self {
            net,
            id: config.key.id(),
            rng: ChaCha20Rng::from_seed(seed),
            outputs: VecDeque::new(),
            repeats: Repeats::new(),
            wake_at: None,
            connected_since: None,
            stopped: None,
            clock: ClockWatch::new(now),
            membership: None,
            checkpoint_seen: false,
            log_request: CatchUp::default(),
            early_entries: BTreeMap::new(),
            bad_entry: None,
            log_target: 0,
            registration: None,
            registered: None,
            exit: None,
            emergency: false,
            device: None,
            draw: None,
            edges: BTreeMap::new(),
            handshakes_told: BTreeSet::new(),
            entered: false,
            erased_before: Day::default(),
            edges_due: false,
            edges_dead: false,
            keyless: Duration::ZERO,
            keys_looked: now.monotonic,
            draw_times: Vec::new(),
            boundary: None,
            due: None,
            submitted_until: Timestamp::default(),
            rounds: BTreeMap::new(),
            last_roster: None,
            roster_request: CatchUp::default(),
            buffered_rosters: Vec::new(),
            rosters_due: false,
            head_unknown: false,
            unsent: BTreeSet::new(),
            seen: VecDeque::new(),
            second_rosters: VecDeque::new(),
            finished: VecDeque::new(),
            exclusions: Vec::new(),
            late_reveals: Vec::new(),
            config,
        };
        meter.restore(saved)?;
        if let Some(list) = revoked {
            meter.on_revocations(list);
        }
        meter.resume(now);
        Ok(meter)
    }

    /// The net this meter is enrolled in.
    pub fn net(&self) -> NetId {
        self.net
    }

    /// This meter's id.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// The log as far as it is known and verified.
    pub fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// The list of revoked devices in force: the newest that it was ever given in this net.
    pub fn revocations(&self) -> Option<&RevocationList> {
        self.config.revoked.as_ref()
    }

    /// Whether this meter has stopped, and why.
    pub fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    /// The rounds that it takes part in and that are neither final nor closed, ascending.
    pub fn open_rounds(&self) -> impl ExactSizeIterator<Item = Round> {
        self.rounds.keys().copied()
    }

    /// This meter's place in the log, by the registration that its state knows; it may
    /// have left.
    fn index(&self) -> Option<MemberIndex> {
        let membership = self.membership.as_ref()?;
        let index = membership.index_of(&self.id)?;
        let registration = membership.member(index)?.registration;
        (self.registered == Some(registration)).then_some(index)
    }

    /// This meter's place in the log while it is a member.
    fn active_index(&self) -> Option<MemberIndex> {
        let membership = self.membership.as_ref()?;
        let index = self.index()?;
        membership.member(index)?.is_active().then_some(index)
    }

    fn random(&mut self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn random_secret(&mut self) -> Secret {
        let rng = &mut self.rng;
        Secret::filled(|bytes| rng.fill_bytes(bytes))
    }

    fn event(&mut self, event: MeterEvent) {
        self.outputs.push_back(Output::Event(event));
    }

    fn alarm(&mut self, alarm: Alarm) {
        self.event(MeterEvent::Alarm(alarm));
    }

    /// Takes part no more: nothing is repeated, submitted or revealed again.
    fn stop(&mut self, alarm: Alarm) {
        if self.stopped.is_none() {
            self.repeats.retain(|_| false);
            self.due = None;
            let stopped = Stopped::By(alarm.clone());
            if stopped.is_for_good() {
                self.persist(Store::Net, saved::STOPPED.to_vec(), Some(vec![1]));
            }
            self.stopped = Some(stopped);
            self.alarm(alarm);
        }
    }

    fn refuse(&mut self, topic: Topic, reason: impl Into<Refusal>) {
        self.event(MeterEvent::Refused {
            topic,
            reason: reason.into(),
        });
    }

    fn persist(&mut self, store: Store, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.outputs
            .push_back(Output::Persist(Record { store, key, value }));
    }

    /// First interval of repetitions: part of the window, as the net's pace sets it.
    fn pace(&self) -> Duration {
        let window = self
            .membership
            .as_ref()
            .map(|m| m.genesis().policy.window_ms);
        Duration::from_millis(u64::from(window.unwrap_or(2000).clamp(1000, 30_000)))
    }

    fn publish(&mut self, topic: Topic, payload: Vec<u8>) {
        if self.connected_since.is_some() {
            let message = Message {
                topic,
                payload,
                retain: false,
            };
            self.outputs.push_back(Output::Publish(message));
        }
    }

    /// Publishes now and repeats until [`Repeats::stop`].
    fn publish_until_answered(
        &mut self,
        purpose: Purpose,
        topic: Topic,
        payload: Vec<u8>,
        now: Now,
    ) {
        let message = Message {
            topic,
            payload: payload.clone(),
            retain: false,
        };
        self.repeats
            .start(purpose, message, now.monotonic, self.pace());
        self.publish(topic, payload);
    }

    fn up(&self, kind: Up) -> Topic {
        Topic::Up {
            net: self.net,
            meter: self.id,
            kind,
        }
    }

    /// Registers, unless this meter is a member already.
    fn register(&mut self, now: Now) {
        if self.index().is_some() || self.stopped.is_some() || self.is_leaving() {
            return;
        }
        let frame = match self.registration.clone() {
            Some(frame) => frame,
            None => {
                let (key, certificate) = (&self.config.key, &self.config.certificate);
                let frame =
                    crate::membership::sign_registration(key, certificate, self.net, now.utc);
                self.registered = crate::frame::digest_of(&frame).ok();
                self.registration = Some(frame.clone());
                self.persist(
                    Store::Net,
                    saved::REGISTRATION.to_vec(),
                    Some(frame.clone()),
                );
                frame
            }
        };
        self.publish_until_answered(Purpose::Register, self.up(Up::Register), frame, now);
    }

    fn receive(&mut self, message: Received, now: Now) {
        let Received { topic, payload } = message;
        let of_rounds = matches!(
            topic,
            Topic::All {
                kind: All::Roster | All::Aggregate,
                ..
            } | Topic::Inbox {
                kind: Inbox::Roster | Inbox::Aggregate,
                ..
            }
        );
        // Rounds concern nobody who has left and finished its own.
        if of_rounds && self.is_gone() {
            return;
        }
        match topic {
            Topic::All { net, kind } if net == self.net => match kind {
                All::Log => self.on_entry(topic, &payload, now),
                All::Roster => self.on_roster(topic, payload, now),
                All::Aggregate => self.on_aggregate(topic, &payload, now),
            },
            Topic::Inbox { net, meter, kind } if net == self.net && meter == self.id => {
                match kind {
                    Inbox::Log => {
                        self.log_request.answered();
                        self.on_entry(topic, &payload, now);
                    }
                    Inbox::Roster => {
                        self.roster_request.answered();
                        self.on_roster(topic, payload, now);
                    }
                    Inbox::Aggregate => self.on_aggregate(topic, &payload, now),
                }
            }
            Topic::InboxPair { net, meter, peer } if net == self.net && meter == self.id => {
                self.on_handshake(topic, peer, &payload, now);
            }
            // Aggregates for third parties come with the subscription to public topics.
            Topic::Public { .. } => {}
            _ => self.refuse(topic, Refusal::Topic),
        }
    }

    fn on_aggregate(&mut self, topic: Topic, payload: &[u8], now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        let aggregate = match Aggregate::verify_in(payload, membership) {
            Ok(aggregate) => aggregate,
            Err(error) => return self.refuse_of_provider(topic, error, now),
        };
        self.finish(&aggregate);
    }

    fn connected(&mut self, now: Now) {
        self.connected_since = Some(now.monotonic);
        if self.stopped.is_some() {
            return;
        }
        self.close_rounds(now);
        self.close_windows(now);
        self.count_as_timely(now);
        self.unsent.clear();
        self.register(now);
        self.log_request.probe();
        if !self.is_gone() {
            self.roster_request.probe();
        }
        self.consider_entered(now);
        let pace = self.pace();
        for message in self.repeats.restart(now.monotonic, pace) {
            self.outputs.push_back(Output::Publish(message));
        }
    }

    fn tick(&mut self, now: Now) {
        // First: nothing of a closed round is repeated.
        self.close_rounds(now);
        if self.connected_since.is_some() {
            for message in self.repeats.take_due(now.monotonic) {
                self.outputs.push_back(Output::Publish(message));
            }
        }
        if self
            .due
            .as_ref()
            .is_some_and(|(due, _)| *due <= now.monotonic)
            && let Some((_, reading)) = self.due.take()
        {
            self.submit(&reading, now);
        }
        self.retry_buffered_rosters(now);
        self.catch_up(now);
        self.close_windows(now);
        self.erase_old_keys(now);
        self.consider_draw(now);
        self.consider_joining_anew(now);
        self.consider_missing_keys(now);
        self.finish_exit(now);
        if self.edges_due && self.clock.check(now).is_ok() {
            self.sync_edges(now);
        }
    }

    fn schedule_wake(&mut self, now: Now) {
        let repeat = self
            .repeats
            .next_due()
            .filter(|_| self.connected_since.is_some());
        let submission = self.due.as_ref().map(|(due, _)| *due);
        let pace = self.pace();
        let connected = |due: &Duration| self.connected_since.is_some() && *due > now.monotonic;
        let log = self.log_request.next_due(pace).filter(connected);
        let rosters = self.roster_request.next_due(pace).filter(connected);
        // Closing rounds and erasing keys need a look now and then.
        let housekeeping = now.monotonic.saturating_add(Duration::from_secs(600));
        let next = [repeat, submission, log, rosters]
            .into_iter()
            .flatten()
            .fold(housekeeping, Duration::min);
        // Only an earlier wish, or one that has passed, needs to be told.
        if self
            .wake_at
            .is_none_or(|wish| next < wish || wish <= now.monotonic)
        {
            self.wake_at = Some(next);
            self.outputs.push_back(Output::WakeAt(next));
        }
    }
}

impl StateMachine for Meter {
    type Persist = Record;
    type Event = MeterEvent;
    type Command = MeterCommand;

    fn subscriptions(&self) -> Vec<String> {
        let own = format!("{ROOT}/{}/meter/{}/inbox/#", self.net, self.id);
        vec![own, format!("{ROOT}/{}/all/#", self.net)]
    }

    fn handle(&mut self, input: Input<MeterCommand>, now: Now) {
        if let Some(seconds) = self.clock.observe(now) {
            self.persist(Store::Net, saved::CLOCK_JUMP.to_vec(), Some(vec![1]));
            self.alarm(Alarm::ClockJump { seconds });
        }
        match input {
            Input::Received(messages) => {
                for message in messages {
                    self.receive(message, now);
                }
            }
            Input::Connected => self.connected(now),
            Input::Disconnected => self.connected_since = None,
            Input::Tick => {}
            Input::Command(MeterCommand::Boundary(boundary)) => self.on_boundary(boundary, now),
            Input::Command(MeterCommand::ConfirmClock) => {
                self.clock.confirm();
                self.persist(Store::Net, saved::CLOCK_JUMP.to_vec(), None);
            }
            Input::Command(MeterCommand::Leave) => self.leave(now),
            Input::Command(MeterCommand::Revoked(list)) => self.on_revocations(list),
        }
        self.tick(now);
        self.schedule_wake(now);
    }

    fn poll_output(&mut self) -> Option<Output<Record, MeterEvent>> {
        self.outputs.pop_front()
    }
}
