//! The page in a headless Chromium, served by a real agent in a street of processes. Skipped
//! where chromium or chromedriver is missing.

#[path = "page/browser.rs"]
#[allow(dead_code, reason = "the tests of the page use the rest")]
mod browser;
mod street;

use std::collections::BTreeSet;

use browser::{Browser, Scheme};
use dcnet::identity::DeviceId;
use dcnet::time::Round;
use street::{Street, present_round};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_household_watches_its_agent_pauses_it_and_lets_it_leave_in_the_browser() {
    let Some(page) = Browser::start().await else {
        return;
    };
    let mut street = Street::new().await;
    let own = street.join();
    let url = format!("http://{}/", street.page(&own).await);
    page.view(390, 844, Scheme::Light).await;

    // Alone it waits, round after round, and reads its meter.
    page.open(&url).await;
    page.until_text("#why", "This meter waits until it has 4.")
        .await;
    page.until_text("#why", "stayed here").await;
    page.open(&url).await;
    page.until_text("#summary-text", "Waiting").await;
    page.until_text("#why", "stayed here").await;
    page.click("#rounds-details summary").await;
    page.until_text("#rounds", "Wh").await;
    page.until_text("#rounds", "Nothing left the house. Reason: ")
        .await;
    assert_eq!(page.log().await, Vec::<String>::new());

    let others: BTreeSet<DeviceId> = (1..6).map(|_| street.join()).collect();
    street.sums_over(&street.all(), 2, Round(0)).await;
    page.open(&url).await;
    page.until_text("#summary-text", "Taking part in a group of 6")
        .await;
    page.until_text("#steps", "the sum over").await;
    page.until_text(".sides .reading", "Wh").await;
    let digits = page.text(".sides code").await;
    assert_eq!(
        digits.replace(char::is_whitespace, "").len(),
        64,
        "{digits}"
    );
    println!("see {}", page.screenshot("street-phone").await.display());
    page.view(1280, 900, Scheme::Dark).await;
    println!("see {}", page.screenshot("street-desk").await.display());

    page.click("#pause").await;
    page.until_text("#summary-text", "Paused").await;
    let paused = present_round();
    street.sums_over(&others, 1, paused).await;
    page.until_text("#why", "You have paused it. The newest interval")
        .await;
    page.open(&url).await;
    page.until_text("#why", "You have paused it. The newest interval")
        .await;
    page.until_text("#picture-interval", "What left the house last")
        .await;
    page.click("#rounds-details summary").await;
    page.until_text("#rounds", "Reason: the household had paused this meter.")
        .await;
    page.click("#pause").await;
    page.until_text("#summary-text", "Taking part").await;
    street.sums_over(&street.all(), 1, present_round()).await;

    assert_eq!(page.log().await, Vec::<String>::new());

    page.click("#exit").await;
    page.keys("#confirm", &own.to_string()[..8]).await;
    page.click("#exit-dialog [type=submit]").await;
    page.until_text("#taking-part", "It goes on counting for you")
        .await;
    assert_eq!(street.log().size(), 5);
    street.stop_provider().await;
}
