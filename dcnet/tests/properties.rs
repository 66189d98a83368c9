//! Properties of random nets: pads cancel, every sum is the truth, and only meters
//! that saw one roster give a sum. Failing cases print their seed.

mod support;

use std::collections::BTreeSet;

use dcnet::commitment::Commitment;
use dcnet::frame::{Frame, Notification, Unverified};
use dcnet::identity::DeviceId;
use dcnet::opening::{Opening, PadSum};
use dcnet::pad::{PadKeys, PairKey};
use dcnet::reveal::Reveal;
use dcnet::secret::Secret;
use dcnet::superposition::Submission;
use dcnet::time::{Day, Round};
use dcnet::topic::{NetId, Topic, Up};
use proptest::prelude::*;

use simulation::network::{Faults, Network};
use simulation::world::{World, at, policy};
use support::is_roster;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;

/// What each of `n` ends adds up over the edges of a graph.
fn pad_sums(
    n: usize,
    edges: &[(usize, usize, PadKeys)],
    pad: impl Fn(usize, &PadKeys) -> dcnet::pad::Pad,
) -> Vec<Opening> {
    let mut sums: Vec<PadSum> = (0..n).map(|_| PadSum::new()).collect();
    for (lower, higher, keys) in edges {
        sums[*lower].include(pad(*lower, keys).bytes(), true);
        sums[*higher].include(pad(*higher, keys).bytes(), false);
    }
    sums.iter().map(PadSum::finish).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn pads_cancel_over_every_graph_and_only_under_one_roster(
        n in 2usize..9,
        chosen in any::<u64>(),
        key in any::<[u8; 30]>(),
        round in any::<u64>(),
        channel in any::<u16>(),
        roster in any::<[u8; 32]>(),
    ) {
        let mut edges = Vec::new();
        for lower in 0..n {
            for higher in lower + 1..n {
                let place = lower * 8 + higher;
                if chosen >> (place % 64) & 1 == 1 {
                    let mut secret = [0; 32];
                    secret[..30].copy_from_slice(&key);
                    secret[30] = u8::try_from(lower).unwrap();
                    secret[31] = u8::try_from(higher).unwrap();
                    let key = PairKey::new(Day(1), Secret::new(&mut secret));
                    edges.push((lower, higher, key.pad_keys(NetId([1; 16]))));
                }
            }
        }
        let round = Round(round);
        let submission = pad_sums(n, &edges, |_, keys| keys.submission(round, channel));
        prop_assert_eq!(submission.into_iter().sum::<Opening>(), Opening::ZERO);
        let reveal = pad_sums(n, &edges, |_, keys| keys.reveal(&roster, round, channel));
        prop_assert_eq!(reveal.into_iter().sum::<Opening>(), Opening::ZERO);
        let mut other = roster;
        other[31] ^= 1;
        let split = pad_sums(n, &edges, |end, keys| {
            keys.reveal(if end == 0 { &other } else { &roster }, round, channel)
        });
        let touched = edges.iter().any(|(lower, ..)| *lower == 0);
        prop_assert_eq!(split.into_iter().sum::<Opening>() != Opening::ZERO, touched);
    }
}

/// Six meters of which any four may take part alone.
fn six() -> Network {
    let mut world = World::new(6, policy(4), &["import", "export"]);
    world.provider.minimum_presence = 50;
    for meter in &mut world.meters {
        meter.floors.minimum_presence = 50;
    }
    let mut network = Network::new(world, Faults::default(), 1);
    network.keep_published = true;
    network
}

fn subsets() -> Vec<BTreeSet<usize>> {
    let pairs = (0..6).flat_map(|a| (a..6).map(move |b| BTreeSet::from([a, b])));
    std::iter::once(BTreeSet::new()).chain(pairs).collect()
}

#[test]
fn the_sum_is_true_for_every_set_of_absent_meters() {
    let sets = subsets();
    assert_eq!(sets.len(), 22);
    let mut network = six();
    network.run_until(3 * MINUTE - SECOND);
    for (absent, minute) in sets.iter().zip(3..) {
        network.run_until(minute * MINUTE - SECOND);
        absent.iter().for_each(|m| network.set_online(*m, false));
        network.run_until(minute * MINUTE + 40 * SECOND);
        let last = network.aggregates.last().unwrap();
        assert_eq!(last.round, network.last_round(), "absent: {absent:?}");
        let included: BTreeSet<usize> = network.included(last).into_iter().collect();
        assert!(included.is_disjoint(absent));
        assert_eq!(included.len() + absent.len(), 6);
        absent.iter().for_each(|m| network.set_online(*m, true));
    }
    network.check_aggregates();
}

