//! SQLite files that only their owner may use: made with mode 0600 in a directory of
//! mode 0700, and refused when links or wider modes are found there.
//!
//! SQLite's locks are POSIX record locks, which are lost when *any* descriptor of the
//! file is closed in the process. So an existing file is only looked at here; nothing
//! but SQLite opens it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, ensure};
use rusqlite::{Connection, OpenFlags};
use secrets::permissions::{
    directory_of, require_private_directory, require_private_file, require_private_regular,
};

/// Opens a database; makes the file and its directory if they are missing. What is
/// in the file is believed as little as SQLite can. `holds` says what others would
/// learn, for the message that refuses a wide mode: "who took part in which round".
///
/// # Errors
/// A file (or its `-wal` or `-shm`) that is a link or that others may use; a directory
/// that others may enter; input/output errors.
pub fn open(path: &Path, holds: &str) -> anyhow::Result<Connection> {
    prepare(path, holds)?;
    // SQLITE_OPEN_NOFOLLOW refuses links in every part of the path, but links to directories are fine.
    let directory = directory_of(path)
        .canonicalize()
        .with_context(|| format!("cannot resolve the directory of {}", path.display()))?;
    let name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    Connection::open_with_flags(directory.join(name), flags)
        .and_then(|database| {
            database.pragma_update(None, "trusted_schema", "OFF")?;
            database.pragma_update(None, "cell_size_check", "ON")?;
            Ok(database)
        })
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Switches to a write-ahead log with `synchronous=FULL`: a commit has reached the
/// disk (fsync) when it returns, and is there completely or not at all after a crash.
///
/// # Errors
/// A file system that does not support it; a file in use, damaged, or not a database.
pub fn use_write_ahead_log(database: &Connection) -> anyhow::Result<()> {
    let mode: String =
        database.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    ensure!(
        mode.eq_ignore_ascii_case("wal"),
        "the file system does not support a write-ahead log; use a local disk"
    );
    database.pragma_update(None, "synchronous", "FULL")?;
    Ok(())
}

/// Makes a directory with mode 0700 if it is missing; refuses one that others may enter.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub fn prepare_directory(directory: &Path, holds: &str) -> anyhow::Result<()> {
    if !directory.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    require_private_directory(directory, holds)
}

fn prepare(path: &Path, holds: &str) -> anyhow::Result<()> {
    let directory = directory_of(path);
    prepare_directory(directory, holds)?;
    if path.symlink_metadata().is_err() {
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            // Another process may have made it meanwhile.
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("cannot make {}", path.display()));
            }
            _ => {}
        }
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .with_context(|| format!("cannot sync {}", directory.display()))?;
    }
    require_private_file(path, holds)?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let beside = Path::new(&name);
        // Looked at once: another process may remove it at any time.
        if let Ok(metadata) = beside.symlink_metadata() {
            require_private_regular(beside, &metadata, holds)?;
        }
    }
    Ok(())
}
