//! Who gets in, as whom, and what they may say and hear.

mod rig;

use broker::{Broker, Refusal};
use dcnet::identity::Role;
use rig::*;
use rumqttc::QoS;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_tls_1_3_with_a_certificate_of_the_ca_gets_in() {
    let rig = Rig::start().await;
    let foreign = Ca::new().issue(Role::Meter, Some(NET));
    let attempts = [
        (
            "TLS 1.2",
            rig.tls_of(Some(&rig.meter), &[&rustls::version::TLS12]),
        ),
        ("no certificate", rig.tls(None)),
        ("foreign CA", rig.tls(Some(&foreign))),
    ];
    for (count, (what, tls)) in attempts.into_iter().enumerate() {
        // With TLS 1.3 a client learns of the refusal only when it reads.
        if let Ok(mut raw) = rig.try_raw(tls).await {
            raw.try_send(&connect(4, &rig.meter.client_id(), &[])).await;
            assert_eq!(raw.packet().await, None, "{what}");
        }
        until(what, || rig.refused(Refusal::Tls) == count as u64 + 1).await;
    }
    rig.raw_session(&rig.meter, 4).await;
    assert_eq!(rig.broker().counters().sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_id_is_bound_to_the_certificate() {
    let rig = Rig::start().await;
    let other = rig.new_meter().client_id();
    for identity in [&rig.meter, &rig.provider] {
        for id in ["", "meter", other.as_str()] {
            for (version, code) in [(4, 2), (5, 0x85)] {
                let mut raw = rig.raw(identity).await;
                raw.send(&connect(version, id, &[])).await;
                let (first, body) = raw.packet().await.unwrap();
                assert_eq!(
                    (first, body[1]),
                    (0x20, code),
                    "version {version}, id {id:?}"
                );
                assert_eq!(raw.packet().await, None);
            }
        }
        rig.raw_session(identity, 4).await;
    }
    assert_eq!(rig.refused(Refusal::ClientId), 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn third_parties_name_their_sessions_but_have_few_and_only_their_own() {
    let rig = Rig::with(|config, _, _| config.limits.sessions_per_third_party = 2).await;
    let (one, two) = (rig.third_party(), rig.third_party());
    let session = async |identity: &Identity, id: &str| {
        let mut raw = rig.raw(identity).await;
        raw.send(&connect(5, id, &[])).await;
        let code = raw.packet().await.unwrap().1[1];
        (raw, code)
    };
    let (mut first, code) = session(&one, "dashboard").await;
    assert_eq!(code, 0);
    let (_other, code) = session(&two, "dashboard").await;
    assert_eq!(code, 0, "the same name of another party is another session");
    let (_second, code) = session(&one, "").await;
    assert_eq!(code, 0);
    let (_third, code) = session(&one, "third").await;
    assert_eq!(code, 0x97);
    let (_again, code) = session(&one, "dashboard").await;
    assert_eq!(code, 0, "a takeover is no additional session");
    let (kind, body) = first.end().await.unwrap();
    assert_eq!((kind, body[0]), (0xe0, 0x8e), "session taken over");
    assert_eq!(rig.broker().counters().takeovers, 1);
    assert_eq!(rig.broker().counters().sessions_open, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_without_business_here_are_refused() {
    let rig = Rig::start().await;
    for role in [Role::Administrator, Role::Broker] {
        let identity = rig.ca.issue(role, None);
        let mut raw = rig.raw(&identity).await;
        raw.send(&connect(4, &identity.client_id(), &[])).await;
        assert_eq!(raw.packet().await, Some((0x20, vec![0, 5])));
    }
    assert_eq!(rig.refused(Refusal::Role), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_follow_the_role() {
    let rig = Rig::start().await;
    let other = rig.new_meter();
    let third = rig.third_party();
    let public = format!("dcnet/1/{NET}/public/#");
    let cases = [
        (&rig.meter, rig.meter.topic("inbox/#"), true),
        (&rig.meter, format!("dcnet/1/{NET}/all/#"), true),
        (&rig.meter, public.clone(), true),
        (&rig.meter, other.topic("inbox/#"), false),
        (&rig.meter, rig.meter.topic("up/#"), false),
        (&rig.meter, format!("dcnet/1/{OTHER_NET}/all/#"), false),
        (&rig.meter, "dcnet/1/+/all/#".to_owned(), false),
        (&rig.meter, "#".to_owned(), false),
        (&rig.provider, "dcnet/1/+/meter/+/up/#".to_owned(), true),
        (&rig.provider, "dcnet/1/+/meter/+/inbox/#".to_owned(), false),
        (&third, public, true),
        (&third, rig.meter.topic("up/#"), false),
        (&third, format!("dcnet/1/{NET}/all/#"), false),
        (&third, "dcnet/1/+/public/#".to_owned(), false),
    ];
    for (version, denied) in [(4, 0x80), (5, 0x87)] {
        for (identity, filter, granted) in &cases {
            let mut raw = rig.raw_session(identity, version).await;
            raw.send(&subscribe(version, 9, filter, 1)).await;
            let (first, body) = raw.packet().await.unwrap();
            assert_eq!((first, &body[..2]), (0x90, &[0, 9][..]));
            let code = if *granted { 1 } else { denied };
            assert_eq!(body.last(), Some(&code), "{filter}, version {version}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_publishes_never_reach_anyone() {
    let rig = Rig::start().await;
    let mut pair = Pair::start(&rig).await;
    let victim = rig.new_meter();
    let forbidden = victim.topic("up/submission");

    let mut v5 = rig.raw_session(&rig.meter, 5).await;
    v5.send(&publish(5, forbidden.as_bytes(), 0, 0, &[], b"forged"))
        .await;
    v5.send(&publish(5, forbidden.as_bytes(), 2, 7, &[], b"forged"))
        .await;
    let (first, body) = v5.packet().await.unwrap();
    assert_eq!(
        (first, &body[..3]),
        (0x40, &[0, 7, 0x87][..]),
        "PUBACK: not authorized"
    );
    // The connection still serves what is allowed.
    let own = rig.meter.topic("up/submission");
    v5.send(&publish(5, own.as_bytes(), 2, 8, &[], b"genuine"))
        .await;
    assert_eq!(v5.packet().await, Some((0x40, vec![0, 8])));
    drop(v5);

    let mut v4 = rig.raw_session(&rig.meter, 4).await;
    v4.send(&publish(4, forbidden.as_bytes(), 2, 7, &[], b"forged"))
        .await;
    assert_eq!(
        v4.end().await,
        None,
        "3.1.1: closed without acknowledgement"
    );

    assert_eq!(rig.refused(Refusal::Publish), 3);

    let mut stubborn = rig.raw_session(&rig.meter, 5).await;
    for _ in 0..16 {
        stubborn
            .try_send(&publish(5, forbidden.as_bytes(), 0, 0, &[], b"forged"))
            .await;
    }
    let (first, body) = stubborn.end().await.unwrap();
    assert_eq!((first, body[0]), (0xe0, 0x87), "enough is enough");
    assert_eq!(rig.refused(Refusal::Publish), 3 + 16);

    // Order is kept, so anything forged would have arrived before.
    assert_eq!(
        pair.provider.message().await,
        (own, b"genuine".to_vec(), false)
    );
    pair.exchange("forbidden publishes").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forbidden_wills_are_refused_and_allowed_ones_published() {
    let rig = Rig::start().await;
    let mut provider = rig.client(&rig.provider).await;
    assert!(provider.subscribe("dcnet/1/+/meter/+/up/#").await);
    let will = |topic: &str| {
        let mut options = rig.options(&rig.meter, &rig.meter.client_id());
        options.set_last_will(rumqttc::LastWill::new(
            topic,
            "gone",
            QoS::AtLeastOnce,
            false,
        ));
        Client::start(options)
    };
    let error = will(&rig.new_meter().topic("up/status")).failure().await;
    assert!(error.contains("NotAuthorized"), "{error}");
    let status = rig.meter.topic("up/status");
    drop(will(&status).connected().await);
    assert_eq!(
        provider.message().await,
        (status.clone(), b"gone".to_vec(), false)
    );
    // Not after a DISCONNECT.
    let client = will(&status).connected().await;
    client.mqtt.disconnect().await.unwrap();
    until("end", || rig.broker().counters().sessions_open == 1).await;
    let client = rig.client(&rig.meter).await;
    client.publish(&status, b"back").await;
    assert_eq!(provider.message().await.1, b"back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_and_topics_are_limited_over_all_connections_of_a_device() {
    let rig = Rig::with(|config, _, _| {
        config.limits.filters_per_client = 2;
        config.limits.topics_per_client = 2;
    })
    .await;
    for round in 0..2 {
        let mut raw = rig.raw_session(&rig.meter, 5).await;
        for (index, code) in [(0, 1), (1, 1), (2, 0x97)] {
            raw.send(&subscribe(
                5,
                1,
                &rig.meter.topic(&format!("inbox/{index}")),
                1,
            ))
            .await;
            assert_eq!(
                raw.packet().await.unwrap().1.last(),
                Some(&code),
                "round {round}"
            );
        }
        for (index, answer) in [(0, vec![0, 5]), (1, vec![0, 5]), (2, vec![0, 5, 0x97, 0])] {
            let topic = rig.meter.topic(&format!("up/{index}"));
            raw.send(&publish(5, topic.as_bytes(), 2, 5, &[], b"x"))
                .await;
            assert_eq!(raw.packet().await, Some((0x40, answer)), "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_file_that_others_may_read_is_refused() {
    let rig = Rig::start().await;
    fs::set_permissions(&rig.config.key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Broker::start(rig.config.clone())
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("chmod 600") && error.contains("0640"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_are_as_long_as_the_role_needs() {
    let rig = Rig::start().await;
    let third_party = rig.third_party();
    for (identity, longest) in [
        (&rig.provider, 256 * 1024),
        (&rig.meter, 72 * 1024),
        (&third_party, 8 * 1024),
    ] {
        let mut raw = rig.raw(identity).await;
        raw.send(&connect(5, &identity.client_id(), &[])).await;
        let (_, connack) = raw.packet().await.unwrap();
        let told = [&[0x27][..], &u32::to_be_bytes(longest)].concat();
        assert!(
            connack.windows(5).any(|part| part == told),
            "{longest} in CONNACK"
        );
        let topic = identity.topic("up/bill");
        let head = 2 + topic.len() + 2 + 1;
        let payload = vec![0; longest as usize - head];
        let just = publish(5, topic.as_bytes(), 2, 1, &[], &payload);
        raw.send(&just).await;
        let (first, puback) = raw.packet().await.unwrap();
        assert_eq!((first, &puback[..2]), (0x40, &[0, 1][..]), "{longest}");
        let longer = [payload, vec![0]].concat();
        let longer = publish(5, topic.as_bytes(), 2, 2, &[], &longer);
        raw.try_send(&longer[..longest as usize / 2]).await;
        let (first, body) = raw.end().await.unwrap();
        assert_eq!((first, body[0]), (0xe0, 0x95), "{longest}");
    }
    assert_eq!(rig.refused(Refusal::TooLarge), 3);
}
