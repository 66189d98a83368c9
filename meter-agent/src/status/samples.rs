//! What the tests of the page in a browser (`tests/page`) show it: statuses that a recorder made
//! of what a meter tells, as JSON files. `taking-part.json` is whole, another one has what is
//! different. This test keeps them as the agent sends them.

use std::path::Path;

use dcnet::alarm::{Alarm, Silence};
use dcnet::commitment::Commitment;
use dcnet::identity::DeviceId;
use dcnet::membership::Policy;
use dcnet::meter::{Floors, MeterEvent};
use dcnet::opening::Opening;
use dcnet::reading::Boundary;
use dcnet::superposition::Share;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use link::LinkState;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use super::*;
use crate::reach::NoLink;
use crate::standing::HasLeft;

/// With this in the environment the files are written instead.
const WRITE: &str = "WRITE_SAMPLES";

/// 2025-11-22 08:26:40 UTC.
const NOW: u64 = 1_763_800_000_000;
const DAY: u64 = 86_400_000;
/// The newest round that has ended by then, 08:00 to 08:15 UTC.
const NEWEST: u64 = 1_959_776;
/// What was drawn from the grid in that round and those before it, in Wh.
const READINGS: [u64; 10] = [131, 142, 523, 77, 81, 80, 85, 602, 90, 88];

fn policy() -> Policy {
    Policy {
        period: Period::from_secs(900).unwrap(),
        window_ms: 20_000,
        minimum_group: 30,
        minimum_neighbours: 3,
        degree: 48,
    }
}

/// A recorder of a meter that knows its net.
fn recorder() -> Recorder {
    let recorder = Recorder::default();
    recorder.open(&policy(), &["import".to_owned(), "export".to_owned()]);
    recorder
}

fn tell(recorder: &Recorder, event: MeterEvent) {
    recorder.event(&event, Timestamp(NOW - 60_000));
}

fn alarm(recorder: &Recorder, alarm: Alarm, age: u64) {
    recorder.event(&MeterEvent::Alarm(alarm), Timestamp(NOW - age));
}

/// The register's values at both ends of a round.
fn counted(recorder: &Recorder, round: u64, is_paused: bool) {
    let place = usize::try_from(NEWEST - round).unwrap();
    // 100 W are fed into it all the time.
    let energies = [(0, 0), (READINGS[place] * 1000, 25_000)];
    for (round, (import, export)) in (round..).zip(energies) {
        let boundary = Boundary {
            at: Round(round).start(policy().period),
            channels: vec![MilliwattHours(import), MilliwattHours(export)],
        };
        recorder.boundary(&boundary, is_paused);
    }
}

/// Some number that looks like a superposition: what blinds it is no part of this.
fn superposition(round: u64, channel: u64) -> Opening {
    let mut state = round * 2 + channel;
    let mut bytes = [0; 64];
    for (place, byte) in bytes.iter_mut().enumerate() {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let mixed = (mixed ^ (mixed >> 31)).to_le_bytes()[0];
        *byte = if place % 32 == 31 {
            mixed & 0x0F
        } else {
            mixed
        };
    }
    Opening::from_bytes(&bytes).unwrap()
}

fn submitted(recorder: &Recorder, round: u64) {
    counted(recorder, round, false);
    let share = |channel| Share {
        superposition: superposition(round, channel),
        commitment: std::iter::empty::<Commitment>().sum(),
    };
    tell(
        recorder,
        MeterEvent::Submitted {
            round: Round(round),
            shares: vec![share(0), share(1)],
            drawn: 48,
            used: 47,
            required: 29,
        },
    );
}

fn summed(recorder: &Recorder, round: u64) {
    submitted(recorder, round);
    let age = NEWEST - round;
    tell(
        recorder,
        MeterEvent::Revealed {
            round: Round(round),
            included: 55,
            full: 46,
        },
    );
    tell(
        recorder,
        MeterEvent::Final {
            round: Round(round),
            included: 55,
            sums: vec![
                MilliwattHours(9_231_567 + 70_311 * age),
                MilliwattHours(412_000),
            ],
        },
    );
}

fn silent(recorder: &Recorder, round: u64, reason: Silence) {
    tell(
        recorder,
        MeterEvent::Silent {
            round: Round(round),
            reason,
        },
    );
}

