//! A broker, a provider agent, and households that replay a load file, each in a process of
//! its own: real sockets, real TLS, and sums that are compared with the file.
#![allow(dead_code, reason = "each test uses a part of it")]

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use dcnet::identity::DeviceId;
use dcnet::membership::{Membership, Policy};
use dcnet::output::{Record, Store as MeterStore};
use dcnet::provider::Published;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use gateway_admin::{Authority, Host, KeyPair, LogHead, Terms};
use link::MeterJournal;
use meter_agent::ask::ask;
use meter_agent::clock::utc_timestamp;
use process::Process;
use provider_agent::{Config, Store};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Rows of the load file.
pub const ROWS: u64 = 64;
const COLUMNS: usize = 6;

pub fn period() -> Period {
    Period::from_secs(2).unwrap()
}

/// The round whose interval it is.
pub fn present_round() -> Round {
    period().round_at(utc_timestamp())
}

pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Wh of a household in a row: enough pulses that half an interval differs from a whole one,
/// and no two sets of households with equal sums by accident.
pub fn watt_hours(row: u64, household: usize) -> u64 {
    6 + (row * 7) % 29 + (40 << household)
}

/// The configuration of a household that replays its column of `loads.csv` from `begin` on,
/// with other `channels` before it.
pub fn configuration(port: u16, begin: Timestamp, household: usize, channels: &str) -> String {
    let begin = i64::try_from(begin.as_millis()).unwrap();
    let begin = jiff::Timestamp::from_millisecond(begin).unwrap();
    let column = household + 1;
    format!(
        r#"
        state_directory = "state"
        [broker]
        host = "127.0.0.1"
        port = {port}
        [identity]
        directory = "identity"
        [clock]
        assume_synchronised = true
        [floors]
        minimum_group = 4
        minimum_period = 1
        # On a busy machine a submission may come after its window.
        max_exclusions_per_day = 86400
        max_exclusions_per_month_percent = 100
        [page]
        listen = "127.0.0.1:0"
        {channels}
        [[channel]]
        name = "import"
        impulses_per_kwh = 1000
        [channel.replay]
        file = "../loads.csv"
        column = {column}
        period = 2
        after_last_row = "wrap"
        begin = {begin}
        "#
    )
}

/// A household: its enrolment, its configuration, its process.
pub struct Household {
    index: usize,
    directory: PathBuf,
    process: Option<Process>,
    /// Length of the log at its last start.
    said_before: usize,
}

/// Everything.
pub struct Street {
    directory: TempDir,
    authority: Authority,
    certificate: dcnet::identity::Certificate,
    pub net: NetId,
    port: u16,
    begin: Timestamp,
    households: BTreeMap<DeviceId, Household>,
    config: Config,
    /// The newest round whose sum was looked at.
    newest: Option<Round>,
    provider: Option<Process>,
    _broker: Process,
    /// What the daemons log, as `RUST_LOG` says it.
    logged: Option<&'static str>,
}

impl Street {
    /// A net without members, and a load file.
    pub async fn new() -> Self {
        Self::that_logs(None).await
    }

    /// The same with daemons that log everything that they and their libraries can say.
    pub async fn that_logs_everything() -> Self {
        Self::that_logs(Some("trace")).await
    }

