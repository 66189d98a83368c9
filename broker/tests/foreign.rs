//! The same rights at another broker: a real mosquitto with the exported list.

mod rig;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use broker::{Certified, Format};
use rig::*;

/// A running mosquitto; killed when dropped.
struct Mosquitto {
    child: Child,
    address: SocketAddr,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mosquitto {
    /// With the certificates of a rig and this list; at a port that is free.
    fn start(program: &PathBuf, rig: &Rig, acl: &str) -> Self {
        let at = |name: &str| rig.directory.path().join(name).display().to_string();
        fs::write(at("acl"), acl).unwrap();
        fs::write(at("own.key"), rig.own_key_for_openssl()).unwrap();
        for _ in 0..50 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let lines = [
                // As root it would become a user who cannot read the directory.
                "user root".to_owned(),
                format!("listener {} 127.0.0.1", address.port()),
                format!("cafile {}", at("ca.pem")),
                format!("certfile {}", at("broker.pem")),
                format!("keyfile {}", at("own.key")),
                format!("acl_file {}", at("acl")),
                "require_certificate true".to_owned(),
                "use_identity_as_username true".to_owned(),
                "allow_anonymous false".to_owned(),
                "log_type all".to_owned(),
            ];
            fs::write(at("mosquitto.conf"), lines.join("\n") + "\n").unwrap();
            let mut child = Command::new(program)
                .args(["-c", &at("mosquitto.conf")])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
            // It ends by itself if somebody took the port in between.
            let runs = log
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.ends_with(" running"));
            std::thread::spawn(move || log.for_each(drop));
            let mosquitto = Self { child, address };
            if runs {
                return mosquitto;
            }
        }
        panic!("mosquitto does not start");
    }
}

