//! One round as its operator looks at it, verified anew from what is stored.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use dcnet::aggregate::Aggregate;
use dcnet::commitment::{Commitment, commit};
use dcnet::membership::Membership;
use dcnet::opening::Opening;
use dcnet::roster::Roster;
use dcnet::time::Round;
use dcnet::units::MilliwattHours;
use serde::Serialize;

use crate::publication::{ByChannel, kwh, mean_power};
use crate::store::{Store, StoredRound};
use crate::utc;

/// A round with a roster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundView {
    /// The net, 32 hexadecimal digits.
    pub net: String,
    /// The number of the round.
    pub round: u64,
    /// First moment of the interval, RFC 3339 in UTC.
    pub start: String,
    /// First moment after it.
    pub end: String,
    /// `pending`, `final` or `lost`.
    pub status: &'static str,
    /// Why it was lost: a disruption, or that reveals were missing.
    pub lost_why: Option<String>,
    /// Who owed a reveal when it was lost: it was on the roster, and silent for a day.
    pub missing: Vec<String>,
    /// When the roster was stored.
    pub roster_issued: String,
    /// Hash of the roster, hexadecimal.
    pub roster_hash: String,
    /// Hash of the log entry as of which it was issued, hexadecimal.
    pub log_head: String,
    /// Index of that entry.
    pub log_index: u64,
    /// Edges between included meters that only one end used.
    pub half_open_edges: usize,
    /// Members as of that entry.
    pub members: u32,
    /// Meters in the sum.
    pub included: Vec<String>,
    /// Members as of that entry that are not in it.
    pub absent: Vec<String>,
    /// When the aggregate was stored.
    pub aggregated: Option<String>,
    /// The sum in mWh, exact; `None` unless the round is final.
    pub sum_mwh: Option<ByChannel<u64>>,
    /// The sum in kWh, for reading.
    pub sum_kwh: Option<ByChannel<f64>>,
    /// Mean power of all included meters together over the interval, in W.
    pub mean_power_w: Option<ByChannel<f64>>,
    /// What of it was verified anew.
    pub verified: Verified,
    /// When its submissions were dropped, if they were.
    pub compacted: Option<String>,
}

/// What was verified when the round was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The roster is signed by the provider's key of its log head.
    pub roster: bool,
    /// The aggregate is signed likewise, and names this roster.
    pub aggregate: bool,
    /// The sums open the sum of the meters' stored reading commitments; false once those are
    /// dropped.
    pub commitments: bool,
}

impl RoundView {
    /// Reads and verifies a round.
    ///
    /// # Errors
    /// It never had a roster; what is stored does not verify; input/output errors.
    pub fn read(store: &Store, log: &Membership, round: Round) -> anyhow::Result<Self> {
        let net = log.net();
        let stored = store.round(net, round)?.with_context(|| {
            format!(
                "round {round} of net {net} has no roster; `provider-agent export --net {net}` \
                 lists the rounds that have"
            )
        })?;
        let roster = Roster::verify(&stored.roster, log)
            .with_context(|| format!("the stored roster of round {round} does not verify"))?;
        ensure!(
            roster.round == round,
            "the roster stored for round {round} is of round {}",
            roster.round
        );
        let (aggregate, commitments) = verify_sums(&stored, &roster, log)
            .with_context(|| format!("the stored aggregate of round {round}"))?;
        let genesis = log.genesis();
        let period = genesis.policy.period;
        let sums = |stored: &StoredRound| aggregate.then(|| stored.sums.clone());
        let on_roster: BTreeSet<_> = roster.members().collect();
        let (mut included, mut absent) = (Vec::new(), Vec::new());
        for (place, member) in (0..).zip(log.members()) {
            if on_roster.contains(&place) {
                included.push(member.id.to_string());
            } else if member.is_active_at(roster.head_index) {
                absent.push(member.id.to_string());
            }
        }
        let by_channel = |sums: &[MilliwattHours]| {
            let channels = genesis.channels.iter().cloned();
            channels.zip(sums.iter().copied()).collect::<Vec<_>>()
        };
        let sums = sums(&stored).map(|sums| by_channel(&sums));
        Ok(Self {
            net: net.to_string(),
            round: round.0,
            start: utc::text(round.start(period)),
            end: utc::text(round.end(period)),
            status: stored.status.as_str(),
            lost_why: stored.lost_why,
            missing: stored.missing.iter().map(ToString::to_string).collect(),
            roster_issued: utc::text(stored.issued),
            roster_hash: hex::encode(roster.hash),
            log_head: hex::encode(roster.log_head),
            log_index: roster.head_index,
            half_open_edges: roster.half_open.len(),
            members: log.members_at(roster.head_index),
            included,
            absent,
            aggregated: stored.aggregated.map(utc::text),
            sum_mwh: sums.as_deref().map(|sums| each(sums, |sum| sum.0)),
            sum_kwh: sums.as_deref().map(|sums| each(sums, kwh)),
            mean_power_w: sums
                .as_deref()
                .map(|sums| each(sums, |sum| mean_power(sum, period))),
            verified: Verified {
                roster: true,
                aggregate,
                commitments,
            },
            compacted: stored.compacted.map(utc::text),
        })
    }
}

fn each<T>(sums: &[(String, MilliwattHours)], value: impl Fn(MilliwattHours) -> T) -> ByChannel<T> {
    let sums = sums.iter();
    ByChannel(
        sums.map(|(name, sum)| (name.clone(), value(*sum)))
            .collect(),
    )
}

/// Whether there is an aggregate, and whether the commitments that it must open are there.
fn verify_sums(
    stored: &StoredRound,
    roster: &Roster,
    log: &Membership,
) -> anyhow::Result<(bool, bool)> {
    let Some(frame) = &stored.aggregate else {
        return Ok((false, false));
    };
    let aggregate = Aggregate::verify_in(frame, log).context("does not verify")?;
    ensure!(
        aggregate.roster == roster.hash && aggregate.round == roster.round,
        "is of another roster"
    );
    let sums = aggregate.sums.iter().map(|sum| sum.energy);
    ensure!(
        sums.eq(stored.sums.iter().copied()),
        "has other sums than the database"
    );
    if stored.commitments.is_empty() {
        return Ok((true, false));
    }
    for (channel, sum) in aggregate.sums.iter().enumerate() {
        let points = stored.commitments.iter().map(|meter| {
            let bytes = meter.get(channel).context("lacks commitments")?;
            Ok(Commitment::from_bytes(bytes)?)
        });
        let points = points.collect::<anyhow::Result<Vec<_>>>()?;
        let opening = Opening {
            value: sum.energy.0.into(),
            blinding: sum.blinding,
        };
        ensure!(
            commit(&opening) == points.into_iter().sum(),
            "does not open the sum of the meters' commitments of channel {channel}"
        );
    }
    Ok((true, true))
}
