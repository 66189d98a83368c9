//! What the broker counts: connections, refusals by reason, messages and bytes,
//! in total and per device.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use dcnet::identity::{DeviceId, Role};
use dcnet::time::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::config::now;

/// Between two lines of the log about connections refused for the same reason, in
/// milliseconds.
const TELLING_PERIOD: u64 = 60_000;

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)+) => {
        /// Why a connection, packet or permission was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Refusal { $($(#[$doc])* $variant,)+ }
        impl Refusal {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The reason in words, as used in logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

refusals! {
    /// More connections than the limit, in total or from one address.
    TooManyConnections = "too many connections",
    /// The TLS handshake failed: version, missing or foreign certificate.
    Tls = "TLS handshake failed",
    /// No complete CONNECT in time.
    HandshakeTimeout = "no CONNECT in time",
    /// The certificate is not one of this protocol or outside its validity.
    Certificate = "certificate refused",
    /// The device is on the revocation list.
    Revoked = "device revoked",
    /// No user and password where one is needed, or a wrong one.
    Login = "wrong user or password",
    /// A login too soon after wrong ones.
    BackOff = "too many wrong passwords",
    /// No WebSocket handshake for MQTT.
    WebSocket = "WebSocket handshake failed",
    /// The role of the certificate does not use the broker.
    Role = "role without access",
    /// Neither MQTT 3.1.1 nor 5.
    Version = "unknown MQTT version",
    /// The client identifier is not the one of the certificate.
    ClientId = "client identifier refused",
    /// More sessions than one third party may have.
    TooManySessions = "too many sessions of one third party",
    /// Bytes that are no MQTT packet, or one out of place.
    Malformed = "malformed or misplaced packet",
    /// A packet over the size limit.
    TooLarge = "packet too large",
    /// A feature that is not offered: QoS 2 publish, topic alias.
    Unsupported = "unsupported feature",
    /// PUBLISH to, or will on, a topic without permission.
    Publish = "publish without permission",
    /// SUBSCRIBE to a filter without permission.
    Subscribe = "subscribe without permission",
    /// A message or will to be retained, of another than the provider.
    Retain = "retain without permission",
    /// More filters, topics or retained messages than the limit.
    Quota = "quota exceeded",
    /// No data within 1.5 times the keep-alive.
    KeepAlive = "keep-alive timeout",
    /// The client took nothing of what was sent to it.
    SlowReader = "write timeout",
}

/// Bytes on the wire (TLS records included) and messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// TCP payload bytes received, TLS handshake included.
    pub bytes_in: u64,
    /// TCP payload bytes sent, TLS handshake included.
    pub bytes_out: u64,
    /// PUBLISH packets accepted from clients.
    pub messages_in: u64,
    /// PUBLISH packets sent to clients.
    pub messages_out: u64,
}

/// A snapshot of everything counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// TCP connections accepted.
    pub connections: u64,
    /// CONNECTs answered with success.
    pub sessions: u64,
    /// Sessions open now.
    pub sessions_open: u64,
    /// Sessions ended because the same client connected again.
    pub takeovers: u64,
    /// Refusals by reason; reasons that never occurred are absent.
    pub refused: BTreeMap<Refusal, u64>,
    /// Traffic of all connections, refused ones included.
    pub total: Traffic,
    /// Traffic of connections that ended before it was known whose they are.
    pub nobodys: Traffic,
    /// Traffic of each device that ever had a valid certificate.
    pub devices: BTreeMap<DeviceId, (Role, Traffic)>,
    /// Traffic of each user that ever gave the right password.
    pub users: BTreeMap<String, Traffic>,
    /// Sessions of third parties ended because what they may read, or their
    /// password, changed.
    pub withdrawn: u64,
    /// Retained messages stored now.
    pub retained: u64,
    /// Bytes of all retained topics and payloads.
    pub retained_bytes: u64,
    /// Tries to store retained messages that failed, one of which may be about many.
    pub retained_writes_failed: u64,
    /// Different topics used since the start.
    pub topics: u64,
    /// Different topic filters used since the start.
    pub filters: u64,
    /// Bytes that the router's logs take now.
    pub log_bytes: u64,
    /// How often a log was emptied because all together took too much.
    pub logs_emptied: u64,
    /// Messages that were due to a client and gone before it had taken those before them, or
    /// expired.
    pub messages_skipped: u64,
    /// Permission and password files and certificates put in force while running.
    pub reloads: u64,
    /// Such files that could not be read or were refused.
    pub reloads_refused: u64,
    /// Revocation lists that could not be read or were refused.
    pub revocation_lists_refused: u64,
}

impl Counters {
    /// How often something was refused for `reason`.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused.get(&reason).copied().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
pub(crate) struct TrafficCell {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) messages_out: AtomicU64,
}

impl TrafficCell {
    pub(crate) fn get(&self) -> Traffic {
        Traffic {
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            messages_in: self.messages_in.load(Relaxed),
            messages_out: self.messages_out.load(Relaxed),
        }
    }

