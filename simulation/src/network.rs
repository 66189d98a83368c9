//! Meters and a provider in virtual time, over an in-memory network that loses,
//! duplicates, delays and reorders messages. Everything follows from one seed.

mod clocks;
mod disks;
mod members;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use dcnet::alarm::{Alarm, Silence};
use dcnet::identity::{Certificate, DeviceId, DeviceKey};
use dcnet::membership::Membership;
use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, Message, Output, Received, Record, StateMachine, Store};
use dcnet::provider::{
    Provider, ProviderCommand, ProviderEvent, ProviderRecord, Published, SavedNet, SavedRoster,
};
use dcnet::reading::Boundary;
use dcnet::roster::Roster;
use dcnet::time::{Now, Round, Timestamp};
use dcnet::topic::{All, Topic, Up};
use dcnet::units::MilliwattHours;

use crate::death::dies_before;
use crate::world::{START, World, at};

pub use disks::LyingDisk;
pub use trace::{Interval, Traced};

/// What the network does to a delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Lost deliveries in percent.
    pub loss: u32,
    /// Deliveries that happen twice, in percent.
    pub duplicates: u32,
    /// Longest delay in milliseconds; different delays reorder.
    pub delay: u64,
}

#[derive(Debug)]
enum Happening {
    Deliver(Option<usize>, Topic, Rc<[u8]>),
    Wake(Option<usize>),
    /// The end of a round by the true clock, for everybody.
    Boundary(u64),
    /// A meter looks at its own clock for a round's end; out of date unless the number is
    /// the meter's newest.
    OwnBoundary(usize, u64),
}

/// A happening at its time; those of one time in the order in which they were scheduled.
struct Scheduled {
    time: u64,
    sequence: u64,
    happening: Happening,
}

impl Scheduled {
    fn key(&self) -> (u64, u64) {
        (self.time, self.sequence)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// Decides at delivery whether a message arrives: topic, receiving meter (`None` for
/// the provider) and payload.
pub type Filter = Box<dyn FnMut(&Topic, Option<usize>, &[u8]) -> bool>;

/// How the clock of a process differs from the true one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skew {
    /// UTC ahead of the truth, in milliseconds.
    pub ahead: i64,
    /// Whether the process is told that its clock is not synchronised.
    pub unsynchronised: bool,
    /// How much faster than the truth UTC runs, in millionths.
    pub drift: i64,
    /// Since when it drifts, in milliseconds since the start.
    pub drifts_since: u64,
}

/// A process that dies after so many outputs: what stands later in its queue is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The meter; `None` for the provider.
    pub process: Option<usize>,
    /// Outputs (records and messages) that still happen.
    pub after: usize,
}

/// Durable state of a meter.
pub type Saved = BTreeMap<(Store, Vec<u8>), Vec<u8>>;

