//! What a meter was enrolled with: its key, and whom it trusts.
//!
//! The gateway administrator's CA is the root: every certificate is verified against
//! it, the checkpoint and the list of revoked devices against the administrator's certificate.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, Role};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;
use link::credentials::{self, RevocationFile};

use crate::config::IdentityFiles;

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
    /// The file of that list, to be read again from `revoked` on.
    pub revocations: RevocationFile,
}

impl Identity {
    /// Reads and verifies all files; `at` is the time at which certificates must be valid.
    ///
    /// # Errors
    /// The first file that is missing, open to others (the key), or does not fit the
    /// rest, and what to do about it.
    pub fn load(files: &IdentityFiles, at: Timestamp) -> anyhow::Result<Self> {
        let ca = credentials::ca(&files.ca(), ADVICE)?;
        let issued = |path: PathBuf, role| credentials::certificate(&path, &ca, role, at, ADVICE);
        let certificate = issued(files.certificate(), Role::Meter)?;
        let provider = issued(files.provider(), Role::Provider)?;
        let administrator = issued(files.administrator(), Role::Administrator)?;
        let key = credentials::private_key(&files.key(), &certificate, ADVICE)?;

        let path = files.checkpoint();
        let frame = credentials::bytes(&path, ADVICE)?;
        let checkpoint = Checkpoint::verify(&frame, &administrator).with_context(|| {
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

        let mut revocations = RevocationFile::new(files.revoked(), administrator.clone());
        let revoked = revocations.changed()?;
        Ok(Self {
            key,
            certificate,
            ca,
            provider,
            administrator,
            checkpoint,
            revoked,
            revocations,
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
