//! The configuration file: TOML, unknown keys refused. `config/provider-agent.toml`
//! shows every key with its meaning and default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::identity::{CERTIFICATE, Identity};
use crate::{page, store, utc};

/// Default of [`Config::minimum_presence_percent`]: what meters ask for by default.
pub const MINIMUM_PRESENCE_PERCENT: u32 = 80;

/// Default of [`Config::lapse_after_days`].
pub const LAPSE_AFTER_DAYS: u32 = 30;

/// Least value of `retention.rounds_days`.
pub const SHORTEST_RETENTION_DAYS: u32 = 35;

/// A configuration, as the file has it. Paths are used as they stand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the database is; made with mode 0700 if it is missing.
    #[serde(default)]
    pub state_directory: PathBuf,
    /// What is logged, as a directive of `tracing_subscriber::EnvFilter`.
    #[serde(default = "default_log")]
    pub log: String,
    /// Least share of the lately seen members in a roster, in percent.
    #[serde(default = "default_presence")]
    pub minimum_presence_percent: u32,
    /// Who was in no roster for so many days is drawn by nobody; 0 for never.
    #[serde(default = "default_lapse")]
    pub lapse_after_days: u32,
    /// Where the broker is.
    pub broker: BrokerAddress,
    /// What the gateway administrator issued.
    #[serde(default)]
    pub identity: Enrolment,
    /// How far the clock is trusted.
    #[serde(default)]
    pub clock: ClockTrust,
    /// What is kept for how long.
    #[serde(default)]
    pub retention: Retention,
    /// The operator's page.
    #[serde(default)]
    pub page: PageAddress,
    /// Where traces go.
    #[serde(default)]
    pub traces: Collector,
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerAddress {
    /// Host name or address, as in the broker's certificate.
    pub host: String,
    /// The port.
    #[serde(default = "default_port")]
    pub port: u16,
}

/// What the gateway administrator issued.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Enrolment {
    /// Where key and certificates are; see [`Identity::read`].
    pub directory: PathBuf,
}

/// How far the clock is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockTrust {
    /// Whether it is taken for right although the system does not say so.
    pub assume_synchronised: bool,
}

/// What is kept for how long.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// How long after a round its submissions are kept, in whole days in the file; for ever
    /// if `None`.
    #[serde(rename = "rounds_days", deserialize_with = "days")]
    pub rounds: Option<Duration>,
}

/// The operator's page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PageAddress {
    /// Where it is served; `None`, in the file an empty text, for no page.
    #[serde(deserialize_with = "address")]
    pub listen: Option<SocketAddr>,
}

/// Where traces go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collector {
    /// URL to which rounds are sent; `None`, in the file an empty text, for nowhere.
    #[serde(deserialize_with = "endpoint")]
    pub endpoint: Option<String>,
}

fn default_log() -> String {
    "info".to_owned()
}

fn default_presence() -> u32 {
    MINIMUM_PRESENCE_PERCENT
}

fn default_lapse() -> u32 {
    LAPSE_AFTER_DAYS
}

fn default_port() -> u16 {
    8883
}

const DAY: Duration = Duration::from_secs(86_400);

fn days<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    Ok(Some(DAY.saturating_mul(u32::deserialize(value)?)))
}

fn address<'de, D: Deserializer<'de>>(value: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(value)?;
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map_err(|_| {
        D::Error::custom(format!(
            "page.listen is {text:?}; write an address and a port, such as \"127.0.0.1:8481\""
        ))
    });
    address.map(Some)
}

fn endpoint<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(value)?;
    Ok((!text.is_empty()).then_some(text))
}

impl Config {
    /// What a file that names no more than these is read as.
    pub fn new(
        state_directory: impl Into<PathBuf>,
        identity_directory: impl Into<PathBuf>,
        broker_host: &str,
    ) -> Self {
        Self {
            state_directory: state_directory.into(),
            log: default_log(),
            minimum_presence_percent: default_presence(),
            lapse_after_days: default_lapse(),
            broker: BrokerAddress {
                host: broker_host.to_owned(),
                port: default_port(),
            },
            identity: Enrolment {
                directory: identity_directory.into(),
            },
            clock: ClockTrust::default(),
            retention: Retention::default(),
            page: PageAddress::default(),
            traces: Collector::default(),
        }
    }

