//! What is there before the first attack: certificates, users, and a broker with its usual
//! configuration, all listeners and metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use gateway_admin::Authority;
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::chaos::process::{Process, Role};
use crate::chaos::setting::{broker_configuration, free_ports, quoted, write};
use crate::device::{Device, Office};
use crate::system;

/// The user that attackers know the password of.
pub const USER: &str = "mallory";

/// Its password.
pub const PASSWORD: &str = "correct horse battery";

/// Sessions that the broker allows one third party at a time.
pub const SESSIONS: usize = 8;

/// Third parties that attackers are.
const STORMING: usize = 4;

/// What attackers attack, and with what.
#[derive(Debug)]
pub struct Target {
    /// The listener for agents.
    pub agents: SocketAddr,
    /// The one for users.
    pub third_parties: SocketAddr,
    /// The one for WebSocket.
    pub websocket: SocketAddr,
    /// The metrics.
    pub metrics: SocketAddr,
    /// TLS without a certificate.
    pub stranger: Arc<ClientConfig>,
    /// Their meters.
    pub meters: Vec<Device>,
    /// Third parties, for as many connections as are to be held, and [`STORMING`] more.
    pub readers: Vec<Device>,
    /// A provider that publishes to attackers.
    pub busy: Device,
}

/// Everything that a run needs, but nothing that runs.
#[derive(Debug)]
pub struct Setting {
    /// What is attacked.
    pub target: Arc<Target>,
    /// The honest meter.
    pub meter: Device,
    /// The honest provider.
    pub provider: Device,
    /// The broker.
    pub broker: Process,
    /// Where everything is; dropped after the process.
    pub directory: TempDir,
}

impl Target {
    /// One of the third parties that attackers are.
    pub fn storming(&self, number: usize) -> &Device {
        &self.readers[self.readers.len() - 1 - number % STORMING]
    }
}

impl Setting {
    /// Makes all of it in a new directory: so many meters for attackers, and certificates for so
    /// many connections.
    ///
    /// # Errors
    /// Whatever cannot be made.
    pub fn make(meters: usize, connections: usize) -> anyhow::Result<Self> {
        let directory = system::directory()?;
        let root = directory.path();
        let office = Office::open(root)?;
        let stranger = office.stranger()?;
        let readers = 0..connections.div_ceil(SESSIONS) + STORMING;
        let [agents, third_parties, websocket, metrics] =
            free_ports()?.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let target = Target {
            agents,
            third_parties,
            websocket,
            metrics,
            stranger,
            meters: (0..meters)
                .map(|_| office.meter())
                .collect::<Result<_, _>>()?,
            readers: readers
                .map(|_| office.third_party())
                .collect::<Result<_, _>>()?,
            busy: office.provider()?,
        };
        Ok(Self {
            meter: office.meter()?,
            provider: office.provider()?,
            broker: broker(&office.authority, root, &target)?,
            target: Arc::new(target),
            directory,
        })
    }
}

fn broker(authority: &Authority, root: &Path, target: &Target) -> anyhow::Result<Process> {
    let passwords = root.join("passwords");
    broker::set_password(&passwords, USER, PASSWORD).context("cannot set a password")?;
    let agents = broker_configuration(authority, root, target.agents.port())?;
    let configuration = format!(
        "{agents}listen_third_parties = [\"{}\"]\nlisten_websocket = [\"{}\"]\nmetrics = \"{}\"\n\
         passwords = {}\n",
        target.third_parties,
        target.websocket,
        target.metrics,
        quoted(&passwords)?,
    );
    let config = root.join("broker.toml");
    write(&config, &configuration)?;
    Ok(Process::new(Role::Broker, config, root.join("broker.log")))
}
