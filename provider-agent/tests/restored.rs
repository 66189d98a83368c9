//! A provider that goes on from an older state says nothing a second time differently, and one
//! that is closed begins nothing.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use dcnet::meter::MeterCommand;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::ProviderRecord;
use dcnet::roster::Roster;
use dcnet::time::{Round, Timestamp};
use dcnet::topic::{Public, Topic, Up};
use provider_agent::comparison::Comparison;
use provider_agent::{Store, backup};
use world::network::{Network, PERIOD, STEP};

/// What was sent as roster of each round.
fn rosters(network: &Network) -> BTreeMap<Round, BTreeSet<Vec<u8>>> {
    let log = network.world.membership(network.net);
    let mut rounds = BTreeMap::<Round, BTreeSet<Vec<u8>>>::new();
    for sent in network.rosters_sent() {
        let roster = Roster::verify(sent, &log).unwrap();
        rounds
            .entry(roster.round)
            .or_default()
            .insert(sent.to_vec());
    }
    rounds
}

/// A copy of the state as it is now, as `backup` makes it.
fn copy(network: &Network) -> Store {
    let path = network.world.path("copy/provider.sqlite");
    provider_agent::store::prepare_directory(path.parent().unwrap()).unwrap();
    backup::backup(&network.store, &path, &mut |_, _| {}).unwrap();
    Store::open(&path).unwrap()
}

/// The moment, in the network's time, at which a state is restored.
fn moment(network: &Network) -> Timestamp {
    network.now().utc
}

/// Another meter asks to join.
fn register(network: &mut Network, name: &str) {
    let meter = network.world.meter(network.net, name, 4);
    let now = network.now().utc;
    let payload =
        dcnet::membership::sign_registration(&meter.key, &meter.certificate, network.net, now);
    let topic = Topic::Up {
        net: network.net,
        meter: meter.key.id(),
        kind: Up::Register,
    };
    network.input_provider(Input::Received(vec![Received { topic, payload }]));
}

#[test]
fn a_round_that_was_published_after_the_backup_gets_no_second_roster() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let old = copy(&network);
    let entries = old.entries(network.net).unwrap().len();
    network.run_until(4 * PERIOD - PERIOD / 2);
    let before = rosters(&network);
    let known = old.load(network.net).unwrap().rosters.len();
    assert!(before.len() > known, "the backup lacks a round");

    let at = moment(&network);
    network.continue_from(old, |provider| provider.resume_after(at));
    let aggregates = network.aggregates.len();
    register(&mut network, "newcomer");
    network.run_until(9 * PERIOD);
    let after = rosters(&network);
    for (round, sent) in &before {
        assert_eq!(after[round], *sent, "round {round}");
    }
    let period = dcnet::time::Period::from_secs(60).unwrap();
    for (round, sent) in &after {
        assert_eq!(sent.len(), 1, "round {round}");
        let is_new = !before.contains_key(round);
        assert!(!is_new || round.start(period) >= at, "round {round}");
    }
    // The meters know a roster that the provider does not: there is no sum any more, and
    // nothing that would be a second history of the log.
    assert_eq!(network.aggregates.len(), aggregates);
    assert_eq!(network.store.entries(network.net).unwrap().len(), entries);
}

#[test]
fn a_published_sum_shows_what_a_backup_lacks() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let old = copy(&network);
    let identity = network.world.identity();
    let net = network.net;
    let published = |network: &Network| {
        let newest = network.public(Public::AggregateCbor).pop().unwrap();
        newest.payload.clone()
    };
    let compare = |store: &Store, frame: &[u8]| Comparison::read(store, &identity, net, frame);
    let same = compare(&old, &published(&network)).unwrap();
    assert!(same.is_as_new(), "{same:?}");
    assert_eq!(Some(same.round), same.newest_round);

    network.run_until(5 * PERIOD);
    let later = published(&network);
    let lacks_roster = compare(&old, &later).unwrap();
    assert!(!lacks_roster.has_roster && lacks_roster.has_log_head);
    assert!(lacks_roster.round > same.round && lacks_roster.newest_round == same.newest_round);
    assert!(compare(&network.store, &later).unwrap().is_as_new());

    register(&mut network, "newcomer");
    network.run_until(7 * PERIOD);
    let lacks = compare(&old, &published(&network)).unwrap();
    assert!(!lacks.has_roster && !lacks.has_log_head, "{lacks:?}");

    let (mut forged, last) = (later.clone(), later.len() - 1);
    forged[last] ^= 1;
    for wrong in [b"no frame".as_slice(), &forged] {
        let error = format!("{:#}", compare(&old, wrong).unwrap_err());
        assert!(error.contains("no aggregate of this net"), "{error}");
    }
    let path = network.world.path("copy/provider.sqlite");
    let database = rusqlite::Connection::open(path).unwrap();
    let swapped = "UPDATE rosters SET round = ?1 WHERE id = (SELECT max(id) FROM rosters)";
    let round = i64::try_from(lacks_roster.round).unwrap();
    database.execute(swapped, [round]).unwrap();
    let error = format!("{:#}", compare(&old, &later).unwrap_err());
    assert!(error.contains("another roster"), "{error}");
}

