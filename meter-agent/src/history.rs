//! The course of the register, kept for the household's own charts: its totals once per
//! quarter hour, for as many days as the household wants.
//!
//! It is the one place where readings of the past lie on the disk: whoever takes the disk
//! learns so many days. Rows that are deleted are overwritten.
//!
//! The charts are a help and the meter comes first: a file that cannot be used costs the course
//! of the past and nothing else.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use dcnet::time::Timestamp;
use rusqlite::{Connection, params};
use serde::Serialize;

use crate::register::RegisterChannel;

mod file;
mod keeping;

pub use keeping::keep;

/// A quarter hour in milliseconds.
const QUARTER: u64 = 900_000;
const DAY: u64 = 86_400_000;

/// Days that are kept in memory when none are kept on disk.
const DAYS_IN_MEMORY: u32 = 8;

/// The kept totals.
pub struct History {
    database: Mutex<Connection>,
    /// None for what is in memory only.
    file: Option<PathBuf>,
    days: u32,
}

/// For how many days there is a course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days {
    /// On disk; 0 for none.
    pub on_disk: u32,
    /// Before today, wherever they are kept.
    pub shown: u32,
}

/// A total that is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total<'a> {
    /// Of which channel.
    pub channel: &'a str,
    /// In mWh.
    pub energy: u64,
    /// As in [`Sample::is_break`].
    pub is_break: bool,
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
    /// Per channel, in mWh; null for a channel whose total was not known then.
    pub energy_mwh: Vec<Option<u64>>,
    /// Per channel, whether nobody counted between its total before and this one, or not all of
    /// the time. How much more it is may be known, but not when it was used.
    pub is_break: Vec<bool>,
}

impl History {
    /// Opens the history in a state directory, and forgets what is older than `days`. With
    /// 0 days nothing is on disk: a history from before is erased, and this one ends with
    /// the process.
    ///
    /// A damaged file is put aside and a new one begun. If there can be none, because the disk is
    /// full for instance, the history is kept as with 0 days. Both are told in the log.
    ///
    /// # Panics
    /// If there is no memory for an empty database.
    pub fn open(directory: &Path, days: u32) -> Self {
        let file = file::path(directory);
        if days == 0 {
            if let Err(error) = file::erase_all(&file) {
                tracing::error!(
                    "history_days = 0, but a history from before is still on the disk: {error:#}"
                );
            }
            return Self::in_memory();
        }
        match file::open(&file) {
            Ok(database) => Self {
                database: Mutex::new(database),
                file: Some(file),
                days,
            },
            Err(error) => {
                tracing::warn!(
                    "the register's course is kept in memory only, until the agent is stopped: \
                     {error:#}"
                );
                Self::in_memory()
            }
        }
    }

    fn in_memory() -> Self {
        Self {
            database: Mutex::new(file::in_memory()),
            file: None,
            days: DAYS_IN_MEMORY,
        }
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        // A transaction that did not end is rolled back.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on the database. If that shows damage in the file, the work is done again on a new
    /// one.
    fn with<T>(&self, work: impl Fn(&mut Connection) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut database = self.database();
        match (work(&mut database), &self.file) {
            (Err(error), Some(file)) if file::is_damage(&error) => {
                // Closes the damaged one. If there can be no other, memory has to do.
                *database = file::in_memory();
                *database = file::replace(file, &error)?;
                work(&mut database)
            }
            (done, _) => done,
        }
    }

    /// For how many days it is kept.
    pub fn days(&self) -> Days {
        Days {
            on_disk: self.file.as_ref().map_or(0, |_| self.days),
            shown: self.days,
        }
    }

    /// Keeps the totals of a moment, and forgets those that are too old, or from a future
    /// that a wrong clock had shown.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn keep(&self, at: Timestamp, totals: &[Total<'_>]) -> anyhow::Result<()> {
        let at = at.as_millis();
        let oldest = at.saturating_sub(u64::from(self.days).saturating_mul(DAY));
        self.with(|database| {
            let transaction = database.transaction()?;
            transaction.execute(
                "DELETE FROM sample WHERE at_ms < ?1 OR at_ms > ?2",
                params![integer(oldest)?, integer(at)?],
            )?;
            for total in totals {
                transaction.execute(
                    "INSERT INTO sample (at_ms, channel, energy_mwh, is_break)
                     VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO UPDATE SET energy_mwh = excluded.energy_mwh,
                     is_break = max(is_break, excluded.is_break)",
                    params![
                        integer(at)?,
                        total.channel,
                        integer(total.energy)?,
                        total.is_break
                    ],
                )?;
            }
            transaction.commit()?;
            Ok(())
        })?;
        match &self.file {
            Some(file) => file::forget_damaged(file, Timestamp(oldest)),
            None => Ok(()),
        }
    }

