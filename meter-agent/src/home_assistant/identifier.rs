//! The name by which Home Assistant knows the meter.
//!
//! It is drawn at random and has nothing to do with the meter's id in its net: the provider
//! knows that one, and nobody who sees the household's broker shall learn from it which meter of
//! the net this household is. Nor is it derived from the meter's key, which nothing here has to
//! touch. It is kept beside the state, so that the history in Home Assistant goes on after a
//! restart, and after a new enrolment.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

const FILE: &str = "home-assistant-id";

/// An id of 64 random bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identifier(u64);

impl fmt::Display for Identifier {
    /// As a level of a topic.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meter-{:016x}", self.0)
    }
}

impl Identifier {
    /// The one that is kept in a directory; at first it is drawn.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds something else.
    pub(super) fn load(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(text.trim_end()).with_context(|| {
                format!(
                    "{} holds no id; delete it, and Home Assistant is shown a new device",
                    path.display()
                )
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let drawn = Self(getrandom::u64().context("there is no randomness")?);
                drawn
                    .save(directory, &path)
                    .with_context(|| format!("cannot make {}", path.display()))?;
                Ok(drawn)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// An id as it is shown.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let digits = text.strip_prefix("meter-").unwrap_or_default();
        let id = u64::from_str_radix(digits, 16).map(Self);
        let id = id.context("it is not meter- and 16 hexadecimal digits")?;
        ensure!(id.to_string() == text, "it has not 16 lower-case digits");
        Ok(id)
    }

    /// Whole or not at all, whatever happens meanwhile.
    fn save(&self, directory: &Path, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("part");
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(&temporary)?;
        writeln!(file, "{self}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_drawn_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let drawn = Identifier::load(directory.path()).unwrap();
        assert_eq!(Identifier::load(directory.path()).unwrap(), drawn);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Identifier::load(other.path()).unwrap(), drawn);
        let names = std::fs::read_dir(directory.path()).unwrap();
        assert_eq!(names.count(), 1, "nothing else is left there");
    }

    #[test]
    fn a_file_with_something_else_is_told_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        for text in [
            "",
            "meter-",
            "meter-12",
            "meter-+00000000000001f",
            "0123456789abcdef",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Identifier::load(directory.path()).unwrap_err();
            assert!(format!("{error:#}").contains("delete it"), "{error:#}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
