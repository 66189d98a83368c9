//! The signed revocation list, read again whenever its file changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use dcnet::identity::Certificate;
use dcnet::revocation::RevocationList;

/// More than any list: one is a frame of at most 64 KiB.
const MAX_FILE: u64 = 128 * 1024;

/// Where the list comes from.
pub(crate) struct Source {
    path: PathBuf,
    administrator: Certificate,
    seen: Option<(SystemTime, u64)>,
}

impl Source {
    pub(crate) fn new(path: &Path, administrator: Certificate) -> Self {
        Self {
            path: path.to_owned(),
            administrator,
            seen: None,
        }
    }

    /// Reads the list if the file changed since the last call. `None` if it did
    /// not, or does not exist.
    ///
    /// # Errors
    /// If it cannot be read, is not signed by the administrator, or is older
    /// than `current`.
    pub(crate) fn read(
        &mut self,
        current: Option<&RevocationList>,
    ) -> anyhow::Result<Option<RevocationList>> {
        let place = || format!("revocation list {}", self.path.display());
        let metadata = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && current.is_none() => {
                return Ok(None);
            }
            Err(error) => {
                // Said once per disappearance.
                return match self.seen.take() {
                    Some(_) => Err(error).with_context(place),
                    None => Ok(None),
                };
            }
        };
        let version = (metadata.modified().with_context(place)?, metadata.len());
        if self.seen == Some(version) {
            return Ok(None);
        }
        self.seen = Some(version);
        if metadata.len() > MAX_FILE {
            bail!(
                "revocation list {} has {} bytes; no list has more than {MAX_FILE}",
                self.path.display(),
                metadata.len()
            );
        }
        let bytes = fs::read(&self.path).with_context(place)?;
        let list = RevocationList::verify(&bytes, &self.administrator).with_context(place)?;
        if let Some(current) = current {
            ensure!(
                list.number() >= current.number(),
                "revocation list {} has number {}, but {} is in force; it is ignored",
                self.path.display(),
                list.number(),
                current.number()
            );
        }
        Ok(Some(list))
    }
}
