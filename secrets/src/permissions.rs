//! Files that hold secrets must be closed to everyone but their owner.
//!
//! Functions that refuse a file take a word on what is kept there (`holds`, such as
//! "a private key"), which their message names.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
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

/// Puts a text into a file of mode 0600, which is whole at any time. It belongs to the owner
/// of `like`, a file or directory: what root makes with a command for a daemon must be the
/// daemon's.
///
/// # Errors
/// It cannot be written; the process may not give files away.
pub fn replace_private_file(path: &Path, text: &str, like: &Path) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> anyhow::Result<()> {
        let owner = like.metadata()?;
        // Never through a link that somebody else made there.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let now = file.metadata()?;
        if (owner.uid(), owner.gid()) != (now.uid(), now.gid()) {
            fchown(&file, Some(owner.uid()), Some(owner.gid())).with_context(|| {
                let like = like.display();
                format!("cannot give it to the owner of {like}; run this as that user or as root")
            })?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(File::open(directory_of(path))?.sync_all()?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// The directory that a file is in.
pub fn directory_of(path: &Path) -> &Path {
    let parent = path.parent();
    parent
        .filter(|directory| !directory.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Refuses a file that is not a regular file (a symbolic link is none) or that
/// group or others may use. The file is not opened.
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
///
/// # Errors
/// As [`require_private_file`].
pub fn require_private_regular(
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

    /// The owner and the mode of a file.
    fn owner_and_mode(path: &Path) -> (u32, u32, u32) {
        let metadata = path.symlink_metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        (metadata.uid(), metadata.gid(), mode)
    }

    #[test]
    fn a_file_is_replaced_for_its_owner_alone_and_never_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "not ours").unwrap();
        std::os::unix::fs::symlink(&elsewhere, directory.path().join("secret.new")).unwrap();
        let metadata = directory.path().metadata().unwrap();
        for text in ["first", "second"] {
            replace_private_file(&path, text, directory.path()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let owner = (metadata.uid(), metadata.gid(), 0o600);
            assert_eq!(owner_and_mode(&path), owner);
        }
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "not ours");
        let missing = directory.path().join("missing/secret");
        let refused = replace_private_file(&missing, "", directory.path()).unwrap_err();
        assert!(format!("{refused:#}").contains("missing/secret"));
    }

    #[test]
    fn what_root_writes_is_the_owner_s_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        if let Err(error) = chown(directory.path(), Some(4711), Some(4712)) {
            eprintln!("skipped: only root can give a directory away: {error}");
            return;
        }
        let path = directory.path().join("secret");
        replace_private_file(&path, "text", directory.path()).unwrap();
        assert_eq!(owner_and_mode(&path), (4711, 4712, 0o600));
    }

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
