//! Counting goes on whatever is wrong with the enrolment or the clock, and the link starts
//! without a restart once that is mended.

mod street;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dcnet::identity::{DeviceId, NET_URI_PREFIX, Role};
use dcnet::meter::Floors;
use dcnet::time::{Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::{ImpulsesPerKwh, Pulses};
use gateway_admin::{Authority, LogHead, Terms};
use link::{Clock, LinkState};
use meter_agent::agent::{Agent, AgentControl, AgentHandle, AgentOptions};
use meter_agent::ask::{Agent as Asked, ask};
use meter_agent::clock::utc_timestamp;
use meter_agent::config::IdentityFiles;
use meter_agent::history::Days;
use meter_agent::pulse::profile::{Profile, ProfileSource};
use meter_agent::pulse::{Channel, PulseError};
use meter_agent::reach::{NoLink, Reach};
use meter_agent::register::RegisterChannel;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    SanType, date_time_ymd,
};
use serde_json::{Value, json};
use street::{Street, put, soon};

fn is(kind: &'static str) -> impl Fn(&Value) -> bool {
    move |status| status["no_link"]["kind"] == kind && status["channels"][0]["pulses"] != 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_that_cannot_be_used_stops_no_counting_and_is_taken_once_it_is_mended() {
    let mut street = Street::new().await;
    let own = street.enrol();
    let (files, state) = (street.identity(&own), street.state(&own));
    let kept = files.with_file_name("kept");
    street::copy(&files, &kept);
    let mend = |name: &str| put(&kept.join(name), &files.join(name));
    std::fs::write(files.join("revoked.cbor"), "damaged").unwrap();
    std::fs::remove_file(files.join("checkpoint.cbor")).unwrap();
    street.start(&own);

    let shown = street
        .until_status(&own, "it counts without a link", is("enrolment"))
        .await;
    let text = shown["no_link"]["text"].as_str().unwrap();
    assert!(
        text.contains("checkpoint.cbor") && text.contains("enrol"),
        "{text}"
    );
    assert_eq!(shown["meter"], Value::Null);
    street.until_counted_more(&own, &shown).await;
    let told = ask(&state, "/status.txt").await.unwrap();
    assert!(
        told.contains("checkpoint.cbor") && told.contains("counts, and submits nothing"),
        "{told}"
    );
    let metrics = ask(&state, "/metrics").await.unwrap();
    assert!(
        metrics.contains("\nmeter_agent_no_link{why=\"enrolment\"} 1\n"),
        "{metrics}"
    );
    let table = ask(&state, "/history.csv").await.unwrap();
    assert!(table.starts_with("utc,import_kwh"), "{table}");
    let left = street.command(&own, &["leave"]).await;
    let said = String::from_utf8(left.stderr).unwrap();
    assert!(
        !left.status.success() && said.contains("checkpoint.cbor"),
        "{said}"
    );

    // Another fault behind the first one is told in its place, with a reload too.
    mend("checkpoint.cbor");
    street.reload(&own);
    street.until_said(&own, "revoked.cbor").await;
    mend("revoked.cbor");
    street.reload(&own);
    let joined = street
        .until_status(&own, "it joins", |status| status["is_member"] == true)
        .await;
    assert_eq!(joined["meter"], own.to_string());
    assert_eq!(joined["no_link"], Value::Null);
    street.until_counted_more(&own, &shown).await;
    let said = street.said(&own);
    assert_eq!(
        said.matches("meter-agent 0.").count(),
        1,
        "one start: {said}"
    );
    street.stop(&own).await;
    street.stop_provider().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_list_is_damaged_counts_and_comes_back_into_the_sums() {
    let mut street = Street::new().await;
    for _ in 0..5 {
        street.join();
    }
    street.sums_over(&street.all(), 1, Round(0)).await;
    let own = *street.all().first().unwrap();
    street.stop(&own).await;
    let (list, kept) = (
        street.revocation_list(&own),
        street.identity(&own).with_file_name("kept"),
    );
    put(&list, &kept);
    std::fs::write(&list, "damaged").unwrap();
    street.start(&own);
    let shown = street
        .until_status(&own, "it counts without a link", is("enrolment"))
        .await;
    // Without a link it does not leave, and says so.
    let mut agent = Asked::find(&street.state(&own)).await.unwrap().unwrap();
    let confirm = json!({ "confirm": &own.to_string()[..8] });
    let refused = agent.post("/api/exit", &confirm).await.unwrap_err();
    assert!(format!("{refused:#}").contains("nothing was done"));

    put(&kept, &list);
    street.reload(&own);
    street
        .sums_over(&street.all(), 1, street::present_round())
        .await;
    street.until_counted_more(&own, &shown).await;
    street.stop(&own).await;
    street.stop_provider().await;
}

const NET: NetId = NetId([7; 16]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_refused_takes_no_other_channel_with_it_and_alone_is_an_error() {
    let mut street = Street::new().await;
    let own = street.enrol();
    let line = "impulses_per_kwh = 1000
        [channel.gpiocdev]
        line = \"no-such-line-of-any-machine\"";
    let refused = format!("[[channel]]\nname = \"heat\"\n{line}\n[[channel]]");
    street.configure(&own, "[[channel]]", &refused);
    street.start(&own);
    let pulses = |status: &Value| status["channels"][1]["pulses"].as_u64().unwrap();
    let shown = street
        .until_status(&own, "the other one is counted", |status| {
            pulses(status) > 0
        })
        .await;
    let heat = &shown["channels"][0];
    let trouble = heat["line_trouble"].as_str().unwrap();
    assert!(trouble.contains("no-such-line-of-any-machine"), "{shown}");
    assert_eq!(heat["power"], Value::Null, "nobody knows it: {shown}");
    assert_eq!(shown["channels"][1]["line_trouble"], Value::Null);
    let metrics = ask(&street.state(&own), "/metrics").await.unwrap();
    assert!(
        metrics.contains("\nmeter_agent_line_read{channel=\"heat\"} 0\n"),
        "{metrics}"
    );
    let doctor = street.command(&own, &["doctor", "--seconds", "1"]).await;
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(
        !doctor.status.success() && said.contains("! PROBLEM channel heat: GPIO line"),
        "{said}"
    );
    street
        .until_status(&own, "it joins", |status| status["is_member"] == true)
        .await;
    assert_eq!(street.said(&own).matches("no-such-line").count(), 1, "once");
    street.stop(&own).await;

    // With nothing to count at all, the service manager shall show it.
    let alone = street.enrol();
    let config = street.identity(&alone).with_file_name("meter-agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (head, _) = text.split_once("[[channel]]").unwrap();
    let text = format!("{head}[[channel]]\nname = \"import\"\n{line}\n");
    std::fs::write(&config, text).unwrap();
    street.start(&alone);
    assert_eq!(street.end(&alone).await.code(), Some(1));
    assert!(street.said(&alone).contains("no-such-line-of-any-machine"));
    street.stop_provider().await;
}

/// A household without a broker.
struct Home {
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::init(&directory.path().join("authority")).unwrap();
        Self {
            directory,
            authority,
        }
    }

    fn identity(&self) -> PathBuf {
        self.directory.path().join("identity")
    }

    /// Enrols the meter.
    fn enrol(&self) -> DeviceId {
        let key = || gateway_admin::KeyPair::generate().unwrap();
        let provider = self
            .authority
            .enrol_provider(key(), &Terms::default())
            .unwrap();
        let head = LogHead {
            index: 0,
            hash: [5; 32],
            members: 0,
        };
        let terms = Terms::default();
        let meter = self
            .authority
            .enrol_meter(key(), NET, &provider.certificate, head, &terms)
            .unwrap();
        meter.write(&self.identity()).unwrap();
        meter.id()
    }

    /// Puts a certificate of long ago in the place of the meter's; gives the one that was there.
    fn expire(&self, id: DeviceId) -> Vec<u8> {
        let path = self.identity().join("certificate.pem");
        let valid = std::fs::read(&path).unwrap();
        std::fs::write(&path, self.until(id, 1_609_459_200)).unwrap();
        valid
    }

    /// A certificate of the meter from 2020 until `end`, in seconds since 1970.
    fn until(&self, id: DeviceId, end: u64) -> String {
        let file = |name: &str| std::fs::read_to_string(self.identity().join(name)).unwrap();
        let ca_key = self.directory.path().join("authority/ca.key.pem");
        let ca_key = KeyPair::from_pem(&std::fs::read_to_string(ca_key).unwrap()).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&file("ca.pem"), ca_key).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        params.distinguished_name = DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, id.to_string());
        let role = Role::Meter.extended_key_usage().to_vec();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::Other(role),
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let net = format!("{NET_URI_PREFIX}{NET}").try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(net));
        let key = KeyPair::from_pem(&file("key.pem")).unwrap();
        params.signed_by(&key, &issuer).unwrap().pem()
    }

    /// Gives the meter another certificate.
    fn renew(&self, certificate: impl AsRef<[u8]>) {
        let part = self.identity().join("part");
        std::fs::write(&part, certificate).unwrap();
        std::fs::rename(part, self.identity().join("certificate.pem")).unwrap();
    }

    async fn start(&self, clock: Clock, look_again: Duration) -> AgentHandle {
        let files = IdentityFiles {
            directory: self.identity(),
        };
        let channels = vec![RegisterChannel {
            name: "import".to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        }];
        let source = ProfileSource::new(Channel(0), Steady, utc_timestamp());
        let state = self.directory.path().join("state");
        let mut options = AgentOptions::new(
            &files,
            ("127.0.0.1", deaf_port()),
            Floors::default(),
            state,
            channels,
            vec![Box::new(source)],
        );
        (options.clock, options.look_again) = (clock, look_again);
        Agent::start(options).await.unwrap()
    }
}

