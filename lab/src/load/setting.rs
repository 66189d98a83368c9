//! What is there before anybody connects: certificates, a log in which everybody has drawn
//! neighbours, and the configurations of broker and provider.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use dcnet::identity::PublicKey;
use dcnet::provider::ProviderRecord;
use dcnet::time::Period;
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use gateway_admin::{Authority, KeyPair, Terms};
use link::Journal;
use meter_agent::clock::utc_timestamp;
use provider_agent::Store;
use provider_agent::store::NetRecord;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use simulation::synthetic::{SyntheticLog, SyntheticMeter};
use tempfile::TempDir;

use super::meter::{Household, Rules};
use crate::chaos::process::{Process, Role};
use crate::chaos::setting::{broker_configuration, free_port, provider_configuration, write};
use crate::policy;
use crate::system::{self, third_party};
use crate::tls;

/// Everything that a run needs, but nothing that runs.
pub struct Setting {
    /// The net.
    pub net: NetId,
    /// The provider's key.
    pub provider_key: PublicKey,
    /// The port of the broker.
    pub port: u16,
    /// What all meters use together in each round.
    pub sum: MilliwattHours,
    /// Who takes part.
    pub households: Vec<Household>,
    /// What they share.
    pub rules: Arc<Rules>,
    /// The provider.
    pub provider: Process,
    /// The broker.
    pub broker: Process,
    /// Where everything is; dropped after the processes.
    pub directory: TempDir,
}

impl Setting {
    /// Makes all of it in a new directory.
    ///
    /// # Errors
    /// Whatever cannot be made.
    pub fn make(meters: u32, period: Period) -> anyhow::Result<Self> {
        let directory = system::directory()?;
        let root = directory.path().to_owned();
        let authority = Authority::init(&root.join("authority"))?;
        let port = free_port()?;
        let config = system::provider_config(&root, port);
        let rules = policy::net(meters, period);
        let bundle = authority.enrol_provider(KeyPair::generate()?, &Terms::default())?;
        bundle.write(&config.identity.directory)?;
        let (net, head) = system::open_net(&config, rules)?;
        authority
            .enrol_third_party(KeyPair::generate()?, Some(net), &Terms::default())?
            .write(&third_party(&root))?;

        let identity = config.identity()?;
        let mut store = Store::open_in(&config.state_directory)?;
        let now = utc_timestamp();
        let mut log = SyntheticLog::new(net, identity.key.clone(), head.hash, now);
        let mut enrolled = Vec::new();
        for _ in 0..meters {
            let pair = KeyPair::generate()?;
            let (key, pem) = (pair.device_key(), pair.to_pem()?);
            let terms = Terms::default();
            let meter = authority.enrol_meter(pair, net, &bundle.certificate, head, &terms)?;
            log.join(&key, &meter.certificate);
            enrolled.push((key, pem, meter.certificate));
        }
        for (key, _, _) in &enrolled {
            log.draw(key);
        }
        let records: Vec<NetRecord> = (head.index + 1..)
            .zip(log.entries)
            .map(|(index, entry)| NetRecord {
                net,
                record: ProviderRecord::Entry {
                    index,
                    hash: entry.hash,
                    kind: entry.kind,
                    frame: entry.frame,
                },
            })
            .collect();
        store.commit(&records)?;
        let membership = provider_agent::net::membership(&store, &identity, net)?;
        drop(store);

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(bundle.ca.der().to_vec()))?;
        let graph = membership.graph();
        let head = membership.head().index;
        let mut households = Vec::new();
        let mut sum = MilliwattHours(0);
        for (number, (key, pem, certificate)) in (0..).zip(enrolled) {
            let neighbours = graph.neighbours(number, head).len();
            let energy = 100_000 + u64::from(number);
            sum = sum
                .checked_add(MilliwattHours(energy))
                .context("too much energy")?;
            let mut meter = SyntheticMeter::new(key, neighbours, energy);
            meter.minimum_group = rules.minimum_group;
            households.push(Household {
                number: number.into(),
                meter,
                tls: tls::of(&roots, Some((certificate.der(), &pem)))?,
            });
        }

        let process = |role, name: &str, configuration: &str| {
            let config = root.join(format!("{name}.toml"));
            write(&config, configuration)?;
            anyhow::Ok(Process::new(role, config, root.join(format!("{name}.log"))))
        };
        let broker = broker_configuration(&authority, &root, port)?;
        // All of them come from one address.
        let broker = format!(
            "{broker}[limits]\nconnections_per_address = {}\n",
            meters + 16
        );
        Ok(Self {
            net,
            provider_key: *bundle.certificate.key(),
            port,
            sum,
            households,
            rules: Arc::new(Rules {
                net,
                port,
                period,
                window_ms: rules.window_ms,
                membership,
                newest: Mutex::new(None),
                last_submission: Mutex::default(),
                closed: Mutex::default(),
            }),
            provider: process(
                Role::Provider,
                "provider",
                &provider_configuration(&config)?,
            )?,
            broker: process(Role::Broker, "broker", &broker)?,
            directory,
        })
    }
}