fn certified(rig: &Rig) -> Certified {
    Certified {
        providers: vec![rig.provider.id],
        nets: vec![NET],
        ..Certified::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meter_and_the_provider_have_their_rights_at_mosquitto() {
    let Some(program) = mosquitto() else {
        return;
    };
    let mut rig = Rig::start().await;
    rig.stop().await;
    let third = rig.third_party();
    let permissions = rig.directory.path().join("permissions.toml");
    let rule = "subscribe = [\"dcnet/1/+/public/#\"]";
    fs::write(
        &permissions,
        format!("[certificate.{}]\n{rule}\n", third.id),
    )
    .unwrap();
    rig.config.permissions = Some(permissions);
    let acl = rig
        .config
        .export_acl(Format::Mosquitto, &certified(&rig))
        .unwrap();
    let mosquitto = Mosquitto::start(&program, &rig, &acl);
    let client = async |identity: &Identity| {
        let options = rig.options_for(mosquitto.address, identity, &identity.client_id());
        Client::start(options).connected().await
    };
    let mut meter = client(&rig.meter).await;
    let mut provider = client(&rig.provider).await;
    let mut reader = client(&third).await;
    let other = rig.new_meter();
    let neighbour = client(&other).await;
    for filter in [
        rig.meter.topic("inbox/#"),
        format!("dcnet/1/{NET}/all/#"),
        format!("dcnet/1/{NET}/public/#"),
        // Not its own; mosquitto acknowledges it and withholds the messages.
        other.topic("inbox/#"),
        other.topic("up/#"),
    ] {
        meter.subscribe(&filter).await;
    }
    for filter in ["dcnet/1/+/meter/+/up/#", "dcnet/1/+/public/#"] {
        assert!(provider.subscribe(filter).await);
    }
    for kind in ["public", "all", "meter"] {
        reader.subscribe(&format!("dcnet/1/{NET}/{kind}/#")).await;
    }

    // Up: its own arrives, what it says in a neighbour's name does not.
    meter
        .publish(&other.topic("up/submission"), b"forged")
        .await;
    meter
        .publish(&format!("dcnet/1/{NET}/all/roster"), b"forged")
        .await;
    meter
        .publish(&format!("dcnet/1/{NET}/public/aggregate"), b"forged")
        .await;
    let own = rig.meter.topic("up/submission");
    meter.publish(&own, b"genuine").await;
    assert_eq!(provider.message().await, (own, b"genuine".to_vec(), false));
    neighbour
        .publish(&other.topic("up/reveal"), b"neighbour's")
        .await;
    assert_eq!(provider.message().await.1, b"neighbour's");

    // Down: its inbox, all and public arrive, the neighbour's inbox does not.
    provider
        .publish(&other.topic("inbox/roster"), b"not for it")
        .await;
    let down = [
        rig.meter.topic("inbox/roster"),
        format!("dcnet/1/{NET}/all/roster"),
        format!("dcnet/1/{NET}/public/aggregate"),
    ];
    for topic in &down {
        provider.publish(topic, b"from the provider").await;
    }
    for topic in &down {
        assert_eq!(meter.message().await.0, *topic);
    }
    // Third parties read public topics, although they have a certificate as meters have.
    assert_eq!(reader.message().await.0, down[2]);
    reader
        .publish(&third.topic("up/submission"), b"forged")
        .await;
    reader.acknowledged().await;
    meter.publish(&rig.meter.topic("up/reveal"), b"last").await;
    // The provider hears itself on public topics, then the meter's last and nothing between.
    assert_eq!(provider.message().await.0, down[2]);
    assert_eq!(provider.message().await.1, b"last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_wants_a_certificate_too() {
    let Some(program) = mosquitto() else {
        return;
    };
    let mut rig = Rig::start().await;
    rig.stop().await;
    let acl = rig
        .config
        .export_acl(Format::Mosquitto, &certified(&rig))
        .unwrap();
    let mosquitto = Mosquitto::start(&program, &rig, &acl);
    if let Ok(mut raw) = rig.try_raw_at(mosquitto.address, rig.tls(None)).await {
        raw.try_send(&connect(4, "anybody", &[])).await;
        assert_eq!(raw.packet().await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_party_reads_the_net_of_its_certificate_at_mosquitto() {
    let Some(program) = mosquitto() else {
        return;
    };
    let mut rig = Rig::start().await;
    rig.stop().await;
    let (kept, unnamed, free) = (rig.third_party(), rig.third_party(), rig.third_party());
    let permissions = rig.directory.path().join("permissions.toml");
    let other = format!("dcnet/1/{OTHER_NET}/public/status");
    let text = format!(
        "[all]\nsubscribe = [\"dcnet/1/+/public/#\"]\n\
         [certificate.{}]\nsubscribe = [{other:?}]\n[certificate.{}]\n",
        kept.id, free.id
    );
    fs::write(&permissions, text).unwrap();
    rig.config.permissions = Some(permissions);
    let mut certified = certified(&rig);
    certified.third_parties = [(kept.id, NET), (unnamed.id, NET)].into();
    let acl = rig
        .config
        .export_acl(Format::Mosquitto, &certified)
        .unwrap();
    let told = acl
        .lines()
        .filter(|line| line.contains("--certificate ID=NET"));
    assert_eq!(told.count(), 1, "of the one whose net is not known:\n{acl}");
    let mosquitto = Mosquitto::start(&program, &rig, &acl);
    let client = async |identity: &Identity| {
        let options = rig.options_for(mosquitto.address, identity, &identity.client_id());
        Client::start(options).connected().await
    };
    let provider = client(&rig.provider).await;
    let mut readers = Vec::new();
    for identity in [&kept, &unnamed, &free] {
        let mut reader = client(identity).await;
        reader.subscribe("dcnet/1/+/public/#").await;
        readers.push(reader);
    }
    let own = format!("dcnet/1/{NET}/public/status");
    for topic in [&other, &own] {
        provider.publish(topic, b"from the provider").await;
    }
    let [kept, unnamed, free] = &mut readers[..] else {
        panic!("three readers");
    };
    for reader in [kept, unnamed] {
        assert_eq!(reader.message().await.0, own, "and nothing before");
    }
    assert_eq!(free.message().await.0, other);
}
