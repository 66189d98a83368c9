//! The meter's handshakes and pair keys, one per edge of the key graph.

use std::collections::{BTreeMap, BTreeSet};

use super::{CLOSED_AFTER, Meter, MeterEvent, Purpose, saved};
use crate::alarm::{Alarm, Refusal};
use crate::cbor;
use crate::frame::{self, Notification};
use crate::graph::MemberIndex;
use crate::handshake::{Ephemeral, Pair};
use crate::identity::DeviceId;
use crate::membership::Membership;
use crate::output::Store;
use crate::pad::{PadKeys, PairKey};
use crate::reading::{BlindingSecret, MAX_SKIP_DAYS};
use crate::revocation::RevocationList;
use crate::time::{Day, Now, Round, Timestamp};
use crate::topic::{Topic, Up};

const SECOND_OFFER: &str = "it offers another key than the one that is in use";

const NO_SECRET: &str = "an all-zero shared secret";

/// An edge in one of its lives: the neighbour and the log entry at which it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EdgeKey {
    pub(super) peer: DeviceId,
    pub(super) origin: u64,
}

/// How far the handshake of an edge is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// Lower end: waits for the answer.
    Offered {
        ephemeral: Ephemeral,
        first_day: Day,
        offer: Vec<u8>,
    },
    /// Higher end: has a key, waits for the lower end's confirmation.
    Answered {
        key: PairKey,
        offer: [u8; 32],
        answer: Vec<u8>,
        /// When the lower end signed the offer, by its own clock.
        offered: Timestamp,
    },
    /// Lower end: has a key, waits for the higher end's confirmation.
    Confirming {
        key: PairKey,
        offer: [u8; 32],
        answer: [u8; 32],
        confirm: Vec<u8>,
    },
    /// Both ends have proved that they have the key. What this end has said is repeated if the
    /// other's disk has lost its last step: its confirmation, and the higher end's answer.
    Established {
        key: PairKey,
        offer: [u8; 32],
        confirm: Vec<u8>,
        answer: Vec<u8>,
    },
}

/// An edge and its key.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    pub(super) pair: Pair,
    pub(super) stage: Stage,
    /// The neighbour's place in the log; `None` while the key graph has no such edge.
    index: Option<MemberIndex>,
    /// Pad keys of the days in use; derived again when needed.
    pads: BTreeMap<Day, PadKeys>,
}

impl Edge {
    /// An edge of the key graph to the member `index`.
    pub(super) fn new(pair: Pair, stage: Stage, index: MemberIndex) -> Self {
        Self {
            index: Some(index),
            ..Self::saved(pair, stage)
        }
    }

    /// An edge that may have left the key graph: [`Meter::sync_edges`] finds out.
    pub(super) fn saved(pair: Pair, stage: Stage) -> Self {
        Self {
            pair,
            stage,
            index: None,
            pads: BTreeMap::new(),
        }
    }

    /// The pad keys of a day; `None` if the handshake is not done or the day's key is
    /// erased or not reached yet.
    pub(super) fn pads(&mut self, day: Day) -> Option<&PadKeys> {
        let Stage::Established { key, .. } = &self.stage else {
            return None;
        };
        if !self.pads.contains_key(&day) {
            let keys = key.on(day)?.pad_keys(self.pair.net);
            self.pads.insert(day, keys);
        }
        self.pads.get(&day)
    }

    /// The neighbour's place in the log, if this edge is in the key graph, its handshake
    /// done and the neighbour not revoked.
    fn live(&self, key: &EdgeKey, revoked: Option<&RevocationList>) -> Option<MemberIndex> {
        let established = matches!(self.stage, Stage::Established { .. });
        let usable = established && !is_revoked(revoked, &key.peer);
        self.index.filter(|_| usable)
    }

    /// Whether it has a key that lies too far back to get to a day.
    fn is_outdated(&self, day: Day) -> bool {
        match &self.stage {
            Stage::Established { key, .. } => is_outdated(key.day(), day),
            _ => false,
        }
    }

    /// Forgets the keys of days before `day`; true if the stored key changed.
    fn erase_before(&mut self, day: Day) -> bool {
        self.pads.retain(|kept, _| *kept >= day);
        // A handshake that is not confirmed needs its first key, and has hidden nothing yet.
        let Stage::Established { key, .. } = &mut self.stage else {
            return false;
        };
        match (key.day() < day).then(|| key.on(day)).flatten() {
            Some(later) => {
                *key = later;
                true
            }
            None => false,
        }
    }
}

