//! The rules before a reveal.

use dcnet::commitment::commit;

use super::*;

#[test]
fn the_roster_as_issued_is_answered() {
    let (mut network, roster) = withheld();
    assert_eq!(answer(&network, roster.round), Answer::Nothing);
    let issued = network.saved_net.rosters.last().unwrap().frame.clone();
    network.show_roster(VICTIM, issued);
    assert_eq!(answer(&network, roster.round), Answer::Revealed);
    network.filter = None;
    network.run_until(6 * MINUTE);
    network.check_aggregates();
    assert!(network.aggregates.iter().any(|a| a.round == roster.round));
}

#[test]
fn submission_and_reveal_together_do_not_open_the_readings_commitment() {
    // Sums would be right even if the reveal repeated the submission's pads, which bind
    // nobody to a roster: the difference would be the bare reading.
    let mut network = start(world());
    network.run_until(4 * MINUTE + 50 * SECOND);
    let submission = newest_submission(&network);
    let key = network.world.meters[VICTIM].key.public();
    let reveals = network.sent(VICTIM, Up::Reveal);
    let frame = Frame::verify(reveals.last().unwrap(), &key).unwrap();
    let reveal = Reveal::read(frame, network.world.net, 1).unwrap();
    assert_eq!(reveal.round, submission.round);
    let share = &submission.shares[0];
    let difference = share.superposition - reveal.openings[0];
    assert!(commit(&difference) != share.commitment);
    // Nor is either of them the bare reading, with pads or without.
    assert!(commit(&share.superposition) != share.commitment);
    assert!(commit(&reveal.openings[0]) != share.commitment);
}