    fn add_bytes_to(&self, other: &Self) {
        let own = self.get();
        other.bytes_in.fetch_add(own.bytes_in, Relaxed);
        other.bytes_out.fetch_add(own.bytes_out, Relaxed);
    }
}

/// The live counters behind [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct Cells {
    pub(crate) connections: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) takeovers: AtomicU64,
    pub(crate) withdrawn: AtomicU64,
    pub(crate) lists_refused: AtomicU64,
    pub(crate) reloads: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) logs_emptied: AtomicU64,
    pub(crate) messages_skipped: AtomicU64,
    pub(crate) reloads_refused: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    /// When each reason was told last, in Unix milliseconds; 0 is never.
    told: [AtomicU64; Refusal::ALL.len()],
    pub(crate) total: TrafficCell,
    pub(crate) nobodys: TrafficCell,
}

impl Cells {
    pub(crate) fn refuse(&self, reason: Refusal) {
        if let Some(cell) = self.refused.get(reason as usize) {
            cell.fetch_add(1, Relaxed);
        }
    }

    /// Logs whose connection was refused, for each reason once a minute: enough to see who it
    /// is, and no flood fills the log.
    pub(crate) fn tell(&self, reason: Refusal, address: SocketAddr) {
        let what = reason.as_str();
        if self.is_due(reason, now()) {
            let count = self.refused.get(reason as usize);
            let count = count.map_or(0, |count| count.load(Relaxed));
            tracing::warn!(%address, count, "connection refused: {what}");
        } else {
            tracing::debug!(%address, "connection refused: {what}");
        }
    }

    fn is_due(&self, reason: Refusal, now: Timestamp) -> bool {
        let Some(told) = self.told.get(reason as usize) else {
            return false;
        };
        let (before, now) = (told.load(Relaxed), now.as_millis());
        let due = before == 0 || now.abs_diff(before) >= TELLING_PERIOD;
        // Of several at once, one tells.
        due && told.compare_exchange(before, now, Relaxed, Relaxed).is_ok()
    }

    pub(crate) fn refused(&self) -> BTreeMap<Refusal, u64> {
        Refusal::ALL
            .iter()
            .zip(&self.refused)
            .map(|(&reason, cell)| (reason, cell.load(Relaxed)))
            .filter(|&(_, count)| count > 0)
            .collect()
    }
}

/// Where the bytes of a connection are counted: for everyone and, once it is known
/// whose connection it is, for that client; if that never is, for nobody in the end.
#[derive(Debug)]
pub(crate) struct Ledger {
    cells: Arc<Cells>,
    owner: OnceLock<Arc<TrafficCell>>,
    before: TrafficCell,
}

impl Ledger {
    /// Counts for `owner` from now on, what was transferred before included.
    pub(crate) fn belongs_to(&self, owner: Arc<TrafficCell>) {
        self.before.add_bytes_to(&owner);
        let _ = self.owner.set(owner);
    }

    fn cell(&self) -> &TrafficCell {
        self.owner.get().map_or(&self.before, Arc::as_ref)
    }

    fn count_in(&self, count: u64) {
        self.cells.total.bytes_in.fetch_add(count, Relaxed);
        self.cell().bytes_in.fetch_add(count, Relaxed);
    }

    fn count_out(&self, result: &io::Result<usize>) {
        if let Ok(count) = result {
            let count = *count as u64;
            self.cells.total.bytes_out.fetch_add(count, Relaxed);
            self.cell().bytes_out.fetch_add(count, Relaxed);
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.owner.get().is_none() {
            self.before.add_bytes_to(&self.cells.nobodys);
        }
    }
}

/// A TCP stream that counts its bytes.
pub(crate) struct CountedStream {
    inner: TcpStream,
    ledger: Arc<Ledger>,
}

impl CountedStream {
    pub(crate) fn new(inner: TcpStream, cells: Arc<Cells>) -> Self {
        let ledger = Ledger {
            cells,
            owner: OnceLock::new(),
            before: TrafficCell::default(),
        };
        Self {
            inner,
            ledger: Arc::new(ledger),
        }
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        Arc::clone(&self.ledger)
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        let count = buffer.filled().len().saturating_sub(before) as u64;
        self.ledger.count_in(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes));
        self.ledger.count_out(&result);
        Poll::Ready(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, slices));
        self.ledger.count_out(&result);
        Poll::Ready(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_told_once_a_minute() {
        let cells = Cells::default();
        let due = |reason, at| cells.is_due(reason, Timestamp(at));
        assert!(due(Refusal::Tls, 1));
        assert!(due(Refusal::Login, 2), "another reason");
        assert!(!due(Refusal::Tls, TELLING_PERIOD));
        assert!(due(Refusal::Tls, TELLING_PERIOD + 1));
        assert!(due(Refusal::Tls, 1), "the clock was set back");
        assert!(!due(Refusal::Tls, 2));
    }
}
