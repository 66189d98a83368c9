//! The two brokers, configured alike.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use broker::{Certified, Config, Format};

use crate::chaos::process::{Process, Role};
use crate::chaos::setting::{broker_configuration, free_ports, quoted, write};
use crate::device::{Device, NET, Office};
use crate::load::await_listener;
use crate::taken::Taken;

/// Where Debian and others put it; it is on no user's path.
const MOSQUITTO: [&str; 2] = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];

/// For a broker to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This project's.
    Ours,
    /// The other.
    Mosquitto,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ours, Self::Mosquitto];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "this broker",
            Self::Mosquitto => "mosquitto",
        }
    }
}

/// How it is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TLS 1.3 with certificates on both sides.
    Tls,
    /// TCP alone.
    Plain,
}

impl Mode {
    /// Those that both brokers have in this build.
    #[cfg(feature = "plain")]
    pub const ALL: &[Self] = &[Self::Tls, Self::Plain];
    /// Those that both brokers have in this build.
    #[cfg(not(feature = "plain"))]
    pub const ALL: &[Self] = &[Self::Tls];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Plain => "without TLS",
        }
    }
}

/// Both, running or not, and who may connect.
pub struct Servers {
    ours: Process,
    configuration: PathBuf,
    mosquitto: Option<Running>,
    /// Of each broker: with TLS, without.
    ports: [[u16; 2]; 2],
    /// Who publishes, or is idle.
    pub meters: Vec<Device>,
    /// Who subscribes.
    pub provider: Device,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Servers {
    /// Makes certificates and configurations.
    ///
    /// # Errors
    /// What cannot be made.
    pub fn make(root: &Path, meters: usize) -> anyhow::Result<Self> {
        let office = Office::open(root)?;
        let [a, b, c, d] = free_ports()?;
        let ports = [[a, b], [c, d]];
        let provider = office.provider()?;
        let meters: Vec<Device> = (0..meters)
            .map(|_| office.meter())
            .collect::<Result<_, _>>()?;
        let mut ours = broker_configuration(&office.authority, root, a)?;
        if Mode::ALL.contains(&Mode::Plain) {
            ours += &format!("listen_plain = [\"127.0.0.1:{b}\"]\n");
        }
        // Nobody is to be held back.
        ours += "[limits]\npackets_per_second = 4000000000\n\
                 packets_per_second_of_provider = 4000000000\n";
        let config = root.join("broker.toml");
        write(&config, &ours)?;
        let certified = Certified {
            providers: vec![provider.id],
            nets: vec![NET],
            ..Certified::default()
        };
        let acl = Config::read(&config)?.export_acl(Format::Mosquitto, &certified)?;
        write(&root.join("mosquitto.acl"), &acl)?;
        let configuration = root.join("mosquitto.conf");
        write(&configuration, &mosquitto(root, c, d)?)?;
        Ok(Self {
            ours: Process::new(Role::Broker, config, root.join("broker.log")),
            configuration,
            mosquitto: None,
            ports,
            meters,
            provider,
        })
    }

    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(&mut self, kind: Kind) -> anyhow::Result<()> {
        match kind {
            Kind::Ours => self.ours.start()?,
            Kind::Mosquitto => {
                let named = std::env::var_os("MOSQUITTO").map(PathBuf::from);
                let mut programs = named.into_iter().chain(MOSQUITTO.map(PathBuf::from));
                let program = programs.find(|path| path.exists());
                let program =
                    program.context("there is no mosquitto; install the package of that name")?;
                let child = Command::new(program)
                    .arg("-c")
                    .arg(&self.configuration)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .context("cannot start mosquitto")?;
                self.mosquitto = Some(Running(child));
            }
        }
        for &mode in Mode::ALL {
            await_listener(self.address(kind, mode).port()).await?;
        }
        Ok(())
    }

    /// Stops one.
    ///
    /// # Errors
    /// It had ended by itself.
    pub async fn stop(&mut self, kind: Kind) -> anyhow::Result<()> {
        match kind {
            Kind::Ours => {
                if self.ours.terminate(PATIENCE).await?.is_none() {
                    bail!("the broker does not end on SIGTERM");
                }
            }
            Kind::Mosquitto => self.mosquitto = None,
        }
        Ok(())
    }

    /// Where one listens.
    pub fn address(&self, kind: Kind, mode: Mode) -> SocketAddr {
        let port = self.ports[kind as usize][mode as usize];
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// What one takes of the machine.
    ///
    /// # Errors
    /// It does not run.
    pub fn taken(&self, kind: Kind) -> anyhow::Result<Taken> {
        let process = match kind {
            Kind::Ours => self.ours.id(),
            Kind::Mosquitto => self.mosquitto.as_ref().map(|running| running.0.id()),
        };
        Taken::of(process.context("a broker has ended")?)
    }
}

/// As docs/broker.md has it, and: nothing is thrown away however many wait, as many are
/// unacknowledged as at this broker, and small packets are not held back.
fn mosquitto(root: &Path, tls: u16, plain: u16) -> anyhow::Result<String> {
    let file = |name: &str| {
        let path = quoted(&root.join("broker").join(name))?;
        anyhow::Ok(path.trim_matches('\'').to_owned())
    };
    let acl = quoted(&root.join("mosquitto.acl"))?;
    Ok(format!(
        "user root\nper_listener_settings true\nset_tcp_nodelay true\nmax_queued_messages 0\n\
         max_inflight_messages 100\npersistence false\nlog_type none\n\
         listener {tls} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\ntls_version tlsv1.3\n\
         require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n\
         acl_file {}\nlistener {plain} 127.0.0.1\nallow_anonymous true\n",
        file(gateway_admin::CA_FILE)?,
        file(gateway_admin::CERTIFICATE_FILE)?,
        file(gateway_admin::KEY_FILE)?,
        acl.trim_matches('\''),
    ))
}
