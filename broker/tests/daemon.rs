//! The program itself: configuration file, signals, and Mosquitto's clients.

mod rig;

use broker::{Config, Limits};
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use rig::*;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

struct Daemon {
    child: Child,
    address: SocketAddr,
}

impl Daemon {
    /// Starts the program on the files of a rig whose own broker is stopped.
    fn start(rig: &Rig) -> Self {
        let path = write_config(rig, "");
        let mut child = Command::new(env!("CARGO_BIN_EXE_broker"))
            .arg("--config")
            .arg(path)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = log.next().expect("it says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("listening address=") {
                break address.trim().parse().unwrap();
            }
        };
        std::thread::spawn(move || log.for_each(drop));
        Self { child, address }
    }

    fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_config(rig: &Rig, more: &str) -> std::path::PathBuf {
    let at = |name: &str| rig.directory.path().join(name).display().to_string();
    let path = rig.directory.path().join("broker.toml");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\nstate = {:?}\n{more}",
        at("ca.pem"),
        at("broker.pem"),
        at("broker.key"),
        at("state")
    );
    fs::write(&path, text).unwrap();
    path
}

async fn stopped() -> Rig {
    let mut rig = Rig::start().await;
    rig.stop().await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_until_sigterm_and_remembers_retained_messages() {
    let rig = stopped().await;
    let topic = format!("dcnet/1/{NET}/public/status");
    let client = async |daemon: &Daemon, identity: &Identity| {
        let options = rig.options_for(daemon.address, identity, &identity.client_id());
        Client::start(options).connected().await
    };
    let daemon = Daemon::start(&rig);
    let mut provider = client(&daemon, &rig.provider).await;
    provider.retain(&topic, b"open").await;
    provider.acknowledged().await;
    assert!(daemon.terminate().success());
    provider.failure().await;

    let daemon = Daemon::start(&rig);
    let mut meter = client(&daemon, &rig.meter).await;
    meter
        .mqtt
        .subscribe(&topic, rumqttc::QoS::AtLeastOnce)
        .await
        .unwrap();
    assert_eq!(meter.message().await, (topic, b"open".to_vec(), true));
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_config_says_what_is_wrong() {
    let rig = stopped().await;
    let check = |more: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_broker"))
            .args(["check-config", "--config"])
            .arg(write_config(&rig, more))
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    assert_eq!(check(""), (true, String::new()));
    let (valid, error) = check("colour = 1\n");
    assert!(!valid && error.contains("colour"), "{error}");
    let (valid, error) = check("[limits]\nconnections = 0\n");
    assert!(!valid && error.contains("limits.connections"), "{error}");
    fs::write(rig.directory.path().join("broker.pem"), &rig.meter.pem).unwrap();
    let (valid, error) = check("");
    assert!(
        !valid && error.contains("broker.pem") && error.contains("meter"),
        "{error}"
    );
}

#[test]
fn the_shipped_example_shows_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/broker.toml");
    let config = Config::read(&path).unwrap();
    assert_eq!(
        format!("{:?}", config.limits),
        format!("{:?}", Limits::default())
    );
}

/// The key as PKCS#8 version 1: OpenSSL 3.0 does not read version 2, which
/// rcgen writes.
fn key_without_public_half(identity: &Identity) -> String {
    let key = SigningKey::from_pkcs8_pem(&identity.key.serialize_pem()).unwrap();
    let bytes = KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    };
    bytes.to_pkcs8_pem(Default::default()).unwrap().to_string()
}

