//! A process dies at every possible moment, between any two outputs, and starts again
//! from what it had persisted: nothing is said twice differently, and the net goes on.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use dcnet::alarm::Alarm;
use dcnet::frame::Frame;
use dcnet::output::{Message, Store};
use dcnet::provider::{NoRoster, ProviderEvent};
use dcnet::reveal::Reveal;
use dcnet::roster::Roster;
use dcnet::superposition::Submission;
use dcnet::time::Round;
use dcnet::topic::{All, Inbox, Topic, Up};

use simulation::network::{Crash, Faults, Network, Saved};
use simulation::world::{World, policy};
use support::leave;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;

/// The meter that dies.
const VICTIM: usize = 0;

/// Five meters with L = 3 of d = 4, so that the others go on without the victim.
fn network() -> Network {
    let mut network = Network::new(World::new(5, policy(4), &["import"]), Faults::default(), 1);
    network.keep_published = true;
    network
}

/// Crash in the round that ends in minute 3, look again five minutes later.
const ROUND: [u64; 3] = [
    3 * MINUTE - SECOND,
    3 * MINUTE + 40 * SECOND,
    8 * MINUTE + 40 * SECOND,
];

/// Bytes published per round, each once.
type PerRound = BTreeMap<Round, BTreeSet<Vec<u8>>>;

fn submissions(network: &Network) -> PerRound {
    let key = network.world.meters[VICTIM].key.public();
    let mut rounds = PerRound::new();
    for bytes in network.sent(VICTIM, Up::Submission) {
        let frame = Frame::verify(&bytes, &key).unwrap();
        let round = Submission::read(frame, network.world.net, 1).unwrap().round;
        rounds.entry(round).or_default().insert(bytes);
    }
    rounds
}

fn reveals(network: &Network) -> PerRound {
    let key = network.world.meters[VICTIM].key.public();
    let mut rounds = PerRound::new();
    for bytes in network.sent(VICTIM, Up::Reveal) {
        let frame = Frame::verify(&bytes, &key).unwrap();
        let round = Reveal::read(frame, network.world.net, 1).unwrap().round;
        rounds.entry(round).or_default().insert(bytes);
    }
    rounds
}

fn rosters(network: &Network) -> PerRound {
    let mut rounds = PerRound::new();
    for (_, Message { topic, payload, .. }) in &network.published {
        if matches!(
            topic,
            Topic::All {
                kind: All::Roster,
                ..
            } | Topic::Inbox {
                kind: Inbox::Roster,
                ..
            }
        ) {
            let roster = Roster::verify(payload, network.provider.membership()).unwrap();
            rounds
                .entry(roster.round)
                .or_default()
                .insert(payload.clone());
        }
    }
    rounds
}

/// Nothing was said twice differently, and every sum is true.
fn check(network: &Network, what: &str) {
    for (name, rounds) in [
        ("submission", submissions(network)),
        ("reveal", reveals(network)),
        ("roster", rosters(network)),
    ] {
        for (round, bytes) in rounds {
            assert_eq!(
                bytes.len(),
                1,
                "{what}: two different {name}s in round {round}"
            );
        }
    }
    network.check_aggregates();
}

/// Runs from a moment on with a crash after every number of outputs, until the
/// process makes no more than that. Returns the crashes that left the net without
/// the last round's sum over all meters.
fn crash_everywhere(
    process: Option<usize>,
    step: usize,
    [begin, until, end]: [u64; 3],
) -> Vec<usize> {
    let mut stuck = Vec::new();
    for after in (0..).step_by(step) {
        let mut network = network();
        network.run_until(begin);
        network.crash = Some(Crash { process, after });
        network.run_until(until);
        if network.crash.take().is_some() {
            println!("{after} outputs");
            assert!(after > 0);
            return stuck;
        }
        network.run_until(end);
        check(&network, &format!("crash after {after} outputs"));
        let last = network.aggregates.last();
        let whole = last.is_some_and(|a| {
            a.round == network.last_round() && a.included.len() == network.meters.len()
        });
        if !whole {
            stuck.push(after);
        }
    }
    stuck
}

#[test]
fn a_meter_that_dies_while_it_joins_never_contradicts_itself() {
    crash_everywhere(Some(VICTIM), 1, [0, 30 * SECOND, 3 * MINUTE + 40 * SECOND]);
}

#[test]
fn a_meter_that_dies_while_it_joins_takes_part_later() {
    let stuck = crash_everywhere(Some(VICTIM), 1, [0, 30 * SECOND, 7 * MINUTE + 40 * SECOND]);
    assert_eq!(stuck, [] as [usize; 0]);
}

#[test]
fn a_meter_that_dies_in_a_round_never_contradicts_itself() {
    crash_everywhere(Some(VICTIM), 1, ROUND);
}

