//! `meter-agent doctor`: everything between the meter's terminals and the broker, looked at
//! one after the other; whatever is wrong says what to do.

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use dcnet::time::DAY_MS;
use dcnet::units::ImpulsesPerKwh;
use tokio::time::{Instant, timeout_at};

use crate::clock;
use crate::config::check::check;
use crate::config::{ChannelConfig, Config, SourceConfig};
use crate::energy::Kwh;
use crate::identity::Identity;
use crate::pulse::{self, LineView, PulseError};
use crate::register::{Register, RegisterError};

/// For the broker to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Certificates that end sooner are told.
const CERTIFICATE_DAYS: u64 = 60;
/// Less room than this for the state is told, in bytes.
const ROOM: u64 = 100 * 1024 * 1024;
/// A share of rejected edges above this looks like interference.
pub(crate) const MANY_REJECTED: u64 = 4;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Looks wrong, or soon will be.
    Warning,
    /// The agent cannot count or take part.
    Problem,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What was found, and what to do if it is not good.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verdict {
            Verdict::Good => "  ok     ",
            Verdict::Note => "  note   ",
            Verdict::Warning => "? warning",
            Verdict::Problem => "! PROBLEM",
        };
        write!(f, "{mark} {}", self.text)
    }
}

/// Looks at everything a configuration names, and counts for `duration`. Each finding is
/// handed to `tell` as soon as it is there.
pub async fn examine(path: &Path, duration: Duration, mut tell: impl FnMut(Finding)) {
    let mut say = |verdict, text: String| tell(Finding { verdict, text });
    let report = check(path);
    for problem in report.problems {
        say(Verdict::Problem, problem);
    }
    for note in report.notes {
        say(Verdict::Note, note);
    }
    let Ok(config) = Config::load(path) else {
        return;
    };
    say(Verdict::Good, format!("{} can be read", path.display()));
    board(&config, &mut say);
    time(&config, &mut say);
    identity(&config, &mut say);
    state(&config, &mut say);
    broker(&config, &mut say).await;
    count(config.channels, duration, &mut say).await;
}

/// The model that the firmware names.
fn model() -> Option<String> {
    let model = std::fs::read_to_string("/proc/device-tree/model").ok()?;
    Some(model.trim_end_matches('\0').to_owned())
}

fn board(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    let model = model();
    let is_pi = model
        .as_ref()
        .is_some_and(|model| model.starts_with("Raspberry Pi"));
    let name = model.unwrap_or_else(|| "a machine that does not name its board".to_owned());
    let uses_rppal = config
        .channels
        .iter()
        .any(|channel| matches!(channel.source, SourceConfig::Rppal { .. }));
    if uses_rppal && !is_pi {
        say(
            Verdict::Problem,
            format!(
                "this is {name}, no Raspberry Pi: [channel.rppal] works on a Pi only; use \
                 [channel.gpiocdev]"
            ),
        );
    } else {
        say(Verdict::Good, format!("this is {name}"));
    }
}

fn time(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    if link::clock::system_is_synchronised() {
        say(Verdict::Good, "the clock is synchronised".to_owned());
    } else if config.assume_synchronised {
        say(
            Verdict::Note,
            "the system does not say that its clock is synchronised; the configuration takes it \
             for right (clock.assume_synchronised)"
                .to_owned(),
        );
    } else {
        say(
            Verdict::Problem,
            "the clock is not synchronised: pulses are counted, but nothing is submitted. See \
             `timedatectl`; without a network, or with a time service that systemd does not know, \
             set clock.assume_synchronised"
                .to_owned(),
        );
    }
}