#[test]
fn a_round_waits_for_meters_that_vanish_before_their_reveal() {
    for vanished in subsets() {
        let mut network = six();
        network.run_until(3 * MINUTE - SECOND);
        let gone = vanished.clone();
        network.filter = Some(Box::new(move |topic, receiver, _| {
            !(is_roster(topic) && receiver.is_some_and(|m| gone.contains(&m)))
        }));
        // All submit in the first half of the window of 20 s; then some vanish.
        network.run_until(3 * MINUTE + 15 * SECOND);
        let round = network.last_round();
        vanished.iter().for_each(|m| network.set_online(*m, false));
        network.run_until(5 * MINUTE + 15 * SECOND);
        let finished = network.aggregates.iter().any(|a| a.round == round);
        assert_eq!(finished, vanished.is_empty(), "vanished: {vanished:?}");
        network.filter = None;
        vanished.iter().for_each(|m| network.set_online(*m, true));
        network.run_until(6 * MINUTE);
        let of_round = network.aggregates.iter().find(|a| a.round == round);
        assert_eq!(
            of_round.map(|a| a.included.len()),
            Some(6),
            "vanished: {vanished:?}"
        );
        network.check_aggregates();
    }
}

/// What a provider gets from the submissions of a round and whatever reveals it has.
fn sum(network: &Network, round: Round) -> Vec<(Opening, Commitment)> {
    let channels = network.provider.membership().genesis().channels.len();
    let net = network.world.net;
    let mut sums = vec![(Opening::ZERO, std::iter::empty::<Commitment>().sum()); channels];
    for meter in 0..network.meters.len() {
        let key = network.world.meters[meter].key.public();
        let verified = |kind| {
            let sent: BTreeSet<Vec<u8>> = network.sent(meter, kind).into_iter().collect();
            let frames = sent
                .into_iter()
                .map(|bytes| Frame::verify(&bytes, &key).unwrap());
            frames.collect::<Vec<Frame>>()
        };
        for frame in verified(Up::Submission) {
            let submission = Submission::read(frame, net, channels).unwrap();
            if submission.round == round {
                for ((sum, commitments), share) in sums.iter_mut().zip(submission.shares) {
                    *sum += share.superposition;
                    *commitments = *commitments + share.commitment;
                }
            }
        }
        for frame in verified(Up::Reveal) {
            let reveal = Reveal::read(frame, net, channels).unwrap();
            if reveal.round == round {
                for ((sum, _), opening) in sums.iter_mut().zip(reveal.openings) {
                    *sum -= opening;
                }
            }
        }
    }
    sums
}

#[test]
fn meters_that_were_shown_different_rosters_give_no_sum() {
    for split in 0..6u64 {
        let mut network = six();
        network.run_until(3 * MINUTE - SECOND);
        network.filter = Some(Box::new(|topic, _, _| !is_roster(topic)));
        network.run_until(3 * MINUTE + 15 * SECOND);
        let round = network.last_round();
        let roster = network.newest_roster();
        let one = network.saved_net.rosters.last().unwrap().frame.clone();
        // The same content, signed at another time.
        let log = network.provider.membership();
        let key = &network.world.provider.key;
        let other = roster.sign(key, log, at(network.now + 1).utc);
        for meter in 0..6 {
            let shown = if (meter as u64) < split { &other } else { &one };
            network.show_roster(meter, shown.clone());
            assert!(network.revealed(meter, round));
        }
        for (opening, commitments) in sum(&network, round) {
            let valid = opening.integer().is_some();
            let verifies = dcnet::commitment::commit(&opening) == commitments;
            assert_eq!((valid, verifies), (split == 0, split == 0), "split {split}");
        }
    }
}

/// Pairs of seven meters with at most two blocked edges per meter: L = 4 of d = 6.
fn bearable(wishes: &[(usize, usize)]) -> BTreeSet<(usize, usize)> {
    let mut pairs = BTreeSet::new();
    let mut blocked = [0; 7];
    for (a, b) in wishes {
        let pair = (*a.min(b), *a.max(b));
        if a != b && blocked[*a] < 2 && blocked[*b] < 2 && pairs.insert(pair) {
            blocked[*a] += 1;
            blocked[*b] += 1;
        }
    }
    pairs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn the_sum_is_true_for_every_bearable_set_of_half_open_edges(
        wishes in prop::collection::vec((0usize..7, 0usize..7), 0..14),
        whole in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let world = World::new(7, policy(4), &["import"]);
        let mut network = Network::new(world, Faults::default(), seed);
        let ids: Vec<DeviceId> = network.meters.iter().map(|meter| meter.id()).collect();
        let pairs = bearable(&wishes);
        let blocked: BTreeSet<(DeviceId, DeviceId)> =
            pairs.iter().flat_map(|(a, b)| [(ids[*a], ids[*b]), (ids[*b], ids[*a])]).collect();
        network.filter = Some(Box::new(move |topic, _, payload| {
            let Topic::UpPair { meter, peer, .. } = topic else { return true };
            if !blocked.contains(&(*meter, *peer)) {
                return true;
            }
            // The higher end's confirmation is the last message: without it the higher
            // end uses the edge and the lower does not.
            let kind = Unverified::parse(payload).unwrap().claimed().notification;
            let lost = whole || (kind == Notification::Confirm && meter > peer);
            !lost
        }));
        network.run_until(3 * MINUTE + 40 * SECOND);
        network.check_aggregates();
        let last = network.aggregates.last();
        prop_assert_eq!(last.map(|a| a.round), Some(network.last_round()));
        prop_assert_eq!(last.map(|a| a.included.len()), Some(7));
        let claims = network.newest_roster().half_open.len();
        prop_assert_eq!(claims, if whole { 0 } else { pairs.len() });
    }
}
