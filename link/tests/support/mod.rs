//! A certificate authority, the project's broker, an independent MQTT client, and a
//! proxy that can stop the flow: real sockets and real TLS throughout.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dcnet::identity::{DeviceId, NET_URI_PREFIX, Role};
use dcnet::output::Message;
use dcnet::topic::{NetId, Public, Topic};
use link::Connection;
use link::back_off::BackOff;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

/// Longer than anything takes, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const NET: NetId = NetId([7; 16]);
/// What the provider may subscribe to, and sees its own messages by.
pub(crate) const PUBLIC: &str = "dcnet/1/+/public/#";

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) fn status() -> Topic {
    Topic::Public {
        net: NET,
        kind: Public::Status,
    }
}

pub(crate) fn message(payload: impl Into<Vec<u8>>) -> Message {
    Message {
        topic: status(),
        payload: payload.into(),
        retain: false,
    }
}

/// A CA and a directory for what it issues.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// PEM files of one device.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Authority {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        write(&directory.path().join("ca.pem"), &certificate.pem(), 0o644);
        Self {
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn issue(&self, name: &str, role: Role) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usage = role.extended_key_usage().to_vec();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(usage)];
        params.extended_key_usages.push(if role == Role::Broker {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        });
        match role {
            Role::Broker => {
                let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
                params.subject_alt_names = vec![SanType::IpAddress(loopback)];
            }
            Role::Meter | Role::ThirdParty => {
                let uri = format!("{NET_URI_PREFIX}{NET}");
                params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            }
            Role::Provider | Role::Administrator => {}
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let identity = Identity {
            ca: self.path().join("ca.pem"),
            certificate: self.path().join(format!("{name}.pem")),
            key: self.path().join(format!("{name}.key")),
        };
        write(&identity.certificate, &certificate.pem(), 0o644);
        write(&identity.key, &key.serialize_pem(), 0o600);
        identity
    }

    /// Starts the broker on a port, or on a free one for port 0.
    pub(crate) async fn broker(&self, port: u16) -> (broker::Broker, u16) {
        let identity = self.issue("broker", Role::Broker);
        let config = broker::Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            ca: identity.ca,
            certificate: identity.certificate,
            key: identity.key,
            ..broker::Config::default()
        };
        let broker = broker::Broker::start(config).await.unwrap();
        let port = broker.local_addrs()[0].port();
        (broker, port)
    }
}

/// A CA, the project's broker, and the provider that a driver connects as.
pub(crate) struct Testbed {
    pub(crate) authority: Authority,
    pub(crate) port: u16,
    pub(crate) provider: Identity,
    broker: Option<broker::Broker>,
}

impl Testbed {
    pub(crate) async fn start() -> Self {
        let authority = Authority::new();
        let (broker, port) = authority.broker(0).await;
        Self {
            provider: authority.issue("provider", Role::Provider),
            authority,
            port,
            broker: Some(broker),
        }
    }

    pub(crate) async fn stop_broker(&mut self) {
        self.broker.take().expect("it runs").stop().await;
    }

    /// Starts a new broker on the port of the one that was stopped.
    pub(crate) async fn start_broker(&mut self) {
        let (broker, port) = self.authority.broker(self.port).await;
        assert_eq!(port, self.port);
        self.broker = Some(broker);
    }

    /// The provider's connection to the broker.
    pub(crate) fn connection(&self) -> Connection {
        self.provider.connection(self.port)
    }

    /// A client that sees all public messages of the net.
    pub(crate) async fn observer(&self) -> Client {
        let reader = self.authority.issue("reader", Role::ThirdParty);
        let filter = format!("dcnet/1/{NET}/public/#");
        Client::connect(&reader, self.port, Some(&filter)).await
    }

    /// A client that may publish what the provider may.
    pub(crate) async fn publisher(&self) -> Client {
        let other = self.authority.issue("other", Role::Provider);
        Client::connect(&other, self.port, None).await
    }

    /// A proxy before the broker.
    pub(crate) async fn proxy(&self) -> Proxy {
        let front = self.authority.issue("front", Role::Broker);
        Proxy::start(&front, &self.provider, self.port).await
    }
}

impl Identity {
    pub(crate) fn id(&self) -> DeviceId {
        let pem = fs::read_to_string(&self.key).unwrap();
        dcnet::identity::DeviceKey::from_pkcs8_pem(&pem)
            .unwrap()
            .id()
    }

    /// A connection with short waits.
    pub(crate) fn connection(&self, port: u16) -> Connection {
        let mut connection =
            Connection::from_pem_files("127.0.0.1", port, &self.ca, &self.certificate, &self.key)
                .unwrap();
        connection.back_off = BackOff {
            min: Duration::from_millis(20),
            max: Duration::from_millis(200),
        };
        connection
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        roots
    }

    fn own(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (
            vec![CertificateDer::from_pem_file(&self.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&self.key).unwrap(),
        )
    }

    pub(crate) fn client_tls(&self) -> Arc<ClientConfig> {
        let (chain, key) = self.own();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Arc::new(
            ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(self.roots())
                .with_client_auth_cert(chain, key)
                .unwrap(),
        )
    }

    pub(crate) fn server_tls(&self) -> Arc<ServerConfig> {
        let (chain, key) = self.own();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()),
            Arc::clone(&provider),
        )
        .build()
        .unwrap();
        Arc::new(
            ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap(),
        )
    }
}

