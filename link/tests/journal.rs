//! The meter's journal on a real file system, with real processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use dcnet::output::{Record, Store};
use link::{Journal, MeterJournal};
use tempfile::TempDir;

/// Set in processes that this test starts from its own executable.
const ROLE: &str = "LINK_JOURNAL_ROLE";
const DIRECTORY: &str = "LINK_JOURNAL_DIRECTORY";

fn put(store: Store, key: &[u8], value: &[u8]) -> Record {
    Record {
        store,
        key: key.to_vec(),
        value: Some(value.to_vec()),
    }
}

fn erase(store: Store, key: &[u8]) -> Record {
    Record {
        store,
        key: key.to_vec(),
        value: None,
    }
}

fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("net.db"), directory.join("register.db"))
}

fn open(directory: &Path) -> anyhow::Result<MeterJournal> {
    let (net, register) = files(directory);
    MeterJournal::open(&net, &register)
}

fn directory() -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

fn error_of(result: anyhow::Result<MeterJournal>) -> String {
    format!("{:#}", result.expect_err("must be refused"))
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything in every file of a directory.
fn raw(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        bytes.extend(fs::read(entry.unwrap().path()).unwrap());
    }
    bytes
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

fn spawn(role: &str, directory: &Path) -> (Child, std::io::Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn next_line(lines: &mut std::io::Lines<BufReader<ChildStdout>>, prefix: &str) -> String {
    for line in lines {
        let line = line.unwrap();
        if let Some((_, rest)) = line.split_once(prefix) {
            return rest.to_owned();
        }
    }
    panic!("the child ended without saying \"{prefix}\"");
}

fn generation(journal: &MeterJournal, store: Store) -> u64 {
    let records = journal.load(store).unwrap();
    if records.is_empty() {
        return 0;
    }
    assert_eq!(
        records.len(),
        40,
        "a commit is there completely or not at all"
    );
    let values: Vec<_> = records.iter().map(|r| r.value.clone().unwrap()).collect();
    assert!(
        values.windows(2).all(|pair| pair[0] == pair[1]),
        "one generation in {store:?}"
    );
    u64::from_be_bytes(values[0][..8].try_into().unwrap())
}

fn write_generation(journal: &mut MeterJournal, generation: u64) {
    let value = generation.to_be_bytes().repeat(60);
    let records: Vec<_> = (0..40_u8)
        .flat_map(|key| [Store::Net, Store::Register].map(|store| put(store, &[key; 16], &value)))
        .collect();
    journal.commit(&records).unwrap();
}

/// What the processes do that tests here start; not a test by itself.
#[test]
#[ignore = "started by other tests"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let mut journal = open(&directory).unwrap();
    match role.as_str() {
        "hold" => {
            println!("HELD");
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            loop {
                std::thread::park();
            }
        }
        "commit" => {
            let first = generation(&journal, Store::Net).max(generation(&journal, Store::Register));
            for generation in first + 1.. {
                write_generation(&mut journal, generation);
                println!("COMMITTED {generation}");
            }
        }
        other => panic!("{other}"),
    }
}

#[test]
fn records_are_there_after_closing() {
    let directory = directory();
    let mut journal = open(directory.path()).unwrap();
    journal
        .commit(&[
            put(Store::Net, b"b", b"1"),
            put(Store::Register, b"a", b"2"),
            put(Store::Net, b"a", b""),
            put(Store::Net, b"b", b"3"),
            put(Store::Net, b"c", b"4"),
            erase(Store::Net, b"c"),
            erase(Store::Net, b"never there"),
        ])
        .unwrap();
    drop(journal);
    let journal = open(directory.path()).unwrap();
    assert_eq!(
        journal.load(Store::Net).unwrap(),
        [put(Store::Net, b"a", b""), put(Store::Net, b"b", b"3")]
    );
    assert_eq!(
        journal.load(Store::Register).unwrap(),
        [put(Store::Register, b"a", b"2")]
    );
}

#[test]
fn new_files_and_directories_are_private() {
    let outer = directory();
    let inner = outer.path().join("state");
    let mut journal = open(&inner).unwrap();
    journal.commit(&[put(Store::Net, b"k", b"v")]).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&inner), 0o700);
    for entry in fs::read_dir(&inner).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn wide_permissions_are_refused() {
    let directory = directory();
    drop(open(directory.path()).unwrap());
    let (net, register) = files(directory.path());
    for path in [&net, &register] {
        for mode in [0o640, 0o604, 0o660] {
            chmod(path, mode);
            let error = error_of(open(directory.path()));
            assert!(error.contains("chmod 600"), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        chmod(path, 0o600);
    }
    chmod(directory.path(), 0o755);
    let error = error_of(open(directory.path()));
    assert!(error.contains("chmod 700"), "{error}");
    chmod(directory.path(), 0o700);
    open(directory.path()).unwrap();
}

#[test]
fn a_symbolic_link_is_refused() {
    let directory = directory();
    drop(open(directory.path()).unwrap());
    let (net, register) = files(directory.path());
    let link = directory.path().join("link.db");
    std::os::unix::fs::symlink(&net, &link).unwrap();
    let error = error_of(MeterJournal::open(&link, &register));
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn files_of_other_stores_programs_and_versions_are_refused() {
    let directory = directory();
    drop(open(directory.path()).unwrap());
    let (net, register) = files(directory.path());
    let error = error_of(MeterJournal::open(&register, &net));
    assert!(error.contains("not a file of the store"), "{error}");

    let database = rusqlite::Connection::open(&net).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let error = error_of(open(directory.path()));
    assert!(error.contains("schema version 99"), "{error}");

    fs::remove_file(&net).unwrap();
    let database = rusqlite::Connection::open(&net).unwrap();
    database.execute_batch("CREATE TABLE t (a)").unwrap();
    drop(database);
    chmod(&net, 0o600);
    let error = error_of(open(directory.path()));
    assert!(error.contains("another program"), "{error}");

    fs::write(
        &net,
        b"no database at all, but long enough to be looked at".repeat(40),
    )
    .unwrap();
    let error = error_of(open(directory.path()));
    assert!(error.contains("net.db"), "{error}");
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let directory = directory();
    let (mut child, mut lines) = spawn("hold", directory.path());
    next_line(&mut lines, "HELD");
    let error = error_of(open(directory.path()));
    assert!(error.contains("in use by another process"), "{error}");
    // The refused attempt must not have taken the lock away either.
    let error = error_of(open(directory.path()));
    assert!(error.contains("in use by another process"), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    open(directory.path()).unwrap();
}

#[test]
fn the_same_process_cannot_open_it_twice_either() {
    let directory = directory();
    let first = open(directory.path()).unwrap();
    let error = error_of(open(directory.path()));
    assert!(error.contains("in use"), "{error}");
    // Closing the second attempt's descriptors must leave the first one's lock.
    let (mut child, lines) = spawn("hold", directory.path());
    let held = lines
        .map_while(Result::ok)
        .any(|line| line.contains("HELD"));
    child.wait().unwrap();
    assert!(!held, "another process got the files");
    drop(first);
}

#[test]
fn a_killed_process_leaves_whole_commits() {
    let directory = directory();
    let mut kills_within_a_commit = 0;
    for turn in 0..12_u64 {
        let (mut child, mut lines) = spawn("commit", directory.path());
        let mut said = 0;
        for _ in 0..=turn % 4 {
            said = next_line(&mut lines, "COMMITTED ").parse().unwrap();
        }
        // An arbitrary moment; nothing is waited for.
        std::thread::sleep(Duration::from_micros(turn * 397 % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        let journal = open(directory.path()).unwrap();
        let net = generation(&journal, Store::Net);
        let register = generation(&journal, Store::Register);
        assert!(net >= said, "what was acknowledged is there");
        assert!(
            register == net || register == net + 1,
            "the register is never behind: {register}, {net}"
        );
        kills_within_a_commit += u64::from(register != net);
    }
    println!("{kills_within_a_commit} of 12 kills fell between the two files");
}

#[test]
fn an_erased_or_replaced_value_is_nowhere_in_the_files() {
    let directory = directory();
    let mut journal = open(directory.path()).unwrap();
    let secret = *b"first secret: 0123456789abcdefgh";
    let replaced = *b"second secret: 123456789abcdefgh";
    for store in [Store::Net, Store::Register] {
        journal
            .commit(&[put(store, b"k", &secret), put(store, b"other", b"kept")])
            .unwrap();
        assert!(
            contains(&raw(directory.path()), &secret),
            "the search finds what is there"
        );
        journal.commit(&[put(store, b"k", &replaced)]).unwrap();
        assert!(!contains(&raw(directory.path()), &secret));
        journal.commit(&[erase(store, b"k")]).unwrap();
        assert!(!contains(&raw(directory.path()), &replaced));
    }
    assert!(contains(&raw(directory.path()), b"kept"));
}

/// SQLite leaves copies of moved cells in pages, which `secure_delete` misses; many
/// values of different sizes provoke that (about one time in a thousand).
#[test]
fn no_erased_value_survives_page_rebalancing() {
    for seed in 1..=10 {
        many_changes_leave_nothing_behind(seed);
    }
}

fn many_changes_leave_nothing_behind(seed: u64) {
    let directory = directory();
    let mut journal = open(directory.path()).unwrap();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut live: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut erased: Vec<Vec<u8>> = Vec::new();
    for _ in 0..12 {
        let mut records = Vec::new();
        for _ in 0..200 {
            if next() % 10 < 4 && !live.is_empty() {
                let at = usize::try_from(next()).unwrap() % live.len();
                let (key, value) = live.swap_remove(at);
                records.push(erase(Store::Net, &key));
                erased.push(value);
            } else {
                let key = [next().to_be_bytes(), next().to_be_bytes()].concat();
                let words = [20, 30, 62][usize::try_from(next() % 3).unwrap()];
                let value: Vec<u8> = (0..words).flat_map(|_| next().to_be_bytes()).collect();
                records.push(put(Store::Net, &key, &value));
                live.push((key, value));
            }
        }
        journal.commit(&records).unwrap();
    }
    // As many erasing commits as the size of the file calls for.
    let size = fs::metadata(files(directory.path()).0).unwrap().len();
    for _ in 0..=size / link::journal::REWRITE_PER_ERASURE {
        journal
            .commit(&[put(Store::Net, b"erased in turn", b"something short")])
            .unwrap();
        journal
            .commit(&[erase(Store::Net, b"erased in turn")])
            .unwrap();
    }
    let bytes = raw(directory.path());
    let windows: std::collections::HashSet<&[u8]> = bytes.windows(16).collect();
    for value in &erased {
        for part in value.chunks_exact(16) {
            assert!(
                !windows.contains(part),
                "a part of an erased value is still there"
            );
        }
    }
    for (_, value) in &live {
        assert!(
            windows.contains(&value[..16]),
            "the search finds what is there"
        );
    }
    assert_eq!(journal.load(Store::Net).unwrap().len(), live.len());
}

/// A file system of 512 KiB, if this process may mount one.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = directory();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k,mode=0700", "none"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_the_last_commit() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    let mut journal = open(disk.0.path()).unwrap();
    let mut stored = 0;
    let error = loop {
        let value = vec![u8::try_from(stored).unwrap(); 20_000];
        match journal.commit(&[put(Store::Net, &[u8::try_from(stored).unwrap()], &value)]) {
            Ok(()) => stored += 1,
            Err(error) => break format!("{error:#}"),
        }
        assert!(stored < 100, "the disk never filled");
    };
    assert!(stored > 2 && error.contains("net.db"), "{stored}, {error}");
    drop(journal);
    // Room for recovery, as an administrator would make.
    let remounted = Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(disk.0.path())
        .status()
        .unwrap();
    assert!(remounted.success());
    let journal = open(disk.0.path()).unwrap();
    let loaded = journal.load(Store::Net).unwrap();
    assert_eq!(loaded.len(), stored);
    assert!(
        loaded
            .iter()
            .all(|r| r.value.as_ref().unwrap().len() == 20_000)
    );
    drop(journal);
}
