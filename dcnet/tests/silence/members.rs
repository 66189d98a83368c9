//! The rules about members that come, leave, lapse or are revoked, and about the
//! provider's key.

use dcnet::aggregate::Aggregate;
use dcnet::frame::{self, Notification};
use dcnet::identity::Certificate;
use dcnet::membership::{EntryError, sign_exit};
use dcnet::output::Message;
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::topic::All;

use super::support::{append, join_of, leave, pair_keys};
use super::*;

fn one(bytes: &[u8]) -> ciborium::Value {
    cbor::array([cbor::bytes(bytes)])
}

fn rule(rule: &'static str) -> Result<(), EntryError> {
    Err(EntryError::Rule(rule))
}

/// A registration that the meter might have signed just now.
fn fresh_registration(network: &Network, meter: usize) -> Vec<u8> {
    let config = &network.world.meters[meter];
    let (net, utc) = (network.world.net, at(network.now).utc);
    sign_registration(&config.key, &config.certificate, net, utc)
}

/// How often the victim told a meter that their pair key is erased.
fn erased(network: &Network, meter: usize) -> usize {
    let peer = network.meters[meter].id();
    let key = network.world.meters[VICTIM].key.public();
    let to_peer =
        |message: &Message| matches!(message.topic, Topic::UpPair { peer: p, .. } if p == peer);
    let published = network.published.iter();
    published
        .filter(|(from, message)| *from == Some(VICTIM) && to_peer(message))
        .filter(|(_, message)| {
            let frame = Frame::verify(&message.payload, &key).unwrap();
            frame.header().notification == Notification::Erased
        })
        .count()
}

#[test]
fn a_leaving_meter_submits_nothing_even_if_the_provider_withholds_its_leave() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    drop_up(&mut network, VICTIM, Up::Exit);
    leave(&mut network, VICTIM);
    network.run_until(5 * MINUTE + 30 * SECOND);
    let round = network.last_round();
    assert_eq!(network.silences(VICTIM, round), [Silence::Leaving]);
    assert!(!network.submitted(VICTIM, round));
    let own = network.meters[VICTIM].id();
    assert!(network.provider.membership().active(&own).is_some());
}

#[test]
fn a_reading_that_waits_for_its_moment_is_not_submitted_by_a_leaving_meter() {
    let mut network = start(world());
    network.run_until(4 * MINUTE);
    leave(&mut network, VICTIM);
    network.run_until(4 * MINUTE + 30 * SECOND);
    assert!(!network.submitted(VICTIM, network.last_round()));
}

