//! What is published for Home Assistant.
//!
//! Source of the form: Home Assistant's documentation of MQTT discovery by device, of its MQTT
//! sensors and binary sensors, and of the sensor classes
//! (<https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery>). A value that is `null` in the
//! state becomes `None` in a template, which Home Assistant shows as unknown.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::identifier::Identifier;
use super::{HomeAssistantOptions, Progress, RoundState};
use crate::energy::Kwh;
use crate::reach::Reach;
use crate::register::counting::{Counted, CountedChannel};
use crate::standing::Standing;

/// Payloads of the availability topic, by Home Assistant's default.
pub(super) const ONLINE: &str = "online";
pub(super) const OFFLINE: &str = "offline";

/// Where it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topics {
    /// Retained: what the meter shows.
    pub(super) discovery: String,
    /// Retained: whether the agent is there.
    pub(super) availability: String,
    /// What it shows now. Not retained: the household's broker need not keep readings, and nobody
    /// could see how old one is.
    pub(super) state: String,
}

impl Topics {
    pub(super) fn new(options: &HomeAssistantOptions, id: &Identifier) -> Self {
        let HomeAssistantOptions {
            discovery_prefix,
            topic_prefix,
            ..
        } = options;
        Self {
            discovery: format!("{discovery_prefix}/device/{id}/config"),
            availability: format!("{topic_prefix}/{id}/availability"),
            state: format!("{topic_prefix}/{id}/state"),
        }
    }
}

/// The device and everything it shows, in one message.
pub(super) fn discovery(
    options: &HomeAssistantOptions,
    id: &Identifier,
    topics: &Topics,
    channels: &[String],
) -> String {
    let mut components = Map::new();
    let mut add = |key: String, mut component: Value| {
        component["unique_id"] = format!("{id}_{key}").into();
        components.insert(key, component);
    };
    for channel in channels {
        let name = capitalised(channel);
        add(
            format!("{channel}_energy"),
            json!({
                "platform": "sensor",
                "name": format!("{name} energy"),
                "device_class": "energy",
                "state_class": "total_increasing",
                "unit_of_measurement": "kWh",
                "suggested_display_precision": 2,
                "value_template": format!("{{{{ value_json.channels['{channel}'].energy_kwh }}}}"),
            }),
        );
        add(
            format!("{channel}_power"),
            json!({
                "platform": "sensor",
                "name": format!("{name} power"),
                "device_class": "power",
                "state_class": "measurement",
                "unit_of_measurement": "W",
                "suggested_display_precision": 0,
                "value_template": format!("{{{{ value_json.channels['{channel}'].power_w }}}}"),
            }),
        );
    }
    add(
        "connected".to_owned(),
        json!({
            "platform": "binary_sensor",
            "name": "Provider's broker",
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "value_template": "{{ 'ON' if value_json.connected else 'OFF' }}",
        }),
    );
    add(
        "members".to_owned(),
        json!({
            "platform": "sensor",
            "name": "Group members",
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "icon": "mdi:home-group",
            "value_template": "{{ value_json.members }}",
        }),
    );
    add(
        "round".to_owned(),
        json!({
            "platform": "sensor",
            "name": "Last round",
            "device_class": "enum",
            "options": RoundState::ALL,
            "entity_category": "diagnostic",
            "value_template": "{{ value_json.round }}",
        }),
    );
    add(
        "alarms".to_owned(),
        json!({
            "platform": "sensor",
            "name": "Alarms",
            "state_class": "total_increasing",
            "entity_category": "diagnostic",
            "icon": "mdi:alert",
            "value_template": "{{ value_json.alarms }}",
        }),
    );
    json!({
        "device": {
            "identifiers": [id.to_string()],
            "name": options.name,
            "model": "meter-agent",
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "origin": {
            "name": "meter-agent",
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "state_topic": topics.state,
        "availability_topic": topics.availability,
        "components": components,
    })
    .to_string()
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[derive(Serialize)]
struct State<'a> {
    channels: BTreeMap<&'a str, ChannelState>,
    connected: bool,
    members: u32,
    round: Option<RoundState>,
    alarms: u64,
}

#[derive(Default, Serialize)]
struct ChannelState {
    energy_kwh: Option<Box<RawValue>>,
    power_w: Option<Box<RawValue>>,
}

/// What is shown at a moment of [`crate::clock::monotonic`]. `is_unread` says of each channel
/// whether its line cannot be read.
pub(super) fn state(
    channels: &[String],
    counted: &Counted,
    is_unread: &[bool],
    now: Duration,
    reach: &Reach,
    standing: &Standing,
    progress: Progress,
) -> String {
    let of = |place: usize| {
        let Some(counted) = counted.channels.get(place) else {
            return ChannelState::default();
        };
        ChannelState {
            // Of what is not on disk a crash could take some back: the total would decrease. A
            // zero before a device's first reading would make of all that it shows then a use.
            energy_kwh: counted
                .saved_reading
                .and_then(|reading| number(Kwh::from(reading).to_string())),
            // Of a line that is not read no pulse says nothing.
            power_w: match is_unread.get(place) {
                Some(true) => None,
                _ => watts(counted, now).and_then(number),
            },
        }
    };
    let names = channels.iter().map(String::as_str);
    let state = State {
        channels: names.enumerate().map(|(i, name)| (name, of(i))).collect(),
        connected: reach.is_connected(),
        members: standing.members,
        round: progress.round,
        alarms: progress.alarms,
    };
    // Strings and numbers only: nothing in it can fail.
    serde_json::to_string(&state).unwrap_or_default()
}

/// Digits as they are, not by way of a floating-point number.
fn number(digits: String) -> Option<Box<RawValue>> {
    RawValue::from_string(digits).ok()
}

/// The power, or while the next pulse is late what it is below; nothing before the second
/// pulse, when the bound is too far from any power.
fn watts(counted: &CountedChannel, now: Duration) -> Option<String> {
    let is_measured = counted.power.is_measured();
    let power = counted.power_at(now).filter(|_| is_measured)?;
    let (whole, rest) = (power.milliwatts / 1000, power.milliwatts % 1000);
    Some(format!("{whole}.{rest:03}"))
}

#[cfg(test)]
mod tests;
