//! A household that does not exist: a documented stochastic model of electric loads.
//!
//! Power is a sum of rectangular loads. Which appliances a household owns, and how big they are,
//! is drawn once from its seed ([`Household::draw`]); what happens on a day is drawn from seed and day
//! ([`Household::day`]). So the pulses are a function of seed and UTC alone: the same after a
//! restart, and the same on every machine. Loads end at midnight at the latest.
//!
//! It is meant for demonstrations. It is no substitute for real loads when privacy or
//! detection is studied: appliances are independent and have no ramps or noise.

use dcnet::time::{DAY_MS, Day, Timestamp};
use dcnet::units::{ImpulsesPerKwh, Pulses};

use super::PulseError;
use super::profile::Profile;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// 1 kWh in µJ; 1 mW for 1 ms is 1 µJ.
const KWH_UJ: u128 = 3_600_000_000_000;
/// Jumps of more days than this start a new count instead of adding up every day.
const CATCH_UP_DAYS: u32 = 400;

/// The appliances of one household. Power in W, durations in s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Household {
    seed: u64,
    /// Stand-by and whatever else is always on: 100–200 W.
    pub base: u64,
    /// Fridge while its compressor runs: 70–120 W.
    pub fridge: u64,
    /// Run time of the compressor per cycle: 600–1200 s.
    pub fridge_on: u64,
    /// Pause of the compressor: 1500–2700 s.
    pub fridge_off: u64,
    /// Kettle: 1800–2400 W, 2–6 times a day for 120–240 s.
    pub kettle: u64,
    /// Stove and oven, mean over their thermostats: 1200–2500 W for 900–2700 s, at noon (40 % of
    /// the days) and in the evening (80 %).
    pub cooking: u64,
    /// Washing machine while it heats: 1900–2200 W for 900–1200 s; then 150 W for 2700–3600 s,
    /// then 400 W for 480 s. On 40 % of the days.
    pub washing: u64,
    /// Light and screens in the evening: 80–250 W from about 17:30 to 22:30 UTC.
    pub evening: u64,
    /// Heat pump while it runs: 1200–2000 W; 0 in the 70 % of households that heat otherwise.
    /// One run per hour, 1–35 % of the time with the season (most in mid January).
    pub heat_pump: u64,
}

/// A constant power for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// First moment, in ms after midnight UTC.
    pub start_ms: u64,
    /// The moment after the last, at most 86 400 000.
    pub end_ms: u64,
    /// Power in W.
    pub watts: u64,
}

impl Household {
    /// The household of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed, u64::MAX);
        Self {
            seed,
            base: random.between(100, 200),
            fridge: random.between(70, 120),
            fridge_on: random.between(600, 1200),
            fridge_off: random.between(1500, 2700),
            kettle: random.between(1800, 2400),
            cooking: random.between(1200, 2500),
            washing: random.between(1900, 2200),
            evening: random.between(80, 250),
            heat_pump: if random.percent(30) {
                random.between(1200, 2000)
            } else {
                0
            },
        }
    }

    /// What happens on a day.
    pub fn day(&self, day: Day) -> Vec<Load> {
        let mut random = Random::new(self.seed, u64::from(day.0));
        let mut plan = Plan(Vec::new());
        plan.add(0, 86_400, self.base);
        self.fridge(&mut plan, &mut random);
        for _ in 0..random.between(2, 6) {
            let hour = [6, 7, 9, 12, 15, 16, 19, 20][random.below(8) as usize];
            plan.add(random.around(hour), random.between(120, 240), self.kettle);
        }
        for (hour, percent) in [(11, 40), (17, 80)] {
            if random.percent(percent) {
                plan.add(random.around(hour), random.between(900, 2700), self.cooking);
            }
        }
        if random.percent(40) {
            let hour = random.between(7, 19);
            let mut at = random.around(hour);
            let heat_and_rinse = [
                (random.between(900, 1200), self.washing),
                (random.between(2700, 3600), 150),
            ];
            for (seconds, watts) in heat_and_rinse.into_iter().chain([(480, 400)]) {
                plan.add(at, seconds, watts);
                at += seconds * 1000;
            }
        }
        let lights_on = random.around(17);
        plan.add(lights_on, random.between(14_400, 19_800), self.evening);
        self.heat(&mut plan, &mut random, day);
        plan.0
    }

    fn fridge(&self, plan: &mut Plan, random: &mut Random) {
        let cycle = self.fridge_on + self.fridge_off;
        let mut at = random.below(cycle) * 1000;
        while at < DAY_MS {
            plan.add(at, self.fridge_on, self.fridge);
            at += (cycle * random.between(90, 110) / 100) * 1000;
        }
    }

    fn heat(&self, plan: &mut Plan, random: &mut Random, day: Day) {
        if self.heat_pump == 0 {
            return;
        }
        let cold = u64::from(coldness(day));
        for hour in 0..24 {
            let mean = 36 + 1224 * cold / 1000;
            let seconds = mean * random.between(70, 130) / 100;
            let latest = HOUR_MS - (seconds * 1000).min(HOUR_MS);
            let start = hour * HOUR_MS + random.below(latest.max(1));
            plan.add(start, seconds, self.heat_pump);
        }
    }
}

