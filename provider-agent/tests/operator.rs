//! What the operator's commands say of a net with real meters and rounds.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use dcnet::meter::MeterCommand;
use dcnet::output::Input;
use dcnet::time::{Period, Round};
use dcnet::topic::Public;
use link::Journal;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use provider_agent::{Agent, Store, utc};
use serde_json::Value;
use world::network::{Network, PERIOD};
use world::{DEADLINE, World, aggregate, policy, roster, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_provider-agent");

fn run(config: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(config: &Path, arguments: &[&str]) -> String {
    let output = run(config, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(config: &Path, arguments: &[&str]) -> Value {
    let text = text(config, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap()
}

fn error(config: &Path, arguments: &[&str]) -> String {
    let output = run(config, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The daemon, without a broker; killed when it is dropped.
struct Daemon {
    child: Child,
    log: Receiver<String>,
}

impl Daemon {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(config)
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            stderr
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| lines.send(line))
        });
        Self { child, log }
    }

    /// Waits for a line of its log.
    fn says(&self, what: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("not in the log: {what}"));
            if line.contains(what) {
                return;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Five meters after some rounds, of which the first has left.
fn street() -> (Network, PathBuf, String) {
    let mut network = Network::new(5);
    network.run_until(3 * PERIOD);
    network.input_meter(0, Input::Command(MeterCommand::Leave));
    network.run_until(5 * PERIOD);
    // Nobody listens there.
    network.world.config.broker.port = 1;
    let config = network.world.config_file();
    let net = network.net.to_string();
    (network, config, net)
}

#[test]
fn meters_are_shown_with_their_state_rounds_and_edges() {
    let (network, config, net) = street();
    let left = network.meters[0].id().to_string();
    let meters = json(&config, &["meter", "list", &net]);
    assert_eq!(meters.as_array().unwrap().len(), 5);
    let log = network.world.membership(network.net);
    for meter in meters.as_array().unwrap() {
        let id = meter["meter"].as_str().unwrap();
        let state = if id == left { "left" } else { "active" };
        assert_eq!(meter["state"], state, "{id}");
        let last = Round(meter["last_round"].as_u64().unwrap());
        let on_it = network.store.included_in(network.net, last).unwrap();
        assert!(on_it.iter().any(|other| other.to_string() == id));
        let edges = if id == left { 0 } else { 3 };
        assert_eq!(meter["edges"], edges, "{id}");
        assert!(meter["since"].as_str().unwrap().ends_with('Z'));
        let index = log.index_of(&id.parse_id()).unwrap();
        assert_eq!(meter["joined_entry"], log.member(index).unwrap().joined);
        let shown = json(&config, &["meter", "show", &net, id]);
        assert_eq!(shown, *meter);
    }
    let human = text(&config, &["meter", "list", &net]);
    let line = human.lines().find(|line| line.starts_with(&left)).unwrap();
    assert!(line.contains("left") && line.contains("0 edges"), "{line}");
    let human = text(&config, &["meter", "show", &net, &left]);
    assert!(human.contains("state               left"), "{human}");
    let unknown = error(&config, &["meter", "show", &net, &"0".repeat(32)]);
    assert!(unknown.contains("meter list"), "{unknown}");
    let wrong = run(&config, &["meter", "show", &net, "elm"]);
    assert_eq!(wrong.status.code(), Some(2));
}

trait ParseId {
    fn parse_id(&self) -> dcnet::identity::DeviceId;
}

impl ParseId for str {
    fn parse_id(&self) -> dcnet::identity::DeviceId {
        let mut id = [0; 16];
        hex::decode_to_slice(self, &mut id).unwrap();
        dcnet::identity::DeviceId(id)
    }
}

#[test]
fn expel_lapsed_says_who_can_do_what() {
    let world = World::new();
    let config = world.config_file();
    // Six meters join; the log of this net marks one of them.
    let net = world.create_net(policy(60, 20_000, 4), &["import"]);
    let nobody = text(&config, &["meter", "expel-lapsed", &net.to_string()]);
    assert!(
        nobody.contains("A provider cannot") && nobody.contains("nobody to expel"),
        "{nobody}"
    );
    let absent = json(&config, &["meter", "expel-lapsed", &net.to_string()]);
    assert_eq!(absent["lapsed"], serde_json::json!([]));
    assert_eq!(absent["revoke"], Value::Null);

    let lapsed = lapse_one(&world, net);
    let absent = json(&config, &["meter", "expel-lapsed", &net.to_string()]);
    assert_eq!(absent["lapsed"][0]["meter"], lapsed);
    assert_eq!(absent["lapsed"][0]["state"], "lapsed");
    assert_eq!(absent["revoke"], format!("gateway-admin revoke {lapsed}"));
    let human = text(&config, &["meter", "expel-lapsed", &net.to_string()]);
    assert!(
        human.contains(&format!("gateway-admin revoke {lapsed}")),
        "{human}"
    );
}

/// Lets five meters join and lie silent until the provider marks one of them.
fn lapse_one(world: &World, net: dcnet::topic::NetId) -> String {
    use dcnet::output::{Output, Received, StateMachine};
    use dcnet::time::{Now, Timestamp};
    use dcnet::topic::{Topic, Up};

    let mut store = world.store();
    let day = Duration::from_secs(86_400);
    let provider_config = world.identity().provider_config(80, Some(day));
    let saved = store.load(net).unwrap();
    let mut provider = dcnet::provider::Provider::new(provider_config, saved, [1; 32]).unwrap();
    let start = utc::now().as_millis();
    let now = |seconds: u64| Now {
        monotonic: Duration::from_secs(seconds),
        utc: Timestamp(start + seconds * 1000),
        synchronised: true,
    };
    let mut records = Vec::new();
    let mut handle = |input, at| {
        provider.handle(input, at);
        while let Some(output) = provider.poll_output() {
            if let Output::Persist(record) = output {
                records.push(provider_agent::store::NetRecord { net, record });
            }
        }
    };
    for number in 0..5 {
        let meter = world.meter(net, &format!("meter-{number}"), 4);
        let payload =
            dcnet::membership::sign_registration(&meter.key, &meter.certificate, net, now(0).utc);
        let topic = Topic::Up {
            net,
            meter: meter.key.id(),
            kind: Up::Register,
        };
        handle(Input::Received(vec![Received { topic, payload }]), now(0));
    }
    handle(Input::Tick, now(2 * 86_400));
    store.commit(&records).unwrap();
    let log = world.membership(net);
    let lapsed: Vec<_> = log.members().iter().filter(|m| m.is_lapsed()).collect();
    assert_eq!(lapsed.len(), 1, "a fifth");
    lapsed[0].id.to_string()
}

#[test]
fn a_lost_round_is_shown_with_who_owed_a_reveal() {
    let (mut network, config, net) = street();
    network.mute_reveals = true;
    network.run_until(5 * PERIOD + PERIOD / 2);
    let round = network.live.rounds(network.net)[0].round.to_string();
    let pending = json(&config, &["round", "show", &net, &round]);
    assert_eq!(pending["status"], "pending");
    assert_eq!(pending["missing"], serde_json::json!([]));
    let all = pending["included"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    // A day without rounds passes.
    network.now += 24 * 60 * PERIOD;
    network.run_until(network.now + PERIOD / 4);
    let lost = json(&config, &["round", "show", &net, &round]);
    assert_eq!(lost["status"], "lost");
    assert_eq!(lost["missing"].as_array(), Some(all));
    let human = text(&config, &["round", "show", &net, &round]);
    let (_, silent) = human.split_once("reveal missing: 4\n").unwrap();
    assert!(silent.contains(all[3].as_str().unwrap()), "{human}");
}

#[test]
fn a_round_is_shown_as_it_verifies() {
    let (network, config, net) = street();
    let first = &network.aggregates[0];
    let round = first.round.to_string();
    let shown = json(&config, &["round", "show", &net, &round]);
    let sum = network.true_sum(first);
    assert_eq!(shown["status"], "final");
    assert_eq!(shown["sum_mwh"]["import"], sum);
    assert_eq!(shown["sum_kwh"]["import"], sum as f64 / 1e6);
    assert_eq!(
        shown["mean_power_w"]["import"],
        (sum as f64 * 60.0).round() / 1000.0
    );
    assert_eq!(
        shown["verified"],
        serde_json::json!({"roster": true, "aggregate": true, "commitments": true})
    );
    let ids = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|id| id.as_str().unwrap().to_owned()).collect()
    };
    let included = first.included.iter().map(ToString::to_string).collect();
    assert_eq!(ids(&shown["included"]), included);
    assert_eq!(shown["absent"], serde_json::json!([]));
    let human = text(&config, &["round", "show", &net, &round]);
    assert!(human.contains("kWh, mean power"), "{human}");
    let missing = error(&config, &["round", "show", &net, "1"]);
    assert!(missing.contains("has no roster"), "{missing}");

    // A sum that is not the signed one is not shown as if it were.
    let database = rusqlite::Connection::open(network.store.path()).unwrap();
    database
        .execute("UPDATE sums SET mwh = mwh + 1", [])
        .unwrap();
    let forged = error(&config, &["round", "show", &net, &round]);
    assert!(forged.contains("other sums"), "{forged}");
    database
        .execute("UPDATE sums SET mwh = mwh - 1", [])
        .unwrap();
    let swapped = "UPDATE submissions SET commitments = \
                   (SELECT commitments FROM submissions ORDER BY roster_id DESC, place LIMIT 1)";
    database.execute(swapped, []).unwrap();
    let forged = error(&config, &["round", "show", &net, &round]);
    assert!(forged.contains("does not open"), "{forged}");
}

#[test]
fn a_net_is_closed_only_on_purpose() {
    let mut world = World::new();
    world.config.broker.port = 1;
    let config = world.config_file();
    let net = world
        .create_net(policy(900, 60_000, 30), &["import"])
        .to_string();
    let daemon = Daemon::start(&config);
    daemon.says("starting");
    let asked = error(&config, &["net", "close", &net]);
    assert!(asked.contains("--yes"), "{asked}");
    assert_eq!(json(&config, &["net", "show", &net])["closed"], Value::Null);
    let closed = json(&config, &["net", "close", &net, "--yes"]);
    assert!(closed["closed"].as_str().unwrap().ends_with('Z'));
    assert!(text(&config, &["net", "list"]).contains("closed"));
    assert!(text(&config, &["net", "show", &net]).contains("closed"));
    // What runs meanwhile takes it up.
    daemon.says("opens no round");
    daemon.says("starting");
    let again = error(&config, &["net", "close", &net, "--yes"]);
    assert!(again.contains("already"), "{again}");
    assert!(text(&config, &["export", "--net", &net]).starts_with("round,"));
}

#[test]
fn a_backup_is_whole_private_and_restored_only_when_that_is_safe() {
    let (network, config, net) = street();
    let file = network.world.path("backup.sqlite");
    let to = file.to_str().unwrap();
    let report = json(&config, &["backup", to]);
    assert_eq!(report["nets"], 1);
    assert_eq!(report["bytes"], fs::metadata(&file).unwrap().len());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(!network.world.path("backup.sqlite-wal").exists());
    let again = error(&config, &["backup", to]);
    assert!(again.contains("never overwrite"), "{again}");

    let exported = text(&config, &["export", "--net", &net]);
    let there = error(&config, &["restore", to]);
    assert!(there.contains("--replace"), "{there}");
    let running = Agent::open(&network.world.config).unwrap();
    let refused = error(&config, &["restore", "--replace", to]);
    assert!(refused.contains("another provider-agent"), "{refused}");
    drop(running);

    let report = json(&config, &["restore", "--replace", to]);
    let former = Path::new(report["former"].as_str().unwrap()).to_owned();
    assert!(Store::open(&former).unwrap().net(network.net).is_ok());
    assert_eq!(text(&config, &["export", "--net", &net]), exported);
    let shown = json(&config, &["net", "show", &net]);
    assert_eq!(shown["resume"], report["resume"]);
    let resume = utc::parse(shown["resume"].as_str().unwrap()).unwrap();
    assert!(resume > utc::now().minus(Duration::from_secs(600)));
    let mode = fs::metadata(network.world.config.store_path()).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    // As somebody does whose disk is gone, and who stopped the agent to move it.
    fs::remove_file(network.world.config.store_path()).unwrap();
    let report = json(&config, &["restore", "--newest", to]);
    assert_eq!(report.get("former"), None);
    assert_eq!(json(&config, &["net", "show", &net])["resume"], Value::Null);
}

#[test]
fn what_a_restored_database_lacks_is_named() {
    let (mut network, config, net) = street();
    let file = network.world.path("backup.sqlite");
    let file = file.to_str().unwrap();
    text(&config, &["backup", file]);
    network.run_until(7 * PERIOD);
    let sum = network.public(Public::AggregateCbor).pop().unwrap();
    let published = network.world.path("aggregate.cbor");
    fs::write(&published, &sum.payload).unwrap();
    let published = published.to_str().unwrap();
    let compare = ["net", "compare", &net, published];
    assert!(text(&config, &compare).contains("holds all"));
    text(&config, &["restore", "--replace", file]);
    let missing = text(&config, &compare);
    assert!(
        missing.contains("missing: the roster") && missing.contains("net close"),
        "{missing}"
    );
    let json = json(&config, &compare);
    assert_eq!(
        (&json["has_roster"], &json["has_log_head"]),
        (&false.into(), &true.into())
    );
    let absent = error(&config, &["net", "compare", &net, "absent.cbor"]);
    assert!(absent.contains("absent.cbor"), "{absent}");
}

#[test]
fn a_daemon_knows_that_its_state_was_restored() {
    let mut world = World::new();
    world.config.broker.port = 1;
    let config = world.config_file();
    world.create_net(policy(900, 60_000, 30), &["import"]);
    let file = world.path("backup.sqlite");
    let file = file.to_str().unwrap();
    text(&config, &["backup", file]);
    text(&config, &["restore", "--replace", file]);
    Daemon::start(&config).says("the net was restored from a backup");
}

#[test]
fn what_is_no_backup_of_this_provider_is_not_restored() {
    let (network, config, _) = street();
    let world = &network.world;
    let file = |name: &str| world.path(name).to_str().unwrap().to_owned();
    text(&config, &["backup", &file("good.sqlite")]);
    let good = fs::read(file("good.sqlite")).unwrap();
    let before = fs::read_dir(&world.config.state_directory).unwrap().count();

    let other = World::new();
    other.create_net(policy(900, 60_000, 30), &["import"]);
    let foreign = file("foreign.sqlite");
    text(&other.config_file(), &["backup", &foreign]);
    fs::write(file("cut.sqlite"), &good[..good.len() / 2]).unwrap();
    let mut flipped = good.clone();
    let middle = good.len() / 2;
    flipped[middle..middle + 2000].fill(0x5a);
    fs::write(file("flipped.sqlite"), flipped).unwrap();
    fs::write(
        file("text.sqlite"),
        "not a database at all, however long it is\n".repeat(99),
    )
    .unwrap();
    fs::write(file("empty.sqlite"), "").unwrap();
    rusqlite::Connection::open(file("program.sqlite"))
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    for (name, named) in [
        ("foreign.sqlite", "cannot be continued by this provider"),
        ("cut.sqlite", "cut.sqlite"),
        ("flipped.sqlite", "flipped.sqlite"),
        ("text.sqlite", "no whole backup"),
        ("empty.sqlite", "it is empty"),
        ("program.sqlite", "another program"),
        ("absent.sqlite", "cannot read"),
    ] {
        let refused = error(&config, &["restore", "--replace", &file(name)]);
        assert!(refused.contains(named), "{name}: {refused}");
    }
    assert!(network.world.store().net(network.net).is_ok(), "as before");
    let after = fs::read_dir(&world.config.state_directory).unwrap().count();
    assert!(after <= before + 1, "only the lock is new");
}

#[test]
fn rounds_are_exported_as_parquet_with_types() {
    let world = World::new();
    let config = world.config_file();
    let net = world.create_net(policy(900, 60_000, 30), &["import", "export"]);
    world
        .store()
        .commit(&[
            roster(net, 4, 0, 3),
            aggregate(net, 4, 0, 3),
            roster(net, 6, 0, 2),
        ])
        .unwrap();
    let output = run(
        &config,
        &["export", "--format", "parquet", "--net", &net.to_string()],
    );
    assert!(output.status.success(), "{output:?}");
    let path = world.path("rounds.parquet");
    fs::write(&path, output.stdout).unwrap();
    let reader = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let schema = reader.metadata().file_metadata().schema();
    let columns: Vec<&str> = schema
        .get_fields()
        .iter()
        .map(|field| field.name())
        .collect();
    assert_eq!(
        columns,
        [
            "round",
            "start",
            "end",
            "members",
            "included",
            "status",
            "import_mwh",
            "export_mwh"
        ]
    );
    let rows: Vec<_> = reader
        .get_row_iter(None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows.len(), 2);
    let period = Period::from_secs(900).unwrap();
    let start = i64::try_from(Round(4).start(period).as_millis()).unwrap();
    assert_eq!(rows[0].get_long(0).unwrap(), 4);
    assert_eq!(rows[0].get_timestamp_millis(1).unwrap(), start);
    assert_eq!(rows[0].get_timestamp_millis(2).unwrap(), start + 900_000);
    assert_eq!(rows[0].get_uint(3).unwrap(), 4);
    assert_eq!(rows[0].get_uint(4).unwrap(), 3);
    assert_eq!(rows[0].get_string(5).unwrap(), "final");
    assert_eq!(rows[0].get_long(6).unwrap(), 4000);
    assert_eq!(rows[0].get_long(7).unwrap(), i64::MAX);
    assert_eq!(rows[1].get_string(5).unwrap(), "pending");
    assert!(rows[1].get_long(6).is_err(), "no sum, not zero");
    let about = reader
        .metadata()
        .file_metadata()
        .key_value_metadata()
        .unwrap();
    let id = about.iter().find(|pair| pair.key == "net").unwrap();
    assert_eq!(id.value, Some(net.to_string()));
}

#[test]
fn the_submissions_of_old_rounds_are_dropped_and_their_sums_stay() {
    let (mut network, config, net) = street();
    let rounds: Vec<Round> = network.aggregates.iter().map(|sum| sum.round).collect();
    let newest = *rounds.last().unwrap();
    let exported = text(&config, &["export", "--net", &net]);
    let meters = json(&config, &["meter", "list", &net]);
    let mut compacted = Vec::new();
    while let Some(round) = network
        .store
        .compact_round(network.net, Round(u64::MAX), utc::now())
        .unwrap()
    {
        compacted.push(round);
    }
    assert_eq!(compacted, rounds[..rounds.len() - 1], "but the newest");
    while network.store.shrink().unwrap() {}
    network.store.check().unwrap();
    for round in &compacted {
        let included = network.store.included_in(network.net, *round).unwrap();
        assert!(included.is_empty(), "round {round}");
        let shown = json(&config, &["round", "show", &net, &round.to_string()]);
        assert_eq!(shown["verified"]["aggregate"], true);
        assert_eq!(shown["verified"]["commitments"], false);
        assert!(!shown["included"].as_array().unwrap().is_empty());
        assert!(shown["compacted"].is_string());
    }
    let kept = network.store.included_in(network.net, newest).unwrap();
    assert!(!kept.is_empty());
    assert_eq!(text(&config, &["export", "--net", &net]), exported);
    assert_eq!(
        json(&config, &["meter", "list", &net]),
        meters,
        "last rounds"
    );
    // The agent goes on from it.
    let before = network.aggregates.len();
    network.restart_provider();
    network.run_until(7 * PERIOD);
    assert!(network.aggregates.len() > before);
}

#[test]
fn a_pending_round_is_never_compacted() {
    let world = World::new();
    let net = world.create_net(policy(900, 60_000, 30), &["import", "export"]);
    let mut store = world.store();
    let mut records = vec![roster(net, 1, 0, 3)];
    for round in 2..40 {
        records.extend([roster(net, round, 0, 3), aggregate(net, round, 0, 3)]);
    }
    store.commit(&records).unwrap();
    let compact = |store: &mut Store| store.compact_round(net, Round(20), utc::now()).unwrap();
    let compacted: Vec<Round> = std::iter::from_fn(|| compact(&mut store)).collect();
    assert_eq!(compacted, (2..20).map(Round).collect::<Vec<_>>());
    let included = |round| store.included_in(net, Round(round)).unwrap().len();
    assert_eq!((included(1), included(19), included(20)), (3, 0, 3));
    assert_eq!(store.load(net).unwrap().rosters[0].submissions.len(), 3);
}

#[test]
fn free_pages_go_back_to_the_file_system() {
    let world = World::new();
    let net = world.create_net(policy(900, 60_000, 30), &["import", "export"]);
    let mut store = world.store();
    for round in 0..20 {
        let records = [roster(net, round, 0, 200), aggregate(net, round, 0, 200)];
        store.commit(&records).unwrap();
    }
    let pages = |store: &Store| {
        let database = rusqlite::Connection::open(store.path()).unwrap();
        let pages = database.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0));
        pages.unwrap()
    };
    let full = pages(&store);
    while store
        .compact_round(net, Round(u64::MAX), utc::now())
        .unwrap()
        .is_some()
    {}
    assert_eq!(pages(&store), full, "free, and still in the file");
    while store.shrink().unwrap() {}
    assert!(pages(&store) < full / 2, "{} of {full}", pages(&store));
    store.check().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_agent_compacts_by_itself() {
    let (network, _, _) = street();
    let rounds: Vec<Round> = network.aggregates.iter().map(|sum| sum.round).collect();
    let mut config = network.world.config.clone();
    config.retention.rounds = Some(Duration::from_millis(PERIOD));
    let running = Agent::open(&config).unwrap().start();
    let here = |round| {
        !network
            .store
            .included_in(network.net, round)
            .unwrap()
            .is_empty()
    };
    until("the oldest round is compacted", || !here(rounds[0]));
    running.stop().await.unwrap();
    assert!(rounds[rounds.len() - 2..].iter().all(|round| here(*round)));
}
