//! The broker as a daemon.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use broker::{Broker, Config, QUIET_ROUTER, service};
use clap::{CommandFactory, Parser, Subcommand};
use manual::Manual;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// MQTT broker of the DC-net metering system.
#[derive(Parser)]
#[command(name = "dcnet-broker", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file, TOML.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Checks the configuration, the certificates and the key, then ends.
    CheckConfig {
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Writes man pages and shell completions.
    #[command(hide = true)]
    Manual(Manual),
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments {
            command: Some(Command::CheckConfig { config }),
            ..
        } => Config::read(&config)
            .and_then(|config| config.check())
            .map(|()| println!("the configuration is valid")),
        Arguments {
            command: Some(Command::Manual(manual)),
            ..
        } => manual
            .write(Arguments::command())
            .context("cannot write the manual"),
        Arguments {
            config: Some(config),
            ..
        } => serve(&config),
        // clap asks for one of the two.
        Arguments { .. } => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(path: &std::path::Path) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env()
        // rustls warns of clients that name an IP address as host name.
        .unwrap_or_else(|_| EnvFilter::new(format!("info,rustls=error,{QUIET_ROUTER}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let broker = Broker::start(Config::read(path)?).await?;
    for address in broker.local_addrs() {
        tracing::info!(%address, "listening");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = service::attend(&broker, hangup) => {}
        () = broker.failed() => {
            // The process must go down for a supervisor to start it anew.
            return Err(anyhow::anyhow!("the router has failed"))
                .context("the broker cannot go on; restart it");
        }
    }
    tracing::info!("stopping");
    service::stopping();
    broker.stop().await;
    Ok(())
}
