//! `provider-agent run`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use link::service;
use provider_agent::{Config, agent};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

/// Runs the agent until SIGTERM or SIGINT.
pub fn run(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&config.log))
        .with_context(|| {
            format!(
                "in {}: log = {:?} is no level or directive",
                path.display(),
                config.log
            )
        })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let look = Arc::new(Notify::new());
        let asked = Arc::clone(&look);
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                service::reloading();
                asked.notify_one();
            }
        });
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        agent::run(&config, stop, look).await
    })
}
