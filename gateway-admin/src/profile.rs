//! What stands in each certificate (`docs/protocol.md`, "Identities"; RFC 5280
//! and RFC 8410), and how long it is valid.

use std::net::IpAddr;
use std::time::Duration;

use dcnet::identity::{DeviceId, NET_URI_PREFIX, Role};
use dcnet::time::{DAY_MS, Timestamp};
use dcnet::topic::NetId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::DnsName;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::error::Error;

/// Days a CA and its administrator are valid: 30 years.
pub const CA_DAYS: u32 = 10_957;

/// Days a device's certificate is valid: 10 years.
pub const DEVICE_DAYS: u32 = 3652;

/// Longest validity, in days.
pub const MAX_DAYS: u32 = 36_500;

/// A certificate is valid from this long before it is made, because clocks differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// First and last moment of a certificate's validity, both in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub from: Timestamp,
    /// The last moment.
    pub until: Timestamp,
}

impl Validity {
    /// From shortly before `now` for `days`.
    ///
    /// # Errors
    /// [`Error::Days`] unless 1 ≤ `days` ≤ [`MAX_DAYS`].
    pub fn days(now: Timestamp, days: u32) -> Result<Self, Error> {
        if !(1..=MAX_DAYS).contains(&days) {
            return Err(Error::Days);
        }
        let now = Timestamp(now.as_millis() / 1000 * 1000);
        Ok(Self {
            from: now.minus(BACKDATED),
            until: now.plus(Duration::from_millis(u64::from(days) * DAY_MS)),
        })
    }

    /// The validity a certificate in DER states; `None` if it is no certificate.
    pub fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let moment = |time: ASN1Time| {
            u64::try_from(time.timestamp())
                .ok()
                .map(|seconds| Timestamp(seconds.saturating_mul(1000)))
        };
        Some(Self {
            from: moment(certificate.validity().not_before)?,
            until: moment(certificate.validity().not_after)?,
        })
    }

    /// The part of it within `outer`: no certificate outlives its CA.
    pub fn within(self, outer: Self) -> Self {
        Self {
            from: self.from.max(outer.from),
            until: self.until.min(outer.until),
        }
    }
}

/// A host name or address of the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name (RFC 1123), without wildcards.
    Name(String),
    /// An IP address.
    Address(IpAddr),
}

impl std::str::FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        // As strict as the TLS clients that will compare the name.
        DnsName::try_from(text)
            .map(|_| Self::Name(text.to_ascii_lowercase()))
            .map_err(|_| Error::Host(text.to_owned()))
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What a certificate is for. There is no way to ask for a net on a certificate
/// that must not have one, or for host names on any but the broker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A meter in one net.
    Meter(NetId),
    /// The provider agent.
    Provider,
    /// The broker under these names.
    Broker(Vec<Host>),
    /// The administrator's key for checkpoints and revocation lists.
    Administrator,
    /// A reader of one net's public topics, or of every net's.
    ThirdParty(Option<NetId>),
}

impl Purpose {
    /// The role that goes into the certificate.
    pub fn role(&self) -> Role {
        match self {
            Self::Meter(_) => Role::Meter,
            Self::Provider => Role::Provider,
            Self::Broker(_) => Role::Broker,
            Self::Administrator => Role::Administrator,
            Self::ThirdParty(_) => Role::ThirdParty,
        }
    }

    /// The net that goes into the certificate.
    pub fn net(&self) -> Option<NetId> {
        match self {
            Self::Meter(net) => Some(*net),
            Self::ThirdParty(net) => *net,
            Self::Provider | Self::Broker(_) | Self::Administrator => None,
        }
    }

    /// The contents of a device's certificate. Its only name is the device id.
    pub(crate) fn certificate(
        &self,
        device: DeviceId,
        validity: Validity,
    ) -> Result<CertificateParams, Error> {
        let mut params = empty(&device.to_string(), validity)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(
            self.role().extended_key_usage().to_vec(),
        )];
        match self {
            Self::Meter(_) | Self::Provider | Self::ThirdParty(_) => params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth),
            Self::Broker(_) => params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth),
            // It never opens a connection.
            Self::Administrator => {}
        }
        if let Some(net) = self.net() {
            let uri = format!("{NET_URI_PREFIX}{net}");
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        if let Self::Broker(hosts) = self {
            for host in hosts {
                params.subject_alt_names.push(match host {
                    Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
                    Host::Address(address) => SanType::IpAddress(*address),
                });
            }
        }
        Ok(params)
    }
}

/// The roles among the extended key usages of a certificate or request; `None` for
/// each that is no role of this protocol.
pub(crate) fn roles(usage: &ExtendedKeyUsage<'_>) -> Vec<Option<Role>> {
    let arcs = |role: &Role| {
        role.extended_key_usage()
            .map(|arc| arc.to_string())
            .join(".")
    };
    usage
        .other
        .iter()
        .map(|oid| {
            let oid = oid.to_id_string();
            Role::ALL.into_iter().find(|role| oid == arcs(role))
        })
        .collect()
}

/// The contents of a self-signed CA certificate: path length 0, keyCertSign only.
pub(crate) fn ca(name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    if !(1..=64).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        return Err(Error::Name);
    }
    let mut params = empty(name, validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn empty(common_name: &str, validity: Validity) -> Result<CertificateParams, Error> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(Error::Random)?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = epoch + Duration::from_millis(validity.from.as_millis());
    params.not_after = epoch + Duration::from_millis(validity.until.as_millis());
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_a_tls_client_can_ask_for() {
        for good in ["localhost", "broker.example.org", "127.0.0.1", "::1"] {
            assert_eq!(good.parse::<Host>().unwrap().to_string(), good);
        }
        assert_eq!(
            "Broker.Example".parse::<Host>().unwrap().to_string(),
            "broker.example"
        );
        for bad in [
            "",
            "*.example.org",
            "a b",
            "broker:8883",
            "büro.example",
            "mqtts://x",
            "-x.y",
        ] {
            assert!(
                matches!(bad.parse::<Host>(), Err(Error::Host(_))),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn validity_is_bounded_and_backdated() {
        let now = Timestamp(1_800_000_000_123);
        assert!(matches!(Validity::days(now, 0), Err(Error::Days)));
        assert!(matches!(
            Validity::days(now, MAX_DAYS + 1),
            Err(Error::Days)
        ));
        let day = Validity::days(now, 1).unwrap();
        assert_eq!(day.from, Timestamp(1_800_000_000_000 - 3_600_000));
        assert_eq!(day.until, Timestamp(1_800_000_000_000 + DAY_MS));
        let year = Validity::days(now, 365).unwrap();
        assert_eq!(year.within(day), day);
        assert_eq!(day.within(year), day);
    }
}
