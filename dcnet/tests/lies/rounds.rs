//! Of submissions, rosters, reveals and sums.

use super::*;

// Rounds.

#[test]
fn a_frame_on_a_wrong_topic_is_refused() {
    let mut network = running();
    let submission = network.sent(VICTIM, Up::Submission).pop().unwrap();
    let (net, own) = (network.world.net, network.meters[VICTIM].id());
    let other = network.meters[1].id();
    let up = |meter, kind| Topic::Up { net, meter, kind };
    let before = provider_refusals(&network).len();
    network.deliver_up(up(own, Up::Reveal), submission.clone());
    network.deliver_up(up(other, Up::Submission), submission.clone());
    network.deliver_up(
        Topic::All {
            net,
            kind: All::Roster,
        },
        submission,
    );
    let refused = provider_refusals(&network).split_off(before);
    assert_eq!(
        refused,
        [Refusal::Topic, FrameError::Sender.into(), Refusal::Topic]
    );

    let roster = network.saved_net.rosters.last().unwrap().frame.clone();
    network.show_entry(VICTIM, roster.clone());
    network.deliver(VICTIM, up(own, Up::Submission), roster);
    let kind: Refusal = EntryError::Frame(FrameError::Kind).into();
    assert_eq!(refusals(&network, VICTIM), [kind, Refusal::Topic]);
    assert!(speaks_next_round(&mut network));
}

fn read_submission(network: &Network, meter: usize, bytes: &[u8]) -> Submission {
    let key = network.world.meters[meter].key.public();
    let frame = Frame::verify(bytes, &key).unwrap();
    Submission::read(frame, network.world.net, 1).unwrap()
}

/// The victim's submission of the round that ends in minute 4, and another one that
/// it signed; rosters do not arrive before the second is delivered.
fn two_submissions(after_roster: bool) -> Network {
    let mut network = running();
    let silent = network.meters[1].id();
    if !after_roster {
        // One submission is late, so that the window stays open.
        network.filter = Some(Box::new(
            move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Submission, .. } if *meter == silent),
        ));
    }
    network.run_until(4 * MINUTE + 12 * SECOND);
    let first = network.sent(VICTIM, Up::Submission).pop().unwrap();
    let mut second = read_submission(&network, VICTIM, &first);
    assert_eq!(second.round, network.last_round());
    second.shares[0].superposition.value += Scalar::ONE;
    let key = network.world.meters[VICTIM].key.clone();
    let (net, meter) = (network.world.net, network.meters[VICTIM].id());
    let second = second.sign(&key, net, at(network.now).utc);
    let topic = Topic::Up {
        net,
        meter,
        kind: Up::Submission,
    };
    network.deliver_up(topic, first);
    assert_eq!(provider_alarms(&network), []);
    // However often it comes, it is told once.
    for _ in 0..3 {
        network.deliver_up(topic, second.clone());
    }
    network
}

#[test]
fn of_two_submissions_the_first_wins_and_the_second_is_an_alarm() {
    let mut network = two_submissions(false);
    let alarm = Alarm::Equivocation {
        meter: network.meters[VICTIM].id(),
        what: "submission",
    };
    assert_eq!(provider_alarms(&network), [alarm]);
    let round = network.last_round();
    network.run_until(4 * MINUTE + 40 * SECOND);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn a_second_submission_after_the_roster_is_an_alarm_too() {
    let network = two_submissions(true);
    let alarm = Alarm::Equivocation {
        meter: network.meters[VICTIM].id(),
        what: "submission",
    };
    assert_eq!(provider_alarms(&network), [alarm]);
}

/// Replaces the victim's reveals of the round that ends in minute 4.
fn changed_reveal(change: impl Fn(&mut Reveal)) -> Network {
    let mut network = running();
    let id = network.meters[VICTIM].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == id),
    ));
    network.run_until(4 * MINUTE + 12 * SECOND);
    let key: DeviceKey = network.world.meters[VICTIM].key.clone();
    let sent = network.sent(VICTIM, Up::Reveal).pop().unwrap();
    let frame = Frame::verify(&sent, &key.public()).unwrap();
    let net = network.world.net;
    let mut reveal = Reveal::read(frame, net, 1).unwrap();
    assert_eq!(reveal.round, network.last_round());
    change(&mut reveal);
    let changed = reveal.sign(&key, net, at(network.now).utc);
    let topic = Topic::Up {
        net,
        meter: id,
        kind: Up::Reveal,
    };
    network.deliver_up(topic, changed);
    network
}

