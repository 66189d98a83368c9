//! What the gateway administrator and the operator put into the identity directory while the
//! agent runs, or before it starts.

mod world;

use std::fs;
use std::path::Path;
use std::time::Duration;

use dcnet::identity::DeviceId;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{Provider, ProviderEvent};
use dcnet::time::Now;
use dcnet::topic::{NetId, Topic, Up};
use gateway_admin::{Bundle, KeyPair, Terms};
use link::Journal;
use provider_agent::store::NetRecord;
use provider_agent::{Agent, Running, utc};
use world::{DEADLINE, World, policy};

/// A world whose broker nobody can reach, with a net.
fn unconnected() -> (World, NetId) {
    let mut world = World::new();
    world.without_broker();
    let net = world.create_net(policy(60, 20_000, 4), &["import"]);
    (world, net)
}

/// Enrols a meter and writes its registration into the log.
fn member(world: &World, net: NetId, name: &str) -> DeviceId {
    let meter = world.meter(net, name, 4);
    let mut store = world.store();
    let config = world.identity().provider_config(80, None);
    let mut provider = Provider::new(config, store.load(net).unwrap(), [1; 32]).unwrap();
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    let topic = Topic::Up {
        net,
        meter: meter.key.id(),
        kind: Up::Register,
    };
    let payload =
        dcnet::membership::sign_registration(&meter.key, &meter.certificate, net, now.utc);
    provider.handle(Input::Received(vec![Received { topic, payload }]), now);
    while let Some(output) = provider.poll_output() {
        if let Output::Persist(record) = output {
            store.commit(&[NetRecord { net, record }]).unwrap();
        }
    }
    meter.key.id()
}

fn start(world: &World) -> Running {
    let mut agent = Agent::open(&world.config).unwrap();
    agent.revocations_every = Duration::from_millis(20);
    agent.start()
}

