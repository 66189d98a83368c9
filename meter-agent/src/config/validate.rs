//! From the file as written to values that can be used; collects every problem.

use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dcnet::time::{Period, Timestamp};
use dcnet::units::ImpulsesPerKwh;
use toml::Spanned;
use toml::value::Datetime;

use super::file::{self, ActiveLevel, After, line};
use super::home::{self, ProviderBroker};
use super::{
    ChannelConfig, Config, Floors, IdentityFiles, LineName, Problem, ReplayConfig, SourceConfig,
    inputs,
};
use crate::page::PageConfig;
use crate::pulse::edge::EdgeLimits;
use crate::pulse::line::{Bias, LineOptions};
use crate::pulse::replay::AfterLastRow;
use crate::pulse::simulated::Pace;
use crate::register::counting::SavePolicy;

const DEFAULT_PORT: u16 = 8883;
const DAY: &str = "1 to 86400 seconds that divide a day evenly, such as 900";
const MAX_CHANNELS: usize = 16;

/// As long as a meter lasts: ten years.
const MAX_HISTORY_DAYS: u32 = 3660;

/// Collects problems while values are looked at.
pub(super) struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Check<'_> {
    pub(super) fn problem(&mut self, at: Option<Range<usize>>, key: &str, text: String) {
        self.problems.push(Problem {
            line: at.map(|span| line(self.text, span.start)),
            key: key.to_owned(),
            text,
        });
    }

    /// How many there are so far.
    pub(super) fn problems(&self) -> usize {
        self.problems.len()
    }

    pub(super) fn host(&mut self, host: &Spanned<String>, key: &str, example: &str) {
        let wrong = |c: char| c.is_whitespace() || c == '/';
        if host.get_ref().is_empty() || host.get_ref().contains(wrong) {
            let text = format!("write the host name alone, such as {example}");
            self.problem(Some(host.span()), key, text);
        }
    }

    pub(super) fn within(
        &mut self,
        value: Option<Spanned<u32>>,
        key: &str,
        range: RangeInclusive<u32>,
        default: u32,
    ) -> u32 {
        let Some(value) = value else { return default };
        if !range.contains(value.get_ref()) {
            let (low, high) = (range.start(), range.end());
            let text = format!("{} is not within {low} to {high}", value.get_ref());
            self.problem(Some(value.span()), key, text);
        }
        value.into_inner()
    }

    fn percent(&mut self, value: Option<Spanned<u32>>, key: &str, default: u8) -> u8 {
        let percent = self.within(value, key, 1..=100, u32::from(default));
        u8::try_from(percent).unwrap_or(default)
    }

    fn period(&mut self, value: Option<Spanned<u32>>, key: &str, default: u32) -> Option<Period> {
        let seconds = value.as_ref().map_or(default, |value| *value.get_ref());
        let period = Period::from_secs(seconds);
        if period.is_none() {
            let text = format!("{seconds} is no length of a round; write {DAY}");
            self.problem(value.map(|value| value.span()), key, text);
        }
        period
    }

    fn timestamp(&mut self, value: &Spanned<Datetime>, key: &str) -> Timestamp {
        let parsed = value.get_ref().to_string().parse::<jiff::Timestamp>();
        match parsed.map(|t| u64::try_from(t.as_millisecond())) {
            Ok(Ok(millis)) => Timestamp(millis),
            _ => {
                let text = format!(
                    "{} is no moment in UTC since 1970; write it as 2026-01-31T18:00:00Z",
                    value.get_ref()
                );
                self.problem(Some(value.span()), key, text);
                Timestamp(0)
            }
        }
    }
}

