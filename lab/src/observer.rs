//! A third party: reads the public topic with its own certificate, over its own
//! TLS connection, and believes nothing but the provider's signature.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::time::Timestamp;
use dcnet::topic::{NetId, Public, Topic};
use meter_agent::clock::utc_timestamp;
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, MqttOptions, Packet, QoS, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// For connecting and subscribing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Messages that wait to be looked at.
const WAITING: usize = 256;

/// What came on the topic.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When, in UTC.
    pub at: Timestamp,
    /// The bytes, not verified in any way.
    pub payload: Vec<u8>,
}

/// A subscription to the signed aggregates of a net.
#[derive(Debug)]
pub struct Observer {
    /// What came, in order.
    pub seen: mpsc::Receiver<Seen>,
    task: JoinHandle<()>,
}

/// The topic it reads.
pub fn topic(net: NetId) -> Topic {
    Topic::Public {
        net,
        kind: Public::AggregateCbor,
    }
}

impl Observer {
    /// Connects with the enrolment in `directory` and subscribes.
    ///
    /// # Errors
    /// Files that cannot be used, or no subscription within ten seconds.
    pub async fn start(
        host: &str,
        port: u16,
        directory: &Path,
        net: NetId,
    ) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new("lab-observer", host, port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls(
                directory,
            )?)))
            .set_clean_session(true)
            .set_keep_alive(Duration::from_secs(30));
        let (sender, seen) = mpsc::channel(WAITING);
        let (ready, subscribed) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Err(error) = listen(options, topic(net).to_string(), sender, ready).await {
                tracing::error!(error = format!("{error:#}"), "the third party gives up");
            }
        });
        let observer = Self { seen, task };
        match tokio::time::timeout(PATIENCE, subscribed).await {
            Ok(Ok(())) => Ok(observer),
            Ok(Err(_)) => bail!("the broker refused the third party's subscription"),
            Err(_) => bail!("the third party could not subscribe within {PATIENCE:?}"),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(
    options: MqttOptions,
    topic: String,
    sender: mpsc::Sender<Seen>,
    ready: oneshot::Sender<()>,
) -> anyhow::Result<()> {
    let (client, mut events) = AsyncClient::new(options, 16);
    let mut ready = Some(ready);
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                if ack.code != ConnectReturnCode::Success {
                    bail!("the broker refused the connection: {:?}", ack.code);
                }
                // The session is clean: subscribe on every connection.
                client.try_subscribe(&topic, QoS::AtLeastOnce)?;
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                if !matches!(
                    ack.return_codes.as_slice(),
                    [SubscribeReasonCode::Success(_)]
                ) {
                    bail!("the broker refused the subscription to {topic}");
                }
                if let Some(ready) = ready.take() {
                    let _ = ready.send(());
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) if publish.topic == topic => {
                let seen = Seen {
                    at: utc_timestamp(),
                    payload: publish.payload.to_vec(),
                };
                if sender.send(seen).await.is_err() {
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the third party connects again");
                // rumqttc would send what was queued for the old connection.
                events.clean();
                events.pending.clear();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn tls(directory: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let path = |name| directory.join(name);
    let read = |path: &Path| {
        CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read certificates from {}", path.display()))
    };
    let mut roots = RootCertStore::empty();
    for der in read(&path(gateway_admin::CA_FILE))? {
        roots.add(der)?;
    }
    let key = path(gateway_admin::KEY_FILE);
    let private = PrivateKeyDer::from_pem_file(&key)
        .with_context(|| format!("cannot read {}", key.display()))?;
    let chain = read(&path(gateway_admin::CERTIFICATE_FILE))?;
    Ok(Arc::new(crate::tls::client(roots, chain, private)?))
}