impl Meter {
    fn pair_with(&self, peer: DeviceId, origin: [u8; 32]) -> Pair {
        let (lower, higher) = (self.id.min(peer), self.id.max(peer));
        Pair {
            net: self.net,
            lower,
            higher,
            origin,
        }
    }

    fn save_edge(&mut self, key: EdgeKey) {
        let value = self.edges.get(&key).map(Edge::to_bytes);
        self.persist(Store::Net, saved::edge_key(&key), value);
    }

    /// The edges this meter should have: those it drew, and the first 4·degree others
    /// that drew it.
    fn wanted_edges(&self) -> BTreeMap<EdgeKey, [u8; 32]> {
        let (Some(membership), Some(own)) = (&self.membership, self.index()) else {
            return BTreeMap::new();
        };
        let graph = membership.graph();
        let degree = usize::try_from(membership.genesis().policy.degree).unwrap_or(usize::MAX);
        let drawn = graph.drawn(own, u64::MAX);
        let incoming = graph.incoming(own);
        let accepted = incoming.iter().take(degree.saturating_mul(4));
        let mut wanted = BTreeMap::new();
        for index in drawn.iter().chain(accepted) {
            let origin = graph.origin(own, *index);
            let entry = origin.and_then(|origin| membership.hash_at(origin).map(|h| (origin, h)));
            if let (Some(peer), Some((origin, hash))) = (membership.member(*index), entry) {
                wanted.insert(
                    EdgeKey {
                        peer: peer.id,
                        origin,
                    },
                    hash,
                );
            }
        }
        wanted
    }

    /// Follows a draw that concerns this meter: offers for new edges, retires old ones.
    pub(super) fn follow_graph(&mut self, drawer: MemberIndex, now: Now) {
        let (Some(membership), Some(own)) = (&self.membership, self.index()) else {
            return;
        };
        let newest = membership.graph().newest(drawer, u64::MAX);
        let named = newest.is_some_and(|draw| draw.neighbours.binary_search(&own).is_ok());
        let drawer_id = membership.member(drawer).map(|member| member.id);
        let had = self.edges.keys().any(|key| Some(key.peer) == drawer_id);
        if drawer == own || named || had {
            self.sync_edges(now);
        }
    }

    /// Brings handshakes in line with the key graph, as soon as the clock is right:
    /// both ends must mean the same first day.
    pub(super) fn sync_edges(&mut self, now: Now) {
        self.find_edges_in_graph();
        self.edges_due = self.clock.check(now).is_err();
        // Who leaves begins nothing.
        if !self.edges_due && !self.is_leaving() {
            for (key, origin) in self.wanted_edges() {
                let revoked = self.is_revoked(&key.peer);
                if !self.edges.contains_key(&key) && self.id < key.peer && !revoked {
                    self.offer(key, origin, now);
                }
            }
        }
        self.drop_dead_edges();
    }

    /// Looks up for every edge whether the key graph still has it. Whatever changes the
    /// graph around this meter leads here, so that a round need not look.
    pub(super) fn find_edges_in_graph(&mut self) {
        let (Some(membership), Some(own)) = (&self.membership, self.index()) else {
            return;
        };
        for (key, edge) in &mut self.edges {
            let index = membership.index_of(&key.peer);
            edge.index = index.filter(|peer| lives(membership, own, *peer, key));
        }
    }

    /// Whether the key graph has an edge to a member in this life.
    pub(super) fn is_in_graph(&self, peer: MemberIndex, key: &EdgeKey) -> bool {
        match (&self.membership, self.index()) {
            (Some(membership), Some(own)) => lives(membership, own, peer, key),
            _ => false,
        }
    }

    pub(super) fn is_revoked(&self, peer: &DeviceId) -> bool {
        is_revoked(self.config.revoked.as_ref(), peer)
    }

