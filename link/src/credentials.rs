//! What the gateway administrator issued, read from files and verified.
//!
//! Every function takes the path of a file and `advice`: what the user is to do if it
//! does not fit, such as "enrol this meter again". A message reads "what is wrong
//! with which file; advice".

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dcnet::identity::{
    CaCertificate, Certificate, DeviceKey, IdentityError, Role, certificate_from_pem,
};
use dcnet::time::Timestamp;
use secrets::file::read_bounded;
use secrets::permissions::{credentials_directory, open_private_file};
use zeroize::Zeroizing;

pub use secrets::file::{FileVersion, LENGTH_LIMIT, bytes};
pub use secrets::revocation::RevocationFile;

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

fn unusable(path: &Path, advice: &str) -> String {
    format!("cannot use {}; {advice}", path.display())
}

fn not_pem(path: &Path, advice: &str) -> String {
    format!("{} is not text in the form PEM; {advice}", path.display())
}

/// Name of the revocation list in a directory of what the administrator issued.
pub const REVOCATION_LIST: &str = "revoked.cbor";
