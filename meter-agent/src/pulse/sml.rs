//! SML telegrams, as German meters send them by their optical interface (BSI TR-03109-1, annex
//! IV; SML 1.04): transport and syntax by `sml-rs`, values by us.

use dcnet::units::MilliwattHours;
use sml_rs::parser::common::{ListEntry, Value};
use sml_rs::parser::streaming::{ParseEvent, Parser};
use sml_rs::transport::{DecodeErr, Decoder};
use sml_rs::util::ArrayBuf;

use super::input::Fault;
use super::obis::Obis;
use super::optical::{Event, Telegrams};
use crate::energy;

/// Telegrams of meters have 200 to 900 bytes.
const LONGEST: usize = 4096;

/// What every telegram begins with.
const START: [u8; 8] = [0x1b, 0x1b, 0x1b, 0x1b, 1, 1, 1, 1];

/// Bytes without a telegram after which the decoder is set back: it counts what it skips in
/// 16 bits.
const SKIP: u64 = 0x7fff;

/// Wh in the list of units of DLMS/COSEM (IEC 62056-62).
const WATT_HOURS: u8 = 30;

/// Finds the total energy in a stream of SML telegrams.
pub struct SmlTelegrams {
    decoder: Decoder<ArrayBuf<LONGEST>>,
    codes: Vec<Obis>,
    /// The last bytes.
    window: [u8; START.len()],
    /// Bytes since the last telegram.
    skipped: u64,
}

impl SmlTelegrams {
    /// The sum of these values is the total; all of them have to be in a telegram.
    pub fn new(codes: Vec<Obis>) -> Self {
        Self {
            decoder: Decoder::new(),
            codes,
            window: [0; START.len()],
            skipped: 0,
        }
    }

    /// A telegram has begun, whatever came before it. The decoder by itself misses a beginning
    /// right after a stray escape character.
    fn begin(&mut self) -> Option<Event> {
        let before = self.skipped.saturating_sub(START.len() as u64);
        self.decoder.reset();
        for byte in START {
            // Of the eight none ends a telegram, and after a reset none is out of place.
            let _ = self.decoder.push_byte(byte);
        }
        self.skipped = 0;
        (before > 0).then(|| Event::Fault(outside(before)))
    }
}

impl Telegrams for SmlTelegrams {
    fn push(&mut self, byte: u8) -> Option<Event> {
        self.window.rotate_left(1);
        if let Some(last) = self.window.last_mut() {
            *last = byte;
        }
        self.skipped += 1;
        if self.skipped.is_multiple_of(SKIP) {
            self.decoder.reset();
        }
        let event = match self.decoder.push_byte(byte) {
            Ok(None) | Err(DecodeErr::DiscardedBytes(_)) => None,
            Ok(Some(telegram)) => {
                Some(total(telegram, &self.codes).map_or_else(Event::Fault, Event::Total))
            }
            Err(error) => Some(Event::Fault(damaged(&error))),
        };
        if event.is_some() {
            self.skipped = 0;
            return event;
        }
        if self.window == START {
            return self.begin();
        }
        None
    }

    fn reset(&mut self) {
        self.decoder.reset();
        self.window.fill(0);
        self.skipped = 0;
    }
}

fn outside(count: u64) -> Fault {
    Fault::new(
        "bytes outside a telegram",
        format!(
            "{count} bytes were outside any whole SML telegram, as at the start of reading; if it \
             goes on, look at the position of the optical head and at `baud`"
        ),
    )
}

fn damaged(error: &DecodeErr) -> Fault {
    match error {
        DecodeErr::DiscardedBytes(count) => outside(*count as u64),
        DecodeErr::InvalidMessage { .. } => Fault::new(
            "checksum of a telegram",
            "the checksum of an SML telegram does not match; look at the position of the \
             optical head",
        ),
        DecodeErr::OutOfMemory => Fault::new(
            "telegram too long",
            format!("an SML telegram is longer than {LONGEST} bytes"),
        ),
        DecodeErr::InvalidEsc(_) => Fault::new(
            "damaged telegram",
            "an SML telegram holds an unknown escape sequence; look at the position of the \
             optical head",
        ),
    }
}

