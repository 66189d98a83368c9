//! Every frame that meters and a provider publish in a run, and every entry of the
//! log, against `dcnet.cddl`; and wrong frames of each kind, which it must not match.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use cddl::ast::CDDL;
use cddl::validator::{Validator, cbor::CBORValidator};
use ciborium::Value;
use dcnet::frame::{Notification, Unverified};
use dcnet::identity::{DeviceId, Role};
use dcnet::revocation::RevocationList;
use simulation::network::{Faults, Network};
use simulation::world::{START, World, policy};

const MINUTE: u64 = 60_000;

fn schema() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/dcnet.cddl")).unwrap()
}

fn matches(cddl: &CDDL<'_>, frame: &Value) -> Result<(), String> {
    let mut validator = CBORValidator::new(cddl, frame.clone().into(), None);
    // The validator panics on some mismatches, for instance bytes in place of a literal text.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        validator.validate().map_err(|error| error.to_string())
    }));
    outcome.unwrap_or_else(|_| Err("the validator panicked".to_owned()))
}

fn decoded(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).unwrap()
}

/// All distinct frames of a run of six meters with an absence, and of the administrator.
fn published() -> BTreeSet<Vec<u8>> {
    let world = World::new(6, policy(4), &["import", "export"]);
    let mut network = Network::new(
        world,
        Faults {
            loss: 5,
            duplicates: 5,
            delay: 300,
        },
        7,
    );
    network.keep_published = true;
    // A new connection repeats the registration.
    network.set_online(0, false);
    network.set_online(0, true);
    network.run_until(8 * MINUTE);
    network.set_online(5, false);
    network.run_until(10 * MINUTE);
    // A meter that comes back asks for the log and the rosters it has missed.
    network.set_online(5, true);
    network.run_until(12 * MINUTE);
    assert!(
        network.aggregates.len() >= 6,
        "only {} aggregates",
        network.aggregates.len()
    );
    let mut frames: BTreeSet<Vec<u8>> = network
        .published
        .iter()
        .map(|(_, message)| message.payload.clone())
        .collect();
    frames.extend(network.saved_net.entries.iter().cloned());
    let (key, _) = network.world.authority.issue(Role::Administrator, None);
    frames.insert(network.world.meters[0].checkpoint.sign(&key, START));
    let revoked = vec![DeviceId([1; 16]), DeviceId([2; 16])];
    frames.insert(RevocationList::new(1, revoked).sign(&key, START));
    frames
}

/// The payload inside a frame, changed and put back.
fn with_payload(frame: &Value, change: impl FnOnce(&mut Vec<Value>)) -> Value {
    let Value::Tag(tag, inner) = frame else {
        panic!()
    };
    let Value::Array(mut parts) = (**inner).clone() else {
        panic!()
    };
    let Value::Array(mut fields) = decoded(parts[2].as_bytes().unwrap()) else {
        panic!()
    };
    change(&mut fields);
    let mut bytes = Vec::new();
    ciborium::into_writer(&Value::Array(fields), &mut bytes).unwrap();
    parts[2] = Value::Bytes(bytes);
    Value::Tag(*tag, Box::new(Value::Array(parts)))
}