#[test]
fn who_left_is_on_no_roster() {
    let mut network = start(world());
    network.run_until(2 * MINUTE + 30 * SECOND);
    leave(&mut network, 6);
    let (mut network, roster) = until_withheld(network);
    let left = network.member(6);
    assert!(!roster.includes(left));
    let mut stuffed = roster.clone();
    stuffed.included.set(usize::try_from(left).unwrap());
    let rank = stuffed.included.rank(usize::try_from(left).unwrap());
    stuffed.digests.insert(rank, [9; 8]);
    assert_eq!(show(&mut network, &stuffed), Answer::Nothing);
    let refused = Refusal::Frame(FrameError::Bound("included"));
    let refusal = |event: &MeterEvent| matches!(event, MeterEvent::Refused { reason, .. } if *reason == refused);
    assert!(network.meter_events[VICTIM].iter().any(refusal));
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

#[test]
fn who_left_is_not_counted_among_the_lately_seen() {
    // Four of seven are 57 %, four of the four that are left are all.
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    (4..7).for_each(|meter| leave(&mut network, meter));
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert!(network.revealed(VICTIM, network.last_round()));
}

#[test]
fn drawn_neighbours_that_left_are_not_counted() {
    // Three of six drawn neighbours are left: L = 3, but of six it would be 4.
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    (4..7).for_each(|meter| leave(&mut network, meter));
    network.run_until(5 * MINUTE + 30 * SECOND);
    assert_eq!(stated_neighbours(&network), 3);
    assert_eq!(network.aggregates.last().unwrap().included.len(), 4);
}

/// L as the victim's newest submission states it.
fn stated_neighbours(network: &Network) -> u32 {
    let submission = newest_submission(network);
    assert_eq!(submission.round, network.last_round());
    submission.minimum_neighbours
}

#[test]
fn drawn_neighbours_that_are_said_to_have_lapsed_are_counted() {
    // L = 4 of six, but it would be 3 of five.
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    let body = one(&join_of(&network, 6));
    assert_eq!(append(&mut network, EntryKind::Lapsed, body), Ok(()));
    // Its own draw would end the lapse, and until then it is silent.
    drop_up(&mut network, 6, Up::Draw);
    withhold_rosters(&mut network);
    network.run_until(4 * MINUTE + 30 * SECOND);
    let log = network.provider.membership();
    assert!(log.member(network.member(6)).unwrap().is_lapsed());
    assert_eq!(stated_neighbours(&network), 4);
    let roster = network.newest_roster();
    assert_eq!(roster.members().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    let three = claims(&roster, &[(0, 1), (0, 2)]);
    let silent = Answer::Silent(Silence::TooFewFullEdges);
    assert_eq!(show(&mut network, &three), silent);
}

#[test]
fn a_neighbour_says_that_a_key_is_erased_once_it_is() {
    // The victim waits for a roster that includes the other.
    let (mut network, _) = withheld();
    let issued = network.saved_net.rosters.last().unwrap().frame.clone();
    leave(&mut network, 6);
    network.run_until(4 * MINUTE + 25 * SECOND);
    assert!(network.heard(6, &MeterEvent::Left));
    assert_eq!((pair_keys(&network, VICTIM), erased(&network, 6)), (6, 0));
    network.filter = None;
    network.show_roster(VICTIM, issued);
    network.run_until(6 * MINUTE);
    assert_eq!(pair_keys(&network, VICTIM), 5);
    assert!(erased(&network, 6) > 0);
}

#[test]
fn rounds_submitted_without_the_edge_do_not_keep_its_key() {
    let (mut network, roster) = withheld();
    let issued = network.saved_net.rosters.last().unwrap().frame.clone();
    leave(&mut network, 6);
    network.run_until(4 * MINUTE + 25 * SECOND);
    // Rounds that no roster comes for here follow: there is always one under way.
    network.run_until(6 * MINUTE + 15 * SECOND);
    assert!(network.submitted(VICTIM, network.last_round()));
    assert_eq!((pair_keys(&network, VICTIM), erased(&network, 6)), (6, 0));
    network.show_roster(VICTIM, issued);
    assert_eq!(answer(&network, roster.round), Answer::Revealed);
    // The reveal may still have to be repeated.
    assert_eq!(pair_keys(&network, VICTIM), 6);
    network.run_until(12 * MINUTE);
    assert!(network.meters[VICTIM].open_rounds().len() > 0);
    assert_eq!(pair_keys(&network, VICTIM), 5);
    assert!(erased(&network, 6) > 0);
    network.check_aggregates();
    assert!(network.aggregates.iter().any(|a| a.round == roster.round));
}

/// What becomes of the round that the victim used the departed neighbour's key for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    NoRoster,
    RefusedRoster,
    NoAggregate,
}

#[test]
fn a_round_that_comes_to_nothing_keeps_the_keys_it_used_for_a_day_only() {
    for ending in [Ending::NoRoster, Ending::RefusedRoster, Ending::NoAggregate] {
        let (mut network, roster) = withheld();
        (0..7).for_each(|meter| network.asleep[meter] = true);
        let answered = match ending {
            Ending::NoRoster => Answer::Nothing,
            Ending::RefusedRoster => {
                let refused = show(&mut network, &only(&roster, &[0, 1, 2]));
                assert_eq!(refused, Answer::Silent(Silence::GroupTooSmall));
                refused
            }
            Ending::NoAggregate => {
                drop_up(&mut network, VICTIM, Up::Reveal);
                show(&mut network, &roster)
            }
        };
        assert_eq!(answer(&network, roster.round), answered);
        leave(&mut network, 6);
        network.run_until(4 * MINUTE + 25 * SECOND);
        network.restart_meter(VICTIM);
        // The round ended at minute 4.
        network.run_until(24 * HOUR + 3 * MINUTE);
        let kept = (pair_keys(&network, VICTIM), erased(&network, 6));
        assert_eq!(kept, (6, 0), "{ending:?}");
        network.run_until(24 * HOUR + 20 * MINUTE);
        assert_eq!(pair_keys(&network, VICTIM), 5, "{ending:?}");
        assert!(erased(&network, 6) > 0, "{ending:?}");
    }
}

#[test]
fn nobody_says_erased_to_a_member_that_did_not_leave() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    let (net, utc) = (network.world.net, at(network.now).utc);
    let exit = sign_exit(
        &network.world.meters[6].key,
        net,
        &join_of(&network, 6),
        utc,
    );
    let topic = Topic::InboxPair {
        net,
        meter: network.meters[VICTIM].id(),
        peer: network.meters[6].id(),
    };
    // The provider relays it, but has no Leave for it.
    network.deliver(VICTIM, topic, exit);
    network.run_until(4 * MINUTE + 30 * SECOND);
    assert_eq!((pair_keys(&network, VICTIM), erased(&network, 6)), (6, 0));
}

