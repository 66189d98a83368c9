//! Identity directories as the gateway administrator's tool makes them, whole and spoilt.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dcnet::topic::NetId;
use gateway_admin::{Authority, Bundle, KeyPair, LogHead, Terms};
use meter_agent::clock::utc_timestamp;
use meter_agent::config::IdentityFiles;
use meter_agent::identity::Identity;

struct World {
    directory: tempfile::TempDir,
    authority: Authority,
    meter: Bundle,
}

fn enrol(authority: &Authority, net: NetId) -> Bundle {
    let key = || KeyPair::generate().unwrap();
    let provider = authority.enrol_provider(key(), &Terms::default()).unwrap();
    let head = LogHead {
        index: 3,
        hash: [5; 32],
        members: 2,
    };
    authority
        .enrol_meter(key(), net, &provider.certificate, head, &Terms::default())
        .unwrap()
}

const NET: NetId = NetId([7; 16]);

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::init(&directory.path().join("authority")).unwrap();
        let meter = enrol(&authority, NET);
        meter.write(&directory.path().join("meter")).unwrap();
        Self {
            directory,
            authority,
            meter,
        }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("meter").join(name)
    }

    fn load(&self) -> anyhow::Result<Identity> {
        let files = IdentityFiles {
            directory: self.directory.path().join("meter"),
        };
        Identity::load(&files, utc_timestamp())
    }

    /// The error names the file, and is gone when the file is as it was.
    fn refused(&self, name: &str, spoil: impl Fn(&Path)) -> String {
        let path = self.file(name);
        let (bytes, mode) = (
            std::fs::read(&path).unwrap(),
            std::fs::metadata(&path).unwrap().permissions(),
        );
        spoil(&path);
        let error = format!("{:#}", self.load().unwrap_err());
        assert!(error.contains(name), "{error}");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, mode).unwrap();
        self.load().unwrap();
        error
    }
}

#[test]
fn an_enrolment_is_loaded_and_verified() {
    let world = World::new();
    let identity = world.load().unwrap();
    assert_eq!(identity.key.id(), world.meter.id());
    assert_eq!(identity.checkpoint.net, NET);
    assert_eq!(
        (identity.checkpoint.index, identity.checkpoint.members),
        (3, 2)
    );
    assert_eq!(identity.revoked.unwrap().number(), 0);
    std::fs::remove_file(world.file("revoked.cbor")).unwrap();
    assert!(world.load().unwrap().revoked.is_none(), "it is optional");
}

#[test]
fn every_missing_or_foreign_file_is_named() {
    let world = World::new();
    let other = World::new();
    for name in [
        "certificate.pem",
        "key.pem",
        "ca.pem",
        "provider.pem",
        "administrator.pem",
        "checkpoint.cbor",
    ] {
        let error = world.refused(name, |path| std::fs::remove_file(path).unwrap());
        assert!(error.contains("enrol"), "{error}");
        world.refused(name, |path| std::fs::write(path, "nonsense").unwrap());
        // Another administrator's; a foreign CA shows at the first certificate.
        let foreign = std::fs::read(other.file(name)).unwrap();
        if name != "ca.pem" {
            world.refused(name, |path| std::fs::write(path, &foreign).unwrap());
        }
    }
    let foreign = std::fs::read(other.file("revoked.cbor")).unwrap();
    world.refused("revoked.cbor", |path| {
        std::fs::write(path, &foreign).unwrap()
    });
}

#[test]
fn a_key_open_to_others_and_a_foreign_ca_are_refused() {
    let world = World::new();
    let error = world.refused("key.pem", |path| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o640)).unwrap();
    });
    assert!(error.contains("chmod 600"), "{error}");
    let other = World::new();
    std::fs::copy(other.file("ca.pem"), world.file("ca.pem")).unwrap();
    assert!(world.load().is_err());
}

#[test]
fn certificates_of_the_wrong_role_and_checkpoints_of_another_net_are_refused() {
    let world = World::new();
    let provider = std::fs::read(world.file("provider.pem")).unwrap();
    let administrator = std::fs::read(world.file("administrator.pem")).unwrap();
    let write = |bytes: Vec<u8>| move |path: &Path| std::fs::write(path, &bytes).unwrap();
    let error = world.refused("administrator.pem", write(provider));
    assert!(error.contains("role provider"), "{error}");
    let error = world.refused("provider.pem", write(administrator));
    assert!(error.contains("role administrator"), "{error}");
    let elsewhere = enrol(&world.authority, NetId([8; 16]));
    let checkpoint = elsewhere.meter.as_ref().unwrap().checkpoint.clone();
    let error = world.refused("checkpoint.cbor", write(checkpoint));
    assert!(error.contains("of another one"), "{error}");
}

#[test]
fn the_time_is_judged_apart_from_all_else() {
    let world = World::new();
    let files = IdentityFiles {
        directory: world.directory.path().join("meter"),
    };
    let identity = Identity::read(&files).unwrap();
    assert_eq!(identity.key.id(), world.meter.id());
    identity.valid_at(utc_timestamp()).unwrap();
    let end = identity.certificate.not_after();
    identity.valid_at(end).unwrap();
    for wrong in [dcnet::time::Timestamp(0), dcnet::time::Timestamp(end.0 + 1)] {
        let error = format!("{:#}", identity.valid_at(wrong).unwrap_err());
        for part in [
            "certificate.pem is valid from 20",
            "the clock says",
            "enrol",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let loaded = Identity::load(&files, wrong).unwrap_err();
        assert_eq!(format!("{loaded:#}"), error);
    }
}
