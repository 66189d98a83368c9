//! The form of packets from clients, checked before rumqttd's decoder sees them: it
//! ignores what follows the last field, reserved bits, U+0000 and repeated properties.

use crate::codec::Version;

/// What is wrong with a packet (MQTT 5, section 4.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It cannot be parsed.
    Malformed,
    /// It can, and says what it must not.
    Protocol,
}

use Fault::{Malformed, Protocol};

/// Where a property stands; each property is allowed in some of them.
mod place {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const WILL: u8 = 1 << 1;
    pub(super) const PUBLISH: u8 = 1 << 2;
    pub(super) const ACKNOWLEDGEMENT: u8 = 1 << 3;
    pub(super) const SUBSCRIBE: u8 = 1 << 4;
    pub(super) const UNSUBSCRIBE: u8 = 1 << 5;
    pub(super) const DISCONNECT: u8 = 1 << 6;
    pub(super) const MESSAGE: u8 = WILL | PUBLISH;
}

/// Reason codes of a client's DISCONNECT (MQTT 5, table 3-10).
const DISCONNECT_REASONS: [u8; 14] = [
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99,
];

/// Checks the body of a packet whose first byte has valid flags.
///
/// # Errors
/// The first fault of a packet that does not follow chapter 3 of the standard.
pub(crate) fn check(version: Version, first: u8, body: &[u8]) -> Result<(), Fault> {
    let mut fields = Fields(body);
    match first >> 4 {
        1 => fields.connect(version)?,
        3 => fields.publish(version, (first >> 1) & 3)?,
        4..=7 => {
            fields.identifier()?;
            if version == Version::V5 && !fields.0.is_empty() {
                fields.byte()?;
                fields.optional_properties(place::ACKNOWLEDGEMENT)?;
            }
        }
        8 => fields.subscribe(version)?,
        10 => fields.unsubscribe(version)?,
        14 if version == Version::V5 && !fields.0.is_empty() => {
            if !DISCONNECT_REASONS.contains(&fields.byte()?) {
                return Err(Protocol);
            }
            fields.optional_properties(place::DISCONNECT)?;
        }
        _ => {}
    }
    fields.end()
}

/// The length that `bytes` begin with, and the bytes it takes; `None` if it is cut off.
///
/// # Errors
/// If it has more than four bytes.
pub(crate) fn variable_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 4 {
        Ok(None)
    } else {
        Err(Malformed)
    }
}

/// Whether a length takes more bytes than it needs, which MQTT 5 forbids.
pub(crate) fn is_padded(value: usize, bytes: usize) -> bool {
    bytes > 1 && value >> (7 * (bytes - 1)) == 0
}

