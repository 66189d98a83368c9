//! The program itself: configuration file, signals, and Mosquitto's clients.

mod rig;

use broker::{Config, Limits};
use rig::*;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_until_sigterm_and_remembers_retained_messages() {
    let rig = Rig::stopped().await;
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
    let rig = Rig::stopped().await;
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
    // 128 MiB, and 2000 times 32 KiB.
    let limits = "[limits]\nfilters = 1000\nconnections = 2000\nmemory_mib = ";
    let (valid, error) = check(&format!("{limits}190\n"));
    let told = "limits.memory_mib is 190; 2000 connections and 1000 filters need 191:";
    assert!(!valid && error.contains(told), "{error}");
    assert!(check(&format!("{limits}191\n")).0);
    fs::write(rig.directory.path().join("broker.pem"), &rig.meter.pem).unwrap();
    let (valid, error) = check("");
    assert!(
        !valid && error.contains("broker.pem") && error.contains("meter"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_configuration_needs_is_missed() {
    let rig = Rig::stopped().await;
    let path = write_config(&rig, "");
    let text = fs::read_to_string(&path).unwrap();
    for name in ["listen", "ca", "certificate", "key"] {
        let without = |line: &&str| !line.starts_with(&format!("{name} = "));
        let lines: Vec<&str> = text.lines().filter(without).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        let error = format!("{:#}", Config::read(&path).unwrap_err());
        let missing = format!("missing field `{name}`");
        assert!(error.contains(&missing), "{error}");
    }
}

/// What alerts tell the operator to look for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_names_the_address_of_a_refused_connection() {
    let rig = Rig::stopped().await;
    let daemon = Daemon::start(&rig);
    let mut tcp = TcpStream::connect(daemon.address).unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let address = tcp.local_addr().unwrap().to_string();
    let line = loop {
        let line = daemon
            .log
            .recv_timeout(DEADLINE)
            .expect("a line of the log");
        if line.contains("TLS handshake failed") {
            break line;
        }
    };
    assert!(line.contains(" WARN ") && line.contains(&address), "{line}");
}

#[test]
fn the_shipped_example_shows_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/broker.toml");
    let text = fs::read_to_string(path).unwrap();
    // What is off by default is shown as a comment of one line.
    let services = [
        "listen_third_parties",
        "listen_websocket",
        "passwords",
        "permissions",
        "metrics",
    ];
    let mut all = String::new();
    for line in text.lines() {
        let off = line.strip_prefix("# ").filter(|rest| {
            let name = rest.split(" = ").next().unwrap();
            services.contains(&name)
        });
        all.push_str(off.unwrap_or(line));
        all.push('\n');
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("broker.toml");
    fs::write(&file, all).unwrap();
    let config = Config::read(&file).unwrap();
    assert_eq!(
        format!("{:?}", config.limits),
        format!("{:?}", Limits::default())
    );
    assert!(config.metrics.is_some() && config.permissions.is_some());
    assert!(!config.listen_third_parties.is_empty() && !config.listen_websocket.is_empty());
    assert!(config.passwords.is_some());
}

/// Runs a command of the program with a line of input: success, output and errors.
fn command(rig: &Rig, more: &str, arguments: &[&str], input: &str) -> (bool, String, String) {
    let (name, rest) = arguments.split_first().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_broker"))
        .args([name, "--config"])
        .arg(write_config(rig, more))
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that takes no password reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_set_and_permissions_told_by_commands() {
    let rig = Rig::stopped().await;
    let at = |name: &str| rig.directory.path().join(name).display().to_string();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/permissions.toml");
    fs::copy(example, at("permissions.toml")).unwrap();
    let more = format!(
        "passwords = {:?}\npermissions = {:?}\nlisten_third_parties = [\"127.0.0.1:0\"]\n",
        at("passwords"),
        at("permissions.toml")
    );
    let run = |arguments: &[&str], input: &str| command(&rig, &more, arguments, input);
    let (done, _, error) = run(&["set-password", "dashboard"], "short\n");
    assert!(!done && error.contains("at least 10"), "{error}");
    let (done, said, error) = run(&["set-password", "dashboard"], "correct horse\n");
    assert!(done, "{error}");
    assert!(!said.contains("horse") && !error.contains("horse"));
    let (done, _, error) = run(&["check-config"], "");
    assert!(done, "{error}");

    let public = format!("dcnet/1/{NET}/public/aggregate");
    let (_, said, _) = run(&["check-acl", "dashboard", &public], "");
    let text = fs::read_to_string(at("permissions.toml")).unwrap();
    let all = text.lines().position(|line| line == "[all]").unwrap() + 1;
    let place = format!("permissions.toml, line {}: dcnet/1/+/public/#", all + 1);
    assert!(
        said.contains("publish:   denied: role third-party"),
        "{said}"
    );
    assert!(
        said.contains("subscribe: allowed") && said.contains(&place),
        "{said}"
    );
    assert!(!said.contains("no password"), "{said}");
    let (_, said, _) = run(
        &["check-acl", "nobody", &format!("dcnet/1/{NET}/all/#")],
        "",
    );
    assert!(said.contains("subscribe: denied"), "{said}");
    assert!(said.contains("nobody has no password"), "{said}");
    let (meter, net) = (rig.meter.client_id(), NET.to_string());
    let as_meter = ["check-acl", "--role", "meter", "--net", &net, &meter];
    let own = rig.meter.topic("up/submission");
    let (_, said, _) = run(&[&as_meter[..], &[&own]].concat(), "");
    assert!(said.contains("publish:   allowed: role meter"), "{said}");
    assert!(said.contains("subscribe: denied: role meter"), "{said}");
    let (done, _, error) = run(&["check-acl", "--role", "meter", &meter, &own], "");
    assert!(!done && error.contains("--net"), "{error}");

    let third = rig.third_party().client_id();
    let export = ["export-acl", "--format", "mosquitto", "--provider", &meter];
    let named = [&export[..], &["--net", &net]].concat();
    let of_net = format!("{third}={net}");
    let (done, said, error) = run(&[&named[..], &["--certificate", &of_net]].concat(), "");
    assert!(done, "{error}");
    let (_, rules) = said.split_once(&format!("user {third}\n")).unwrap();
    let read = format!("topic read dcnet/1/{NET}/public/#\n");
    assert!(rules.starts_with(&read), "{said}");
    let (done, _, error) = run(&[&named[..], &["--certificate", &third]].concat(), "");
    assert!(!done && error.contains("an equals sign"), "{error}");

    let (done, ..) = run(&["remove-user", "dashboard"], "");
    assert!(done);
    let (done, _, error) = run(&["remove-user", "dashboard"], "");
    assert!(!done && error.contains("dashboard"), "{error}");
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
        .arg(file("key", &key_for_openssl(identity)))
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
        skip("mosquitto_sub is not installed");
        return;
    }
    let rig = Rig::stopped().await;
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
    let rig = Rig::stopped().await;
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
    let rig = Rig::stopped().await;
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
