//! Power from the spacing of pulses.
//!
//! Pulses Δt apart at K imp/kWh are 3.6·10⁶ / (K·Δt) watts. Once the next pulse is late the
//! power must be less than that: no pulse for t seconds means less than 3.6·10⁶ / (K·t) watts,
//! a bound that decays by itself. A time-out instead would show a zero that is none: at
//! 1000 imp/kWh 10 W are a pulse every 6 minutes.

use std::time::Duration;

use dcnet::units::{ImpulsesPerKwh, Pulses};

/// What is known of the power at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Power {
    /// Milliwatts.
    pub milliwatts: u64,
    /// Whether it may be less: the next pulse is late, or there were not two yet.
    pub is_upper_bound: bool,
}

/// The power of one channel. All times are of one clock that never steps
/// ([`crate::clock::monotonic`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerMeter {
    constant: ImpulsesPerKwh,
    /// Of the newest pulse; before the first one, when the counting began.
    last: Duration,
    /// Between the newest pulses.
    spacing: Option<Duration>,
    has_pulse: bool,
}

impl PowerMeter {
    /// Of a channel that is counted from `start` on.
    pub fn new(constant: ImpulsesPerKwh, start: Duration) -> Self {
        Self {
            constant,
            last: start,
            spacing: None,
            has_pulse: false,
        }
    }

    /// Takes pulses, the last of which began at `at`. Several at once are taken as evenly
    /// spaced since the one before.
    pub fn count(&mut self, pulses: Pulses, at: Duration) {
        let Ok(count) = u32::try_from(pulses.0) else {
            return;
        };
        if let Some(spacing) = at.saturating_sub(self.last).checked_div(count) {
            if self.has_pulse && !spacing.is_zero() {
                self.spacing = Some(spacing);
            }
            self.has_pulse = true;
            self.last = self.last.max(at);
        }
    }

    /// Whether there were two pulses yet, so that even a bound has something measured before it.
    pub fn is_measured(&self) -> bool {
        self.spacing.is_some()
    }

    /// What is known at a moment; `None` in the first instant.
    pub fn at(&self, now: Duration) -> Option<Power> {
        let since = now.saturating_sub(self.last);
        match self.spacing {
            Some(spacing) if since <= spacing => self.power(spacing, false),
            _ => self.power(since, true),
        }
    }

    fn power(&self, spacing: Duration, is_upper_bound: bool) -> Option<Power> {
        // 3.6·10⁶ J per kWh, in mW and ns.
        let product = u128::from(self.constant.get()).checked_mul(spacing.as_nanos())?;
        let milliwatts = 3_600_000_000_000_000_000_u128.checked_div(product)?;
        Some(Power {
            milliwatts: u64::try_from(milliwatts).unwrap_or(u64::MAX),
            is_upper_bound,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn meter() -> PowerMeter {
        PowerMeter::new(ImpulsesPerKwh::new(1000).unwrap(), 100 * SECOND)
    }

    fn watts(meter: &PowerMeter, at: u32) -> (u64, bool) {
        let power = meter.at(at * SECOND).unwrap();
        (power.milliwatts / 1000, power.is_upper_bound)
    }

    #[test]
    fn two_pulses_give_the_power_and_a_late_third_one_a_bound_that_decays() {
        let mut meter = meter();
        assert_eq!(meter.at(100 * SECOND), None);
        assert_eq!(watts(&meter, 136), (100, true), "no pulse since the start");
        meter.count(Pulses(1), 200 * SECOND);
        assert_eq!(watts(&meter, 236), (100, true), "one pulse has no spacing");
        assert!(!meter.is_measured());
        meter.count(Pulses(1), 236 * SECOND);
        assert!(meter.is_measured());
        assert_eq!(watts(&meter, 236), (100, false));
        assert_eq!(watts(&meter, 272), (100, false));
        assert_eq!(watts(&meter, 308), (50, true));
        assert_eq!(watts(&meter, 596), (10, true), "6 minutes without one");
        meter.count(Pulses(1), 597 * SECOND);
        assert_eq!(watts(&meter, 597), (9, false));
    }

    #[test]
    fn several_pulses_at_once_are_evenly_spaced() {
        let mut meter = meter();
        meter.count(Pulses(7), 110 * SECOND);
        meter.count(Pulses(10), 120 * SECOND);
        assert_eq!(watts(&meter, 120), (3600, false));
        meter.count(Pulses(0), 130 * SECOND);
        assert_eq!(watts(&meter, 130), (360, true), "no pulse changes nothing");
        meter.count(Pulses(3), 120 * SECOND);
        assert_eq!(watts(&meter, 121), (3600, false), "no time has passed");
    }
}
