//! What a meter was enrolled with: its key, and whom it trusts.
//!
//! The gateway administrator's CA is the root: every certificate is verified against
//! it, the checkpoint and the list of revoked devices against the administrator's certificate.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{
    CaCertificate, Certificate, DeviceKey, IdentityError, Role, certificate_from_pem,
};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;

use crate::config::{IdentityFiles, check};

/// Longer files are none of an identity directory's: a full list of revoked devices
/// stays below 64 KiB.
const LENGTH_LIMIT: u64 = 256 * 1024;

/// What to do about any file that does not fit.
const ADVICE: &str = "enrol this meter again with the gateway administrator";

/// A verified identity directory.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The device key.
    pub key: DeviceKey,
    /// Its certificate, of role meter.
    pub certificate: Certificate,
    /// The gateway administrator's CA.
    pub ca: CaCertificate,
    /// The provider.
    pub provider: Certificate,
    /// The gateway administrator.
    pub administrator: Certificate,
    /// The administrator's view of the net's log.
    pub checkpoint: Checkpoint,
    /// The administrator's list of revoked devices, if there is one.
    pub revoked: Option<RevocationList>,
}

impl Identity {
    /// Reads and verifies all files; `at` is the time at which certificates must be valid.
    ///
    /// # Errors
    /// The first file that is missing, open to others (the key), or does not fit the
    /// rest, and what to do about it.
    pub fn load(files: &IdentityFiles, at: Timestamp) -> anyhow::Result<Self> {
        let path = files.ca();
        let ca = CaCertificate::from_pem(&text(&path)?)
            .with_context(|| format!("{}: {ADVICE}", path.display()))?;
        let certificate = verified(&files.certificate(), &ca, Role::Meter, at)?;
        let provider = verified(&files.provider(), &ca, Role::Provider, at)?;
        let administrator = verified(&files.administrator(), &ca, Role::Administrator, at)?;
        let key = private_key(&files.key())?;
        if key.id() != certificate.id() {
            bail!(
                "{} is not the key that {} was issued for; put the two that belong together there",
                files.key().display(),
                files.certificate().display()
            );
        }

        let path = files.checkpoint();
        let checkpoint = Checkpoint::verify(&read(&path)?, &administrator).with_context(|| {
            format!(
                "{} is no checkpoint signed by the administrator of {}; {ADVICE}",
                path.display(),
                files.administrator().display()
            )
        })?;
        ensure!(
            certificate.net() == Some(checkpoint.net),
            "{} is of net {}, but {} is of another one; {ADVICE}",
            path.display(),
            checkpoint.net,
            files.certificate().display()
        );

        let path = files.revoked();
        let revoked = match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            _ => Some(
                RevocationList::verify(&read(&path)?, &administrator).with_context(|| {
                    format!(
                        "{} is no list signed by the administrator of {}; ask the gateway \
                         administrator for the newest one",
                        path.display(),
                        files.administrator().display()
                    )
                })?,
            ),
        };
        Ok(Self {
            key,
            certificate,
            ca,
            provider,
            administrator,
            checkpoint,
            revoked,
        })
    }

    /// What the protocol needs of it, with the owner's floors.
    pub fn into_meter_config(self, floors: Floors) -> MeterConfig {
        MeterConfig {
            key: self.key,
            certificate: self.certificate,
            ca: self.ca,
            provider: self.provider,
            checkpoint: self.checkpoint,
            floors,
            revoked: self.revoked,
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let missing = || format!("cannot read {}; {ADVICE}", path.display());
    let length = std::fs::metadata(path).with_context(missing)?.len();
    ensure!(
        length <= LENGTH_LIMIT,
        "{} is {length} bytes long, which no file of an identity is; {ADVICE}",
        path.display()
    );
    std::fs::read(path).with_context(missing)
}

fn text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(read(path)?)
        .ok()
        .with_context(|| format!("{} is not text in the form PEM; {ADVICE}", path.display()))
}

fn verified(
    path: &Path,
    ca: &CaCertificate,
    role: Role,
    at: Timestamp,
) -> anyhow::Result<Certificate> {
    let der = certificate_from_pem(&text(path)?)
        .with_context(|| format!("{}: {ADVICE}", path.display()))?;
    let certificate = Certificate::verify(&der, ca, at).map_err(|error| {
        let advice = match error {
            IdentityError::Expired => {
                "if the clock of this machine is right, a new certificate is needed"
            }
            _ => ADVICE,
        };
        anyhow::Error::new(error).context(format!("{}: {advice}", path.display()))
    })?;
    ensure!(
        certificate.role() == role,
        "{} is a certificate for the role {}, where one for {} belongs; {ADVICE}",
        path.display(),
        certificate.role().as_str(),
        role.as_str()
    );
    Ok(certificate)
}

fn private_key(path: &Path) -> anyhow::Result<DeviceKey> {
    let metadata = std::fs::metadata(path)
        .with_context(|| format!("cannot read {}; {ADVICE}", path.display()))?;
    if let Some(problem) = check::key_mode(path, metadata.permissions().mode()) {
        bail!(problem);
    }
    let pem = zeroize::Zeroizing::new(text(path)?);
    DeviceKey::from_pkcs8_pem(&pem).with_context(|| format!("{}: {ADVICE}", path.display()))
}