/// The fields not yet read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> Result<u16, Fault> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn binary(&mut self) -> Result<&'a [u8], Fault> {
        let length = usize::from(self.short()?);
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str, Fault> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Malformed)?;
        if text.contains('\0') {
            return Err(Malformed);
        }
        Ok(text)
    }

    fn topic(&mut self) -> Result<&'a str, Fault> {
        let topic = self.text()?;
        if topic.contains(['+', '#']) {
            return Err(Malformed);
        }
        Ok(topic)
    }

    fn identifier(&mut self) -> Result<(), Fault> {
        // MQTT 5 leaves open which fault it is.
        if self.short()? == 0 {
            return Err(Protocol);
        }
        Ok(())
    }

    fn length(&mut self) -> Result<usize, Fault> {
        let (value, bytes) = variable_length(self.0)?.ok_or(Malformed)?;
        if is_padded(value, bytes) {
            return Err(Malformed);
        }
        self.take(bytes)?;
        Ok(value)
    }

    fn end(&self) -> Result<(), Fault> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    fn connect(&mut self, version: Version) -> Result<(), Fault> {
        self.text()?;
        self.byte()?;
        let flags = self.byte()?;
        let (will, will_qos) = (flags & 4 != 0, (flags >> 3) & 3);
        let (user, password) = (flags & 0x80 != 0, flags & 0x40 != 0);
        if flags & 1 != 0
            || will_qos == 3
            || (!will && flags & 0x38 != 0)
            || (version == Version::V4 && password && !user)
        {
            return Err(Malformed);
        }
        self.short()?;
        self.properties(version, place::CONNECT)?;
        self.text()?;
        if will {
            self.properties(version, place::WILL)?;
            if self.topic()?.is_empty() {
                return Err(Malformed);
            }
            self.binary()?;
        }
        if user {
            self.text()?;
        }
        if password {
            self.binary()?;
        }
        Ok(())
    }

    fn publish(&mut self, version: Version, qos: u8) -> Result<(), Fault> {
        if qos == 3 {
            return Err(Malformed);
        }
        let topic = self.topic()?;
        if qos > 0 {
            self.identifier()?;
        }
        let found = self.properties(version, place::PUBLISH)?;
        if topic.is_empty() && found & (1 << 0x23) == 0 {
            return Err(Protocol);
        }
        self.0 = &[];
        Ok(())
    }

    fn subscribe(&mut self, version: Version) -> Result<(), Fault> {
        self.identifier()?;
        self.properties(version, place::SUBSCRIBE)?;
        if self.0.is_empty() {
            return Err(Protocol);
        }
        while !self.0.is_empty() {
            let filter = self.text()?;
            let options = self.byte()?;
            let reserved = match version {
                Version::V4 => 0xfc,
                Version::V5 => 0xc0,
            };
            if options & reserved != 0 || options & 3 == 3 {
                return Err(Malformed);
            }
            let (no_local, retain_handling) = (options & 4 != 0, (options >> 4) & 3);
            if retain_handling == 3 || (no_local && filter.starts_with("$share/")) {
                return Err(Protocol);
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, version: Version) -> Result<(), Fault> {
        self.identifier()?;
        self.properties(version, place::UNSUBSCRIBE)?;
        if self.0.is_empty() {
            return Err(Protocol);
        }
        while !self.0.is_empty() {
            self.text()?;
        }
        Ok(())
    }

    fn optional_properties(&mut self, place: u8) -> Result<(), Fault> {
        if !self.0.is_empty() {
            self.properties(Version::V5, place)?;
        }
        Ok(())
    }

    /// Reads the properties that MQTT 5 has here; a bit for each identifier that occurs.
    fn properties(&mut self, version: Version, place: u8) -> Result<u64, Fault> {
        if version == Version::V4 {
            return Ok(0);
        }
        let length = self.length()?;
        let mut inner = Fields(self.take(length)?);
        let mut found = 0_u64;
        while !inner.0.is_empty() {
            let identifier = inner.byte()?;
            inner.property(identifier, place)?;
            let bit = 1 << identifier;
            if found & bit != 0 && identifier != 0x26 {
                return Err(Protocol);
            }
            found |= bit;
        }
        let authentication = found & (1 << 0x15 | 1 << 0x16);
        if authentication == 1 << 0x16 {
            return Err(Protocol);
        }
        Ok(found)
    }

    /// Reads the value of a property (MQTT 5, table 2-4).
    fn property(&mut self, identifier: u8, place: u8) -> Result<(), Fault> {
        use place::{ACKNOWLEDGEMENT, CONNECT, DISCONNECT, MESSAGE, PUBLISH, SUBSCRIBE, WILL};
        let allowed = match identifier {
            0x01 | 0x02 | 0x03 | 0x08 | 0x09 => MESSAGE,
            0x0b if place == PUBLISH => return Err(Protocol),
            0x0b => SUBSCRIBE,
            0x11 => CONNECT | DISCONNECT,
            0x15 | 0x16 | 0x17 | 0x19 | 0x21 | 0x22 | 0x27 => CONNECT,
            0x18 => WILL,
            0x1f => ACKNOWLEDGEMENT | DISCONNECT,
            0x23 => PUBLISH,
            0x26 => u8::MAX,
            _ => return Err(Malformed),
        };
        if allowed & place == 0 {
            return Err(Malformed);
        }
        match identifier {
            0x01 | 0x17 | 0x19 => {
                if self.byte()? > 1 {
                    return Err(Protocol);
                }
            }
            0x02 | 0x11 | 0x18 => {
                self.take(4)?;
            }
            0x08 => {
                self.topic()?;
            }
            0x09 | 0x16 => {
                self.binary()?;
            }
            0x0b => {
                if self.length()? == 0 {
                    return Err(Protocol);
                }
            }
            0x21 => {
                if self.short()? == 0 {
                    return Err(Protocol);
                }
            }
            0x22 | 0x23 => {
                self.short()?;
            }
            0x26 => {
                self.text()?;
                self.text()?;
            }
            0x27 => {
                if self.take(4)? == [0; 4] {
                    return Err(Protocol);
                }
            }
            _ => {
                self.text()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_follow_the_last_field() {
        let connect = b"\0\x04MQTT\x04\x02\0\x3c\0\x01a";
        assert_eq!(check(Version::V4, 0x10, connect), Ok(()));
        let longer = [&connect[..], b"\0\x01u"].concat();
        assert_eq!(check(Version::V4, 0x10, &longer), Err(Malformed));
        assert_eq!(check(Version::V4, 0x40, &[0, 1]), Ok(()));
        assert_eq!(check(Version::V4, 0x40, &[0, 1, 0]), Err(Malformed));
        assert_eq!(check(Version::V5, 0x40, &[0, 1, 0]), Ok(()));
        assert_eq!(check(Version::V4, 0xe0, &[0]), Err(Malformed));
        assert_eq!(check(Version::V5, 0xe0, &[0]), Ok(()));
        assert_eq!(check(Version::V5, 0xc0, &[0]), Err(Malformed));
    }

    #[test]
    fn properties_stand_where_they_belong_and_once() {
        let publish = |properties: &[u8]| {
            let mut body = vec![0, 1, b'a', properties.len() as u8];
            body.extend_from_slice(properties);
            check(Version::V5, 0x30, &body)
        };
        assert_eq!(publish(&[1, 1, 0x26, 0, 1, b'k', 0, 1, b'v']), Ok(()));
        assert_eq!(publish(&[1, 1, 1, 1]), Err(Protocol), "twice");
        assert_eq!(publish(&[1, 2]), Err(Protocol), "neither 0 nor 1");
        assert_eq!(publish(&[0x11, 0, 0, 0, 1]), Err(Malformed), "CONNECT's");
        assert_eq!(publish(&[0x0b, 1]), Err(Protocol), "subscription");
        assert_eq!(publish(&[3, 0, 9, b'x']), Err(Malformed), "cut off");
        assert_eq!(publish(&[0x7f]), Err(Malformed), "unknown");
        assert_eq!(publish(&[8, 0, 1, b'#']), Err(Malformed), "wildcard");
    }

    #[test]
    fn a_length_is_as_short_as_it_can_be() {
        for (bytes, value, padded) in [
            (&[0x7f][..], 127, false),
            (&[0x80, 0x01], 128, false),
            (&[0x80, 0x00], 0, true),
            (&[0xff, 0x80, 0x00], 127, true),
        ] {
            assert_eq!(variable_length(bytes), Ok(Some((value, bytes.len()))));
            assert_eq!(is_padded(value, bytes.len()), padded, "{bytes:?}");
        }
        assert_eq!(variable_length(&[0x80]), Ok(None));
        assert_eq!(variable_length(&[0x80; 4]), Err(Malformed));
    }
}
