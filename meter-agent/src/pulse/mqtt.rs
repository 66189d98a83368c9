//! A device that publishes its total energy on the household's own MQTT broker.
//!
//! This connection has nothing to do with the provider's broker, and the configuration refuses
//! to let them be the same. It only subscribes.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use dcnet::units::ImpulsesPerKwh;
use link::permissions::open_private_file;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, Publish, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use zeroize::Zeroizing;

use super::input::{Fault, Readings, TotalSource};
use super::payload::{self, Pointer};
use super::total::{TotalOptions, Totals};
use super::{Channel, PulseError};
use crate::energy::EnergyUnit;

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Longest packet: a device's JSON document has a few KiB.
const LONGEST_PACKET: usize = 64 * 1024;
/// Longest password, and its file.
const LONGEST_PASSWORD: u64 = 1024;
/// Before the first attempt to connect again, and the longest time between two.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// A topic on the household's own broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeTopic {
    /// Host name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Which certificates are trusted; `None` for a connection in the clear.
    pub tls: Option<Trust>,
    /// Who the agent is there.
    pub login: Option<Login>,
    /// One topic, without wildcards.
    pub topic: String,
    /// Where in a payload of JSON the total stands; `None` for a plain number.
    pub pointer: Option<Pointer>,
    /// Its unit.
    pub unit: EnergyUnit,
    /// How the total is taken.
    pub total: TotalOptions,
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

impl HomeTopic {
    /// What the connection needs, read from its files.
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

/// Starts to listen, as a task of the current runtime. The broker need not be there yet.
///
/// # Errors
/// [`PulseError::Input`] if a file it needs cannot be used.
///
/// # Panics
/// Outside a runtime of tokio.
pub fn open(
    channel: Channel,
    constant: ImpulsesPerKwh,
    topic: &HomeTopic,
) -> Result<TotalSource, PulseError> {
    let name = format!("mqtt {}:{} {}", topic.host, topic.port, topic.topic);
    let options = topic.prepare().map_err(|error| PulseError::Input {
        input: name.clone(),
        problem: format!("{error:#}"),
        advice: "Correct [channel.mqtt]",
    })?;
    let totals = Totals::new(channel, constant, topic.total);
    let (source, readings) = TotalSource::new(&name, totals);
    let listener = Listener {
        topic: topic.clone(),
        readings,
    };
    tokio::spawn(listener.run(options));
    Ok(source)
}

struct Listener {
    topic: HomeTopic,
    readings: Readings,
}

impl Listener {
    /// Ends when nobody wants readings any more.
    async fn run(self, options: MqttOptions) {
        let (client, mut events) = AsyncClient::new(options, 8);
        tokio::select! {
            () = self.readings.closed() => {}
            () = self.listen(&client, &mut events) => {}
        }
    }

    async fn listen(&self, client: &AsyncClient, events: &mut EventLoop) {
        let (shortest, longest) = RETRY;
        let (mut retry, mut told) = (shortest, String::new());
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    // It finds room: nothing else is ever requested.
                    let _ = client.try_subscribe(&self.topic.topic, QoS::AtLeastOnce);
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                        tracing::error!(
                            input = self.readings.name(),
                            "the household's broker refuses the subscription; allow it to this user"
                        );
                    } else {
                        tracing::info!(input = self.readings.name(), "listening");
                        (retry, told) = (shortest, String::new());
                    }
                }
                Ok(Event::Incoming(Packet::Publish(message))) => self.message(&message),
                Ok(_) => {}
                Err(error) => {
                    let text = lost(&error);
                    if text != told {
                        tracing::error!(input = self.readings.name(), "{text}; trying again");
                        told = text;
                    }
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(longest);
                }
            }
        }
    }

    fn message(&self, message: &Publish) {
        // A retained message says nothing about now: nobody knows how old it is.
        if message.retain {
            tracing::debug!(
                input = self.readings.name(),
                "a retained message is left out"
            );
            return;
        }
        let HomeTopic { pointer, unit, .. } = &self.topic;
        match payload::total(&message.payload, pointer.as_ref(), *unit) {
            Ok(energy) => self.readings.reading(energy),
            Err(fault) => self.readings.fault(&Fault {
                detail: format!("{}; look at topic, `pointer` and `unit`", fault.detail),
                ..fault
            }),
        }
    }
}

fn lost(error: &ConnectionError) -> String {
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
