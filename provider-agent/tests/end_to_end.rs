//! The agent, the broker and meters over real TLS sockets; a third party reads the sum.

#[path = "../../lab/tests/foreign/mod.rs"]
mod foreign;
mod world;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use dcnet::provider::ProviderEvent;
use dcnet::topic::{Public, Topic};
use dcnet::units::MilliwattHours;
use gateway_admin::{KeyPair, Terms};
use link::Clock;
use provider_agent::Agent;
use world::sockets::{ENERGY, METERS, PERIOD_MS, start_broker, start_meter};
use world::{DEADLINE, World, policy};

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
            foreign::skip("mosquitto_sub is not installed (Debian: mosquitto-clients)");
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
    world.config.broker.port = port;
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
        .map(|number| start_meter(&world, net, number, port, PERIOD_MS))
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
        let kind = Public::HomeAssistant;
        let discovery = mosquitto_sub(&world, port, &Topic::Public { net, kind }.to_string())?;
        Some((public, meters, discovery))
    });
    if let Some((output, meters, discovery)) = read.await.unwrap() {
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
        let discovery: serde_json::Value = serde_json::from_slice(&discovery.stdout).unwrap();
        assert_eq!(
            discovery["device"]["identifiers"][0],
            format!("dcnet-{net}")
        );
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
