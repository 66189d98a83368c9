//! Files that only their owner may use, and passwords.

pub mod password;
pub mod permissions;
