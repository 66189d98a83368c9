//! What a meter checks before it speaks: every rule is broken once, and the same
//! set-up without the breakage speaks (`docs/protocol.md`, "What a meter checks").

mod world;

use std::collections::BTreeSet;

use dcnet::alarm::{Alarm, Refusal, Silence};
use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::frame::{Frame, FrameError};
use dcnet::identity::{DeviceId, Role};
use dcnet::membership::{EntryKind, Membership, NewNet, Policy, sign_registration};
use dcnet::meter::{MeterCommand, MeterEvent};
use dcnet::output::{Input, Store};
use dcnet::pad::RosterHash;
use dcnet::reading::Boundary;
use dcnet::reveal::Reveal;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::superposition::short;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::{Inbox, Topic, Up};
use dcnet::units::MilliwattHours;

use world::network::{Faults, Network};
use world::{START, World, at, policy};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// The meter that is lied to.
const VICTIM: usize = 0;

/// Seven meters, so that d = 6 and L = 4 for each; the policy's minimum group is 4.
fn world() -> World {
    World::new(7, policy(4), &["import"])
}

fn start(world: World) -> Network {
    let mut network = Network::new(world, Faults::default(), 1);
    network.keep_published = true;
    network
}

fn is_roster(topic: &Topic) -> bool {
    use dcnet::topic::All;
    matches!(
        topic,
        Topic::All {
            kind: All::Roster,
            ..
        } | Topic::Inbox {
            kind: Inbox::Roster,
            ..
        }
    )
}

/// The meter that a message comes from, and its kind.
fn up(topic: &Topic) -> Option<(DeviceId, Up)> {
    match topic {
        Topic::Up { meter, kind, .. } => Some((*meter, *kind)),
        _ => None,
    }
}

/// Drops the messages of one kind that a meter sends.
fn drop_up(network: &mut Network, meter: usize, dropped: Up) {
    let id = network.meters[meter].id();
    network.filter = Some(Box::new(move |topic, _, _| {
        up(topic) != Some((id, dropped))
    }));
}

/// Keeps every handshake between the victim and some meters from succeeding.
fn block_handshakes(network: &mut Network, others: &[usize]) {
    let victim = network.meters[VICTIM].id();
    let others: BTreeSet<DeviceId> = others.iter().map(|m| network.meters[*m].id()).collect();
    network.filter = Some(Box::new(move |topic, _, _| match topic {
        Topic::UpPair { meter, peer, .. } => {
            !(*meter == victim && others.contains(peer)
                || *peer == victim && others.contains(meter))
        }
        _ => true,
    }));
}

/// Keeps the provider's rosters from the victim, besides whatever is blocked already.
fn withhold_rosters(network: &mut Network) {
    let mut before = network.filter.take();
    network.filter = Some(Box::new(move |topic, receiver, payload| {
        let withheld = receiver == Some(VICTIM) && is_roster(topic);
        !withheld && before.as_mut().is_none_or(|f| f(topic, receiver, payload))
    }));
}

/// Runs until the provider has issued a roster that the victim has not seen.
fn until_withheld(mut network: Network) -> (Network, Roster) {
    network.run_until(3 * MINUTE + 30 * SECOND);
    withhold_rosters(&mut network);
    network.run_until(4 * MINUTE + 15 * SECOND);
    let roster = network.newest_roster();
    assert_eq!(roster.round, network.last_round());
    assert!(network.submitted(VICTIM, roster.round));
    (network, roster)
}

fn withheld() -> (Network, Roster) {
    until_withheld(start(world()))
}

/// What the victim did about a roster.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Revealed,
    Silent(Silence),
    Nothing,
}

fn answer(network: &Network, round: Round) -> Answer {
    match (
        network.revealed(VICTIM, round),
        network.silences(VICTIM, round).as_slice(),
    ) {
        (true, []) => Answer::Revealed,
        (false, []) => Answer::Nothing,
        (false, [reason]) => Answer::Silent(*reason),
        other => panic!("{other:?}"),
    }
}

