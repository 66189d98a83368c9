//! The agent's state machine with its real store and real meters, over a network in
//! memory and in virtual time.

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, Message, Output, Received, StateMachine};
use dcnet::provider::{Provider, ProviderEvent, ProviderRecord, Published};
use dcnet::reading::Boundary;
use dcnet::time::{Now, Period, Round, Timestamp};
use dcnet::topic::{All, Inbox, NetId, Public, Topic, Up};
use dcnet::units::MilliwattHours;
use link::Journal;
use provider_agent::nets::Nets;
use provider_agent::page::live::{Live, Stage};
use provider_agent::publication::PublishedProvider;
use provider_agent::{Store, utc};
use serde_json::Value;
use world::{World, policy};

const PERIOD: u64 = 60_000;
const STEP: u64 = 500;

struct Network {
    world: World,
    net: NetId,
    start: Timestamp,
    now: u64,
    store: Store,
    provider: Nets,
    meters: Vec<Meter>,
    registers: Vec<u64>,
    truth: BTreeMap<(Round, usize), u64>,
    /// Reveals do not arrive.
    mute_reveals: bool,
    from_provider: Vec<Message>,
    aggregates: Vec<Published>,
    /// What a page would be told.
    live: Live,
}

impl Network {
    fn new(meters: usize) -> Self {
        let world = World::new();
        let net = world.create_net(policy(60, 20_000, 4), &["import"]);
        // The next boundary, so that certificates made now are valid.
        let start = Timestamp((utc::now().as_millis() / PERIOD + 1) * PERIOD);
        let now = Now {
            monotonic: Duration::ZERO,
            utc: start,
            synchronised: true,
        };
        let meters: Vec<Meter> = (0..meters)
            .map(|i| {
                let config = world.meter(net, &format!("meter-{i}"), 4);
                let seed = [u8::try_from(i).unwrap(); 32];
                Meter::new(config, Vec::new(), seed, now).unwrap()
            })
            .collect();
        let store = world.store();
        let live = Live::default();
        let provider = continue_net(&world, &store, net).shown_by(live.clone());
        let mut network = Self {
            registers: vec![0; meters.len()],
            world,
            net,
            start,
            now: 0,
            store,
            provider,
            meters,
            truth: BTreeMap::new(),
            mute_reveals: false,
            from_provider: Vec::new(),
            aggregates: Vec::new(),
            live,
        };
        network.input_provider(Input::Connected);
        for meter in 0..network.meters.len() {
            network.input_meter(meter, Input::Connected);
        }
        network
    }

    fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_millis(self.now),
            utc: Timestamp(self.start.as_millis() + self.now),
            synchronised: true,
        }
    }

    /// Stops the provider where it stands and starts it again from its database.
    fn restart_provider(&mut self) {
        self.store = self.world.store();
        self.provider =
            continue_net(&self.world, &self.store, self.net).shown_by(self.live.clone());
        self.input_provider(Input::Connected);
    }

    fn input_provider(&mut self, input: Input<dcnet::provider::ProviderCommand>) {
        self.provider.handle(input, self.now());
        let mut records = Vec::new();
        let mut messages = Vec::new();
        while let Some(output) = self.provider.poll_output() {
            match output {
                Output::Persist(record) => records.push(record),
                Output::Publish(message) => {
                    if let Topic::Public {
                        kind: Public::Aggregate,
                        ..
                    } = message.topic
                    {
                        self.must_be_persisted(&message, &records);
                    }
                    messages.push(message);
                }
                Output::Event(event) => {
                    self.live.take(&event);
                    if let ProviderEvent::Aggregated(published) = event.event {
                        assert!(event.latency.is_some());
                        self.aggregates.push(published);
                    }
                }
                Output::WakeAt(_) => {}
            }
        }
        self.store.commit(&records).unwrap();
        for message in messages {
            self.deliver(&message);
            self.from_provider.push(message);
        }
    }

    /// A published sum is on disk, or stands before in the queue.
    fn must_be_persisted(&self, message: &Message, before: &[provider_agent::store::NetRecord]) {
        let json: Value = serde_json::from_slice(&message.payload).unwrap();
        let round = Round(json["round"].as_u64().unwrap());
        let queued = before.iter().any(
            |r| matches!(&r.record, ProviderRecord::Aggregate(published) if published.round == round),
        );
        let stored = self.store.newest_aggregate(self.net).unwrap();
        assert!(queued || stored.is_some_and(|stored| stored.round == round));
    }

    fn deliver(&mut self, message: &Message) {
        let to = match message.topic {
            Topic::Inbox { meter, .. } | Topic::InboxPair { meter, .. } => Some(meter),
            Topic::All { .. } => None,
            _ => return,
        };
        for meter in 0..self.meters.len() {
            if to.is_none_or(|to| to == self.meters[meter].id()) {
                let received = received(message);
                self.input_meter(meter, Input::Received(vec![received]));
            }
        }
    }

    fn input_meter(&mut self, meter: usize, input: Input<MeterCommand>) {
        let now = self.now();
        self.meters[meter].handle(input, now);
        while let Some(output) = self.meters[meter].poll_output() {
            match output {
                Output::Publish(message) => {
                    let reveal = matches!(
                        message.topic,
                        Topic::Up {
                            kind: Up::Reveal,
                            ..
                        }
                    );
                    if !(reveal && self.mute_reveals) {
                        self.input_provider(Input::Received(vec![received(&message)]));
                    }
                }
                Output::Event(MeterEvent::Alarm(alarm)) => panic!("meter {meter}: {alarm}"),
                _ => {}
            }
        }
    }

    /// Lets time pass until `end` milliseconds after the start.
    fn run_until(&mut self, end: u64) {
        while self.now < end {
            if self.now.is_multiple_of(PERIOD) {
                self.boundary();
            }
            self.now += STEP;
            self.input_provider(Input::Tick);
            for meter in 0..self.meters.len() {
                self.input_meter(meter, Input::Tick);
            }
        }
    }

    fn boundary(&mut self) {
        let now = self.now();
        let ended = Round(now.utc.as_millis() / PERIOD - 1);
        for meter in 0..self.meters.len() {
            let energy = self.now / 7 + 1000 * meter as u64;
            self.registers[meter] += energy;
            self.truth.insert((ended, meter), energy);
            let channels = vec![MilliwattHours(self.registers[meter])];
            let boundary = Boundary {
                at: now.utc,
                channels,
            };
            self.input_meter(meter, Input::Command(MeterCommand::Boundary(boundary)));
        }
    }

    fn true_sum(&self, published: &Published) -> u64 {
        let included = published.included.iter().map(|id| {
            let meter = self.meters.iter().position(|m| m.id() == *id).unwrap();
            self.truth[&(published.round, meter)]
        });
        included.sum()
    }

    fn rosters_sent(&self) -> Vec<&[u8]> {
        let rosters = self.from_provider.iter().filter(|message| {
            matches!(
                message.topic,
                Topic::All {
                    kind: All::Roster,
                    ..
                } | Topic::Inbox {
                    kind: Inbox::Roster,
                    ..
                }
            )
        });
        rosters.map(|message| message.payload.as_slice()).collect()
    }

    fn public(&self, kind: Public) -> Vec<&Message> {
        let topic = Topic::Public {
            net: self.net,
            kind,
        };
        let all = self.from_provider.iter();
        all.filter(|message| message.topic == topic).collect()
    }
}

fn received(message: &Message) -> Received {
    Received {
        topic: message.topic,
        payload: message.payload.clone(),
    }
}

fn continue_net(world: &World, store: &Store, net: NetId) -> Nets {
    let mut identity = world.identity();
    identity.revocations.look();
    let config = identity.provider_config(80, None);
    let provider = Provider::new(config, store.load(net).unwrap(), [9; 32]).unwrap();
    let newest = store.newest_aggregate(net).unwrap();
    Nets::new([PublishedProvider::new(provider, newest)])
}

