//! Files that somebody else writes: read with a bound on their length, and seen to change.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, ensure};

/// Longer files are none that an administrator issues, in bytes: a full revocation
/// list stays below 64 KiB.
pub const LENGTH_LIMIT: usize = 256 * 1024;

/// Reads a file of at most [`LENGTH_LIMIT`] bytes. `advice` is what the user is to do if that
/// cannot be done, such as "enrol this meter again".
///
/// # Errors
/// A file that is missing, cannot be read, or is longer.
pub fn bytes(path: &Path, advice: &str) -> anyhow::Result<Vec<u8>> {
    let file =
        File::open(path).with_context(|| format!("cannot read {}; {advice}", path.display()))?;
    let mut bytes = Vec::new();
    read_bounded(file, path, advice, &mut bytes)?;
    Ok(bytes)
}

/// As [`bytes`], of a file that is open, into a buffer of the caller's.
///
/// # Errors
/// A file that cannot be read or is longer.
pub fn read_bounded(
    file: File,
    path: &Path,
    advice: &str,
    bytes: &mut Vec<u8>,
) -> anyhow::Result<()> {
    let length = file
        .take(LENGTH_LIMIT as u64 + 1)
        .read_to_end(bytes)
        .with_context(|| format!("cannot read {}; {advice}", path.display()))?;
    ensure!(
        length <= LENGTH_LIMIT,
        "{} is longer than {LENGTH_LIMIT} bytes, unlike anything an administrator issues; {advice}",
        path.display()
    );
    Ok(())
}

/// A file at one time: as long as this is the same, the file is taken for unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    length: u64,
}

impl FileVersion {
    /// The version that a file's metadata tell of.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            length: metadata.len(),
        }
    }

    /// The version of the file that a path leads to; `None` if it leads to none.
    pub fn at(path: &Path) -> Option<Self> {
        path.metadata().ok().as_ref().map(Self::of)
    }
}
