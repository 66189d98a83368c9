//! What keeps the database from being used for now, and what to do about it.

use std::fmt;
use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

/// Something about the host that may clear: nothing in the database is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no room.
    Full,
    /// Another process holds the database locked for longer than a writer waits.
    Locked,
    /// The file system takes nothing.
    ReadOnly,
    /// Reading or writing fails.
    Failing,
}

impl Fault {
    /// The fault behind an error; `None` if waiting does not help, for instance because a
    /// record contradicts the database or the file is damaged.
    pub fn of(error: &anyhow::Error) -> Option<Self> {
        error.chain().find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<rusqlite::Error>() {
                return match error.sqlite_error_code()? {
                    ErrorCode::DiskFull => Some(Self::Full),
                    ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some(Self::Locked),
                    ErrorCode::ReadOnly => Some(Self::ReadOnly),
                    ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::FileLockingProtocolFailed => Some(Self::Failing),
                    _ => None,
                };
            }
            let error = cause.downcast_ref::<io::Error>()?;
            Some(match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
                io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
                _ => Self::Failing,
            })
        })
    }

    /// The fault of a disk that takes nothing, which is waited for even before the database was
    /// open; `None` if a person has to do something about an error, or another process.
    pub fn of_disk(error: &anyhow::Error) -> Option<Self> {
        let is_disk = error.chain().any(|cause| {
            let code = cause
                .downcast_ref::<rusqlite::Error>()
                .and_then(rusqlite::Error::sqlite_error_code);
            let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
            matches!(code, Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure))
                || matches!(
                    kind,
                    Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                )
        });
        Self::of(error).filter(|_| is_disk)
    }

    /// What is wrong with the database in `path`, and what to do.
    pub fn advice(self, path: &Path) -> Advice<'_> {
        Advice { fault: self, path }
    }
}

/// A fault in words; see [`Fault::advice`].
#[derive(Clone, Copy, Debug)]
pub struct Advice<'a> {
    fault: Fault,
    path: &'a Path,
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.fault {
            Fault::Full => write!(f, "the disk of {path} is full; make room there"),
            Fault::Locked => write!(
                f,
                "another process holds {path} locked; end it (`fuser -v {path}` names it)"
            ),
            Fault::ReadOnly => write!(
                f,
                "the file system of {path} is read-only; see why (`dmesg`) and remount it"
            ),
            Fault::Failing => write!(
                f,
                "the disk of {path} cannot be used; look for a limit on file sizes, a quota, or \
                 a failing device (`dmesg`)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn sqlite(code: i32) -> anyhow::Error {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        Err::<(), _>(error).context("cannot commit").unwrap_err()
    }

    #[test]
    fn only_what_may_clear_is_a_fault() {
        for (code, fault) in [
            (rusqlite::ffi::SQLITE_FULL, Some(Fault::Full)),
            (rusqlite::ffi::SQLITE_BUSY, Some(Fault::Locked)),
            (rusqlite::ffi::SQLITE_READONLY, Some(Fault::ReadOnly)),
            (rusqlite::ffi::SQLITE_IOERR_FSYNC, Some(Fault::Failing)),
            (rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE, None),
            (rusqlite::ffi::SQLITE_CORRUPT, None),
            (rusqlite::ffi::SQLITE_NOTADB, None),
        ] {
            assert_eq!(Fault::of(&sqlite(code)), fault, "{code}");
            let of_disk = fault.filter(|fault| matches!(fault, Fault::Full | Fault::Failing));
            assert_eq!(Fault::of_disk(&sqlite(code)), of_disk, "{code}");
        }
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Fault::of(&full.into()), Some(Fault::Full));
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(Fault::of_disk(&missing.into()), None);
        assert_eq!(Fault::of(&anyhow::anyhow!("round 7 has a roster")), None);
    }
}