/// Shows the victim a roster signed by its provider.
fn show(network: &mut Network, roster: &Roster) -> Answer {
    let signed = network.sign_roster(roster);
    network.show_roster(VICTIM, signed);
    let revealed = network.sent(VICTIM, Up::Reveal).iter().any(|frame| {
        let key = network.world.meters[VICTIM].key.public();
        let frame = Frame::verify(frame, &key).unwrap();
        Reveal::read(frame, network.world.net, 1).unwrap().round == roster.round
    });
    let answer = answer(network, roster.round);
    assert_eq!(revealed, answer == Answer::Revealed);
    answer
}

/// The same roster with only some of its members.
fn only(roster: &Roster, members: &[u32]) -> Roster {
    let length = roster.included.as_bytes().len() * 8;
    let length = (0..=length).rev().find(|length| {
        Bitmap::from_bytes(roster.included.as_bytes().to_vec(), *length, "included").is_ok()
    });
    let mut included = Bitmap::empty(length.unwrap());
    let mut digests = Vec::new();
    for member in roster.members().filter(|member| members.contains(member)) {
        included.set(usize::try_from(member).unwrap());
        digests.push(roster.digest_of(member).unwrap());
    }
    Roster {
        included,
        digests,
        half_open: Vec::new(),
        ..roster.clone()
    }
}

fn claims(roster: &Roster, claims: &[(u32, u32)]) -> Roster {
    let claim = |(user, non_user): &(u32, u32)| HalfOpen {
        user: *user,
        non_user: *non_user,
    };
    Roster {
        half_open: claims.iter().map(claim).collect(),
        ..roster.clone()
    }
}

/// Rosters that the victim's published reveals of a round answer.
fn answered(network: &Network, round: Round) -> BTreeSet<RosterHash> {
    let key = network.world.meters[VICTIM].key.public();
    let reveals = network.sent(VICTIM, Up::Reveal);
    let reveals = reveals.iter().map(|frame| {
        let frame = Frame::verify(frame, &key).unwrap();
        Reveal::read(frame, network.world.net, 1).unwrap()
    });
    reveals
        .filter(|reveal| reveal.round == round)
        .map(|reveal| reveal.roster)
        .collect()
}

fn second_roster_alarm(network: &Network, round: Round) -> bool {
    let alarms = network.alarms(VICTIM);
    alarms.contains(&Alarm::SecondRoster { round })
}

// Before a submission.

#[test]
fn it_submits_only_while_the_clock_is_synchronised() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].unsynchronised = true;
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::ClockUnsynchronised]
    );
    assert!(!network.submitted(VICTIM, round));
    assert!(network.submitted(1, round));
    network.skews[VICTIM].unsynchronised = false;
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn a_clock_that_loses_synchronisation_between_boundary_and_submission_silences_it() {
    let mut network = start(world());
    network.run_until(4 * MINUTE);
    network.skews[VICTIM].unsynchronised = true;
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::ClockUnsynchronised]
    );
    assert!(!network.submitted(VICTIM, round));
}

#[test]
fn utc_and_the_monotonic_clock_differ_by_at_most_two_percent_over_the_interval() {
    for (ahead, speaks) in [
        (1300, false),
        (-1300, false),
        (1100, true),
        (-1100, true),
        (0, true),
    ] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.skews[VICTIM].ahead = ahead;
        network.run_until(4 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks, "{ahead} ms");
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::ClockOutOfStep], !speaks, "{ahead} ms");
    }
}

/// A meter whose clock jumped two minutes ahead in round 3, at the end of round 4.
fn jumped() -> Network {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].ahead = 120_000;
    network.run_until(5 * MINUTE + 30 * SECOND);
    network
}

#[test]
fn a_jump_ahead_of_more_than_a_period_needs_confirmation() {
    let mut network = jumped();
    let jump = Alarm::ClockJump { seconds: 120 };
    assert_eq!(network.alarms(VICTIM), [jump]);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::ClockUnconfirmed]);
    assert!(!network.submitted(VICTIM, round));
    network.input_meter(VICTIM, Input::Command(MeterCommand::ConfirmClock));
    network.run_until(6 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    assert!(network.revealed(VICTIM, network.last_round()));
}

