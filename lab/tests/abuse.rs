//! `lab abuse` as a user runs it, for seconds.

use std::process::Command;

#[test]
fn the_broker_outlives_everything_at_once_and_serves_the_honest() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        // That the machine is busy and nothing optimised is no fault of the broker.
        .args([
            "abuse",
            "--minutes",
            "0.2",
            "--seed",
            "1",
            "--connections",
            "60",
            "--longest",
            "120",
        ])
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for attack in [
        "fuzzed packets of a meter",
        "fuzzed packets of a user",
        "fuzzed packets before CONNECT",
        "flood of ",
        "resubscriber, ",
        "half-open: ",
        "crowd of silent connections",
        "takeovers of a session",
        "wrong passwords",
        "killer: ",
        "malformed or misplaced packet",
    ] {
        assert!(text.contains(attack), "{attack} is missing in\n{text}");
    }
    assert!(text.contains(" 0 lost"), "{text}");
}
