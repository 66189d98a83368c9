//! What the household's Home Assistant is shown, on a real mosquitto. Without that program these
//! tests are skipped with a message.

mod mosquitto;
mod street;

use std::path::Path;
use std::time::Duration;

use mosquitto::{Broker, mosquitto};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use street::{Street, soon};
use tokio::sync::mpsc;

struct Message {
    topic: String,
    payload: String,
    retain: bool,
}

/// Another client of the household's broker, which sees everything and connects again.
struct Household {
    client: AsyncClient,
    messages: mpsc::UnboundedReceiver<Message>,
    /// The highest energy seen, in kWh.
    energy: f64,
}

impl Household {
    async fn watch(port: u16) -> Self {
        let random = getrandom::u64().unwrap();
        let options = MqttOptions::new(format!("household-{random}"), "127.0.0.1", port);
        let (client, mut events) = AsyncClient::new(options, 8);
        let (sender, messages) = mpsc::unbounded_channel();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let subscriber = client.clone();
        tokio::spawn(async move {
            let mut ready = Some(ready);
            while !sender.is_closed() {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        subscriber.try_subscribe("#", QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        ready.take().map(|ready| ready.send(()));
                    }
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        let _ = sender.send(Message {
                            topic: message.topic,
                            payload: String::from_utf8(message.payload.to_vec()).unwrap(),
                            retain: message.retain,
                        });
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        soon("the household's client is subscribed", is_ready)
            .await
            .unwrap();
        Self {
            client,
            messages,
            energy: 0.0,
        }
    }

    /// The next message that is as wanted. No state on the way may take energy back.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> Message {
        let seeing = async {
            loop {
                let message = self.messages.recv().await.unwrap();
                if let Some(energy) = energy(&message) {
                    assert!(energy >= self.energy, "{energy} after {}", self.energy);
                    self.energy = energy;
                }
                if wanted(&message) {
                    return message;
                }
            }
        };
        soon(what, seeing).await
    }

    async fn discovery(&mut self) -> Message {
        self.until("discovery", is_discovery).await
    }

    async fn availability(&mut self, expected: &str) -> Message {
        let wanted = |m: &Message| m.topic.ends_with("/availability") && m.payload == expected;
        self.until(expected, wanted).await
    }

    /// The next state of which this is true.
    async fn state(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let is_wanted = |m: &Message| state(m).is_some_and(|state| wanted(&state));
        let message = self.until(what, is_wanted).await;
        state(&message).unwrap()
    }
}

fn is_discovery(message: &Message) -> bool {
    message.topic.starts_with("homeassistant/device/")
}

fn state(message: &Message) -> Option<Value> {
    let is_state = message.topic.ends_with("/state");
    is_state.then(|| serde_json::from_str(&message.payload).unwrap())
}

fn energy(message: &Message) -> Option<f64> {
    state(message)?["channels"]["import"]["energy_kwh"].as_f64()
}

/// Adds the table to a household's configuration.
fn ask_for_it(home: &Path, port: u16) {
    let path = home.join("meter-agent.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text += &format!(
        "\n[home_assistant]\nhost = \"127.0.0.1\"\nport = {port}\nevery_seconds = 1\n\
         topic_prefix = \"cellar/meters\"\nname = \"Our meter\"\n"
    );
    std::fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_shown_again_after_whatever_happens_to_agent_broker_and_home_assistant() {
    let Some(binary) = mosquitto() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(&binary, directory.path(), "allow_anonymous true");
    broker.stop();
    let mut street = Street::new().await;
    let meter = street.enrol();
    let home = street.state(&meter).parent().unwrap().to_owned();
    ask_for_it(&home, broker.port);

    // Without its broker the agent takes part just the same.
    street.start(&meter);
    street
        .until_said(&meter, "Home Assistant is shown nothing")
        .await;
    street
        .until_said(&meter, "this meter is a member of the net")
        .await;
    broker.start_again();
    let mut household = Household::watch(broker.port).await;

    let discovery = household.discovery().await;
    let told: Value = serde_json::from_str(&discovery.payload).unwrap();
    assert_eq!(told["device"]["name"], "Our meter");
    assert!(told["components"]["import_energy"]["unique_id"].is_string());
    let online = household.availability("online").await;
    assert_eq!(told["availability_topic"], online.topic.as_str());
    let first = household
        .until("a state", |message| state(message).is_some())
        .await;
    assert_eq!(told["state_topic"], first.topic.as_str());
    assert!(
        first.topic.starts_with("cellar/meters/meter-"),
        "{}",
        first.topic
    );
    let everything = [&discovery, &online, &first];
    for message in everything {
        let public = meter.to_string();
        assert!(!message.topic.contains(&public) && !message.payload.contains(&public));
    }

    let shown = household
        .state("the meter counts and waits for others", |state| {
            state["round"] == "silent" && state["channels"]["import"]["power_w"].is_number()
        })
        .await;
    assert_eq!(shown["connected"], true);
    assert_eq!(
        (&shown["members"], &shown["alarms"]),
        (&1.into(), &0.into())
    );
    let before = household.energy;
    household
        .until("the energy rises", |m| {
            energy(m).is_some_and(|e| e > before)
        })
        .await;

    // Home Assistant was started again.
    household
        .client
        .publish("homeassistant/status", QoS::AtLeastOnce, false, "offline")
        .await
        .unwrap();
    household
        .client
        .publish("homeassistant/status", QoS::AtLeastOnce, false, "online")
        .await
        .unwrap();
    let again = household.discovery().await;
    assert_eq!(again.payload, discovery.payload);

    // Its broker was, and has forgotten everything.
    broker.stop();
    broker.start_again();
    household.discovery().await;
    household.availability("online").await;
    household.state("a state", |_| true).await;

    street.kill(&meter);
    household.availability("offline").await;

    // The same device with the same total, although a crash has taken some pulses back.
    street.start(&meter);
    let again = household.discovery().await;
    assert_eq!(
        (again.topic, again.payload),
        (discovery.topic, discovery.payload)
    );
    household.availability("online").await;
    let before = household.energy;
    household
        .until("the energy rises", |m| {
            energy(m).is_some_and(|e| e > before)
        })
        .await;

    street.stop(&meter).await;
    household.availability("offline").await;
    // What one sees who comes later: the device and that it is off, but no reading.
    let mut later = Household::watch(broker.port).await;
    let mut retained = Vec::new();
    while retained.len() < 2 {
        let message = later.until("what is retained", |_| true).await;
        assert!(
            message.retain && state(&message).is_none(),
            "{}",
            message.topic
        );
        retained.push(message.payload == "offline");
    }
    retained.sort_unstable();
    assert_eq!(retained, [false, true]);

    let said = street.said(&meter);
    assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
    assert!(!said.contains("ERROR"), "{said}");
}
