//! What the gateway administrator issued to this provider, read from a directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, Role, certificate_from_pem};
use dcnet::provider::ProviderConfig;
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;

/// The provider's certificate.
pub const CERTIFICATE: &str = "certificate.pem";
/// Its key, mode 0600.
pub const KEY: &str = "key.pem";
/// The CA.
pub const CA: &str = "ca.pem";
/// The administrator's certificate, for the revocation list.
pub const ADMINISTRATOR: &str = "administrator.pem";
/// The signed revocation list; may be absent.
pub const REVOKED: &str = "revoked.cbor";

/// The provider's key and certificates, verified against each other.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where they were read from.
    pub directory: PathBuf,
    /// The key.
    pub key: DeviceKey,
    /// The certificate that belongs to it, of role provider.
    pub certificate: Certificate,
    /// The CA that issued it.
    pub ca: CaCertificate,
    /// The administrator's list of revoked devices, if there is one.
    pub revoked: Option<RevocationList>,
}

impl Identity {
    /// Reads and verifies [`CERTIFICATE`], [`KEY`], [`CA`], [`ADMINISTRATOR`] and, if it
    /// is there, [`REVOKED`].
    ///
    /// # Errors
    /// A file that is missing, malformed, not issued by the CA, not valid at `now`, of
    /// another role, or does not fit the others; a key file that others may use.
    pub fn read(directory: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let path = |name: &str| directory.join(name);
        let ca_path = path(CA);
        let ca = CaCertificate::from_pem(&text(&ca_path)?)
            .with_context(|| format!("in {}", ca_path.display()))?;
        let certificate = verified(&path(CERTIFICATE), &ca, Role::Provider, now)?;
        let key = private_key(&path(KEY))?;
        ensure!(
            key.id() == certificate.id(),
            "{} does not belong to the certificate beside it",
            path(KEY).display()
        );
        let administrator = verified(&path(ADMINISTRATOR), &ca, Role::Administrator, now)?;
        let revoked = revocations(&path(REVOKED), &administrator)?;
        Ok(Self {
            directory: directory.to_owned(),
            key,
            certificate,
            ca,
            revoked,
        })
    }

    /// The connection to a broker under this identity.
    ///
    /// # Errors
    /// As [`link::Connection::from_pem_files`].
    pub fn connection(&self, host: &str, port: u16) -> anyhow::Result<link::Connection> {
        let path = |name: &str| self.directory.join(name);
        link::Connection::from_pem_files(host, port, &path(CA), &path(CERTIFICATE), &path(KEY))
    }

    /// What the state machine of a net is run with.
    pub fn provider_config(&self, minimum_presence: u32) -> ProviderConfig {
        ProviderConfig {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
            ca: self.ca.clone(),
            minimum_presence,
            revoked: self.revoked.clone(),
        }
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}; the gateway administrator's enrolment makes it",
            path.display()
        )
    })
}

fn verified(
    path: &Path,
    ca: &CaCertificate,
    role: Role,
    now: Timestamp,
) -> anyhow::Result<Certificate> {
    let place = || format!("in {}", path.display());
    let der = certificate_from_pem(&text(path)?).with_context(place)?;
    let certificate = Certificate::verify(&der, ca, now).with_context(place)?;
    ensure!(
        certificate.role() == role,
        "{} is a certificate for the role {}; one for {} is needed here",
        path.display(),
        certificate.role().as_str(),
        role.as_str()
    );
    Ok(certificate)
}

fn private_key(path: &Path) -> anyhow::Result<DeviceKey> {
    let mode = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .permissions()
        .mode()
        & 0o7777;
    ensure!(
        mode & 0o077 == 0,
        "{path} holds a private key, but its mode {mode:03o} lets others in; run: chmod 600 {path}",
        path = path.display()
    );
    DeviceKey::from_pkcs8_pem(&text(path)?).with_context(|| format!("in {}", path.display()))
}

fn revocations(path: &Path, administrator: &Certificate) -> anyhow::Result<Option<RevocationList>> {
    match fs::read(path) {
        Ok(frame) => RevocationList::verify(&frame, administrator)
            .with_context(|| format!("in {}: not a list of this administrator", path.display()))
            .map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
