//! The program as its operator uses it.

mod world;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use dcnet::topic::NetId;
use link::Journal;
use provider_agent::Agent;
use provider_agent::store::NetRecord;
use world::{World, aggregate, policy, roster};

const PROGRAM: &str = env!("CARGO_BIN_EXE_provider-agent");

fn run(config: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_example_configuration_is_valid() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/provider-agent.toml");
    let output = text(&run(&example, &["check-config"]));
    assert!(output.contains("ok"), "{output}");
}

#[test]
fn check_config_finds_what_would_stop_the_agent() {
    let world = World::new();
    let config = world.config_file();
    assert!(text(&run(&config, &["check-config"])).contains("ok"));
    let good = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("colour = 1\n{good}")).unwrap();
    assert!(error(&run(&config, &["check-config"])).contains("colour"));
    fs::write(&config, &good).unwrap();
    let key = world.path("identity/key.pem");
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    assert!(error(&run(&config, &["check-config"])).contains("chmod 600"));
}

#[test]
fn a_net_is_created_shown_and_listed() {
    let world = World::new();
    let config = world.config_file();
    let missing = error(&run(&config, &["net", "list"]));
    assert!(missing.contains("net create"), "{missing}");
    let create = |extra: &[&str]| {
        let arguments = ["net", "create", "--name", "Elm Street"];
        run(&config, &[&arguments[..], extra].concat())
    };
    for (wrong, named) in [
        (&["--period", "7s"][..], "period"),
        (&["--minimum-group", "2"], "minimum group"),
        (&["--window", "2h"], "window"),
        (&["--channels", "import,import"], "refuse"),
    ] {
        let message = error(&create(wrong));
        assert!(message.contains(named), "{named}: {message}");
    }
    let id = text(&create(&[
        "--period",
        "2s",
        "--window",
        "800ms",
        "--minimum-group",
        "4",
        "--channels",
        "import,export",
    ]));
    let net: NetId = id.trim().parse().unwrap();
    let shown = text(&run(&config, &["net", "show", &net.to_string(), "--json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let membership = world.membership(net);
    assert_eq!(shown["log_index"], 0);
    assert_eq!(shown["log_head"], hex::encode(membership.head().hash));
    assert_eq!(shown["members"], 0);
    assert_eq!(shown["period_s"], 2);
    assert_eq!(shown["channels"], serde_json::json!(["import", "export"]));
    let human = text(&run(&config, &["net", "show", &net.to_string()]));
    assert!(human.contains("--log-index 0 --log-head "), "{human}");
    assert!(text(&run(&config, &["net", "list"])).contains(&net.to_string()));
    let unknown = error(&run(&config, &["net", "show", &"0".repeat(32)]));
    assert!(unknown.contains("net list"), "{unknown}");
}

#[test]
fn rounds_are_exported_as_csv() {
    let world = World::new();
    let config = world.config_file();
    let net = world.create_net(policy(900, 60_000, 30), &["import", "export"]);
    let lost = dcnet::provider::ProviderRecord::Lost {
        round: dcnet::time::Round(5),
        disruption: None,
        missing: Vec::new(),
    };
    world
        .store()
        .commit(&[
            roster(net, 4, 0, 3),
            roster(net, 5, 0, 3),
            aggregate(net, 4, 0, 3),
            NetRecord { net, record: lost },
            roster(net, 6, 0, 2),
        ])
        .unwrap();
    let net = net.to_string();
    let all = text(&run(&config, &["export", "--net", &net, "--format", "csv"]));
    assert_eq!(
        all,
        "round,start,end,members,included,status,import_mwh,export_mwh\n\
         4,1970-01-01T01:00:00Z,1970-01-01T01:15:00Z,4,3,final,4000,9223372036854775807\n\
         5,1970-01-01T01:15:00Z,1970-01-01T01:30:00Z,4,3,lost,,\n\
         6,1970-01-01T01:30:00Z,1970-01-01T01:45:00Z,3,2,pending,,\n"
    );
    let span = [
        "--from",
        "1970-01-01T01:00:01Z",
        "--to",
        "1970-01-01T01:30:00Z",
    ];
    let part = text(&run(
        &config,
        &[&["export", "--net", &net][..], &span].concat(),
    ));
    let rounds: Vec<&str> = part.lines().skip(1).map(|line| &line[..1]).collect();
    assert_eq!(rounds, ["5"]);
    let wrong = run(&config, &["export", "--net", &net, "--from", "yesterday"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn the_daemon_stops_on_sigterm_and_runs_once() {
    let mut world = World::new();
    world.without_broker();
    let config = world.config_file();
    world.create_net(policy(900, 60_000, 30), &["import"]);
    let mut daemon = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(&config)
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let started = lines
        .by_ref()
        .any(|line| line.unwrap().contains("starting"));
    assert!(started);
    let second = Agent::open(&world.config).err().expect("it runs already");
    assert!(
        format!("{second:#}").contains("another provider-agent"),
        "{second:#}"
    );
    // Reading goes on beside it, and a new net is taken up.
    assert!(text(&run(&config, &["net", "list"])).contains("Elm Street"));
    let net = world.create_net(policy(900, 60_000, 30), &["import"]);
    let mut taken_up = lines
        .by_ref()
        .map(Result::unwrap)
        .skip_while(|line| !line.contains("taking up"));
    let line = taken_up.next().unwrap();
    assert!(line.contains(&net.to_string()), "{line}");
    assert!(taken_up.any(|line| line.contains("starting") && line.contains('2')));
    let id = daemon.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(daemon.wait().unwrap().success(), "{rest:#?}");
    assert!(
        rest.iter().any(|line| line.contains("stopping")),
        "{rest:#?}"
    );
}

/// What a service manager hears; panics if it hears nothing more.
fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = manager.recv(&mut buffer).expect("a notification in time");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Waits for a notification that says something; gives it.
fn hear(manager: &UnixDatagram, what: &str) -> String {
    loop {
        let notification = heard(manager);
        if notification.contains(what) {
            return notification;
        }
    }
}

fn signal(daemon: &Child, name: &str) {
    let id = daemon.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &id])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_service_manager_is_told_that_it_serves_lives_reloads_and_stops() {
    let mut world = World::new();
    world.without_broker();
    let config = world.config_file();
    // As systemd does it: the key is elsewhere, and its mode shows an access control list.
    let credentials = world.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let key = credentials.join("key.pem");
    fs::rename(world.path("identity/key.pem"), &key).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    let address = world.path("notify");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut daemon = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(&config)
        .env("CREDENTIALS_DIRECTORY", &credentials)
        .env("NOTIFY_SOCKET", &address)
        .env("WATCHDOG_USEC", "400000")
        .spawn()
        .unwrap();
    hear(&manager, "READY=1");
    hear(&manager, "WATCHDOG=1");
    hear(&manager, "STATUS=no connection to the broker");
    signal(&daemon, "-HUP");
    assert!(hear(&manager, "RELOADING=1").contains("MONOTONIC_USEC="));
    hear(&manager, "READY=1");
    hear(&manager, "WATCHDOG=1");
    signal(&daemon, "-TERM");
    hear(&manager, "STOPPING=1");
    assert!(daemon.wait().unwrap().success());
}
