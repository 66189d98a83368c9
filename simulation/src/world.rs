//! A CA, a provider and meters, made on the spot from a seed.

use std::cell::RefCell;
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, NET_URI_PREFIX, Role};
use dcnet::membership::{Membership, NewNet, Policy};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::provider::ProviderConfig;
use dcnet::time::{Now, Period, Timestamp};
use dcnet::topic::NetId;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::EncodePrivateKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};

/// 2026-01-01T00:00:00Z.
pub const START: Timestamp = Timestamp(1_767_225_600_000);

/// The gateway administrator's CA with what it issues.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    rng: RefCell<ChaCha20Rng>,
    /// Its certificate.
    pub ca: CaCertificate,
}

fn key_pair(rng: &mut ChaCha20Rng) -> KeyPair {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let pem = SigningKey::from_bytes(&seed).to_pkcs8_pem(LineEnding::LF);
    KeyPair::from_pem(&pem.unwrap()).unwrap()
}

impl Default for Authority {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Authority {
    /// An authority whose keys, and those it makes, follow from `seed`.
    ///
    /// # Panics
    /// Never in practice: the encoders used have error types.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let key = key_pair(&mut rng);
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap();
        let ca = CaCertificate::from_der(ca.der()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            rng: RefCell::new(rng),
            ca,
        }
    }

    /// A key and its certificate.
    ///
    /// # Panics
    /// If the certificate is refused, which would be a fault of this function.
    pub fn issue(&self, role: Role, net: Option<NetId>) -> (DeviceKey, Certificate) {
        let pair = key_pair(&mut self.rng.borrow_mut());
        let key = DeviceKey::from_pkcs8_pem(&pair.serialize_pem()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::Other(role.extended_key_usage().to_vec()),
        ];
        if let Some(net) = net {
            let uri = format!("{NET_URI_PREFIX}{net}");
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        }
        let certificate = params.signed_by(&pair, &self.issuer).unwrap();
        let certificate = Certificate::verify(certificate.der(), &self.ca, START).unwrap();
        (key, certificate)
    }
}

/// A net with its provider and enrolled meters.
pub struct World {
    /// Who issued all certificates.
    pub authority: Authority,
    /// The provider.
    pub provider: ProviderConfig,
    /// The first entry of the log.
    pub genesis: Vec<u8>,
    /// The net.
    pub net: NetId,
    /// Its rules.
    pub policy: Policy,
    /// The enrolled meters.
    pub meters: Vec<MeterConfig>,
}

/// Rounds of a minute, a window of 20 s, and a draw of 48.
///
/// # Panics
/// Never: a minute is a period.
pub fn policy(minimum_group: u32) -> Policy {
    Policy {
        period: Period::from_secs(60).unwrap(),
        window_ms: 20_000,
        minimum_group,
        minimum_neighbours: 3,
        degree: 48,
    }
}

/// Floors that allow a small net with short rounds.
pub fn floors(minimum_group: u32) -> Floors {
    Floors {
        minimum_group,
        minimum_period: 1,
        ..Floors::default()
    }
}

impl World {
    /// A net with so many enrolled meters; the same every time.
    ///
    /// # Panics
    /// If the policy or the channels are out of bounds.
    pub fn new(meters: usize, policy: Policy, channels: &[&str]) -> Self {
        Self::seeded(meters, policy, channels, 0)
    }

    /// As [`Self::new`], with keys that follow from `seed`.
    ///
    /// # Panics
    /// If the policy or the channels are out of bounds.
    pub fn seeded(meters: usize, policy: Policy, channels: &[&str], seed: u64) -> Self {
        let authority = Authority::new(seed);
        let (key, certificate) = authority.issue(Role::Provider, None);
        let net = NewNet {
            name: "test".to_owned(),
            policy,
            channels: channels.iter().map(|&name| name.to_owned()).collect(),
            salt: [7; 16],
        };
        let genesis = net.sign(&key, &certificate, &authority.ca, START);
        let log = Membership::open(&genesis, &certificate, &authority.ca).unwrap();
        let checkpoint = Checkpoint {
            net: log.net(),
            index: 0,
            head: log.head().hash,
            members: 0,
        };
        let meters = (0..meters)
            .map(|_| {
                let (key, meter) = authority.issue(Role::Meter, Some(log.net()));
                MeterConfig {
                    key,
                    certificate: meter,
                    ca: authority.ca.clone(),
                    provider: certificate.clone(),
                    checkpoint,
                    floors: floors(policy.minimum_group),
                    revoked: None,
                }
            })
            .collect();
        let provider = ProviderConfig {
            key,
            certificate,
            ca: authority.ca.clone(),
            minimum_presence: 80,
            revoked: None,
        };
        Self {
            net: log.net(),
            authority,
            provider,
            genesis,
            policy,
            meters,
        }
    }
}

/// Both clocks, synchronised, `millis` after [`START`].
pub fn at(millis: u64) -> Now {
    Now {
        monotonic: Duration::from_millis(millis),
        utc: Timestamp(START.as_millis() + millis),
        synchronised: true,
    }
}
