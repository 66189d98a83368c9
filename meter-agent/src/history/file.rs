//! The file of the history, and what becomes of one that is damaged.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use dcnet::time::Timestamp;
use rusqlite::{Connection, ErrorCode};

use crate::erase::erase;

/// What SQLite may lay beside a database.
const BESIDE: [&str; 4] = ["", "-journal", "-wal", "-shm"];

/// The file in a state directory.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("history.db")
}

/// Where a damaged file is put: its totals can perhaps be read with other tools.
fn damaged(file: &Path) -> PathBuf {
    file.with_extension("db.damaged")
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The file has what no history has.
#[derive(Debug, thiserror::Error)]
#[error("found in it: {0}")]
pub(super) struct Inconsistent(pub(super) String);

/// Whether an error says that the file is damaged or no history, so that another one would do.
pub(super) fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        if cause.is::<Inconsistent>() {
            return true;
        }
        match cause.downcast_ref() {
            Some(rusqlite::Error::SqliteFailure(failure, _)) => matches!(
                failure.code,
                // An SQL error is of a table that is not as it was made.
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown
            ),
            Some(
                rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::SqlInputError { .. },
            ) => true,
            _ => false,
        }
    })
}

/// Opens the file, or a new one instead of a damaged one.
pub(super) fn open(file: &Path) -> anyhow::Result<Connection> {
    match open_sound(file) {
        Err(error) if is_damage(&error) => replace(file, &error),
        opened => opened,
    }
}

fn open_sound(file: &Path) -> anyhow::Result<Connection> {
    let database = link::database::open(file, "when somebody was at home")?;
    prepare(&database).with_context(|| format!("cannot use {}", file.display()))?;
    Ok(database)
}

/// One that ends with the process.
///
/// # Panics
/// There is no memory for it.
pub(super) fn in_memory() -> Connection {
    let database = Connection::open_in_memory().expect("memory for an empty database");
    prepare(&database).expect("memory for an empty table");
    database
}

fn prepare(database: &Connection) -> anyhow::Result<()> {
    database.pragma_update(None, "secure_delete", "ON")?;
    // What deletions overwrite must not live on in a journal.
    database.pragma_update_and_check(None, "journal_mode", "TRUNCATE", |_| Ok(()))?;
    // Nobody else reads it, and SQLite then leaves the first page alone: half the bytes.
    database.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    let found: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Err(Inconsistent(found).into());
    }
    database.execute_batch(
        "CREATE TABLE IF NOT EXISTS sample (
            at_ms INTEGER NOT NULL, channel TEXT NOT NULL, energy_mwh INTEGER NOT NULL,
            is_break INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (at_ms, channel)
        ) STRICT, WITHOUT ROWID",
    )?;
    // Files that were made without it.
    let columns = "SELECT count(*) FROM pragma_table_info('sample') WHERE name = 'is_break'";
    if database.query_row(columns, [], |row| row.get::<_, i64>(0))? == 0 {
        let add = "ALTER TABLE sample ADD COLUMN is_break INTEGER NOT NULL DEFAULT 0";
        database.execute_batch(add)?;
    }
    Ok(())
}

/// Puts a damaged file aside, which must not be open any more, and begins a new one.
pub(super) fn replace(file: &Path, error: &anyhow::Error) -> anyhow::Result<Connection> {
    let aside = damaged(file);
    erase_damaged(file)?;
    for suffix in BESIDE {
        let (from, to) = (beside(file, suffix), beside(&aside, suffix));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot rename {}", from.display()));
            }
            _ => {}
        }
    }
    tracing::warn!(
        "{} is damaged: {error:#}. It is {} now, and the register's course for the charts begins \
         anew; register and rounds have nothing to do with it",
        file.display(),
        aside.display()
    );
    open_sound(file)
}

/// Erases the file and everything beside it.
pub(super) fn erase_all(file: &Path) -> anyhow::Result<()> {
    erase_with_beside(file)?;
    erase_damaged(file)
}

/// Erases what was put aside as damaged.
pub(super) fn erase_damaged(file: &Path) -> anyhow::Result<()> {
    erase_with_beside(&damaged(file))
}

/// As [`erase_damaged`] if everything in it is older than a moment.
pub(super) fn forget_damaged(file: &Path, oldest: Timestamp) -> anyhow::Result<()> {
    let Ok(metadata) = damaged(file).symlink_metadata() else {
        return Ok(());
    };
    let written = metadata.modified()?.duration_since(UNIX_EPOCH);
    if written.unwrap_or_default() < Duration::from_millis(oldest.as_millis()) {
        erase_damaged(file)?;
    }
    Ok(())
}

fn erase_with_beside(file: &Path) -> anyhow::Result<()> {
    for suffix in BESIDE {
        let file = beside(file, suffix);
        erase(&file).with_context(|| format!("cannot erase {}", file.display()))?;
    }
    Ok(())
}
