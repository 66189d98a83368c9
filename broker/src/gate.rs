//! From a TCP connection to a session: TLS, certificate or password, CONNECT. Whoever
//! does not get through all of it in time never reaches the router.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;
use dcnet::identity::{CaCertificate, Certificate, Role};
use dcnet::revocation::RevocationList;
use rumqttd::protocol::{ConnAckProperties, ConnectReturnCode as Code};
use rustls::pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::backend::Backend;
use crate::client::Client;
use crate::codec::{Codec, Connect, DecodeError, Incoming, Version};
use crate::config::now;
use crate::counters::{CountedStream, Ledger, Refusal};
use crate::login::Logins;
use crate::metrics::Standing;
use crate::outgoing::Outgoing;
use crate::permission::Permissions;
use crate::policy::Policy;
use crate::registry::{Admission, Place, Principal, Registry};
use crate::retained::Retained;
use crate::session::{self, Session};
use crate::tls::Tls;
use crate::websocket;

/// Longest client identifier of a third party, in bytes.
const MAX_CLIENT_ID: usize = 128;

/// What all connections work with.
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) retained: Retained,
    pub(crate) backend: Backend,
    pub(crate) ca: CaCertificate,
    pub(crate) tls: Tls,
    pub(crate) policy: watch::Sender<Arc<Policy>>,
    pub(crate) logins: Arc<Logins>,
    pub(crate) revocations: RwLock<Option<RevocationList>>,
}

impl Shared {
    /// What the metrics tell besides counters.
    pub(crate) fn standing(&self, probes: u64) -> Standing {
        let revocations = self
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        Standing {
            probes,
            revocation_list: revocations.as_ref().map(RevocationList::number),
            certificate_ends: self.tls.not_after().as_millis() / 1000,
        }
    }

    fn is_revoked(&self, client: &Client) -> bool {
        let Client::Device(certificate) = client else {
            return false;
        };
        self.revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(|list| list.contains(&certificate.id()))
    }
}

/// A connection past its handshakes.
pub(crate) type Connection = Box<dyn Stream>;

/// Bytes of MQTT in both directions, whatever they travel in.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The listener a client comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// Only with a certificate.
    Agents,
    /// With a certificate, or user and password.
    ThirdParties,
    /// The same over WebSocket; without users only with a certificate.
    WebSocket,
    /// Without TLS: see [`crate::plain`].
    #[cfg(feature = "plain")]
    Plain,
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    door: Door,
    tcp: TcpStream,
    address: SocketAddr,
    admission: Admission,
) {
    let cells = Arc::clone(&shared.registry.cells);
    prepare(&tcp);
    let stream = CountedStream::new(tcp, Arc::clone(&cells));
    let limit = shared.registry.limits.handshake_timeout();
    // In memory of their own, so that a session does not hold what its handshakes needed.
    let entering = Box::pin(enter(&shared, door, stream, address));
    match tokio::time::timeout(limit, entering).await {
        Ok(Ok((stream, session, place))) => {
            Box::pin(session::run(&shared, stream, session, place)).await;
        }
        Ok(Err(refused)) => cells.tell(refused, address),
        Err(_) => {
            cells.refuse(Refusal::HandshakeTimeout);
            cells.tell(Refusal::HandshakeTimeout, address);
        }
    }
    drop(admission);
}

fn prepare(tcp: &TcpStream) {
    let keep_alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    let result = tcp
        .set_nodelay(true)
        .and_then(|()| SockRef::from(tcp).set_tcp_keepalive(&keep_alive));
    if let Err(error) = result {
        tracing::debug!(%error, "cannot set socket options");
    }
}

async fn enter(
    shared: &Arc<Shared>,
    door: Door,
    stream: CountedStream,
    address: SocketAddr,
) -> Result<(Connection, Session, Place), Refusal> {
    let ledger = stream.ledger();
    #[cfg(feature = "plain")]
    if door == Door::Plain {
        let (stream, shown) = crate::plain::accept(stream).await?;
        return enter_as(shared, door, stream, Some(shown), &ledger, address).await;
    }
    let accepted = shared.tls.acceptor(door).accept(stream).await;
    let stream = accepted.map_err(|_| {
        shared.registry.cells.refuse(Refusal::Tls);
        Refusal::Tls
    })?;
    let chain = stream.get_ref().1.peer_certificates();
    let shown = chain.and_then(<[_]>::first).cloned();
    enter_as(shared, door, stream, shown, &ledger, address).await
}

