//! Reading back: what a provider starts again from, and what people look at.

use anyhow::{Context, ensure};
use dcnet::identity::DeviceId;
use dcnet::membership::Policy;
use dcnet::provider::{Published, SavedNet, SavedRoster};
use dcnet::time::{Period, Round};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension, Row, params};

use super::Store;

/// Newest rosters and aggregates that a provider starts again with.
const NEWEST: i64 = 4096;

/// A net as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSummary {
    /// The net.
    pub net: NetId,
    /// What people call it.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Names of its channels.
    pub channels: Vec<String>,
    /// Rounds that have a roster.
    pub rounds: u64,
    /// The newest round with an aggregate.
    pub newest_final: Option<Round>,
}

/// Where a round with a roster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundStatus {
    /// It waits for reveals.
    Pending,
    /// It has a verified aggregate.
    Final,
    /// It ended without an aggregate.
    Lost,
}

impl RoundStatus {
    pub(super) fn read(word: &str) -> Self {
        match word {
            "final" => Self::Final,
            "lost" => Self::Lost,
            _ => Self::Pending,
        }
    }

    /// The word used in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Final => "final",
            Self::Lost => "lost",
        }
    }
}

/// A round with a roster, without any meter's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundRow {
    /// The round.
    pub round: Round,
    /// Members of the net at its roster.
    pub members: u32,
    /// Included meters.
    pub included: u32,
    /// Where it stands.
    pub status: RoundStatus,
    /// The sum per channel; empty unless it is final.
    pub sums: Vec<MilliwattHours>,
}

/// A column that does not hold what the schema says.
fn bad(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Null, what.into())
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| bad(column, "a negative number"))
}

impl Store {
    pub(super) fn net_id(&self, net: NetId) -> anyhow::Result<i64> {
        self.database
            .query_row("SELECT id FROM nets WHERE net = ?1", [net.0], |row| {
                row.get(0)
            })
            .optional()?
            .with_context(|| {
                format!(
                    "there is no net {net} in {}; `provider-agent net list` shows the nets",
                    self.path.display()
                )
            })
    }

    /// The ids of all nets, in the order they were made.
    ///
    /// # Errors
    /// Input/output errors or a damaged file.
    pub fn net_ids(&self) -> anyhow::Result<Vec<NetId>> {
        let mut statement = self.database.prepare("SELECT net FROM nets ORDER BY id")?;
        let nets = statement.query_map([], |row| row.get(0).map(NetId))?;
        Ok(nets.collect::<Result<_, _>>()?)
    }

    /// All nets, in the order they were made.
    ///
    /// # Errors
    /// Input/output errors or a damaged file.
    pub fn nets(&self) -> anyhow::Result<Vec<NetSummary>> {
        let mut statement = self.database.prepare(
            "SELECT net, name, period_s, window_ms, minimum_group, minimum_neighbours, degree, id, \
             (SELECT count(*) FROM rosters WHERE net_id = nets.id), \
             (SELECT max(round) FROM rosters WHERE net_id = nets.id AND status = 'final') \
             FROM nets ORDER BY id",
        )?;
        let rows = statement.query_map([], |row| {
            let period = Period::from_secs(row.get(2)?).ok_or_else(|| bad(2, "no period"))?;
            let policy = Policy {
                period,
                window_ms: row.get(3)?,
                minimum_group: row.get(4)?,
                minimum_neighbours: row.get(5)?,
                degree: row.get(6)?,
            };
            let newest: Option<i64> = row.get(9)?;
            let summary = NetSummary {
                net: NetId(row.get(0)?),
                name: row.get(1)?,
                policy,
                channels: Vec::new(),
                rounds: unsigned(row, 8)?,
                newest_final: newest
                    .and_then(|round| u64::try_from(round).ok())
                    .map(Round),
            };
            let id: i64 = row.get(7)?;
            Ok((id, summary))
        })?;
        let mut nets = Vec::new();
        for row in rows {
            let (id, mut summary) = row?;
            summary.channels = self.channels(id)?;
            nets.push(summary);
        }
        Ok(nets)
    }

