//! The agent's state machine with its real store and real meters, over a network in
//! memory and in virtual time.

mod world;

use std::time::Duration;

use dcnet::meter::MeterCommand;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{Provider, ProviderEvent};
use dcnet::time::{Now, Period, Round};
use dcnet::topic::{NetId, Public, Topic, Up};
use dcnet::units::MilliwattHours;
use provider_agent::nets::Nets;
use provider_agent::page::live::Stage;
use provider_agent::publication::PublishedProvider;
use provider_agent::utc;
use serde_json::Value;
use world::network::{Network, PERIOD, continue_net};
use world::{World, policy};

#[test]
fn a_round_goes_on_after_a_restart_under_the_same_roster() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let before = network.aggregates.len();
    assert!(before >= 1, "rounds work before the restart");
    network.mute_reveals = true;
    let known = network.rosters_sent().len();
    network.run_until(3 * PERIOD + PERIOD / 2);
    assert_eq!(network.aggregates.len(), before, "the round is pending");
    let roster = network.rosters_sent()[known].to_vec();
    let saved = network.store.load(network.net).unwrap();
    assert!(saved.rosters.last().unwrap().pending);
    assert_eq!(saved.rosters.last().unwrap().frame, roster);

    let known = network.rosters_sent().len();
    network.restart_provider();
    network.mute_reveals = false;
    assert!(
        network.rosters_sent().len() > known,
        "the roster is sent again"
    );
    assert!(
        network.rosters_sent()[known..]
            .iter()
            .all(|sent| *sent == roster)
    );
    network.run_until(6 * PERIOD);

    let after = &network.aggregates[before];
    assert_eq!(after.included.len(), 5);
    assert_eq!(after.sums, [MilliwattHours(network.true_sum(after))]);
    assert!(
        network.aggregates.len() > before + 1,
        "and the next rounds follow"
    );
    for published in &network.aggregates {
        assert_eq!(
            published.sums,
            [MilliwattHours(network.true_sum(published))]
        );
    }
    let mut rounds: Vec<Round> = network.aggregates.iter().map(|p| p.round).collect();
    rounds.dedup();
    assert_eq!(rounds.len(), network.aggregates.len());
    let saved = network.store.load(network.net).unwrap();
    assert_eq!(saved.aggregates.len(), network.aggregates.len());
    network.store.check().unwrap();
}

#[test]
fn a_page_is_told_where_a_round_stands_and_who_owes_a_reveal() {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    let newest = network.live.rounds(network.net).remove(0);
    assert_eq!((newest.stage, newest.included), (Stage::Final, 5));
    assert_eq!(newest.live_neighbours_minimum, Some(4));
    let sum = network.true_sum(network.aggregates.last().unwrap());
    assert_eq!(
        newest.energy_kwh.0,
        [("import".to_owned(), sum as f64 / 1e6)]
    );
    assert_eq!(network.live.alarms(), []);

    network.mute_reveals = true;
    network.run_until(3 * PERIOD + PERIOD / 6);
    let passing = network.live.rounds(network.net).remove(0);
    assert_eq!(passing.round, newest.round + 1);
    assert_eq!(passing.stage, Stage::Reveals);
    let numbers = (passing.submitted, passing.included, passing.revealed);
    assert_eq!(numbers, (5, 5, 0));
    assert!(network.live.owing(network.net).is_empty(), "not yet");

    network.run_until(3 * PERIOD + PERIOD / 2);
    let late = network.live.rounds(network.net).remove(0);
    assert_eq!(late.stage, Stage::Pending);
    let mut all: Vec<_> = network.meters.iter().map(dcnet::meter::Meter::id).collect();
    all.sort_unstable();
    assert_eq!(network.live.owing(network.net), all);
    let told = network.live.alarms().remove(0);
    assert_eq!(
        (told.kind.as_ref(), told.round),
        ("pending", Some(late.round))
    );
    assert!(
        told.what.contains("5 meters") && told.advice.contains("24 hours"),
        "{told:?}"
    );

    network.mute_reveals = false;
    network.restart_provider();
    network.run_until(6 * PERIOD);
    let rounds = network.live.rounds(network.net);
    let same = rounds.iter().find(|round| round.round == late.round);
    let same = same.unwrap();
    assert_eq!((same.stage, same.revealed), (Stage::Final, 5));
    assert!(same.missing.is_empty());
    assert!(network.live.owing(network.net).is_empty());
    let counts = network.live.counts(network.net);
    assert_eq!(counts.finals, network.aggregates.len() as u64);
    assert_eq!((counts.pending, counts.lost, counts.alarms), (1, 0, 0));
}

