use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);
/// UTC at monotonic zero: 12 minutes before a whole hour.
const EPOCH: u64 = 1_767_225_600 - 720;
const KWH: u64 = 1_000_000;

fn totals(constant: u32, options: TotalOptions) -> Totals {
    Totals::new(Channel(3), ImpulsesPerKwh::new(constant).unwrap(), options)
}

/// A reading that is taken at once, while UTC runs evenly.
fn take(totals: &mut Totals, energy: u64, at: Duration) -> Result<(), Refusal> {
    let energy = MilliwattHours(energy);
    totals.take(Reading { energy, at }, at, S * EPOCH as u32 + at)
}

fn batches(totals: &mut Totals) -> Vec<(u64, u64, u64)> {
    let start = EPOCH * 1000;
    std::iter::from_fn(|| totals.next_batch())
        .map(|b| {
            assert_eq!(b.channel(), Channel(3));
            let (from, until) = (b.from().as_millis(), b.until().as_millis());
            (from - start, until - start, b.pulses().0)
        })
        .collect()
}

fn sum(batches: &[(u64, u64, u64)]) -> u64 {
    batches.iter().map(|batch| batch.2).sum()
}

#[test]
fn energy_is_spread_evenly_between_two_readings() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, 5 * KWH, S / 4).unwrap();
    take(&mut totals, 5 * KWH + 8_000, 4 * S + S / 4).unwrap();
    let found = batches(&mut totals);
    assert_eq!(
        found,
        [
            (249, 250, 0),
            (250, 1000, 1),
            (1000, 2000, 2),
            (2000, 3000, 2),
            (3000, 4000, 2),
            (4000, 4250, 1)
        ]
    );
}

#[test]
fn a_boundary_between_readings_has_its_share_to_the_milliwatt_hour() {
    let mut totals = totals(100_000, TotalOptions::default());
    let boundary = 720_000;
    take(&mut totals, 0, 700 * S + S / 2).unwrap();
    take(&mut totals, 30 * 2_777, 730 * S + S / 2).unwrap();
    let before: u64 = batches(&mut totals)
        .iter()
        .filter(|batch| batch.1 <= boundary)
        .map(|batch| batch.2)
        .sum();
    assert_eq!(before, 195 * 2_777 / 100, "19.5 of 30 s at 10 mWh a pulse");
}

#[test]
fn nothing_is_delivered_for_time_without_a_reading() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, KWH, S).unwrap();
    batches(&mut totals);
    assert_eq!(batches(&mut totals), []);
    take(&mut totals, KWH, 2 * S).unwrap();
    assert_eq!(batches(&mut totals), [(1002, 2000, 0)]);
}

#[test]
fn the_register_follows_the_device_without_touching_a_whole_second() {
    for offset in [0, 1, 2, 3, 500, 998, 999] {
        let mut totals = totals(1000, TotalOptions::default());
        totals.resume(Pulses(12_000));
        take(
            &mut totals,
            15 * KWH + 600,
            3 * S + Duration::from_millis(offset),
        )
        .unwrap();
        let found = batches(&mut totals);
        assert_eq!(sum(&found), 3_000, "15.0006 kWh are 15000 pulses");
        let [(from, until, _)] = found[..] else {
            panic!("{found:?}");
        };
        assert!(from < until && from / 1000 == until / 1000, "{found:?}");
        assert!(from % 1000 != 0 && until % 1000 != 0, "{found:?}");
        take(&mut totals, 15 * KWH + 1_600, 5 * S).unwrap();
        let found = batches(&mut totals);
        assert_eq!(
            (found[0].0, sum(&found)),
            (until, 1),
            "it goes on from there"
        );
    }
}

#[test]
fn without_a_register_counting_begins_with_the_first_reading() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, 15 * KWH, S).unwrap();
    assert_eq!(sum(&batches(&mut totals)), 0);
}

#[test]
fn a_device_below_the_register_is_told_which_offset_to_write() {
    let mut totals = totals(3200, TotalOptions::default());
    totals.resume(Pulses(32_001));
    let refusal = take(&mut totals, 2 * KWH, S).unwrap_err();
    assert_eq!(
        refusal.why.figures(),
        "the device shows 2 kWh, but 10.000313 kWh were counted already; if it was swapped or \
         reset, write offset_kwh = 8.000313"
    );
    assert_eq!(batches(&mut totals), []);

    let advised = TotalOptions {
        offset: 8_000_313,
        ..TotalOptions::default()
    };
    let mut totals = self::totals(3200, advised);
    totals.resume(Pulses(32_001));
    take(&mut totals, 2 * KWH, S).unwrap();
    assert_eq!(sum(&batches(&mut totals)), 0, "exactly where it was");
    take(&mut totals, 3 * KWH, 1000 * S).unwrap();
    assert_eq!(sum(&batches(&mut totals)), 3200);
}

