//! Meters that give a provider and a broker all the work of real ones without doing a meter's
//! own. Keys, log entries, signatures, commitments and edge bitmaps are real; instead of
//! pads each meter adds a random opening and reveals just that. For measurements: they check
//! nothing.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use curve25519_dalek::scalar::Scalar;
use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::commitment::{Commitment, commit};
use dcnet::frame::{self, Frame, Notification};
use dcnet::graph::draw_commitment;
use dcnet::identity::{Certificate, DeviceKey};
use dcnet::membership::{EntryKind, sign_registration};
use dcnet::opening::Opening;
use dcnet::pad::RosterHash;
use dcnet::reveal::Reveal;
use dcnet::superposition::{Share, Submission};
use dcnet::time::{Round, Timestamp};
use dcnet::topic::NetId;

/// An opening that follows from `seed`.
pub fn random(seed: u64) -> Opening {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut scalar = || {
        let mut bytes = [0; 64];
        rng.fill_bytes(&mut bytes);
        Scalar::from_bytes_mod_order_wide(&bytes)
    };
    Opening {
        value: scalar(),
        blinding: scalar(),
    }
}

/// A synthetic meter. Its reading is the same in every round.
pub struct SyntheticMeter {
    /// Its key.
    pub key: DeviceKey,
    /// What it commits to.
    pub reading: Opening,
    /// The fewest meters with which its submissions ask to be added up; at least the policy's.
    pub minimum_group: u32,
    edges: Vec<u8>,
    commitment: Commitment,
}

impl SyntheticMeter {
    /// A meter that has a key with each of so many neighbours, and uses `energy` mWh per round, in a
    /// sum of at least 30.
    pub fn new(key: DeviceKey, neighbours: usize, energy: u64) -> Self {
        let mut edges = Bitmap::empty(neighbours);
        (0..neighbours).for_each(|place| edges.set(place));
        let reading = Opening {
            value: Scalar::from(energy),
            blinding: random(energy).blinding,
        };
        Self {
            key,
            minimum_group: 30,
            edges: edges.as_bytes().to_vec(),
            reading,
            commitment: commit(&reading),
        }
    }

    /// A submission of a round as of a log head, hidden by `mask`.
    pub fn submission(
        &self,
        net: NetId,
        round: Round,
        log_head: [u8; 32],
        mask: Opening,
        at: Timestamp,
    ) -> Vec<u8> {
        let submission = Submission {
            sender: self.key.id(),
            round,
            log_head,
            minimum_group: self.minimum_group,
            minimum_neighbours: 29,
            edges: self.edges.clone(),
            shares: vec![Share {
                superposition: self.reading + mask,
                commitment: self.commitment,
            }],
            digest: [0; 32],
        };
        submission.sign(&self.key, net, at)
    }

    /// The reveal of that mask for a roster.
    pub fn reveal(
        &self,
        net: NetId,
        round: Round,
        roster: RosterHash,
        mask: Opening,
        at: Timestamp,
    ) -> Vec<u8> {
        let reveal = Reveal {
            sender: self.key.id(),
            round,
            roster,
            openings: vec![mask],
        };
        reveal.sign(&self.key, net, at)
    }
}

/// An entry of a log.
pub struct SyntheticEntry {
    /// Its kind.
    pub kind: EntryKind,
    /// Its hash.
    pub hash: [u8; 32],
    /// Its frame.
    pub frame: Vec<u8>,
}

/// A log in the making, by the provider's own key.
pub struct SyntheticLog {
    net: NetId,
    provider: DeviceKey,
    at: Timestamp,
    head: [u8; 32],
    /// What follows the genesis, in order; the first has index 1.
    pub entries: Vec<SyntheticEntry>,
}

impl SyntheticLog {
    /// A log of which only the genesis is there. All entries are dated `at`.
    pub fn new(net: NetId, provider: DeviceKey, genesis: [u8; 32], at: Timestamp) -> Self {
        Self {
            net,
            provider,
            at,
            head: genesis,
            entries: Vec::new(),
        }
    }

    /// Hash of the newest entry.
    pub fn head(&self) -> [u8; 32] {
        self.head
    }

    /// A meter joins.
    ///
    /// # Panics
    /// Never in practice: it reads what it has signed.
    pub fn join(&mut self, key: &DeviceKey, certificate: &Certificate) {
        let registration = sign_registration(key, certificate, self.net, self.at);
        self.append(EntryKind::Join, &[&registration]);
    }

    /// A member draws its neighbours: an Invite and a Draw.
    ///
    /// # Panics
    /// As [`Self::join`].
    pub fn draw(&mut self, key: &DeviceKey) {
        let mut nonce = [0; 32];
        nonce[..16].copy_from_slice(&key.id().0);
        let commitment = draw_commitment(self.net, key.id(), &nonce);
        let data = cbor::array([cbor::bytes(&commitment)]);
        let request = frame::sign(key, self.net, self.at, Notification::DrawRequest, data);
        self.append(EntryKind::Invite, &[&request, &[1; 32]]);
        let data = cbor::array([cbor::bytes(&self.head), cbor::bytes(&nonce)]);
        let open = frame::sign(key, self.net, self.at, Notification::Open, data);
        self.append(EntryKind::Draw, &[&open]);
    }

    fn append(&mut self, kind: EntryKind, item: &[&[u8]]) {
        let index = u64::try_from(self.entries.len()).unwrap() + 1;
        let data = cbor::array([
            cbor::uint(index),
            cbor::bytes(&self.head),
            cbor::uint(kind as u64),
            cbor::array(item.iter().map(|bytes| cbor::bytes(bytes))),
        ]);
        let frame = frame::sign(&self.provider, self.net, self.at, Notification::Entry, data);
        let verified = Frame::verify(&frame, &self.provider.public());
        self.head = verified.unwrap().digest();
        self.entries.push(SyntheticEntry {
            kind,
            hash: self.head,
            frame,
        });
    }
}