/// An MQTT client that shares no code with the driver.
pub(crate) struct Client {
    client: AsyncClient,
    messages: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    acknowledged: Arc<AtomicUsize>,
    published: usize,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    /// Connects, and subscribes if a filter is given.
    pub(crate) async fn connect(identity: &Identity, port: u16, filter: Option<&str>) -> Self {
        let mut options = MqttOptions::new(identity.id().to_string(), "127.0.0.1", port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
                identity.client_tls(),
            )))
            .set_max_packet_size(1 << 20, 1 << 20)
            .set_keep_alive(Duration::from_secs(60));
        let (client, mut events) = AsyncClient::new(options, 64);
        if let Some(filter) = filter {
            client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        }
        let (sender, messages) = mpsc::unbounded_channel();
        let ready = Arc::new(Notify::new());
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (ready, acknowledged) = (Arc::clone(&ready), Arc::clone(&acknowledged));
            let subscribing = filter.is_some();
            async move {
                while let Ok(event) = events.poll().await {
                    match event {
                        Event::Incoming(Packet::ConnAck(_)) if !subscribing => ready.notify_one(),
                        Event::Incoming(Packet::SubAck(_)) => ready.notify_one(),
                        Event::Incoming(Packet::PubAck(_)) => {
                            acknowledged.fetch_add(1, Ordering::SeqCst);
                        }
                        Event::Incoming(Packet::Publish(p)) => {
                            let _ = sender.send((p.topic, p.payload.to_vec()));
                        }
                        _ => {}
                    }
                }
            }
        });
        soon("the independent client connects", ready.notified()).await;
        Self {
            client,
            messages,
            acknowledged,
            published: 0,
            task,
        }
    }

    /// The payload of the next message.
    pub(crate) async fn next(&mut self) -> Vec<u8> {
        let next = soon("a message arrives", self.messages.recv()).await;
        next.expect("the independent client lost its connection").1
    }

    /// Publishes a status of the net, and waits until the broker has taken it.
    pub(crate) async fn publish_status(&mut self, payload: impl Into<Vec<u8>>) {
        self.publish(&status().to_string(), payload).await;
    }

    /// Publishes, and waits until the broker has taken it.
    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
        self.published += 1;
        let (acknowledged, published) = (Arc::clone(&self.acknowledged), self.published);
        until("the broker acknowledges", || {
            acknowledged.load(Ordering::SeqCst) >= published
        })
        .await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends TLS on both sides (with the certificates of the test's own CA) and passes
/// MQTT packets on, until it is told to stop.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) control: Arc<ProxyControl>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
pub(crate) struct ProxyControl {
    /// Nothing is passed down from the moment the n-th PUBLISH passes up; 0 is never.
    pub(crate) withhold_from: AtomicUsize,
    /// Nothing is read from the client any more.
    pub(crate) deaf: AtomicBool,
    /// PUBLISH packets passed up.
    pub(crate) passed_up: AtomicUsize,
    withheld: AtomicBool,
    cut: Notify,
}

impl ProxyControl {
    /// Breaks the present connections.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }
}

impl Proxy {
    pub(crate) async fn start(server: &Identity, client: &Identity, broker: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(server.server_tls());
        let connector = tokio_rustls::TlsConnector::from(client.client_tls());
        let control = Arc::new(ProxyControl::default());
        let task = tokio::spawn({
            let control = Arc::clone(&control);
            async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let (acceptor, connector) = (acceptor.clone(), connector.clone());
                    let control = Arc::clone(&control);
                    tokio::spawn(async move {
                        let Ok(down) = acceptor.accept(socket).await else {
                            return;
                        };
                        let Ok(up) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)).await else {
                            return;
                        };
                        let name = ServerName::try_from("127.0.0.1").unwrap();
                        let Ok(up) = connector.connect(name, up).await else {
                            return;
                        };
                        control.withheld.store(false, Ordering::SeqCst);
                        let (down_read, down_write) = tokio::io::split(down);
                        let (up_read, up_write) = tokio::io::split(up);
                        tokio::select! {
                            _ = pass_up(down_read, up_write, &control) => {}
                            _ = pass_down(up_read, down_write, &control) => {}
                            () = control.cut.notified() => {}
                        }
                    });
                }
            }
        });
        Self {
            port,
            control,
            task,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const PUBLISH: u8 = 3;

async fn pass_up(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &ProxyControl,
) -> std::io::Result<()> {
    loop {
        if control.deaf.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let packet = packet(&mut from).await?;
        if packet[0] >> 4 == PUBLISH {
            let passed = control.passed_up.fetch_add(1, Ordering::SeqCst) + 1;
            if passed == control.withhold_from.load(Ordering::SeqCst) {
                control.withheld.store(true, Ordering::SeqCst);
            }
        }
        to.write_all(&packet).await?;
        to.flush().await?;
    }
}

async fn pass_down(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &ProxyControl,
) -> std::io::Result<()> {
    loop {
        let packet = packet(&mut from).await?;
        if control.withheld.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        to.write_all(&packet).await?;
        to.flush().await?;
    }
}

/// One whole MQTT packet (MQTT 3.1.1, section 2.2).
async fn packet(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![from.read_u8().await?];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = from.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let header = packet.len();
    packet.resize(header + length, 0);
    from.read_exact(&mut packet[header..]).await?;
    Ok(packet)
}
