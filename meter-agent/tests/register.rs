//! The register against torn files, failing disks and clocks.

use std::path::Path;
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};
use meter_agent::clock::Moment;
use meter_agent::pulse::{Batch, Channel};
use meter_agent::register::{Register, RegisterChannel, RegisterError};

fn channels(names: &[&str]) -> Vec<RegisterChannel> {
    names
        .iter()
        .map(|name| RegisterChannel {
            name: (*name).to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        })
        .collect()
}

fn open(directory: &Path) -> Result<Register, RegisterError> {
    Register::open(directory, channels(&["import"]))
}

fn batch(channel: usize, from: u64, until: u64, pulses: u64) -> Batch {
    let monotonic = Duration::from_millis(from)..Duration::from_millis(until);
    let utc = Timestamp(from)..Timestamp(until);
    Batch::new(Channel(channel), utc, monotonic, Pulses(pulses)).unwrap()
}

/// Records a batch at its end, while the clock that it was cut by counts as synchronised.
fn record(register: &mut Register, batch: &Batch) -> Result<Vec<Boundary>, RegisterError> {
    let now = Moment {
        monotonic: batch.monotonic().end,
        utc: Duration::from_millis(batch.until().as_millis()),
        synchronised: true,
        suspended: Duration::ZERO,
    };
    register.record(batch, &now)
}

#[test]
fn a_saved_total_is_read_back_and_the_register_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    for total in 1..=5 {
        record(&mut register, &batch(0, 0, 1000, 1)).unwrap();
        assert_eq!(register.unsaved(), 1);
        register.save().unwrap();
        assert_eq!(register.totals(), [Pulses(total)]);
        assert!(matches!(
            open(directory.path()),
            Err(RegisterError::InUse { .. })
        ));
    }
    drop(register);
    let register = open(directory.path()).unwrap();
    assert_eq!(register.energies(), [MilliwattHours(5000)]);
}

/// Whatever happens to the newer file, the total is one of the last two saved ones.
#[test]
fn a_torn_or_flipped_generation_falls_back_to_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    for _ in 0..2 {
        record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
        register.save().unwrap();
    }
    drop(register);
    let newer = directory.path().join("register.1");
    let whole = std::fs::read(&newer).unwrap();
    let damaged = (0..whole.len())
        .map(|length| whole[..length].to_vec())
        .chain((0..whole.len()).flat_map(|at| {
            let whole = &whole;
            [0x01, 0x10, 0xff].map(|mask| {
                let mut bytes = whole.clone();
                bytes[at] ^= mask;
                bytes
            })
        }))
        .chain([[whole.as_slice(), b"x"].concat(), vec![0; 1 << 20]]);
    for bytes in damaged {
        std::fs::write(&newer, &bytes).unwrap();
        let register = open(directory.path()).unwrap();
        assert_eq!(
            register.totals(),
            [Pulses(7)],
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
    // The next save replaces the damaged file, so that two generations are whole again.
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 1)).unwrap();
    register.save().unwrap();
    drop(register);
    std::fs::write(directory.path().join("register.0"), b"").unwrap();
    assert_eq!(open(directory.path()).unwrap().totals(), [Pulses(8)]);
}

#[test]
fn two_damaged_generations_are_an_error_and_never_zero() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    register.save().unwrap();
    register.save().unwrap();
    drop(register);
    for name in ["register.0", "register.1"] {
        std::fs::write(directory.path().join(name), b"").unwrap();
    }
    let error = open(directory.path()).unwrap_err();
    assert!(matches!(error, RegisterError::Damaged { .. }));
    assert!(error.to_string().contains("register.0"), "{error}");
}

