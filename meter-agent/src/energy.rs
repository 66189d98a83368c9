//! Amounts of energy as devices write them, taken exactly: decimal digits are never
//! put through a floating-point number.

use std::fmt;

use dcnet::units::MilliwattHours;

/// More digits than any device writes; a mantissa of so many fits into 128 bits.
const DIGITS: usize = 38;

/// The unit a device writes its total in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub enum EnergyUnit {
    /// kWh, the default.
    #[default]
    #[serde(rename = "kWh")]
    KilowattHours,
    /// Wh.
    #[serde(rename = "Wh")]
    WattHours,
}

impl EnergyUnit {
    /// The power of ten that one of it is in mWh.
    fn power(self) -> i32 {
        match self {
            Self::KilowattHours => 6,
            Self::WattHours => 3,
        }
    }
}

/// Why a text is no total energy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEnergy {
    /// Not a decimal number.
    #[error("no decimal number")]
    Number,
    /// Below zero.
    #[error("below zero")]
    Negative,
    /// Past 2⁶⁴ − 1 mWh, or with more than 38 digits.
    #[error("too large")]
    TooLarge,
}

/// Reads a number such as `012345.6789` or `1.5e3`; what is finer than 1 mWh is cut off.
/// Neither spaces nor a unit may stand beside it.
///
/// # Errors
/// [`NotEnergy`].
pub fn parse(text: &str, unit: EnergyUnit) -> Result<MilliwattHours, NotEnergy> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, parse_exponent(exponent)?),
        None => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(NotEnergy::Number);
    }
    let all = [whole, fraction].concat();
    let significant = all.trim_start_matches('0');
    if significant.is_empty() {
        return Ok(MilliwattHours(0));
    }
    if negative {
        return Err(NotEnergy::Negative);
    }
    if significant.len() > DIGITS {
        return Err(NotEnergy::TooLarge);
    }
    let mantissa = significant.parse().map_err(|_| NotEnergy::Number)?;
    let places = i32::try_from(fraction.len()).map_err(|_| NotEnergy::TooLarge)?;
    scaled(mantissa, exponent - places + unit.power()).ok_or(NotEnergy::TooLarge)
}

fn parse_exponent(text: &str) -> Result<i32, NotEnergy> {
    let digits = text.trim_start_matches(['+', '-']);
    if text.len() - digits.len() > 1 || digits.is_empty() || digits.len() > 4 {
        return Err(NotEnergy::Number);
    }
    text.parse().map_err(|_| NotEnergy::Number)
}

/// `mantissa · 10^power` mWh, rounded down; `None` past 2⁶⁴ − 1 mWh.
pub fn scaled(mantissa: u128, power: i32) -> Option<MilliwattHours> {
    let factor = 10u128.checked_pow(power.unsigned_abs());
    let value = match (factor, power < 0) {
        (Some(factor), true) => mantissa / factor,
        (None, true) => 0,
        (Some(factor), false) => mantissa.checked_mul(factor)?,
        (None, false) if mantissa == 0 => 0,
        (None, false) => return None,
    };
    u64::try_from(value).ok().map(MilliwattHours)
}

/// Shows mWh as kWh, with as many decimals as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kwh(pub i128);

impl From<MilliwattHours> for Kwh {
    fn from(energy: MilliwattHours) -> Self {
        Self(energy.0.into())
    }
}

impl fmt::Display for Kwh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.unsigned_abs();
        let sign = if self.0 < 0 { "-" } else { "" };
        let (whole, rest) = (size / 1_000_000, size % 1_000_000);
        let decimals = format!("{rest:06}");
        let decimals = decimals.trim_end_matches('0');
        if decimals.is_empty() {
            write!(f, "{sign}{whole}")
        } else {
            write!(f, "{sign}{whole}.{decimals}")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KWH: EnergyUnit = EnergyUnit::KilowattHours;
    const WH: EnergyUnit = EnergyUnit::WattHours;

    #[test]
    fn numbers_as_devices_write_them() {
        let cases = [
            ("012345.6789", KWH, 12_345_678_900),
            ("12345.6787109375", KWH, 12_345_678_710),
            ("0.1", KWH, 100_000),
            ("0", KWH, 0),
            ("-0.00", KWH, 0),
            ("7.", KWH, 7_000_000),
            ("1.5e3", WH, 1_500_000),
            ("15E-1", WH, 1_500),
            ("8765432.1", WH, 8_765_432_100),
            ("0.0009", WH, 0),
            ("000000000000000000000000000000000000000000.001", KWH, 1_000),
        ];
        for (text, unit, expected) in cases {
            assert_eq!(parse(text, unit), Ok(MilliwattHours(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_total_is_refused() {
        for text in [
            "", ".", ".5", "-", "1,5", "1 ", " 1", "+1", "nan", "inf", "1e", "1e+-2", "0x10",
            "1.2.3", "1e99999", "null", "1_000",
        ] {
            assert_eq!(parse(text, KWH), Err(NotEnergy::Number), "{text:?}");
        }
        assert_eq!(parse("-0.001", KWH), Err(NotEnergy::Negative));
        for text in ["1e30", "18446744073710", &"9".repeat(39), "1e9999"] {
            assert_eq!(parse(text, KWH), Err(NotEnergy::TooLarge), "{text}");
        }
        assert_eq!(
            parse("18446744073709.551615", KWH),
            Ok(MilliwattHours(u64::MAX))
        );
    }

    #[test]
    fn kwh_are_shown_without_idle_zeros() {
        let shown = |mwh| Kwh(mwh).to_string();
        assert_eq!(shown(12_345_678_900), "12345.6789");
        assert_eq!(shown(-1_500_000), "-1.5");
        assert_eq!(shown(2_000_000), "2");
        assert_eq!(shown(1), "0.000001");
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back_as_the_same(energy: u64) {
            let shown = Kwh::from(MilliwattHours(energy)).to_string();
            prop_assert_eq!(parse(&shown, KWH), Ok(MilliwattHours(energy)));
        }

        #[test]
        fn no_text_panics(text in "[-+0-9.eE]{0,60}", wild: String, power: i32, mantissa: u128) {
            let _ = parse(&text, KWH);
            let _ = parse(&wild, WH);
            let _ = scaled(mantissa, power);
        }
    }
}
