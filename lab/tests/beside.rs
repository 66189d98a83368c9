//! `lab beside` as a user runs it, as shortly as it can be: what it measures on a busy machine
//! does not matter, that it measures both brokers does.

mod foreign;

use std::process::Command;

#[test]
fn both_brokers_are_measured_and_stand_beside_each_other() {
    if foreign::mosquitto().is_none() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["beside", "--rounds", "1", "--seconds", "1"])
        .args(["--publishers", "2", "--idle", "100"])
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    let (_, table) = text.split_once("this broker    mosquitto").unwrap();
    for figure in [
        "KiB per idle connection, TLS",
        "messages/s, 1 to 1, TLS",
        "messages/s, 2 to 1, TLS",
        "connections/s, TLS",
    ] {
        let row = table.lines().find_map(|line| line.strip_prefix(figure));
        let row = row.unwrap_or_else(|| panic!("{figure} is missing in\n{text}"));
        let values: Vec<f64> = row
            .split_whitespace()
            .map(|value| value.parse().unwrap())
            .collect();
        assert_eq!(values.len(), 3, "{text}");
        assert!(values.iter().all(|value| *value > 0.0), "{text}");
    }
}
