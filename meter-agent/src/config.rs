//! The configuration file: TOML, unknown keys refused, everything checked before use.
//!
//! `config/meter-agent.toml` shows every key with its meaning and default. Relative paths are
//! relative to the directory of the configuration file.

use std::fmt;
use std::path::{Path, PathBuf};

use dcnet::time::{Period, Timestamp};
use dcnet::units::ImpulsesPerKwh;

pub mod check;
mod file;
mod home;
mod inputs;
mod validate;

use crate::home_assistant::HomeAssistantOptions;
use crate::page::PageConfig;
pub use crate::pulse::line::LineName;
use crate::pulse::line::LineOptions;
use crate::pulse::mqtt::HomeTopic;
use crate::pulse::optical::OpticalOptions;
use crate::pulse::replay::AfterLastRow;
use crate::pulse::simulated::Pace;
use crate::register::RegisterChannel;
use crate::register::counting::SavePolicy;

/// A configuration that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Host name of the broker, as in its certificate.
    pub broker_host: String,
    /// Port of the broker.
    pub broker_port: u16,
    /// Where keys and certificates are.
    pub identity: IdentityFiles,
    /// Where register and protocol state are kept. They belong together: never copy one of them.
    pub state_directory: PathBuf,
    /// Whether the UTC clock is taken for right without asking the operating system.
    pub assume_synchronised: bool,
    /// What this household insists on, whatever the net's policy says.
    pub floors: Floors,
    /// When the register is saved apart from boundaries.
    pub save: SavePolicy,
    /// The household's own page.
    pub page: PageConfig,
    /// What is measured; at least one.
    pub channels: Vec<ChannelConfig>,
    /// Whether the household's Home Assistant is shown what the agent does, and how.
    pub home_assistant: Option<HomeAssistantOptions>,
}

/// The files of the identity directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The directory.
    pub directory: PathBuf,
}

impl IdentityFiles {
    /// The meter's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("certificate.pem")
    }

    /// The meter's private key, mode 0600; see [`link::credentials::key_file`].
    pub fn key(&self) -> PathBuf {
        link::credentials::key_file("key.pem", self.directory.join("key.pem"))
    }

    /// The gateway administrator's CA.
    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The provider's certificate.
    pub fn provider(&self) -> PathBuf {
        self.directory.join("provider.pem")
    }

    /// The gateway administrator's signing certificate.
    pub fn administrator(&self) -> PathBuf {
        self.directory.join("administrator.pem")
    }

    /// The signed checkpoint of the net's log.
    pub fn checkpoint(&self) -> PathBuf {
        self.directory.join("checkpoint.cbor")
    }

    /// The signed list of revoked devices; it may be absent.
    pub fn revoked(&self) -> PathBuf {
        self.directory.join(link::credentials::REVOCATION_LIST)
    }

    /// The six that must be there.
    pub fn all(&self) -> [PathBuf; 6] {
        [
            self.certificate(),
            self.key(),
            self.ca(),
            self.provider(),
            self.administrator(),
            self.checkpoint(),
        ]
    }
}

/// Limits below which the meter stays silent (`docs/protocol.md`, "Membership" and "A round").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floors {
    /// Members that a sum must contain at least.
    pub minimum_group: u32,
    /// Neighbours drawn by this meter itself that must take part; never below 3.
    pub minimum_neighbours: u32,
    /// Share of the members seen lately that a sum must contain, in percent.
    pub minimum_presence_percent: u8,
    /// Shortest interval a reading may cover.
    pub minimum_period: Period,
    /// Submissions left out of the roster per day before the meter stops.
    pub max_exclusions_per_day: u32,
    /// The same per month, in percent of its submissions.
    pub max_exclusions_per_month_percent: u8,
}

impl From<Floors> for dcnet::meter::Floors {
    fn from(floors: Floors) -> Self {
        Self {
            minimum_group: floors.minimum_group,
            minimum_neighbours: floors.minimum_neighbours,
            minimum_period: floors.minimum_period.as_secs(),
            minimum_presence: u32::from(floors.minimum_presence_percent),
            exclusions_per_day: floors.max_exclusions_per_day,
            exclusions_per_month: u32::from(floors.max_exclusions_per_month_percent),
        }
    }
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelConfig {
    /// As in the net's policy: `import`, `export`, …
    pub name: String,
    /// Printed on the meter.
    pub constant: ImpulsesPerKwh,
    /// Where its pulses come from.
    pub source: SourceConfig,
}

/// Where the pulses of a channel come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A pin of a Raspberry Pi.
    Rppal {
        /// The BCM number.
        gpio: u8,
        /// Level, bias, debounce, limits.
        options: LineOptions,
    },
    /// A line of any Linux board.
    Gpiocdev {
        /// Which.
        line: LineName,
        /// Level, bias, debounce, limits.
        options: LineOptions,
    },
    /// A device's total on the household's own MQTT broker.
    Mqtt(HomeTopic),
    /// A meter's total by its optical interface.
    Optical(OpticalOptions),
    /// A load file.
    Replay(ReplayConfig),
    /// A modelled household.
    Simulated {
        /// Which household.
        seed: u64,
        /// How fast it lives.
        pace: Pace,
    },
}

impl SourceConfig {
    /// Whether a device shows its total itself, so that there is no reading to set.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Mqtt(_) | Self::Optical(_))
    }
}

/// The replay of one column of a load file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayConfig {
    /// CSV, plain or gzip.
    pub file: PathBuf,
    /// From 1; column 0 is the timestamp.
    pub column: usize,
    /// The row to begin with, from 0.
    pub start_row: usize,
    /// How long a row lasts.
    pub period: Period,
    /// What follows the last row.
    pub after: AfterLastRow,
    /// When it begins; otherwise at the next whole period after the start.
    pub begin: Option<Timestamp>,
}

/// Everything that is wrong with a configuration file.
#[derive(Debug)]
pub struct ConfigError {
    path: PathBuf,
    problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// The key, with its tables.
    pub key: String,
    /// What is wrong, and what to write.
    pub text: String,
}

impl ConfigError {
    /// What is wrong, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": {}", problem.key)?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file. Without `state_directory` or `identity.directory` those that
    /// systemd passes in `STATE_DIRECTORY` and `CREDENTIALS_DIRECTORY` are used.
    ///
    /// # Errors
    /// [`ConfigError`] with one problem if the file cannot be read or is no TOML of this
    /// form, else with everything that is wrong in it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            path: path.to_path_buf(),
            problems: vec![Problem {
                line: None,
                key: String::new(),
                text: format!("cannot be read: {error}"),
            }],
        })?;
        Self::parse(&text, path, |name| {
            std::env::var_os(name).map(PathBuf::from)
        })
    }

    /// Checks the text of a file. `path` is for messages and relative paths, `environment` looks
    /// up a variable.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        path: &Path,
        environment: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, ConfigError> {
        let failed = |problems| ConfigError {
            path: path.to_path_buf(),
            problems,
        };
        let file = file::read(text).map_err(|problem| failed(vec![problem]))?;
        let base = path.parent().unwrap_or(Path::new(""));
        validate::validate(file, text, base, environment).map_err(failed)
    }

    /// What the register counts.
    pub fn register_channels(&self) -> Vec<RegisterChannel> {
        self.channels
            .iter()
            .map(|channel| RegisterChannel {
                name: channel.name.clone(),
                constant: channel.constant,
            })
            .collect()
    }

    /// Where the register is.
    pub fn register_directory(&self) -> PathBuf {
        self.state_directory.join("register")
    }
}

#[cfg(test)]
mod tests;
