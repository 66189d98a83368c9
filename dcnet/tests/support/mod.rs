//! What tests of several files do to a net.
#![allow(dead_code, reason = "each test uses a part of it")]

use dcnet::membership::{EntryError, EntryKind};
use dcnet::meter::MeterCommand;
use dcnet::output::{Input, Store};
use dcnet::topic::{All, Inbox, Topic};
use simulation::network::Network;
use simulation::world::at;

pub fn leave(network: &mut Network, meter: usize) {
    network.input_meter(meter, Input::Command(MeterCommand::Leave));
}

/// Hash of the Join entry of a meter's present membership.
pub fn join_of(network: &Network, meter: usize) -> [u8; 32] {
    let log = network.provider.membership();
    let place = log.member(network.member(meter)).unwrap();
    log.hash_at(place.joined).unwrap()
}

/// An entry of the provider's own making, if a log takes it.
pub fn entry(
    network: &Network,
    kind: EntryKind,
    body: ciborium::Value,
) -> Result<Vec<u8>, EntryError> {
    let mut log = network.provider.membership().clone();
    let utc = at(network.now).utc;
    let entry = log.sign_next(&network.world.provider.key, kind, body, utc);
    log.append(&entry)?;
    Ok(entry)
}

/// Appends an entry of the provider's own making to its log.
pub fn append(
    network: &mut Network,
    kind: EntryKind,
    body: ciborium::Value,
) -> Result<(), EntryError> {
    let entry = entry(network, kind, body)?;
    network.saved_net.entries.push(entry);
    network.restart_provider();
    Ok(())
}

/// The pair keys and handshakes that a meter has stored.
pub fn pair_keys(network: &Network, meter: usize) -> usize {
    let records = network.saved[meter].keys();
    records
        .filter(|(store, key)| *store == Store::Net && key.starts_with(b"edge/"))
        .count()
}

pub fn is_roster(topic: &Topic) -> bool {
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
