//! What a daemon shows after a restart as it did before, in a file of its own. Nothing is
//! decided by it, so a daemon runs with or without it.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::permissions::{directory_of, open_private_file, replace_private_file};

/// Far more than what people are shown needs, in bytes.
const LIMIT: u64 = 1 << 20;

/// A file of JSON for its owner alone.
#[derive(Debug)]
pub struct KeptFile(PathBuf);

impl KeptFile {
    /// The file, and what is in it: nothing if there is none yet. One that cannot be read is put
    /// aside with the ending `.damaged`, and what happened returned as an error.
    pub fn open<T: DeserializeOwned + Default>(path: PathBuf) -> (Self, anyhow::Result<T>) {
        let file = Self(path);
        let kept = file.read().map_err(|error| {
            let aside = file.damaged();
            error.context(match fs::rename(&file.0, &aside) {
                Ok(()) => format!("it is {} now", aside.display()),
                Err(error) => format!("it cannot be put aside: {error}"),
            })
        });
        (file, kept)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where one is put that cannot be read.
    pub fn damaged(&self) -> PathBuf {
        let mut path = self.0.clone().into_os_string();
        path.push(".damaged");
        path.into()
    }

    fn read<T: DeserializeOwned + Default>(&self) -> anyhow::Result<T> {
        if let Err(error) = self.0.symlink_metadata()
            && error.kind() == ErrorKind::NotFound
        {
            return Ok(T::default());
        }
        let file = open_private_file(&self.0, "what was told before", "")?;
        let mut text = String::new();
        file.take(LIMIT)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", self.0.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", self.0.display()))
    }

    /// Keeps this instead of what was there; durable when it returns.
    ///
    /// # Errors
    /// It cannot be written; what was there before is then still there.
    pub fn write(&self, kept: &impl Serialize) -> anyhow::Result<()> {
        replace_private_file(&self.0, &text(kept)?, directory_of(&self.0))
    }
}

/// What [`KeptFile::write`] puts into the file.
///
/// # Errors
/// It has no form in JSON.
pub fn text(kept: &impl Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(kept)? + "\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(path: &Path) -> (KeptFile, anyhow::Result<Vec<String>>) {
        KeptFile::open(path.to_owned())
    }

    #[test]
    fn what_was_written_is_there_after_a_restart_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alarms.json");
        let (file, none) = open(&path);
        assert_eq!(none.unwrap(), [""; 0]);
        file.write(&["older"]).unwrap();
        file.write(&["newer", "older"]).unwrap();
        assert_eq!(open(&path).1.unwrap(), ["newer", "older"]);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_a_new_one_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("alarms.json");
        let (file, _) = open(&path);
        for damaged in [&b"[\"whole\""[..], b"", b"\xff\xff", b"{}", b"[{}]"] {
            file.write(&["whole"]).unwrap();
            std::fs::write(&path, damaged).unwrap();
            let error = format!("{:#}", open(&path).1.unwrap_err());
            assert!(error.contains("alarms.json.damaged now"), "{error}");
            let aside = directory.path().join("alarms.json.damaged");
            assert_eq!(std::fs::read(aside).unwrap(), damaged);
            assert_eq!(open(&path).1.unwrap(), [""; 0]);
        }
    }
}
