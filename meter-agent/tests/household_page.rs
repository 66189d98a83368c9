//! The page, the socket and the commands with which a household sees and steers its running
//! agent: a whole street of processes.

mod street;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use dcnet::identity::DeviceId;
use dcnet::time::Round;
use dcnet::units::MilliwattHours;
use meter_agent::ask::ask;
use meter_agent::energy::Kwh;
use serde_json::Value;
use street::{Street, present_round, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The answer to a request: its head and its body.
async fn http(address: SocketAddr, request: &str) -> (String, String) {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = soon("the page answers", exchange).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    with_host(address, path, &address.to_string(), "").await
}

async fn with_host(address: SocketAddr, path: &str, host: &str, more: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
    http(address, &request).await
}

async fn post(address: SocketAddr, path: &str, kind: &str, body: &str) -> (String, String) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    http(address, &request).await
}

const JSON: &str = "application/json";

async fn status(street: &Street, id: &DeviceId) -> Value {
    let text = ask(&street.state(id), "/api/status").await.unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Waits until a household's status shows a round of which this holds.
async fn until_round(
    street: &Street,
    id: &DeviceId,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Value {
    let shown = async {
        loop {
            let status = status(street, id).await;
            let found = status["rounds"]
                .as_array()
                .unwrap()
                .iter()
                .find(|round| is(round));
            if let Some(round) = found {
                return round.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(what, shown).await
}

fn number(round: &Value) -> Round {
    Round(round["round"].as_u64().unwrap())
}

fn begins(answer: &(String, String), code: &str) -> bool {
    answer.0.starts_with(&format!("http/1.1 {code}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_household_sees_what_leaves_the_house_beside_what_it_hides_pauses_it_and_leaves() {
    let mut street = Street::new().await;
    let ids: Vec<DeviceId> = (0..6).map(|_| street.join()).collect();
    let own = ids[0];
    street.sums_over(&street.all(), 1, Round(0)).await;

    // The reading beside what left the house, and the sum.
    let summed = |round: &Value| round["sums_mwh"].is_array();
    let round = until_round(&street, &own, "a round with its sum", summed).await;
    let value = &round["values"][0];
    let consumed = street.consumed(&own, number(&round));
    assert_eq!(value["reading_mwh"], consumed, "{round}");
    let superposition = hex::decode(value["superposition"].as_str().unwrap()).unwrap();
    assert_eq!(superposition.len(), 32);
    let hidden = u64::from_le_bytes(superposition[..8].try_into().unwrap());
    assert_ne!(hidden, consumed, "it would be the reading itself");
    let all: u64 = ids
        .iter()
        .map(|id| street.consumed(id, number(&round)))
        .sum();
    if round["included"] == 6 {
        assert_eq!(round["sums_mwh"][0], all);
    }
    let now = status(&street, &own).await;
    assert_eq!(
        (&now["members"], &now["is_member"]),
        (&6.into(), &true.into())
    );
    // By when it drew there were five or six of them.
    let (drawn, live) = (
        now["drawn"].as_u64().unwrap(),
        now["live"].as_u64().unwrap(),
    );
    assert!(
        (4..=5).contains(&drawn) && (3..=drawn).contains(&live),
        "{now}"
    );
    let checks = now["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 15);
    assert!(
        checks.iter().all(|check| check["state"] == "passed"),
        "{now}"
    );
    assert_eq!(now["alarms"].as_array().unwrap().len(), 0);

    // The page in a browser's words, and who else may not have it.
    let page = street.page(&own).await;
    let index = get(page, "/").await;
    assert!(begins(&index, "200") && index.1.contains("<!doctype html>"));
    assert!(
        index
            .0
            .contains("content-security-policy: default-src 'none'; script-src 'self'")
    );
    for file in index
        .1
        .split(['"', '\''])
        .filter(|text| text.starts_with("/"))
    {
        assert!(begins(&get(page, file).await, "200"), "{file}");
    }
    let rebound = with_host(page, "/api/status", "evil.example.net", "").await;
    assert!(
        begins(&rebound, "421") && !rebound.1.contains("reading"),
        "{rebound:?}"
    );
    let form = post(
        page,
        "/api/pause",
        "application/x-www-form-urlencoded",
        "{}",
    )
    .await;
    assert!(begins(&form, "415"), "another site could send it: {form:?}");
    assert!(begins(&get(page, "/api/pause").await, "405"));
    assert!(!status(&street, &own).await["paused"].as_bool().unwrap());

    // For programs.
    let metrics = get(page, "/metrics").await.1;
    let pulses = metrics
        .lines()
        .find_map(|line| line.strip_prefix("meter_agent_pulses_total{channel=\"import\"} "))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(pulses.parse::<u64>().unwrap() > 0);
    assert!(metrics.contains("\nmeter_agent_connected 1\n") && metrics.ends_with("# EOF\n"));
    let table = get(page, "/history.csv").await;
    assert!(table.0.contains("text/csv"), "{table:?}");
    // It comes in chunks.
    let table = ask(&street.state(&own), "/history.csv").await.unwrap();
    let mut lines = table.lines();
    assert_eq!(lines.next(), Some("utc,import_kwh,import_gap_before"));
    assert!(lines.next().unwrap().contains('T'), "the start: {table:?}");
    let rounds = get(page, "/rounds.csv").await;
    let row = rounds.1.lines().find(|row| {
        row.contains(&format!(",{}", value["superposition"].as_str().unwrap()))
            && row.starts_with(&format!("{},", round["round"]))
    });
    let reading = Kwh::from(MilliwattHours(consumed)).to_string();
    assert!(
        row.unwrap().contains(&format!(",import,{reading},")),
        "{rounds:?}"
    );
    let readings = get(page, "/readings.csv").await;
    assert!(readings.1.contains(",import,now,"), "{readings:?}");
    let alarms = get(page, "/alarms.csv").await;
    assert!(alarms.1.starts_with("utc,alarm,"), "{alarms:?}");
    let output = street.command(&own, &["status"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && said.contains("one of 6 members"),
        "{said}"
    );

    let output = street.command(&own, &["confirm-clock"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && said.contains("takes its clock for right"),
        "{said}"
    );
    street
        .until_said(&own, "the household says that the clock is right")
        .await;

    // A pause keeps the others going, and the reading in the house.
    assert!(begins(&post(page, "/api/pause", JSON, "{}").await, "204"));
    let paused = present_round();
    let kept = until_round(
        &street,
        &own,
        "a round that was counted while paused",
        |round| number(round) > paused && round["values"][0]["reading_mwh"].is_u64(),
    )
    .await;
    assert_eq!(
        kept["values"][0]["reading_mwh"],
        street.consumed(&own, number(&kept))
    );
    assert_eq!(kept["values"][0]["superposition"], Value::Null);
    let others: BTreeSet<DeviceId> = ids[1..].iter().copied().collect();
    street.sums_over(&others, 1, paused).await;
    // It outlives a crash, and damage to what is only shown costs no more than that.
    street.kill(&own);
    for name in ["history.db", "alarms.json"] {
        std::fs::write(street.state(&own).join(name), "damaged".repeat(1000)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(street.state(&own).join(name), mode).unwrap();
    }
    street.start(&own);
    street.until_said(&own, "this meter is paused").await;
    street.until_said(&own, "history.db is damaged").await;
    street.until_said(&own, "alarms.json is damaged").await;
    let page = street.page(&own).await;
    assert!(begins(&post(page, "/api/resume", JSON, "{}").await, "204"));
    street.sums_over(&street.all(), 1, present_round()).await;

    // What the household deletes is gone at once: the course of the register, and readings.
    let read = |status: &Value| {
        let rounds = status["rounds"].as_array().unwrap().iter();
        let read = rounds.filter(|round| round["values"][0]["reading_mwh"].is_u64());
        read.map(number).collect::<BTreeSet<_>>()
    };
    let before = read(&status(&street, &own).await);
    assert!(!before.is_empty());
    assert!(begins(
        &post(page, "/api/data/delete", JSON, "{}").await,
        "204"
    ));
    let course: Value = serde_json::from_str(&get(page, "/api/history?from=0").await.1).unwrap();
    assert_eq!(course["samples"].as_array().unwrap().len(), 0);
    let after = read(&status(&street, &own).await);
    assert!(after.is_disjoint(&before), "{before:?} {after:?}");

    // Who opens connections and says nothing keeps nobody out for long.
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(page).await.unwrap());
    }
    assert!(begins(&get(page, "/").await, "200"));
    assert!(begins(&get(page, "/metrics").await, "200"));
    drop(silent);

    // Only who means it leaves.
    let wrong = post(page, "/api/exit", JSON, "{\"confirm\":\"00000000\"}").await;
    assert!(
        begins(&wrong, "400") && wrong.1.contains("nothing was done"),
        "{wrong:?}"
    );
    let order = format!("{{\"confirm\":{:?}}}", &own.to_string()[..8]);
    assert!(begins(&post(page, "/api/exit", JSON, &order).await, "204"));
    // It goes on for the household: register, history, metrics.
    let left = street.until_left(&own).await;
    assert_eq!(street.log().size(), 5);
    assert!(!left["link"]["is_connected"].as_bool().unwrap(), "{left}");
    street.until_counted_more(&own, &left).await;
    let said = street.command(&own, &["status"]).await;
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("has left the net"), "{said}");
    let metrics = get(page, "/metrics").await.1;
    assert!(
        metrics.contains("\nmeter_agent_no_link{why=\"left\"} 1\n")
            && metrics.contains("\nmeter_agent_connected 0\n"),
        "{metrics}"
    );
    assert!(begins(&get(page, "/history.csv").await, "200"));
    for (path, body) in [("/api/data/delete", "{}"), ("/api/exit", &*order)] {
        assert!(begins(&post(page, path, JSON, body).await, "204"), "{path}");
    }
    street.stop(&own).await;
    let gone = street.command(&own, &["status"]).await;
    let said = String::from_utf8(gone.stderr).unwrap();
    assert!(
        !gone.status.success() && said.contains("is it running"),
        "{said}"
    );
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_this_machine_a_password_is_asked_for() {
    let mut street = Street::new().await;
    let own = street.enrol();
    // Not loopback by its form, though nobody else can reach it.
    let mapped = "[::ffff:127.0.0.1]:0";
    street.configure(&own, "127.0.0.1:0", mapped);
    street.start(&own);
    street
        .until_said(&own, "there is no household's page")
        .await;
    street
        .until_said(&own, "run `meter-agent set-password`")
        .await;
    let checked = street.command(&own, &["check-config"]).await;
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(
        checked.status.success() && said.contains("set-password"),
        "{said}"
    );
    street.stop(&own).await;

    let mut setting = street.spawn_with_input(&own, &["set-password"], Stdio::piped());
    let mut input = setting.stdin.take().unwrap();
    input.write_all(b"correct horse\n").unwrap();
    drop(input);
    assert!(setting.wait().unwrap().success());
    street.start(&own);
    let page = street.page(&own).await;
    let page = SocketAddr::from(([127, 0, 0, 1], page.port()));
    let nobody = get(page, "/api/status").await;
    assert!(
        begins(&nobody, "401") && !nobody.1.contains("reading"),
        "{nobody:?}"
    );
    assert!(nobody.0.contains("www-authenticate: basic"), "{nobody:?}");
    let host = page.to_string();
    // household:wrong horse, household:correct horse
    for (credentials, code) in [
        ("aG91c2Vob2xkOndyb25nIGhvcnNl", "401"),
        ("aG91c2Vob2xkOmNvcnJlY3QgaG9yc2U=", "200"),
    ] {
        let header = format!("Authorization: Basic {credentials}\r\n");
        let answer = with_host(page, "/api/status", &host, &header).await;
        assert!(begins(&answer, code), "{answer:?}");
    }
    assert!(
        !street.said(&own).contains("horse"),
        "a password in the log"
    );
    street.stop(&own).await;
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_can_be_had_without_the_page() {
    let mut street = Street::new().await;
    let own = street.enrol();
    let page = "listen = \"127.0.0.1:0\"";
    let alone = format!("enabled = false\n[metrics]\n{page}");
    street.configure(&own, page, &alone);
    street.start(&own);
    street.until_said(&own, "/metrics").await;
    let said = street.said(&own);
    let (_, rest) = said.split_once("the metrics are at http://").unwrap();
    let address: SocketAddr = rest.split_once('/').unwrap().0.parse().unwrap();
    let metrics = get(address, "/metrics").await;
    assert!(
        begins(&metrics, "200") && metrics.1.contains("\nmeter_agent_pulses_total{"),
        "{metrics:?}"
    );
    for path in ["/", "/api/status", "/history.csv"] {
        assert!(begins(&get(address, path).await, "404"), "{path}");
    }
    let rebound = with_host(address, "/metrics", "evil.example.net", "").await;
    assert!(begins(&rebound, "421"), "{rebound:?}");
    assert!(!said.contains("the household's page is at"), "{said}");
    street.stop(&own).await;
    street.stop_provider().await;
}
