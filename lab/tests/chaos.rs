//! The command `chaos`, for a short while.

use std::process::Command;

/// The number at the end of a line of the table.
fn number(output: &str, name: &str) -> u64 {
    let line = output
        .lines()
        .rev()
        .find(|line| line.trim().starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no line {name:?} in\n{output}"));
    line.split_whitespace()
        .next_back()
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn processes_that_are_killed_stopped_and_out_of_room_publish_only_true_sums() {
    let run = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["chaos", "--minutes", "0.4", "--meters", "5", "--seed", "3"])
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&run.stdout).into_owned();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{output}\n{errors}");
    assert_eq!(number(&output, "wrong"), 0, "{output}");
    assert_eq!(number(&output, "stuck"), 0, "{output}");
    assert!(number(&output, "sums seen") >= 6, "{output}");
    let told = |what: &str| output.lines().filter(|line| line.contains(what)).count();
    assert!(told("  fault   ") >= 4, "{output}");
    assert!(told(": right") >= 6, "{output}");
}

#[test]
fn a_process_does_not_run_for_another_parent() {
    let run = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["process", "meter", "--config", "none.toml", "--parent", "0"])
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("is gone"));
}