/// `mosquitto_sub` and `mosquitto_pub` with the files of an identity.
fn mosquitto(rig: &Rig, daemon: &Daemon, program: &str, identity: &Identity) -> Command {
    let file = |name: &str, text: &str| {
        let path = rig.directory.path().join(format!("{}.{name}", identity.id));
        fs::write(&path, text).unwrap();
        path
    };
    let mut command = Command::new(program);
    command
        .args(["-h", "127.0.0.1", "-p", &daemon.address.port().to_string()])
        .args(["--cafile", rig.config.ca.to_str().unwrap()])
        .arg("--cert")
        .arg(file("pem", &identity.pem))
        .arg("--key")
        .arg(file("key", &key_without_public_half(identity)))
        .args(["-i", &identity.client_id(), "-q", "1"]);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquittos_clients_read_public_topics_and_are_refused_others() {
    if Command::new("mosquitto_sub")
        .arg("--help")
        .output()
        .is_err()
    {
        eprintln!("skipped: mosquitto_sub is not installed");
        return;
    }
    let rig = stopped().await;
    let daemon = Daemon::start(&rig);
    let third = rig.third_party();
    let public = format!("dcnet/1/{NET}/public/aggregate");
    for version in ["311", "5"] {
        let sent = mosquitto(&rig, &daemon, "mosquitto_pub", &rig.provider)
            .args(["-V", version, "-r", "-t", &public, "-m", "42 kWh"])
            .status()
            .unwrap();
        assert!(sent.success(), "publish with version {version}");
        let read = mosquitto(&rig, &daemon, "mosquitto_sub", &third)
            .args(["-V", version, "-C", "1", "-W", "20", "-t", &public])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&read.stdout),
            "42 kWh\n",
            "{version}"
        );
        let refused = mosquitto(&rig, &daemon, "mosquitto_sub", &third)
            .args(["-V", version, "-C", "1", "-W", "20", "-t"])
            .arg(rig.meter.topic("up/#"))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.stdout.is_empty());
        assert!(errors.contains("denied"), "version {version}: {errors}");
    }
    assert!(daemon.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_is_told_that_it_serves_lives_reloads_and_stops() {
    let rig = stopped().await;
    let at = |name: &str| rig.directory.path().join(name);
    let config = write_config(&rig, "");
    // As systemd does it: the key is elsewhere, and its mode shows an access control list.
    fs::create_dir(at("credentials")).unwrap();
    let key = at("credentials/key.pem");
    fs::rename(at("broker.key"), &key).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    let manager = UnixDatagram::bind(at("notify")).unwrap();
    let minute = Duration::from_secs(60);
    manager.set_read_timeout(Some(minute)).unwrap();
    let hear = |what: &str| {
        loop {
            let mut buffer = [0; 4096];
            let length = manager.recv(&mut buffer).expect("a notification in time");
            let notification = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if notification.contains(what) {
                return notification;
            }
        }
    };
    let mut child = Command::new(env!("CARGO_BIN_EXE_broker"))
        .arg("--config")
        .arg(config)
        .env("CREDENTIALS_DIRECTORY", at("credentials"))
        .env("NOTIFY_SOCKET", at("notify"))
        .env("WATCHDOG_USEC", "400000")
        .spawn()
        .unwrap();
    let signal = |name: &str| {
        let sent = Command::new("kill")
            .args([name, &child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    };
    hear("READY=1");
    // One for the message that made it ready, and one for the next.
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    signal("-HUP");
    assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
    hear("READY=1");
    signal("-TERM");
    hear("STOPPING=1");
    assert!(child.wait().unwrap().success());
}

/// The shipped configuration does it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv4_and_ipv6_share_a_port() {
    let rig = stopped().await;
    let mut config = Config::read(&write_config(&rig, "")).unwrap();
    config.state = None;
    config.listen = vec!["0.0.0.0:0".parse().unwrap()];
    let first = broker::Broker::start(config.clone()).await.unwrap();
    let port = first.local_addrs()[0].port();
    config.listen = vec![SocketAddr::new(
        std::net::Ipv6Addr::UNSPECIFIED.into(),
        port,
    )];
    let second = broker::Broker::start(config).await.unwrap();
    assert_eq!(second.local_addrs()[0].port(), port);
    first.stop().await;
    second.stop().await;
}
