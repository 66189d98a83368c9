//! Real `meter-agent run` processes over real TLS with the project's broker and a provider.

mod street;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dcnet::identity::DeviceId;
use dcnet::membership::{Membership, NewNet, Policy};
use dcnet::meter::{Floors, MeterEvent};
use dcnet::output::Store;
use dcnet::provider::{
    Provider, ProviderCommand, ProviderConfig, ProviderEvent, ProviderRecord, Published, SavedNet,
};
use dcnet::time::{Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::{ImpulsesPerKwh, MilliwattHours};
use gateway_admin::{Authority, Host, KeyPair, LogHead, Terms};
use link::back_off::BackOff;
use link::{Clock, Connection, Driver, Journal, LinkState, MeterJournal};
use meter_agent::agent::{Agent, AgentOptions};
use meter_agent::clock::utc_timestamp;
use meter_agent::config::IdentityFiles;
use meter_agent::pulse::input::{Fault, TotalSource};
use meter_agent::pulse::profile::{Profile, ProfileSource};
use meter_agent::pulse::total::{TotalOptions, Totals};
use meter_agent::pulse::{Channel, NextBatch, PulseError, PulseSource};
use meter_agent::reach::Reach;
use meter_agent::register::{Register, RegisterChannel};
use street::{ROWS, configuration, period, soon, watt_hours};

/// A gateway administrator, a net, and a broker's certificate.
struct Office {
    directory: tempfile::TempDir,
    authority: Authority,
    provider: gateway_admin::Bundle,
    net: NetId,
    head: LogHead,
    genesis: Vec<u8>,
}

impl Office {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::init(&directory.path().join("authority")).unwrap();
        let terms = Terms::default();
        let provider = authority
            .enrol_provider(KeyPair::generate().unwrap(), &terms)
            .unwrap();
        provider.write(&directory.path().join("provider")).unwrap();
        let hosts = [Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let broker = authority
            .enrol_broker(KeyPair::generate().unwrap(), &hosts, &terms)
            .unwrap();
        broker.write(&directory.path().join("broker")).unwrap();
        let policy = Policy {
            period: period(),
            window_ms: 1000,
            minimum_group: 4,
            minimum_neighbours: 3,
            degree: 4,
        };
        let genesis = NewNet {
            name: "test".to_owned(),
            policy,
            channels: vec!["import".to_owned()],
            salt: [7; 16],
        }
        .sign(
            &provider.key().unwrap(),
            &provider.certificate,
            authority.ca(),
            utc_timestamp(),
        );
        let log = Membership::open(&genesis, &provider.certificate, authority.ca()).unwrap();
        Self {
            net: log.net(),
            head: LogHead {
                index: 0,
                hash: log.head().hash,
                members: 0,
            },
            directory,
            authority,
            provider,
            genesis,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Enrols a meter and makes its home: `identity/`, and later `state/`.
    fn enrol(&self, name: &str) -> (DeviceId, PathBuf) {
        let home = self.path().join(name);
        DirBuilder::new().mode(0o700).create(&home).unwrap();
        let bundle = self
            .authority
            .enrol_meter(
                KeyPair::generate().unwrap(),
                self.net,
                &self.provider.certificate,
                self.head,
                &Terms::default(),
            )
            .unwrap();
        bundle.write(&home.join("identity")).unwrap();
        (bundle.id(), home)
    }

    async fn broker(&self) -> (broker::Broker, u16) {
        let files = self.path().join("broker");
        let config = broker::Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            ca: files.join("ca.pem"),
            certificate: files.join("certificate.pem"),
            key: files.join("key.pem"),
            ..broker::Config::default()
        };
        let broker = broker::Broker::start(config).await.unwrap();
        let port = broker.local_addrs()[0].port();
        (broker, port)
    }

    fn provider(&self, port: u16) -> (Watch, Memory) {
        let config = ProviderConfig {
            key: self.provider.key().unwrap(),
            certificate: self.provider.certificate.clone(),
            ca: self.authority.ca().clone(),
            minimum_presence: 80,
            revoked: None,
            successor: None,
            lapse_after: None,
        };
        let saved = SavedNet {
            entries: vec![self.genesis.clone()],
            ..SavedNet::default()
        };
        let machine = Provider::new(config, saved, [3; 32]).unwrap();
        let files = self.path().join("provider");
        let connection = Connection::from_pem_files(
            "127.0.0.1",
            port,
            &files.join("ca.pem"),
            &files.join("certificate.pem"),
            &files.join("key.pem"),
        )
        .unwrap();
        let memory = Memory::default();
        let handle = Driver::new(machine, memory.clone(), connection)
            .with_clock(Clock::assume_synchronised())
            .start();
        (Watch { handle }, memory)
    }
}

/// What the provider persisted.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<ProviderRecord>>>);

impl Journal for Memory {
    type Record = ProviderRecord;

    fn commit(&mut self, records: &[ProviderRecord]) -> anyhow::Result<()> {
        self.0.lock().unwrap().extend_from_slice(records);
        Ok(())
    }
}

impl Memory {
    fn log_entries(&self) -> usize {
        let records = self.0.lock().unwrap();
        let entry = |record: &&ProviderRecord| matches!(record, ProviderRecord::Entry { .. });
        records.iter().filter(entry).count()
    }
}

/// The provider's events.
struct Watch {
    handle: link::Handle<ProviderCommand, ProviderEvent>,
}

impl Watch {
    async fn next(&mut self) -> ProviderEvent {
        let event = soon("the provider tells something", self.handle.events.recv()).await;
        event.expect("the provider has ended")
    }

    /// The next aggregate; everything else is only looked at for alarms.
    async fn aggregate(&mut self) -> Published {
        soon("an aggregate is verified", async {
            loop {
                match self.next().await {
                    ProviderEvent::Aggregated(published) => return published,
                    ProviderEvent::Alarm(alarm) => panic!("the provider's alarm: {alarm}"),
                    ProviderEvent::Lost { round, missing, .. } => {
                        panic!("lost {round}: {missing:?}")
                    }
                    _ => {}
                }
            }
        })
        .await
    }
}

/// Five agents that replay one load file from one moment on.
struct Street {
    port: u16,
    begin: Timestamp,
    homes: BTreeMap<DeviceId, (usize, PathBuf)>,
    agents: BTreeMap<DeviceId, Child>,
}

impl Street {
    fn new(office: &Office, port: u16) -> Self {
        let rows: String = (0..ROWS)
            .map(|row| {
                let cells: Vec<_> = (0..5).map(|i| watt_hours(row, i).to_string()).collect();
                format!("{row},{}\n", cells.join(","))
            })
            .collect();
        std::fs::write(
            office.path().join("loads.csv"),
            format!("time,a,b,c,d,e\n{rows}"),
        )
        .unwrap();
        let begin = period().round_at(utc_timestamp()).start(period());
        let homes = (0..5).map(|i| {
            let (id, home) = office.enrol(&format!("meter-{i}"));
            (id, (i, home))
        });
        Self {
            port,
            begin,
            homes: homes.collect(),
            agents: BTreeMap::new(),
        }
    }

    fn configure(&self, id: &DeviceId) -> PathBuf {
        let (index, home) = &self.homes[id];
        let path = home.join("meter-agent.toml");
        let export = format!(
            r#"
            [[channel]]
            name = "export"
            impulses_per_kwh = 500
            [channel.simulated]
            seed = {index}
            "#
        );
        let text = configuration(self.port, self.begin, *index, &export);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn start(&mut self, id: &DeviceId) {
        let config = self.configure(id);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(id))
            .unwrap();
        self.agents.insert(*id, spawn(&config, log));
    }

    fn log_path(&self, id: &DeviceId) -> PathBuf {
        self.homes[id].1.join("log")
    }

    fn log(&self, id: &DeviceId) -> String {
        std::fs::read_to_string(self.log_path(id)).unwrap()
    }

    fn all(&self) -> BTreeSet<DeviceId> {
        self.homes.keys().copied().collect()
    }

    /// The sum is that of the rows of exactly the included meters; returns who they are.
    fn check(&self, published: &Published) -> BTreeSet<DeviceId> {
        let start = published.round.start(period());
        let row = start.since(self.begin).as_millis() as u64 / 2000 % ROWS;
        let included: BTreeSet<DeviceId> = published.included.iter().copied().collect();
        let truth: u64 = included
            .iter()
            .map(|id| watt_hours(row, self.homes[id].0) * 1000)
            .sum();
        assert_eq!(published.sums.len(), 1, "only the net's channel");
        assert_eq!(
            published.sums[0].0, truth,
            "round {} of {included:?}",
            published.round
        );
        included
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        for (id, agent) in &mut self.agents {
            let _ = agent.kill();
            let _ = agent.wait();
            if std::thread::panicking() {
                let (index, home) = &self.homes[id];
                let log = std::fs::read_to_string(home.join("log")).unwrap_or_default();
                eprintln!("--- meter {index} {id}\n{log}");
            }
        }
    }
}

fn spawn(config: &Path, log: File) -> Child {
    Command::new(env!("CARGO_BIN_EXE_meter-agent"))
        .args(["run", "--config"])
        .arg(config)
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn exit(agent: &mut Child) -> ExitStatus {
    soon("the agent ends", async {
        loop {
            if let Some(status) = agent.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Rounds in which a log says that something was done.
fn rounds(log: &str, what: &str) -> Vec<u64> {
    log.lines()
        .filter_map(|line| line.split_once("round ")?.1.split_once(": "))
        .filter(|(_, text)| text.starts_with(what))
        .map(|(round, _)| round.parse().unwrap())
        .collect()
}

/// Names of the records of a store, without the values.
fn records(home: &Path, net: NetId, prefix: &str) -> Vec<String> {
    let state = home.join("state");
    let journal = MeterJournal::open(
        &state.join(format!("{net}.db")),
        &state.join("register/ledger.db"),
    )
    .unwrap();
    let records = journal.load(Store::Net).unwrap();
    records
        .into_iter()
        .map(|record| String::from_utf8(record.key).unwrap())
        .filter(|key| key.starts_with(prefix))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_processes_sum_their_rows_and_one_may_die_and_come_back() {
    let office = Office::new();
    let (_broker, port) = office.broker().await;
    let (mut provider, memory) = office.provider(port);
    let mut street = Street::new(&office, port);
    let all = street.all();
    for id in &all {
        street.start(id);
    }

    let mut whole = 0;
    while whole < 2 {
        let published = provider.aggregate().await;
        whole += usize::from(street.check(&published) == all);
    }

    // Just after an aggregate no round is under way.
    let victim = *all.first().unwrap();
    let mut agent = street.agents.remove(&victim).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let killed = period().round_at(utc_timestamp());
    let home = street.homes[&victim].1.clone();
    let edges = records(&home, office.net, "edge/");
    assert_eq!(edges.len(), 4);
    let entries = memory.log_entries();
    let mut without = 0;
    while without < 2 {
        let published = provider.aggregate().await;
        let included = street.check(&published);
        if published.round >= killed {
            assert_eq!(included.len(), 4, "round {}", published.round);
            assert!(!included.contains(&victim));
            without += 1;
        }
    }

    // In the middle of an interval, whose pulses so far are lost.
    let lines = street.log(&victim).len();
    let restarted = period().round_at(utc_timestamp());
    street.start(&victim);
    let mut again = 0;
    while again < 2 {
        let published = provider.aggregate().await;
        let included = street.check(&published);
        if included.contains(&victim) {
            assert!(published.round > restarted, "of the interval of the start");
            again += 1;
        }
    }
    let log = street.log(&victim)[lines..].to_owned();
    let submitted = rounds(&log, "submitted");
    assert!(submitted.iter().all(|round| *round > restarted.0), "{log}");
    assert!(!log.contains("the draw is done") && !log.contains("is a member"));
    assert_eq!(memory.log_entries(), entries, "nobody joined or drew again");

    for id in &all {
        let agent = street.agents.get_mut(id).unwrap();
        let pid = agent.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
    }
    let asked = Instant::now();
    for id in &all {
        let mut agent = street.agents.remove(id).unwrap();
        let status = exit(&mut agent).await;
        let log = street.log(id);
        assert!(status.success(), "{log}");
        assert!(log.contains("the register is saved"), "{log}");
        assert!(!log.contains("mWh") && !log.contains("alarm"), "{log}");
    }
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert_eq!(
        records(&home, office.net, "edge/"),
        edges,
        "the same pair keys"
    );
    provider.handle.stop().await.unwrap();
}

fn meter_options(home: &Path, port: u16) -> AgentOptions {
    let files = IdentityFiles {
        directory: home.join("identity"),
    };
    let floors = Floors {
        minimum_group: 4,
        minimum_period: 1,
        ..Floors::default()
    };
    let channels = vec![RegisterChannel {
        name: "import".to_owned(),
        constant: ImpulsesPerKwh::new(1000).unwrap(),
    }];
    let source = ProfileSource::new(Channel(0), Steady, utc_timestamp());
    let mut options = AgentOptions::new(
        &files,
        ("127.0.0.1", port),
        floors,
        home.join("state"),
        channels,
        vec![Box::new(source)],
    );
    options.clock = Clock::assume_synchronised();
    options.back_off = BackOff {
        min: Duration::from_millis(20),
        max: Duration::from_millis(100),
    };
    options
}

/// One pulse per millisecond.
struct Steady;

impl Profile for Steady {
    fn pulses_between(
        &mut self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<dcnet::units::Pulses, PulseError> {
        Ok(dcnet::units::Pulses(until.as_millis() - from.as_millis()))
    }
}

/// A port that nobody listens on.
fn deaf_port() -> u16 {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_stops_soon_without_a_broker_and_starts_again_from_its_state() {
    let office = Office::new();
    let (_, home) = office.enrol("meter");
    let port = deaf_port();
    let mut total = 0;
    for _ in 0..3 {
        let agent = Agent::start(meter_options(&home, port)).await.unwrap();
        let mut reach = agent.control.reach();
        let waits = |reach: &Reach| matches!(reach, Reach::Link(LinkState::Waiting { .. }));
        soon("a connection fails", reach.wait_for(waits))
            .await
            .unwrap();
        let second = Agent::start(meter_options(&home, port)).await;
        let error = format!("{:#}", second.unwrap_err());
        assert!(error.contains("in use by another process"), "{error}");
        let asked = Instant::now();
        agent.stop().await.unwrap();
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
        let channels = meter_options(&home, port).channels;
        let register = Register::open(&home.join("state/register"), channels).unwrap();
        assert!(register.totals()[0].0 >= total, "never less than before");
        total = register.totals()[0].0;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_knows_the_rounds_before_it_reaches_the_broker() {
    let office = Office::new();
    let (_, home) = office.enrol("meter");
    let (broker, port) = office.broker().await;
    let (provider, _) = office.provider(port);
    let mut agent = Agent::start(meter_options(&home, port)).await.unwrap();
    soon("the net is known", async {
        while !matches!(agent.events.recv().await.unwrap(), MeterEvent::Joined) {}
    })
    .await;
    agent.stop().await.unwrap();
    provider.handle.stop().await.unwrap();
    broker.stop().await;

    let started = period().round_at(utc_timestamp());
    let mut agent = Agent::start(meter_options(&home, port)).await.unwrap();
    let round = soon("a round begins and ends", async {
        loop {
            if let MeterEvent::Silent { round, .. } = agent.events.recv().await.unwrap() {
                return round;
            }
        }
    })
    .await;
    assert!(
        round > Round(started.0),
        "the interval of the start is left out"
    );
    assert!(agent.control.totals().boundaries >= 2);
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boundary_that_passed_before_the_clock_was_synchronised_opens_a_round() {
    let office = Office::new();
    let (_, home) = office.enrol("meter");
    let (broker, port) = office.broker().await;
    let (provider, _) = office.provider(port);
    let mut agent = Agent::start(meter_options(&home, port)).await.unwrap();
    soon("the net is known", async {
        while !matches!(agent.events.recv().await.unwrap(), MeterEvent::Joined) {}
    })
    .await;
    agent.stop().await.unwrap();
    provider.handle.stop().await.unwrap();
    broker.stop().await;

    let synchronised = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&synchronised);
    let mut options = meter_options(&home, port);
    options.clock = Clock::with(move || flag.load(Ordering::Relaxed));
    let mut agent = Agent::start(options).await.unwrap();
    let boundary = period().round_at(utc_timestamp()).end(period());
    let mut counted = agent.control.counted();
    // One pulse per millisecond, so that this is told often.
    let passed = counted.wait_for(|_| utc_timestamp() >= boundary.plus(Duration::from_millis(300)));
    soon("a boundary passes", passed).await.unwrap();
    assert_eq!(agent.control.totals().boundaries, 0);
    let opened = period().round_at(utc_timestamp());
    synchronised.store(true, Ordering::Relaxed);
    let round = soon("the round ends", async {
        loop {
            if let MeterEvent::Silent { round, .. } = agent.events.recv().await.unwrap()
                && round >= opened
            {
                return round;
            }
        }
    })
    .await;
    assert_eq!(
        round, opened,
        "which began before the clock was synchronised"
    );
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_sees_what_comes_from_a_device() {
    let office = Office::new();
    let (_, home) = office.enrol("meter");
    let mut options = meter_options(&home, deaf_port());
    let constant = options.channels[0].constant;
    let totals = Totals::new(Channel(0), constant, TotalOptions::default());
    let (source, readings) = TotalSource::new("a device", "is it there?", totals);
    options.sources = vec![Box::new(source)];
    let agent = Agent::start(options).await.unwrap();
    assert_eq!(agent.control.lines().len(), 1);
    assert!(agent.control.lines()[0].is_none());
    let mut input = agent.control.inputs()[0].clone().unwrap();
    readings.fault(&Fault::new("no telegram", "noise"));
    readings.reading(MilliwattHours(5000));
    soon("a total is refused", async {
        // One that comes within a millisecond of that before is left out.
        while input.borrow_and_update().fault("total went back") == 0 {
            readings.reading(MilliwattHours(4000));
            let _ = tokio::time::timeout(Duration::from_millis(10), input.changed()).await;
        }
    })
    .await;
    assert!(input.borrow().readings >= 2);
    assert_eq!(input.borrow().fault("no telegram"), 1);
    agent.stop().await.unwrap();
}

/// Counts nothing, and fails.
struct Broken;

impl PulseSource for Broken {
    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            Err(PulseError::Gpio {
                line: "GPIO17".to_owned(),
                problem: "unplugged".to_owned(),
                advice: "Plug it in",
            })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_count_ends_with_the_cause() {
    let office = Office::new();
    let (_, home) = office.enrol("meter");
    let mut options = meter_options(&home, deaf_port());
    options.sources = vec![Box::new(Broken)];
    let mut agent = Agent::start(options).await.unwrap();
    let end = soon("the agent ends", agent.control.ended()).await;
    let error = format!("{:#}", end.unwrap_err());
    assert!(error.contains("unplugged"), "{error}");
    agent.stop().await.unwrap();
    // Nothing is left that holds the state.
    let again = Agent::start(meter_options(&home, deaf_port())).await;
    again.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_cannot_start_says_why_and_exits_with_1() {
    let office = Office::new();
    let mut street = Street::new(&office, deaf_port());
    let id = *street.all().first().unwrap();
    let home = street.homes[&id].1.clone();
    std::fs::create_dir(home.join("state")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home.join("state"), mode).unwrap();
    street.start(&id);
    let status = exit(street.agents.get_mut(&id).unwrap()).await;
    let log = street.log(&id);
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("state") && log.contains("chmod 700"), "{log}");
}
