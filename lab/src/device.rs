//! Devices whose keys and certificates are made for a run and never written anywhere.

use std::path::Path;
use std::sync::Arc;

use dcnet::identity::DeviceId;
use dcnet::topic::NetId;
use gateway_admin::{Authority, Bundle, KeyPair, LogHead, Terms};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::tls;

/// The net of all of them.
pub const NET: NetId = NetId([0xab; 16]);

/// Somebody with a certificate.
#[derive(Clone, Debug)]
pub struct Device {
    /// Who it is.
    pub id: DeviceId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// TLS with its certificate.
    pub tls: Arc<ClientConfig>,
}

impl Device {
    /// A topic of it, if it is a meter.
    pub fn topic(&self, rest: &str) -> String {
        format!("dcnet/1/{NET}/meter/{}/{rest}", self.id)
    }
}

/// Enrols devices that live in memory only.
pub struct Office {
    /// The CA.
    pub authority: Authority,
    roots: RootCertStore,
    provider: Bundle,
}

impl Office {
    /// Makes a CA below a directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let authority = Authority::init(&root.join("authority"))?;
        let provider = authority.enrol_provider(KeyPair::generate()?, &Terms::default())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.ca().der().to_vec()))?;
        Ok(Self {
            authority,
            roots,
            provider,
        })
    }

    /// TLS without a certificate.
    ///
    /// # Errors
    /// None in practice; the library has an error type.
    pub fn stranger(&self) -> anyhow::Result<Arc<ClientConfig>> {
        tls::of(&self.roots, None)
    }

    fn device(
        &self,
        enrol: impl FnOnce(KeyPair) -> Result<Bundle, gateway_admin::Error>,
    ) -> anyhow::Result<Device> {
        let pair = KeyPair::generate()?;
        let pem = pair.to_pem()?;
        let certificate = enrol(pair)?.certificate;
        Ok(Device {
            id: certificate.id(),
            certificate: certificate.der().to_vec(),
            tls: tls::of(&self.roots, Some((certificate.der(), &pem)))?,
        })
    }

    /// A meter of [`NET`].
    ///
    /// # Errors
    /// It cannot be enrolled.
    pub fn meter(&self) -> anyhow::Result<Device> {
        let head = LogHead {
            index: 0,
            hash: [1; 32],
            members: 0,
        };
        let provider = &self.provider.certificate;
        self.device(|pair| {
            let terms = Terms::default();
            self.authority
                .enrol_meter(pair, NET, provider, head, &terms)
        })
    }

    /// A provider.
    ///
    /// # Errors
    /// It cannot be enrolled.
    pub fn provider(&self) -> anyhow::Result<Device> {
        self.device(|pair| self.authority.enrol_provider(pair, &Terms::default()))
    }

    /// A third party of [`NET`].
    ///
    /// # Errors
    /// It cannot be enrolled.
    pub fn third_party(&self) -> anyhow::Result<Device> {
        let terms = Terms::default();
        self.device(|pair| self.authority.enrol_third_party(pair, Some(NET), &terms))
    }
}