    async fn that_logs(logged: Option<&'static str>) -> Self {
        let directory = directory();
        let path = |name: &str| directory.path().join(name);
        let authority = Authority::init(&path("authority")).unwrap();
        let terms = Terms::default();
        let provider = authority
            .enrol_provider(KeyPair::generate().unwrap(), &terms)
            .unwrap();
        provider.write(&path("provider")).unwrap();
        let hosts = [Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let bundle = authority
            .enrol_broker(KeyPair::generate().unwrap(), &hosts, &terms)
            .unwrap();
        bundle.write(&path("broker")).unwrap();
        let (broker, port) = start_broker(directory.path(), logged).await;
        let mut config = Config::new(path("provider-state"), path("provider"), "127.0.0.1");
        config.broker.port = port;
        config.clock.assume_synchronised = true;
        let policy = Policy {
            period: period(),
            window_ms: 1000,
            minimum_group: 4,
            minimum_neighbours: 3,
            degree: 48,
        };
        provider_agent::store::prepare_directory(&config.state_directory).unwrap();
        let mut store = Store::open_in(&config.state_directory).unwrap();
        let identity = config.identity().unwrap();
        let channels = ["import".to_owned()];
        let net = provider_agent::net::create(&mut store, &identity, "street", policy, &channels)
            .unwrap();

        let header: String = (0..COLUMNS).map(|i| format!(",h{i}")).collect();
        let row = |row| (0..COLUMNS).map(move |i| format!(",{}", watt_hours(row, i)));
        let rows = (0..ROWS).map(|r| format!("{r}{}\n", row(r).collect::<String>()));
        let text = format!("time{header}\n{}", rows.collect::<String>());
        std::fs::write(path("loads.csv"), text).unwrap();
        let mut street = Self {
            certificate: provider.certificate,
            authority,
            net,
            port,
            begin: present_round().start(period()),
            households: BTreeMap::new(),
            config,
            newest: None,
            provider: None,
            _broker: broker,
            logged,
            directory,
        };
        street.start_provider();
        street
    }

    /// Starts the provider's agent.
    pub fn start_provider(&mut self) {
        let Config {
            state_directory,
            identity,
            broker,
            minimum_presence_percent,
            ..
        } = &self.config;
        let text = format!(
            "state_directory = {state_directory:?}
            minimum_presence_percent = {minimum_presence_percent}
            [broker]
            host = {:?}
            port = {}
            [identity]
            directory = {:?}
            [clock]
            assume_synchronised = true
            ",
            broker.host, broker.port, identity.directory
        );
        let config = self.directory.path().join("provider-agent.toml");
        std::fs::write(&config, text).unwrap();
        let program = process::program("provider-agent");
        let command = process::command(&program, &["run"], &config);
        let log = self.provider_log();
        self.provider = Some(Process::start(command, self.logged, &log));
    }

    /// Stops the provider well.
    pub async fn stop_provider(&mut self) {
        self.provider.take().unwrap().stop().await;
    }

    /// What the provider's agent has logged.
    pub fn provider_said(&self) -> String {
        process::said(&self.provider_log())
    }

    /// What the broker has logged.
    pub fn broker_said(&self) -> String {
        process::said(&self.directory.path().join("broker.log"))
    }

    /// The private keys of broker, provider and households, in PEM.
    pub fn private_keys(&self) -> Vec<PathBuf> {
        let office = ["broker", "provider"].map(|name| self.directory.path().join(name));
        let identities = self.households.keys().map(|id| self.identity(id));
        let directories = office.into_iter().chain(identities);
        directories
            .map(|directory| directory.join("key.pem"))
            .collect()
    }

    fn provider_log(&self) -> PathBuf {
        self.directory.path().join("provider.log")
    }

    /// Enrols the next household and starts its agent.
    pub fn join(&mut self) -> DeviceId {
        let id = self.enrol();
        self.start(&id);
        id
    }

    /// Enrols the next household with the head of the log as it is now.
    pub fn enrol(&mut self) -> DeviceId {
        let log = self.log();
        let head = LogHead {
            index: log.head().index,
            hash: log.head().hash,
            members: log.members_at(log.head().index),
        };
        let key = KeyPair::generate().unwrap();
        let bundle = self
            .authority
            .enrol_meter(key, self.net, &self.certificate, head, &Terms::default())
            .unwrap();
        let index = self.households.len();
        assert!(index < COLUMNS);
        let directory = self.directory.path().join(format!("household-{index}"));
        bundle.write(&directory.join("identity")).unwrap();
        let id = bundle.id();
        let household = Household {
            index,
            directory,
            process: None,
            said_before: 0,
        };
        let text = configuration(self.port, self.begin, index, "");
        std::fs::write(household.config(), text).unwrap();
        self.households.insert(id, household);
        id
    }

    /// Who is enrolled.
    pub fn all(&self) -> BTreeSet<DeviceId> {
        self.households.keys().copied().collect()
    }

    pub fn start(&mut self, id: &DeviceId) {
        let household = self.households.get_mut(id).unwrap();
        assert!(household.process.is_none(), "it runs");
        household.said_before = process::said(&household.log()).len();
        let command = household.program(&["run"]);
        household.process = Some(Process::start(command, self.logged, &household.log()));
    }

    /// Kills the process of a household, as a loss of power would.
    pub fn kill(&mut self, id: &DeviceId) {
        self.household_mut(id).process.take().unwrap().kill();
    }

    /// Stops a household's agent as its service manager does.
    pub async fn stop(&mut self, id: &DeviceId) {
        self.household_mut(id).process.take().unwrap().stop().await;
    }

    /// Has a household's agent read again what can change, as its service manager does.
    pub fn reload(&self, id: &DeviceId) {
        self.households[id].process.as_ref().unwrap().reload();
    }

    /// Waits until a household's agent shows a status of which this holds.
    pub async fn until_status(
        &self,
        id: &DeviceId,
        what: &str,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let shown = async {
            loop {
                // It may not serve yet.
                if let Ok(text) = ask(&self.state(id), "/api/status").await {
                    let status: Value = serde_json::from_str(&text).unwrap();
                    if holds(&status) {
                        return status;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(what, shown).await
    }

    /// Waits until a household's agent says that its meter has left.
    pub async fn until_left(&self, id: &DeviceId) -> Value {
        let left = |status: &Value| status["no_link"]["kind"] == "left";
        let status = self.until_status(id, "it has left", left).await;
        assert_eq!(status["exit"]["done"], true, "{status}");
        status
    }

    /// Waits until a household's agent has counted more than at this status, without a restart
    /// since.
    pub async fn until_counted_more(&self, id: &DeviceId, before: &Value) {
        let pulses = |status: &Value| status["channels"][0]["pulses"].as_u64().unwrap();
        let uptime = |status: &Value| status["uptime_s"].as_u64().unwrap();
        let more = |status: &Value| pulses(status) > pulses(before);
        let status = self.until_status(id, "it counts on", more).await;
        assert!(uptime(&status) >= uptime(before), "it was restarted");
    }

    /// Waits until a household's agent ends.
    pub async fn end(&mut self, id: &DeviceId) -> ExitStatus {
        self.household_mut(id).process.take().unwrap().end().await
    }

    /// Starts another command of the program for a household.
    pub fn spawn(&self, id: &DeviceId, arguments: &[&str]) -> Child {
        self.spawn_with_input(id, arguments, Stdio::null())
    }

    /// As [`Self::spawn`], with something to read.
    pub fn spawn_with_input(&self, id: &DeviceId, arguments: &[&str], input: Stdio) -> Child {
        let mut command = self.households[id].program(arguments);
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        piped.stdin(input).spawn().unwrap()
    }

    /// What a household was enrolled with.
    pub fn identity(&self, id: &DeviceId) -> PathBuf {
        self.households[id].directory.join("identity")
    }

    /// The list of revoked devices that a household has.
    pub fn revocation_list(&self, id: &DeviceId) -> PathBuf {
        self.identity(id).join("revoked.cbor")
    }

    /// Has the gateway administrator revoke a device, and gives the list to a household and the
    /// provider, and the statement to the provider.
    pub fn revoke(&self, device: DeviceId, told: &DeviceId) {
        self.authority.revoke(&[device]).unwrap();
        let list = self.authority.revoked_path();
        put(&list, &self.revocation_list(told));
        let provider = &self.config.identity.directory;
        put(&list, &provider.join("revoked.cbor"));
        std::fs::create_dir_all(provider.join("revocations")).unwrap();
        let statement = self.authority.statement_path(device);
        put(&statement, &provider.join("revocations/new.cbor"));
    }

    /// Runs another command of the program for a household to its end.
    pub async fn command(&self, id: &DeviceId, arguments: &[&str]) -> Output {
        let mut command = self.households[id].program(arguments);
        let running = tokio::task::spawn_blocking(move || command.output().unwrap());
        soon("the command ends", running).await.unwrap()
    }

    /// What a household's agent has logged.
    pub fn said(&self, id: &DeviceId) -> String {
        process::said(&self.households[id].log())
    }

    pub async fn until_said(&self, id: &DeviceId, what: &str) {
        let saying = async {
            while !self.said(id).contains(what) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(what, saying).await;
    }

    /// The address of the page that a household's agent serves since its last start.
    pub async fn page(&self, id: &DeviceId) -> SocketAddr {
        let address = async {
            loop {
                let log = self.said(id);
                let said = &log[self.households[id].said_before..];
                let address = said.split_once("the household's page is at http://");
                if let Some((address, _)) = address.and_then(|(_, rest)| rest.split_once('/')) {
                    return address.parse().unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon("the page", address).await
    }

    /// Changes the configuration of a household.
    pub fn configure(&self, id: &DeviceId, from: &str, to: &str) {
        let config = self.households[id].config();
        let text = std::fs::read_to_string(&config).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
    }

    /// What a household consumed in a round, by the load file, in mWh.
    pub fn consumed(&self, id: &DeviceId, round: Round) -> u64 {
        let start = round.start(period());
        let rows = start.since(self.begin).as_millis() / period().duration().as_millis();
        let row = u64::try_from(rows).unwrap() % ROWS;
        watt_hours(row, self.households[id].index) * 1000
    }

    pub fn state(&self, id: &DeviceId) -> PathBuf {
        self.households[id].directory.join("state")
    }

    /// Records of a household's state whose names begin so; its agent must not run.
    pub fn records(&self, id: &DeviceId, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let state = self.state(id);
        let journal = MeterJournal::open(
            &state.join(format!("{}.db", self.net)),
            &state.join("register/ledger.db"),
        )
        .unwrap();
        let named = |record: Record| {
            let name = String::from_utf8(record.key).unwrap();
            name.starts_with(prefix)
                .then_some((name, record.value.unwrap_or_default()))
        };
        let records = journal.load(MeterStore::Net).unwrap();
        records.into_iter().filter_map(named).collect()
    }

    /// The log as the provider has stored it.
    pub fn log(&self) -> Membership {
        let store = Store::open_in(&self.config.state_directory).unwrap();
        provider_agent::net::membership(&store, &self.config.identity().unwrap(), self.net).unwrap()
    }

    /// The provider's key.
    pub fn provider_key(&self) -> dcnet::identity::DeviceKey {
        self.config.identity().unwrap().key
    }

    /// The next sum that the provider has verified, compared with the load file, and who is
    /// in it.
    pub async fn sum(&mut self) -> (Round, BTreeSet<DeviceId>) {
        let store = Store::open_in(&self.config.state_directory).unwrap();
        let published = soon("a sum is verified", async {
            loop {
                match store.newest_aggregate(self.net).unwrap() {
                    Some(published) if Some(published.round) > self.newest => return published,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let published = published.await;
        for line in self.provider_said().lines() {
            let of_interest = !line.contains(" TRACE ") && !line.contains(" DEBUG ");
            let bad = ["ERROR", "alarm", "lost"]
                .iter()
                .any(|bad| line.contains(bad));
            assert!(!(of_interest && bad), "{line}");
        }
        self.newest = Some(published.round);
        (published.round, self.check(&published))
    }

    fn check(&self, published: &Published) -> BTreeSet<DeviceId> {
        let included: BTreeSet<DeviceId> = published.included.iter().copied().collect();
        let of = |id: &DeviceId| self.consumed(id, published.round);
        let truth: u64 = included.iter().map(of).sum();
        let sums: Vec<u64> = published.sums.iter().map(|sum| sum.0).collect();
        assert_eq!(sums, [truth], "round {} of {included:?}", published.round);
        included
    }

    /// Waits for so many sums over exactly these households, of `from` or later.
    pub async fn sums_over(&mut self, wanted: &BTreeSet<DeviceId>, count: usize, from: Round) {
        let mut seen = 0;
        while seen < count {
            let (round, included) = self.sum().await;
            seen += usize::from(round >= from && included == *wanted);
        }
    }

    fn household_mut(&mut self, id: &DeviceId) -> &mut Household {
        self.households.get_mut(id).unwrap()
    }
}

impl Drop for Street {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (id, household) in &self.households {
                let log = process::said(&household.log());
                eprintln!("--- household {} {id}\n{log}", household.index);
            }
            eprintln!("--- provider\n{}", self.provider_said());
        }
    }
}

impl Household {
    fn config(&self) -> PathBuf {
        self.directory.join("meter-agent.toml")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn program(&self, arguments: &[&str]) -> Command {
        process::command(&process::meter_agent(), arguments, &self.config())
    }
}

/// Starts the broker on a port that the system chooses; gives it and the port, once it listens.
async fn start_broker(directory: &Path, logged: Option<&str>) -> (Process, u16) {
    let path = |name: &str| directory.join(name);
    let (ca, certificate) = (path("broker/ca.pem"), path("broker/certificate.pem"));
    let key = path("broker/key.pem");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n"
    );
    std::fs::write(path("broker.toml"), text).unwrap();
    let log = path("broker.log");
    let program = process::program("broker");
    let command = process::command(&program, &[], &path("broker.toml"));
    let broker = Process::start(command, logged, &log);
    let listening = async {
        loop {
            let said = process::said(&log);
            let port = said.lines().find_map(|line| {
                let (_, address) = line.split_once("listening address=127.0.0.1:")?;
                address.split_whitespace().next()?.parse().ok()
            });
            match port {
                Some(port) => return port,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let port = soon("the broker listens", listening).await;
    (broker, port)
}

/// In memory where that is possible: a disk that many journals wait for would be measured too.
fn directory() -> TempDir {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("dcnet-street-");
        builder
    };
    let memory = Path::new("/dev/shm");
    builder()
        .tempdir_in(memory)
        .or_else(|_| builder().tempdir())
        .unwrap()
}

/// Copies a file so that nobody sees a part of it.
pub fn put(from: &Path, to: &Path) {
    let part = to.with_extension("part");
    std::fs::copy(from, &part).unwrap();
    std::fs::rename(part, to).unwrap();
}

/// Copies a directory with its files and subdirectories, and their modes.
pub fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}
