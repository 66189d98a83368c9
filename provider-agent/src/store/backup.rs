//! Whole copies of the database, by SQLite's online backup.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::{Store, file};

/// Pages that are copied between two calls of `progress`.
const PAGES: i32 = 256;

/// How long to wait for somebody who keeps a page locked.
const PAUSE: Duration = Duration::from_millis(50);

/// Tries before it is given up.
const TRIES: u32 = 200;

impl Store {
    /// Copies the database as it is at this moment into the empty file `to`, which stands for
    /// itself then, and looks through the copy for damage. `progress` is told the pages done
    /// and all of them. Others may write meanwhile.
    pub(crate) fn copy_to(
        &self,
        to: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> anyhow::Result<()> {
        // One snapshot from here on: else every commit of another process would begin it anew.
        self.database.execute_batch("BEGIN")?;
        let snapshot = self.net_ids().map(|_| ());
        let copied = snapshot.and_then(|()| copy(&self.database, to, progress));
        self.database.execute_batch("ROLLBACK")?;
        copied
    }
}

/// Copies a database that others made into the empty file `to`; as [`Store::copy_to`].
pub(crate) fn copy_file(
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)?;
    source.pragma_update(None, "trusted_schema", "OFF")?;
    source.pragma_update(None, "cell_size_check", "ON")?;
    let version = file::version(&source)?;
    ensure!(version > 0, "it is empty");
    copy(&source, to, progress)
}

fn copy(from: &Connection, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> anyhow::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(to, flags)
        .with_context(|| format!("cannot open {}", to.display()))?;
    {
        let backup = Backup::new(from, &mut target)?;
        let mut tries = 0;
        loop {
            match backup.step(PAGES)? {
                StepResult::Done => break,
                StepResult::More => tries = 0,
                _ => {
                    tries += 1;
                    ensure!(tries < TRIES, "another process keeps the database locked");
                    std::thread::sleep(PAUSE);
                }
            }
            let pages = backup.progress();
            let number = |pages: i32| u64::try_from(pages).unwrap_or(0);
            let (all, left) = (number(pages.pagecount), number(pages.remaining));
            progress(all.saturating_sub(left), all);
        }
    }
    stand_alone(&target)?;
    file::check(&target, to)?;
    target.close().map_err(|(_, error)| error)?;
    // Only now that SQLite has let go of it: its locks belong to the process.
    File::open(to)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot sync {}", to.display()))
}

/// Leaves everything in the one file, without a write-ahead log beside it.
pub(super) fn stand_alone(database: &Connection) -> anyhow::Result<()> {
    let mode: String =
        database.pragma_update_and_check(None, "journal_mode", "DELETE", |row| row.get(0))?;
    ensure!(
        mode.eq_ignore_ascii_case("delete"),
        "the write-ahead log cannot be folded in: the journal is in mode {mode}"
    );
    Ok(())
}
