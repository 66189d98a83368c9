//! What can go wrong, told so that the administrator knows what to do next.

use std::io;
use std::path::{Path, PathBuf};

use dcnet::identity::{DeviceId, IdentityError, Role};
use dcnet::topic::NetId;

/// Why a command was not carried out. Nothing was changed unless the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file or directory.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is there already, and this tool never overwrites.
    #[error("{path} exists and is never overwritten: choose another directory, or move it away", path = .0.display())]
    Exists(PathBuf),
    /// Others than its owner may read or change a file that holds a secret.
    #[error(
        "{path} has mode {mode:04o}, so others than its owner may use the key: run `chmod 600 {path}`, \
         and replace the key if anybody may have read it",
        path = path.display()
    )]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than its owner may replace the files of a directory that holds a key.
    #[error(
        "the directory {path} has mode {mode:04o}, so others than its owner may replace the key in it: \
         run `chmod go-w {path}`",
        path = path.display()
    )]
    DirectoryMode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is longer than anything this tool reads.
    #[error("{path} is longer than {limit} bytes, so it is not {what}", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A file does not hold what it should.
    #[error("{path} is not {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
    },
    /// A certificate or key in a file is refused.
    #[error("{path}: {source}", path = path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// The rule that is broken.
        source: IdentityError,
    },
    /// The CA's key or the administrator's key does not belong to its certificate.
    #[error("{key} is not the key of {certificate}: restore both from the same backup", key = key.display(), certificate = certificate.display())]
    Mismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// A signing request is refused.
    #[error("the signing request is refused: {0}")]
    Request(&'static str),
    /// A request or certificate of another role than needed.
    #[error("{found} where {wanted} is needed", found = found.as_str(), wanted = wanted.as_str())]
    Role {
        /// The role it states.
        found: Role,
        /// The role needed.
        wanted: Role,
    },
    /// The key already has a certificate for something else.
    #[error(
        "device {device} already has a certificate as {role}{}: one key serves one role in one net; \
         make a new key and request on the device (`gateway-admin request`)",
        net.map(|net| format!(" in net {net}")).unwrap_or_default(),
        role = role.as_str()
    )]
    Registered {
        /// The device.
        device: DeviceId,
        /// The role it has.
        role: Role,
        /// The net it is in.
        net: Option<NetId>,
    },
    /// The device is on the revocation list; that is final.
    #[error("device {0} is revoked, which is final: make a new key and request on the device")]
    Revoked(DeviceId),
    /// The device is not in the registry.
    #[error("device {0} is not in the registry: check the id with `gateway-admin list`")]
    Unregistered(DeviceId),
    /// The administrator's own device cannot be revoked by itself.
    #[error(
        "device {0} is the administrator itself, whose revocation nobody could sign: \
         make a new CA and enrol every device again"
    )]
    Administrator(DeviceId),
    /// A line of the registry is damaged.
    #[error("{path}, line {line}: not an entry of the registry ({reason}): restore the file from a backup, or mend the line", path = path.display())]
    Registry {
        /// The registry.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Not a host name or address for the broker's certificate.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Host(String),
    /// Not a name for a CA.
    #[error("the name of the CA must have 1 to 64 characters, none of them a control character")]
    Name,
    /// A validity that is no time span of at most 100 years.
    #[error("a certificate is valid for 1 to 36500 days")]
    Days,
    /// A checkpoint of a net without members or entries.
    #[error("the log head is none of a running net: {0}")]
    Head(&'static str),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate made would be refused by the devices.
    #[error("cannot issue this certificate: {0}")]
    Refused(IdentityError),
    /// A signed list or checkpoint could not be made or is not valid.
    #[error("{what}: {reason}")]
    Frame {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system gives no randomness.
    #[error("no randomness from the operating system: {0}")]
    Random(getrandom::Error),
}

impl Error {
    /// Says which file an error of the operating system is about.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists(path.to_owned()),
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}
