//! Backup of the store while the agent runs, and the way back.
//!
//! **What a restored state may not do.** Whatever the agent published after a backup was made,
//! the backup does not know. A second roster of one round would give readings away, and a
//! second entry in one place of the log makes every meter refuse the net for good. So a net
//! that is restored issues no roster for a round that started before the restoring, and
//! appends nothing to its log until the sum of a later round is verified: only then have
//! the meters shown that they know no newer log and no newer roster. If they do, their checks
//! leave the net without sums, and it must be replaced by a new one.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dcnet::time::Timestamp;
use secrets::permissions::give_to_owner_of;
use serde::Serialize;
use tempfile::TempPath;

use crate::agent::{check_nets, lock};
use crate::config::Config;
use crate::store::{Store, copy_file, prepare_directory};
use crate::utc;

/// Meters send a round's submission when it ends by their clocks, which may be a second ahead.
const SLACK: Duration = Duration::from_secs(2);

/// What was backed up or restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The file that was made.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Nets in it.
    pub nets: usize,
    /// When its newest roster or aggregate was stored, RFC 3339 in UTC.
    pub newest: Option<String>,
    /// Of a restored state: rounds that started before this moment get no roster. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// Of a restored state: where the database that was there before is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former: Option<PathBuf>,
}

/// Writes the store as it is at this moment into the new file `to`, mode 0600, looked through
/// for damage. The agent may run meanwhile. `progress` is told the pages done and all of them.
///
/// # Errors
/// `to` exists; it cannot be written; the database is damaged.
pub fn backup(
    store: &Store,
    to: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Report> {
    ensure!(
        to.symlink_metadata().is_err(),
        "{} exists, and backups never overwrite anything; choose another name",
        to.display()
    );
    let directory = directory_of(to);
    let copy = empty_file(directory)?;
    store
        .copy_to(&copy, progress)
        .with_context(|| format!("cannot copy {}", store.path().display()))?;
    let bytes = copy.metadata()?.len();
    put(copy, to)?;
    Ok(Report {
        file: to.to_owned(),
        bytes,
        nets: store.net_ids()?.len(),
        newest: store.newest_stored()?.map(utc::text),
        resume: None,
        former: None,
    })
}

/// How a backup is restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restore {
    /// A database that is there already is moved aside.
    pub replace: bool,
    /// The agent has not run since the backup was made, so its nets go on at once.
    pub is_newest: bool,
}

/// Makes a backup the store of a configuration. Nothing is changed before the backup is known
/// to be whole and of this provider.
///
/// # Errors
/// An agent runs; there is a store already and `how` does not say to replace it; the file is
/// damaged, of another program or of another provider; the clock is behind the backup.
pub fn restore(
    config: &Config,
    from: &Path,
    how: Restore,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Report> {
    let identity = config.identity()?;
    prepare_directory(&config.state_directory)?;
    let _lock = lock(&config.state_directory)?;
    let path = config.store_path();
    ensure!(
        how.replace || path.symlink_metadata().is_err(),
        "{} exists; with --replace it is moved aside",
        path.display()
    );
    let shown = from.display();
    ensure!(
        from.metadata()
            .with_context(|| format!("cannot read {shown}"))?
            .is_file(),
        "{shown} is no regular file"
    );
    let copy = empty_file(&config.state_directory)?;
    copy_file(from, &copy, progress)
        .with_context(|| format!("{shown} is no whole backup of a provider-agent"))?;
    let mut store = Store::open(&copy)?;
    let nets = store.net_ids()?;
    check_nets(&store, &identity, &nets, config)
        .with_context(|| format!("{shown} cannot be continued by this provider"))?;
    let now = utc::now();
    let newest = store.newest_stored()?;
    if let Some(newest) = newest.filter(|newest| *newest > now) {
        bail!(
            "the clock of this machine says {}, but {shown} holds a round of {}; set the clock",
            utc::text(now),
            utc::text(newest)
        );
    }
    let resume = (!how.is_newest).then(|| now.plus(SLACK));
    if let Some(resume) = resume {
        store.resume_nets_after(resume)?;
    }
    store.close()?;
    let bytes = copy.metadata()?.len();
    give_to_owner_of(&config.state_directory, &copy)?;
    let former = move_aside(&path, now)?;
    put(copy, &path)?;
    Ok(Report {
        file: path,
        bytes,
        nets: nets.len(),
        newest: newest.map(utc::text),
        resume: resume.map(utc::text),
        former,
    })
}

/// A new file of mode 0600 that is removed again unless it is put somewhere.
fn empty_file(directory: &Path) -> anyhow::Result<TempPath> {
    let file = tempfile::Builder::new()
        .prefix(".provider-")
        .suffix(".partial")
        .tempfile_in(directory)
        .with_context(|| format!("cannot make a file in {}", directory.display()))?;
    Ok(file.into_temp_path())
}

/// Gives a finished file its name, durably.
fn put(copy: TempPath, to: &Path) -> anyhow::Result<()> {
    let shown = to.display();
    let file = File::open(&copy)?;
    file.sync_all()
        .with_context(|| format!("cannot sync {shown}"))?;
    copy.persist_noclobber(to)
        .map_err(|error| error.error)
        .with_context(|| format!("cannot make {shown}"))?;
    sync_directory(directory_of(to))
}

/// Moves a database and what lies beside it out of the way; gives its new name. A log without
/// its database is moved too: it must not be taken for the log of the next one.
fn move_aside(path: &Path, now: Timestamp) -> anyhow::Result<Option<PathBuf>> {
    let with = |suffix: &str, base: &Path| {
        let mut name = base.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let existed = path.symlink_metadata().is_ok();
    if existed {
        // Folds the log into it; a database that is too damaged for that is moved as it is.
        if let Err(error) = Store::open(path).and_then(Store::close) {
            tracing::warn!("the former database is not whole: {error:#}");
        }
    }
    let stamp = utc::text(now).replace(':', "-");
    let aside = with(&format!(".before-{stamp}"), path);
    for suffix in ["", "-wal", "-shm"] {
        match fs::rename(with(suffix, path), with(suffix, &aside)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot move {}", path.display()));
            }
            _ => {}
        }
    }
    sync_directory(directory_of(path))?;
    Ok(existed.then_some(aside))
}

fn sync_directory(directory: &Path) -> anyhow::Result<()> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
