//! The library as the demonstration and the command line use it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use dcnet::checkpoint::Checkpoint;
use dcnet::identity::{Certificate, DeviceKey, IdentityError, Role};
use dcnet::revocation::{RevocationList, verify_revocation};
use dcnet::time::{DAY_MS, Timestamp};
use dcnet::topic::NetId;
use gateway_admin::{
    ADMINISTRATOR_KEY_FILE, Authority, Bundle, CA_KEY_FILE, DeviceRequest, Error, Host,
    InitOptions, KeyPair, LogHead, REGISTRY_FILE, Terms,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tempfile::TempDir;

const NET: NetId = NetId([0xab; 16]);
const OTHER_NET: NetId = NetId([0xcd; 16]);
const HEAD: LogHead = LogHead {
    index: 12,
    hash: [5; 32],
    members: 7,
};

fn now() -> Timestamp {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp::default().plus(since)
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn hosts() -> Vec<Host> {
    ["localhost", "broker.example", "127.0.0.1", "::1"]
        .map(|host| host.parse().unwrap())
        .to_vec()
}

struct Fixture {
    dir: TempDir,
    authority: Authority,
    provider: Bundle,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("authority")).unwrap();
        let provider = authority.enrol_provider(key(), &Terms::default()).unwrap();
        Self {
            dir,
            authority,
            provider,
        }
    }

    fn meter(&self, key: KeyPair, net: NetId) -> Result<Bundle, Error> {
        let provider = &self.provider.certificate;
        self.authority
            .enrol_meter(key, net, provider, HEAD, &Terms::default())
    }

    fn broker(&self) -> Bundle {
        self.authority
            .enrol_broker(key(), &hosts(), &Terms::default())
            .unwrap()
    }

    fn third_party(&self) -> Bundle {
        self.authority
            .enrol_third_party(key(), Some(NET), &Terms::default())
            .unwrap()
    }

    /// Writes a bundle and returns its directory.
    fn written(&self, bundle: &Bundle) -> std::path::PathBuf {
        let out = self.dir.path().join(bundle.id().to_string());
        bundle.write(&out).unwrap();
        out
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn every_certificate_verifies_with_the_protocol_and_says_what_it_should() {
    let f = Fixture::new();
    let meter = f.meter(key(), NET).unwrap();
    for (bundle, role, net) in [
        (&f.provider, Role::Provider, None),
        (&meter, Role::Meter, Some(NET)),
        (&f.broker(), Role::Broker, None),
        (&f.third_party(), Role::ThirdParty, Some(NET)),
    ] {
        let der = bundle.certificate.der();
        let certificate = Certificate::verify(der, f.authority.ca(), now()).unwrap();
        assert_eq!((certificate.role(), certificate.net()), (role, net));
        assert_eq!(certificate.id(), bundle.key().unwrap().id());
        let years = certificate.not_after().since(now()).as_millis() / u128::from(DAY_MS) / 365;
        assert_eq!(years, 10);
    }
    assert_eq!(f.authority.administrator().role(), Role::Administrator);
}

#[test]
fn openssl_agrees() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: there is no openssl on this machine");
        return;
    }
    let f = Fixture::new();
    let verify = |bundle: &Bundle, options: &[&str]| {
        let dir = f.dir.path().join(bundle.id().to_string());
        if !dir.exists() {
            bundle.write(&dir).unwrap();
        }
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-CAfile"])
            .arg(dir.join("ca.pem"))
            .args(options)
            .arg(dir.join("certificate.pem"))
            .output()
            .unwrap();
        (output.status.success(), format!("{output:?}"))
    };
    let meter = f.meter(key(), NET).unwrap();
    let third = f.third_party();
    let broker = f.broker();
    for bundle in [&meter, &f.provider, &third] {
        let (good, output) = verify(bundle, &["-purpose", "sslclient"]);
        assert!(good, "{output}");
        let (good, _) = verify(bundle, &["-purpose", "sslserver"]);
        assert!(!good, "{:?} passes for a server", bundle.certificate.role());
    }
    for name in ["localhost", "broker.example"] {
        let (good, output) = verify(
            &broker,
            &["-purpose", "sslserver", "-verify_hostname", name],
        );
        assert!(good, "{output}");
    }
    let (good, output) = verify(&broker, &["-purpose", "sslserver", "-verify_ip", "::1"]);
    assert!(good, "{output}");
    let (good, _) = verify(&broker, &["-verify_hostname", "other.example"]);
    assert!(!good);
    let (good, _) = verify(&broker, &["-purpose", "sslclient"]);
    assert!(!good);

    let dir = f.dir.path().join(meter.id().to_string());
    for (name, bundle) in [("administrator.pem", &meter), ("provider.pem", &meter)] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-CAfile"])
            .args([dir.join("ca.pem"), dir.join(name)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?} {}", bundle.id());
    }
    let key = Command::new("openssl")
        .args(["pkey", "-noout", "-text", "-in"])
        .arg(dir.join("key.pem"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&key.stdout).contains("ED25519"));
}

