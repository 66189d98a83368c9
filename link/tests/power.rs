//! The journal after a loss of power at any write. In a file of its own: while a process is being
//! spawned it holds copies of every lock of the one that spawns it.

#[path = "support/power.rs"]
mod power;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use dcnet::output::{Record, Store};
use link::{Journal, MeterJournal};
use power::{Disk, Image, Operation, Random, said};
use tempfile::TempDir;

const DIRECTORY: &str = "LINK_POWER_DIRECTORY";

/// Commits of the recorded process.
const COMMITS: u64 = 4;
const KEYS: u8 = 8;

fn open(directory: &Path) -> anyhow::Result<MeterJournal> {
    MeterJournal::open(&directory.join("net.db"), &directory.join("register.db"))
}

/// In memory, if there is such a place: what a disk keeps is simulated here.
fn directory() -> TempDir {
    let directory = TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

/// Every value is replaced in every second generation; in the others new ones come, so that there
/// are commits with and without a rewrite of the file.
fn records(generation: u64) -> Vec<Record> {
    let number = generation.to_be_bytes();
    let both = |key: Vec<u8>, value: Vec<u8>| {
        [Store::Net, Store::Register].map(|store| Record {
            store,
            key: key.clone(),
            value: Some(value.clone()),
        })
    };
    let fixed = (0..KEYS).flat_map(|key| {
        let replaced = generation - generation % 2;
        both(vec![b'f', key], replaced.to_be_bytes().repeat(60))
    });
    let new = (0..KEYS).flat_map(|key| {
        let key = [b"n".as_slice(), &number, &[key]].concat();
        both(key, number.repeat(20))
    });
    fixed.chain(new).collect()
}

/// The generation that a store holds, which must be exactly what its commits made.
fn generation(journal: &MeterJournal, store: Store) -> u64 {
    let found = journal.load(store).unwrap();
    let newest = found.iter().rfind(|record| record.key[0] == b'n');
    let newest = newest.map_or(0, |record| {
        u64::from_be_bytes(record.key[1..9].try_into().unwrap())
    });
    let mut expected = std::collections::BTreeMap::new();
    for record in (1..=newest).flat_map(records).filter(|r| r.store == store) {
        expected.insert(record.key, record.value);
    }
    let found: std::collections::BTreeMap<_, _> = found
        .into_iter()
        .map(|record| (record.key, record.value))
        .collect();
    assert!(found == expected, "{store:?} is a mixture, newest {newest}");
    newest
}

/// Opens a copy of what is on the disk: each store holds what was committed up to `returned`,
/// or `begun`.
fn check(image: &Image, returned: u64, begun: u64, when: &str) {
    let copy = directory();
    power::lay_down(image, copy.path());
    let mut journal = open(copy.path()).unwrap_or_else(|error| panic!("{when}: {error:#}"));
    let [net, register] = [Store::Net, Store::Register].map(|s| generation(&journal, s));
    for (name, found) in [("net", net), ("register", register)] {
        assert!(
            (returned..=begun).contains(&found),
            "{when}: {name} holds {found}, but {returned} had returned and {begun} was begun"
        );
    }
    assert!(
        register >= net,
        "{when}: the register is behind: {register}, {net}"
    );
    // It goes on from there.
    journal.commit(&records(net.max(register) + 1)).unwrap();
}

/// What the recorded process does; not a test by itself.
#[test]
#[ignore = "started by other tests"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let mut journal = open(&PathBuf::from(directory)).unwrap();
    for generation in 1..=COMMITS {
        println!("BEGUN {generation}");
        journal.commit(&records(generation)).unwrap();
        println!("RETURNED {generation}");
    }
}

