//! The prime field of 2⁶¹ − 1 elements, in which the oracle eliminates.

use std::ops::{Add, AddAssign, Mul, Neg, Sub};

/// The order of the field, a Mersenne prime.
pub const MODULUS: u64 = (1 << 61) - 1;

/// An element of the field; always reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element(u64);

impl Element {
    /// Neutral under addition.
    pub const ZERO: Self = Self(0);
    /// Neutral under multiplication.
    pub const ONE: Self = Self(1);

    /// The residue of a number.
    pub fn new(number: u64) -> Self {
        Self(number % MODULUS)
    }

    /// The number as a small integer with a sign, if it is one: coefficients are read by people.
    pub fn small(self) -> Option<i64> {
        const SMALL: u64 = 1 << 20;
        let back = MODULUS - self.0;
        if self.0 < SMALL {
            i64::try_from(self.0).ok()
        } else if back < SMALL {
            i64::try_from(back).ok().map(|back| -back)
        } else {
            None
        }
    }

    /// The multiplicative inverse (Fermat); `None` of zero.
    pub fn inverse(self) -> Option<Self> {
        if self == Self::ZERO {
            return None;
        }
        let (mut result, mut base, mut exponent) = (Self::ONE, self, MODULUS - 2);
        while exponent > 0 {
            if exponent & 1 == 1 {
                result = result * base;
            }
            base = base * base;
            exponent >>= 1;
        }
        Some(result)
    }
}

impl Add for Element {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self((self.0 + other.0) % MODULUS)
    }
}

impl AddAssign for Element {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Neg for Element {
    type Output = Self;
    fn neg(self) -> Self {
        Self((MODULUS - self.0) % MODULUS)
    }
}

impl Sub for Element {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Mul for Element {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        let product = u128::from(self.0) * u128::from(other.0) % u128::from(MODULUS);
        Self(u64::try_from(product).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inverses_and_signs() {
        for number in [1, 2, 3, 1 << 60, MODULUS - 1] {
            let element = Element::new(number);
            assert_eq!(element * element.inverse().unwrap(), Element::ONE);
            assert_eq!(element + -element, Element::ZERO);
        }
        assert_eq!(Element::ZERO.inverse(), None);
        assert_eq!((Element::ZERO - Element::new(7)).small(), Some(-7));
        assert_eq!(Element::new(1 << 40).small(), None);
    }
}