#[test]
fn a_reading_that_was_set_goes_on_with_what_is_counted_and_leaves_the_total_alone() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(7_000)]);
    let set = |register: &mut Register, channel: &str, reading| {
        register.set_reading(channel, MilliwattHours(reading), Timestamp(0))
    };
    set(&mut register, "import", 12_345_600_000).unwrap();
    record(&mut register, &batch(0, 1000, 2000, 3)).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(12_345_603_000)]);
    assert_eq!(register.totals(), [Pulses(10)]);
    register.save().unwrap();
    drop(register);

    let mut register = open(directory.path()).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(12_345_603_000)]);
    assert!(matches!(
        set(&mut register, "export", 1),
        Err(RegisterError::NoChannel(_))
    ));
    drop(register);

    // Power was lost in the middle of a line; the next one is whole, and both are kept.
    let log = directory.path().join("readings.log");
    let mut text = std::fs::read_to_string(&log).unwrap();
    text.push_str("2026-11-22T18:30:00Z channel imp");
    std::fs::write(&log, &text).unwrap();
    let mut register = open(directory.path()).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(12_345_603_000)]);
    set(&mut register, "import", 500).unwrap();
    drop(register);
    let register = open(directory.path()).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(500)], "also downwards");
    let kept = std::fs::read_to_string(&log).unwrap();
    assert!(kept.starts_with(&text), "nothing is overwritten");
}

/// As the handbook tells who gets a meter with another constant.
#[test]
fn a_reading_of_a_register_that_was_moved_away_is_left_out_for_good() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 100)).unwrap();
    let old = MilliwattHours(12_345_600_000);
    register.set_reading("import", old, Timestamp(0)).unwrap();
    register.save().unwrap();
    register.save().unwrap();
    drop(register);
    for name in ["register.0", "register.1"] {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    let mut register = open(directory.path()).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(0)]);
    record(&mut register, &batch(0, 1000, 2000, 60)).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(60_000)]);
    register.save().unwrap();
    drop(register);
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 2000, 3000, 60)).unwrap();
    register.save().unwrap();
    drop(register);
    // Past what the old reading was set at.
    let mut register = open(directory.path()).unwrap();
    assert_eq!(register.readings(), [MilliwattHours(120_000)]);
    let new = MilliwattHours(500_000);
    register.set_reading("import", new, Timestamp(0)).unwrap();
    drop(register);
    assert_eq!(open(directory.path()).unwrap().readings(), [new]);
}

#[test]
fn an_unsaved_temporary_file_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    register.save().unwrap();
    drop(register);
    std::fs::write(directory.path().join("register.new"), b"dcnet reg").unwrap();
    let mut register = open(directory.path()).unwrap();
    assert_eq!(register.totals(), [Pulses(7)]);
    register.save().unwrap();
}

#[test]
fn other_constants_and_lost_channels_are_refused_and_new_ones_start_at_zero() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    register.save().unwrap();
    drop(register);
    let mut other = channels(&["import"]);
    other[0].constant = ImpulsesPerKwh::new(2000).unwrap();
    assert!(matches!(
        Register::open(directory.path(), other),
        Err(RegisterError::Constant {
            stored: 1000,
            configured: 2000,
            ..
        })
    ));
    assert!(matches!(
        Register::open(directory.path(), channels(&["export"])),
        Err(RegisterError::ChannelGone(name)) if name == "import"
    ));
    let register = Register::open(directory.path(), channels(&["export", "import"])).unwrap();
    assert_eq!(register.totals(), [Pulses(0), Pulses(7)]);
}

#[test]
fn a_failed_save_keeps_counting_in_memory() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("register");
    let mut register = open(&state).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    std::fs::rename(&state, directory.path().join("gone")).unwrap();
    assert!(matches!(register.save(), Err(RegisterError::Write { .. })));
    assert_eq!(register.unsaved(), 7);
    std::fs::rename(directory.path().join("gone"), &state).unwrap();
    register.save().unwrap();
    drop(register);
    assert_eq!(open(&state).unwrap().totals(), [Pulses(7)]);
}

#[test]
fn a_total_beyond_64_bits_is_refused_and_the_batch_not_counted() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 0, 1000, 7)).unwrap();
    for pulses in [u64::MAX, u64::MAX / 1000] {
        let error = record(&mut register, &batch(0, 1000, 2000, pulses)).unwrap_err();
        assert!(matches!(error, RegisterError::Overflow(_)));
    }
    assert_eq!(register.totals(), [Pulses(7)]);
    let error = record(&mut register, &batch(1, 0, 1000, 1)).unwrap_err();
    assert!(matches!(error, RegisterError::UnknownChannel(1)));
}

