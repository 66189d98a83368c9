//! The broker as a daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use broker::{Asker, Broker, Certified, Config, Format, QUIET_ROUTER, service};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use dcnet::identity::{DeviceId, Role};
use dcnet::topic::NetId;
use manual::Manual;
use secrets::password;
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
    /// Checks the configuration, the certificates, the key, permissions and passwords,
    /// then ends.
    CheckConfig {
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Sets the password of a third party: asks for it, or reads a line from standard
    /// input. A running broker takes it up by itself.
    SetPassword {
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Name of the user.
        user: String,
    },
    /// Removes a user and its password; a running broker ends its sessions.
    RemoveUser {
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Name of the user.
        user: String,
    },
    /// Tells whether somebody may publish and subscribe to a topic, and by which line.
    CheckAcl {
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Role of the certificate; users are third parties.
        #[arg(long, value_enum, default_value = "third-party")]
        role: AskedRole,
        /// Net that the certificate names, 32 hexadecimal digits.
        #[arg(long)]
        net: Option<NetId>,
        /// Name of a user, or id of a certificate.
        user: String,
        /// Topic or topic filter.
        topic: String,
    },
    /// Writes the permissions as an access control list for another broker.
    ExportAcl {
        /// Form of the list.
        #[arg(long, value_enum)]
        format: ExportFormat,
        /// Configuration file, TOML.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Id of the provider's certificate; may be repeated.
        #[arg(long, value_name = "ID", value_parser = device_id, required = true)]
        provider: Vec<DeviceId>,
        /// A net whose meters use that broker; may be repeated.
        #[arg(long, value_name = "NET", required = true)]
        net: Vec<NetId>,
        /// A third party's certificate and the net that it names; may be repeated.
        #[arg(long, value_name = "ID=NET", value_parser = certificate_of_net)]
        certificate: Vec<(DeviceId, NetId)>,
    },
    /// Writes man pages and shell completions.
    #[command(hide = true)]
    Manual(Manual),
}

#[derive(Clone, Copy, ValueEnum)]
enum AskedRole {
    Meter,
    Provider,
    ThirdParty,
}

#[derive(Clone, Copy, ValueEnum)]
enum ExportFormat {
    Mosquitto,
}

/// Ids look as those of nets do.
fn device_id(text: &str) -> Result<DeviceId, String> {
    let id: NetId = text
        .parse()
        .map_err(|error: dcnet::topic::TopicError| error.to_string())?;
    Ok(DeviceId(id.0))
}

fn certificate_of_net(text: &str) -> Result<(DeviceId, NetId), String> {
    let (id, net) = text
        .split_once('=')
        .ok_or("an id, an equals sign and a net belong here")?;
    let net = net
        .parse()
        .map_err(|_| "this is no net: 32 hexadecimal digits")?;
    Ok((device_id(id)?, net))
}

fn main() -> ExitCode {
    let Arguments { command, config } = Arguments::parse();
    let result = match (command, config) {
        (Some(command), _) => run(command),
        (None, Some(config)) => serve(&config),
        // clap asks for one of the two.
        (None, None) => Ok(()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::CheckConfig { config } => {
            Config::read(&config)?.check()?;
            println!("the configuration is valid");
            Ok(())
        }
        Command::SetPassword { config, user } => {
            let config = Config::read(&config)?;
            let path = config.password_file()?;
            broker::set_password(path, &user, &password::ask(&user)?)?;
            println!("the password of {user} is set");
            Ok(())
        }
        Command::RemoveUser { config, user } => {
            broker::remove_user(Config::read(&config)?.password_file()?, &user)?;
            println!("{user} is removed");
            Ok(())
        }
        Command::CheckAcl {
            config,
            role,
            net,
            user: name,
            topic,
        } => {
            let role = match role {
                AskedRole::Meter => Role::Meter,
                AskedRole::Provider => Role::Provider,
                AskedRole::ThirdParty => Role::ThirdParty,
            };
            let config = Config::read(&config)?;
            let asker = Asker { name, role, net };
            let [publish, subscribe] = config.check_acl(&asker, &topic)?;
            println!("publish:   {publish}\nsubscribe: {subscribe}");
            if config.has_password(&asker) == Some(false) {
                println!(
                    "note:      {} has no password and cannot log in",
                    asker.name
                );
            }
            Ok(())
        }
        Command::ExportAcl {
            format: ExportFormat::Mosquitto,
            config,
            provider,
            net,
            certificate,
        } => {
            let certified = Certified {
                providers: provider,
                nets: net,
                third_parties: certificate.into_iter().collect(),
            };
            let list = Config::read(&config)?.export_acl(Format::Mosquitto, &certified)?;
            print!("{list}");
            Ok(())
        }
        Command::Manual(manual) => manual
            .write(Arguments::command())
            .context("cannot write the manual"),
    }
}

#[tokio::main]
async fn serve(path: &Path) -> anyhow::Result<()> {
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
    for address in broker.third_party_addrs() {
        tracing::info!(%address, "listening for third parties");
    }
    for address in broker.websocket_addrs() {
        tracing::info!(%address, "listening for WebSocket");
    }
    if let Some(address) = broker.metrics_addr() {
        tracing::info!(%address, "metrics");
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
