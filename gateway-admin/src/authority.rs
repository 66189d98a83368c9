//! The certification authority of one gateway administrator, in a directory.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, PublicKey, Role};
use dcnet::revocation::{MAX_REVOKED, RevocationList, sign_revocation, verify_revocation};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use rcgen::Issuer;
use sha2::{Digest, Sha256};

use crate::bundle::{
    ADMINISTRATOR_FILE, Bundle, CA_FILE, MeterPart, REVOKED_FILE, certificate_pem,
};
use crate::enrolment::{Applicant, LogHead, Terms};
use crate::error::Error;
use crate::files::{self, Access};
use crate::key::{KeyPair, Subject};
use crate::profile::{self, CA_DAYS, Host, Purpose, Validity};
use crate::registry::{Entry, Registry};

/// The CA's private key.
pub const CA_KEY_FILE: &str = "ca.key.pem";
/// The private key for checkpoints and revocation lists.
pub const ADMINISTRATOR_KEY_FILE: &str = "administrator.key.pem";
/// The directory of signed statements, one per revoked device.
pub const REVOCATIONS_DIRECTORY: &str = "revocations";
/// The registry of issued certificates.
pub const REGISTRY_FILE: &str = "registry.jsonl";
/// Name of a CA that is given none.
pub const DEFAULT_NAME: &str = "DC-net gateway administrator";

/// Most members a net can have (`docs/protocol.md`, "Limits and bad input").
const MAX_MEMBERS: u32 = 1 << 16;

/// What [`Authority::init_with`] makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// The CA's name, 1 to 64 characters. Every device sees it.
    pub name: String,
    /// Days the CA and the administrator's certificate are valid.
    pub days: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            days: CA_DAYS,
        }
    }
}

/// What [`Authority::revoke`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// The list that is in force now.
    pub list: RevocationList,
    /// Devices that were not on it before; if there are none the list is unchanged.
    pub added: Vec<DeviceId>,
    /// The statements written now: of `added`, and of devices on the list that had none.
    pub statements: Vec<PathBuf>,
}

/// The CA and the administrator's key, ready to enrol and revoke.
pub struct Authority {
    directory: PathBuf,
    ca: CaCertificate,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
    administrator: Certificate,
    administrator_key: DeviceKey,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.directory.display())
    }
}

/// The UTC clock of this machine.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp::default().plus(since.unwrap_or_default())
}

impl Authority {
    /// Makes a new authority with the default name and validity.
    ///
    /// # Errors
    /// As [`Self::init_with`].
    pub fn init(directory: &Path) -> Result<Self, Error> {
        Self::init_with(directory, &InitOptions::default())
    }

    /// Makes a new authority in `directory` (which is made, mode 0700, if need be):
    /// the CA, the administrator, an empty revocation list and an empty registry.
    ///
    /// # Errors
    /// [`Error::Exists`] before anything is written if there is an authority already;
    /// [`Error::DirectoryMode`], [`Error::Name`], [`Error::Days`], [`Error::Io`].
    pub fn init_with(directory: &Path, options: &InitOptions) -> Result<Self, Error> {
        let now = now();
        let validity = Validity::days(now, options.days)?;
        let params = profile::ca(&options.name, validity)?;
        files::create_directory(directory)?;
        files::refuse_existing(
            directory,
            [
                CA_KEY_FILE,
                CA_FILE,
                ADMINISTRATOR_KEY_FILE,
                ADMINISTRATOR_FILE,
                REGISTRY_FILE,
                REVOKED_FILE,
            ],
        )?;

        let ca_key = KeyPair::generate()?;
        let ca_certificate = params.self_signed(&ca_key)?;
        ca_key.write(&directory.join(CA_KEY_FILE))?;
        let ca = CaCertificate::from_der(ca_certificate.der()).map_err(Error::Refused)?;
        let issuer = Issuer::new(params, ca_key);

        let administrator_key = KeyPair::generate()?;
        let administrator = sign(
            &Purpose::Administrator,
            &administrator_key.public(),
            validity,
            &issuer,
            &ca,
            now,
        )?;
        administrator_key.write(&directory.join(ADMINISTRATOR_KEY_FILE))?;

        let authority = Self {
            directory: directory.to_owned(),
            ca,
            validity,
            issuer,
            administrator,
            administrator_key: administrator_key.device_key(),
        };
        let public =
            |name: &str, bytes: &[u8]| files::create(&directory.join(name), bytes, Access::Public);
        public(
            REVOKED_FILE,
            &authority.sign_revocations(&RevocationList::new(0, Vec::new()))?,
        )?;
        public(
            ADMINISTRATOR_FILE,
            certificate_pem(authority.administrator.der()).as_bytes(),
        )?;
        authority
            .registry()?
            .append(entry(&authority.administrator, now, None))?;
        // Last, so that a directory with a CA certificate is complete.
        public(CA_FILE, certificate_pem(authority.ca.der()).as_bytes())?;
        Ok(authority)
    }