/// A running net.
pub struct Network {
    /// Who takes part.
    pub world: World,
    /// The provider.
    pub provider: Provider,
    /// The meters.
    pub meters: Vec<Meter>,
    /// Which meters are connected.
    pub online: Vec<bool>,
    /// What the network does to deliveries.
    pub faults: Faults,
    /// Durable state of each meter.
    pub saved: Vec<Saved>,
    /// Durable state of the provider.
    pub saved_net: SavedNet,
    /// What the provider said, in order.
    pub provider_events: Vec<ProviderEvent>,
    /// What each meter said, in order.
    pub meter_events: Vec<Vec<MeterEvent>>,
    /// Every aggregate that the provider published.
    pub aggregates: Vec<Published>,
    /// Rounds that ended without an aggregate, as they were stored, with who owed a reveal.
    pub lost: Vec<(Round, Vec<DeviceId>)>,
    /// Every message that left a process: (sender, message).
    pub published: Vec<(Option<usize>, Message)>,
    /// Whether messages are kept in `published`.
    pub keep_published: bool,
    /// Milliseconds since the start.
    pub now: u64,
    administrator: Option<(DeviceKey, Certificate)>,
    /// Keys that the provider signed with before.
    old_keys: Vec<DeviceKey>,
    /// Signed revocations of single devices.
    revocations: Vec<Vec<u8>>,
    rng: ChaCha20Rng,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    index: BTreeMap<DeviceId, usize>,
    registers: Vec<Vec<u64>>,
    /// Whether round ends come by each meter's own clock; else by the true one.
    own_clocks: bool,
    /// The newest look at a clock per meter, and the boundary it gave to this process.
    boundaries: Vec<(u64, Option<Boundary>)>,
    /// What the registers counted in the rounds that the meters were told of.
    intervals: BTreeMap<(usize, Round), Vec<Interval>>,
    /// Energy of each meter and round, per channel.
    truth: BTreeMap<(usize, Round), Vec<u64>>,
    /// Meters that get no boundary values: as good as switched off.
    pub asleep: Vec<bool>,
    /// What arrives; everything if `None`.
    pub filter: Option<Filter>,
    /// How each meter's clock differs from the true one.
    pub skews: Vec<Skew>,
    /// How the provider's does.
    pub provider_skew: Skew,
    /// A crash that is still to come.
    pub crash: Option<Crash>,
    /// Whether the provider is connected.
    pub provider_online: bool,
    /// Meters to and from which everything gets lost, without anybody noticing.
    pub cut: Vec<bool>,
    /// How often the disk of each meter forgot something.
    pub disks: Vec<u32>,
    /// A disk that will lose its last step.
    pub lying: Option<LyingDisk>,
    /// Messages in the order in which they left, if they are traced.
    pub trace: Option<Vec<Traced>>,
}

impl Network {
    /// Starts everybody; all that happens later follows from `seed`, which is printed.
    ///
    /// # Panics
    /// If the world does not fit together.
    pub fn new(world: World, faults: Faults, seed: u64) -> Self {
        println!("seed {seed}");
        let mut network = Self::prepare(world, faults, seed, 0);
        network.connect_all();
        network.schedule(0, Happening::Boundary(0));
        network
    }

    /// As [`Self::new`], but begins `now` milliseconds after the start, prints nothing,
    /// traces messages, and every meter ends its rounds by its own clock.
    ///
    /// # Panics
    /// If the world does not fit together.
    pub fn traced(world: World, seed: u64, now: u64) -> Self {
        let mut network = Self::prepare(world, Faults::default(), seed, now);
        network.trace = Some(Vec::new());
        network.own_clocks = true;
        network.connect_all();
        (0..network.meters.len()).for_each(|meter| network.look_at_clock(meter));
        network
    }

    fn connect_all(&mut self) {
        self.input_provider(Input::Connected);
        for meter in 0..self.meters.len() {
            self.input_meter(meter, Input::Connected);
        }
    }

    fn prepare(world: World, faults: Faults, seed: u64, now: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = ChaCha20Rng::from_seed(bytes);
        let saved_net = SavedNet {
            entries: vec![world.genesis.clone()],
            ..SavedNet::default()
        };
        let provider = Provider::new(world.provider.clone(), saved_net.clone(), bytes).unwrap();
        let count = world.meters.len();
        let meters: Vec<Meter> = (1u32..)
            .zip(&world.meters)
            .map(|(i, config)| {
                bytes[28..].copy_from_slice(&i.to_be_bytes());
                Meter::new(config.clone(), Vec::new(), bytes, at(now)).unwrap()
            })
            .collect();
        let channels = provider.membership().genesis().channels.len();
        let index = meters
            .iter()
            .enumerate()
            .map(|(i, meter)| (meter.id(), i))
            .collect();
        Self {
            world,
            provider,
            online: vec![true; count],
            asleep: vec![false; count],
            filter: None,
            skews: vec![Skew::default(); count],
            provider_skew: Skew::default(),
            crash: None,
            faults,
            saved: vec![BTreeMap::new(); count],
            saved_net,
            administrator: None,
            old_keys: Vec::new(),
            revocations: Vec::new(),
            provider_events: Vec::new(),
            meter_events: vec![Vec::new(); count],
            aggregates: Vec::new(),
            lost: Vec::new(),
            published: Vec::new(),
            keep_published: false,
            now,
            rng,
            queue: BinaryHeap::new(),
            sequence: 0,
            index,
            registers: vec![vec![0; channels]; count],
            own_clocks: false,
            boundaries: vec![(0, None); count],
            intervals: BTreeMap::new(),
            truth: BTreeMap::new(),
            provider_online: true,
            cut: vec![false; count],
            disks: vec![0; count],
            lying: None,
            trace: None,
            meters,
        }
    }

