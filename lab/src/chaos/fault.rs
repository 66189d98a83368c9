//! What goes wrong, and when: everything follows from the seed.

use std::fmt;
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

/// One of the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Station {
    /// The broker.
    Broker,
    /// The provider's agent.
    Provider,
    /// A meter's agent; numbered from 1.
    Meter(u32),
}

impl fmt::Display for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => write!(f, "broker"),
            Self::Provider => write!(f, "provider"),
            Self::Meter(number) => write!(f, "meter {number}"),
        }
    }
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL; started again afterwards.
    Kill,
    /// SIGSTOP; SIGCONT afterwards.
    Stop,
    /// Not a byte is left for its state.
    FullDisk,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::FullDisk];

    /// In a line of the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed (SIGKILL)",
            Self::Stop => "stopped (SIGSTOP)",
            Self::FullDisk => "disk full",
        }
    }

    /// Shortest and longest time that it lasts, in milliseconds.
    fn lasts(self) -> (u64, u64) {
        match self {
            Self::Kill => (0, 8000),
            Self::Stop => (1000, 10_000),
            Self::FullDisk => (2000, 8000),
        }
    }
}

/// A fault that is to begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// To whom it happens.
    pub station: Station,
    /// What happens.
    pub kind: Kind,
    /// For how long.
    pub lasts: Duration,
}

/// The faults of a run, one after the other.
#[derive(Debug)]
pub struct Faults {
    rng: ChaCha20Rng,
    meters: u32,
    disks: bool,
}

/// A generator of random numbers for one purpose of a seed.
pub(crate) fn random(seed: u64, purpose: u8) -> ChaCha20Rng {
    let mut bytes = [purpose; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha20Rng::from_seed(bytes)
}

impl Faults {
    /// Those of a seed; without full disks if disks cannot be filled.
    pub fn new(seed: u64, meters: u32, disks: bool) -> Self {
        Self {
            rng: random(seed, b'f'),
            meters,
            disks,
        }
    }

    fn number(&mut self, from: u64, to: u64) -> u64 {
        from + self.rng.next_u64() % (to.saturating_sub(from) + 1)
    }

    /// Time until the next one.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(self.number(300, 6000))
    }

    /// The next one.
    pub fn fault(&mut self) -> Fault {
        let kind = match self.number(0, 99) {
            0..50 => Kind::Kill,
            50..78 => Kind::Stop,
            _ if self.disks => Kind::FullDisk,
            _ => Kind::Kill,
        };
        let station = match self.number(0, 99) {
            0..20 => Station::Provider,
            // Everybody is away for long after each of these. Its state is not what is to survive
            // here.
            20..28 if kind != Kind::FullDisk => Station::Broker,
            _ => Station::Meter(
                u32::try_from(self.number(1, u64::from(self.meters))).unwrap_or(self.meters),
            ),
        };
        let (shortest, longest) = kind.lasts();
        Fault {
            station,
            kind,
            lasts: Duration::from_millis(self.number(shortest, longest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_twice_and_every_kind_to_everybody() {
        let list = |seed| {
            let mut faults = Faults::new(seed, 5, true);
            (0..400).map(|_| faults.fault()).collect::<Vec<_>>()
        };
        assert_eq!(list(1), list(1));
        assert_ne!(list(1), list(2));
        let pairs: BTreeSet<_> = list(1).iter().map(|f| (f.station, f.kind)).collect();
        assert_eq!(pairs.len(), 7 * 3 - 1, "all but a full disk of the broker");
    }

    #[test]
    fn without_disks_there_are_no_full_ones() {
        let mut faults = Faults::new(1, 5, false);
        assert!((0..400).all(|_| faults.fault().kind != Kind::FullDisk));
    }
}