    /// Opens an authority made by [`Self::init`].
    ///
    /// # Errors
    /// [`Error::KeyMode`] and [`Error::DirectoryMode`] if others have access to the keys;
    /// [`Error::Identity`], [`Error::Mismatch`] or [`Error::Io`] if files are damaged or missing.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let path = |name: &str| directory.join(name);
        let ca_path = path(CA_FILE);
        let ca_key = KeyPair::read(&path(CA_KEY_FILE))?;
        let ca = CaCertificate::from_pem(&files::read_text(&ca_path, "a CA certificate")?)
            .map_err(|source| Error::Identity {
                path: ca_path.clone(),
                source,
            })?;
        let validity = Validity::of(ca.der()).ok_or(Error::Content {
            path: ca_path.clone(),
            what: "a CA certificate",
        })?;
        let issuer = Issuer::from_ca_cert_der(&ca.der().into(), ca_key)?;
        let administrator_path = path(ADMINISTRATOR_FILE);
        let administrator = read_certificate(&administrator_path, &ca, now())?;
        let administrator_key = KeyPair::read(&path(ADMINISTRATOR_KEY_FILE))?.device_key();
        if administrator_key.id() != administrator.id() {
            return Err(Error::Mismatch {
                key: path(ADMINISTRATOR_KEY_FILE),
                certificate: administrator_path,
            });
        }
        // A certificate signed now shows whether the CA's key is the certificate's.
        sign(
            &Purpose::Administrator,
            administrator.key(),
            validity,
            &issuer,
            &ca,
            now(),
        )
        .map_err(|_| Error::Mismatch {
            key: path(CA_KEY_FILE),
            certificate: ca_path,
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            ca,
            validity,
            issuer,
            administrator,
            administrator_key,
        })
    }

    /// The CA's certificate.
    pub fn ca(&self) -> &CaCertificate {
        &self.ca
    }

    /// The certificate that checkpoints and revocation lists are verified against.
    pub fn administrator(&self) -> &Certificate {
        &self.administrator
    }

    /// Reads another party's certificate from a PEM file and verifies it against this CA, now.
    ///
    /// # Errors
    /// [`Error::Identity`], [`Error::TooLong`], [`Error::Content`], [`Error::Io`].
    pub fn read_certificate(&self, path: &Path) -> Result<Certificate, Error> {
        read_certificate(path, &self.ca, now())
    }

    /// Where the signed revocation list is.
    pub fn revoked_path(&self) -> PathBuf {
        self.directory.join(REVOKED_FILE)
    }

    /// Every certificate issued, oldest first.
    ///
    /// # Errors
    /// [`Error::Registry`] or [`Error::Io`].
    pub fn issued(&self) -> Result<Vec<Entry>, Error> {
        Ok(self.registry()?.entries().to_vec())
    }

    /// Enrols a meter in one net, with a checkpoint of the net's log at `head`.
    ///
    /// # Errors
    /// As [`Self::enrol_provider`], [`Error::Head`], and [`Error::Refused`] or
    /// [`Error::Role`] if `provider` is no provider of this CA.
    pub fn enrol_meter(
        &self,
        applicant: impl Into<Applicant>,
        net: NetId,
        provider: &Certificate,
        head: LogHead,
        terms: &Terms,
    ) -> Result<Bundle, Error> {
        let provider =
            Certificate::verify(provider.der(), &self.ca, now()).map_err(Error::Refused)?;
        if provider.role() != Role::Provider {
            return Err(Error::Role {
                found: provider.role(),
                wanted: Role::Provider,
            });
        }
        if self.revocations()?.contains(&provider.id()) {
            return Err(Error::Revoked(provider.id()));
        }
        let checkpoint = self.checkpoint(net, head)?;
        let part = MeterPart {
            provider,
            checkpoint,
        };
        self.enrol(applicant.into(), &Purpose::Meter(net), terms, Some(part))
    }

    /// Enrols a provider agent.
    ///
    /// # Errors
    /// [`Error::Role`] if the request is for another role, [`Error::Registered`] if the
    /// key is in use for something else, [`Error::Revoked`], [`Error::Days`],
    /// [`Error::Registry`], [`Error::Io`].
    pub fn enrol_provider(
        &self,
        applicant: impl Into<Applicant>,
        terms: &Terms,
    ) -> Result<Bundle, Error> {
        self.enrol(applicant.into(), &Purpose::Provider, terms, None)
    }

    /// Enrols a broker that is reached under the names in `hosts`.
    ///
    /// # Errors
    /// As [`Self::enrol_provider`]; [`Error::Refused`] if there are too many names for
    /// one certificate; [`Error::Host`] if there is none.
    pub fn enrol_broker(
        &self,
        applicant: impl Into<Applicant>,
        hosts: &[Host],
        terms: &Terms,
    ) -> Result<Bundle, Error> {
        if hosts.is_empty() {
            return Err(Error::Host(String::new()));
        }
        let purpose = Purpose::Broker(hosts.to_vec());
        self.enrol(applicant.into(), &purpose, terms, None)
    }

    /// Enrols a reader of one net's public topics, or with `None` of every net's.
    ///
    /// # Errors
    /// As [`Self::enrol_provider`].
    pub fn enrol_third_party(
        &self,
        applicant: impl Into<Applicant>,
        net: Option<NetId>,
        terms: &Terms,
    ) -> Result<Bundle, Error> {
        self.enrol(applicant.into(), &Purpose::ThirdParty(net), terms, None)
    }

    /// A signed checkpoint of a net's log, as bytes of a frame.
    ///
    /// # Errors
    /// [`Error::Head`] if no log can have that head.
    pub fn checkpoint(&self, net: NetId, head: LogHead) -> Result<Vec<u8>, Error> {
        let LogHead {
            index,
            hash,
            members,
        } = head;
        if members > MAX_MEMBERS {
            return Err(Error::Head("a net has at most 65536 members"));
        }
        // Genesis is entry 0 and joins nobody; every later entry joins at most one.
        if u64::from(members) > index {
            return Err(Error::Head(
                "it has more members than entries after Genesis; are index and members swapped?",
            ));
        }
        let checkpoint = Checkpoint {
            net,
            index,
            head: hash,
            members,
        };
        let bytes = checkpoint.sign(&self.administrator_key, now());
        match Checkpoint::verify(&bytes, &self.administrator) {
            Ok(again) if again == checkpoint => Ok(bytes),
            Ok(_) => Err(frame_error("checkpoint", "does not say what was signed")),
            Err(e) => Err(frame_error("checkpoint", e)),
        }
    }

    /// The revocation list in force.
    ///
    /// # Errors
    /// [`Error::Frame`] if it is not signed by this administrator, [`Error::Io`].
    pub fn revocations(&self) -> Result<RevocationList, Error> {
        self.read_revocations().map(|(_, list)| list)
    }

    /// Where the signed statement about one revoked device is.
    pub fn statement_path(&self, device: DeviceId) -> PathBuf {
        self.directory
            .join(REVOCATIONS_DIRECTORY)
            .join(format!("{device}.cbor"))
    }

    /// Puts devices on the revocation list, which gets the next number and replaces
    /// the old one in the authority's directory, and signs a statement for each device on
    /// it that has none. There is no way back.
    ///
    /// # Errors
    /// [`Error::Unregistered`] for an id that never had a certificate, [`Error::Administrator`],
    /// [`Error::Frame`] if the list is damaged or full, [`Error::Registry`], [`Error::Io`].
    /// After an error the old list is in force, unless [`Error::Io`] names a statement: that
    /// is written when any device on the list is revoked again.
    pub fn revoke(&self, devices: &[DeviceId]) -> Result<Revocation, Error> {
        // Held to the end: the lock also keeps other processes off the list.
        let registry = self.registry()?;
        for &device in devices {
            if device == self.administrator.id() {
                return Err(Error::Administrator(device));
            }
            if registry.newest(device).is_none() {
                return Err(Error::Unregistered(device));
            }
        }
        let list = self.revocations()?;
        let mut added: Vec<_> = devices
            .iter()
            .copied()
            .filter(|device| !list.contains(device))
            .collect();
        added.sort_unstable();
        added.dedup();
        if added.is_empty() {
            let statements = self.write_statements(&list)?;
            return Ok(Revocation {
                list,
                added,
                statements,
            });
        }
        let revoked: Vec<_> = list.devices().chain(&added).copied().collect();
        if revoked.len() > MAX_REVOKED {
            return Err(frame_error(
                "revocation list",
                format!("full: it holds at most {MAX_REVOKED} devices; make a new CA"),
            ));
        }
        let list = RevocationList::new(list.number().saturating_add(1), revoked);
        let bytes = self.sign_revocations(&list)?;
        files::replace(&self.revoked_path(), &bytes, Access::Public)?;
        let statements = self.write_statements(&list)?;
        Ok(Revocation {
            list,
            added,
            statements,
        })
    }

    /// Signs a statement for each device of the list that has no good one.
    fn write_statements(&self, list: &RevocationList) -> Result<Vec<PathBuf>, Error> {
        files::create_directory(&self.directory.join(REVOCATIONS_DIRECTORY))?;
        let mut written = Vec::new();
        for &device in list.devices() {
            let path = self.statement_path(device);
            let good = files::read(&path, "a revocation")
                .is_ok_and(|bytes| verify_revocation(&bytes, &self.administrator) == Ok(device));
            if !good {
                let bytes = sign_revocation(&self.administrator_key, device, now());
                files::replace(&path, &bytes, Access::Public)?;
                written.push(path);
            }
        }
        Ok(written)
    }

    fn registry(&self) -> Result<Registry, Error> {
        Registry::open(&self.directory.join(REGISTRY_FILE))
    }

    fn sign_revocations(&self, list: &RevocationList) -> Result<Vec<u8>, Error> {
        let bytes = list.sign(&self.administrator_key, now());
        match RevocationList::verify(&bytes, &self.administrator) {
            Ok(again) if again == *list => Ok(bytes),
            Ok(_) => Err(frame_error(
                "revocation list",
                "does not say what was signed",
            )),
            Err(e) => Err(frame_error("revocation list", e)),
        }
    }

    fn read_revocations(&self) -> Result<(Vec<u8>, RevocationList), Error> {
        let path = self.revoked_path();
        let bytes = files::read(&path, "a revocation list")?;
        let list = RevocationList::verify(&bytes, &self.administrator)
            .map_err(|e| frame_error(path.display(), e))?;
        Ok((bytes, list))
    }

    fn enrol(
        &self,
        applicant: Applicant,
        purpose: &Purpose,
        terms: &Terms,
        meter: Option<MeterPart>,
    ) -> Result<Bundle, Error> {
        if let Applicant::Request(request) = &applicant
            && request.role() != purpose.role()
        {
            return Err(Error::Role {
                found: request.role(),
                wanted: purpose.role(),
            });
        }
        let now = now();
        let validity = Validity::days(now, terms.days)?.within(self.validity);
        let key = applicant.public();
        let mut registry = self.registry()?;
        let (revoked, list) = self.read_revocations()?;
        if list.contains(&key.id()) {
            return Err(Error::Revoked(key.id()));
        }
        if let Some(known) = registry.newest(key.id())
            && (known.role, known.net) != (purpose.role(), purpose.net())
        {
            return Err(Error::Registered {
                device: known.device,
                role: known.role,
                net: known.net,
            });
        }
        let certificate = sign(purpose, &key, validity, &self.issuer, &self.ca, now)?;
        // Before the certificate leaves: what is not in the registry cannot be revoked.
        registry.append(entry(&certificate, now, terms.household.clone()))?;
        Ok(Bundle {
            certificate,
            ca: self.ca.clone(),
            administrator: self.administrator.clone(),
            revoked,
            meter,
            key: applicant.key_pair(),
        })
    }
}