pub(super) fn validate(
    file: file::File,
    text: &str,
    base: &Path,
    environment: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Config, Vec<Problem>> {
    let mut check = Check {
        text,
        problems: Vec::new(),
    };
    let host = file.broker.host;
    check.host(&host, "broker.host", "broker.example.net");
    let broker_port = file.broker.port.map_or(DEFAULT_PORT, |port| {
        if *port.get_ref() == 0 {
            let text = format!("port 0 does not exist; the usual one is {DEFAULT_PORT}");
            check.problem(Some(port.span()), "broker.port", text);
        }
        port.into_inner()
    });
    let mut directory = |given: Option<PathBuf>, key: &str, variable: &str| {
        given
            .filter(|path| !path.as_os_str().is_empty())
            .map(|path| base.join(path))
            .or_else(|| environment(variable))
            .unwrap_or_else(|| {
                let text = format!("is missing; write a directory (systemd would set {variable})");
                check.problem(None, key, text);
                PathBuf::new()
            })
    };
    let state_directory = directory(file.state_directory, "state_directory", "STATE_DIRECTORY");
    let identity = IdentityFiles {
        directory: directory(
            file.identity.directory,
            "identity.directory",
            "CREDENTIALS_DIRECTORY",
        ),
    };
    let floors = floors(&mut check, file.floors);
    let page = page(&mut check, file.page, file.metrics);
    let save = SavePolicy::new(
        check.within(
            file.register.save_seconds,
            "register.save_seconds",
            1..=3600,
            SavePolicy::SECONDS,
        ),
        check.within(
            file.register.save_pulses,
            "register.save_pulses",
            1..=1_000_000,
            SavePolicy::PULSES,
        ),
    );
    let provider = (host.get_ref().as_str(), broker_port);
    let home_assistant = file
        .home_assistant
        .map(|given| home::assistant(&mut check, given, base, provider));
    let channels = channels(&mut check, file.channel, base, provider);
    match floors {
        Some(floors) if check.problems.is_empty() => Ok(Config {
            broker_host: host.into_inner(),
            broker_port,
            identity,
            state_directory,
            assume_synchronised: file.clock.assume_synchronised,
            page,
            floors,
            save,
            channels,
            home_assistant,
        }),
        _ => {
            check.problems.sort_by_key(|problem| problem.line);
            Err(check.problems)
        }
    }
}

fn page(check: &mut Check<'_>, page: file::Page, metrics: file::Metrics) -> PageConfig {
    let default = PageConfig::default();
    let history_days = check.within(
        page.history_days,
        "page.history_days",
        0..=MAX_HISTORY_DAYS,
        default.history_days,
    );
    let listen = match page.listen {
        None => default.listen,
        Some(listen) => {
            let address = listen.get_ref().parse();
            if address.is_err() {
                let text = format!(
                    "{:?} is no address with a port; write \"127.0.0.1:8480\" for this machine \
                     only, or \"0.0.0.0:8480\" for the whole network of the household",
                    listen.get_ref()
                );
                check.problem(Some(listen.span()), "page.listen", text);
            }
            address.ok()
        }
    };
    let metrics = metrics.listen.and_then(|listen| {
        let address: Option<SocketAddr> = listen.get_ref().parse().ok();
        let address = address.filter(|address| address.ip().is_loopback());
        if address.is_none() {
            let text = format!(
                "{:?} is no address of this machine alone with a port; write \"127.0.0.1:9480\"",
                listen.get_ref()
            );
            check.problem(Some(listen.span()), "metrics.listen", text);
        }
        address
    });
    PageConfig {
        listen: listen.filter(|_| page.enabled != Some(false)),
        metrics,
        history_days,
    }
}

fn floors(check: &mut Check<'_>, given: file::Floors) -> Option<Floors> {
    let minimum_period = check.period(given.minimum_period, "floors.minimum_period", 900);
    Some(Floors {
        minimum_group: check.within(given.minimum_group, "floors.minimum_group", 3..=65_536, 30),
        minimum_neighbours: check.within(
            given.minimum_neighbours,
            "floors.minimum_neighbours",
            3..=65_535,
            3,
        ),
        minimum_presence_percent: check.percent(
            given.minimum_presence_percent,
            "floors.minimum_presence_percent",
            80,
        ),
        minimum_period: minimum_period?,
        max_exclusions_per_day: check.within(
            given.max_exclusions_per_day,
            "floors.max_exclusions_per_day",
            0..=86_400,
            5,
        ),
        max_exclusions_per_month_percent: check.percent(
            given.max_exclusions_per_month_percent,
            "floors.max_exclusions_per_month_percent",
            2,
        ),
    })
}

fn channels(
    check: &mut Check<'_>,
    given: Vec<Spanned<file::Channel>>,
    base: &Path,
    provider: ProviderBroker<'_>,
) -> Vec<ChannelConfig> {
    if given.is_empty() || given.len() > MAX_CHANNELS {
        let text = format!("write 1 to {MAX_CHANNELS} tables [[channel]]");
        check.problem(None, "channel", text);
    }
    let mut channels: Vec<ChannelConfig> = Vec::new();
    for given in given {
        let span = given.span();
        let given = given.into_inner();
        let name = given.name.get_ref();
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if name.is_empty() || name.len() > 32 || !name.bytes().all(allowed) {
            let text = format!("{name:?}: write 1 to 32 of a-z, 0-9, - and _, such as import");
            check.problem(Some(given.name.span()), "channel.name", text);
        }
        if channels.iter().any(|other| other.name == *name) {
            let text = format!("{name:?} is there twice; give each channel a name of its own");
            check.problem(Some(given.name.span()), "channel.name", text);
        }
        let constant = ImpulsesPerKwh::new(*given.impulses_per_kwh.get_ref());
        if constant.is_none() {
            let text = format!(
                "{} is not within 1 to 100000; it is printed on the meter, often 1000",
                given.impulses_per_kwh.get_ref()
            );
            check.problem(
                Some(given.impulses_per_kwh.span()),
                "channel.impulses_per_kwh",
                text,
            );
        }
        let name = given.name.into_inner();
        let sources = [
            given.rppal.map(|s| Some(rppal(check, s.into_inner()))),
            given.gpiocdev.map(|s| Some(gpiocdev(check, s))),
            given.replay.map(|s| replay(check, s.into_inner(), base)),
            given
                .simulated
                .map(|s| Some(simulated(check, s.into_inner()))),
            given
                .mqtt
                .map(|s| inputs::mqtt(check, s.into_inner(), base, provider)),
            given.sml.map(|s| Some(inputs::sml(check, s.into_inner()))),
            given.d0.map(|s| Some(inputs::d0(check, s.into_inner()))),
        ];
        let mut sources = sources.into_iter().flatten();
        match (sources.next(), sources.next()) {
            (Some(source), None) => {
                inputs::shared_head(check, &channels, source.as_ref(), span);
                channels.extend(
                    constant
                        .zip(source)
                        .map(|(constant, source)| ChannelConfig {
                            name,
                            constant,
                            source,
                        }),
                );
            }
            _ => check.problem(
                Some(span),
                "channel",
                format!(
                    "{name:?} must have exactly one source: [channel.gpiocdev], [channel.rppal], \
                     [channel.mqtt], [channel.sml], [channel.d0], [channel.replay] or \
                     [channel.simulated]"
                ),
            ),
        }
    }
    channels
}

struct LineKeys {
    active: Option<ActiveLevel>,
    bias: Option<Bias>,
    debounce_ms: Option<Spanned<u32>>,
    minimum_width_ms: Option<Spanned<u32>>,
    minimum_pause_ms: Option<Spanned<u32>>,
}

fn line_options(check: &mut Check<'_>, table: &str, keys: LineKeys) -> LineOptions {
    let mut millis = |value, key: &str, low, default| {
        let key = format!("{table}.{key}");
        Duration::from_millis(u64::from(check.within(value, &key, low..=1000, default)))
    };
    LineOptions {
        active_low: keys.active != Some(ActiveLevel::High),
        bias: keys.bias.unwrap_or_default(),
        debounce: millis(keys.debounce_ms, "debounce_ms", 0, 5),
        limits: EdgeLimits {
            width: millis(keys.minimum_width_ms, "minimum_width_ms", 1, 20),
            pause: millis(keys.minimum_pause_ms, "minimum_pause_ms", 1, 20),
            ..EdgeLimits::default()
        },
    }
}

fn rppal(check: &mut Check<'_>, given: file::Rppal) -> SourceConfig {
    let gpio = *given.gpio.get_ref();
    if gpio > 53 {
        let text = format!("{gpio} is no BCM number of a Raspberry Pi; write 0 to 27");
        check.problem(Some(given.gpio.span()), "channel.rppal.gpio", text);
    }
    let keys = LineKeys {
        active: given.active,
        bias: given.bias,
        debounce_ms: given.debounce_ms,
        minimum_width_ms: given.minimum_width_ms,
        minimum_pause_ms: given.minimum_pause_ms,
    };
    SourceConfig::Rppal {
        gpio,
        options: line_options(check, "channel.rppal", keys),
    }
}

fn gpiocdev(check: &mut Check<'_>, given: Spanned<file::Gpiocdev>) -> SourceConfig {
    let span = given.span();
    let given = given.into_inner();
    let line = match (given.line, given.chip, given.offset) {
        (Some(name), None, None) => LineName::Name(name.into_inner()),
        (None, Some(chip), Some(offset)) => LineName::Offset {
            chip: chip.into_inner(),
            offset: offset.into_inner(),
        },
        _ => {
            let text = "write either line = \"GPIO17\", or chip = \"pinctrl-bcm2711\" and \
                        offset = 17"
                .to_owned();
            check.problem(Some(span), "channel.gpiocdev", text);
            LineName::Name(String::new())
        }
    };
    let keys = LineKeys {
        active: given.active,
        bias: given.bias,
        debounce_ms: given.debounce_ms,
        minimum_width_ms: given.minimum_width_ms,
        minimum_pause_ms: given.minimum_pause_ms,
    };
    SourceConfig::Gpiocdev {
        line,
        options: line_options(check, "channel.gpiocdev", keys),
    }
}

fn replay(check: &mut Check<'_>, given: file::Replay, base: &Path) -> Option<SourceConfig> {
    if *given.column.get_ref() == 0 {
        let text = "column 0 is the timestamp; columns of energy begin with 1".to_owned();
        check.problem(Some(given.column.span()), "channel.replay.column", text);
    }
    let period = check.period(given.period, "channel.replay.period", 1800)?;
    let begin = given.begin.map(|given| {
        let begin = check.timestamp(&given, "channel.replay.begin");
        if begin != period.round_at(begin).start(period) {
            let text = format!(
                "is no multiple of the period of {} s; begin at the start of a round",
                period.as_secs()
            );
            check.problem(Some(given.span()), "channel.replay.begin", text);
        }
        begin
    });
    Some(SourceConfig::Replay(ReplayConfig {
        file: base.join(given.file),
        column: given.column.into_inner(),
        start_row: given.start_row.unwrap_or(0),
        period,
        after: match given.after_last_row {
            Some(After::Wrap) => AfterLastRow::Wrap,
            Some(After::Stop) | None => AfterLastRow::Stop,
        },
        begin,
    }))
}

fn simulated(check: &mut Check<'_>, given: file::Simulated) -> SourceConfig {
    let speed = check.within(given.speed, "channel.simulated.speed", 1..=3600, 1);
    SourceConfig::Simulated {
        seed: given.seed,
        pace: Pace {
            speed,
            ..Pace::default()
        },
    }
}
