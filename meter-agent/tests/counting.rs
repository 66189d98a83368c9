//! From a source in real time to boundary values on a channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::time::{Period, Timestamp};
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};
use link::Clock;
use link::service::Heartbeat;
use meter_agent::clock::{self, Moment};
use meter_agent::config::{ChannelConfig, ReplayConfig, SourceConfig};
use meter_agent::pulse::input::TotalSource;
use meter_agent::pulse::loads::{Energies, Loads};
use meter_agent::pulse::profile::ProfileSource;
use meter_agent::pulse::replay::{AfterLastRow, Replay};
use meter_agent::pulse::total::{TotalOptions, Totals};
use meter_agent::pulse::{self, Channel, PulseSource, begin_at};
use meter_agent::register::counting::{
    Counted, CountedChannel, Rounds, SavePolicy, Watching, count,
};
use meter_agent::register::{Register, RegisterChannel};
use proptest::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

fn register(directory: &Path, constant: u32) -> Register {
    let channel = RegisterChannel {
        name: "import".to_owned(),
        constant: ImpulsesPerKwh::new(constant).unwrap(),
    };
    Register::open(directory, vec![channel]).unwrap()
}

fn rounds(period: watch::Receiver<Option<Period>>, boundaries: mpsc::Sender<Boundary>) -> Rounds {
    Rounds {
        period,
        clock: Clock::assume_synchronised(),
        boundaries,
    }
}

/// Drives a replay through the register as the ticks would; `tick` ms apart.
fn boundaries(
    register: &mut Register,
    energies: &Energies,
    constant: u32,
    period: Period,
    tick: u64,
) -> Vec<Boundary> {
    let begin = Timestamp(20_000 * 86_400_000);
    let replay = Replay::new(
        energies,
        ImpulsesPerKwh::new(constant).unwrap(),
        period,
        AfterLastRow::Stop,
        begin_at(Some(begin)),
    );
    let start = begin.minus(Duration::from_millis(700));
    let mut source = ProfileSource::new(Channel(0), replay, start);
    register.set_period(Some(period));
    let length = period.duration() * u32::try_from(energies.rows().len()).unwrap();
    let end = begin.plus(length);
    let (mut found, mut now) = (Vec::new(), start);
    while now < end {
        now = Timestamp(now.0 + tick).min(end);
        let monotonic = Duration::from_millis(now.as_millis());
        while let Some(batch) = source.advance(now, monotonic).unwrap() {
            let now = Moment {
                monotonic,
                utc: monotonic,
                synchronised: true,
                suspended: Duration::ZERO,
            };
            found.extend(register.record(&batch, &now).unwrap());
        }
    }
    found
}

