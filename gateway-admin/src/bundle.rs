//! The enrolment directory that a device gets: its certificate and everything
//! it must know before it trusts anybody.

use std::path::Path;

use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey};

use crate::error::Error;
use crate::files::{self, Access};
use crate::key::KeyPair;
use crate::request::KEY_FILE;

/// The device's certificate.
pub const CERTIFICATE_FILE: &str = "certificate.pem";
/// The CA's certificate.
pub const CA_FILE: &str = "ca.pem";
/// The administrator's certificate, for checkpoints and revocation lists.
pub const ADMINISTRATOR_FILE: &str = "administrator.pem";
/// The provider's certificate; meters only.
pub const PROVIDER_FILE: &str = "provider.pem";
/// The signed checkpoint; meters only.
pub const CHECKPOINT_FILE: &str = "checkpoint.cbor";
/// The signed revocation list.
pub const REVOKED_FILE: &str = "revoked.cbor";

/// What a meter needs besides what every device gets.
#[derive(Clone, Debug)]
pub struct MeterPart {
    /// The provider whose log and rosters the meter accepts.
    pub provider: Certificate,
    /// The signed checkpoint of the net's log, as bytes of a frame.
    pub checkpoint: Vec<u8>,
}

/// Everything a device gets when it is enrolled.
#[derive(Debug)]
pub struct Bundle {
    /// The device's certificate.
    pub certificate: Certificate,
    /// The CA.
    pub ca: CaCertificate,
    /// The administrator.
    pub administrator: Certificate,
    /// The signed revocation list as of the enrolment, as bytes of a frame.
    pub revoked: Vec<u8>,
    /// For meters: provider and checkpoint.
    pub meter: Option<MeterPart>,
    pub(crate) key: Option<KeyPair>,
}

impl Bundle {
    /// The device's id.
    pub fn id(&self) -> DeviceId {
        self.certificate.id()
    }

    /// The device's key, if it was made here and not on the device.
    pub fn key(&self) -> Option<DeviceKey> {
        self.key.as_ref().map(KeyPair::device_key)
    }

    /// The names of the files that [`Self::write`] makes.
    pub fn file_names(&self) -> Vec<&'static str> {
        let mut names = vec![CERTIFICATE_FILE, CA_FILE, ADMINISTRATOR_FILE, REVOKED_FILE];
        if self.meter.is_some() {
            names.extend([PROVIDER_FILE, CHECKPOINT_FILE]);
        }
        if self.key.is_some() {
            names.push(KEY_FILE);
        }
        names
    }

    /// Writes the files into `directory`, which is made (mode 0700) if need be. It
    /// may be the directory of the device's own key and request.
    ///
    /// # Errors
    /// [`Error::Exists`] before anything is written if one of the files is there,
    /// [`Error::DirectoryMode`], [`Error::Io`].
    pub fn write(&self, directory: &Path) -> Result<(), Error> {
        files::create_directory(directory)?;
        files::refuse_existing(directory, self.file_names())?;
        if let Some(key) = &self.key {
            key.write(&directory.join(KEY_FILE))?;
        }
        let public =
            |name: &str, bytes: &[u8]| files::create(&directory.join(name), bytes, Access::Public);
        public(CA_FILE, certificate_pem(self.ca.der()).as_bytes())?;
        public(
            ADMINISTRATOR_FILE,
            certificate_pem(self.administrator.der()).as_bytes(),
        )?;
        public(REVOKED_FILE, &self.revoked)?;
        if let Some(part) = &self.meter {
            public(
                PROVIDER_FILE,
                certificate_pem(part.provider.der()).as_bytes(),
            )?;
            public(CHECKPOINT_FILE, &part.checkpoint)?;
        }
        // Last, so that a directory with a certificate is complete.
        public(
            CERTIFICATE_FILE,
            certificate_pem(self.certificate.der()).as_bytes(),
        )
    }
}

/// A certificate as a `CERTIFICATE` PEM block.
pub fn certificate_pem(der: &[u8]) -> String {
    let line_ending = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), line_ending)
}
