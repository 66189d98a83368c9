//! Who is who: device keys, certificates of the gateway administrator's CA, and
//! the role and net that each certificate names (`docs/protocol.md`, "Identities").

use std::fmt;

use ed25519_dalek::pkcs8::DecodePrivateKey;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use x509_parser::prelude::*;

use crate::time::Timestamp;
use crate::topic::NetId;

/// First 16 bytes of SHA-256 of a device's Ed25519 public key: a pseudonym.
/// For a meter this is the *meter id*; every other party has one too.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub [u8; 16]);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

/// What a certificate entitles its holder to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A household's meter agent, valid in exactly one net.
    Meter,
    /// The provider agent.
    Provider,
    /// The broker; the only certificate with host names and serverAuth.
    Broker,
    /// The gateway administrator's signing key for checkpoints and revocations.
    Administrator,
    /// Reads public topics of one net, or of all nets when it names none.
    ThirdParty,
}

/// Arc of the roles: `2.25.N` needs no registration (ITU-T X.667); N was drawn at random.
pub const ROLE_ARC: [u64; 3] = [2, 25, 5_871_302_984_617_304_991];

/// Prefix of the URI name that binds a certificate to a net; 32 hexadecimal digits follow.
pub const NET_URI_PREFIX: &str = "urn:dcnet:net:";

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Meter,
        Self::Provider,
        Self::Broker,
        Self::Administrator,
        Self::ThirdParty,
    ];

    /// The extended key usage that stands for the role, as arcs of an object identifier.
    pub fn extended_key_usage(self) -> [u64; 4] {
        let [a, b, c] = ROLE_ARC;
        let role = match self {
            Self::Meter => 1,
            Self::Provider => 2,
            Self::Broker => 3,
            Self::Administrator => 4,
            Self::ThirdParty => 5,
        };
        [a, b, c, role]
    }

    /// The word used in files, logs and command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Meter => "meter",
            Self::Provider => "provider",
            Self::Broker => "broker",
            Self::Administrator => "administrator",
            Self::ThirdParty => "third-party",
        }
    }
}

/// A device's Ed25519 signing key. Wiped when dropped; `Debug` shows only the id.
#[derive(Clone)]
pub struct DeviceKey(SigningKey);

impl DeviceKey {
    /// A key from 32 secret bytes (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads a PKCS#8 `PRIVATE KEY` PEM block.
    ///
    /// # Errors
    /// [`IdentityError::Key`] if it is not an Ed25519 key in that form.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, IdentityError> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| IdentityError::Key)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The id of this device.
    pub fn id(&self) -> DeviceId {
        self.public().id()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({})", self.id())
    }
}

/// An Ed25519 public key that is no point of small order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the 32 bytes of RFC 8032; refuses weak keys.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, IdentityError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| IdentityError::Key)?;
        if key.is_weak() {
            Err(IdentityError::Key)
        } else {
            Ok(Self(key))
        }
    }

    /// The 32 bytes of RFC 8032.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The id of the device that holds the private half.
    pub fn id(&self) -> DeviceId {
        let mut id = [0; 16];
        let digest: [u8; 32] = Sha256::digest(self.0.as_bytes()).into();
        id.copy_from_slice(digest.split_at(16).0);
        DeviceId(id)
    }

    /// Strict verification (no small-order points, canonical s), RFC 8032, section 5.1.7.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0
            .verify_strict(message, &Signature::from_bytes(signature))
            .is_ok()
    }

    pub(crate) fn dalek(&self) -> &VerifyingKey {
        &self.0
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// Why a key or certificate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The key is not an acceptable Ed25519 key.
    #[error("not an acceptable Ed25519 key")]
    Key,
    /// Not a DER X.509 version 3 certificate without trailing bytes, or over 2 KiB.
    #[error("not an X.509 certificate of at most 2048 bytes")]
    Form,
    /// Not signed by this CA.
    #[error("the certificate was not issued by this CA")]
    Issuer,
    /// Outside its validity.
    #[error("the certificate is not valid at this time")]
    Expired,
    /// Not exactly one role, or an extension that the role must not have.
    #[error("the certificate does not state exactly one role of this protocol")]
    Role,
    /// A meter's certificate must name exactly one net; others at most one.
    #[error("the certificate does not name the net as its role requires")]
    Net,
    /// Not a CA certificate of path length 0 with an Ed25519 key.
    #[error("not a CA certificate with path length 0")]
    Ca,
}

