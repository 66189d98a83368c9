//! CA, broker and provider of a demonstration, in a directory of their own.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use broker::{Broker, Counters};
use dcnet::identity::{DeviceId, PublicKey};
use dcnet::membership::Policy;
use dcnet::topic::NetId;
use gateway_admin::{Authority, Host, KeyPair, LogHead, Terms};
use provider_agent::{Agent, Config, Running, Store};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::cli::Plan;
use crate::fleet::CHANNEL;
use crate::observer::Observer;
use crate::policy;

/// The usual port of MQTT over TLS.
pub const USUAL_PORT: u16 = 8883;

/// The name under which clients reach the broker; its certificate has it.
pub const HOST: &str = "localhost";

/// A directory in memory, where there is one.
pub const MEMORY: &str = "/dev/shm";

/// Everything but the meters, running.
pub struct System {
    /// Where everything is kept; removed at the end.
    pub directory: TempDir,
    /// The net.
    pub net: NetId,
    /// The provider's key.
    pub provider_key: PublicKey,
    /// Number of each meter.
    pub meters: BTreeMap<DeviceId, u32>,
    /// The port that the broker listens on.
    pub port: u16,
    /// A third party's subscription.
    pub observer: Observer,
    /// The provider.
    pub provider: Running,
    broker: Broker,
}

/// The directory for a run: in memory if there is such a place, since 50 journals that wait for
/// a disk would measure the disk. `TMPDIR` overrides it.
///
/// # Errors
/// No directory can be made.
pub fn directory() -> anyhow::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("dcnet-lab-");
    let chosen = std::env::var_os("TMPDIR").is_some_and(|path| !path.is_empty());
    if !chosen && let Ok(directory) = builder.tempdir_in(MEMORY) {
        return Ok(directory);
    }
    builder.tempdir().with_context(|| {
        format!(
            "cannot make a directory in {}; set TMPDIR to a place for temporary files",
            std::env::temp_dir().display()
        )
    })
}

/// Where the third party's enrolment is.
pub fn third_party(root: &Path) -> PathBuf {
    root.join("third-party")
}

/// Where the provider's database is.
pub fn provider_state(root: &Path) -> PathBuf {
    root.join("provider-state")
}

/// The configuration of the provider of a run, as strict as a demonstration's net is.
pub fn provider_config(root: &Path, broker_port: u16) -> Config {
    let mut config = Config::new(provider_state(root), root.join("provider"), HOST);
    config.broker.port = broker_port;
    config.minimum_presence_percent = u32::from(policy::PRESENCE_PERCENT);
    config.clock.assume_synchronised = true;
    config
}

/// Where a meter's enrolment is.
pub fn meter_identity(root: &Path, number: u32) -> PathBuf {
    root.join("meters")
        .join(number.to_string())
        .join("identity")
}

impl System {
    /// Makes a CA, starts the broker, opens a net, enrols everybody, starts the
    /// provider and subscribes as a third party.
    ///
    /// # Errors
    /// Whatever cannot be made or started.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let directory = directory()?;
        let root = directory.path().to_owned();
        let authority = Authority::init(&root.join("authority"))?;
        let (broker, port) = start_broker(&authority, &root).await?;

        let config = provider_config(&root, port);
        let policy = policy::net(plan.meters, plan.period);
        let Enrolled {
            net,
            provider_key,
            meters,
        } = enrol(&authority, &root, &config, plan.meters, policy)?;

        let provider = Agent::open(&config)?.start();
        let observer = Observer::start(HOST, port, &third_party(&root), net).await?;
        Ok(Self {
            directory,
            net,
            provider_key,
            meters,
            port,
            observer,
            provider,
            broker,
        })
    }

    /// What the broker has counted so far.
    pub fn counters(&self) -> Counters {
        self.broker.counters()
    }

    /// Stops provider and broker and removes the directory.
    ///
    /// # Errors
    /// The provider did not stop well, or the directory cannot be removed.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.observer);
        let provider = self.provider.stop().await;
        self.broker.stop().await;
        let path = self.directory.path().to_owned();
        self.directory
            .close()
            .with_context(|| format!("cannot remove {}", path.display()))?;
        provider
    }
}