/// Whether a provider that goes on from the state before a roster was issued issues another
/// one for that round, when the meters send their submissions again.
fn issues_a_second_roster(resumes: bool) -> bool {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let (old, known) = (copy(&network), rosters(&network).len());
    while rosters(&network).len() == known {
        network.run_until(network.now + STEP);
    }
    let round = *rosters(&network).keys().next_back().unwrap();
    let at = moment(&network);
    network.continue_from(old, |provider| {
        if resumes {
            provider.resume_after(at);
        }
    });
    let again = network.submissions.clone();
    // Not delivered to the meters, who would raise an alarm.
    network
        .provider
        .handle(Input::Received(again), network.now());
    network.now += PERIOD / 2;
    network.provider.handle(Input::Tick, network.now());
    let mut rosters = Vec::new();
    while let Some(output) = network.provider.poll_output() {
        if let Output::Persist(record) = output
            && let ProviderRecord::Roster { round, .. } = record.record
        {
            rosters.push(round);
        }
    }
    rosters.contains(&round)
}

#[test]
fn a_restored_provider_refuses_the_submissions_of_a_round_that_may_have_its_roster() {
    assert!(issues_a_second_roster(false), "without the rule it would");
    assert!(!issues_a_second_roster(true));
}

#[test]
fn a_net_restored_from_its_newest_state_goes_on_after_a_round() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD + PERIOD / 2);
    let aggregates = network.aggregates.len();
    assert!(aggregates > 0);
    let entries = network.store.entries(network.net).unwrap().len();
    let (newest, at) = (copy(&network), moment(&network));
    network.continue_from(newest, |provider| {
        provider.resume_after(at);
        assert!(provider.is_unproven());
    });
    register(&mut network, "too-early");
    assert_eq!(network.store.entries(network.net).unwrap().len(), entries);
    network.run_until(6 * PERIOD);
    let period = dcnet::time::Period::from_secs(60).unwrap();
    let later = &network.aggregates[aggregates..];
    assert!(!later.is_empty(), "rounds go on");
    assert!(later.iter().all(|sum| sum.round.start(period) >= at));
    register(&mut network, "in-time");
    assert_eq!(
        network.store.entries(network.net).unwrap().len(),
        entries + 1,
        "the log grows again"
    );
    network.continue_from(copy_again(&network), |provider| {
        provider.resume_after(at);
        assert!(!provider.is_unproven(), "what is proven stays so");
    });
}

fn copy_again(network: &Network) -> Store {
    Store::open(network.store.path()).unwrap()
}

/// The newest public status.
fn status(network: &Network) -> serde_json::Value {
    let newest = network.public(Public::Status).pop().unwrap();
    serde_json::from_slice(&newest.payload).unwrap()
}

#[test]
fn a_closed_net_ends_what_it_began_and_begins_nothing() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let before = network.aggregates.len();
    network.mute_reveals = true;
    network.run_until(3 * PERIOD + PERIOD / 2);
    assert_eq!(network.aggregates.len(), before, "the round is pending");
    let rosters_before = rosters(&network).len();
    network.mute_reveals = false;
    assert_eq!(status(&network)["closed"], false);
    let device = network.public(Public::HomeAssistant).pop().unwrap();
    assert!(device.retain && !device.payload.is_empty());
    network.continue_from(copy(&network), dcnet::provider::Provider::close);
    assert_eq!(status(&network)["closed"], true);
    let device = network.public(Public::HomeAssistant).pop().unwrap();
    assert!(device.retain && device.payload.is_empty(), "it is removed");
    let entries = network.store.entries(network.net).unwrap().len();
    register(&mut network, "newcomer");
    network.run_until(6 * PERIOD);
    assert_eq!(network.aggregates.len(), before + 1, "the pending round");
    assert_eq!(rosters(&network).len(), rosters_before, "no round after it");
    assert_eq!(network.store.entries(network.net).unwrap().len(), entries);
    network.input_meter(0, Input::Command(MeterCommand::Leave));
    network.run_until(7 * PERIOD);
    assert_eq!(
        network.store.entries(network.net).unwrap().len(),
        entries + 1,
        "a meter can leave"
    );
}
