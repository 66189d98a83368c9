//! Certificates made by an independent encoder (rcgen): the good ones verify and
//! say what they should, and each broken rule is refused by its own error.

use dcnet::identity::{
    CaCertificate, Certificate, DeviceKey, IdentityError, MAX_CERTIFICATE, NET_URI_PREFIX,
    PublicKey, Role, certificate_from_pem,
};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Usage, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    PublicKeyData, SanType, date_time_ymd,
};

const NET: NetId = NetId([0xab; 16]);
/// 2030-01-01T00:00:00Z
const NOW: Timestamp = Timestamp(1_893_456_000_000);

/// A key from a fixed seed, so that every run tests the same bytes.
fn key(seed: u8) -> KeyPair {
    let mut pkcs8 = hex::decode("302e020100300506032b657004220420").unwrap();
    pkcs8.extend([seed; 32]);
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_slice().into(), &PKCS_ED25519).unwrap()
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "gateway administrator");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

struct Ca {
    certificate: CaCertificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new(seed: u8) -> Self {
        let params = ca_params();
        let der = params.self_signed(&key(seed)).unwrap();
        Self {
            certificate: CaCertificate::from_der(der.der()).unwrap(),
            issuer: Issuer::new(params, key(seed)),
        }
    }

    fn issue(&self, params: &CertificateParams) -> Vec<u8> {
        params
            .signed_by(&key(2), &self.issuer)
            .unwrap()
            .der()
            .to_vec()
    }

    fn verify(&self, der: &[u8]) -> Result<Certificate, IdentityError> {
        Certificate::verify(der, &self.certificate, NOW)
    }

    /// What happens to a certificate with these contents.
    fn judge(&self, params: &CertificateParams) -> Result<Certificate, IdentityError> {
        self.verify(&self.issue(params))
    }
}

fn usage(role: Role) -> Usage {
    Usage::Other(role.extended_key_usage().to_vec())
}

fn uri(text: impl Into<String>) -> SanType {
    SanType::URI(text.into().try_into().unwrap())
}

fn net(net: NetId) -> SanType {
    uri(format!("{NET_URI_PREFIX}{net}"))
}

fn host() -> SanType {
    SanType::DnsName("broker.example".try_into().unwrap())
}

/// The certificate of a role as it should be, in a net if the role needs one.
fn params(role: Role) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "device");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.not_before = date_time_ymd(2029, 1, 1);
    params.not_after = date_time_ymd(2031, 1, 1);
    params.extended_key_usages = vec![usage(role)];
    match role {
        Role::Meter => {
            params.extended_key_usages.push(Usage::ClientAuth);
            params.subject_alt_names = vec![net(NET)];
        }
        Role::Provider | Role::ThirdParty => params.extended_key_usages.push(Usage::ClientAuth),
        Role::Broker => {
            params.extended_key_usages.push(Usage::ServerAuth);
            params.subject_alt_names =
                vec![host(), SanType::IpAddress("127.0.0.1".parse().unwrap())];
        }
        Role::Administrator => {}
    }
    params
}

fn with(role: Role, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params(role);
    change(&mut params);
    params
}

#[test]
fn each_role_verifies_and_says_what_it_should() {
    let ca = Ca::new(1);
    let public = PublicKey::from_bytes(key(2).der_bytes().try_into().unwrap()).unwrap();
    for role in Role::ALL {
        let der = ca.issue(&params(role));
        let certificate = ca.verify(&der).unwrap();
        assert_eq!(certificate.role(), role);
        assert_eq!(certificate.net(), (role == Role::Meter).then_some(NET));
        assert_eq!(certificate.key(), &public);
        assert_eq!(certificate.id(), public.id());
        assert_eq!(certificate.id(), DeviceKey::from_seed(&[2; 32]).id());
        assert_eq!(certificate.der(), der);
        assert_eq!(certificate.not_after(), Timestamp(1_924_992_000_000));
    }
}

#[test]
fn a_third_party_may_be_bound_to_one_net() {
    let bound = with(Role::ThirdParty, |p| p.subject_alt_names = vec![net(NET)]);
    assert_eq!(Ca::new(1).judge(&bound).unwrap().net(), Some(NET));
}

