//! MQTT over WebSocket, as little of it as an attacker needs.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::raw::{PATIENCE, Raw};
use crate::system::HOST;

/// Longest payload of a frame with a length of one byte.
const SHORT: usize = 125;
/// Bytes on their way into or out of frames.
const UNDER_WAY: usize = 4096;

const HELLO: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

/// TLS without a certificate, and the opening handshake.
///
/// # Errors
/// One of them fails.
pub async fn open(tcp: TcpStream, tls: &Arc<ClientConfig>) -> io::Result<Raw> {
    let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
    let handshake = async {
        let connector = TlsConnector::from(Arc::clone(tls));
        let mut stream = connector.connect(name, tcp).await?;
        stream.write_all(HELLO.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await?);
        }
        match answer.starts_with(b"HTTP/1.1 101") {
            true => Ok(stream),
            false => Err(io::Error::other("no WebSocket")),
        }
    };
    let (read, write) = tokio::io::split(timeout(PATIENCE, handshake).await??);
    let (received, into_received) = tokio::io::duplex(UNDER_WAY);
    let (sent, from_sent) = tokio::io::duplex(UNDER_WAY);
    // Both end with the connection or with the attacker's end of it.
    tokio::spawn(unwrap(read, into_received));
    tokio::spawn(wrap(from_sent, write));
    Ok(Raw::over(tokio::io::join(received, sent)))
}

/// Payloads out of the broker's frames.
async fn unwrap(mut frames: impl AsyncRead + Unpin, mut out: DuplexStream) -> io::Result<()> {
    loop {
        let _flags = frames.read_u8().await?;
        let length = match frames.read_u8().await? {
            126 => u64::from(frames.read_u16().await?),
            127 => frames.read_u64().await?,
            short => u64::from(short),
        };
        tokio::io::copy(&mut (&mut frames).take(length), &mut out).await?;
    }
}

/// Bytes into frames, masked, as clients must, with a mask that changes nothing.
async fn wrap(mut bytes: DuplexStream, mut frames: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut payload = [0; SHORT];
    loop {
        let count = bytes.read(&mut payload).await?;
        if count == 0 {
            return frames.shutdown().await;
        }
        let header = [0x82, 0x80 | count as u8, 0, 0, 0, 0];
        frames
            .write_all(&[&header, &payload[..count]].concat())
            .await?;
        frames.flush().await?;
    }
}
