//! What Home Assistant reads so as to show the sums of a net.
//!
//! Source of the form: Home Assistant's documentation of MQTT discovery by device, of its MQTT
//! sensors and of the sensor classes
//! (<https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery>). The message stands among
//! the public topics like everything that third parties read; `docs/home-assistant.md` tells how
//! it gets to where Home Assistant looks for it.

use dcnet::membership::Genesis;
use dcnet::topic::{Public, Topic};
use serde_json::{Map, Value, json};

/// After so many periods without a new sum the values are shown as unavailable: what a round
/// may be late, and one more.
const STALE_PERIODS: u32 = 4;

/// The net as a device, with its newest sums and how many meters were in them.
pub fn discovery(genesis: &Genesis) -> Value {
    let id = format!("dcnet-{}", genesis.net);
    let topic = |kind| {
        let net = genesis.net;
        Topic::Public { net, kind }.to_string()
    };
    let (aggregate, status) = (topic(Public::Aggregate), topic(Public::Status));
    let stale = genesis.policy.period.as_secs() * STALE_PERIODS;
    let mut components = Map::new();
    let mut add = |key: String, mut component: Value| {
        component["platform"] = "sensor".into();
        component["unique_id"] = format!("{id}_{key}").into();
        components.insert(key, component);
    };
    for channel in &genesis.channels {
        add(
            format!("{channel}_power"),
            json!({
                "name": format!("{channel}: mean power"),
                "device_class": "power",
                "state_class": "measurement",
                "unit_of_measurement": "W",
                "suggested_display_precision": 0,
                "state_topic": aggregate,
                "expire_after": stale,
                "value_template": format!("{{{{ value_json.mean_power_w['{channel}'] }}}}"),
            }),
        );
        add(
            format!("{channel}_energy"),
            json!({
                "name": format!("{channel}: energy of the last round"),
                "device_class": "energy",
                // Each round begins at zero: Home Assistant adds the rounds up.
                "state_class": "total",
                "last_reset_value_template": "{{ value_json.start }}",
                "unit_of_measurement": "kWh",
                "suggested_display_precision": 3,
                "state_topic": aggregate,
                "expire_after": stale,
                "value_template": format!("{{{{ value_json.sum_kwh['{channel}'] }}}}"),
            }),
        );
    }
    add(
        "included".to_owned(),
        json!({
            "name": "Meters in the sum",
            "state_class": "measurement",
            "icon": "mdi:home-group",
            "state_topic": aggregate,
            "expire_after": stale,
            "value_template": "{{ value_json.included }}",
        }),
    );
    add(
        "end".to_owned(),
        json!({
            "name": "Last sum until",
            "device_class": "timestamp",
            "entity_category": "diagnostic",
            "state_topic": aggregate,
            "value_template": "{{ value_json.end }}",
        }),
    );
    add(
        "members".to_owned(),
        json!({
            "name": "Members",
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "state_topic": status,
            "value_template": "{{ value_json.members }}",
        }),
    );
    json!({
        "device": {
            "identifiers": [id],
            "name": genesis.name,
            "model": "DC-net",
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "origin": {
            "name": "provider-agent",
            "sw_version": env!("CARGO_PKG_VERSION"),
        },
        "components": components,
    })
}
