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
    let ids: Vec<DeviceId> = (0..6).map(|_| street.join()).collect();
    let own = ids[0];
    street.sums_over(&street.all(), 2, Round(0)).await;
    let address = street.page(&own).await;
    page.view(390, 844, Scheme::Light).await;
    page.open(&format!("http://{address}/")).await;
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
    let others: BTreeSet<DeviceId> = ids[1..].iter().copied().collect();
    street.sums_over(&others, 1, paused).await;
    page.click("#pause").await;
    page.until_text("#summary-text", "Taking part").await;
    street.sums_over(&street.all(), 1, present_round()).await;

    page.click("#exit").await;
    page.keys("#confirm", &own.to_string()[..8]).await;
    page.click("#exit-dialog [type=submit]").await;
    assert!(street.end(&own).await.success());
    page.until_text("#no-connection", "No connection to the agent")
        .await;
    assert_eq!(street.log().size(), 5);
    street.stop_provider().await;
}
