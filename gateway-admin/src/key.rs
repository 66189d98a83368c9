//! Ed25519 key pairs in PKCS#8 files.

use std::fmt;
use std::path::Path;

use dcnet::identity::{DeviceId, DeviceKey, IdentityError, PublicKey};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::files::{self, Access};

/// An Ed25519 key pair. Wiped when dropped; `Debug` shows only the device id.
pub struct KeyPair {
    secret: SigningKey,
    public: [u8; 32],
}

impl KeyPair {
    /// A fresh key from the operating system's randomness.
    ///
    /// # Errors
    /// [`Error::Random`]
    pub fn generate() -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(Error::Random)?;
        Ok(Self::new(SigningKey::from_bytes(&seed)))
    }

    fn new(secret: SigningKey) -> Self {
        let public = secret.verifying_key().to_bytes();
        Self { secret, public }
    }

    /// Reads a PKCS#8 PEM file that only its owner can read.
    ///
    /// # Errors
    /// [`Error::KeyMode`] and [`Error::DirectoryMode`] if others have access,
    /// [`Error::Identity`] if it is no Ed25519 key, [`Error::Io`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let pem = files::read_secret(path, "a private key")?;
        SigningKey::from_pkcs8_pem(&pem)
            .map(Self::new)
            .map_err(|_| Error::Identity {
                path: path.to_owned(),
                source: IdentityError::Key,
            })
    }

    /// Writes a new PKCS#8 PEM file of mode 0600.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::DirectoryMode`] or [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        files::create(path, self.to_pem()?.as_bytes(), Access::Secret)
    }

    /// The key as a PKCS#8 `PRIVATE KEY` PEM block (RFC 8410, section 7).
    ///
    /// # Errors
    /// None in practice; the encoder has an error type.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, Error> {
        // Version 1, without the public key: OpenSSL and ring both read it.
        let mut bytes = KeypairBytes {
            secret_key: self.secret.to_bytes(),
            public_key: None,
        };
        let pem = bytes.to_pkcs8_pem(LineEnding::LF);
        zeroize::Zeroize::zeroize(&mut bytes.secret_key);
        pem.map_err(|_| Error::Certificate(rcgen::Error::CouldNotParseKeyPair))
    }

    /// The same key for signing the protocol's frames.
    pub fn device_key(&self) -> DeviceKey {
        DeviceKey::from_seed(&Zeroizing::new(self.secret.to_bytes()))
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.device_key().public()
    }

    /// The id of the device that has this key.
    pub fn id(&self) -> DeviceId {
        self.public().id()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.id())
    }
}

impl rcgen::PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.secret.sign(message).to_bytes().to_vec())
    }
}

/// A public key that a certificate is made for.
pub(crate) struct Subject(pub(crate) [u8; 32]);

impl rcgen::PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let key = KeyPair::generate().unwrap();
        key.write(&path).unwrap();
        let again = KeyPair::read(&path).unwrap();
        assert_eq!(again.id(), key.id());
        assert_eq!(again.to_pem().unwrap(), key.to_pem().unwrap());
        assert_eq!(format!("{key:?}"), format!("KeyPair({})", key.id()));
        assert_ne!(KeyPair::generate().unwrap().id(), key.id());
    }

    #[test]
    fn the_file_is_read_by_the_protocol_and_by_ring() {
        let key = KeyPair::generate().unwrap();
        let pem = key.to_pem().unwrap();
        assert_eq!(DeviceKey::from_pkcs8_pem(&pem).unwrap().id(), key.id());
        let ring = rcgen::KeyPair::from_pem(&pem).unwrap();
        assert_eq!(ring.public_key_raw(), key.public);
    }

    #[test]
    fn other_files_are_no_keys() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("empty", ""), ("text", "hello"), ("cut", "-----BEGIN P")] {
            let path = dir.path().join(name);
            files::create(&path, content.as_bytes(), Access::Secret).unwrap();
            assert!(matches!(KeyPair::read(&path), Err(Error::Identity { .. })));
        }
        assert!(matches!(
            KeyPair::read(&dir.path().join("absent")),
            Err(Error::Io { .. })
        ));
    }
}
