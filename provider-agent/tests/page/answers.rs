//! What the page answers, and to whom.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use dcnet::membership::sign_registration;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{Provider, ProviderRecord};
use dcnet::time::{Now, Round};
use dcnet::topic::{NetId, Topic, Up};
use link::Journal;
use provider_agent::store::NetRecord;
use provider_agent::utc;
use serde_json::{Value, json};

use crate::daemon::{Daemon, PASSWORD, PROGRAM, ask, request, set_password};
use crate::world::{World, aggregate, policy, roster};

const PERIOD: u32 = 900;

#[test]
fn nothing_but_health_is_told_without_the_password() {
    let world = World::new();
    world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    let daemon = Daemon::start(&world);
    let paths = [
        "/",
        "/page.js",
        "/uplot.js",
        "/api/overview",
        "/api/events",
        "/metrics",
        "/nothing",
        "/health/",
    ];
    for path in paths {
        let answer = ask(daemon.page, path, None);
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("set-password"), "{answer:?}");
        assert!(!answer.body.contains("Elm Street"), "{answer:?}");
    }
    let mut command = Command::new(PROGRAM)
        .args(["set-password", "--config"])
        .arg(world.path("provider.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = command.stdin.take().unwrap();
    writeln!(input, "{PASSWORD}").unwrap();
    drop(input);
    let output = command.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && said.contains("operator"),
        "{said}"
    );
    assert!(!said.contains(PASSWORD), "{said}");

    for path in paths {
        for credentials in [
            None,
            Some(("operator", "wrong horse")),
            Some(("household", PASSWORD)),
        ] {
            let answer = ask(daemon.page, path, credentials);
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
            assert!(answer.headers.contains("www-authenticate: basic"));
            assert!(answer.headers.contains("default-src 'none'"), "{answer:?}");
            // Every wrong password costs a second.
            if path != "/" && credentials.is_none() {
                break;
            }
        }
    }
    let page = daemon.get("/");
    assert_eq!(page.status, 200, "{page:?}");
    assert!(page.headers.contains("content-type: text/html"));
    assert!(page.headers.contains("cache-control: no-store"));
    let metrics = daemon.get("/metrics").body;
    assert!(
        metrics.contains("provider_agent_page_wrong_passwords_total 2"),
        "{metrics}"
    );
    assert!(metrics.contains("provider_agent_page_answers_total{status=\"403\"} 8"));

    // No broker is there, which is told to everybody; where it is, is not.
    let health = ask(daemon.page, "/health", None);
    assert_eq!(health.status, 503, "{health:?}");
    let told: Value = serde_json::from_str(&health.body).unwrap();
    let expected = json!({"is_healthy": false, "reasons": ["the broker is not connected"]});
    assert_eq!(told, expected);
}

