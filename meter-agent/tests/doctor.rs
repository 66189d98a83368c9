//! What `doctor` says of a broker that does not take this meter, of a head that is silent, and
//! beside an agent that runs.

mod street;

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use dcnet::identity::Role;
use dcnet::membership::{Membership, NewNet, Policy};
use gateway_admin::{Authority, Bundle, DeviceRequest, Host, KeyPair, LogHead, Terms};
use meter_agent::ask::ask;
use meter_agent::clock::utc_timestamp;
use meter_agent::doctor::{Finding, Verdict, examine};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use street::{Street, period, soon};

/// A gateway administrator with a provider, a broker and a meter.
struct Office {
    directory: tempfile::TempDir,
    authority: Authority,
    meter: Bundle,
}

impl Office {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let authority = Authority::init(&path("authority")).unwrap();
        let terms = Terms::default();
        let key = || KeyPair::generate().unwrap();
        let provider = authority.enrol_provider(key(), &terms).unwrap();
        let hosts = [Host::Address(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        let broker = authority.enrol_broker(key(), &hosts, &terms).unwrap();
        broker.write(&path("broker")).unwrap();
        let policy = Policy {
            period: period(),
            window_ms: 1000,
            minimum_group: 4,
            minimum_neighbours: 3,
            degree: 4,
        };
        let net = NewNet {
            name: "test".to_owned(),
            policy,
            channels: vec!["import".to_owned()],
            salt: [7; 16],
        };
        let signer = provider.key().unwrap();
        let genesis = net.sign(
            &signer,
            &provider.certificate,
            authority.ca(),
            utc_timestamp(),
        );
        let log = Membership::open(&genesis, &provider.certificate, authority.ca()).unwrap();
        let head = LogHead {
            index: 0,
            hash: log.head().hash,
            members: 0,
        };
        let meter = authority
            .enrol_meter(key(), log.net(), &provider.certificate, head, &terms)
            .unwrap();
        meter.write(&path("identity")).unwrap();
        Self {
            directory,
            authority,
            meter,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives the meter a certificate that is valid for so many days.
    fn renew(&self, days: u32) {
        let directory = self.path(&format!("for-{days}-days"));
        let key = self.path("identity/key.pem");
        let request = DeviceRequest::of_key(&key, &directory, Role::Meter).unwrap();
        let provider = self.path("identity/provider.pem");
        let provider = self.authority.read_certificate(&provider).unwrap();
        let net = self.meter.certificate.net().unwrap();
        let head = LogHead {
            index: 0,
            hash: [0; 32],
            members: 0,
        };
        let terms = Terms::default().days(days);
        let renewed = self
            .authority
            .enrol_meter(request, net, &provider, head, &terms);
        renewed.unwrap().write(&directory).unwrap();
        let name = "certificate.pem";
        std::fs::copy(directory.join(name), self.path("identity").join(name)).unwrap();
    }

    /// Starts the broker; with the list of revoked devices, if it is to look at it.
    async fn broker(&self, looks_at_list: bool) -> (broker::Broker, u16) {
        let files = self.path("broker");
        let administrator = self.path("identity/administrator.pem");
        let config = broker::Config {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            ca: files.join("ca.pem"),
            certificate: files.join("certificate.pem"),
            key: files.join("key.pem"),
            revocations: looks_at_list.then(|| self.authority.revoked_path()),
            administrator: looks_at_list.then_some(administrator),
            ..broker::Config::default()
        };
        let broker = broker::Broker::start(config).await.unwrap();
        let port = broker.local_addrs()[0].port();
        (broker, port)
    }

    /// What is said of the broker at a host and port.
    async fn of_broker(&self, host: &str, port: u16) -> (Verdict, String) {
        let path = self.path("meter-agent.toml");
        configure(&path, host, port, "[channel.simulated]\nseed = 1\n");
        let said = findings(&path).await;
        let about = said
            .iter()
            .find(|said| said.text.starts_with("the broker "));
        let about = about.unwrap_or_else(|| panic!("{said:?}"));
        (about.verdict, about.text.clone())
    }
}

fn configure(path: &Path, host: &str, port: u16, source: &str) {
    let text = format!(
        "state_directory = \"state\"\n[broker]\nhost = \"{host}\"\nport = {port}\n[identity]\n\
         directory = \"identity\"\n[clock]\nassume_synchronised = true\n[[channel]]\n\
         name = \"import\"\nimpulses_per_kwh = 10000\n{source}"
    );
    std::fs::write(path, text).unwrap();
}

async fn findings(path: &Path) -> Vec<Finding> {
    let mut said = Vec::new();
    let examining = examine(path, Duration::from_secs(1), |finding| said.push(finding));
    soon("everything is looked at", examining).await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_part_of_the_way_to_the_broker_that_fails_is_named() {
    let (office, other) = (Office::new(), Office::new());
    let (_broker, port) = office.broker(false).await;
    let (_other_broker, other_port) = other.broker(false).await;
    let well = office.of_broker("127.0.0.1", port).await;
    assert_eq!(well.0, Verdict::Good, "{}", well.1);

    let (verdict, text) = office.of_broker("127.0.0.1", other_port).await;
    assert_eq!(verdict, Verdict::Problem, "{text}");
    assert!(text.contains("not of the CA in ca.pem"), "{text}");

    let (verdict, text) = office.of_broker("localhost", port).await;
    assert_eq!(verdict, Verdict::Problem, "{text}");
    assert!(text.contains("another host name than localhost"), "{text}");

    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let plain_port = plain.local_addr().unwrap().port();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        stream.write_all(b"220 mail.example.net ESMTP\r\n").unwrap();
    });
    let (verdict, text) = office.of_broker("127.0.0.1", plain_port).await;
    assert_eq!(verdict, Verdict::Problem, "{text}");
    assert!(text.contains("speaks no TLS"), "{text}");
    answering.join().unwrap();

    // Nobody listens there any more.
    let (verdict, text) = office.of_broker("127.0.0.1", plain_port).await;
    assert_eq!(verdict, Verdict::Warning, "{text}");
    assert!(text.contains("cannot be reached"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_ends_within_two_months_is_named() {
    let office = Office::new();
    let path = office.path("meter-agent.toml");
    configure(&path, "127.0.0.1", 1, "[channel.simulated]\nseed = 1\n");
    let of_certificates = async || {
        let said = findings(&path).await;
        let about = said.iter().find(|said| said.text.contains("more days"));
        let about = about.unwrap_or_else(|| panic!("{said:?}"));
        (about.verdict, about.text.clone())
    };
    let (verdict, text) = of_certificates().await;
    assert_eq!(verdict, Verdict::Good, "{text}");
    for (days, expected) in [(62, Verdict::Good), (59, Verdict::Warning)] {
        office.renew(days);
        let (verdict, text) = of_certificates().await;
        assert_eq!(verdict, expected, "{text}");
        let names = text.contains("certificate.pem ends first");
        assert_eq!(names, expected == Verdict::Warning, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_the_broker_refuses_and_a_meter_that_is_revoked_are_named() {
    let (office, other) = (Office::new(), Office::new());
    office.authority.revoke(&[office.meter.id()]).unwrap();
    let (_broker, port) = office.broker(true).await;
    let (verdict, text) = office.of_broker("127.0.0.1", port).await;
    assert_eq!(verdict, Verdict::Problem, "{text}");
    assert!(text.contains("it is revoked"), "{text}");

    // The list beside the identity says so too.
    std::fs::copy(
        office.authority.revoked_path(),
        office.path("identity/revoked.cbor"),
    )
    .unwrap();
    let said = findings(&office.path("meter-agent.toml")).await;
    let names = |said: &Finding| said.text.contains("of revoked devices names this meter");
    assert!(said.iter().any(names), "{said:?}");

    for file in ["certificate.pem", "key.pem"] {
        let (from, to) = (other.path("identity"), office.path("identity"));
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let (verdict, text) = office.of_broker("127.0.0.1", port).await;
    assert_eq!(verdict, Verdict::Problem, "{text}");
    assert!(
        text.contains("it refuses this meter's certificate"),
        "{text}"
    );
}

/// A pseudo-terminal under the name of an adapter.
fn plug(name: &Path) -> File {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let other_end = ptsname(&terminal, Vec::new()).unwrap();
    std::os::unix::fs::symlink(other_end.to_str().unwrap(), name).unwrap();
    File::from(terminal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_says_nothing_is_a_problem_that_names_its_port() {
    let directory = tempfile::tempdir().unwrap();
    let (port, path) = (
        directory.path().join("usb-head"),
        directory.path().join("meter-agent.toml"),
    );
    let source = format!("[channel.sml]\nport = {port:?}\n");
    configure(&path, "127.0.0.1", 1, &source);
    let of_channel = async || {
        let said = findings(&path).await;
        let found = said
            .into_iter()
            .find(|said| said.text.starts_with("channel import:"));
        found.unwrap()
    };
    let missing = of_channel().await;
    assert_eq!(missing.verdict, Verdict::Problem, "{missing}");
    let name = port.to_str().unwrap();
    assert!(
        missing.text.contains(name) && missing.text.contains("plugged in"),
        "{missing}"
    );
    let _head = plug(&port);
    let silent = of_channel().await;
    assert_eq!(silent.verdict, Verdict::Problem, "{silent}");
    assert!(
        silent.text.contains(name) && silent.text.contains("position of the optical head"),
        "{silent}"
    );
}

/// The first of several telegrams of a real meter.
fn telegram() -> Vec<u8> {
    let text = include_str!("telegrams/itron-with-pin.sml.hex");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut bytes = hex::decode(lines.collect::<String>()).unwrap();
    let begin = &bytes[..8];
    let next = bytes.windows(8).skip(1).position(|bytes| bytes == begin);
    bytes.truncate(next.unwrap() + 1);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_running_agent_it_asks_that_and_takes_nothing_away() {
    let mut street = Street::new().await;
    let own = street.enrol();
    let port = street.state(&own).parent().unwrap().join("usb-head");
    let mut head = plug(&port);
    let heat = format!(
        "[[channel]]\nname = \"heat\"\nimpulses_per_kwh = 10000\n[channel.sml]\nport = {port:?}\n\
         [[channel]]"
    );
    street.configure(&own, "[[channel]]", &heat);
    let (stop, stopped) = channel::<()>();
    let meter = std::thread::spawn(move || {
        let every = Duration::from_millis(100);
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            head.write_all(&telegram()).unwrap();
        }
    });
    street.start(&own);
    let input = async || {
        let text = ask(&street.state(&own), "/api/status").await.unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        (
            status["link"]["is_connected"] == true,
            status["channels"][0]["input"].clone(),
        )
    };
    street.page(&own).await;
    soon("the head is read and the broker connected", async {
        loop {
            let (connected, input) = input().await;
            if connected && input["readings"].as_u64() > Some(2) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let before = input().await.1;

    let output = street.command(&own, &["doctor", "--seconds", "2"]).await;
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("the agent runs; the rest is what it tells"),
        "{said}"
    );
    assert!(said.contains("it is connected to the broker"), "{said}");
    let expected = format!("readings of {} 1.8.0 in 2 s", port.display());
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("channel import: "), "{said}");

    let after = input().await.1;
    assert!(
        after["readings"].as_u64() > before["readings"].as_u64(),
        "{after}"
    );
    assert_eq!(after["faults"], before["faults"], "no byte was taken away");
    let said = street.said(&own);
    assert_eq!(said.matches("connected to the broker").count(), 1, "{said}");
    drop(stop);
    meter.join().unwrap();
    street.stop(&own).await;
    street.stop_provider().await;
}
