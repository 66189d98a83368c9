//! What a meter was enrolled with: its key, and whom it trusts.
//!
//! The gateway administrator's CA is the root: every certificate is verified against
//! it, the checkpoint and the list of revoked devices against the administrator's certificate.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, Role, certificate_from_pem};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;
use link::Connection;
use link::credentials::{self, RevocationFile};
use x509_parser::parse_x509_certificate;

use crate::config::IdentityFiles;

/// Before a certificate ends, it is told for so long that a new one is needed.
pub const RENEWAL: Duration = Duration::from_secs(60 * 86_400);

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
    validities: Vec<Validity>,
}

/// When a certificate is valid.
#[derive(Clone, Debug)]
struct Validity {
    file: PathBuf,
    begin: Timestamp,
    end: Timestamp,
}

impl Identity {
    /// [`Self::read`], with certificates that are valid at `at`.
    ///
    /// # Errors
    /// As [`Self::read`] and [`Self::valid_at`].
    pub fn load(files: &IdentityFiles, at: Timestamp) -> anyhow::Result<Self> {
        let identity = Self::read(files)?;
        identity.valid_at(at)?;
        Ok(identity)
    }

    /// Reads all files and verifies everything but the time, of which a clock that was never
    /// set says nothing.
    ///
    /// # Errors
    /// The first file that is missing, open to others (the key), or does not fit the
    /// rest, and what to do about it.
    pub fn read(files: &IdentityFiles) -> anyhow::Result<Self> {
        let ca = credentials::ca(&files.ca(), ADVICE)?;
        let mut validities = Vec::new();
        let mut issued = |path: PathBuf, role| {
            let begin = begin_of(&path)?;
            let certificate = credentials::certificate(&path, &ca, role, begin, ADVICE)?;
            validities.push(Validity {
                file: path,
                begin,
                end: certificate.not_after(),
            });
            anyhow::Ok(certificate)
        };
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
            validities,
        })
    }

    /// Whether every certificate is valid at a time.
    ///
    /// # Errors
    /// The first one that is not, and what to do about it.
    pub fn valid_at(&self, at: Timestamp) -> anyhow::Result<()> {
        let is_valid = |validity: &&Validity| (validity.begin..=validity.end).contains(&at);
        let invalid = self.validities.iter().find(|one| !is_valid(one));
        let Some(Validity { file, begin, end }) = invalid else {
            return Ok(());
        };
        bail!(
            "{} is valid from {} to {}, and the clock says {}; if the clock of this machine is \
             right, a new certificate is needed: {ADVICE}",
            file.display(),
            day(*begin),
            day(*end),
            day(at)
        )
    }

    /// The file of the certificate that ends first, and when that is.
    pub fn first_end(&self) -> (&Path, Timestamp) {
        let first = self.validities.iter().min_by_key(|one| one.end);
        // There are always those of meter, provider and administrator.
        first.map_or((Path::new(""), Timestamp(u64::MAX)), |one| {
            (&one.file, one.end)
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

/// What stands in the files of the certificates of meter, provider and administrator, as DER;
/// nothing of it is verified.
///
/// # Errors
/// A file cannot be read, or is no certificate.
pub(crate) fn certificates(files: &IdentityFiles) -> anyhow::Result<[Vec<u8>; 3]> {
    let der = |path: PathBuf| {
        let pem = credentials::text(&path, ADVICE)?;
        let der = certificate_from_pem(&pem);
        der.with_context(|| format!("{} is no certificate; {ADVICE}", path.display()))
    };
    Ok([
        der(files.certificate())?,
        der(files.provider())?,
        der(files.administrator())?,
    ])
}

/// The first moment of a certificate's validity; that of one which cannot be read does not
/// matter, since nothing verifies it.
fn begin_of(path: &Path) -> anyhow::Result<Timestamp> {
    let pem = credentials::text(path, ADVICE)?;
    let der = certificate_from_pem(&pem).unwrap_or_default();
    let begin = parse_x509_certificate(&der)
        .map(|(_, certificate)| certificate.validity().not_before.timestamp());
    let seconds = begin.ok().and_then(|seconds| u64::try_from(seconds).ok());
    Ok(Timestamp(seconds.unwrap_or(0).saturating_mul(1000)))
}

/// In words.
pub(crate) fn day(at: Timestamp) -> String {
    let at = i64::try_from(at.as_millis()).ok();
    let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    at.map_or_else(
        || "a time out of reach".to_owned(),
        |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

/// The way to a broker, with the key and the certificate of an identity directory.
///
/// # Errors
/// As [`Connection::from_pem_files`].
pub fn connection(files: &IdentityFiles, (host, port): (&str, u16)) -> anyhow::Result<Connection> {
    let (ca, certificate, key) = (files.ca(), files.certificate(), files.key());
    Connection::from_pem_files(host, port, &ca, &certificate, &key)
}
