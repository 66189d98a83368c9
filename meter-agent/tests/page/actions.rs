//! What the household does on the page.

use std::time::Duration;

use fantoccini::key::Key;
use serde_json::{Value, json};

use crate::{is_clean, open, page_of, polls};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_asks_for_the_right_digits() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let digits = stub.state().status["meter"].as_str().unwrap()[..8].to_owned();
    assert!(!page.is_shown("#exit-dialog").await);
    page.click("#exit").await;
    assert_eq!(page.text("#digits").await, digits);
    page.click("#exit-dialog [type=submit]").await;
    page.until_text("#exit-error", "These are not the first 8 digits")
        .await;
    page.keys("#confirm", "00000000").await;
    assert!(!page.is_shown("#exit-error").await, "until it is tried");
    page.keys("#confirm", &Key::Enter.to_string()).await;
    page.until_text("#exit-error", "These are not the first 8 digits")
        .await;
    page.keys("#confirm", &Key::Escape.to_string()).await;
    page.until_hidden("#exit-dialog").await;
    page.click("#exit").await;
    page.click("#exit-dialog .cancel").await;
    page.until_hidden("#exit-dialog").await;
    assert_eq!(stub.state().posts, []);

    // A refusal leaves the dialog open.
    stub.state().refusal = Some("the agent is busy".to_owned());
    page.click("#exit").await;
    page.keys("#confirm", &format!(" {}", digits.to_uppercase()))
        .await;
    page.click("#exit-dialog [type=submit]").await;
    page.until_text("#exit-error", "the agent is busy").await;
    stub.state().refusal = None;
    stub.state().posts.clear();
    page.click("#exit-dialog [type=submit]").await;
    page.until_text("#taking-part", "This meter is leaving.")
        .await;
    let exit = ("/api/exit".to_owned(), json!({"confirm": digits}));
    assert_eq!(stub.state().posts, [exit]);
    assert!(!page.is_shown("#exit-dialog").await && !page.is_shown("#exit").await);

    stub.state().status["exit"] =
        json!({"left": true, "neighbours": 47, "awaited": 3, "done": false});
    page.until_text("#taking-part", "3 of 47 have not confirmed yet")
        .await;
    stub.state().status["exit"] =
        json!({"left": true, "neighbours": 47, "awaited": 0, "done": true});
    page.until_text("#summary-text", "Has left the group").await;
    is_refused_once(page.log().await);
}