#[test]
fn a_total_that_goes_back_is_refused_until_it_is_up_again() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, 10 * KWH, S).unwrap();
    batches(&mut totals);
    let refusal = take(&mut totals, 0, 2 * S).unwrap_err();
    assert!(matches!(refusal.why, Refused::Back { counted, .. } if counted.0 == 10 * KWH));
    assert_eq!(refusal.in_a_row, 1);
    assert_eq!(batches(&mut totals), []);
    take(&mut totals, 10 * KWH + 4_000, 5 * S).unwrap();
    let found = batches(&mut totals);
    assert_eq!(
        (found[0].0, sum(&found)),
        (1002, 4),
        "no time and no energy is lost"
    );
}

#[test]
fn a_jump_insists_only_if_its_readings_agree() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, 10 * KWH, S).unwrap();
    let far = 500 * KWH;
    let row = |totals: &mut Totals, energy, at| take(totals, energy, at).unwrap_err().in_a_row;
    assert_eq!(row(&mut totals, far, 2 * S), 1);
    assert_eq!(row(&mut totals, 2 * far, 3 * S), 1, "another value");
    assert_eq!(row(&mut totals, far, 4 * S), 1, "back again");
    assert_eq!(row(&mut totals, far + 1_000, 5 * S), 2);
    let refusal = take(&mut totals, far + 2_000, 6 * S).unwrap_err();
    assert_eq!(refusal.in_a_row, INSISTENT);
    let told = refusal.why.figures();
    assert!(told.contains("from 10 to 500.002 kWh within 5 s"), "{told}");
    assert!(told.contains("offset_kwh = -490.002"), "{told}");
    take(&mut totals, 10 * KWH + 1_000, 7 * S).unwrap();
    assert_eq!(row(&mut totals, far, 8 * S), 1, "what agrees ends the row");
}

#[test]
fn the_bound_is_power_and_one_kilowatt_hour() {
    let options = TotalOptions {
        maximum_kw: 36,
        ..TotalOptions::default()
    };
    let mut totals = totals(1000, options);
    take(&mut totals, 0, S).unwrap();
    assert!(take(&mut totals, KWH + 100_001, 11 * S).is_err());
    assert!(take(&mut totals, KWH + 100_000, 11 * S).is_ok());
}

#[test]
fn a_long_silence_is_caught_up_without_boundaries() {
    let mut totals = totals(1000, TotalOptions::default());
    take(&mut totals, KWH, S).unwrap();
    batches(&mut totals);
    let after = LONGEST_GAP + 2 * S;
    take(&mut totals, 9 * KWH, after).unwrap();
    let end = u64::try_from(after.as_millis()).unwrap() + 2;
    assert_eq!(batches(&mut totals), [(end - 1, end, 8_000)]);
}

#[test]
fn an_impossible_offset_is_told_at_once() {
    let options = TotalOptions {
        offset: -2_000_000,
        ..TotalOptions::default()
    };
    let refusal = take(&mut totals(1000, options), KWH, S).unwrap_err();
    assert_eq!(refusal.in_a_row, INSISTENT);
    assert!(refusal.why.figures().contains("offset_kwh = -2"));
}

#[test]
fn what_a_refusal_says_in_the_log_has_no_figure_of_a_total() {
    let options = TotalOptions {
        offset: 54_321_000,
        ..TotalOptions::default()
    };
    let mut totals = totals(1000, options);
    totals.resume(Pulses(76_543));
    let back = take(&mut totals, KWH, S).unwrap_err();
    take(&mut totals, 9_876 * KWH, 2 * S).unwrap();
    let jump = take(&mut totals, 98_765 * KWH, 3 * S).unwrap_err();
    let offset = take(&mut totals, u64::MAX, 4 * S).unwrap_err();
    for refusal in [back, jump, offset] {
        let (shown, debugged) = (refusal.why.to_string(), format!("{:?}", refusal.why));
        let said = shown.replace("maximum_kw = 100", "") + &debugged;
        assert!(!said.contains(|c: char| c.is_ascii_digit()), "{said}");
        assert!(refusal.why.figures().contains("kWh"), "{said}");
    }
}

