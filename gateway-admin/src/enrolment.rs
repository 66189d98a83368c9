//! What an enrolment is about: who, on which terms, and the state of the net's log.

use dcnet::identity::PublicKey;

use crate::key::KeyPair;
use crate::profile::DEVICE_DAYS;
use crate::request::DeviceRequest;

/// Who is to be enrolled.
#[derive(Debug)]
pub enum Applicant {
    /// A device that keeps its key to itself.
    Request(DeviceRequest),
    /// A key made here, which goes into the bundle: for demonstrations.
    Generated(KeyPair),
}

impl From<DeviceRequest> for Applicant {
    fn from(request: DeviceRequest) -> Self {
        Self::Request(request)
    }
}

impl From<KeyPair> for Applicant {
    fn from(key: KeyPair) -> Self {
        Self::Generated(key)
    }
}

impl Applicant {
    /// The key to be certified.
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Request(request) => *request.key(),
            Self::Generated(key) => key.public(),
        }
    }

    pub(crate) fn key_pair(self) -> Option<KeyPair> {
        match self {
            Self::Request(_) => None,
            Self::Generated(key) => Some(key),
        }
    }
}

/// How a certificate is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Days of validity; the CA's own end cuts it short.
    pub days: u32,
    /// The administrator's note of whose device it is; only the registry ever holds it.
    pub household: Option<String>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            days: DEVICE_DAYS,
            household: None,
        }
    }
}

impl Terms {
    /// The same with a validity of `days`.
    pub fn days(mut self, days: u32) -> Self {
        self.days = days;
        self
    }

    /// The same with a note of whose device it is.
    pub fn household(mut self, label: impl Into<String>) -> Self {
        self.household = Some(label.into());
        self
    }
}

/// The newest entry of a net's log, as the provider shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHead {
    /// Its index; Genesis is 0.
    pub index: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// Members as of that entry.
    pub members: u32,
}
