//! What a file of this tool says, in plain words.

use std::fmt::Write as _;
use std::path::Path;

use dcnet::checkpoint::Checkpoint;
use dcnet::frame::{Frame, Notification, Unverified};
use dcnet::identity::{CaCertificate, Certificate, NET_URI_PREFIX, PublicKey};
use dcnet::revocation::{RevocationList, verify_revocation};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::authority::{REVOCATIONS_DIRECTORY, now, read_certificate};
use crate::bundle::{ADMINISTRATOR_FILE, CA_FILE};
use crate::error::Error;
use crate::files;
use crate::key::KeyPair;
use crate::profile::{self, Validity};
use crate::registry::utc;
use crate::request::DeviceRequest;

const WHAT: &str = "a certificate, request, checkpoint, revocation list or statement";

/// Whom [`show`] believes.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The CA that certificates are verified against.
    pub ca: Option<CaCertificate>,
    /// The administrator that checkpoints and lists are verified against.
    pub administrator: Option<Certificate>,
}

impl Trust {
    /// The CA in the file `ca`, or else in `ca.pem` beside `file`, and the
    /// administrator in `administrator.pem` beside the CA or else beside `file`. For a
    /// file in a directory `revocations` that directory counts as `file`.
    ///
    /// # Errors
    /// [`Error::Identity`] and others if a file is there and damaged.
    pub fn find(file: &Path, ca: Option<&Path>) -> Result<Self, Error> {
        let beside = |path: &Path, name: &str| path.parent().unwrap_or(Path::new("")).join(name);
        let file = match file.parent() {
            Some(directory) if directory.file_name() == Some(REVOCATIONS_DIRECTORY.as_ref()) => {
                directory
            }
            _ => file,
        };
        let ca_path = match ca {
            Some(path) => path.to_owned(),
            None => beside(file, CA_FILE),
        };
        if ca.is_none() && !ca_path.exists() {
            return Ok(Self::default());
        }
        let ca = CaCertificate::from_pem(&files::read_text(&ca_path, "a CA certificate")?)
            .map_err(|source| Error::Identity {
                path: ca_path.clone(),
                source,
            })?;
        let administrator = [ca_path.as_path(), file]
            .map(|path| beside(path, ADMINISTRATOR_FILE))
            .into_iter()
            .find(|path| path.exists())
            .map(|path| read_certificate(&path, &ca, now()))
            .transpose()?;
        Ok(Self {
            ca: Some(ca),
            administrator,
        })
    }
}

/// One `name  value` line below the heading.
fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "  {name:<12} {value}");
}

/// Describes a certificate, signing request, private key (its id only), checkpoint,
/// revocation list or the revocation of one device. Ends with whether it was verified, and against whom.
///
/// # Errors
/// [`Error::Content`] if it is none of these, [`Error::Request`], [`Error::KeyMode`],
/// [`Error::TooLong`], [`Error::Io`].
pub fn show(path: &Path, trust: &Trust) -> Result<String, Error> {
    let bytes = files::read(path, WHAT)?;
    let unknown = || Error::Content {
        path: path.to_owned(),
        what: WHAT,
    };
    let Ok(block) = pem::parse(&bytes) else {
        return show_frame(&bytes, trust).ok_or_else(unknown);
    };
    match block.tag() {
        "CERTIFICATE" => show_certificate(block.contents(), trust).ok_or_else(unknown),
        "CERTIFICATE REQUEST" => {
            let request = DeviceRequest::read(path)?;
            let mut out = format!("signing request of a {}\n", request.role().as_str());
            line(&mut out, "device id", request.id());
            line(&mut out, "verified", "yes, it is signed by its own key");
            Ok(out)
        }
        "PRIVATE KEY" => {
            let key = KeyPair::read(path)?;
            let mut out = "private key (keep it secret)\n".to_owned();
            line(&mut out, "device id", key.id());
            Ok(out)
        }
        _ => Err(unknown()),
    }
}

