//! The figures of a net in which real meters take part.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::{Value, json};

use crate::daemon::{Daemon, PASSWORD, ask, request, set_password};
use crate::world::sockets::{ENERGY, start_broker, start_meter};
use crate::world::{DEADLINE, World, policy};

const METERS: u64 = 5;
const PERIOD_MS: u64 = 4000;

/// The metrics of the agent that alerts and dashboard name.
fn watched() -> BTreeSet<&'static str> {
    let rules = include_str!("../../../monitoring/dcnet.rules.yaml");
    let dashboard = include_str!("../../../monitoring/dcnet.dashboard.json");
    let words = [rules, dashboard].map(|text| {
        text.split(|c: char| c != '_' && !c.is_ascii_alphanumeric())
            .filter(|word| word.starts_with("provider_agent_"))
    });
    words.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_members_and_sums_of_a_real_net_are_shown_as_they_are() {
    let mut world = World::new();
    let broker = start_broker(&world).await;
    let port = broker.local_addrs()[0].port();
    world.config.broker.port = port;
    let net = world.create_net(policy(4, 2500, 4), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    let mut meters: Vec<_> = (0..METERS)
        .map(|number| start_meter(&world, net, number, port, PERIOD_MS))
        .collect();

    let path = format!("/api/nets/{net}");
    let (daemon, stages) = tokio::task::spawn_blocking(move || {
        let stages = watch(&daemon, METERS);
        (daemon, stages)
    })
    .await
    .unwrap();
    // A round that becomes final within a moment is only seen when it is.
    assert!(stages.contains("final"), "{stages:?}");

    let details = daemon.until(&path, "all of them", |net| {
        net["newest"]["included"] == METERS && net["absent"] == 0
    });
    assert_eq!(details["members"], METERS);
    assert_eq!(details["privacy"]["group"], METERS);
    assert_eq!(details["privacy"]["minimum_group"], 4);
    assert_eq!(details["privacy"]["live_neighbours_minimum"], METERS - 1);
    assert_eq!(details["privacy"]["live_neighbours_median"], METERS - 1);
    let mwh = (1..=METERS).map(|number| number * ENERGY).sum::<u64>();
    let kwh = mwh as f64 / 1e6;
    assert_eq!(details["newest"]["energy_kwh"], json!({"import": kwh}));
    let watts = kwh * 1e3 * 3600.0 / 4.0;
    assert_eq!(details["newest"]["power_w"], json!({"import": watts}));
    let start = details["newest"]["start"].as_str().unwrap();
    assert!(start.ends_with('Z') && start.contains('T'), "{start}");

    let graph = daemon.json(&format!("{path}/graph"));
    assert_eq!(graph["is_sample"], false);
    assert_eq!(graph["edges"].as_array().unwrap().len(), 10);
    let nodes = graph["nodes"].as_array().unwrap().iter();
    let states: BTreeSet<_> = nodes.map(|node| node["state"].as_str().unwrap()).collect();
    assert_eq!(states, BTreeSet::from(["included"]));
    let members = daemon.json(&format!("{path}/members?offset=3"));
    assert_eq!(members["total"], METERS);
    assert_eq!(members["members"].as_array().unwrap().len(), 2);
    assert_eq!(members["members"][0]["neighbours"], 4);

    let metrics = daemon.get("/metrics").body;
    let label = format!("{{net=\"{net}\"}}");
    for line in [
        "provider_agent_connected 1".to_owned(),
        format!("provider_agent_members{label} {METERS}"),
        format!("provider_agent_live_neighbours_minimum{label} 4"),
        format!("provider_agent_power_watts{{net=\"{net}\",channel=\"import\"}} {watts}"),
        "# EOF".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    let served: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for name in watched() {
        // Nothing was refused, and what never happened has no sample.
        if name != "provider_agent_refused_inputs_total" {
            assert!(served.contains(name), "{name} is not in:\n{metrics}");
        }
    }
    assert_eq!(ask(daemon.page, "/health", None).status, 200);

    meters.remove(0).abort();
    let details = daemon.until(&path, "one is absent", |net| {
        net["absent"] == 1 && net["newest"]["included"] == METERS - 1
    });
    let absent = &details["absent_members"][0];
    assert_eq!(absent["state"], "absent", "{details:#}");
    assert!(absent["last_included"].is_string());

    // Without the broker no round goes on, and that is said.
    meters.iter().for_each(tokio::task::JoinHandle::abort);
    broker.stop().await;
    let overview = daemon.until("/api/overview", "the broker is missed", |overview| {
        overview["link"]["is_connected"] == false
    });
    assert_eq!(overview["alarms"][0]["kind"], "link");
    assert!(
        overview["alarms"][0]["advice"]
            .as_str()
            .unwrap()
            .contains("broker")
    );
    assert_eq!(ask(daemon.page, "/health", None).status, 503);
}

/// Reads events until a round with so many meters is final; gives the stages of rounds on
/// the way.
fn watch(daemon: &Daemon, meters: u64) -> BTreeSet<String> {
    let stream = request(daemon.page, "/api/events", Some(("operator", PASSWORD)));
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut stages = BTreeSet::new();
    let end = std::time::Instant::now() + DEADLINE;
    for line in BufReader::new(stream).lines().map(Result::unwrap) {
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let now: Value = serde_json::from_str(data).unwrap();
        let rounds = now["nets"].as_array().unwrap().iter();
        for round in rounds.flat_map(|net| net["rounds"].as_array().unwrap()) {
            let stage = round["stage"].as_str().unwrap();
            stages.insert(stage.to_owned());
            if stage == "final" && round["included"] == meters {
                assert_eq!(round["revealed"], meters);
                assert!(round["ended_after_s"].as_f64().is_some(), "{round:#}");
                return stages;
            }
        }
        assert!(std::time::Instant::now() < end, "no full round: {now:#}");
    }
    panic!("the events ended");
}
