//! Pedersen commitments over Ristretto: `commit(o) = value·G + blinding·H`
//! (T. P. Pedersen, "Non-Interactive and Information-Theoretic Secure Verifiable
//! Secret Sharing", CRYPTO 1991).

use std::fmt;
use std::sync::LazyLock;

use curve25519_dalek::constants::{RISTRETTO_BASEPOINT_POINT, RISTRETTO_BASEPOINT_TABLE};
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoBasepointTable, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;
use sha2::{Digest, Sha512};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::frame::FrameError;
use crate::labels;
use crate::opening::Opening;
use crate::units::READING_LIMIT;

/// The second generator H: the label hashed to the group by SHA-512 and the
/// one-way map of RFC 9496, section 4.3.4. Nobody knows its logarithm to base G.
pub fn generator_h() -> RistrettoPoint {
    let hash: [u8; 64] = Sha512::digest(labels::PEDERSEN_H).into();
    RistrettoPoint::from_uniform_bytes(&hash)
}

static H: LazyLock<RistrettoBasepointTable> =
    LazyLock::new(|| RistrettoBasepointTable::create(&generator_h()));

/// Commits to an opening in constant time, with precomputed tables for both generators.
pub fn commit(opening: &Opening) -> Commitment {
    Commitment(RISTRETTO_BASEPOINT_TABLE * &opening.value + &*H * &opening.blinding)
}

/// A value of which it is known that it is below [`READING_LIMIT`]. `Debug` shows nothing:
/// it is a reading.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SmallValue(u64);

impl SmallValue {
    /// `None` from [`READING_LIMIT`] on.
    pub fn new(value: u64) -> Option<Self> {
        (value < READING_LIMIT).then_some(Self(value))
    }

    /// The value.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for SmallValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SmallValue(..)")
    }
}

/// Hexadecimal digits of a [`SmallValue`].
const DIGITS: usize = READING_LIMIT.ilog2().div_ceil(4) as usize;

/// The multiples of G by 0 to 15, times 16 to the power of the place.
static SMALL_MULTIPLES: LazyLock<[[RistrettoPoint; 16]; DIGITS]> = LazyLock::new(|| {
    let mut unit = RISTRETTO_BASEPOINT_POINT;
    std::array::from_fn(|_| {
        let mut next = RistrettoPoint::identity();
        let row = std::array::from_fn(|_| {
            let multiple = next;
            next += unit;
            multiple
        });
        unit = next;
        row
    })
});

/// As [`commit`], for values that have a sixth of a scalar's digits; in constant time too,
/// because every entry of the table is read whatever the value is.
pub fn commit_small(value: SmallValue, blinding: &Scalar) -> Commitment {
    let mut sum = &*H * blinding;
    for (place, row) in (0u32..).step_by(4).zip(&*SMALL_MULTIPLES) {
        let digit = value.0 >> place & 15;
        let mut term = RistrettoPoint::identity();
        for (multiple, entry) in (0u64..).zip(row) {
            term.conditional_assign(entry, digit.ct_eq(&multiple));
        }
        sum += term;
    }
    Commitment(sum)
}

/// A commitment: a point of the Ristretto group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Commitment(RistrettoPoint);

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Commitment({})", hex::encode(self.to_bytes()))
    }
}

impl Commitment {
    /// Decodes 32 bytes (RFC 9496, section 4.3.1).
    ///
    /// # Errors
    /// [`FrameError::Bound`] if they encode no group element.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, FrameError> {
        let point = CompressedRistretto(*bytes).decompress();
        point.map(Self).ok_or(FrameError::Bound("commitment"))
    }

    /// Encodes as 32 bytes (RFC 9496, section 4.3.2).
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.compress().to_bytes()
    }
}

impl std::ops::Add for Commitment {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::iter::Sum for Commitment {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self(RistrettoPoint::identity()), |sum, item| sum + item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opening() -> impl Strategy<Value = Opening> {
        (any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(|(v, b)| Opening {
            value: Scalar::from_bytes_mod_order(v),
            blinding: Scalar::from_bytes_mod_order(b),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn commitments_add_as_openings_do(a in opening(), b in opening()) {
            prop_assert_eq!(commit(&a) + commit(&b), commit(&(a + b)));
        }

        #[test]
        fn a_small_value_is_committed_to_as_any_other(
            value in 0..READING_LIMIT, bits in 0u32..40, blinding in any::<[u8; 32]>(),
        ) {
            let blinding = Scalar::from_bytes_mod_order(blinding);
            for value in [value, value >> bits] {
                let small = SmallValue::new(value).unwrap();
                let opening = Opening { value: Scalar::from(value), blinding };
                prop_assert_eq!(commit_small(small, &blinding), commit(&opening));
            }
        }

        #[test]
        fn a_commitment_survives_its_bytes(a in opening()) {
            prop_assert_eq!(Commitment::from_bytes(&commit(&a).to_bytes()), Ok(commit(&a)));
        }
    }

    #[test]
    fn bytes_that_are_no_point_are_refused() {
        assert!(Commitment::from_bytes(&[0xff; 32]).is_err());
    }

    #[test]
    fn every_digit_in_every_place_is_committed_to_as_any_other() {
        for value in (0..40)
            .step_by(4)
            .flat_map(|place| (0..16u64).map(move |d| d << place))
        {
            let opening = Opening {
                value: Scalar::from(value),
                blinding: Scalar::ONE,
            };
            let small = SmallValue::new(value).unwrap();
            assert_eq!(commit_small(small, &Scalar::ONE), commit(&opening));
        }
    }

    #[test]
    fn small_values_end_at_the_limit_of_readings() {
        let last = SmallValue::new(READING_LIMIT - 1).unwrap();
        let opening = Opening {
            value: Scalar::from(READING_LIMIT - 1),
            blinding: Scalar::ZERO,
        };
        assert_eq!(commit_small(last, &Scalar::ZERO), commit(&opening));
        assert_eq!(SmallValue::new(READING_LIMIT), None);
        assert_eq!(format!("{last:?}"), "SmallValue(..)");
    }

    #[test]
    fn the_generators_differ() {
        let g = commit(&Opening {
            value: Scalar::ONE,
            blinding: Scalar::ZERO,
        });
        let h = commit(&Opening {
            value: Scalar::ZERO,
            blinding: Scalar::ONE,
        });
        assert_ne!(g, h);
        assert_eq!(h, Commitment(generator_h()));
    }
}
