//! Signing requests (PKCS#10, RFC 2986): the only thing that leaves a device
//! before it is enrolled. Its key stays where it was made.

use std::path::Path;

use dcnet::identity::{DeviceId, MAX_CERTIFICATE, PublicKey, Role};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;

use crate::error::Error;
use crate::files::{self, Access};
use crate::key::KeyPair;
use crate::profile;

/// Name of the key file on a device.
pub const KEY_FILE: &str = "key.pem";

/// Name of the signing request on a device.
pub const REQUEST_FILE: &str = "request.pem";

const PEM_LABEL: &str = "CERTIFICATE REQUEST";
const ED25519: &str = "1.3.101.112";

/// A signing request whose signature was verified: whoever made it holds the key.
///
/// Nothing but the public key goes from a request into a certificate; the role it
/// states only guards against a mix-up.
#[derive(Clone, Debug)]
pub struct DeviceRequest {
    key: PublicKey,
    role: Role,
    pem: String,
}

impl DeviceRequest {
    /// A request for the key's device to be enrolled as `role`.
    ///
    /// # Errors
    /// [`Error::Certificate`]
    pub fn new(key: &KeyPair, role: Role) -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, key.id().to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(
            role.extended_key_usage().to_vec(),
        )];
        let pem = params.serialize_request(key)?.pem()?;
        Ok(Self {
            key: key.public(),
            role,
            pem,
        })
    }

    /// Makes a device's key and request in `directory`, as [`KEY_FILE`] (mode 0600)
    /// and [`REQUEST_FILE`]. Run on the device itself.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a key or a request already, [`Error::DirectoryMode`],
    /// [`Error::Io`], [`Error::Random`].
    pub fn create(directory: &Path, role: Role) -> Result<Self, Error> {
        files::create_directory(directory)?;
        files::refuse_existing(directory, [KEY_FILE, REQUEST_FILE])?;
        let key = KeyPair::generate()?;
        let request = Self::new(&key, role)?;
        key.write(&directory.join(KEY_FILE))?;
        request.write(directory)?;
        Ok(request)
    }

    /// Makes a request of a device that has its key already, in the file `key`, as
    /// [`REQUEST_FILE`] in `directory`: for another certificate of the same key.
    ///
    /// # Errors
    /// As [`KeyPair::read`]; [`Error::Exists`] if there is a request already, [`Error::Io`].
    pub fn of_key(key: &Path, directory: &Path, role: Role) -> Result<Self, Error> {
        let request = Self::new(&KeyPair::read(key)?, role)?;
        files::create_directory(directory)?;
        request.write(directory)?;
        Ok(request)
    }

    fn write(&self, directory: &Path) -> Result<(), Error> {
        files::refuse_existing(directory, [REQUEST_FILE])?;
        let path = directory.join(REQUEST_FILE);
        files::create(&path, self.pem.as_bytes(), Access::Public)
    }

    /// Reads and verifies a request from a file.
    ///
    /// # Errors
    /// [`Error::Request`] with the reason, [`Error::TooLong`], [`Error::Content`], [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_pem(&files::read_text(path, "a signing request")?)
    }

    /// Reads and verifies a `CERTIFICATE REQUEST` PEM block.
    ///
    /// # Errors
    /// [`Error::Request`] with the reason.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let block = pem::parse(text).map_err(|_| Error::Request("it is no PEM text"))?;
        if block.tag() != PEM_LABEL {
            return Err(Error::Request(
                "the file does not start with BEGIN CERTIFICATE REQUEST",
            ));
        }
        let der = block.contents();
        if der.len() > MAX_CERTIFICATE {
            return Err(Error::Request("it is longer than 2048 bytes"));
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(Error::Request("it is no PKCS#10 request in DER"));
        };
        let key = public_key(&request)?;
        let signature = <&[u8; 64]>::try_from(request.signature_value.data.as_ref());
        let signed = request.signature_algorithm.algorithm.to_id_string() == ED25519
            && signature.is_ok_and(|s| key.verify(request.certification_request_info.raw, s));
        if !signed {
            return Err(Error::Request("it is not signed by its own Ed25519 key"));
        }
        Ok(Self {
            key,
            role: role(&request)?,
            pem: text.to_owned(),
        })
    }

    /// The request as a PEM block.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The role the device asks for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The device's public key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The device's id.
    pub fn id(&self) -> DeviceId {
        self.key.id()
    }
}

