//! What the page reads from the database, by connections of its own that cannot write, and
//! the membership logs, verified entry by entry and kept so that only new ones cost time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use dcnet::identity::{CaCertificate, Certificate, DeviceId};
use dcnet::membership::{Membership, Policy};
use dcnet::roster::Roster;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::Config;
use crate::store::{LAST_ROUND, RoundStatus};

/// All nets. Of their pending rounds only the index knows, however many others there are.
const NETS: &str = "SELECT id, net, name, period_s, window_ms, minimum_group, minimum_neighbours, degree, \
     closed_ms, resume_ms, \
     (SELECT count(*) FROM rosters INDEXED BY pending_rosters \
      WHERE net_id = nets.id AND status = 'pending') \
     FROM nets ORDER BY id";

/// The newest ?2 rounds of a net that are pending or lost.
const UNFINISHED: &str = "SELECT round, status = 'lost', included, lost_why \
     FROM rosters INDEXED BY rosters_unfinished \
     WHERE net_id = ?1 AND status <> 'final' ORDER BY round DESC LIMIT ?2";

/// How long a reader waits for the daemon's own writes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads the provider's database.
pub(super) struct Records {
    path: PathBuf,
    provider: Certificate,
    ca: CaCertificate,
    logs: Mutex<BTreeMap<NetId, Membership>>,
}

/// A net with the newest of its rounds.
#[derive(Clone, Debug)]
pub(super) struct NetRow {
    pub(super) net: NetId,
    pub(super) name: String,
    pub(super) policy: Policy,
    pub(super) channels: Vec<String>,
    /// When it was closed, if it was.
    pub(super) closed: Option<Timestamp>,
    /// If it was restored from a backup: no round that started earlier gets a roster.
    pub(super) resume: Option<Timestamp>,
    /// The newest round with a sum.
    pub(super) newest: Option<FinalRow>,
    /// Rounds that wait for reveals.
    pub(super) pending: u64,
}

/// A round with its sum.
#[derive(Clone, Debug)]
pub(super) struct FinalRow {
    pub(super) round: Round,
    pub(super) included: u32,
    /// By channel.
    pub(super) sums: Vec<MilliwattHours>,
}

/// The newest roster of a net.
#[derive(Clone, Debug, Default)]
pub(super) struct NewestRoster {
    /// Who is on it.
    pub(super) included: BTreeSet<DeviceId>,
    /// Its frame.
    pub(super) frame: Vec<u8>,
}

/// The rounds of one bin of a load curve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BinRow {
    pub(super) finals: u64,
    pub(super) pending: u64,
    pub(super) lost: u64,
    /// The sums of the final ones, added up, by channel.
    pub(super) energy: BTreeMap<usize, MilliwattHours>,
}

/// A round that is not final, with why.
#[derive(Clone, Debug)]
pub(super) struct UnfinishedRow {
    pub(super) round: Round,
    pub(super) status: RoundStatus,
    pub(super) included: u32,
    pub(super) why: Option<String>,
}

