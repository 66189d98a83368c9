//! When a meter waits of its own accord, and for what it does not wait in vain.

use dcnet::topic::All;

use super::exclusions::stopped_by_exclusions;
use super::*;

/// Whether the provider is asked for rosters.
fn roster_requests(network: &Network) -> usize {
    network.sent(VICTIM, Up::Roster).len()
}

/// Runs to half a minute after the next round has ended.
fn next_round(network: &mut Network) {
    let period = u64::from(network.world.policy.period.as_secs()) * SECOND;
    network.run_until((network.now / period + 1) * period + 30 * SECOND);
}

/// A net whose rounds last an hour, in which the victim has revealed.
fn hourly() -> Network {
    let policy = Policy {
        period: Period::from_secs(3600).unwrap(),
        ..policy(4)
    };
    let mut world = World::new(7, policy, &["import"]);
    // More than the provider keeps to.
    world.meters[VICTIM].floors.minimum_presence = 95;
    let mut network = start(world);
    network.run_until(2 * HOUR);
    while !network.revealed(VICTIM, network.last_round()) {
        next_round(&mut network);
    }
    network
}

/// It submits in every round until the one that it owes a reveal of is closed, and is on no
/// roster for that.
fn owes_for_a_day(network: &mut Network) {
    let mut left_out = 0;
    for hour in 1..24 {
        next_round(network);
        let round = network.last_round();
        // The round in which it was started has no reading.
        assert!(network.submitted(VICTIM, round) || hour < 3 || hour == 10);
        let newest = network.newest_roster();
        left_out += usize::from(newest.round == round && !newest.includes(0));
        assert!(newest.round != round || !newest.includes(0));
        if hour == 9 {
            network.restart_meter(VICTIM);
        }
    }
    // Far more than would stop it.
    assert!(left_out > 12, "{left_out}");
    next_round(network);
    next_round(network);
    let round = network.last_round();
    assert!(network.revealed(VICTIM, round) && !stopped_by_exclusions(network));
}

#[test]
fn to_be_left_out_after_a_refused_roster_is_no_exclusion() {
    let mut network = hourly();
    network.asleep[6] = true;
    next_round(&mut network);
    network.asleep[6] = false;
    let round = network.last_round();
    assert!(network.submitted(VICTIM, round));
    assert_eq!(network.silences(VICTIM, round), [Silence::PresenceTooLow]);
    owes_for_a_day(&mut network);
}

#[test]
fn to_be_left_out_for_a_submission_that_its_disk_has_lost_is_no_exclusion() {
    let mut network = hourly();
    let image = network.saved[VICTIM].clone();
    withhold_rosters(&mut network);
    next_round(&mut network);
    let roster = network.newest_roster();
    assert!(network.submitted(VICTIM, roster.round) && roster.includes(0));
    network.restore_disk(VICTIM, image);
    network.filter = None;
    owes_for_a_day(&mut network);
    assert_eq!(
        network.silences(VICTIM, roster.round),
        [Silence::WrongDigest]
    );
}

/// The victim gets so many rosters only after the window for its reveal, then takes part for
/// a while. Returns in how many rounds since then it was left out.
fn late(network: &mut Network, times: usize) -> usize {
    for _ in 0..times {
        while !network.newest_roster().includes(0) {
            next_round(network);
        }
        withhold_rosters(network);
        next_round(network);
        let round = network.last_round();
        assert!(network.submitted(VICTIM, round));
        network.filter = None;
        // It is asked for the roster again, and answers.
        next_round(network);
        assert!(network.revealed(VICTIM, round));
        next_round(network);
    }
    let mut without = 0;
    while !network.newest_roster().includes(0) {
        assert!(network.submitted(VICTIM, network.last_round()));
        without += 1;
        next_round(network);
    }
    without
}

#[test]
fn to_be_left_out_for_its_own_late_reveals_is_no_exclusion() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    assert_eq!(late(&mut network, 1), 0, "once a day costs nothing");
    let without = late(&mut network, 5);
    // Of the 16 rounds some have passed before this looked.
    assert!((12..=16).contains(&without), "{without}");
    assert!(!stopped_by_exclusions(&network));
    assert!(network.revealed(VICTIM, network.last_round()));
}

#[test]
fn late_reveals_excuse_no_exclusion_after_the_wait_for_them() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    late(&mut network, 2);
    drop_up(&mut network, VICTIM, Up::Submission);
    (0..7).for_each(|_| next_round(&mut network));
    assert!(stopped_by_exclusions(&network));
}

#[test]
fn rosters_that_wait_for_the_clock_alone_are_not_asked_for() {
    let mut network = start(world());
    network.run_until(3 * MINUTE + 30 * SECOND);
    network.skews[VICTIM].unsynchronised = true;
    next_round(&mut network);
    let before = roster_requests(&network);
    for _ in 0..20 {
        next_round(&mut network);
    }
    assert_eq!(roster_requests(&network), before);
    network.skews[VICTIM].unsynchronised = false;
    next_round(&mut network);
    next_round(&mut network);
    next_round(&mut network);
    assert!(network.revealed(VICTIM, network.last_round()));
}

#[test]
fn a_wrong_clock_closes_no_round() {
    let (mut network, roster) = withheld();
    network.skews[VICTIM].unsynchronised = true;
    network.skews[VICTIM].ahead = i64::try_from(48 * HOUR).unwrap();
    network.run_until(network.now + 15 * MINUTE);
    network.skews[VICTIM] = Default::default();
    assert_eq!(show(&mut network, &roster), Answer::Revealed);
}

/// A roster of the last round that follows none that the victim knows, though every other
/// meter has it, as an answer of the provider or not.
fn show_gap(network: &mut Network, round: Round, answer: bool) -> (Roster, bool) {
    let roster = Roster {
        round,
        previous: Some([7; 32]),
        ..only(&network.newest_roster(), &[1, 2, 3, 4, 5, 6])
    };
    let signed = network.sign_roster(&roster);
    let (net, meter) = (network.world.net, network.meters[VICTIM].id());
    let topic = match answer {
        true => Topic::Inbox {
            net,
            meter,
            kind: Inbox::Roster,
        },
        false => Topic::All {
            net,
            kind: All::Roster,
        },
    };
    network.deliver(VICTIM, topic, signed.clone());
    let hash = Roster::verify(&signed, network.provider.membership()).unwrap();
    let last = &network.saved[VICTIM][&(Store::Net, b"last-roster".to_vec())];
    let taken = last
        .windows(32)
        .any(|window| window == hash.hash.as_slice());
    (hash, taken)
}

#[test]
fn after_a_day_without_submissions_the_chain_may_begin_anew() {
    let mut network = hourly();
    withhold_rosters(&mut network);
    network.asleep[VICTIM] = true;
    network.run_until(network.now + 23 * HOUR);
    let round = network.last_round();
    assert!(!show_gap(&mut network, round, true).1, "not closed yet");
    network.run_until(network.now + 2 * HOUR);
    let round = network.last_round();
    assert!(!show_gap(&mut network, round, false).1, "no answer");
    assert!(show_gap(&mut network, round, true).1);
    // From there on it is followed again.
    assert!(!show_gap(&mut network, round.next(), true).1);
}

#[test]
fn the_chain_does_not_begin_anew_after_a_round_that_it_has_submitted_in() {
    let mut network = hourly();
    withhold_rosters(&mut network);
    for _ in 0..26 {
        next_round(&mut network);
        assert!(network.submitted(VICTIM, network.last_round()));
    }
    let round = network.last_round();
    assert!(!show_gap(&mut network, round, true).1);
}
