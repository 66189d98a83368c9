//! The broker as a whole: start, accept, stop.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use secrets::revocation::RevocationFile;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use crate::backend::Backend;
use crate::config::Config;
use crate::counters::{Counters, Refusal};
use crate::gate::{self, Door, Shared};
use crate::login::Logins;
use crate::metrics;
use crate::registry::Registry;
use crate::reload::{self, Sources};
use crate::retained::Retained;
use crate::tls::Tls;

/// How long sessions may take to end when the broker stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// How often the watchdog sends a message through the router.
const PROBE_PERIOD: Duration = Duration::from_secs(5);

/// How long such a message may take; a busy machine is no reason to give up.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

/// A running broker. Dropping it without [`Broker::stop`] closes everything at once.
pub struct Broker {
    addresses: Vec<SocketAddr>,
    third_party_addresses: Vec<SocketAddr>,
    websocket_addresses: Vec<SocketAddr>,
    metrics: Option<SocketAddr>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    failed: watch::Receiver<bool>,
    probes: Arc<AtomicU64>,
    reload: mpsc::Sender<oneshot::Sender<()>>,
    listeners: Vec<JoinHandle<()>>,
    background: Vec<AbortHandle>,
}

impl Broker {
    /// Starts a broker on the current tokio runtime.
    ///
    /// # Errors
    /// If the configuration is wrong, a file cannot be used or an address is taken.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (credentials, policy) = config.load()?;
        let mut list_file = match (&config.revocations, credentials.administrator) {
            (Some(path), Some(administrator)) => Some(RevocationFile::new(path, administrator)),
            _ => None,
        };
        let revocations = match &mut list_file {
            Some(file) => file.changed()?,
            None => None,
        };
        let limits = config.limits.clone();
        let check_interval = Duration::from_secs(limits.check_interval_s);
        let retained = Retained::open(config.state.as_deref(), &limits)?;
        let has_users = config.passwords.is_some();
        let registry = Arc::new(Registry::new(limits.clone()));
        let shared = Arc::new(Shared {
            retained,
            backend: Backend::start(&limits, Arc::clone(&registry.cells))?,
            logins: Arc::new(Logins::new(limits.password_checks)?),
            registry,
            tls: Tls::new(credentials.own, &credentials.ca, has_users)?,
            ca: credentials.ca,
            revocations: RwLock::new(revocations),
            policy: watch::channel(Arc::new(policy)).0,
        });

        let (stop, _) = watch::channel(false);
        let mut sockets = Vec::new();
        let mut open = |door, wanted: &[SocketAddr]| -> anyhow::Result<Vec<SocketAddr>> {
            let mut taken = Vec::with_capacity(wanted.len());
            for &address in wanted {
                let socket =
                    listen(address).with_context(|| format!("cannot listen on {address}"))?;
                taken.push(socket.local_addr()?);
                sockets.push((door, socket));
            }
            Ok(taken)
        };
        let addresses = open(Door::Agents, &config.listen)?;
        let third_party_addresses = open(Door::ThirdParties, &config.listen_third_parties)?;
        let websocket_addresses = open(Door::WebSocket, &config.listen_websocket)?;
        #[cfg(feature = "plain")]
        open(Door::Plain, &config.listen_plain)?;
        let metrics = match config.metrics {
            None => None,
            Some(address) => {
                let socket =
                    listen(address).with_context(|| format!("cannot listen on {address}"))?;
                Some((socket.local_addr()?, socket))
            }
        };
        let listeners = sockets
            .into_iter()
            .map(|(door, socket)| {
                tokio::spawn(accept(Arc::clone(&shared), door, socket, stop.subscribe()))
            })
            .collect();

