//! The database file: how it is opened, and its version.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use link::database;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

/// `application_id` of the file format.
const APPLICATION: i64 = 0x4443_7072;

/// Each migration takes the schema from the version of its place to the next one.
const MIGRATIONS: &[&str] = &[
    include_str!("schema.sql"),
    include_str!("schema_2.sql"),
    include_str!("schema_3.sql"),
    include_str!("schema_4.sql"),
];

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
    // Of a file that has pages it would only take the lock for writing.
    let pages: i64 = database.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages == 0 {
        database.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    // A commit must have reached the disk before anything is published.
    database::use_write_ahead_log(&database)?;
    database.pragma_update(None, "foreign_keys", "ON")?;
    migrate(&mut database)?;
    Ok(database)
}

/// Needs no lock for writing when there is nothing to do, so that a file can be read while
/// another process writes.
fn migrate(database: &mut Connection) -> anyhow::Result<()> {
    let known = MIGRATIONS.len();
    if version(database)? == known {
        return Ok(());
    }
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = version(&transaction)?;
    for migration in MIGRATIONS.iter().skip(done) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", i64::try_from(known)?)?;
    transaction.commit()?;
    Ok(())
}

/// How many migrations a file has had; 0 if it is empty.
///
/// # Errors
/// A database of another program or of a newer version.
pub(super) fn version(database: &Connection) -> anyhow::Result<usize> {
    let pragma = |name: &str| -> rusqlite::Result<i64> {
        database.pragma_query_value(None, name, |row| row.get(0))
    };
    let version = pragma("user_version")?;
    let objects: i64 =
        database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (version, objects) != (0, 0) && pragma("application_id")? != APPLICATION {
        bail!("it is a database of another program");
    }
    let known = MIGRATIONS.len();
    usize::try_from(version)
        .ok()
        .filter(|done| *done <= known)
        .with_context(|| {
            format!(
                "it has schema version {version}, this program knows {known}; use a newer program"
            )
        })
}

/// Looks through the whole file for damage: structure and references.
pub(super) fn check(database: &Connection, path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let structure: String =
        database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    ensure!(
        structure == "ok",
        "{shown} is damaged ({structure}); restore it from a backup"
    );
    let dangling: Option<String> = database
        .query_row("PRAGMA foreign_key_check", [], |row| row.get(0))
        .optional()?;
    ensure!(
        dangling.is_none(),
        "{shown}: rows of table {} refer to missing rows; restore it from a backup",
        dangling.unwrap_or_default()
    );
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
