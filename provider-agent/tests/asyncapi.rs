//! `docs/asyncapi.yaml` says what is published: its schemas, topics, servers and examples.

#[path = "world/mod.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cddl::validator::{Validator, cbor::CBORValidator};
use dcnet::topic::{All, NetId, Public, Topic};
use provider_agent::publication::{ByChannel, PublicAggregate, PublicStatus};
use serde_json::{Value, json};
use world::network::{Network, PERIOD};

const NET: NetId = NetId([0xab; 16]);

fn document() -> Value {
    serde_saphyr::from_str(include_str!("../../docs/asyncapi.yaml")).unwrap()
}

/// What is wrong with `value` by the named schema.
fn faults(document: &Value, schema: &str, value: &Value) -> Vec<String> {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "allOf": [{"$ref": format!("#/components/schemas/{schema}")}],
        "components": document["components"],
    });
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap();
    let fault = |error: jsonschema::ValidationError<'_>| error.to_string();
    validator.iter_errors(value).map(fault).collect()
}

fn aggregate() -> Value {
    let by_channel = |value| ByChannel(vec![("import".to_owned(), value)]);
    serde_json::to_value(PublicAggregate {
        net: NET.to_string(),
        round: 1_963_584,
        start: "2026-01-01T00:00:00Z".to_owned(),
        end: "2026-01-01T00:15:00Z".to_owned(),
        members: 64,
        included: 61,
        sum_mwh: ByChannel(vec![("import".to_owned(), 15_000_000)]),
        sum_kwh: by_channel(15.0),
        mean_power_w: by_channel(60_000.0),
        verified: true,
        roster_hash: hex::encode([1; 32]),
        log_head: hex::encode([2; 32]),
    })
    .unwrap()
}

fn status(newest_round: Option<u64>) -> Value {
    serde_json::to_value(PublicStatus {
        net: NET.to_string(),
        name: "Elm Street".to_owned(),
        period_s: 900,
        channels: vec!["import".to_owned()],
        minimum_group: 30,
        members: 64,
        newest_round,
        closed: false,
        updated: "2026-01-01T00:15:42Z".to_owned(),
    })
    .unwrap()
}

#[test]
fn every_field_that_is_published_is_described() {
    let document = document();
    let none: Vec<String> = Vec::new();
    assert_eq!(faults(&document, "aggregate", &aggregate()), none);
    assert_eq!(faults(&document, "status", &status(Some(1))), none);
    assert_eq!(faults(&document, "status", &status(None)), none);
}

/// The newest message on a public topic, as JSON.
fn newest(network: &Network, kind: Public) -> Value {
    let messages = network.public(kind);
    let newest = messages.last().expect("something is published");
    serde_json::from_slice(&newest.payload).unwrap()
}

#[test]
fn what_a_provider_publishes_is_as_it_is_described() {
    let document = document();
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    for (kind, schema) in [
        (Public::Aggregate, "aggregate"),
        (Public::Status, "status"),
        (Public::HomeAssistant, "discovery"),
    ] {
        let published = newest(&network, kind);
        assert_eq!(faults(&document, schema, &published), [""; 0]);
    }
    let discovery = newest(&network, Public::HomeAssistant);
    for (pointer, wrong) in [
        ("/device", json!({})),
        ("/device/identifiers", json!(["elm"])),
        ("/components", json!({})),
        ("/components/included", json!({"platform": "sensor"})),
        ("/components/included/state_topic", json!("dcnet/1/elm")),
        ("/components/included/expire_after", json!("long")),
        ("/components/included/colour", json!("green")),
    ] {
        let mut other = discovery.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        other.pointer_mut(parent).unwrap()[key] = wrong;
        assert!(
            !faults(&document, "discovery", &other).is_empty(),
            "{pointer}"
        );
    }
}