        let (failed, failed_seen) = watch::channel(false);
        let backend = shared.backend.clone();
        let probes = Arc::new(AtomicU64::new(0));
        let arrived = Arc::clone(&probes);
        let watchdog = tokio::spawn(async move {
            tokio::select! {
                () = backend.gone() => {}
                _ = backend.watch(PROBE_PERIOD, PROBE_LIMIT, &arrived) => {}
            }
            tracing::error!("the router does not route any more; the broker must be restarted");
            let _ = failed.send(true);
        });
        let (reload, asked) = mpsc::channel(1);
        let sources = Sources::new(config, list_file);
        let checks = tokio::spawn(reload::watch(
            Arc::clone(&shared),
            sources,
            check_interval,
            asked,
        ));
        let mut background = vec![watchdog.abort_handle(), checks.abort_handle()];
        let metrics = metrics.map(|(address, socket)| {
            let serve = metrics::serve(socket, Arc::clone(&shared), Arc::clone(&probes));
            background.push(tokio::spawn(serve).abort_handle());
            address
        });
        Ok(Self {
            addresses,
            third_party_addresses,
            websocket_addresses,
            metrics,
            shared,
            stop,
            failed: failed_seen,
            probes,
            reload,
            listeners,
            background,
        })
    }

    /// The addresses of `listen`, in the order of the configuration, with the
    /// ports that were taken.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The same of `listen_third_parties`.
    pub fn third_party_addrs(&self) -> &[SocketAddr] {
        &self.third_party_addresses
    }

    /// The same of `listen_websocket`.
    pub fn websocket_addrs(&self) -> &[SocketAddr] {
        &self.websocket_addresses
    }

    /// Where metrics are served.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Everything counted so far.
    pub fn counters(&self) -> Counters {
        self.shared.registry.counters(&self.shared.retained)
    }

    /// Sessions open now.
    pub fn sessions_open(&self) -> usize {
        self.shared.registry.sessions_open()
    }

    /// The number of the revocation list in force, if there is one.
    pub fn revocation_number(&self) -> Option<u64> {
        self.shared
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(dcnet::revocation::RevocationList::number)
    }

    /// How many messages of its own the broker has sent through its router and got back, one
    /// every five seconds. While this grows the broker routes.
    pub fn probes(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// Reads revocation list, permissions, passwords and the broker's certificate again
    /// now, changed or not, and ends sessions that are not permitted any more. A file
    /// that cannot be used is reported in the log, and what is in force stays.
    pub async fn reload(&self) {
        let (done, reloaded) = oneshot::channel();
        // Without an answer the broker is being stopped.
        if self.reload.send(done).await.is_ok() {
            let _ = reloaded.await;
        }
    }

    /// Returns when the router has failed and nothing is routed any more. The
    /// process should end and be started again.
    pub async fn failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            std::future::pending().await
        }
    }

    /// Stops: no new connections, sessions ended (MQTT 5: DISCONNECT 0x8B),
    /// retained messages on disk. Takes a few seconds at most.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.shared.registry.stop();
        for listener in std::mem::take(&mut self.listeners) {
            let _ = listener.await;
        }
        let shared = Arc::clone(&self.shared);
        drop(self);
        let _ = tokio::task::spawn_blocking(move || shared.retained.close()).await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for task in &self.background {
            task.abort();
        }
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

/// An address of IPv6 is taken for IPv6 alone, so that `[::]` and `0.0.0.0` can share a port.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the broker was dropped.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept(
    shared: Arc<Shared>,
    door: Door,
    socket: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection ended abnormally");
                }
            }
            accepted = socket.accept() => match accepted {
                Ok((tcp, address)) => {
                    let cells = &shared.registry.cells;
                    cells.connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    match shared.registry.admit(address.ip()) {
                        Some(admission) => {
                            let serve = gate::serve(Arc::clone(&shared), door, tcp, address, admission);
                            connections.spawn(serve);
                        }
                        None => {
                            cells.refuse(Refusal::TooManyConnections);
                            cells.tell(Refusal::TooManyConnections, address);
                        }
                    }
                }
                Err(error) => {
                    // Usually out of file descriptors; some will come free.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(socket);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}
