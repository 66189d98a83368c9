//! Files that may change while the broker runs: revocation list, permissions,
//! passwords, the broker's own certificate. What cannot be used is reported and
//! counted, and what is in force stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use secrets::file::FileVersion;
use secrets::revocation::RevocationFile;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, now};
use crate::gate::Shared;
use crate::passwords::Passwords;
use crate::policy::Policy;
use crate::rules::Rules;
use crate::tls::{OwnCertificate, credential};

/// A file, or two that belong together, and the versions seen last; `None` of one that is not
/// there.
struct Watched {
    paths: Vec<PathBuf>,
    seen: Option<Vec<Option<FileVersion>>>,
}

impl Watched {
    fn new(paths: Vec<PathBuf>) -> Self {
        let mut watched = Self { paths, seen: None };
        watched.changed();
        watched
    }

    /// Whether something changed since the last call.
    fn changed(&mut self) -> bool {
        let versions = self.paths.iter().map(|path| FileVersion::at(path));
        let versions = Some(versions.collect());
        let changed = versions != self.seen;
        self.seen = versions;
        changed
    }

    /// Takes a file that is there and could not be read for changed the next time, too.
    fn look_again_after(&mut self, error: &anyhow::Error) {
        let unreadable = |error: &io::Error| error.kind() != io::ErrorKind::NotFound;
        let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
        if causes.any(unreadable) {
            self.seen = None;
        }
    }
}

/// Where everything comes from that may change.
pub(crate) struct Sources {
    config: Config,
    revocations: Option<RevocationFile>,
    permissions: Option<(PathBuf, Watched)>,
    passwords: Option<(PathBuf, Watched)>,
    certificate: Watched,
}

impl Sources {
    pub(crate) fn new(config: Config, revocations: Option<RevocationFile>) -> Self {
        let watched = |path: &Option<PathBuf>| {
            let path = path.clone()?;
            Some((path.clone(), Watched::new(vec![path])))
        };
        let key = credential().unwrap_or_else(|| config.key.clone());
        Self {
            revocations,
            permissions: watched(&config.permissions),
            passwords: watched(&config.passwords),
            certificate: Watched::new(vec![config.certificate.clone(), key]),
            config,
        }
    }

    /// Puts in force what changed, and with `all` what did not.
    fn read(&mut self, shared: &Shared, all: bool) {
        self.read_revocations(shared, all);
        let current = Arc::clone(&shared.policy.borrow());
        let mut policy = Policy::clone(&current);
        if let Some((path, watched)) = &mut self.permissions
            && (watched.changed() || all)
            && let Some(rules) = accepted(shared, watched, Rules::read(path))
            && rules != *policy.rules
        {
            put_in_force(shared, "permissions", path);
            policy.rules = Arc::new(rules);
        }
        if let Some((path, watched)) = &mut self.passwords
            && (watched.changed() || all)
            && let Some(passwords) = accepted(shared, watched, passwords(path, &policy))
            && passwords != *policy.passwords
        {
            put_in_force(shared, "passwords", path);
            policy.passwords = Arc::new(passwords);
        }
        let same = Arc::ptr_eq(&policy.rules, &current.rules)
            && Arc::ptr_eq(&policy.passwords, &current.passwords);
        if !same {
            shared.policy.send_replace(Arc::new(policy));
        }
        let changed = self.certificate.changed();
        if (changed || all)
            && let Some(own) = accepted(
                shared,
                &mut self.certificate,
                OwnCertificate::read(&self.config, &shared.ca),
            )
        {
            shared.tls.replace(own);
            if changed {
                put_in_force(shared, "certificate", &self.config.certificate);
            }
        }
    }

    fn read_revocations(&mut self, shared: &Shared, changed_or_not: bool) {
        let Some(file) = &mut self.revocations else {
            return;
        };
        if changed_or_not {
            file.look_again();
        }
        match file.changed() {
            Ok(Some(list)) => {
                tracing::info!(
                    number = list.number(),
                    devices = list.devices().count(),
                    "revocation list"
                );
                *shared
                    .revocations
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = Some(list);
            }
            Ok(None) => {}
            Err(error) => refused(&error, &shared.registry.cells.lists_refused),
        }
    }
}

/// A file that is gone takes nobody's password: it may be on its way back.
fn passwords(path: &Path, policy: &Policy) -> anyhow::Result<Passwords> {
    let passwords = Passwords::read(path)?;
    ensure!(
        passwords.len() > 0 || policy.passwords.len() == 0 || path.exists(),
        "passwords {} are gone",
        path.display()
    );
    Ok(passwords)
}

fn put_in_force(shared: &Shared, what: &str, path: &Path) {
    shared.registry.cells.reloads.fetch_add(1, Relaxed);
    tracing::info!(path = %path.display(), "new {what} in force");
}

fn accepted<T>(shared: &Shared, watched: &mut Watched, read: anyhow::Result<T>) -> Option<T> {
    read.map_err(|error| {
        watched.look_again_after(&error);
        refused(&error, &shared.registry.cells.reloads_refused);
    })
    .ok()
}

fn refused(error: &anyhow::Error, counter: &AtomicU64) {
    tracing::error!("{error:#}; what is in force stays");
    counter.fetch_add(1, Relaxed);
}

/// Reads what changed, again and again, and everything when asked; ends sessions that
/// became invalid.
pub(crate) async fn watch(
    shared: Arc<Shared>,
    mut sources: Sources,
    period: Duration,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        let asker = tokio::time::timeout(period, asked.recv()).await;
        sources.read(&shared, asker.is_ok());
        {
            let revocations = shared
                .revocations
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            shared.registry.end_invalid(now(), |id| {
                revocations.as_ref().is_some_and(|list| list.contains(id))
            });
        }
        match asker {
            Ok(Some(asker)) => {
                let _ = asker.send(());
            }
            // The broker is being dropped.
            Ok(None) => return,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn only_a_file_that_is_there_and_could_not_be_read_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let mut watched = Watched::new(vec![path.clone()]);
        let read = |error: io::Error| Err::<(), _>(error).context("file").unwrap_err();
        for (error, again) in [
            (read(io::ErrorKind::PermissionDenied.into()), true),
            (read(io::ErrorKind::NotFound.into()), false),
            (anyhow::anyhow!("line 1 is wrong"), false),
        ] {
            assert!(!watched.changed());
            watched.look_again_after(&error);
            assert_eq!(watched.changed(), again, "{error:#}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(watched.changed(), "it is gone");
    }
}