#[test]
fn a_confirmation_of_another_membership_is_refused() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    let own = network.meters[VICTIM].id();
    // None of the neighbours learns that it left, so none confirms.
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::InboxPair { peer, .. } if *peer == own),
    ));
    leave(&mut network, VICTIM);
    network.run_until(4 * MINUTE);
    assert!(network.heard(VICTIM, &MeterEvent::Left));
    for (join, done) in [([7; 32], false), (join_of(&network, VICTIM), true)] {
        confirm_all(&mut network, &join);
        network.run_until(network.now + MINUTE);
        assert_eq!(network.heard(VICTIM, &ALL_CONFIRMED), done);
    }
}

const ALL_CONFIRMED: MeterEvent = MeterEvent::ExitDone {
    confirmed: 6,
    neighbours: 6,
};

/// All others tell the victim that their keys of a membership are erased.
fn confirm_all(network: &mut Network, join: &[u8; 32]) {
    let (net, utc) = (network.world.net, at(network.now).utc);
    let meter = network.meters[VICTIM].id();
    for other in 1..7 {
        let key = &network.world.meters[other].key;
        let frame = frame::sign(key, net, utc, Notification::Erased, one(join));
        let peer = network.meters[other].id();
        network.deliver(VICTIM, Topic::InboxPair { net, meter, peer }, frame);
    }
}

#[test]
fn a_meter_that_left_keeps_its_keys_until_no_round_waits_for_it() {
    let (mut network, roster) = withheld();
    let issued = network.saved_net.rosters.last().unwrap().frame.clone();
    let join = join_of(&network, VICTIM);
    leave(&mut network, VICTIM);
    network.run_until(4 * MINUTE + 20 * SECOND);
    assert!(network.heard(VICTIM, &MeterEvent::Left));
    // Whatever the others say.
    confirm_all(&mut network, &join);
    network.run_until(4 * MINUTE + 25 * SECOND);
    assert!(!network.heard(VICTIM, &ALL_CONFIRMED));
    network.show_roster(VICTIM, issued);
    assert_eq!(answer(&network, roster.round), Answer::Revealed);
    network.run_until(6 * MINUTE);
    network.check_aggregates();
    assert!(network.aggregates.iter().any(|a| a.round == roster.round));
    assert!(network.heard(VICTIM, &ALL_CONFIRMED));
}

#[test]
fn a_member_does_not_join_twice() {
    let mut network = start(world());
    network.run_until(2 * MINUTE);
    let body = one(&fresh_registration(&network, 6));
    let twice = rule("a member joins twice");
    assert_eq!(append(&mut network, EntryKind::Join, body), twice);
}

#[test]
fn a_revoked_meter_does_not_join_again() {
    let mut network = start(world());
    network.run_until(2 * MINUTE);
    network.revoke(6);
    let body = one(&fresh_registration(&network, 6));
    let revoked = rule("a revoked meter joins");
    assert_eq!(append(&mut network, EntryKind::Join, body), revoked);
}

#[test]
fn a_revocation_is_signed_with_an_administrators_certificate() {
    let mut network = start(world());
    network.run_until(2 * MINUTE);
    let (device, utc) = (network.meters[6].id(), at(network.now).utc);
    let body = |certificate: &Certificate, revocation: &[u8]| {
        cbor::array([cbor::bytes(certificate.der()), cbor::bytes(revocation)])
    };
    let provider = &network.world.provider;
    let own = sign_revocation(&provider.key, device, utc);
    let by_provider = body(&provider.certificate, &own);
    let sender = Err(EntryError::Body(Box::new(FrameError::Sender.into())));
    assert_eq!(append(&mut network, EntryKind::Revoke, by_provider), sender);
    let (key, administrator) = network.world.authority.issue(Role::Administrator, None);
    let right = body(&administrator, &sign_revocation(&key, device, utc));
    assert_eq!(append(&mut network, EntryKind::Revoke, right), Ok(()));
}

#[test]
fn no_pad_is_shared_with_a_neighbour_on_the_revocation_list() {
    // Four usable edges of six are enough, three are not.
    for (revoked, speaks) in [(&[5, 6][..], true), (&[4, 5, 6], false)] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        let devices = revoked.iter().map(|meter| network.meters[*meter].id());
        let list = RevocationList::new(1, devices.collect());
        network.input_meter(VICTIM, Input::Command(MeterCommand::Revoked(list)));
        network.run_until(4 * MINUTE + 30 * SECOND);
        assert_eq!(network.submitted(VICTIM, network.last_round()), speaks);
    }
}

