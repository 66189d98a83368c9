//! The course of the register, kept for the household's own charts: its totals once per
//! quarter hour, for as many days as the household wants.
//!
//! It is the one place where readings of the past lie on the disk: whoever takes the disk
//! learns so many days. Rows that are deleted are overwritten.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use dcnet::time::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;
use tokio::sync::watch;

use crate::register::RegisterChannel;
use crate::register::counting::Counted;
use crate::status::View;

/// A quarter hour in milliseconds.
const QUARTER: u64 = 900_000;
const DAY: u64 = 86_400_000;

/// Days that are kept in memory when none are to be kept on disk.
const DAYS_IN_MEMORY: u32 = 8;

/// The kept totals.
pub struct History {
    database: Mutex<Connection>,
    days: u32,
}

/// Totals of a span of time.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Course {
    /// The channels, in the order of the values.
    pub channels: Vec<String>,
    /// Ascending in time.
    pub samples: Vec<Sample>,
}

/// The totals at a moment.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// Per channel, in mWh; null for a channel that there was not.
    pub energy_mwh: Vec<Option<u64>>,
}

impl History {
    /// Opens the history in a state directory, and forgets what is older than `days`. With
    /// 0 days nothing is on disk: a history from before is erased, and this one ends with
    /// the process.
    ///
    /// # Errors
    /// As [`link::database::open`]; the file is no history.
    pub fn open(directory: &Path, days: u32) -> anyhow::Result<Self> {
        let file = directory.join("history.db");
        let database = if days == 0 {
            if file.exists() {
                Self::at(&file)?.delete()?;
                std::fs::remove_file(&file)
                    .with_context(|| format!("cannot remove {}", file.display()))?;
            }
            let database = Connection::open_in_memory().context("cannot open SQLite")?;
            Self::of(database, DAYS_IN_MEMORY)?
        } else {
            Self {
                days,
                ..Self::at(&file)?
            }
        };
        Ok(database)
    }

    fn at(file: &Path) -> anyhow::Result<Self> {
        let database = link::database::open(file, "when somebody was at home")?;
        Self::of(database, 0).with_context(|| format!("cannot use {}", file.display()))
    }

    fn of(database: Connection, days: u32) -> anyhow::Result<Self> {
        database.pragma_update(None, "secure_delete", "ON")?;
        // What deletions overwrite must not live on in a journal.
        database.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
        // Nobody else reads it, and SQLite then leaves the first page alone: half the bytes.
        database.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        database.execute_batch(
            "CREATE TABLE IF NOT EXISTS sample (
                at_ms INTEGER NOT NULL, channel TEXT NOT NULL, energy_mwh INTEGER NOT NULL,
                PRIMARY KEY (at_ms, channel)
            ) STRICT, WITHOUT ROWID",
        )?;
        Ok(Self {
            database: Mutex::new(database),
            days,
        })
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        // A transaction that did not end is rolled back.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how many days it is kept on disk; 0 for none.
    pub fn days(&self) -> u32 {
        self.days
    }

    /// Keeps the totals of a moment, and forgets those that are too old, or from a future
    /// that a wrong clock had shown.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn keep(&self, at: Timestamp, totals: &[(&str, u64)]) -> anyhow::Result<()> {
        let at = at.as_millis();
        let oldest = at.saturating_sub(u64::from(self.days).saturating_mul(DAY));
        let mut database = self.database();
        let transaction = database.transaction()?;
        transaction.execute(
            "DELETE FROM sample WHERE at_ms < ?1 OR at_ms > ?2",
            params![integer(oldest)?, integer(at)?],
        )?;
        for (channel, energy) in totals {
            transaction.execute(
                "INSERT OR REPLACE INTO sample VALUES (?1, ?2, ?3)",
                params![integer(at)?, channel, integer(*energy)?],
            )?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// The totals of a span of time, both ends included.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn course(
        &self,
        channels: &[RegisterChannel],
        from: u64,
        until: u64,
    ) -> anyhow::Result<Course> {
        let names: Vec<String> = channels.iter().map(|c| c.name.clone()).collect();
        let database = self.database();
        let mut rows = database.prepare_cached(
            "SELECT at_ms, channel, energy_mwh FROM sample WHERE at_ms BETWEEN ?1 AND ?2
             ORDER BY at_ms",
        )?;
        let mut rows = rows.query(params![
            i64::try_from(from).unwrap_or(i64::MAX),
            i64::try_from(until).unwrap_or(i64::MAX)
        ])?;
        let mut samples: Vec<Sample> = Vec::new();
        while let Some(row) = rows.next()? {
            let (at_ms, channel, energy): (i64, String, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let (at_ms, energy) = (u64::try_from(at_ms)?, u64::try_from(energy)?);
            let Some(place) = names.iter().position(|name| *name == channel) else {
                continue;
            };
            if samples.last().is_none_or(|last| last.at_ms != at_ms) {
                samples.push(Sample {
                    at_ms,
                    energy_mwh: vec![None; names.len()],
                });
            }
            let last = samples.last_mut();
            if let Some(value) = last.and_then(|last| last.energy_mwh.get_mut(place)) {
                *value = Some(energy);
            }
        }
        Ok(Course {
            channels: names,
            samples,
        })
    }

    /// Erases all of it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete(&self) -> anyhow::Result<()> {
        let database = self.database();
        database.execute("DELETE FROM sample", [])?;
        database.execute_batch("VACUUM")?;
        Ok(())
    }
}

