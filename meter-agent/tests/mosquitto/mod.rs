//! A household's broker: a real mosquitto.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../../lab/tests/foreign/mod.rs"]
mod foreign;
pub use foreign::mosquitto;

/// Longer than anything takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running broker; killed when dropped.
pub struct Broker {
    binary: PathBuf,
    directory: PathBuf,
    pub port: u16,
    child: Child,
}

impl Broker {
    /// With these lines of configuration, at a port that is free.
    pub fn start(binary: &Path, directory: &Path, lines: &str) -> Self {
        let begun = Instant::now();
        loop {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            // As root it would become a user who cannot read the directory of the test.
            let text = format!("user root\nlistener {port} 127.0.0.1\n{lines}\n");
            std::fs::write(directory.join("mosquitto.conf"), text).unwrap();
            let mut broker = Self {
                binary: binary.to_path_buf(),
                directory: directory.to_path_buf(),
                port,
                child: Self::spawn(binary, directory),
            };
            if broker.listens() {
                return broker;
            }
            assert!(begun.elapsed() < PATIENCE, "mosquitto does not start");
        }
    }

    fn spawn(binary: &Path, directory: &Path) -> Child {
        Command::new(binary)
            .arg("-c")
            .arg(directory.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Whether it got its port.
    fn listens(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::yield_now();
        }
        false
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn start_again(&mut self) {
        self.child = Self::spawn(&self.binary, &self.directory);
        assert!(self.listens());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