/// A TLS 1.3 handshake in memory; returns what went wrong.
fn handshake(server: &Path, client: &Path, name: &'static str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let identity = |dir: &Path| {
        (
            vec![CertificateDer::from_pem_file(dir.join("certificate.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(),
        )
    };
    let roots = |dir: &Path| {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap())
            .unwrap();
        Arc::new(roots)
    };
    let versions = &[&rustls::version::TLS13];
    let (chain, key) = identity(server);
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        roots(server),
        provider.clone(),
    );
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(chain, key)?;
    let (chain, key) = identity(client);
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots(client))
        .with_client_auth_cert(chain, key)?;
    let mut server = rustls::ServerConnection::new(Arc::new(server))?;
    let name = ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

#[test]
fn the_files_make_a_mutual_tls_connection() {
    let f = Fixture::new();
    let broker = f.written(&f.broker());
    let meter = f.written(&f.meter(key(), NET).unwrap());
    let provider = f.written(&f.provider);
    let third = f.written(&f.third_party());
    for client in [&meter, &provider, &third] {
        for name in ["localhost", "broker.example", "127.0.0.1"] {
            handshake(&broker, client, name).unwrap();
        }
    }
    assert!(handshake(&broker, &meter, "elsewhere.example").is_err());
    // Nobody but the broker passes for a server, and the broker for no client.
    assert!(handshake(&provider, &meter, "localhost").is_err());
    assert!(handshake(&broker, &broker, "localhost").is_err());
    // A meter of another CA.
    let foreign = Fixture::new();
    let stranger = foreign.written(&foreign.meter(key(), NET).unwrap());
    fs::copy(broker.join("ca.pem"), stranger.join("ca.pem")).unwrap();
    assert!(handshake(&broker, &stranger, "localhost").is_err());
}

#[test]
fn a_bundle_holds_what_a_device_needs_and_its_key_is_secret() {
    let f = Fixture::new();
    let meter = f.meter(key(), NET).unwrap();
    let dir = f.written(&meter);
    assert_eq!(mode(&dir), 0o700);
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "administrator.pem",
            "ca.pem",
            "certificate.pem",
            "checkpoint.cbor",
            "key.pem",
            "provider.pem",
            "revoked.cbor"
        ]
    );
    assert_eq!(mode(&dir.join("key.pem")), 0o600);
    let pem = fs::read_to_string(dir.join("key.pem")).unwrap();
    let device_key = DeviceKey::from_pkcs8_pem(&pem).unwrap();
    assert_eq!(device_key.id(), meter.id());

    let checkpoint = fs::read(dir.join("checkpoint.cbor")).unwrap();
    let administrator = f.authority.administrator();
    let checkpoint = Checkpoint::verify(&checkpoint, administrator).unwrap();
    assert_eq!(checkpoint.net, NET);
    assert_eq!(checkpoint.index, HEAD.index);
    assert_eq!(checkpoint.head, HEAD.hash);
    assert_eq!(checkpoint.members, HEAD.members);
    let revoked = fs::read(dir.join("revoked.cbor")).unwrap();
    let revoked = RevocationList::verify(&revoked, administrator).unwrap();
    assert_eq!((revoked.number(), revoked.devices().count()), (0, 0));
}

#[test]
fn a_bundle_overwrites_nothing_and_then_writes_nothing() {
    let f = Fixture::new();
    let meter = f.meter(key(), NET).unwrap();
    for name in meter.file_names() {
        let dir = f.dir.path().join(format!("taken-{name}"));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.join(name), "mine").unwrap();
        let Err(Error::Exists(path)) = meter.write(&dir) else {
            panic!("{name} was overwritten");
        };
        assert_eq!(path, dir.join(name));
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), "mine");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    }
}

