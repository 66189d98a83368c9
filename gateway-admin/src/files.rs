//! Files as this tool treats them: created whole or not at all, never
//! overwritten by accident, and refused when others may read a secret in them.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::error::Error;

/// Longest file this tool reads, in bytes, except its own registry.
pub(crate) const MAX_FILE: u64 = 64 * 1024;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Mode 0600: the owner alone.
    Secret,
    /// Mode 0644, less the process's umask.
    Public,
}

impl Access {
    fn mode(self) -> u32 {
        match self {
            Self::Secret => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes a new file. It appears complete and synced, or not at all.
///
/// # Errors
/// [`Error::Exists`] if the path is taken, [`Error::DirectoryMode`] if the file is a
/// secret and others may write to its directory, [`Error::Io`].
pub(crate) fn create(path: &Path, bytes: &[u8], access: Access) -> Result<(), Error> {
    if access == Access::Secret {
        check_directory(directory_of(path))?;
    }
    written(path, bytes, access)?
        .persist_noclobber(path)
        .map_err(|e| Error::io(path)(e.error))?;
    sync(directory_of(path))
}

/// Writes a file in place of another, if there is one. Readers see the old or the new.
///
/// # Errors
/// [`Error::Io`]
pub(crate) fn replace(path: &Path, bytes: &[u8], access: Access) -> Result<(), Error> {
    written(path, bytes, access)?
        .persist(path)
        .map_err(|e| Error::io(path)(e.error))?;
    sync(directory_of(path))
}

fn written(path: &Path, bytes: &[u8], access: Access) -> Result<NamedTempFile, Error> {
    let directory = directory_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(access.mode()))
        .tempfile_in(directory)
        .map_err(Error::io(directory))?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.as_file().sync_all().map_err(Error::io(path))?;
    Ok(file)
}

fn sync(directory: &Path) -> Result<(), Error> {
    File::open(directory)
        .and_then(|d| d.sync_all())
        .map_err(Error::io(directory))
}

/// The directory a path lies in.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a directory of mode 0700 and the ones above it, or accepts one that only
/// its owner may write to.
///
/// # Errors
/// [`Error::DirectoryMode`] or [`Error::Io`].
pub(crate) fn create_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io(path))?;
    check_directory(path)
}

/// Refuses a directory that its group or others may write to.
///
/// # Errors
/// [`Error::DirectoryMode`] or [`Error::Io`].
pub(crate) fn check_directory(path: &Path) -> Result<(), Error> {
    let mode = fs::metadata(path)
        .map_err(Error::io(path))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o022 == 0 {
        Ok(())
    } else {
        Err(Error::DirectoryMode {
            path: path.to_owned(),
            mode,
        })
    }
}

/// Refuses names that are taken.
///
/// # Errors
/// [`Error::Exists`] with the first one.
pub fn refuse_existing<'a>(
    directory: &Path,
    names: impl IntoIterator<Item = &'a str>,
) -> Result<(), Error> {
    match names
        .into_iter()
        .map(|name| directory.join(name))
        .find(|path| path.symlink_metadata().is_ok())
    {
        Some(path) => Err(Error::Exists(path)),
        None => Ok(()),
    }
}

/// Reads a file of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// [`Error::TooLong`] or [`Error::Io`].
pub(crate) fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io(path))?;
    read_bounded(file, path, what)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`], and [`Error::Content`] if it is no UTF-8.
pub(crate) fn read_text(path: &Path, what: &'static str) -> Result<String, Error> {
    String::from_utf8(read(path, what)?).map_err(|_| Error::Content {
        path: path.to_owned(),
        what,
    })
}

/// Reads a file that holds a secret, unless others may read or replace it.
///
/// # Errors
/// [`Error::KeyMode`], [`Error::DirectoryMode`], and as [`read_text`].
pub(crate) fn read_secret(path: &Path, what: &'static str) -> Result<Zeroizing<String>, Error> {
    // The mode is asked of the open file, so that it is the mode of what is read.
    let file = File::open(path).map_err(Error::io(path))?;
    let mode = file
        .metadata()
        .map_err(Error::io(path))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    check_directory(directory_of(path))?;
    let bytes = Zeroizing::new(read_bounded(file, path, what)?);
    std::str::from_utf8(&bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| Error::Content {
            path: path.to_owned(),
            what,
        })
}

fn read_bounded(file: File, path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    // Room for the largest file at once: growing would leave copies of a secret behind.
    let mut bytes = Vec::with_capacity(MAX_FILE as usize + 1);
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLong {
            path: PathBuf::from(path),
            what,
            limit: MAX_FILE,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_new_file_has_its_mode_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        create(&path, b"one", Access::Secret).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(
            create(&path, b"two", Access::Secret),
            Err(Error::Exists(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        // No half-written file is left behind either.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dangling_link_counts_as_existing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(matches!(
            create(&path, b"secret", Access::Secret),
            Err(Error::Exists(_))
        ));
        assert!(matches!(
            refuse_existing(dir.path(), ["key.pem"]),
            Err(Error::Exists(_))
        ));
        assert!(!elsewhere.exists());
    }

    #[test]
    fn every_bit_for_group_or_world_makes_a_secret_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        create(&path, b"secret", Access::Secret).unwrap();
        for bit in 0..9 {
            let bits = 0o600 | 1 << bit;
            chmod(&path, bits);
            let read = read_secret(&path, "a key");
            if bits & 0o077 == 0 {
                assert_eq!(read.unwrap().as_str(), "secret", "{bits:o}");
            } else {
                let message = read.unwrap_err().to_string();
                assert!(message.contains("chmod 600"), "{bits:o}: {message}");
            }
        }
    }

    #[test]
    fn a_directory_that_others_write_to_holds_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        create(&path, b"secret", Access::Secret).unwrap();
        for bits in [0o720, 0o702, 0o777, 0o1777] {
            chmod(dir.path(), bits);
            let message = read_secret(&path, "a key").unwrap_err().to_string();
            assert!(message.contains("chmod go-w"), "{bits:o}: {message}");
            assert!(matches!(
                create(&dir.path().join("other"), b"x", Access::Secret),
                Err(Error::DirectoryMode { .. })
            ));
            assert!(create_directory(dir.path()).is_err());
        }
        chmod(dir.path(), 0o755);
        assert!(read_secret(&path, "a key").is_ok());
    }

    #[test]
    fn long_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        fs::write(&path, vec![b'x'; MAX_FILE as usize]).unwrap();
        assert!(read(&path, "a request").is_ok());
        fs::write(&path, vec![b'x'; MAX_FILE as usize + 1]).unwrap();
        assert!(matches!(
            read(&path, "a request"),
            Err(Error::TooLong { .. })
        ));
    }
}