#[test]
fn a_jump_that_was_not_confirmed_needs_it_after_a_restart_too() {
    let mut network = jumped();
    network.restart_meter(VICTIM);
    network.run_until(7 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert!(!network.submitted(VICTIM, round));
}

/// Gives a meter the boundaries of one round again.
fn boundaries_again(network: &mut Network, round: Round) {
    let period = network.world.policy.period;
    for (at, energy) in [(round.start(period), 0), (round.end(period), 1_000_000)] {
        let channels = vec![MilliwattHours(energy)];
        let boundary = Boundary { at, channels };
        network.input_meter(VICTIM, Input::Command(MeterCommand::Boundary(boundary)));
    }
    network.run_until(network.now + 25 * SECOND);
}

#[test]
fn a_registers_time_is_submitted_once_even_after_a_restart() {
    let mut network = start(world());
    network.run_until(4 * MINUTE + 15 * SECOND);
    let round = network.last_round();
    assert!(network.submitted(VICTIM, round));
    let before = network.sent(VICTIM, Up::Submission);
    network.restart_meter(VICTIM);
    boundaries_again(&mut network, round);
    assert_eq!(network.silences(VICTIM, round), [Silence::AlreadySubmitted]);
    assert_eq!(network.sent(VICTIM, Up::Submission), before);
}

#[test]
fn a_round_that_was_not_submitted_before_a_restart_is_submitted() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.asleep[VICTIM] = true;
    network.run_until(4 * MINUTE);
    network.restart_meter(VICTIM);
    let round = network.last_round();
    boundaries_again(&mut network, round);
    assert!(network.submitted(VICTIM, round));
}

#[test]
fn a_registers_time_is_submitted_in_one_net_only() {
    let mut first = start(world());
    first.run_until(4 * MINUTE + 30 * SECOND);
    let last = first.last_round();
    assert!(first.submitted(VICTIM, last));
    let register: Vec<_> = first.saved[VICTIM]
        .iter()
        .filter(|((store, _), _)| *store == Store::Register)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    assert!(!register.is_empty());

    for same_register in [true, false] {
        let mut second = start(world());
        if same_register {
            second.saved[VICTIM].extend(register.iter().cloned());
        }
        second.restart_meter(VICTIM);
        second.run_until(6 * MINUTE + 30 * SECOND);
        let other = second.submitted(1, last);
        assert!(other);
        assert_eq!(second.submitted(VICTIM, last), !same_register);
        if same_register {
            let silent = second.silences(VICTIM, last);
            assert_eq!(silent, [Silence::AlreadySubmitted]);
        }
        assert!(second.submitted(VICTIM, last.next()));
        second.check_aggregates();
    }
}

#[test]
fn it_submits_only_with_a_complete_draw() {
    let mut network = start(world());
    drop_up(&mut network, VICTIM, Up::Draw);
    network.run_until(2 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::DrawIncomplete]);
    assert!(!network.submitted(VICTIM, round));
    network.filter = None;
    network.set_online(VICTIM, false);
    network.set_online(VICTIM, true);
    network.run_until(4 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn it_does_not_submit_while_a_newer_draw_is_under_way() {
    let mut network = start(World::new(10, policy(4), &["import"]));
    let late: BTreeSet<DeviceId> = (5..10).map(|m| network.meters[m].id()).collect();
    (5..10).for_each(|meter| network.set_online(meter, false));
    network.filter = Some(Box::new(move |topic, _, _| {
        up(topic).is_none_or(|(meter, _)| !late.contains(&meter))
    }));
    network.run_until(3 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    // Twice as many members as at the first draw: everybody draws again.
    drop_up(&mut network, VICTIM, Up::Draw);
    (5..10).for_each(|meter| network.set_online(meter, true));
    network.run_until(4 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::DrawIncomplete]);
    assert!(!network.submitted(VICTIM, round));
    assert!(network.submitted(1, round));
    network.filter = None;
    network.set_online(VICTIM, false);
    network.set_online(VICTIM, true);
    network.run_until(6 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    network.check_aggregates();
}

#[test]
fn its_draw_had_at_least_its_minimum_group_of_candidates() {
    for (minimum_group, speaks) in [(6, true), (7, false)] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        network.world.meters[VICTIM].floors.minimum_group = minimum_group;
        network.restart_meter(VICTIM);
        network.run_until(5 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::TooFewCandidates], !speaks);
    }
}