#[test]
fn a_meter_that_dies_in_a_round_takes_part_later() {
    let stuck = crash_everywhere(Some(VICTIM), 1, ROUND);
    assert_eq!(stuck, [] as [usize; 0]);
}

/// Every round that got a roster gets its aggregate, wherever a process dies.
fn no_round_is_lost(process: Option<usize>) {
    let mut lost = Vec::new();
    for after in 0.. {
        let mut network = network();
        network.run_until(3 * MINUTE - SECOND);
        network.crash = Some(Crash { process, after });
        network.run_until(3 * MINUTE + 40 * SECOND);
        if network.crash.take().is_some() {
            break;
        }
        network.run_until(8 * MINUTE + 40 * SECOND);
        check(&network, &format!("crash after {after} outputs"));
        let stored = network.saved_net.aggregates.iter();
        let finished: BTreeSet<Round> = stored.map(|(round, _)| *round).collect();
        let issued: BTreeSet<Round> = rosters(&network).into_keys().collect();
        if finished != issued {
            lost.push(after);
        }
    }
    assert_eq!(lost, [] as [usize; 0]);
}

#[test]
fn a_meter_that_dies_in_a_round_loses_no_round() {
    no_round_is_lost(Some(VICTIM));
}

#[test]
fn a_provider_that_dies_in_a_round_loses_no_round_and_signs_no_second_roster() {
    no_round_is_lost(None);
}

#[test]
fn a_provider_that_dies_while_meters_join_goes_on() {
    let stuck = crash_everywhere(None, 13, [0, 30 * SECOND, 5 * MINUTE + 40 * SECOND]);
    assert_eq!(stuck, [] as [usize; 0]);
}

#[test]
fn all_meters_and_the_provider_start_again_in_every_second_of_a_round() {
    for second in 0..25 {
        let mut network = network();
        network.run_until(3 * MINUTE + second * SECOND);
        (0..5).for_each(|meter| network.restart_meter(meter));
        network.restart_provider();
        network.run_until(7 * MINUTE + 40 * SECOND);
        check(&network, &format!("second {second}"));
        let last = network.aggregates.last().unwrap();
        assert_eq!(last.round, network.last_round(), "second {second}");
        assert_eq!(last.included.len(), 5, "second {second}");
    }
}

/// Drops the reveals of some meters.
fn hold_back_reveals(network: &mut Network, meters: &[usize]) {
    let ids: Vec<_> = meters
        .iter()
        .map(|meter| network.meters[*meter].id())
        .collect();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if ids.contains(meter)),
    ));
}

fn pending(network: &Network) -> usize {
    let rosters = network.saved_net.rosters.iter();
    rosters.filter(|roster| roster.pending).count()
}

fn told_to_be_pending(network: &Network) -> usize {
    let events = network.provider_events.iter();
    events
        .filter(|event| matches!(event, ProviderEvent::Pending { .. }))
        .count()
}

#[test]
fn nobody_has_to_wait_for_rounds_that_a_restart_of_the_provider_kept_pending() {
    let mut network = network();
    network.run_until(3 * MINUTE + 40 * SECOND);
    for (meters, minute) in [(&[VICTIM][..], 4), (&[VICTIM, 1], 5)] {
        hold_back_reveals(&mut network, meters);
        network.run_until(minute * MINUTE + 30 * SECOND);
    }
    assert_eq!(pending(&network), 2);
    // Most have revealed in both rounds, and are not there when the provider is again.
    (0..5).for_each(|meter| network.set_online(meter, false));
    network.filter = None;
    let told = told_to_be_pending(&network);
    network.restart_provider();
    network.run_until(5 * MINUTE + 45 * SECOND);
    assert_eq!(told_to_be_pending(&network), told, "it has not waited yet");
    network.run_until(5 * MINUTE + 55 * SECOND);
    assert_eq!(told_to_be_pending(&network), told + 2);
    (0..5).for_each(|meter| network.set_online(meter, true));
    for minute in 6..9 {
        network.run_until(minute * MINUTE + 30 * SECOND);
        assert_eq!(pending(&network), 0);
        let last = network.aggregates.last().unwrap();
        assert_eq!(last.round, network.last_round());
        assert_eq!(last.included.len(), 5, "minute {minute}");
    }
    check(&network, "two pending rounds");
}