/// Goes on where it is known which certificate the client showed, if any.
async fn enter_as<S: Stream + 'static>(
    shared: &Arc<Shared>,
    door: Door,
    stream: S,
    shown: Option<CertificateDer<'static>>,
    ledger: &Ledger,
    address: SocketAddr,
) -> Result<(Connection, Session, Place), Refusal> {
    let cells = &shared.registry.cells;
    let refuse = |reason| {
        cells.refuse(reason);
        reason
    };
    let device = peer(shared, shown.as_ref())
        .map_err(refuse)?
        .map(|certificate| Client::Device(Box::new(certificate)));
    let holder = device.as_ref().map(|device| {
        let principal = shared.registry.principal(device);
        ledger.belongs_to(Arc::clone(&principal.traffic));
        principal
    });
    let limits = &shared.registry.limits;
    // Who has no certificate is a third party, if anybody.
    let role = holder
        .as_ref()
        .map_or(Role::ThirdParty, |holder| holder.role);
    let longest = limits.longest_packet(role);
    let mut stream: Connection = match door {
        Door::Agents | Door::ThirdParties => Box::new(stream),
        #[cfg(feature = "plain")]
        Door::Plain => Box::new(stream),
        Door::WebSocket => match websocket::accept(stream, longest).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                tracing::debug!(%address, %error, "no WebSocket");
                return Err(refuse(Refusal::WebSocket));
            }
        },
    };
    let (codec, buffer, mut connect) = match read_connect(longest, &mut stream).await {
        Ok(read) => read,
        Err((codec, reason)) => {
            match &holder {
                Some(principal) => principal.refuse(cells, reason, "CONNECT"),
                None => cells.refuse(reason),
            }
            if reason == Refusal::Version {
                let code = Code::RefusedProtocolVersion;
                answer(&mut stream, &codec, code, Code::UnsupportedProtocolVersion).await;
            }
            return Err(reason);
        }
    };
    let mut policy = shared.policy.subscribe();
    let current = Arc::clone(&policy.borrow_and_update());
    let client = match device {
        Some(device) => device,
        None => {
            let login = connect.login.take();
            let passwords = &current.passwords;
            match shared.logins.check(passwords, address.ip(), login).await {
                Ok(user) => Client::User(user),
                Err(reason) => {
                    let (v4, v5) = match reason {
                        Refusal::BackOff => {
                            (Code::ServiceUnavailable, Code::ConnectionRateExceeded)
                        }
                        _ => (Code::BadUserNamePassword, Code::BadUserNamePassword),
                    };
                    answer(&mut stream, &codec, v4, v5).await;
                    return Err(refuse(reason));
                }
            }
        }
    };
    let principal = holder.unwrap_or_else(|| {
        let principal = shared.registry.principal(&client);
        ledger.belongs_to(Arc::clone(&principal.traffic));
        principal
    });
    let permissions = current.permissions(&client);
    match admit(shared, &client, &principal, &permissions, &connect).await {
        Ok((place, client_id)) => {
            let Ok((link, deliveries)) = shared.backend.connect().await else {
                let code = Code::ServiceUnavailable;
                answer(&mut stream, &codec, code, Code::ServerUnavailable).await;
                return Err(refuse(Refusal::TooManyConnections));
            };
            let keep_alive = keep_alive(codec.version(), &connect, limits.keep_alive_max_s);
            let properties = ConnAckProperties {
                session_expiry_interval: Some(0),
                max_qos: Some(1),
                retain_available: (!session::may_retain(client.role())).then_some(0),
                max_packet_size: Some(u32::try_from(longest).unwrap_or(u32::MAX)),
                assigned_client_identifier: connect.client_id.is_empty().then_some(client_id),
                subscription_identifiers_available: Some(0),
                shared_subscription_available: Some(0),
                server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
                ..ConnAckProperties::default()
            };
            let mut out = BytesMut::new();
            if !codec.connack(Code::Success, Code::Success, properties, &mut out) {
                principal.refuse(cells, Refusal::TooLarge, "CONNACK");
                return Err(Refusal::TooLarge);
            }
            let session = Session {
                client,
                principal,
                policy,
                permissions,
                codec,
                outgoing: Outgoing::new(&connect),
                link,
                deliveries,
                buffer,
                out,
                keep_alive: Duration::from_millis(u64::from(keep_alive) * 1500),
                will: connect.will,
            };
            Ok((stream, session, place))
        }
        Err((reason, v4, v5)) => {
            principal.refuse(cells, reason, &connect.client_id);
            answer(&mut stream, &codec, v4, v5).await;
            Err(reason)
        }
    }
}

