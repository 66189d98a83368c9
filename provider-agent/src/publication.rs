//! What third parties read: the newest aggregate of a net and its state, as retained
//! JSON beside the provider's signed frame. Only counts of meters, never ids.

use std::collections::VecDeque;

use dcnet::membership::Genesis;
use dcnet::output::{Input, Message, Output, StateMachine};
use dcnet::provider::{Provider, ProviderCommand, ProviderEvent, ProviderRecord, Published};
use dcnet::time::{Now, Period, Round, Timestamp};
use dcnet::topic::{NetId, Public, Topic};
use dcnet::units::MilliwattHours;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::home_assistant;
use crate::utc;

/// One value per channel, in the net's order, as a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct ByChannel<T>(pub Vec<(String, T)>);

impl<T: Serialize> Serialize for ByChannel<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (channel, value) in &self.0 {
            map.serialize_entry(channel, value)?;
        }
        map.end()
    }
}

/// An aggregate as people and their programs read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublicAggregate {
    /// The net, 32 hexadecimal digits.
    pub net: String,
    /// The number of the round.
    pub round: u64,
    /// First moment of the interval, RFC 3339 in UTC.
    pub start: String,
    /// First moment after it.
    pub end: String,
    /// Members of the net.
    pub members: u32,
    /// Meters in the sum.
    pub included: usize,
    /// The sum in mWh, exact.
    pub sum_mwh: ByChannel<u64>,
    /// The sum in kWh, for reading.
    pub sum_kwh: ByChannel<f64>,
    /// Mean power of all included meters together over the interval, in W.
    pub mean_power_w: ByChannel<f64>,
    /// Always true: a sum that does not open the meters' commitments is never published.
    pub verified: bool,
    /// Hash of the roster, hexadecimal.
    pub roster_hash: String,
    /// Hash of the log entry as of which the roster was issued, hexadecimal.
    pub log_head: String,
}

impl PublicAggregate {
    /// The public view of a verified sum.
    pub fn new(genesis: &Genesis, published: &Published) -> Self {
        let period = genesis.policy.period;
        Self {
            net: genesis.net.to_string(),
            round: published.round.0,
            start: utc::text(published.round.start(period)),
            end: utc::text(published.round.end(period)),
            members: published.members,
            included: published.included.len(),
            sum_mwh: by_channel(genesis, &published.sums, |sum| sum.0),
            sum_kwh: by_channel(genesis, &published.sums, kwh),
            mean_power_w: by_channel(genesis, &published.sums, |sum| mean_power(sum, period)),
            verified: true,
            roster_hash: hex::encode(published.roster),
            log_head: hex::encode(published.log_head),
        }
    }
}

fn by_channel<T>(
    genesis: &Genesis,
    sums: &[MilliwattHours],
    value: impl Fn(MilliwattHours) -> T,
) -> ByChannel<T> {
    let channels = genesis.channels.iter().cloned();
    ByChannel(channels.zip(sums.iter().copied().map(value)).collect())
}

/// Rounded to the nearest double; exact up to 2⁵³ mWh.
pub(crate) fn kwh(sum: MilliwattHours) -> f64 {
    sum.0 as f64 / 1e6
}

/// Energy over time, in W, to the mW.
pub(crate) fn mean_power(sum: MilliwattHours, period: Period) -> f64 {
    // mWh times 3.6 are joules.
    let milliwatts = sum.0 as f64 * 3600.0 / f64::from(period.as_secs());
    milliwatts.round() / 1000.0
}

/// The state of a net. There is no "online": a connection has one last will, and a
/// provider with several nets would need one for each. A reader sees by `updated` and
/// the period whether rounds still go on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PublicStatus {
    /// The net, 32 hexadecimal digits.
    pub net: String,
    /// What people call it.
    pub name: String,
    /// Length of a round in seconds.
    pub period_s: u32,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// Fewest meters in a sum, by the net's policy.
    pub minimum_group: u32,
    /// Members now.
    pub members: u32,
    /// The newest round with an aggregate since the net was made.
    pub newest_round: Option<u64>,
    /// Whether the operator has closed it: there will be no new round.
    pub closed: bool,
    /// When this was written, RFC 3339 in UTC.
    pub updated: String,
}

/// A provider whose verified sums are also published for people.
///
/// Outputs stay in one ordered queue: the JSON of an aggregate stands after the
/// `Persist` of that aggregate.
pub struct PublishedProvider {
    provider: Provider,
    newest: Option<Published>,
    connected: bool,
    outputs: VecDeque<Output<ProviderRecord, ProviderEvent>>,
}

