//! The demonstration: CA, broker, provider agent and meter agents in one process, with real
//! sockets, certificates and journals, and a third party that checks every sum. And the
//! simulation: many nets in virtual time, in which everything goes wrong; and the same with
//! real processes. And hostile clients against the broker, and the broker beside another one.

pub mod absence;
pub mod abuse;
pub mod beside;

pub mod board;
pub mod chaos;
pub mod cli;
pub mod demo;
pub mod device;
pub mod fleet;
pub mod joins;
pub mod load;
pub mod observer;
pub mod oracle;
pub mod policy;
pub mod raw;
pub mod report;
pub mod simulate;
pub mod system;
pub mod taken;
pub mod terminal;
pub mod thesis;
pub mod tls;
pub mod traffic;
pub mod truth;