#[test]
fn a_certificate_of_another_ca_is_refused() {
    let (ours, theirs) = (Ca::new(1), Ca::new(9));
    let der = theirs.issue(&params(Role::Meter));
    // The other CA bears the same name: only the signature tells them apart.
    assert_eq!(ours.verify(&der).unwrap_err(), IdentityError::Issuer);
    assert!(theirs.verify(&der).is_ok());

    let mut renamed = ca_params();
    renamed
        .distinguished_name
        .push(DnType::OrganizationName, "another");
    let renamed = Issuer::new(renamed, key(1));
    let der = params(Role::Meter).signed_by(&key(2), &renamed).unwrap();
    assert_eq!(ours.verify(der.der()).unwrap_err(), IdentityError::Issuer);
}

#[test]
fn validity_includes_its_first_and_last_second() {
    let ca = Ca::new(1);
    let der = ca.issue(&params(Role::Meter));
    let (first, last) = (1_861_920_000_000, 1_924_992_000_000);
    for (at, valid) in [
        (0, false),
        (first - 1, false),
        (first, true),
        (last, true),
        (last + 999, true),
        (last + 1000, false),
        (u64::MAX, false),
    ] {
        let verified = Certificate::verify(&der, &ca.certificate, Timestamp(at));
        assert_eq!(
            verified.map(|_| ()).err(),
            (!valid).then_some(IdentityError::Expired),
            "{at}"
        );
    }
}

#[test]
fn there_is_exactly_one_role() {
    let ca = Ca::new(1);
    let usages = |usages: Vec<Usage>| with(Role::Meter, |p| p.extended_key_usages = usages);
    let [a, b, c, _] = Role::Meter.extended_key_usage();
    for bad in [
        usages(vec![]),
        usages(vec![Usage::ClientAuth]),
        usages(vec![usage(Role::Meter), usage(Role::Provider)]),
        usages(vec![Usage::Other(vec![a, b, c])]),
        usages(vec![Usage::Other(vec![a, b, c, 6])]),
        usages(vec![Usage::Other(vec![a, b, c, 1, 1])]),
        usages(vec![usage(Role::Meter), Usage::Any]),
    ] {
        assert_eq!(ca.judge(&bad).unwrap_err(), IdentityError::Role);
    }
    // Said twice it is still one role.
    let twice = usages(vec![usage(Role::Meter), usage(Role::Meter)]);
    assert_eq!(ca.judge(&twice).unwrap().role(), Role::Meter);
}

#[test]
fn only_the_broker_is_a_server_and_it_always_is() {
    let ca = Ca::new(1);
    for role in Role::ALL {
        let flipped = with(role, |p| {
            if role == Role::Broker {
                p.extended_key_usages.retain(|u| *u != Usage::ServerAuth);
            } else {
                p.extended_key_usages.push(Usage::ServerAuth);
            }
        });
        assert_eq!(
            ca.judge(&flipped).unwrap_err(),
            IdentityError::Role,
            "{role:?}"
        );
    }
}

#[test]
fn only_the_broker_has_host_names() {
    let ca = Ca::new(1);
    let address = SanType::IpAddress("192.0.2.1".parse().unwrap());
    let mail = SanType::Rfc822Name("someone@example.org".try_into().unwrap());
    for role in Role::ALL {
        for name in [
            host(),
            address.clone(),
            mail.clone(),
            uri("https://example.org"),
        ] {
            let named = with(role, |p| p.subject_alt_names.push(name.clone()));
            let judged = ca.judge(&named).map(|_| ());
            let host = matches!(name, SanType::DnsName(_) | SanType::IpAddress(_));
            let expected = if role == Role::Broker && host {
                Ok(())
            } else {
                Err(IdentityError::Net)
            };
            assert_eq!(judged, expected, "{role:?} {name:?}");
        }
    }
}

#[test]
fn a_net_is_named_as_the_role_requires() {
    let ca = Ca::new(1);
    let names = |role, names: Vec<SanType>| with(role, |p| p.subject_alt_names = names);
    let other = NetId([1; 16]);
    for bad in [
        names(Role::Meter, vec![]),
        names(Role::Meter, vec![net(NET), net(other)]),
        names(Role::Meter, vec![net(NET), net(NET)]),
        names(Role::Meter, vec![uri(NET_URI_PREFIX)]),
        names(Role::Meter, vec![uri(format!("{NET_URI_PREFIX}{NET}00"))]),
        names(
            Role::Meter,
            vec![uri(format!(
                "{NET_URI_PREFIX}{}",
                NET.to_string().to_uppercase()
            ))],
        ),
        names(Role::Meter, vec![uri(format!("urn:dcnet:{NET}"))]),
        names(Role::Provider, vec![net(NET)]),
        names(Role::Broker, vec![host(), net(NET)]),
        names(Role::Administrator, vec![net(NET)]),
        names(Role::ThirdParty, vec![net(NET), net(other)]),
    ] {
        assert_eq!(ca.judge(&bad).unwrap_err(), IdentityError::Net, "{bad:?}");
    }
}

