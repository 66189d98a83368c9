//! `docs/asyncapi.yaml` says what is published: its schemas, topics and examples.

use dcnet::topic::{NetId, Public, Topic};
use provider_agent::publication::{ByChannel, PublicAggregate, PublicStatus};
use serde_json::{Value, json};

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
    for name in ["aggregate", "status"] {
        let examples = document["components"]["messages"][name]["examples"].as_array();
        for example in examples.unwrap() {
            assert_eq!(faults(&document, name, &example["payload"]), [""; 0]);
        }
    }
    assert!(
        include_str!("../../dcnet/dcnet.cddl").contains("\naggregate-data = ["),
        "the rule that the description of the CBOR form names"
    );
}
