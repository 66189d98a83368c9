//! MQTT clients that write their packets by hand: hostile ones, and those that must cost little.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::system::HOST;

pub mod packet;

/// For a TLS handshake, and for a packet that must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that are read at a time where many come.
const CHUNK: usize = 64 * 1024;

/// Bytes in both directions, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A TCP connection from a certain address of the loopback network.
///
/// # Errors
/// As the system says.
pub async fn tcp(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    from(TcpSocket::new_v4()?, source, target).await
}

/// The same with a receive buffer as small as the system allows.
///
/// # Errors
/// As the system says.
pub async fn narrow_tcp(source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    from(socket, source, target).await
}

async fn from(socket: TcpSocket, source: Ipv4Addr, target: SocketAddr) -> io::Result<TcpStream> {
    socket.bind((source, 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection on which packets are written by hand.
pub struct Raw {
    stream: Box<dyn Stream>,
    /// Received and not yet taken.
    buffer: Vec<u8>,
}

impl Raw {
    /// Over a stream of any kind.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffer: Vec::new(),
        }
    }

    /// Makes the TLS handshake; no packet is sent yet.
    ///
    /// # Errors
    /// The handshake fails or takes longer than [`PATIENCE`].
    pub async fn tls(tcp: TcpStream, tls: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from(HOST).map_err(io::Error::other)?;
        let handshake = TlsConnector::from(Arc::clone(tls)).connect(name, tcp);
        Ok(Self::over(timeout(PATIENCE, handshake).await??))
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is gone, or the other end takes nothing within `patience`.
    pub async fn send_within(&mut self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        let sending = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(patience, sending).await?
    }

    /// Sends bytes, with [`PATIENCE`].
    ///
    /// # Errors
    /// As [`Self::send_within`].
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.send_within(bytes, PATIENCE).await
    }

    /// First byte and body of the next packet; `None` at the end of the connection. Cancel safe.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn packet(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((first, body, rest)) = packet::split(&self.buffer) {
                let taken = (first, body.to_vec());
                let used = self.buffer.len() - rest.len();
                self.buffer.drain(..used);
                return Ok(Some(taken));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits for bytes, and hands over first byte and body of every packet that is complete.
    ///
    /// # Errors
    /// The connection breaks or is closed.
    pub async fn packets(&mut self, mut each: impl FnMut(u8, &[u8])) -> io::Result<()> {
        self.buffer.reserve(CHUNK);
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = self.buffer.as_slice();
        while let Some((first, body, after)) = packet::split(rest) {
            each(first, body);
            rest = after;
        }
        let used = self.buffer.len() - rest.len();
        self.buffer.drain(..used);
        Ok(())
    }

    /// A packet that must come within [`PATIENCE`].
    ///
    /// # Errors
    /// It does not.
    pub async fn expect(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let packet = timeout(PATIENCE, self.packet()).await??;
        packet.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads and forgets until the other end closes the connection; `false` if it does not
    /// within `patience`.
    pub async fn ended_within(&mut self, patience: Duration) -> bool {
        let mut waste = vec![0; 16 * 1024];
        let reading = async { while matches!(self.stream.read(&mut waste).await, Ok(1..)) {} };
        timeout(patience, reading).await.is_ok()
    }

    /// Reads at most so many bytes and forgets them; how many, 0 at the end.
    ///
    /// # Errors
    /// The connection breaks.
    pub async fn sip(&mut self, most: usize) -> io::Result<usize> {
        let mut waste = vec![0; most];
        self.stream.read(&mut waste).await
    }
}
