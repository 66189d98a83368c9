//! The file with the gateway administrator's signed list of revoked devices.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use dcnet::identity::Certificate;
use dcnet::revocation::RevocationList;

use crate::file::{FileVersion, bytes};

/// What to do about a revocation list that cannot be used.
const ASK: &str = "ask the gateway administrator for the newest list";

/// The file of the administrator's revocation list, read whenever it changed.
///
/// A file is opened only if its [`FileVersion`] is not what it was at the last look, so
/// it can be asked every few seconds.
#[derive(Clone, Debug)]
pub struct RevocationFile {
    path: PathBuf,
    administrator: Certificate,
    /// `None` before the first look, and if the file could not be read.
    last_look: Option<Look>,
    in_force: Option<RevocationList>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Missing,
    File(FileVersion),
}

impl RevocationFile {
    /// A file that was not read yet, and that may be missing.
    pub fn new(path: impl Into<PathBuf>, administrator: Certificate) -> Self {
        Self {
            path: path.into(),
            administrator,
            last_look: None,
            in_force: None,
        }
    }

    /// The list in the file, if it is not the one given last. As long as there never was
    /// a file, there is no list, and no device is revoked.
    ///
    /// # Errors
    /// What the administrator did not sign, a list of a lower number than the one
    /// given last, or a file that is gone: told once, until the file changes again. A
    /// file that cannot be read or is longer than [`LENGTH_LIMIT`](crate::file::LENGTH_LIMIT):
    /// told at every call. The list given last stays in force in all these cases.
    pub fn changed(&mut self) -> anyhow::Result<Option<RevocationList>> {
        let before = self.last_look.take();
        let look = self.look()?;
        if before == Some(look) {
            self.last_look = before;
            return Ok(None);
        }
        let frame = match look {
            Look::Missing => None,
            Look::File(_) => Some(bytes(&self.path, ASK)?),
        };
        self.last_look = Some(look);
        let path = self.path.display();
        let Some(frame) = frame else {
            return match &self.in_force {
                None => Ok(None),
                Some(list) => bail!(
                    "{path} is gone; list {} stays in force; {ASK}",
                    list.number()
                ),
            };
        };
        let list = RevocationList::verify(&frame, &self.administrator).with_context(|| {
            let administrator = self.administrator.id();
            format!("{path} is no list signed by the administrator {administrator}; {ASK}")
        })?;
        if let Some(in_force) = &self.in_force {
            ensure!(
                list.number() >= in_force.number(),
                "{path} has number {}, but {} is in force, which is newer; {ASK}",
                list.number(),
                in_force.number()
            );
            if list == *in_force {
                return Ok(None);
            }
        }
        self.in_force = Some(list.clone());
        Ok(Some(list))
    }

    /// Names a list that is in force already, such as one that was stored: an older one in
    /// the file, or a missing file, is told at the next call of [`Self::changed`].
    pub fn in_force(&mut self, list: &RevocationList) {
        if list.replaces(self.in_force.as_ref()) {
            self.in_force = Some(list.clone());
            self.last_look = None;
        }
    }

    /// Has the next call of [`Self::changed`] read the file even if it looks unchanged.
    pub fn look_again(&mut self) {
        self.last_look = None;
    }

    fn look(&self) -> anyhow::Result<Look> {
        // A link that leads nowhere is a mistake, not a missing list.
        match self.path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Look::Missing),
            _ => {}
        }
        let metadata = self
            .path
            .metadata()
            .with_context(|| format!("cannot look at {}; {ASK}", self.path.display()))?;
        ensure!(
            metadata.is_file(),
            "{} is not a regular file; {ASK}",
            self.path.display()
        );
        Ok(Look::File(FileVersion::of(&metadata)))
    }
}
