//! Pedersen commitments over Ristretto: `commit(o) = value·G + blinding·H`
//! (T. P. Pedersen, "Non-Interactive and Information-Theoretic Secure Verifiable
//! Secret Sharing", CRYPTO 1991).

use std::sync::LazyLock;

use curve25519_dalek::constants::RISTRETTO_BASEPOINT_TABLE;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoBasepointTable, RistrettoPoint};
use curve25519_dalek::traits::Identity;
use sha2::{Digest, Sha512};

use crate::frame::FrameError;
use crate::labels;
use crate::opening::Opening;

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

/// A commitment: a point of the Ristretto group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commitment(RistrettoPoint);

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
    use curve25519_dalek::scalar::Scalar;
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
        fn a_commitment_survives_its_bytes(a in opening()) {
            prop_assert_eq!(Commitment::from_bytes(&commit(&a).to_bytes()), Ok(commit(&a)));
        }
    }

    #[test]
    fn bytes_that_are_no_point_are_refused() {
        assert!(Commitment::from_bytes(&[0xff; 32]).is_err());
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
