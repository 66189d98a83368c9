//! The provider agent: opens DC-nets, runs their rounds with
//! [`dcnet::provider::Provider`], stores everything that must be kept, and publishes
//! verified sums. It never learns more than the sums.
//!
//! [`agent::Agent`] is what the daemon `provider-agent` runs; it can be run inside
//! another program too.

pub mod agent;
mod attend;
pub mod backup;
pub mod comparison;
pub mod config;
pub mod export;
pub mod home_assistant;
pub mod identity;
pub mod meters;
pub mod net;
pub mod nets;
pub mod page;
pub mod publication;
pub mod revocations;
pub mod rounds;
pub mod store;
pub mod traces;
pub mod utc;

pub use agent::{Agent, Running, StoreState};
pub use config::Config;
pub use identity::Identity;
pub use nets::NetEvent;
pub use store::Store;