    /// Erases the keys of edges that the graph has no more, each once every round that was
    /// submitted with it is final or closed.
    pub(super) fn drop_dead_edges(&mut self) {
        let wanted = self.wanted_edges();
        let used = self.rounds.values().flat_map(|own| &own.used);
        let used: BTreeSet<EdgeKey> = used.map(|(_, key)| *key).collect();
        let dead = self.edges.keys().filter(|key| !wanted.contains_key(key));
        let (waiting, gone): (Vec<EdgeKey>, Vec<EdgeKey>) =
            dead.partition(|key| used.contains(key));
        self.edges_dead = !waiting.is_empty();
        self.handshakes_told
            .retain(|(key, _)| wanted.contains_key(key));
        for key in gone {
            self.forget_edge(key);
        }
    }

    /// Erases the key of an edge, and repeats nothing of its handshake.
    pub(super) fn forget_edge(&mut self, key: EdgeKey) {
        self.edges.remove(&key);
        self.repeats.stop(&Purpose::Edge(key));
        self.persist(Store::Net, saved::edge_key(&key), None);
    }

    fn offer(&mut self, key: EdgeKey, origin: [u8; 32], now: Now) {
        let index = self.membership.as_ref().and_then(|m| m.index_of(&key.peer));
        let Some(index) = index else { return };
        let ephemeral = Ephemeral::new(self.random_secret());
        let pair = self.pair_with(key.peer, origin);
        let first_day = now.utc.day();
        let offer = pair.sign_offer(&self.config.key, &ephemeral, first_day, now.utc);
        let stage = Stage::Offered {
            ephemeral,
            first_day,
            offer: offer.clone(),
        };
        self.edges.insert(key, Edge::new(pair, stage, index));
        self.save_edge(key);
        self.publish_until_answered(Purpose::Edge(key), self.up_pair(key.peer), offer, now);
    }

    pub(super) fn up_pair(&self, peer: DeviceId) -> Topic {
        Topic::UpPair {
            net: self.net,
            meter: self.id,
            peer,
        }
    }

    /// One half of a handshake, relayed by the provider.
    pub(super) fn on_handshake(&mut self, topic: Topic, peer: DeviceId, payload: &[u8], now: Now) {
        if self.stopped.is_some() {
            return;
        }
        if self.is_revoked(&peer) {
            return self.refuse(topic, Refusal::Revoked);
        }
        let outcome = self.handshake_step(peer, payload, now);
        match outcome {
            Ok(()) => {}
            Err(HandshakeFault::Refused(reason)) => self.refuse(topic, reason),
            Err(HandshakeFault::Alarm(key, reason)) => {
                // It may come again with every message, and is told once.
                if self.handshakes_told.insert((key, reason)) {
                    self.alarm(Alarm::Handshake {
                        meter: peer,
                        reason,
                    });
                } else {
                    self.refuse(topic, Refusal::Rule(reason));
                }
            }
        }
        self.consider_entered(now);
    }

    fn handshake_step(
        &mut self,
        peer: DeviceId,
        payload: &[u8],
        now: Now,
    ) -> Result<(), HandshakeFault> {
        let membership = self.membership.as_ref().ok_or(Refusal::Edge)?;
        let (_, frame) = membership
            .verify_member_frame(payload)
            .map_err(Refusal::Frame)?;
        if frame.header().client != peer {
            return Err(Refusal::Topic.into());
        }
        match frame.header().notification {
            Notification::Exit => return Ok(self.on_former_neighbour(peer, frame, now)?),
            Notification::Erased => return Ok(self.on_erased(peer, frame)?),
            _ => {}
        }
        let (own, other) = (self.index(), membership.index_of(&peer));
        let (Some(own), Some(other)) = (own, other) else {
            return Err(Refusal::Edge.into());
        };
        let origin = membership.graph().origin(own, other).ok_or(Refusal::Edge)?;
        let hash = membership.hash_at(origin).ok_or(Refusal::Edge)?;
        let key = EdgeKey { peer, origin };
        let pair = self.pair_with(peer, hash);
        match frame.header().notification {
            Notification::Offer => self.on_offer((key, other), pair, frame, now),
            Notification::Answer => self.on_answer((key, other), pair, frame, now),
            Notification::Confirm => self.on_confirm((key, other), pair, frame, now),
            _ => Err(Refusal::Topic.into()),
        }
    }

