//! A device that publishes its total energy on the household's own MQTT broker.
//!
//! The connection is one of [`crate::home_broker`], and only subscribes.

use std::time::Instant;

use dcnet::units::ImpulsesPerKwh;
use link::back_off::{BackOff, Waits};
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS, SubscribeReasonCode,
};

use super::input::{Fault, Readings, TotalSource};
use super::payload::{self, Pointer};
use super::total::{TotalOptions, Totals};
use super::{Channel, PulseError};
use crate::energy::EnergyUnit;
use crate::home_broker::{HomeBroker, trouble};

/// What to look at when nothing comes on a topic.
const ADVICE: &str = "does the device publish on this topic? Retained messages are left out. Look \
                      for longer (`--seconds`) if it publishes more seldom";

const REFUSED: &str = "the household's broker refuses the subscription; allow it to this user";

/// A topic on the household's own broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeTopic {
    /// The broker.
    pub broker: HomeBroker,
    /// One topic, without wildcards.
    pub topic: String,
    /// Where in a payload of JSON the total stands; `None` for a plain number.
    pub pointer: Option<Pointer>,
    /// Its unit.
    pub unit: EnergyUnit,
    /// How the total is taken.
    pub total: TotalOptions,
}

/// Starts to listen, as a task of the current runtime. The broker need not be there yet.
///
/// # Errors
/// [`PulseError::Input`] if a file it needs cannot be used.
///
/// # Panics
/// Outside a runtime of tokio.
pub fn open(
    channel: Channel,
    constant: ImpulsesPerKwh,
    topic: &HomeTopic,
) -> Result<TotalSource, PulseError> {
    let name = format!("mqtt {} {}", topic.broker, topic.topic);
    let options = topic.broker.prepare().map_err(|error| PulseError::Input {
        input: name.clone(),
        problem: format!("{error:#}"),
        advice: "Correct [channel.mqtt]",
    })?;
    let totals = Totals::new(channel, constant, topic.total);
    let (source, readings) = TotalSource::new(&name, ADVICE, totals);
    let listener = Listener {
        topic: topic.clone(),
        readings,
    };
    tokio::spawn(listener.run(options));
    Ok(source)
}

struct Listener {
    topic: HomeTopic,
    readings: Readings,
}

impl Listener {
    /// Ends when nobody wants readings any more.
    async fn run(self, options: MqttOptions) {
        let (client, mut events) = AsyncClient::new(options, 8);
        tokio::select! {
            () = self.readings.closed() => {}
            () = self.listen(&client, &mut events) => {}
        }
    }

    async fn listen(&self, client: &AsyncClient, events: &mut EventLoop) {
        let (mut waits, mut told) = (Waits::new(BackOff::default()), String::new());
        loop {
            let begun = Instant::now();
            let (subscribed, trouble) = match self.topic.broker.is_not_the_providers().await {
                Ok(()) => self.connection(client, events).await,
                Err(refused) => (false, format!("{refused:#}")),
            };
            if subscribed && waits.was_good_for(begun.elapsed()) {
                told.clear();
            }
            self.readings.trouble(Some(&trouble));
            if trouble != told {
                tracing::error!(input = self.readings.name(), "{trouble}; trying again");
                told = trouble;
            }
            tokio::time::sleep(waits.next_wait()).await;
        }
    }

    /// One connection, from the first byte to the last: whether the broker took the
    /// subscription, and how it ended.
    async fn connection(&self, client: &AsyncClient, events: &mut EventLoop) -> (bool, String) {
        let mut subscribed = false;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    // Unacknowledged: a total says all that the one before said, and to answer each
                    // costs as much as to take it. It finds room: nothing else is ever requested.
                    let _ = client.try_subscribe(&self.topic.topic, QoS::AtMostOnce);
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                        self.readings.trouble(Some(REFUSED));
                        tracing::error!(input = self.readings.name(), "{REFUSED}");
                    } else {
                        subscribed = true;
                        self.readings.trouble(None);
                        tracing::info!(input = self.readings.name(), "listening");
                    }
                }
                Ok(Event::Incoming(Packet::Publish(message))) => self.message(&message),
                Ok(_) => {}
                Err(error) => return (subscribed, trouble(&error)),
            }
        }
    }

    fn message(&self, message: &Publish) {
        // A retained message says nothing about now: nobody knows how old it is.
        if message.retain {
            tracing::debug!(
                input = self.readings.name(),
                "a retained message is left out"
            );
            return;
        }
        let HomeTopic { pointer, unit, .. } = &self.topic;
        match payload::total(&message.payload, pointer.as_ref(), *unit) {
            Ok(energy) => self.readings.reading(energy),
            Err(fault) => self.readings.fault(&Fault {
                detail: format!("{}; look at topic, `pointer` and `unit`", fault.detail),
                ..fault
            }),
        }
    }
}
