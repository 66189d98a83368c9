//! OBIS codes of electricity (IEC 62056-61): what a value in a telegram means.

use std::fmt;
use std::str::FromStr;

/// Electricity, in the first of the six groups of a code.
const ELECTRICITY: u8 = 1;
/// The last group of a present value; others are those of earlier billing periods.
const PRESENT: u8 = 255;

/// A present value of electricity by its groups C, D and E, such as `1.8.0`: energy drawn, all
/// tariffs. `2.8.0` is energy fed in, `1.8.1` energy drawn in the first tariff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Obis([u8; 3]);

impl Obis {
    /// Energy drawn, all tariffs.
    pub const IMPORT: Self = Self([1, 8, 0]);

    /// The code of six bytes, if it is a present value of electricity.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [ELECTRICITY, _, c, d, e, PRESENT] => Some(Self([c, d, e])),
            _ => None,
        }
    }

    /// The code as a telegram of IEC 62056-21 writes it: `1-0:1.8.0*255`, or shorter without
    /// what is before the colon or from the star on. `None` for any other value.
    pub fn from_telegram(text: &str) -> Option<Self> {
        let (medium, rest) = text.split_once(':').unwrap_or(("1-0", text));
        let (code, period) = rest.split_once(['*', '&']).unwrap_or((rest, "255"));
        let (medium, channel) = medium.split_once('-')?;
        let present = period == "255";
        (group(medium)? == ELECTRICITY && group(channel).is_some() && present)
            .then(|| code.parse().ok())?
    }

    /// Whether it is an active energy: groups C of 1 or 2 and D of 8.
    pub fn is_energy(self) -> bool {
        matches!(self.0, [1 | 2, 8, _])
    }
}

fn group(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// A text that is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no OBIS code; write 1.8.0 for energy drawn, 2.8.0 for energy fed in")]
pub struct NoObis;

impl FromStr for Obis {
    type Err = NoObis;

    /// Of the form `1.8.0`.
    fn from_str(text: &str) -> Result<Self, NoObis> {
        let mut groups = text.split('.').map(group);
        match [groups.next(), groups.next(), groups.next(), groups.next()] {
            [Some(Some(c)), Some(Some(d)), Some(Some(e)), None] => Ok(Self([c, d, e])),
            _ => Err(NoObis),
        }
    }
}

impl fmt::Display for Obis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [c, d, e] = self.0;
        write!(f, "{c}.{d}.{e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_in_every_form() {
        let import = Some(Obis::IMPORT);
        assert_eq!("1.8.0".parse().ok(), import);
        assert_eq!(Obis::from_bytes(&[1, 0, 1, 8, 0, 255]), import);
        for text in ["1-0:1.8.0*255", "1-1:1.8.0", "1.8.0", "1.8.0*255"] {
            assert_eq!(Obis::from_telegram(text), import, "{text}");
        }
        assert_eq!(Obis::IMPORT.to_string(), "1.8.0");
    }

    #[test]
    fn other_values_are_not_taken_for_it() {
        for text in [
            "1-0:1.8.0*01",
            "1.8.0*00",
            "7-0:1.8.0",
            "x:1.8.0",
            "1-:1.8.0",
            "1.8",
            "1.8.0.0",
            "",
            "C.1.0",
            "1.8.300",
            "1.8.+1",
            "1-0:",
            "*255",
        ] {
            assert_eq!(Obis::from_telegram(text), None, "{text}");
        }
        assert_eq!(Obis::from_bytes(&[1, 0, 1, 8, 0, 1]), None);
        assert_eq!(Obis::from_bytes(&[1, 0, 1, 8, 0]), None);
        assert_eq!(Obis::from_bytes(&[7, 0, 3, 0, 0, 255]), None);
        assert!(!"16.7.0".parse::<Obis>().unwrap().is_energy());
    }
}