fn identity(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    let now = clock::utc_timestamp();
    match Identity::load(&config.identity, now) {
        Ok(identity) => {
            let certificates = [&identity.certificate, &identity.provider];
            let ends = certificates.iter().map(|c| c.not_after()).min();
            let left = ends.map_or(0, |end| end.since(now).as_millis() / u128::from(DAY_MS));
            let text = format!(
                "meter {} is enrolled in net {}; its certificates are valid for {left} more days",
                identity.key.id(),
                identity.checkpoint.net
            );
            if left < u128::from(CERTIFICATE_DAYS) {
                say(
                    Verdict::Warning,
                    format!("{text}: ask the gateway administrator for new ones"),
                );
            } else {
                say(Verdict::Good, text);
            }
        }
        Err(error) => say(Verdict::Problem, format!("{error:#}")),
    }
}

fn state(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    let directory = &config.state_directory;
    // Of the nearest directory that exists.
    let room = directory.ancestors().find_map(|path| {
        let room = rustix::fs::statvfs(path).ok()?;
        Some(room.f_bavail.saturating_mul(room.f_frsize))
    });
    if let Some(room) = room.filter(|room| *room < ROOM) {
        say(
            Verdict::Warning,
            format!(
                "{} has only {} MB of room left: with none the register cannot be saved and nothing \
                 is submitted; make room",
                directory.display(),
                room / 1_000_000
            ),
        );
    }
    let register = directory.join("register");
    if !register.exists() {
        return;
    }
    match Register::open(&register, config.register_channels()) {
        Ok(register) => {
            let totals = register.channels().iter().zip(register.totals());
            for ((channel, total), reading) in totals.zip(register.readings()) {
                say(
                    Verdict::Good,
                    format!(
                        "the register of {} holds {} pulses, and reads {} kWh",
                        channel.name,
                        total.0,
                        Kwh::from(reading)
                    ),
                );
            }
        }
        Err(RegisterError::InUse { .. }) => say(
            Verdict::Note,
            "the agent runs: it holds the register".to_owned(),
        ),
        Err(error) => say(Verdict::Problem, error.to_string()),
    }
}

