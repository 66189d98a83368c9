//! Credentials as an administrator issues them, whole and spoilt.

mod support;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use dcnet::identity::{CaCertificate, Certificate, DeviceId, DeviceKey, Role};
use dcnet::revocation::RevocationList;
use dcnet::time::Timestamp;
use link::credentials::{self, LENGTH_LIMIT, RevocationFile};
use support::{Authority, DEADLINE, Identity};

const ADVICE: &str = "ask again";

fn now() -> Timestamp {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Timestamp(u64::try_from(since.as_millis()).unwrap())
}

fn ca(identity: &Identity) -> CaCertificate {
    credentials::ca(&identity.ca, ADVICE).unwrap()
}

fn certificate(identity: &Identity, role: Role) -> anyhow::Result<Certificate> {
    credentials::certificate(&identity.certificate, &ca(identity), role, now(), ADVICE)
}

/// The message names the file.
fn refusal<T>(result: anyhow::Result<T>, path: &Path) -> String {
    let error = format!("{:#}", result.err().expect("must be refused"));
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_certificate_is_of_the_ca_the_role_and_the_time() {
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    let path = &provider.certificate;
    let read = certificate(&provider, Role::Provider).unwrap();
    assert_eq!(read.id(), provider.id());

    let error = refusal(certificate(&provider, Role::Meter), path);
    assert!(
        error.contains("role provider")
            && error.contains("one for meter")
            && error.contains(ADVICE),
        "{error}"
    );
    let foreign = ca(&Authority::new().issue("provider", Role::Provider));
    let role = Role::Provider;
    let result = credentials::certificate(path, &foreign, role, now(), ADVICE);
    assert!(refusal(result, path).contains(ADVICE));
    let early = credentials::certificate(path, &ca(&provider), role, Timestamp(0), ADVICE);
    assert!(refusal(early, path).contains("clock"));
}

#[test]
fn missing_long_and_strange_files_are_named_with_the_advice() {
    let authority = Authority::new();
    let path = authority.path().join("file");
    let read: [fn(&Path) -> anyhow::Result<()>; 3] = [
        |path| credentials::bytes(path, ADVICE).map(drop),
        |path| credentials::text(path, ADVICE).map(drop),
        |path| credentials::ca(path, ADVICE).map(drop),
    ];
    for read in read {
        let error = refusal(read(&path), &path);
        assert!(
            error.contains("cannot read") && error.contains(ADVICE),
            "{error}"
        );
    }
    fs::write(&path, vec![b'x'; LENGTH_LIMIT]).unwrap();
    assert_eq!(
        credentials::bytes(&path, ADVICE).unwrap().len(),
        LENGTH_LIMIT
    );
    assert!(refusal(credentials::ca(&path, ADVICE), &path).contains(ADVICE));
    fs::write(&path, vec![b'x'; LENGTH_LIMIT + 1]).unwrap();
    for read in read {
        let error = refusal(read(&path), &path);
        assert!(
            error.contains("longer than") && error.contains(ADVICE),
            "{error}"
        );
    }
    fs::write(&path, [0xff]).unwrap();
    assert!(refusal(credentials::text(&path, ADVICE), &path).contains("not text"));
}

#[test]
fn a_private_key_is_private_and_belongs_to_its_certificate() {
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    let other = authority.issue("other", Role::Provider);
    let own = certificate(&provider, Role::Provider).unwrap();
    let read = |path: &Path| credentials::private_key(path, &own, ADVICE);
    let key = &provider.key;
    for mode in [0o600, 0o400] {
        chmod(key, mode);
        assert_eq!(read(key).unwrap().id(), own.id());
    }
    for mode in [0o640, 0o604, 0o610] {
        chmod(key, mode);
        let error = refusal(read(key), key);
        let remedy = format!("run: chmod 600 {}", key.display());
        assert!(
            error.contains("a private key") && error.ends_with(&remedy),
            "{error}"
        );
    }
    chmod(key, 0o600);
    assert!(refusal(read(&other.key), &other.key).contains("put the two that belong together"));
    let missing = authority.path().join("missing");
    assert!(refusal(read(&missing), &missing).contains(ADVICE));
    let link = authority.path().join("link");
    symlink(key, &link).unwrap();
    assert!(refusal(read(&link), &link).contains("not a regular file"));
    fs::write(key, "nonsense").unwrap();
    assert!(refusal(read(key), key).contains(ADVICE));
}

#[test]
fn a_pipe_in_place_of_a_key_is_refused_at_once() {
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    let own = certificate(&provider, Role::Provider).unwrap();
    let pipe = authority.path().join("pipe");
    let made = Command::new("mkfifo")
        .args(["-m", "600"])
        .arg(&pipe)
        .status();
    assert!(made.unwrap().success());
    let (sender, results) = mpsc::channel();
    let path = pipe.clone();
    std::thread::spawn(move || {
        let read = credentials::private_key(&path, &own, ADVICE).map(drop);
        sender.send(read).unwrap();
    });
    let result = results
        .recv_timeout(DEADLINE)
        .expect("it waits for a writer");
    assert!(refusal(result, &pipe).contains("not a regular file"));
}

/// An administrator's file of revoked devices.
struct Lists {
    authority: Authority,
    key: DeviceKey,
    administrator: Certificate,
    path: PathBuf,
}

fn list(number: u64, devices: u8) -> RevocationList {
    RevocationList::new(number, (0..devices).map(|id| DeviceId([id; 16])).collect())
}

impl Lists {
    fn new() -> Self {
        let authority = Authority::new();
        let identity = authority.issue("administrator", Role::Administrator);
        let pem = fs::read_to_string(&identity.key).unwrap();
        Self {
            key: DeviceKey::from_pkcs8_pem(&pem).unwrap(),
            administrator: certificate(&identity, Role::Administrator).unwrap(),
            path: authority.path().join("revoked.cbor"),
            authority,
        }
    }

    fn file(&self) -> RevocationFile {
        RevocationFile::new(&self.path, self.administrator.clone())
    }

    fn put(&self, list: &RevocationList) {
        self.put_bytes(&list.sign(&self.key, now()));
    }

    /// Whole, by renaming.
    fn put_bytes(&self, bytes: &[u8]) {
        let new = self.authority.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(&new, &self.path).unwrap();
    }
}

#[test]
fn a_list_is_given_when_it_is_new() {
    let lists = Lists::new();
    let mut file = lists.file();
    assert_eq!(file.changed().unwrap(), None, "there may be no file");
    lists.put(&list(0, 0));
    assert_eq!(file.changed().unwrap(), Some(list(0, 0)), "it appeared");
    assert_eq!(file.changed().unwrap(), None);
    lists.put(&list(1, 2));
    assert_eq!(file.changed().unwrap(), Some(list(1, 2)));
    lists.put(&list(1, 2));
    assert_eq!(file.changed().unwrap(), None, "the same list in a new file");
    lists.put(&list(7, 3));
    assert_eq!(file.changed().unwrap(), Some(list(7, 3)));
    assert_eq!(
        lists.file().changed().unwrap(),
        Some(list(7, 3)),
        "a new start"
    );
}

#[test]
fn a_file_is_older_than_a_list_that_was_in_force_before() {
    let lists = Lists::new();
    for number in 1..=3 {
        lists.put(&list(number, 1));
        let mut file = lists.file();
        assert_eq!(file.changed().unwrap(), Some(list(number, 1)));
        file.in_force(&list(2, 1));
        if number < 2 {
            let error = refusal(file.changed(), &lists.path);
            assert!(error.contains("number 1, but 2 is in force"), "{error}");
        }
        assert_eq!(file.changed().unwrap(), None, "told once");
        lists.put(&list(4, 0));
        assert_eq!(file.changed().unwrap(), Some(list(4, 0)));
    }
    fs::remove_file(&lists.path).unwrap();
    let mut file = lists.file();
    assert_eq!(file.changed().unwrap(), None);
    file.in_force(&list(2, 1));
    let error = refusal(file.changed(), &lists.path);
    assert!(error.contains("list 2 stays in force"), "{error}");
}

#[test]
fn a_file_replaced_within_a_tick_of_the_clock_is_read() {
    let lists = Lists::new();
    let mut file = lists.file();
    let moment = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    let mut lengths = Vec::new();
    for number in 1..=2 {
        lists.put(&list(number, 1));
        let open = File::options().append(true).open(&lists.path).unwrap();
        open.set_times(moment).unwrap();
        lengths.push(open.metadata().unwrap().len());
        assert_eq!(file.changed().unwrap(), Some(list(number, 1)));
    }
    assert_eq!(lengths[0], lengths[1]);
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let lists = Lists::new();
    lists.put(&list(1, 1));
    let mut file = lists.file();
    file.changed().unwrap();
    let open = File::options().write(true).open(&lists.path).unwrap();
    let before = open.metadata().unwrap().modified().unwrap();
    let spoilt = vec![0; usize::try_from(open.metadata().unwrap().len()).unwrap()];
    fs::write(&lists.path, spoilt).unwrap();
    open.set_modified(before).unwrap();
    assert_eq!(file.changed().unwrap(), None);
    open.set_modified(before + Duration::from_secs(1)).unwrap();
    refusal(file.changed(), &lists.path);
    assert_eq!(file.changed().unwrap(), None, "told once");
    file.look_again();
    refusal(file.changed(), &lists.path);
}

#[test]
fn an_older_list_is_refused_once_and_the_newer_stays() {
    let lists = Lists::new();
    lists.put(&list(5, 2));
    let mut file = lists.file();
    file.changed().unwrap();
    lists.put(&list(4, 0));
    let error = refusal(file.changed(), &lists.path);
    assert!(
        error.contains("number 4") && error.contains("5 is in force"),
        "{error}"
    );
    assert_eq!(file.changed().unwrap(), None, "told once");
    lists.put(&list(3, 0));
    refusal(file.changed(), &lists.path);
    lists.put(&list(5, 2));
    assert_eq!(file.changed().unwrap(), None, "in force already");
    lists.put(&list(6, 3));
    assert_eq!(file.changed().unwrap(), Some(list(6, 3)));
}

#[test]
fn what_is_not_this_administrators_is_refused_once() {
    let lists = Lists::new();
    let foreign = Lists::new();
    let mut file = lists.file();
    let whole = list(2, 2).sign(&lists.key, now());
    for bytes in [
        &list(1, 1).sign(&foreign.key, now()),
        b"nonsense".as_slice(),
        &[],
        &whole[..whole.len() - 1],
    ] {
        lists.put_bytes(bytes);
        let error = refusal(file.changed(), &lists.path);
        assert!(
            error.contains(&lists.administrator.id().to_string()),
            "{error}"
        );
        assert_eq!(file.changed().unwrap(), None);
    }
    lists.put_bytes(&whole);
    assert_eq!(file.changed().unwrap(), Some(list(2, 2)));
}

#[test]
fn a_file_that_is_gone_is_told_once_and_its_number_remembered() {
    let lists = Lists::new();
    lists.put(&list(5, 2));
    let mut file = lists.file();
    file.changed().unwrap();
    fs::remove_file(&lists.path).unwrap();
    let error = refusal(file.changed(), &lists.path);
    assert!(error.contains("list 5 stays in force"), "{error}");
    assert_eq!(file.changed().unwrap(), None);
    lists.put(&list(4, 2));
    refusal(file.changed(), &lists.path);
    lists.put(&list(6, 2));
    assert_eq!(file.changed().unwrap(), Some(list(6, 2)));
}

#[test]
fn a_file_that_cannot_be_read_is_tried_again() {
    let lists = Lists::new();
    let mut file = lists.file();
    let elsewhere = lists.authority.path().join("elsewhere");
    symlink(&elsewhere, &lists.path).unwrap();
    for _ in 0..2 {
        refusal(file.changed(), &lists.path);
    }
    fs::create_dir(&elsewhere).unwrap();
    for _ in 0..2 {
        refusal(file.changed(), &lists.path);
    }
    lists.put(&list(1, 1));
    assert_eq!(file.changed().unwrap(), Some(list(1, 1)));
}