    /// The earliest totals of a span of time, of at most so many moments: ten years of them
    /// need not be in memory at once. With them the moment of the first one that was left out,
    /// for the next part to begin with.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn course(
        &self,
        channels: &[RegisterChannel],
        span: RangeInclusive<u64>,
        most: usize,
    ) -> anyhow::Result<(Course, Option<u64>)> {
        let names: Vec<String> = channels.iter().map(|c| c.name.clone()).collect();
        let (samples, rest) = self.with(|database| part(database, &names, &span, most))?;
        let course = Course {
            channels: names,
            samples,
        };
        Ok((course, rest))
    }

    /// Erases all of it, and what was put aside as damaged.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn delete(&self) -> anyhow::Result<()> {
        self.with(|database| {
            database.execute("DELETE FROM sample", [])?;
            database.execute_batch("VACUUM")?;
            Ok(())
        })?;
        match &self.file {
            Some(file) => file::erase_damaged(file),
            None => Ok(()),
        }
    }
}

fn part(
    database: &Connection,
    names: &[String],
    span: &RangeInclusive<u64>,
    most: usize,
) -> anyhow::Result<(Vec<Sample>, Option<u64>)> {
    let bound = |at: &u64| i64::try_from(*at).unwrap_or(i64::MAX);
    let (from, until) = (bound(span.start()), bound(span.end()));
    let mut last = database.prepare_cached(
        "SELECT max(at_ms) FROM (SELECT DISTINCT at_ms FROM sample
         WHERE at_ms BETWEEN ?1 AND ?2 ORDER BY at_ms LIMIT ?3)",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let Some(last): Option<i64> = last.query_row(params![from, until, most], |row| row.get(0))?
    else {
        return Ok((Vec::new(), None));
    };
    let mut rest = database
        .prepare_cached("SELECT min(at_ms) FROM sample WHERE at_ms > ?1 AND at_ms <= ?2")?;
    let rest: Option<i64> = rest.query_row(params![last, until], |row| row.get(0))?;
    let samples = samples(database, names, from, last)?;
    Ok((samples, rest.and_then(|rest| u64::try_from(rest).ok())))
}

fn samples(
    database: &Connection,
    names: &[String],
    from: i64,
    until: i64,
) -> anyhow::Result<Vec<Sample>> {
    let mut rows = database.prepare_cached(
        "SELECT at_ms, channel, energy_mwh, is_break FROM sample WHERE at_ms BETWEEN ?1 AND ?2
         ORDER BY at_ms",
    )?;
    let mut rows = rows.query(params![from, until])?;
    let mut samples: Vec<Sample> = Vec::new();
    while let Some(row) = rows.next()? {
        let (at_ms, channel, energy): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let is_break = row.get(3)?;
        let (Ok(at_ms), Ok(energy)) = (u64::try_from(at_ms), u64::try_from(energy)) else {
            return Err(file::Inconsistent("a number below zero".to_owned()).into());
        };
        let Some(place) = names.iter().position(|name| *name == channel) else {
            continue;
        };
        if samples.last().is_none_or(|last| last.at_ms != at_ms) {
            samples.push(Sample {
                at_ms,
                energy_mwh: vec![None; names.len()],
                is_break: vec![false; names.len()],
            });
        }
        let Some(last) = samples.last_mut() else {
            continue;
        };
        if let (Some(value), Some(mark)) =
            (last.energy_mwh.get_mut(place), last.is_break.get_mut(place))
        {
            (*value, *mark) = (Some(energy), is_break);
        }
    }
    Ok(samples)
}

fn integer(number: u64) -> anyhow::Result<i64> {
    i64::try_from(number).context("a number beyond 2^63")
}

#[cfg(test)]
pub(crate) mod tests;
