//! Every frame that meters and a provider publish in a run, and every entry of the
//! log, against `dcnet.cddl`; and wrong frames of each kind, which it must not match.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cddl::ast::CDDL;
use cddl::validator::{Validator, cbor::CBORValidator};
use ciborium::Value;
use dcnet::frame::{Notification, Unverified};
use dcnet::identity::{DeviceId, Role};
use dcnet::membership::Member;
use dcnet::meter::{MeterCommand, MeterEvent};
use dcnet::output::Input;
use dcnet::provider::ProviderCommand;
use dcnet::revocation::{RevocationList, sign_revocation};
use simulation::network::{Faults, Network};
use simulation::world::{START, World, policy};

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

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

/// What the owners and the administrator do in a run besides metering: a meter is away
/// and comes back, one leaves, one is revoked, one lapses, one loses its state, and the
/// provider changes its key.
fn published() -> BTreeSet<Vec<u8>> {
    let mut world = World::new(9, policy(4), &["import", "export"]);
    world.provider.lapse_after = Some(Duration::from_millis(DAY));
    for meter in &mut world.meters {
        // Nobody is there for most of the time.
        meter.floors.exclusions_per_day = 1000;
    }
    let mut network = Network::new(
        world,
        Faults {
            loss: 2,
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
    let (key, administrator) = network.world.authority.issue(Role::Administrator, None);
    let mut frames = BTreeSet::from([
        network.world.meters[0].checkpoint.sign(&key, START),
        RevocationList::new(1, vec![DeviceId([1; 16]), DeviceId([2; 16])]).sign(&key, START),
    ]);

    network.input_meter(8, Input::Command(MeterCommand::Leave));
    let revoked = network.meters[7].id();
    let revocation = sign_revocation(&key, revoked, START);
    frames.insert(revocation.clone());
    network.input_provider(Input::Command(ProviderCommand::Revoked {
        list: RevocationList::new(1, vec![revoked]),
        administrator,
        revocations: vec![revocation],
    }));
    network.saved[6].clear();
    network.restart_meter(6);
    network.run_until(15 * MINUTE);
    let done = |event: &MeterEvent| matches!(event, MeterEvent::ExitDone { .. });
    assert!(network.meter_events[8].iter().any(done));

    // Only meter 5 is away for as long as it takes to lapse, the others a little less.
    (0..9).for_each(|meter| network.set_online(meter, false));
    network.run_until(DAY - 5 * MINUTE);
    (0..5).for_each(|meter| network.set_online(meter, true));
    network.set_online(6, true);
    network.run_until(DAY + 75 * MINUTE);
    let successor = network.world.authority.issue(Role::Provider, None);
    network.world.provider.successor = Some(successor.clone());
    network.restart_provider();
    network.run_until(network.now + 3 * MINUTE);
    network.check_aggregates();
    let log = network.provider.membership();
    assert_eq!(log.provider().id(), successor.1.id());
    assert!(log.members().iter().any(Member::is_lapsed));

    frames.extend(
        network
            .published
            .iter()
            .map(|(_, message)| message.payload.clone()),
    );
    frames.extend(network.saved_net.entries.iter().cloned());
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
        "notification 21".to_owned(),
        with_payload(frame, |fields| fields[6] = Value::from(21)),
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
    // Entry bodies stand by their kind below; a consent to sign comes inside an entry only.
    assert_eq!(kinds.len(), 19, "{:?}", kinds.keys());
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
    assert_eq!(one_of_each.len(), 18 + 8, "{:?}", one_of_each.keys());
}
