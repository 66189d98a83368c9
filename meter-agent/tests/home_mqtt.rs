//! A device on the household's own broker: a real mosquitto. Without the binary `mosquitto` (or
//! the path of one in `MOSQUITTO`) these tests are skipped with a message.

mod mosquitto;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dcnet::units::{ImpulsesPerKwh, Pulses};
use meter_agent::energy::EnergyUnit;
use meter_agent::home_broker::{HomeBroker, Login, Trust};
use meter_agent::pulse::input::TotalSource;
use meter_agent::pulse::mqtt::{self, HomeTopic};
use meter_agent::pulse::total::TotalOptions;
use meter_agent::pulse::{Channel, PulseSource};
use mosquitto::{Broker, PATIENCE, mosquitto};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

/// Publishes as a device does, and waits until the broker has it.
async fn publish(port: u16, login: Option<(&str, &str)>, topic: &str, payload: &str, retain: bool) {
    let mut options = MqttOptions::new("plug", "127.0.0.1", port);
    if let Some((user, password)) = login {
        options.set_credentials(user, password);
    }
    let (client, mut events) = AsyncClient::new(options, 4);
    client
        .try_publish(topic, QoS::AtLeastOnce, retain, payload)
        .unwrap();
    let sent = async {
        loop {
            if let Ok(Event::Incoming(Packet::PubAck(_))) = events.poll().await {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, sent).await.unwrap();
}

fn topic(port: u16) -> HomeTopic {
    HomeTopic {
        broker: HomeBroker {
            host: "127.0.0.1".to_owned(),
            port,
            tls: None,
            login: None,
            provider: "203.0.113.7".to_owned(),
        },
        topic: "tele/plug/SENSOR".to_owned(),
        pointer: Some("/ENERGY/Total".parse().unwrap()),
        unit: EnergyUnit::KilowattHours,
        total: TotalOptions::default(),
    }
}

fn open(topic: &HomeTopic) -> TotalSource {
    let constant = ImpulsesPerKwh::new(1000).unwrap();
    let mut source = mqtt::open(Channel(0), constant, topic).unwrap();
    source.resume(&[Pulses(0)]);
    source
}

fn tasmota(total: &str) -> String {
    format!(r#"{{"Time":"2026-01-31T18:00:00","ENERGY":{{"Total":{total},"Power":74}}}}"#)
}

/// Publishes `payload` again and again until the total is `expected`: whether the agent has
/// subscribed yet is not to be seen from outside.
async fn reach(source: &mut TotalSource, total: &mut u64, expected: u64, send: impl AsyncFn()) {
    let begun = Instant::now();
    while *total != expected {
        assert!(begun.elapsed() < PATIENCE, "{total} is not {expected}");
        send().await;
        let soon = Duration::from_millis(300);
        while let Ok(batch) = tokio::time::timeout(soon, source.next()).await {
            *total += batch.unwrap().pulses().0;
            if *total == expected {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_total_is_followed_over_retained_and_bad_messages_and_a_restart_of_the_broker() {
    let Some(binary) = mosquitto() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(&binary, directory.path(), "allow_anonymous true");
    let (port, name) = (broker.port, "tele/plug/SENSOR");
    // Months old: if it counted, later totals would be a jump.
    publish(port, None, name, &tasmota("9000.5"), true).await;
    let mut source = open(&topic(port));
    let mut total = 0;
    reach(&mut source, &mut total, 1_234_567, async || {
        publish(port, None, name, &tasmota("1234.567"), false).await;
    })
    .await;
    reach(&mut source, &mut total, 1_234_569, async || {
        publish(port, None, name, "{", false).await;
        publish(port, None, name, &tasmota("null"), false).await;
        publish(port, None, name, &tasmota("12.5"), false).await;
        publish(port, None, name, &tasmota("1234.5690001"), false).await;
    })
    .await;
    let statistics = source.statistics();
    for kind in [
        "payload is no JSON",
        "value is no energy",
        "total went back",
    ] {
        assert!(statistics.fault(kind) >= 1, "{kind}: {statistics:?}");
    }
    assert_eq!(statistics.fault("total jumped"), 0);

    broker.stop();
    broker.start_again();
    reach(&mut source, &mut total, 1_234_600, async || {
        publish(port, None, name, &tasmota("1234.6"), false).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_a_password_file_is_let_in_over_tls() {
    let Some(binary) = mosquitto() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    std::fs::write(path("ca.pem"), ca_certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    std::fs::write(path("server.pem"), server.pem()).unwrap();
    std::fs::write(path("server.key"), key.serialize_pem()).unwrap();

    // A password in the clear; the broker's own tool hashes it.
    std::fs::write(path("users"), "meter:over the wire\n").unwrap();
    let tool = binary.with_file_name("mosquitto_passwd");
    let tool = if tool.exists() {
        tool
    } else {
        PathBuf::from("/usr/bin/mosquitto_passwd")
    };
    let hashed = Command::new(tool).arg("-U").arg(path("users")).status();
    assert!(hashed.unwrap().success());
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let tls_port = free.local_addr().unwrap().port();
    drop(free);
    let lines = format!(
        "allow_anonymous false\npassword_file {users}\nlistener {tls_port} 127.0.0.1\n\
         certfile {certificate}\nkeyfile {key}",
        users = path("users").display(),
        certificate = path("server.pem").display(),
        key = path("server.key").display(),
    );
    let broker = Broker::start(&binary, directory.path(), &lines);

    std::fs::write(path("password"), "over the wire\n").unwrap();
    let mut topic = topic(tls_port);
    topic.broker.host = "localhost".to_owned();
    topic.broker.tls = Some(Trust::Ca(path("ca.pem")));
    topic.broker.login = Some(Login {
        username: "meter".to_owned(),
        password_file: path("password"),
    });
    set_mode(&path("password"), 0o644);
    let refused = format!("{:#}", topic.broker.prepare().unwrap_err());
    assert!(refused.contains("chmod 600"), "{refused}");
    set_mode(&path("password"), 0o600);
    let mut source = open(&topic);
    let mut total = 0;
    let login = Some(("meter", "over the wire"));
    reach(&mut source, &mut total, 17_250, async || {
        publish(
            broker.port,
            login,
            "tele/plug/SENSOR",
            &tasmota("17.25"),
            false,
        )
        .await;
    })
    .await;
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn the_providers_broker_is_not_connected_to_and_that_is_told() {
    let mut topic = topic(1883);
    topic.broker.host = topic.broker.provider.clone();
    let source = open(&topic);
    let mut input = source.input().unwrap();
    let told = input.wait_for(|input| input.trouble.is_some());
    let told = tokio::time::timeout(PATIENCE, told).await.unwrap();
    let told = told.unwrap().trouble.clone().unwrap();
    assert!(told.contains("the host of the provider's broker"), "{told}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let told = |topic: &HomeTopic| {
        let constant = ImpulsesPerKwh::new(1000).unwrap();
        let error = mqtt::open(Channel(0), constant, topic).unwrap_err();
        error.to_string()
    };
    let mut topic = topic(1883);
    topic.broker.tls = Some(Trust::Ca(directory.path().join("ca.pem")));
    assert!(told(&topic).contains("ca.pem"), "{}", told(&topic));
    std::fs::write(directory.path().join("ca.pem"), "").unwrap();
    assert!(
        told(&topic).contains("no CERTIFICATE block"),
        "{}",
        told(&topic)
    );
    topic.broker.tls = None;
    let file = directory.path().join("password");
    topic.broker.login = Some(Login {
        username: "meter".to_owned(),
        password_file: file.clone(),
    });
    assert!(told(&topic).contains("password"), "{}", told(&topic));
    std::fs::write(&file, "\n").unwrap();
    set_mode(&file, 0o600);
    assert!(told(&topic).contains("in one line"), "{}", told(&topic));
}
