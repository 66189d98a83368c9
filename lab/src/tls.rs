//! TLS of the lab's own MQTT clients.

use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// TLS 1.3 that trusts `roots` and shows the first certificate of `chain`; without memory for
/// resumption, so that every handshake is whole.
///
/// # Errors
/// The key is not the certificate's.
pub fn client(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = trusting(roots)?.with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The same for a certificate as it was enrolled, in DER, and its key in PEM; or for nobody.
///
/// # Errors
/// No private key is in the PEM text, or not the certificate's.
pub fn of(
    roots: &RootCertStore,
    shown: Option<(&[u8], &str)>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let Some((certificate, pem)) = shown else {
        let mut config = trusting(roots.clone())?.with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        return Ok(Arc::new(config));
    };
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).context("no private key")?;
    let chain = vec![CertificateDer::from(certificate.to_vec())];
    Ok(Arc::new(client(roots.clone(), chain, key)?))
}

fn trusting(
    roots: RootCertStore,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots))
}
