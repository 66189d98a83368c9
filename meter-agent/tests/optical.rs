//! Recorded telegrams of real meters, and optical heads on pseudo-terminals.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dcnet::time::Period;
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};
use link::Clock;
use meter_agent::config::{ChannelConfig, SourceConfig};
use meter_agent::pulse::d0::{D0Telegrams, Framing};
use meter_agent::pulse::input::TotalSource;
use meter_agent::pulse::optical::{self, Event, HeadChannel, OpticalOptions, Protocol, Telegrams};
use meter_agent::pulse::sml::SmlTelegrams;
use meter_agent::pulse::total::TotalOptions;
use meter_agent::pulse::{self, Channel, PulseSource};
use meter_agent::register::counting::{Rounds, SavePolicy, Watching, count};
use meter_agent::register::{Register, RegisterChannel};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;
use tokio::sync::{mpsc, oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(20);

fn recording(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/telegrams")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.split_inclusive('\n');
    lines.filter(|line| !line.starts_with('#')).collect()
}

fn sml(name: &str) -> Vec<u8> {
    hex::decode(recording(&format!("{name}.sml.hex")).replace('\n', "")).unwrap()
}

fn d0(name: &str) -> Vec<u8> {
    recording(&format!("{name}.d0.txt"))
        .replace('\n', "\r\n")
        .replace("<STX>", "\u{2}")
        .replace("<ETX>", "\u{3}")
        .into_bytes()
}

fn events(mut telegrams: impl Telegrams, bytes: &[u8]) -> Vec<Event> {
    let found = bytes.iter().filter_map(|byte| telegrams.push(*byte));
    found
        .filter(|event| !matches!(event, Event::Identified(_)))
        .collect()
}

/// The totals in mWh, and how many faults.
fn totals(events: &[Event]) -> (Vec<u64>, usize) {
    let energies = events.iter().filter_map(|event| match event {
        Event::Total(energy) => Some(energy.0),
        _ => None,
    });
    let energies: Vec<u64> = energies.collect();
    let faults = events.len() - energies.len();
    (energies, faults)
}

fn sml_totals(name: &str, codes: &[&str]) -> (Vec<u64>, usize) {
    let codes = codes.iter().map(|code| code.parse().unwrap()).collect();
    totals(&events(SmlTelegrams::new(codes), &sml(name)))
}

#[test]
fn sml_of_real_meters_is_read_to_the_milliwatt_hour() {
    let import: &[&str] = &["1.8.0"];
    let household = sml_totals("dzg-household", import);
    assert_eq!(household, (vec![0x5cb067 * 100], 0), "607.4471 kWh");
    assert_eq!(
        sml_totals("dzg-household", &["2.8.0"]),
        (vec![0xc14996 * 100], 0)
    );
    let (both, _) = sml_totals("dzg-two-tariffs", import);
    let (sum, faults) = sml_totals("dzg-two-tariffs", &["1.8.1", "1.8.2"]);
    assert_eq!((both.len(), faults), (4, 0));
    // Each tariff is rounded by the meter.
    assert!(
        both.iter()
            .zip(&sum)
            .all(|(both, sum)| both.abs_diff(*sum) <= 100)
    );
    assert_eq!(
        sml_totals("iskra-without-pin", import),
        (vec![2_043_000_000; 5], 0),
        "whole kWh"
    );
    assert_eq!(sml_totals("emh-ehz", import), (vec![0x07ef_52f1 * 100], 0));
    assert_eq!(sml_totals("emh-feed-in", &["2.8.1"]).0, [0x41c4_988f * 100]);
    assert_eq!(sml_totals("emh-feed-in", import), (vec![], 1));
}

#[test]
fn a_recording_with_missing_bytes_is_counted_and_gives_no_wrong_total() {
    let (energies, faults) = sml_totals("emh-damaged", &["1.8.0"]);
    // Of all its telegrams one is whole.
    assert!(faults >= 1, "{faults}");
    assert_eq!(energies, [0x0a47_2113 * 100]);
}

#[test]
fn plain_text_of_real_meters_is_read_to_the_milliwatt_hour() {
    for (name, code, expected) in [
        ("easymeter", "1.8.0", 26_107_703_423),
        ("ebz", "1.8.0", 89_462_383),
        ("ebz", "2.8.0", 6_105_815),
        ("emh-answer", "1.8.0", 0),
        ("logarex-answer", "1.8.0", 15_882_692_700),
        ("logarex-answer", "2.8.0", 219_488_200),
    ] {
        for framing in [Framing::SevenEven, Framing::Eight] {
            let telegrams = D0Telegrams::new(vec![code.parse().unwrap()], framing);
            let found = events(telegrams, &framing.encode(&d0(name)));
            assert_eq!(found, [Event::Total(MilliwattHours(expected))], "{name}");
        }
    }
}

/// A pseudo-terminal under a name that stays, like that of an adapter.
struct Line {
    master: File,
}

impl Line {
    fn plug(name: &Path) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ptsname(&master, Vec::new()).unwrap();
        let _ = std::fs::remove_file(name);
        std::os::unix::fs::symlink(slave.to_str().unwrap(), name).unwrap();
        Self {
            master: File::from(master),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(7) {
            self.master.write_all(piece).unwrap();
        }
    }

    /// Reads until what came ends with `end`.
    fn expect(&mut self, end: &[u8]) {
        let mut got = Vec::new();
        while !got.ends_with(end) {
            let mut byte = [0];
            self.master.read_exact(&mut byte).unwrap();
            got.push(byte[0]);
        }
    }
}

fn options(port: PathBuf, protocol: Protocol, baud: u32) -> OpticalOptions {
    OpticalOptions {
        port,
        baud,
        codes: vec!["1.8.0".parse().unwrap()],
        protocol,
        total: TotalOptions::default(),
    }
}

fn constant() -> ImpulsesPerKwh {
    ImpulsesPerKwh::new(10_000).unwrap()
}

fn open(options: &OpticalOptions) -> TotalSource {
    let mut source = optical::open(&[channel(0, options)]).unwrap().remove(0);
    source.resume(&[Pulses(0)]);
    source
}

fn channel(index: usize, options: &OpticalOptions) -> HeadChannel {
    HeadChannel {
        channel: Channel(index),
        constant: constant(),
        options: options.clone(),
    }
}

/// Lets the meter send until the total is `expected`.
async fn reach(source: &mut TotalSource, total: &mut u64, expected: u64, mut send: impl FnMut()) {
    let begun = Instant::now();
    while *total != expected {
        assert!(begun.elapsed() < PATIENCE, "{total} is not {expected}");
        send();
        let soon = Duration::from_millis(300);
        while let Ok(batch) = tokio::time::timeout(soon, source.next()).await {
            *total += batch.unwrap().pulses().0;
            if *total == expected {
                break;
            }
        }
    }
}

/// The telegrams of a recording, apart.
fn telegrams(name: &str) -> Vec<Vec<u8>> {
    let bytes = sml(name);
    let start = [0x1b, 0x1b, 0x1b, 0x1b, 1, 1, 1, 1];
    let starts: Vec<usize> = bytes
        .windows(8)
        .enumerate()
        .filter_map(|(at, bytes)| (bytes == start).then_some(at))
        .collect();
    let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(from, to)| bytes[*from..to].to_vec())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_read_through_noise_damage_and_a_pulled_plug() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("usb-head");
    let recorded = telegrams("itron-with-pin");
    assert!(recorded.len() >= 4);
    let mut source = open(&options(name.clone(), Protocol::Sml, 9600));
    let mut total = 0;
    let value = |index: usize| 0x0f6e_ec00 + [0x91, 0x92, 0x94][index];

    // The port is not there yet when the agent starts.
    let mut line = Line::plug(&name);
    let noise = b"\x00\xff\x1b\x1b garbage \x1b";
    reach(&mut source, &mut total, value(0), || {
        line.send(noise);
        line.send(&recorded[0]);
    })
    .await;
    assert!(source.statistics().fault("bytes outside a telegram") >= 1);

    let mut damaged = recorded[1].clone();
    damaged[40] ^= 4;
    reach(&mut source, &mut total, value(1), || {
        line.send(&recorded[1][..100]);
        line.send(&damaged);
        line.send(&recorded[1]);
    })
    .await;
    let statistics = source.statistics();
    assert!(
        statistics.fault("checksum of a telegram") >= 1,
        "{statistics:?}"
    );

    drop(line);
    let mut line = Line::plug(&name);
    reach(&mut source, &mut total, value(2), || {
        line.send(&recorded[2])
    })
    .await;
    assert!(source.statistics().readings >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_that_sends_plain_text_unasked_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("usb-head");
    let mut line = Line::plug(&name);
    let framing = Framing::SevenEven;
    let protocol = Protocol::D0 {
        framing,
        request_every: None,
    };
    let mut source = open(&options(name, protocol, 9600));
    let mut total = 0;
    let telegram = framing.encode(&d0("easymeter"));
    reach(&mut source, &mut total, 261_077_034, || {
        line.send(&telegram[30..]);
        line.send(&telegram);
    })
    .await;
    let later = String::from_utf8(d0("easymeter")).unwrap();
    let later = framing.encode(later.replace("7.7034231", "7.7999999").as_bytes());
    reach(&mut source, &mut total, 261_077_999, || line.send(&later)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_meter_that_is_asked_answers_at_the_speed_it_offers() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("usb-head");
    let mut line = Line::plug(&name);
    let framing = Framing::SevenEven;
    let protocol = Protocol::D0 {
        framing,
        request_every: Some(Duration::from_secs(1)),
    };
    let meter = std::thread::spawn(move || {
        let answer = framing.encode(&d0("logarex-answer"));
        let split = answer.iter().position(|byte| byte & 0x7f == 2).unwrap();
        let speeds = |line: &Line| tcgetattr(&line.master).unwrap().input_speed();
        let mut seen = Vec::new();
        for _ in 0..2 {
            line.expect(&framing.encode(b"/?!\r\n"));
            seen.push(speeds(&line));
            line.send(&answer[..split]);
            line.expect(&framing.encode(b"\x06050\r\n"));
            let begun = Instant::now();
            while speeds(&line) != 9600 {
                assert!(begun.elapsed() < PATIENCE);
                std::thread::yield_now();
            }
            line.send(&answer[split..]);
        }
        (seen, line)
    });
    let mut source = open(&options(name, protocol, 300));
    let mut total = 0;
    reach(&mut source, &mut total, 158_826_927, || {}).await;
    // A second question gives a second reading, and so a batch of the time between.
    let batch = tokio::time::timeout(PATIENCE, source.next()).await.unwrap();
    assert_eq!(batch.unwrap().pulses(), Pulses(0));
    let (seen, _line) = meter.join().unwrap();
    assert_eq!(seen, [300, 300]);
    assert_eq!(source.statistics().faults.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_and_export_of_one_meter_share_its_head() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("usb-head");
    let mut line = Line::plug(&name);
    let import = options(name, Protocol::Sml, 9600);
    let mut export = import.clone();
    export.codes = vec!["2.8.0".parse().unwrap()];
    let mut sources = optical::open(&[channel(0, &import), channel(1, &export)]).unwrap();
    let telegram = &telegrams("dzg-household")[0];
    for (index, expected) in [(0, 0x5c_b067), (1, 0xc1_4996)] {
        let mut total = 0;
        sources[index].resume(&[Pulses(0), Pulses(0)]);
        reach(&mut sources[index], &mut total, expected, || {
            line.send(telegram)
        })
        .await;
    }
}

/// Counts until the register has `expected` and a boundary was handed on.
async fn run(
    directory: &Path,
    port: &Path,
    expected: u64,
    line: &mut Line,
    telegram: &[u8],
) -> u64 {
    let channel = RegisterChannel {
        name: "import".to_owned(),
        constant: constant(),
    };
    let register = Register::open(&directory.join("register"), vec![channel]).unwrap();
    let before = register.totals()[0].0;
    let config = ChannelConfig {
        name: "import".to_owned(),
        constant: constant(),
        source: SourceConfig::Optical(options(port.to_path_buf(), Protocol::Sml, 9600)),
    };
    let sources = pulse::open(&[config], None).unwrap();
    let (_period, period) = watch::channel(Period::from_secs(1));
    let (sender, mut boundaries) = mpsc::channel(100);
    let (stop, stopped) = oneshot::channel::<()>();
    let counting = tokio::spawn(count(
        register,
        sources,
        SavePolicy::default(),
        Rounds {
            period,
            clock: Clock::assume_synchronised(),
            boundaries: sender,
        },
        Watching::default(),
        async {
            let _ = stopped.await;
        },
    ));
    let begun = Instant::now();
    let mut found = Vec::new();
    while found.len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{found:?}");
        line.send(telegram);
        let soon = Duration::from_millis(200);
        if let Ok(Some(boundary)) = tokio::time::timeout(soon, boundaries.recv()).await {
            found.push(boundary.channels[0].0);
        }
    }
    // No boundary has a value between the old and the new total.
    assert!(
        found.iter().all(|energy| *energy == expected * 100),
        "{found:?}"
    );
    drop(stop);
    let register = counting.await.unwrap().unwrap();
    assert_eq!(register.totals(), [Pulses(expected)]);
    before
}

#[tokio::test(flavor = "multi_thread")]
async fn the_register_follows_the_meter_and_no_boundary_lies_in_between() {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().join("usb-head");
    let mut line = Line::plug(&name);
    let recorded = telegrams("itron-with-pin");
    let (first, later) = (0x0f6e_ec91, 0x0f6e_ec95);
    let before = run(directory.path(), &name, first, &mut line, &recorded[0]).await;
    assert_eq!(before, 0, "the first start takes over the meter's total");
    let mut line = Line::plug(&name);
    let before = run(directory.path(), &name, later, &mut line, &recorded[3]).await;
    assert_eq!(before, first, "what came while it was down is caught up");
}
