//! From the register to a reading: the only way energy enters the protocol.

use std::fmt;

use curve25519_dalek::scalar::Scalar;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};
use zeroize::Zeroize;

use crate::cbor;
use crate::commitment::{Commitment, SmallValue, commit_small};
use crate::labels;
use crate::opening::Opening;
use crate::secret::Secret;
use crate::time::{Day, Period, Round, Timestamp};
use crate::topic::NetId;
use crate::units::MilliwattHours;

/// The register's total of every channel at one moment: a round boundary. Its `Debug` shows
/// no total, since the difference of two is a reading.
#[derive(Clone, PartialEq, Eq)]
pub struct Boundary {
    /// The moment in UTC.
    pub at: Timestamp,
    /// The total per channel, in the order of the net's channels, in mWh.
    pub channels: Vec<MilliwattHours>,
}

impl fmt::Debug for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Boundary(at {} ms, ..)", self.at.as_millis())
    }
}

/// The energy of one round per channel. It has no serializer and its `Debug`
/// shows no energy, so a reading cannot reach a log or the wire by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Reading {
    round: Round,
    energy: Vec<SmallValue>,
}

/// Why two boundaries give no reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadingError {
    /// The boundaries are not the start and end of one round.
    #[error("the boundaries are not the two ends of one round")]
    NotOneRound,
    /// The channels differ.
    #[error("the boundaries have different channels")]
    Channels,
    /// A register went back.
    #[error("the register of channel {0} went back")]
    WentBack(usize),
    /// 2⁴⁰ mWh or more in one round.
    #[error("channel {0} counted 2^40 mWh or more in one round")]
    TooMuch(usize),
}

impl Reading {
    /// The difference of two boundary values of the register.
    ///
    /// # Errors
    /// [`ReadingError`]; a register that went back gives no reading, never a
    /// number modulo something.
    pub fn between(start: &Boundary, end: &Boundary, period: Period) -> Result<Self, ReadingError> {
        let round = period.round_at(start.at);
        if round.start(period) != start.at || round.end(period) != end.at {
            return Err(ReadingError::NotOneRound);
        }
        if start.channels.len() != end.channels.len() {
            return Err(ReadingError::Channels);
        }
        let mut energy = Vec::with_capacity(start.channels.len());
        for (channel, (before, after)) in start.channels.iter().zip(&end.channels).enumerate() {
            let difference = after
                .checked_sub(*before)
                .ok_or(ReadingError::WentBack(channel))?;
            let small = SmallValue::new(difference.0).ok_or(ReadingError::TooMuch(channel))?;
            energy.push(small);
        }
        Ok(Self { round, energy })
    }

    /// The round it belongs to.
    pub fn round(&self) -> Round {
        self.round
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.energy.len()
    }

    /// The openings `(m, ρ)` of the reading, one per channel.
    pub fn openings(&self, secret: &BlindingSecret, net: NetId) -> Vec<Opening> {
        let openings = self.energy.iter().zip(0u32..);
        openings
            .map(|(m, channel)| secret.open(net, self.round, channel, m.get()))
            .collect()
    }

    /// As [`Self::openings`], each with its commitment.
    pub fn committed(&self, secret: &BlindingSecret, net: NetId) -> Vec<(Opening, Commitment)> {
        let openings = self.openings(secret, net).into_iter();
        openings
            .zip(&self.energy)
            .map(|(opening, m)| (opening, commit_small(*m, &opening.blinding)))
            .collect()
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reading(round {}, ..)", self.round)
    }
}

/// B_d: the device secret of one day from which reading blindings are derived,
/// ratcheted like pair keys.
#[derive(Clone, Debug)]
pub struct BlindingSecret {
    day: Day,
    secret: Secret,
}

impl BlindingSecret {
    /// A secret that is valid from `day` on.
    pub fn new(day: Day, secret: Secret) -> Self {
        Self { day, secret }
    }

    /// The day it belongs to.
    pub fn day(&self) -> Day {
        self.day
    }

    /// The bytes for the journal.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The secret of `day`; `None` if that lies before this one's day or more than 400 days after.
    pub fn on(&self, day: Day) -> Option<Self> {
        let secret = ratchet(&self.secret, labels::BLINDING_RATCHET, self.day, day)?;
        Some(Self { day, secret })
    }

    /// `(m, wide(HMAC-SHA512(B_d, CBOR[label, net, round, channel, m])))`: the energy and
    /// the channel are inside, because two commitments under one ρ would reveal their difference.
    fn open(&self, net: NetId, round: Round, channel: u32, m: u64) -> Opening {
        let input = cbor::labelled(
            labels::READING_BLINDING,
            [
                cbor::bytes(&net.0),
                cbor::uint(round.0),
                cbor::uint(channel),
                cbor::uint(m),
            ],
        );
        Opening {
            value: Scalar::from(m),
            blinding: wide(keyed(&self.secret), input),
        }
    }
}

