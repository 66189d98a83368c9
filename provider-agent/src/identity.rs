//! What the gateway administrator issued to this provider, read from a directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, Role};
use dcnet::provider::ProviderConfig;
use dcnet::time::Timestamp;
use link::credentials;

use crate::revocations::Revocations;

/// The provider's certificate.
pub const CERTIFICATE: &str = "certificate.pem";
/// Its key, mode 0600; see [`credentials::key_file`].
pub const KEY: &str = "key.pem";
/// The CA.
pub const CA: &str = "ca.pem";
/// The administrator's certificate, for revocations.
pub const ADMINISTRATOR: &str = "administrator.pem";
/// A directory with the [`CERTIFICATE`] and [`KEY`] that are to follow; may be absent.
pub const SUCCESSOR: &str = "successor";
/// The credential that takes the place of the successor's [`KEY`].
const SUCCESSOR_KEY: &str = "successor.pem";

/// What to do about any file that does not fit.
const ADVICE: &str = "enrol this provider again with the gateway administrator";

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
    /// The key and certificate that are to follow, if the operator put them there.
    pub successor: Option<(DeviceKey, Certificate)>,
    /// What the administrator revoked, not looked at yet.
    pub revocations: Revocations,
}

impl Identity {
    /// Reads and verifies [`CERTIFICATE`], [`KEY`], [`CA`], [`ADMINISTRATOR`] and, if it
    /// is there, [`SUCCESSOR`].
    ///
    /// # Errors
    /// A file that is missing, malformed, not issued by the CA, not valid at `now`, of
    /// another role, or does not fit the others; a key file that others may use.
    pub fn read(directory: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let path = |name: &str| directory.join(name);
        let ca = credentials::ca(&path(CA), ADVICE)?;
        let issued =
            |name: &str, role| credentials::certificate(&path(name), &ca, role, now, ADVICE);
        let certificate = issued(CERTIFICATE, Role::Provider)?;
        let key_file = credentials::key_file(KEY, path(KEY));
        let key = credentials::private_key(&key_file, &certificate, ADVICE)?;
        let administrator = issued(ADMINISTRATOR, Role::Administrator)?;
        let successor = read_successor(&path(SUCCESSOR), &ca, now)
            .context("cannot prepare the change of the provider's key")?
            .filter(|(_, successor)| successor.key() != certificate.key());
        Ok(Self {
            directory: directory.to_owned(),
            key,
            certificate,
            ca,
            successor,
            revocations: Revocations::new(directory, administrator),
        })
    }

    /// The connection to a broker under this identity.
    ///
    /// # Errors
    /// As [`link::Connection::from_pem_files`].
    pub fn connection(&self, host: &str, port: u16) -> anyhow::Result<link::Connection> {
        let path = |name: &str| self.directory.join(name);
        let key = credentials::key_file(KEY, path(KEY));
        link::Connection::from_pem_files(host, port, &path(CA), &path(CERTIFICATE), &key)
    }

    /// What the state machine of a net is run with.
    pub fn provider_config(
        &self,
        minimum_presence: u32,
        lapse_after: Option<Duration>,
    ) -> ProviderConfig {
        ProviderConfig {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
            ca: self.ca.clone(),
            minimum_presence,
            revoked: self.revocations.list().cloned(),
            successor: self.successor.clone(),
            lapse_after,
        }
    }
}

fn read_successor(
    directory: &Path,
    ca: &CaCertificate,
    now: Timestamp,
) -> anyhow::Result<Option<(DeviceKey, Certificate)>> {
    const ADVICE: &str = "put the certificate.pem and key.pem of an enrolment as provider by the \
                          same gateway administrator there, or remove the directory";
    if !directory.exists() {
        return Ok(None);
    }
    let path = |name: &str| directory.join(name);
    let certificate =
        credentials::certificate(&path(CERTIFICATE), ca, Role::Provider, now, ADVICE)?;
    let key_file = credentials::key_file(SUCCESSOR_KEY, path(KEY));
    let key = credentials::private_key(&key_file, &certificate, ADVICE)?;
    Ok(Some((key, certificate)))
}
