//! One entry of the log: its kinds, its form, and the frames of meters inside it.

use ciborium::Value;

use crate::cbor::{self, Fields};
use crate::frame::{self, Frame, FrameError, Notification, Unverified};
use crate::identity::{
    CaCertificate, Certificate, DeviceKey, IdentityError, MAX_CERTIFICATE, Role,
};
use crate::time::Timestamp;
use crate::topic::NetId;

/// Kinds of entries; the numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// Opens the net.
    Genesis = 0,
    /// A meter joins, by its signed registration.
    Join = 1,
    /// Answers a draw request with the provider's nonce.
    Invite = 2,
    /// Ends a draw with the meter's opened nonce.
    Draw = 3,
    /// A meter leaves, by its signed exit.
    Leave = 4,
    /// The gateway administrator revokes a meter.
    Revoke = 5,
    /// A member is no candidate for draws any more.
    Lapsed = 6,
    /// Prices of a billing period.
    Tariff = 7,
    /// The provider changes its key.
    ProviderKey = 8,
}

impl EntryKind {
    const ALL: [Self; 9] = [
        Self::Genesis,
        Self::Join,
        Self::Invite,
        Self::Draw,
        Self::Leave,
        Self::Revoke,
        Self::Lapsed,
        Self::Tariff,
        Self::ProviderKey,
    ];

    pub(super) fn from_code(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == code)
    }
}

