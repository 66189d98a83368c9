//! Power from the spacing of pulses.
//!
//! Pulses Δt apart at K imp/kWh are 3.6·10⁶ / (K·Δt) watts. Once the next pulse is late the
//! power must be less than that: no pulse for t seconds means less than 3.6·10⁶ / (K·t) watts,
//! a bound that decays by itself. A time-out instead would show a zero that is none: at
//! 1000 imp/kWh 10 W are a pulse every 6 minutes.
//!
//! **A device that shows its total** is silent between its readings, whatever it counts. So of a
//! channel that is read this way no pulse is late before the newest reading says so, and once
//! readings stay away nothing is known. Its display may step by more than a pulse: the bound is
//! of the least step that was seen.

use std::time::Duration;

use dcnet::units::{ImpulsesPerKwh, Pulses};

use crate::pulse::Batch;

/// Readings that stay away for so many times the usual gap between two have ended.
const MISSED: u32 = 3;
/// Gaps between readings, of which the longest is the usual one: devices send more often while
/// much changes.
const GAPS: usize = 8;

/// What is known of the power at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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
    /// Of a channel whose pulses come with the readings of a device's total.
    readings: Option<Readings>,
}

/// The readings of a device's total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Readings {
    newest: Option<Duration>,
    /// Between the last ones, newest first; zero for none.
    gaps: [Duration; GAPS],
    /// Pulses of the reading that is being taken, and when the last of them came.
    rise: (u64, Duration),
    /// The least rise of a reading in pulses. The steps of the display are no longer.
    step: Option<u64>,
}

impl PowerMeter {
    /// Of a channel that is counted pulse by pulse from `start` on.
    pub fn new(constant: ImpulsesPerKwh, start: Duration) -> Self {
        Self {
            constant,
            last: start,
            spacing: None,
            has_pulse: false,
            readings: None,
        }
    }

    /// Of a channel that follows the total a device shows.
    pub fn of_readings(constant: ImpulsesPerKwh) -> Self {
        Self {
            readings: Some(Readings::default()),
            ..Self::new(constant, Duration::ZERO)
        }
    }

