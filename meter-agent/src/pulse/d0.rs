//! Plain-text telegrams of IEC 62056-21 ("D0", formerly IEC 1107): what a meter sends unasked
//! (mode D) or after a request (modes A, B, C).
//!
//! ```text
//! /EBZ5DD3BZ06ETA_107                       maker, offered speed, type
//!
//! 1-0:1.8.0*255(012345.6789*kWh)            data lines
//! !                                         the end
//! ```
//!
//! After a request the lines stand between STX and ETX, and a checksum follows.

use std::str;

use dcnet::units::MilliwattHours;

use super::input::Fault;
use super::obis::Obis;
use super::optical::{Event, Telegrams};
use crate::energy::{self, EnergyUnit};

/// Asks any meter that hears it for its values.
pub const REQUEST: &[u8] = b"/?!\r\n";

/// The longest line; the standard allows 78 characters.
const LONGEST_LINE: usize = 256;
/// The longest telegram: a standard readout of a meter with all its billing periods has some KiB.
const LONGEST: usize = 32 * 1024;

const STX: u8 = 0x02;
const ETX: u8 = 0x03;
const ACK: u8 = 0x06;

/// How a character is put into the ten bits on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum Framing {
    /// Seven bits and even parity, as the standard wants.
    #[default]
    #[serde(rename = "7e1")]
    SevenEven,
    /// Eight bits.
    #[serde(rename = "8n1")]
    Eight,
}

impl Framing {
    /// Characters as bytes of a port with eight bits and no parity.
    pub fn encode(self, text: &[u8]) -> Vec<u8> {
        let encoded = |byte: &u8| match self {
            Self::SevenEven if !byte.count_ones().is_multiple_of(2) => byte | 0x80,
            _ => *byte,
        };
        text.iter().map(encoded).collect()
    }

    /// The character in such a byte, if it is sound.
    fn decode(self, byte: u8) -> Option<u8> {
        let sound = match self {
            Self::SevenEven => byte.count_ones().is_multiple_of(2),
            Self::Eight => byte.is_ascii(),
        };
        sound.then_some(byte & 0x7f)
    }
}

/// A speed that a meter offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speed {
    /// In baud.
    pub baud: u32,
    /// What the meter waits for before it changes to it, if anything.
    pub acknowledgement: Option<Vec<u8>>,
}

