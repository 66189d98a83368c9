//! TLS of the listeners: 1.3 only, the broker's own certificate exchangeable while it
//! runs, certificates of clients demanded or, for third parties, asked for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, bail, ensure};
use dcnet::identity::{CaCertificate, Certificate, Role, certificate_from_pem};
use dcnet::time::Timestamp;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::{Config, now};
use crate::gate::Door;

/// The broker's own certificate and key as read from their files.
#[derive(Debug)]
pub(crate) struct OwnCertificate {
    key: Arc<CertifiedKey>,
    pub(crate) not_after: Timestamp,
}

impl OwnCertificate {
    /// Reads and checks both files.
    ///
    /// # Errors
    /// If one cannot be used or they do not belong together.
    pub(crate) fn read(config: &Config, ca: &CaCertificate) -> anyhow::Result<Self> {
        let certificate = verified(&config.certificate, ca, Role::Broker)?;
        let chain = CertificateDer::pem_file_iter(&config.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("in {}", config.certificate.display()))?;
        let (key_file, others) = match credential() {
            Some(path) => (path, OTHERS_OF_CREDENTIAL),
            None => (config.key.clone(), OTHERS),
        };
        let key = private_key(&key_file, others)?;
        let key =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).with_context(|| {
                format!(
                    "{} and {} do not belong together",
                    key_file.display(),
                    config.certificate.display()
                )
            })?;
        Ok(Self {
            key: Arc::new(key),
            not_after: certificate.not_after(),
        })
    }
}

/// The certificate that is shown to clients; connections keep the one they began with.
#[derive(Debug)]
struct Shown(RwLock<OwnCertificate>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&own.key))
    }
}

/// The TLS of all listeners.
pub(crate) struct Tls {
    shown: Arc<Shown>,
    demanding: TlsAcceptor,
    asking: TlsAcceptor,
    has_users: bool,
}

impl Tls {
    /// `has_users` tells whether somebody may come without a certificate.
    pub(crate) fn new(
        own: OwnCertificate,
        ca: &CaCertificate,
        has_users: bool,
    ) -> anyhow::Result<Self> {
        let shown = Arc::new(Shown(RwLock::new(own)));
        let provider = Arc::new(ring::default_provider());
        let acceptor = |anybody| {
            server_config(&provider, ca, &shown, anybody)
                .map(|config| TlsAcceptor::from(Arc::new(config)))
        };
        Ok(Self {
            demanding: acceptor(false)?,
            asking: acceptor(true)?,
            shown,
            has_users,
        })
    }

    pub(crate) fn acceptor(&self, door: Door) -> &TlsAcceptor {
        match door {
            Door::ThirdParties | Door::WebSocket if self.has_users => &self.asking,
            _ => &self.demanding,
        }
    }

    /// Shows another certificate from now on.
    pub(crate) fn replace(&self, own: OwnCertificate) {
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// When the broker's own certificate ends.
    pub(crate) fn not_after(&self) -> Timestamp {
        let own = self.shown.0.read().unwrap_or_else(PoisonError::into_inner);
        own.not_after
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    ca: &CaCertificate,
    shown: &Arc<Shown>,
    anybody: bool,
) -> anyhow::Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec()))?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let clients = match anybody {
        true => clients.allow_unauthenticated().build()?,
        false => clients.build()?,
    };
    let mut tls = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::<Shown>::clone(shown));
    // Every connection shows its certificate anew, so that none outlives
    // its revocation; it also saves the tickets' bytes.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

/// What the certificates and keys named in a [`Config`] contain, once checked.
pub(crate) struct Credentials {
    pub(crate) ca: CaCertificate,
    pub(crate) administrator: Option<Certificate>,
    pub(crate) own: OwnCertificate,
}

impl Credentials {
    pub(crate) fn read(config: &Config) -> anyhow::Result<Self> {
        let ca = CaCertificate::from_pem(&text(&config.ca)?)
            .with_context(|| format!("in {}", config.ca.display()))?;
        let own = OwnCertificate::read(config, &ca)?;
        let administrator = match (&config.administrator, &config.revocations) {
            (Some(path), _) => Some(verified(path, &ca, Role::Administrator)?),
            (None, Some(list)) => bail!(
                "revocations = {:?} needs administrator = the certificate of who signs it",
                list.display()
            ),
            (None, None) => None,
        };
        Ok(Self {
            ca,
            administrator,
            own,
        })
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn verified(path: &Path, ca: &CaCertificate, role: Role) -> anyhow::Result<Certificate> {
    let place = || format!("in {}", path.display());
    let der = certificate_from_pem(&text(path)?).with_context(place)?;
    let certificate = Certificate::verify(&der, ca, now()).with_context(place)?;
    ensure!(
        certificate.role() == role,
        "{} is a certificate for the role {}; one for {} is needed here",
        path.display(),
        certificate.role().as_str(),
        role.as_str()
    );
    Ok(certificate)
}

/// What group and others must not have of a key.
const OTHERS: u32 = 0o077;
/// The same of a credential, which its reader is let in to by an access control list, whose
/// mask shows as the group's right to read; nobody else can enter its directory.
const OTHERS_OF_CREDENTIAL: u32 = 0o037;

pub(crate) fn credential() -> Option<PathBuf> {
    let directory = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?);
    Some(directory.join("key.pem")).filter(|path| path.exists())
}

fn private_key(path: &Path, others: u32) -> anyhow::Result<PrivateKeyDer<'static>> {
    let place = || format!("cannot read {}", path.display());
    let mode = fs::metadata(path).with_context(place)?.permissions().mode() & 0o777;
    ensure!(
        mode & others == 0,
        "{path} holds a private key but others may use it (mode {mode:04o}); run: chmod 600 {path}",
        path = path.display()
    );
    PrivateKeyDer::from_pem_file(path).with_context(place)
}