#[test]
fn an_unknown_net_and_a_wrong_span_are_refused_in_words() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    for (path, status, named) in [
        ("/api/nets/elm".to_owned(), 400, "32 hexadecimal digits"),
        (
            format!("/api/nets/{}", "0".repeat(32)),
            404,
            "/api/overview",
        ),
        ("/api/nothing".to_owned(), 404, "the page is at /"),
        (
            format!("/api/nets/{net}/course?from=yesterday"),
            400,
            "2026-01-31",
        ),
        (
            format!("/api/nets/{net}/course?from=2026-01-02&until=2026-01-01"),
            400,
            "before until",
        ),
        (
            format!("/api/nets/{net}/course?from=1970-01-01&until=2026-01-01"),
            400,
            "400 days",
        ),
    ] {
        let answer = daemon.get(&path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        let error = error["error"].as_str().unwrap();
        assert!(error.contains(named), "{path}: {error}");
    }
    for wrong in ["offset=-1", "limit=many", "colour=1"] {
        let answer = daemon.get(&format!("/api/nets/{net}/members?{wrong}"));
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
    let metrics = daemon.get("/metrics").body;
    let counted = "provider_agent_page_answers_total{status=\"400\"} 7";
    assert!(metrics.contains(counted), "{metrics}");
}

/// Stores rounds `first..first + 5`: two final ones, a lost and a pending one, and one
/// without a roster.
fn store_rounds(world: &World, net: NetId, first: u64) {
    let lost = ProviderRecord::Lost {
        round: Round(first + 2),
        disruption: None,
        missing: Vec::new(),
    };
    let rosters = [0, 1, 2, 4].map(|round| roster(net, first + round, 0, 3));
    let mut store = world.store();
    store.commit(&rosters).unwrap();
    store
        .commit(&[
            aggregate(net, first, 0, 3),
            aggregate(net, first + 1, 0, 3),
            NetRecord { net, record: lost },
        ])
        .unwrap();
}

#[test]
fn load_curves_come_in_kwh_and_watts_with_what_has_no_sum() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import", "export"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    daemon.is_started();
    // A round has as many mWh as its number, times 1000.
    let hour = utc::now().as_millis() / 3_600_000 - 3;
    let first = hour * 4;
    store_rounds(&world, net, first);
    let at = |hours: u64| utc::text(dcnet::time::Timestamp((hour + hours) * 3_600_000));
    let path = format!("/api/nets/{net}/course?from={}&until={}", at(0), at(2));
    let course = daemon.json(&path);
    assert_eq!(course["bin_s"], PERIOD);
    assert_eq!(course["from"], json!(at(0)));
    let bins = course["bins"].as_array().unwrap();
    assert_eq!(bins.len(), 8, "{course:#}");
    let counts = |bin: &Value| {
        ["final", "pending", "lost", "without_roster"].map(|key| bin[key].as_u64().unwrap())
    };
    let found: Vec<_> = bins.iter().map(counts).collect();
    let without = [0, 0, 0, 1];
    assert_eq!(
        found[..4],
        [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], without]
    );
    assert_eq!(found[4..], [[0, 1, 0, 0], without, without, without]);
    let kwh = (first as f64) * 1000.0 / 1e6;
    let close = |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-6;
    assert!(close(&bins[0]["energy_kwh"]["import"], kwh), "{course:#}");
    assert!(close(&bins[0]["power_w"]["import"], kwh * 4000.0));
    assert_eq!(bins[2]["power_w"], json!({}));

    // The same over a longer span, in bins of an hour.
    let path = format!(
        "/api/nets/{net}/course?from={}&until={}",
        at(0),
        at(24 * 31)
    );
    let course = daemon.json(&path);
    assert_eq!(course["bin_s"], 3600);
    assert_eq!(counts(&course["bins"][0]), [2, 0, 1, 1]);
    let both = kwh + (first + 1) as f64 * 1000.0 / 1e6;
    assert!(close(&course["bins"][0]["energy_kwh"]["import"], both));
    assert!(close(
        &course["bins"][0]["power_w"]["import"],
        both * 2000.0
    ));

    let details = daemon.json(&format!("/api/nets/{net}"));
    assert_eq!(details["pending"], 1);
    assert_eq!(details["newest"]["round"], first + 1);
    assert_eq!(details["unfinished"][0]["status"], "pending");
    assert_eq!(details["unfinished"][1]["status"], "lost");
    assert!(
        details["unfinished"][1]["why"]
            .as_str()
            .unwrap()
            .contains("reveals")
    );
    let alarms = details["alarms"].as_array().unwrap().iter();
    let kinds: Vec<_> = alarms.map(|told| told["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["link", "silence"]);
    assert!(
        !daemon
            .get(&format!("/api/nets/{net}"))
            .body
            .contains("commit")
    );
}

#[test]
fn a_watching_page_is_told_at_once_and_others_are_let_in_meanwhile() {
    use std::io::{BufRead, BufReader};
    let world = World::new();
    world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    let credentials = Some(("operator", PASSWORD));
    let watching: Vec<_> = (0..24)
        .map(|_| {
            let stream = request(daemon.page, "/api/events", credentials);
            let mut lines = BufReader::new(stream).lines();
            let data =
                lines.find_map(|line| Some(line.unwrap().strip_prefix("data: ")?.to_owned()));
            let now: Value = serde_json::from_str(&data.unwrap()).unwrap();
            assert_eq!(now["link"]["is_connected"], false);
            lines
        })
        .collect();
    assert_eq!(daemon.get("/api/events").status, 503);
    assert_eq!(daemon.get("/").status, 200);
    drop(watching);
}

/// Lets new meters join a net that nobody runs.
fn join(world: &World, net: NetId, meters: usize) {
    let now = Now {
        monotonic: Duration::ZERO,
        utc: utc::now(),
        synchronised: true,
    };
    let mut store = world.store();
    let saved = store.load(net).unwrap();
    let config = world.identity().provider_config(80, None);
    let mut provider = Provider::new(config, saved, [9; 32]).unwrap();
    let registrations = (0..meters).map(|number| {
        let meter = world.meter(net, &format!("meter-{number}"), 4);
        let topic = Topic::Up {
            net,
            meter: meter.key.id(),
            kind: Up::Register,
        };
        let payload = sign_registration(&meter.key, &meter.certificate, net, now.utc);
        Received { topic, payload }
    });
    provider.handle(Input::Received(registrations.collect()), now);
    let mut records = Vec::new();
    while let Some(output) = provider.poll_output() {
        if let Output::Persist(record) = output {
            records.push(NetRecord { net, record });
        }
    }
    assert_eq!(records.len(), meters);
    store.commit(&records).unwrap();
}

#[test]
fn of_a_large_net_a_sample_is_drawn_and_the_members_come_in_parts() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    join(&world, net, 203);
    let daemon = Daemon::start(&world);
    let graph = daemon.json(&format!("/api/nets/{net}/graph"));
    assert_eq!(
        (&graph["members"], &graph["is_sample"]),
        (&json!(203), &json!(true))
    );
    let nodes = graph["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 102, "every second one");
    assert!(nodes.iter().all(|node| node["state"] == "joining"));
    let path = format!("/api/nets/{net}/members?limit=150");
    let mut seen = std::collections::BTreeSet::new();
    for (offset, expected) in [(0, 150), (150, 53), (203, 0)] {
        let part = daemon.json(&format!("{path}&offset={offset}"));
        assert_eq!(part["total"], 203);
        let members = part["members"].as_array().unwrap();
        assert_eq!(members.len(), expected);
        seen.extend(members.iter().map(|member| member["meter"].to_string()));
    }
    assert_eq!(seen.len(), 203);
    let details = daemon.json(&format!("/api/nets/{net}"));
    assert_eq!(
        (&details["members"], &details["absent"]),
        (&json!(203), &json!(203))
    );
    assert_eq!(details["absent_members"].as_array().unwrap().len(), 50);
}
