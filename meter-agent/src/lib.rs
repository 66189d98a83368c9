//! The meter agent: counts the pulses of an electricity meter, keeps them in a
//! durable register, and takes part in a DC-net.
//!
//! The way of a pulse: [`pulse`] turns edges on a wire (or a file, or a model of
//! a household) into counted batches; [`register`] adds them up, keeps the total
//! on disk and takes its value at every boundary of a round; the agent makes
//! readings of those values and hands nothing else on.

mod accounts;
pub mod agent;
pub mod ask;
pub mod clock;
pub mod config;
pub mod count;
mod diagnosis;
pub mod doctor;
pub mod energy;
mod erase;
pub mod history;
pub mod home_assistant;
pub mod home_broker;
pub mod identity;
pub mod leave;
pub mod page;
pub mod power;
pub mod pulse;
pub mod reach;
pub mod register;
pub mod standing;
pub mod status;