#[test]
fn members_of_a_round_from_before_a_restart_are_on_new_rosters_before_they_reveal_again() {
    let mut network = network();
    network.run_until(3 * MINUTE + 40 * SECOND);
    hold_back_reveals(&mut network, &[VICTIM]);
    network.run_until(4 * MINUTE + 30 * SECOND);
    let victim = network.member(VICTIM);
    assert_eq!(pending(&network), 1);
    // Nobody reveals again what the provider was told.
    let waiting = network.saved_net.rosters.last().unwrap().frame.clone();
    let mut before = network.filter.take().unwrap();
    network.filter = Some(Box::new(move |topic, to, payload| {
        before(topic, to, payload) && payload != waiting
    }));
    network.restart_provider();
    network.run_until(5 * MINUTE + 30 * SECOND);
    let roster = network.newest_roster();
    assert_eq!(roster.round, network.last_round());
    assert!((0..5).all(|meter| roster.includes(network.member(meter))));
    // Of this round it is known who owes a reveal.
    network.run_until(6 * MINUTE + 30 * SECOND);
    let roster = network.newest_roster();
    assert_eq!(roster.round, network.last_round());
    assert_eq!(roster.included.count(), 4);
    assert!(!roster.includes(victim));
}

#[test]
fn nobody_is_on_record_for_a_round_from_before_a_restart_of_the_provider() {
    let mut network = network();
    network.run_until(3 * MINUTE + 40 * SECOND);
    hold_back_reveals(&mut network, &[VICTIM]);
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    for meter in 0..5 {
        network.set_online(meter, false);
        network.asleep[meter] = true;
    }
    network.restart_provider();
    network.run_until(24 * 60 * MINUTE + 20 * MINUTE);
    assert_eq!(network.lost, [(round, vec![])]);
    let lost = ProviderEvent::Lost {
        round,
        disruption: None,
        missing: vec![],
    };
    assert!(network.provider_events.contains(&lost));
}

/// Seven meters, so that one may be left out of a roster; stops in the round that ends in
/// minute 4, once somebody has submitted and not all have.
fn amid_submissions() -> (Network, Vec<usize>) {
    let mut network = Network::new(World::new(7, policy(4), &["import"]), Faults::default(), 1);
    network.keep_published = true;
    network.run_until(4 * MINUTE);
    let round = network.last_round();
    loop {
        network.run_until(network.now + SECOND / 4);
        let early: Vec<usize> = (0..7).filter(|m| network.submitted(*m, round)).collect();
        if !early.is_empty() {
            assert!(early.len() < 3, "{early:?}");
            return (network, early);
        }
    }
}

#[test]
fn a_provider_that_was_away_in_a_window_leaves_out_nobody_who_was_in_time() {
    for restarts in [true, false] {
        let (mut network, early) = amid_submissions();
        let round = network.last_round();
        if restarts {
            network.restart_provider();
        } else {
            // What comes meanwhile is lost, and nobody else notices.
            network.provider_online = false;
            network.input_provider(dcnet::output::Input::Disconnected);
            network.run_until(network.now + 3 * SECOND);
            network.provider_online = true;
            network.input_provider(dcnet::output::Input::Connected);
        }
        network.run_until(4 * MINUTE + 40 * SECOND);
        assert!(!rosters(&network).contains_key(&round));
        let mut given_up = network
            .provider_events
            .iter()
            .filter_map(|event| match event {
                ProviderEvent::NoRoster {
                    round: r,
                    reason,
                    absent,
                    ..
                } if *r == round => Some((*reason, absent.clone())),
                _ => None,
            });
        let (reason, absent) = given_up.next().unwrap();
        assert_eq!(reason, NoRoster::NotListening);
        let ids: Vec<_> = early
            .iter()
            .map(|meter| network.meters[*meter].id())
            .collect();
        assert!(!restarts || absent.iter().all(|meter| ids.contains(meter)));
        network.run_until(5 * MINUTE + 40 * SECOND);
        let last = network.aggregates.last().unwrap();
        assert_eq!(last.round, network.last_round());
        assert_eq!(last.included.len(), 7);
        network.check_aggregates();
    }
}

#[test]
fn a_provider_that_is_back_before_the_first_submission_waits_for_all_and_goes_on() {
    let mut network = network();
    network.run_until(4 * MINUTE);
    network.restart_provider();
    network.run_until(4 * MINUTE + 30 * SECOND);
    let last = network.aggregates.last().unwrap();
    assert_eq!((last.round, last.included.len()), (network.last_round(), 5));
}

#[test]
fn a_meter_that_dies_while_it_leaves_erases_everything_all_the_same() {
    for after in 0.. {
        let mut network = network();
        network.run_until(3 * MINUTE + 30 * SECOND);
        let process = Some(VICTIM);
        network.crash = Some(Crash { process, after });
        leave(&mut network, VICTIM);
        network.run_until(4 * MINUTE);
        if network.crash.take().is_some() {
            assert!(after > 20, "it said next to nothing");
            return;
        }
        if network.meters[VICTIM].exit().is_none() {
            // It died before it stored what it was told.
            leave(&mut network, VICTIM);
        }
        network.run_until(8 * MINUTE);
        check(&network, &format!("crash after {after} outputs"));
        let exit = network.meters[VICTIM].exit();
        assert!(exit.is_some_and(|exit| exit.done), "{after} outputs");
        let mut net = network.saved[VICTIM].keys();
        let stays = |key: &[u8]| key == b"exit" || key.starts_with(b"log/");
        assert!(net.all(|(store, key)| *store == Store::Register || stays(key)));
    }
}

