//! A world for tests: a CA, a provider and meters made on the spot.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{CaCertificate, Certificate, DeviceKey, NET_URI_PREFIX, Role};
use dcnet::membership::{Membership, NewNet, Policy};
use dcnet::meter::{Floors, MeterConfig};
use dcnet::provider::ProviderConfig;
use dcnet::time::{Now, Period, Timestamp};
use dcnet::topic::NetId;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519, SanType,
};

/// 2026-01-01T00:00:00Z.
pub const START: Timestamp = Timestamp(1_767_225_600_000);

/// The gateway administrator's CA with what it issues.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub ca: CaCertificate,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap();
        let ca = CaCertificate::from_der(ca.der()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            ca,
        }
    }

    pub fn issue(&self, role: Role, net: Option<NetId>) -> (DeviceKey, Certificate) {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
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
    pub authority: Authority,
    pub provider: ProviderConfig,
    pub genesis: Vec<u8>,
    pub net: NetId,
    pub policy: Policy,
    pub meters: Vec<MeterConfig>,
}

pub mod network;

pub fn policy(minimum_group: u32) -> Policy {
    Policy {
        period: Period::from_secs(60).unwrap(),
        window_ms: 20_000,
        minimum_group,
        minimum_neighbours: 3,
        degree: 48,
    }
}

pub fn floors(minimum_group: u32) -> Floors {
    Floors {
        minimum_group,
        minimum_period: 1,
        ..Floors::default()
    }
}

impl World {
    pub fn new(meters: usize, policy: Policy, channels: &[&str]) -> Self {
        let authority = Authority::new();
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
