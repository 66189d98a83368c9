//! Making old rounds small: who submitted what goes, in transactions of one round each, so that
//! the rounds under way never wait for long.

use dcnet::time::{Round, Timestamp};
use dcnet::topic::NetId;
use rusqlite::{OptionalExtension, TransactionBehavior, params};

use super::{Store, number};

/// Pages given back to the file system in one transaction.
const PAGES: u32 = 256;

impl Store {
    /// Drops the submissions of the oldest round of a net that started before `before`, is
    /// final or lost, and has some: commitments, and the frames kept for an audit. Roster,
    /// aggregate and sums stay; which round each meter took part in last is noted. The newest
    /// final round of a net is never compacted. Gives the round.
    ///
    /// # Errors
    /// There is no such net; input/output errors.
    pub fn compact_round(
        &mut self,
        net: NetId,
        before: Round,
        now: Timestamp,
    ) -> anyhow::Result<Option<Round>> {
        let net_id = self.net_id(net)?;
        let before = i64::try_from(before.0).unwrap_or(i64::MAX);
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: Option<(i64, i64)> = transaction
            .prepare_cached(
                "SELECT id, round FROM rosters \
                 WHERE net_id = ?1 AND round < ?2 AND compacted_ms IS NULL \
                   AND status <> 'pending' AND round <> \
                   (SELECT coalesce(max(round), -1) FROM rosters \
                    WHERE net_id = ?1 AND status = 'final') \
                 ORDER BY round LIMIT 1",
            )?
            .query_row(params![net_id, before], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((roster_id, round)) = found else {
            return Ok(None);
        };
        transaction
            .prepare_cached(
                "INSERT INTO last_rounds (net_id, meter, round) \
                 SELECT ?1, meter, ?3 FROM submissions WHERE roster_id = ?2 \
                 ON CONFLICT (net_id, meter) DO UPDATE SET round = max(round, excluded.round)",
            )?
            .execute(params![net_id, roster_id, round])?;
        for delete in [
            "DELETE FROM submission_frames WHERE roster_id = ?1",
            "DELETE FROM submissions WHERE roster_id = ?1",
        ] {
            transaction.prepare_cached(delete)?.execute([roster_id])?;
        }
        transaction
            .prepare_cached("UPDATE rosters SET compacted_ms = ?2 WHERE id = ?1")?
            .execute(params![roster_id, number(now.as_millis())?])?;
        transaction.commit()?;
        Ok(u64::try_from(round).ok().map(Round))
    }

    /// Gives at most 1 MiB of free pages back to the file system; whether there were so many
    /// that it is worth calling again. A file that was made without `auto_vacuum` keeps its
    /// size, and uses its free pages for new rounds.
    ///
    /// # Errors
    /// Input/output errors.
    pub fn shrink(&mut self) -> anyhow::Result<bool> {
        let free = |store: &Self| -> rusqlite::Result<i64> {
            let pragma = |row: &rusqlite::Row<'_>| row.get(0);
            store
                .database
                .pragma_query_value(None, "freelist_count", pragma)
        };
        let before = free(self)?;
        if before == 0 {
            return Ok(false);
        }
        {
            let mut statement = self
                .database
                .prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
            // Each step frees a page.
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
        let after = free(self)?;
        Ok(after > 0 && after < before)
    }
}
