//! A broker with a CA of its own, well-behaved clients (rumqttc) and raw ones.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "every test file uses a part"
)]

#[path = "../../../lab/tests/foreign/mod.rs"]
mod foreign;

mod daemon;

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, Config, Refusal};
use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, Role};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub use daemon::{Daemon, write_config};
pub use foreign::{mosquitto, skip};

pub const NET: NetId = NetId([0xab; 16]);
pub const OTHER_NET: NetId = NetId([0xcd; 16]);

/// Longest wait for anything.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing within {DEADLINE:?}"),
    }
}

/// Polls until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.unwrap().as_millis() as u64)
}

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub certificate: CaCertificate,
}

/// A device's key and certificate.
pub struct Identity {
    pub id: DeviceId,
    pub certificate: Certificate,
    pub pem: String,
    pub key: KeyPair,
}

/// OpenSSL takes a certificate whose subject is its issuer for self-signed.
fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = name("test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: certificate.pem(),
            certificate: CaCertificate::from_der(certificate.der()).unwrap(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, role: Role, net: Option<NetId>) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let own = DeviceKey::from_pkcs8_pem(&key.serialize_pem()).unwrap();
        params.distinguished_name = name(&own.id().to_string());
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::Other(role.extended_key_usage().to_vec()),
        ];
        if role == Role::Broker {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
            params.subject_alt_names = vec![
                SanType::DnsName("localhost".try_into().unwrap()),
                SanType::IpAddress("127.0.0.1".parse().unwrap()),
            ];
        }
        if let Some(net) = net {
            let uri = format!("{}{net}", dcnet::identity::NET_URI_PREFIX);
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        }
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pem = certificate.pem();
        let certificate = Certificate::verify(certificate.der(), &self.certificate, now()).unwrap();
        Identity {
            id: certificate.id(),
            certificate,
            pem,
            key,
        }
    }
}

impl Identity {
    pub fn client_id(&self) -> String {
        self.id.to_string()
    }

    /// A topic below the device's own in [`NET`].
    pub fn topic(&self, rest: &str) -> String {
        format!("dcnet/1/{NET}/meter/{}/{rest}", self.id)
    }
}

pub struct Rig {
    pub ca: Ca,
    pub directory: tempfile::TempDir,
    pub config: Config,
    own: Identity,
    broker: Option<Broker>,
    pub provider: Identity,
    pub meter: Identity,
}

impl Rig {
    pub async fn start() -> Self {
        Self::with(|_, _, _| {}).await
    }

