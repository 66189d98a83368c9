//! The configuration file as it is written, before its values are checked.

use std::path::PathBuf;

use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use super::Problem;
use crate::energy::EnergyUnit;
use crate::pulse::d0::Framing;
use crate::pulse::line::Bias;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_directory: Option<PathBuf>,
    pub(super) broker: Broker,
    #[serde(default)]
    pub(super) identity: Identity,
    #[serde(default)]
    pub(super) clock: Clock,
    #[serde(default)]
    pub(super) floors: Floors,
    #[serde(default)]
    pub(super) register: Register,
    pub(super) home_assistant: Option<HomeAssistant>,
    #[serde(default)]
    pub(super) page: Page,
    #[serde(default)]
    pub(super) metrics: Metrics,
    #[serde(default)]
    pub(super) channel: Vec<Spanned<Channel>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Broker {
    pub(super) host: Spanned<String>,
    pub(super) port: Option<Spanned<u16>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) directory: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clock {
    #[serde(default)]
    pub(super) assume_synchronised: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Floors {
    pub(super) minimum_group: Option<Spanned<u32>>,
    pub(super) minimum_neighbours: Option<Spanned<u32>>,
    pub(super) minimum_presence_percent: Option<Spanned<u32>>,
    pub(super) minimum_period: Option<Spanned<u32>>,
    pub(super) max_exclusions_per_day: Option<Spanned<u32>>,
    pub(super) max_exclusions_per_month_percent: Option<Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Register {
    pub(super) save_seconds: Option<Spanned<u32>>,
    pub(super) save_pulses: Option<Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    pub(super) enabled: Option<bool>,
    pub(super) listen: Option<Spanned<String>>,
    pub(super) history_days: Option<Spanned<u32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HomeAssistant {
    pub(super) host: Spanned<String>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) tls: Option<Spanned<bool>>,
    pub(super) ca: Option<PathBuf>,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password_file: Option<Spanned<PathBuf>>,
    pub(super) discovery_prefix: Option<Spanned<String>>,
    pub(super) topic_prefix: Option<Spanned<String>>,
    pub(super) every_seconds: Option<Spanned<u32>>,
    pub(super) name: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Channel {
    pub(super) name: Spanned<String>,
    pub(super) impulses_per_kwh: Spanned<u32>,
    pub(super) rppal: Option<Spanned<Rppal>>,
    pub(super) gpiocdev: Option<Spanned<Gpiocdev>>,
    pub(super) replay: Option<Spanned<Replay>>,
    pub(super) simulated: Option<Spanned<Simulated>>,
    pub(super) mqtt: Option<Spanned<Mqtt>>,
    pub(super) sml: Option<Spanned<Sml>>,
    pub(super) d0: Option<Spanned<D0>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rppal {
    pub(super) gpio: Spanned<u8>,
    pub(super) active: Option<ActiveLevel>,
    pub(super) bias: Option<Bias>,
    pub(super) debounce_ms: Option<Spanned<u32>>,
    pub(super) minimum_width_ms: Option<Spanned<u32>>,
    pub(super) minimum_pause_ms: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gpiocdev {
    pub(super) line: Option<Spanned<String>>,
    pub(super) chip: Option<Spanned<String>>,
    pub(super) offset: Option<Spanned<u32>>,
    pub(super) active: Option<ActiveLevel>,
    pub(super) bias: Option<Bias>,
    pub(super) debounce_ms: Option<Spanned<u32>>,
    pub(super) minimum_width_ms: Option<Spanned<u32>>,
    pub(super) minimum_pause_ms: Option<Spanned<u32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActiveLevel {
    Low,
    High,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Replay {
    pub(super) file: PathBuf,
    pub(super) column: Spanned<usize>,
    pub(super) start_row: Option<usize>,
    pub(super) period: Option<Spanned<u32>>,
    pub(super) after_last_row: Option<After>,
    pub(super) begin: Option<Spanned<Datetime>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum After {
    Stop,
    Wrap,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Simulated {
    pub(super) seed: u64,
    pub(super) speed: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mqtt {
    pub(super) host: Spanned<String>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) tls: Option<Spanned<bool>>,
    pub(super) ca: Option<PathBuf>,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password_file: Option<Spanned<PathBuf>>,
    pub(super) topic: Spanned<String>,
    pub(super) pointer: Option<Spanned<String>>,
    pub(super) unit: Option<EnergyUnit>,
    pub(super) offset_kwh: Option<Spanned<f64>>,
    pub(super) maximum_kw: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sml {
    pub(super) port: Spanned<PathBuf>,
    pub(super) baud: Option<Spanned<u32>>,
    pub(super) obis: Option<Spanned<OneOrMore>>,
    pub(super) offset_kwh: Option<Spanned<f64>>,
    pub(super) maximum_kw: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct D0 {
    pub(super) port: Spanned<PathBuf>,
    pub(super) baud: Option<Spanned<u32>>,
    pub(super) framing: Option<Framing>,
    pub(super) mode: Option<RequestMode>,
    pub(super) request_seconds: Option<Spanned<u32>>,
    pub(super) obis: Option<Spanned<OneOrMore>>,
    pub(super) offset_kwh: Option<Spanned<f64>>,
    pub(super) maximum_kw: Option<Spanned<u32>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RequestMode {
    Push,
    Request,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// Reads TOML of this form.
pub(super) fn read(text: &str) -> Result<File, Problem> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or_default();
        Problem {
            line: error.span().map(|span| line(text, span.start)),
            key: key(text, span.start).to_owned(),
            text: format!(
                "{}; config/meter-agent.toml shows every key",
                error.message().trim()
            ),
        }
    })
}

/// The line of a byte offset, from 1.
pub(super) fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&b| b == b'\n').count() + 1
}

/// What stands before `=` in the line of a byte offset, or the whole heading of a table.
fn key(text: &str, offset: usize) -> &str {
    let found = text.lines().nth(line(text, offset) - 1).unwrap_or("");
    found.split('=').next().unwrap_or("").trim()
}