/// Nine rounds before the newest one: sums, an answer that was refused, and a clock that was
/// not synchronised.
fn history(recorder: &Recorder) {
    for round in (NEWEST - 9)..NEWEST {
        match NEWEST - round {
            4 => {
                submitted(recorder, round);
                silent(recorder, round, Silence::PresenceTooLow);
            }
            6 => {
                counted(recorder, round, false);
                silent(recorder, round, Silence::ClockUnsynchronised);
            }
            _ => summed(recorder, round),
        }
    }
    let handshake = Alarm::Handshake {
        meter: DeviceId([0x3F; 16]),
        reason: "the tag is wrong",
    };
    alarm(recorder, handshake, 3 * DAY);
}

/// The same, and then this.
fn after_history(newest: impl FnOnce(&Recorder)) -> Recorder {
    let recorder = recorder();
    history(&recorder);
    newest(&recorder);
    recorder
}

const METER: DeviceId = DeviceId(0x5eff_322a_1bd4_164e_1db3_17c7_f60b_1b65_u128.to_be_bytes());
const NET: NetId = NetId(0xa08a_0fcb_deaf_d3c1_b3a4_b495_b9a9_c9d9_u128.to_be_bytes());

/// A meter that reads its import from a line, whose display the household has read off, and its
/// export from a device.
fn status(recorder: &Recorder) -> Status {
    let recorded = recorder.view();
    let import = ChannelView {
        name: "import".to_owned(),
        impulses_per_kwh: 1000,
        pulses: 123_456,
        energy_mwh: Some(123_456_000),
        reading_mwh: Some(987_654_000),
        power: Some(Power {
            milliwatts: 523_000,
            is_upper_bound: false,
        }),
        line: Some(LineStatus {
            is_active: false,
            is_stuck: false,
            pulses: 123_456,
            rejected: 2,
            lost: 0,
        }),
        line_trouble: None,
        input: None,
    };
    let export = ChannelView {
        name: "export".to_owned(),
        impulses_per_kwh: 1000,
        pulses: 54_321,
        energy_mwh: Some(54_321_000),
        reading_mwh: Some(54_321_000),
        power: Some(Power {
            milliwatts: 100_000,
            is_upper_bound: false,
        }),
        line: None,
        line_trouble: None,
        input: Some(InputView {
            source: "/dev/ttyUSB0".to_owned(),
            advice: "look at the optical head",
            readings: 55,
            faults: [("no answer", 2)].into(),
            trouble: None,
            refused: None,
        }),
    };
    Status {
        version: "0.1.0",
        meter: Some(METER.to_string()),
        net: Some(NET.to_string()),
        certificate_end_ms: Some(NOW + 3000 * DAY),
        is_renewal_due: false,
        utc_ms: NOW,
        synchronised: true,
        clock_unconfirmed: recorded.clock_unconfirmed,
        uptime_s: 731_520,
        history_days: 8,
        shown_days: 8,
        channels: vec![import, export],
        unsaved_pulses: 3,
        save_error: None,
        link: LinkView {
            is_connected: true,
            text: LinkState::Connected.to_string(),
        },
        no_link: None,
        policy: recorded.policy,
        floors: Floors::default().into(),
        members: 57,
        is_member: true,
        is_stopped: false,
        open_rounds: 0,
        drawn: recorded.drawn,
        live: recorded.live,
        paused: false,
        exit: None,
        rounds: recorded.rounds,
        checks: recorded.checks,
        alarms: recorded.alarms,
        refused: recorded.refused,
    }
}