    /// Starts with a changed configuration; the closure also gets the CA and
    /// the directory.
    pub async fn with(change: impl FnOnce(&mut Config, &Ca, &tempfile::TempDir)) -> Self {
        let ca = Ca::new();
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { directory.path().join(name) };
        let own = ca.issue(Role::Broker, None);
        fs::write(path("ca.pem"), &ca.pem).unwrap();
        fs::write(path("broker.pem"), &own.pem).unwrap();
        fs::write(path("broker.key"), own.key.serialize_pem()).unwrap();
        fs::set_permissions(path("broker.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut config = Config {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            ca: path("ca.pem"),
            certificate: path("broker.pem"),
            key: path("broker.key"),
            state: Some(path("state")),
            ..Config::default()
        };
        change(&mut config, &ca, &directory);
        let mut rig = Self {
            provider: ca.issue(Role::Provider, None),
            meter: ca.issue(Role::Meter, Some(NET)),
            ca,
            directory,
            config,
            own,
            broker: None,
        };
        rig.restart().await;
        rig
    }

    /// Starts with listeners for users and WebSocket, and with metrics; `users` have
    /// their passwords.
    pub async fn serving(users: &[(&str, &str)], permissions: &str) -> Self {
        let mut rig = Self::with(|config, _, _| config.limits.check_interval_s = 1).await;
        let path = |name: &str| rig.directory.path().join(name);
        let any = || vec!["127.0.0.1:0".parse().unwrap()];
        for (user, password) in users {
            broker::set_password(&path("passwords"), user, password).unwrap();
        }
        fs::write(path("permissions.toml"), permissions).unwrap();
        rig.config.permissions = Some(path("permissions.toml"));
        rig.config.passwords = Some(path("passwords"));
        rig.config.listen_third_parties = any();
        rig.config.listen_websocket = any();
        rig.config.metrics = Some("127.0.0.1:0".parse().unwrap());
        rig.restart().await;
        rig
    }

    /// The broker's own key in the form that OpenSSL reads.
    pub fn own_key_for_openssl(&self) -> String {
        key_for_openssl(&self.own)
    }

    /// Replaces a file of the directory at once.
    pub fn replace(&self, name: &str, text: &str) {
        let path = self.directory.path().join(name);
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// A connection to the listener for third parties, without a certificate, after
    /// CONNECT; and the code of its CONNACK.
    pub async fn login(&self, version: u8, user: &str, password: &str) -> (Raw, u8) {
        let address = self.broker().third_party_addrs()[0];
        let mut raw = self.try_raw_at(address, self.tls(None)).await.unwrap();
        raw.send(&connect_as(version, "dashboard", user, password))
            .await;
        let (first, body) = raw.packet().await.expect("a CONNACK");
        assert_eq!(first, 0x20);
        (raw, body[1])
    }

    pub async fn restart(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop().await;
        }
        self.broker = Some(Broker::start(self.config.clone()).await.unwrap());
    }

    /// Stops the broker; files and identities stay.
    pub async fn stop(&mut self) {
        within("stop", self.broker.take().unwrap().stop()).await;
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.broker().local_addrs()[0]
    }

    /// The same files without a broker.
    pub async fn stopped() -> Self {
        let mut rig = Self::start().await;
        rig.stop().await;
        rig
    }

    pub fn refused(&self, reason: Refusal) -> u64 {
        self.broker().counters().refused(reason)
    }

    pub fn new_meter(&self) -> Identity {
        self.ca.issue(Role::Meter, Some(NET))
    }

    pub fn third_party(&self) -> Identity {
        self.ca.issue(Role::ThirdParty, Some(NET))
    }

    pub fn tls(&self, identity: Option<&Identity>) -> Arc<ClientConfig> {
        self.tls_of(identity, &[&rustls::version::TLS13])
    }

    pub fn tls_of(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from(self.ca.certificate.der().to_vec());
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain = vec![CertificateDer::from(identity.certificate.der().to_vec())];
                let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        })
    }

    pub fn options(&self, identity: &Identity, client_id: &str) -> MqttOptions {
        self.options_for(self.address(), identity, client_id)
    }

    pub fn options_for(
        &self,
        address: SocketAddr,
        identity: &Identity,
        client_id: &str,
    ) -> MqttOptions {
        let mut options = MqttOptions::new(client_id, address.ip().to_string(), address.port());
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
            self.tls(Some(identity)),
        )));
        options.set_max_packet_size(1 << 20, 1 << 20);
        options.set_keep_alive(Duration::from_secs(20));
        options
    }

    /// A connected rumqttc client (MQTT 3.1.1).
    pub async fn client(&self, identity: &Identity) -> Client {
        let client = Client::start(self.options(identity, &identity.client_id()));
        client.connected().await
    }

    /// The same at another broker on these files.
    pub async fn client_at(&self, address: SocketAddr, identity: &Identity) -> Client {
        let client = Client::start(self.options_for(address, identity, &identity.client_id()));
        client.connected().await
    }

    /// A TLS connection, nothing sent yet.
    pub async fn raw(&self, identity: &Identity) -> Raw {
        self.try_raw(self.tls(Some(identity))).await.unwrap()
    }

    pub async fn try_raw(&self, tls: Arc<ClientConfig>) -> std::io::Result<Raw> {
        self.try_raw_at(self.address(), tls).await
    }

    pub async fn try_raw_at(
        &self,
        address: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> std::io::Result<Raw> {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let stream = within("TLS", TlsConnector::from(tls).connect(name, tcp)).await?;
        Ok(Raw { stream })
    }

    /// A raw connection after CONNECT and successful CONNACK.
    pub async fn raw_session(&self, identity: &Identity, version: u8) -> Raw {
        self.raw_session_at(self.address(), identity, version).await
    }

    pub async fn raw_session_at(
        &self,
        address: SocketAddr,
        identity: &Identity,
        version: u8,
    ) -> Raw {
        let tls = self.tls(Some(identity));
        let mut raw = self.try_raw_at(address, tls).await.unwrap();
        raw.send(&connect(version, &identity.client_id(), &[]))
            .await;
        let (first, body) = raw.packet().await.expect("a CONNACK");
        assert_eq!((first, body[1]), (0x20, 0), "connection accepted");
        raw
    }
}