#[test]
fn a_clock_step_moves_the_interval_and_loses_no_energy() {
    let mut totals = totals(1000, TotalOptions::default());
    let read = |totals: &mut Totals, energy, at: Duration, utc: u64| {
        let energy = MilliwattHours(energy);
        totals.take(Reading { energy, at }, at, Duration::from_millis(utc))
    };
    read(&mut totals, 0, 10 * S, 50_500).unwrap();
    read(&mut totals, 10_000, 20 * S, 60_540).unwrap();
    let times = |totals: &mut Totals| {
        let all: Vec<_> = std::iter::from_fn(|| totals.next_batch()).collect();
        let pulses: u64 = all.iter().map(|b| b.pulses().0).sum();
        let first = all.first().unwrap().from().as_millis();
        (first, all.last().unwrap().until().as_millis(), pulses)
    };
    assert_eq!(times(&mut totals), (50_499, 60_540, 10), "slewed: no gap");
    read(&mut totals, 20_000, 30 * S, 9_000_000).unwrap();
    assert_eq!(times(&mut totals), (8_990_000, 9_000_000, 10), "set ahead");
    read(&mut totals, 30_000, 40 * S, 70_000).unwrap();
    assert_eq!(times(&mut totals), (60_000, 70_000, 10), "set back");
    read(&mut totals, 31_000, 40 * S + S / 20, 69_990).unwrap();
    assert_eq!(totals.next_batch(), None, "UTC has not moved on yet");
    read(&mut totals, 32_000, 42 * S, 71_980).unwrap();
    assert_eq!(times(&mut totals), (70_000, 71_980, 2));
}

#[test]
fn a_reading_that_waited_counts_when_it_was_taken() {
    let mut totals = totals(1000, TotalOptions::default());
    let reading = |energy, at| Reading {
        energy: MilliwattHours(energy),
        at,
    };
    let utc = Duration::from_secs(1_000_000);
    totals.take(reading(0, 10 * S), 13 * S, utc).unwrap();
    totals.take(reading(1_000, 12 * S), 13 * S, utc).unwrap();
    let last = std::iter::from_fn(|| totals.next_batch()).last().unwrap();
    assert_eq!(last.until(), Timestamp(999_999_000));
}

proptest! {
    #[test]
    fn pulses_are_always_the_difference_of_two_rounded_totals(
        constant in 1u32..=100_000,
        start in 0u64..1 << 40,
        steps in prop::collection::vec((0u64..500_000, 1u64..90_000), 1..30),
        register in prop::option::of(0u64..1000),
        offset in 0i64..1 << 40,
    ) {
        let pulses = |energy: u64| {
            let total = u128::from(energy) + u128::from(offset.unsigned_abs());
            u64::try_from(total * u128::from(constant) / 1_000_000).unwrap()
        };
        let options = TotalOptions { offset, maximum_kw: 2_000_000 };
        let mut totals = totals(constant, options);
        let resumed = register.map(|below| pulses(start).saturating_sub(below));
        if let Some(resumed) = resumed {
            totals.resume(Pulses(resumed));
        }
        let (mut energy, mut at) = (start, Duration::from_millis(123));
        take(&mut totals, energy, at).unwrap();
        let mut all = batches(&mut totals);
        let mut counted = resumed.unwrap_or(pulses(start)) + sum(&all);
        prop_assert_eq!(counted, pulses(energy));
        for (rise, millis) in steps {
            energy += rise;
            at += Duration::from_millis(millis);
            take(&mut totals, energy, at).unwrap();
            let found = batches(&mut totals);
            counted += sum(&found);
            prop_assert_eq!(counted, pulses(energy));
            all.extend(found);
        }
        let joined = all.windows(2).all(|pair| pair[0].1 == pair[1].0);
        prop_assert!(joined, "no gap and no overlap");
    }

    #[test]
    fn no_reading_panics_and_none_goes_back(
        constant in 1u32..=100_000,
        offset: i64,
        register in prop::option::of(any::<u64>()),
        readings in prop::collection::vec((any::<u64>(), 0u64..u64::MAX / 2_000_000_000, any::<u32>()), 0..20),
    ) {
        let mut totals = totals(constant, TotalOptions { offset, maximum_kw: u32::MAX });
        if let Some(register) = register {
            totals.resume(Pulses(register));
        }
        for (energy, seconds, utc) in readings {
            let (at, energy) = (S * (seconds % (1 << 20)) as u32, MilliwattHours(energy));
            let _ = totals.take(Reading { energy, at }, at, S * utc);
            // Millions of batches would only be slow.
            if totals.batches.len() > 100_000 {
                break;
            }
        }
    }
}
