//! The page in a headless Chromium, with a real net whose past was made up.

use std::net::SocketAddr;

use dcnet::provider::{ProviderRecord, Published};
use dcnet::time::Round;
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use link::Journal;
use provider_agent::store::NetRecord;
use provider_agent::utc;
use serde_json::json;

use crate::answers::{Served, join, round_of};
use crate::browser::{Browser, Scheme};
use crate::daemon::{Daemon, PASSWORD, set_password};
use crate::world::sockets::{start_broker, start_meter};
use crate::world::{World, policy, roster_hash};

const PERIOD_MS: u64 = 5000;
const METERS: u64 = 9;

/// Stores a day of rounds before now, of a load that is low at night, with a lost and a
/// pending stretch and one without rosters.
fn store_past(world: &World, net: NetId) {
    let now = utc::now().as_millis() / PERIOD_MS;
    let first = now - 24 * 720;
    let mut records = Vec::new();
    let mut pending = Vec::new();
    for round in first..now - 12 {
        let minutes = (now - round) / 12;
        let hour = (round % 17_280) as f64 / 720.0;
        if (95..110).contains(&minutes) || (20..22).contains(&minutes) {
            continue;
        }
        let record = ProviderRecord::Roster {
            round: Round(round),
            hash: roster_hash(round, 3),
            members: 9,
            frame: round.to_be_bytes().to_vec(),
            submissions: Vec::new(),
        };
        records.push(NetRecord { net, record });
        let is_lost = (300..320).contains(&minutes) || (40..42).contains(&minutes);
        if (30..32).contains(&minutes) || (700..704).contains(&minutes) {
            pending.push(round);
            continue;
        }
        let record = if is_lost {
            ProviderRecord::Lost {
                round: Round(round),
                disruption: None,
                missing: Vec::new(),
            }
        } else {
            let bump = |at: f64, width: f64| (-((hour - at) / width).powi(2)).exp();
            let flicker = (round as f64 * 0.7).sin() + (round as f64 * 0.113).sin();
            let watts = 14_000.0
                + 9_000.0 * bump(7.5, 1.6)
                + 17_000.0 * bump(18.5, 2.6)
                + 6_000.0 * bump(12.5, 1.2)
                + 700.0 * flicker;
            ProviderRecord::Aggregate(Published {
                round: Round(round),
                members: 9,
                included: Vec::new(),
                sums: vec![MilliwattHours((watts * 5.0 / 3.6) as u64)],
                roster: roster_hash(round, 3),
                log_head: [5; 32],
                frame: round.to_le_bytes().to_vec(),
            })
        };
        records.push(NetRecord { net, record });
    }
    assert!(!pending.is_empty());
    world.store().commit(&records).unwrap();
}

/// Signs in as a bookmark with the password does.
async fn sign_in(page: &Browser, address: SocketAddr) {
    page.open(&format!("http://operator:correct%20horse@{address}/"))
        .await;
    assert_eq!(PASSWORD, "correct horse");
    let has_nets = "return document.querySelector('#nets h3') !== null";
    page.until("the nets are shown there too", has_nets, vec![])
        .await;
    page.open(&format!("http://{address}/")).await;
}

