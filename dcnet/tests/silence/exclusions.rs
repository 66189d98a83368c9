//! Timely submissions that are left out of rosters.

use dcnet::provider::ProviderEvent;

use super::support::leave;
use super::*;

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

pub fn stopped_by_exclusions(network: &Network) -> bool {
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

/// Six rounds whose submissions the victim makes without a connection: it is let in again
/// `back` milliseconds after the end of each. Whether they arrive is left to the filter.
fn let_in_late(network: &mut Network, back: u64) {
    for minute in 4..10 {
        network.run_until(minute * MINUTE - SECOND);
        network.set_online(VICTIM, false);
        // All submit within the first half of the window of 20 s.
        network.run_until(minute * MINUTE + back);
        network.set_online(VICTIM, true);
        if minute == 9 {
            // What was counted is on its disk.
            network.run_until(minute * MINUTE + 17 * SECOND);
            network.restart_meter(VICTIM);
        }
        network.run_until(minute * MINUTE + 40 * SECOND);
    }
}

#[test]
fn a_connection_that_is_broken_before_each_submission_does_not_hide_exclusions() {
    // Back within three quarters of the window or not; left out or not.
    for (back, left_out, stops) in [
        (12 * SECOND, true, true),
        (12 * SECOND, false, false),
        (16 * SECOND, true, false),
    ] {
        let mut network = start(world());
        network.run_until(3 * MINUTE + 30 * SECOND);
        if left_out {
            drop_up(&mut network, VICTIM, Up::Submission);
        }
        let_in_late(&mut network, back);
        assert_eq!(stopped_by_exclusions(&network), stops, "{back} {left_out}");
        let answered = network.revealed(VICTIM, network.last_round());
        assert_eq!(answered, !left_out, "{back} {left_out}");
    }
}

/// The members of the newest roster, which must be of the newest round.
fn rostered(network: &Network) -> Vec<u32> {
    let roster = network.newest_roster();
    assert_eq!(roster.round, network.last_round());
    roster.members().collect()
}

#[test]
fn a_member_that_never_drew_does_not_end_the_window_for_the_others() {
    let mut network = start(world());
    drop_up(&mut network, 6, Up::Draw);
    network.run_until(4 * MINUTE + 1);
    let log = network.provider.membership();
    let own = network.member(6);
    assert!(log.graph().newest(own, u64::MAX).is_none());
    assert_eq!(log.graph().neighbours(own, u64::MAX).len(), 6);
    let submission = Submission {
        round: network.last_round(),
        log_head: log.head().hash,
        edges: vec![0],
        ..newest_submission(&network)
    };
    let (net, meter) = (network.world.net, network.meters[6].id());
    let frame = submission.sign(&network.world.meters[6].key, net, at(network.now).utc);
    let kind = Up::Submission;
    let topic = Topic::Up { net, meter, kind };
    network.deliver_up(topic, frame);
    let reason = Refusal::Rule("the sender had no draw by the log head it names");
    let refused = ProviderEvent::Refused { topic, reason };
    assert!(network.provider_events.contains(&refused));
    network.run_until(4 * MINUTE + 19 * SECOND);
    let others: Vec<u32> = (0..6).map(|meter| network.member(meter)).collect();
    assert_eq!(rostered(&network), others);
}

#[test]
fn an_exit_in_the_window_does_not_end_it_for_the_slowest() {
    let mut network = start(world());
    network.run_until(4 * MINUTE);
    let round = network.last_round();
    let submitted = |network: &Network| {
        let meters = 0..7;
        let submitted = meters.filter(|meter| network.submitted(*meter, round));
        submitted.collect::<Vec<usize>>()
    };
    while submitted(&network).is_empty() {
        network.run_until(network.now + 10);
    }
    let leaver = submitted(&network)[0];
    assert!(submitted(&network).len() < 6);
    leave(&mut network, leaver);
    network.run_until(network.now + 10);
    assert_eq!(network.provider.membership().size(), 6);
    network.run_until(4 * MINUTE + 19 * SECOND);
    let stayed = (0..7).filter(|meter| *meter != leaver);
    let stayed: Vec<u32> = stayed.map(|meter| network.member(meter)).collect();
    assert_eq!(rostered(&network), stayed);
    network.check_aggregates();
}
