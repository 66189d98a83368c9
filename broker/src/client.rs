//! Who is at the other end: the holder of a certificate, or a user with a password.

use std::fmt;
use std::sync::Arc;

use dcnet::identity::{Certificate, DeviceId, Role};
use dcnet::time::Timestamp;

/// What tells one client from all others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    Device(DeviceId),
    User(Arc<str>),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(id) => id.fmt(f),
            Self::User(name) => write!(f, "user {name}"),
        }
    }
}

/// A client whose certificate or password was verified.
pub(crate) enum Client {
    Device(Box<Certificate>),
    User(User),
}

/// A third party without a certificate.
pub(crate) struct User {
    pub(crate) name: Arc<str>,
    /// The hash its password was verified with.
    pub(crate) hash: Arc<str>,
}

impl Client {
    pub(crate) fn identity(&self) -> Identity {
        match self {
            Self::Device(certificate) => Identity::Device(certificate.id()),
            Self::User(user) => Identity::User(Arc::clone(&user.name)),
        }
    }

    pub(crate) fn role(&self) -> Role {
        match self {
            Self::Device(certificate) => certificate.role(),
            Self::User(_) => Role::ThirdParty,
        }
    }

    /// When the certificate ends; users have none.
    pub(crate) fn not_after(&self) -> Option<Timestamp> {
        match self {
            Self::Device(certificate) => Some(certificate.not_after()),
            Self::User(_) => None,
        }
    }
}