#[test]
fn a_round_goes_on_after_a_restart_under_the_same_roster() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let before = network.aggregates.len();
    assert!(before >= 1, "rounds work before the restart");
    network.mute_reveals = true;
    let known = network.rosters_sent().len();
    network.run_until(3 * PERIOD + PERIOD / 2);
    assert_eq!(network.aggregates.len(), before, "the round is pending");
    let roster = network.rosters_sent()[known].to_vec();
    let saved = network.store.load(network.net).unwrap();
    assert!(saved.rosters.last().unwrap().pending);
    assert_eq!(saved.rosters.last().unwrap().frame, roster);

    let known = network.rosters_sent().len();
    network.restart_provider();
    network.mute_reveals = false;
    assert!(
        network.rosters_sent().len() > known,
        "the roster is sent again"
    );
    assert!(
        network.rosters_sent()[known..]
            .iter()
            .all(|sent| *sent == roster)
    );
    network.run_until(6 * PERIOD);

    let after = &network.aggregates[before];
    assert_eq!(after.included.len(), 5);
    assert_eq!(after.sums, [MilliwattHours(network.true_sum(after))]);
    assert!(
        network.aggregates.len() > before + 1,
        "and the next rounds follow"
    );
    for published in &network.aggregates {
        assert_eq!(
            published.sums,
            [MilliwattHours(network.true_sum(published))]
        );
    }
    let mut rounds: Vec<Round> = network.aggregates.iter().map(|p| p.round).collect();
    rounds.dedup();
    assert_eq!(rounds.len(), network.aggregates.len());
    let saved = network.store.load(network.net).unwrap();
    assert_eq!(saved.aggregates.len(), network.aggregates.len());
    network.store.check().unwrap();
}

#[test]
fn a_page_is_told_where_a_round_stands_and_who_owes_a_reveal() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let newest = network.live.rounds(network.net).remove(0);
    assert_eq!((newest.stage, newest.included), (Stage::Final, 5));
    assert_eq!(newest.live_neighbours_minimum, Some(4));
    let sum = network.true_sum(network.aggregates.last().unwrap());
    assert_eq!(
        newest.energy_kwh.0,
        [("import".to_owned(), sum as f64 / 1e6)]
    );
    assert_eq!(network.live.alarms(), []);

    network.mute_reveals = true;
    network.run_until(3 * PERIOD + PERIOD / 6);
    let passing = network.live.rounds(network.net).remove(0);
    assert_eq!(passing.round, newest.round + 1);
    assert_eq!(passing.stage, Stage::Reveals);
    let numbers = (passing.submitted, passing.included, passing.revealed);
    assert_eq!(numbers, (5, 5, 0));
    assert!(network.live.owing(network.net).is_empty(), "not yet");

    network.run_until(3 * PERIOD + PERIOD / 2);
    let late = network.live.rounds(network.net).remove(0);
    assert_eq!(late.stage, Stage::Pending);
    let mut all: Vec<_> = network.meters.iter().map(Meter::id).collect();
    all.sort_unstable();
    assert_eq!(network.live.owing(network.net), all);
    let told = network.live.alarms().remove(0);
    assert_eq!((told.kind, told.round), ("pending", Some(late.round)));
    assert!(
        told.what.contains("5 meters") && told.advice.contains("24 hours"),
        "{told:?}"
    );

    network.mute_reveals = false;
    network.restart_provider();
    network.run_until(6 * PERIOD);
    let rounds = network.live.rounds(network.net);
    let same = rounds.iter().find(|round| round.round == late.round);
    let same = same.unwrap();
    assert_eq!((same.stage, same.revealed), (Stage::Final, 5));
    assert!(same.missing.is_empty());
    assert!(network.live.owing(network.net).is_empty());
    let counts = network.live.counts(network.net);
    assert_eq!(counts.finals, network.aggregates.len() as u64);
    assert_eq!((counts.pending, counts.lost, counts.alarms), (1, 0, 0));
}

