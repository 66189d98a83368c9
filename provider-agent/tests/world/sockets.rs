//! A broker and meters that run beside the provider, over real TLS sockets.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dcnet::meter::{Meter, MeterCommand};
use dcnet::output::Store;
use dcnet::reading::Boundary;
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use gateway_admin::{KeyPair, Terms};
use link::{Clock, Connection, Driver, MeterJournal};
use provider_agent::utc;
use tokio::task::JoinHandle;

use super::World;

/// Meters of a small net.
pub const METERS: u64 = 5;
/// Length of its rounds.
pub const PERIOD_MS: u64 = 2000;
/// Energy of meter i in each interval: `i + 1` times this, in mWh.
pub const ENERGY: u64 = 1000;

pub async fn start_broker(world: &World) -> broker::Broker {
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
        ..broker::Config::default()
    };
    broker::Broker::start(config).await.unwrap()
}

/// A meter that counts the same energy in every interval of so many milliseconds; runs until
/// it is aborted.
pub fn start_meter(
    world: &World,
    net: NetId,
    number: u64,
    port: u16,
    period_ms: u64,
) -> JoinHandle<()> {
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
            let at = (now / period_ms + 1) * period_ms;
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
