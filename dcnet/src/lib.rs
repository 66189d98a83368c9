//! The DC-net metering protocol as pure state machines: no sockets, files, clocks
//! or ambient randomness. `docs/protocol.md` says what each module implements.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod aggregate;
pub mod alarm;
pub mod bitmap;
pub mod cbor;
pub mod checkpoint;
pub mod commitment;
pub mod frame;
pub mod graph;
pub mod handshake;
pub mod identity;
pub mod labels;
pub mod membership;
pub mod meter;
pub mod opening;
pub mod output;
pub mod pad;
pub mod provider;
pub mod reading;
pub mod reveal;
pub mod revocation;
pub mod roster;
pub mod secret;
pub mod superposition;
pub mod time;
pub mod topic;
pub mod units;

mod catch_up;
mod repeat;
