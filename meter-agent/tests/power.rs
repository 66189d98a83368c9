//! The register after a loss of power at any write. In a file of its own: while a process is
//! being spawned it holds copies of every lock of the one that spawns it.

#[path = "../../link/tests/support/power.rs"]
mod power;

use std::path::{Path, PathBuf};
use std::time::Duration;

use dcnet::time::Timestamp;
use dcnet::units::{ImpulsesPerKwh, Pulses};
use link::Clock;
use meter_agent::clock::Moment;
use meter_agent::pulse::{Batch, Channel};
use meter_agent::register::{Register, RegisterChannel};
use power::{Disk, Image, Operation, Random, said};

const DIRECTORY: &str = "METER_AGENT_POWER_DIRECTORY";

const SAVES: u64 = 8;

fn open(directory: &Path) -> Register {
    let channel = RegisterChannel {
        // So long that a total of seven digits needs a longer file.
        name: "i".repeat(62),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
    };
    Register::open(directory, vec![channel]).unwrap()
}

fn total(register: &Register) -> u64 {
    register.totals()[0].0
}

/// From 7 to a number of more digits than the one before.
fn pulses(save: u64) -> Pulses {
    Pulses(7 * 11_u64.pow(u32::try_from(save).unwrap()))
}

fn record(register: &mut Register, save: u64) {
    let (utc, monotonic) = (
        Timestamp(0)..Timestamp(1000),
        Duration::ZERO..Duration::ZERO,
    );
    let batch = Batch::new(Channel(0), utc, monotonic, pulses(save)).unwrap();
    let now = Moment::now(&Clock::assume_synchronised());
    register.record(&batch, &now).unwrap();
}

/// What the recorded process does; not a test by itself.
#[test]
#[ignore = "started by other tests"]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let mut register = open(&PathBuf::from(directory));
    for save in 1..=SAVES {
        record(&mut register, save);
        println!("BEGUN {}", total(&register));
        register.save().unwrap();
        println!("RETURNED {}", total(&register));
    }
}

/// The operations of saves as the head of `register/file.rs` describes them, with the contents
/// that the register writes.
fn described() -> Vec<Operation> {
    let directory = tempfile::tempdir().unwrap();
    let mut register = open(directory.path());
    let mut operations = vec![Operation::Create("register.lock".to_owned())];
    let mut lengths = [0, 0];
    let mut made = 0;
    for save in 1..=SAVES {
        record(&mut register, save);
        register.save().unwrap();
        let place = usize::from(save % 2 == 0);
        let slot = format!("register.{place}");
        let bytes = std::fs::read(directory.path().join(&slot)).unwrap();
        operations.push(Operation::Said(format!("BEGUN {}", total(&register))));
        if lengths[place] != bytes.len() {
            lengths[place] = bytes.len();
            made += 1;
            let new = || "register.new".to_owned();
            operations.extend([
                Operation::Create(new()),
                Operation::Write(new(), 0, bytes),
                Operation::Sync(new()),
                Operation::Rename(new(), slot),
                Operation::SyncDirectory,
            ]);
        } else {
            operations.push(Operation::Write(slot.clone(), 0, bytes));
            operations.push(Operation::Sync(slot));
        }
        operations.push(Operation::Said(format!("RETURNED {}", total(&register))));
    }
    assert_eq!(made, 4, "files that are made anew");
    operations
}

fn after(image: &Image) -> u64 {
    let copy = tempfile::tempdir().unwrap();
    power::lay_down(image, copy.path());
    total(&open(copy.path()))
}

/// Fails the power after every operation, and in every write after every byte.
fn fail_everywhere(operations: &[Operation]) -> u64 {
    let (mut disk, mut random) = (Disk::default(), Random(0x9e37_79b9_7f4a_7c15));
    let (mut returned, mut begun, mut images) = (0, 0, 0);
    let mut check = |disk: &Disk, returned: u64, begun: u64, when: &Operation| {
        for image in disk.after_power_loss(&mut random, 2) {
            let found = after(&image);
            assert!(
                found == returned || found == begun,
                "{found} is neither the saved {returned} nor {begun}, after {when:?}"
            );
            images += 1;
        }
    };
    for operation in operations {
        returned = said(operation, "RETURNED ").unwrap_or(returned);
        begun = said(operation, "BEGUN ").unwrap_or(begun);
        if let Operation::Write(path, offset, bytes) = operation {
            for length in 0..bytes.len() {
                let mut torn = disk.clone();
                let part = bytes[..length].to_vec();
                torn.apply(&Operation::Write(path.clone(), *offset, part));
                check(&torn, returned, begun, operation);
            }
        }
        disk.apply(operation);
        check(&disk, returned, begun, operation);
    }
    let sum: u64 = (1..=SAVES).map(|save| pulses(save).0).sum();
    assert_eq!((returned, begun), (sum, sum));
    images
}

#[test]
fn power_that_fails_at_any_write_leaves_one_of_the_last_two_totals() {
    let images = fail_everywhere(&described());
    assert!(images > 1000, "{images}");
    println!("{images} disks opened");
}

#[test]
fn a_register_is_saved_as_it_is_described() {
    let recorded = tempfile::tempdir().unwrap();
    let Some(operations) = power::record(DIRECTORY, recorded.path()) else {
        return;
    };
    let saves = operations
        .into_iter()
        .filter_map(|operation| match operation {
            Operation::Said(line) => {
                let found = ["BEGUN ", "RETURNED "]
                    .iter()
                    .find_map(|what| line.find(what));
                found.map(|at| Operation::Said(line[at..].to_owned()))
            }
            other => Some(other),
        });
    assert_eq!(saves.collect::<Vec<_>>(), described());
}

/// The test can fail: without the sync of the file, or with the generations exchanged too early.
#[test]
fn a_save_without_its_syncs_would_be_noticed() {
    let without = |what: fn(&Operation) -> bool| {
        let mut operations = described();
        operations.retain(|operation| !what(operation));
        std::panic::catch_unwind(|| fail_everywhere(&operations)).is_err()
    };
    assert!(without(|o| matches!(o, Operation::Sync(_))));
    assert!(without(|o| matches!(o, Operation::SyncDirectory)));
}