#[test]
fn a_meter_that_dies_while_it_is_revoked_stops_all_the_same() {
    let mut looked = 0;
    for after in 0.. {
        let mut network = network();
        network.run_until(3 * MINUTE + 30 * SECOND);
        let process = Some(VICTIM);
        network.crash = Some(Crash { process, after });
        network.revoke(VICTIM);
        network.run_until(5 * MINUTE);
        if network.crash.take().is_some() {
            assert!(looked > 0, "it said next to nothing");
            return;
        }
        let saved = network.saved[VICTIM].keys();
        let known = saved.filter(|(_, key)| key.starts_with(b"log/")).count();
        if known < network.saved_net.entries.len() {
            // It died before it stored the entry, and gets no connection any more.
            continue;
        }
        looked += 1;
        let alarms = network.alarms(VICTIM);
        assert!(alarms.contains(&Alarm::Revoked), "{after}: {alarms:?}");
        let stopped = (Store::Net, b"stopped".to_vec());
        assert!(network.saved[VICTIM].contains_key(&stopped), "{after}");
    }
}

#[test]
fn an_outage_of_the_broker_is_no_offence_of_the_meters() {
    let mut network = network();
    network.run_until(3 * MINUTE + 40 * SECOND);
    for minute in 4..8 {
        network.run_until(minute * MINUTE);
        let round = network.last_round();
        while network.newest_roster().round < round {
            network.run_until(network.now + 50);
        }
        // Before anybody has revealed.
        network.stop_broker();
        network.run_until(minute * MINUTE + 45 * SECOND);
        network.connect_provider();
        (0..network.meters.len()).for_each(|meter| network.set_online(meter, true));
    }
    for minute in 8..11 {
        network.run_until(minute * MINUTE + 30 * SECOND);
        let last = network.aggregates.last().unwrap();
        assert_eq!(last.round, network.last_round());
        assert_eq!(last.included.len(), 5, "minute {minute}");
    }
    check(&network, "four outages");
}

/// Stages of a meter's handshakes.
fn stages(saved: &Saved) -> Vec<u64> {
    let edges = saved
        .iter()
        .filter(|((_, key), _)| key.starts_with(b"edge/"));
    let stage = |bytes: &[u8]| {
        let decoded = dcnet::cbor::decode(bytes).unwrap();
        let stage = decoded.as_array().unwrap()[3].as_integer().unwrap();
        u64::try_from(stage).unwrap()
    };
    edges.map(|(_, value)| stage(value)).collect()
}

#[test]
fn a_disk_that_has_lost_a_step_of_a_handshake_costs_no_edge() {
    const ESTABLISHED: u64 = 3;
    let mut looked = BTreeMap::<u64, usize>::new();
    for victim in 0..5 {
        let mut network = network();
        let mut images: Vec<Saved> = Vec::new();
        while network.now < 10 * SECOND {
            network.run_until(network.now + 1);
            let image = network.saved[victim].clone();
            let is_new = images.last() != Some(&image);
            let drawn = !image.contains_key(&(Store::Net, b"draw".to_vec()));
            let stages = stages(&image);
            // With an edge that is not even begun it would have lost its state.
            let open = stages.len() == 4 && stages.iter().any(|stage| *stage != ESTABLISHED);
            if is_new && drawn && open {
                images.push(image);
            }
        }
        for image in images {
            let mut network = self::network();
            network.run_until(90 * SECOND);
            for stage in stages(&image) {
                *looked.entry(stage).or_default() += 1;
            }
            let before = stages(&image);
            network.restore_disk(victim, image);
            network.run_until(4 * MINUTE + 40 * SECOND);
            let last = network.aggregates.last().unwrap();
            assert_eq!(last.round, network.last_round(), "{victim}: {before:?}");
            assert_eq!(last.included.len(), 5, "{victim}: {before:?}");
            for meter in 0..5 {
                let stages = stages(&network.saved[meter]);
                assert!(
                    stages.iter().all(|stage| *stage == ESTABLISHED),
                    "{stages:?}"
                );
            }
        }
    }
    // Offered, answered, confirming.
    assert!(
        (0..3).all(|stage| looked.contains_key(&stage)),
        "{looked:?}"
    );
}
