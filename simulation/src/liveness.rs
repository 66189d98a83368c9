//! Who must be in the rounds of a net that nothing has happened to for a while.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::cbor;
use dcnet::membership::Member;
use dcnet::output::Store;
use dcnet::provider::ProviderEvent;

use crate::network::Network;
use crate::watch::Harm;
use crate::world::at;

/// What a quiet net owes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Meters that must be in every round.
    pub meters: BTreeSet<usize>,
    /// Why the others need not.
    pub excused: BTreeMap<usize, &'static str>,
    /// Why there need be no rounds at all.
    pub stalled: Option<&'static str>,
}

/// `L` of a meter whose newest draw names so many members and whose own floor is the hard one.
fn required(drawn: usize, policy: u32) -> usize {
    let policy = usize::try_from(policy).unwrap_or(usize::MAX);
    (drawn * 3).div_ceil(5).max(3).max(policy)
}

/// Who must be in the next rounds; `prompt` if within a few rounds, else after a day, when
/// every round of before is closed.
pub fn expected(
    network: &Network,
    harm: &Harm,
    rosters: &[BTreeSet<usize>],
    prompt: bool,
) -> Expected {
    let mut expected = Expected::default();
    for meter in 0..network.meters.len() {
        match excuse(network, harm, meter, prompt) {
            Some(reason) => drop(expected.excused.insert(meter, reason)),
            None => drop(expected.meters.insert(meter)),
        }
    }
    drop_lonely(network, harm, &mut expected);
    let log = network.provider.membership();
    let here = |meter: &usize| log.active(&network.meters[*meter].id()).is_some();
    let lately = rosters.iter().rev().take(96).flatten().copied();
    let lately: BTreeSet<usize> = lately.filter(here).collect();
    let size = expected.meters.len();
    let group = network.world.policy.minimum_group;
    if u32::try_from(size).is_ok_and(|size| size < group) {
        expected.stalled = Some("fewer than the minimum group can take part");
    } else if size * 100 < lately.len() * 80 {
        expected.stalled = Some("too many of the meters lately seen cannot take part");
    }
    expected
}

fn excuse(network: &Network, harm: &Harm, meter: usize, prompt: bool) -> Option<&'static str> {
    let stopped = (Store::Net, b"stopped".to_vec());
    if network.saved[meter].contains_key(&stopped) {
        return Some("an alarm stopped it");
    }
    let log = network.provider.membership();
    let (id, exit) = (network.meters[meter].id(), (Store::Net, b"exit".to_vec()));
    if network.saved[meter].contains_key(&exit) {
        return Some("it leaves, or has left");
    }
    if log.is_revoked(&id) {
        return Some("it is revoked");
    }
    if harm.false_rosters.contains(&meter) || harm.forked.contains(&meter) {
        return Some("the provider lied to it, and its view is another one");
    }
    if harm.wrong_clock.contains(&meter) && has_submitted_ahead(network, meter) {
        return Some("it was started by a clock that was ahead, and submitted for a time to come");
    }
    if harm.forgetful.contains(&meter) && has_used_its_draws(network, meter) {
        return Some("its disk forgot a draw, and it has asked for as many as it may in a month");
    }
    if prompt && harm.forgetful.contains(&meter) {
        return Some("its disk forgot something, and it may owe a reveal until a day is over");
    }
    let late = prompt && harm.late.contains(&meter);
    late.then_some("it made others wait, and may have to wait itself")
}

/// Whether a member without a draw may not ask for one, for a month.
fn has_used_its_draws(network: &Network, meter: usize) -> bool {
    let log = network.provider.membership();
    let place = log.active(&network.meters[meter].id());
    let is_drawn = place.is_some_and(|place| log.graph().newest(place, u64::MAX).is_some());
    let times = network.saved[meter].get(&(Store::Net, b"draw-times".to_vec()));
    let times = times.and_then(|times| Some(cbor::decode(times).ok()?.as_array()?.len()));
    !is_drawn && times.is_some_and(|times| times >= DRAWS)
}