fn show_certificate(der: &[u8], trust: &Trust) -> Option<String> {
    let Ok(([], certificate)) = X509Certificate::from_der(der) else {
        return None;
    };
    let roles: Vec<_> = certificate
        .extended_key_usage()
        .ok()
        .flatten()
        .map(|usage| profile::roles(usage.value))
        .unwrap_or_default()
        .into_iter()
        .flatten()
        .map(|role| role.as_str())
        .collect();
    let mut out = match roles.as_slice() {
        _ if certificate.is_ca() => "certificate of a CA\n".to_owned(),
        [] => "certificate without a role of this protocol\n".to_owned(),
        _ => format!("certificate of a {}\n", roles.join(" and ")),
    };
    if certificate.is_ca() {
        line(
            &mut out,
            "name",
            printable(&certificate.subject().to_string()),
        );
    }
    if let Some(key) =
        <[u8; 32]>::try_from(certificate.public_key().subject_public_key.data.as_ref())
            .ok()
            .and_then(|key| PublicKey::from_bytes(&key).ok())
    {
        line(&mut out, "device id", key.id());
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|n| &n.value.general_names) {
        match name {
            GeneralName::URI(uri) => match uri.strip_prefix(NET_URI_PREFIX) {
                Some(net) => line(&mut out, "net", printable(net)),
                None => line(&mut out, "other name", printable(uri)),
            },
            GeneralName::DNSName(host) => line(&mut out, "host", printable(host)),
            GeneralName::IPAddress(bytes) => line(&mut out, "host", address(bytes)),
            other => line(&mut out, "other name", printable(&other.to_string())),
        }
    }
    if let Some(validity) = Validity::of(der) {
        let (from, until) = (utc(validity.from), utc(validity.until));
        line(&mut out, "valid", format_args!("{from} to {until}"));
    }
    line(&mut out, "fingerprint", hex::encode(Sha256::digest(der)));
    let verdict = match &trust.ca {
        _ if certificate.is_ca() => match CaCertificate::from_der(der) {
            Ok(_) => {
                "it is self-signed: compare the fingerprint by telephone or on paper".to_owned()
            }
            Err(e) => format!("NO: {e}"),
        },
        None => "not checked: there is no ca.pem beside it; name one with --ca".to_owned(),
        Some(ca) => match Certificate::verify(der, ca, now()) {
            Ok(_) => format!("yes, by the CA {}", hex::encode(ca.fingerprint())),
            Err(e) => format!("NO: {e}"),
        },
    };
    line(&mut out, "verified", verdict);
    Some(out)
}

fn show_frame(bytes: &[u8], trust: &Trust) -> Option<String> {
    let claimed = *Unverified::parse(bytes).ok()?.claimed();
    let name = match claimed.notification {
        Notification::Checkpoint => "checkpoint",
        Notification::Revocations => "revocation list",
        Notification::Revocation => "revocation of one device, for the log of its net",
        _ => return None,
    };
    let mut out = format!("{name}\n");
    let Some(administrator) = &trust.administrator else {
        line(
            &mut out,
            "claims",
            format_args!("to be signed by {}", claimed.client),
        );
        line(
            &mut out,
            "verified",
            "not checked, so not shown: put ca.pem and administrator.pem beside it, or use --ca",
        );
        return Some(out);
    };
    let verified = match claimed.notification {
        Notification::Checkpoint => Checkpoint::verify(bytes, administrator).map(|checkpoint| {
            line(&mut out, "net", checkpoint.net);
            line(&mut out, "log index", checkpoint.index);
            line(&mut out, "log head", hex::encode(checkpoint.head));
            line(&mut out, "members", checkpoint.members);
        }),
        Notification::Revocation => verify_revocation(bytes, administrator).map(|device| {
            line(&mut out, "revoked", device);
        }),
        _ => RevocationList::verify(bytes, administrator).map(|list| {
            line(&mut out, "number", list.number());
            line(&mut out, "revoked", list.devices().count());
            for device in list.devices() {
                line(&mut out, "", device);
            }
        }),
    };
    match verified.and_then(|()| Frame::verify(bytes, administrator.key())) {
        Ok(frame) => {
            line(&mut out, "signed", utc(frame.header().timestamp));
            let id = administrator.id();
            line(
                &mut out,
                "verified",
                format_args!("yes, by the administrator {id}"),
            );
        }
        Err(e) => line(&mut out, "verified", format_args!("NO: {e}")),
    }
    Some(out)
}

/// Text from a file nobody vouches for, without characters that drive a terminal.
fn printable(text: &str) -> String {
    text.chars().flat_map(char::escape_debug).collect()
}

fn address(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        std::net::Ipv4Addr::from(v4).to_string()
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        std::net::Ipv6Addr::from(v6).to_string()
    } else {
        format!("not an address: {}", hex::encode(bytes))
    }
}
