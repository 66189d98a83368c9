//! `lab load` as a user runs it, with few meters; the period leaves a busy machine seconds.

use std::process::Command;

#[test]
fn the_sum_is_of_all_meters_and_true() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["load", "--meters", "50", "--period", "15s", "--rounds", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:#?}");
    assert!(text.contains("1 of 1 sums were of all meters"), "{text}");
    for row in ["since the last submission", "broker", "provider"] {
        assert!(text.contains(row), "{text}");
    }
}
