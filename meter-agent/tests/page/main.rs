//! The household's page in a headless Chromium. Skipped where chromium or chromedriver is
//! missing.

mod actions;
mod browser;
mod figures;
mod layout;
mod stub;

use std::time::Duration;

use browser::Browser;
use stub::Stub;

/// The page of a sample, loaded; none where there is no browser.
async fn page_of(sample: &str) -> Option<(Stub, Browser)> {
    let browser = Browser::start().await?;
    let stub = Stub::start(sample).await;
    open(&browser, &stub).await;
    Some((stub, browser))
}

/// Loads the page of a stub and waits until it shows figures.
async fn open(browser: &Browser, stub: &Stub) {
    browser.open(&stub.url()).await;
    browser.until_text("#day-date", "Today").await;
}

/// Waits until the page has asked for its status so many times more.
async fn polls(stub: &Stub, more: usize) {
    let wanted = stub.state().polls + more;
    let waiting = async {
        while stub.state().polls < wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(browser::DEADLINE, waiting).await;
    waited.expect("the page asks for its status again");
}

/// Nothing that the page needs is missing, and the browser found nothing wrong with it.
async fn is_clean(stub: &Stub, browser: &Browser) {
    assert_eq!(browser.log().await, Vec::<String>::new());
    assert_eq!(stub.state().missing, Vec::<String>::new());
}