#[test]
fn each_sum_is_published_retained_as_json_without_any_meters_id() {
    let mut network = Network::new(5);
    network.run_until(4 * PERIOD);
    let published = network.public(Public::Aggregate);
    assert_eq!(published.len(), network.aggregates.len());
    assert!(!published.is_empty());
    let period = Period::from_secs(60).unwrap();
    for (message, aggregate) in published.iter().zip(&network.aggregates) {
        assert!(message.retain);
        let json: Value = serde_json::from_slice(&message.payload).unwrap();
        let sum = network.true_sum(aggregate);
        let expected = serde_json::json!({
            "net": network.net.to_string(),
            "round": aggregate.round.0,
            "start": utc::text(aggregate.round.start(period)),
            "end": utc::text(aggregate.round.end(period)),
            "members": 5,
            "included": 5,
            "sum_mwh": {"import": sum},
            "sum_kwh": {"import": sum as f64 / 1e6},
            "mean_power_w": {"import": (sum as f64 * 60.0).round() / 1000.0},
            "verified": true,
            "roster_hash": json["roster_hash"],
            "log_head": json["log_head"],
        });
        assert_eq!(json, expected);
        assert_eq!(json["roster_hash"].as_str().unwrap().len(), 64);
        assert_eq!(json["log_head"].as_str().unwrap().len(), 64);
    }
    for kind in [Public::Aggregate, Public::Status] {
        for message in network.public(kind) {
            let text = String::from_utf8(message.payload.clone()).unwrap();
            for meter in &network.meters {
                assert!(!text.contains(&meter.id().to_string()), "{text}");
            }
        }
    }
    let newest = network
        .public(Public::Aggregate)
        .last()
        .unwrap()
        .payload
        .clone();
    network.from_provider.clear();
    network.restart_provider();
    let again = network.public(Public::Aggregate);
    assert_eq!(
        again.len(),
        1,
        "a broker that lost its memory gets it again"
    );
    assert_eq!((&again[0].payload, again[0].retain), (&newest, true));
    let status: Value = serde_json::from_slice(&network.public(Public::Status)[0].payload).unwrap();
    assert_eq!(status["members"], 5);
    assert_eq!(status["name"], "Elm Street");
    let round: Value = serde_json::from_slice(&newest).unwrap();
    assert_eq!(status["newest_round"], round["round"]);
}

#[test]
fn nets_share_a_connection_and_nothing_else() {
    let world = World::new();
    let ids = ["a", "b"].map(|_| world.create_net(policy(60, 20_000, 4), &["import"]));
    let store = world.store();
    let machines = ids.map(|net| {
        let config = world.identity().provider_config(80, None);
        let provider = Provider::new(config, store.load(net).unwrap(), [9; 32]).unwrap();
        PublishedProvider::new(provider, None)
    });
    let mut nets = Nets::new(machines);
    let filters = nets.subscriptions();
    assert_eq!(filters.len(), 2);
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    nets.handle(Input::Connected, now);
    let mut woken = false;
    while let Some(output) = nets.poll_output() {
        woken |= matches!(output, Output::WakeAt(_));
    }
    assert!(woken);
    let meter = world.meter(ids[1], "meter", 4);
    let frame =
        dcnet::membership::sign_registration(&meter.key, &meter.certificate, ids[1], now.utc);
    let register = |net| Received {
        topic: Topic::Up {
            net,
            meter: meter.key.id(),
            kind: Up::Register,
        },
        payload: frame.clone(),
    };
    let unknown = NetId([1; 16]);
    nets.handle(
        Input::Received(vec![register(ids[0]), register(ids[1]), register(unknown)]),
        now,
    );
    let (mut joined, mut refused) = (Vec::new(), Vec::new());
    while let Some(output) = nets.poll_output() {
        match output {
            Output::Event(event) => match event.event {
                ProviderEvent::Joined { .. } => joined.push(event.net),
                ProviderEvent::Refused { .. } => refused.push(event.net),
                _ => {}
            },
            Output::Persist(record) => assert_eq!(record.net, ids[1]),
            _ => {}
        }
    }
    refused.sort_unstable();
    let mut expected = vec![unknown, ids[0]];
    expected.sort_unstable();
    assert_eq!((joined, refused), (vec![ids[1]], expected));
}

#[test]
fn a_meter_on_the_administrators_list_is_refused() {
    let world = World::new();
    let net = world.create_net(policy(60, 20_000, 4), &["import"]);
    let meter = world.meter(net, "meter", 4);
    world.authority.revoke(&[meter.key.id()]).unwrap();
    let list = world.config.identity_directory.join("revoked.cbor");
    std::fs::copy(world.authority.revoked_path(), list).unwrap();

    let mut nets = continue_net(&world, &world.store(), net);
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    let frame = dcnet::membership::sign_registration(&meter.key, &meter.certificate, net, now.utc);
    let topic = Topic::Up {
        net,
        meter: meter.key.id(),
        kind: Up::Register,
    };
    let register = Received {
        topic,
        payload: frame,
    };
    nets.handle(Input::Received(vec![register]), now);
    let mut refused = false;
    while let Some(output) = nets.poll_output() {
        match output {
            Output::Event(event) => {
                let reason = dcnet::alarm::Refusal::Revoked;
                refused |= event.event == ProviderEvent::Refused { topic, reason };
            }
            Output::Persist(record) => panic!("{record:?}"),
            _ => {}
        }
    }
    assert!(refused);
}
