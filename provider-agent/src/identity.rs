//! What the gateway administrator issued to this provider, read from a directory.

use std::path::{Path, PathBuf};

use dcnet::identity::{CaCertificate, Certificate, DeviceKey, Role};
use dcnet::provider::ProviderConfig;
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;
use link::credentials::{self, RevocationFile};

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
    /// The administrator's list of revoked devices, if there is one.
    pub revoked: Option<RevocationList>,
    /// The file of that list, to be read again from `revoked` on.
    pub revocations: RevocationFile,
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
        let ca = credentials::ca(&path(CA), ADVICE)?;
        let issued =
            |name: &str, role| credentials::certificate(&path(name), &ca, role, now, ADVICE);
        let certificate = issued(CERTIFICATE, Role::Provider)?;
        let key = credentials::private_key(&path(KEY), &certificate, ADVICE)?;
        let administrator = issued(ADMINISTRATOR, Role::Administrator)?;
        let mut revocations = RevocationFile::new(path(REVOKED), administrator);
        let revoked = revocations.changed()?;
        Ok(Self {
            directory: directory.to_owned(),
            key,
            certificate,
            ca,
            revoked,
            revocations,
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
            successor: None,
            lapse_after: None,
        }
    }
}