fn differences(boundaries: &[Boundary]) -> Vec<MilliwattHours> {
    boundaries
        .windows(2)
        .map(|pair| {
            pair[1].channels[0]
                .checked_sub(pair[0].channels[0])
                .unwrap()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn register_differences_equal_rows_of_whole_pulses(
        rows in prop::collection::vec(0u64..5000, 1..20),
        constant in prop::sample::select(vec![1u32, 100, 500, 1000, 2000, 10_000, 100_000]),
        seconds in prop::sample::select(vec![1u32, 2, 10]),
        tick in 1u64..5000,
    ) {
        let rows: Vec<_> = rows
            .iter()
            .map(|pulses| MilliwattHours(pulses * 1_000_000 / u64::from(constant)))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let mut register = register(directory.path(), constant);
        let energies = Energies::new(rows.clone()).unwrap();
        let period = Period::from_secs(seconds).unwrap();
        let found = boundaries(&mut register, &energies, constant, period, tick);
        prop_assert_eq!(differences(&found), rows);
    }

    #[test]
    fn with_any_constant_and_any_rows_the_register_stays_within_a_pulse(
        rows in prop::collection::vec(0u64..20_000_000, 1..20),
        constant in 1u32..=100_000,
        tick in 1u64..5000,
    ) {
        let rows: Vec<_> = rows.into_iter().map(MilliwattHours).collect();
        let directory = tempfile::tempdir().unwrap();
        let mut register = register(directory.path(), constant);
        let energies = Energies::new(rows.clone()).unwrap();
        let found = boundaries(&mut register, &energies, constant, Period::from_secs(2).unwrap(), tick);
        prop_assert_eq!(found.len(), rows.len() + 1);
        let mut energy = 0;
        for (row, boundary) in rows.iter().zip(&found[1..]) {
            energy += row.0;
            let counted = boundary.channels[0].0 - found[0].channels[0].0;
            prop_assert!(counted <= energy);
            prop_assert!(energy - counted <= 1_000_000u64.div_ceil(u64::from(constant)));
        }
    }
}

#[test]
fn real_households_are_replayed_to_the_watt_hour() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/households_30min.csv.gz");
    if !path.exists() {
        eprintln!("skipped: there is no {}", path.display());
        return;
    }
    let loads = Loads::read(&path).unwrap();
    for (column, start_row) in [(1, 0), (48, 100), (loads.columns(), loads.rows() - 96)] {
        let energies = loads.energies(column, start_row).unwrap();
        let rows: Vec<_> = energies.rows().iter().take(96).copied().collect();
        let directory = tempfile::tempdir().unwrap();
        let mut register = register(directory.path(), 1000);
        let energies = Energies::new(rows.clone()).unwrap();
        let found = boundaries(
            &mut register,
            &energies,
            1000,
            Period::from_secs(2).unwrap(),
            50,
        );
        assert_eq!(differences(&found), rows, "column {column}");
    }
}

/// Three rows at rounds of one second, in real time, the begin and the period named late.
#[tokio::test(flavor = "multi_thread")]
async fn boundaries_arrive_in_real_time_and_are_durable_before_they_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("loads.csv");
    std::fs::write(&file, "timestamp,a\n1,7\n2,5000\n3,12\n").unwrap();
    let period = Period::from_secs(1).unwrap();
    let channels = [ChannelConfig {
        name: "import".to_owned(),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
        source: SourceConfig::Replay(ReplayConfig {
            file,
            column: 1,
            start_row: 0,
            period,
            after: AfterLastRow::Stop,
            begin: None,
        }),
    }];
    let begin = watch::Sender::new(None);
    let round = watch::Sender::new(None);
    let sources = pulse::open(&channels, Some(&begin.subscribe())).unwrap();
    let (sender, mut receiver) = mpsc::channel(64);
    let (stop, stopped) = oneshot::channel::<()>();
    let state = directory.path().join("register");
    let counted = watch::Sender::new(Counted::default());
    let seen = counted.subscribe();
    let task = tokio::spawn(count(
        register(&state, 1000),
        sources,
        SavePolicy::default(),
        rounds(round.subscribe(), sender),
        Watching {
            counted,
            ..Watching::default()
        },
        async {
            let _ = stopped.await;
        },
    ));
    let start = period.round_at(clock::utc_timestamp()).next().end(period);
    begin.send_replace(Some(start));
    round.send_replace(Some(period));
    let mut found = Vec::new();
    while found.len() < 4 {
        let deadline = Duration::from_secs(60);
        let boundary = tokio::time::timeout(deadline, receiver.recv())
            .await
            .unwrap()
            .unwrap();
        let on_disk = std::fs::read_to_string(state.join("register.0")).unwrap_or_default()
            + &std::fs::read_to_string(state.join("register.1")).unwrap_or_default();
        let pulses = boundary.channels[0].0 / 1000;
        let saved = on_disk
            .lines()
            .filter_map(|line| line.strip_prefix("channel import 1000 "));
        assert!(
            saved
                .max_by_key(|p| p.parse::<u64>().unwrap())
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= pulses
        );
        if boundary.at >= start {
            found.push(boundary);
        }
    }
    assert_eq!(found[0].at, start);
    let expected = [7000, 5_000_000, 12_000].map(MilliwattHours);
    assert_eq!(differences(&found), expected);
    stop.send(()).unwrap();
    let register = task.await.unwrap().unwrap();
    assert_eq!(register.totals(), [Pulses(5019)]);
    let seen = seen.borrow();
    assert_eq!(seen.channels[0].pulses, Pulses(5019));
    assert_eq!(seen.channels[0].energy, MilliwattHours(5_019_000));
    assert!(seen.channels[0].power_at(clock::monotonic()).is_some());
}

/// The watchdog of the service manager depends on it.
#[tokio::test]
async fn counting_turns_while_there_is_nothing_to_count() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, _receiver) = mpsc::channel(1);
    let heartbeat = Heartbeat::every(Duration::from_millis(20));
    let counting = count(
        register(directory.path(), 1000),
        Vec::new(),
        SavePolicy::default(),
        rounds(watch::channel(None).1, sender),
        Watching {
            heartbeat: heartbeat.clone(),
            ..Watching::default()
        },
        std::future::pending(),
    );
    let turned = async {
        while heartbeat.turns() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        end = counting => panic!("it ended: {:?}", end.map(|_| ())),
        turned = tokio::time::timeout(Duration::from_secs(60), turned) => turned.unwrap(),
    }
}