/// Why an entry is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A frame in or around it is refused.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A certificate in it is refused.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// It is already in the log.
    #[error("already in the log")]
    Known,
    /// Entries before it are missing.
    #[error("entries from {expected} on are missing")]
    Gap {
        /// The index that comes next.
        expected: u64,
        /// The index of the entry that came.
        index: u64,
    },
    /// The provider signed another entry in the same place, or one with another past.
    #[error("the provider signed a second entry {index}: the log forks")]
    Fork {
        /// Where the two logs part, or the entry whose past differs.
        index: u64,
    },
    /// The Genesis names another CA or provider than this device was enrolled with.
    #[error("the Genesis names another {0} than this device was enrolled with")]
    Trust(&'static str),
    /// A kind that this version does not handle.
    #[error("entries of kind {0:?} are not supported by this version")]
    Unsupported(EntryKind),
    /// It breaks a rule of the log.
    #[error("{0}")]
    Rule(&'static str),
    /// The provider signed it as the next entry, but a frame or certificate of somebody else
    /// in it, or its form, is refused.
    #[error("what it contains is refused: {0}")]
    Body(Box<EntryError>),
}

impl EntryError {
    /// The same fault, of what stands inside an entry that the provider signed.
    pub(super) fn in_body(self) -> Self {
        match self {
            Self::Frame(_) | Self::Identity(_) => Self::Body(Box::new(self)),
            error => error,
        }
    }

    /// Whether [`Membership::append`](super::Membership::append) says by it that the provider,
    /// whose signature was verified, broke a rule of the log.
    pub(crate) fn accuses_provider(&self) -> bool {
        matches!(self, Self::Rule(_) | Self::Unsupported(_) | Self::Body(_))
    }
}

pub(super) fn sign(
    key: &DeviceKey,
    net: NetId,
    index: u64,
    previous: Option<[u8; 32]>,
    kind: EntryKind,
    body: Value,
    at: Timestamp,
) -> Vec<u8> {
    let previous = previous.map_or(Value::Null, |hash| cbor::bytes(&hash));
    let data = cbor::array([cbor::uint(index), previous, cbor::uint(kind as u64), body]);
    frame::sign(key, net, at, Notification::Entry, data)
}

/// An entry whose signature was verified.
pub(super) struct Entry {
    pub(super) hash: [u8; 32],
    pub(super) at: Timestamp,
    pub(super) index: u64,
    pub(super) previous: Option<[u8; 32]>,
    pub(super) kind: EntryKind,
    pub(super) body: Value,
}

impl Entry {
    /// Reads the entry of a frame whose signature is verified. `is_in_force` says whether
    /// its key signs entry `index`, or the next one if the entry names no place: another
    /// key's entry proves nothing, whatever its form.
    pub(super) fn read(
        frame: Frame,
        net: NetId,
        is_in_force: impl FnOnce(Option<u64>) -> bool,
    ) -> Result<Self, EntryError> {
        let (hash, at) = (frame.digest(), frame.header().timestamp);
        let mut fields = frame.open(net, Notification::Entry)?;
        let index = fields.uint("index", u64::MAX);
        if !is_in_force(index.as_ref().ok().copied()) {
            return Err(FrameError::Signature.into());
        }
        let read = index.map_err(EntryError::from);
        let read = read.and_then(|index| Self::read_fields(fields, index, hash, at));
        read.map_err(EntryError::in_body)
    }

    fn read_fields(
        mut fields: Fields,
        index: u64,
        hash: [u8; 32],
        at: Timestamp,
    ) -> Result<Self, EntryError> {
        let previous = fields.fixed_or_null("previous")?;
        let kind = fields.uint("kind", u64::MAX)?;
        let kind = EntryKind::from_code(kind).ok_or(FrameError::Bound("kind"))?;
        let body = fields.item("body")?;
        fields.end()?;
        Ok(Self {
            hash,
            at,
            index,
            previous,
            kind,
            body,
        })
    }
}

/// Signs a registration: notification 1 with the meter's own certificate.
pub fn sign_registration(
    key: &DeviceKey,
    certificate: &Certificate,
    net: NetId,
    at: Timestamp,
) -> Vec<u8> {
    sign_certificate(key, certificate, net, at, Notification::Register)
}

/// Verifies a registration: a meter's certificate for this net, issued by the CA,
/// valid at `at`, whose key signed the frame.
///
/// # Errors
/// [`EntryError::Frame`] or [`EntryError::Identity`].
pub fn verify_registration(
    input: &[u8],
    net: NetId,
    ca: &CaCertificate,
    at: Timestamp,
) -> Result<Certificate, EntryError> {
    let (role, notification) = (Role::Meter, Notification::Register);
    verify_certificate(input, net, ca, at, role, notification)
}

/// Signs a meter's exit: notification 3, naming the hash of the Join entry it ends, so
/// that it cannot end another one.
pub fn sign_exit(key: &DeviceKey, net: NetId, join: &[u8; 32], at: Timestamp) -> Vec<u8> {
    let data = cbor::array([cbor::bytes(join)]);
    frame::sign(key, net, at, Notification::Exit, data)
}

/// Signs the new provider's consent to sign a log from now on: its certificate, by its key.
pub(super) fn sign_succession(
    key: &DeviceKey,
    certificate: &Certificate,
    net: NetId,
    at: Timestamp,
) -> Vec<u8> {
    sign_certificate(key, certificate, net, at, Notification::ProviderKey)
}

/// Verifies [`sign_succession`]: a provider's certificate, issued by the CA, valid at
/// `at`, whose key signed the frame.
pub(super) fn verify_succession(
    input: &[u8],
    net: NetId,
    ca: &CaCertificate,
    at: Timestamp,
) -> Result<Certificate, EntryError> {
    let (role, notification) = (Role::Provider, Notification::ProviderKey);
    verify_certificate(input, net, ca, at, role, notification)
}

/// Signs a device's own certificate.
fn sign_certificate(
    key: &DeviceKey,
    certificate: &Certificate,
    net: NetId,
    at: Timestamp,
    notification: Notification,
) -> Vec<u8> {
    let data = cbor::array([cbor::bytes(certificate.der())]);
    frame::sign(key, net, at, notification, data)
}

/// Verifies [`sign_certificate`]: a certificate for a role (a meter's is for this net),
/// issued by the CA, valid at `at`, whose key signed the frame.
fn verify_certificate(
    input: &[u8],
    net: NetId,
    ca: &CaCertificate,
    at: Timestamp,
    role: Role,
    notification: Notification,
) -> Result<Certificate, EntryError> {
    let frame = Unverified::parse(input)?;
    let mut claimed = Fields::of(frame.claimed_data().clone(), "data")?;
    let der = claimed.bytes("certificate", MAX_CERTIFICATE)?;
    claimed.end()?;
    let certificate = Certificate::verify(&der, ca, at)?;
    if certificate.role() != role {
        return Err(IdentityError::Role.into());
    }
    if role == Role::Meter && certificate.net() != Some(net) {
        return Err(IdentityError::Net.into());
    }
    frame.verify(certificate.key())?.open(net, notification)?;
    Ok(certificate)
}
