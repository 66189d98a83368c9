use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};
use link::LinkState;

use super::*;
use crate::home_broker::HomeBroker;
use crate::power::PowerMeter;
use crate::register::counting::CountedChannel;

const SECOND: Duration = Duration::from_secs(1);

fn options() -> HomeAssistantOptions {
    HomeAssistantOptions {
        broker: HomeBroker {
            host: "homeassistant.local".to_owned(),
            port: 1883,
            tls: None,
            login: None,
            provider: "broker.example.net".to_owned(),
        },
        discovery_prefix: "homeassistant".to_owned(),
        topic_prefix: "dcnet".to_owned(),
        every: 10 * SECOND,
        name: "Electricity meter".to_owned(),
    }
}

fn id() -> Identifier {
    Identifier::parse("meter-00c0ffee00c0ffee").unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn discovery_names_every_entity_of_the_device() {
    let topics = Topics::new(&options(), &id());
    assert_eq!(
        topics.discovery,
        "homeassistant/device/meter-00c0ffee00c0ffee/config"
    );
    let text = discovery(&options(), &id(), &topics, &names(&["import", "heat-pump"]));
    let expected = include_str!("discovery.json").replace("VERSION", env!("CARGO_PKG_VERSION"));
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parsed(&text), parsed(&expected), "{text}");
}

/// 1000 imp/kWh, counted since 100 s, with pulses at these seconds.
fn counted(saved_reading: u64, pulses: &[u32]) -> CountedChannel {
    let mut power = PowerMeter::new(ImpulsesPerKwh::new(1000).unwrap(), 100 * SECOND);
    for at in pulses {
        power.count(Pulses(1), *at * SECOND);
    }
    CountedChannel {
        pulses: Pulses(0),
        energy: MilliwattHours(0),
        reading: MilliwattHours(saved_reading.saturating_add(1_000_000)),
        is_reading_set: true,
        saved_reading: Some(MilliwattHours(saved_reading)),
        power,
        is_device: false,
        is_line: true,
        covered: Some(100 * SECOND),
        catch_ups: 0,
    }
}

fn shown(channels: Vec<CountedChannel>, link: LinkState, progress: Progress) -> String {
    shown_unread(channels, [false; 2], link, progress)
}

fn shown_unread(
    channels: Vec<CountedChannel>,
    is_unread: [bool; 2],
    link: LinkState,
    progress: Progress,
) -> String {
    let counted = Counted {
        channels,
        ..Counted::default()
    };
    let standing = Standing {
        members: 31,
        ..Standing::default()
    };
    let channels = names(&["import", "export"]);
    let reach = Reach::Link(link);
    state(
        &channels,
        &counted,
        &is_unread,
        300 * SECOND,
        &reach,
        &standing,
        progress,
    )
}

#[test]
fn the_state_has_exact_numbers_of_what_is_saved() {
    let import = counted(12_345_678_901, &[290, 299]);
    let export = counted(u64::MAX, &[150, 200]);
    let progress = Progress {
        round: Some(RoundState::Final),
        alarms: 2,
    };
    assert_eq!(
        shown(vec![import, export], LinkState::Connected, progress),
        concat!(
            r#"{"channels":{"#,
            r#""export":{"energy_kwh":18446744073709.551615,"power_w":36.000},"#,
            r#""import":{"energy_kwh":12345.678901,"power_w":400.000}},"#,
            r#""connected":true,"members":31,"round":"final","alarms":2}"#,
        )
    );
}

#[test]
fn the_energy_of_a_device_is_null_and_no_zero_until_its_first_reading_is_saved() {
    let silent = CountedChannel {
        saved_reading: None,
        is_device: true,
        covered: None,
        ..counted(0, &[])
    };
    let text = shown(vec![silent], LinkState::Connected, Progress::default());
    assert!(text.contains(r#""import":{"energy_kwh":null,"#), "{text}");
}

#[test]
fn the_power_of_a_line_that_is_not_read_is_null_and_no_bound_that_falls() {
    let channels = || vec![counted(1, &[150, 200]), counted(2, &[290, 299])];
    let power = |is_unread| {
        let link = LinkState::Connected;
        let text = shown_unread(channels(), is_unread, link, Progress::default());
        let state: Value = serde_json::from_str(&text).unwrap();
        let of = |channel: &str| state["channels"][channel].clone();
        assert!(of("import")["energy_kwh"].is_number(), "{text}");
        [
            of("import")["power_w"].as_f64(),
            of("export")["power_w"].as_f64(),
        ]
    };
    assert_eq!(power([false, false]), [Some(36.0), Some(400.0)]);
    assert_eq!(power([true, false]), [None, Some(400.0)]);
}

#[test]
fn what_is_not_known_yet_is_null() {
    let waiting = LinkState::Waiting {
        error: "no route".to_owned(),
    };
    let one_pulse = counted(500_000, &[299]);
    assert_eq!(
        shown(vec![one_pulse], waiting, Progress::default()),
        concat!(
            r#"{"channels":{"export":{"energy_kwh":null,"power_w":null},"#,
            r#""import":{"energy_kwh":0.5,"power_w":null}},"#,
            r#""connected":false,"members":31,"round":null,"alarms":0}"#,
        )
    );
}
