//! Secrets: boxed, wiped when dropped, redacted in `Debug`, and compared only
//! in constant time.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// 32 secret bytes on the heap: moving the owner leaves no copies behind.
#[derive(Clone)]
pub struct Secret(Box<Zeroizing<[u8; 32]>>);

impl Secret {
    /// Takes the bytes over and wipes the argument.
    pub fn new(bytes: &mut [u8; 32]) -> Self {
        let mut boxed = Box::new(Zeroizing::new([0; 32]));
        boxed.copy_from_slice(bytes);
        bytes.zeroize();
        Self(boxed)
    }

    /// Lets `fill` write the bytes in place.
    pub fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        let mut boxed = Box::new(Zeroizing::new([0; 32]));
        fill(&mut boxed);
        Self(boxed)
    }

    /// The bytes, for a key derivation or the journal. Never for a log.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Constant-time comparison.
    pub fn equals(&self, other: &[u8]) -> bool {
        self.0.as_slice().ct_eq(other).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_and_the_source_is_wiped() {
        let mut bytes = [7; 32];
        let secret = Secret::new(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret.equals(&[7; 32]));
        assert!(!secret.equals(&[7; 31]));
    }
}