/// All samples by their names; the first one is `taking-part`.
fn samples() -> Vec<(&'static str, Status)> {
    let taking_part = after_history(|recorder| summed(recorder, NEWEST));
    let silent_for = |reasons: &[Silence]| {
        let recorder = recorder();
        for (round, reason) in ((NEWEST - 2)..).zip(reasons) {
            counted(&recorder, round, false);
            silent(&recorder, round, *reason);
        }
        recorder
    };
    let newest_silent = |reason| {
        after_history(|recorder| {
            counted(recorder, NEWEST, false);
            silent(recorder, NEWEST, reason);
        })
    };
    let fork = |recorder: &Recorder| {
        alarm(recorder, Alarm::LogFork { index: 61 }, 20 * 60_000);
        counted(recorder, NEWEST, false);
        silent(recorder, NEWEST, Silence::Stopped);
    };
    let stopped = Status {
        is_stopped: true,
        ..status(&after_history(fork))
    };
    vec![
        ("taking-part", status(&taking_part)),
        ("first-start", first_start()),
        (
            "waiting",
            Status {
                uptime_s: 3600,
                members: 12,
                ..status(&silent_for(&[
                    Silence::DrawIncomplete,
                    Silence::TooFewCandidates,
                    Silence::TooFewCandidates,
                ]))
            },
        ),
        (
            "no-member",
            Status {
                uptime_s: 3600,
                is_member: false,
                ..status(&silent_for(&[Silence::NotMember; 3]))
            },
        ),
        (
            "first-round",
            Status {
                uptime_s: 600,
                drawn: Some(48),
                live: Some(47),
                ..status(&recorder())
            },
        ),
        (
            "just-over",
            status(&after_history(|recorder| counted(recorder, NEWEST, false))),
        ),
        (
            "waiting-for-roster",
            Status {
                open_rounds: 1,
                ..status(&after_history(|recorder| submitted(recorder, NEWEST)))
            },
        ),
        (
            "refused-roster",
            status(&after_history(|recorder| {
                submitted(recorder, NEWEST);
                silent(recorder, NEWEST, Silence::SecondRoster);
                let roster = Alarm::SecondRoster {
                    round: Round(NEWEST),
                };
                alarm(recorder, roster, 600_000);
            })),
        ),
        (
            "paused",
            Status {
                paused: true,
                ..status(&after_history(|recorder| counted(recorder, NEWEST, true)))
            },
        ),
        (
            "no-time",
            Status {
                synchronised: false,
                ..status(&newest_silent(Silence::ClockUnsynchronised))
            },
        ),
        (
            "clock-jumped",
            status(&newest_silent(Silence::ClockUnconfirmed)),
        ),
        (
            "stopped-earlier",
            Status {
                alarms: Vec::new(),
                uptime_s: 1800,
                drawn: None,
                live: None,
                ..status(&silent_for(&[Silence::Stopped; 3])).stop()
            },
        ),
        ("stopped", stopped),
        (
            "leaving",
            Status {
                exit: Some(ExitView {
                    left: false,
                    neighbours: 47,
                    awaited: 47,
                    done: false,
                }),
                ..status(&newest_silent(Silence::Leaving))
            },
        ),
        (
            "left",
            Status {
                is_member: false,
                members: 56,
                exit: Some(ExitView {
                    left: true,
                    neighbours: 47,
                    awaited: 0,
                    done: true,
                }),
                ..without_link(&taking_part, &HasLeft(NET).into())
            },
        ),
        (
            "no-enrolment",
            Status {
                meter: None,
                net: None,
                certificate_end_ms: None,
                members: 0,
                is_member: false,
                uptime_s: 1800,
                ..without_link(
                    &Recorder::default(),
                    &NoLink::Enrolment(
                        "cannot use /etc/dcnet/meter/certificate.pem; enrol this meter again with \
                         the gateway administrator"
                            .to_owned(),
                    ),
                )
            },
        ),
        (
            "certificate-ends",
            Status {
                certificate_end_ms: Some(NOW + 40 * DAY),
                is_renewal_due: true,
                ..status(&taking_part)
            },
        ),
        ("line-trouble", line_trouble(status(&taking_part))),
        ("long-texts", long_texts(&taking_part)),
    ]
}

/// One of them.
pub(crate) fn named(name: &str) -> Status {
    let sample = samples().into_iter().find(|(own, _)| *own == name);
    sample.unwrap().1
}

impl Status {
    fn stop(self) -> Self {
        Self {
            is_stopped: true,
            ..self
        }
    }
}

/// Another program has the line.
fn line_trouble(mut status: Status) -> Status {
    if let Some(import) = status.channels.first_mut() {
        import.power = None;
        import.line_trouble = Some(
            "GPIO line GPIO17: Device or resource busy: it is held by \"heating\". Stop the \
             program that holds the line"
                .to_owned(),
        );
    }
    status
}