/// Whether a meter's register says that it submitted up to a moment that is still to come: a
/// process that starts cannot tell that its clock is wrong.
fn has_submitted_ahead(network: &Network, meter: usize) -> bool {
    let key = (Store::Register, b"submitted-until".to_vec());
    let until = network.saved[meter].get(&key).map(Vec::as_slice);
    let until = until.and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    until.is_some_and(|until| until > at(network.now).utc.as_millis())
}

/// Meters that were marked as lapsed at some time.
pub fn ever_lapsed(network: &Network) -> BTreeSet<usize> {
    let events = network.provider_events.iter();
    let lapsed = events.filter_map(|event| match event {
        ProviderEvent::Lapsed { meter } => network.meter_of(meter),
        _ => None,
    });
    lapsed.collect()
}

/// Whether a meter is marked as lapsed although it may still draw.
pub fn is_away(network: &Network, meter: usize) -> bool {
    let log = network.provider.membership();
    let id = network.meters[meter].id();
    let here = log.active(&id).and_then(|place| log.member(place));
    let places = (0..).zip(log.members()).filter(|(_, place)| place.id == id);
    let draws: usize = places
        .map(|(place, _)| log.graph().draws(place).len())
        .sum();
    here.is_some_and(Member::is_lapsed) && draws < DRAWS
}

/// Draws of one meter in a month, which is longer than a run.
const DRAWS: usize = 4;

/// Takes out, to a fixed point, who lacks neighbours to reveal with.
fn drop_lonely(network: &Network, harm: &Harm, expected: &mut Expected) {
    let log = network.provider.membership();
    loop {
        let lonely: Vec<usize> = expected
            .meters
            .iter()
            .copied()
            .filter(|meter| {
                let drawn = drawn(network, *meter);
                let Some(drawn) = drawn else { return false };
                let full = drawn.iter().filter(|peer| {
                    expected.meters.contains(peer) && !is_key_lost(network, harm, *meter, **peer)
                });
                let policy = log.genesis().policy.minimum_neighbours;
                full.count() < required(drawn.len(), policy)
            })
            .collect();
        if lonely.is_empty() {
            return;
        }
        for meter in lonely {
            expected.meters.remove(&meter);
            let reason = "too few of its neighbours can take part";
            expected.excused.insert(meter, reason);
        }
    }
}

/// Whether the disk of one end has forgotten the key that both had: one that was put back to before
/// a draw of the other does not know that there was one.
fn is_key_lost(network: &Network, harm: &Harm, meter: usize, peer: usize) -> bool {
    let forgetful = harm.forgetful.contains(&meter) || harm.forgetful.contains(&peer);
    forgetful && !(has_key(network, meter, peer) && has_key(network, peer, meter))
}

/// Whether a meter has an established edge with a peer on its disk.
fn has_key(network: &Network, meter: usize, peer: usize) -> bool {
    const ESTABLISHED: u64 = 3;
    let prefix = format!("edge/{}/", network.meters[peer].id());
    let mut edges = network.saved[meter]
        .iter()
        .filter(|((_, key), _)| key.starts_with(prefix.as_bytes()));
    edges.any(|(_, value)| {
        let edge = cbor::decode(value).ok();
        let stage = edge
            .as_ref()
            .and_then(|edge| edge.as_array()?.get(3)?.as_integer());
        stage.and_then(|stage| u64::try_from(stage).ok()) == Some(ESTABLISHED)
    })
}

/// Whom a meter drew; `None` before its first draw.
fn drawn(network: &Network, meter: usize) -> Option<Vec<usize>> {
    let log = network.provider.membership();
    let member = log.index_of(&network.meters[meter].id())?;
    log.graph().newest(member, u64::MAX)?;
    let drawn = log.graph().drawn(member, u64::MAX);
    let peers = drawn.iter();
    Some(
        peers
            .filter_map(|peer| network.meter_of(&log.member(*peer)?.id))
            .collect(),
    )
}
