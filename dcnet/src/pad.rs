//! Pads: what two meters with a common pair key add and subtract, so that it
//! cancels in the sum (`docs/protocol.md`, "Pads").
//!
//! A pair key K_d gives two pad keys per day and net by HKDF-Expand. A pad is
//! 128 bytes of ChaCha20 key stream (RFC 8439) whose nonce names round and
//! channel: 64 bytes for the value, 64 for the blinding. A reveal pad's key is
//! derived further by two HChaCha20 steps over the roster hash, so it cancels
//! only between meters that hold the same roster.

use chacha20::cipher::array::Array;
use chacha20::cipher::consts::U64;
use chacha20::cipher::{KeyIvInit, StreamCipherCore};
use chacha20::variants::Ietf;
use chacha20::{ChaChaCore, Key, R20, hchacha};
use zeroize::Zeroize;

use crate::cbor;
use crate::labels;
use crate::reading::{expand, ratchet};
use crate::secret::Secret;
use crate::time::{Day, Round};
use crate::topic::NetId;

/// SHA-256 of a roster's payload.
pub type RosterHash = [u8; 32];

/// K_d: what two neighbours share on one day.
#[derive(Clone, Debug)]
pub struct PairKey {
    day: Day,
    secret: Secret,
}

impl PairKey {
    /// The key of `day`.
    pub fn new(day: Day, secret: Secret) -> Self {
        Self { day, secret }
    }

    /// The day it belongs to.
    pub fn day(&self) -> Day {
        self.day
    }

    /// The bytes for the journal and for key confirmation.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The key of `day`; `None` if that lies before this key's day or more than 400 days after.
    pub fn on(&self, day: Day) -> Option<Self> {
        let secret = ratchet(&self.secret, labels::RATCHET, self.day, day)?;
        Some(Self { day, secret })
    }

    /// The pad keys of this key's day.
    pub fn pad_keys(&self, net: NetId) -> PadKeys {
        let key = |label| expand(&self.secret, &cbor::labelled(label, [cbor::bytes(&net.0)]));
        PadKeys {
            submission: key(labels::PAD_SUBMISSION),
            reveal: key(labels::PAD_REVEAL),
        }
    }
}

/// The two pad keys of an edge for one day.
#[derive(Clone, Debug)]
pub struct PadKeys {
    submission: Secret,
    reveal: Secret,
}

/// Pads' worth of key stream made at once, of which the first is used: the vector units
/// of x86-64 make four blocks in one pass, but two of them in two.
const PASS: usize = if cfg!(target_arch = "x86_64") { 2 } else { 1 };

/// 128 bytes of key stream. One `Pad` may hold one pad after the other; it is wiped when
/// it is dropped.
pub struct Pad {
    stream: [[u8; 128]; PASS],
    /// The keys on the way to a reveal pad.
    steps: [Key; 2],
}

impl Pad {
    /// All zeros; for [`PadKeys::write_submission`] and [`PadKeys::write_reveal`].
    pub fn empty() -> Self {
        Self {
            stream: [[0; 128]; PASS],
            steps: [Array([0; 32]); 2],
        }
    }

    /// The bytes: 64 for the value, 64 for the blinding.
    pub fn bytes(&self) -> &[u8; 128] {
        let [pad, ..] = &self.stream;
        pad
    }
}

impl Drop for Pad {
    fn drop(&mut self) {
        self.stream.zeroize();
        self.steps.iter_mut().for_each(|key| key.0.zeroize());
    }
}

impl PadKeys {
    /// The pad of a submission.
    pub fn submission(&self, round: Round, channel: u16) -> Pad {
        let mut pad = Pad::empty();
        self.write_submission(round, channel, &mut pad);
        pad
    }

    /// The pad of a reveal under a roster.
    pub fn reveal(&self, roster: &RosterHash, round: Round, channel: u16) -> Pad {
        let mut pad = Pad::empty();
        self.write_reveal(roster, round, channel, &mut pad);
        pad
    }

    /// As [`Self::submission`], into a pad that is not needed any more.
    pub fn write_submission(&self, round: Round, channel: u16, pad: &mut Pad) {
        let key = self.submission.expose().into();
        write_stream(key, round, channel, &mut pad.stream);
    }

    /// As [`Self::reveal`], into a pad that is not needed any more.
    pub fn write_reveal(&self, roster: &RosterHash, round: Round, channel: u16, pad: &mut Pad) {
        let (halves, _) = roster.as_chunks::<16>();
        let Pad { stream, steps } = pad;
        let mut key: &Key = self.reveal.expose().into();
        for (half, next) in halves.iter().zip(steps) {
            *next = hchacha::<R20>(key, half.into());
            key = next;
        }
        write_stream(key, round, channel, stream);
    }
}

fn write_stream(key: &Key, round: Round, channel: u16, stream: &mut [[u8; 128]; PASS]) {
    let mut nonce = [0; 12];
    let (head, tail) = nonce.split_at_mut(4);
    if let Some(low) = head.get_mut(..2) {
        low.copy_from_slice(&channel.to_le_bytes());
    }
    tail.copy_from_slice(&round.0.to_le_bytes());
    let (blocks, _) = Array::<u8, U64>::slice_as_chunks_mut(stream.as_flattened_mut());
    ChaChaCore::<R20, Ietf>::new(key, &nonce.into()).write_keystream_blocks(blocks);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> PadKeys {
        PairKey::new(Day(3), Secret::new(&mut [5; 32])).pad_keys(NetId([1; 16]))
    }

    #[test]
    fn every_argument_changes_the_pad() {
        let one = keys().reveal(&[1; 32], Round(1), 0);
        let mut late = [1; 32];
        late[31] = 2;
        let other_day = PairKey::new(Day(3), Secret::new(&mut [5; 32]))
            .on(Day(4))
            .unwrap();
        for other in [
            keys().submission(Round(1), 0),
            keys().reveal(&late, Round(1), 0),
            keys().reveal(&[1; 32], Round(2), 0),
            keys().reveal(&[1; 32], Round(1), 1),
            other_day
                .pad_keys(NetId([1; 16]))
                .reveal(&[1; 32], Round(1), 0),
            PairKey::new(Day(3), Secret::new(&mut [5; 32]))
                .pad_keys(NetId([2; 16]))
                .reveal(&[1; 32], Round(1), 0),
        ] {
            assert_ne!(one.bytes(), other.bytes());
        }
        assert_eq!(one.bytes(), keys().reveal(&[1; 32], Round(1), 0).bytes());
    }

    #[test]
    fn a_pad_written_over_another_is_the_same_as_a_fresh_one() {
        let keys = keys();
        let mut pad = Pad::empty();
        keys.write_reveal(&[7; 32], Round(9), 3, &mut pad);
        keys.write_submission(Round(1), 0, &mut pad);
        assert_eq!(pad.bytes(), keys.submission(Round(1), 0).bytes());
        keys.write_reveal(&[1; 32], Round(1), 0, &mut pad);
        assert_eq!(pad.bytes(), keys.reveal(&[1; 32], Round(1), 0).bytes());
    }

    #[test]
    fn value_and_blinding_are_different_key_stream() {
        let pad = keys().submission(Round(1), 0);
        assert_ne!(pad.bytes()[..64], pad.bytes()[64..]);
    }
}
