//! Who is connected: principals with their lifetime quotas, sessions with
//! takeover, and connections per address.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dcnet::identity::{DeviceId, Role};
use dcnet::time::Timestamp;
use rumqttd::protocol::DisconnectReasonCode;
use tokio::sync::watch;

use crate::client::{Client, Identity};
use crate::config::Limits;
use crate::counters::{Cells, Counters, Refusal, TrafficCell};
use crate::retained::Retained;

/// Why the broker ends a session from its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    TakenOver,
    Revoked,
    Expired,
    /// The user is gone or has another password.
    Password,
    /// A subscription is not permitted any more.
    Permission,
    Stopping,
}

impl Ending {
    /// The MQTT 5 reason code and the reason in words.
    pub(crate) fn reason(self) -> (DisconnectReasonCode, &'static str) {
        match self {
            Self::TakenOver => (
                DisconnectReasonCode::SessionTakenOver,
                "connected again elsewhere",
            ),
            Self::Revoked => (DisconnectReasonCode::AdministrativeAction, "device revoked"),
            Self::Expired => (DisconnectReasonCode::NotAuthorized, "certificate expired"),
            Self::Password => (
                DisconnectReasonCode::NotAuthorized,
                "user removed or password changed",
            ),
            Self::Permission => (DisconnectReasonCode::NotAuthorized, "permission withdrawn"),
            Self::Stopping => (
                DisconnectReasonCode::ServerShuttingDown,
                "the broker is stopping",
            ),
        }
    }
}

/// A client as the broker knows it, for as long as the broker runs: the number
/// of these is bounded by the certificates that the CA issued and the users that
/// have a password.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) id: Identity,
    pub(crate) role: Role,
    pub(crate) traffic: Arc<TrafficCell>,
    topics: Mutex<HashSet<u64>>,
    filters: Mutex<HashSet<u64>>,
    warned: AtomicU64,
}

impl Principal {
    /// Counts a refusal and logs the first of each reason. `detail` may come
    /// from the client: the log gets printable ASCII only, and not all of it.
    pub(crate) fn refuse(&self, cells: &Cells, reason: Refusal, detail: &str) {
        cells.refuse(reason);
        let detail: String = detail
            .chars()
            .take(128)
            .flat_map(char::escape_default)
            .collect();
        let bit = 1_u64 << (reason as u32 % 64);
        let role = self.role.as_str();
        if self.warned.fetch_or(bit, Relaxed) & bit == 0 {
            tracing::warn!(client = %self.id, role, detail, "{}", reason.as_str());
        } else {
            tracing::debug!(client = %self.id, role, detail, "{}", reason.as_str());
        }
    }
}

struct Session {
    number: u64,
    identity: Identity,
    /// For clients with a certificate.
    not_after: Option<Timestamp>,
    ending: watch::Sender<Option<Ending>>,
    /// Closed when the session has ended and its link is gone.
    ended: watch::Receiver<()>,
}

#[derive(Default)]
struct Tables {
    principals: HashMap<Identity, Arc<Principal>>,
    /// By client and client identifier.
    sessions: HashMap<(Identity, String), Session>,
    next_session: u64,
    addresses: HashMap<IpAddr, usize>,
    connections: usize,
    filters: HashSet<u64>,
    stopping: bool,
}

/// Everything the connections share.
pub(crate) struct Registry {
    pub(crate) limits: Limits,
    pub(crate) cells: Arc<Cells>,
    tables: Mutex<Tables>,
    topics: AtomicUsize,
    hashing: RandomState,
}

/// A TCP connection that counts towards the limits until it is dropped.
pub(crate) struct Admission {
    registry: Arc<Registry>,
    address: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut tables = self.registry.lock();
        tables.connections = tables.connections.saturating_sub(1);
        if let Some(count) = tables.addresses.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                tables.addresses.remove(&self.address);
            }
        }
    }
}

/// A session's place; dropped when it has ended.
pub(crate) struct Place {
    registry: Arc<Registry>,
    key: (Identity, String),
    number: u64,
    /// Set when the broker wants the session to end.
    pub(crate) ending: watch::Receiver<Option<Ending>>,
    _ended: watch::Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut tables = self.registry.lock();
        if tables
            .sessions
            .get(&self.key)
            .is_some_and(|session| session.number == self.number)
        {
            tables.sessions.remove(&self.key);
        }
    }
}

