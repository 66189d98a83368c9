//! The key graph: who shares a pair key with whom, drawn by coin-flip
//! (`docs/protocol.md`, "Draws").

use std::collections::BTreeMap;

use crate::cbor;
use crate::identity::DeviceId;
use crate::labels;
use crate::time::Timestamp;
use crate::topic::NetId;

/// A member's place in the log: the n-th Join, from 0.
pub type MemberIndex = u32;

/// A finished draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Index of the Draw entry in the log.
    pub entry: u64,
    /// When the provider signed that entry.
    pub at: Timestamp,
    /// How many candidates there were.
    pub candidates: u32,
    /// The drawn neighbours, ascending.
    pub neighbours: Vec<MemberIndex>,
}

/// `SHA-256(CBOR[label, net, meter id, nonce])`: what a draw request commits to.
pub fn draw_commitment(net: NetId, meter: DeviceId, nonce: &[u8; 32]) -> [u8; 32] {
    cbor::labelled_hash(
        labels::DRAW_COMMITMENT,
        [
            cbor::bytes(&net.0),
            cbor::bytes(&meter.0),
            cbor::bytes(nonce),
        ],
    )
}

/// `SHA-256(CBOR[label, net, hash(Invite entry), meter id, nonce])`.
pub fn beacon(net: NetId, invite: &[u8; 32], meter: DeviceId, nonce: &[u8; 32]) -> [u8; 32] {
    cbor::labelled_hash(
        labels::BEACON,
        [
            cbor::bytes(&net.0),
            cbor::bytes(invite),
            cbor::bytes(&meter.0),
            cbor::bytes(nonce),
        ],
    )
}

/// The `degree` candidates with the smallest `SHA-256(CBOR[label, beacon, candidate id])`,
/// in ascending order of their index. All of them when there are no more than that.
pub fn draw_neighbours(
    beacon: &[u8; 32],
    candidates: impl Iterator<Item = (MemberIndex, DeviceId)>,
    degree: usize,
) -> Vec<MemberIndex> {
    let mut ranked: Vec<([u8; 32], MemberIndex)> = candidates
        .map(|(index, id)| {
            let items = [cbor::bytes(beacon), cbor::bytes(&id.0)];
            (cbor::labelled_hash(labels::CANDIDATE, items), index)
        })
        .collect();
    if ranked.len() > degree {
        ranked.select_nth_unstable(degree);
        ranked.truncate(degree);
    }
    // Copied: made in place it would keep the room of all candidates for as long as the log.
    let mut drawn: Vec<MemberIndex> = ranked.iter().map(|(_, index)| *index).collect();
    drawn.sort_unstable();
    drawn
}

/// All draws of a net. An edge lives while the newest draw of one of its ends
/// names the other, and both are members.
#[derive(Clone, Debug, Default)]
pub struct KeyGraph {
    /// Every draw of each member, oldest first.
    draws: BTreeMap<MemberIndex, Vec<Draw>>,
    /// For each member the draws that name it: (drawer, entry), oldest first.
    naming: BTreeMap<MemberIndex, Vec<(MemberIndex, u64)>>,
    /// The entry at which the present life of an edge began, by (lower, higher) index.
    origins: BTreeMap<(MemberIndex, MemberIndex), u64>,
    /// The entry at which a member ended.
    ended: BTreeMap<MemberIndex, u64>,
}

fn pair(a: MemberIndex, b: MemberIndex) -> (MemberIndex, MemberIndex) {
    (a.min(b), a.max(b))
}

impl KeyGraph {
    /// Adds the newest draw of `drawer`.
    pub fn add(&mut self, drawer: MemberIndex, draw: Draw) {
        let before: Vec<MemberIndex> = self
            .newest(drawer, u64::MAX)
            .map_or_else(Vec::new, |old| old.neighbours.clone());
        for peer in &draw.neighbours {
            self.naming
                .entry(*peer)
                .or_default()
                .push((drawer, draw.entry));
            // A candidate may have left between the Invite and the Draw.
            if !self.ended.contains_key(peer) {
                self.origins
                    .entry(pair(drawer, *peer))
                    .or_insert(draw.entry);
            }
        }
        let named: Vec<MemberIndex> = draw.neighbours.clone();
        self.draws.entry(drawer).or_default().push(draw);
        for peer in before {
            let drawn_back = self
                .newest(peer, u64::MAX)
                .is_some_and(|draw| draw.neighbours.binary_search(&drawer).is_ok());
            if named.binary_search(&peer).is_err() && !drawn_back {
                self.origins.remove(&pair(drawer, peer));
            }
        }
    }

    /// Ends a member at a log entry, and with it all its edges.
    pub fn remove(&mut self, member: MemberIndex, entry: u64) {
        for peer in self.neighbours(member, u64::MAX) {
            self.origins.remove(&pair(member, peer));
        }
        self.ended.insert(member, entry);
    }