fn refusals(network: &Network) -> Vec<Refusal> {
    let events = network.meter_events[VICTIM].iter();
    let refusal = |event: &MeterEvent| match event {
        MeterEvent::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    events.filter_map(refusal).collect()
}

#[test]
fn a_roster_must_be_signed_by_the_pinned_provider() {
    let (mut network, roster) = withheld();
    let log = network.provider.membership();
    let utc = at(network.now).utc;
    let by_meter = roster.sign(&network.world.meters[1].key, log, utc);
    let (other_key, _) = network.world.authority.issue(Role::Provider, None);
    let by_other_provider = roster.sign(&other_key, log, utc);
    let mut broken = network.sign_roster(&roster);
    *broken.last_mut().unwrap() ^= 1;
    for frame in [by_meter, by_other_provider, broken] {
        network.show_roster(VICTIM, frame);
        assert_eq!(answer(&network, roster.round), Answer::Nothing);
    }
    let refused = refusals(&network);
    assert_eq!(
        refused,
        [
            FrameError::Sender.into(),
            FrameError::Sender.into(),
            FrameError::Signature.into()
        ]
    );
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

#[test]
fn a_roster_must_be_for_this_net() {
    let (mut network, roster) = withheld();
    let config = network.world.provider.clone();
    let other = NewNet {
        name: "other".to_owned(),
        policy: network.world.policy,
        channels: vec!["import".to_owned()],
        salt: [8; 16],
    };
    let genesis = other.sign(&config.key, &config.certificate, &config.ca, START);
    let other = Membership::open(&genesis, &config.certificate, &config.ca).unwrap();
    let frame = roster.sign(&config.key, &other, at(network.now).utc);
    network.show_roster(VICTIM, frame);
    assert_eq!(answer(&network, roster.round), Answer::Nothing);
    assert_eq!(refusals(&network), [FrameError::Net.into()]);
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

#[test]
fn a_round_is_closed_24_hours_after_its_end() {
    for (late, expected) in [
        (24 * HOUR - 1, Answer::Revealed),
        (24 * HOUR, Answer::Silent(Silence::Closed)),
    ] {
        let (mut network, roster) = withheld();
        network.now = 4 * MINUTE + late;
        assert_eq!(show(&mut network, &roster), expected);
    }
}

#[test]
fn a_stored_reveal_is_not_repeated_once_its_round_is_closed() {
    for (late, restart, repeated) in [
        (23 * HOUR, true, 1),
        (23 * HOUR, false, 1),
        (72 * HOUR, true, 0),
        (72 * HOUR, false, 0),
    ] {
        let (mut network, roster) = withheld();
        assert_eq!(show(&mut network, &roster), Answer::Revealed);
        let said = network.sent(VICTIM, Up::Reveal).len();
        network.set_online(VICTIM, false);
        // It is off, or only its connection is gone.
        network.now += late;
        if restart {
            network.restart_meter(VICTIM);
        }
        network.set_online(VICTIM, true);
        assert_eq!(network.sent(VICTIM, Up::Reveal).len(), said + repeated);
        assert_eq!(network.meters[VICTIM].open_rounds().len(), repeated);
    }
    // It slept with a connection, which it finds alive.
    let (mut network, roster) = withheld();
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
    let said = network.sent(VICTIM, Up::Reveal).len();
    network.now += 72 * HOUR;
    network.input_meter(VICTIM, Input::Tick);
    assert_eq!(network.sent(VICTIM, Up::Reveal).len(), said);
}

#[test]
fn a_closed_round_is_forgotten_without_any_roster() {
    let (mut network, roster) = withheld();
    network.asleep.fill(true);
    network.run_until(4 * MINUTE + 24 * HOUR + 11 * MINUTE);
    assert_eq!(show(&mut network, &roster), Answer::Nothing);
}

#[test]
fn the_rosters_head_must_not_be_older_than_the_submissions() {
    let (mut network, roster) = withheld();
    let log = network.provider.membership();
    let older = roster.head_index - 1;
    assert_eq!(log.members_at(older), log.members_at(roster.head_index));
    let changed = Roster {
        log_head: log.hash_at(older).unwrap(),
        ..roster
    };
    let silent = Answer::Silent(Silence::HeadNotDescendant);
    assert_eq!(show(&mut network, &changed), silent);
}

#[test]
fn a_roster_with_a_head_that_is_not_known_yet_waits_for_the_log() {
    let (mut network, roster) = withheld();
    let (net, utc) = (network.world.net, at(network.now).utc);
    let (key, certificate) = network.world.authority.issue(Role::Meter, Some(net));
    let registration = sign_registration(&key, &certificate, net, utc);
    let mut log = network.provider.membership().clone();
    let body = cbor::array([cbor::bytes(&registration)]);
    let provider = &network.world.provider.key;
    let entry = log.sign_next(provider, EntryKind::Join, body, utc);
    log.append(&entry).unwrap();
    let mut included = Bitmap::empty(8);
    roster.included.iter().for_each(|i| included.set(i));
    let changed = Roster {
        log_head: log.head().hash,
        included,
        ..roster
    };
    let frame = changed.sign(provider, &log, utc);
    network.show_roster(VICTIM, frame);
    assert_eq!(answer(&network, changed.round), Answer::Nothing);
    network.show_entry(VICTIM, entry);
    assert_eq!(answer(&network, changed.round), Answer::Revealed);
}

#[test]
fn its_own_digest_must_be_on_the_roster() {
    let (mut network, roster) = withheld();
    let mut changed = roster.clone();
    changed.digests[0][7] ^= 1;
    let silent = Answer::Silent(Silence::WrongDigest);
    assert_eq!(show(&mut network, &changed), silent);
    let false_roster = |alarm: &Alarm| matches!(alarm, Alarm::FalseRoster { .. });
    assert!(network.alarms(VICTIM).iter().any(false_roster));

    let (mut network, roster) = withheld();
    let mut changed = roster.clone();
    changed.digests[1][7] ^= 1;
    assert_eq!(show(&mut network, &changed), Answer::Revealed);
}

#[test]
fn a_claim_that_it_did_not_use_an_edge_that_it_used_is_false() {
    let (mut network, roster) = withheld();
    let false_claim = claims(&roster, &[(1, 0)]);
    let silent = Answer::Silent(Silence::HalfOpenClaim);
    assert_eq!(show(&mut network, &false_claim), silent);
    let false_roster = |alarm: &Alarm| matches!(alarm, Alarm::FalseRoster { .. });
    assert!(network.alarms(VICTIM).iter().any(false_roster));

    let (mut network, roster) = withheld();
    let possible = claims(&roster, &[(0, 1), (2, 1)]);
    assert_eq!(show(&mut network, &possible), Answer::Revealed);
}

#[test]
fn a_claim_that_it_used_an_edge_that_it_did_not_use_is_false() {
    let blocked = || {
        let mut network = start(world());
        block_handshakes(&mut network, &[1]);
        until_withheld(network)
    };
    let (mut network, roster) = blocked();
    let false_claim = claims(&roster, &[(0, 1)]);
    let silent = Answer::Silent(Silence::HalfOpenClaim);
    assert_eq!(show(&mut network, &false_claim), silent);
    for possible in [vec![], vec![(1, 0)], vec![(0, 2)]] {
        let (mut network, roster) = blocked();
        let possible = claims(&roster, &possible);
        assert_eq!(show(&mut network, &possible), Answer::Revealed);
    }
}

#[test]
fn its_minimum_group_is_included() {
    for (members, expected) in [
        (&[0, 1, 2, 3, 4, 5][..], Answer::Revealed),
        (&[0, 1, 2, 3, 4], Answer::Silent(Silence::GroupTooSmall)),
    ] {
        let mut world = world();
        world.meters[VICTIM].floors.minimum_group = 6;
        let (mut network, roster) = until_withheld(start(world));
        assert_eq!(show(&mut network, &only(&roster, members)), expected);
    }
}

#[test]
fn four_fifths_of_the_lately_seen_members_are_included() {
    for (members, expected) in [
        (&[0, 1, 2, 3, 4, 5][..], Answer::Revealed),
        (&[0, 1, 2, 3, 4], Answer::Silent(Silence::PresenceTooLow)),
    ] {
        let (mut network, roster) = withheld();
        assert_eq!(show(&mut network, &only(&roster, members)), expected);
    }
}

#[test]
fn lately_seen_are_the_last_96_rosters_even_after_a_restart() {
    for (rosters, expected) in [
        (95, Answer::Silent(Silence::PresenceTooLow)),
        (96, Answer::Revealed),
    ] {
        let (mut network, roster) = withheld();
        network.asleep[VICTIM] = true;
        let mut last = Roster {
            previous: roster.previous,
            ..only(&roster, &[0, 1, 2, 3, 4])
        };
        // The victim submits in none of these rounds, so it has nothing to refuse.
        for _ in 0..rosters {
            last.round = last.round.next();
            let ended = last.round.end(network.world.policy.period).since(START);
            network.run_until(u64::try_from(ended.as_millis()).unwrap() + 2 * SECOND);
            let signed = network.sign_roster(&last);
            let log = network.provider.membership();
            last.previous = Some(Roster::verify(&signed, log).unwrap().hash);
            network.show_roster(VICTIM, signed);
        }
        network.run_until(103 * MINUTE - 10 * SECOND);
        network.restart_meter(VICTIM);
        network.asleep[VICTIM] = false;
        network.run_until(104 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert!(round > last.round && network.submitted(VICTIM, round));
        last.round = round;
        last.digests[0] = digest_of_submission(&network, round);
        assert_eq!(show(&mut network, &last), expected, "{rosters} rosters");
    }
}

#[test]
fn a_roster_of_a_round_that_has_not_ended_is_refused() {
    let (mut network, roster) = withheld();
    let early = Roster {
        round: Round(roster.round.0 + 2),
        ..roster.clone()
    };
    let before = refusals(&network).len();
    show(&mut network, &early);
    assert_eq!(refusals(&network).len(), before + 1);
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

/// The short digest of the victim's submission of a round.
fn digest_of_submission(network: &Network, round: Round) -> [u8; 8] {
    let key = network.world.meters[VICTIM].key.public();
    let sent = network.sent(VICTIM, Up::Submission);
    let frames = sent.iter().map(|frame| Frame::verify(frame, &key).unwrap());
    let of_round = frames.into_iter().find(|frame| {
        let read =
            dcnet::superposition::Submission::read(frame.clone(), network.world.net, 1).unwrap();
        read.round == round
    });
    short(&of_round.unwrap().digest())
}

#[test]
fn enough_drawn_edges_are_full() {
    // d = 6, L = 4: two half-open edges are bearable, three are not.
    let (mut network, roster) = withheld();
    let two = claims(&roster, &[(0, 1), (0, 2)]);
    assert_eq!(show(&mut network, &two), Answer::Revealed);

    let (mut network, roster) = withheld();
    let three = claims(&roster, &[(0, 1), (0, 2), (0, 3)]);
    let silent = Answer::Silent(Silence::TooFewFullEdges);
    assert_eq!(show(&mut network, &three), silent);
}

#[test]
fn what_could_answer_a_refused_roster_is_erased() {
    let (mut network, roster) = withheld();
    let record = |network: &Network| {
        let key = format!("round/{:016x}", roster.round.0).into_bytes();
        network.saved[VICTIM][&(Store::Net, key)].len()
    };
    let before = record(&network);
    let three = claims(&roster, &[(0, 1), (0, 2), (0, 3)]);
    let silent = Answer::Silent(Silence::TooFewFullEdges);
    assert_eq!(show(&mut network, &three), silent);
    // The submission and a self-mask of 64 bytes were in it.
    assert!(record(&network) + 64 < before, "{before} bytes");
}

#[test]
fn the_nets_and_the_owners_floor_of_full_edges_hold() {
    // Three fifths of six are four.
    for (of_the_net, of_the_owner) in [(6, 3), (3, 6)] {
        let world = || {
            let policy = Policy {
                minimum_neighbours: of_the_net,
                ..policy(4)
            };
            let mut world = World::new(7, policy, &["import"]);
            world.meters[VICTIM].floors.minimum_neighbours = of_the_owner;
            world
        };
        let (mut network, roster) = until_withheld(start(world()));
        assert_eq!(newest_submission(&network).minimum_neighbours, 6);
        let silent = Answer::Silent(Silence::TooFewFullEdges);
        assert_eq!(show(&mut network, &claims(&roster, &[(0, 1)])), silent);
        let (mut network, roster) = until_withheld(start(world()));
        assert_eq!(show(&mut network, &roster), Answer::Revealed);
    }
}

#[test]
fn blocked_handshakes_do_not_lower_what_a_roster_must_have() {
    // Four of six drawn edges are established. Counted among the established, three
    // full ones would do; counted among the drawn, four are needed.
    let blocked = || {
        let mut network = start(world());
        block_handshakes(&mut network, &[1, 2]);
        until_withheld(network)
    };
    let (mut network, roster) = blocked();
    let claim = claims(&roster, &[(0, 3)]);
    let silent = Answer::Silent(Silence::TooFewFullEdges);
    assert_eq!(show(&mut network, &claim), silent);
    let (mut network, roster) = blocked();
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

#[test]
fn incoming_edges_never_count() {
    let sparse = Policy {
        degree: 3,
        ..policy(4)
    };
    // Members that the victim drew, and members that only drew it.
    let (drawn, incoming) = {
        let mut found = None;
        for _ in 0..50 {
            let (network, roster) = until_withheld(start(World::new(9, sparse, &["import"])));
            let graph = network.provider.membership().graph();
            let drawn = graph.newest(0, u64::MAX).unwrap().neighbours.clone();
            let incoming = graph.incoming(0);
            if !incoming.is_empty() {
                found = Some((network, roster, drawn, incoming));
                break;
            }
        }
        let (mut network, roster, drawn, incoming) = found.unwrap();
        assert_eq!(drawn.len(), 3);
        // L = 3: with one of the three drawn edges half-open, incoming ones do not help.
        let claim = claims(&roster, &[(0, drawn[0])]);
        let silent = Answer::Silent(Silence::TooFewFullEdges);
        assert_eq!(show(&mut network, &claim), silent);
        (drawn, incoming)
    };
    assert!(incoming.iter().all(|peer| !drawn.contains(peer)));

    // The other way round: all incoming edges half-open, all drawn ones full.
    let (mut network, roster) = until_withheld(start(World::new(9, sparse, &["import"])));
    let incoming = network.provider.membership().graph().incoming(0);
    let own: Vec<(u32, u32)> = incoming.iter().map(|peer| (0, *peer)).collect();
    let mut own = own;
    own.sort_unstable();
    assert_eq!(show(&mut network, &claims(&roster, &own)), Answer::Revealed);
}

#[test]
fn a_second_roster_after_the_reveal_is_not_answered() {
    for restart in [false, true] {
        let (mut network, roster) = withheld();
        assert_eq!(show(&mut network, &roster), Answer::Revealed);
        if restart {
            network.restart_meter(VICTIM);
        }
        let second = only(&roster, &[0, 1, 2, 3, 4, 5]);
        let signed = network.sign_roster(&second);
        network.show_roster(VICTIM, signed);
        assert!(second_roster_alarm(&network, roster.round));
        assert_eq!(answered(&network, roster.round).len(), 1);
    }
}

#[test]
fn the_same_roster_again_gets_the_same_answer() {
    let (mut network, roster) = withheld();
    let signed = network.sign_roster(&roster);
    network.show_roster(VICTIM, signed.clone());
    network.show_roster(VICTIM, signed.clone());
    network.restart_meter(VICTIM);
    network.show_roster(VICTIM, signed);
    let reveals = network.sent(VICTIM, Up::Reveal);
    let bytes: BTreeSet<Vec<u8>> = reveals.iter().rev().take(3).cloned().collect();
    assert_eq!(bytes.len(), 1);
    assert!(!second_roster_alarm(&network, roster.round));
}

#[test]
fn a_second_roster_after_a_refused_one_is_not_answered() {
    for restart in [false, true] {
        let (mut network, roster) = withheld();
        let first = only(&roster, &[0, 1, 2, 3, 4]);
        let silent = Answer::Silent(Silence::PresenceTooLow);
        assert_eq!(show(&mut network, &first), silent);
        if restart {
            network.restart_meter(VICTIM);
        }
        let signed = network.sign_roster(&roster);
        network.show_roster(VICTIM, signed);
        assert!(second_roster_alarm(&network, roster.round));
        assert!(answered(&network, roster.round).is_empty());
    }
}

#[test]
fn a_second_roster_of_a_round_that_is_long_over_is_told_once() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    let old = network.newest_roster();
    network.run_until(6 * MINUTE + 30 * SECOND);
    assert!(network.newest_roster().round.0 > old.round.0 + 1);
    let issued = network.saved_net.rosters.iter().rev();
    let issued = issued.map(|saved| saved.frame.clone()).collect::<Vec<_>>();
    for frame in issued {
        network.show_roster(VICTIM, frame);
    }
    assert_eq!(network.alarms(VICTIM), []);
    network.restart_meter(VICTIM);
    let alarm = Alarm::SecondRoster { round: old.round };
    for (number, members) in (1..).zip([&[0, 1, 2, 3, 4, 5][..], &[0, 1, 2, 3, 4, 6]]) {
        let second = network.sign_roster(&only(&old, members));
        for _ in 0..3 {
            network.show_roster(VICTIM, second.clone());
        }
        assert_eq!(network.alarms(VICTIM), vec![alarm.clone(); number]);
    }
}

/// Two rosters for one round come while the clock is not synchronised; then it is.
fn two_while_waiting() -> (Network, Round) {
    let (mut network, roster) = withheld();
    network.skews[VICTIM].unsynchronised = true;
    for members in [&[0, 1, 2, 3, 4, 5, 6][..], &[0, 1, 2, 3, 4, 5]] {
        let roster = only(&roster, members);
        assert_eq!(show(&mut network, &roster), Answer::Nothing);
    }
    network.skews[VICTIM].unsynchronised = false;
    network.input_meter(VICTIM, Input::Tick);
    (network, roster.round)
}

#[test]
fn of_two_rosters_that_waited_at_most_one_is_answered() {
    let (network, round) = two_while_waiting();
    assert_eq!(answered(&network, round).len(), 1);
}

#[test]
fn two_rosters_that_waited_are_an_alarm() {
    let (network, round) = two_while_waiting();
    assert!(second_roster_alarm(&network, round));
}

#[test]
fn the_chain_of_rosters_is_not_skipped() {
    let (mut network, roster) = withheld();
    let skipped = Roster {
        previous: Some([9; 32]),
        ..roster.clone()
    };
    assert_eq!(show(&mut network, &skipped), Answer::Nothing);
    let first = Roster {
        previous: None,
        ..roster.clone()
    };
    assert_eq!(show(&mut network, &first), Answer::Nothing);
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

#[test]
fn a_roster_waits_for_the_one_before_it() {
    let (mut network, roster) = withheld();
    network.run_until(5 * MINUTE + 30 * SECOND);
    let before = network.sign_roster(&roster);
    let log = network.provider.membership();
    let hash = Roster::verify(&before, log).unwrap().hash;
    let round = roster.round.next();
    let mut next = Roster {
        round,
        previous: Some(hash),
        ..roster.clone()
    };
    next.digests[0] = digest_of_submission(&network, round);
    assert_eq!(show(&mut network, &next), Answer::Nothing);
    network.show_roster(VICTIM, before);
    assert_eq!(answer(&network, roster.round), Answer::Revealed);
    assert_eq!(answer(&network, round), Answer::Revealed);
}

#[test]
fn an_older_round_than_the_last_roster_is_never_answered() {
    let (mut network, roster) = withheld();
    network.run_until(5 * MINUTE + 30 * SECOND);
    let later = Roster {
        round: roster.round.next(),
        ..only(&roster, &[1, 2, 3, 4, 5, 6])
    };
    show(&mut network, &later);
    assert_eq!(show(&mut network, &roster), Answer::Nothing);
}
