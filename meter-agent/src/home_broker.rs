//! The household's own MQTT broker: how the agent gets there.
//!
//! A connection to it has nothing to do with that to the provider's broker. The configuration
//! refuses the provider's host by name, and before each connection the addresses of both are
//! compared: an address, or another name of that host, is refused too.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rumqttc::{ConnectionError, MqttOptions, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrets::permissions::open_private_file;
use zeroize::Zeroizing;

const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Longest packet: a device's JSON document has a few KiB.
const LONGEST_PACKET: usize = 64 * 1024;
/// Longest password, and its file.
const LONGEST_PASSWORD: u64 = 1024;

/// A broker of the household.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeBroker {
    /// Host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Which certificates are trusted; `None` for a connection in the clear.
    pub tls: Option<Trust>,
    /// Who the agent is there.
    pub login: Option<Login>,
    /// Host of the provider's broker, which this one must not be.
    pub provider: String,
}

impl fmt::Display for HomeBroker {
    /// Host and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which certificates of the household's broker are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Those of the operating system's authorities.
    System,
    /// Those of the CA in this PEM file.
    Ca(PathBuf),
}

/// A user of the household's broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The file with the password, mode 0600.
    pub password_file: PathBuf,
}

impl HomeBroker {
    /// What a connection needs, read from its files. The client has a random id.
    ///
    /// # Errors
    /// A file that is missing, unusable, or a password open to others.
    pub fn prepare(&self) -> anyhow::Result<MqttOptions> {
        let random = getrandom::u64().context("there is no randomness")?;
        let mut options =
            MqttOptions::new(format!("meter-agent-{random:016x}"), &self.host, self.port);
        options
            .set_clean_session(true)
            .set_keep_alive(KEEP_ALIVE)
            .set_max_packet_size(LONGEST_PACKET, LONGEST_PACKET);
        if let Some(login) = &self.login {
            options.set_credentials(&login.username, login.password()?.as_str());
        }
        if let Some(trust) = &self.tls {
            ServerName::try_from(self.host.as_str()).with_context(|| {
                format!("{:?} is neither a host name nor an address", self.host)
            })?;
            let tls = trust.client()?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        }
        Ok(options)
    }

    /// Refuses the provider's host under another name. `resolve` gives the addresses of a name.
    /// What has none is not refused: there is no connection to it, and without the internet the
    /// household's own network goes on.
    ///
    /// # Errors
    /// Both names lead to one address other than loopback.
    pub fn refuse_providers(
        &self,
        resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>>,
    ) -> anyhow::Result<()> {
        let (Ok(own), Ok(providers)) = (resolve(&self.host), resolve(&self.provider)) else {
            return Ok(());
        };
        let own = own.iter().map(IpAddr::to_canonical);
        let mut beyond_this_machine = own.filter(|address| !address.is_loopback());
        let is_providers =
            |own: &IpAddr| providers.iter().any(|other| other.to_canonical() == *own);
        match beyond_this_machine.find(is_providers) {
            Some(address) => bail!(
                "{} is at {address}, as is {}, the host of the provider's broker; nothing of the \
                 household's own belongs there: write the household's own broker as `host`",
                self.host,
                self.provider
            ),
            None => Ok(()),
        }
    }

    /// As [`Self::refuse_providers`], with the addresses that the system knows.
    pub(crate) async fn is_not_the_providers(&self) -> anyhow::Result<()> {
        let broker = self.clone();
        tokio::task::spawn_blocking(move || broker.refuse_providers(addresses)).await?
    }
}

/// The addresses of a name. Blocks.
pub(crate) fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

impl Login {
    fn password(&self) -> anyhow::Result<Zeroizing<String>> {
        let path = &self.password_file;
        let file = open_private_file(
            path,
            "a password",
            "write the path of a file with the password of the household's broker",
        )?;
        let mut text = Zeroizing::new(String::new());
        file.take(LONGEST_PASSWORD + 1)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let password = text.trim_end_matches(['\r', '\n']);
        ensure!(
            !password.is_empty() && text.len() as u64 <= LONGEST_PASSWORD,
            "{} must hold a password of 1 to {LONGEST_PASSWORD} bytes in one line",
            path.display()
        );
        Ok(Zeroizing::new(password.to_owned()))
    }
}

impl Trust {
    fn client(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                ensure!(
                    !roots.is_empty(),
                    "the system has no certificate authorities; install ca-certificates, or name \
                     the CA of the household's broker in `ca`"
                );
            }
            Self::Ca(path) => {
                for der in CertificateDer::pem_file_iter(path)
                    .with_context(|| format!("cannot read certificates from {}", path.display()))?
                {
                    let der = der.with_context(|| format!("{} is not PEM", path.display()))?;
                    roots
                        .add(der)
                        .with_context(|| format!("{} is not a usable CA", path.display()))?;
                }
                ensure!(
                    !roots.is_empty(),
                    "{} has no CERTIFICATE block",
                    path.display()
                );
            }
        }
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// What went wrong with a connection, and what to do.
pub(crate) fn trouble(error: &ConnectionError) -> String {
    use rumqttc::ConnectReturnCode::{BadUserNamePassword, NotAuthorized};
    match error {
        ConnectionError::ConnectionRefused(BadUserNamePassword | NotAuthorized) => {
            "the household's broker refuses this user; correct `username` and the file \
             `password_file`"
                .to_owned()
        }
        error => format!("no connection to the household's broker: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(host: &str) -> Option<String> {
        let broker = HomeBroker {
            host: host.to_owned(),
            port: 1883,
            tls: None,
            login: None,
            provider: "broker.example.net".to_owned(),
        };
        let known = |name: &str| {
            let addresses: &[&str] = match name {
                "broker.example.net" => &["203.0.113.7", "2001:db8::7", "127.0.0.1"],
                "alias.example.org" => &["192.168.1.9", "2001:db8::7"],
                "203.0.113.7" => &["203.0.113.7"],
                "mapped.example.org" => &["::ffff:203.0.113.7"],
                "homeassistant.local" => &["192.168.1.4", "fe80::4"],
                "localhost" => &["127.0.0.1", "::1"],
                _ => return Err(io::Error::other("no such name")),
            };
            Ok(addresses.iter().map(|text| text.parse().unwrap()).collect())
        };
        let refusal = broker.refuse_providers(known).err();
        refusal.map(|error| error.to_string())
    }

    #[test]
    fn the_providers_host_is_refused_by_whatever_name_it_has() {
        for (host, address) in [
            ("alias.example.org", "2001:db8::7"),
            ("203.0.113.7", "203.0.113.7"),
            ("mapped.example.org", "203.0.113.7"),
        ] {
            let told = refused(host).unwrap();
            assert!(
                told.starts_with(&format!("{host} is at {address}, ")),
                "{told}"
            );
            assert!(told.contains("broker.example.net"), "{told}");
        }
        for host in ["homeassistant.local", "localhost", "nowhere.example.org"] {
            assert_eq!(refused(host), None, "{host}");
        }
    }

    #[test]
    fn without_the_providers_address_the_household_s_broker_is_used() {
        let broker = HomeBroker {
            host: "homeassistant.local".to_owned(),
            port: 1883,
            tls: None,
            login: None,
            provider: "broker.example.net".to_owned(),
        };
        let offline = |name: &str| match name {
            "homeassistant.local" => Ok(vec!["192.168.1.4".parse().unwrap()]),
            _ => Err(io::Error::other("the internet is not there")),
        };
        assert!(broker.refuse_providers(offline).is_ok());
    }
}
