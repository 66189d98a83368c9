//! Clients of others: paho (Python) and MQTT.js, of which each is started as a program.

mod rig;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use rig::*;

const PASSWORD: &str = "correct horse";

/// A program and its arguments before the setting.
type Program = (PathBuf, Vec<PathBuf>);

fn script(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    directory.join("tests/foreign").join(name)
}

/// Python with paho-mqtt 2: `PAHO_PYTHON`, or the usual one.
fn program_of_paho() -> Option<Program> {
    let named = std::env::var_os("PAHO_PYTHON").map(PathBuf::from);
    let python = named.unwrap_or_else(|| "python3".into());
    let check = "from paho.mqtt.enums import CallbackAPIVersion";
    let found = Command::new(&python).args(["-c", check]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip(&format!("{} has no paho-mqtt 2", python.display()));
        return None;
    }
    Some((python, vec![script("paho_client.py")]))
}

/// Node.js with mqtt 5, which it finds by `NODE_PATH`.
fn program_of_mqttjs() -> Option<Program> {
    let check = "process.exit(Number(require('mqtt/package.json').version.split('.')[0]) - 5)";
    let found = Command::new("node").args(["-e", check]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        skip("there is no node with mqtt 5; set NODE_PATH to its node_modules");
        return None;
    }
    Some(("node".into(), vec![script("mqttjs_client.js")]))
}

/// A running client; killed when dropped.
struct Foreign {
    child: Child,
    lines: Receiver<String>,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Foreign {
    fn start((program, arguments): &Program, setting: &str) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .arg(setting)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let told = output.lines().map_while(Result::ok);
            told.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        Self { child, lines }
    }

    fn tells(&self, expected: &str, when: &str) {
        let line = self.lines.recv_timeout(DEADLINE);
        let line = line.unwrap_or_else(|_| panic!("{when}: instead of {expected:?} nothing"));
        assert_eq!(line, expected, "{when}");
    }
}

/// How a client comes in.
#[derive(Clone, Copy, Debug)]
enum Way {
    Certificate,
    Password,
    WebSocket,
}

fn setting(rig: &Rig, way: Way, version: u8) -> String {
    let third = rig.third_party();
    let file = |name: &str, text: &str| {
        let path = rig.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let broker = rig.broker();
    let (port, transport) = match way {
        Way::Certificate => (rig.address().port(), "tcp"),
        Way::Password => (broker.third_party_addrs()[0].port(), "tcp"),
        Way::WebSocket => (broker.websocket_addrs()[0].port(), "websockets"),
    };
    let identity = match way {
        Way::Certificate => format!(
            r#""certificate": {:?}, "key": {:?}"#,
            file("third.pem", &third.pem),
            file("third.key", &key_for_openssl(&third))
        ),
        Way::Password | Way::WebSocket => {
            format!(r#""user": "dashboard", "password": {PASSWORD:?}"#)
        }
    };
    format!(
        r#"{{"port": {port}, "version": {version}, "transport": "{transport}", {identity},
            "ca": {:?}, "allowed": "dcnet/1/{NET}/public/#", "forbidden": "dcnet/1/{NET}/all/#"}}"#,
        rig.config.ca
    )
}

async fn a_client_reads_what_it_may_and_comes_back_after_a_restart(program: &Program) {
    let everything = "[all]\nsubscribe = [\"dcnet/1/+/public/#\"]\n";
    let mut rig = Rig::serving(&[("dashboard", PASSWORD)], everything).await;
    // The ports stay the same from now on.
    rig.config.listen = rig.broker().local_addrs().to_vec();
    rig.config.listen_third_parties = rig.broker().third_party_addrs().to_vec();
    rig.config.listen_websocket = rig.broker().websocket_addrs().to_vec();
    let topic = format!("dcnet/1/{NET}/public/status");
    for way in [Way::Certificate, Way::Password, Way::WebSocket] {
        for version in [4, 5] {
            let mut provider = rig.client(&rig.provider).await;
            provider.retain(&topic, b"kept").await;
            provider.acknowledged().await;
            let client = Foreign::start(program, &setting(&rig, way, version));
            let arrives = |when: &str, kept: &str| {
                let when = format!("{way:?}, version {version}, {when}");
                client.tells("connected", &when);
                let refusal = if version == 5 { 0x87 } else { 0x80 };
                client.tells(&format!("forbidden {refusal}"), &when);
                client.tells("allowed 1", &when);
                client.tells(&format!("message 1 {kept}"), &when);
            };
            arrives("at first", "kept");
            provider.retain(&topic, b"live").await;
            provider.acknowledged().await;
            client.tells("message 0 live", &format!("{way:?}, version {version}"));
            drop(provider);
            rig.restart().await;
            arrives("after a restart", "live");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paho_reads_what_it_may_and_comes_back() {
    if let Some(program) = program_of_paho() {
        a_client_reads_what_it_may_and_comes_back_after_a_restart(&program).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqttjs_reads_what_it_may_and_comes_back() {
    if let Some(program) = program_of_mqttjs() {
        a_client_reads_what_it_may_and_comes_back_after_a_restart(&program).await;
    }
}

#[test]
fn without_a_client_that_is_required_its_test_fails() {
    let test = |required: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "paho_reads_what_it_may_and_comes_back",
                "--nocapture",
            ])
            .env("PAHO_PYTHON", "/nonexistent/python3")
            .env("REQUIRE_FOREIGN_CLIENTS", required)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (passed, said) = test("0");
    assert!(passed && said.contains("skipped: "), "{said}");
    let (passed, said) = test("1");
    assert!(!passed && said.contains("has no paho-mqtt 2"), "{said}");
}