#[test]
fn a_member_speaks_and_others_do_not() {
    let mut network = start(world());
    drop_up(&mut network, VICTIM, Up::Register);
    let genesis = network.world.genesis.clone();
    network.show_entry(VICTIM, genesis);
    network.run_until(2 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::NotMember]);
    assert!(network.submitted(1, round));
}

#[test]
fn it_waits_until_the_log_reaches_the_checkpoint() {
    let mut world = world();
    let checkpoint = &mut world.meters[VICTIM].checkpoint;
    checkpoint.index = 1000;
    checkpoint.head = [1; 32];
    let mut network = start(world);
    network.run_until(3 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(
        network.silences(VICTIM, round),
        [Silence::CheckpointNotReached]
    );
    assert!(!network.submitted(VICTIM, round));
    // The log as it is was confirmed by the administrator.
    let log = network.provider.membership();
    let head = log.head();
    let checkpoint = &mut network.world.meters[VICTIM].checkpoint;
    checkpoint.index = head.index;
    checkpoint.head = head.hash;
    checkpoint.members = 7;
    network.restart_meter(VICTIM);
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
}

#[test]
fn it_stops_when_the_log_is_not_the_one_of_the_checkpoint() {
    for (index, hash, members) in [(3, [1; 32], 3), (0, [1; 32], 0)] {
        let mut world = world();
        let checkpoint = &mut world.meters[VICTIM].checkpoint;
        checkpoint.index = index;
        checkpoint.head = hash;
        checkpoint.members = members;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let alarms = network.alarms(VICTIM);
        assert_eq!(alarms, [Alarm::Checkpoint { index }]);
        assert!(network.sent(VICTIM, Up::Submission).is_empty());
        assert!(network.submitted(1, network.last_round()));
    }
}

#[test]
fn the_checkpoints_number_of_members_must_be_right() {
    for (members, speaks) in [(0, true), (1, false)] {
        let mut world = world();
        world.meters[VICTIM].checkpoint.members = members;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        assert_eq!(network.submitted(VICTIM, network.last_round()), speaks);
        assert_eq!(network.alarms(VICTIM).is_empty(), speaks);
    }
}

#[test]
fn a_period_below_its_floor_keeps_it_out() {
    for (floor, speaks) in [(60, true), (61, false)] {
        let mut world = world();
        world.meters[VICTIM].floors.minimum_period = floor;
        let mut network = start(world);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let alarm = Alarm::Floor {
            what: "period in seconds",
            policy: 60,
            floor,
        };
        assert_eq!(network.alarms(VICTIM).contains(&alarm), !speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::Stopped], !speaks);
    }
}

#[test]
fn drawn_neighbours_count_whether_or_not_their_handshake_succeeded() {
    // Three of six established would be enough by the floor of 3, but L = ⌈0.6·6⌉ = 4.
    for (blocked, speaks) in [(&[1, 2][..], true), (&[1, 2, 3], false)] {
        let mut network = start(world());
        block_handshakes(&mut network, blocked);
        network.run_until(3 * MINUTE + 30 * SECOND);
        let round = network.last_round();
        assert_eq!(network.submitted(VICTIM, round), speaks);
        let silent = network.silences(VICTIM, round);
        assert_eq!(silent == [Silence::TooFewNeighbours], !speaks);
    }
}

// Before a reveal.

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

// Always.