#[test]
fn a_reveal_for_another_roster_is_refused_and_the_true_one_taken() {
    let mut network = changed_reveal(|reveal| reveal.roster[0] ^= 1);
    let round = network.last_round();
    assert!(matches!(
        provider_refusals(&network).last(),
        Some(Refusal::Rule(_))
    ));
    network.filter = None;
    network.run_until(5 * MINUTE);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn of_two_reveals_the_first_counts_and_the_second_is_refused() {
    let mut network = running();
    let (net, meter, late) = (
        network.world.net,
        network.meters[VICTIM].id(),
        network.meters[1].id(),
    );
    // One reveal is late, so that the round stays pending.
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == late),
    ));
    network.run_until(4 * MINUTE + 12 * SECOND);
    let round = network.last_round();
    let first = network.sent(VICTIM, Up::Reveal).pop().unwrap();
    let key = network.world.meters[VICTIM].key.clone();
    let mut second = Reveal::read(Frame::verify(&first, &key.public()).unwrap(), net, 1).unwrap();
    assert_eq!(second.round, round);
    second.openings[0].value += Scalar::ONE;
    let second = second.sign(&key, net, at(network.now).utc);
    let kind = Up::Reveal;
    let topic = Topic::Up { net, meter, kind };
    let refused = Refusal::Rule("a second, different reveal");
    let alarm = Alarm::Equivocation {
        meter,
        what: "reveal",
    };
    for (frame, refusals, alarms) in [
        (&first, 0, 0),
        (&second, 1, 1),
        (&second, 2, 1),
        (&first, 2, 1),
    ] {
        network.deliver_up(topic, frame.clone());
        let told = provider_refusals(&network);
        let told = told.iter().filter(|reason| **reason == refused).count();
        assert_eq!(told, refusals);
        assert_eq!(provider_alarms(&network), vec![alarm.clone(); alarms]);
    }
    network.filter = None;
    network.run_until(5 * MINUTE);
    assert!(network.aggregates.iter().any(|a| a.round == round));
    network.check_aggregates();
}

#[test]
fn who_is_silent_until_a_round_closes_is_on_record() {
    let mut network = running();
    let silent = network.meters[VICTIM].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == silent),
    ));
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    (0..5).for_each(|meter| network.asleep[meter] = true);
    network.run_until(24 * 60 * MINUTE + 3 * MINUTE);
    assert_eq!(network.lost, []);
    network.run_until(24 * 60 * MINUTE + 20 * MINUTE);
    assert_eq!(network.lost, [(round, vec![silent])]);
}

#[test]
fn a_sum_that_does_not_open_the_commitments_is_a_disruption_and_no_aggregate() {
    // One mWh less: it decodes, but the meters committed to something else.
    let small = changed_reveal(|reveal| reveal.openings[0].value += Scalar::ONE);
    let blinding = changed_reveal(|reveal| reveal.openings[0].blinding += Scalar::ONE);
    let garbage = changed_reveal(|reveal| {
        reveal.openings[0].value = Scalar::from_bytes_mod_order([0x55; 32]);
    });
    for (mut network, disruption) in [
        (small, Disruption::Commitment(0)),
        (blinding, Disruption::Commitment(0)),
        (garbage, Disruption::Value(0)),
    ] {
        let round = network.last_round();
        let alarm = Alarm::Disrupted { round, disruption };
        assert_eq!(provider_alarms(&network), [alarm]);
        assert_eq!(network.lost, [(round, vec![])], "nobody owed a reveal");
        network.filter = None;
        network.run_until(6 * MINUTE + 30 * SECOND);
        let rounds: BTreeSet<_> = network.aggregates.iter().map(|a| a.round).collect();
        assert!(!rounds.contains(&round));
        assert!(rounds.contains(&network.last_round()));
        network.check_aggregates();
    }
}