    fn is_ended(&self, member: MemberIndex, at: u64) -> bool {
        self.ended.get(&member).is_some_and(|entry| *entry <= at)
    }

    /// The members that the newest draw of a member named, as of log entry `at`, less
    /// those that ended by then: d is their number.
    pub fn drawn(&self, member: MemberIndex, at: u64) -> Vec<MemberIndex> {
        let newest = self.newest(member, at).map_or(&[][..], |d| &d.neighbours);
        let here = newest.iter().filter(|peer| !self.is_ended(**peer, at));
        here.copied().collect()
    }

    /// Every draw of a member, oldest first.
    pub fn draws(&self, member: MemberIndex) -> &[Draw] {
        self.draws.get(&member).map_or(&[], Vec::as_slice)
    }

    /// The newest draw of a member as of log entry `at`.
    pub fn newest(&self, member: MemberIndex, at: u64) -> Option<&Draw> {
        self.draws
            .get(&member)?
            .iter()
            .rev()
            .find(|draw| draw.entry <= at)
    }

    /// The neighbours of a member as of log entry `at`, ascending: drawn by it or by
    /// them. None once it has ended.
    pub fn neighbours(&self, member: MemberIndex, at: u64) -> Vec<MemberIndex> {
        if self.is_ended(member, at) {
            return Vec::new();
        }
        let mut all = self.drawn(member, at);
        for (drawer, entry) in self.naming.get(&member).into_iter().flatten() {
            let current =
                *entry <= at && self.newest(*drawer, at).is_some_and(|d| d.entry == *entry);
            if current && !self.is_ended(*drawer, at) {
                all.push(*drawer);
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The members whose newest draw names `member` and that it did not draw itself,
    /// oldest draw first.
    pub fn incoming(&self, member: MemberIndex) -> Vec<MemberIndex> {
        let own = self.newest(member, u64::MAX);
        let mut all = Vec::new();
        for (drawer, entry) in self.naming.get(&member).into_iter().flatten() {
            let current = self
                .newest(*drawer, u64::MAX)
                .is_some_and(|d| d.entry == *entry);
            let drawn = own.is_some_and(|draw| draw.neighbours.binary_search(drawer).is_ok());
            if current && !drawn && !self.is_ended(*drawer, u64::MAX) {
                all.push(*drawer);
            }
        }
        all
    }

    /// The entry at which the present life of an edge began; `None` if there is no edge.
    pub fn origin(&self, a: MemberIndex, b: MemberIndex) -> Option<u64> {
        self.origins.get(&pair(a, b)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(entry: u64, neighbours: &[MemberIndex]) -> Draw {
        Draw {
            entry,
            at: Timestamp(0),
            candidates: 9,
            neighbours: neighbours.to_vec(),
        }
    }

    #[test]
    fn an_edge_lives_while_one_newest_draw_names_it() {
        let mut graph = KeyGraph::default();
        graph.add(0, draw(1, &[1, 2]));
        graph.add(1, draw(2, &[0]));
        assert_eq!(graph.neighbours(1, 9), [0]);
        graph.add(0, draw(3, &[2]));
        assert_eq!(
            graph.origin(0, 1),
            Some(1),
            "1 still names 0, so the edge keeps its key"
        );
        assert_eq!(graph.neighbours(0, 9), [1, 2]);
        graph.add(1, draw(4, &[2]));
        assert_eq!(graph.origin(0, 1), None);
        assert_eq!(graph.neighbours(0, 9), [2]);
        graph.add(1, draw(5, &[0]));
        assert_eq!(graph.origin(0, 1), Some(5), "a new life is a new edge");
    }

    #[test]
    fn neighbours_are_taken_at_the_named_entry() {
        let mut graph = KeyGraph::default();
        graph.add(0, draw(1, &[1, 2]));
        graph.add(3, draw(2, &[0]));
        graph.add(0, draw(3, &[4]));
        assert_eq!(graph.neighbours(0, 0), [] as [MemberIndex; 0]);
        assert_eq!(graph.neighbours(0, 1), [1, 2]);
        assert_eq!(graph.neighbours(0, 2), [1, 2, 3]);
        assert_eq!(graph.neighbours(0, 3), [3, 4]);
        assert_eq!(graph.incoming(0), [3]);
    }

    #[test]
    fn a_draw_takes_the_degree_smallest_ranks_and_depends_on_the_beacon() {
        let candidates = || (0..100).map(|i| (i, DeviceId([u8::try_from(i).unwrap(); 16])));
        let one = draw_neighbours(&[1; 32], candidates(), 10);
        assert_eq!(one.len(), 10);
        assert!(one.is_sorted());
        assert!(one.capacity() < 20, "room for {}", one.capacity());
        assert_ne!(one, draw_neighbours(&[2; 32], candidates(), 10));
        assert_eq!(draw_neighbours(&[1; 32], candidates(), 100).len(), 100);
    }
}