/// A register with rounds of 2 s and two channels.
fn two_channels(directory: &Path) -> Register {
    let mut register = Register::open(directory, channels(&["import", "export"])).unwrap();
    register.set_period(Period::from_secs(2));
    register
}

#[test]
fn a_boundary_waits_for_every_channel_and_splits_pulses_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = two_channels(directory.path());
    assert!(
        record(&mut register, &batch(0, 500, 1000, 1))
            .unwrap()
            .is_empty()
    );
    assert!(
        record(&mut register, &batch(0, 1000, 2000, 1))
            .unwrap()
            .is_empty()
    );
    assert!(
        record(&mut register, &batch(0, 2000, 3000, 5))
            .unwrap()
            .is_empty()
    );
    assert!(
        record(&mut register, &batch(1, 1500, 1900, 1))
            .unwrap()
            .is_empty()
    );
    let found = record(&mut register, &batch(1, 1900, 2000, 1)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].at, Timestamp(2000));
    assert_eq!(
        found[0].channels,
        [MilliwattHours(2000), MilliwattHours(2000)]
    );
    assert_eq!(register.latest_boundary(), Some(Timestamp(2000)));
}

#[test]
fn a_boundary_that_one_channel_did_not_see_has_no_value() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = two_channels(directory.path());
    // Channel 1 starts only after the boundary at 2 s; the next one has both.
    for (channel, from, until) in [(0, 1000, 2000), (1, 2500, 3000), (0, 2000, 3000)] {
        assert!(
            record(&mut register, &batch(channel, from, until, 1))
                .unwrap()
                .is_empty()
        );
    }
    assert!(
        record(&mut register, &batch(0, 3000, 4000, 1))
            .unwrap()
            .is_empty()
    );
    let found = record(&mut register, &batch(1, 3000, 4000, 1)).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].at, Timestamp(4000));
}

#[test]
fn clock_steps_skip_boundaries_but_count_every_pulse() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    register.set_period(Period::from_secs(2));
    let mut seen = Vec::new();
    for (from, until) in [
        (1000, 2000),
        (9_500, 10_000), // ahead: 4, 6 and 8 s have no value, 10 s has
        (3_500, 4_000),  // back: 4 s lies before the latest, and stays unknown
        (9_500, 10_000), // 10 s keeps its first value
        (11_000, 12_000),
    ] {
        seen.extend(record(&mut register, &batch(0, from, until, 1)).unwrap());
    }
    let values: Vec<_> = seen.iter().map(|b| (b.at.0, b.channels[0].0)).collect();
    assert_eq!(values, [(2000, 1000), (10_000, 2000), (12_000, 5000)]);
}

#[test]
fn a_first_batch_that_starts_on_a_boundary_gives_its_value() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path()).unwrap();
    record(&mut register, &batch(0, 3000, 4000, 9)).unwrap();
    register.set_period(Period::from_secs(1));
    let found = record(&mut register, &batch(0, 4000, 5000, 1)).unwrap();
    let values: Vec<_> = found.iter().map(|b| (b.at.0, b.channels[0].0)).collect();
    assert_eq!(values, [(3000, 0), (4000, 9000), (5000, 10_000)]);
}

#[test]
fn an_interval_with_a_gap_never_has_both_of_its_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut register = two_channels(directory.path());
    let mut seen = Vec::new();
    let mut take = |batch: &Batch| seen.extend(record(&mut register, batch).unwrap());
    // Before anything has a value, a gap opens nothing that it would break.
    take(&batch(0, 500, 1000, 1).following_a_gap());
    for second in 1..12 {
        let (from, until) = (second * 1000, second * 1000 + 1000);
        take(&batch(1, from, until, 1));
        match second {
            4 => {}
            5 => take(&batch(0, from + 500, until, 1).following_a_gap()),
            _ => take(&batch(0, from, until, 1)),
        }
    }
    let at: Vec<_> = seen.iter().map(|boundary| boundary.at.0 / 1000).collect();
    assert_eq!(at, [2, 4, 8, 10, 12], "4 to 6 has a gap");
}
