//! The database keeps what it was told, whole, and refuses a second roster.

mod world;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use dcnet::aggregate::Disruption;
use dcnet::identity::DeviceId;
use dcnet::membership::EntryKind;
use dcnet::provider::ProviderRecord;
use dcnet::time::Round;
use dcnet::topic::NetId;
use link::Journal;
use provider_agent::Store;
use provider_agent::store::NetRecord;
use world::{World, aggregate, policy, published, roster};

fn world() -> (World, NetId) {
    let world = World::new();
    let net = world.create_net(policy(900, 60_000, 30), &["import", "export"]);
    (world, net)
}

fn lost(net: NetId, round: u64, disruption: Option<Disruption>) -> NetRecord {
    let record = ProviderRecord::Lost {
        round: Round(round),
        disruption,
        missing: Vec::new(),
    };
    NetRecord { net, record }
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let (world, net) = world();
    let entry = NetRecord {
        net,
        record: ProviderRecord::Entry {
            index: 1,
            hash: [1; 32],
            kind: EntryKind::Join,
            frame: b"join".to_vec(),
        },
    };
    let mut store = world.store();
    store.commit(&[entry, roster(net, 10, 0, 3)]).unwrap();
    store.commit(&[aggregate(net, 10, 0, 3)]).unwrap();
    store.commit(&[roster(net, 11, 0, 4)]).unwrap();
    store.commit(&[roster(net, 12, 0, 5)]).unwrap();
    store.commit(&[aggregate(net, 12, 0, 5)]).unwrap();
    drop(store);

    let store = world.store();
    store.check().unwrap();
    let saved = store.load(net).unwrap();
    assert_eq!(saved.entries.len(), 2);
    assert_eq!(saved.entries[1], b"join");
    let pending: Vec<bool> = saved.rosters.iter().map(|roster| roster.pending).collect();
    assert_eq!(
        pending,
        [false, true, false],
        "in the order they were issued"
    );
    assert_eq!(
        saved.rosters[1].submissions,
        (0..4).map(|meter| vec![meter; 100]).collect::<Vec<_>>(),
        "a pending round keeps its submissions in the order of the roster"
    );
    assert!(saved.rosters[0].submissions.is_empty());
    assert_eq!(
        saved.aggregates,
        [
            (Round(10), b"aggregate 10".to_vec()),
            (Round(12), b"aggregate 12".to_vec())
        ]
    );
    assert_eq!(
        store.newest_aggregate(net).unwrap(),
        Some(published(12, 0, 5))
    );
    assert_eq!(store.included_in(net, Round(11)).unwrap().len(), 4);
}

#[test]
fn a_second_roster_of_a_round_fails_the_whole_commit() {
    let (world, net) = world();
    let mut store = world.store();
    store.commit(&[roster(net, 7, 0, 3)]).unwrap();
    let error = store
        .commit(&[roster(net, 8, 0, 3), roster(net, 7, 1, 4)])
        .unwrap_err();
    assert!(format!("{error:#}").contains("round 7"), "{error:#}");
    let saved = store.load(net).unwrap();
    assert_eq!(saved.rosters.len(), 1, "nothing of the commit is stored");
    assert!(
        saved.rosters[0].frame.ends_with(&[0]),
        "the first one stays"
    );
    // Final or lost, a round has had its roster.
    store.commit(&[aggregate(net, 7, 0, 3)]).unwrap();
    assert!(store.commit(&[roster(net, 7, 1, 4)]).is_err());
    store
        .commit(&[roster(net, 9, 0, 3), lost(net, 9, None)])
        .unwrap();
    assert!(store.commit(&[roster(net, 9, 1, 4)]).is_err());
}

#[test]
fn records_that_contradict_the_database_are_refused() {
    let (world, net) = world();
    let mut store = world.store();
    store.commit(&[roster(net, 7, 0, 3)]).unwrap();
    for (what, record) in [
        ("an aggregate without a roster", aggregate(net, 8, 0, 3)),
        ("an aggregate of another roster", aggregate(net, 7, 9, 3)),
        ("a lost round without a roster", lost(net, 8, None)),
        ("a net that is not there", roster(NetId([9; 16]), 8, 0, 3)),
        (
            "a log entry that does not come next",
            NetRecord {
                net,
                record: ProviderRecord::Entry {
                    index: 2,
                    hash: [1; 32],
                    kind: EntryKind::Join,
                    frame: Vec::new(),
                },
            },
        ),
    ] {
        assert!(store.commit(&[record]).is_err(), "{what}");
    }
    assert_eq!(store.load(net).unwrap().rosters.len(), 1);
    store.commit(&[aggregate(net, 7, 0, 3)]).unwrap();
    assert!(
        store.commit(&[aggregate(net, 7, 0, 3)]).is_err(),
        "a second aggregate"
    );
}