/// Makes a certificate and reads it as the devices will, so that none is issued
/// that they refuse.
fn sign(
    purpose: &Purpose,
    key: &PublicKey,
    validity: Validity,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CaCertificate,
    at: Timestamp,
) -> Result<Certificate, Error> {
    let made = purpose
        .certificate(key.id(), validity)?
        .signed_by(&Subject(key.to_bytes()), issuer)?;
    Certificate::verify(made.der(), ca, at).map_err(Error::Refused)
}

fn entry(certificate: &Certificate, issued: Timestamp, household: Option<String>) -> Entry {
    Entry {
        device: certificate.id(),
        role: certificate.role(),
        net: certificate.net(),
        issued,
        expires: certificate.not_after(),
        fingerprint: Sha256::digest(certificate.der()).into(),
        household,
    }
}

fn frame_error(what: impl fmt::Display, reason: impl fmt::Display) -> Error {
    Error::Frame {
        what: what.to_string(),
        reason: reason.to_string(),
    }
}

/// Reads a certificate from a PEM file and verifies it against the CA, at `at`.
///
/// # Errors
/// [`Error::Identity`], [`Error::TooLong`], [`Error::Content`], [`Error::Io`].
pub(crate) fn read_certificate(
    path: &Path,
    ca: &CaCertificate,
    at: Timestamp,
) -> Result<Certificate, Error> {
    let text = files::read_text(path, "a certificate")?;
    dcnet::identity::certificate_from_pem(&text)
        .and_then(|der| Certificate::verify(&der, ca, at))
        .map_err(|source| Error::Identity {
            path: path.to_owned(),
            source,
        })
}
