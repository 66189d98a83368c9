//! The demonstration: CA, broker, provider agent and meter agents in one process, with real
//! sockets, certificates and journals, and a third party that checks every sum.

pub mod absence;
pub mod board;
pub mod cli;
pub mod demo;
pub mod fleet;
pub mod observer;
pub mod oracle;
pub mod policy;
pub mod report;
pub mod system;
pub mod terminal;
pub mod thesis;
pub mod traffic;
pub mod truth;
