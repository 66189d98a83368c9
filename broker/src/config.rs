//! The configuration file, its defaults and the checks that need no network.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use dcnet::frame::MAX_FRAME;
use dcnet::identity::Role;
use dcnet::time::Timestamp;
use serde::Deserialize;

use crate::logs;
use crate::passwords::Passwords;
use crate::policy::Policy;
use crate::rules::Rules;
use crate::tls::Credentials;

/// Longest packet that carries no frame, in bytes.
const SHORT_PACKET: usize = 8 * 1024;

/// What a broker is started with, as its configuration file says it. Paths are used as they
/// stand, so a service should name absolute ones.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Certificate of the gateway administrator's CA, PEM.
    pub ca: PathBuf,
    /// The broker's own certificate, PEM; its role must be broker.
    pub certificate: PathBuf,
    /// The broker's private key, PKCS#8 PEM, readable by its owner only. A credential
    /// `key.pem` that the service manager passes (systemd.exec(5)) takes its place.
    pub key: PathBuf,
    /// Signed revocation list; read again whenever it changes. It may be absent
    /// until the first device is revoked.
    pub revocations: Option<PathBuf>,
    /// Certificate of the administrator who signs the revocation list, PEM.
    pub administrator: Option<PathBuf>,
    /// Directory for retained messages; without it they are lost at a restart.
    pub state: Option<PathBuf>,
    /// Limits, each with a default.
    #[serde(default)]
    pub limits: Limits,
    /// Addresses on which third parties may come without a certificate, with user
    /// and password; agents need theirs here too.
    #[serde(default)]
    pub listen_third_parties: Vec<SocketAddr>,
    /// The same over WebSocket. Without `passwords` a certificate is demanded.
    #[serde(default)]
    pub listen_websocket: Vec<SocketAddr>,
    /// Permission file: what third parties may read; read again whenever it
    /// changes. Without it they may read the public topics.
    pub permissions: Option<PathBuf>,
    /// Password file of third parties, readable by its owner only; read again
    /// whenever it changes. It may be absent until the first user gets one.
    pub passwords: Option<PathBuf>,
    /// Loopback address at which metrics are served for Prometheus.
    pub metrics: Option<SocketAddr>,
    /// Addresses without TLS, for measuring only.
    #[cfg(feature = "plain")]
    #[serde(default)]
    pub listen_plain: Vec<SocketAddr>,
}

/// Bounds on what clients may use. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest MQTT packet, without its fixed header. Of meters at most 72 KiB are taken, of
    /// third parties 8 KiB.
    pub max_packet: usize,
    /// Time from the TCP connection to a complete CONNECT.
    pub handshake_timeout_s: u64,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout_s: u64,
    /// Longest keep-alive granted to MQTT 5 clients; 3.1.1 clients that ask for
    /// none are watched by TCP keep-alive instead.
    pub keep_alive_max_s: u16,
    /// Connections at a time, in total.
    pub connections: usize,
    /// Connections at a time from one address.
    pub connections_per_address: usize,
    /// Sessions at a time of one third party.
    pub sessions_per_third_party: usize,
    /// Passwords checked at a time; each takes 19 MiB, which is kept.
    pub password_checks: usize,
    /// Different topic filters that one meter or third party may ever use while
    /// the broker runs: the router never forgets a filter.
    pub filters_per_client: usize,
    /// The same for the provider.
    pub filters_of_provider: usize,
    /// Different topic filters in total.
    pub filters: usize,
    /// Memory for messages that the router keeps for those who read them, in MiB. When they
    /// take more, those of the filter that got none for the longest time are given up.
    pub memory_mib: usize,
    /// Different topics that one meter may publish to while the broker runs.
    pub topics_per_client: usize,
    /// Different topics in total, the provider's included.
    pub topics: usize,
    /// Packets per second of a meter or third party, each begun 4 KiB counting
    /// as one; four seconds' worth may come at once. Faster senders are slowed.
    pub packets_per_second: u32,
    /// The same for the provider.
    pub packets_per_second_of_provider: u32,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of all retained topics, payloads and properties.
    pub retained_bytes: usize,
    /// How often the revocation list and the validity of live clients are checked.
    pub check_interval_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_packet: 256 * 1024,
            handshake_timeout_s: 5,
            write_timeout_s: 20,
            keep_alive_max_s: 600,
            connections: 12_000,
            connections_per_address: 1024,
            sessions_per_third_party: 8,
            password_checks: 2,
            filters_per_client: 8,
            filters_of_provider: 32,
            filters: 25_000,
            memory_mib: 1024,
            topics_per_client: 4096,
            topics: 2_000_000,
            packets_per_second: 500,
            packets_per_second_of_provider: 50_000,
            retained_messages: 100_000,
            retained_bytes: 256 * 1024 * 1024,
            check_interval_s: 2,
        }
    }
}