#[test]
fn each_sum_is_published_retained_as_json_without_any_meters_id() {
    let mut network = Network::new(5);
    network.run_until(4 * PERIOD);
    let published = network.public(Public::Aggregate);
    assert_eq!(published.len(), network.aggregates.len());
    assert!(!published.is_empty());
    let period = Period::from_secs(60).unwrap();
    for (message, aggregate) in published.iter().zip(&network.aggregates) {
        assert!(message.retain);
        let json: Value = serde_json::from_slice(&message.payload).unwrap();
        let sum = network.true_sum(aggregate);
        let expected = serde_json::json!({
            "net": network.net.to_string(),
            "round": aggregate.round.0,
            "start": utc::text(aggregate.round.start(period)),
            "end": utc::text(aggregate.round.end(period)),
            "members": 5,
            "included": 5,
            "sum_mwh": {"import": sum},
            "sum_kwh": {"import": sum as f64 / 1e6},
            "mean_power_w": {"import": (sum as f64 * 60.0).round() / 1000.0},
            "verified": true,
            "roster_hash": json["roster_hash"],
            "log_head": json["log_head"],
        });
        assert_eq!(json, expected);
        assert_eq!(json["roster_hash"].as_str().unwrap().len(), 64);
        assert_eq!(json["log_head"].as_str().unwrap().len(), 64);
    }
    for kind in [Public::Aggregate, Public::Status] {
        for message in network.public(kind) {
            let text = String::from_utf8(message.payload.clone()).unwrap();
            for meter in &network.meters {
                assert!(!text.contains(&meter.id().to_string()), "{text}");
            }
        }
    }
    let newest = network
        .public(Public::Aggregate)
        .last()
        .unwrap()
        .payload
        .clone();
    network.from_provider.clear();
    network.restart_provider();
    let again = network.public(Public::Aggregate);
    assert_eq!(
        again.len(),
        1,
        "a broker that lost its memory gets it again"
    );
    assert_eq!((&again[0].payload, again[0].retain), (&newest, true));
    let status: Value = serde_json::from_slice(&network.public(Public::Status)[0].payload).unwrap();
    assert_eq!(status["members"], 5);
    assert_eq!(status["name"], "Elm Street");
    let round: Value = serde_json::from_slice(&newest).unwrap();
    assert_eq!(status["newest_round"], round["round"]);
}

#[test]
fn a_stored_round_counts_the_members_of_then_and_nobody_who_has_left() {
    let mut network = Network::new(6);
    network.run_until(3 * PERIOD);
    network.input_meter(0, Input::Command(MeterCommand::Leave));
    network.run_until(6 * PERIOD);
    let mut members = Vec::new();
    network
        .store
        .for_each_round(network.net, Round(0), Round(u64::MAX), |row| {
            members.push(row.members);
            Ok(())
        })
        .unwrap();
    assert_eq!((members.first(), members.last()), (Some(&6), Some(&5)));
    let newest = network.store.newest_aggregate(network.net).unwrap();
    assert_eq!(newest.unwrap().members, 5, "as the aggregate says");
}

#[test]
fn nets_share_a_connection_and_nothing_else() {
    let world = World::new();
    let ids = ["a", "b"].map(|_| world.create_net(policy(60, 20_000, 4), &["import"]));
    let store = world.store();
    let machines = ids.map(|net| {
        let config = world.identity().provider_config(80, None);
        let provider = Provider::new(config, store.load(net).unwrap(), [9; 32]).unwrap();
        PublishedProvider::new(provider, None)
    });
    let mut nets = Nets::new(machines);
    let filters = nets.subscriptions();
    assert_eq!(filters.len(), 2);
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    nets.handle(Input::Connected, now);
    let mut woken = false;
    while let Some(output) = nets.poll_output() {
        woken |= matches!(output, Output::WakeAt(_));
    }
    assert!(woken);
    let meter = world.meter(ids[1], "meter", 4);
    let frame =
        dcnet::membership::sign_registration(&meter.key, &meter.certificate, ids[1], now.utc);
    let register = |net| Received {
        topic: Topic::Up {
            net,
            meter: meter.key.id(),
            kind: Up::Register,
        },
        payload: frame.clone(),
    };
    let unknown = NetId([1; 16]);
    nets.handle(
        Input::Received(vec![register(ids[0]), register(ids[1]), register(unknown)]),
        now,
    );
    let (mut joined, mut refused) = (Vec::new(), Vec::new());
    while let Some(output) = nets.poll_output() {
        match output {
            Output::Event(event) => match event.event {
                ProviderEvent::Joined { .. } => joined.push(event.net),
                ProviderEvent::Refused { .. } => refused.push(event.net),
                _ => {}
            },
            Output::Persist(record) => assert_eq!(record.net, ids[1]),
            _ => {}
        }
    }
    refused.sort_unstable();
    let mut expected = vec![unknown, ids[0]];
    expected.sort_unstable();
    assert_eq!((joined, refused), (vec![ids[1]], expected));
}

#[test]
fn a_meter_on_the_administrators_list_is_refused() {
    let world = World::new();
    let net = world.create_net(policy(60, 20_000, 4), &["import"]);
    let meter = world.meter(net, "meter", 4);
    world.authority.revoke(&[meter.key.id()]).unwrap();
    let list = world.config.identity.directory.join("revoked.cbor");
    std::fs::copy(world.authority.revoked_path(), list).unwrap();

    let mut nets = continue_net(&world, &world.store(), net);
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    let frame = dcnet::membership::sign_registration(&meter.key, &meter.certificate, net, now.utc);
    let topic = Topic::Up {
        net,
        meter: meter.key.id(),
        kind: Up::Register,
    };
    let register = Received {
        topic,
        payload: frame,
    };
    nets.handle(Input::Received(vec![register]), now);
    let mut refused = false;
    while let Some(output) = nets.poll_output() {
        match output {
            Output::Event(event) => {
                let reason = dcnet::alarm::Refusal::Revoked;
                refused |= event.event == ProviderEvent::Refused { topic, reason };
            }
            Output::Persist(record) => panic!("{record:?}"),
            _ => {}
        }
    }
    assert!(refused);
}
