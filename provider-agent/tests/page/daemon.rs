//! The daemon as a process, and questions to its page.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use page::password;
use provider_agent::page::access::ACCOUNT;
use serde_json::Value;

use crate::world::{DEADLINE, World};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_provider-agent");
pub const PASSWORD: &str = "correct horse";

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub page: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// What the page answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub headers: String,
    pub body: String,
}

impl Daemon {
    /// Starts the daemon with a page on a port that it chooses.
    pub fn start(world: &World) -> Self {
        let config = world.config_file();
        let text = fs::read_to_string(&config).unwrap();
        let more = "[page]\nlisten = \"127.0.0.1:0\"\n";
        fs::write(&config, format!("{text}{more}")).unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(&config)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, page) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("page is at http://")
                    && let Some((address, _)) = rest.split_once('/')
                {
                    let _ = told.send(address.parse().unwrap());
                }
                eprintln!("{line}");
                *written.lock().unwrap() += &line;
            }
        });
        let page = page.recv_timeout(DEADLINE).expect("the page is served");
        Self { child, page, log }
    }

    /// Whether its log says something.
    pub fn said(&self, what: &str) -> bool {
        self.log.lock().unwrap().contains(what)
    }

    /// Has it read again what can change while it runs.
    pub fn reload(&self) {
        let id = self.child.id().to_string();
        let mut hangup = Command::new("kill");
        assert!(hangup.args(["-HUP", &id]).status().unwrap().success());
    }

    /// Asks for a path as the operator.
    pub fn get(&self, path: &str) -> Answer {
        ask(self.page, path, Some((ACCOUNT.user, PASSWORD)))
    }

    /// The JSON of a path that there has to be.
    pub fn json(&self, path: &str) -> Value {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Waits until the agent has read its database.
    pub fn is_started(&self) {
        self.until("/api/overview", "the agent runs", |overview| {
            overview["link"]["text"] != "the agent is starting"
        });
    }

    /// Waits until the JSON of a path is as it should be.
    pub fn until(&self, path: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let json = self.json(path);
            if is_so(&json) {
                return json;
            }
            assert!(
                Instant::now() < end,
                "not within {DEADLINE:?}: {what}: {json:#}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sets the password that [`Daemon::get`] uses.
pub fn set_password(state_directory: &Path) {
    password::set_password(state_directory, PASSWORD).unwrap();
}

/// A connection on which a path was asked for.
pub fn request(page: SocketAddr, path: &str, credentials: Option<(&str, &str)>) -> TcpStream {
    let mut stream = TcpStream::connect(page).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let credentials = credentials.map_or_else(String::new, |(user, password)| {
        let token = base64(format!("{user}:{password}").as_bytes());
        format!("Authorization: Basic {token}\r\n")
    });
    let head = format!("GET {path} HTTP/1.1\r\nHost: {page}\r\nConnection: close\r\n");
    stream
        .write_all(format!("{head}{credentials}\r\n").as_bytes())
        .unwrap();
    stream
}

/// Asks for a path.
pub fn ask(page: SocketAddr, path: &str, credentials: Option<(&str, &str)>) -> Answer {
    let mut text = String::new();
    request(page, path, credentials)
        .read_to_string(&mut text)
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        headers: head.to_lowercase(),
        body: body.to_owned(),
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..part.len()].copy_from_slice(part);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize % 64];
            let is_padding = place > part.len();
            text.push(if is_padding { '=' } else { char::from(digit) });
        }
    }
    text
}
