//! A synthetic meter's connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use chacha20::rand_core::Rng;
use dcnet::frame::Unverified;
use dcnet::membership::Membership;
use dcnet::opening::Opening;
use dcnet::pad::RosterHash;
use dcnet::roster::Roster;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::{All, NetId, Topic, Up};
use meter_agent::clock::utc_timestamp;
use rumqttc::{
    AsyncClient, ConnectReturnCode, Event, EventLoop, MqttOptions, Packet, QoS,
    SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use simulation::synthetic::{SyntheticMeter, random};
use tokio::sync::{Semaphore, mpsc};

use super::until;
use crate::chaos::fault;
use crate::system::HOST;

/// Longest packet, as the agents have it.
const MAX_PACKET: usize = 256 * 1024;
/// Between two looks whether the broker listens already.
const LOOK: Duration = Duration::from_millis(20);
/// For the broker to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all meters share.
pub struct Rules {
    /// The net.
    pub net: NetId,
    /// The port of the broker.
    pub port: u16,
    /// Length of a round.
    pub period: Period,
    /// How long submissions are taken.
    pub window_ms: u32,
    /// The log, whose head never changes.
    pub membership: Membership,
    /// The newest roster that was verified: it is the same for all of them.
    pub newest: Mutex<Option<Verified>>,
    /// When the last submission of a round was handed to the connection, in UTC.
    pub last_submission: Mutex<BTreeMap<Round, Timestamp>>,
    /// When the provider closed the window of a round, by the time in its roster.
    pub closed: Mutex<BTreeMap<Round, Timestamp>>,
}

/// A roster that was verified once for all meters.
pub struct Verified {
    frame: Vec<u8>,
    round: Round,
    hash: RosterHash,
}

impl Rules {
    fn submitted(&self, round: Round, at: Timestamp) {
        let last = self.last_submission.lock();
        let mut last = last.unwrap_or_else(PoisonError::into_inner);
        let newest = last.entry(round).or_insert(at);
        *newest = at.max(*newest);
    }

    /// How long after the last submission of a round something was, if that is known.
    pub fn since_last_submission(&self, round: Round, at: Timestamp) -> Option<Duration> {
        let last = self.last_submission.lock();
        let last = last.unwrap_or_else(PoisonError::into_inner);
        last.get(&round).map(|last| at.since(*last))
    }

    /// How long after its window closed something was, if a roster has come.
    pub fn since_close(&self, round: Round, at: Timestamp) -> Option<Duration> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.get(&round).map(|closed| at.since(*closed))
    }

    fn verify(&self, frame: &[u8]) -> anyhow::Result<(Round, RosterHash)> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = newest.as_ref().filter(|known| known.frame == frame) {
            return Ok((known.round, known.hash));
        }
        let roster = Roster::verify(frame, &self.membership).context("a roster is refused")?;
        let signed = Unverified::parse(frame)?.claimed().timestamp;
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.entry(roster.round).or_insert(signed);
        *newest = Some(Verified {
            frame: frame.to_vec(),
            round: roster.round,
            hash: roster.hash,
        });
        Ok((roster.round, roster.hash))
    }
}

/// One household.
pub struct Household {
    /// Its number, from 0.
    pub number: u64,
    /// What it signs.
    pub meter: SyntheticMeter,
    /// Its certificate.
    pub tls: Arc<ClientConfig>,
}

impl Household {
    fn mask(&self, round: Round) -> Opening {
        random(round.0.wrapping_mul(1 << 20).wrapping_add(self.number))
    }

    fn topic(&self, net: NetId, kind: Up) -> String {
        let meter = self.meter.key.id();
        Topic::Up { net, meter, kind }.to_string()
    }
}

/// What happened to a connection.
#[derive(Debug)]
pub enum Sighting {
    /// It is there, with its subscriptions.
    Connected,
    /// It broke.
    Lost(String),
}

