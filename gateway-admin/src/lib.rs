//! The gateway administrator's side of the protocol's identities: the CA, the
//! enrolment of devices and the revocation list (`docs/protocol.md`, "Identities").
//! `dcnet::identity` is the verifying side.
//!
//! An [`Authority`] lives in a directory, normally on a machine that is never
//! online. A device makes its key and a [`DeviceRequest`]; the authority turns the
//! request into a [`Bundle`], and the bundle's files go back to the device.
//!
//! ```
//! use gateway_admin::{Authority, KeyPair, LogHead, Terms};
//! # let dir = tempfile::tempdir().unwrap();
//! # let at = |name| dir.path().join(name);
//! # let net = dcnet::topic::NetId([7; 16]);
//! let authority = Authority::init(&at("authority"))?;
//!
//! let provider = authority.enrol_provider(KeyPair::generate()?, &Terms::default())?;
//! provider.write(&at("provider"))?;
//!
//! // The head of the net's log, as the provider shows it.
//! let head = LogHead { index: 0, hash: [1; 32], members: 0 };
//! let meter = authority.enrol_meter(
//!     KeyPair::generate()?, // or a DeviceRequest
//!     net,
//!     &provider.certificate,
//!     head,
//!     &Terms::default().household("Elm Street 3"),
//! )?;
//! meter.write(&at("meter"))?;
//!
//! authority.revoke(&[meter.id()])?;
//! # Ok::<(), gateway_admin::Error>(())
//! ```

mod authority;
mod bundle;
mod enrolment;
mod error;
mod files;
mod key;
mod profile;
mod registry;
mod request;
mod show;

pub use authority::{
    ADMINISTRATOR_KEY_FILE, Authority, CA_KEY_FILE, DEFAULT_NAME, InitOptions, REGISTRY_FILE,
    REVOCATIONS_DIRECTORY, Revocation,
};
pub use bundle::{
    ADMINISTRATOR_FILE, Bundle, CA_FILE, CERTIFICATE_FILE, CHECKPOINT_FILE, MeterPart,
    PROVIDER_FILE, REVOKED_FILE, certificate_pem,
};
pub use enrolment::{Applicant, LogHead, Terms};
pub use error::Error;
pub use files::refuse_existing;
pub use key::KeyPair;
pub use profile::{CA_DAYS, DEVICE_DAYS, Host, MAX_DAYS, Purpose, Validity};
pub use registry::{Entry, device_id, role, utc};
pub use request::{DeviceRequest, KEY_FILE, REQUEST_FILE};
pub use show::{Trust, show};
