//! Clients that are slow, half there, too many or too fast.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::dice::Dice;
use super::setting::{Target, USER};
use super::tally::{Fate, Tally};
use crate::device::{Device, NET};
use crate::raw::packet::{
    DISCONNECT, PINGREQ, connect, connect_as, connect_with, puback, publish, publish_id, subscribe,
    subscribe_often, unsubscribe,
};
use crate::raw::{Raw, narrow_tcp, tcp};

/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);
/// How long somebody subscribes again and again, by one connection.
const SUBSCRIBING: Duration = Duration::from_secs(10);
/// The broker takes nothing for so long from whom it slows down.
const WRITE: Duration = Duration::from_secs(2);
/// More than the broker waits for a CONNECT, and for somebody who takes nothing.
const THROWN_OUT: Duration = Duration::from_secs(45);
/// More than it takes to fill every buffer, and then for the broker to lose patience.
const TAKING_NOTHING: Duration = Duration::from_secs(40);
/// More connections than the broker allows one address.
const CROWD: usize = 1040;

/// An attacker and what it has.
#[derive(Clone)]
pub struct Attacker {
    /// Its meter; nobody else uses it.
    pub device: Device,
    /// What it attacks.
    pub target: Arc<Target>,
    /// Where it reports.
    pub tally: Arc<Tally>,
}

impl Attacker {
    async fn tls(&self, dice: &mut Dice) -> io::Result<Raw> {
        let tcp = tcp(dice.source(), self.target.agents).await?;
        Raw::tls(tcp, &self.device.tls).await
    }

    fn id(&self) -> String {
        self.device.id.to_string()
    }

    async fn session(&self, version: u8, dice: &mut Dice) -> io::Result<Raw> {
        self.enter(self.tls(dice).await?, version).await
    }

    async fn enter(&self, mut raw: Raw, version: u8) -> io::Result<Raw> {
        raw.send(&connect(version, &self.id())).await?;
        raw.expect().await?;
        Ok(raw)
    }

    fn count(&self, attack: &'static str, ended: bool) {
        let fate = if ended { Fate::Ended } else { Fate::Borne };
        self.tally.count(attack, fate);
    }

