//! What the gateway administrator revoked, as files in the identity directory: the list
//! `revoked.cbor`, and in `revocations/` a signed statement per device for the logs.
//!
//! Both are read again when they changed. A file that cannot be used is told once, until it
//! changes, and never stops anything: what was in force before stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dcnet::identity::Certificate;
use dcnet::provider::ProviderCommand;
use dcnet::revocation::{RevocationList, verify_revocation};
use link::credentials::{self, FileVersion, REVOCATION_LIST, RevocationFile};

/// The directory of the signed statements, `*.cbor`; may be absent.
pub const STATEMENTS: &str = "revocations";

const ADVICE: &str = "copy it again from the gateway administrator's directory";

/// The files, and what they say as far as it is signed by the administrator.
#[derive(Clone, Debug)]
pub struct Revocations {
    administrator: Certificate,
    list_file: RevocationFile,
    list: Option<RevocationList>,
    directory: PathBuf,
    statements: BTreeMap<PathBuf, Statement>,
    /// What was told of the list and the directory at the last look.
    told: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Statement {
    version: FileVersion,
    /// `None` if it is not signed by the administrator.
    frame: Option<Vec<u8>>,
}

/// What a look at the files found.
#[derive(Debug, Default)]
pub struct Look {
    /// Whether there is something new to tell the nets: see [`Revocations::command`].
    pub changed: bool,
    /// Files that cannot be used and were not told before, and what to do about each.
    pub problems: Vec<anyhow::Error>,
}

impl Revocations {
    /// The files of an identity directory, not looked at yet.
    pub fn new(identity: &Path, administrator: Certificate) -> Self {
        Self {
            list_file: RevocationFile::new(identity.join(REVOCATION_LIST), administrator.clone()),
            administrator,
            list: None,
            directory: identity.join(STATEMENTS),
            statements: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// Whose signature they need.
    pub fn administrator(&self) -> &Certificate {
        &self.administrator
    }

    /// The newest list, if there was a good one.
    pub fn list(&self) -> Option<&RevocationList> {
        self.list.as_ref()
    }

    /// What the nets are to be told; `None` if nothing was ever revoked.
    pub fn command(&self) -> Option<ProviderCommand> {
        let revocations: Vec<Vec<u8>> = self
            .statements
            .values()
            .filter_map(|statement| statement.frame.clone())
            .collect();
        if self.list.is_none() && revocations.is_empty() {
            return None;
        }
        Some(ProviderCommand::Revoked {
            // Any list that the administrator signs later has a higher number, or is empty too.
            list: self
                .list
                .clone()
                .unwrap_or_else(|| RevocationList::new(0, Vec::new())),
            administrator: self.administrator.clone(),
            revocations,
        })
    }

    /// Looks at the files, and reads those that changed.
    pub fn look(&mut self) -> Look {
        let mut look = Look::default();
        let mut problems = Vec::new();
        match self.list_file.changed() {
            Ok(Some(list)) => {
                self.list = Some(list);
                look.changed = true;
            }
            Ok(None) => {}
            Err(error) => problems.push(error),
        }
        match statement_files(&self.directory) {
            Ok(files) => self.read_statements(files, &mut look),
            Err(error) => problems.push(error),
        }
        let texts = problems.iter().map(|problem| format!("{problem:#}"));
        let texts: BTreeSet<String> = texts.collect();
        problems.retain(|problem| !self.told.contains(&format!("{problem:#}")));
        self.told = texts;
        problems.append(&mut look.problems);
        look.problems = problems;
        look
    }

    fn read_statements(&mut self, files: Vec<(PathBuf, Metadata)>, look: &mut Look) {
        let mut before = std::mem::take(&mut self.statements);
        for (path, metadata) in files {
            let version = FileVersion::of(&metadata);
            let known = before.remove(&path).filter(|old| old.version == version);
            let statement = known.unwrap_or_else(|| {
                let frame = match self.read_statement(&path, &metadata) {
                    Ok(frame) => {
                        look.changed = true;
                        Some(frame)
                    }
                    Err(problem) => {
                        look.problems.push(problem);
                        None
                    }
                };
                Statement { version, frame }
            });
            self.statements.insert(path, statement);
        }
    }

    fn read_statement(&self, path: &Path, metadata: &Metadata) -> anyhow::Result<Vec<u8>> {
        let shown = path.display();
        ensure!(
            metadata.is_file(),
            "{shown} is not a regular file; {ADVICE}"
        );
        let frame = credentials::bytes(path, ADVICE)?;
        verify_revocation(&frame, &self.administrator).with_context(|| {
            let administrator = self.administrator.id();
            format!(
                "{shown} is no revocation signed by the administrator {administrator}; {ADVICE}"
            )
        })?;
        Ok(frame)
    }
}

/// The files `*.cbor` of a directory that may be missing.
fn statement_files(directory: &Path) -> anyhow::Result<Vec<(PathBuf, Metadata)>> {
    let cannot = || format!("cannot look into {}", directory.display());
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(cannot)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(cannot)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "cbor")
        {
            // One that is being replaced is seen at the next look.
            files.extend(path.metadata().ok().map(|metadata| (path, metadata)));
        }
    }
    Ok(files)
}
