//! Openings: pairs `(value, blinding)` of scalars modulo the order ℓ of the
//! Ristretto group. Everything that is added up in a DC-net is an opening
//! (`docs/protocol.md`, "Openings").

use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::sync::LazyLock;

use curve25519_dalek::scalar::Scalar;
use zeroize::Zeroize;

use crate::frame::FrameError;

/// An element of the group that a DC-net adds in. `Debug` shows nothing: an
/// opening may be a pad or a self-mask.
#[derive(Clone, Copy, PartialEq, Eq, Default, Zeroize)]
pub struct Opening {
    /// What is measured, or what hides it.
    pub value: Scalar,
    /// The second, independent component.
    pub blinding: Scalar,
}

impl Opening {
    /// The neutral element.
    pub const ZERO: Self = Self {
        value: Scalar::ZERO,
        blinding: Scalar::ZERO,
    };

    /// 64 bytes: value, then blinding, each 32 bytes little-endian and reduced.
    pub fn to_bytes(&self) -> [u8; 64] {
        let mut out = [0; 64];
        let (value, blinding) = out.split_at_mut(32);
        value.copy_from_slice(self.value.as_bytes());
        blinding.copy_from_slice(self.blinding.as_bytes());
        out
    }

    /// Reads [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`FrameError::Bound`] if a component is not reduced modulo ℓ.
    pub fn from_bytes(bytes: &[u8; 64]) -> Result<Self, FrameError> {
        let scalar = |bytes: &[u8]| {
            let bytes: [u8; 32] = bytes.try_into().map_err(|_| FrameError::Form)?;
            Option::from(Scalar::from_canonical_bytes(bytes)).ok_or(FrameError::Bound("scalar"))
        };
        let (value, blinding) = bytes.split_at(32);
        Ok(Self {
            value: scalar(value)?,
            blinding: scalar(blinding)?,
        })
    }

    /// The value as an integer, if it is one below 2⁶³.
    pub fn integer(&self) -> Option<u64> {
        let bytes = self.value.as_bytes();
        let (low, high) = bytes.split_at(8);
        let number = u64::from_le_bytes(low.try_into().ok()?);
        (high.iter().all(|&b| b == 0) && number < 1 << 63).then_some(number)
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opening(..)")
    }
}

impl Add for Opening {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            blinding: self.blinding + other.blinding,
        }
    }
}

impl Sub for Opening {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            value: self.value - other.value,
            blinding: self.blinding - other.blinding,
        }
    }
}

impl Neg for Opening {
    type Output = Self;
    fn neg(self) -> Self {
        Self {
            value: -self.value,
            blinding: -self.blinding,
        }
    }
}

impl AddAssign for Opening {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Opening {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Opening {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::ZERO, Add::add)
    }
}

/// 2⁵¹² modulo ℓ.
static TOP: LazyLock<Scalar> =
    LazyLock::new(|| Scalar::from_bytes_mod_order_wide(&[0xff; 64]) + Scalar::ONE);

/// A sum of 512-bit integers, reduced modulo ℓ only at the end: reduction is
/// linear, so summing first gives the same scalar and costs one reduction
/// instead of one per summand.
#[derive(Clone, Zeroize)]
struct WideSum([u64; 9]);

impl WideSum {
    const ZERO: Self = Self([0; 9]);

    /// Adds 64 little-endian bytes. Up to 2⁶⁴ summands fit.
    fn add(&mut self, bytes: &[u8; 64]) {
        let (words, _) = bytes.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut carry = false;
        for (limb, word) in self.0.iter_mut().zip(words.chain([0])) {
            (*limb, carry) = limb.carrying_add(word, carry);
        }
    }

    fn reduce(&self) -> Scalar {
        let mut low = [0; 64];
        for (bytes, limb) in low.chunks_exact_mut(8).zip(&self.0) {
            bytes.copy_from_slice(&limb.to_le_bytes());
        }
        let high = self.0.last().copied().unwrap_or(0);
        let scalar = Scalar::from_bytes_mod_order_wide(&low) + Scalar::from(high) * *TOP;
        low.zeroize();
        scalar
    }
}

/// Adds up pads given as 128 uniform bytes each: 64 for the value, 64 for the
/// blinding. Wiped when dropped.
pub struct PadSum {
    plus: [WideSum; 2],
    minus: [WideSum; 2],
}

impl PadSum {
    /// An empty sum.
    pub fn new() -> Self {
        Self {
            plus: [WideSum::ZERO; 2],
            minus: [WideSum::ZERO; 2],
        }
    }

    /// Adds a pad, or subtracts it.
    pub fn include(&mut self, pad: &[u8; 128], add: bool) {
        let [value, blinding] = if add { &mut self.plus } else { &mut self.minus };
        if let ([first, second], _) = pad.as_chunks::<64>() {
            value.add(first);
            blinding.add(second);
        }
    }

    /// The sum as an opening.
    pub fn finish(&self) -> Opening {
        let [value, blinding] = &self.plus;
        let [minus_value, minus_blinding] = &self.minus;
        Opening {
            value: value.reduce() - minus_value.reduce(),
            blinding: blinding.reduce() - minus_blinding.reduce(),
        }
    }
}

impl Default for PadSum {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PadSum {
    fn drop(&mut self) {
        self.plus.zeroize();
        self.minus.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pad() -> impl Strategy<Value = [u8; 128]> {
        proptest::collection::vec(any::<u8>(), 128).prop_map(|v| v.try_into().unwrap())
    }

    fn reduced(pad: &[u8; 128]) -> Opening {
        let half = |range: std::ops::Range<usize>| {
            Scalar::from_bytes_mod_order_wide(pad[range].try_into().unwrap())
        };
        Opening {
            value: half(0..64),
            blinding: half(64..128),
        }
    }

    proptest! {
        #[test]
        fn summing_before_reducing_changes_nothing(
            pads in proptest::collection::vec((pad(), any::<bool>()), 0..40)
        ) {
            let mut sum = PadSum::new();
            let mut expected = Opening::ZERO;
            for (pad, add) in &pads {
                sum.include(pad, *add);
                if *add { expected += reduced(pad) } else { expected -= reduced(pad) }
            }
            prop_assert!(sum.finish() == expected);
        }
    }

    #[test]
    fn carries_reach_the_ninth_limb() {
        let mut sum = PadSum::new();
        let mut expected = Opening::ZERO;
        for _ in 0..1000 {
            sum.include(&[0xff; 128], true);
            expected += reduced(&[0xff; 128]);
        }
        assert!(sum.finish() == expected);
    }

    #[test]
    fn bytes_round_trip_and_must_be_reduced() {
        let opening = Opening {
            value: Scalar::from(5u64),
            blinding: -Scalar::ONE,
        };
        assert!(Opening::from_bytes(&opening.to_bytes()) == Ok(opening));
        assert!(Opening::from_bytes(&[0xff; 64]).is_err());
    }

    #[test]
    fn only_integers_below_2_to_63_decode() {
        let of = |value| {
            Opening {
                value,
                blinding: Scalar::ZERO,
            }
            .integer()
        };
        assert_eq!(of(Scalar::from((1u64 << 63) - 1)), Some((1 << 63) - 1));
        assert_eq!(of(Scalar::from(1u64 << 63)), None);
        assert_eq!(of(Scalar::from(1u128 << 64)), None);
        assert_eq!(of(-Scalar::ONE), None);
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", reduced(&[3; 128])), "Opening(..)");
    }
}
