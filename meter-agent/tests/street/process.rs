//! The daemons, each in a process of its own.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::DEADLINE;

/// A running daemon; killed when dropped.
pub struct Process {
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts a program that adds what it logs to a file: what is usual, or what `RUST_LOG` says.
    pub fn start(mut program: Command, logged: Option<&str>, log: &Path) -> Self {
        program.envs(logged.map(|logged| ("RUST_LOG", logged)));
        let mut file = OpenOptions::new();
        let file = file.create(true).append(true).open(log).unwrap();
        let child = program.stdout(Stdio::null()).stderr(file).spawn();
        Self {
            child: Some(child.unwrap()),
            log: log.to_owned(),
        }
    }

    /// SIGKILL, as a loss of power would be.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Has it read again what can change, as its service manager does.
    pub fn reload(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Stops it as its service manager does.
    pub async fn stop(self) {
        self.signal("-TERM");
        let log = self.log.clone();
        let status = self.end().await;
        assert!(status.success(), "{}", said(&log));
    }

    /// Waits until it ends by itself.
    pub async fn end(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let waiting = tokio::task::spawn_blocking(move || {
            let end = Instant::now() + DEADLINE;
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return Some(status);
                }
                if Instant::now() > end {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    return None;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let status = waiting.await.unwrap();
        status.unwrap_or_else(|| panic!("it does not end: {}", said(&self.log)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command of a program with its configuration.
pub fn command(program: &Path, arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--config")
        .arg(config)
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// What has been logged to a file.
pub fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// The meter agent.
pub fn meter_agent() -> PathBuf {
    env!("CARGO_BIN_EXE_meter-agent").into()
}

/// A program of another package, beside the meter agent. With `--workspace`, Cargo has built
/// it; else it is built now unless it is there.
pub fn program(name: &str) -> PathBuf {
    let path = meter_agent().with_file_name(name);
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--package", name]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let directory = path.parent().and_then(Path::parent).unwrap();
        build.arg("--target-dir").arg(directory);
        assert!(build.status().unwrap().success(), "{name} cannot be built");
    }
    path
}
