//! Deterministic CBOR (RFC 8949, section 4.2.1) for payloads and hash inputs.
//!
//! Everything is an array of unsigned integers, byte strings, text strings,
//! null and arrays; there are no maps, floats or tags, so an item has exactly
//! one encoding once lengths are shortest and definite. Decoding checks that by
//! encoding again and comparing.

use ciborium::Value;
use sha2::{Digest, Sha256};

use crate::frame::FrameError;

/// Deepest nesting of arrays in a payload.
const MAX_DEPTH: usize = 8;

/// A byte string item.
pub fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

/// An unsigned integer item.
pub fn uint(number: impl Into<u64>) -> Value {
    Value::Integer(number.into().into())
}

/// A text item.
pub fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// An array item.
pub fn array(items: impl IntoIterator<Item = Value>) -> Value {
    Value::Array(items.into_iter().collect())
}

/// Encodes an item. Items built by this module always encode.
pub fn encode(item: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    if ciborium::into_writer(item, &mut out).is_err() {
        // Writing to a Vec cannot fail; an empty encoding is refused by every reader.
        out.clear();
    }
    out
}

/// `CBOR[label, items…]`, the form of every hash and KDF input.
pub fn labelled(label: &str, items: impl IntoIterator<Item = Value>) -> Vec<u8> {
    encode(&array(std::iter::once(text(label)).chain(items)))
}

/// SHA-256 of `CBOR[label, items…]`.
pub fn labelled_hash(label: &str, items: impl IntoIterator<Item = Value>) -> [u8; 32] {
    Sha256::digest(labelled(label, items)).into()
}

/// Decodes exactly one deterministic item.
///
/// # Errors
/// [`FrameError::Form`] if it is no CBOR, nests too deeply or has trailing bytes;
/// [`FrameError::NotDeterministic`] if another encoding would be shorter or a
/// forbidden kind of item occurs.
pub fn decode(input: &[u8]) -> Result<Value, FrameError> {
    let mut rest = input;
    let item: Value = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH)
        .map_err(|_| FrameError::Form)?;
    if !rest.is_empty() {
        return Err(FrameError::Form);
    }
    if !plain(&item) || encode(&item) != input {
        return Err(FrameError::NotDeterministic);
    }
    Ok(item)
}

fn plain(item: &Value) -> bool {
    match item {
        Value::Integer(_) | Value::Bytes(_) | Value::Text(_) | Value::Null => true,
        Value::Array(items) => items.iter().all(plain),
        _ => false,
    }
}

/// Reads the items of an array one by one; every field is named for the error.
pub struct Fields(std::vec::IntoIter<Value>);

impl Fields {
    /// Starts reading an array item.
    ///
    /// # Errors
    /// [`FrameError::Field`] if `item` is no array.
    pub fn of(item: Value, name: &'static str) -> Result<Self, FrameError> {
        match item {
            Value::Array(items) => Ok(Self(items.into_iter())),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// The next item, whatever it is.
    pub fn item(&mut self, name: &'static str) -> Result<Value, FrameError> {
        self.0.next().ok_or(FrameError::Field(name))
    }

    /// An unsigned integer of at most `max`.
    pub fn uint(&mut self, name: &'static str, max: u64) -> Result<u64, FrameError> {
        let Value::Integer(number) = self.item(name)? else {
            return Err(FrameError::Field(name));
        };
        let number = u64::try_from(number).map_err(|_| FrameError::Field(name))?;
        if number > max {
            Err(FrameError::Bound(name))
        } else {
            Ok(number)
        }
    }

    /// An unsigned integer that fits into 32 bits.
    pub fn u32(&mut self, name: &'static str) -> Result<u32, FrameError> {
        let number = self.uint(name, u64::from(u32::MAX))?;
        u32::try_from(number).map_err(|_| FrameError::Bound(name))
    }

    /// A byte string of exactly `N` bytes.
    pub fn fixed<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], FrameError> {
        let Value::Bytes(bytes) = self.item(name)? else {
            return Err(FrameError::Field(name));
        };
        bytes.try_into().map_err(|_| FrameError::Bound(name))
    }

    /// A byte string of exactly `N` bytes, or null.
    pub fn fixed_or_null<const N: usize>(
        &mut self,
        name: &'static str,
    ) -> Result<Option<[u8; N]>, FrameError> {
        match self.item(name)? {
            Value::Null => Ok(None),
            Value::Bytes(bytes) => bytes
                .try_into()
                .map(Some)
                .map_err(|_| FrameError::Bound(name)),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// A byte string of at most `max` bytes.
    pub fn bytes(&mut self, name: &'static str, max: usize) -> Result<Vec<u8>, FrameError> {
        match self.item(name)? {
            Value::Bytes(bytes) if bytes.len() <= max => Ok(bytes),
            Value::Bytes(_) => Err(FrameError::Bound(name)),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// A text of 1 to `max` bytes.
    pub fn text(&mut self, name: &'static str, max: usize) -> Result<String, FrameError> {
        match self.item(name)? {
            Value::Text(text) if (1..=max).contains(&text.len()) => Ok(text),
            Value::Text(_) => Err(FrameError::Bound(name)),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// An array of at most `max` items.
    pub fn array(&mut self, name: &'static str, max: usize) -> Result<Vec<Value>, FrameError> {
        match self.item(name)? {
            Value::Array(items) if items.len() <= max => Ok(items),
            Value::Array(_) => Err(FrameError::Bound(name)),
            _ => Err(FrameError::Field(name)),
        }
    }

    /// Checks that nothing is left: unknown fields are refused.
    pub fn end(mut self) -> Result<(), FrameError> {
        if self.0.next().is_some() {
            Err(FrameError::UnknownField)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_encoding_is_accepted() {
        assert!(decode(&[0x01]).is_ok());
        assert_eq!(decode(&[0x18, 0x01]), Err(FrameError::NotDeterministic));
        assert_eq!(
            decode(&[0x9f, 0x01, 0xff]),
            Err(FrameError::NotDeterministic)
        );
        assert_eq!(
            decode(&[0x5f, 0x41, 0x00, 0xff]),
            Err(FrameError::NotDeterministic)
        );
        assert_eq!(decode(&[0x01, 0x00]), Err(FrameError::Form));
        assert_eq!(decode(&[]), Err(FrameError::Form));
    }

    #[test]
    fn maps_floats_tags_and_booleans_are_refused() {
        for input in [
            &[0xa0][..],
            &[0xf9, 0, 0],
            &[0xc1, 0x01],
            &[0xf5],
            &[0x81, 0xa0],
        ] {
            assert_eq!(
                decode(input),
                Err(FrameError::NotDeterministic),
                "{input:02x?}"
            );
        }
    }

    #[test]
    fn a_claimed_length_is_not_allocated() {
        // An array and a byte string that claim 2⁶⁰ elements.
        assert_eq!(
            decode(&[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::Form)
        );
        assert_eq!(
            decode(&[0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::Form)
        );
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert_eq!(decode(&[0x81; 100]), Err(FrameError::Form));
    }
}
