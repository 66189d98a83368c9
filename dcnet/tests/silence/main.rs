//! What a meter checks before it speaks: every rule is broken once, and the same
//! set-up without the breakage speaks (`docs/protocol.md`, "What a meter checks").

mod exclusions;
mod members;
mod reveal;
mod submission;
#[path = "../support/mod.rs"]
mod support;
mod waits;

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
use dcnet::superposition::{Submission, short};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::{Inbox, Topic, Up};
use dcnet::units::MilliwattHours;

use simulation::network::{Faults, Network};
use simulation::world::{START, World, at, policy};
use support::is_roster;

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

/// The victim's newest submission.
fn newest_submission(network: &Network) -> Submission {
    let frames = network.sent(VICTIM, Up::Submission);
    let key = network.world.meters[VICTIM].key.public();
    let frame = Frame::verify(frames.last().unwrap(), &key).unwrap();
    Submission::read(frame, network.world.net, 1).unwrap()
}

fn second_roster_alarm(network: &Network, round: Round) -> bool {
    let alarms = network.alarms(VICTIM);
    alarms.contains(&Alarm::SecondRoster { round })
}
