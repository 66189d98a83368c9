//! Processes that are killed (SIGKILL) at the worst moments: between a commit and the
//! publication, between the publication and its acknowledgement, and at arbitrary
//! ones. What is on disk, what went over the wire, and what is sent after the restart
//! must agree bit for bit.

mod support;

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dcnet::output::{Input, Output, Record, StateMachine, Store};
use dcnet::time::Now;
use link::{Clock, Connection, Driver, Journal, MeterJournal};
use support::{Client, DEADLINE, Identity, PUBLIC, Testbed, message, until};

/// Set in processes that this test starts from its own executable.
const CHILD: &str = "LINK_CRASH_CHILD";

/// Stores message number 1 and publishes it; goes on to the next number when it sees
/// its own message come back, and to the same message when it is connected anew. The
/// content of a message is drawn at random, so that a second one of the same number
/// would be a different one.
struct Numbers {
    /// The last number and its message.
    last: Option<(u64, Vec<u8>)>,
    outputs: VecDeque<Output<Record, ()>>,
}

impl Numbers {
    fn new(saved: Vec<Record>) -> Self {
        Self {
            last: numbers(saved).pop_last(),
            outputs: VecDeque::new(),
        }
    }

    fn advance(&mut self) {
        let number = self.last.as_ref().map_or(0, |(number, _)| *number) + 1;
        let mut payload = number.to_be_bytes().to_vec();
        for _ in 0..4 {
            payload.extend(getrandom::u64().unwrap().to_be_bytes());
        }
        self.outputs.push_back(Output::Persist(Record {
            store: Store::Net,
            key: number.to_be_bytes().to_vec(),
            value: Some(payload.clone()),
        }));
        self.outputs
            .push_back(Output::Publish(message(payload.clone())));
        self.last = Some((number, payload));
    }
}

impl StateMachine for Numbers {
    type Persist = Record;
    type Event = ();
    type Command = ();

    fn subscriptions(&self) -> Vec<String> {
        vec![PUBLIC.to_owned()]
    }

    fn handle(&mut self, input: Input<()>, _now: Now) {
        match input {
            Input::Connected => match &self.last {
                Some((_, payload)) => {
                    let again = Output::Publish(message(payload.clone()));
                    self.outputs.push_back(again);
                }
                None => self.advance(),
            },
            Input::Received(messages) => {
                for received in messages {
                    if self
                        .last
                        .as_ref()
                        .is_some_and(|(_, p)| *p == received.payload)
                    {
                        self.advance();
                    }
                }
            }
            Input::Disconnected | Input::Tick | Input::Command(()) => {}
        }
    }

    fn poll_output(&mut self) -> Option<Output<Record, ()>> {
        self.outputs.pop_front()
    }
}

fn numbers(records: Vec<Record>) -> BTreeMap<u64, Vec<u8>> {
    let pair = |r: Record| {
        let number = u64::from_be_bytes(r.key.as_slice().try_into().unwrap());
        (number, r.value.unwrap())
    };
    records.into_iter().map(pair).collect()
}

fn open(state: &Path) -> MeterJournal {
    MeterJournal::open(&state.join("net.db"), &state.join("register.db")).unwrap()
}

/// Never returns from a certain commit, after it is durable.
struct Stopping {
    inner: MeterJournal,
    commits: u64,
    stops_at: u64,
}

impl Journal for Stopping {
    type Record = Record;

    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        self.inner.commit(records)?;
        self.commits += 1;
        if self.commits == self.stops_at {
            println!("STOPPED");
            loop {
                std::thread::park();
            }
        }
        Ok(())
    }
}

/// What the processes do that tests here start; not a test by itself.
#[test]
#[ignore = "started by other tests"]
fn child() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    let get = |name: &str| std::env::var(name).unwrap();
    let file = |name: &str| PathBuf::from(get(name));
    let mut connection = Connection::from_pem_files(
        "127.0.0.1",
        get("PORT").parse().unwrap(),
        &file("CA"),
        &file("CERTIFICATE"),
        &file("KEY"),
    )
    .unwrap();
    connection.back_off.min = Duration::from_millis(20);
    let journal = open(&file("STATE"));
    let machine = Numbers::new(journal.load(Store::Net).unwrap());
    let journal = Stopping {
        inner: journal,
        commits: 0,
        stops_at: get("STOPS_AT").parse().unwrap(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let handle = Driver::new(machine, journal, connection)
            .with_clock(Clock::assume_synchronised())
            .start();
        handle.control.join().await.unwrap();
    });
}

struct Process(Child);

impl Process {
    fn start(identity: &Identity, state: &Path, port: u16, stops_at: u64) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--ignored", "--nocapture"])
            .env(CHILD, "1")
            .env("PORT", port.to_string())
            .env("CA", &identity.ca)
            .env("CERTIFICATE", &identity.certificate)
            .env("KEY", &identity.key)
            .env("STATE", state)
            .env("STOPS_AT", stops_at.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for the process to say that it stands between commit and publication.
    async fn stopped(&mut self) {
        let output = self.0.stdout.take().unwrap();
        let said = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.any(|line| line.contains("STOPPED"))
        });
        assert!(tokio::time::timeout(DEADLINE, said).await.unwrap().unwrap());
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that was published, in order.
struct Wire {
    observer: Client,
    marker: Client,
    seen: Vec<(u64, Vec<u8>)>,
}

impl Wire {
    async fn until_number(&mut self, wanted: u64) {
        while self.last() < wanted {
            let payload = self.observer.next().await;
            self.take(payload);
        }
    }

