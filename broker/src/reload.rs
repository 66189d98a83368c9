//! Files that may change while the broker runs: revocation list, permissions,
//! passwords, the broker's own certificate. What cannot be used is reported and
//! counted, and what is in force stays.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use tokio::sync::{mpsc, oneshot};

use crate::config::{Config, Services, now};
use crate::gate::Shared;
use crate::passwords::Passwords;
use crate::policy::Policy;
use crate::revocation::Source;
use crate::rules::Rules;
use crate::tls::{OwnCertificate, credential};

/// What tells one version of a file from another; `None` if there is none.
type Version = Option<(SystemTime, u64, u64)>;

fn version(path: &Path) -> Version {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// A file, or two that belong together, and the versions seen last.
struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Version>,
}

impl Watched {
    fn new(paths: Vec<PathBuf>) -> Self {
        let seen = paths.iter().map(|path| version(path)).collect();
        Self { paths, seen }
    }

    /// Whether something changed since the last call.
    fn changed(&mut self) -> bool {
        let versions: Vec<Version> = self.paths.iter().map(|path| version(path)).collect();
        let changed = versions != self.seen;
        self.seen = versions;
        changed
    }
}

/// Where everything comes from that may change.
pub(crate) struct Sources {
    config: Config,
    revocations: Option<Source>,
    permissions: Option<(PathBuf, Watched)>,
    passwords: Option<(PathBuf, Watched)>,
    certificate: Watched,
}

impl Sources {
    pub(crate) fn new(config: Config, services: &Services, revocations: Option<Source>) -> Self {
        let watched = |path: &Option<PathBuf>| {
            let path = path.clone()?;
            Some((path.clone(), Watched::new(vec![path])))
        };
        let key = credential().unwrap_or_else(|| config.key.clone());
        Self {
            revocations,
            permissions: watched(&services.permissions),
            passwords: watched(&services.passwords),
            certificate: Watched::new(vec![config.certificate.clone(), key]),
            config,
        }
    }

    /// Puts in force what changed, and with `all` what did not.
    fn read(&mut self, shared: &Shared, all: bool) {
        self.read_revocations(shared);
        let current = Arc::clone(&shared.policy.borrow());
        let mut policy = Policy::clone(&current);
        if let Some((path, watched)) = &mut self.permissions
            && (watched.changed() || all)
            && let Some(rules) = accepted(shared, Rules::read(path))
            && rules != *policy.rules
        {
            put_in_force(shared, "permissions", path);
            policy.rules = Arc::new(rules);
        }
        if let Some((path, watched)) = &mut self.passwords
            && (watched.changed() || all)
            && let Some(passwords) = accepted(shared, passwords(path, &policy))
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
            && let Some(own) = accepted(shared, OwnCertificate::read(&self.config, &shared.ca))
        {
            shared.tls.replace(own);
            if changed {
                put_in_force(shared, "certificate", &self.config.certificate);
            }
        }
    }

    fn read_revocations(&mut self, shared: &Shared) {
        let Some(source) = &mut self.revocations else {
            return;
        };
        let current = shared
            .revocations
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match source.read(current.as_ref()) {
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

fn accepted<T>(shared: &Shared, read: anyhow::Result<T>) -> Option<T> {
    read.map_err(|error| refused(&error, &shared.registry.cells.reloads_refused))
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