/// Longest certificate accepted, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 2048;

/// The CA of the gateway administrator: an Ed25519 root with path length 0.
#[derive(Clone, Debug)]
pub struct CaCertificate {
    der: Vec<u8>,
    subject: Vec<u8>,
    key: PublicKey,
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    if der.len() > MAX_CERTIFICATE {
        return Err(IdentityError::Form);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) if certificate.version() == X509Version::V3 => Ok(certificate),
        _ => Err(IdentityError::Form),
    }
}

fn ed25519_key(certificate: &X509Certificate<'_>) -> Result<PublicKey, IdentityError> {
    let info = certificate.public_key();
    if info.algorithm.algorithm.to_id_string() != "1.3.101.112" {
        return Err(IdentityError::Key);
    }
    let bytes: &[u8; 32] = info
        .subject_public_key
        .data
        .as_ref()
        .try_into()
        .map_err(|_| IdentityError::Key)?;
    PublicKey::from_bytes(bytes)
}

/// What stands between the signed part and the signature of every certificate:
/// the identifier of Ed25519 without parameters (RFC 8410, section 3) and the
/// head of a bit string of exactly 64 bytes.
const SIGNATURE_HEAD: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

/// The definite, shortest head of a DER sequence of `len` bytes.
fn sequence_head(len: usize) -> Vec<u8> {
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..0x80), _) => vec![0x30, short],
        (Ok(byte), _) => vec![0x30, 0x81, byte],
        (_, Ok(word)) => [&[0x30, 0x82][..], &word.to_be_bytes()].concat(),
        _ => Vec::new(),
    }
}

/// Verifies the signature, and that everything outside the signed part is the one
/// DER encoding of it: the signature does not protect those bytes, and a parser
/// that forgives any of them would let one certificate have several fingerprints.
fn signed_by(certificate: &X509Certificate<'_>, key: &PublicKey) -> bool {
    let signed = certificate.tbs_certificate.as_ref();
    let Some((rest, signature)) = certificate.as_raw().split_last_chunk() else {
        return false;
    };
    let body = [signed, &SIGNATURE_HEAD].concat();
    let head = sequence_head(body.len().saturating_add(signature.len()));
    // RFC 5280, section 4.1.1.2: both mentions of the algorithm are the same.
    certificate.tbs_certificate.signature == certificate.signature_algorithm
        && rest == [head, body].concat()
        && key.verify(signed, signature)
}

/// Extensions that the certificates of this protocol have. RFC 5280, section 4.2:
/// an unknown critical one is a reason to refuse.
fn only_known_critical(certificate: &X509Certificate<'_>) -> bool {
    certificate.extensions().iter().all(|extension| {
        !extension.critical
            || matches!(
                extension.parsed_extension(),
                ParsedExtension::BasicConstraints(_)
                    | ParsedExtension::KeyUsage(_)
                    | ParsedExtension::ExtendedKeyUsage(_)
                    | ParsedExtension::SubjectAlternativeName(_)
            )
    })
}

impl CaCertificate {
    /// Reads a self-signed CA certificate from DER.
    ///
    /// # Errors
    /// [`IdentityError`] if it is malformed or not a CA of path length 0.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let key = ed25519_key(&certificate)?;
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| IdentityError::Ca)?;
        let is_ca =
            constraints.is_some_and(|c| c.value.ca && c.value.path_len_constraint == Some(0));
        let may_sign = certificate
            .key_usage()
            .map_err(|_| IdentityError::Ca)?
            .is_none_or(|usage| usage.value.key_cert_sign());
        let self_issued = certificate.issuer().as_raw() == certificate.subject().as_raw();
        if !is_ca
            || !may_sign
            || !self_issued
            || !only_known_critical(&certificate)
            || !signed_by(&certificate, &key)
        {
            return Err(IdentityError::Ca);
        }
        Ok(Self {
            der: der.to_vec(),
            subject: certificate.subject().as_raw().to_vec(),
            key,
        })
    }

    /// Reads the first `CERTIFICATE` PEM block.
    ///
    /// # Errors
    /// As [`Self::from_der`].
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        Self::from_der(&certificate_from_pem(pem)?)
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the DER; named in every Genesis.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }
}