#[test]
fn a_ca_is_no_device() {
    let ca = Ca::new(1);
    assert_eq!(
        ca.verify(ca.certificate.der()).unwrap_err(),
        IdentityError::Role
    );
    let intermediate = with(Role::Meter, |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert_eq!(ca.judge(&intermediate).unwrap_err(), IdentityError::Role);
}

#[test]
fn constraints_that_cannot_be_read_are_no_permission() {
    // Twice, and the second says CA: neither may win.
    let twice = with(Role::Meter, |p| {
        let mut again =
            CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x03, 0x01, 0x01, 0xff]);
        again.set_criticality(true);
        p.custom_extensions.push(again);
    });
    assert!(Ca::new(1).judge(&twice).is_err());
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    let ca = Ca::new(1);
    for (critical, valid) in [(false, true), (true, false)] {
        let extended = with(Role::Meter, |p| {
            let mut unknown =
                CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999], vec![5, 0]);
            unknown.set_criticality(critical);
            p.custom_extensions.push(unknown);
        });
        assert_eq!(ca.judge(&extended).is_ok(), valid, "critical: {critical}");
    }
}

#[test]
fn a_device_with_another_kind_of_key_is_refused() {
    let ca = Ca::new(1);
    let p256 = KeyPair::generate().unwrap();
    let der = params(Role::Meter).signed_by(&p256, &ca.issuer).unwrap();
    assert_eq!(ca.verify(der.der()).unwrap_err(), IdentityError::Key);
}

#[test]
fn weak_public_keys_are_refused() {
    struct Weak([u8; 32]);
    impl PublicKeyData for Weak {
        fn der_bytes(&self) -> &[u8] {
            &self.0
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &PKCS_ED25519
        }
    }
    let ca = Ca::new(1);
    let mut identity = [0; 32];
    identity[0] = 1;
    for bytes in [[0; 32], identity] {
        assert_eq!(PublicKey::from_bytes(&bytes), Err(IdentityError::Key));
        let der = params(Role::Meter)
            .signed_by(&Weak(bytes), &ca.issuer)
            .unwrap();
        assert_eq!(ca.verify(der.der()).unwrap_err(), IdentityError::Key);
    }
}

#[test]
fn a_ca_must_be_one_as_the_protocol_wants_it() {
    let judge = |change: fn(&mut CertificateParams)| {
        let mut params = ca_params();
        change(&mut params);
        let der = params.self_signed(&key(1)).unwrap();
        CaCertificate::from_der(der.der()).map(|_| ())
    };
    assert_eq!(judge(|_| {}), Ok(()));
    for bad in [
        |p: &mut CertificateParams| p.is_ca = IsCa::NoCa,
        |p: &mut CertificateParams| p.is_ca = IsCa::ExplicitNoCa,
        |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
        |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)),
        |p: &mut CertificateParams| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
    ] {
        assert_eq!(judge(bad), Err(IdentityError::Ca));
    }
    // Not self-signed.
    let other = Issuer::new(ca_params(), key(9));
    let der = ca_params().signed_by(&key(1), &other).unwrap();
    assert_eq!(
        CaCertificate::from_der(der.der()).unwrap_err(),
        IdentityError::Ca
    );
    // Another kind of key.
    let der = ca_params()
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap();
    assert_eq!(
        CaCertificate::from_der(der.der()).unwrap_err(),
        IdentityError::Key
    );
}

/// Splits a certificate into the signed part and the 64 bytes of signature.
fn parts(der: &[u8]) -> (&[u8], &[u8]) {
    assert_eq!(der[..2], [0x30, 0x82]);
    assert_eq!(der[4..6], [0x30, 0x82]);
    let signed = 4 + usize::from(u16::from_be_bytes([der[6], der[7]]));
    (&der[4..4 + signed], &der[der.len() - 64..])
}

/// Puts a certificate together, with the parts given and a right outer length.
fn assemble(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[0x30, 0x82][..], &length, &body].concat()
}

