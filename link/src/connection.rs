//! Where the broker is and how to prove who we are.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::identity::DeviceKey;
use dcnet::output::Message;
use rumqttc::{LastWill, MqttOptions, QoS, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::back_off::BackOff;
use crate::credentials;

/// Longest payload taken from or given to the broker, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Longest MQTT packet, in bytes; above [`MAX_PAYLOAD`] so that a payload that is
/// a little too long is dropped rather than the connection.
pub(crate) const MAX_PACKET: usize = 256 * 1024;

/// Settings of the connection to the broker: MQTT 3.1.1 with a clean session over
/// TLS 1.3 with a client certificate.
#[derive(Clone)]
pub struct Connection {
    /// Host name or address; the broker's certificate must name it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The MQTT client id: the hexadecimal id of the device key.
    pub client_id: String,
    /// Longest silence before a ping, 1 s to 18 h; default 30 s.
    pub keep_alive: Duration,
    /// For connecting with all handshakes, and again for the answer to the
    /// subscriptions; default 10 s.
    pub timeout: Duration,
    /// Waiting time between attempts.
    pub back_off: BackOff,
    /// Published by the broker when the connection breaks without a farewell.
    pub last_will: Option<Message>,
    /// Most messages that wait for a slow broker; what comes on top is dropped and
    /// counted. Default 65 536.
    pub max_queued_messages: usize,
    /// Most payload bytes that wait for a slow broker; likewise. Default 64 MiB.
    pub max_queued_bytes: usize,
    tls: Arc<ClientConfig>,
}

impl Connection {
    /// Reads the CA's certificate, our own certificate (chain) and its Ed25519 key
    /// from PEM files; the rest is default. The client id follows from the key.
    ///
    /// # Errors
    /// A file that is missing, not PEM, or does not fit the others; a key file that
    /// anyone but its owner may use.
    pub fn from_pem_files(
        host: impl Into<String>,
        port: u16,
        ca: &Path,
        certificate: &Path,
        key: &Path,
    ) -> anyhow::Result<Self> {
        let host = host.into();
        ServerName::try_from(host.as_str())
            .with_context(|| format!("\"{host}\" is neither a host name nor an address"))?;
        let mut roots = RootCertStore::empty();
        for der in certificates(ca)? {
            roots
                .add(der)
                .with_context(|| format!("{} is not a usable CA certificate", ca.display()))?;
        }
        let pem = credentials::private_text(key, "write the path of the device's private key")?;
        let client_id = DeviceKey::from_pkcs8_pem(&pem)
            .with_context(|| format!("{} (a PKCS#8 PRIVATE KEY block)", key.display()))?
            .id()
            .to_string();
        let private = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("{} is not a PEM private key", key.display()))?;
        let tls =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(roots)
                .with_client_auth_cert(certificates(certificate)?, private)
                .with_context(|| {
                    format!(
                        "{} does not belong to the key in {}",
                        certificate.display(),
                        key.display()
                    )
                })?;
        Ok(Self {
            host,
            port,
            client_id,
            keep_alive: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            back_off: BackOff::default(),
            last_will: None,
            max_queued_messages: 65_536,
            max_queued_bytes: 64 * 1024 * 1024,
            tls: Arc::new(tls),
        })
    }

    /// Whom it trusts, and how it proves who we are: for a look at the broker outside the link.
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.tls)
    }

    pub(crate) fn mqtt_options(&self) -> MqttOptions {
        let mut options = MqttOptions::new(&self.client_id, &self.host, self.port);
        // rumqttc panics below one second, and the field on the wire has 16 bits.
        let keep_alive = self
            .keep_alive
            .clamp(Duration::from_secs(1), Duration::from_secs(65_535));
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
                Arc::clone(&self.tls),
            )))
            .set_clean_session(true)
            .set_keep_alive(keep_alive)
            .set_max_packet_size(MAX_PACKET, MAX_PACKET);
        if let Some(will) = &self.last_will {
            options.set_last_will(LastWill::new(
                will.topic.to_string(),
                will.payload.clone(),
                QoS::AtLeastOnce,
                will.retain,
            ));
        }
        options
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Connection({}:{} as {})",
            self.host, self.port, self.client_id
        )
    }
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    if found.is_empty() {
        bail!("{} has no CERTIFICATE block", path.display());
    }
    Ok(found)
}
