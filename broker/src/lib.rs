//! The broker of the metering system: rumqttd's router behind a gate of our own.
//!
//! The gate accepts connections, demands TLS 1.3 with a client certificate of
//! the gateway administrator's CA, reads who the client is from that
//! certificate, and checks every packet before the router sees it: client
//! identifier, topic permissions by role ([`dcnet::topic::allowed_filters`],
//! default deny), sizes, rates and quotas. MQTT 3.1.1 and 5 share a port.
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

mod backend;
mod codec;
mod config;
mod counters;
mod gate;
mod outgoing;
mod permission;
mod rate;
mod registry;
mod retained;
mod revocation;
mod server;
pub mod service;
mod session;

pub use config::{Config, Limits};
pub use counters::{Counters, Refusal, Traffic};
pub use server::Broker;

/// Directive for a [`tracing_subscriber::EnvFilter`] that keeps rumqttd's own
/// messages out of the log: it reports normal events as errors.
pub const QUIET_ROUTER: &str = "rumqttd=off";