/// The browser tells of the refusal, and of nothing else.
fn is_refused_once(log: Vec<String>) {
    assert!(
        matches!(&log[..], [line] if line.contains("409")),
        "{log:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_and_resume() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    assert_eq!(page.text("#pause").await, "Pause");
    page.click("#pause").await;
    page.until_text("#pause", "Resume").await;
    page.until_text("#summary-text", "Paused").await;
    page.until_text("#why", "You have paused it.").await;
    page.until_text("#done", "Paused.").await;
    page.click("#pause").await;
    page.until_text("#summary-text", "Taking part").await;
    page.until_text("#done", "Resumed.").await;
    let sent = [
        ("/api/pause".to_owned(), json!({})),
        ("/api/resume".to_owned(), json!({})),
    ];
    assert_eq!(stub.state().posts, sent);

    stub.state().refusal = Some("the register cannot be saved".to_owned());
    page.click("#pause").await;
    page.until_text("#action-error", "the register cannot be saved")
        .await;
    assert_eq!(page.text("#pause").await, "Pause");
    is_refused_once(page.log().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumped_is_confirmed() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    assert!(!page.is_shown("#clock-section").await);
    stub.state().status["clock_unconfirmed"] = json!(true);
    page.until_text("#why", "The clock of this device has jumped ahead.")
        .await;
    page.until_text("#clock-now", "22").await;
    is_clean(&stub, &page).await;
    stub.state().refusal = Some("the agent is busy".to_owned());
    page.click("#confirm-clock").await;
    page.until_text("#clock-error", "the agent is busy").await;
    stub.state().refusal = None;
    stub.state().posts.clear();
    page.click("#confirm-clock").await;
    page.until_hidden("#clock-section").await;
    page.until_text("#done", "takes its clock for right").await;
    let confirmed = ("/api/confirm-clock".to_owned(), json!({}));
    assert_eq!(stub.state().posts, [confirmed]);
    is_refused_once(page.log().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_deleted_after_a_question() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    page.click("#delete").await;
    let focus = "return document.activeElement.innerText";
    assert_eq!(page.script(focus, vec![]).await, json!("Keep your data"));
    page.click("#delete-dialog .cancel").await;
    page.until_hidden("#delete-dialog").await;
    assert_eq!(stub.state().posts, []);
    page.click("#delete").await;
    page.click("#delete-dialog [type=submit]").await;
    page.until_text(
        "#day-charts .chart-text",
        "Nothing was counted in this time.",
    )
    .await;
    page.until_text("#done", "Your data is deleted.").await;
    assert_eq!(
        stub.state().posts,
        [("/api/data/delete".to_owned(), json!({}))]
    );
    assert!(!page.is_shown("#delete-dialog").await);
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_told_and_keeps_the_last_figures() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    stub.state().is_away = true;
    page.until_text("#no-connection", "No connection to the agent since ")
        .await;
    assert!(
        page.text("#no-connection")
            .await
            .contains("The figures below are from then.")
    );
    assert_eq!(page.text(".watts").await, "523 W");
    let greyed = "return getComputedStyle(document.querySelector('.measured')).filter";
    assert_eq!(page.script(greyed, vec![]).await, json!("grayscale(1)"));
    page.click("#pause").await;
    page.until_text("#action-error", "The agent cannot be reached")
        .await;

    stub.state().status["channels"][0]["power"]["milliwatts"] = json!(77_000);
    stub.state().is_away = false;
    page.until_hidden("#no-connection").await;
    page.until_text(".watts", "77 W").await;
    assert_eq!(page.script(greyed, vec![]).await, json!("none"));
    let unexpected = |line: &&String| !line.contains("net::ERR_EMPTY_RESPONSE");
    let log = page.log().await;
    assert_eq!(log.iter().find(unexpected), None);
    assert!(!log.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_there_at_first_is_waited_for() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    // The files are there, the figures are not.
    let whole = std::mem::replace(&mut stub.state().status, Value::Null);
    page.open(&stub.url()).await;
    page.until_text("#no-connection", "Is it running?").await;
    assert!(!page.is_shown("#content").await && !page.is_shown("#loading").await);
    stub.state().status = whole;
    page.until_text(".watts", "523 W").await;
    page.until_hidden("#no-connection").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_page_asks_for_nothing() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let hide =
        "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));";
    page.script(hide, vec![json!(true)]).await;
    // A question that was under way may still arrive; then there is silence for two polls.
    let mut quiet = 0;
    let mut last = stub.state().polls;
    let mut seen = 0;
    while quiet < 45 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = stub.state().polls;
        quiet = if now == last { quiet + 1 } else { 0 };
        seen += now - last;
        assert!(seen < 2, "it goes on asking");
        last = now;
    }
    page.script(hide, vec![json!(false)]).await;
    polls(&stub, 2).await;
    is_clean(&stub, &page).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_in_reach_of_the_keyboard() {
    let Some((stub, page)) = page_of("taking-part").await else {
        return;
    };
    let mut reached = Vec::new();
    for _ in 0..40 {
        page.keys(":focus, body", &Key::Tab.to_string()).await;
        let script = "const { activeElement: at } = document;
            if (at === document.body) return null;
            const style = getComputedStyle(at);
            return [at.textContent.trim(), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]";
        let at = page.script(script, vec![]).await;
        if at.is_null() {
            break;
        }
        assert_eq!(at[1], json!(true), "the focus is not visible: {at}");
        reached.push(at[0].as_str().unwrap().to_owned());
    }
    for name in [
        "How it is measured",
        "What this does not hide",
        "The last rounds",
        "‹ Previous day",
        "Next day ›",
        "Figures as a table",
        "Save the history",
        "Save the meter reading",
        "Save the last rounds",
        "Save the alarms",
        "Delete your data …",
        "Pause",
        "Leave the group …",
    ] {
        assert!(
            reached.iter().any(|text| text == name),
            "{name}: {reached:?}"
        );
    }
    page.keys("#pause", &Key::Space.to_string()).await;
    page.until_text("#pause", "Resume").await;
    open(&page, &stub).await;
    is_clean(&stub, &page).await;
}