    /// One net.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn net(&self, net: NetId) -> anyhow::Result<NetSummary> {
        self.net_id(net)?;
        let found = self.nets()?.into_iter().find(|summary| summary.net == net);
        found.context("the net is gone")
    }

    fn channels(&self, net_id: i64) -> anyhow::Result<Vec<String>> {
        let mut statement = self
            .database
            .prepare_cached("SELECT name FROM channels WHERE net_id = ?1 ORDER BY channel")?;
        let names = statement.query_map([net_id], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    }

    /// All log entries of a net, Genesis first.
    ///
    /// # Errors
    /// There is no such net; an entry is missing; input/output errors.
    pub fn entries(&self, net: NetId) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut statement = self
            .database
            .prepare("SELECT place, frame FROM entries WHERE net_id = ?1 ORDER BY place")?;
        let rows = statement.query_map([self.net_id(net)?], |row| {
            Ok((unsigned(row, 0)?, row.get::<_, Vec<u8>>(1)?))
        })?;
        let mut entries = Vec::new();
        for (expected, row) in (0u64..).zip(rows) {
            let (place, frame) = row?;
            ensure!(
                place == expected,
                "{}: log entry {expected} of net {net} is missing; restore it from a backup",
                self.path.display()
            );
            entries.push(frame);
        }
        Ok(entries)
    }

    /// What a provider starts again from: all log entries, the newest 4096 rosters and
    /// all pending ones in the order they were issued, the newest 4096 aggregates.
    ///
    /// # Errors
    /// There is no such net; a damaged file; input/output errors.
    pub fn load(&self, net: NetId) -> anyhow::Result<SavedNet> {
        let net_id = self.net_id(net)?;
        let mut statement = self.database.prepare(
            "SELECT id, frame, status = 'pending' FROM rosters WHERE net_id = ?1 \
             AND (status = 'pending' OR id IN \
                  (SELECT id FROM rosters WHERE net_id = ?1 ORDER BY id DESC LIMIT ?2)) \
             ORDER BY id",
        )?;
        let rows = statement.query_map(params![net_id, NEWEST], |row| {
            let roster = SavedRoster {
                frame: row.get(1)?,
                submissions: Vec::new(),
                pending: row.get(2)?,
            };
            Ok((row.get::<_, i64>(0)?, roster))
        })?;
        let mut rosters = Vec::new();
        for row in rows {
            let (id, mut roster) = row?;
            if roster.pending {
                roster.submissions = self.submission_frames(id)?;
            }
            rosters.push(roster);
        }
        let mut statement = self.database.prepare(
            "SELECT round, aggregates.frame FROM aggregates JOIN rosters ON rosters.id = roster_id \
             WHERE net_id = ?1 ORDER BY round DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![net_id, NEWEST], |row| {
            Ok((Round(unsigned(row, 0)?), row.get(1)?))
        })?;
        let mut aggregates: Vec<(Round, Vec<u8>)> = rows.collect::<Result<_, _>>()?;
        aggregates.reverse();
        Ok(SavedNet {
            entries: self.entries(net)?,
            rosters,
            aggregates,
        })
    }

    fn submission_frames(&self, roster_id: i64) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut statement = self.database.prepare_cached(
            "SELECT frame FROM submission_frames WHERE roster_id = ?1 ORDER BY place",
        )?;
        let frames = statement.query_map([roster_id], |row| row.get(0))?;
        Ok(frames.collect::<Result<_, _>>()?)
    }

    /// The aggregate of the newest round that has one.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn newest_aggregate(&self, net: NetId) -> anyhow::Result<Option<Published>> {
        let found = self
            .database
            .query_row(
                "SELECT rosters.id, round, members, hash, log_head, aggregates.frame \
                 FROM aggregates JOIN rosters ON rosters.id = roster_id \
                 WHERE net_id = ?1 ORDER BY round DESC LIMIT 1",
                [self.net_id(net)?],
                |row| {
                    let published = Published {
                        round: Round(unsigned(row, 1)?),
                        members: row.get(2)?,
                        included: Vec::new(),
                        sums: Vec::new(),
                        roster: row.get(3)?,
                        log_head: row.get(4)?,
                        frame: row.get(5)?,
                    };
                    Ok((row.get::<_, i64>(0)?, published))
                },
            )
            .optional()?;
        let Some((roster_id, mut published)) = found else {
            return Ok(None);
        };
        published.included = self.included(roster_id)?;
        published.sums = self.sums(roster_id)?;
        Ok(Some(published))
    }

    fn included(&self, roster_id: i64) -> anyhow::Result<Vec<DeviceId>> {
        let mut statement = self
            .database
            .prepare_cached("SELECT meter FROM submissions WHERE roster_id = ?1 ORDER BY place")?;
        let meters = statement.query_map([roster_id], |row| row.get(0).map(DeviceId))?;
        Ok(meters.collect::<Result<_, _>>()?)
    }

    pub(super) fn sums(&self, roster_id: i64) -> anyhow::Result<Vec<MilliwattHours>> {
        let mut statement = self
            .database
            .prepare_cached("SELECT mwh FROM sums WHERE roster_id = ?1 ORDER BY channel")?;
        let sums = statement.query_map([roster_id], |row| unsigned(row, 0).map(MilliwattHours))?;
        Ok(sums.collect::<Result<_, _>>()?)
    }

    /// The meters on the roster of a round, in its order; empty if it has none.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn included_in(&self, net: NetId, round: Round) -> anyhow::Result<Vec<DeviceId>> {
        match self.roster_id(net, round)? {
            Some(id) => self.included(id),
            None => Ok(Vec::new()),
        }
    }

    fn roster_id(&self, net: NetId, round: Round) -> anyhow::Result<Option<i64>> {
        let found = self.database.query_row(
            "SELECT id FROM rosters WHERE net_id = ?1 AND round = ?2",
            params![self.net_id(net)?, super::number(round.0)?],
            |row| row.get(0),
        );
        Ok(found.optional()?)
    }

    /// A meter's reading commitments of a round, one per channel, for its bills. `None` if it
    /// is not on the round's roster, or the round is compacted.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn commitments(
        &self,
        net: NetId,
        round: Round,
        meter: DeviceId,
    ) -> anyhow::Result<Option<Vec<[u8; 32]>>> {
        let Some(roster_id) = self.roster_id(net, round)? else {
            return Ok(None);
        };
        let found: Option<Vec<u8>> = self
            .database
            .query_row(
                "SELECT commitments FROM submissions WHERE roster_id = ?1 AND meter = ?2",
                params![roster_id, meter.0],
                |row| row.get(0),
            )
            .optional()?;
        Ok(found.map(|bytes| bytes.as_chunks::<32>().0.to_vec()))
    }

    /// Calls `each` for the rounds with a roster in `from..to`, in order.
    ///
    /// # Errors
    /// There is no such net; input/output errors; an error of `each`.
    pub fn for_each_round(
        &self,
        net: NetId,
        from: Round,
        to: Round,
        mut each: impl FnMut(RoundRow) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut statement = self.database.prepare(
            "SELECT id, round, members, included, status FROM rosters \
             WHERE net_id = ?1 AND round >= ?2 AND round < ?3 ORDER BY round",
        )?;
        let bound = |round: Round| i64::try_from(round.0).unwrap_or(i64::MAX);
        let mut rows = statement.query(params![self.net_id(net)?, bound(from), bound(to)])?;
        while let Some(row) = rows.next()? {
            let status = RoundStatus::read(row.get_ref(4)?.as_str()?);
            each(RoundRow {
                round: Round(unsigned(row, 1)?),
                members: row.get(2)?,
                included: row.get(3)?,
                status,
                sums: self.sums(row.get(0)?)?,
            })?;
        }
        Ok(())
    }
}