/// HMAC-SHA512 under a secret, before any input.
pub(crate) fn keyed(key: &Secret) -> Option<Hmac<Sha512>> {
    // HMAC takes keys of any length.
    Hmac::new_from_slice(key.expose()).ok()
}

/// The output of HMAC-SHA512 over the input, 64 bytes reduced modulo ℓ; wipes the input.
pub(crate) fn wide(mac: Option<Hmac<Sha512>>, mut input: Vec<u8>) -> Scalar {
    let Some(mut mac) = mac else {
        return Scalar::ZERO;
    };
    mac.update(&input);
    input.zeroize();
    let mut wide: [u8; 64] = mac.finalize().into_bytes().into();
    let scalar = Scalar::from_bytes_mod_order_wide(&wide);
    wide.zeroize();
    scalar
}

/// Farthest a ratchet is advanced at once, in days.
pub const MAX_SKIP_DAYS: u32 = 400;

/// `K_{d+1} = HKDF-Expand(K_d, CBOR[label], 32)`, applied from one day to a later one.
pub(crate) fn ratchet(secret: &Secret, label: &str, from: Day, to: Day) -> Option<Secret> {
    let days =
        to.0.checked_sub(from.0)
            .filter(|days| *days <= MAX_SKIP_DAYS)?;
    let info = cbor::labelled(label, []);
    let mut current = secret.clone();
    for _ in 0..days {
        current = expand(&current, &info);
    }
    Some(current)
}

/// HKDF-Expand with SHA-256 to 32 bytes (RFC 5869, section 2.3).
pub(crate) fn expand(secret: &Secret, info: &[u8]) -> Secret {
    Secret::filled(|out| {
        // A 32-byte PRK and a 32-byte output are within HKDF's limits.
        let derived = Hkdf::<Sha256>::from_prk(secret.expose());
        let done = derived.map(|hkdf| hkdf.expand(info, out));
        debug_assert!(matches!(done, Ok(Ok(()))));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::MeterCommand;

    fn boundary(at: u64, mwh: u64) -> Boundary {
        Boundary {
            at: Timestamp(at),
            channels: vec![MilliwattHours(mwh)],
        }
    }

    fn period() -> Period {
        Period::from_secs(2).unwrap()
    }

    #[test]
    fn a_reading_is_the_difference_over_exactly_one_round() {
        let reading = Reading::between(&boundary(2000, 5), &boundary(4000, 9), period()).unwrap();
        assert_eq!(reading.round(), Round(1));
        assert_eq!(reading.energy, [SmallValue::new(4).unwrap()]);
        let error = |a, b| Reading::between(&a, &b, period()).unwrap_err();
        assert_eq!(
            error(boundary(2000, 5), boundary(6000, 9)),
            ReadingError::NotOneRound
        );
        assert_eq!(
            error(boundary(2001, 5), boundary(4001, 9)),
            ReadingError::NotOneRound
        );
        assert_eq!(
            error(boundary(2000, 5), boundary(4000, 4)),
            ReadingError::WentBack(0)
        );
        assert_eq!(
            error(boundary(2000, 0), boundary(4000, 1 << 40)),
            ReadingError::TooMuch(0)
        );
    }

    #[test]
    fn every_argument_changes_the_blinding() {
        let b = BlindingSecret::new(Day(1), Secret::new(&mut [1; 32]));
        let net = NetId([1; 16]);
        let one = b.open(net, Round(1), 0, 1);
        for other in [
            b.open(NetId([2; 16]), Round(1), 0, 1),
            b.open(net, Round(2), 0, 1),
            b.open(net, Round(1), 1, 1),
            b.open(net, Round(1), 0, 2),
            b.on(Day(2)).unwrap().open(net, Round(1), 0, 1),
        ] {
            assert!(one.blinding != other.blinding);
        }
        assert!(one == b.open(net, Round(1), 0, 1));
    }

    #[test]
    fn the_ratchet_goes_forward_only_and_not_too_far() {
        let b = BlindingSecret::new(Day(10), Secret::new(&mut [1; 32]));
        assert!(b.on(Day(9)).is_none());
        assert!(b.on(Day(411)).is_none());
        let stepwise = b.on(Day(11)).unwrap().on(Day(12)).unwrap();
        assert!(
            stepwise
                .secret
                .equals(b.on(Day(12)).unwrap().secret.expose())
        );
    }

    #[test]
    fn debug_shows_no_energy() {
        let reading = Reading::between(&boundary(2000, 5), &boundary(4000, 9), period()).unwrap();
        assert_eq!(format!("{reading:?}"), "Reading(round 1, ..)");
        let command = MeterCommand::Boundary(boundary(2000, 5));
        let shown = format!("{command:?}");
        assert_eq!(shown, "Boundary(Boundary(at 2000 ms, ..))");
    }
}
