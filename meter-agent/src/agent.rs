//! The daemon: register, protocol state machine and link put together.

use crate::config::Config;

/// Runs the agent until it is told to stop.
///
/// # Errors
/// Always: the protocol is not wired up yet.
pub async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
