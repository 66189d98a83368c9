//! The only shell around a [`dcnet::output::StateMachine`]: it keeps the machine's
//! records in a durable [`journal`], drives it with messages, commands and time
//! ([`driver`]), and speaks MQTT 3.1.1 over TLS 1.3 with the broker
//! ([`connection`]). Its one promise: nothing is published before everything the
//! machine wanted persisted up to then is on disk.
//!
//! What every agent on such a machine needs of its host stands here too: private
//! [`database`] files, the [`credentials`] that the gateway administrator issued, and what
//! a [`service`] tells the service manager.

pub mod back_off;
pub mod clock;
pub mod connection;
pub mod counters;
pub mod credentials;
pub mod database;
pub mod driver;
pub mod journal;
mod network;
pub mod service;

pub use clock::Clock;
pub use connection::Connection;
pub use counters::{Counters, Totals};
pub use driver::{Control, Driver, Handle, Reopen};
pub use journal::{Journal, MeterJournal};
pub use network::LinkState;
