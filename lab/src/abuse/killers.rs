//! Everything that is known to kill rumqttd behind its own listeners, one after the other and
//! over again. `broker/tests/killers.rs` checks each answer; here they come amid everything else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::dice::Dice;
use super::setting::Target;
use super::tally::{Fate, Tally};
use crate::device::Device;
use crate::raw::packet::{
    DISCONNECT, connect, connect_with, packet, publish, publish_with, subscribe,
};
use crate::raw::{Raw, tcp};

/// For the broker to end a connection or not.
const REACTION: Duration = Duration::from_millis(300);

/// Who does all that.
pub struct Killer {
    /// Its meter.
    pub device: Device,
    /// What it attacks.
    pub target: Arc<Target>,
    /// Where it reports.
    pub tally: Arc<Tally>,
}

impl Killer {
    /// All of them, for ever.
    pub async fn run(self, mut dice: Dice) {
        loop {
            let dice = &mut dice;
            self.count("killer: hostile topics", self.topics(dice).await);
            self.count("killer: hostile filters", self.filters(dice).await);
            self.count(
                "killer: subscriber that leaves messages",
                self.leaves(dice).await,
            );
            self.count("killer: leaving under load", self.under_load(dice).await);
            self.count("killer: QoS 2 without PUBREL", self.qos_2(dice).await);
            self.count("killer: topic aliases", self.aliases(dice).await);
            self.count("killer: oversized packets", self.oversized(dice).await);
            self.count("killer: rubbish instead of TLS", self.no_tls(dice).await);
            self.count(
                "killer: rubbish instead of packets",
                self.rubbish(dice).await,
            );
            self.count(
                "killer: random well-framed packets",
                self.framed(dice).await,
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn count(&self, name: &'static str, ended: io::Result<bool>) {
        let ended = ended.unwrap_or(true);
        self.tally
            .count(name, if ended { Fate::Ended } else { Fate::Borne });
    }

    async fn tls(&self, dice: &mut Dice) -> io::Result<Raw> {
        let tcp = tcp(dice.source(), self.target.agents).await?;
        Raw::tls(tcp, &self.device.tls).await
    }

    async fn session(&self, version: u8, dice: &mut Dice) -> io::Result<Raw> {
        let mut raw = self.tls(dice).await?;
        raw.send(&connect(version, &self.device.id.to_string()))
            .await?;
        raw.expect().await?;
        Ok(raw)
    }

    /// Sends in a new session.
    async fn say(&self, version: u8, bytes: &[u8], dice: &mut Dice) -> io::Result<bool> {
        let mut raw = self.session(version, dice).await?;
        raw.send(bytes).await?;
        Ok(raw.ended_within(REACTION).await)
    }

    async fn topics(&self, dice: &mut Dice) -> io::Result<bool> {
        let own = self.device.topic("up/é");
        let topics: [&[u8]; 8] = [
            "é/x".as_bytes(),
            own.as_bytes(),
            b"\xff\xfe",
            b"",
            b"#",
            b"dcnet/+/x",
            b"$SYS/x",
            b"a\0b",
        ];
        let version = dice.pick(&[4, 5]);
        let flags = dice.pick(&[0, 2]);
        let topic = dice.pick(&topics);
        self.say(version, &publish(version, topic, flags, 1, b"x"), dice)
            .await
    }

    async fn filters(&self, dice: &mut Dice) -> io::Result<bool> {
        let filter = dice.pick(&["é/#", "$share/é/#", "", "a/#/b", "+é"]);
        let version = dice.pick(&[4, 5]);
        self.say(version, &subscribe(version, 1, filter, 1), dice)
            .await
    }

    /// A persistent, shared and plain, subscriber that acknowledges nothing.
    async fn leaves(&self, dice: &mut Dice) -> io::Result<bool> {
        let inbox = self.device.topic("inbox/#");
        let mut raw = self.tls(dice).await?;
        raw.send(&connect_with(4, 0, 60, &self.device.id.to_string(), &[]))
            .await?;
        raw.expect().await?;
        raw.send(&subscribe(4, 1, &format!("$share/group/{inbox}"), 1))
            .await?;
        raw.send(&subscribe(4, 2, &inbox, 1)).await?;
        let mut seen = 0;
        let taking = async {
            while seen < 20 {
                seen += usize::from(raw.expect().await?.0 == 0x32);
            }
            io::Result::Ok(())
        };
        let _ = timeout(Duration::from_secs(5), taking).await;
        Ok(false)
    }

    /// A subscriber of quality 0 that leaves while messages come, politely or not.
    async fn under_load(&self, dice: &mut Dice) -> io::Result<bool> {
        let mut raw = self.session(4, dice).await?;
        raw.send(&subscribe(4, 1, &self.device.topic("inbox/#"), 0))
            .await?;
        sleep(Duration::from_millis(dice.below(300) as u64)).await;
        if dice.chance(50) {
            raw.send(&DISCONNECT).await?;
        }
        Ok(false)
    }

    async fn qos_2(&self, dice: &mut Dice) -> io::Result<bool> {
        let up = self.device.topic("up/submission");
        let version = dice.pick(&[4, 5]);
        let bytes = match dice.below(4) {
            0 => {
                let all = 1..=100;
                all.flat_map(|id| publish(version, up.as_bytes(), 4, id, b"x"))
                    .collect()
            }
            which => vec![[0x50, 0x62, 0x70][which - 1], 2, 0, 1],
        };
        self.say(version, &bytes, dice).await
    }

    async fn aliases(&self, dice: &mut Dice) -> io::Result<bool> {
        let up = self.device.topic("up/submission");
        let (topic, alias) = dice.pick(&[(up.as_str(), 1), ("", 1), ("", 0), (&up, u16::MAX)]);
        let [high, low] = alias.to_be_bytes();
        let bytes = publish_with(5, topic.as_bytes(), 2, 1, &[35, high, low], b"x");
        self.say(5, &bytes, dice).await
    }

    async fn oversized(&self, dice: &mut Dice) -> io::Result<bool> {
        let up = self.device.topic("up/submission");
        let version = dice.pick(&[4, 5]);
        match dice.below(3) {
            0 => {
                let huge = publish(version, up.as_bytes(), 2, 1, &vec![b'x'; 300 * 1024]);
                self.say(version, &huge, dice).await
            }
            1 => {
                self.say(version, &[0x30, 0xff, 0xff, 0xff, 0x7f], dice)
                    .await
            }
            _ => {
                let mut raw = self.tls(dice).await?;
                raw.send(&[0x10, 0xff, 0xff, 0xff, 0x7f]).await?;
                Ok(raw.ended_within(REACTION).await)
            }
        }
    }

    async fn no_tls(&self, dice: &mut Dice) -> io::Result<bool> {
        let mut raw = Raw::over(tcp(dice.source(), self.target.agents).await?);
        let length = 1 + dice.below(400);
        raw.send(&dice.bytes(length)).await?;
        Ok(raw.ended_within(REACTION).await)
    }

    async fn rubbish(&self, dice: &mut Dice) -> io::Result<bool> {
        let length = 1 + dice.below(200);
        let rubbish = dice.bytes(length);
        if dice.chance(30) {
            let mut raw = self.tls(dice).await?;
            raw.send(&rubbish).await?;
            return Ok(raw.ended_within(REACTION).await);
        }
        self.say(dice.pick(&[4, 5]), &rubbish, dice).await
    }

    async fn framed(&self, dice: &mut Dice) -> io::Result<bool> {
        let mut packets = Vec::new();
        for _ in 0..20 {
            let first = dice.pick(&[
                0x10, 0x20, 0x30, 0x32, 0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xa2, 0xb0, 0xc0, 0xd0,
                0xe0, 0xf0,
            ]);
            let length = dice.below(24);
            let body: Vec<u8> = (0..length).map(|_| dice.below(48) as u8).collect();
            packets.extend(packet(first, &body));
        }
        self.say(dice.pick(&[4, 5]), &packets, dice).await
    }
}