#[test]
fn init_overwrites_nothing() {
    let f = Fixture::new();
    let dir = f.dir.path().join("authority");
    let files = || {
        let mut files: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    assert!(matches!(Authority::init(&dir), Err(Error::Exists(_))));
    assert_eq!(files(), before);
    for (path, _) in &before {
        let lone = f.dir.path().join("lone");
        fs::create_dir(&lone).unwrap();
        fs::set_permissions(&lone, Permissions::from_mode(0o700)).unwrap();
        fs::copy(path, lone.join(path.file_name().unwrap())).unwrap();
        assert!(matches!(Authority::init(&lone), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(&lone).unwrap().count(), 1);
        fs::remove_dir_all(&lone).unwrap();
    }
}

#[test]
fn an_authority_survives_reopening() {
    let f = Fixture::new();
    let again = Authority::open(&f.dir.path().join("authority")).unwrap();
    assert_eq!(again.ca().fingerprint(), f.authority.ca().fingerprint());
    let meter = again
        .enrol_meter(key(), NET, &f.provider.certificate, HEAD, &Terms::default())
        .unwrap();
    assert!(Certificate::verify(meter.certificate.der(), f.authority.ca(), now()).is_ok());
    let devices: Vec<_> = f.authority.issued().unwrap();
    let devices: Vec<_> = devices.iter().map(|e| e.device).collect();
    assert_eq!(
        devices,
        [
            f.authority.administrator().id(),
            f.provider.id(),
            meter.id()
        ]
    );
}

#[test]
fn keys_that_others_can_use_are_refused() {
    let f = Fixture::new();
    let dir = f.dir.path().join("authority");
    for name in [CA_KEY_FILE, ADMINISTRATOR_KEY_FILE] {
        let path = dir.join(name);
        assert_eq!(mode(&path), 0o600);
        for bits in [0o640, 0o604, 0o660, 0o620, 0o644] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            let message = Authority::open(&dir).unwrap_err().to_string();
            assert!(
                message.contains(&format!("chmod 600 {}", path.display())),
                "{message}"
            );
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        Authority::open(&dir).unwrap();
    }
    for bits in [0o770, 0o702, 0o777] {
        fs::set_permissions(&dir, Permissions::from_mode(bits)).unwrap();
        let message = Authority::open(&dir).unwrap_err().to_string();
        assert!(message.contains("chmod go-w"), "{message}");
    }
    fs::set_permissions(&dir, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(mode(&dir.join(REGISTRY_FILE)), 0o600);
}

#[test]
fn keys_of_another_authority_are_refused() {
    let (ours, theirs) = (Fixture::new(), Fixture::new());
    let dir = |f: &Fixture, name: &str| f.dir.path().join("authority").join(name);
    for name in [CA_KEY_FILE, ADMINISTRATOR_KEY_FILE] {
        let own = fs::read(dir(&ours, name)).unwrap();
        fs::copy(dir(&theirs, name), dir(&ours, name)).unwrap();
        assert!(matches!(
            Authority::open(&ours.dir.path().join("authority")),
            Err(Error::Mismatch { .. })
        ));
        fs::write(dir(&ours, name), own).unwrap();
    }
    Authority::open(&ours.dir.path().join("authority")).unwrap();
}

#[test]
fn a_request_is_enough_and_the_key_stays_on_the_device() {
    let f = Fixture::new();
    let device = f.dir.path().join("device");
    let request = DeviceRequest::create(&device, Role::Meter).unwrap();
    assert_eq!(mode(&device.join("key.pem")), 0o600);
    assert!(matches!(
        DeviceRequest::create(&device, Role::Meter),
        Err(Error::Exists(_))
    ));
    let read = DeviceRequest::read(&device.join("request.pem")).unwrap();
    assert_eq!(read.id(), request.id());
    let provider = &f.provider.certificate;
    let bundle = f
        .authority
        .enrol_meter(read, NET, provider, HEAD, &Terms::default())
        .unwrap();
    assert!(bundle.key().is_none());
    // The bundle goes beside the key.
    bundle.write(&device).unwrap();
    let pem = fs::read_to_string(device.join("key.pem")).unwrap();
    let device_key = DeviceKey::from_pkcs8_pem(&pem).unwrap();
    assert_eq!(device_key.id(), bundle.certificate.id());
}

#[test]
fn a_request_for_another_role_is_refused() {
    let f = Fixture::new();
    let request = DeviceRequest::new(&key(), Role::Meter).unwrap();
    assert!(matches!(
        f.authority.enrol_provider(request, &Terms::default()),
        Err(Error::Role {
            found: Role::Meter,
            wanted: Role::Provider
        })
    ));
    assert_eq!(f.authority.issued().unwrap().len(), 2);
}

#[test]
fn one_key_serves_one_role_in_one_net() {
    let f = Fixture::new();
    let device = f.dir.path().join("device");
    DeviceRequest::create(&device, Role::Meter).unwrap();
    let same = || KeyPair::read(&device.join("key.pem")).unwrap();
    let first = f.meter(same(), NET).unwrap();
    let renewed = f.meter(same(), NET).unwrap();
    assert_eq!(renewed.id(), first.id());
    assert_ne!(renewed.certificate.der(), first.certificate.der());
    assert!(matches!(
        f.meter(same(), OTHER_NET),
        Err(Error::Registered {
            role: Role::Meter,
            net: Some(NET),
            ..
        })
    ));
    assert!(matches!(
        f.authority.enrol_provider(same(), &Terms::default()),
        Err(Error::Registered { .. })
    ));
}

#[test]
fn the_provider_of_a_meter_is_a_provider_of_this_ca() {
    let (f, foreign) = (Fixture::new(), Fixture::new());
    let enrol = |provider: &Certificate| {
        f.authority
            .enrol_meter(key(), NET, provider, HEAD, &Terms::default())
    };
    assert!(matches!(
        enrol(&foreign.provider.certificate),
        Err(Error::Refused(IdentityError::Issuer))
    ));
    assert!(matches!(
        enrol(&f.broker().certificate),
        Err(Error::Role {
            found: Role::Broker,
            ..
        })
    ));
    f.authority.revoke(&[f.provider.id()]).unwrap();
    assert!(matches!(
        enrol(&f.provider.certificate),
        Err(Error::Revoked(_))
    ));
}

#[test]
fn a_log_head_that_cannot_be_is_refused() {
    let f = Fixture::new();
    for (index, members) in [(0, 1), (7, 8), (100_000, 65_537)] {
        let head = LogHead {
            index,
            members,
            ..HEAD
        };
        assert!(matches!(
            f.authority.checkpoint(NET, head),
            Err(Error::Head(_))
        ));
    }
    let genesis = LogHead {
        index: 0,
        members: 0,
        ..HEAD
    };
    f.authority.checkpoint(NET, genesis).unwrap();
}

#[test]
fn no_certificate_outlives_its_ca() {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        name: "a short one".to_owned(),
        days: 30,
    };
    let authority = Authority::init_with(&dir.path().join("a"), &options).unwrap();
    let cut = authority
        .enrol_provider(key(), &Terms::default().days(400))
        .unwrap();
    assert_eq!(
        cut.certificate.not_after(),
        authority.administrator().not_after()
    );
    let short = authority
        .enrol_provider(key(), &Terms::default().days(3))
        .unwrap();
    let left = short.certificate.not_after().since(now());
    assert_eq!(left.as_millis().div_ceil(u128::from(DAY_MS)), 3);
    for days in [0, 36_501] {
        assert!(matches!(
            authority.enrol_provider(key(), &Terms::default().days(days)),
            Err(Error::Days)
        ));
    }
}

#[test]
fn a_broker_has_names_but_not_more_than_fit() {
    let f = Fixture::new();
    let enrol = |hosts: &[Host]| f.authority.enrol_broker(key(), hosts, &Terms::default());
    assert!(matches!(enrol(&[]), Err(Error::Host(_))));
    let many: Vec<Host> = (0..100)
        .map(|i| format!("broker-number-{i}.example.org").parse().unwrap())
        .collect();
    assert!(matches!(
        enrol(&many),
        Err(Error::Refused(IdentityError::Form))
    ));
    assert_eq!(f.authority.issued().unwrap().len(), 2);
}

#[test]
fn the_household_stands_in_the_registry_and_nowhere_else() {
    let f = Fixture::new();
    let label = "Household-of-Ada-Lovelace";
    let meter = f
        .authority
        .enrol_meter(
            key(),
            NET,
            &f.provider.certificate,
            HEAD,
            &Terms::default().household(label),
        )
        .unwrap();
    f.written(&meter);
    f.authority.revoke(&[meter.id()]).unwrap();
    let newest = f.authority.issued().unwrap().pop().unwrap();
    assert_eq!(newest.household.as_deref(), Some(label));
    assert_eq!((newest.device, newest.net), (meter.id(), Some(NET)));

    let mut found = Vec::new();
    let mut pending = vec![f.dir.path().to_owned()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let mut content = fs::read(&path).unwrap();
        if let Ok(text) = std::str::from_utf8(&content)
            && let Ok(der) = dcnet::identity::certificate_from_pem(text)
        {
            content = der;
        }
        if content.windows(label.len()).any(|w| w == label.as_bytes()) {
            found.push(path.file_name().unwrap().to_owned());
        }
    }
    assert_eq!(found, [REGISTRY_FILE]);
    assert!(!format!("{meter:?}").contains(label));
}

#[test]
fn revocation_is_numbered_signed_and_final() {
    let f = Fixture::new();
    let device = f.dir.path().join("device");
    DeviceRequest::create(&device, Role::Meter).unwrap();
    let same = || KeyPair::read(&device.join("key.pem")).unwrap();
    let one = f.meter(same(), NET).unwrap().id();
    let two = f.meter(key(), NET).unwrap().id();

    let first = f.authority.revoke(&[one, one]).unwrap();
    assert_eq!((first.list.number(), first.added), (1, vec![one]));
    let second = f.authority.revoke(&[two, one]).unwrap();
    assert_eq!((second.list.number(), second.added), (2, vec![two]));
    let again = f.authority.revoke(&[two]).unwrap();
    assert_eq!((again.list.number(), again.added), (2, vec![]));

    let bytes = fs::read(f.authority.revoked_path()).unwrap();
    let list = RevocationList::verify(&bytes, f.authority.administrator()).unwrap();
    assert_eq!(list, f.authority.revocations().unwrap());
    assert!(list.contains(&one) && list.contains(&two));
    assert!(!list.contains(&f.provider.id()));

    assert!(matches!(f.meter(same(), NET), Err(Error::Revoked(id)) if id == one));
    let administrator = f.authority.administrator().id();
    assert!(matches!(
        f.authority.revoke(&[administrator]),
        Err(Error::Administrator(_))
    ));
    assert!(matches!(
        f.authority.revoke(&[f.provider.id(), key().id()]),
        Err(Error::Unregistered(_))
    ));
    assert_eq!(f.authority.revocations().unwrap(), list);
}

#[test]
fn every_revoked_device_has_a_signed_statement() {
    let (f, foreign) = (Fixture::new(), Fixture::new());
    let [one, two] = [(), ()].map(|()| f.meter(key(), NET).unwrap().id());
    let verified = |device| {
        let bytes = fs::read(f.authority.statement_path(device)).unwrap();
        verify_revocation(&bytes, f.authority.administrator())
    };
    let first = f.authority.revoke(&[one]).unwrap();
    assert_eq!(first.statements, [f.authority.statement_path(one)]);
    assert_eq!(verified(one), Ok(one));
    assert!(
        verify_revocation(
            &fs::read(f.authority.statement_path(one)).unwrap(),
            foreign.authority.administrator()
        )
        .is_err()
    );
    let kept = fs::read(f.authority.statement_path(one)).unwrap();

    // The list may be of a time before there were statements.
    f.authority.revoke(&[two]).unwrap();
    fs::remove_file(f.authority.statement_path(two)).unwrap();
    let again = f.authority.revoke(&[one]).unwrap();
    assert_eq!(again.statements, [f.authority.statement_path(two)]);
    assert_eq!(verified(two), Ok(two));
    assert_eq!(fs::read(f.authority.statement_path(one)).unwrap(), kept);

    // Neither a damaged statement nor one about another device stays.
    fs::copy(
        f.authority.statement_path(one),
        f.authority.statement_path(two),
    )
    .unwrap();
    assert_eq!(f.authority.revoke(&[two]).unwrap().statements.len(), 1);
    assert_eq!(verified(two), Ok(two));
    assert!(f.authority.revoke(&[two]).unwrap().statements.is_empty());
}

#[test]
fn a_list_of_somebody_else_is_neither_used_nor_replaced() {
    let (f, foreign) = (Fixture::new(), Fixture::new());
    let path = f.authority.revoked_path();
    fs::copy(foreign.authority.revoked_path(), &path).unwrap();
    let before = fs::read(&path).unwrap();
    assert!(matches!(
        f.authority.revoke(&[f.provider.id()]),
        Err(Error::Frame { .. })
    ));
    assert!(matches!(f.meter(key(), NET), Err(Error::Frame { .. })));
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        f.authority.revoke(&[f.provider.id()]),
        Err(Error::Io { .. })
    ));
}

#[test]
fn administrators_at_once_lose_nothing() {
    let f = Fixture::new();
    let dir = f.dir.path().join("authority");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let authority = Authority::open(&dir).unwrap();
                for _ in 0..5 {
                    let provider = authority.enrol_provider(key(), &Terms::default()).unwrap();
                    authority.revoke(&[provider.id()]).unwrap();
                }
            });
        }
    });
    assert_eq!(f.authority.issued().unwrap().len(), 2 + 20);
    let list = f.authority.revocations().unwrap();
    assert_eq!((list.number(), list.devices().count()), (20, 20));
}