impl Limits {
    pub(crate) fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_s)
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_s)
    }

    /// Longest packet of a client, in bytes. The longest ones of meters are frames, those of
    /// third parties CONNECT and SUBSCRIBE.
    pub(crate) fn longest_packet(&self, role: Role) -> usize {
        self.max_packet.min(match role {
            Role::Provider => usize::MAX,
            Role::Meter => MAX_FRAME + SHORT_PACKET,
            _ => SHORT_PACKET,
        })
    }

    /// Memory for messages that the router keeps, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.memory_mib.saturating_mul(1024 * 1024)
    }

    fn check(&self) -> anyhow::Result<()> {
        let positive = [
            ("handshake_timeout_s", self.handshake_timeout_s),
            ("write_timeout_s", self.write_timeout_s),
            ("keep_alive_max_s", self.keep_alive_max_s.into()),
            ("connections", self.connections as u64),
            (
                "connections_per_address",
                self.connections_per_address as u64,
            ),
            (
                "sessions_per_third_party",
                self.sessions_per_third_party as u64,
            ),
            ("password_checks", self.password_checks as u64),
            ("filters_per_client", self.filters_per_client as u64),
            ("filters_of_provider", self.filters_of_provider as u64),
            ("filters", self.filters as u64),
            ("topics_per_client", self.topics_per_client as u64),
            ("topics", self.topics as u64),
            ("packets_per_second", self.packets_per_second.into()),
            (
                "packets_per_second_of_provider",
                self.packets_per_second_of_provider.into(),
            ),
            ("check_interval_s", self.check_interval_s),
        ];
        for (name, value) in positive {
            ensure!(value > 0, "limits.{name} is 0; set it to at least 1");
        }
        // Confirmations of more would not fit into the router's queue of a link.
        ensure!(
            self.filters_per_client <= 48 && self.filters_of_provider <= 48,
            "limits.filters_per_client and limits.filters_of_provider may be at most 48"
        );
        let least = logs::least_mib(self);
        ensure!(
            self.memory_mib >= least,
            "limits.memory_mib is {}; {} connections and {} filters need {least}: set it to at \
             least that, or lower limits.connections or limits.filters",
            self.memory_mib,
            self.connections,
            self.filters
        );
        ensure!(
            (1024..=16 * 1024 * 1024).contains(&self.max_packet),
            "limits.max_packet is {} bytes; set it between 1024 and 16777216",
            self.max_packet
        );
        Ok(())
    }
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, or has an unknown or wrong field.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Checks everything that can be checked without opening a socket: limits,
    /// certificates, key, permissions and passwords.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        self.load().map(|_| ())
    }

    pub(crate) fn load(&self) -> anyhow::Result<(Credentials, Policy)> {
        ensure!(!self.listen.is_empty(), "listen names no address");
        self.limits.check()?;
        ensure!(
            self.listen_third_parties.is_empty() || self.passwords.is_some(),
            "listen_third_parties needs passwords = the file that `broker set-password` writes"
        );
        if let Some(address) = self.metrics {
            ensure!(
                address.ip().is_loopback(),
                "metrics = \"{address}\" can be reached by others; take an address of this machine \
                 alone, such as 127.0.0.1:9883"
            );
        }
        let credentials = Credentials::read(self)?;
        let policy = Policy {
            rules: Arc::new(match &self.permissions {
                Some(path) => Rules::read(path)?,
                None => Rules::default(),
            }),
            passwords: Arc::new(match &self.passwords {
                Some(path) => Passwords::read(path)?,
                None => Passwords::default(),
            }),
        };
        Ok((credentials, policy))
    }
}

/// The system's UTC clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
