//! What the operator says about a net as a whole.

use anyhow::Context;
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use rusqlite::{OptionalExtension, TransactionBehavior, params};

use super::{Store, number};

/// Where a net stands apart from its rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStanding {
    /// When it was closed, if it was.
    pub closed: Option<Timestamp>,
    /// If it was restored from a backup: no round that started earlier gets a roster.
    pub resume: Option<Timestamp>,
}

impl Store {
    /// Where a net stands.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn standing(&self, net: NetId) -> anyhow::Result<NetStanding> {
        let moment = |value: Option<i64>| {
            let millis = value.and_then(|value| u64::try_from(value).ok());
            millis.map(Timestamp)
        };
        let found = self.database.query_row(
            "SELECT closed_ms, resume_ms FROM nets WHERE id = ?1",
            [self.net_id(net)?],
            |row| {
                Ok(NetStanding {
                    closed: moment(row.get(0)?),
                    resume: moment(row.get(1)?),
                })
            },
        );
        found.optional()?.context("the net is gone")
    }

    /// Closes a net for good; a running agent takes that up within seconds. Everything stored
    /// stays. Gives whether it was open.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn close_net(&mut self, net: NetId, at: Timestamp) -> anyhow::Result<bool> {
        let id = self.net_id(net)?;
        let changed = self.database.execute(
            "UPDATE nets SET closed_ms = ?2 WHERE id = ?1 AND closed_ms IS NULL",
            params![id, number(at.as_millis())?],
        )?;
        Ok(changed > 0)
    }

    /// The nets that are closed, in the order they were made.
    ///
    /// # Errors
    /// Input/output errors or a damaged file.
    pub fn closed_nets(&self) -> anyhow::Result<Vec<NetId>> {
        let mut statement = self
            .database
            .prepare_cached("SELECT net FROM nets WHERE closed_ms IS NOT NULL ORDER BY id")?;
        let nets = statement.query_map([], |row| row.get(0).map(NetId))?;
        Ok(nets.collect::<Result<_, _>>()?)
    }

    /// Marks every net as restored: see [`NetStanding::resume`].
    pub(crate) fn resume_nets_after(&mut self, at: Timestamp) -> anyhow::Result<()> {
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("UPDATE nets SET resume_ms = ?1", [number(at.as_millis())?])?;
        Ok(transaction.commit()?)
    }

    /// When the newest roster or aggregate was stored, by the clock of then.
    pub(crate) fn newest_stored(&self) -> anyhow::Result<Option<Timestamp>> {
        let newest: Option<i64> = self.database.query_row(
            "SELECT max(stored_ms) FROM \
             (SELECT max(stored_ms) AS stored_ms FROM rosters \
              UNION ALL SELECT max(stored_ms) FROM aggregates)",
            [],
            |row| row.get(0),
        )?;
        Ok(newest.and_then(|ms| u64::try_from(ms).ok()).map(Timestamp))
    }
}
