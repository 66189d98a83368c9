//! Several nets over one connection.
//!
//! The broker binds the client id to the certificate and a second session of one id
//! ends the first, so all nets of a provider share one connection. They share nothing
//! else: each has its own state machine.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use dcnet::alarm::Refusal;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{ProviderCommand, ProviderEvent};
use dcnet::time::{Now, Period, Timestamp};
use dcnet::topic::{NetId, ROOT};

use crate::page::live::Live;
use crate::publication::PublishedProvider;
use crate::store::NetRecord;

/// More nets than this are subscribed to by one wildcard: the broker grants a provider
/// only so many filters.
const FILTERS: usize = 16;

/// Ids of meters that a line of the log or a span names.
pub(crate) const NAMED: usize = 100;

/// An event of one net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetEvent {
    /// The net.
    pub net: NetId,
    /// When it happened.
    pub at: Timestamp,
    /// For an aggregate: how long after the end of its round it was there.
    pub latency: Option<Duration>,
    /// What happened.
    pub event: ProviderEvent,
}

/// The nets of one provider as one state machine.
#[derive(Default)]
pub struct Nets {
    nets: BTreeMap<NetId, PublishedProvider>,
    wishes: BTreeMap<NetId, Duration>,
    wake_at: Option<Duration>,
    outputs: VecDeque<Output<NetRecord, NetEvent>>,
    live: Live,
}

impl Nets {
    /// The machine for these nets.
    pub fn new(nets: impl IntoIterator<Item = PublishedProvider>) -> Self {
        Self {
            nets: nets.into_iter().map(|net| (net.net(), net)).collect(),
            ..Self::default()
        }
    }

    /// Shows how far the rounds are to an operator's page.
    pub fn shown_by(mut self, live: Live) -> Self {
        self.live = live;
        self
    }

    /// The ids of the nets.
    pub fn ids(&self) -> impl Iterator<Item = NetId> {
        self.nets.keys().copied()
    }

    /// The length of a round in each net.
    pub fn periods(&self) -> BTreeMap<NetId, Period> {
        let period = |(net, machine): (&NetId, &PublishedProvider)| (*net, machine.period());
        self.nets.iter().map(period).collect()
    }

    fn handle_net(&mut self, net: NetId, input: Input<ProviderCommand>, now: Now) -> Option<()> {
        let machine = self.nets.get_mut(&net)?;
        machine.handle(input, now);
        while let Some(output) = machine.poll_output() {
            self.outputs.push_back(match output {
                Output::Persist(record) => Output::Persist(NetRecord { net, record }),
                Output::Publish(message) => Output::Publish(message),
                Output::Event(event) => {
                    let latency = match &event {
                        ProviderEvent::Aggregated(published) => {
                            Some(now.utc.since(published.round.end(machine.period())))
                        }
                        _ => None,
                    };
                    Output::Event(NetEvent {
                        net,
                        at: now.utc,
                        latency,
                        event,
                    })
                }
                Output::WakeAt(at) => {
                    self.wishes.insert(net, at);
                    continue;
                }
            });
        }
        self.live.observe(machine.provider(), now.utc);
        Some(())
    }

    /// Hands messages to their nets, each net's together and in order.
    fn receive(&mut self, messages: Vec<Received>, now: Now) {
        let mut by_net: BTreeMap<NetId, Vec<Received>> = BTreeMap::new();
        for message in messages {
            by_net.entry(message.topic.net()).or_default().push(message);
        }
        for (net, messages) in by_net {
            if self.nets.contains_key(&net) {
                self.handle_net(net, Input::Received(messages), now);
                continue;
            }
            for Received { topic, .. } in messages {
                self.outputs.push_back(Output::Event(NetEvent {
                    net,
                    at: now.utc,
                    latency: None,
                    event: ProviderEvent::Refused {
                        topic,
                        reason: Refusal::Topic,
                    },
                }));
            }
        }
    }

    fn schedule_wake(&mut self, now: Now, ticked: bool) {
        let next = self.wishes.values().min().copied();
        // The shell forgets a wish once it has ticked, even if it ticked too early.
        if let Some(next) = next
            && (ticked || self.wake_at != Some(next) || next <= now.monotonic)
        {
            self.wake_at = Some(next);
            self.outputs.push_back(Output::WakeAt(next));
        }
    }
}

impl StateMachine for Nets {
    type Persist = NetRecord;
    type Event = NetEvent;
    type Command = ProviderCommand;

    fn subscriptions(&self) -> Vec<String> {
        if self.nets.len() > FILTERS {
            return vec![format!("{ROOT}/+/meter/+/up/#")];
        }
        self.nets
            .values()
            .flat_map(StateMachine::subscriptions)
            .collect()
    }

    fn handle(&mut self, input: Input<Self::Command>, now: Now) {
        let ticked = matches!(input, Input::Tick);
        let ids: Vec<NetId> = self.ids().collect();
        let all = |make: fn() -> Input<Self::Command>, this: &mut Self| {
            for net in &ids {
                let net = *net;
                this.handle_net(net, make(), now);
            }
        };
        match input {
            Input::Received(messages) => self.receive(messages, now),
            Input::Connected => all(|| Input::Connected, self),
            Input::Disconnected => all(|| Input::Disconnected, self),
            Input::Tick => all(|| Input::Tick, self),
            Input::Command(command) => {
                for net in ids {
                    self.handle_net(net, Input::Command(command.clone()), now);
                }
            }
        }
        self.schedule_wake(now, ticked);
    }

    fn poll_output(&mut self) -> Option<Output<NetRecord, NetEvent>> {
        self.outputs.pop_front()
    }
}