impl Registry {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            cells: Arc::new(Cells::default()),
            tables: Mutex::default(),
            topics: AtomicUsize::new(0),
            hashing: RandomState::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection unless a limit is reached.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Admission> {
        let address = network(address);
        let tables = &mut *self.lock();
        let count = tables.addresses.entry(address).or_default();
        if tables.stopping
            || tables.connections >= self.limits.connections
            || *count >= self.limits.connections_per_address
        {
            if *count == 0 {
                tables.addresses.remove(&address);
            }
            return None;
        }
        *count += 1;
        tables.connections += 1;
        Some(Admission {
            registry: Arc::clone(self),
            address,
        })
    }

    /// The principal of a verified certificate.
    pub(crate) fn principal(&self, client: &Client) -> Arc<Principal> {
        let mut tables = self.lock();
        let principal = tables
            .principals
            .entry(client.identity())
            .or_insert_with(|| {
                Arc::new(Principal {
                    id: client.identity(),
                    role: client.role(),
                    traffic: Arc::default(),
                    topics: Mutex::default(),
                    filters: Mutex::default(),
                    warned: AtomicU64::new(0),
                })
            });
        Arc::clone(principal)
    }

    /// Opens a session. One with the same client identifier is told to end and
    /// waited for, so that its will and link are gone before.
    ///
    /// # Errors
    /// The refusal if a third party has too many, or the broker is stopping.
    pub(crate) async fn open(
        self: &Arc<Self>,
        client: &Client,
        client_id: &str,
    ) -> Result<Place, Refusal> {
        let key = (client.identity(), client_id.to_owned());
        loop {
            let mut ended = {
                let tables = &mut *self.lock();
                if tables.stopping {
                    return Err(Refusal::TooManyConnections);
                }
                match tables.sessions.get(&key) {
                    Some(old) => {
                        old.ending.send_replace(Some(Ending::TakenOver));
                        old.ended.clone()
                    }
                    None => {
                        let own = |s: &&Session| s.identity == key.0;
                        if client.role() == Role::ThirdParty
                            && tables.sessions.values().filter(own).count()
                                >= self.limits.sessions_per_third_party
                        {
                            return Err(Refusal::TooManySessions);
                        }
                        let number = tables.next_session;
                        tables.next_session += 1;
                        let (ending, ending_seen) = watch::channel(None);
                        let (ended_guard, ended) = watch::channel(());
                        tables.sessions.insert(
                            key.clone(),
                            Session {
                                number,
                                identity: key.0.clone(),
                                not_after: client.not_after(),
                                ending,
                                ended,
                            },
                        );
                        self.cells.sessions.fetch_add(1, Relaxed);
                        return Ok(Place {
                            registry: Arc::clone(self),
                            key,
                            number,
                            ending: ending_seen,
                            _ended: ended_guard,
                        });
                    }
                }
            };
            self.cells.takeovers.fetch_add(1, Relaxed);
            // Nothing is ever sent: this waits for the sender to be dropped.
            while ended.changed().await.is_ok() {}
        }
    }

    /// Notes that `principal` publishes to `topic`; `false` if that is one
    /// topic too many. The router remembers every topic.
    pub(crate) fn take_topic(&self, principal: &Principal, topic: &str) -> bool {
        let hash = self.hash(topic);
        let mut topics = lock(&principal.topics);
        if topics.contains(&hash) {
            return true;
        }
        let own = match principal.role {
            Role::Provider => usize::MAX,
            _ => self.limits.topics_per_client,
        };
        if topics.len() >= own || self.topics.load(Relaxed) >= self.limits.topics {
            return false;
        }
        self.topics.fetch_add(1, Relaxed);
        topics.insert(hash)
    }

    /// How many filters `principal` may use.
    pub(crate) fn filters_of(&self, principal: &Principal) -> usize {
        match principal.role {
            Role::Provider => self.limits.filters_of_provider,
            _ => self.limits.filters_per_client,
        }
    }

