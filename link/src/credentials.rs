//! What the gateway administrator issued, read from files and verified.
//!
//! Every function takes the path of a file and `advice`: what the user is to do if it
//! does not fit, such as "enrol this meter again". A message reads "what is wrong
//! with which file; advice".

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use dcnet::identity::{
    CaCertificate, Certificate, DeviceKey, IdentityError, Role, certificate_from_pem,
};
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;
use secrets::permissions::{credentials_directory, open_private_file};
use zeroize::Zeroizing;

/// Longer files are none that an administrator issues, in bytes: a full revocation
/// list stays below 64 KiB.
pub const LENGTH_LIMIT: usize = 256 * 1024;

/// Reads a file of at most [`LENGTH_LIMIT`] bytes.
///
/// # Errors
/// A file that is missing, cannot be read, or is longer.
pub fn bytes(path: &Path, advice: &str) -> anyhow::Result<Vec<u8>> {
    let file =
        File::open(path).with_context(|| format!("cannot read {}; {advice}", path.display()))?;
    let mut bytes = Vec::new();
    read_bounded(file, path, advice, &mut bytes)?;
    Ok(bytes)
}

/// As [`bytes`], for text.
///
/// # Errors
/// As [`bytes`]; a file that is not UTF-8.
pub fn text(path: &Path, advice: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes(path, advice)?)
        .ok()
        .with_context(|| not_pem(path, advice))
}

/// Reads the certificate of the CA.
///
/// # Errors
/// As [`text`]; not a CA's certificate.
pub fn ca(path: &Path, advice: &str) -> anyhow::Result<CaCertificate> {
    CaCertificate::from_pem(&text(path, advice)?).with_context(|| unusable(path, advice))
}

/// Reads a certificate that `ca` issued for a role and that is valid at `at`.
///
/// # Errors
/// As [`text`]; malformed, of another CA or role, or not valid at that time.
pub fn certificate(
    path: &Path,
    ca: &CaCertificate,
    role: Role,
    at: Timestamp,
    advice: &str,
) -> anyhow::Result<Certificate> {
    let der = certificate_from_pem(&text(path, advice)?).with_context(|| unusable(path, advice))?;
    let certificate = Certificate::verify(&der, ca, at).map_err(|error| {
        let advice = match error {
            IdentityError::Expired => {
                "if the clock of this machine is right, a new certificate is needed"
            }
            _ => advice,
        };
        anyhow::Error::new(error).context(unusable(path, advice))
    })?;
    ensure!(
        certificate.role() == role,
        "{} is a certificate for the role {}, where one for {} belongs; {advice}",
        path.display(),
        certificate.role().as_str(),
        role.as_str()
    );
    Ok(certificate)
}

/// Where a private key is: the service manager's credential of that name if it passed one
/// (`LoadCredential=` in systemd.exec(5)), else `file`. So a key file can be root's alone,
/// while the daemon that uses the key runs as another user.
pub fn key_file(credential: &str, file: PathBuf) -> PathBuf {
    credentials_directory()
        .map(|directory| directory.join(credential))
        .filter(|path| path.exists())
        .unwrap_or(file)
}

/// Reads the private key that `certificate` was issued for; the text is wiped.
///
/// # Errors
/// A file that is missing, a link, open to others, or no Ed25519 key in PKCS#8 PEM;
/// the key of another certificate.
pub fn private_key(
    path: &Path,
    certificate: &Certificate,
    advice: &str,
) -> anyhow::Result<DeviceKey> {
    let key = DeviceKey::from_pkcs8_pem(&private_text(path, advice)?)
        .with_context(|| unusable(path, advice))?;
    ensure!(
        key.id() == certificate.id(),
        "{} is not the key that the device's certificate was issued for; put the two that \
         belong together there",
        path.display()
    );
    Ok(key)
}

/// The text of a private key's file. Mode and content are those of one open file, and
/// every copy of the content is wiped.
pub(crate) fn private_text(path: &Path, advice: &str) -> anyhow::Result<Zeroizing<String>> {
    let file = open_private_file(path, "a private key", advice)?;
    // Room for the longest file at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH_LIMIT + 1));
    read_bounded(file, path, advice, &mut bytes)?;
    let text = std::str::from_utf8(&bytes)
        .ok()
        .with_context(|| not_pem(path, advice))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_bounded(file: File, path: &Path, advice: &str, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
    let length = file
        .take(LENGTH_LIMIT as u64 + 1)
        .read_to_end(bytes)
        .with_context(|| format!("cannot read {}; {advice}", path.display()))?;
    ensure!(
        length <= LENGTH_LIMIT,
        "{} is longer than {LENGTH_LIMIT} bytes, unlike anything an administrator issues; {advice}",
        path.display()
    );
    Ok(())
}

fn unusable(path: &Path, advice: &str) -> String {
    format!("cannot use {}; {advice}", path.display())
}

fn not_pem(path: &Path, advice: &str) -> String {
    format!("{} is not text in the form PEM; {advice}", path.display())
}

/// A file at one time: as long as this is the same, the file is taken for unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    length: u64,
}

impl FileVersion {
    /// The version that a file's metadata tell of.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            length: metadata.len(),
        }
    }
}

/// Name of the revocation list in a directory of what the administrator issued.
pub const REVOCATION_LIST: &str = "revoked.cbor";

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
    /// file that cannot be read or is longer than [`LENGTH_LIMIT`]: told at every
    /// call. The list given last stays in force in all these cases.
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
