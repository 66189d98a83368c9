//! The program itself on the files of a rig.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::Rig;

/// The program as a process.
pub struct Daemon {
    pub child: Child,
    pub address: SocketAddr,
    pub log: Receiver<String>,
}

impl Daemon {
    /// Starts the program on the files of a rig whose own broker is stopped.
    pub fn start(rig: &Rig) -> Self {
        Self::with(rig, "")
    }

    /// The same with more in its configuration, and the environment that its unit gives it.
    pub fn with(rig: &Rig, more: &str) -> Self {
        let path = write_config(rig, more);
        let unit = include_str!("../../../systemd/dcnet-broker.service");
        let variables = unit
            .lines()
            .filter_map(|line| line.strip_prefix("Environment="));
        let mut child = Command::new(env!("CARGO_BIN_EXE_broker"))
            .arg("--config")
            .arg(path)
            .envs(variables.filter_map(|variable| variable.split_once('=')))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = log.next().expect("it says where it listens").unwrap();
            if let Some((_, address)) = line.split_once("listening address=") {
                break address.trim().parse().unwrap();
            }
        };
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in log.map_while(Result::ok) {
                // Read to the end, whether somebody listens or not.
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            address,
            log: lines,
        }
    }

    pub fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes the program's configuration file.
pub fn write_config(rig: &Rig, more: &str) -> PathBuf {
    let at = |name: &str| rig.directory.path().join(name).display().to_string();
    let path = rig.directory.path().join("broker.toml");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\nstate = {:?}\n{more}",
        at("ca.pem"),
        at("broker.pem"),
        at("broker.key"),
        at("state")
    );
    fs::write(&path, text).unwrap();
    path
}