#[test]
fn commitments_outlive_the_frames_they_came_in() {
    let (world, net) = world();
    let mut store = world.store();
    store
        .commit(&[
            roster(net, 1, 7, 3),
            aggregate(net, 1, 7, 3),
            roster(net, 2, 7, 3),
            lost(net, 2, None),
            roster(net, 3, 7, 3),
            lost(net, 3, Some(Disruption::Value(0))),
        ])
        .unwrap();
    for round in 1..=3 {
        let meter = DeviceId([2; 16]);
        let commitments = store.commitments(net, Round(round), meter).unwrap();
        assert_eq!(commitments, Some(vec![[2; 32], [7; 32]]), "round {round}");
        let other = DeviceId([99; 16]);
        assert_eq!(store.commitments(net, Round(round), other).unwrap(), None);
    }
    let saved = store.load(net).unwrap();
    assert!(saved.rosters.iter().all(|roster| !roster.pending));
    drop(store);
    let database = rusqlite::Connection::open(world.config.store_path()).unwrap();
    let frames: i64 = database
        .query_row("SELECT count(*) FROM submission_frames", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(
        frames, 3,
        "only the disrupted round keeps them, for an audit"
    );
}

#[test]
fn who_owed_a_reveal_of_a_lost_round_is_on_record() {
    let (world, net) = world();
    let mut store = world.store();
    let silent = vec![DeviceId([2; 16]), DeviceId([0; 16])];
    let record = ProviderRecord::Lost {
        round: Round(7),
        disruption: None,
        missing: silent.clone(),
    };
    let closed = NetRecord { net, record };
    store
        .commit(&[roster(net, 7, 0, 3), roster(net, 8, 0, 3), closed])
        .unwrap();
    store
        .commit(&[lost(net, 8, Some(Disruption::Value(0)))])
        .unwrap();
    drop(store);
    let missing = |round| {
        world
            .store()
            .round(net, Round(round))
            .unwrap()
            .unwrap()
            .missing
    };
    assert_eq!(missing(7), silent);
    assert_eq!(missing(8), []);
}

#[test]
fn an_older_database_learns_to_keep_who_owed_a_reveal() {
    let (world, net) = world();
    world.store().commit(&[roster(net, 7, 0, 3)]).unwrap();
    let database = rusqlite::Connection::open(world.config.store_path()).unwrap();
    let version: i64 = database
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    database
        .execute_batch("DROP TABLE missing_reveals")
        .unwrap();
    database
        .pragma_update(None, "user_version", version - 1)
        .unwrap();
    drop(database);
    let mut store = world.store();
    let record = ProviderRecord::Lost {
        round: Round(7),
        disruption: None,
        missing: vec![DeviceId([1; 16])],
    };
    store.commit(&[NetRecord { net, record }]).unwrap();
    let stored = store.round(net, Round(7)).unwrap().unwrap();
    assert_eq!(stored.missing, [DeviceId([1; 16])]);
}

#[test]
fn an_empty_file_becomes_a_database_and_a_foreign_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("provider.sqlite");
    let private = |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, b"").unwrap();
    private(&path);
    assert_eq!(Store::open(&path).unwrap().nets().unwrap(), []);
    assert_eq!(Store::open(&path).unwrap().nets().unwrap(), [], "again");

    let database = rusqlite::Connection::open(&path).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    let error = format!("{:#}", Store::open(&path).unwrap_err());
    assert!(error.contains("99") && error.contains("newer"), "{error}");

    let other = directory.path().join("other.sqlite");
    let database = rusqlite::Connection::open(&other).unwrap();
    database.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(database);
    private(&other);
    let error = format!("{:#}", Store::open(&other).unwrap_err());
    assert!(error.contains("another program"), "{error}");
}