/// Who is in a net, all of them enrolled in directories below that of the run.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// The net.
    pub net: NetId,
    /// The provider's key.
    pub provider_key: PublicKey,
    /// Number of each meter, from 1.
    pub meters: BTreeMap<DeviceId, u32>,
}

/// Opens a net in the provider's store, and enrols provider, meters and third party.
///
/// # Errors
/// Whatever cannot be made or written.
pub fn enrol(
    authority: &Authority,
    root: &Path,
    config: &Config,
    meters: u32,
    policy: Policy,
) -> anyhow::Result<Enrolled> {
    let bundle = authority.enrol_provider(KeyPair::generate()?, &Terms::default())?;
    bundle.write(&config.identity.directory)?;
    let (net, head) = open_net(config, policy)?;
    let mut numbers = BTreeMap::new();
    for number in 1..=meters {
        let meter = authority.enrol_meter(
            KeyPair::generate()?,
            net,
            &bundle.certificate,
            head,
            &Terms::default().household(format!("household {number}")),
        )?;
        meter.write(&meter_identity(root, number))?;
        numbers.insert(meter.id(), number);
    }
    authority
        .enrol_third_party(KeyPair::generate()?, Some(net), &Terms::default())?
        .write(&third_party(root))?;
    Ok(Enrolled {
        net,
        provider_key: *bundle.certificate.key(),
        meters: numbers,
    })
}

/// Enrols the broker; gives the directory of its enrolment.
///
/// # Errors
/// It cannot be made or written.
pub fn enrol_broker(authority: &Authority, root: &Path) -> anyhow::Result<PathBuf> {
    let hosts = [
        Host::Name(HOST.to_owned()),
        Host::Address(Ipv4Addr::LOCALHOST.into()),
    ];
    let directory = root.join("broker");
    authority
        .enrol_broker(KeyPair::generate()?, &hosts, &Terms::default())?
        .write(&directory)?;
    Ok(directory)
}

async fn start_broker(authority: &Authority, root: &Path) -> anyhow::Result<(Broker, u16)> {
    let directory = enrol_broker(authority, root)?;
    let config = |port| broker::Config {
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
        ca: directory.join(gateway_admin::CA_FILE),
        certificate: directory.join(gateway_admin::CERTIFICATE_FILE),
        key: directory.join(gateway_admin::KEY_FILE),
        revocations: Some(authority.revoked_path()),
        administrator: Some(directory.join(gateway_admin::ADMINISTRATOR_FILE)),
        state: Some(root.join("broker-state")),
        ..broker::Config::default()
    };
    let broker = match Broker::start(config(USUAL_PORT)).await {
        Err(error) if is_taken(&error) => Broker::start(config(0)).await?,
        started => started?,
    };
    let addresses = broker.local_addrs();
    let port = addresses
        .first()
        .context("the broker listens nowhere")?
        .port();
    Ok((broker, port))
}

fn is_taken(error: &anyhow::Error) -> bool {
    let io = error
        .chain()
        .find_map(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| {
        matches!(
            io.kind(),
            ErrorKind::AddrInUse | ErrorKind::PermissionDenied
        )
    })
}

/// Makes the net in the provider's store; gives the head of its log for the checkpoints.
///
/// # Errors
/// The store cannot be made or written.
pub fn open_net(config: &Config, policy: Policy) -> anyhow::Result<(NetId, LogHead)> {
    let identity = config.identity()?;
    provider_agent::store::prepare_directory(&config.state_directory)?;
    let mut store = Store::open_in(&config.state_directory)?;
    let channels = [CHANNEL.to_owned()];
    let net =
        provider_agent::net::create(&mut store, &identity, "Demonstration", policy, &channels)?;
    let head = provider_agent::net::membership(&store, &identity, net)?.head();
    Ok((
        net,
        LogHead {
            index: head.index,
            hash: head.hash,
            members: 0,
        },
    ))
}

/// Lets this process, and those it starts, have so many files open: every connection is one.
///
/// # Errors
/// The system does not allow it.
pub fn allow_open_files(wanted: u64) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        ensure!(
            limit.maximum.is_none_or(|maximum| maximum >= wanted),
            "{wanted} open files are needed, and only {:?} are allowed; see ulimit -Hn",
            limit.maximum
        );
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).context("cannot allow so many open files")?;
    }
    Ok(())
}