async fn broker(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    let (host, port) = (config.broker_host.clone(), config.broker_port);
    let connecting = tokio::task::spawn_blocking(move || {
        let mut last = "it has no address".to_owned();
        for address in (host.as_str(), port)
            .to_socket_addrs()
            .map_err(|error| format!("its name cannot be resolved: {error}"))?
        {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(_) => return Ok(()),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(last)
    });
    let broker = format!("the broker {}:{}", config.broker_host, config.broker_port);
    match connecting.await {
        Ok(Ok(())) => say(Verdict::Good, format!("{broker} takes connections")),
        Ok(Err(error)) => say(
            Verdict::Warning,
            format!(
                "{broker} cannot be reached ({error}): pulses are counted, but nothing is submitted. \
                 Check broker.host, broker.port, the network and any firewall"
            ),
        ),
        Err(error) => say(Verdict::Warning, format!("{broker} was not tried: {error}")),
    }
}

async fn count(
    channels: Vec<ChannelConfig>,
    duration: Duration,
    say: &mut impl FnMut(Verdict, String),
) {
    // One after the other, so that one that is wrong does not hide the rest.
    for channel in channels {
        let name = format!("channel {}", channel.name);
        let opened = pulse::open(std::slice::from_ref(&channel), None);
        let mut source = match opened.map(|mut sources| sources.pop()) {
            Ok(Some(source)) => source,
            Ok(None) => continue,
            Err(error) if is_held_by_agent(&error) => {
                say(
                    Verdict::Note,
                    format!("{name}: the running agent reads it; stop it to look at the line"),
                );
                continue;
            }
            Err(error) => {
                say(Verdict::Problem, format!("{name}: {error}"));
                continue;
            }
        };
        let line = source.line();
        let at_start = line.as_ref().map(|line| line.borrow().is_active);
        let end = Instant::now() + duration;
        let mut pulses = 0_u64;
        let failed = loop {
            match timeout_at(end, source.next()).await {
                Ok(Ok(batch)) => pulses = pulses.saturating_add(batch.pulses().0),
                Ok(Err(error)) => break Some(error),
                Err(_) => break None,
            }
        };
        if let Some(error) = failed {
            say(Verdict::Problem, format!("{name}: {error}"));
            continue;
        }
        let view = line.map(|line| *line.borrow());
        let (verdict, text) = judge(pulses, duration, channel.constant, at_start, view);
        say(verdict, format!("{name}: {text}"));
    }
}

fn is_held_by_agent(error: &PulseError) -> bool {
    matches!(error, PulseError::Gpio { problem, .. } if problem.contains("\"meter-agent\""))
}

/// What a stretch of counting says about the wiring.
fn judge(
    pulses: u64,
    duration: Duration,
    constant: ImpulsesPerKwh,
    at_start: Option<bool>,
    view: Option<LineView>,
) -> (Verdict, String) {
    let seconds = duration.as_secs_f64();
    let watts = |pulses: u64| pulses as f64 * 3.6e6 / (f64::from(constant.get()) * seconds);
    let view = view.unwrap_or_default();
    let statistics = view.statistics;
    if view.is_stuck || (at_start == Some(true) && view.is_active && pulses == 0) {
        return (
            Verdict::Problem,
            "the line is active all the time: S0+ and S0- swapped, a short circuit, or the wrong \
             `active` level"
                .to_owned(),
        );
    }
    if statistics.rejected > MANY_REJECTED.max(pulses / 10) {
        return (
            Verdict::Warning,
            format!(
                "{} edges were rejected as too short beside {pulses} pulses: a long wire, a missing \
                 pull-up of 1 to 4.7 kOhm, or a relay nearby; see docs/wiring.md",
                statistics.rejected
            ),
        );
    }
    if statistics.lost > 0 {
        return (
            Verdict::Warning,
            format!(
                "{} edges got lost: the machine is too busy",
                statistics.lost
            ),
        );
    }
    if pulses == 0 {
        return (
            Verdict::Note,
            format!(
                "no pulse in {seconds} s, so less than {:.0} W; look for longer with \
                 `meter-agent count --seconds 600`. If the meter's LED blinks: wiring, polarity, \
                 or another pin",
                watts(1)
            ),
        );
    }
    let width = statistics.last_width.map_or_else(String::new, |width| {
        format!(", the last one {} ms wide", width.as_millis())
    });
    (
        Verdict::Good,
        format!(
            "{pulses} pulses in {seconds} s{width}: {:.0} W",
            watts(pulses)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pulse::edge::EdgeStatistics;

    fn judged(pulses: u64, at_start: bool, view: LineView) -> (Verdict, String) {
        judge(
            pulses,
            Duration::from_secs(36),
            ImpulsesPerKwh::new(1000).unwrap(),
            Some(at_start),
            Some(view),
        )
    }

    #[test]
    fn each_way_of_wiring_it_wrong_is_told_apart() {
        let statistics = EdgeStatistics {
            last_width: Some(Duration::from_millis(90)),
            ..EdgeStatistics::default()
        };
        let view = LineView {
            statistics,
            ..LineView::default()
        };
        let (verdict, text) = judged(5, false, view);
        assert_eq!(verdict, Verdict::Good);
        assert!(
            text.contains("90 ms wide") && text.contains("500 W"),
            "{text}"
        );
        let (verdict, text) = judged(0, false, view);
        assert_eq!(verdict, Verdict::Note);
        assert!(text.contains("less than 100 W"), "{text}");
        let active = LineView {
            is_active: true,
            ..view
        };
        let (verdict, text) = judged(0, true, active);
        assert_eq!(verdict, Verdict::Problem);
        assert!(text.contains("swapped"), "{text}");
        let (verdict, _) = judged(1, true, active);
        assert_eq!(verdict, Verdict::Good, "a pulse went on at either end");
        let noisy = LineView {
            statistics: EdgeStatistics {
                rejected: 40,
                ..statistics
            },
            ..view
        };
        let (verdict, text) = judged(30, false, noisy);
        assert_eq!(verdict, Verdict::Warning);
        assert!(text.contains("pull-up"), "{text}");
    }
}