/// What no frame may look like, made from one that is right.
fn wrong(frame: &Value) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let Value::Tag(_, inner) = frame else {
        panic!()
    };
    all.push(("tag 17".to_owned(), Value::Tag(17, inner.clone())));
    all.push(("no tag".to_owned(), (**inner).clone()));
    let envelope = |change: &dyn Fn(&mut Vec<Value>)| {
        let Value::Array(mut parts) = (**inner).clone() else {
            panic!()
        };
        change(&mut parts);
        Value::Tag(18, Box::new(Value::Array(parts)))
    };
    let es256 = Value::Bytes(vec![0xa1, 0x01, 0x26]);
    let kid = Value::Map(vec![(Value::from(4), Value::Bytes(vec![1]))]);
    all.push((
        "another algorithm".to_owned(),
        envelope(&|parts| parts[0] = es256.clone()),
    ));
    all.push((
        "an unprotected header".to_owned(),
        envelope(&|parts| parts[1] = kid.clone()),
    ));
    all.push((
        "a short signature".to_owned(),
        envelope(&|parts| parts[3] = Value::Bytes(vec![0; 63])),
    ));
    all.push((
        "a fifth part".to_owned(),
        envelope(&|parts| parts.push(Value::Null)),
    ));

    let text = Value::from("wrong");
    for place in 0..8 {
        let changed = with_payload(frame, |fields| fields[place] = text.clone());
        all.push((format!("text as field {place}"), changed));
    }
    all.push((
        "a ninth field".to_owned(),
        with_payload(frame, |fields| fields.push(text.clone())),
    ));
    all.push((
        "no data".to_owned(),
        with_payload(frame, |fields| drop(fields.pop())),
    ));
    all.push((
        "version 2".to_owned(),
        with_payload(frame, |fields| fields[1] = Value::from(2)),
    ));
    all.push((
        "notification 3".to_owned(),
        with_payload(frame, |fields| fields[6] = Value::from(3)),
    ));
    all.push((
        "the other transmission bit".to_owned(),
        with_payload(frame, |fields| {
            fields[4] = Value::from(u8::from(fields[4] == Value::from(0)));
        }),
    ));
    let data = |change: &dyn Fn(&mut Vec<Value>)| {
        with_payload(frame, |fields| change(fields[7].as_array_mut().unwrap()))
    };
    all.push((
        "more data".to_owned(),
        data(&|data| data.push(text.clone())),
    ));
    all.push(("less data".to_owned(), data(&|data| drop(data.pop()))));
    let Value::Array(parts) = (**inner).clone() else {
        panic!()
    };
    let Value::Array(fields) = decoded(parts[2].as_bytes().unwrap()) else {
        panic!()
    };
    for place in 0..fields[7].as_array().unwrap().len() {
        all.push((
            format!("text as data {place}"),
            data(&|data| data[place] = text.clone()),
        ));
        if let Value::Bytes(bytes) = &fields[7].as_array().unwrap()[place]
            && [16, 32].contains(&bytes.len())
        {
            let short = Value::Bytes(bytes[1..].to_vec());
            all.push((
                format!("data {place} a byte short"),
                data(&|data| data[place] = short.clone()),
            ));
        }
    }
    all
}

#[test]
fn every_frame_and_log_entry_is_what_the_cddl_says() {
    let schema = schema();
    let cddl = cddl::cddl_from_str(&schema, true).unwrap();
    let mut kinds: BTreeMap<Notification, Vec<u8>> = BTreeMap::new();
    let frames = published();
    for frame in &frames {
        let notification = Unverified::parse(frame).unwrap().claimed().notification;
        let verdict = matches(&cddl, &decoded(frame));
        assert_eq!(verdict, Ok(()), "{notification:?} {}", hex::encode(frame));
        kinds.insert(notification, frame.clone());
    }
    println!("{} frames of {} kinds", frames.len(), kinds.len());
    // All notifications but Exit, which no frame has yet.
    assert_eq!(kinds.len(), 16, "{:?}", kinds.keys());
}

#[test]
fn wrong_frames_of_each_kind_do_not_match() {
    let schema = schema();
    let cddl = cddl::cddl_from_str(&schema, true).unwrap();
    let mut one_of_each: BTreeMap<(Notification, u64), Vec<u8>> = BTreeMap::new();
    for frame in published() {
        let notification = Unverified::parse(&frame).unwrap().claimed().notification;
        let Value::Tag(_, inner) = decoded(&frame) else {
            panic!()
        };
        let payload = decoded(inner.as_array().unwrap()[2].as_bytes().unwrap());
        let data = payload.as_array().unwrap()[7].as_array().unwrap().clone();
        let kind = match (notification, data.get(2)) {
            (Notification::Entry, Some(Value::Integer(kind))) => u64::try_from(*kind).unwrap(),
            _ => 0,
        };
        one_of_each.insert((notification, kind), frame);
    }
    let mut matched = Vec::new();
    let mut tried = 0;
    for ((notification, kind), frame) in &one_of_each {
        let frame = decoded(frame);
        let unchanged = with_payload(&frame, |_| {});
        assert_eq!(unchanged, frame);
        for (what, wrong) in wrong(&frame) {
            tried += 1;
            if matches(&cddl, &wrong).is_ok() {
                matched.push(format!("{notification:?} {kind}: {what}"));
            }
        }
    }
    println!("{tried} wrong frames of {} kinds", one_of_each.len());
    assert!(matched.is_empty(), "{}", matched.join("\n"));
    assert!(one_of_each.len() >= 19, "{:?}", one_of_each.keys());
}