/// Whether a frame is one of the named rule of `dcnet.cddl`, signed.
fn is(rule: &str, frame: &[u8]) -> bool {
    // The first rule is what is checked.
    let schema = include_str!("../../dcnet/dcnet.cddl");
    let schema = format!("published = signed<{rule}>\n{schema}");
    let cddl = cddl::cddl_from_str(&schema, true).unwrap();
    let frame: ciborium::Value = ciborium::from_reader(frame).unwrap();
    let mut validator = CBORValidator::new(&cddl, frame.into(), None);
    // The validator panics on some mismatches.
    let valid = catch_unwind(AssertUnwindSafe(|| validator.validate().is_ok()));
    valid.unwrap_or(false)
}

#[test]
fn the_cbor_form_is_what_the_cddl_says() {
    let document = document();
    let summary = &document["components"]["messages"]["aggregateCbor"]["summary"];
    let summary = summary.as_str().unwrap();
    assert!(summary.contains("`aggregate` of dcnet.cddl"), "{summary}");
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let published = network.public(Public::AggregateCbor);
    assert!(!published.is_empty());
    for message in published {
        assert!(is("aggregate", &message.payload));
    }
    let rosters = Topic::All {
        net: network.net,
        kind: All::Roster,
    };
    let mut sent = network.from_provider.iter();
    let roster = sent.find(|message| message.topic == rosters).unwrap();
    assert!(is("roster", &roster.payload) && !is("aggregate", &roster.payload));
}

#[test]
fn every_listener_of_the_broker_is_a_server_and_how_one_gets_in() {
    let document = document();
    let servers = document["servers"].as_object().unwrap().values();
    let mut described: Vec<(u16, &str, Vec<&str>)> = servers
        .map(|server| {
            let host = server["host"].as_str().unwrap();
            let (_, port) = host.rsplit_once(':').unwrap();
            let ways = server["security"].as_array().unwrap().iter().map(|way| {
                let way = way["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
                document.pointer(way).unwrap()["type"].as_str().unwrap()
            });
            let protocol = server["protocol"].as_str().unwrap();
            (port.parse().unwrap(), protocol, ways.collect())
        })
        .collect();
    described.sort();
    let either = vec!["X509", "userPassword"];
    let expected = [
        (8443, "wss", either.clone()),
        (8883, "secure-mqtt", vec!["X509"]),
        (8884, "secure-mqtt", either),
    ];
    assert_eq!(described, expected);
    let configuration = include_str!("../../config/broker.toml");
    for (port, ..) in described {
        assert!(configuration.contains(&format!(":{port}\"")), "{port}");
    }
}

#[test]
fn what_is_published_differently_is_noticed() {
    let document = document();
    let schemas = [("aggregate", aggregate()), ("status", status(Some(1)))];
    for (schema, value) in schemas {
        let fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for field in fields {
            let mut without = value.clone();
            without.as_object_mut().unwrap().remove(&field);
            assert!(!faults(&document, schema, &without).is_empty(), "{field}");
            let mut other = value.clone();
            other[&field] = json!([[]]);
            assert!(!faults(&document, schema, &other).is_empty(), "{field}");
        }
        let mut more = value;
        more["meter"] = json!("00112233445566778899aabbccddeeff");
        assert!(!faults(&document, schema, &more).is_empty());
    }
}

#[test]
fn every_public_topic_is_described_and_no_other() {
    let document = document();
    let channels = document["channels"].as_object().unwrap();
    let mut described: Vec<String> = channels
        .values()
        .map(|channel| channel["address"].as_str().unwrap().to_owned())
        .map(|address| address.replace("{net}", &NET.to_string()))
        .collect();
    let mut published: Vec<String> = Public::ALL
        .iter()
        .map(|&kind| Topic::Public { net: NET, kind }.to_string())
        .collect();
    described.sort();
    published.sort();
    assert_eq!(described, published);
}

#[test]
fn the_examples_follow_their_schemas() {
    let document = document();
    for (message, schema) in [
        ("aggregate", "aggregate"),
        ("status", "status"),
        ("homeAssistant", "discovery"),
    ] {
        let examples = document["components"]["messages"][message]["examples"].as_array();
        for example in examples.unwrap() {
            assert_eq!(faults(&document, schema, &example["payload"]), [""; 0]);
        }
    }
}