/// The sum of `codes` in a telegram whose checksum matched.
fn total(telegram: &[u8], codes: &[Obis]) -> Result<MilliwattHours, Fault> {
    // A list that claims 2³² − 1 entries overflows the parser's counter. Its length field
    // holds six such bytes in a row; no meter sends them.
    if telegram.windows(6).any(|bytes| bytes == [0x8f; 6]) {
        return Err(Fault::new(
            "syntax of a telegram",
            "an SML telegram has a list of impossible length",
        ));
    }
    let mut found: Vec<Option<MilliwattHours>> = vec![None; codes.len()];
    let mut others = Vec::new();
    for event in Parser::new(telegram) {
        let event = event.map_err(|error| {
            Fault::new(
                "syntax of a telegram",
                format!("an SML telegram cannot be read: {error}"),
            )
        })?;
        let ParseEvent::ListEntry(entry) = event else {
            continue;
        };
        let Some(code) = Obis::from_bytes(entry.obj_name) else {
            continue;
        };
        match codes.iter().position(|wanted| *wanted == code) {
            Some(index) => {
                if let Some(place) = found.get_mut(index) {
                    *place = Some(entry_energy(&entry, code)?);
                }
            }
            None => others.push(code),
        }
    }
    super::optical::sum(codes, &found, &others)
}

fn entry_energy(entry: &ListEntry<'_>, code: Obis) -> Result<MilliwattHours, Fault> {
    let wrong = |what: &str| {
        Fault::new(
            "value is no energy",
            format!("the value of {code} in an SML telegram is {what}"),
        )
    };
    if entry.unit != Some(WATT_HOURS) {
        return Err(wrong("not in Wh"));
    }
    let value = match entry.value {
        Value::I8(value) => i128::from(value),
        Value::I16(value) => i128::from(value),
        Value::I32(value) => i128::from(value),
        Value::I64(value) => i128::from(value),
        Value::U8(value) => i128::from(value),
        Value::U16(value) => i128::from(value),
        Value::U32(value) => i128::from(value),
        Value::U64(value) => i128::from(value),
        Value::Bool(_) | Value::Bytes(_) | Value::List(_) => return Err(wrong("no number")),
    };
    let value = u128::try_from(value).map_err(|_| wrong("below zero"))?;
    let power = i32::from(entry.scaler.unwrap_or(0)) + 3;
    energy::scaled(value, power).ok_or_else(|| wrong("too large"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sml_rs::transport::encode_streaming;

    use super::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut telegrams = SmlTelegrams::new(vec![Obis::IMPORT]);
        bytes.iter().filter_map(|b| telegrams.push(*b)).collect()
    }

    #[test]
    fn a_list_of_impossible_length_is_refused() {
        let mut message = vec![0x76, 0x02, 0x01, 0x62, 0, 0x62, 0, 0x72, 0x63, 7, 1, 0x77];
        message.extend([0x01, 0x02, 0x01, 0x01, 0x01]);
        message.extend([0xff, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 0x8f, 0x0f]);
        let telegram: Vec<u8> = encode_streaming(message).collect();
        let found = events(&telegram);
        assert!(
            matches!(&found[..], [Event::Fault(fault)] if fault.kind == "syntax of a telegram"),
            "{found:?}"
        );
    }

    #[test]
    fn much_noise_is_survived() {
        let mut bytes = vec![0x55; 200_000];
        assert_eq!(events(&bytes), []);
        // Escape characters right before, and parts of a beginning.
        for noise in [&[0x1b][..], &[0x1b; 6], &START[..5], &START[..3]] {
            bytes.extend(noise);
            bytes.extend(encode_streaming([0x76]));
        }
        let kinds: Vec<_> = events(&bytes)
            .into_iter()
            .map(|event| match event {
                Event::Fault(fault) => fault.kind,
                other => panic!("{other:?}"),
            })
            .collect();
        let found = kinds.iter().filter(|kind| **kind == "syntax of a telegram");
        assert_eq!(found.count(), 4, "{kinds:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            events(&bytes);
        }

        #[test]
        fn no_content_panics(content in prop::collection::vec(
            prop_oneof![any::<u8>(), 0x60u8..0x80, 0u8..9, 0xf0u8..=0xff, Just(0x8f)],
            0..200,
        )) {
            let telegram: Vec<u8> = encode_streaming(content).collect();
            let ours: Vec<_> = events(&telegram);
            prop_assert!(!ours.is_empty());
        }
    }
}
