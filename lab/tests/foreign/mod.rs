//! Programs of others that tests need.
#![allow(dead_code, reason = "every test file uses a part")]

use std::path::PathBuf;

/// Why a test cannot be run here. Where all programs of others are to be there
/// (`REQUIRE_FOREIGN_CLIENTS=1`), it fails instead.
pub fn skip(why: &str) {
    let required = std::env::var_os("REQUIRE_FOREIGN_CLIENTS");
    assert!(required.is_none_or(|value| value != "1"), "{why}");
    eprintln!("skipped: {why}");
}

/// mosquitto's program, or why a test without it is skipped.
pub fn mosquitto() -> Option<PathBuf> {
    let named = std::env::var_os("MOSQUITTO").map(PathBuf::from);
    let usual = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].map(PathBuf::from);
    let found = named.into_iter().chain(usual).find(|path| path.exists());
    if found.is_none() {
        skip("there is no mosquitto; install the package of that name");
    }
    found
}