    /// Takes a batch of the channel, with pulses or without.
    pub fn observe(&mut self, batch: &Batch) {
        let end = batch.monotonic().end;
        let (pulses, at) = (batch.pulses(), batch.last_pulse().unwrap_or(end));
        if batch.follows_a_gap() {
            let begin = batch.monotonic().start;
            (self.last, self.spacing, self.has_pulse) = (begin, None, false);
        }
        let Some(readings) = &mut self.readings else {
            self.count(pulses, at);
            return;
        };
        if batch.is_catching_up() {
            // When those came nobody knows.
            readings.rise = (0, end);
            (self.last, self.spacing, self.has_pulse) = (end, None, false);
        } else if pulses.0 > 0 {
            readings.rise = (readings.rise.0.saturating_add(pulses.0), at);
        }
        if !batch.ends_a_reading() {
            return;
        }
        readings.take(end);
        let (rise, at) = std::mem::take(&mut readings.rise);
        if rise > 0 {
            readings.step = Some(readings.step.map_or(rise, |step| step.min(rise)));
            self.count(Pulses(rise), at);
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

    /// What is known at a moment; `None` in the first instant. Of a device that shows its total,
    /// `None` before it has risen twice and when its readings have ended.
    pub fn at(&self, now: Duration) -> Option<Power> {
        let Some(readings) = &self.readings else {
            let since = now.saturating_sub(self.last);
            return match self.spacing {
                Some(spacing) if since <= spacing => self.power(spacing, false),
                _ => self.power(since, true),
            };
        };
        let (spacing, newest) = (self.spacing?, readings.newest?);
        if now.saturating_sub(newest) > readings.usual_gap()?.saturating_mul(MISSED) {
            return None;
        }
        let since = newest.min(now).saturating_sub(self.last);
        let step = u32::try_from(readings.step?).unwrap_or(u32::MAX);
        if since <= spacing.saturating_mul(step) {
            self.power(spacing, false)
        } else {
            self.power(since.checked_div(step)?, true)
        }
    }

    fn power(&self, spacing: Duration, is_upper_bound: bool) -> Option<Power> {
        // 3.6·10⁶ J per kWh, in mW and ns, to the nearest mW.
        let product = u128::from(self.constant.get()).checked_mul(spacing.as_nanos())?;
        let milliwatts = (3_600_000_000_000_000_000_u128 + product / 2).checked_div(product)?;
        Some(Power {
            milliwatts: u64::try_from(milliwatts).unwrap_or(u64::MAX),
            is_upper_bound,
        })
    }
}

impl Readings {
    fn take(&mut self, at: Duration) {
        let Some(before) = self.newest.replace(at) else {
            return;
        };
        let gap = at.saturating_sub(before);
        let usual = self.usual_gap();
        if usual.is_some_and(|usual| gap > usual.saturating_mul(MISSED)) {
            // They had ended; how often they come now is to be seen.
            self.gaps = [Duration::ZERO; GAPS];
        } else {
            self.gaps.rotate_right(1);
            let [newest, ..] = &mut self.gaps;
            *newest = gap;
        }
    }

    fn usual_gap(&self) -> Option<Duration> {
        let longest = self.gaps.iter().copied().max();
        longest.filter(|gap| !gap.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use dcnet::units::MilliwattHours;

    use super::*;
    use crate::pulse::Channel;
    use crate::pulse::total::{Reading, TotalOptions, Totals};

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

    /// A device that is read and shows `energy(seconds)` in mWh.
    struct Device {
        totals: Totals,
        meter: PowerMeter,
    }

    impl Device {
        fn new(constant: u32) -> Self {
            let constant = ImpulsesPerKwh::new(constant).unwrap();
            let mut totals = Totals::new(Channel(0), constant, TotalOptions::default());
            totals.resume(Pulses(0));
            Self {
                totals,
                meter: PowerMeter::of_readings(constant),
            }
        }

        fn read(&mut self, milliwatt_hours: u64, at: u32) {
            let at = at * SECOND;
            let energy = MilliwattHours(milliwatt_hours);
            let utc = 1_000_000 * SECOND + at;
            let taken = self.totals.take(Reading { energy, at }, at, utc);
            taken.unwrap();
            while let Some(batch) = self.totals.next_batch() {
                self.meter.observe(&batch);
            }
        }
    }

    /// What a meter shows in 8 minutes of 500 W, with a reading every so many seconds.
    #[test]
    fn a_device_that_is_read_every_minute_shows_its_power_throughout() {
        for every in [1, 10, 60] {
            let mut device = Device::new(1000);
            for now in 1000..1480 {
                if now % every == 0 {
                    device.read(5_000_000 + u64::from(now) * 500_000 / 3600, now);
                }
                if now >= 1000 + 3 * every.max(10) {
                    let power = device.meter.at(now * SECOND).unwrap();
                    // The device shows whole mWh.
                    assert!(power.milliwatts.abs_diff(500_000) < 600, "{power:?}");
                    assert!(!power.is_upper_bound, "{every}, {now}");
                }
            }
        }
    }

    #[test]
    fn a_device_whose_readings_end_is_unknown_and_not_at_zero() {
        let mut device = Device::new(1000);
        let mut energy = 5_000_000;
        for minute in 0..10 {
            energy += 8_333;
            device.read(energy, 60 * minute);
        }
        assert_eq!(watts(&device.meter, 540 + 180).0, 499);
        assert_eq!(device.meter.at(721 * SECOND), None, "the head fell off");
        device.read(energy + 500_000, 4140);
        assert_eq!(device.meter.at(4140 * SECOND), None, "how often it is read");
        device.read(energy + 508_333, 4200);
        assert_eq!(watts(&device.meter, 4380).0, 499);
        assert_eq!(device.meter.at(4381 * SECOND), None);
    }

    #[test]
    fn nothing_is_claimed_before_a_device_has_risen_twice() {
        let mut device = Device::new(1000);
        for (energy, at) in [(5_000_000, 0), (5_000_000, 60), (5_008_500, 120)] {
            device.read(energy, at);
            assert_eq!(device.meter.at(at * SECOND), None);
        }
        device.read(5_017_000, 180);
        assert!(device.meter.is_measured());
        assert_eq!(watts(&device.meter, 180).0, 510);
    }

    /// Only readings that say so make a bound, and no display is taken for finer than it is.
    #[test]
    fn a_device_that_stands_still_has_a_bound_by_the_steps_of_its_display() {
        let mut device = Device::new(1000);
        // Whole kWh at 6 kW: a step every 10 minutes, seen every 10 s.
        let shown = |at: u32| u64::from(at / 600) * 1_000_000;
        let mut claimed = Vec::new();
        for at in (600..4200).step_by(10) {
            device.read(shown(at), at);
            claimed.extend(device.meter.at(at * SECOND).filter(|_| at >= 1800));
        }
        assert_eq!(claimed.len(), 240);
        assert!(claimed.iter().all(|power| power.milliwatts == 6_000_000));
        for at in (4200..=6000).step_by(10) {
            device.read(shown(3600), at);
        }
        let bound = watts(&device.meter, 6000);
        assert_eq!(bound, (1500, true), "a kWh in no less than 40 minutes");
        assert_eq!(watts(&device.meter, 6020), bound, "no reading, no less");
    }
}
