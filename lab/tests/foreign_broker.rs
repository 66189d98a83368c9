//! The agents at another broker: their programs, a real mosquitto configured as docs/broker.md
//! says, and the exported access control list.

mod foreign;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use broker::{Certified, Config, Format};
use dcnet::identity::{DeviceId, DeviceKey};
use dcnet::time::{Period, Round};
use lab::chaos::fault::Station;
use lab::chaos::rounds::Rounds;
use lab::chaos::setting::Setting;
use lab::observer::Observer;
use lab::system::{HOST, provider_state, third_party};
use meter_agent::clock::utc_timestamp;

const METERS: u32 = 5;
/// Complete rounds, one after the other, before and after the broker was killed.
const ROUNDS: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(150);

/// A process; killed as by a loss of power when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_mosquitto(program: &Path, config: &Path) -> Running {
    let mut child = Command::new(program)
        .arg("-c")
        .arg(config)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let running = Running(child);
    let mut lines = log.by_ref().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(" running")), "it starts");
    std::thread::spawn(move || log.for_each(drop));
    running
}

/// An agent, as `lab chaos` starts it; it ends with the thread that called this.
fn start_agent(root: &Path, station: Station) -> Running {
    let name = station.to_string().replace(' ', "-");
    let role = match station {
        Station::Provider => "provider",
        _ => "meter",
    };
    let log = File::create(root.join(format!("{name}.log"))).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["process", role, "--parent"])
        .arg(std::process::id().to_string())
        .arg("--config")
        .arg(root.join(format!("{name}.toml")))
        .env("RUST_LOG", "info")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Running(child)
}

/// Whose key is in an enrolment.
fn holder(directory: &Path) -> DeviceId {
    let pem = fs::read_to_string(directory.join(gateway_admin::KEY_FILE)).unwrap();
    DeviceKey::from_pkcs8_pem(&pem).unwrap().id()
}

/// What `broker export-acl --format mosquitto` prints.
fn exported_list(setting: &Setting) -> String {
    let root = setting.directory.path();
    let permissions = root.join("permissions.toml");
    let rule = format!(
        "[certificate.{}]\nsubscribe = [\"dcnet/1/{}/public/#\"]\n",
        holder(&third_party(root)),
        setting.net
    );
    fs::write(&permissions, rule).unwrap();
    let config = Config {
        permissions: Some(permissions),
        ..Config::read(&root.join("broker.toml")).unwrap()
    };
    let certified = Certified {
        providers: vec![holder(&root.join("provider"))],
        nets: vec![setting.net],
        ..Certified::default()
    };
    config.export_acl(Format::Mosquitto, &certified).unwrap()
}

/// The configuration that the documentation shows, with the places of this run.
fn configuration(setting: &Setting) -> String {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/broker.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, rest) = document
        .split_once("in `mosquitto.conf`:\n\n```\n")
        .unwrap();
    let (shown, _) = rest.split_once("```").unwrap();
    let root = setting.directory.path().display();
    // As root it would become a user who cannot read the directory.
    shown
        .replace(
            "listener 8883",
            &format!("listener {} 127.0.0.1", setting.port),
        )
        .replace("/etc/dcnet/broker", &format!("{root}/broker"))
        .replace("/etc/mosquitto/dcnet.acl", &format!("{root}/acl"))
        .replace("/var/lib/mosquitto", &format!("{root}/mosquitto"))
        + "user root\nlog_dest stderr\nlog_type all\n"
}

/// Waits until the newest sums are over all meters, one after the other, and right.
async fn sums(setting: &Setting, observer: &mut Observer, rounds: &mut Rounds, from: Round) {
    let root = setting.directory.path();
    let end = Instant::now() + PATIENCE;
    while rounds.complete_in_a_row(from) < ROUNDS {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, observer.seen.recv()).await {
            Ok(Some(seen)) => rounds.on_seen(&seen),
            Ok(None) => panic!("the third party gave up"),
            Err(_) => {
                let log = fs::read_to_string(root.join("provider.log")).unwrap();
                panic!("no {ROUNDS} complete rounds within {PATIENCE:?}; the provider says\n{log}");
            }
        }
    }
    for line in rounds.check(&provider_state(root)).unwrap() {
        eprintln!("{line}");
    }
    assert!(rounds.wrong().is_empty(), "{:?}", rounds.wrong());
}

// One thread, which is that of the test: the processes end with it.
#[tokio::test]
async fn sums_are_true_at_mosquitto_and_go_on_after_it_was_killed() {
    let Some(program) = foreign::mosquitto() else {
        return;
    };
    let period = Period::from_secs(2).unwrap();
    let setting = Setting::make(METERS, period, 11).unwrap();
    let root = setting.directory.path();
    fs::create_dir(root.join("mosquitto")).unwrap();
    fs::write(root.join("acl"), exported_list(&setting)).unwrap();
    let config = root.join("mosquitto.conf");
    fs::write(&config, configuration(&setting)).unwrap();

    let first = start_mosquitto(&program, &config);
    let mut agents = vec![start_agent(root, Station::Provider)];
    agents.extend((1..=METERS).map(|number| start_agent(root, Station::Meter(number))));
    let reader = third_party(root);
    let mut observer = Observer::start(HOST, setting.port, &reader, setting.net)
        .await
        .unwrap();
    let mut rounds = Rounds::new(
        (setting.net, setting.provider_key),
        period,
        setting.meters.clone(),
        setting.consumption.clone(),
    );
    sums(&setting, &mut observer, &mut rounds, Round(0)).await;

    drop(first);
    let _second = start_mosquitto(&program, &config);
    let from = period.round_at(utc_timestamp());
    sums(&setting, &mut observer, &mut rounds, from).await;
    for agent in &mut agents {
        let ended = agent.0.try_wait().unwrap();
        assert!(ended.is_none(), "nobody had to be started again: {ended:?}");
    }
}
