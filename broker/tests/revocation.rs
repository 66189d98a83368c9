//! The signed revocation list: in force at once, for new and live connections.

mod rig;

use broker::{Broker, Refusal};
use dcnet::identity::{DeviceId, DeviceKey, Role};
use dcnet::revocation::RevocationList;
use rig::*;
use std::fs;
use std::path::Path;

fn write(path: &Path, bytes: &[u8]) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(&temporary, path).unwrap();
}

fn key(identity: &Identity) -> DeviceKey {
    DeviceKey::from_pkcs8_pem(&identity.key.serialize_pem()).unwrap()
}

fn list(key: &DeviceKey, number: u64, devices: &[DeviceId]) -> Vec<u8> {
    RevocationList::new(number, devices.to_vec()).sign(key, now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_devices_are_disconnected_and_kept_out() {
    let mut administrator = None;
    let rig = Rig::with(|config, ca, directory| {
        let identity = ca.issue(Role::Administrator, None);
        let path = directory.path().join("administrator.pem");
        fs::write(&path, &identity.pem).unwrap();
        config.administrator = Some(path);
        config.revocations = Some(directory.path().join("revoked"));
        config.limits.check_interval_s = 1;
        administrator = Some(identity);
    })
    .await;
    let administrator = key(&administrator.unwrap());
    let path = rig.config.revocations.clone().unwrap();
    let number = || rig.broker().revocation_number();
    assert_eq!(number(), None, "the list may come later");
    let mut pair = Pair::start(&rig).await;
    let mut live = rig.raw_session(&rig.meter, 5).await;

    write(&path, &list(&administrator, 5, &[rig.meter.id]));
    let (first, body) = live.end().await.unwrap();
    assert_eq!((first, body[0]), (0xe0, 0x98), "administrative action");
    for (version, code) in [(4, 5), (5, 0x8a)] {
        let mut raw = rig.raw(&rig.meter).await;
        raw.send(&connect(version, &rig.meter.client_id(), &[]))
            .await;
        assert_eq!(raw.packet().await.unwrap().1[1], code, "banned");
    }
    assert_eq!(rig.refused(Refusal::Revoked), 2);
    pair.exchange("a revocation").await;

    // Older, forged, damaged or missing lists change nothing.
    let forger = key(&rig.ca.issue(Role::Administrator, None));
    let refused = || rig.broker().counters().revocation_lists_refused;
    let bad = [
        list(&administrator, 4, &[]),
        list(&forger, 6, &[]),
        b"rubbish".to_vec(),
        Vec::new(),
    ];
    for (count, bad) in (1..).zip(bad) {
        write(&path, &bad);
        until("a refused list", || refused() == count).await;
        assert_eq!(number(), Some(5));
    }
    fs::remove_file(&path).unwrap();
    until("a missing list", || refused() == 5).await;
    assert_eq!(number(), Some(5));
    write(&path, &list(&administrator, 7, &[]));
    until("list 7", || number() == Some(7)).await;
    rig.raw_session(&rig.meter, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_reads_the_list_even_if_its_file_looks_unchanged() {
    let mut administrator = None;
    let rig = Rig::with(|config, ca, directory| {
        let identity = ca.issue(Role::Administrator, None);
        let path = |name: &str| directory.path().join(name);
        fs::write(path("administrator.pem"), &identity.pem).unwrap();
        config.administrator = Some(path("administrator.pem"));
        config.revocations = Some(path("revoked"));
        config.limits.check_interval_s = 3600;
        let list = list(&key(&identity), 5, &[]);
        fs::write(path("revoked"), list).unwrap();
        administrator = Some(identity);
    })
    .await;
    assert_eq!(rig.broker().revocation_number(), Some(5));
    let path = rig.config.revocations.clone().unwrap();
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, list(&key(&administrator.unwrap()), 6, &[])).unwrap();
    let file = fs::File::options().append(true).open(&path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(file.metadata().unwrap().len(), before.len());
    rig.broker().reload().await;
    assert_eq!(rig.broker().revocation_number(), Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_could_not_be_read_is_tried_again() {
    let mut administrator = None;
    let rig = Rig::with(|config, ca, directory| {
        let identity = ca.issue(Role::Administrator, None);
        let path = |name: &str| directory.path().join(name);
        fs::write(path("administrator.pem"), &identity.pem).unwrap();
        config.administrator = Some(path("administrator.pem"));
        config.revocations = Some(path("revoked"));
        config.limits.check_interval_s = 1;
        administrator = Some(identity);
    })
    .await;
    let path = rig.config.revocations.clone().unwrap();
    // Not even root can read a directory as a file.
    fs::create_dir(&path).unwrap();
    let refused = || rig.broker().counters().revocation_lists_refused;
    until("it is told again and again", || refused() >= 2).await;
    fs::remove_dir(&path).unwrap();
    write(&path, &list(&key(&administrator.unwrap()), 5, &[]));
    until("list 5", || rig.broker().revocation_number() == Some(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_list_at_the_start_is_an_error() {
    let rig = Rig::start().await;
    let mut config = rig.config.clone();
    let path = |name: &str| rig.directory.path().join(name);
    config.revocations = Some(path("revoked"));
    let error = Broker::start(config.clone())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("administrator"), "{error}");
    let administrator = rig.ca.issue(Role::Administrator, None);
    fs::write(path("administrator.pem"), &administrator.pem).unwrap();
    config.administrator = Some(path("administrator.pem"));
    write(&path("revoked"), &list(&key(&rig.meter), 1, &[]));
    let error = Broker::start(config).await.err().unwrap();
    assert!(
        format!("{error:#}").contains("no list signed by the administrator"),
        "{error:#}"
    );
}
