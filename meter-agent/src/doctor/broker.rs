//! Whether the provider's broker takes this meter: its address, its certificate, ours, and its word.
//!
//! For an agent that does not run: a broker throws out the session of whoever comes with the same
//! key.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use link::Connection;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConnection, StreamOwned};

use super::Verdict;
use crate::config::Config;

/// For each address to take a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For each answer.
const ANSWER: Duration = Duration::from_secs(10);

/// MQTT 3.1.1, 3.2 and 3.14.
const CONNACK: [u8; 2] = [0x20, 2];
const DISCONNECT: [u8; 2] = [0xe0, 0];

/// Why it does not take this meter.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// There is no connection.
    Unreachable(String),
    /// There is one, and something about it is wrong.
    Wrong(String),
}

/// Connects as the agent does, and takes leave.
pub(super) async fn look(config: &Config, say: &mut impl FnMut(Verdict, String)) {
    let (host, port) = (config.broker_host.as_str(), config.broker_port);
    let broker = format!("the broker {host}:{port}");
    let files = &config.identity;
    let (ca, certificate, key) = (files.ca(), files.certificate(), files.key());
    let connection = match Connection::from_pem_files(host, port, &ca, &certificate, &key) {
        Ok(connection) => connection,
        Err(error) => {
            let text = format!("{broker} was not tried, which takes the enrolment: {error:#}");
            say(Verdict::Note, text);
            return;
        }
    };
    let tried = tokio::task::spawn_blocking(move || greet(&connection)).await;
    let (verdict, text) = match tried {
        Ok(Ok(())) => (Verdict::Good, format!("{broker} takes this meter")),
        Ok(Err(Refusal::Unreachable(why))) => (
            Verdict::Warning,
            format!(
                "{broker} cannot be reached ({why}): pulses are counted, but nothing is submitted. \
                 Check broker.host, broker.port, the network and any firewall"
            ),
        ),
        Ok(Err(Refusal::Wrong(why))) => (Verdict::Problem, format!("{broker}: {why}")),
        Err(error) => (Verdict::Warning, format!("{broker} was not tried: {error}")),
    };
    say(verdict, text);
}

fn greet(connection: &Connection) -> Result<(), Refusal> {
    let host = &connection.host;
    let mut stream = dial(host, connection.port)?;
    let wrong = |error: io::Error| Refusal::Wrong(explain(&error, host));
    let name =
        ServerName::try_from(host.clone()).map_err(|error| wrong(io::Error::other(error)))?;
    let mut tls = ClientConnection::new(connection.tls(), name)
        .map_err(|error| wrong(io::Error::other(error)))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).map_err(wrong)?;
    }
    // What it thinks of our certificate comes with the first answer (RFC 8446, section 4.4.2.4).
    let mut stream = StreamOwned::new(tls, stream);
    let mut answer = [0; 4];
    stream
        .write_all(&connect(&connection.client_id))
        .and_then(|()| stream.flush())
        .and_then(|()| stream.read_exact(&mut answer))
        .map_err(wrong)?;
    let [first, second, _, code] = answer;
    match ([first, second], code) {
        (CONNACK, 0) => {
            // Whether it hears the farewell is of no interest.
            let _ = stream.write_all(&DISCONNECT);
            stream.conn.send_close_notify();
            let _ = stream.flush();
            Ok(())
        }
        (CONNACK, 3) => Err(Refusal::Wrong(
            "it is up, but takes no further session at present; try again later".to_owned(),
        )),
        (CONNACK, code) => Err(Refusal::Wrong(format!(
            "it knows this meter's certificate but refuses the meter (code {code}): it is revoked, \
             or not allowed there; ask the gateway administrator"
        ))),
        _ => Err(Refusal::Wrong(
            "what answers there speaks no MQTT; check broker.port".to_owned(),
        )),
    }
}

fn dial(host: &str, port: u16) -> Result<TcpStream, Refusal> {
    let mut last = "it has no address".to_owned();
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| Refusal::Unreachable(format!("its name cannot be resolved: {error}")))?;
    for address in addresses {
        let connected = TcpStream::connect_timeout(&address, CONNECT).and_then(|stream| {
            stream.set_read_timeout(Some(ANSWER))?;
            stream.set_write_timeout(Some(ANSWER))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    Err(Refusal::Unreachable(last))
}

/// CONNECT of MQTT 3.1.1 with a clean session and a keep-alive of 30 s (section 3.1).
fn connect(client_id: &str) -> Vec<u8> {
    let id = client_id.as_bytes();
    // The hexadecimal digits of a device: 32 bytes.
    let length = u8::try_from(id.len()).unwrap_or(0);
    let mut packet = vec![0x10, length.saturating_add(12), 0, 4];
    packet.extend(b"MQTT");
    packet.extend([4, 0x02, 0, 30, 0, length]);
    packet.extend(id);
    packet
}

/// Which part of the connection is wrong, and what to do.
fn explain(error: &io::Error, host: &str) -> String {
    use rustls::Error;
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(wrong)) => about_its_certificate(wrong, host),
        Some(Error::AlertReceived(AlertDescription::CertificateRevoked)) => {
            "it says that this meter's certificate is revoked; ask the gateway administrator, and \
             enrol it again with a new key"
                .to_owned()
        }
        Some(Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            "it does not speak TLS 1.3; tell the provider".to_owned()
        }
        Some(Error::AlertReceived(alert)) => format!(
            "it refuses this meter's certificate ({alert:?}): another CA issued it, or it has \
             expired; ask the gateway administrator for a new enrolment"
        ),
        Some(Error::InvalidMessage(_)) => {
            "what answers there speaks no TLS; check broker.port".to_owned()
        }
        Some(other) => format!("the TLS handshake failed: {other}"),
        None => match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
                "it does not answer within {} s; check broker.port",
                ANSWER.as_secs()
            ),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
                "it ends the connection without a word; its own log says why".to_owned()
            }
            _ => format!("the connection failed: {error}"),
        },
    }
}

fn about_its_certificate(wrong: &CertificateError, host: &str) -> String {
    match wrong {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not of the CA in ca.pem: another broker answers there, or this \
             meter was enrolled by another gateway administrator"
                .to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "its certificate is for another host name than {host}; write the name in it as \
                 broker.host"
            )
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid now; if the clock of this machine is right, tell the \
             provider"
                .to_owned()
        }
        CertificateError::Revoked => "its certificate is revoked; tell the provider".to_owned(),
        other => format!("its certificate cannot be used: {other}"),
    }
}