// Who made others wait, and who is on no roster.

fn hold_back_reveals(network: &mut Network) {
    let id = network.meters[VICTIM].id();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, kind: Up::Reveal, .. } if *meter == id),
    ));
}

#[test]
fn who_makes_rounds_late_over_and_over_waits_twice_as_long_each_time() {
    let mut world = World::new(5, policy(4), &["import"]);
    // What the victim does not know is why it is left out.
    world.meters[VICTIM].floors.exclusions_per_day = 1000;
    world.meters[VICTIM].floors.exclusions_per_month = 100;
    let mut network = Network::new(world, Faults::default(), 1);
    network.keep_published = true;
    network.run_until(3 * MINUTE + 40 * SECOND);
    let (net, meter, kind) = (network.world.net, network.meters[VICTIM].id(), Up::Reveal);
    let reveal = Topic::Up { net, meter, kind };
    let mut waited = Vec::new();
    for _ in 0..9 {
        hold_back_reveals(&mut network);
        let mut left_out = 0;
        loop {
            network.run_until(network.now + MINUTE);
            let roster = network.newest_roster();
            assert_eq!(roster.round, network.last_round());
            if roster.includes(network.member(VICTIM)) {
                break;
            }
            left_out += 1;
        }
        waited.push(left_out);
        let late = network.sent(VICTIM, Up::Reveal).pop().unwrap();
        network.published.clear();
        network.deliver_up(reveal, late);
        assert_eq!(
            network.aggregates.last().unwrap().round,
            network.last_round()
        );
    }
    // In the first of these rounds it is late for the first time.
    assert_eq!(waited, [0, 0, 1, 2, 4, 8, 16, 32, 64]);
    network.check_aggregates();
}

#[test]
fn who_is_dropped_from_a_roster_is_named_with_the_reason() {
    let mut network = running();
    hold_back_reveals(&mut network);
    network.run_until(5 * MINUTE + 40 * SECOND);
    let (round, victim) = (network.last_round(), network.meters[VICTIM].id());
    let issued = ProviderEvent::RosterIssued {
        round,
        included: 4,
        dropped: vec![(victim, Dropped::Owing)],
    };
    assert!(network.provider_events.contains(&issued));
}

#[test]
fn a_round_without_roster_names_who_was_dropped_and_who_was_absent() {
    let mut network = running();
    (2..5).for_each(|meter| network.set_online(meter, false));
    network.run_until(4 * MINUTE + 40 * SECOND);
    let (round, id) = (network.last_round(), |meter: usize| {
        network.meters[meter].id()
    });
    let mut there = None;
    for event in &network.provider_events {
        if let ProviderEvent::NoRoster {
            round: r,
            reason,
            dropped,
            absent,
            ..
        } = event
            && *r == round
        {
            assert_eq!(*reason, NoRoster::TooFew);
            there = Some((dropped.clone(), absent.clone()));
        }
    }
    let (mut dropped, mut absent) = there.unwrap();
    dropped.sort_unstable();
    absent.sort_unstable();
    let why = Dropped::Neighbours;
    let mut both: Vec<_> = (0..2).map(|meter| (id(meter), why)).collect();
    let mut three: Vec<_> = (2..5).map(id).collect();
    both.sort_unstable();
    three.sort_unstable();
    assert_eq!((dropped, absent), (both, three));
}