/// The DER inside the first `CERTIFICATE` PEM block of a text; other blocks
/// before it are skipped.
///
/// # Errors
/// [`IdentityError::Form`] if there is none.
pub fn certificate_from_pem(pem: &str) -> Result<Vec<u8>, IdentityError> {
    Pem::iter_from_buffer(pem.as_bytes())
        .map_while(Result::ok)
        .find(|block| block.label == "CERTIFICATE")
        .map(|block| block.contents)
        .ok_or(IdentityError::Form)
}

/// A device's certificate that was verified against the CA: there is no other
/// way to make one.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    key: PublicKey,
    id: DeviceId,
    role: Role,
    net: Option<NetId>,
    not_after: Timestamp,
}

impl Certificate {
    /// Verifies issuer, signature, validity at `at`, role and net.
    ///
    /// # Errors
    /// [`IdentityError`] naming the first rule that is broken.
    pub fn verify(der: &[u8], ca: &CaCertificate, at: Timestamp) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        if certificate.issuer().as_raw() != ca.subject || !signed_by(&certificate, &ca.key) {
            return Err(IdentityError::Issuer);
        }
        let key = ed25519_key(&certificate)?;
        let seconds = i64::try_from(at.as_millis() / 1000).map_err(|_| IdentityError::Expired)?;
        let validity = certificate.validity();
        if seconds < validity.not_before.timestamp() || seconds > validity.not_after.timestamp() {
            return Err(IdentityError::Expired);
        }
        let not_after = u64::try_from(validity.not_after.timestamp()).unwrap_or(0);
        // Not `is_ca()`, which takes an extension it cannot read for a "no".
        let constraints = certificate
            .basic_constraints()
            .map_err(|_| IdentityError::Role)?;
        if constraints.is_some_and(|c| c.value.ca) || !only_known_critical(&certificate) {
            return Err(IdentityError::Role);
        }
        let role = role_of(&certificate)?;
        let net = net_of(&certificate, role)?;
        Ok(Self {
            der: der.to_vec(),
            key,
            id: key.id(),
            role,
            net,
            not_after: Timestamp(not_after.saturating_mul(1000)),
        })
    }

    /// The certificate in DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The device's public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The device's id.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// What the holder may do.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The net it is valid in; always present for meters.
    pub fn net(&self) -> Option<NetId> {
        self.net
    }

    /// The last moment of its validity.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

fn role_of(certificate: &X509Certificate<'_>) -> Result<Role, IdentityError> {
    let usage = certificate
        .extended_key_usage()
        .ok()
        .flatten()
        .ok_or(IdentityError::Role)?;
    let mut found = None;
    for oid in &usage.value.other {
        let text = oid.to_id_string();
        for role in Role::ALL {
            let arcs = role
                .extended_key_usage()
                .map(|arc| arc.to_string())
                .join(".");
            if text == arcs && found.replace(role).is_some() {
                return Err(IdentityError::Role);
            }
        }
    }
    let role = found.ok_or(IdentityError::Role)?;
    if usage.value.server_auth != (role == Role::Broker) || usage.value.any {
        return Err(IdentityError::Role);
    }
    Ok(role)
}

fn net_of(certificate: &X509Certificate<'_>, role: Role) -> Result<Option<NetId>, IdentityError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::Net)?;
    let mut net = None;
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::URI(uri) => {
                let id = uri
                    .strip_prefix(NET_URI_PREFIX)
                    .and_then(|hex| hex.parse().ok());
                if net.replace(id.ok_or(IdentityError::Net)?).is_some() {
                    return Err(IdentityError::Net);
                }
            }
            GeneralName::DNSName(_) | GeneralName::IPAddress(_) if role == Role::Broker => {}
            _ => return Err(IdentityError::Net),
        }
    }
    match (role, net) {
        (Role::Meter, None) => Err(IdentityError::Net),
        (Role::Provider | Role::Broker | Role::Administrator, Some(_)) => Err(IdentityError::Net),
        (_, net) => Ok(net),
    }
}
