//! The operator's page of a running daemon: over HTTP, and in a headless Chromium. The latter
//! is skipped where chromium or chromedriver is missing.

mod answers;
#[path = "../../../meter-agent/tests/page/browser.rs"]
#[allow(dead_code, reason = "the household's page uses the rest")]
mod browser;
mod daemon;
mod in_browser;
mod renewal;
mod rounds;
#[path = "../world/mod.rs"]
mod world;