/// A device that was swapped in after years: its total is nothing that was used just now.
#[tokio::test]
async fn the_first_total_of_a_device_is_unknown_before_and_caught_up_then() {
    let directory = tempfile::tempdir().unwrap();
    let constant = ImpulsesPerKwh::new(1000).unwrap();
    let totals = Totals::new(Channel(0), constant, TotalOptions::default());
    let (source, device) = TotalSource::new("device", "look at the device", totals);
    let (sender, _receiver) = mpsc::channel(1);
    let watching = Watching::default();
    let mut counted = watching.counted.subscribe();
    let (stop, stopped) = oneshot::channel::<()>();
    let counting = tokio::spawn(count(
        register(directory.path(), 1000),
        vec![Box::new(source)],
        SavePolicy::default(),
        rounds(watch::channel(None).1, sender),
        watching,
        async {
            let _ = stopped.await;
        },
    ));
    let mut until = async |wanted: fn(&CountedChannel) -> bool| {
        let is_wanted = |counted: &Counted| counted.channels.first().is_some_and(wanted);
        let seen = counted.wait_for(is_wanted);
        let seen = tokio::time::timeout(Duration::from_secs(60), seen).await;
        seen.unwrap().unwrap().channels[0].clone()
    };
    let before = until(|_| true).await;
    assert!(!before.is_known() && before.is_device);
    assert_eq!((before.saved_reading, before.covered), (None, None));

    device.reading(MilliwattHours(12_345_000_000));
    let first = until(CountedChannel::is_known).await;
    assert_eq!(first.energy, MilliwattHours(12_345_000_000));
    assert_eq!((first.catch_ups, first.is_reading_set), (1, true));
    let saved = until(|channel| channel.saved_reading.is_some()).await;
    assert_eq!(saved.saved_reading, Some(saved.energy), "never the zero");

    // What comes now is counted as time goes by.
    tokio::time::sleep(Duration::from_millis(5)).await;
    device.reading(MilliwattHours(12_345_007_000));
    let next = until(|channel| channel.energy.0 > 12_345_000_000).await;
    assert_eq!(next.catch_ups, 1);
    drop(stop);
    counting.await.unwrap().unwrap();
}

struct Failing;

impl PulseSource for Failing {
    fn next(&mut self) -> pulse::NextBatch<'_> {
        Box::pin(async { Err(pulse::PulseError::NotBuilt("test")) })
    }
}

#[tokio::test]
async fn a_failing_source_ends_the_count_with_its_error() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, _receiver) = mpsc::channel(1);
    let result = count(
        register(directory.path(), 1000),
        vec![Box::new(Failing)],
        SavePolicy::default(),
        rounds(watch::channel(None).1, sender),
        Watching::default(),
        std::future::pending(),
    )
    .await;
    assert!(result.unwrap_err().to_string().contains("test"));
}

/// On a machine without the hardware the error says what is missing and what to do.
#[cfg(any(feature = "gpiocdev", feature = "rppal"))]
mod without_hardware {
    #[cfg(feature = "gpiocdev")]
    use meter_agent::config::LineName;
    use meter_agent::pulse::edge::EdgeLimits;
    use meter_agent::pulse::line::{Bias, LineOptions};

    use super::*;

    fn error(source: SourceConfig) -> String {
        let channels = [ChannelConfig {
            name: "import".to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
            source,
        }];
        match pulse::open(&channels, None) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("a line that does not exist was opened"),
        }
    }

    fn options() -> LineOptions {
        LineOptions {
            active_low: true,
            bias: Bias::PullUp,
            debounce: Duration::from_millis(5),
            limits: EdgeLimits::default(),
        }
    }

    #[cfg(feature = "gpiocdev")]
    #[test]
    fn gpiocdev_says_which_line_and_what_to_check() {
        let line = LineName::Name("no such line".to_owned());
        let error = error(SourceConfig::Gpiocdev {
            line,
            options: options(),
        });
        assert!(error.contains("no such line"), "{error}");
        assert!(
            error.contains("/dev/gpiochip") || error.contains("gpioinfo"),
            "{error}"
        );
        let line = LineName::Offset {
            chip: "no such chip".to_owned(),
            offset: 3,
        };
        let error = self::error(SourceConfig::Gpiocdev {
            line,
            options: options(),
        });
        assert!(error.contains("3 of chip no such chip"), "{error}");
    }

    #[cfg(feature = "rppal")]
    #[test]
    fn rppal_says_that_this_is_no_pi() {
        if std::fs::read_to_string("/proc/device-tree/model").is_ok_and(|m| m.contains("Raspberry"))
        {
            eprintln!("skipped: this is a Raspberry Pi");
            return;
        }
        let error = error(SourceConfig::Rppal {
            gpio: 17,
            options: options(),
        });
        assert!(
            error.contains("GPIO17") && error.contains("Raspberry Pi only"),
            "{error}"
        );
    }
}