/// 1000 in mid January, 0 in mid July, linear in between.
fn coldness(day: Day) -> u32 {
    const YEAR: u32 = 365;
    // Day 14 of the epoch is 15 January; a quarter of a day per year does no harm here.
    let since_midwinter = (day.0 + YEAR - 14) % YEAR;
    let distance = since_midwinter.min(YEAR - since_midwinter);
    1000 - distance * 1000 / (YEAR / 2 + 1)
}

struct Plan(Vec<Load>);

impl Plan {
    fn add(&mut self, start_ms: u64, seconds: u64, watts: u64) {
        let end_ms = (start_ms + seconds * 1000).min(DAY_MS);
        if start_ms < end_ms {
            self.0.push(Load {
                start_ms,
                end_ms,
                watts,
            });
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA
/// 2014): small, and its output never changes with a library's version. Not for secrets.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        random.0 = random.next() ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound` but for a bias below `bound`/2⁶⁴.
    fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        (product >> 64) as u64
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// Within the hour after `hour` in UTC, in ms after midnight.
    fn around(&mut self, hour: u64) -> u64 {
        hour * HOUR_MS + self.below(HOUR_MS)
    }
}

/// How simulated time follows UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// A moment of UTC …
    pub real: Timestamp,
    /// … and the simulated time at that moment.
    pub simulated: Timestamp,
    /// Simulated seconds per second: 900 puts a quarter of an hour into each second.
    pub speed: u32,
}

impl Default for Pace {
    /// Simulated time is UTC.
    fn default() -> Self {
        Self {
            real: Timestamp(0),
            simulated: Timestamp(0),
            speed: 1,
        }
    }
}

impl Pace {
    fn at(&self, now: Timestamp) -> Timestamp {
        let speed = u64::from(self.speed);
        let ahead = now.as_millis().saturating_sub(self.real.as_millis());
        let behind = self.real.as_millis().saturating_sub(now.as_millis());
        Timestamp(
            self.simulated
                .as_millis()
                .saturating_add(ahead.saturating_mul(speed))
                .saturating_sub(behind.saturating_mul(speed)),
        )
    }
}

/// The pulses of a [`Household`].
#[derive(Debug)]
pub struct Simulated {
    household: Household,
    constant: ImpulsesPerKwh,
    pace: Pace,
    day: Day,
    loads: Vec<Load>,
    /// Energy of the days before `day`, from the day the count began, in µJ.
    before: u128,
}

impl Simulated {
    /// Pulses of `household` from a meter with `constant`.
    pub fn new(household: Household, constant: ImpulsesPerKwh, pace: Pace) -> Self {
        let day = Day(0);
        let loads = household.day(day);
        Self {
            household,
            constant,
            pace,
            day,
            loads,
            before: 0,
        }
    }

    fn move_to(&mut self, day: Day) {
        if day < self.day || day.0 - self.day.0 > CATCH_UP_DAYS {
            self.before = 0;
            self.day = day;
            self.loads = self.household.day(day);
        }
        while self.day < day {
            self.before += energy(&self.loads, DAY_MS);
            self.day = Day(self.day.0 + 1);
            self.loads = self.household.day(self.day);
        }
    }