#[test]
fn a_certificate_has_one_encoding() {
    let ca = Ca::new(1);
    // Enough certificates for every ending of the signature.
    for seed in 0..16 {
        let device = with(Role::Meter, |p| {
            p.serial_number = Some(vec![seed + 1].into())
        });
        let der = ca.issue(&device);
        let (signed, signature) = parts(&der);
        let algorithm: &[u8] = &[0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
        let bits: &[u8] = &[3, 0x41, 0];
        assert_eq!(assemble(&[signed, algorithm, bits, signature]), der);
        assert!(ca.verify(&der).is_ok());

        let with_null: &[u8] = &[0x30, 7, 6, 3, 0x2b, 0x65, 0x70, 5, 0];
        let long = |length: &[u8]| [&[0x30], length, &der[4..]].concat();
        let mut padded = vec![0x83, 0];
        padded.extend(&der[2..4]);
        let mut variants = vec![
            [&der[..], &[0]].concat(),
            assemble(&[signed, algorithm, bits, signature, &[5, 0]]),
            assemble(&[signed, with_null, bits, signature]),
            assemble(&[signed, algorithm, &[3, 0x81, 0x41, 0], signature]),
            assemble(&[signed, algorithm, &[3, 0x42, 0], signature, &[0]]),
            assemble(&[signed, algorithm, &[3, 0x40, 0], &signature[..63]]),
            long(&padded),
            long(&[0x80]),
        ];
        variants.extend(
            (1..8).map(|unused| assemble(&[signed, algorithm, &[3, 0x41, unused], signature])),
        );
        for (index, variant) in variants.iter().enumerate() {
            assert!(ca.verify(variant).is_err(), "variant {index}");
        }
    }
}

#[test]
fn an_oversized_certificate_is_refused_before_it_is_parsed() {
    let ca = Ca::new(1);
    let sized = |bytes: usize| {
        ca.issue(&with(Role::Meter, |p| {
            let mut content = vec![4, 0x82];
            content.extend(u16::try_from(bytes).unwrap().to_be_bytes());
            content.resize(4 + bytes, 0);
            p.custom_extensions.push(CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 99999],
                content,
            ));
        }))
    };
    let padding = MAX_CERTIFICATE - (sized(1000).len() - 1000);
    let largest = sized(padding);
    assert_eq!(largest.len(), MAX_CERTIFICATE);
    assert!(ca.verify(&largest).is_ok());
    assert_eq!(
        ca.verify(&sized(padding + 1)).unwrap_err(),
        IdentityError::Form
    );
}

#[test]
fn no_bit_can_be_flipped() {
    let ca = Ca::new(1);
    for role in [Role::Meter, Role::Broker] {
        let mut der = ca.issue(&params(role));
        for bit in 0..der.len() * 8 {
            der[bit / 8] ^= 1 << (bit % 8);
            assert!(ca.verify(&der).is_err(), "{role:?}: bit {bit}");
            der[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(ca.verify(&der).is_ok());
    }
    let mut der = ca.certificate.der().to_vec();
    for bit in 0..der.len() * 8 {
        der[bit / 8] ^= 1 << (bit % 8);
        assert!(CaCertificate::from_der(&der).is_err(), "CA: bit {bit}");
        der[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn pem_blocks_before_the_certificate_are_skipped() {
    let ca = Ca::new(1);
    let certificate = params(Role::Meter).signed_by(&key(2), &ca.issuer).unwrap();
    let bundle = format!("a note\n{}{}", key(2).serialize_pem(), certificate.pem());
    assert_eq!(
        certificate_from_pem(&bundle).unwrap(),
        certificate.der().to_vec()
    );
    for none in ["", "text", &key(2).serialize_pem()] {
        assert_eq!(certificate_from_pem(none), Err(IdentityError::Form));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_change_of_some_bytes_verifies(
        seed in 3_u8..,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..6),
    ) {
        let ca = Ca::new(seed);
        let der = ca.issue(&params(Role::Meter));
        let mut changed = der.clone();
        for (at, by) in changes {
            changed[at.index(der.len())] ^= by;
        }
        prop_assume!(changed != der);
        prop_assert!(ca.verify(&changed).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let ca = Ca::new(1);
        prop_assert!(ca.verify(&bytes).is_err());
        prop_assert!(CaCertificate::from_der(&bytes).is_err());
    }

    #[test]
    fn a_truncated_certificate_is_refused(cut in any::<prop::sample::Index>()) {
        let ca = Ca::new(1);
        let der = ca.issue(&params(Role::Provider));
        prop_assert!(ca.verify(&der[..cut.index(der.len())]).is_err());
    }
}
