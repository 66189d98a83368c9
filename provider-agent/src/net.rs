//! Making a net, and what the gateway administrator must know of it.

use std::time::Duration;

use anyhow::{Context, ensure};
use dcnet::frame::Unverified;
use dcnet::membership::{Membership, NewNet, Policy};
use dcnet::time::{Period, Timestamp};
use dcnet::topic::NetId;
use serde::Serialize;

use crate::identity::Identity;
use crate::store::{NetSummary, Store};
use crate::utc;

/// Signs the Genesis of a new net and stores it; a running agent takes it up within seconds.
///
/// # Errors
/// A policy, name or channel out of bounds, or a store that cannot be written.
pub fn create(
    store: &mut Store,
    identity: &Identity,
    name: &str,
    policy: Policy,
    channels: &[String],
) -> anyhow::Result<NetId> {
    policy
        .check()
        .map_err(|field| anyhow::anyhow!("the {field} is out of bounds{}", bounds(field)))?;
    ensure!(
        (1..=64).contains(&name.len()),
        "the name of a net has 1 to 64 bytes"
    );
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).context("the operating system gives no randomness")?;
    let net = NewNet {
        name: name.to_owned(),
        policy,
        channels: channels.to_vec(),
        salt,
    };
    let genesis = net.sign(
        &identity.key,
        &identity.certificate,
        &identity.ca,
        utc::now(),
    );
    // Read back as a meter reads it, so that no net is stored that they would refuse.
    let membership = Membership::open(&genesis, &identity.certificate, &identity.ca)
        .context("meters would refuse such a net")?;
    store.create_net(&membership, &genesis)?;
    Ok(membership.net())
}

fn bounds(field: &str) -> &'static str {
    match field {
        "window" => ": 100 ms up to the period",
        "minimum group" => ": 3 to 65536",
        "minimum neighbours" | "degree" => ": 3 to 1024",
        _ => "",
    }
}

/// The period of a round from a duration such as `15m`.
///
/// # Errors
/// Not whole seconds that divide a day.
pub fn period(duration: Duration) -> anyhow::Result<Period> {
    let whole = duration.subsec_nanos() == 0;
    u32::try_from(duration.as_secs())
        .ok()
        .filter(|_| whole)
        .and_then(Period::from_secs)
        .with_context(|| {
            format!(
                "a period of {duration:?} does not divide a day evenly; write for instance 2s, 30s, 5m, 15m, 1h"
            )
        })
}

/// A net as people and the gateway administrator look at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Its id, 32 hexadecimal digits.
    pub net: String,
    /// What people call it.
    pub name: String,
    /// Length of a round in seconds.
    pub period_s: u32,
    /// How long submissions are taken after a round's end, in milliseconds.
    pub window_ms: u32,
    /// Fewest meters in a sum.
    pub minimum_group: u32,
    /// Fewest full drawn edges of a meter.
    pub minimum_neighbours: u32,
    /// Neighbours that a draw draws.
    pub degree: u32,
    /// Names of the channels.
    pub channels: Vec<String>,
    /// Members as of the newest log entry.
    pub members: u32,
    /// Index of the newest log entry.
    pub log_index: u64,
    /// Its hash, 64 hexadecimal digits.
    pub log_head: String,
    /// Rounds that have a roster.
    pub rounds: u64,
    /// The newest round with an aggregate.
    pub newest_round: Option<u64>,
    /// When the net was closed, RFC 3339 in UTC; `None` while it is open.
    pub closed: Option<String>,
    /// If it was restored from a backup: rounds that started before this moment get no roster.
    pub resume: Option<String>,
}

impl Description {
    /// Describes a stored net; its whole log is verified.
    ///
    /// # Errors
    /// There is no such net, or its log does not verify.
    pub fn read(store: &Store, identity: &Identity, net: NetId) -> anyhow::Result<Self> {
        let NetSummary {
            name,
            policy,
            channels,
            rounds,
            newest_final,
            ..
        } = store.net(net)?;
        let membership = membership(store, identity, net)?;
        let head = membership.head();
        let standing = store.standing(net)?;
        Ok(Self {
            net: net.to_string(),
            name,
            period_s: policy.period.as_secs(),
            window_ms: policy.window_ms,
            minimum_group: policy.minimum_group,
            minimum_neighbours: policy.minimum_neighbours,
            degree: policy.degree,
            channels,
            members: membership.members_at(head.index),
            log_index: head.index,
            log_head: hex::encode(head.hash),
            rounds,
            newest_round: newest_final.map(|round| round.0),
            closed: standing.closed.map(utc::text),
            resume: standing.resume.map(utc::text),
        })
    }

    /// What `gateway-admin enrol-meter` must be given for a checkpoint of this log.
    pub fn enrolment_options(&self) -> String {
        format!(
            "--net {} --log-index {} --log-head {} --members {}",
            self.net, self.log_index, self.log_head, self.members
        )
    }
}

/// When the entries of a log were signed, as the provider says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogDates(Vec<Timestamp>);

impl LogDates {
    /// Reads the dates of a stored log, which need not have been verified.
    ///
    /// # Errors
    /// There is no such net; an entry is no frame.
    pub fn read(store: &Store, net: NetId) -> anyhow::Result<Self> {
        let entries = store.entries(net)?;
        let dates = entries.iter().enumerate().map(|(index, entry)| {
            let frame = Unverified::parse(entry)
                .with_context(|| format!("log entry {index} of net {net} in the database"))?;
            Ok(frame.claimed().timestamp)
        });
        Ok(Self(dates.collect::<anyhow::Result<_>>()?))
    }

    /// The date of an entry, RFC 3339 in UTC; `None` if there is no such entry.
    pub fn text(&self, index: u64) -> Option<String> {
        let index = usize::try_from(index).ok()?;
        self.0.get(index).copied().map(utc::text)
    }
}

/// Verifies the stored log of a net from its Genesis on.
///
/// # Errors
/// There is no such net, or its log does not verify.
pub fn membership(store: &Store, identity: &Identity, net: NetId) -> anyhow::Result<Membership> {
    let entries = store.entries(net)?;
    let place = |index: usize| format!("log entry {index} of net {net} in the database");
    let genesis = entries.first().context("the net has no Genesis")?;
    let mut membership =
        Membership::open(genesis, &identity.certificate, &identity.ca).with_context(|| place(0))?;
    for (index, entry) in entries.iter().enumerate().skip(1) {
        membership.append(entry).with_context(|| place(index))?;
    }
    ensure!(
        membership.net() == net,
        "the stored Genesis is of net {}, not {net}",
        membership.net()
    );
    Ok(membership)
}
