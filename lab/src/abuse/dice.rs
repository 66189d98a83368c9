//! Random choices that follow from a seed.

use std::net::Ipv4Addr;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// A source of choices.
#[derive(Debug)]
pub struct Dice(ChaCha20Rng);

impl Dice {
    /// For one purpose of a seed, and the `number`-th time.
    pub fn new(seed: u64, purpose: &str, number: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        for (byte, letter) in bytes[16..].iter_mut().zip(purpose.bytes()) {
            *byte = letter;
        }
        Self(ChaCha20Rng::from_seed(bytes))
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }

    /// Any bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// One of 65 024 addresses of the loopback network, all from 127.16.0.1 on: so many strangers
    /// that neither the limit per address nor the ports of one are used up.
    pub fn source(&mut self) -> Ipv4Addr {
        Ipv4Addr::new(127, 16, self.byte(), 1 + self.below(254) as u8)
    }
}
