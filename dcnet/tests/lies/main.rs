//! What a provider, a corrupted meter or the network may lie about, and what becomes of it.

mod handshakes;
mod log;
mod members;
mod rounds;
#[path = "../support/mod.rs"]
mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use curve25519_dalek::scalar::Scalar;
use dcnet::aggregate::Disruption;
use dcnet::alarm::{Alarm, Refusal};
use dcnet::cbor::{self, Fields};
use dcnet::frame::{self, Frame, FrameError, Notification};
use dcnet::identity::{DeviceId, DeviceKey, Role};
use dcnet::membership::{EntryError, EntryKind, Membership, sign_exit, sign_registration};
use dcnet::meter::{Meter, MeterCommand, MeterConfig, MeterEvent};
use dcnet::output::{Input, StateMachine};
use dcnet::provider::{Dropped, NoRoster, ProviderCommand, ProviderEvent};
use dcnet::reveal::Reveal;
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::superposition::Submission;
use dcnet::time::Day;
use dcnet::topic::{All, Inbox, Topic, Up};

use simulation::network::{Faults, Network};
use simulation::world::{Authority, World, at, policy};
use support::join_of;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const VICTIM: usize = 0;

fn start() -> Network {
    let world = World::new(5, policy(4), &["import"]);
    let mut network = Network::new(world, Faults::default(), 1);
    network.keep_published = true;
    network
}

/// A net whose first rounds are over.
fn running() -> Network {
    let mut network = start();
    network.run_until(3 * MINUTE + 30 * SECOND);
    assert!(network.revealed(VICTIM, network.last_round()));
    network
}

/// A Join of a meter that nobody knows yet, as the next entry of a log.
fn strangers_join(network: &Network, log: &Membership) -> Vec<u8> {
    let (net, utc) = (network.world.net, at(network.now).utc);
    let (key, certificate) = network.world.authority.issue(Role::Meter, Some(net));
    let registration = sign_registration(&key, &certificate, net, utc);
    let body = cbor::array([cbor::bytes(&registration)]);
    log.sign_next(&network.world.provider.key, EntryKind::Join, body, utc)
}

fn refusals(network: &Network, meter: usize) -> Vec<Refusal> {
    let events = network.meter_events[meter].iter();
    let refusal = |event: &MeterEvent| match event {
        MeterEvent::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    events.filter_map(refusal).collect()
}

fn provider_refusals(network: &Network) -> Vec<Refusal> {
    let events = network.provider_events.iter();
    let refusal = |event: &ProviderEvent| match event {
        ProviderEvent::Refused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    events.filter_map(refusal).collect()
}

fn provider_alarms(network: &Network) -> Vec<Alarm> {
    let events = network.provider_events.iter();
    let alarm = |event: &ProviderEvent| match event {
        ProviderEvent::Alarm(alarm) => Some(alarm.clone()),
        _ => None,
    };
    events.filter_map(alarm).collect()
}

fn speaks_next_round(network: &mut Network) -> bool {
    let end = (network.now / MINUTE + 1) * MINUTE + 30 * SECOND;
    network.run_until(end);
    network.submitted(VICTIM, network.last_round())
}

fn kind_of(payload: &[u8]) -> Notification {
    let frame = frame::Unverified::parse(payload).unwrap();
    frame.claimed().notification
}

fn place(network: &Network, id: DeviceId) -> usize {
    network.meters.iter().position(|m| m.id() == id).unwrap()
}

fn inbox(network: &Network, to: DeviceId, from: DeviceId) -> Topic {
    Topic::InboxPair {
        net: network.world.net,
        meter: to,
        peer: from,
    }
}
