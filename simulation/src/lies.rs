//! Rosters and frames that a hostile provider makes up.

use std::collections::BTreeSet;

use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::identity::Role;
use dcnet::membership::{EntryKind, sign_registration};
use dcnet::output::Message;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::topic::Topic;

use crate::fault::Lie;
use crate::network::Network;
use crate::plan::Choice;
use crate::world::at;

/// The provider's roster with something false in it for one meter, signed; `None` if there
/// is nothing to lie about.
pub(crate) fn falsify(
    network: &Network,
    roster: &Roster,
    lie: Lie,
    victim: usize,
    choice: &mut Choice,
) -> Option<Vec<u8>> {
    let log = network.provider.membership();
    let own = log.index_of(&network.meters[victim].id())?;
    let others: Vec<u32> = roster.members().filter(|member| *member != own).collect();
    let other = *others.get(choice.index(others.len()))?;
    let mut gone = BTreeSet::new();
    let mut lied = roster.clone();
    match lie {
        Lie::Omission => drop(gone.insert(other)),
        Lie::SmallGroup => gone.extend(others.iter().step_by(2)),
        Lie::HalfOpen => {
            let claim = HalfOpen {
                user: other,
                non_user: own,
            };
            if roster.half_open.contains(&claim) || !roster.includes(own) {
                return None;
            }
            lied.half_open.push(claim);
            lied.half_open.sort();
        }
        Lie::Digest => {
            let place = roster.members().position(|member| member == own)?;
            lied.digests.get_mut(place)?[0] ^= 1;
        }
        Lie::Chain => lied.previous = Some([choice.within(0, 255).to_le_bytes()[0]; 32]),
    }
    let mut included = Bitmap::empty(usize::try_from(log.places_at(roster.head_index)).ok()?);
    let kept = roster.members().zip(&lied.digests);
    let kept: Vec<_> = kept.filter(|(member, _)| !gone.contains(member)).collect();
    for (member, _) in &kept {
        included.set(usize::try_from(*member).ok()?);
    }
    let digests = kept.iter().map(|(_, digest)| **digest).collect();
    lied.half_open
        .retain(|edge| !gone.contains(&edge.user) && !gone.contains(&edge.non_user));
    lied.included = included;
    lied.digests = digests;
    Some(network.sign_roster(&lied))
}

/// A Join of a stranger in the place of the log's newest entry, and that place; `None` if
/// there is only the Genesis.
pub(crate) fn fork(network: &Network) -> Option<(u64, Vec<u8>)> {
    let index = network.provider.membership().head().index;
    let before = usize::try_from(index).ok()?.checked_sub(1)?;
    let log = network.log_until(before);
    let (net, utc) = (network.world.net, at(network.now).utc);
    let (key, certificate) = network.world.authority.issue(Role::Meter, Some(net));
    let registration = sign_registration(&key, &certificate, net, utc);
    let body = cbor::array([cbor::bytes(&registration)]);
    let provider = network.provider_key_at(index - 1);
    Some((index, log.sign_next(provider, EntryKind::Join, body, utc)))
}

/// Whether a message is for one process: a meter, or the provider.
fn is_for(network: &Network, message: &Message, to: Option<usize>) -> bool {
    match message.topic {
        Topic::Up { .. } | Topic::UpPair { .. } => to.is_none(),
        Topic::All { .. } => to.is_some(),
        Topic::Inbox { meter, .. } | Topic::InboxPair { meter, .. } => {
            to.is_some() && network.meter_of(&meter) == to
        }
        Topic::Public { .. } => false,
    }
}

/// Messages from before that were for one process, as the network may repeat them.
pub(crate) fn old_messages(
    network: &Network,
    to: Option<usize>,
    count: usize,
    choice: &mut Choice,
) -> Vec<Message> {
    let trace = network.trace.as_deref().unwrap_or_default();
    let all = trace.iter().map(|traced| &traced.message);
    let fitting: Vec<&Message> = all.filter(|message| is_for(network, message, to)).collect();
    if fitting.is_empty() {
        return Vec::new();
    }
    (0..count)
        .map(|_| fitting[choice.index(fitting.len())].clone())
        .collect()
}

/// Spoils a message: wrong bits, an end that is missing or too long, or another's topic.
pub(crate) fn spoil(network: &Network, message: &mut Message, choice: &mut Choice) {
    let payload = &mut message.payload;
    let place = choice.index(payload.len());
    match choice.within(0, 4) {
        0 | 1 => payload[place] ^= 1 << choice.within(0, 7),
        2 => payload.truncate(place),
        3 => payload.push(0),
        _ => {
            let trace = network.trace.as_deref().unwrap_or_default();
            let other = &trace[choice.index(trace.len())].message.payload;
            // The same kind of frame on its own topic would be no garbage.
            message.payload = other.iter().map(|byte| byte ^ 0x40).collect();
        }
    }
}