/// A port that nobody listens on.
fn deaf_port() -> u16 {
    let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.local_addr().unwrap().port()
}

/// One pulse per millisecond.
struct Steady;

impl Profile for Steady {
    fn pulses_between(&mut self, from: Timestamp, until: Timestamp) -> Result<Pulses, PulseError> {
        Ok(Pulses(until.as_millis() - from.as_millis()))
    }
}

async fn until_reach(control: &AgentControl, what: &str, is: impl Fn(&Reach) -> bool) -> Reach {
    let mut reach = control.reach();
    soon(what, reach.wait_for(is)).await.unwrap().clone()
}

/// Something more is counted from now on.
async fn counts(control: &AgentControl) {
    let mut counted = control.counted();
    let pulses = |counted: &meter_agent::register::counting::Counted| {
        counted
            .channels
            .first()
            .map_or(0, |channel| channel.pulses.0)
    };
    let before = pulses(&counted.borrow_and_update());
    let more = counted.wait_for(|counted| pulses(counted) > before);
    soon("it counts", more).await.unwrap();
}

/// Nobody answers it.
fn has_link(reach: &Reach) -> bool {
    matches!(reach, Reach::Link(LinkState::Waiting { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_starts_the_link_without_a_restart() {
    let home = Home::new();
    let id = home.enrol();
    let valid = home.expire(id);
    let agent = home
        .start(Clock::assume_synchronised(), Duration::from_millis(20))
        .await;
    let control = &agent.control;
    let is_refused = |reach: &Reach| matches!(reach, Reach::None(NoLink::Enrolment(_)));
    let why = until_reach(control, "there is no link", is_refused).await;
    let why = why.to_string();
    for part in ["certificate.pem is valid from", "a new certificate"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    counts(control).await;
    home.renew(valid);
    until_reach(control, "the link starts", has_link).await;
    counts(control).await;
    let days = Days {
        on_disk: 0,
        shown: 0,
    };
    let status = control.view().status(days);
    assert_eq!(status.meter, Some(id.to_string()));
    agent.stop().await.unwrap();
}

/// Waits until the link runs with certificates that end then, in seconds since 1970.
async fn until_end(control: &AgentControl, what: &str, end: u64) {
    let days = Days {
        on_disk: 0,
        shown: 0,
    };
    let view = control.view();
    let is = || {
        let status = view.status(days);
        status.no_link.is_none() && status.certificate_end_ms == Some(end * 1000)
    };
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(what, waiting).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_runs_takes_up_a_renewed_certificate_when_it_is_asked_to() {
    let home = Home::new();
    let id = home.enrol();
    let now = utc_timestamp().as_millis() / 1000;
    let [first, second] = [now + 86_400, now + 100_000];
    home.renew(home.until(id, first));
    let agent = home
        .start(Clock::assume_synchronised(), Duration::from_millis(20))
        .await;
    let control = &agent.control;
    until_end(control, "the link starts", first).await;
    // With one that cannot be used it goes on.
    home.renew("damaged");
    control.look_at_revocations().notify_one();
    until_end(control, "the link goes on", first).await;
    home.renew(home.until(id, second));
    control.look_at_revocations().notify_one();
    until_end(control, "the renewed certificate is used", second).await;
    counts(control).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_whose_certificate_has_ended_takes_up_another_one_by_itself() {
    let home = Home::new();
    let id = home.enrol();
    let now = utc_timestamp().as_millis() / 1000;
    let [first, second] = [now + 4, now + 100_000];
    home.renew(home.until(id, first));
    let agent = home
        .start(Clock::assume_synchronised(), Duration::from_millis(20))
        .await;
    let control = &agent.control;
    home.renew(home.until(id, second));
    until_end(control, "another certificate is used", second).await;
    let taken = utc_timestamp().as_millis() / 1000;
    assert!(taken >= first, "not before it is needed: {taken}");
    counts(control).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_clock_that_was_not_set_nothing_is_judged() {
    let home = Home::new();
    let id = home.enrol();
    let valid = home.expire(id);
    let is_synchronised = Arc::new(AtomicBool::new(false));
    let clock = || {
        let flag = Arc::clone(&is_synchronised);
        Clock::with(move || flag.load(Ordering::Relaxed))
    };
    let often = Duration::from_millis(20);
    let agent = home.start(clock(), often).await;
    let control = &agent.control;
    let waits = |reach: &Reach| matches!(reach, Reach::None(NoLink::Clock(_)));
    let why = until_reach(control, "it waits for the clock", waits).await;
    assert!(why.to_string().contains("timedatectl"), "{why}");
    counts(control).await;
    // A clock that is right judges it.
    is_synchronised.store(true, Ordering::Relaxed);
    let is_refused = |reach: &Reach| matches!(reach, Reach::None(NoLink::Enrolment(_)));
    until_reach(control, "it is judged", is_refused).await;
    counts(control).await;
    agent.stop().await.unwrap();

    // One that is valid needs no clock.
    is_synchronised.store(false, Ordering::Relaxed);
    home.renew(valid);
    let agent = home.start(clock(), often).await;
    until_reach(&agent.control, "the link starts", has_link).await;
    agent.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_in_use_keeps_nothing_from_counting() {
    let home = Home::new();
    home.enrol();
    let state = home.directory.path().join("state");
    let files = |state: &Path| {
        let net = state.join(format!("{}.db", NET));
        (net, state.join("register/ledger.db"))
    };
    let (net, ledger) = files(&state);
    let held = link::MeterJournal::open(&net, &ledger).unwrap();
    let often = Duration::from_millis(20);
    let agent = home.start(Clock::assume_synchronised(), often).await;
    let is_held = |reach: &Reach| matches!(reach, Reach::None(NoLink::State(_)));
    let why = until_reach(&agent.control, "the state is held", is_held).await;
    assert!(
        why.to_string().contains("in use by another process"),
        "{why}"
    );
    counts(&agent.control).await;
    drop(held);
    until_reach(&agent.control, "the link starts", has_link).await;
    agent.stop().await.unwrap();
}
