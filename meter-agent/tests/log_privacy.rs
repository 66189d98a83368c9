//! Nothing that is logged has a figure of a total in it: not of what a device shows, nor of what
//! was counted or set. In a file of its own, because the log of a whole process is looked at.

mod mosquitto;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dcnet::units::{ImpulsesPerKwh, Pulses};
use meter_agent::energy::EnergyUnit;
use meter_agent::home_broker::HomeBroker;
use meter_agent::pulse::d0::Framing;
use meter_agent::pulse::input::TotalSource;
use meter_agent::pulse::mqtt::{self, HomeTopic};
use meter_agent::pulse::optical::{self, HeadChannel, OpticalOptions, Protocol};
use meter_agent::pulse::total::TotalOptions;
use meter_agent::pulse::{Channel, PulseSource};
use meter_agent::register::{Register, RegisterChannel};
use mosquitto::{Broker, PATIENCE, mosquitto};
use rumqttc::{AsyncClient, MqttOptions, QoS};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tracing_subscriber::fmt::MakeWriter;

/// Parts of every figure that is shown, counted or advised here; longer than a port's number.
const FIGURES: [&str; 8] = [
    "73517", "73518", "7351.7", "735173", "735174", "66165", "66166", "1844674",
];

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn said(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Delivers what a source has until this is true of what came in, and asks for more in between.
async fn until(
    source: &mut TotalSource,
    what: &str,
    wanted: impl Fn(&TotalSource) -> bool,
    mut send: impl AsyncFnMut(),
) {
    let waiting = async {
        while !wanted(source) {
            send().await;
            let soon = Duration::from_millis(200);
            while tokio::time::timeout(soon, source.next()).await.is_ok() {}
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{what}: {:?}", source.statistics()));
}

fn constant() -> ImpulsesPerKwh {
    ImpulsesPerKwh::new(1000).unwrap()
}

async fn optical(directory: &Path) {
    let name = directory.join("usb-head");
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let other_end = ptsname(&terminal, Vec::new()).unwrap();
    std::os::unix::fs::symlink(other_end.to_str().unwrap(), &name).unwrap();
    let mut meter = File::from(terminal);
    let head = HeadChannel {
        channel: Channel(0),
        constant: constant(),
        options: OpticalOptions {
            port: name,
            baud: 9600,
            codes: vec!["1.8.0".parse().unwrap()],
            protocol: Protocol::D0 {
                framing: Framing::Eight,
                request_every: None,
            },
            total: TotalOptions::default(),
        },
    };
    let mut source = optical::open(&[head]).unwrap().remove(0);
    source.resume(&[Pulses(1000)]);
    let mut send = |value: &str| {
        let telegram = format!("/ABC5type\r\n\r\n1-0:1.8.0*255({value})\r\n!\r\n");
        meter.write_all(telegram.as_bytes()).unwrap();
    };
    let faults = |kind: &'static str, times| {
        move |source: &TotalSource| source.statistics().fault(kind) >= times
    };
    for malformed in [
        "-735173.51*kWh",
        "735173.51",
        "735173.51*kWh)1-0:1.8.0*255(735173.52*kWh",
    ] {
        let before = source.statistics().fault("value is no energy");
        let wanted = faults("value is no energy", before + 1);
        until(&mut source, malformed, wanted, async || send(malformed)).await;
    }
    let read = |source: &TotalSource| source.statistics().readings >= 1;
    until(&mut source, "a total", read, async || send("73517.351*kWh")).await;
    // So often that it insists.
    let went_back = faults("total went back", 4);
    until(&mut source, "back", went_back, async || {
        send("7351.7351*kWh")
    })
    .await;
    let jumped = faults("total jumped", 4);
    until(&mut source, "a jump", jumped, async || {
        send("735173.51*kWh")
    })
    .await;
}

async fn mqtt(port: u16) {
    let topic = HomeTopic {
        broker: HomeBroker {
            host: "127.0.0.1".to_owned(),
            port,
            tls: None,
            login: None,
            provider: "203.0.113.9".to_owned(),
        },
        topic: "plug".to_owned(),
        pointer: Some("/total".parse().unwrap()),
        unit: EnergyUnit::KilowattHours,
        total: TotalOptions {
            offset: 1_000_000,
            ..TotalOptions::default()
        },
    };
    let mut source = mqtt::open(Channel(0), constant(), &topic).unwrap();
    source.resume(&[Pulses(1000)]);
    let (client, mut events) = AsyncClient::new(MqttOptions::new("plug", "127.0.0.1", port), 16);
    tokio::spawn(async move { while events.poll().await.is_ok() {} });
    let publish = async |payload: &str| {
        let sent = client.publish("plug", QoS::AtLeastOnce, false, payload);
        sent.await.unwrap();
    };
    for (payload, kind) in [
        ("73517.351", "no such member"),
        (r#"{"total":73517.351"#, "payload is no JSON"),
        (r#"{"total":"73517.351 kWh"}"#, "value is no energy"),
        (r#"{"total":-73517.351}"#, "value is no energy"),
        (r#"{"total":73517351e30}"#, "value is no energy"),
        (r#"{"total":18446744073709.551}"#, "impossible offset"),
    ] {
        let before = source.statistics().fault(kind);
        let wanted = |source: &TotalSource| source.statistics().fault(kind) > before;
        until(&mut source, payload, wanted, async || {
            publish(payload).await
        })
        .await;
    }
    let read = |source: &TotalSource| source.statistics().refused.is_none();
    let good = r#"{"total":73517.351}"#;
    until(&mut source, "a total", read, async || publish(good).await).await;
    for (payload, kind) in [
        (r#"{"total":7351.7351}"#, "total went back"),
        (r#"{"total":735173.51}"#, "total jumped"),
    ] {
        let wanted = |source: &TotalSource| source.statistics().fault(kind) >= 4;
        until(&mut source, payload, wanted, async || {
            publish(payload).await
        })
        .await;
    }
    let refused = source.statistics().refused.unwrap().figures();
    assert!(
        refused.contains("735174.51 kWh"),
        "the household sees it: {refused}"
    );
}

/// A line of the log of readings that is damaged.
fn register(directory: &Path) {
    let open = || {
        let channel = RegisterChannel {
            name: "import".to_owned(),
            constant: constant(),
        };
        Register::open(directory, vec![channel]).unwrap()
    };
    drop(open());
    let damaged =
        "2026-11-22T18:30:00Z channel import reads 73517351 mWh at 7351 pulses, crc32 0\n";
    std::fs::write(directory.join("readings.log"), damaged).unwrap();
    drop(open());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_input_reads_no_digits_of_it_are_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .without_time()
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let directory = tempfile::tempdir().unwrap();
    register(&directory.path().join("register"));
    assert!(log.said().contains("line=1"), "{}", log.said());
    optical(directory.path()).await;
    let mut expected = vec![
        "has a damaged line",
        "the value of 1.8.0 in a telegram is",
        "the register follows the device's total",
        "less than was counted already",
        "rose by more than maximum_kw",
    ];
    if let Some(binary) = mosquitto() {
        let broker = Broker::start(&binary, directory.path(), "allow_anonymous true");
        mqtt(broker.port).await;
        expected.extend(["a payload is no JSON", "is no possible one"]);
    }
    let said = log.said();
    for text in expected {
        assert!(said.contains(text), "{text}: {said}");
    }
    for figure in FIGURES {
        assert!(!said.contains(figure), "{figure}: {said}");
    }
}
