//! Metrics for Prometheus.

mod rig;

use std::collections::{HashMap, HashSet};

use broker::Refusal;
use rig::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status line and headers, and body.
async fn get(rig: &Rig, path: &str, host: &str) -> (String, String) {
    let address = rig.broker().metrics_addr().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The samples of an OpenMetrics 1.0 text, after what its section 3 demands: one
/// block per family, type and help once, counters that end in `_total`, no sample
/// twice, and the end marked.
fn samples(text: &str) -> HashMap<String, f64> {
    let body = text.strip_suffix("# EOF\n").expect("the end is marked");
    let (mut families, mut kinds) = (HashSet::new(), HashMap::new());
    let mut current = String::new();
    let mut samples = HashMap::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (word, family) = (words.next().unwrap(), words.next().unwrap());
            let value = words.next().unwrap().to_owned();
            assert!(is_name(family), "{line}");
            if family != current {
                assert!(families.insert(family.to_owned()), "{family} comes again");
                current = family.to_owned();
            }
            assert!(["HELP", "TYPE", "UNIT"].contains(&word), "{line}");
            if word == "UNIT" {
                assert!(family.ends_with(&format!("_{value}")), "{line}");
            }
            let twice = kinds.insert((word.to_owned(), family.to_owned()), value);
            assert_eq!(twice, None, "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().unwrap();
        match kinds[&("TYPE".to_owned(), current.clone())].as_str() {
            "counter" => assert_eq!(name, format!("{current}_total")),
            "gauge" => assert_eq!(name, current),
            other => panic!("type {other}"),
        }
        if let Some(labels) = sample
            .strip_prefix(name)
            .filter(|labels| !labels.is_empty())
        {
            let inner = labels.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
            let (label, value) = inner.split_once('=').unwrap();
            assert!(is_name(label), "{line}");
            assert!(value.len() > 2 && value.starts_with('"') && value.ends_with('"'));
        }
        let twice = samples.insert(sample.to_owned(), value.parse().unwrap());
        assert_eq!(twice, None, "{line}");
    }
    samples
}

/// The metrics of the broker that alerts and dashboard name.
fn watched() -> HashSet<&'static str> {
    let rules = include_str!("../../monitoring/dcnet.rules.yaml");
    let dashboard = include_str!("../../monitoring/dcnet.dashboard.json");
    let words = [rules, dashboard].map(|text| {
        text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
            .filter(|word| word.starts_with("broker_"))
    });
    words.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_served_in_valid_form() {
    let rig = Rig::serving(&[("dashboard", "correct horse")], "").await;
    let mut pair = Pair::start(&rig).await;
    pair.exchange("the start").await;
    rig.login(5, "dashboard", "wrong horse").await;
    let (_session, code) = rig.login(5, "dashboard", "correct horse").await;
    assert_eq!(code, 0);
    let (head, body) = get(&rig, "/metrics", "localhost:9883").await;
    assert!(head.starts_with("http/1.1 200 ok"), "{head}");
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let samples = samples(&body);
    for (name, expected) in [
        ("broker_sessions_open", 3.0),
        ("broker_sessions_total", 3.0),
        ("broker_messages_received_total{role=\"meter\"}", 1.0),
        ("broker_messages_sent_total{role=\"meter\"}", 1.0),
        (
            "broker_refused_total{reason=\"wrong user or password\"}",
            1.0,
        ),
        ("broker_revocation_list_number", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}\n{body}");
    }
    for &reason in Refusal::ALL {
        let name = format!("broker_refused_total{{reason=\"{}\"}}", reason.as_str());
        assert!(samples.contains_key(&name), "{name}");
    }
    assert!(samples["broker_received_bytes_total{role=\"user\"}"] > 0.0);
    let ends = samples["broker_certificate_end_seconds"];
    assert!(ends > now().as_millis() as f64 / 1000.0);
    for name in watched() {
        let served = samples
            .keys()
            .any(|sample| sample.split('{').next() == Some(name));
        assert!(served, "{name} is not in:\n{body}");
    }
    let device = rig.provider.client_id();
    assert!(!body.contains(&device), "no device is told from another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_else_is_served_and_to_nobody_elses_name() {
    let rig = Rig::serving(&[], "").await;
    assert!(get(&rig, "/", "127.0.0.1").await.0.contains(" 404 "));
    for host in [
        "evil.example",
        "evil.example:9883",
        "",
        "127.0.0.1.evil.example",
    ] {
        let (head, _) = get(&rig, "/metrics", host).await;
        assert!(head.contains(" 421 "), "{host}: {head}");
    }
    assert!(
        get(&rig, "/metrics", "[::1]:9883")
            .await
            .0
            .contains(" 200 ")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_of_bytes_never_decreases() {
    let rig = Rig::serving(&[("dashboard", "correct horse")], "").await;
    let received = async |role: &str| {
        let (_, body) = get(&rig, "/metrics", "localhost").await;
        let name = format!("broker_received_bytes_total{{role={role:?}}}");
        samples(&body).get(&name).copied().unwrap_or_default()
    };
    // After TLS it is not known who it is.
    let address = rig.broker().third_party_addrs()[0];
    let mut raw = rig.try_raw_at(address, rig.tls(None)).await.unwrap();
    let before = received("none").await;
    raw.send(&connect_as(5, "dashboard", "dashboard", "correct horse"))
        .await;
    assert_eq!(raw.packet().await.unwrap().1[1], 0);
    assert!(received("none").await >= before);
    assert!(received("user").await > 0.0);
    // Of whom it never becomes known, it counts in the end.
    let before = received("none").await;
    let (mut raw, code) = rig.login(5, "dashboard", "wrong horses").await;
    assert_ne!(code, 0);
    raw.end().await;
    within("bytes of nobody", async {
        while received("none").await <= before {}
    })
    .await;
}

#[test]
fn the_alerts_are_tested_with_reasons_that_there_are() {
    let fixtures = include_str!("../../monitoring/dcnet.rules.test.yaml");
    let series = fixtures.split("broker_refused_total{").skip(1);
    let reasons: Vec<&str> = series
        .map(|rest| {
            let (_, reason) = rest.split_once("reason=\"").unwrap();
            reason.split('"').next().unwrap()
        })
        .collect();
    assert!(!reasons.is_empty());
    for reason in reasons {
        let known = Refusal::ALL.iter().any(|known| known.as_str() == reason);
        assert!(known, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_stand_beside_what_is_used_of_them() {
    let mut rig = Rig::serving(&[], "").await;
    rig.config.limits.topics = 11;
    rig.config.limits.filters = 12;
    rig.config.limits.retained_messages = 13;
    rig.config.limits.memory_mib = 1025;
    rig.config.limits.retained_bytes = 14;
    rig.restart().await;
    let (_, body) = get(&rig, "/metrics", "localhost").await;
    let samples = samples(&body);
    for (name, limit) in [
        ("broker_topics_limit", 11.0),
        ("broker_filters_limit", 12.0),
        ("broker_retained_messages_limit", 13.0),
        ("broker_retained_limit_bytes", 14.0),
        ("broker_log_limit_bytes", 1025.0 * 1024.0 * 1024.0),
    ] {
        assert_eq!(samples[name], limit, "{name}");
    }
}
