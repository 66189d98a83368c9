//! An administrator, a provider with one net, and meters, with real keys and
//! certificates in a temporary directory.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod network;
pub mod sockets;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use dcnet::checkpoint::Checkpoint;
use dcnet::identity::DeviceId;
use dcnet::membership::{Membership, Policy};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::pad::RosterHash;
use dcnet::provider::{IncludedSubmission, ProviderRecord, Published};
use dcnet::time::{Period, Round};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use gateway_admin::{Authority, Bundle, KeyPair, LogHead, Terms};
use provider_agent::store::NetRecord;
use provider_agent::{Config, Identity, Store, net};
use tempfile::TempDir;

/// Longer than anything takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

pub struct World {
    pub directory: TempDir,
    pub authority: Authority,
    pub provider: Bundle,
    pub config: Config,
}

pub fn policy(seconds: u32, window_ms: u32, minimum_group: u32) -> Policy {
    Policy {
        period: Period::from_secs(seconds).unwrap(),
        window_ms,
        minimum_group,
        minimum_neighbours: 3,
        degree: 48,
    }
}

impl World {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let at = |name: &str| directory.path().join(name);
        let authority = Authority::init(&at("authority")).unwrap();
        let provider = authority
            .enrol_provider(KeyPair::generate().unwrap(), &Terms::default())
            .unwrap();
        provider.write(&at("identity")).unwrap();
        let mut config = Config::new(at("state"), at("identity"), "127.0.0.1");
        config.clock.assume_synchronised = true;
        Self {
            directory,
            authority,
            provider,
            config,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has the agent look for its broker where nobody listens: it waits and tries again.
    pub fn without_broker(&mut self) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        self.config.broker.port = socket.local_addr().unwrap().port();
    }

    pub fn identity(&self) -> Identity {
        self.config.identity().unwrap()
    }

    pub fn store(&self) -> Store {
        Store::open_in(&self.config.state_directory).unwrap()
    }

    pub fn create_net(&self, policy: Policy, channels: &[&str]) -> NetId {
        let channels: Vec<String> = channels.iter().map(|&c| c.to_owned()).collect();
        net::create(
            &mut self.store(),
            &self.identity(),
            "Elm Street",
            policy,
            &channels,
        )
        .unwrap()
    }

    pub fn membership(&self, net: NetId) -> Membership {
        net::membership(&self.store(), &self.identity(), net).unwrap()
    }

    /// Enrols a meter; its files are in the directory `name`.
    pub fn meter(&self, net: NetId, name: &str, minimum_group: u32) -> MeterConfig {
        let head = self.membership(net).head();
        let members = self.membership(net).members_at(head.index);
        let bundle = self
            .authority
            .enrol_meter(
                KeyPair::generate().unwrap(),
                net,
                &self.provider.certificate,
                LogHead {
                    index: head.index,
                    hash: head.hash,
                    members,
                },
                &Terms::default(),
            )
            .unwrap();
        bundle.write(&self.path(name)).unwrap();
        let part = bundle.meter.as_ref().unwrap();
        MeterConfig {
            key: bundle.key().unwrap(),
            certificate: bundle.certificate.clone(),
            ca: bundle.ca.clone(),
            provider: part.provider.clone(),
            checkpoint: Checkpoint::verify(&part.checkpoint, &bundle.administrator).unwrap(),
            floors: Floors {
                minimum_group,
                minimum_period: 1,
                ..Floors::default()
            },
            revoked: None,
        }
    }

    /// Writes the configuration as a file, for the program.
    pub fn config_file(&self) -> PathBuf {
        let path = self.path("provider.toml");
        let text = format!(
            "state_directory = \"state\"\n[broker]\nhost = \"127.0.0.1\"\nport = {}\n[identity]\ndirectory = \"identity\"\n[clock]\nassume_synchronised = true\n",
            self.config.broker.port
        );
        fs::write(&path, text).unwrap();
        path
    }
}

pub fn roster(net: NetId, round: u64, tag: u8, meters: u8) -> NetRecord {
    let submissions = (0..meters)
        .map(|meter| IncludedSubmission {
            meter: DeviceId([meter; 16]),
            frame: vec![meter; 100],
            commitments: vec![[meter; 32], [tag; 32]],
        })
        .collect();
    let record = ProviderRecord::Roster {
        round: Round(round),
        hash: roster_hash(round, tag),
        members: u32::from(meters) + 1,
        frame: [&b"roster"[..], &round.to_be_bytes(), &[tag]].concat(),
        submissions,
    };
    NetRecord { net, record }
}

pub fn roster_hash(round: u64, tag: u8) -> RosterHash {
    let mut hash = [tag; 32];
    hash[..8].copy_from_slice(&round.to_be_bytes());
    hash
}

pub fn aggregate(net: NetId, round: u64, tag: u8, meters: u8) -> NetRecord {
    let record = ProviderRecord::Aggregate(published(round, tag, meters));
    NetRecord { net, record }
}

pub fn published(round: u64, tag: u8, meters: u8) -> Published {
    Published {
        round: Round(round),
        members: u32::from(meters) + 1,
        included: (0..meters).map(|meter| DeviceId([meter; 16])).collect(),
        sums: vec![
            MilliwattHours(round * 1000),
            MilliwattHours(i64::MAX as u64),
        ],
        roster: roster_hash(round, tag),
        log_head: [5; 32],
        frame: format!("aggregate {round}").into_bytes(),
    }
}

/// Waits for a condition that nothing announces.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
