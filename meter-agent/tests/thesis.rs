//! The thesis's procedures, named as its sections are, with broker, provider and every
//! household in a process of its own. Every published sum is compared with the households'
//! loads.

mod street;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use dcnet::cbor;
use dcnet::identity::DeviceId;
use dcnet::membership::{EntryError, EntryKind};
use dcnet::time::Round;
use meter_agent::clock::utc_timestamp;
use street::{Street, copy, present_round};
use tokio::sync::{Mutex, MutexGuard};

/// One street at a time: each wants the processor for itself.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: OnceLock<Mutex<()>> = OnceLock::new();
    ALONE.get_or_init(Mutex::default).lock().await
}

/// A street whose households are all in the sums.
async fn running(households: usize) -> (Street, Vec<DeviceId>) {
    let mut street = Street::new().await;
    let ids: Vec<DeviceId> = (0..households).map(|_| street.join()).collect();
    street.sums_over(&street.all(), 2, Round(0)).await;
    (street, ids)
}

/// How often a household's agent has logged something.
fn times(street: &Street, id: &DeviceId, what: &str) -> usize {
    street.said(id).matches(what).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registration() {
    let _alone = alone().await;
    let (mut street, five) = running(5).await;
    let witness = five[0];
    let before_five = street.log().head().index;
    street.stop(&witness).await;
    let edges = street.records(&witness, "edge/");
    assert_eq!(edges.len(), 4);
    let day = utc_timestamp().as_millis() / dcnet::time::DAY_MS;
    street.start(&witness);
    street.sums_over(&street.all(), 1, Round(0)).await;

    let sixth = street.join();
    for step in [
        "is a member of the net",
        "the draw is done: 5 neighbours",
        "it can take part",
    ] {
        street.until_said(&sixth, step).await;
    }
    street.sums_over(&street.all(), 2, Round(0)).await;

    // Join, Invite and Draw of the sixth; nobody else needed any entry.
    let log = street.log();
    assert_eq!(log.head().index, before_five + 3);
    assert_eq!(log.size(), 6);
    for id in &five {
        assert_eq!(times(&street, id, "the draw is done"), 1);
        street.stop(id).await;
        let newest = street.records(id, "edge/");
        assert_eq!(newest.len(), 5, "one key more, with the sixth");
    }
    let mut newest = street.records(&witness, "edge/");
    newest.retain(|name, _| edges.contains_key(name));
    if day == utc_timestamp().as_millis() / dcnet::time::DAY_MS {
        assert_eq!(newest, edges, "the same keys among the five");
    } else {
        assert!(newest.keys().eq(edges.keys()));
    }
    street.stop(&sixth).await;
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_from_the_dc_network() {
    let _alone = alone().await;
    let (mut street, six) = running(6).await;
    let leaver = six[5];
    let others: BTreeSet<DeviceId> = six[..5].iter().copied().collect();

    street.stop(&leaver).await;
    let registration = street.records(&leaver, "registration");
    let old_state = street.state(&leaver).with_file_name("old-state");
    copy(&street.state(&leaver), &old_state);

    street.start(&leaver);
    street.page(&leaver).await;
    let left = street.command(&leaver, &["leave"]).await;
    let said = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.status.success(), "{left:?}");
    for step in [
        "leaving net",
        "the net's log says that this meter has left",
        "done: 5 of 5 former neighbours confirmed",
    ] {
        assert!(said.contains(step), "{step}: {said}");
    }
    street.until_left(&leaver).await;
    street.stop(&leaver).await;
    assert!(street.records(&leaver, "edge/").is_empty());
    assert!(street.records(&leaver, "device").is_empty());
    let gone = present_round();
    street.sums_over(&others, 2, gone).await;
    assert_eq!(street.log().size(), 5);

    // What has left only counts, also after a restart, and says why; nor does it leave twice.
    street.start(&leaver);
    let left = street.until_left(&leaver).await;
    street.until_counted_more(&leaver, &left).await;
    assert!(street.said(&leaver).contains("this meter has left net"));
    let again = street.command(&leaver, &["leave", "--no-wait"]).await;
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(
        again.status.success() && said.contains("has left net"),
        "{again:?}"
    );
    street.stop(&leaver).await;

    // The old registration begins nothing any more, whether the provider would have it ...
    let mut log = street.log();
    let body = cbor::array([cbor::bytes(&registration["registration"])]);
    let join = log.sign_next(
        &street.provider_key(),
        EntryKind::Join,
        body,
        utc_timestamp(),
    );
    assert_eq!(
        log.append(&join).map(|_| ()),
        Err(EntryError::Rule("a registration is used twice"))
    );
    // ... or the household, by a backup of its state.
    std::fs::remove_dir_all(street.state(&leaver)).unwrap();
    copy(&old_state, &street.state(&leaver));
    street.start(&leaver);
    street
        .until_said(&leaver, "its key is used elsewhere")
        .await;
    let tried = present_round();
    street.sums_over(&others, 1, tried).await;
    assert_eq!(street.log().size(), 5);
    for id in &others {
        assert!(!street.said(id).contains("alarm"), "{}", street.said(id));
        street.stop(id).await;
        assert_eq!(street.records(id, "edge/").len(), 4, "its key is erased");
    }
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_loss() {
    let _alone = alone().await;
    let (mut street, five) = running(5).await;
    let lost = five[2];
    let others: BTreeSet<DeviceId> = five.iter().copied().filter(|id| *id != lost).collect();
    let log = street.log().head();
    // Just after a sum no round is under way.
    street.kill(&lost);
    let killed = present_round();
    let edges = street.records(&lost, "edge/");
    street.sums_over(&others, 2, killed).await;

    let restarted = present_round();
    street.start(&lost);
    let after = Round(restarted.0 + 1);
    street.sums_over(&street.all(), 2, after).await;
    assert_eq!(street.log().head(), log, "nobody joined, left or drew");
    assert_eq!(times(&street, &lost, "is a member of the net"), 1);
    street.stop(&lost).await;
    assert!(street.records(&lost, "edge/").keys().eq(edges.keys()));
    street.stop_provider().await;
}