/// One that only counts.
fn without_link(recorder: &Recorder, why: &NoLink) -> Status {
    let reach = Reach::None(why.clone());
    Status {
        link: LinkView {
            is_connected: false,
            text: reach.to_string(),
        },
        no_link: NoLinkView::of(&reach),
        ..status(recorder)
    }
}

/// Nothing is known yet: a line that was never read off, and a device that is silent.
fn first_start() -> Status {
    let status = status(&Recorder::default());
    let unknown = |channel: ChannelView| ChannelView {
        pulses: 0,
        energy_mwh: channel.line.is_some().then_some(0),
        reading_mwh: None,
        power: None,
        input: channel.input.map(|input| InputView {
            readings: 0,
            faults: BTreeMap::new(),
            ..input
        }),
        ..channel
    };
    Status {
        synchronised: false,
        uptime_s: 4,
        channels: status.channels.into_iter().map(unknown).collect(),
        unsaved_pulses: 0,
        history_days: 0,
        link: LinkView {
            is_connected: false,
            text: LinkState::Waiting {
                error: "connection refused".to_owned(),
            }
            .to_string(),
        },
        members: 0,
        is_member: false,
        ..status
    }
}

/// Everything that may be long is.
fn long_texts(recorder: &Recorder) -> Status {
    let word =
        "Donaudampfschifffahrtselektrizit\u{e4}tenhauptbetriebswerkbauunterbeamtengesellschaft ";
    for _ in 0..20 {
        let handshake = Alarm::Handshake {
            meter: DeviceId([0x2D; 16]),
            reason: "the tag is wrong",
        };
        alarm(recorder, handshake, 60_000);
    }
    let status = status(recorder);
    let mut channels: Vec<ChannelView> = Vec::new();
    for name in ["import", "export", "a-very-long-name-of-32-characters"] {
        let mut channel = status.channels[channels.len() % 2].clone();
        channel.name = name[..name.len().min(32)].to_owned();
        channel.energy_mwh = Some(9_007_199_254_740_991);
        channel.reading_mwh = channel.line.is_none().then_some(9_007_199_254_740_991);
        channel.pulses = 9_007_199_254;
        channel.power = Some(Power {
            milliwatts: 123_456_789_012,
            is_upper_bound: true,
        });
        if let Some(input) = &mut channel.input {
            input.faults = [("payload is no JSON", 123_456), ("total went back", 7)].into();
        }
        if let Some(line) = &mut channel.line {
            line.is_stuck = true;
        }
        channels.push(channel);
    }
    let mut alarms = status.alarms;
    for alarm in alarms.iter_mut().take(3) {
        alarm.text = format!("{} {word}", alarm.text.repeat(3));
        alarm.advice = word.repeat(6);
    }
    Status {
        channels,
        alarms,
        save_error: Some(format!(
            "cannot write /var/lib/{}: no space left",
            word.repeat(3)
        )),
        link: LinkView {
            is_connected: false,
            text: format!("no connection to the broker: {word} does not answer"),
        },
        members: 65_536,
        ..status
    }
}

/// What of a sample is in its file.
fn content(sample: &Status, whole: &Value) -> Value {
    let value = serde_json::to_value(sample).unwrap();
    let (Value::Object(own), Some(whole)) = (value, whole.as_object()) else {
        panic!("a status is an object");
    };
    let differs = |(name, value): &(String, Value)| whole.get(name) != Some(value);
    Value::Object(own.into_iter().filter(differs).collect())
}

#[test]
fn the_samples_of_the_page_are_what_the_agent_sends() {
    let samples = samples();
    let whole = serde_json::to_value(&samples[0].1).unwrap();
    let mut stale = Vec::new();
    for (place, (name, sample)) in samples.iter().enumerate() {
        let nothing = Value::Object(Map::new());
        let base = if place == 0 { &nothing } else { &whole };
        let mut text = Vec::new();
        let mut writer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" "));
        content(sample, base).serialize(&mut writer).unwrap();
        text.push(b'\n');
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/page/{name}.json"));
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, text).unwrap();
        } else if std::fs::read(&path).ok() != Some(text) {
            stale.push(path);
        }
    }
    assert!(
        stale.is_empty(),
        "the agent sends something else than what the page is tested with; run this test with \
         {WRITE}=1, then the test `page`: {stale:#?}"
    );
}