/// The certificate that was shown, if there was one, verified.
fn peer(
    shared: &Shared,
    shown: Option<&CertificateDer<'_>>,
) -> Result<Option<Certificate>, Refusal> {
    let Some(der) = shown else {
        return Ok(None);
    };
    match Certificate::verify(der, &shared.ca, now()) {
        Ok(certificate) => Ok(Some(certificate)),
        Err(error) => {
            tracing::warn!(%error, "a certificate of the CA is refused");
            Err(Refusal::Certificate)
        }
    }
}

async fn read_connect(
    max_packet: usize,
    stream: &mut Connection,
) -> Result<(Codec, BytesMut, Connect), (Codec, Refusal)> {
    let mut codec = Codec::new(max_packet);
    let mut buffer = BytesMut::with_capacity(1024);
    loop {
        match codec.decode(&mut buffer) {
            Ok(Some(Incoming::Connect(connect))) => return Ok((codec, buffer, *connect)),
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return Err((codec, Refusal::Malformed)),
            },
            Err(DecodeError::Version) => return Err((codec, Refusal::Version)),
            Err(DecodeError::TooLarge) => return Err((codec, Refusal::TooLarge)),
            Ok(Some(_)) | Err(DecodeError::Malformed | DecodeError::Protocol) => {
                return Err((codec, Refusal::Malformed));
            }
        }
    }
}

/// A refusal with its CONNACK codes of both versions.
type Refused = (Refusal, Code, Code);

async fn admit(
    shared: &Arc<Shared>,
    client: &Client,
    principal: &Principal,
    permissions: &Permissions,
    connect: &Connect,
) -> Result<(Place, String), Refused> {
    if shared.is_revoked(client) {
        return Err((Refusal::Revoked, Code::NotAuthorized, Code::Banned));
    }
    if connect.authentication {
        let code = Code::BadAuthenticationMethod;
        return Err((Refusal::Unsupported, Code::NotAuthorized, code));
    }
    let client_id = client_id(client, connect)?;
    if let Some(will) = &connect.will {
        let topic = std::str::from_utf8(&will.topic).unwrap_or_default();
        if will.qos > 1 {
            let code = Code::QoSNotSupported;
            return Err((Refusal::Unsupported, Code::NotAuthorized, code));
        }
        if will.retain && !session::may_retain(client.role()) {
            let code = Code::RetainNotSupported;
            return Err((Refusal::Retain, Code::NotAuthorized, code));
        }
        if !permissions.may_publish(topic) {
            let code = Code::NotAuthorized;
            return Err((Refusal::Publish, code, code));
        }
        if !shared.registry.take_topic(principal, topic) {
            return Err((
                Refusal::Quota,
                Code::ServiceUnavailable,
                Code::QuotaExceeded,
            ));
        }
    }
    match shared.registry.open(client, &client_id).await {
        Ok(place) => Ok((place, client_id)),
        Err(reason) => Err((reason, Code::ServiceUnavailable, Code::QuotaExceeded)),
    }
}

/// The identifier a session is known by: the device id, or for third parties
/// whatever they like below their own.
fn client_id(client: &Client, connect: &Connect) -> Result<String, Refused> {
    let id = &connect.client_id;
    let refused = Err((
        Refusal::ClientId,
        Code::ClientIdentifierNotValid,
        Code::ClientIdentifierNotValid,
    ));
    match client.role() {
        Role::Meter | Role::Provider if *id == client.identity().to_string() => Ok(id.clone()),
        Role::Meter | Role::Provider => refused,
        Role::ThirdParty if id.is_empty() && !connect.clean => refused,
        Role::ThirdParty if id.is_empty() => Ok(unnamed()),
        Role::ThirdParty if id.len() > MAX_CLIENT_ID || id.chars().any(char::is_control) => refused,
        Role::ThirdParty => Ok(id.clone()),
        Role::Broker | Role::Administrator => {
            Err((Refusal::Role, Code::NotAuthorized, Code::NotAuthorized))
        }
    }
}

/// A client identifier for a client that gave none; nobody can choose the same before.
fn unnamed() -> String {
    let random = || RandomState::new().hash_one("client identifier");
    format!("unnamed-{:016x}{:016x}", random(), random())
}

fn keep_alive(version: Version, connect: &Connect, max: u16) -> u16 {
    match (version, connect.keep_alive) {
        (Version::V5, asked) if asked == 0 || asked > max => max,
        (_, asked) => asked,
    }
}

async fn answer(stream: &mut Connection, codec: &Codec, v4: Code, v5: Code) {
    let mut out = BytesMut::new();
    codec.connack(v4, v5, ConnAckProperties::default(), &mut out);
    // A client that is gone needs no answer.
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
}