fn public_key(request: &X509CertificationRequest<'_>) -> Result<PublicKey, Error> {
    let info = &request.certification_request_info.subject_pki;
    let bytes = <&[u8; 32]>::try_from(info.subject_public_key.data.as_ref());
    match bytes {
        Ok(bytes) if info.algorithm.algorithm.to_id_string() == ED25519 => {
            PublicKey::from_bytes(bytes)
                .map_err(|_| Error::Request("its key is no acceptable Ed25519 key"))
        }
        _ => Err(Error::Request("its key is no Ed25519 key")),
    }
}

fn role(request: &X509CertificationRequest<'_>) -> Result<Role, Error> {
    let mut roles = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::ExtendedKeyUsage(usage) = extension else {
            return Err(Error::Request("it asks for more than a role"));
        };
        roles.extend(profile::roles(usage));
    }
    match roles.as_slice() {
        [Some(role)] => Ok(*role),
        _ => Err(Error::Request(
            "it does not state exactly one role of this protocol",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_its_text() {
        let key = KeyPair::generate().unwrap();
        for role in Role::ALL {
            let request = DeviceRequest::new(&key, role).unwrap();
            let again = DeviceRequest::from_pem(request.pem()).unwrap();
            assert_eq!(again.role(), role);
            assert_eq!(again.id(), key.id());
        }
    }

    #[test]
    fn a_request_signed_by_another_key_is_refused() {
        struct Liar(KeyPair, KeyPair);
        impl rcgen::PublicKeyData for Liar {
            fn der_bytes(&self) -> &[u8] {
                self.0.der_bytes()
            }
            fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
                &rcgen::PKCS_ED25519
            }
        }
        impl rcgen::SigningKey for Liar {
            fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
                rcgen::SigningKey::sign(&self.1, message)
            }
        }
        let liar = Liar(KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(
            Role::Meter.extended_key_usage().to_vec(),
        )];
        let pem = params.serialize_request(&liar).unwrap().pem().unwrap();
        let error = DeviceRequest::from_pem(&pem).unwrap_err().to_string();
        assert!(error.contains("not signed by its own"), "{error}");
    }

    #[test]
    fn other_requests_are_refused_with_the_reason() {
        let key = KeyPair::generate().unwrap();
        let usage = |role: Role| ExtendedKeyUsagePurpose::Other(role.extended_key_usage().to_vec());
        let pem =
            |params: CertificateParams| params.serialize_request(&key).unwrap().pem().unwrap();
        let mut none = CertificateParams::default();
        none.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut two = CertificateParams::default();
        two.extended_key_usages = vec![usage(Role::Meter), usage(Role::Provider)];
        let mut named = CertificateParams::new(vec!["example.org".to_owned()]).unwrap();
        named.extended_key_usages = vec![usage(Role::Meter)];
        let p256 = rcgen::KeyPair::generate().unwrap();
        let foreign = CertificateParams::default()
            .serialize_request(&p256)
            .unwrap();
        let mut trailing = DeviceRequest::new(&key, Role::Meter)
            .map(|r| pem::parse(r.pem()).unwrap().into_contents())
            .unwrap();
        trailing.push(0);
        for (text, reason) in [
            (String::new(), "no PEM"),
            (key.to_pem().unwrap().to_string(), "does not start with"),
            (pem(none), "exactly one role"),
            (pem(CertificateParams::default()), "exactly one role"),
            (pem(two), "exactly one role"),
            (pem(named), "more than a role"),
            (foreign.pem().unwrap(), "no Ed25519 key"),
            (
                pem::encode(&pem::Pem::new(PEM_LABEL, trailing)),
                "no PKCS#10",
            ),
            (
                pem::encode(&pem::Pem::new(PEM_LABEL, vec![0; MAX_CERTIFICATE + 1])),
                "longer than",
            ),
        ] {
            let error = DeviceRequest::from_pem(&text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}: {reason}");
        }
    }
}
