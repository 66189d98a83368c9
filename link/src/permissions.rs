//! Files that hold secrets must be closed to everyone but their owner.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};

const OTHERS: u32 = 0o077;

/// Refuses a file that is not a regular file (a symbolic link is none) or that
/// group or others may use. The file is not opened: see [`crate::journal`].
///
/// # Errors
/// Names the file, its mode and the command that mends it.
pub(crate) fn require_private_file(path: &Path) -> anyhow::Result<()> {
    let metadata = path
        .symlink_metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_file() {
        bail!("{} is not a regular file", path.display());
    }
    require_private(path, &metadata, "600")
}

/// Refuses a directory that group or others may enter or list.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub(crate) fn require_private_directory(path: &Path) -> anyhow::Result<()> {
    let metadata = path
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_dir() {
        bail!("{} is not a directory", path.display());
    }
    require_private(path, &metadata, "700")
}

fn require_private(path: &Path, metadata: &Metadata, wanted: &str) -> anyhow::Result<()> {
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        bail!(
            "{path} holds secrets, but its mode {mode:03o} lets others in; run: chmod {wanted} {path}",
            path = path.display()
        );
    }
    Ok(())
}
