//! Files that hold secrets must be closed to everyone but their owner.
//!
//! Every function takes a path and a word on what is kept there (`holds`, such as
//! "a private key"), which its message names.

use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, ensure};

const OTHERS: u32 = 0o077;

/// Refuses a file that is not a regular file (a symbolic link is none) or that
/// group or others may use. The file is not opened: see [`crate::database`].
///
/// # Errors
/// Names the file, its mode and the command that mends it.
pub fn require_private_file(path: &Path, holds: &str) -> anyhow::Result<()> {
    let metadata = path
        .symlink_metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    require_private_regular(path, &metadata, holds)
}

/// As [`require_private_file`], of metadata that were read already.
pub(crate) fn require_private_regular(
    path: &Path,
    metadata: &Metadata,
    holds: &str,
) -> anyhow::Result<()> {
    require_regular(path, metadata)?;
    require_private(path, metadata, holds, "600")
}

/// Refuses a directory that group or others may enter or list.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub fn require_private_directory(path: &Path, holds: &str) -> anyhow::Result<()> {
    let metadata = path
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    ensure!(metadata.is_dir(), "{} is not a directory", path.display());
    require_private(path, &metadata, holds, "700")
}

/// Opens a file for reading and refuses what [`require_private_file`] refuses. The
/// mode is asked of the open file, so it is the mode of what will be read. `advice`
/// says what to do if there is no such file.
///
/// # Errors
/// As [`require_private_file`]; a file that is missing, cannot be opened, or was
/// replaced meanwhile.
pub fn open_private_file(path: &Path, holds: &str, advice: &str) -> anyhow::Result<File> {
    let unreadable = || format!("cannot read {}; {advice}", path.display());
    // Opening a pipe would wait for its writer.
    let seen = path.symlink_metadata().with_context(unreadable)?;
    require_regular(path, &seen)?;
    let file = File::open(path).with_context(unreadable)?;
    let opened = file.metadata().with_context(unreadable)?;
    ensure!(
        (seen.dev(), seen.ino()) == (opened.dev(), opened.ino()),
        "{} was replaced while it was being opened; try again",
        path.display()
    );
    require_private(path, &opened, holds, "600")?;
    Ok(file)
}

fn require_regular(path: &Path, metadata: &Metadata) -> anyhow::Result<()> {
    ensure!(
        metadata.is_file(),
        "{} is not a regular file",
        path.display()
    );
    Ok(())
}

fn require_private(
    path: &Path,
    metadata: &Metadata,
    holds: &str,
    wanted: &str,
) -> anyhow::Result<()> {
    let mode = metadata.permissions().mode() & 0o7777;
    ensure!(
        mode & OTHERS == 0,
        "{path} holds {holds}, but its mode {mode:03o} lets others in; run: chmod {wanted} {path}",
        path = path.display()
    );
    Ok(())
}
