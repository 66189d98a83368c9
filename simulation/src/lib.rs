//! The protocol's state machines in virtual time: a provider and meters over an
//! in-memory network that loses, duplicates, delays and reorders messages, and
//! processes that crash. Everything, keys included, follows from one seed, so a run
//! that fails can be repeated.
//!
//! A [`plan::Plan`] says what goes wrong, [`run::run`] plays it and holds every event
//! against the [`invariant::Invariant`]s, and [`shrink::shrink`] makes a failing plan small.

mod death;
pub mod fault;
pub mod fuzzing;
pub mod history;
mod inject;
pub mod invariant;
mod lies;
pub mod liveness;
pub mod network;
pub mod oracle;
pub mod plan;
pub mod run;
pub mod shrink;
pub mod synthetic;
pub mod watch;
pub mod world;