    fn pulses_before(&mut self, at: Timestamp) -> u64 {
        self.move_to(at.day());
        let total = self.before + energy(&self.loads, at.as_millis() % DAY_MS);
        let pulses = total.saturating_mul(u128::from(self.constant.get())) / KWH_UJ;
        u64::try_from(pulses).unwrap_or(u64::MAX)
    }
}

impl Profile for Simulated {
    fn pulses_between(&mut self, from: Timestamp, until: Timestamp) -> Result<Pulses, PulseError> {
        let (from, until) = (self.pace.at(from), self.pace.at(until));
        self.move_to(from.day());
        if until.day().0.saturating_sub(self.day.0) > CATCH_UP_DAYS {
            return Ok(Pulses(0));
        }
        let first = self.pulses_before(from);
        Ok(Pulses(self.pulses_before(until).saturating_sub(first)))
    }
}

/// Energy of a day up to a moment in ms after midnight, in µJ.
fn energy(loads: &[Load], until_ms: u64) -> u128 {
    loads
        .iter()
        .map(|load| {
            let length = until_ms.min(load.end_ms).saturating_sub(load.start_ms);
            u128::from(length) * u128::from(load.watts) * 1000
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u32 = 1000;

    fn simulated(seed: u64, pace: Pace) -> Simulated {
        let constant = ImpulsesPerKwh::new(K).unwrap();
        Simulated::new(Household::draw(seed), constant, pace)
    }

    fn count(source: &mut Simulated, from: u64, until: u64) -> u64 {
        source
            .pulses_between(Timestamp(from), Timestamp(until))
            .unwrap()
            .0
    }

    #[test]
    fn every_day_of_every_household_is_plausible() {
        let mut total = 0;
        for seed in 0..50 {
            let household = Household::draw(seed);
            for day in [0, 90, 196, 280, 20_454] {
                let wh = energy(&household.day(Day(day)), DAY_MS) / (KWH_UJ / 1000);
                assert!(
                    (3_000..30_000).contains(&wh),
                    "seed {seed}, day {day}: {wh} Wh"
                );
                total += wh;
            }
        }
        let mean = total / 250;
        assert!((4_000..14_000).contains(&mean), "mean {mean} Wh a day");
    }

    #[test]
    fn heating_follows_the_season() {
        let warm = (0..100).map(Household::draw).find(|h| h.heat_pump > 0);
        let household = warm.unwrap();
        let wh = |day| energy(&household.day(Day(day)), DAY_MS) / (KWH_UJ / 1000);
        let (winter, summer): (u128, u128) = ((10..20).map(wh).sum(), (190..200).map(wh).sum());
        assert!(winter > summer + 40_000, "{winter} {summer}");
    }

    #[test]
    fn the_same_seed_gives_the_same_pulses_and_another_seed_others() {
        let start = 20_000 * DAY_MS;
        let series = |seed| -> Vec<u64> {
            let mut source = simulated(seed, Pace::default());
            (0..288)
                .map(|i| count(&mut source, start + i * 300_000, start + (i + 1) * 300_000))
                .collect()
        };
        assert_eq!(series(7), series(7));
        assert_ne!(series(7), series(8));
    }

    #[test]
    fn a_restart_changes_nothing_within_the_day() {
        let start = 20_000 * DAY_MS;
        let mut whole = simulated(3, Pace::default());
        let all = count(&mut whole, start, start + DAY_MS / 2);
        let mut first = simulated(3, Pace::default());
        let part = count(&mut first, start, start + 12_345_678);
        let mut second = simulated(3, Pace::default());
        assert_eq!(
            part + count(&mut second, start + 12_345_678, start + DAY_MS / 2),
            all
        );
    }

    #[test]
    fn energy_carries_over_midnight_and_through_small_ticks() {
        let start = 20_000 * DAY_MS;
        let mut coarse = simulated(5, Pace::default());
        let days = count(&mut coarse, start, start + 3 * DAY_MS);
        let mut fine = simulated(5, Pace::default());
        let sum: u64 = (0..3 * DAY_MS / 7000 + 1)
            .map(|i| {
                let end = start + 3 * DAY_MS;
                let at = |i: u64| (start + i * 7000).min(end);
                count(&mut fine, at(i), at(i + 1))
            })
            .sum();
        assert_eq!(sum, days);
    }

    #[test]
    fn a_fast_pace_puts_a_quarter_of_an_hour_into_a_second() {
        let pace = Pace {
            real: Timestamp(1_000_000),
            simulated: Timestamp(20_000 * DAY_MS),
            speed: 900,
        };
        let mut fast = simulated(5, pace);
        let mut slow = simulated(5, Pace::default());
        for round in 0..200 {
            let real = 1_000_000 + round * 1000;
            let simulated = 20_000 * DAY_MS + round * 900_000;
            assert_eq!(
                count(&mut fast, real, real + 1000),
                count(&mut slow, simulated, simulated + 900_000)
            );
        }
    }
}
