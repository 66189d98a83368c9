//! Sets of small integers as bits, least significant bit of the first byte first.

use crate::frame::FrameError;

/// A set of positions below a length; exactly `⌈length / 8⌉` bytes on the wire
/// with all bits past the length zero, so a set has one encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
    length: usize,
}

impl Bitmap {
    /// No position set.
    pub fn empty(length: usize) -> Self {
        Self {
            bytes: vec![0; length.div_ceil(8)],
            length,
        }
    }

    /// Sets a position; positions past the length are ignored.
    pub fn set(&mut self, position: usize) {
        if position < self.length
            && let Some(byte) = self.bytes.get_mut(position / 8)
        {
            *byte |= 1 << (position % 8);
        }
    }

    /// Whether a position is set.
    pub fn contains(&self, position: usize) -> bool {
        self.bytes
            .get(position / 8)
            .is_some_and(|byte| byte & (1 << (position % 8)) != 0)
    }

    /// The set positions in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        let bytes = (0usize..).step_by(8).zip(&self.bytes);
        bytes.flat_map(|(first, byte)| {
            (0..8)
                .filter(move |bit| byte & (1 << bit) != 0)
                .map(move |bit| first.saturating_add(bit))
        })
    }

    /// Adds every position of another set, which may be longer.
    pub fn include(&mut self, other: &Self) {
        if self.bytes.len() < other.bytes.len() {
            self.bytes.resize(other.bytes.len(), 0);
        }
        self.length = self.length.max(other.length);
        for (byte, more) in self.bytes.iter_mut().zip(&other.bytes) {
            *byte |= more;
        }
    }

    /// The same set with the shortest length.
    pub fn trimmed(&self) -> Self {
        let last = self.bytes.iter().rposition(|byte| *byte != 0);
        let bytes = self
            .bytes
            .iter()
            .take(last.map_or(0, |last| last.saturating_add(1)));
        let bytes: Vec<u8> = bytes.copied().collect();
        let spare = bytes.last().map_or(0, |byte| byte.leading_zeros() as usize);
        Self {
            length: bytes.len().saturating_mul(8).saturating_sub(spare),
            bytes,
        }
    }

    /// All positions are below it.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Number of set positions below a position.
    pub fn rank(&self, position: usize) -> usize {
        let (whole, rest) = (position / 8, position % 8);
        let ones = |byte: &u8| byte.count_ones() as usize;
        let before: usize = self.bytes.iter().take(whole).map(ones).sum();
        let last = self
            .bytes
            .get(whole)
            .map_or(0, |byte| byte & !(0xff << rest));
        before.saturating_add(ones(&last))
    }

    /// Number of set positions.
    pub fn count(&self) -> usize {
        self.bytes
            .iter()
            .map(|byte| byte.count_ones() as usize)
            .sum()
    }

    /// The bytes on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a set of positions below `length`.
    ///
    /// # Errors
    /// [`FrameError::Bound`] if it has another length or a bit past it is set.
    pub fn from_bytes(
        bytes: Vec<u8>,
        length: usize,
        name: &'static str,
    ) -> Result<Self, FrameError> {
        let bitmap = Self { bytes, length };
        let last = bitmap.bytes.last().copied().unwrap_or(0);
        let spare_set = !length.is_multiple_of(8) && last >> (length % 8) != 0;
        if bitmap.bytes.len() != length.div_ceil(8) || spare_set {
            return Err(FrameError::Bound(name));
        }
        Ok(bitmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_set_survives_its_bytes(length in 0usize..70, seed in any::<u64>()) {
            let mut bitmap = Bitmap::empty(length);
            (0..length).filter(|i| seed >> (i % 64) & 1 == 1).for_each(|i| bitmap.set(i));
            let read = Bitmap::from_bytes(bitmap.as_bytes().to_vec(), length, "x").unwrap();
            prop_assert_eq!(&read, &bitmap);
            prop_assert_eq!(read.iter().count(), read.count());
            for position in 0..80 {
                let below = read.iter().filter(|set| *set < position).count();
                prop_assert_eq!(read.rank(position), below);
            }
            let trimmed = read.trimmed();
            prop_assert!(trimmed.iter().eq(read.iter()));
            prop_assert_eq!(trimmed.length(), read.iter().last().map_or(0, |last| last + 1));
            let bytes = trimmed.as_bytes().to_vec();
            prop_assert_eq!(Bitmap::from_bytes(bytes, trimmed.length(), "x"), Ok(trimmed));
        }
    }

    #[test]
    fn spare_bits_and_wrong_lengths_are_refused() {
        assert!(Bitmap::from_bytes(vec![0b111], 3, "x").is_ok());
        assert!(Bitmap::from_bytes(vec![0b1000], 3, "x").is_err());
        assert!(Bitmap::from_bytes(vec![0, 0], 3, "x").is_err());
        assert!(Bitmap::from_bytes(vec![], 3, "x").is_err());
        assert!(Bitmap::from_bytes(vec![0xff], 8, "x").is_ok());
    }
}
