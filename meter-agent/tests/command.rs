//! The program itself.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_meter-agent"))
        .args(arguments)
        .env_remove("STATE_DIRECTORY")
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap()
}

fn check(path: &Path) -> (bool, String) {
    let output = run(&["check-config", "--config", path.to_str().unwrap()]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), text)
}

fn write(directory: &Path, source: &str) -> std::path::PathBuf {
    let path = directory.join("meter-agent.toml");
    let text = format!(
        "state_directory = \"state\"\n[broker]\nhost = \"localhost\"\n[identity]\n\
         directory = \"identity\"\n[[channel]]\nname = \"import\"\nimpulses_per_kwh = 1000\n{source}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_reading_is_set_while_no_agent_holds_the_register() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "[channel.simulated]\nseed = 1\n");
    let config = path.to_str().unwrap();
    let set = |channel: &str, reading: &str| {
        let output = run(&["set-reading", "--config", config, channel, reading]);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = set("import", "12345.6");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("is 12345.6 kWh now; it was 0 kWh"), "{text}");
    let (code, text) = set("import", "12346");
    assert!(code == 0 && text.contains("it was 12345.6 kWh"), "{text}");
    let (code, text) = set("export", "1");
    assert!(
        code == 1 && text.contains("no channel \"export\""),
        "{text}"
    );
    let (code, text) = set("import", "12,5");
    assert!(code == 2 && text.contains("write it as 12345.6"), "{text}");
    let log = directory.path().join("state/register/readings.log");
    let kept = std::fs::read_to_string(log).unwrap();
    assert_eq!(kept.matches("channel import reads").count(), 2, "{kept}");
    // As a running agent does.
    let lock = directory.path().join("state/register/register.lock");
    let held = std::fs::File::open(lock).unwrap();
    held.lock().unwrap();
    let (code, text) = set("import", "1");
    assert!(
        code == 1 && text.contains("in use by another process"),
        "{text}"
    );
}

#[test]
fn a_device_that_shows_its_total_has_no_reading_to_set() {
    let directory = tempfile::tempdir().unwrap();
    let source = "[channel.sml]\nport = \"/dev/ttyUSB0\"\n";
    let path = write(directory.path(), source);
    let config = path.to_str().unwrap();
    let output = run(&["set-reading", "--config", config, "import", "1"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("write offset_kwh into") && text.contains("meter-agent.toml"),
        "{text}"
    );
}

#[test]
fn a_password_that_root_sets_is_the_agent_s() {
    use std::os::unix::fs::{MetadataExt, chown};

    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "[channel.simulated]\nseed = 1\n");
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    if let Err(error) = chown(&state, Some(4711), Some(4712)) {
        eprintln!("skipped: only root can give a directory away: {error}");
        return;
    }
    let said = directory.path().join("password");
    std::fs::write(&said, "correct horse\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_meter-agent"))
        .args(["set-password", "--config"])
        .arg(&path)
        .stdin(std::fs::File::open(said).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let file = state.join("page-password").metadata().unwrap();
    assert_eq!((file.uid(), file.gid()), (4711, 4712));
    assert_eq!(file.mode() & 0o777, 0o600);
}

/// Before the first start of the agent, and after it.
#[test]
fn a_reading_that_root_sets_is_the_agent_s() {
    use std::os::unix::fs::{MetadataExt, chown};

    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "[channel.simulated]\nseed = 1\n");
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    if let Err(error) = chown(&state, Some(4711), Some(4712)) {
        eprintln!("skipped: only root can give a directory away: {error}");
        return;
    }
    let register = state.join("register");
    let config = path.to_str().unwrap();
    for reading in ["12345.6", "12346"] {
        let output = run(&["set-reading", "--config", config, "import", reading]);
        assert!(output.status.success(), "{output:?}");
        let mut made = vec![register.clone()];
        let files = std::fs::read_dir(&register).unwrap();
        made.extend(files.map(|file| file.unwrap().path()));
        assert!(made.contains(&register.join("readings.log")), "{made:?}");
        for file in made {
            let metadata = file.metadata().unwrap();
            let owner = (metadata.uid(), metadata.gid());
            assert_eq!(owner, (4711, 4712), "{}", file.display());
        }
        // As an older agent left it.
        chown(register.join("readings.log"), Some(0), Some(0)).unwrap();
    }
}

#[cfg(feature = "gpiocdev")]
#[test]
fn the_example_passes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/meter-agent.toml");
    let (ok, text) = check(&path);
    assert!(ok, "{text}");
}