    fn on_offer(
        &mut self,
        (key, index): (EdgeKey, MemberIndex),
        pair: Pair,
        frame: frame::Frame,
        now: Now,
    ) -> Result<(), HandshakeFault> {
        let at = frame.header().timestamp;
        let half = pair.read_offer(frame).map_err(Refusal::Frame)?;
        match self.edges.get(&key).map(|edge| &edge.stage) {
            Some(Stage::Answered { offer, answer, .. }) if *offer == half.digest => {
                let answer = answer.clone();
                self.publish(self.up_pair(key.peer), answer);
                return Ok(());
            }
            // The lower end has lost its state since, and this offer's key with it. Whoever sends
            // that again would have each end wait for another key.
            Some(Stage::Answered { offered, .. }) if at < *offered => {
                return Err(Refusal::Rule("an older offer than the one that is answered").into());
            }
            Some(Stage::Established { offer, answer, .. }) if *offer == half.digest => {
                let answer = answer.clone();
                if !answer.is_empty() {
                    self.publish(self.up_pair(key.peer), answer);
                }
                return Ok(());
            }
            // The lower end has lost the key that both had. It stays in use here: its pads may
            // be in submissions, and a second key for one edge would hide less than either.
            Some(Stage::Established { .. }) => {
                return Err(HandshakeFault::Alarm(key, SECOND_OFFER));
            }
            // The lower end has lost its state before it proved a key: none has hidden anything.
            Some(_) | None => {}
        }
        if !self.wanted_edges().contains_key(&key) {
            return Err(Refusal::Edge.into());
        }
        if self.clock.check(now).is_err() {
            return Err(Refusal::Rule("the clock is not right yet").into());
        }
        let today = now.utc.day();
        if half.first_day.0.abs_diff(today.0) > 1 {
            return Err(Refusal::Rule("the first day of the offer is not about today").into());
        }
        let ephemeral = Ephemeral::new(self.random_secret());
        let answer = pair.sign_answer(&self.config.key, &ephemeral, &half, now.utc);
        let digest = frame::digest_of(&answer).map_err(Refusal::Frame)?;
        let derived = Pair::derive(
            &ephemeral,
            &half.public,
            &half.digest,
            &digest,
            half.first_day,
        );
        let pair_key = derived.ok_or(HandshakeFault::Alarm(key, NO_SECRET))?;
        let stage = Stage::Answered {
            key: pair_key,
            offer: half.digest,
            answer: answer.clone(),
            offered: at,
        };
        self.edges.insert(key, Edge::new(pair, stage, index));
        self.save_edge(key);
        self.repeats.stop(&Purpose::Edge(key));
        self.publish(self.up_pair(key.peer), answer);
        Ok(())
    }