async fn nothing_is_wrong(page: &Browser, what: &str) {
    let checks = include_str!("../../../meter-agent/tests/page/checks.js");
    let wrong = page.script(checks, vec![]).await;
    assert_eq!(wrong, json!([]), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_watches_a_net_in_the_browser() {
    let Some(page) = Browser::start().await else {
        return;
    };
    let mut world = World::new();
    let broker = start_broker(&world).await;
    let port = broker.local_addrs()[0].port();
    world.config.broker.port = port;
    let net = world.create_net(policy(5, 3000, 4), &["import"]);
    set_password(&world.config.state_directory);
    let daemon = Daemon::start(&world);
    sign_in(&page, daemon.page).await;
    page.view(1280, 900, Scheme::Light).await;
    page.until_text("#link-text", "Connected").await;
    page.until_text("#nets h3", "Elm Street").await;
    page.until_text("#nets", "No sum yet").await;
    nothing_is_wrong(&page, "a new net at a glance").await;
    page.click("#nets a").await;
    page.until_text("#round-interval", "No round has been seen")
        .await;
    page.until_text("#graph-text", "no members yet").await;
    nothing_is_wrong(&page, "a new net").await;

    store_past(&world, net);
    let mut meters: Vec<_> = (0..METERS)
        .map(|number| start_meter(&world, net, number, port, PERIOD_MS))
        .collect();
    page.until_text("#phases", "9 of 9").await;
    page.until_text("#phases li:last-child", "verified after")
        .await;
    // Who drew early had fewer to draw from.
    let known =
        r"return /fewest of a meter\s+[3-8]\s/.test(document.querySelector('#privacy').innerText)";
    page.until("live neighbours are known", known, vec![]).await;
    page.until_text("#graph-text", "9 members, 36 edges").await;
    page.until_text("#chart-text", "24 lost, 24 pending").await;
    page.until_hidden("#absent-scroll").await;
    meters.remove(8).abort();
    page.until_text("#absent", "absent").await;
    page.click("[data-span=day]").await;
    page.until_text("#chart-text", "the mean of 2 minutes")
        .await;
    page.keys("#chart", "\u{e012}").await;
    page.until_text("#picked", "W").await;
    page.script("document.activeElement.blur()", vec![]).await;
    page.until_text("#phases li:last-child", "verified after")
        .await;
    println!("see {}", page.screenshot("operator").await.display());
    for (width, scheme, name) in [
        (1280, Scheme::Light, "desk-light"),
        (1280, Scheme::Dark, "desk-dark"),
        (390, Scheme::Light, "phone-light"),
        (320, Scheme::Dark, "phone-dark"),
    ] {
        page.view(width, 900, scheme).await;
        let settled = "return document.querySelector('#chart canvas').clientWidth <= innerWidth";
        page.until("the chart fits", settled, vec![]).await;
        nothing_is_wrong(&page, name).await;
        let picture = page.screenshot(&format!("operator-{name}")).await;
        println!("see {}", picture.display());
    }
    page.view(1280, 900, Scheme::Light).await;
    page.click("#members-details summary").await;
    page.until_text("#members", "on the newest roster").await;
    assert_eq!(page.count("#members tr").await, METERS);

    for meter in meters {
        meter.abort();
    }
    broker.stop().await;
    page.until_text("#alarms", "connection to the broker:")
        .await;
    page.until_text("#alarms", "provider-agent check-config")
        .await;
    page.click("#back").await;
    page.until_text("#all-alarms", "connection to the broker:")
        .await;
    page.view(390, 844, Scheme::Dark).await;
    nothing_is_wrong(&page, "all nets on a phone").await;
    println!("see {}", page.screenshot("operator-nets").await.display());
    // Before the sign-in the browser was refused, and says so.
    let unexpected = |line: &&String| !line.contains("401");
    assert_eq!(page.log().await.iter().find(unexpected), None);
    drop(daemon);
    page.until_text("#no-connection", "No connection to the agent")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_which_net_is_closed_and_which_waits_after_a_restore() {
    let Some(page) = Browser::start().await else {
        return;
    };
    let world = World::new();
    let nets = [(); 2].map(|()| world.create_net(policy(900, 60_000, 30), &["import"]));
    set_password(&world.config.state_directory);
    let newest = utc::now().as_millis() / 900_000 - 8;
    for (round, net) in (newest..).zip(nets) {
        join(&world, net, 3);
        let mut store = world.store();
        store.commit(&round_of(&world, net, round, 2)).unwrap();
    }
    let [closed, restored] = nets;
    world.store().close_net(closed, utc::now()).unwrap();
    // As `restore` marks it.
    let database = rusqlite::Connection::open(world.config.store_path()).unwrap();
    let mark = "UPDATE nets SET resume_ms = ?1 WHERE net = ?2";
    let now = i64::try_from(utc::now().as_millis()).unwrap();
    database.execute(mark, (now, restored.0)).unwrap();
    let served = tokio::task::spawn_blocking(move || (Served::start(&world), world));
    let (served, world) = served.await.unwrap();

    sign_in(&page, served.page.address).await;
    page.view(1280, 900, Scheme::Light).await;
    page.until_text("#nets li:first-child", "Closed since")
        .await;
    page.until_text("#nets li:last-child", "waiting for the sum of a round")
        .await;
    page.until_text("#all-alarms", "was restored from a backup")
        .await;
    let has_time = r"return /started after [^T]*\d\d:\d\d.* has/.test(document.querySelector('#all-alarms').innerText)";
    page.until("the browser's time", has_time, vec![]).await;
    page.until_text("#all-alarms li:last-child code", "provider-agent net close")
        .await;
    nothing_is_wrong(&page, "a closed and a restored net").await;
    println!(
        "see {}",
        page.screenshot("operator-standing").await.display()
    );
    page.click("#nets li:first-child a").await;
    page.until_text("#standing", "Closed since").await;
    page.until_text("#nobody-absent", "nobody is waited for")
        .await;
    page.until_hidden("#absent-scroll").await;
    for (width, scheme, name) in [
        (1280, Scheme::Light, "closed-light"),
        (1280, Scheme::Dark, "closed-dark"),
        (390, Scheme::Dark, "closed-phone"),
    ] {
        page.view(width, 900, scheme).await;
        nothing_is_wrong(&page, name).await;
        let picture = page.screenshot(&format!("operator-{name}")).await;
        println!("see {}", picture.display());
    }
    page.click("#back").await;
    page.until_text("#nets li:last-child", "Elm Street").await;
    page.click("#nets li:last-child a").await;
    page.until_text("#standing", "Restored from a backup").await;
    page.until_text("#absent", "joining").await;
    tokio::task::spawn_blocking(move || drop((served, world)))
        .await
        .unwrap();
}
