//! Whether the household wants nothing of new intervals to leave the house.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

/// A switch that outlives restarts: while it is on, pulses are counted, but no boundary
/// reaches the meter, so it submits nothing. A round that was submitted is still revealed,
/// for the others' sum would wait. The interval in which it is switched off is the first that
/// can be submitted again if no boundary was missed, else the one after.
#[derive(Clone, Debug)]
pub struct Pause {
    /// There while paused.
    file: Arc<PathBuf>,
    paused: Arc<watch::Sender<bool>>,
}

impl Pause {
    /// The switch of a state directory.
    pub(super) fn open(directory: &Path) -> Self {
        let file = directory.join("paused");
        Self {
            paused: Arc::new(watch::Sender::new(file.exists())),
            file: Arc::new(file),
        }
    }

    /// Whether it is on.
    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    /// Switches it on or off; durable when this returns.
    ///
    /// # Errors
    /// The state directory cannot be written; the switch then stays as it was.
    pub fn set(&self, paused: bool) -> anyhow::Result<()> {
        let change = || {
            match paused {
                true => {
                    std::fs::File::create(self.file.as_path())?.sync_all()?;
                }
                false => match std::fs::remove_file(self.file.as_path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                },
            }
            match self.file.parent() {
                Some(directory) => std::fs::File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        change().with_context(|| format!("cannot change {}", self.file.display()))?;
        if self.paused.send_replace(paused) != paused {
            tracing::warn!(
                "the household has {}",
                if paused {
                    "paused this meter: it counts on and submits nothing"
                } else {
                    "resumed this meter"
                }
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_outlives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let pause = Pause::open(directory.path());
        assert!(!pause.is_paused());
        pause.set(true).unwrap();
        pause.set(true).unwrap();
        assert!(pause.is_paused());
        let after = Pause::open(directory.path());
        assert!(after.is_paused());
        after.set(false).unwrap();
        after.set(false).unwrap();
        assert!(!Pause::open(directory.path()).is_paused());
    }

    #[test]
    fn a_pause_that_cannot_be_stored_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let pause = Pause::open(&directory.path().join("missing"));
        let error = pause.set(true).unwrap_err().to_string();
        assert!(error.contains("missing/paused"), "{error}");
        assert!(!pause.is_paused());
    }
}
