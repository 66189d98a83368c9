//! The register of a process that is killed. In a file of its own: while a process is being
//! spawned it holds copies of every lock of the one that spawns it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dcnet::time::Timestamp;
use dcnet::units::{ImpulsesPerKwh, Pulses};
use link::Clock;
use meter_agent::clock::Moment;
use meter_agent::pulse::{Batch, Channel};
use meter_agent::register::{Register, RegisterChannel};

fn open(directory: &Path) -> Register {
    let channel = RegisterChannel {
        name: "import".to_owned(),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
    };
    Register::open(directory, vec![channel]).unwrap()
}

const WRITER: &str = "METER_AGENT_TEST_REGISTER";

/// Not a test of its own: the process that the next test kills.
#[test]
fn writer() {
    let Some(directory) = std::env::var_os(WRITER) else {
        return;
    };
    let mut register = open(Path::new(&directory));
    loop {
        let (utc, monotonic) = (
            Timestamp(0)..Timestamp(1000),
            Duration::ZERO..Duration::ZERO,
        );
        let batch = Batch::new(Channel(0), utc, monotonic, Pulses(1)).unwrap();
        let now = Moment::now(&Clock::assume_synchronised());
        register.record(&batch, &now).unwrap();
        register.save().unwrap();
        println!("saved {}", register.totals()[0].0);
    }
}

#[test]
fn kill_9_never_loses_an_acknowledged_total() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=20 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture"])
            .env(WRITER, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // Kill it in the middle of its work, at a different point of it each time.
        for line in lines.by_ref().take(10 + round) {
            acknowledged = saved(&line.unwrap()).unwrap_or(acknowledged);
        }
        process.kill().unwrap();
        for line in lines {
            acknowledged = saved(&line.unwrap()).unwrap_or(acknowledged);
        }
        process.wait().unwrap();
        let total = open(directory.path()).totals()[0].0;
        assert!(total >= acknowledged, "{total} after {acknowledged}");
        assert!(total <= acknowledged + 1, "{total} after {acknowledged}");
        acknowledged = total;
    }
    assert!(acknowledged > 100);
}

/// The total in a line of the writer; a line that the kill cut off has no digits it could mislead with.
fn saved(line: &str) -> Option<u64> {
    line.split("saved ").nth(1)?.parse().ok()
}