/// Leaves the victim's submissions out of `count` rosters, one per `every` rounds.
fn excluded(world: World, count: u64, every: u64) -> Network {
    let mut network = start(world);
    let period = u64::from(network.world.policy.period.as_secs()) * SECOND;
    // A boundary value is needed at both ends of an interval.
    network.run_until(3 * period + 30 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    for _ in 0..count {
        let round = network.now / period;
        network.run_until((round + every) * period - SECOND);
        drop_up(&mut network, VICTIM, Up::Submission);
        network.run_until((round + every) * period + 40 * SECOND);
        assert!(!network.newest_roster().includes(0));
        assert_eq!(network.newest_roster().round, network.last_round());
        network.filter = None;
    }
    network.run_until((network.now / period + 1) * period + 30 * SECOND);
    network
}

fn stopped_by_exclusions(network: &Network) -> bool {
    let exclusions = |alarm: &Alarm| matches!(alarm, Alarm::Exclusions { .. });
    network.alarms(VICTIM).iter().any(exclusions)
}

#[test]
fn more_than_five_exclusions_a_day_stop_it_for_good() {
    let network = excluded(world(), 5, 1);
    assert!(!stopped_by_exclusions(&network));
    assert!(network.submitted(VICTIM, network.last_round()));
    assert!(network.revealed(VICTIM, network.last_round()));

    let mut network = excluded(world(), 6, 1);
    assert!(stopped_by_exclusions(&network));
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::Stopped]);
    network.restart_meter(VICTIM);
    network.run_until(network.now + 3 * MINUTE);
    assert!(!network.submitted(VICTIM, network.last_round()));
}

#[test]
fn exclusions_are_counted_across_restarts() {
    let mut network = excluded(world(), 5, 1);
    network.restart_meter(VICTIM);
    network.run_until(network.now + 2 * MINUTE);
    assert!(network.submitted(VICTIM, network.last_round()));
    drop_up(&mut network, VICTIM, Up::Submission);
    network.run_until(network.now + 2 * MINUTE);
    assert!(stopped_by_exclusions(&network));
}

#[test]
fn more_than_two_percent_exclusions_a_month_stop_it() {
    // 120 rounds of six hours a month: two exclusions are within 2 %, three are not.
    let six_hours = || {
        let policy = Policy {
            period: Period::from_secs(21_600).unwrap(),
            ..policy(4)
        };
        World::new(7, policy, &["import"])
    };
    let network = excluded(six_hours(), 2, 5);
    assert!(!stopped_by_exclusions(&network));
    assert!(network.submitted(VICTIM, network.last_round()));
    let network = excluded(six_hours(), 3, 5);
    assert!(stopped_by_exclusions(&network));
    assert!(!network.submitted(VICTIM, network.last_round()));
}

#[test]
fn a_connection_that_is_broken_after_each_submission_does_not_hide_exclusions() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    drop_up(&mut network, VICTIM, Up::Submission);
    for minute in 4..10 {
        // All submit within the first half of the window of 20 s.
        network.run_until(minute * MINUTE + 12 * SECOND);
        network.set_online(VICTIM, false);
        network.set_online(VICTIM, true);
        network.run_until(minute * MINUTE + 40 * SECOND);
        let round = network.last_round();
        assert!(network.submitted(VICTIM, round) || network.alarms(VICTIM).len() == 1);
    }
    assert!(stopped_by_exclusions(&network));
}

#[test]
fn a_late_submission_that_is_left_out_is_no_exclusion() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    for minute in 4..12 {
        network.run_until(minute * MINUTE - SECOND);
        network.set_online(VICTIM, false);
        network.run_until(minute * MINUTE + 30 * SECOND);
        network.set_online(VICTIM, true);
        network.run_until(minute * MINUTE + 40 * SECOND);
        assert!(!network.newest_roster().includes(0));
    }
    assert!(!stopped_by_exclusions(&network));
    network.run_until(13 * MINUTE + 30 * SECOND);
    assert!(network.revealed(VICTIM, network.last_round()));
    assert_eq!(
        network.last_round().end(network.world.policy.period),
        Timestamp(START.0 + 13 * MINUTE)
    );
}
