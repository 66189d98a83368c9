//! What a household sees of its agent: what the agent waits for, and how to leave.

mod street;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::Command;

use dcnet::identity::DeviceId;
use dcnet::time::Round;
use meter_agent::ask::ask;
use serde_json::Value;
use street::{Street, present_round, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_meter_says_what_it_waits_for_and_takes_the_newest_list() {
    let mut street = Street::new().await;
    let (lone, other) = (street.join(), street.enrol());
    street
        .until_said(
            &lone,
            "the net has 1 member now; this meter waits until it has 5",
        )
        .await;
    let first = street.said(&lone).matches("waits until").count();
    let list = street.revocation_list(&lone);
    let older = std::fs::read(&list).unwrap();
    street.revoke(other, &lone);
    street
        .until_said(&lone, "list 1 of revoked devices is in force")
        .await;
    let told = street.said(&lone);
    assert!(told.matches("silent").count() > 2, "{told}");
    assert_eq!(told.matches("waits until").count(), first, "once: {told}");
    street.stop(&lone).await;

    // An older list in its place brings nobody back, also after a restart.
    std::fs::write(&list, older).unwrap();
    street.start(&lone);
    street
        .until_said(&lone, "has number 0, but 1 is in force, which is newer")
        .await;
    street.stop(&lone).await;

    // Who never joined has nothing to leave, and does not join in order to.
    let output = street.command(&other, &["leave"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("is no member"),
        "{output:?}"
    );
    assert_eq!(street.log().size(), 1);
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_household_is_told_and_the_others_go_on_without_it() {
    let (mut street, six) = running().await;
    let revoked = six[0];
    street.revoke(revoked, &six[1]);
    street
        .until_said(&revoked, "the gateway administrator revoked this meter")
        .await;
    let out = present_round();
    let others: BTreeSet<DeviceId> = six[1..].iter().copied().collect();
    street.sums_over(&others, 2, out).await;
    let log = street.log();
    assert!(log.is_revoked(&revoked) && log.size() == 5);
    assert!(others.iter().all(|id| !street.said(id).contains("alarm")));
    street.stop(&revoked).await;

    // It says why, too, when it was started again.
    street.start(&revoked);
    street.page(&revoked).await;
    let status = ask(&street.state(&revoked), "/api/status").await.unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["is_stopped"], true, "{status}");
    let last = &status["alarms"][0];
    assert_eq!(last["is_final"], true, "{status}");
    assert_eq!(
        last["text"],
        "the gateway administrator revoked this meter; it takes part no more"
    );
    let output = street.command(&revoked, &["status"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("ALARM       the gateway administrator revoked this meter"),
        "{said}"
    );
    street.stop(&revoked).await;
    let output = street.command(&revoked, &["leave"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("is no member"),
        "{output:?}"
    );
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_survives_ctrl_c_and_goes_on_with_the_command_or_the_agent() {
    let (mut street, six) = running().await;
    let leaver = six[0];
    street.stop(&leaver).await;
    street.stop_provider().await;

    // Nobody writes the exit into the log.
    let error = leave_until_ctrl_c(&street, &leaver).await;
    assert!(
        error.contains("it goes on when this command, or the agent"),
        "{error}"
    );
    assert_eq!(street.log().size(), 6);

    street.start_provider();
    let left = street.command(&leaver, &["leave", "--no-wait"]).await;
    let said = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.status.success(), "{left:?}");
    assert!(said.contains("going on with the exit"), "{said}");
    assert!(said.contains("says that this meter has left"), "{said}");
    assert_eq!(street.log().size(), 5);

    street.start(&leaver);
    let log = counts_on_after_the_exit(&street, &leaver).await;
    street.stop(&leaver).await;
    assert!(street.records(&leaver, "edge/").is_empty());
    let others: BTreeSet<DeviceId> = six[1..].iter().copied().collect();
    let gone = present_round();
    street.sums_over(&others, 1, gone).await;

    // As the message says, it may come back, with a new registration.
    let journal = street.state(&leaver).join(format!("{}.db", street.net));
    assert!(log.contains(&format!("move {}.db", street.net)), "{log}");
    std::fs::rename(&journal, journal.with_extension("old")).unwrap();
    street.start(&leaver);
    street.sums_over(&street.all(), 1, gone).await;
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_runs_is_told_to_leave_and_does_it_without_the_command() {
    let (mut street, six) = running().await;
    let leaver = six[0];
    street.stop_provider().await;

    let error = leave_until_ctrl_c(&street, &leaver).await;
    assert!(error.contains("the agent goes on with it"), "{error}");
    assert_eq!(street.log().size(), 6);

    street.start_provider();
    counts_on_after_the_exit(&street, &leaver).await;
    street.stop(&leaver).await;
    assert_eq!(street.log().size(), 5);
    assert!(street.records(&leaver, "edge/").is_empty());
    street.stop_provider().await;
}

/// A street whose six meters have had a sum.
async fn running() -> (Street, Vec<DeviceId>) {
    let mut street = Street::new().await;
    let six: Vec<DeviceId> = (0..6).map(|_| street.join()).collect();
    street.sums_over(&street.all(), 1, Round(0)).await;
    (street, six)
}

/// Waits until the agent of a meter that leaves has done so and counts on, and gives what it
/// has said.
async fn counts_on_after_the_exit(street: &Street, leaver: &DeviceId) -> String {
    let left = street.until_left(leaver).await;
    street.until_counted_more(leaver, &left).await;
    let log = street.said(leaver);
    assert!(
        log.contains("the exit is done") && log.contains("has left net"),
        "{log}"
    );
    log
}

/// Leaves while nobody writes exits into the log, and gives what the command says when it is
/// interrupted.
async fn leave_until_ctrl_c(street: &Street, leaver: &DeviceId) -> String {
    let mut leave = street.spawn(leaver, &["leave"]);
    let waiting = tokio::task::spawn_blocking(move || {
        let mut lines = BufReader::new(leave.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("waiting for the provider")));
        let pid = leave.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
        assert!(sent.success());
        let mut error = String::new();
        let mut stderr = leave.stderr.take().unwrap();
        stderr.read_to_string(&mut error).unwrap();
        (leave.wait().unwrap(), error)
    });
    let (status, error) = soon("it ends", waiting).await.unwrap();
    assert_eq!(status.code(), Some(1), "{error}");
    error
}
