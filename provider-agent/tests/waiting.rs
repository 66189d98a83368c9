//! The daemon while its database cannot be written, with real meters, broker and sockets.

mod world;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use dcnet::time::{Period, Round};
use dcnet::topic::NetId;
use provider_agent::utc;
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use world::sockets::{ENERGY, METERS, PERIOD_MS, start_broker, start_meter};
use world::{DEADLINE, World, policy, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_provider-agent");

/// The daemon as a process, its log and what it tells its service manager; it is killed when
/// this is dropped.
struct Daemon {
    process: Child,
    log: Receiver<String>,
    manager: UnixDatagram,
}

impl Daemon {
    fn start(world: &World) -> Self {
        let address = world.path("notify");
        let _ = std::fs::remove_file(&address);
        let manager = UnixDatagram::bind(&address).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        // A limit on the size of files shall be an error, not the end.
        let mut process = Command::new("env")
            .args(["--ignore-signal=XFSZ", PROGRAM, "run", "--config"])
            .arg(world.config_file())
            .env("NOTIFY_SOCKET", &address)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                println!("{line}");
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            process,
            log,
            manager,
        }
    }

    /// Waits for a line of the log; gives it.
    fn logged(&self, what: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("not in the log: {what}"));
            if line.contains(what) {
                return line;
            }
        }
    }

    /// Waits until the service manager is told something.
    fn status(&self, what: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = self.manager.recv(&mut buffer).expect("told in time");
            if String::from_utf8_lossy(&buffer[..length]).contains(what) {
                return;
            }
        }
    }

    /// Of all lines so far, those that tell of the wait.
    fn complaints(&self) -> usize {
        let lines = self.log.try_iter();
        lines.filter(|line| line.contains("ERROR")).count()
    }

    fn stop(&mut self) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args(["-TERM", &id]).status();
        assert!(status.unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A street whose provider is a process of its own.
struct Street {
    // The meters stop with the runtime.
    _runtime: Runtime,
    _meters: Vec<JoinHandle<()>>,
    world: World,
    net: NetId,
    daemon: Daemon,
}

impl Street {
    /// One in which rounds have sums.
    fn start() -> Self {
        Self::start_in(World::new())
    }

    fn start_in(mut world: World) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        let broker = runtime.block_on(start_broker(&world));
        let port = broker.local_addrs()[0].port();
        world.config.broker.port = port;
        let net = world.create_net(policy(2, 800, 4), &["import"]);
        let daemon = Daemon::start(&world);
        let meters = {
            let _inside = runtime.enter();
            (0..METERS)
                .map(|number| start_meter(&world, net, number, port, PERIOD_MS))
                .collect()
        };
        let street = Self {
            _runtime: runtime,
            _meters: meters,
            world,
            net,
            daemon,
        };
        // The broker lives as long as the process.
        std::mem::forget(broker);
        street.wait_for_a_sum_after(Round(0));
        street
    }

    fn newest_sum(&self) -> Round {
        let newest = self.world.store().newest_aggregate(self.net).unwrap();
        newest.map_or(Round(0), |sum| sum.round)
    }

    fn wait_for_a_sum_after(&self, round: Round) {
        until("a later sum", || {
            std::thread::sleep(Duration::from_millis(50));
            self.newest_sum() > round
        });
    }

    /// Limits the size of files that the daemon may write, or lifts the limit.
    fn limit_files(&self, limit: &str) {
        let status = Command::new("prlimit")
            .args(["--pid", &self.daemon.process.id().to_string()])
            .arg(format!("--fsize={limit}:unlimited"))
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Stops the daemon; what it leaves is whole.
    fn stop(mut self) {
        self.daemon.stop();
        self.world.store().check().unwrap();
    }
}

/// The round of this moment.
fn round_now() -> Round {
    Period::from_secs(2).unwrap().round_at(utc::now())
}

#[test]
fn rounds_go_on_once_a_disk_takes_something_again() {
    let street = Street::start();
    street.limit_files("1");
    let line = street.daemon.logged("waiting for the journal");
    assert!(
        line.contains("provider.sqlite cannot be used") && line.contains("rounds go on after it"),
        "{line}"
    );
    street.daemon.status("STATUS=no rounds: the disk of");
    let before = street.newest_sum();
    let now = round_now();
    until("four rounds without any", || {
        std::thread::sleep(Duration::from_millis(50));
        round_now().0 > now.0 + 4
    });
    assert_eq!(street.daemon.complaints(), 0);
    assert_eq!(street.newest_sum(), before, "nothing is stored");
    street.limit_files("unlimited");
    street.daemon.logged("the journal is open again");
    street.daemon.status("STATUS=connected");
    street.wait_for_a_sum_after(now);
    street.stop();
}

/// A file system of its own for the state of a world, unmounted when it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` if this process may not mount one.
    fn mount(world: &World) -> Option<Self> {
        let path = world.config.state_directory.clone();
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "none"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(path))
    }

    /// Leaves no room, whoever else writes there.
    fn fill(&self) {
        let mut filler = File::create(self.0.join("filler")).unwrap();
        while filler.write_all(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may be dying.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn rounds_go_on_once_a_full_disk_has_room() {
    let world = World::new();
    let Some(disk) = SmallDisk::mount(&world) else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    let street = Street::start_in(world);
    disk.fill();
    let line = street.daemon.logged("waiting for the journal");
    assert!(
        line.contains("is full; make room there") && line.contains("rounds go on after it"),
        "{line}"
    );
    street.daemon.status("STATUS=no rounds: the disk of");
    let before = street.newest_sum();
    let now = round_now();
    until("three rounds without any", || {
        std::thread::sleep(Duration::from_millis(50));
        round_now().0 > now.0 + 3
    });
    assert_eq!(street.daemon.complaints(), 0, "all was said once");
    disk.empty();
    street.daemon.logged("the journal is open again");
    street.daemon.status("STATUS=connected");
    street.wait_for_a_sum_after(before);
    street.stop();
}

#[test]
fn a_full_disk_is_waited_for_before_the_start_too() {
    let mut world = World::new();
    world.config.broker.port = 1;
    let Some(disk) = SmallDisk::mount(&world) else {
        eprintln!("skipped: this process may not mount a tmpfs");
        return;
    };
    world.create_net(policy(2, 800, 4), &["import"]);
    disk.fill();
    let mut daemon = Daemon::start(&world);
    let line = daemon.logged("the agent starts then");
    assert!(line.contains("the disk of"), "{line}");
    daemon.status("STATUS=not started: the disk of");
    disk.empty();
    daemon.logged("the database can be written");
    daemon.logged("starting");
    assert_eq!(daemon.complaints(), 0);
    disk.fill();
    daemon.stop();
    let mut stopped = Daemon::start(&world);
    stopped.logged("the agent starts then");
    stopped.stop();
}

#[test]
fn rounds_go_on_once_another_process_lets_go_of_the_database() {
    let street = Street::start();
    let other = Connection::open(street.world.config.store_path()).unwrap();
    other.busy_timeout(Duration::from_secs(30)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let line = street.daemon.logged("waiting for the journal");
    assert!(
        line.contains("another process holds") && line.contains("fuser"),
        "{line}"
    );
    street
        .daemon
        .status("STATUS=no rounds: another process holds");
    let before = street.newest_sum();
    other.execute_batch("ROLLBACK").unwrap();
    street.daemon.logged("the journal is open again");
    street.wait_for_a_sum_after(before);
    street.stop();
}

#[test]
fn a_slow_disk_is_told_and_rounds_go_on_once_it_is_quick() {
    let street = Street::start();
    let path = street.world.config.store_path();
    let (quick, wait) = channel::<()>();
    // A writer that waits for another one cannot tell it from a disk that is slow.
    let slow = std::thread::spawn(move || {
        let other = Connection::open(path).unwrap();
        other.busy_timeout(Duration::from_secs(30)).unwrap();
        while wait.recv_timeout(Duration::from_millis(400)) == Err(RecvTimeoutError::Timeout) {
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            std::thread::sleep(Duration::from_secs(2));
            other.execute_batch("ROLLBACK").unwrap();
        }
    });
    let line = street.daemon.logged("is slow");
    assert!(
        line.contains("provider.sqlite") && line.contains("nothing is lost"),
        "{line}"
    );
    street
        .daemon
        .status("STATUS=slow disk: the newest write took");
    drop(quick);
    slow.join().unwrap();
    let now = round_now();
    street.daemon.logged("is quick again");
    street.daemon.status("STATUS=connected");
    street.wait_for_a_sum_after(now);
    assert_eq!(street.daemon.complaints(), 0);
    let all: u64 = (1..=METERS).map(|number| number * ENERGY).sum();
    let mut whole = 0;
    let store = street.world.store();
    let check = |round: provider_agent::store::RoundRow| {
        if u64::from(round.included) == METERS && !round.sums.is_empty() {
            assert_eq!(round.sums[0].0, all, "round {}", round.round);
            whole += 1;
        }
        Ok(())
    };
    store
        .for_each_round(street.net, Round(0), Round(u64::MAX), check)
        .unwrap();
    assert!(whole > 0);
    street.stop();
}

#[test]
fn a_roster_that_this_agent_did_not_issue_ends_it() {
    let mut street = Street::start();
    let other = Connection::open(street.world.config.store_path()).unwrap();
    other.busy_timeout(Duration::from_secs(30)).unwrap();
    let newest = street.newest_sum();
    // The next round may have its roster already.
    other
        .execute(
            "WITH RECURSIVE later (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM later WHERE n < 60) \
             INSERT OR IGNORE INTO rosters (net_id, round, hash, members, included, frame, stored_ms) \
             SELECT 1, ?1 + n, randomblob(32), 1, 1, x'00', 0 FROM later",
            [i64::try_from(newest.0).unwrap()],
        )
        .unwrap();
    let line = street.daemon.logged("a round has only one, ever");
    assert!(!line.is_empty());
    assert_eq!(street.daemon.process.wait().unwrap().code(), Some(1));
}
