//! A small file system of its own for a state directory, so that it can be filled.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

/// The file that takes the room.
const FILLER: &str = "filler";

/// What is written at a time, largest first; the last is a page, below which a tmpfs does not
/// count.
const STEPS: [usize; 2] = [64 * 1024, 4 * 1024];

/// A mounted tmpfs; unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Makes a directory (mode 0700) and mounts a file system of so many MiB there; `None` if
    /// this process may not mount.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn mount(directory: &Path, mebibytes: u32) -> anyhow::Result<Option<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={mebibytes}m,mode=0700"))
            .arg("none")
            .arg(directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        Ok(mounted.then(|| Self {
            directory: directory.to_owned(),
        }))
    }

    /// Leaves no room; to be called again while it is to stay full, since others may free some.
    pub fn fill(&self) {
        let filler = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(FILLER));
        // Without room for a new file it is as full as it gets.
        let Ok(mut filler) = filler else { return };
        let zeros = [0; STEPS[0]];
        for step in STEPS {
            while filler.write_all(&zeros[..step]).is_ok() {}
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    /// The filling file cannot be removed.
    pub fn empty(&self) -> anyhow::Result<()> {
        let path = self.directory.join(FILLER);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("-l")
            .arg(&self.directory)
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            tracing::warn!(directory = %self.directory.display(), "cannot be unmounted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_emptied() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let Some(disk) = Disk::mount(&state, 1).unwrap() else {
            eprintln!("skipped: this process may not mount a tmpfs");
            return;
        };
        let path = state.join("other");
        disk.empty().unwrap();
        disk.fill();
        assert!(std::fs::write(&path, b"x").is_err());
        disk.empty().unwrap();
        std::fs::write(&path, b"x").unwrap();
        drop(disk);
        assert!(!path.exists());
    }
}
