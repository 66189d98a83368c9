//! `meter-agent doctor`: everything between the meter's terminals and the broker, looked at
//! one after the other; whatever is wrong says what to do.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use dcnet::time::DAY_MS;

use crate::clock;
use crate::config::check::check;
use crate::config::{Config, SourceConfig};
use crate::energy::Kwh;
use crate::identity::{Identity, RENEWAL};
use crate::register::{Register, RegisterError};

mod broker;
mod channels;
mod rights;
mod running;

/// Less room than this for the state is told, in bytes.
const ROOM: u64 = 100 * 1024 * 1024;

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
/// handed to `tell` as soon as it is there. An agent that runs is asked, and nothing of what it
/// uses is opened beside it.
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
    rights::look(path, &config, &mut say);
    match state(&config, &mut say) {
        Held::ByNobody => {
            broker::look(&config, &mut say).await;
            channels::count(&config.channels, duration, &mut say).await;
        }
        Held::ByAgent => running::ask(&config, duration, &mut say).await,
    }
}

/// Who has the register.
enum Held {
    ByNobody,
    ByAgent,
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
            let (file, end) = identity.first_end();
            let left = end.since(now);
            let days = left.as_millis() / u128::from(DAY_MS);
            let text = format!(
                "meter {} is enrolled in net {}; its certificates are valid for {days} more days",
                identity.key.id(),
                identity.checkpoint.net
            );
            let list = identity.revoked.as_ref();
            if let Some(list) = list.filter(|list| list.contains(&identity.key.id())) {
                say(
                    Verdict::Problem,
                    format!(
                        "list {} of revoked devices names this meter: ask the gateway \
                         administrator, and enrol it again with a new key",
                        list.number()
                    ),
                );
            }
            if left < RENEWAL {
                say(
                    Verdict::Warning,
                    format!(
                        "{text}, and {} ends first: ask the gateway administrator for a new one \
                         (\"Renewing a certificate\" in docs/operating.md)",
                        file.display()
                    ),
                );
            } else {
                say(Verdict::Good, text);
            }
        }
        Err(error) => say(Verdict::Problem, format!("{error:#}")),
    }
}

fn state(config: &Config, say: &mut impl FnMut(Verdict, String)) -> Held {
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
    let register = config.register_directory();
    match register.try_exists() {
        Ok(true) => {}
        Ok(false) => return Held::ByNobody,
        Err(error) => {
            say(
                Verdict::Warning,
                format!(
                    "{} cannot be looked into ({error}), so nobody knows whether the agent runs: \
                     use `sudo`",
                    directory.display()
                ),
            );
            return Held::ByNobody;
        }
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
        Err(RegisterError::InUse { .. }) => return Held::ByAgent,
        Err(error) => say(Verdict::Problem, error.to_string()),
    }
    Held::ByNobody
}