#[test]
fn a_readable_key_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "[channel.simulated]\nseed = 1\n");
    let key = directory.path().join("identity/key.pem");
    std::fs::create_dir(directory.path().join("identity")).unwrap();
    std::fs::write(&key, "secret").unwrap();
    for (mode, accepted) in [(0o600, true), (0o400, true), (0o640, false), (0o644, false)] {
        std::fs::set_permissions(&key, PermissionsExt::from_mode(mode)).unwrap();
        let (ok, text) = check(&path);
        assert_eq!(ok, accepted, "{mode:o}: {text}");
        assert_eq!(text.contains("chmod 600"), !accepted, "{text}");
    }
}

#[test]
fn a_broken_load_file_is_told_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(
        directory.path(),
        "[channel.replay]\nfile = \"loads.csv\"\ncolumn = 1\n",
    );
    let (ok, text) = check(&path);
    assert!(!ok && text.contains("loads.csv"), "{text}");
    std::fs::write(
        directory.path().join("loads.csv"),
        "timestamp,a\nx,1\nx,y\n",
    )
    .unwrap();
    let (ok, text) = check(&path);
    assert!(!ok && text.contains("loads.csv, line 3"), "{text}");
    std::fs::write(directory.path().join("loads.csv"), "timestamp,a\nx,1\n").unwrap();
    let (ok, text) = check(&path);
    assert!(ok, "{text}");
}

#[test]
fn a_missing_or_wrong_file_is_an_error_with_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let (ok, text) = check(&directory.path().join("nothing.toml"));
    assert!(!ok && text.contains("nothing.toml"), "{text}");
    let path = write(
        directory.path(),
        "[channel.simulated]\nseed = 1\nsped = 2\n",
    );
    let (ok, text) = check(&path);
    assert!(
        !ok && text.contains("meter-agent.toml:11") && text.contains("sped"),
        "{text}"
    );
}

#[test]
fn count_prints_pulses_and_watts() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(
        directory.path(),
        "[channel.simulated]\nseed = 1\nspeed = 3600\n",
    );
    let output = run(&[
        "count",
        "--seconds",
        "1",
        "--config",
        path.to_str().unwrap(),
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.starts_with("import: ") && text.contains(" W on average"),
        "{text}"
    );
    assert!(
        !directory.path().join("state").exists(),
        "the register is not touched"
    );
}

#[test]
fn the_version_is_the_crates() {
    let output = run(&["--version"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        text.trim(),
        concat!("meter-agent ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn home_assistant_on_the_providers_broker_keeps_the_agent_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let source =
        "[channel.simulated]\nseed = 1\n[home_assistant]\nhost = \"127.0.0.1\"\ntls = true\n";
    let path = write(directory.path(), source);
    let (ok, text) = check(&path);
    assert!(!ok && text.contains("is the broker of [broker]"), "{text}");
    let output = run(&["run", "--config", path.to_str().unwrap()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("is the broker of [broker]"), "{text}");
    assert!(!directory.path().join("state").exists());
}

#[test]
fn a_file_that_home_assistant_lacks_is_a_note_since_it_keeps_nothing_from_being_counted() {
    let directory = tempfile::tempdir().unwrap();
    let source =
        "[channel.simulated]\nseed = 1\n[home_assistant]\nhost = \"home\"\nca = \"ca.pem\"\n";
    let (ok, text) = check(&write(directory.path(), source));
    assert!(ok, "{text}");
    assert!(
        text.contains("note: [home_assistant]: cannot read certificates"),
        "{text}"
    );
}

/// On a pseudo-terminal, until Ctrl-C.
#[test]
fn counting_is_drawn_on_a_terminal_and_ctrl_c_ends_it_with_the_summary() {
    use std::io::Read;

    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "[channel.simulated]\nseed = 1\n");
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let inner = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut counting = Command::new(env!("CARGO_BIN_EXE_meter-agent"))
        .args(["count", "--seconds", "3600", "--config"])
        .arg(&path)
        .stdout(inner)
        .spawn()
        .unwrap();
    let mut terminal = std::fs::File::from(terminal);
    let (mut shown, mut bytes, mut interrupted) = (String::new(), [0; 1024], false);
    // Ends with an error when the other end is closed.
    while let Ok(count @ 1..) = terminal.read(&mut bytes) {
        shown += &String::from_utf8_lossy(&bytes[..count]);
        if !interrupted && shown.matches("\x1b[1A").count() >= 2 {
            interrupted = true;
            let pid = counting.id().to_string();
            let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
            assert!(sent.success());
        }
    }
    assert!(counting.wait().unwrap().success(), "{shown}");
    let summary = shown.rsplit("\x1b[J").next().unwrap();
    assert!(summary.contains(" W on average"), "{shown}");
    assert_eq!(shown.matches(" W on average").count(), 1, "{shown}");
}
