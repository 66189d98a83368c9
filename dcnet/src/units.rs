//! Units of measurement as types: energy in milliwatt-hours, pulses, and the
//! pulse constant printed on every S0 meter.

use std::fmt;

/// Readings stay below this bound: 2⁴⁰ mWh is about 1.1 GWh (`docs/protocol.md`, "Openings").
pub const READING_LIMIT: u64 = 1 << 40;

/// An amount of energy in mWh. Never negative; a register counts upwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MilliwattHours(pub u64);

impl MilliwattHours {
    /// `self + other`, or `None` past 2⁶⁴ − 1 mWh.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// `self − earlier`, or `None` when that would be negative (a register that went back).
    pub fn checked_sub(self, earlier: Self) -> Option<Self> {
        self.0.checked_sub(earlier.0).map(Self)
    }
}

impl fmt::Display for MilliwattHours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mWh", self.0)
    }
}

/// A number of pulses from an S0 output (DIN EN 62053-31).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pulses(pub u64);

/// The pulse constant of a meter in impulses per kWh.
///
/// A pulse need not be a whole number of mWh (3200 imp/kWh is 312.5 mWh): the
/// register keeps pulses and converts only their total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImpulsesPerKwh(u32);

impl ImpulsesPerKwh {
    /// A constant between 1 and 100 000 imp/kWh; `None` outside.
    pub fn new(constant: u32) -> Option<Self> {
        (1..=100_000).contains(&constant).then_some(Self(constant))
    }

    /// The constant in imp/kWh.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The energy of a pulse *total*, rounded down to whole mWh.
    ///
    /// Apply it to totals, never to increments: rounding then never accumulates.
    /// `None` when the result does not fit into 64 bits.
    pub fn energy(self, total: Pulses) -> Option<MilliwattHours> {
        let mwh = u128::from(total.0)
            .saturating_mul(1_000_000)
            .checked_div(self.0.into())?;
        u64::try_from(mwh).ok().map(MilliwattHours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_at_1000_imp_per_kwh_is_one_wh() {
        let k = ImpulsesPerKwh::new(1000).unwrap();
        assert_eq!(k.energy(Pulses(1)), Some(MilliwattHours(1000)));
    }

    #[test]
    fn rounding_of_an_odd_constant_does_not_accumulate() {
        let k = ImpulsesPerKwh::new(3200).unwrap();
        assert_eq!(k.energy(Pulses(3200)), Some(MilliwattHours(1_000_000)));
        assert_eq!(k.energy(Pulses(1)), Some(MilliwattHours(312)));
        assert_eq!(k.energy(Pulses(2)), Some(MilliwattHours(625)));
    }

    #[test]
    fn absurd_constants_and_totals_are_refused() {
        assert_eq!(ImpulsesPerKwh::new(0), None);
        assert_eq!(ImpulsesPerKwh::new(100_001), None);
        let k = ImpulsesPerKwh::new(1).unwrap();
        assert_eq!(k.energy(Pulses(u64::MAX)), None);
    }
}
