//! Checks the tables of devices that show their total: `[channel.mqtt]`, `[channel.sml]` and
//! `[channel.d0]`.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::file::{self, OneOrMore, RequestMode};
use super::home::{self, BrokerKeys, ProviderBroker};
use super::validate::Check;
use super::{ChannelConfig, SourceConfig};
use crate::pulse::mqtt::HomeTopic;
use crate::pulse::obis::Obis;
use crate::pulse::optical::{OpticalOptions, Protocol};
use crate::pulse::total::TotalOptions;

fn total(
    check: &mut Check<'_>,
    table: &str,
    offset: Option<Spanned<f64>>,
    maximum: Option<Spanned<u32>>,
) -> TotalOptions {
    let default = TotalOptions::default();
    let offset = offset.map_or(default.offset, |offset| {
        let kwh = *offset.get_ref();
        if kwh.abs() <= 1e9 {
            // Within 10¹⁵ mWh a double holds every whole one.
            (kwh * 1e6).round() as i64
        } else {
            let text = format!("{kwh} is not within a thousand million kWh");
            check.problem(Some(offset.span()), &format!("{table}.offset_kwh"), text);
            0
        }
    });
    let key = format!("{table}.maximum_kw");
    TotalOptions {
        offset,
        maximum_kw: check.within(maximum, &key, 1..=10_000, default.maximum_kw),
    }
}

pub(super) fn mqtt(
    check: &mut Check<'_>,
    given: file::Mqtt,
    base: &Path,
    provider: ProviderBroker<'_>,
) -> Option<SourceConfig> {
    let problems = check.problems();
    let table = "channel.mqtt";
    let keys = BrokerKeys {
        host: given.host,
        port: given.port,
        tls: given.tls,
        ca: given.ca,
        username: given.username,
        password_file: given.password_file,
    };
    let broker = home::broker(check, table, keys, base, provider);
    let topic = given.topic.get_ref();
    if topic.is_empty() || topic.len() > 1024 || topic.contains(['+', '#', '\0']) {
        let text = format!("{topic:?}: write one topic without + and #, such as tele/plug/SENSOR");
        check.problem(Some(given.topic.span()), "channel.mqtt.topic", text);
    }
    let pointer = given.pointer.and_then(|pointer| {
        let parsed = pointer.get_ref().parse();
        if let Err(error) = &parsed {
            let text = format!("{:?} is {error}", pointer.get_ref());
            check.problem(Some(pointer.span()), "channel.mqtt.pointer", text);
        }
        parsed.ok()
    });
    let total = total(check, table, given.offset_kwh, given.maximum_kw);
    (check.problems() == problems).then(|| {
        SourceConfig::Mqtt(HomeTopic {
            broker,
            topic: given.topic.into_inner(),
            pointer,
            unit: given.unit.unwrap_or_default(),
            total,
        })
    })
}

pub(super) fn sml(check: &mut Check<'_>, given: file::Sml) -> SourceConfig {
    let table = "channel.sml";
    SourceConfig::Optical(OpticalOptions {
        port: port(check, table, given.port),
        baud: baud(check, table, given.baud, 9600),
        codes: codes(check, table, given.obis),
        protocol: Protocol::Sml,
        total: total(check, table, given.offset_kwh, given.maximum_kw),
    })
}

pub(super) fn d0(check: &mut Check<'_>, given: file::D0) -> SourceConfig {
    let table = "channel.d0";
    let requests = given.mode == Some(RequestMode::Request);
    if let (false, Some(every)) = (requests, &given.request_seconds) {
        let text = "only a meter that is asked has it; write mode = \"request\"".to_owned();
        check.problem(Some(every.span()), "channel.d0.request_seconds", text);
    }
    let every = check.within(
        given.request_seconds,
        "channel.d0.request_seconds",
        1..=3600,
        60,
    );
    SourceConfig::Optical(OpticalOptions {
        port: port(check, table, given.port),
        baud: baud(check, table, given.baud, if requests { 300 } else { 9600 }),
        codes: codes(check, table, given.obis),
        protocol: Protocol::D0 {
            framing: given.framing.unwrap_or_default(),
            request_every: requests.then(|| Duration::from_secs(u64::from(every))),
        },
        total: total(check, table, given.offset_kwh, given.maximum_kw),
    })
}

/// Channels may share a head, but it has one speed and one protocol.
pub(super) fn shared_head(
    check: &mut Check<'_>,
    earlier: &[ChannelConfig],
    source: Option<&SourceConfig>,
    span: Range<usize>,
) {
    let Some(SourceConfig::Optical(head)) = source else {
        return;
    };
    let differs = earlier.iter().find(|channel| {
        matches!(&channel.source, SourceConfig::Optical(other)
            if other.port == head.port && (other.baud, other.protocol) != (head.baud, head.protocol))
    });
    if let Some(other) = differs {
        let text = format!(
            "{} is read by channel {:?} with another speed or protocol; write the same for both",
            head.port.display(),
            other.name
        );
        check.problem(Some(span), "channel", text);
    }
}

fn port(
    check: &mut Check<'_>,
    table: &str,
    given: Spanned<std::path::PathBuf>,
) -> std::path::PathBuf {
    if !given.get_ref().is_absolute() {
        let text = "write a whole path, such as /dev/ttyUSB0 or one under /dev/serial/by-id";
        check.problem(
            Some(given.span()),
            &format!("{table}.port"),
            text.to_owned(),
        );
    }
    given.into_inner()
}

fn baud(check: &mut Check<'_>, table: &str, given: Option<Spanned<u32>>, default: u32) -> u32 {
    check.within(given, &format!("{table}.baud"), 300..=921_600, default)
}

fn codes(check: &mut Check<'_>, table: &str, given: Option<Spanned<OneOrMore>>) -> Vec<Obis> {
    let Some(given) = given else {
        return vec![Obis::IMPORT];
    };
    let span = given.span();
    let key = format!("{table}.obis");
    let texts = match given.into_inner() {
        OneOrMore::One(text) => vec![text],
        OneOrMore::More(texts) => texts,
    };
    let mut codes: Vec<Obis> = Vec::new();
    for text in &texts {
        match text.parse::<Obis>() {
            Ok(code) if !code.is_energy() => {
                let text = format!("{code} is no energy; write 1.8.0 or 2.8.0");
                check.problem(Some(span.clone()), &key, text);
            }
            Ok(code) if codes.contains(&code) => {
                let text = format!("{code} is there twice and would be counted twice");
                check.problem(Some(span.clone()), &key, text);
            }
            Ok(code) => codes.push(code),
            Err(error) => check.problem(Some(span.clone()), &key, format!("{text:?} is {error}")),
        }
    }
    if texts.is_empty() {
        check.problem(Some(span), &key, "write a code, such as 1.8.0".to_owned());
    }
    codes
}
