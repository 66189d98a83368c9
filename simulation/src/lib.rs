//! The protocol's state machines in virtual time: a provider and meters over an
//! in-memory network that loses, duplicates, delays and reorders messages, and
//! processes that crash. Everything, keys included, follows from one seed, so a run
//! that fails can be repeated.

pub mod fuzzing;
pub mod network;
pub mod world;
