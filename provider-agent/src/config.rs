//! The configuration file: TOML, unknown keys refused. `config/provider-agent.toml`
//! shows every key with its meaning and default.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::identity::{CERTIFICATE, Identity};
use crate::{page, store, utc};

/// Default of [`Config::minimum_presence_percent`]: what meters ask for by default.
pub const MINIMUM_PRESENCE_PERCENT: u32 = 80;

/// Default of [`Config::lapse_after_days`].
pub const LAPSE_AFTER_DAYS: u32 = 30;

/// Least value of `retention.rounds_days`.
pub const SHORTEST_RETENTION_DAYS: u32 = 35;

/// A configuration. Paths are used as they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the database is; made with mode 0700 if it is missing.
    pub state_directory: PathBuf,
    /// Where key and certificates are; see [`Identity::read`].
    pub identity_directory: PathBuf,
    /// Host name or address of the broker, as in its certificate.
    pub broker_host: String,
    /// Port of the broker.
    pub broker_port: u16,
    /// What is logged, as a directive of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Least share of the lately seen members in a roster, in percent.
    pub minimum_presence_percent: u32,
    /// Who was in no roster for so many days is drawn by nobody; 0 for never.
    pub lapse_after_days: u32,
    /// Whether the clock is taken for right although the system does not say so.
    pub assume_synchronised: bool,
    /// Where the operator's page is served; `None` for no page.
    pub page: Option<SocketAddr>,
    /// URL to which rounds are sent as traces; `None` for nowhere.
    pub traces: Option<String>,
    /// How long after a round its submissions are kept; for ever if `None`.
    pub rounds_kept: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_directory: Option<PathBuf>,
    #[serde(default = "default_log")]
    log: String,
    #[serde(default = "default_presence")]
    minimum_presence_percent: u32,
    #[serde(default = "default_lapse")]
    lapse_after_days: u32,
    broker: Broker,
    #[serde(default)]
    identity: IdentityTable,
    #[serde(default)]
    clock: Clock,
    #[serde(default)]
    retention: RetentionTable,
    #[serde(default)]
    page: Page,
    #[serde(default)]
    traces: TracesTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Broker {
    host: String,
    #[serde(default = "default_port")]
    port: u16,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityTable {
    directory: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    #[serde(default)]
    assume_synchronised: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetentionTable {
    rounds_days: Option<u32>,
}

impl RetentionTable {
    fn rounds_kept(&self) -> anyhow::Result<Option<Duration>> {
        if let Some(days) = self.rounds_days {
            ensure!(
                days >= SHORTEST_RETENTION_DAYS,
                "retention.rounds_days is {days}; a bill of four weeks and the week in which \
                 commitments may come late need {SHORTEST_RETENTION_DAYS}"
            );
        }
        let days = |days: u32| Duration::from_secs(u64::from(days).saturating_mul(86_400));
        Ok(self.rounds_days.map(days))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default)]
    listen: String,
}

impl Page {
    fn address(&self) -> anyhow::Result<Option<SocketAddr>> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let address = self.listen.parse().with_context(|| {
            format!(
                "page.listen is {:?}; write an address and a port, such as \"127.0.0.1:8481\"",
                self.listen
            )
        });
        address.map(Some)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TracesTable {
    #[serde(default)]
    endpoint: String,
}

impl TracesTable {
    fn endpoint(self) -> anyhow::Result<Option<String>> {
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        ensure!(
            self.endpoint.starts_with("http://"),
            "traces.endpoint is {:?}; write the URL of a collector without TLS on this machine, \
             such as \"http://127.0.0.1:4318/v1/traces\"",
            self.endpoint
        );
        Ok(Some(self.endpoint))
    }
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

impl Config {
    /// What a file that names no more than these is read as.
    pub fn new(
        state_directory: impl Into<PathBuf>,
        identity_directory: impl Into<PathBuf>,
        broker_host: &str,
    ) -> Self {
        Self {
            state_directory: state_directory.into(),
            identity_directory: identity_directory.into(),
            broker_host: broker_host.to_owned(),
            broker_port: default_port(),
            log: default_log(),
            minimum_presence_percent: default_presence(),
            lapse_after_days: default_lapse(),
            assume_synchronised: false,
            page: None,
            traces: None,
            rounds_kept: None,
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
        let file: File = toml::from_str(text)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let directory = |key: &str, written: Option<PathBuf>, variable: &str| {
            written
                .map(|path| base.join(path))
                .or_else(|| environment(variable))
                .with_context(|| format!("{key} is missing, and so is ${variable}; set one"))
        };
        ensure!(
            !file.broker.host.is_empty(),
            "broker.host is empty; write the broker's host name"
        );
        ensure!(
            file.broker.port > 0,
            "broker.port is 0; MQTT over TLS is usually on 8883"
        );
        ensure!(
            file.minimum_presence_percent <= 100,
            "minimum_presence_percent is {}; it is at most 100",
            file.minimum_presence_percent
        );
        Ok(Self {
            state_directory: directory("state_directory", file.state_directory, "STATE_DIRECTORY")?,
            identity_directory: directory(
                "identity.directory",
                file.identity.directory,
                "CREDENTIALS_DIRECTORY",
            )?,
            broker_host: file.broker.host,
            broker_port: file.broker.port,
            log: file.log,
            minimum_presence_percent: file.minimum_presence_percent,
            lapse_after_days: file.lapse_after_days,
            assume_synchronised: file.clock.assume_synchronised,
            page: file.page.address()?,
            traces: file.traces.endpoint()?,
            rounds_kept: file.retention.rounds_kept()?,
        })
    }

    /// [`Self::lapse_after_days`] as a duration; `None` for never.
    pub fn lapse_after(&self) -> Option<Duration> {
        let days = u64::from(self.lapse_after_days);
        (days > 0).then(|| Duration::from_secs(days.saturating_mul(86_400)))
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
        Identity::read(&self.identity_directory, utc::now())
    }

    /// Checks what the configuration names, as far as it exists; changes nothing and
    /// may be run beside a running agent. Gives remarks on what does not exist yet.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> anyhow::Result<Vec<String>> {
        let mut remarks = Vec::new();
        if self.identity_directory.join(CERTIFICATE).exists() {
            let mut identity = self.identity()?;
            identity.connection(&self.broker_host, self.broker_port)?;
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
                self.identity_directory.display()
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
        if self.page.is_some() {
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
        assert_eq!(config.identity_directory, Path::new("/etc/dcnet/identity"));
        assert_eq!(
            (config.broker_port, config.minimum_presence_percent),
            (8883, 80)
        );
        assert!(!config.assume_synchronised);
        assert_eq!(config.page, None);
        let page = |listen: &str| {
            let broker = "[broker]\nhost = \"b\"\n[identity]\ndirectory = \"i\"";
            parse(&format!("{broker}\n[page]\nlisten = {listen:?}"))
        };
        let loopback = "127.0.0.1:8481";
        assert_eq!(page(loopback).unwrap().page, loopback.parse().ok());
        assert_eq!(page("").unwrap().page, None);
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
            parse(&text).map(|config| config.rounds_kept)
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
