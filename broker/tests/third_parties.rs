//! Third parties with user and password: who gets in, what they may read, and what
//! changes while they are connected.

mod rig;

use broker::{Broker, Refusal};
use dcnet::identity::Role;
use rig::*;
use std::fs;

const PASSWORD: &str = "correct horse";
const EVERYTHING: &str = "[all]\nsubscribe = [\"dcnet/1/+/public/#\"]\n";

fn public() -> String {
    format!("dcnet/1/{NET}/public/#")
}

/// The code of the SUBACK.
async fn subscribed(raw: &mut Raw, version: u8, filter: &str) -> u8 {
    raw.send(&subscribe(version, 9, filter, 1)).await;
    let (first, body) = raw.packet().await.unwrap();
    assert_eq!(first, 0x90);
    *body.last().unwrap()
}

/// Whether a session still answers.
async fn alive(raw: &mut Raw) -> bool {
    raw.try_send(&[0xc0, 0]).await;
    raw.packet().await == Some((0xd0, Vec::new()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_right_password_gets_in_and_reads_public_topics_only() {
    let rig = Rig::serving(&[("dashboard", PASSWORD)], EVERYTHING).await;
    for version in [4, 5] {
        let denied = if version == 4 { 0x80 } else { 0x87 };
        let (mut raw, code) = rig.login(version, "dashboard", PASSWORD).await;
        assert_eq!(code, 0);
        for (filter, expected) in [
            (public(), 1),
            ("dcnet/1/+/public/#".to_owned(), 1),
            (format!("dcnet/1/{NET}/all/#"), denied),
            (rig.meter.topic("up/#"), denied),
            (rig.meter.topic("inbox/#"), denied),
            ("#".to_owned(), denied),
            ("+/+/+/public/#".to_owned(), denied),
        ] {
            assert_eq!(
                subscribed(&mut raw, version, &filter).await,
                expected,
                "{filter}"
            );
        }
    }
    let (mut raw, _) = rig.login(5, "dashboard", PASSWORD).await;
    for topic in [
        format!("dcnet/1/{NET}/public/x"),
        rig.meter.topic("up/status"),
    ] {
        raw.send(&publish(5, topic.as_bytes(), 2, 7, &[], b"forged"))
            .await;
        let (first, body) = raw.packet().await.unwrap();
        assert_eq!((first, &body[..3]), (0x40, &[0, 7, 0x87][..]), "{topic}");
    }
    let counters = rig.broker().counters();
    assert_eq!(counters.refused(Refusal::Publish), 2);
    assert!(counters.users["dashboard"].bytes_in > 0);
    assert!(counters.devices.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_is_refused_alike_and_counted() {
    let rig = Rig::serving(&[("dashboard", PASSWORD)], EVERYTHING).await;
    for (version, expected) in [(4, 4), (5, 0x86)] {
        for (user, password) in [("dashboard", "wrong horse"), ("nobody", PASSWORD)] {
            let (mut raw, code) = rig.login(version, user, password).await;
            assert_eq!(code, expected, "{user}");
            assert_eq!(raw.packet().await, None, "closed");
        }
        let address = rig.broker().third_party_addrs()[0];
        let mut raw = rig.try_raw_at(address, rig.tls(None)).await.unwrap();
        raw.send(&connect(version, &rig.meter.client_id(), &[]))
            .await;
        assert_eq!(raw.packet().await.unwrap().1[1], expected, "no password");
    }
    assert_eq!(rig.refused(Refusal::Login), 6);
    assert_eq!(rig.broker().counters().sessions, 0);
    // Nor does anybody unknown get much memory.
    let address = rig.broker().third_party_addrs()[0];
    let mut raw = rig.try_raw_at(address, rig.tls(None)).await.unwrap();
    let long = "x".repeat(9000);
    raw.try_send(&connect_as(5, "", "dashboard", &long)).await;
    assert_eq!(raw.packet().await, None);
    until("counted", || rig.refused(Refusal::TooLarge) == 1).await;
    // The agents' own listener never asks for a password.
    if let Ok(mut raw) = rig.try_raw(rig.tls(None)).await {
        raw.try_send(&connect_as(4, "dashboard", "dashboard", PASSWORD))
            .await;
        assert_eq!(raw.packet().await, None);
    }
    until("refused", || rig.refused(Refusal::Tls) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_what_their_certificate_says_on_every_listener() {
    let rig = Rig::serving(&[("dashboard", PASSWORD)], EVERYTHING).await;
    let address = rig.broker().third_party_addrs()[0];
    let tls = rig.tls(Some(&rig.meter));
    let mut raw = rig.try_raw_at(address, tls.clone()).await.unwrap();
    raw.send(&connect(5, &rig.meter.client_id(), &[])).await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
    assert_eq!(
        subscribed(&mut raw, 5, &rig.meter.topic("inbox/#")).await,
        1
    );
    // A password changes nothing about who a certificate's holder is.
    let mut raw = rig.try_raw_at(address, tls).await.unwrap();
    raw.send(&connect_as(5, "dashboard", "dashboard", PASSWORD))
        .await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0x85);
    let foreign = Ca::new().issue(Role::Meter, Some(NET));
    if let Ok(mut raw) = rig.try_raw_at(address, rig.tls(Some(&foreign))).await {
        raw.try_send(&connect_as(5, "dashboard", "dashboard", PASSWORD))
            .await;
        assert_eq!(
            raw.packet().await,
            None,
            "a foreign certificate is worse than none"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_slowed_down_and_locks_nobody_else_out() {
    let users = [("dashboard", PASSWORD), ("other", "battery staple")];
    let rig = Rig::serving(&users, EVERYTHING).await;
    // However slow the machine, the pauses grow beyond the time of an attempt.
    let mut codes = Vec::new();
    while rig.refused(Refusal::BackOff) == 0 {
        codes.push(rig.login(5, "dashboard", "wrong horse").await.1);
        assert!(codes.len() < 20, "never slowed down");
    }
    let last = codes.pop().unwrap();
    assert_eq!(last, 0x9f, "connection rate exceeded");
    assert!(codes.len() >= 3 && codes.iter().all(|&code| code == 0x86));
    assert_eq!(rig.login(5, "other", "battery staple").await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_third_party_reads_what_the_permission_file_gives_it() {
    let users = [("narrow", PASSWORD), ("plain", PASSWORD)];
    let rig = Rig::serving(&users, "").await;
    let (listed, unlisted) = (rig.third_party(), rig.third_party());
    rig.replace(
        "permissions.toml",
        &format!(
            "[all]\nsubscribe = [\"dcnet/1/+/public/status\"]\n\
             [user.narrow]\nsubscribe = [\"dcnet/1/{OTHER_NET}/public/aggregate\"]\n\
             [certificate.{}]\nsubscribe = [\"dcnet/1/+/public/#\"]\n",
            listed.id
        ),
    );
    rig.broker().reload().await;
    let of = |net, kind: &str| format!("dcnet/1/{net}/public/{kind}");
    for (user, filter, expected) in [
        ("narrow", of(OTHER_NET, "aggregate"), 1),
        ("narrow", of(OTHER_NET, "status"), 1),
        ("narrow", of(NET, "aggregate"), 0x87),
        ("plain", of(NET, "status"), 1),
        ("plain", of(OTHER_NET, "aggregate"), 0x87),
    ] {
        let (mut raw, code) = rig.login(5, user, PASSWORD).await;
        assert_eq!(code, 0);
        assert_eq!(
            subscribed(&mut raw, 5, &filter).await,
            expected,
            "{user} {filter}"
        );
    }
    // The certificate names a net, and no rule gives more than the certificate.
    for (identity, filter, expected) in [
        (&listed, of(NET, "#"), 1),
        (&listed, of(OTHER_NET, "#"), 0x87),
        (&unlisted, of(NET, "status"), 1),
        (&unlisted, of(NET, "#"), 0x87),
    ] {
        let mut raw = rig.raw_session(identity, 5).await;
        assert_eq!(subscribed(&mut raw, 5, &filter).await, expected, "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn withdrawn_permissions_end_the_sessions_that_used_them_and_no_others() {
    let users = [("one", PASSWORD), ("two", PASSWORD)];
    let rig = Rig::serving(&users, EVERYTHING).await;
    let mut pair = Pair::start(&rig).await;
    let mut sessions = Vec::new();
    for (user, version) in [("one", 5), ("one", 4), ("two", 5)] {
        let address = rig.broker().third_party_addrs()[0];
        let mut raw = rig.try_raw_at(address, rig.tls(None)).await.unwrap();
        let id = format!("session-{version}");
        raw.send(&connect_as(version, &id, user, PASSWORD)).await;
        assert_eq!(raw.packet().await.unwrap().1[1], 0);
        sessions.push(raw);
    }
    assert_eq!(subscribed(&mut sessions[0], 5, &public()).await, 1);
    assert_eq!(subscribed(&mut sessions[1], 4, &public()).await, 1);
    let status = format!("dcnet/1/{NET}/public/status");
    assert_eq!(subscribed(&mut sessions[2], 5, &status).await, 1);

    // A file that is wrong changes nothing.
    rig.replace("permissions.toml", "[all]\nsubscribe = [\"#\"]\n");
    until("a refused file", || {
        rig.broker().counters().reloads_refused == 1
    })
    .await;
    for raw in &mut sessions {
        assert!(alive(raw).await);
    }
    // This one is taken up without being asked for.
    let narrow = "[all]\nsubscribe = [\"dcnet/1/+/public/status\"]\n";
    rig.replace("permissions.toml", narrow);
    let (first, body) = sessions[0].end().await.unwrap();
    assert_eq!((first, body[0]), (0xe0, 0x87), "not authorized");
    let reason = String::from_utf8_lossy(&body).into_owned();
    assert!(reason.contains("permission withdrawn"), "{reason}");
    assert_eq!(sessions[1].end().await, None, "3.1.1 is only closed");
    assert!(alive(&mut sessions[2]).await, "who reads less stays");
    pair.exchange("new permissions").await;
    let counters = rig.broker().counters();
    assert_eq!((counters.withdrawn, counters.reloads), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removed_users_and_changed_passwords_end_sessions() {
    let users = [
        ("gone", PASSWORD),
        ("changed", PASSWORD),
        ("stays", PASSWORD),
    ];
    let rig = Rig::serving(&users, EVERYTHING).await;
    let file = rig.config.passwords.clone().unwrap();
    let (mut gone, _) = rig.login(5, "gone", PASSWORD).await;
    let (mut changed, _) = rig.login(5, "changed", PASSWORD).await;
    let (mut stays, _) = rig.login(5, "stays", PASSWORD).await;
    let text = fs::read_to_string(&file).unwrap();
    rig.replace("passwords", "no password file");
    rig.broker().reload().await;
    assert!(rig.broker().counters().reloads_refused >= 1);
    assert!(alive(&mut gone).await, "a wrong file changes nothing");
    fs::remove_file(&file).unwrap();
    rig.broker().reload().await;
    assert!(alive(&mut gone).await, "nor does a missing one");
    rig.replace("passwords", &text);

    broker::remove_user(&file, "gone").unwrap();
    broker::set_password(&file, "changed", "another horse").unwrap();
    rig.broker().reload().await;
    for raw in [&mut gone, &mut changed] {
        let (first, body) = raw.end().await.unwrap();
        assert_eq!((first, body[0]), (0xe0, 0x87));
        let reason = String::from_utf8_lossy(&body).into_owned();
        assert!(
            reason.contains("user removed or password changed"),
            "{reason}"
        );
    }
    assert!(alive(&mut stays).await);
    assert_eq!(rig.login(5, "gone", PASSWORD).await.1, 0x86);
    assert_eq!(rig.login(5, "changed", PASSWORD).await.1, 0x86);
    assert_eq!(rig.login(5, "changed", "another horse").await.1, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_new_connections_and_drops_none() {
    let rig = Rig::serving(&[], EVERYTHING).await;
    let mut pair = Pair::start(&rig).await;
    let shown = async || {
        let raw = rig.raw(&rig.meter).await;
        let (_, tls) = raw.stream.get_ref();
        tls.peer_certificates().unwrap()[0].to_vec()
    };
    let own = shown().await;
    let next = rig.ca.issue(Role::Broker, None);
    // A certificate without its key is refused, and the old pair stays.
    rig.replace("broker.pem", &next.pem);
    rig.broker().reload().await;
    assert!(rig.broker().counters().reloads_refused >= 1);
    assert_eq!(shown().await, own);
    rig.replace("broker.key", &next.key.serialize_pem());
    rig.broker().reload().await;
    assert_eq!(shown().await, next.certificate.der());
    pair.exchange("a new certificate").await;
    // A meter's is not taken for the broker's.
    rig.replace("broker.pem", &rig.meter.pem);
    rig.replace("broker.key", &rig.meter.key.serialize_pem());
    rig.broker().reload().await;
    assert_eq!(shown().await, next.certificate.der());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_told_at_the_start() {
    let rig = Rig::serving(&[], EVERYTHING).await;
    let error = async |change: &dyn Fn(&mut broker::Config)| {
        let mut config = rig.config.clone();
        change(&mut config);
        format!("{:#}", Broker::start(config).await.err().unwrap())
    };
    let message = error(&|config| config.passwords = None).await;
    assert!(message.contains("listen_third_parties needs"), "{message}");
    let message = error(&|config| config.metrics = "0.0.0.0:0".parse().ok()).await;
    assert!(message.contains("metrics"), "{message}");
    fs::write(
        rig.directory.path().join("bad"),
        "[all]\nsubscribe = [\"#\"]",
    )
    .unwrap();
    let bad = rig.directory.path().join("bad");
    let message = error(&|config| config.permissions = Some(bad.clone())).await;
    assert!(message.contains("line 2"), "{message}");
}