    fn on_answer(
        &mut self,
        (key, index): (EdgeKey, MemberIndex),
        pair: Pair,
        frame: frame::Frame,
        now: Now,
    ) -> Result<(), HandshakeFault> {
        let edge = self.edges.get(&key).ok_or(Refusal::Edge)?;
        let (ephemeral, first_day, offer) = match &edge.stage {
            Stage::Offered {
                ephemeral,
                first_day,
                offer,
            } => (ephemeral, first_day, offer),
            Stage::Established { confirm, .. } => {
                let confirm = confirm.clone();
                if pair.lower == self.id && !confirm.is_empty() {
                    self.publish(self.up_pair(key.peer), confirm);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        let offer = frame::digest_of(offer).map_err(Refusal::Frame)?;
        let half = pair.read_answer(frame, &offer).map_err(Refusal::Frame)?;
        if half.first_day != *first_day {
            return Err(Refusal::Rule("the answer names another first day").into());
        }
        let derived = Pair::derive(ephemeral, &half.public, &offer, &half.digest, *first_day);
        let pair_key = derived.ok_or(HandshakeFault::Alarm(key, NO_SECRET))?;
        let tag = Pair::tag(&pair_key, self.id, &offer, &half.digest);
        let confirm = pair.sign_confirm(&self.config.key, &tag, now.utc);
        let stage = Stage::Confirming {
            key: pair_key,
            offer,
            answer: half.digest,
            confirm: confirm.clone(),
        };
        self.edges.insert(key, Edge::new(pair, stage, index));
        self.save_edge(key);
        self.publish_until_answered(Purpose::Edge(key), self.up_pair(key.peer), confirm, now);
        Ok(())
    }

    fn on_confirm(
        &mut self,
        (key, index): (EdgeKey, MemberIndex),
        pair: Pair,
        frame: frame::Frame,
        now: Now,
    ) -> Result<(), HandshakeFault> {
        let tag = pair.read_confirm(frame, key.peer).map_err(Refusal::Frame)?;
        let edge = self.edges.get(&key).ok_or(Refusal::Edge)?;
        let wrong = HandshakeFault::Alarm(key, "a wrong confirmation tag");
        let established = match &edge.stage {
            Stage::Answered {
                key: pair_key,
                offer,
                answer,
                ..
            } => {
                let digest = frame::digest_of(answer).map_err(Refusal::Frame)?;
                if !tag.equals(Pair::tag(pair_key, key.peer, offer, &digest).expose()) {
                    return Err(wrong);
                }
                let own = Pair::tag(pair_key, self.id, offer, &digest);
                let confirm = pair.sign_confirm(&self.config.key, &own, now.utc);
                Stage::Established {
                    key: pair_key.clone(),
                    offer: *offer,
                    confirm,
                    answer: answer.clone(),
                }
            }
            Stage::Confirming {
                key: pair_key,
                offer,
                answer,
                confirm,
            } => {
                if !tag.equals(Pair::tag(pair_key, key.peer, offer, answer).expose()) {
                    return Err(wrong);
                }
                Stage::Established {
                    key: pair_key.clone(),
                    offer: *offer,
                    confirm: confirm.clone(),
                    answer: Vec::new(),
                }
            }
            Stage::Established { confirm, .. } => {
                let confirm = confirm.clone();
                // The lower end asks, by its own; it is not asked back.
                if pair.higher == self.id && !confirm.is_empty() {
                    self.publish(self.up_pair(key.peer), confirm);
                }
                return Ok(());
            }
            Stage::Offered { .. } => return Err(Refusal::Rule("a confirmation too early").into()),
        };
        let reply = match &established {
            Stage::Established { confirm, .. } if pair.higher == self.id => confirm.clone(),
            _ => Vec::new(),
        };
        self.edges.insert(key, Edge::new(pair, established, index));
        self.repeats.stop(&Purpose::Edge(key));
        self.save_edge(key);
        if !reply.is_empty() {
            self.publish(self.up_pair(key.peer), reply);
        }
        Ok(())
    }

    /// The edges that are in the key graph, have a key and are not revoked, with the
    /// neighbour's place in the log.
    pub(super) fn live_edges(&self) -> impl Iterator<Item = (EdgeKey, MemberIndex, &Edge)> {
        let revoked = self.config.revoked.as_ref();
        let edges = self.edges.iter();
        edges.filter_map(move |(key, edge)| Some((*key, edge.live(key, revoked)?, edge)))
    }

    /// As [`Self::live_edges`], to derive pads.
    pub(super) fn live_edges_mut(
        &mut self,
    ) -> impl Iterator<Item = (EdgeKey, MemberIndex, &mut Edge)> {
        let revoked = self.config.revoked.as_ref();
        let edges = self.edges.iter_mut();
        edges.filter_map(move |(key, edge)| Some((*key, edge.live(key, revoked)?, edge)))
    }

    /// The members that this meter's newest draw named, ascending, less those that left.
    pub(super) fn drawn(&self) -> Vec<MemberIndex> {
        match (&self.membership, self.index()) {
            (Some(membership), Some(own)) => membership.graph().drawn(own, u64::MAX),
            _ => Vec::new(),
        }
    }

    /// The live edges to members among `drawn`, which ascends.
    pub(super) fn live_of(
        &self,
        drawn: &[MemberIndex],
    ) -> impl Iterator<Item = (EdgeKey, MemberIndex)> {
        self.live_edges()
            .map(|(key, index, _)| (key, index))
            .filter(|(_, index)| drawn.binary_search(index).is_ok())
    }

    /// Ids of the drawn neighbours that could take part now, in the order of the log, for
    /// the household's page.
    pub fn live_neighbours(&self) -> Vec<DeviceId> {
        let drawn = self.drawn();
        let live = self.live_of(&drawn).map(|(key, index)| (index, key.peer));
        live.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// Drawn neighbours, and how many of them have a key.
    pub(super) fn drawn_and_live(&self) -> (usize, usize) {
        let drawn = self.drawn();
        let live = self.live_of(&drawn).count();
        (drawn.len(), live)
    }

    /// Tells the provider once enough handshakes are done (notification 2).
    pub(super) fn consider_entered(&mut self, now: Now) {
        if self.entered || self.draw.is_some() || self.is_leaving() {
            return;
        }
        let (drawn, live) = self.drawn_and_live();
        let required = usize::try_from(self.required(drawn)).unwrap_or(usize::MAX);
        if drawn == 0 || live < required {
            return;
        }
        self.entered = true;
        let data = cbor::array([cbor::uint(u32::try_from(live).unwrap_or(u32::MAX))]);
        let frame = frame::sign(
            &self.config.key,
            self.net,
            now.utc,
            Notification::Entered,
            data,
        );
        self.publish_until_answered(Purpose::Entered, self.up(Up::Entered), frame, now);
        self.event(MeterEvent::Entered { neighbours: live });
    }

    /// Ratchets stored keys past the days whose rounds are all closed: whoever seizes
    /// the meter learns nothing of them.
    pub(super) fn erase_old_keys(&mut self, now: Now) {
        let Some(membership) = &self.membership else {
            return;
        };
        if !now.synchronised || self.clock.check(now).is_err() {
            return;
        }
        let period = membership.genesis().policy.period;
        let oldest = now.utc.minus(CLOSED_AFTER).minus(period.duration()).day();
        if self.erased_before >= oldest {
            return;
        }
        self.erased_before = oldest;
        self.replace_outdated(oldest, now);
        let mut changed = Vec::new();
        for (key, edge) in &mut self.edges {
            if edge.erase_before(oldest) {
                changed.push(*key);
            }
        }
        for key in changed {
            self.save_edge(key);
        }
        self.renew_offers(now);
        if let Some(device) = &mut self.device
            && device.blinding.day() < oldest
            && let Some(later) = device.blinding.on(oldest)
        {
            device.blinding = later;
            let value = device.to_bytes();
            self.persist(Store::Net, saved::DEVICE.to_vec(), Some(value));
        }
    }

    /// Replaces secrets that lie too far back to get to `oldest`, so that they are erased,
    /// too. The neighbours' ends of the pair keys have gone on without this meter.
    fn replace_outdated(&mut self, oldest: Day, now: Now) {
        let blinding = self.device.as_ref().map(|device| device.blinding.day());
        if blinding.is_some_and(|day| is_outdated(day, oldest)) {
            // Stored before anything is erased: who dies in between leaves all the same.
            self.leave_outdated(now);
            let blinding = BlindingSecret::new(oldest, self.random_secret());
            if let Some(device) = &mut self.device {
                device.blinding = blinding;
                let value = device.to_bytes();
                self.persist(Store::Net, saved::DEVICE.to_vec(), Some(value));
            }
        }
        let edges = self.edges.iter();
        let outdated = edges.filter(|(_, edge)| edge.is_outdated(oldest));
        for key in outdated.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.forget_edge(key);
        }
    }

    /// Offers anew where an offer was not answered for so long that its first day is no more
    /// about today: it would be refused.
    fn renew_offers(&mut self, now: Now) {
        if self.stopped.is_some() {
            return;
        }
        let Day(today) = now.utc.day();
        let stale = |edge: &Edge| match edge.stage {
            Stage::Offered { first_day, .. } => first_day.0.abs_diff(today) > 1,
            _ => false,
        };
        let edges = self.edges.iter().filter(|(_, edge)| stale(edge));
        for key in edges.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.forget_edge(key);
        }
        self.sync_edges(now);
    }

    /// The day whose keys a round uses.
    pub(super) fn day_of(&self, round: Round) -> Option<Day> {
        Some(round.day(self.membership.as_ref()?.genesis().policy.period))
    }
}

fn lives(membership: &Membership, own: MemberIndex, peer: MemberIndex, key: &EdgeKey) -> bool {
    membership.graph().origin(own, peer) == Some(key.origin)
}

/// Whether a secret of `day` is too old to be ratcheted to `wanted`.
fn is_outdated(day: Day, wanted: Day) -> bool {
    wanted.0.saturating_sub(day.0) > MAX_SKIP_DAYS
}

fn is_revoked(list: Option<&RevocationList>, peer: &DeviceId) -> bool {
    list.is_some_and(|list| list.contains(peer))
}

enum HandshakeFault {
    Refused(Refusal),
    Alarm(EdgeKey, &'static str),
}

impl From<Refusal> for HandshakeFault {
    fn from(reason: Refusal) -> Self {
        Self::Refused(reason)
    }
}