/// Waits until the broker listens.
///
/// # Errors
/// It does not within half a minute.
pub async fn await_listener(port: u16) -> anyhow::Result<()> {
    let listening = async {
        while tokio::net::TcpStream::connect((HOST, port)).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let waiting = tokio::time::timeout(PATIENCE, listening);
    waiting.await.context("the broker does not listen")
}

/// Takes part until the connection breaks.
pub async fn run(
    household: Household,
    rules: Arc<Rules>,
    turns: Arc<Semaphore>,
    sightings: mpsc::UnboundedSender<Sighting>,
) {
    if let Err(error) = take_part(Arc::new(household), rules, turns, &sightings).await {
        let _ = sightings.send(Sighting::Lost(format!("{error:#}")));
    }
}

async fn take_part(
    household: Arc<Household>,
    rules: Arc<Rules>,
    turns: Arc<Semaphore>,
    sightings: &mpsc::UnboundedSender<Sighting>,
) -> anyhow::Result<()> {
    let turn = turns.acquire().await.context("nobody connects any more")?;
    let id = household.meter.key.id();
    let mut options = MqttOptions::new(id.to_string(), HOST, rules.port);
    let tls = TlsConfiguration::Rustls(Arc::clone(&household.tls));
    options
        .set_transport(Transport::tls_with_config(tls))
        .set_clean_session(true)
        .set_max_packet_size(MAX_PACKET, MAX_PACKET)
        .set_keep_alive(Duration::from_secs(60));
    let (client, mut events) = AsyncClient::new(options, 16);
    subscribe(
        &client,
        &mut events,
        &[
            format!("dcnet/1/{}/meter/{id}/inbox/#", rules.net),
            format!("dcnet/1/{}/all/#", rules.net),
        ],
    )
    .await?;
    drop(turn);
    let _ = sightings.send(Sighting::Connected);
    // Ends with the client's other half.
    tokio::spawn(submit(
        Arc::clone(&household),
        Arc::clone(&rules),
        client.clone(),
    ));

    let rosters = Topic::All {
        net: rules.net,
        kind: All::Roster,
    }
    .to_string();
    let reveals = household.topic(rules.net, Up::Reveal);
    loop {
        let Event::Incoming(Packet::Publish(message)) = events.poll().await? else {
            continue;
        };
        if message.topic == rosters {
            let (round, roster) = rules.verify(&message.payload)?;
            let now = utc_timestamp();
            let mask = household.mask(round);
            let reveal = household.meter.reveal(rules.net, round, roster, mask, now);
            client.try_publish(&reveals, QoS::AtLeastOnce, false, reveal)?;
        }
    }
}

async fn subscribe(
    client: &AsyncClient,
    events: &mut EventLoop,
    filters: &[String],
) -> anyhow::Result<()> {
    let mut open = filters.len();
    while open > 0 {
        match events.poll().await? {
            Event::Incoming(Packet::ConnAck(ack)) => {
                if ack.code != ConnectReturnCode::Success {
                    bail!("refused: {:?}", ack.code);
                }
                for filter in filters {
                    client.try_subscribe(filter, QoS::AtLeastOnce)?;
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                if !matches!(
                    ack.return_codes.as_slice(),
                    [SubscribeReasonCode::Success(_)]
                ) {
                    bail!("a subscription is refused");
                }
                open -= 1;
            }
            _ => {}
        }
    }
    Ok(())
}

/// After each interval, at a random time in the first half of the window, as real meters do.
async fn submit(household: Arc<Household>, rules: Arc<Rules>, client: AsyncClient) {
    let topic = household.topic(rules.net, Up::Submission);
    let head = rules.membership.head().hash;
    let mut rng = fault::random(household.number, b'l');
    let spread = u64::from(rules.window_ms / 2).max(1);
    // The present interval is not counted from its beginning.
    let mut round = Round(rules.period.round_at(utc_timestamp()).0 + 1);
    loop {
        let delay = Duration::from_millis(rng.next_u64() % spread);
        tokio::time::sleep(until(round.end(rules.period).plus(delay))).await;
        let (now, mask) = (utc_timestamp(), household.mask(round));
        let frame = household
            .meter
            .submission(rules.net, round, head, mask, now);
        rules.submitted(round, now);
        let sent = client.try_publish(&topic, QoS::AtLeastOnce, false, frame);
        if sent.is_err() {
            return;
        }
        round = Round(round.0 + 1);
    }
}
