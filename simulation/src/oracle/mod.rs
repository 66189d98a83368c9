//! The privacy oracle.
pub mod account;
pub mod elimination;
pub mod field;
pub mod hostile;
pub mod saved;
pub mod scenario;
pub mod trace;
pub mod verdict;