#[test]
fn a_database_of_an_older_version_is_brought_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("provider.sqlite");
    let database = rusqlite::Connection::open(&path).unwrap();
    let first = include_str!("../src/store/schema.sql");
    database.execute_batch(first).unwrap();
    database
        .execute_batch(
            "PRAGMA application_id = 1145270386; PRAGMA user_version = 1; \
             INSERT INTO nets VALUES (1, zeroblob(16), 'Elm Street', 900, 60000, 30, 3, 48); \
             INSERT INTO channels VALUES (1, 0, 'import'), (1, 1, 'export')",
        )
        .unwrap();
    drop(database);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let net = NetId([0; 16]);
    let mut store = Store::open(&path).unwrap();
    assert_eq!(store.standing(net).unwrap(), Default::default());
    store
        .commit(&[roster(net, 7, 0, 3), aggregate(net, 7, 0, 3)])
        .unwrap();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.nets().unwrap()[0].newest_final, Some(Round(7)));
    store.check().unwrap();
}

#[test]
fn a_database_can_be_read_while_another_process_writes() {
    let (world, net) = world();
    let writer = rusqlite::Connection::open(world.config.store_path()).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Waiting for the writer would be an error after some seconds.
    assert_eq!(world.store().net_ids().unwrap(), [net]);
    writer.execute_batch("ROLLBACK").unwrap();
}

#[test]
fn files_and_directories_that_others_may_use_are_refused() {
    let (world, _) = world();
    let (path, directory) = (world.config.store_path(), &world.config.state_directory);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(directory)), (0o600, 0o700));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = format!("{:#}", Store::open(&path).unwrap_err());
    assert!(error.contains("chmod 600"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let error = format!("{:#}", Store::open(&path).unwrap_err());
    assert!(error.contains("chmod 700"), "{error}");
}

const WRITER: &str = "PROVIDER_STORE_WRITER";

/// Not a test of its own: the process that the next test kills.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(WRITER) else {
        return;
    };
    let mut store = Store::open(path.as_ref()).unwrap();
    let net = store.nets().unwrap()[0].net;
    let first = store.load(net).unwrap().rosters.len() as u64;
    for round in first.. {
        store.commit(&[roster(net, round, 0, 20)]).unwrap();
        println!("\nroster {round}");
        store.commit(&[aggregate(net, round, 0, 20)]).unwrap();
        println!("\naggregate {round}");
    }
}

#[test]
fn a_killed_writer_leaves_everything_it_reported_and_nothing_by_halves() {
    let (world, net) = world();
    let path = world.config.store_path();
    let (mut rosters, mut aggregates) = (0, 0);
    for kill in 0..12 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut reported = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(round) = line.strip_prefix("roster ") {
                rosters = rosters.max(round.parse::<u64>().unwrap() + 1);
                reported += 1;
            } else if let Some(round) = line.strip_prefix("aggregate ") {
                aggregates = aggregates.max(round.parse::<u64>().unwrap() + 1);
                reported += 1;
            }
            // Lines after the kill count too: they were reported.
            if reported == 3 + kill {
                writer.kill().unwrap();
            }
        }
        assert!(!writer.wait().unwrap().success(), "it was killed");

        let mut store = Store::open(&path).unwrap();
        store.check().unwrap();
        let saved = store.load(net).unwrap();
        let stored = saved.rosters.len() as u64;
        assert!(
            stored == rosters || stored == rosters + 1,
            "{stored} of {rosters}"
        );
        let finals = saved.aggregates.len() as u64;
        assert!(finals >= aggregates, "{finals} of {aggregates}");
        for (round, roster) in (0..).zip(&saved.rosters) {
            assert_eq!(store.included_in(net, Round(round)).unwrap().len(), 20);
            assert_eq!(roster.pending, round >= finals, "round {round}");
            if roster.pending {
                assert_eq!(roster.submissions.len(), 20);
                // The round goes on: its aggregate can still be stored.
                store.commit(&[aggregate(net, round, 0, 20)]).unwrap();
            }
        }
        assert!(store.commit(&[roster(net, 0, 1, 3)]).is_err());
        (rosters, aggregates) = (stored, stored);
    }
}
