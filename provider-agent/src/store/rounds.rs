//! Reading back single rounds and what meters took part in, for people.

use dcnet::identity::DeviceId;
use dcnet::time::{Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use rusqlite::{OptionalExtension, params};

use super::load::{RoundStatus, unsigned};
use super::{Store, number};

/// Everything stored of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRound {
    /// The round.
    pub round: Round,
    /// Where it stands.
    pub status: RoundStatus,
    /// Why it was lost.
    pub lost_why: Option<String>,
    /// Who owed a reveal when it was lost.
    pub missing: Vec<DeviceId>,
    /// The signed roster.
    pub roster: Vec<u8>,
    /// When the roster was stored, by the system's clock.
    pub issued: Timestamp,
    /// The signed aggregate.
    pub aggregate: Option<Vec<u8>>,
    /// When the aggregate was stored.
    pub aggregated: Option<Timestamp>,
    /// The sum per channel; empty unless it is final.
    pub sums: Vec<MilliwattHours>,
    /// The reading commitments of each included meter, in the order of the roster; empty once
    /// the round is compacted.
    pub commitments: Vec<Vec<[u8; 32]>>,
    /// When its submissions were dropped.
    pub compacted: Option<Timestamp>,
}

/// The newest round of net ?1 (its number in the database) with meter ?2 on its roster, those
/// that are compacted included; null if there is none.
pub(crate) const LAST_ROUND: &str = "SELECT max(round) FROM \
    (SELECT * FROM (SELECT round FROM submissions JOIN rosters ON rosters.id = roster_id \
                    WHERE meter = ?2 AND net_id = ?1 ORDER BY roster_id DESC LIMIT 1) \
     UNION ALL SELECT round FROM last_rounds WHERE net_id = ?1 AND meter = ?2)";

impl Store {
    /// Everything stored of a round; `None` if it never had a roster.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn round(&self, net: NetId, round: Round) -> anyhow::Result<Option<StoredRound>> {
        let moment = |value: Option<i64>| {
            let millis = value.and_then(|value| u64::try_from(value).ok());
            millis.map(Timestamp)
        };
        let found = self
            .database
            .query_row(
                "SELECT id, status, lost_why, rosters.frame, rosters.stored_ms, \
                 aggregates.frame, aggregates.stored_ms, compacted_ms \
                 FROM rosters LEFT JOIN aggregates ON aggregates.roster_id = id \
                 WHERE net_id = ?1 AND round = ?2",
                params![self.net_id(net)?, number(round.0)?],
                |row| {
                    let stored = StoredRound {
                        round,
                        status: RoundStatus::read(row.get_ref(1)?.as_str()?),
                        lost_why: row.get(2)?,
                        missing: Vec::new(),
                        roster: row.get(3)?,
                        issued: moment(row.get(4)?).unwrap_or_default(),
                        aggregate: row.get(5)?,
                        aggregated: moment(row.get(6)?),
                        sums: Vec::new(),
                        commitments: Vec::new(),
                        compacted: moment(row.get(7)?),
                    };
                    Ok((row.get::<_, i64>(0)?, stored))
                },
            )
            .optional()?;
        let Some((id, mut stored)) = found else {
            return Ok(None);
        };
        stored.sums = self.sums(id)?;
        let mut statement = self.database.prepare_cached(
            "SELECT meter FROM missing_reveals WHERE roster_id = ?1 ORDER BY place",
        )?;
        let missing = statement.query_map([id], |row| row.get(0).map(DeviceId))?;
        stored.missing = missing.collect::<Result<_, _>>()?;
        let mut statement = self.database.prepare_cached(
            "SELECT commitments FROM submissions WHERE roster_id = ?1 ORDER BY place",
        )?;
        let commitments = statement.query_map([id], |row| {
            let bytes: Vec<u8> = row.get(0)?;
            Ok(bytes.as_chunks::<32>().0.to_vec())
        })?;
        stored.commitments = commitments.collect::<Result<_, _>>()?;
        Ok(Some(stored))
    }

    /// The newest round of a net with this meter on its roster; `None` if it never was on one.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn last_round_of(&self, net: NetId, meter: DeviceId) -> anyhow::Result<Option<Round>> {
        let mut statement = self.database.prepare_cached(LAST_ROUND)?;
        let newest: Option<i64> =
            statement.query_row(params![self.net_id(net)?, meter.0], |row| row.get(0))?;
        Ok(newest
            .and_then(|round| u64::try_from(round).ok())
            .map(Round))
    }

    /// How many rounds [`Self::for_each_round`] would give.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn count_rounds(&self, net: NetId, from: Round, to: Round) -> anyhow::Result<u64> {
        let bound = |round: Round| i64::try_from(round.0).unwrap_or(i64::MAX);
        let counted = self.database.query_row(
            "SELECT count(*) FROM rosters WHERE net_id = ?1 AND round >= ?2 AND round < ?3",
            params![self.net_id(net)?, bound(from), bound(to)],
            |row| unsigned(row, 0),
        );
        Ok(counted?)
    }
}
