//! `lab load` as a user runs it, with few meters; the period leaves a busy machine seconds.

use std::process::Command;

#[test]
fn the_sum_is_of_all_meters_and_true() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["load", "--meters", "50", "--period", "15s", "--rounds", "2"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:#?}");
    assert!(text.contains("2 of 2 sums were of all meters"), "{text}");
    for row in ["since the last submission", "broker", "provider", "user"] {
        assert!(text.contains(row), "{text}");
    }
    // It closes after the last submission was sent, and before the sum.
    let of = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .next_back()
            .unwrap()
            .parse()
            .unwrap()
    };
    let (close, last) = (
        of("since the window closed"),
        of("since the last submission"),
    );
    assert!(close <= last, "{text}");
    assert!(of("since the interval's end") >= last, "{text}");
    let worker = text
        .lines()
        .any(|line| line.starts_with("  ") && line.contains('('));
    assert!(worker, "no thread: {text}");
}