    fn take(&mut self, payload: Vec<u8>) {
        let number = u64::from_be_bytes(payload[..8].try_into().unwrap());
        self.seen.push((number, payload));
    }

    fn last(&self) -> u64 {
        self.seen
            .iter()
            .map(|(number, _)| *number)
            .max()
            .unwrap_or(0)
    }

    /// Takes all that the broker has got by now.
    async fn settle(&mut self) {
        self.marker.publish_status("marker").await;
        loop {
            let payload = self.observer.next().await;
            if payload == b"marker" {
                return;
            }
            self.take(payload);
        }
    }

    /// Nothing was published that was not on disk; so never two messages of one number.
    fn agrees_with(&self, disk: &BTreeMap<u64, Vec<u8>>) {
        for (number, payload) in &self.seen {
            assert_eq!(disk.get(number), Some(payload), "number {number}");
        }
    }
}

struct Scene {
    testbed: Testbed,
    state: PathBuf,
    wire: Wire,
}

async fn scene() -> Scene {
    let testbed = Testbed::start().await;
    let wire = Wire {
        observer: testbed.observer().await,
        marker: testbed.publisher().await,
        seen: Vec::new(),
    };
    Scene {
        state: testbed.authority.path().join("state"),
        testbed,
        wire,
    }
}

impl Scene {
    fn start(&self, stops_at: u64) -> Process {
        self.start_through(self.testbed.port, stops_at)
    }

    fn start_through(&self, port: u16, stops_at: u64) -> Process {
        Process::start(&self.testbed.provider, &self.state, port, stops_at)
    }

    fn disk(&self) -> BTreeMap<u64, Vec<u8>> {
        numbers(open(&self.state).load(Store::Net).unwrap())
    }

    /// Starts again, lets it run for a while, and checks everything.
    async fn goes_on_from(mut self, number: u64, before: &BTreeMap<u64, Vec<u8>>) {
        let process = self.start(0);
        self.wire.until_number(number + 5).await;
        process.kill();
        self.wire.settle().await;
        let disk = self.disk();
        self.wire.agrees_with(&disk);
        for (number, payload) in before {
            assert_eq!(
                disk.get(number),
                Some(payload),
                "nothing on disk was changed"
            );
        }
        let all: Vec<_> = (1..=u64::try_from(disk.len()).unwrap()).collect();
        assert!(disk.keys().eq(&all), "no number is missing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_persist_and_publish() {
    let mut scene = scene().await;
    let mut process = scene.start(3);
    process.stopped().await;
    process.kill();
    scene.wire.settle().await;
    let disk = scene.disk();
    assert!(disk.keys().eq(&[1, 2, 3]), "the third is on disk");
    assert_eq!(scene.wire.last(), 2, "and was not published");
    scene.wire.agrees_with(&disk);

    // The same bytes go out after the restart, once.
    let process = scene.start(1);
    scene.wire.until_number(3).await;
    process.kill();
    scene.wire.settle().await;
    let third: Vec<_> = scene
        .wire
        .seen
        .iter()
        .filter(|(number, _)| *number == 3)
        .collect();
    assert_eq!(third.len(), 1);
    assert_eq!(third[0].1, disk[&3]);
    scene.goes_on_from(4, &disk).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_publish_and_acknowledgement() {
    let mut scene = scene().await;
    let proxy = scene.testbed.proxy().await;
    proxy
        .control
        .withhold_from
        .store(3, std::sync::atomic::Ordering::SeqCst);
    let process = scene.start_through(proxy.port, 0);
    scene.wire.until_number(3).await;
    process.kill();
    proxy.control.cut();
    scene.wire.settle().await;
    let disk = scene.disk();
    assert!(
        disk.keys().eq(&[1, 2, 3]),
        "it did not see its third message come back"
    );
    scene.wire.agrees_with(&disk);
    let count = |wire: &Wire| wire.seen.iter().filter(|(number, _)| *number == 3).count();
    assert_eq!(count(&scene.wire), 1);

    let process = scene.start(0);
    scene.wire.until_number(4).await;
    process.kill();
    scene.wire.settle().await;
    assert_eq!(count(&scene.wire), 2, "the third was published again");
    scene.wire.agrees_with(&scene.disk());
    scene.goes_on_from(last_number(&disk) + 1, &disk).await;
}

fn last_number(disk: &BTreeMap<u64, Vec<u8>>) -> u64 {
    disk.last_key_value().map_or(0, |(number, _)| *number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_arbitrary_moments() {
    let mut scene = scene().await;
    let mut before = BTreeMap::new();
    for turn in 0..8_u64 {
        let process = scene.start(0);
        scene
            .wire
            .until_number(scene.wire.last() + 1 + turn % 3)
            .await;
        // An arbitrary moment; nothing is waited for.
        std::thread::sleep(Duration::from_micros(turn * 731 % 5000));
        process.kill();
        scene.wire.settle().await;
        let disk = scene.disk();
        scene.wire.agrees_with(&disk);
        assert!(
            before
                .iter()
                .all(|(number, payload)| disk.get(number) == Some(payload))
        );
        before = disk;
    }
    let last = last_number(&before);
    scene.goes_on_from(last, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_same_state_does_not_start() {
    let mut scene = scene().await;
    let process = scene.start(0);
    scene.wire.until_number(2).await;
    let mut second = scene.start(0);
    let mut code = None;
    until("the second process ends", || {
        code = second.0.try_wait().unwrap();
        code.is_some()
    })
    .await;
    assert!(!code.unwrap().success());
    let reached = scene.wire.last();
    scene.wire.until_number(reached + 1).await;
    process.kill();
    scene.wire.settle().await;
    scene.wire.agrees_with(&scene.disk());
}
