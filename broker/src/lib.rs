//! The broker of the metering system: rumqttd's router behind a gate of our own.
//!
//! The gate accepts connections, demands TLS 1.3 with a client certificate of
//! the gateway administrator's CA, reads who the client is from that
//! certificate, and checks every packet before the router sees it: client
//! identifier, topic permissions by role ([`dcnet::topic::allowed_filters`],
//! default deny), sizes, rates and quotas. MQTT 3.1.1 and 5 share a port. On
//! listeners of their own third parties may come with user and password instead,
//! also over WebSocket; what they may read is in a permission file.
//!
//! What clients may rely on: quality of service 0 and 1, hop by hop while the
//! broker lives; retained messages across restarts; wills. What is not offered:
//! sessions that outlive their connection, quality of service 2, shared
//! subscriptions, topic aliases, subscription identifiers, No Local. A
//! subscription for quality of service 2 is granted 1; messages are delivered
//! with the quality of the subscription, whatever they were published with.
//!
//! What happens to a forbidden PUBLISH: it is counted, logged once per device
//! and never routed. With quality of service 0 it is dropped. With 1 an MQTT 5
//! client gets PUBACK 0x87; a 3.1.1 client is disconnected, because 3.1.1
//! allows only that or a false acknowledgement. Sixteen in one connection end it.

mod acl;
mod backend;
mod client;
mod codec;
mod config;
mod counters;
mod gate;
mod login;
mod logs;
mod metrics;
mod outgoing;
mod passwords;
mod permission;
#[cfg(feature = "plain")]
mod plain;
mod policy;
mod rate;
mod registry;
mod reload;
mod retained;
mod rules;
mod server;
pub mod service;
mod session;
mod shape;
mod tls;
mod websocket;

pub use acl::{Asker, Certified, Format, Verdict};
pub use config::{Config, Limits};
pub use counters::{Counters, Refusal, Traffic};
pub use passwords::{LONGEST_PASSWORD, remove_user, set_password};
pub use server::Broker;

/// Directive for a [`tracing_subscriber::EnvFilter`] that keeps rumqttd's own
/// messages out of the log: it reports normal events as errors.
pub const QUIET_ROUTER: &str = "rumqttd=off";