    /// Reads and checks a file. Without `state_directory` or `identity.directory` those
    /// that systemd passes in `STATE_DIRECTORY` and `CREDENTIALS_DIRECTORY` are used.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has an unknown, missing or wrong key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text, path, |name| {
            std::env::var_os(name).map(PathBuf::from)
        })
        .with_context(|| format!("in {}", path.display()))
    }

    /// Checks the text of a file. Paths in it are relative to the directory of `path`;
    /// `environment` looks up a variable.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(
        text: &str,
        path: &Path,
        environment: impl Fn(&str) -> Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let directory = |key: &str, written: &Path, variable: &str| {
            let is_written = written != Path::new("");
            is_written
                .then(|| base.join(written))
                .or_else(|| environment(variable))
                .with_context(|| format!("{key} is missing, and so is ${variable}; set one"))
        };
        let (state, identity) = (&config.state_directory, &config.identity.directory);
        let state = directory("state_directory", state, "STATE_DIRECTORY")?;
        config.identity.directory =
            directory("identity.directory", identity, "CREDENTIALS_DIRECTORY")?;
        config.state_directory = state;
        config.validate()?;
        Ok(config)
    }

    /// Checks the values themselves, not what they name.
    fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            !self.broker.host.is_empty(),
            "broker.host is empty; write the broker's host name"
        );
        ensure!(
            self.broker.port > 0,
            "broker.port is 0; MQTT over TLS is usually on 8883"
        );
        ensure!(
            self.minimum_presence_percent <= 100,
            "minimum_presence_percent is {}; it is at most 100",
            self.minimum_presence_percent
        );
        if let Some(kept) = self.retention.rounds {
            ensure!(
                kept >= DAY * SHORTEST_RETENTION_DAYS,
                "retention.rounds_days is {}; a bill of four weeks and the week in which \
                 commitments may come late need {SHORTEST_RETENTION_DAYS}",
                kept.as_secs() / DAY.as_secs()
            );
        }
        if let Some(endpoint) = &self.traces.endpoint {
            ensure!(
                endpoint.starts_with("http://"),
                "traces.endpoint is {endpoint:?}; write the URL of a collector without TLS on this \
                 machine, such as \"http://127.0.0.1:4318/v1/traces\""
            );
        }
        Ok(())
    }

    /// [`Self::lapse_after_days`] as a duration; `None` for never.
    pub fn lapse_after(&self) -> Option<Duration> {
        (self.lapse_after_days > 0).then(|| DAY.saturating_mul(self.lapse_after_days))
    }

    /// Where the database is.
    pub fn store_path(&self) -> PathBuf {
        self.state_directory.join(store::FILE)
    }

    /// Reads and verifies the identity.
    ///
    /// # Errors
    /// As [`Identity::read`].
    pub fn identity(&self) -> anyhow::Result<Identity> {
        Identity::read(&self.identity.directory, utc::now())
    }

    /// Checks what the configuration names, as far as it exists; changes nothing and
    /// may be run beside a running agent. Gives remarks on what does not exist yet.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> anyhow::Result<Vec<String>> {
        let mut remarks = Vec::new();
        if self.identity.directory.join(CERTIFICATE).exists() {
            let mut identity = self.identity()?;
            identity.connection(&self.broker.host, self.broker.port)?;
            if let Some(problem) = identity.revocations.look().problems.into_iter().next() {
                return Err(problem);
            }
            if identity.revocations.list().is_none() {
                remarks.push("there is no revocation list, so no device is revoked".to_owned());
            }
            if let Some((_, successor)) = &identity.successor {
                remarks.push(format!(
                    "the nets' key is handed over to {} when the agent starts",
                    successor.id()
                ));
            }
        } else {
            remarks.push(format!(
                "{} has no {CERTIFICATE} yet; the gateway administrator's enrolment makes it",
                self.identity.directory.display()
            ));
        }
        if self.store_path().exists() {
            if store::Store::open(&self.store_path())?.nets()?.is_empty() {
                remarks
                    .push("there is no net yet; `provider-agent net create` makes one".to_owned());
            }
        } else {
            remarks.push(format!(
                "{} does not exist yet; it is made when it is needed",
                self.store_path().display()
            ));
        }
        if self.page.listen.is_some() {
            remarks.extend(page::advice(&self.state_directory));
        }
        Ok(remarks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        Config::parse(text, Path::new("/etc/dcnet/provider.toml"), |name| {
            (name == "STATE_DIRECTORY").then(|| PathBuf::from("/var/lib/x"))
        })
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = parse("[broker]\nhost = \"b\"\n[identity]\ndirectory = \"identity\"").unwrap();
        assert_eq!(config.state_directory, Path::new("/var/lib/x"));
        assert_eq!(config.identity.directory, Path::new("/etc/dcnet/identity"));
        assert_eq!(
            (config.broker.port, config.minimum_presence_percent),
            (8883, 80)
        );
        assert!(!config.clock.assume_synchronised);
        assert_eq!(config.page.listen, None);
        let page = |listen: &str| {
            let broker = "[broker]\nhost = \"b\"\n[identity]\ndirectory = \"i\"";
            parse(&format!("{broker}\n[page]\nlisten = {listen:?}"))
        };
        let loopback = "127.0.0.1:8481";
        assert_eq!(page(loopback).unwrap().page.listen, loopback.parse().ok());
        assert_eq!(page("").unwrap().page.listen, None);
        let error = format!("{:#}", page("8481").unwrap_err());
        assert!(error.contains("page.listen"), "{error}");
        let days = |days: u64| Some(Duration::from_secs(days * 86_400));
        assert_eq!(config.lapse_after(), days(30));
        let lapse = |value: &str| {
            let broker = "[broker]\nhost = \"b\"\n[identity]\ndirectory = \"i\"";
            parse(&format!("lapse_after_days = {value}\n{broker}"))
        };
        assert_eq!(lapse("1").unwrap().lapse_after(), days(1));
        assert_eq!(lapse("0").unwrap().lapse_after(), None);
        for wrong in ["-1", "0.5", "\"30\""] {
            let error = format!("{:#}", lapse(wrong).unwrap_err());
            assert!(error.contains("lapse_after_days"), "{error}");
        }
    }

    #[test]
    fn rounds_are_kept_for_ever_or_for_longer_than_a_bill_covers() {
        let retention = |table: &str| {
            let text = format!("[broker]\nhost = \"b\"\n[identity]\ndirectory = \"i\"\n{table}");
            parse(&text).map(|config| config.retention.rounds)
        };
        assert_eq!(retention("").unwrap(), None);
        assert_eq!(retention("[retention]").unwrap(), None);
        let kept = retention("[retention]\nrounds_days = 400").unwrap();
        assert_eq!(kept, Some(Duration::from_secs(400 * 86_400)));
        let error = format!(
            "{:#}",
            retention("[retention]\nrounds_days = 34").unwrap_err()
        );
        assert!(error.contains("rounds_days is 34"), "{error}");
        let error = format!(
            "{:#}",
            retention("[retention]\nround_days = 400").unwrap_err()
        );
        assert!(error.contains("round_days"), "{error}");
    }

    #[test]
    fn unknown_missing_and_wrong_keys_are_refused_by_name() {
        let identity = "[identity]\ndirectory = \"i\"\n";
        for (text, named) in [
            ("[broker]\nhost = \"b\"\nprot = 1".to_owned(), "prot"),
            (
                format!("lgo = \"x\"\n[broker]\nhost = \"b\"\n{identity}"),
                "lgo",
            ),
            (identity.to_owned(), "broker"),
            ("[broker]\nhost = \"b\"".to_owned(), "identity.directory"),
            (format!("[broker]\nhost = \"\"\n{identity}"), "broker.host"),
            (
                format!("[broker]\nhost = \"b\"\nport = 0\n{identity}"),
                "broker.port",
            ),
            (
                format!("minimum_presence_percent = 101\n[broker]\nhost = \"b\"\n{identity}"),
                "minimum_presence_percent",
            ),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(named), "{named} is not in: {error}");
        }
    }
}