/// Waits for an event; `None` after the deadline.
async fn event<T>(
    running: &mut Running,
    mut wanted: impl FnMut(&ProviderEvent) -> Option<T>,
) -> Option<T> {
    let waiting = async {
        loop {
            let event = running.events.recv().await.expect("the agent runs");
            if let Some(found) = wanted(&event.event) {
                return found;
            }
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.ok()
}

async fn revoked(running: &mut Running) -> Option<DeviceId> {
    event(running, |event| match event {
        ProviderEvent::Revoked { meter, .. } => Some(*meter),
        _ => None,
    })
    .await
}

/// What `gateway-admin revoke` tells its user to copy.
fn deliver(world: &World, devices: &[DeviceId]) {
    let directory = world.config.identity.directory.join("revocations");
    fs::create_dir_all(&directory).unwrap();
    for statement in world.authority.revoke(devices).unwrap().statements {
        let name = statement.file_name().unwrap();
        put(&statement, &directory.join(name));
    }
    let list = world.config.identity.directory.join("revoked.cbor");
    put(&world.authority.revoked_path(), &list);
}

/// Copies a file so that nobody sees a part of it.
fn put(from: &Path, to: &Path) {
    let part = to.with_extension("part");
    fs::copy(from, &part).unwrap();
    fs::rename(part, to).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_reaches_the_log_at_once_and_at_the_next_start() {
    let (world, net) = unconnected();
    let [one, two, three] = ["one", "two", "three"].map(|name| member(&world, net, name));
    let mut running = start(&world);
    deliver(&world, &[one]);
    assert_eq!(revoked(&mut running).await, Some(one));
    deliver(&world, &[two]);
    assert_eq!(revoked(&mut running).await, Some(two));
    running.stop().await.unwrap();
    deliver(&world, &[three]);
    let mut running = start(&world);
    assert_eq!(revoked(&mut running).await, Some(three));
    assert_eq!(running.refused_revocations(), 0);
    running.stop().await.unwrap();
    let log = world.membership(net);
    assert!([one, two, three].iter().all(|id| log.is_revoked(id)));
    assert_eq!(log.size(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_nobody_trustworthy_signed_are_counted_once_and_revoke_nobody() {
    let (world, net) = unconnected();
    let [one, two] = ["one", "two"].map(|name| member(&world, net, name));
    let foreign = World::new();
    let stranger = foreign
        .authority
        .enrol_provider(KeyPair::generate().unwrap(), &Terms::default())
        .unwrap();
    let theirs = foreign.authority.revoke(&[stranger.id()]).unwrap();
    let directory = world.config.identity.directory.join("revocations");
    fs::create_dir(&directory).unwrap();
    fs::copy(&theirs.statements[0], directory.join(format!("{one}.cbor"))).unwrap();
    fs::write(directory.join("junk.cbor"), b"junk").unwrap();
    fs::write(directory.join("notes.txt"), b"not looked at").unwrap();
    fs::create_dir(directory.join("directory.cbor")).unwrap();
    let list = world.config.identity.directory.join("revoked.cbor");
    fs::copy(foreign.authority.revoked_path(), &list).unwrap();

    let problem = world.config.check().unwrap_err().to_string();
    assert!(problem.contains("revoked.cbor"), "{problem}");
    // None of it keeps the agent from starting, or from the next good file.
    let mut running = start(&world);
    assert_eq!(running.refused_revocations(), 4);
    deliver(&world, &[two]);
    assert_eq!(revoked(&mut running).await, Some(two));
    assert_eq!(running.refused_revocations(), 4, "each once");
    fs::write(world.path("junk"), b"other junk").unwrap();
    put(&world.path("junk"), &directory.join("junk.cbor"));
    world::until("the changed file is told", || {
        running.refused_revocations() == 5
    });
    running.stop().await.unwrap();
    assert!(world.membership(net).active(&one).is_some());
}

fn successor(world: &World) -> Bundle {
    let terms = Terms::default();
    let key = KeyPair::generate().unwrap();
    let successor = world.authority.enrol_provider(key, &terms).unwrap();
    let directory = world.config.identity.directory.join("successor");
    successor.write(&directory).unwrap();
    successor
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_over_every_net_and_then_goes_on_alone() {
    let (world, first) = unconnected();
    let second = world.create_net(policy(60, 20_000, 4), &["import"]);
    let bundle = successor(&world);
    let remarks = world.config.check().unwrap();
    let id = bundle.id().to_string();
    assert!(
        remarks.iter().any(|remark| remark.contains(&id)),
        "{remarks:?}"
    );

    let mut running = start(&world);
    for _ in 0..2 {
        let changed = event(&mut running, |event| match event {
            ProviderEvent::KeyChanged { provider } => Some(*provider),
            _ => None,
        });
        assert_eq!(changed.await, Some(bundle.id()));
    }
    running.stop().await.unwrap();
    for net in [first, second] {
        assert_eq!(world.membership(net).provider().id(), bundle.id());
    }

    // Both keys, the old one alone, and the new one alone.
    start(&world).stop().await.unwrap();
    let directory = &world.config.identity.directory;
    let aside = world.path("aside");
    fs::rename(directory.join("successor"), &aside).unwrap();
    let error = format!("{:#}", Agent::open(&world.config).err().unwrap());
    assert!(error.contains("handed over to a successor"), "{error}");
    for name in ["certificate.pem", "key.pem"] {
        fs::rename(aside.join(name), directory.join(name)).unwrap();
    }
    let running = start(&world);
    running.stop().await.unwrap();
    let log = world.membership(first);
    assert_eq!(log.head().index, 1, "it was handed over once");
    // And it makes nets of its own.
    let third = world.create_net(policy(60, 20_000, 4), &["import"]);
    assert_eq!(world.membership(third).provider().id(), bundle.id());
}

#[test]
fn a_successor_that_does_not_fit_is_refused_by_name() {
    let (world, _) = unconnected();
    successor(&world);
    let directory = world.config.identity.directory.join("successor");
    let refused = |named: &str| {
        let error = format!("{:#}", Agent::open(&world.config).err().unwrap());
        assert!(
            error.contains("successor") && error.contains(named),
            "{error}"
        );
    };
    let key = fs::read(directory.join("key.pem")).unwrap();
    fs::copy(
        world.config.identity.directory.join("key.pem"),
        directory.join("key.pem"),
    )
    .unwrap();
    refused("key.pem");
    fs::write(directory.join("key.pem"), key).unwrap();
    Agent::open(&world.config).unwrap();
    let third_party = world
        .authority
        .enrol_third_party(KeyPair::generate().unwrap(), None, &Terms::default())
        .unwrap();
    third_party.write(&world.path("third-party")).unwrap();
    fs::copy(
        world.path("third-party/certificate.pem"),
        directory.join("certificate.pem"),
    )
    .unwrap();
    refused("role");
    fs::remove_file(directory.join("certificate.pem")).unwrap();
    refused("certificate.pem");
}
