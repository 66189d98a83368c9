//! The operator's commands, each a view of or a change to the store.

pub mod export;
pub mod meter;
pub mod net;
pub mod output;
pub mod progress;
pub mod round;
pub mod serve;
pub mod store;

use std::path::PathBuf;

use clap::Args;
use provider_agent::{Config, Store};

/// Where the configuration is.
#[derive(Args)]
pub struct At {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// The store, which must exist: looking at it is no reason to make one.
fn existing_store(config: &Config) -> anyhow::Result<Store> {
    let path = config.store_path();
    anyhow::ensure!(
        path.exists(),
        "{} does not exist; `provider-agent net create` makes it",
        path.display()
    );
    Store::open(&path)
}
