//! What the page answers, and to whom.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use dcnet::membership::sign_registration;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{IncludedSubmission, Provider, ProviderRecord};
use dcnet::time::{Now, Period, Round};
use dcnet::topic::{NetId, Topic, Up};
use link::Journal;
use provider_agent::page::Page;
use provider_agent::page::live::Live;
use provider_agent::store::NetRecord;
use provider_agent::utc;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::daemon::{Answer, Daemon, PASSWORD, PROGRAM, ask, request, set_password};
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
pub fn join(world: &World, net: NetId, meters: usize) {
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
        let meter = world.meter(net, &format!("{net}-{number}"), 4);
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

/// A round whose roster names the first so many members.
pub fn round_of(world: &World, net: NetId, round: u64, meters: usize) -> [NetRecord; 2] {
    let log = world.membership(net);
    let members = log.members().iter().take(meters);
    let submissions = members.map(|member| IncludedSubmission {
        meter: member.id,
        frame: vec![1; 100],
        commitments: vec![[2; 32]],
    });
    let submissions: Vec<IncludedSubmission> = submissions.collect();
    let (mut roster, mut sum) = (roster(net, round, 0, 0), aggregate(net, round, 0, 0));
    if let ProviderRecord::Roster {
        submissions: on_it, ..
    } = &mut roster.record
    {
        *on_it = submissions;
    }
    if let ProviderRecord::Aggregate(published) = &mut sum.record {
        published.sums.truncate(1);
    }
    [roster, sum]
}

/// The page of a provider whose agent does not run.
pub struct Served {
    pub page: Page,
    // After the page, which is served in it.
    _runtime: Runtime,
}

impl Served {
    pub fn start(world: &World) -> Self {
        let runtime = Runtime::new().unwrap();
        let mut config = world.config.clone();
        config.page.listen = Some("127.0.0.1:0".parse().unwrap());
        let page = runtime.block_on(Page::serve(&config, Live::default()));
        Self {
            page: page.expect("the page is served"),
            _runtime: runtime,
        }
    }

    fn get(&self, path: &str) -> Answer {
        ask(self.page.address, path, Some(("operator", PASSWORD)))
    }

    fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }
}

#[test]
fn who_was_last_included_in_a_compacted_round_is_not_called_never_included() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    join(&world, net, 3);
    let daemon = Daemon::start(&world);
    daemon.is_started();
    let mut store = world.store();
    for (round, meters) in [(100, 3), (101, 2), (102, 2)] {
        store.commit(&round_of(&world, net, round, meters)).unwrap();
    }
    let last = |daemon: &Daemon| {
        let page = daemon.json(&format!("/api/nets/{net}/members"));
        let members = page["members"].as_array().unwrap().iter();
        let last = members.map(|member| member["last_included"].clone());
        last.collect::<Vec<_>>()
    };
    let end = |round: u64| {
        json!(utc::text(
            Round(round).end(Period::from_secs(PERIOD).unwrap())
        ))
    };
    // Those that need a look first.
    let expected = [end(100), end(102), end(102)];
    assert_eq!(last(&daemon), expected);
    let mut compact = || store.compact_round(net, Round(102), utc::now()).unwrap();
    assert_eq!(compact(), Some(Round(100)));
    assert_eq!(compact(), Some(Round(101)));
    assert_eq!(last(&daemon), expected, "the same after it");
}

#[test]
fn a_closed_net_is_shown_as_closed_and_misses_nothing() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    join(&world, net, 3);
    let page = Served::start(&world);
    // Eight rounds ago.
    let hour = utc::now().as_millis() / 3_600_000;
    let round = (hour - 2) * 4;
    world
        .store()
        .commit(&round_of(&world, net, round, 2))
        .unwrap();
    let kinds = |json: &Value| {
        let alarms = json["alarms"].as_array().unwrap().iter();
        let kinds = alarms.map(|told| told["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let path = format!("/api/nets/{net}");
    let course = format!("{path}/course");
    let without = |page: &Served| {
        let course = page.json(&course);
        let bins = course["bins"].as_array().unwrap().iter();
        bins.map(|bin| bin["without_roster"].as_u64().unwrap())
            .sum::<u64>()
    };
    let open = page.json(&path);
    assert_eq!(
        (&open["closed"], &open["resume"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (
            &open["absent"],
            open["absent_members"].as_array().unwrap().len()
        ),
        (&json!(1), 1)
    );
    assert!(kinds(&open).contains(&"silence".to_owned()), "{open:#}");
    assert!(without(&page) >= 4);
    let label = format!("{{net=\"{net}\"}}");
    let metrics = page.get("/metrics").body;
    for line in ["net_closed", "absent_members"].map(|name| format!("provider_agent_{name}{label}"))
    {
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
    assert!(metrics.contains(&format!("provider_agent_net_closed{label} 0")));

    // Closed before the round after it could get a roster.
    let at = Round(round + 1).end(Period::from_secs(PERIOD).unwrap());
    assert!(world.store().close_net(net, at).unwrap());
    let closed = page.json(&path);
    assert_eq!(closed["closed"], json!(utc::text(at)));
    assert_eq!(
        (&closed["absent"], &closed["absent_members"]),
        (&json!(0), &json!([]))
    );
    assert!(
        !kinds(&closed).contains(&"silence".to_owned()),
        "{closed:#}"
    );
    let overview = page.json("/api/overview");
    assert_eq!(overview["nets"][0]["closed"], closed["closed"]);
    assert!(
        !kinds(&overview).contains(&"silence".to_owned()),
        "{overview:#}"
    );
    assert_eq!(without(&page), 0, "no round is missed");
    let metrics = page.get("/metrics").body;
    for line in [
        format!("provider_agent_net_closed{label} 1"),
        format!("provider_agent_absent_members{label} 0"),
    ] {
        assert!(metrics.contains(&line), "{line} is not in:\n{metrics}");
    }
}

#[test]
fn a_restored_net_says_what_it_waits_for_until_a_later_round_has_a_sum() {
    let world = World::new();
    let net = world.create_net(policy(PERIOD, 60_000, 30), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    daemon.is_started();
    let period = Period::from_secs(PERIOD).unwrap();
    let resume = Round(200).start(period);
    // As `restore` marks it.
    rusqlite::Connection::open(world.config.store_path())
        .unwrap()
        .execute(
            "UPDATE nets SET resume_ms = ?1",
            [i64::try_from(resume.as_millis()).unwrap()],
        )
        .unwrap();
    let path = format!("/api/nets/{net}");
    let told = |daemon: &Daemon| {
        let alarms = daemon.json(&path)["alarms"].as_array().unwrap().clone();
        let of_net = alarms
            .into_iter()
            .filter(|told| told["net"] == net.to_string());
        of_net
            .map(|told| told["kind"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    for round in [198, 199] {
        let details = daemon.json(&path);
        assert_eq!(details["resume"], json!(utc::text(resume)), "{details:#}");
        assert_eq!(told(&daemon), ["restored"]);
        world
            .store()
            .commit(&round_of(&world, net, round, 0))
            .unwrap();
    }
    assert_eq!(told(&daemon), ["restored"]);
    world
        .store()
        .commit(&round_of(&world, net, 200, 0))
        .unwrap();
    assert_eq!(daemon.json(&path)["resume"], Value::Null);
    assert_eq!(told(&daemon), ["silence"]);
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
