//! The database file: how it is opened, and its version.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use link::database;
use rusqlite::{Connection, TransactionBehavior};

/// `application_id` of the file format.
const APPLICATION: i64 = 0x4443_7072;

/// Each migration takes the schema from the version of its place to the next one.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// How long a writer waits for another one, for instance `net create` beside the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// What others would learn from it.
const HOLDS: &str = "who took part in which round";

/// Opens the database, makes it (mode 0600, directory 0700) if it is missing, and
/// brings its schema up to date.
pub(super) fn open(path: &Path) -> anyhow::Result<Connection> {
    let database = database::open(path, HOLDS)?;
    configure(database).with_context(|| format!("cannot use {}", path.display()))
}

fn configure(mut database: Connection) -> anyhow::Result<Connection> {
    database.busy_timeout(PATIENCE)?;
    // A commit must have reached the disk before anything is published.
    database::use_write_ahead_log(&database)?;
    database.pragma_update(None, "foreign_keys", "ON")?;
    migrate(&mut database)?;
    Ok(database)
}

fn migrate(database: &mut Connection) -> anyhow::Result<()> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pragma = |name: &str| -> rusqlite::Result<i64> {
        transaction.pragma_query_value(None, name, |row| row.get(0))
    };
    let version = pragma("user_version")?;
    let objects: i64 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (version, objects) != (0, 0) && pragma("application_id")? != APPLICATION {
        bail!("it is a database of another program");
    }
    let known = MIGRATIONS.len();
    let done = usize::try_from(version)
        .ok()
        .filter(|done| *done <= known)
        .with_context(|| {
            format!(
                "it has schema version {version}, this program knows {known}; use a newer program"
            )
        })?;
    if done < known {
        for migration in MIGRATIONS.iter().skip(done) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", i64::try_from(known)?)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Makes the state directory with mode 0700 if it is missing; refuses one that
/// others may enter.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub fn prepare_directory(directory: &Path) -> anyhow::Result<()> {
    database::prepare_directory(directory, HOLDS)
}
