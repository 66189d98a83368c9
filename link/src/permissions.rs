//! Files that hold secrets must be closed to everyone but their owner.
//!
//! Every function takes a path and a word on what is kept there (`holds`, such as
//! "a private key"), which its message names.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

const OTHERS: u32 = 0o077;
/// What group and others must not have of a [credential](is_credential): the service manager
/// lets its reader in by an access control list, whose mask shows as the group's right to read.
const OTHERS_OF_CREDENTIAL: u32 = 0o037;

/// The directory with the credentials that systemd made for this process alone, if it did
/// (systemd.exec(5), "Credentials").
pub fn credentials_directory() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// Whether a file lies in the directory of credentials, which nobody else can enter.
fn is_credential(path: &Path, directory: Option<&Path>) -> bool {
    directory.is_some() && path.parent() == directory
}

/// Gives a file to the owner of a directory, if that is somebody else: what root makes with a
/// command for a daemon must be the daemon's.
///
/// # Errors
/// One of them is not there; the process may not give files away.
pub fn give_to_owner_of(directory: &Path, file: &Path) -> anyhow::Result<()> {
    let look = |path: &Path| {
        path.metadata()
            .with_context(|| format!("cannot look at {}", path.display()))
    };
    let (owner, now) = (look(directory)?, look(file)?);
    if (owner.uid(), owner.gid()) == (now.uid(), now.gid()) {
        return Ok(());
    }
    chown(file, Some(owner.uid()), Some(owner.gid())).with_context(|| {
        format!(
            "cannot give {} to the owner of {}; run this as that user or as root",
            file.display(),
            directory.display()
        )
    })
}

/// Refuses a file that is not a regular file (a symbolic link is none) or that
/// group or others may use. The file is not opened: see [`crate::database`].
///
/// # Errors
/// Names the file, its mode and the command that mends it.
pub fn require_private_file(path: &Path, holds: &str) -> anyhow::Result<()> {
    let metadata = path
        .symlink_metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    require_private_regular(path, &metadata, holds)
}

/// As [`require_private_file`], of metadata that were read already.
pub(crate) fn require_private_regular(
    path: &Path,
    metadata: &Metadata,
    holds: &str,
) -> anyhow::Result<()> {
    require_regular(path, metadata)?;
    require_private(path, metadata, holds, "600", others(path))
}

/// Refuses a directory that group or others may enter or list.
///
/// # Errors
/// Names the directory, its mode and the command that mends it.
pub fn require_private_directory(path: &Path, holds: &str) -> anyhow::Result<()> {
    let metadata = path
        .metadata()
        .with_context(|| format!("cannot look at {}", path.display()))?;
    ensure!(metadata.is_dir(), "{} is not a directory", path.display());
    require_private(path, &metadata, holds, "700", OTHERS)
}

/// Opens a file for reading and refuses what [`require_private_file`] refuses. The
/// mode is asked of the open file, so it is the mode of what will be read. `advice`
/// says what to do if there is no such file.
///
/// # Errors
/// As [`require_private_file`]; a file that is missing, cannot be opened, or was
/// replaced meanwhile.
pub fn open_private_file(path: &Path, holds: &str, advice: &str) -> anyhow::Result<File> {
    let unreadable = |error: io::Error| {
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "only its owner may, and the service manager gives it to the service alone"
            }
            _ => advice,
        };
        anyhow::Error::new(error).context(format!("cannot read {}; {advice}", path.display()))
    };
    // Opening a pipe would wait for its writer.
    let seen = path.symlink_metadata().map_err(unreadable)?;
    require_regular(path, &seen)?;
    let file = File::open(path).map_err(unreadable)?;
    let opened = file.metadata().map_err(unreadable)?;
    ensure!(
        (seen.dev(), seen.ino()) == (opened.dev(), opened.ino()),
        "{} was replaced while it was being opened; try again",
        path.display()
    );
    require_private(path, &opened, holds, "600", others(path))?;
    Ok(file)
}

fn require_regular(path: &Path, metadata: &Metadata) -> anyhow::Result<()> {
    ensure!(
        metadata.is_file(),
        "{} is not a regular file",
        path.display()
    );
    Ok(())
}

fn others(path: &Path) -> u32 {
    if is_credential(path, credentials_directory().as_deref()) {
        OTHERS_OF_CREDENTIAL
    } else {
        OTHERS
    }
}

fn require_private(
    path: &Path,
    metadata: &Metadata,
    holds: &str,
    wanted: &str,
    others: u32,
) -> anyhow::Result<()> {
    let mode = metadata.permissions().mode() & 0o7777;
    ensure!(
        mode & others == 0,
        "{path} holds {holds}, but its mode {mode:03o} lets others in; run: chmod {wanted} {path}",
        path = path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_in_the_directory_of_credentials_are_credentials() {
        let directory = Some(Path::new("/run/credentials/a.service"));
        let key = Path::new("/run/credentials/a.service/key.pem");
        assert!(is_credential(key, directory));
        assert!(!is_credential(key, None));
        for other in ["/etc/key.pem", "/run/credentials/a.service/more/key.pem"] {
            assert!(!is_credential(Path::new(other), directory), "{other}");
        }
        assert!(!is_credential(Path::new("/"), None), "it has no parent");
    }

    #[test]
    fn a_credential_may_show_the_mask_of_its_access_control_list_but_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        std::fs::write(&path, "key").unwrap();
        let accepted = |mode: u32, others: u32| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).unwrap();
            let metadata = path.metadata().unwrap();
            require_private(&path, &metadata, "a key", "600", others).is_ok()
        };
        for mode in [0o400, 0o600] {
            assert!(accepted(mode, OTHERS) && accepted(mode, OTHERS_OF_CREDENTIAL));
        }
        assert!(accepted(0o440, OTHERS_OF_CREDENTIAL));
        assert!(!accepted(0o440, OTHERS));
        for mode in [0o460, 0o404, 0o444] {
            assert!(!accepted(mode, OTHERS_OF_CREDENTIAL), "{mode:o}");
        }
    }
}