#[test]
fn an_older_revocation_list_is_refused_after_a_restart() {
    let list = |network: &Network, number, revoked: &[usize]| {
        let devices = revoked.iter().map(|meter| network.meters[*meter].id());
        RevocationList::new(number, devices.collect())
    };
    // With half of its neighbours revoked it is silent, with a list of nobody it speaks.
    for (number, speaks) in [(None, false), (Some(1), false), (Some(3), true)] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        let newest = list(&network, 2, &[4, 5, 6]);
        let command = MeterCommand::Revoked(newest.clone());
        network.input_meter(VICTIM, Input::Command(command));
        network.world.meters[VICTIM].revoked = number.map(|number| list(&network, number, &[]));
        network.restart_meter(VICTIM);
        if number == Some(1) {
            assert_eq!(network.meters[VICTIM].revocations(), Some(&newest));
            let older = MeterCommand::Revoked(list(&network, 1, &[]));
            network.input_meter(VICTIM, Input::Command(older));
        }
        network.run_until(5 * MINUTE + 30 * SECOND);
        assert_eq!(network.submitted(VICTIM, network.last_round()), speaks);
        // Also the list that it was started with is stored.
        network.world.meters[VICTIM].revoked = None;
        network.restart_meter(VICTIM);
        let kept = network.meters[VICTIM].revocations().unwrap().number();
        assert_eq!(kept, number.unwrap_or(2).max(2));
    }
}

#[test]
fn a_member_does_not_lapse_twice() {
    let mut network = start(World::new(10, policy(4), &["import"]));
    network.run_until(2 * MINUTE);
    drop_up(&mut network, 6, Up::Draw);
    let body = one(&join_of(&network, 6));
    assert_eq!(
        append(&mut network, EntryKind::Lapsed, body.clone()),
        Ok(())
    );
    let twice = rule("a member lapses twice");
    assert_eq!(append(&mut network, EntryKind::Lapsed, body), twice);
}

#[test]
fn a_key_of_the_provider_does_not_come_back() {
    let mut network = start(world());
    network.run_until(2 * MINUTE);
    let old = network.world.provider.key.clone();
    let certificate = network.world.provider.certificate.clone();
    network.change_provider_key();
    let utc = at(network.now).utc;
    let log = network.provider.membership();
    assert!(log.provider().id() != certificate.id());
    let back = log.succession(&old, &certificate, utc);
    let twice = rule("a provider key is used twice");
    assert_eq!(append(&mut network, EntryKind::ProviderKey, back), twice);
}

#[test]
fn an_aggregate_is_signed_with_the_key_in_force_since_its_head() {
    let mut network = start(world());
    network.run_until(2 * MINUTE);
    let old = network.world.provider.key.clone();
    network.change_provider_key();
    let aggregate = |topic: &Topic| {
        let all = matches!(topic, Topic::All { kind, .. } if *kind == All::Aggregate);
        all || matches!(topic, Topic::Inbox { kind, .. } if *kind == Inbox::Aggregate)
    };
    network.filter = Some(Box::new(move |topic, receiver, _| {
        receiver != Some(VICTIM) || !aggregate(topic)
    }));
    network.run_until(4 * MINUTE + 30 * SECOND);
    let published = network.aggregates.last().unwrap().clone();
    let (round, net) = (published.round, network.world.net);
    assert!(round == network.last_round() && network.revealed(VICTIM, round));
    let read = Aggregate::verify_in(&published.frame, network.provider.membership()).unwrap();
    let by_old = read.sign(&old, net, at(network.now).utc);
    let kind = All::Aggregate;
    for (frame, taken) in [(by_old, false), (published.frame, true)] {
        network.deliver(VICTIM, Topic::All { net, kind }, frame);
        let events = &network.meter_events[VICTIM];
        let of_round =
            |event: &MeterEvent| matches!(event, MeterEvent::Final { round: r, .. } if *r == round);
        assert_eq!(events.iter().any(of_round), taken);
    }
    let refused = MeterEvent::Refused {
        topic: Topic::All { net, kind },
        reason: Refusal::Frame(FrameError::Signature),
    };
    assert!(network.heard(VICTIM, &refused));
}

#[test]
fn who_left_is_drawn_by_nobody() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    leave(&mut network, 6);
    network.run_until(4 * MINUTE + 30 * SECOND);
    // The victim lost its state, so it joins anew and draws.
    network.saved[VICTIM].clear();
    network.restart_meter(VICTIM);
    network.run_until(7 * MINUTE + 30 * SECOND);
    let log = network.provider.membership();
    let newest = log
        .graph()
        .newest(network.member(VICTIM), u64::MAX)
        .unwrap();
    let candidates: Vec<u32> = (1..6).map(|meter| network.member(meter)).collect();
    assert!(
        newest
            .neighbours
            .iter()
            .all(|peer| candidates.contains(peer))
    );
    assert_eq!(newest.neighbours.len(), candidates.len());
}
