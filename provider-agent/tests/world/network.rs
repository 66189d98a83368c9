//! A provider with its real store and real meters, over a network in memory and in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, Message, Output, Received, StateMachine};
use dcnet::provider::{Provider, ProviderEvent, ProviderRecord, Published};
use dcnet::reading::Boundary;
use dcnet::time::{Now, Round, Timestamp};
use dcnet::topic::{All, Inbox, NetId, Public, Topic, Up};
use dcnet::units::MilliwattHours;
use link::Journal;
use provider_agent::nets::Nets;
use provider_agent::page::live::Live;
use provider_agent::publication::PublishedProvider;
use provider_agent::{Store, utc};
use serde_json::Value;

use super::{World, policy};

pub const PERIOD: u64 = 60_000;
pub const STEP: u64 = 500;

pub struct Network {
    pub world: World,
    pub net: NetId,
    pub start: Timestamp,
    pub now: u64,
    pub store: Store,
    pub provider: Nets,
    pub meters: Vec<Meter>,
    pub registers: Vec<u64>,
    pub truth: BTreeMap<(Round, usize), u64>,
    /// Reveals do not arrive.
    pub mute_reveals: bool,
    pub from_provider: Vec<Message>,
    /// All that the meters sent.
    pub submissions: Vec<Received>,
    pub aggregates: Vec<Published>,
    /// What a page would be told.
    pub live: Live,
}

impl Network {
    pub fn new(meters: usize) -> Self {
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
            submissions: Vec::new(),
            aggregates: Vec::new(),
            live,
        };
        network.input_provider(Input::Connected);
        for meter in 0..network.meters.len() {
            network.input_meter(meter, Input::Connected);
        }
        network
    }

    pub fn now(&self) -> Now {
        Now {
            monotonic: Duration::from_millis(self.now),
            utc: Timestamp(self.start.as_millis() + self.now),
            synchronised: true,
        }
    }

    /// Stops the provider where it stands and starts it again from its database.
    pub fn restart_provider(&mut self) {
        self.store = self.world.store();
        self.provider =
            continue_net(&self.world, &self.store, self.net).shown_by(self.live.clone());
        self.input_provider(Input::Connected);
    }

    /// Stops the provider and goes on from another database, prepared by `prepare`.
    pub fn continue_from(&mut self, store: Store, prepare: impl FnOnce(&mut Provider)) {
        self.store = store;
        self.provider = continue_prepared(&self.world, &self.store, self.net, prepare)
            .shown_by(self.live.clone());
        self.input_provider(Input::Connected);
    }

    pub fn input_provider(&mut self, input: Input<dcnet::provider::ProviderCommand>) {
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
    pub fn must_be_persisted(
        &self,
        message: &Message,
        before: &[provider_agent::store::NetRecord],
    ) {
        let json: Value = serde_json::from_slice(&message.payload).unwrap();
        let round = Round(json["round"].as_u64().unwrap());
        let queued = before.iter().any(
            |r| matches!(&r.record, ProviderRecord::Aggregate(published) if published.round == round),
        );
        let stored = self.store.newest_aggregate(self.net).unwrap();
        assert!(queued || stored.is_some_and(|stored| stored.round == round));
    }

    pub fn deliver(&mut self, message: &Message) {
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

    pub fn input_meter(&mut self, meter: usize, input: Input<MeterCommand>) {
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
                    let submission = matches!(
                        message.topic,
                        Topic::Up {
                            kind: Up::Submission,
                            ..
                        }
                    );
                    if submission {
                        self.submissions.push(received(&message));
                    }
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
    pub fn run_until(&mut self, end: u64) {
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

    pub fn boundary(&mut self) {
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

    pub fn true_sum(&self, published: &Published) -> u64 {
        let included = published.included.iter().map(|id| {
            let meter = self.meters.iter().position(|m| m.id() == *id).unwrap();
            self.truth[&(published.round, meter)]
        });
        included.sum()
    }

    pub fn rosters_sent(&self) -> Vec<&[u8]> {
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

    pub fn public(&self, kind: Public) -> Vec<&Message> {
        let topic = Topic::Public {
            net: self.net,
            kind,
        };
        let all = self.from_provider.iter();
        all.filter(|message| message.topic == topic).collect()
    }
}

pub fn received(message: &Message) -> Received {
    Received {
        topic: message.topic,
        payload: message.payload.clone(),
    }
}

pub fn continue_net(world: &World, store: &Store, net: NetId) -> Nets {
    continue_prepared(world, store, net, |_| {})
}

fn continue_prepared(
    world: &World,
    store: &Store,
    net: NetId,
    prepare: impl FnOnce(&mut Provider),
) -> Nets {
    let mut identity = world.identity();
    identity.revocations.look();
    let config = identity.provider_config(80, None);
    let mut provider = Provider::new(config, store.load(net).unwrap(), [9; 32]).unwrap();
    prepare(&mut provider);
    let newest = store.newest_aggregate(net).unwrap();
    Nets::new([PublishedProvider::new(provider, newest)])
}