/// Every write, truncation, sync, creation and removal that SQLite does, from the creation of the
/// files on.
#[test]
fn power_that_fails_at_any_write_leaves_a_commit_that_had_returned_or_was_begun() {
    let recorded = directory();
    let Some(operations) = power::record(DIRECTORY, recorded.path()) else {
        return;
    };
    let images = fail_everywhere(&operations);
    let count = |what: fn(&Operation) -> bool| operations.iter().filter(|o| what(o)).count();
    let writes = count(|o| matches!(o, Operation::Write(..)));
    let syncs = count(|o| matches!(o, Operation::Sync(_)));
    assert!(writes > 100 && syncs > 20, "{writes} writes, {syncs} syncs");
    println!("{writes} writes and {syncs} syncs recorded, {images} disks opened");

    // The test can fail: a journal that does not sync its log would be noticed.
    let mut unsynced = operations;
    unsynced.retain(|o| !matches!(o, Operation::Sync(path) if path == "net.db-wal"));
    let noticed = std::panic::catch_unwind(|| fail_everywhere(&unsynced));
    assert!(noticed.is_err());
}

/// Fails the power after every operation.
fn fail_everywhere(operations: &[Operation]) -> u64 {
    let (mut disk, mut random) = (Disk::default(), Random(0x9e37_79b9_7f4a_7c15));
    let (mut returned, mut begun, mut images) = (0, 0, 0);
    for (number, operation) in operations.iter().enumerate() {
        returned = said(operation, "RETURNED ").unwrap_or(returned);
        begun = said(operation, "BEGUN ").unwrap_or(begun);
        disk.apply(operation);
        if matches!(operation, Operation::Said(_)) {
            continue;
        }
        for image in disk.after_power_loss(&mut random, 2) {
            let when = format!("after operation {number} of {}", operations.len());
            check(&image, returned, begun, &when);
            images += 1;
        }
    }
    assert_eq!((returned, begun), (COMMITS, COMMITS));
    images
}

fn read(directory: &Path) -> Image {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| read(entry.unwrap()))
        .collect()
}

/// The write-ahead log cut or torn anywhere behind the last commit that returned. Only new values
/// are committed, so that the log grows from commit to commit.
#[test]
fn a_torn_write_ahead_log_ends_with_a_whole_commit() {
    let state = directory();
    let mut journal = open(state.path()).unwrap();
    let new = |generation: u64| -> Vec<Record> {
        let records = (0..KEYS).map(|key| Record {
            store: Store::Net,
            key: [&generation.to_be_bytes()[..], &[key]].concat(),
            value: Some(generation.to_be_bytes().repeat(50)),
        });
        records.collect()
    };
    let mut random = Random(0x0dd0_90d5);
    let (mut synced, mut images) = (0, 0);
    for generation in 1..=6_u64 {
        journal.commit(&new(generation)).unwrap();
        let whole = read(state.path());
        let log = &whole["net.db-wal"];
        assert!(
            log.len() > synced + 4096,
            "the log has grown: {synced}, {}",
            log.len()
        );
        let before: Vec<Record> = (1..generation).flat_map(new).collect();
        let after: Vec<Record> = (1..=generation).flat_map(new).collect();
        for cut in (synced..=log.len())
            .step_by(512)
            .chain([log.len() - 1, log.len()])
        {
            let random_byte = |_: &u8| random.next().to_le_bytes()[0];
            let tails = [
                Vec::new(),
                vec![0; log.len() - cut],
                log[cut..].iter().map(random_byte).collect(),
            ];
            for tail in tails {
                let mut image = whole.clone();
                let torn = [&log[..cut], &tail].concat();
                let complete = torn == *log;
                image.insert("net.db-wal".to_owned(), torn);
                let copy = directory();
                power::lay_down(&image, copy.path());
                let found = open(copy.path()).unwrap().load(Store::Net).unwrap();
                let expected = if complete { &after } else { &before };
                assert!(found == *expected, "generation {generation}, cut at {cut}");
                images += 1;
            }
        }
        synced = log.len();
    }
    println!("{images} torn logs opened");
}