    /// Notes that `principal` uses `filter`; `false` if that is one filter too
    /// many. The router keeps a log for every filter it ever saw.
    pub(crate) fn take_filter(&self, principal: &Principal, filter: &str) -> bool {
        let hash = self.hash(filter);
        let mut filters = lock(&principal.filters);
        if filters.contains(&hash) {
            return true;
        }
        let own = self.filters_of(principal);
        let mut tables = self.lock();
        let known = tables.filters.contains(&hash);
        if filters.len() >= own || (!known && tables.filters.len() >= self.limits.filters) {
            return false;
        }
        tables.filters.insert(hash);
        filters.insert(hash)
    }

    fn hash(&self, text: &str) -> u64 {
        self.hashing.hash_one(text)
    }

    /// Ends the sessions of devices that `revoked` names and of those whose
    /// certificate is past its validity.
    pub(crate) fn end_invalid(&self, now: Timestamp, revoked: impl Fn(&DeviceId) -> bool) {
        for session in self.lock().sessions.values() {
            let ending = match &session.identity {
                Identity::Device(device) if revoked(device) => Ending::Revoked,
                _ if session.not_after.is_some_and(|at| at < now) => Ending::Expired,
                _ => continue,
            };
            tracing::info!(client = %session.identity, ?ending, "ending a session");
            session.ending.send_replace(Some(ending));
        }
    }

    /// Ends all sessions and admits no more.
    pub(crate) fn stop(&self) {
        let mut tables = self.lock();
        tables.stopping = true;
        for session in tables.sessions.values() {
            session.ending.send_replace(Some(Ending::Stopping));
        }
    }

    pub(crate) fn sessions_open(&self) -> usize {
        self.lock().sessions.len()
    }

    pub(crate) fn counters(&self, retained: &Retained) -> Counters {
        let tables = self.lock();
        let (mut devices, mut users) = (BTreeMap::new(), BTreeMap::new());
        for principal in tables.principals.values() {
            let traffic = principal.traffic.get();
            match &principal.id {
                Identity::Device(id) => {
                    devices.insert(*id, (principal.role, traffic));
                }
                Identity::User(name) => {
                    users.insert(name.to_string(), traffic);
                }
            }
        }
        Counters {
            connections: self.cells.connections.load(Relaxed),
            sessions: self.cells.sessions.load(Relaxed),
            sessions_open: tables.sessions.len() as u64,
            takeovers: self.cells.takeovers.load(Relaxed),
            refused: self.cells.refused(),
            total: self.cells.total.get(),
            nobodys: self.cells.nobodys.get(),
            devices,
            users,
            withdrawn: self.cells.withdrawn.load(Relaxed),
            retained: retained.len() as u64,
            retained_bytes: retained.bytes() as u64,
            retained_writes_failed: retained.writes_failed(),
            topics: self.topics.load(Relaxed) as u64,
            filters: tables.filters.len() as u64,
            log_bytes: self.cells.log_bytes.load(Relaxed),
            logs_emptied: self.cells.logs_emptied.load(Relaxed),
            messages_skipped: self.cells.messages_skipped.load(Relaxed),
            reloads: self.cells.reloads.load(Relaxed),
            reloads_refused: self.cells.reloads_refused.load(Relaxed),
            revocation_lists_refused: self.cells.lists_refused.load(Relaxed),
        }
    }
}

/// What counts as one address: with IPv6 a household has a /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & (!0 << 64)).into()),
        v4 => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn connections_count_until_they_end() {
        let limits = Limits {
            connections: 3,
            connections_per_address: 2,
            ..Limits::default()
        };
        let registry = Arc::new(Registry::new(limits));
        let admit = |text: &str| registry.admit(text.parse().unwrap());
        let first = admit("192.0.2.1");
        let _second = admit("192.0.2.1");
        assert!(admit("192.0.2.1").is_none(), "per address");
        drop(first);
        let _third = admit("192.0.2.1").expect("room again");
        let _fourth = admit("192.0.2.2").expect("another address");
        assert!(admit("192.0.2.3").is_none(), "in total");
        registry.stop();
        assert!(admit("192.0.2.4").is_none(), "stopping");
    }
}