    fn schedule(&mut self, time: u64, happening: Happening) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.queue.push(Reverse(Scheduled {
            time,
            sequence,
            happening,
        }));
    }

    /// A random number below a bound.
    pub fn random(&mut self, below: u64) -> u64 {
        self.rng.next_u64() % below.max(1)
    }

    /// Hands an input to the provider and does what it asks for.
    pub fn input_provider(&mut self, input: Input<ProviderCommand>) {
        let now = skewed(self.now, self.provider_skew);
        self.provider.handle(input, now);
        while let Some(output) = self.provider.poll_output() {
            if self.crashes(None, &output) {
                return self.restart_provider();
            }
            match output {
                Output::Persist(record) => self.persist(record),
                Output::Publish(message) => self.send(None, message),
                Output::WakeAt(time) => self.schedule(ceil(time), Happening::Wake(None)),
                Output::Event(event) => {
                    if let ProviderEvent::Aggregated(published) = &event {
                        self.aggregates.push(published.clone());
                    }
                    self.provider_events.push(event);
                }
            }
        }
    }

    fn persist(&mut self, record: ProviderRecord) {
        let saved = &mut self.saved_net;
        match record {
            ProviderRecord::Entry { frame, .. } => saved.entries.push(frame),
            ProviderRecord::Roster {
                frame, submissions, ..
            } => {
                let submissions = submissions.into_iter().map(|s| s.frame).collect();
                saved.rosters.push(SavedRoster {
                    frame,
                    submissions,
                    pending: true,
                });
            }
            ProviderRecord::Aggregate(published) => {
                saved.aggregates.push((published.round, published.frame));
                self.no_longer_pending(published.round);
            }
            ProviderRecord::Lost { round, missing, .. } => {
                self.lost.push((round, missing));
                self.no_longer_pending(round);
            }
        }
    }

    fn no_longer_pending(&mut self, round: Round) {
        let membership = self.provider.membership();
        for saved in &mut self.saved_net.rosters {
            if Roster::verify(&saved.frame, membership).unwrap().round == round {
                saved.pending = false;
            }
        }
    }

    /// Both clocks as a meter sees them.
    pub fn clock(&self, meter: usize) -> Now {
        skewed(self.now, self.skews[meter])
    }

    /// Counts an output of a process that is going to crash; true if it dies before it.
    fn crashes<P, E>(&mut self, process: Option<usize>, output: &Output<P, E>) -> bool {
        let Some(crash) = &mut self.crash else {
            return false;
        };
        if crash.process != process {
            return false;
        }
        let mut left = Some(crash.after);
        let dies = dies_before(&mut left, output);
        match left {
            Some(left) => crash.after = left,
            None => self.crash = None,
        }
        dies
    }

    /// Hands an input to a meter and does what it asks for.
    ///
    /// # Panics
    /// If there is no such meter.
    pub fn input_meter(&mut self, meter: usize, input: Input<MeterCommand>) {
        let now = self.clock(meter);
        let before = self.before_step(meter);
        let mut stored = false;
        self.meters[meter].handle(input, now);
        while let Some(output) = self.meters[meter].poll_output() {
            if self.crashes(Some(meter), &output) {
                return self.restart_meter(meter);
            }
            match output {
                Output::Persist(Record { store, key, value }) => {
                    stored = true;
                    match value {
                        Some(value) => drop(self.saved[meter].insert((store, key), value)),
                        None => drop(self.saved[meter].remove(&(store, key))),
                    }
                }
                Output::Publish(message) => self.send(Some(meter), message),
                Output::WakeAt(time) => self.schedule(ceil(time), Happening::Wake(Some(meter))),
                Output::Event(event) => self.meter_events[meter].push(event),
            }
        }
        self.after_step(meter, before, stored);
    }

    fn send(&mut self, from: Option<usize>, message: Message) {
        if self.keep_published {
            self.published.push((from, message.clone()));
        }
        self.note(from, &message);
        if from.is_some_and(|meter| self.cut[meter]) {
            return;
        }
        let Message { topic, payload, .. } = message;
        let receivers: Vec<Option<usize>> = match topic {
            Topic::Up { .. } | Topic::UpPair { .. } => vec![None],
            Topic::Inbox { meter, .. } | Topic::InboxPair { meter, .. } => self
                .index
                .get(&meter)
                .map(|i| Some(*i))
                .into_iter()
                .collect(),
            Topic::All { .. } => (0..self.meters.len()).map(Some).collect(),
            Topic::Public { .. } => Vec::new(),
        };
        let payload: Rc<[u8]> = payload.into();
        for receiver in receivers {
            if receiver.is_some_and(|meter| self.cut[meter]) {
                continue;
            }
            if self.random(100) < u64::from(self.faults.loss) {
                continue;
            }
            let copies = 1 + u32::from(self.random(100) < u64::from(self.faults.duplicates));
            for _ in 0..copies {
                let delay = 1 + self.random(self.faults.delay + 1);
                let delivery = Happening::Deliver(receiver, topic, Rc::clone(&payload));
                self.schedule(self.now + delay, delivery);
            }
        }
    }

    /// Connects or disconnects a meter.
    pub fn set_online(&mut self, meter: usize, online: bool) {
        if self.online[meter] != online {
            self.online[meter] = online;
            let input = if online {
                Input::Connected
            } else {
                Input::Disconnected
            };
            self.input_meter(meter, input);
        }
    }

    /// Starts a meter again from what it persisted.
    pub fn restart_meter(&mut self, meter: usize) {
        let records = self.saved[meter]
            .iter()
            .map(|((store, key), value)| Record {
                store: *store,
                key: key.clone(),
                value: Some(value.clone()),
            });
        let records: Vec<Record> = records.collect();
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let config = self.world.meters[meter].clone();
        self.boundaries[meter].1 = None;
        self.meters[meter] = Meter::new(config, records, seed, self.clock(meter)).unwrap();
        if self.online[meter] {
            self.input_meter(meter, Input::Connected);
        }
    }

    /// Starts the provider again from what it persisted.
    pub fn restart_provider(&mut self) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let saved = self.saved_net.clone();
        self.provider = Provider::new(self.world.provider.clone(), saved, seed).unwrap();
        if self.provider_online {
            self.input_provider(Input::Connected);
        }
        self.tell_revocations();
    }

    /// Runs until `end` milliseconds after the start.
    pub fn run_until(&mut self, end: u64) {
        while self.step(end) {}
    }

    /// Lets the next thing happen that is due until `end`; false if there is none, and
    /// then it is `end`.
    pub fn step(&mut self, end: u64) -> bool {
        let due = self
            .queue
            .peek()
            .is_some_and(|Reverse(next)| next.time <= end);
        let Some(Reverse(next)) = due.then(|| self.queue.pop()).flatten() else {
            self.now = end;
            return false;
        };
        self.now = next.time;
        match next.happening {
            Happening::Deliver(receiver, topic, payload) => {
                self.arrive(receiver, topic, &payload);
            }
            Happening::Wake(None) => self.input_provider(Input::Tick),
            Happening::Wake(Some(meter)) => self.input_meter(meter, Input::Tick),
            Happening::Boundary(number) => self.boundary(number),
            Happening::OwnBoundary(meter, number) => self.own_boundary(meter, number),
        }
        true
    }

    fn arrive(&mut self, receiver: Option<usize>, topic: Topic, payload: &[u8]) {
        if let Some(filter) = &mut self.filter
            && !filter(&topic, receiver, payload)
        {
            return;
        }
        let message = Received {
            topic,
            payload: payload.to_vec(),
        };
        match receiver {
            None if self.provider_online => {
                self.input_provider(Input::Received(vec![message]));
            }
            Some(meter) if self.online[meter] && !self.cut[meter] => {
                self.input_meter(meter, Input::Received(vec![message]));
            }
            _ => {}
        }
    }

    /// The end of a round for every meter's register.
    fn boundary(&mut self, number: u64) {
        let period = self.world.policy.period;
        let utc = Timestamp(START.as_millis() + self.now);
        for meter in 0..self.meters.len() {
            if number > 0 {
                let round = Round(period.round_at(utc).0 - 1);
                let energy: Vec<u64> = (0..self.registers[meter].len())
                    .map(|_| self.rng.next_u64() % 5_000_000)
                    .collect();
                for (register, energy) in self.registers[meter].iter_mut().zip(&energy) {
                    *register += energy;
                }
                self.truth.insert((meter, round), energy);
            }
            if !self.asleep[meter] {
                let channels = self.registers[meter]
                    .iter()
                    .map(|r| MilliwattHours(*r))
                    .collect();
                let boundary = Boundary { at: utc, channels };
                self.input_meter(meter, Input::Command(MeterCommand::Boundary(boundary)));
            }
        }
        let next = self.now + u64::from(period.as_secs()) * 1000;
        self.schedule(next, Happening::Boundary(number + 1));
    }

    /// The true sum over the included meters of an aggregate, per channel.
    pub fn true_sums(&self, published: &Published) -> Vec<MilliwattHours> {
        let channels = self.registers.first().map_or(0, Vec::len);
        let mut sums = vec![0; channels];
        for id in &published.included {
            let energy = &self.truth[&(self.index[id], published.round)];
            for (sum, energy) in sums.iter_mut().zip(energy) {
                *sum += energy;
            }
        }
        sums.into_iter().map(MilliwattHours).collect()
    }

    /// Every aggregate so far equals the truth bit for bit, and no round has two.
    pub fn check_aggregates(&self) {
        let mut rounds = std::collections::BTreeSet::new();
        for published in &self.aggregates {
            assert_eq!(
                published.sums,
                self.true_sums(published),
                "round {}",
                published.round
            );
            assert!(
                rounds.insert(published.round),
                "two aggregates for {}",
                published.round
            );
        }
    }

    /// Hands a message to a meter as if the provider had published it.
    pub fn deliver(&mut self, meter: usize, topic: Topic, payload: Vec<u8>) {
        let message = Received { topic, payload };
        self.input_meter(meter, Input::Received(vec![message]));
    }

    /// Hands a message to the provider.
    pub fn deliver_up(&mut self, topic: Topic, payload: Vec<u8>) {
        let message = Received { topic, payload };
        self.input_provider(Input::Received(vec![message]));
    }

    /// Shows a roster to one meter.
    pub fn show_roster(&mut self, meter: usize, roster: Vec<u8>) {
        let topic = Topic::All {
            net: self.world.net,
            kind: All::Roster,
        };
        self.deliver(meter, topic, roster);
    }

    /// Shows a log entry to one meter.
    pub fn show_entry(&mut self, meter: usize, entry: Vec<u8>) {
        let topic = Topic::All {
            net: self.world.net,
            kind: All::Log,
        };
        self.deliver(meter, topic, entry);
    }

    /// The newest roster that the provider stored.
    pub fn newest_roster(&self) -> Roster {
        let saved = self.saved_net.rosters.last().unwrap();
        Roster::verify(&saved.frame, self.provider.membership()).unwrap()
    }

    /// Signs a roster with the provider's key at its log head, whatever it says.
    pub fn sign_roster(&self, roster: &Roster) -> Vec<u8> {
        let (log, utc) = (self.provider.membership(), at(self.now).utc);
        let head = log.index_of_entry(&roster.log_head).unwrap_or(u64::MAX);
        roster.sign(self.provider_key_at(head), log, utc)
    }

    /// The log up to and with entry `index`, as a provider that lies may continue it.
    pub fn log_until(&self, index: usize) -> Membership {
        let config = &self.world.provider;
        let entries = &self.saved_net.entries;
        let mut log = Membership::open(&entries[0], &config.certificate, &config.ca).unwrap();
        for entry in &entries[1..=index] {
            log.append(entry).unwrap();
        }
        log
    }

    /// A member's index in the log.
    pub fn member(&self, meter: usize) -> u32 {
        let id = self.meters[meter].id();
        self.provider.membership().index_of(&id).unwrap()
    }

    /// The newest round that has ended.
    pub fn last_round(&self) -> Round {
        let period = self.world.policy.period;
        Round(period.round_at(at(self.now).utc).0 - 1)
    }

    /// Whether a meter ever said this.
    pub fn heard(&self, meter: usize, event: &MeterEvent) -> bool {
        self.meter_events[meter].contains(event)
    }

    /// Whether a meter published its submission of a round.
    pub fn submitted(&self, meter: usize, round: Round) -> bool {
        let submission = |event: &MeterEvent| matches!(event, MeterEvent::Submitted { round: r, .. } if *r == round);
        self.meter_events[meter].iter().any(submission)
    }

    /// Whether a meter published its reveal of a round.
    pub fn revealed(&self, meter: usize, round: Round) -> bool {
        let reveal = |event: &MeterEvent| matches!(event, MeterEvent::Revealed { round: r, .. } if *r == round);
        self.meter_events[meter].iter().any(reveal)
    }

    /// Why a meter stayed silent in a round, each time it said so.
    pub fn silences(&self, meter: usize, round: Round) -> Vec<Silence> {
        let events = self.meter_events[meter].iter();
        let reason = |event: &MeterEvent| match event {
            MeterEvent::Silent { round: r, reason } if *r == round => Some(*reason),
            _ => None,
        };
        events.filter_map(reason).collect()
    }

    /// The alarms of a meter.
    pub fn alarms(&self, meter: usize) -> Vec<Alarm> {
        let events = self.meter_events[meter].iter();
        let alarm = |event: &MeterEvent| match event {
            MeterEvent::Alarm(alarm) => Some(alarm.clone()),
            _ => None,
        };
        events.filter_map(alarm).collect()
    }

    /// What a meter published of one kind, in order.
    pub fn sent(&self, meter: usize, kind: Up) -> Vec<Vec<u8>> {
        let sent = |topic: &Topic| matches!(topic, Topic::Up { kind: k, .. } if *k == kind);
        let messages = self.published.iter();
        messages
            .filter(|(from, message)| *from == Some(meter) && sent(&message.topic))
            .map(|(_, message)| message.payload.clone())
            .collect()
    }

    /// Which meter has an id.
    pub fn meter_of(&self, id: &DeviceId) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// Indices of the meters in an aggregate.
    pub fn included(&self, published: &Published) -> Vec<usize> {
        published.included.iter().map(|id| self.index[id]).collect()
    }
}

/// Both clocks of a process whose UTC is wrong.
fn skewed(millis: u64, skew: Skew) -> Now {
    let mut now = at(millis);
    let drifted = i64::try_from(millis.saturating_sub(skew.drifts_since)).unwrap();
    let ahead = skew.ahead + drifted * skew.drift / 1_000_000;
    now.utc = Timestamp(now.utc.as_millis().checked_add_signed(ahead).unwrap());
    now.synchronised = !skew.unsynchronised;
    now
}

fn ceil(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap()
}