impl Records {
    /// Reads the database of a configuration, with the keys that its logs are verified by.
    ///
    /// # Errors
    /// The identity cannot be used.
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let identity = config.identity()?;
        Ok(Self {
            path: config.store_path(),
            provider: identity.certificate,
            ca: identity.ca,
            logs: Mutex::default(),
        })
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(&self.path, flags)
            .with_context(|| format!("cannot open {}", self.path.display()))?;
        database.busy_timeout(PATIENCE)?;
        database.pragma_update(None, "trusted_schema", "OFF")?;
        Ok(database)
    }

    /// Reads something small from the database.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let count = "SELECT count(*) FROM nets";
        let _: i64 = self.connect()?.query_row(count, [], |row| row.get(0))?;
        Ok(())
    }

    /// All nets, in the order they were made.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn nets(&self) -> anyhow::Result<Vec<NetRow>> {
        let database = self.connect()?;
        let mut statement = database.prepare(NETS)?;
        let mut rows = statement.query([])?;
        let mut nets = Vec::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let policy = Policy {
                period: Period::from_secs(row.get(3)?).context("a net without a period")?,
                window_ms: row.get(4)?,
                minimum_group: row.get(5)?,
                minimum_neighbours: row.get(6)?,
                degree: row.get(7)?,
            };
            let mut names =
                database.prepare("SELECT name FROM channels WHERE net_id = ?1 ORDER BY channel")?;
            let names = names.query_map([id], |row| row.get(0))?;
            nets.push(NetRow {
                net: NetId(row.get(1)?),
                name: row.get(2)?,
                policy,
                channels: names.collect::<Result<_, _>>()?,
                closed: moment(row.get(8)?),
                resume: moment(row.get(9)?),
                newest: newest_final(&database, id)?,
                pending: unsigned(row.get(10)?),
            });
        }
        Ok(nets)
    }

    /// One net; `None` if there is none of this id.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn net(&self, net: NetId) -> anyhow::Result<Option<NetRow>> {
        Ok(self.nets()?.into_iter().find(|row| row.net == net))
    }

    /// The newest roster of a net; empty if there is none.
    ///
    /// # Errors
    /// There is no such net, or the database cannot be read.
    pub(super) fn newest_roster(&self, net: NetId) -> anyhow::Result<NewestRoster> {
        let database = self.connect()?;
        let newest: Option<(i64, Vec<u8>)> = database
            .query_row(
                "SELECT id, frame FROM rosters WHERE net_id = ?1 ORDER BY id DESC LIMIT 1",
                [net_id(&database, net)?],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((id, frame)) = newest else {
            return Ok(NewestRoster::default());
        };
        let mut statement =
            database.prepare("SELECT meter FROM submissions WHERE roster_id = ?1")?;
        let meters = statement.query_map([id], |row| row.get(0).map(DeviceId))?;
        Ok(NewestRoster {
            included: meters.collect::<Result<_, _>>()?,
            frame,
        })
    }

    /// The newest round with each of these meters on its roster.
    ///
    /// # Errors
    /// There is no such net, or the database cannot be read.
    pub(super) fn last_included(
        &self,
        net: NetId,
        meters: &[DeviceId],
    ) -> anyhow::Result<BTreeMap<DeviceId, Round>> {
        let database = self.connect()?;
        let id = net_id(&database, net)?;
        let mut statement = database.prepare(LAST_ROUND)?;
        let mut found = BTreeMap::new();
        for meter in meters {
            let round: Option<i64> = statement.query_row(params![id, meter.0], |row| row.get(0))?;
            found.extend(round.map(|round| (*meter, Round(unsigned(round)))));
        }
        Ok(found)
    }

    /// The rounds `from..to` with a roster, in bins of `seconds`, by the number of the bin
    /// since 1970.
    ///
    /// # Errors
    /// There is no such net, or the database cannot be read.
    pub(super) fn bins(
        &self,
        net: NetId,
        period: Period,
        seconds: u64,
        (from, to): (Round, Round),
    ) -> anyhow::Result<BTreeMap<u64, BinRow>> {
        let database = self.connect()?;
        let bound = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let span = params![
            net_id(&database, net)?,
            bound(from.0),
            bound(to.0),
            period.as_secs(),
            bound(seconds)
        ];
        let mut bins: BTreeMap<u64, BinRow> = BTreeMap::new();
        let mut statement = database.prepare(
            "SELECT round * ?4 / ?5, sum(status = 'final'), sum(status = 'pending'), sum(status = 'lost') \
             FROM rosters WHERE net_id = ?1 AND round >= ?2 AND round < ?3 GROUP BY 1",
        )?;
        let mut rows = statement.query(span)?;
        while let Some(row) = rows.next()? {
            let bin = bins.entry(unsigned(row.get(0)?)).or_default();
            bin.finals = unsigned(row.get(1)?);
            bin.pending = unsigned(row.get(2)?);
            bin.lost = unsigned(row.get(3)?);
        }
        let mut statement = database.prepare(
            "SELECT round * ?4 / ?5, channel, total(mwh) FROM rosters JOIN sums ON roster_id = rosters.id \
             WHERE net_id = ?1 AND round >= ?2 AND round < ?3 GROUP BY 1, 2",
        )?;
        let mut rows = statement.query(span)?;
        while let Some(row) = rows.next()? {
            let channel = usize::try_from(row.get::<_, i64>(1)?)?;
            // A double: the sum of many sums may be more than fits into the database.
            let energy: f64 = row.get(2)?;
            let bin = bins.entry(unsigned(row.get(0)?)).or_default();
            bin.energy.insert(channel, MilliwattHours(energy as u64));
        }
        Ok(bins)
    }

    /// The first round of a net that has a roster.
    ///
    /// # Errors
    /// There is no such net, or the database cannot be read.
    pub(super) fn first_round(&self, net: NetId) -> anyhow::Result<Option<Round>> {
        let database = self.connect()?;
        let first: Option<i64> = database.query_row(
            "SELECT min(round) FROM rosters WHERE net_id = ?1",
            [net_id(&database, net)?],
            |row| row.get(0),
        )?;
        Ok(first.map(|first| Round(unsigned(first))))
    }

    /// The newest `most` rounds that are pending or lost, newest first.
    ///
    /// # Errors
    /// There is no such net, or the database cannot be read.
    pub(super) fn unfinished(&self, net: NetId, most: u32) -> anyhow::Result<Vec<UnfinishedRow>> {
        let database = self.connect()?;
        let mut statement = database.prepare(UNFINISHED)?;
        let rows = statement.query_map(params![net_id(&database, net)?, most], |row| {
            let is_lost: bool = row.get(1)?;
            Ok(UnfinishedRow {
                round: Round(unsigned(row.get(0)?)),
                status: if is_lost {
                    RoundStatus::Lost
                } else {
                    RoundStatus::Pending
                },
                included: row.get(2)?,
                why: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Looks at the membership of a net, with all entries that are stored by now.
    ///
    /// # Errors
    /// There is no such net, its log does not verify, or the database cannot be read.
    pub(super) fn membership<T>(
        &self,
        net: NetId,
        look: impl FnOnce(&Membership) -> T,
    ) -> anyhow::Result<T> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that one that is found wrong is not looked at again.
        let log = logs.remove(&net);
        let newest = log.as_ref().map(|log| log.head().index);
        let entries = self.entries_after(net, newest)?;
        let mut entries = entries.iter();
        let mut log = match log {
            Some(log) => log,
            None => {
                let genesis = entries.next().context("the net has no Genesis")?;
                Membership::open(genesis, &self.provider, &self.ca)?
            }
        };
        for entry in entries {
            log.append(entry)?;
        }
        ensure!(log.net() == net, "the stored Genesis is of another net");
        Ok(look(logs.entry(net).or_insert(log)))
    }

    fn entries_after(&self, net: NetId, newest: Option<u64>) -> anyhow::Result<Vec<Vec<u8>>> {
        let database = self.connect()?;
        let newest = newest.and_then(|newest| i64::try_from(newest).ok());
        let mut statement = database
            .prepare("SELECT frame FROM entries WHERE net_id = ?1 AND place > ?2 ORDER BY place")?;
        let known = params![net_id(&database, net)?, newest.unwrap_or(-1)];
        let frames = statement.query_map(known, |row| row.get(0))?;
        Ok(frames.collect::<Result<_, _>>()?)
    }
}

impl NetRow {
    /// If it was restored and no later round has a sum yet: no round that started before this
    /// moment gets a roster, and nobody joins, leaves or draws.
    pub(super) fn waits_since(&self) -> Option<Timestamp> {
        let period = self.policy.period;
        let newest = self
            .newest
            .as_ref()
            .map(|newest| newest.round.start(period));
        let is_later = |at: &Timestamp| newest.is_none_or(|start| start < *at);
        self.resume.filter(is_later)
    }
}

impl NewestRoster {
    /// The roster itself; `None` if there is none, or not one of this log.
    pub(super) fn read(&self, membership: &Membership) -> Option<Roster> {
        Roster::verify(&self.frame, membership).ok()
    }
}

/// Of a column that the schema keeps from being negative.
fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn moment(value: Option<i64>) -> Option<Timestamp> {
    value.map(|value| Timestamp(unsigned(value)))
}

fn net_id(database: &Connection, net: NetId) -> anyhow::Result<i64> {
    let id = "SELECT id FROM nets WHERE net = ?1";
    let found = database.query_row(id, [net.0], |row| row.get(0));
    found.optional()?.context("there is no such net")
}

fn newest_final(database: &Connection, net_id: i64) -> anyhow::Result<Option<FinalRow>> {
    let newest = database
        .query_row(
            "SELECT id, round, included FROM rosters WHERE net_id = ?1 AND status = 'final' \
             ORDER BY round DESC LIMIT 1",
            [net_id],
            |row| Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let Some((id, round, included)) = newest else {
        return Ok(None);
    };
    let mut sums =
        database.prepare("SELECT mwh FROM sums WHERE roster_id = ?1 ORDER BY channel")?;
    let sums = sums.query_map([id], |row| {
        row.get(0).map(|mwh| MilliwattHours(unsigned(mwh)))
    })?;
    Ok(Some(FinalRow {
        round: Round(unsigned(round)),
        included,
        sums: sums.collect::<Result<_, _>>()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    /// How SQLite would answer, one step a line.
    fn plan(query: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state/provider.sqlite")).unwrap();
        let database = Connection::open(store.path()).unwrap();
        let mut statement = database
            .prepare(&format!("EXPLAIN QUERY PLAN {query}"))
            .unwrap();
        let parameters = statement.parameter_count();
        let steps = statement
            .query_map(rusqlite::params_from_iter(vec![1; parameters]), |row| {
                row.get(3)
            })
            .unwrap();
        let steps: Vec<String> = steps.collect::<Result<_, _>>().unwrap();
        steps.join("\n")
    }

    #[test]
    fn what_is_asked_every_few_seconds_does_not_walk_through_all_rounds() {
        let nets = plan(NETS);
        assert!(nets.contains("INDEX pending_rosters (net_id=?)"), "{nets}");
        assert!(!nets.contains("rosters_in_order"), "{nets}");
        let unfinished = plan(UNFINISHED);
        assert_eq!(
            unfinished,
            "SEARCH rosters USING INDEX rosters_unfinished (net_id=?)"
        );
        let last = plan(LAST_ROUND);
        assert!(last.contains("submissions_of_meter (meter=?)"), "{last}");
        for whole in ["SCAN rosters", "SCAN submissions", "TEMP B-TREE"] {
            assert!(
                !last.contains(whole) && !nets.contains(whole),
                "{last}\n{nets}"
            );
        }
    }
}
