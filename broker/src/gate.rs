//! From a TCP connection to a session: TLS, certificate, CONNECT. Whoever does
//! not get through all of it in time never reaches the router.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::BytesMut;
use dcnet::identity::{CaCertificate, Certificate, Role};
use dcnet::revocation::RevocationList;
use rumqttd::protocol::{ConnAckProperties, ConnectReturnCode as Code};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::backend::Backend;
use crate::codec::{Codec, Connect, DecodeError, Incoming, Version};
use crate::config::now;
use crate::counters::{CountedStream, Refusal};
use crate::outgoing::Outgoing;
use crate::permission::Permissions;
use crate::registry::{Admission, Place, Principal, Registry};
use crate::retained::Retained;
use crate::session::{self, Session};

/// Longest client identifier of a third party, in bytes.
const MAX_CLIENT_ID: usize = 128;

/// What all connections work with.
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) retained: Retained,
    pub(crate) backend: Backend,
    pub(crate) ca: CaCertificate,
    pub(crate) tls: TlsAcceptor,
    pub(crate) revocations: RwLock<Option<RevocationList>>,
}

impl Shared {
    fn is_revoked(&self, certificate: &Certificate) -> bool {
        self.revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .is_some_and(|list| list.contains(&certificate.id()))
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    tcp: TcpStream,
    address: SocketAddr,
    admission: Admission,
) {
    let cells = Arc::clone(&shared.registry.cells);
    prepare(&tcp);
    let stream = CountedStream::new(tcp, Arc::clone(&cells));
    let limit = shared.registry.limits.handshake_timeout();
    match tokio::time::timeout(limit, enter(&shared, stream)).await {
        Ok(Ok((stream, session, place))) => {
            session::run(&shared, stream, session, place).await;
        }
        Ok(Err(refused)) => {
            tracing::debug!(%address, reason = refused.as_str(), "connection refused");
        }
        Err(_) => {
            cells.refuse(Refusal::HandshakeTimeout);
            tracing::debug!(%address, "no CONNECT in time");
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
    stream: CountedStream,
) -> Result<(TlsStream<CountedStream>, Session, Place), Refusal> {
    let cells = &shared.registry.cells;
    let refuse = |reason| {
        cells.refuse(reason);
        reason
    };
    let mut stream = shared
        .tls
        .accept(stream)
        .await
        .map_err(|_| refuse(Refusal::Tls))?;
    let certificate = peer(shared, &stream).ok_or_else(|| refuse(Refusal::Certificate))?;
    let principal = shared.registry.principal(&certificate);
    stream
        .get_ref()
        .0
        .belongs_to(Arc::clone(&principal.traffic));

    let (codec, buffer, connect) = match read_connect(shared, &mut stream).await {
        Ok(read) => read,
        Err((codec, reason)) => {
            principal.refuse(cells, reason, "CONNECT");
            if reason == Refusal::Version {
                let code = Code::RefusedProtocolVersion;
                answer(&mut stream, &codec, code, Code::UnsupportedProtocolVersion).await;
            }
            return Err(reason);
        }
    };
    match admit(shared, &certificate, &principal, &connect).await {
        Ok((place, client_id)) => {
            let Ok((link, deliveries)) = shared.backend.connect().await else {
                let code = Code::ServiceUnavailable;
                answer(&mut stream, &codec, code, Code::ServerUnavailable).await;
                return Err(refuse(Refusal::TooManyConnections));
            };
            let limits = &shared.registry.limits;
            let keep_alive = keep_alive(codec.version(), &connect, limits.keep_alive_max_s);
            let properties = ConnAckProperties {
                session_expiry_interval: Some(0),
                max_qos: Some(1),
                max_packet_size: Some(u32::try_from(limits.max_packet).unwrap_or(u32::MAX)),
                assigned_client_identifier: connect.client_id.is_empty().then_some(client_id),
                subscription_identifiers_available: Some(0),
                shared_subscription_available: Some(0),
                server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
                ..ConnAckProperties::default()
            };
            let mut out = BytesMut::new();
            codec.connack(Code::Success, Code::Success, properties, &mut out);
            let session = Session {
                permissions: Permissions::of(&certificate),
                principal,
                codec,
                outgoing: Outgoing::new(&connect),
                link,
                deliveries,
                buffer,
                out,
                keep_alive: Duration::from_millis(u64::from(keep_alive) * 1500),
                will: connect.will.map(|(message, _)| message),
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

fn peer(shared: &Shared, stream: &TlsStream<CountedStream>) -> Option<Certificate> {
    let der = stream.get_ref().1.peer_certificates()?.first()?;
    match Certificate::verify(der, &shared.ca, now()) {
        Ok(certificate) => Some(certificate),
        Err(error) => {
            tracing::warn!(%error, "a certificate of the CA is refused");
            None
        }
    }
}

async fn read_connect(
    shared: &Shared,
    stream: &mut TlsStream<CountedStream>,
) -> Result<(Codec, BytesMut, Connect), (Codec, Refusal)> {
    let mut codec = Codec::new(shared.registry.limits.max_packet);
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
            Ok(Some(_)) | Err(DecodeError::Malformed) => return Err((codec, Refusal::Malformed)),
        }
    }
}

/// A refusal with its CONNACK codes of both versions.
type Refused = (Refusal, Code, Code);

async fn admit(
    shared: &Arc<Shared>,
    certificate: &Certificate,
    principal: &Principal,
    connect: &Connect,
) -> Result<(Place, String), Refused> {
    if shared.is_revoked(certificate) {
        return Err((Refusal::Revoked, Code::NotAuthorized, Code::Banned));
    }
    if connect.authentication {
        let code = Code::BadAuthenticationMethod;
        return Err((Refusal::Unsupported, Code::NotAuthorized, code));
    }
    let client_id = client_id(certificate, connect)?;
    if let Some((will, qos)) = &connect.will {
        let topic = std::str::from_utf8(&will.topic).unwrap_or_default();
        if *qos > 1 {
            let code = Code::QoSNotSupported;
            return Err((Refusal::Unsupported, Code::NotAuthorized, code));
        }
        if !Permissions::of(certificate).may_publish(topic) {
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
    match shared.registry.open(certificate, &client_id).await {
        Ok(place) => Ok((place, client_id)),
        Err(reason) => Err((reason, Code::ServiceUnavailable, Code::QuotaExceeded)),
    }
}

/// The identifier a session is known by: the device id, or for third parties
/// whatever they like below their own.
fn client_id(certificate: &Certificate, connect: &Connect) -> Result<String, Refused> {
    let id = &connect.client_id;
    let refused = Err((
        Refusal::ClientId,
        Code::ClientIdentifierNotValid,
        Code::ClientIdentifierNotValid,
    ));
    match certificate.role() {
        Role::Meter | Role::Provider if *id == certificate.id().to_string() => Ok(id.clone()),
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

/// A client identifier for a client that gave none.
fn unnamed() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("unnamed-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn keep_alive(version: Version, connect: &Connect, max: u16) -> u16 {
    match (version, connect.keep_alive) {
        (Version::V5, asked) if asked == 0 || asked > max => max,
        (_, asked) => asked,
    }
}

async fn answer(stream: &mut TlsStream<CountedStream>, codec: &Codec, v4: Code, v5: Code) {
    let mut out = BytesMut::new();
    codec.connack(v4, v5, ConnAckProperties::default(), &mut out);
    // A client that is gone needs no answer.
    let _ = stream.write_all(&out).await;
    let _ = stream.shutdown().await;
}