impl PublishedProvider {
    /// Wraps a provider; `newest` is the stored aggregate of the newest round.
    pub fn new(provider: Provider, newest: Option<Published>) -> Self {
        Self {
            provider,
            newest,
            connected: false,
            outputs: VecDeque::new(),
        }
    }

    /// The net.
    pub fn net(&self) -> NetId {
        self.provider.net()
    }

    /// The provider itself, to look at.
    pub fn provider(&self) -> &Provider {
        &self.provider
    }

    /// The length of a round.
    pub fn period(&self) -> Period {
        self.provider.membership().genesis().policy.period
    }

    fn publish(&mut self, kind: Public, value: &impl Serialize, retain: bool) {
        // Maps with text keys and numbers always have a JSON form.
        if let Ok(payload) = serde_json::to_vec(value) {
            self.publish_bytes(kind, payload, retain);
        }
    }

    fn publish_bytes(&mut self, kind: Public, payload: Vec<u8>, retain: bool) {
        if self.connected {
            let topic = Topic::Public {
                net: self.net(),
                kind,
            };
            let message = Message {
                topic,
                payload,
                retain,
            };
            self.outputs.push_back(Output::Publish(message));
        }
    }

    /// The device of a net that has rounds; that of a closed one is removed by an empty message
    /// (Home Assistant's documentation of MQTT discovery, "Removing MQTT devices").
    fn publish_discovery(&mut self) {
        if self.provider.is_closed() {
            return self.publish_bytes(Public::HomeAssistant, Vec::new(), true);
        }
        let discovery = home_assistant::discovery(self.provider.membership().genesis());
        self.publish(Public::HomeAssistant, &discovery, true);
    }

    fn publish_aggregate(&mut self, published: &Published, retain: bool) {
        let view = PublicAggregate::new(self.provider.membership().genesis(), published);
        self.publish(Public::Aggregate, &view, retain);
    }

    fn publish_status(&mut self, now: Timestamp) {
        let membership = self.provider.membership();
        let genesis = membership.genesis();
        let status = PublicStatus {
            net: genesis.net.to_string(),
            name: genesis.name.clone(),
            period_s: genesis.policy.period.as_secs(),
            channels: genesis.channels.clone(),
            minimum_group: genesis.policy.minimum_group,
            members: membership.size(),
            newest_round: self.newest.as_ref().map(|newest| newest.round.0),
            closed: self.provider.is_closed(),
            updated: utc::text(now),
        };
        self.publish(Public::Status, &status, true);
    }

    /// Takes over what the provider wants done; whether the public state changed.
    fn take_outputs(&mut self) -> bool {
        let mut changed = false;
        while let Some(output) = self.provider.poll_output() {
            let aggregated = match &output {
                Output::Event(ProviderEvent::Aggregated(published)) => Some(published.clone()),
                _ => None,
            };
            changed |= matches!(
                output,
                Output::Event(
                    ProviderEvent::Aggregated(_)
                        | ProviderEvent::Joined { .. }
                        | ProviderEvent::Left { .. }
                        | ProviderEvent::Revoked { .. }
                )
            );
            self.outputs.push_back(output);
            if let Some(published) = aggregated {
                // A round that was pending for long must not displace a newer one.
                let newest = self.newest.as_ref().map_or(Round(0), |newest| newest.round);
                let is_newest = published.round >= newest;
                self.publish_aggregate(&published, is_newest);
                if is_newest {
                    self.newest = Some(published);
                }
            }
        }
        changed
    }
}

impl StateMachine for PublishedProvider {
    type Persist = ProviderRecord;
    type Event = ProviderEvent;
    type Command = ProviderCommand;

    fn subscriptions(&self) -> Vec<String> {
        self.provider.subscriptions()
    }

    fn handle(&mut self, input: Input<Self::Command>, now: Now) {
        let connected = matches!(input, Input::Connected);
        match input {
            Input::Connected => self.connected = true,
            Input::Disconnected => self.connected = false,
            _ => {}
        }
        self.provider.handle(input, now);
        if connected {
            self.publish_discovery();
        }
        if connected && let Some(newest) = self.newest.clone() {
            self.publish_aggregate(&newest, true);
        }
        let changed = self.take_outputs();
        if connected || changed {
            self.publish_status(now.utc);
        }
    }

    fn poll_output(&mut self) -> Option<Output<ProviderRecord, ProviderEvent>> {
        self.outputs.pop_front()
    }
}