fn integer(number: u64) -> anyhow::Result<i64> {
    i64::try_from(number).context("a number beyond 2^63")
}

/// Keeps the totals of each quarter hour, and of the start and the end, until `stop` is done.
/// While the clock is not known to be right, nothing is kept. What cannot be written is said
/// once, and tried again with the next quarter hour.
pub async fn keep(history: &History, view: &View, stop: impl Future<Output = ()>) {
    let mut counted = view.counted();
    let mut stop = std::pin::pin!(stop);
    let mut kept = None;
    let mut failed = false;
    let mut keep = |at: Timestamp, counted: &watch::Receiver<Counted>| {
        let energies: Vec<u64> = counted
            .borrow()
            .channels
            .iter()
            .map(|c| c.energy.0)
            .collect();
        let names = view.channels().iter().map(|channel| channel.name.as_str());
        let totals: Vec<(&str, u64)> = names.zip(energies).collect();
        if totals.is_empty() {
            return;
        }
        // A few rows per quarter hour: shorter than a task of its own would take.
        match history.keep(at, &totals) {
            Ok(()) => failed = false,
            Err(error) if !failed => {
                tracing::warn!("the register's course cannot be kept for the charts: {error:#}");
                failed = true;
            }
            Err(_) => {}
        }
    };
    loop {
        if let Some(now) = view.utc() {
            let quarter = now.as_millis() / QUARTER;
            if kept.is_none() && !counted.borrow().channels.is_empty() {
                keep(now, &counted);
                kept = Some(quarter);
            } else if kept.is_some_and(|kept| kept != quarter) {
                keep(Timestamp(quarter.saturating_mul(QUARTER)), &counted);
                kept = Some(quarter);
            }
        }
        let now = view.utc().map_or(0, Timestamp::as_millis);
        let left = QUARTER.saturating_sub(now.checked_rem(QUARTER).unwrap_or(0));
        // The clock may be set, or get synchronised, in between.
        let wait = Duration::from_millis(left).min(Duration::from_secs(60));
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(wait) => {}
            Ok(()) = counted.changed(), if kept.is_none() => {}
        }
    }
    if let Some(now) = view.utc() {
        keep(now, &counted);
    }
}

#[cfg(test)]
mod tests {
    use dcnet::units::ImpulsesPerKwh;

    use super::*;

    fn channels(names: &[&str]) -> Vec<RegisterChannel> {
        let channel = |name: &&str| RegisterChannel {
            name: (*name).to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        };
        names.iter().map(channel).collect()
    }

    fn values(course: &Course) -> Vec<(u64, Vec<Option<u64>>)> {
        let sample = |sample: &Sample| (sample.at_ms, sample.energy_mwh.clone());
        course.samples.iter().map(sample).collect()
    }

    #[test]
    fn it_survives_a_restart_keeps_its_days_and_forgets_a_future_that_was_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let history = History::open(&path, 2).unwrap();
        for day in 1..=4 {
            history
                .keep(Timestamp(day * DAY), &[("import", day)])
                .unwrap();
        }
        history.keep(Timestamp(9 * DAY), &[("import", 9)]).unwrap();
        history
            .keep(Timestamp(5 * DAY), &[("import", 5), ("export", 1)])
            .unwrap();
        drop(history);
        let history = History::open(&path, 2).unwrap();
        let course = history
            .course(&channels(&["import", "export"]), 0, u64::MAX)
            .unwrap();
        // Of the wrong clock's day nothing is left, and nothing of what it made too old.
        assert_eq!(values(&course), [(5 * DAY, vec![Some(5), Some(1)])]);
    }

    #[test]
    fn what_is_deleted_is_not_in_the_file_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let secret = 0x1122_3344_5566_u64;
        let history = History::open(&path, 2).unwrap();
        for quarter in 1..200 {
            let at = Timestamp(quarter * QUARTER);
            history.keep(at, &[("import", secret)]).unwrap();
        }
        let has_it = || {
            let bytes = std::fs::read(path.join("history.db")).unwrap();
            bytes
                .windows(6)
                .any(|window| window == &secret.to_be_bytes()[2..])
        };
        assert!(has_it(), "the test looks for what is there");
        history.delete().unwrap();
        assert!(!has_it());
        let course = history.course(&channels(&["import"]), 0, u64::MAX).unwrap();
        assert!(course.samples.is_empty());
        drop(history);
        History::open(&path, 0).unwrap();
        assert!(!path.join("history.db").exists(), "nothing on disk");
    }

    #[test]
    fn other_users_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        History::open(&path, 2).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&path), mode(&path.join("history.db"))),
            (0o700, 0o600)
        );
    }
}
