//! Files that only their owner may use, passwords, and files that the gateway administrator
//! exchanges while a program runs.

pub mod file;
pub mod kept;
pub mod password;
pub mod permissions;
pub mod revocation;
