//! The configuration file, its defaults and the checks that need no network.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use dcnet::identity::{CaCertificate, Certificate, Role, certificate_from_pem};
use dcnet::time::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;

/// What a broker is started with. Paths are used as they stand, so a service
/// should name absolute ones.
#[derive(Clone, Debug, Deserialize)]
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
    #[serde(default)]
    pub revocations: Option<PathBuf>,
    /// Certificate of the administrator who signs the revocation list, PEM.
    #[serde(default)]
    pub administrator: Option<PathBuf>,
    /// Directory for retained messages; without it they are lost at a restart.
    #[serde(default)]
    pub state: Option<PathBuf>,
    /// Limits, each with a default.
    #[serde(default)]
    pub limits: Limits,
}

/// Bounds on what clients may use. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest MQTT packet, without its fixed header.
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
    /// Different topic filters that one meter or third party may ever use while
    /// the broker runs: the router never forgets a filter.
    pub filters_per_client: usize,
    /// The same for the provider.
    pub filters_of_provider: usize,
    /// Different topic filters in total.
    pub filters: usize,
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
    /// Bytes of all retained topics and payloads.
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
            filters_per_client: 8,
            filters_of_provider: 32,
            filters: 100_000,
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
        ensure!(
            (1024..=16 * 1024 * 1024).contains(&self.max_packet),
            "limits.max_packet is {} bytes; set it between 1024 and 16777216",
            self.max_packet
        );
        Ok(())
    }
}

/// What the files named in a [`Config`] contain, once checked.
pub(crate) struct Credentials {
    pub(crate) ca: CaCertificate,
    pub(crate) administrator: Option<Certificate>,
    pub(crate) tls: Arc<ServerConfig>,
}

impl Config {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, or has an unknown or wrong field.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        toml::from_str(&text(path)?).with_context(|| format!("in {}", path.display()))
    }

    /// Checks everything that can be checked without opening a socket: limits,
    /// certificates, key, permissions of the key file.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        self.credentials().map(|_| ())
    }

    pub(crate) fn credentials(&self) -> anyhow::Result<Credentials> {
        ensure!(!self.listen.is_empty(), "listen names no address");
        self.limits.check()?;
        let ca = CaCertificate::from_pem(&text(&self.ca)?)
            .with_context(|| format!("in {}", self.ca.display()))?;
        verified(&self.certificate, &ca, Role::Broker)?;
        let administrator = match (&self.administrator, &self.revocations) {
            (Some(path), _) => Some(verified(path, &ca, Role::Administrator)?),
            (None, Some(list)) => bail!(
                "revocations = {:?} needs administrator = the certificate of who signs it",
                list.display()
            ),
            (None, None) => None,
        };
        let tls = self.tls(&ca)?;
        Ok(Credentials {
            ca,
            administrator,
            tls: Arc::new(tls),
        })
    }

    fn tls(&self, ca: &CaCertificate) -> anyhow::Result<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(ca.der().to_vec()))
            .with_context(|| format!("in {}", self.ca.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()?;
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("in {}", self.certificate.display()))?;
        let (key_file, others) = match credential() {
            Some(path) => (path, OTHERS_OF_CREDENTIAL),
            None => (self.key.clone(), OTHERS),
        };
        let key = private_key(&key_file, others)?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .with_context(|| {
                format!(
                    "{} and {} do not belong together",
                    key_file.display(),
                    self.certificate.display()
                )
            })?;
        // Every connection shows its certificate anew, so that none outlives
        // its revocation; it also saves the tickets' bytes.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(tls)
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn verified(path: &Path, ca: &CaCertificate, role: Role) -> anyhow::Result<Certificate> {
    let place = || format!("in {}", path.display());
    let der = certificate_from_pem(&text(path)?).with_context(place)?;
    let certificate = Certificate::verify(&der, ca, now()).with_context(place)?;
    ensure!(
        certificate.role() == role,
        "{} is a certificate for the role {}; one for {} is needed here",
        path.display(),
        certificate.role().as_str(),
        role.as_str()
    );
    Ok(certificate)
}

/// What group and others must not have of a key.
const OTHERS: u32 = 0o077;
/// The same of a credential, which its reader is let in to by an access control list, whose
/// mask shows as the group's right to read; nobody else can enter its directory.
const OTHERS_OF_CREDENTIAL: u32 = 0o037;

fn credential() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    Some(directory.join("key.pem")).filter(|path| path.exists())
}

fn private_key(path: &Path, others: u32) -> anyhow::Result<PrivateKeyDer<'static>> {
    let place = || format!("cannot read {}", path.display());
    let mode = fs::metadata(path).with_context(place)?.permissions().mode() & 0o777;
    ensure!(
        mode & others == 0,
        "{path} holds a private key but others may use it (mode {mode:04o}); run: chmod 600 {path}",
        path = path.display()
    );
    PrivateKeyDer::from_pem_file(path).with_context(place)
}

/// The system's UTC clock.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