/// A rumqttc client whose events are collected.
pub struct Client {
    pub mqtt: AsyncClient,
    pub events: mpsc::UnboundedReceiver<Result<Event, String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub fn start(options: MqttOptions) -> Self {
        let (mqtt, mut event_loop) = AsyncClient::new(options, 1000);
        event_loop.network_options.set_tcp_nodelay(true);
        let (sender, events) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let event = event_loop.poll().await.map_err(|e| e.to_string());
                let failed = event.is_err();
                if sender.send(event).is_err() || failed {
                    return;
                }
            }
        });
        Self { mqtt, events, task }
    }

    pub async fn connected(mut self) -> Self {
        self.incoming("CONNACK", |packet| {
            matches!(packet, Packet::ConnAck(_)).then_some(())
        })
        .await;
        self
    }

    /// The first incoming packet that `pick` takes.
    pub async fn incoming<T>(&mut self, what: &str, pick: impl Fn(&Packet) -> Option<T>) -> T {
        within(what, async {
            loop {
                match self.events.recv().await {
                    Some(Ok(Event::Incoming(packet))) => {
                        if let Some(picked) = pick(&packet) {
                            return picked;
                        }
                    }
                    Some(Ok(Event::Outgoing(_))) => {}
                    Some(Err(error)) => panic!("{what}: {error}"),
                    None => panic!("{what}: the client has ended"),
                }
            }
        })
        .await
    }

    /// The error that ends this client.
    pub async fn failure(&mut self) -> String {
        within("an error", async {
            loop {
                match self.events.recv().await {
                    Some(Err(error)) => return error,
                    Some(Ok(_)) => {}
                    None => panic!("the client has ended"),
                }
            }
        })
        .await
    }

    pub async fn publish(&self, topic: &str, payload: &[u8]) {
        let (topic, payload) = (topic.to_owned(), payload.to_vec());
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }

    pub async fn retain(&self, topic: &str, payload: &[u8]) {
        let (topic, payload) = (topic.to_owned(), payload.to_vec());
        self.mqtt
            .publish(topic, QoS::AtLeastOnce, true, payload)
            .await
            .unwrap();
    }

    /// Subscribes and returns whether it was granted.
    pub async fn subscribe(&mut self, filter: &str) -> bool {
        self.mqtt.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        self.incoming("SUBACK", |packet| match packet {
            Packet::SubAck(suback) => {
                Some(suback.return_codes[0] != rumqttc::mqttbytes::v4::SubscribeReasonCode::Failure)
            }
            _ => None,
        })
        .await
    }

    /// Topic, payload and retain flag of the next message.
    pub async fn message(&mut self) -> (String, Vec<u8>, bool) {
        self.incoming("a message", |packet| match packet {
            Packet::Publish(p) => Some((p.topic.clone(), p.payload.to_vec(), p.retain)),
            _ => None,
        })
        .await
    }

    pub async fn acknowledged(&mut self) {
        self.incoming("PUBACK", |packet| {
            matches!(packet, Packet::PubAck(_)).then_some(())
        })
        .await;
    }
}

