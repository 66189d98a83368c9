//! The agent, the broker and meters over real TLS sockets; a third party reads the sum.

mod world;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use dcnet::meter::{Meter, MeterCommand};
use dcnet::output::Store;
use dcnet::provider::ProviderEvent;
use dcnet::reading::Boundary;
use dcnet::time::Timestamp;
use dcnet::topic::{NetId, Public, Topic};
use dcnet::units::MilliwattHours;
use gateway_admin::{KeyPair, Terms};
use link::{Clock, Connection, Driver, MeterJournal};
use provider_agent::{Agent, utc};
use tokio::task::JoinHandle;
use world::{DEADLINE, World, policy};

const METERS: u64 = 5;
const PERIOD_MS: u64 = 2000;
/// Energy of meter i in each interval: `i + 1` times this, in mWh.
const ENERGY: u64 = 1000;

async fn start_broker(world: &World) -> broker::Broker {
    let host = "127.0.0.1".parse().unwrap();
    let bundle = world
        .authority
        .enrol_broker(KeyPair::generate().unwrap(), &[host], &Terms::default())
        .unwrap();
    let directory = world.path("broker");
    bundle.write(&directory).unwrap();
    let config = broker::Config {
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        ca: directory.join("ca.pem"),
        certificate: directory.join("certificate.pem"),
        key: directory.join("key.pem"),
        revocations: None,
        administrator: None,
        state: None,
        limits: broker::Limits::default(),
    };
    broker::Broker::start(config).await.unwrap()
}

/// A meter that counts the same energy in every interval; runs until it is aborted.
fn start_meter(world: &World, net: NetId, number: u64, port: u16) -> JoinHandle<()> {
    let name = format!("meter-{number}");
    let config = world.meter(net, &name, 4);
    let file = |name: &str| world.path(&format!("meter-{number}")).join(name);
    let connection = Connection::from_pem_files(
        "127.0.0.1",
        port,
        &file("ca.pem"),
        &file("certificate.pem"),
        &file("key.pem"),
    )
    .unwrap();
    let state = world.path(&format!("{name}-state"));
    let journal = MeterJournal::open(&state.join("net"), &state.join("register")).unwrap();
    let clock = Clock::assume_synchronised();
    let saved = journal.load(Store::Net).unwrap();
    let seed = [u8::try_from(number).unwrap(); 32];
    let meter = Meter::new(config, saved, seed, clock.now()).unwrap();
    let handle = Driver::new(meter, journal, connection)
        .with_clock(clock)
        .start();
    tokio::spawn(async move {
        // All of it: a driver stops when its control is dropped.
        let handle = handle;
        let mut total = 0;
        loop {
            let now = utc::now().as_millis();
            let at = (now / PERIOD_MS + 1) * PERIOD_MS;
            tokio::time::sleep(Duration::from_millis(at - now)).await;
            total += ENERGY * (number + 1);
            let boundary = Boundary {
                at: Timestamp(at),
                channels: vec![MilliwattHours(total)],
            };
            let command = MeterCommand::Boundary(boundary);
            if handle.commands.send(command).await.is_err() {
                return;
            }
        }
    })
}

/// The retained message of a topic, read by Debian's `mosquitto_sub` as a third party.
/// `None` if that is not installed.
fn mosquitto_sub(world: &World, port: u16, topic: &str) -> Option<std::process::Output> {
    let file = |name: &str| world.path("third-party").join(name);
    let output = Command::new("mosquitto_sub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1"])
        .args(["-i", "reader", "-C", "1", "-W", "10", "-t", topic])
        .arg("--cafile")
        .arg(file("ca.pem"))
        .arg("--cert")
        .arg(file("certificate.pem"))
        .arg("--key")
        .arg(file("key.pem"))
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: mosquitto_sub is not installed (Debian: mosquitto-clients)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_party_reads_the_verified_sum_of_a_real_net() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info,rumqttd=off")
        .with_test_writer()
        .try_init();
    let mut world = World::new();
    let broker = start_broker(&world).await;
    let port = broker.local_addrs()[0].port();
    world.config.broker_port = port;
    let net = world.create_net(policy(2, 800, 4), &["import"]);
    let mut agent = Agent::open(&world.config).unwrap();
    assert_eq!(agent.nets(), [net]);
    agent.clock = Clock::assume_synchronised();
    assert!(
        Agent::open(&world.config).is_err(),
        "two agents on one state directory"
    );
    let mut running = agent.start();
    let meters: Vec<_> = (0..METERS)
        .map(|number| start_meter(&world, net, number, port))
        .collect();

    let mut joined = BTreeSet::new();
    let mut seen = Vec::new();
    let complete = tokio::time::timeout(DEADLINE, async {
        loop {
            let event = running.events.recv().await.expect("the agent runs");
            seen.push(event.event.clone());
            match event.event {
                ProviderEvent::Joined { meter, .. } => drop(joined.insert(meter)),
                ProviderEvent::Aggregated(published) if published.included.len() == 5 => {
                    return (published, event.latency.unwrap());
                }
                ProviderEvent::Alarm(alarm) => panic!("{alarm}"),
                _ => {}
            }
        }
    });
    let complete = complete.await;
    let (published, latency) =
        complete.unwrap_or_else(|_| panic!("no round with all meters: {seen:#?}"));
    let sum: u64 = (1..=METERS).map(|number| number * ENERGY).sum();
    assert_eq!(published.sums, [MilliwattHours(sum)]);
    assert!(latency < Duration::from_secs(60), "{latency:?}");
    let included: BTreeSet<_> = published.included.iter().copied().collect();
    assert_eq!(included, joined);

    let third_party = world
        .authority
        .enrol_third_party(KeyPair::generate().unwrap(), Some(net), &Terms::default())
        .unwrap();
    third_party.write(&world.path("third-party")).unwrap();
    let topic = Topic::Public {
        net,
        kind: Public::Aggregate,
    };
    let world_again = std::sync::Arc::new(world);
    let world = std::sync::Arc::clone(&world_again);
    let read = tokio::task::spawn_blocking(move || {
        let public = mosquitto_sub(&world, port, &topic.to_string())?;
        let meters = mosquitto_sub(&world, port, &format!("dcnet/1/{net}/meter/+/up/#"))?;
        Some((public, meters))
    });
    if let Some((output, meters)) = read.await.unwrap() {
        let refused = String::from_utf8_lossy(&meters.stderr).to_lowercase();
        assert!(
            meters.stdout.is_empty() && refused.contains("denied"),
            "{meters:?}"
        );
        assert!(output.status.success(), "{output:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["net"], net.to_string());
        assert_eq!(json["verified"], true);
        assert_eq!(json["members"], METERS);
        assert!(json["round"].as_u64().unwrap() >= published.round.0);
        println!("{json}");
    }
    for meter in meters {
        meter.abort();
    }
    running.stop().await.unwrap();
    let store = world_again.store();
    store.check().unwrap();
    let first = published.round;
    assert_eq!(store.included_in(net, first).unwrap().len(), 5);
    broker.stop().await;
}