/// The speed of the fourth character of an identification (IEC 62056-21, section 6.3.14); `None`
/// if the meter keeps its speed (mode A).
pub fn speed(offer: u8) -> Option<Speed> {
    match offer {
        b'0'..=b'6' => Some(Speed {
            baud: 300 << (offer - b'0'),
            acknowledgement: Some(vec![ACK, b'0', offer, b'0', b'\r', b'\n']),
        }),
        b'A'..=b'F' => Some(Speed {
            baud: 600 << (offer - b'A'),
            acknowledgement: None,
        }),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a telegram.
    Outside,
    /// In the first line.
    Identification,
    /// In the lines after it.
    Lines,
    /// After the last line of a telegram with a checksum.
    End,
    /// After ETX.
    Checksum,
}

/// Finds the total energy in a stream of telegrams.
#[derive(Debug)]
pub struct D0Telegrams {
    codes: Vec<Obis>,
    framing: Framing,
    state: State,
    line: Vec<u8>,
    length: usize,
    /// Of what follows STX; `None` without one.
    checksum: Option<u8>,
    found: Vec<Option<MilliwattHours>>,
    others: Vec<Obis>,
}

impl D0Telegrams {
    /// The sum of these values is the total; all of them have to be in a telegram.
    pub fn new(codes: Vec<Obis>, framing: Framing) -> Self {
        Self {
            found: vec![None; codes.len()],
            codes,
            framing,
            state: State::Outside,
            line: Vec::new(),
            length: 0,
            checksum: None,
            others: Vec::new(),
        }
    }

    fn fail(&mut self, kind: &'static str, detail: &str) -> Option<Event> {
        self.reset();
        Some(Event::Fault(Fault::new(kind, detail)))
    }

    fn character(&mut self, character: u8) -> Option<Event> {
        self.length += 1;
        if self.length > LONGEST || self.line.len() > LONGEST_LINE {
            return self.fail(
                "telegram too long",
                "a telegram or one of its lines is too long; look at the position of the optical head",
            );
        }
        if character == STX && self.line.is_empty() && self.checksum.is_none() {
            self.checksum = Some(0);
            return None;
        }
        if let Some(checksum) = &mut self.checksum {
            *checksum ^= character;
        }
        if character != b'\n' {
            self.line.push(character);
            return None;
        }
        let mut line = std::mem::take(&mut self.line);
        while line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.state == State::Identification {
            self.identification(&line)
        } else {
            self.data(&line)
        }
    }

    fn identification(&mut self, line: &[u8]) -> Option<Event> {
        match *line {
            // Our own request, mirrored by the glass of the meter.
            [b'?', ..] => {
                self.reset();
                None
            }
            [a, b, c, offer, ..] if [a, b, c].iter().all(u8::is_ascii_alphabetic) => {
                self.state = State::Lines;
                Some(Event::Identified(offer))
            }
            _ => self.fail(
                "identification of a telegram",
                "a telegram does not begin with the maker of the meter; look at the position of \
                 the optical head and at `baud` and `framing`",
            ),
        }
    }

    fn data(&mut self, line: &[u8]) -> Option<Event> {
        if line == b"!" {
            if self.checksum.is_some() {
                self.state = State::End;
                return None;
            }
            return Some(self.finish());
        }
        let read = str::from_utf8(line)
            .ok()
            .and_then(data_sets)
            .map(|sets| sets.into_iter().try_for_each(|set| self.value(set)));
        match read {
            Some(Ok(())) => None,
            Some(Err(fault)) => {
                self.reset();
                Some(Event::Fault(fault))
            }
            None => {
                let event = self.fail(
                    "line of a telegram",
                    "a line of a telegram is damaged, or the telegram was cut off; look at the \
                     position of the optical head",
                );
                // A telegram that was cut off is followed by the next one.
                let next = line.rsplit(|byte| *byte == b'/').next();
                if let (true, Some(next)) = (line.contains(&b'/'), next) {
                    self.state = State::Identification;
                    self.identification(next);
                }
                event
            }
        }
    }

    fn value(&mut self, (address, value): (&str, &str)) -> Result<(), Fault> {
        let Some(code) = Obis::from_telegram(address) else {
            return Ok(());
        };
        let Some(index) = self.codes.iter().position(|wanted| *wanted == code) else {
            if code.is_energy() {
                self.others.push(code);
            }
            return Ok(());
        };
        let wrong = |what: &str| {
            Fault::new(
                "value is no energy",
                format!("the value of {code} in a telegram is {what}"),
            )
        };
        let (number, unit) = value.split_once('*').ok_or_else(|| wrong("without unit"))?;
        let unit = match unit {
            "kWh" => EnergyUnit::KilowattHours,
            "Wh" => EnergyUnit::WattHours,
            _ => return Err(wrong("not in kWh or Wh")),
        };
        let energy = energy::parse(number, unit).map_err(|error| wrong(&error.to_string()))?;
        match self.found.get_mut(index) {
            Some(Some(other)) if *other != energy => Err(wrong("there twice, and not the same")),
            Some(place) => {
                *place = Some(energy);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn finish(&mut self) -> Event {
        let total = super::optical::sum(&self.codes, &self.found, &self.others);
        self.reset();
        total.map_or_else(Event::Fault, Event::Total)
    }
}

/// Addresses and values of a line such as `1.8.0(000123.4*kWh)`; `None` if it has another form.
/// Of several values of one address only the first is of interest.
fn data_sets(line: &str) -> Option<Vec<(&str, &str)>> {
    let printable = line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if !printable || line.starts_with('/') || line.starts_with('!') {
        return None;
    }
    let mut sets = Vec::new();
    let mut rest = line.trim_end();
    while !rest.is_empty() {
        let (address, after) = rest.split_once('(')?;
        let (value, after) = after.split_once(')')?;
        if address.contains(')') || value.contains('(') {
            return None;
        }
        if !address.is_empty() {
            sets.push((address, value));
        }
        rest = after;
    }
    Some(sets)
}

impl Telegrams for D0Telegrams {
    fn push(&mut self, byte: u8) -> Option<Event> {
        let character = self.framing.decode(byte);
        if self.state == State::Outside {
            if character == Some(b'/') {
                self.state = State::Identification;
            }
            return None;
        }
        // The checksum has a parity bit as everything else.
        let Some(character) = character else {
            return self.fail(
                "parity",
                "a character of a telegram is damaged; look at the position of the optical head, \
                 and whether framing = \"8n1\" is right",
            );
        };
        match self.state {
            // Noise looked like a beginning: no identification holds this character.
            State::Identification if character == b'/' => {
                self.line.clear();
                None
            }
            State::Outside | State::Identification | State::Lines => self.character(character),
            State::End if character == ETX => {
                self.checksum = self.checksum.map(|checksum| checksum ^ ETX);
                self.state = State::Checksum;
                None
            }
            State::Checksum if self.checksum == Some(character) => Some(self.finish()),
            State::End | State::Checksum => self.fail(
                "checksum of a telegram",
                "the checksum of a telegram does not match; look at the position of the optical head",
            ),
        }
    }

    fn reset(&mut self) {
        self.state = State::Outside;
        self.line.clear();
        self.length = 0;
        self.checksum = None;
        self.found.fill(None);
        self.others.clear();
    }
}

#[cfg(test)]
mod tests;