    /// Subscribes to what is published most, takes nothing of it or a little now and then, and
    /// is thrown out or not.
    pub async fn slow_reader(self, mut dice: Dice) {
        loop {
            let sips = dice.chance(30);
            let qos = u8::from(dice.chance(25));
            let reading = async {
                let tcp = narrow_tcp(dice.source(), self.target.agents).await?;
                let mut raw = self
                    .enter(Raw::tls(tcp, &self.device.tls).await?, 4)
                    .await?;
                let inbox = self.device.topic("inbox/#");
                let all = format!("dcnet/1/{NET}/all/#");
                for filter in [inbox, all] {
                    raw.send(&subscribe(4, 1, &filter, qos)).await?;
                }
                if sips {
                    for _ in 0..200 {
                        sleep(Duration::from_millis(100)).await;
                        if timeout(WRITE, raw.sip(64)).await?? == 0 {
                            return Ok(true);
                        }
                    }
                    return Ok(false);
                }
                sleep(TAKING_NOTHING).await;
                // What the system holds of it comes before the end, if that was the end.
                io::Result::Ok(raw.ended_within(TAKING_NOTHING / 2).await)
            };
            let name = if sips {
                "slow reader, sipping"
            } else {
                "slow reader, taking nothing"
            };
            self.count(name, reading.await.unwrap_or(true));
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// One after the other: reset connections, silence before and after TLS, and bytes one by one.
    pub async fn half_open(self, mut dice: Dice) {
        loop {
            let which = dice.below(6);
            let (name, ended) = match which {
                0 => (
                    "half-open: reset after TCP",
                    self.reset_tcp(&mut dice).await,
                ),
                1 => (
                    "half-open: reset after CONNECT",
                    self.reset_session(&mut dice).await,
                ),
                2 => (
                    "half-open: silent after TCP",
                    self.silent_tcp(&mut dice).await,
                ),
                3 => (
                    "half-open: silent after TLS",
                    self.silent_tls(&mut dice).await,
                ),
                4 => (
                    "half-open: CONNECT byte by byte",
                    self.drop_by_drop(&mut dice).await,
                ),
                _ => (
                    "half-open: TLS byte by byte",
                    self.tls_drop_by_drop(&mut dice).await,
                ),
            };
            self.count(name, ended.unwrap_or(true));
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn reset_tcp(&self, dice: &mut Dice) -> io::Result<bool> {
        reset(&tcp(dice.source(), self.target.agents).await?)?;
        Ok(false)
    }

    async fn reset_session(&self, dice: &mut Dice) -> io::Result<bool> {
        let tcp = tcp(dice.source(), self.target.agents).await?;
        // It takes effect when the connection is dropped.
        reset(&tcp)?;
        let mut raw = Raw::tls(tcp, &self.device.tls).await?;
        raw.send(&connect(4, &self.id())).await?;
        if dice.chance(50) {
            raw.expect().await?;
        }
        Ok(false)
    }

    async fn silent_tcp(&self, dice: &mut Dice) -> io::Result<bool> {
        let tcp = tcp(dice.source(), self.target.agents).await?;
        Ok(Raw::over(tcp).ended_within(THROWN_OUT).await)
    }

    async fn silent_tls(&self, dice: &mut Dice) -> io::Result<bool> {
        Ok(self.tls(dice).await?.ended_within(THROWN_OUT).await)
    }

    async fn drop_by_drop(&self, dice: &mut Dice) -> io::Result<bool> {
        let mut raw = self.tls(dice).await?;
        for byte in connect(5, &self.id()) {
            if raw.send(&[byte]).await.is_err() {
                return Ok(true);
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(raw.ended_within(WRITE).await)
    }

    async fn tls_drop_by_drop(&self, dice: &mut Dice) -> io::Result<bool> {
        let mut tcp = tcp(dice.source(), self.target.agents).await?;
        for byte in client_hello(&self.device.tls)? {
            if tcp.write_all(&[byte]).await.is_err() {
                return Ok(true);
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(false)
    }

    /// More silent connections from one address than it may have, again and again.
    pub async fn crowd(self, mut dice: Dice) {
        loop {
            let source = dice.source();
            let mut silent = Vec::new();
            for _ in 0..CROWD {
                match tcp(source, self.target.agents).await {
                    Ok(tcp) => silent.push(tcp),
                    Err(_) => break,
                }
            }
            for tcp in silent {
                let ended = Raw::over(tcp).ended_within(THROWN_OUT).await;
                self.count("crowd of silent connections from one address", ended);
            }
            sleep(Duration::from_secs(10)).await;
        }
    }

    /// As fast as the broker lets it, one kind after the other.
    pub async fn flood(self, mut dice: Dice) {
        loop {
            let which = dice.below(6);
            let name = match which {
                0 => "flood of PUBLISH, quality 0",
                1 => "flood of PUBLISH, quality 1",
                2 => "flood of large PUBLISH",
                3 => "flood of SUBSCRIBE and UNSUBSCRIBE",
                4 => "flood of PINGREQ",
                _ => "flood of forbidden PUBLISH",
            };
            let packets = self.flooding(which, &mut dice);
            let flooding = async {
                let mut raw = self.session(4, &mut dice).await?;
                let end = tokio::time::Instant::now() + FLOOD;
                while tokio::time::Instant::now() < end {
                    match raw.send_within(&packets, WRITE).await {
                        Ok(()) => {}
                        // It is held back.
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                        Err(_) => return Ok(true),
                    }
                }
                io::Result::Ok(false)
            };
            self.count(name, flooding.await.unwrap_or(true));
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Subscribes again and again to what is retained and takes all of it, but acknowledges
    /// nothing, or everything but the first message.
    pub async fn resubscriber(self, mut dice: Dice) {
        loop {
            let lazy = dice.chance(50);
            let name = if lazy {
                "resubscriber, acknowledging nothing"
            } else {
                "resubscriber, acknowledging all but one"
            };
            // As often as a packet has room for, as a client may, or once.
            let times = dice.pick(&[1200, 8, 1]);
            let filter = format!("dcnet/1/{NET}/public/#");
            let again = subscribe_often(4, 1, &filter, times, 1);
            let subscribing = async {
                let mut raw = self.session(4, &mut dice).await?;
                let end = tokio::time::Instant::now() + SUBSCRIBING;
                let mut first = true;
                while tokio::time::Instant::now() < end {
                    raw.send(&again).await?;
                    loop {
                        let (kind, body) = raw.expect().await?;
                        match publish_id(&body).filter(|_| kind & 0xf6 == 0x32) {
                            Some(id) if !lazy && !first => raw.send(&puback(id)).await?,
                            Some(_) => first = false,
                            None if kind == 0x90 => break,
                            None => {}
                        }
                    }
                }
                io::Result::Ok(false)
            };
            self.count(name, subscribing.await.unwrap_or(true));
            sleep(Duration::from_millis(500)).await;
        }
    }

    fn flooding(&self, which: usize, dice: &mut Dice) -> Vec<u8> {
        let up = self.device.topic("up/flood");
        let inbox = self.device.topic("inbox/flood");
        let one = match which {
            0 => publish(4, up.as_bytes(), 0, 0, &[7; 100]),
            1 => publish(4, up.as_bytes(), 2, 9, &[7; 100]),
            2 => publish(4, up.as_bytes(), dice.pick(&[0, 2]), 9, &vec![7; 70_000]),
            3 => [subscribe(4, 1, &inbox, 1), unsubscribe(4, 2, &inbox)].concat(),
            4 => PINGREQ.to_vec(),
            _ => publish(4, inbox.as_bytes(), 0, 0, &[7; 100]),
        };
        one.repeat(if which == 2 { 1 } else { 100 })
    }

    /// Connects and leaves, a few at a time, rudely or not.
    pub async fn connect_storm(self, mut dice: Dice) {
        loop {
            let mut storm = JoinSet::new();
            for number in 0..20 {
                let (this, source, id) = (self.clone(), dice.source(), dice.below(4));
                storm.spawn(async move {
                    let mut raw = Raw::tls(
                        tcp(source, this.target.third_parties).await?,
                        &this.target.storming(id).tls,
                    )
                    .await?;
                    raw.send(&connect(4, &format!("storm {number}"))).await?;
                    let (_, body) = raw.expect().await?;
                    if number % 2 == 0 {
                        raw.send(&DISCONNECT).await?;
                    }
                    io::Result::Ok(body.get(1) != Some(&0))
                });
            }
            while let Some(ended) = storm.join_next().await {
                let ended = matches!(ended, Ok(Ok(true) | Err(_)) | Err(_));
                self.count("storm of connections", ended);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Wrong passwords, each from another address.
    pub async fn guesser(self, mut dice: Dice) {
        loop {
            let target = &self.target;
            let user = if dice.chance(50) { USER } else { "nobody" };
            let password = format!("password {}", dice.below(1000));
            let guess = async {
                let tcp = tcp(dice.source(), target.third_parties).await?;
                let mut raw = Raw::tls(tcp, &target.stranger).await?;
                raw.send(&connect_as(5, "guesser", user, &password)).await?;
                let (_, body) = raw.expect().await?;
                io::Result::Ok(body.get(1) != Some(&0))
            };
            self.count("wrong passwords", guess.await.unwrap_or(true));
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The same meter several times at once.
    pub async fn takeover(self, mut dice: Dice) {
        loop {
            let attempt = async {
                let mut raw = self.tls(&mut dice).await?;
                let version = dice.pick(&[4, 5]);
                // With a will, which is published each time.
                let will = [
                    if version == 5 { vec![0] } else { Vec::new() },
                    crate::raw::packet::string(self.device.topic("up/will").as_bytes()),
                    crate::raw::packet::string(b"gone"),
                ]
                .concat();
                raw.send(&connect_with(version, 6, 60, &self.id(), &will))
                    .await?;
                raw.send(&subscribe(version, 1, &self.device.topic("inbox/#"), 1))
                    .await?;
                let patience = Duration::from_millis(dice.below(60) as u64);
                io::Result::Ok(raw.ended_within(patience).await)
            };
            self.count("takeovers of a session", attempt.await.unwrap_or(true));
        }
    }
}

/// Closing it sends RST from now on.
fn reset(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).set_linger(Some(Duration::ZERO))
}

/// The first bytes of a TLS handshake.
fn client_hello(tls: &Arc<ClientConfig>) -> io::Result<Vec<u8>> {
    let name = rustls::pki_types::ServerName::try_from(crate::system::HOST);
    let name = name.map_err(io::Error::other)?;
    let client = rustls::ClientConnection::new(Arc::clone(tls), name);
    let mut client = client.map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}
