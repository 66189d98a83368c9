//! The database file: who may use it, how it is opened, and its version.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

/// `application_id` of the file format.
const APPLICATION: i64 = 0x4443_7072;

/// Each migration takes the schema from the version of its place to the next one.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

/// How long a writer waits for another one, for instance `net create` beside the daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the database, makes it (mode 0600, directory 0700) if it is missing, and
/// brings its schema up to date.
pub(super) fn open(path: &Path) -> anyhow::Result<Connection> {
    prepare(path)?;
    let directory = directory_of(path)
        .canonicalize()
        .with_context(|| format!("cannot resolve the directory of {}", path.display()))?;
    let name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let database = Connection::open_with_flags(directory.join(name), flags)
        .with_context(|| format!("cannot open {}", path.display()))?;
    configure(database).with_context(|| format!("cannot use {}", path.display()))
}

fn configure(mut database: Connection) -> anyhow::Result<Connection> {
    database.busy_timeout(PATIENCE)?;
    database.pragma_update(None, "trusted_schema", "OFF")?;
    database.pragma_update(None, "cell_size_check", "ON")?;
    let mode: String =
        database.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    ensure!(
        mode.eq_ignore_ascii_case("wal"),
        "the file system does not support a write-ahead log; use a local disk"
    );
    // A commit must have reached the disk before anything is published.
    database.pragma_update(None, "synchronous", "FULL")?;
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

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes what is missing with the right mode; refuses what is there with a wrong one.
fn prepare(path: &Path) -> anyhow::Result<()> {
    prepare_directory(directory_of(path))?;
    if path.symlink_metadata().is_err() {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            // Another process may have made it meanwhile.
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
            _ => {}
        }
        File::open(directory_of(path))
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot sync the directory of {}", path.display()))?;
    }
    // SQLite's locks are lost when any descriptor of the file is closed in this
    // process, so from here on the file is only looked at, never opened.
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let file = Path::new(&name);
        match file.symlink_metadata() {
            Ok(metadata) if !metadata.is_file() => {
                bail!("{} is not a regular file", file.display())
            }
            Ok(metadata) => require_private(file, metadata.permissions().mode(), 0o077, "600")?,
            Err(_) if !suffix.is_empty() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look at {}", file.display()));
            }
        }
    }
    Ok(())
}

/// Makes the state directory with mode 0700 if it is missing; refuses one that
/// others may enter.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub fn prepare_directory(directory: &Path) -> anyhow::Result<()> {
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let metadata = directory
        .metadata()
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    ensure!(
        metadata.is_dir(),
        "{} is not a directory",
        directory.display()
    );
    require_private(directory, metadata.permissions().mode(), 0o077, "700")
}

fn require_private(path: &Path, mode: u32, others: u32, wanted: &str) -> anyhow::Result<()> {
    ensure!(
        mode & others == 0,
        "{path} holds who took part in which round, but its mode {mode:03o} lets others in; \
         run: chmod {wanted} {path}",
        path = path.display(),
        mode = mode & 0o7777
    );
    Ok(())
}
