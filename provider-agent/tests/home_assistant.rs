//! The discovery message for Home Assistant fits what is published on the topics it names.

#[path = "world/mod.rs"]
mod world;

use std::collections::BTreeSet;

use dcnet::topic::{Public, Topic};
use dcnet::units::MilliwattHours;
use minijinja::Environment;
use provider_agent::home_assistant::discovery;
use provider_agent::publication::PublicAggregate;
use serde_json::{Value, json};
use world::*;

/// What a template makes of a message, as Home Assistant does it.
fn shown(template: &Value, message: &Value) -> String {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    environment
        .render_str(
            template.as_str().unwrap(),
            minijinja::value::Serde(json!({"value_json": message})),
        )
        .unwrap()
}

#[test]
fn every_value_is_found_where_the_discovery_says() {
    let world = World::new();
    let net = world.create_net(policy(900, 30_000, 4), &["import", "heat-pump"]);
    let membership = world.membership(net);
    let genesis = membership.genesis();
    let mut published = published(1_963_584, 1, 61);
    published.sums = vec![MilliwattHours(15_000_000), MilliwattHours(1)];
    let aggregate = serde_json::to_value(PublicAggregate::new(genesis, &published)).unwrap();
    let status = json!({"members": 64});
    let topic = |kind| Topic::Public { net, kind }.to_string();

    let discovery = discovery(genesis);
    assert_eq!(discovery["device"]["name"], genesis.name.as_str());
    let mut values = Vec::new();
    let mut ids = BTreeSet::new();
    for (key, component) in discovery["components"].as_object().unwrap() {
        assert_eq!(component["platform"], "sensor", "{key}");
        let id = component["unique_id"].as_str().unwrap();
        assert!(ids.insert(id.to_owned()), "{id} twice");
        assert!(id.contains(&net.to_string()), "{id}");
        let message = match component["state_topic"].as_str().unwrap() {
            read if read == topic(Public::Aggregate) => &aggregate,
            read if read == topic(Public::Status) => &status,
            read => panic!("{key} reads {read}"),
        };
        let value = shown(&component["value_template"], message);
        if component["state_class"] == "total" {
            let reset = shown(&component["last_reset_value_template"], message);
            assert_eq!(reset, "2026-01-01T00:00:00Z");
        }
        values.push((key.as_str(), value));
    }
    values.sort();
    let values: Vec<_> = values.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(
        values,
        [
            ("end", "2026-01-01T00:15:00Z"),
            ("heat-pump_energy", "0.000001"),
            ("heat-pump_power", "0.004"),
            ("import_energy", "15.0"),
            ("import_power", "60000.0"),
            ("included", "61"),
            ("members", "64"),
        ]
    );
}