/// A meter and the provider, talking.
pub struct Pair {
    pub meter: Client,
    pub provider: Client,
    up: String,
    inbox: String,
    count: u64,
}

impl Pair {
    pub async fn start(rig: &Rig) -> Self {
        let identity = rig.new_meter();
        let mut meter = rig.client(&identity).await;
        let mut provider = rig.client(&rig.provider).await;
        assert!(meter.subscribe(&identity.topic("inbox/#")).await);
        assert!(provider.subscribe("dcnet/1/+/meter/+/up/#").await);
        Self {
            meter,
            provider,
            up: identity.topic("up/submission"),
            inbox: identity.topic("inbox/roster"),
            count: 0,
        }
    }

    /// A message in each direction.
    pub async fn exchange(&mut self, after: &str) {
        self.count += 1;
        let payload = format!("{} after {after}", self.count).into_bytes();
        self.meter.publish(&self.up, &payload).await;
        while self.provider.message().await.1 != payload {}
        self.provider.publish(&self.inbox, &payload).await;
        while self.meter.message().await.1 != payload {}
    }
}

/// A TLS connection on which packets are written by hand.
pub struct Raw {
    pub stream: TlsStream<TcpStream>,
}

impl Raw {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Sends as much as the broker takes before it closes the connection.
    pub async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// First byte and body of the next packet; `None` at the end.
    pub async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        within("a packet or the end", async {
            let first = self.stream.read_u8().await.ok()?;
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.stream.read_u8().await.ok()?;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await.ok()?;
            Some((first, body))
        })
        .await
    }

    /// Reads until the broker closes the connection; returns the last packet.
    pub async fn end(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut last = None;
        while let Some(packet) = self.packet().await {
            last = Some(packet);
        }
        last
    }
}

/// The key as PKCS#8 version 1: OpenSSL 3.0 does not read version 2, which
/// rcgen writes.
pub fn key_for_openssl(identity: &Identity) -> String {
    let key = SigningKey::from_pkcs8_pem(&identity.key.serialize_pem()).unwrap();
    let bytes = KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    };
    bytes.to_pkcs8_pem(Default::default()).unwrap().to_string()
}

/// A packet with its length.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        bytes.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

pub fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

fn properties(version: u8, properties: &[u8]) -> Vec<u8> {
    match version {
        5 => {
            let mut out = vec![properties.len() as u8];
            out.extend_from_slice(properties);
            out
        }
        _ => Vec::new(),
    }
}

/// CONNECT, clean, keep-alive 60 s; `props` for version 5.
pub fn connect(version: u8, client_id: &str, props: &[u8]) -> Vec<u8> {
    connect_with(version, client_id, 2, 60, props)
}

pub fn connect_with(version: u8, id: &str, flags: u8, keep_alive: u16, props: &[u8]) -> Vec<u8> {
    let mut body = string(b"MQTT");
    body.extend([version, flags]);
    body.extend(keep_alive.to_be_bytes());
    body.extend(properties(version, props));
    body.extend(string(id.as_bytes()));
    packet(0x10, &body)
}

/// CONNECT with user and password.
pub fn connect_as(version: u8, id: &str, user: &str, password: &str) -> Vec<u8> {
    let mut body = string(b"MQTT");
    body.extend([version, 0xc2, 0, 60]);
    body.extend(properties(version, &[]));
    for text in [id, user, password] {
        body.extend(string(text.as_bytes()));
    }
    packet(0x10, &body)
}

/// PUBLISH; `flags` are the low four bits.
pub fn publish(
    version: u8,
    topic: &[u8],
    flags: u8,
    id: u16,
    props: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut body = string(topic);
    if flags & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    body.extend(properties(version, props));
    body.extend_from_slice(payload);
    packet(0x30 | flags, &body)
}

pub fn subscribe(version: u8, id: u16, filter: &str, options: u8) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend(properties(version, &[]));
    body.extend(string(filter.as_bytes()));
    body.push(options);
    packet(0x82, &body)
}
