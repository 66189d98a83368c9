//! The normative statements of MQTT 3.1.1 and 5 that bind a server, over real TLS sockets.
//! The comment above each case names what it proves; docs/mqtt-conformance.md names the case.

mod connect;
mod packet;
mod publish;
mod session;
mod subscribe;
mod table;

#[path = "../rig/mod.rs"]
mod rig;

use rig::*;

/// A broker with two clients: the provider publishes, a third party reads.
struct Scene {
    rig: Rig,
    version: u8,
    reader: Identity,
    publisher: Raw,
    subscriber: Raw,
}

impl Scene {
    async fn of(version: u8) -> Self {
        Self::with(version, &[]).await
    }

    /// With properties in the CONNECT of the subscriber.
    async fn with(version: u8, properties: &[u8]) -> Self {
        let rig = Rig::start().await;
        let reader = rig.third_party();
        let publisher = rig.raw_session(&rig.provider, version).await;
        let mut subscriber = rig.raw(&reader).await;
        subscriber
            .send(&rig::connect(version, "reader", properties))
            .await;
        assert_eq!(subscriber.packet().await.unwrap().1[1], 0);
        Self {
            rig,
            version,
            reader,
            publisher,
            subscriber,
        }
    }

    /// A further connection of the reader.
    async fn another(&self, id: &str) -> Raw {
        let mut raw = self.rig.raw(&self.reader).await;
        raw.send(&rig::connect(self.version, id, &[])).await;
        assert_eq!(raw.packet().await.unwrap().1[1], 0);
        raw
    }

    /// Subscribes the reader; gives the code of the SUBACK.
    async fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        let packet = rig::subscribe(self.version, 9, filter, options);
        self.subscriber.send(&packet).await;
        self.suback().await
    }

    async fn suback(&mut self) -> u8 {
        let (first, body) = self.subscriber.packet().await.expect("SUBACK");
        assert_eq!((first, &body[..2]), (0x90, &[0, 9][..]));
        *body.last().unwrap()
    }

    /// Publishes, and takes the PUBACK if there is one.
    async fn publish(&mut self, topic: &str, flags: u8, payload: &[u8]) {
        self.publish_with(topic, flags, &[], payload).await;
    }

    async fn publish_with(&mut self, topic: &str, flags: u8, properties: &[u8], payload: &[u8]) {
        let packet = rig::publish(
            self.version,
            topic.as_bytes(),
            flags,
            7,
            properties,
            payload,
        );
        self.publisher.send(&packet).await;
        if flags & 2 != 0 {
            let puback = self.publisher.packet().await;
            assert_eq!(puback, Some((0x40, vec![0, 7])));
        } else {
            // Whoever comes next finds it done.
            ping(&mut self.publisher).await;
        }
    }

    async fn message(&mut self) -> Message {
        let version = self.version;
        Message::next(&mut self.subscriber, version).await
    }

    /// Shows that nothing waits for the reader but what is told here.
    async fn nothing_more(&mut self) {
        ping(&mut self.subscriber).await;
    }
}

/// A PUBLISH from the broker.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    dup: bool,
    qos: u8,
    retain: bool,
    topic: String,
    id: Option<u16>,
    properties: Vec<u8>,
    payload: Vec<u8>,
}

impl Message {
    async fn next(raw: &mut Raw, version: u8) -> Self {
        let (first, body) = raw.packet().await.expect("a message");
        Self::parse(version, first, &body)
    }

    fn parse(version: u8, first: u8, body: &[u8]) -> Self {
        assert_eq!(first >> 4, 3, "a PUBLISH and not {first:#x} {body:?}");
        let qos = (first >> 1) & 3;
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, mut rest) = body[2..].split_at(length);
        let mut id = None;
        if qos > 0 {
            id = Some(u16::from_be_bytes([rest[0], rest[1]]));
            rest = &rest[2..];
        }
        let mut properties = &[][..];
        if version == 5 {
            let length = usize::from(rest[0]);
            assert!(length < 128);
            (properties, rest) = rest[1..].split_at(length);
        }
        Self {
            dup: first & 8 != 0,
            qos,
            retain: first & 1 != 0,
            topic: String::from_utf8(topic.to_vec()).unwrap(),
            id,
            properties: properties.to_vec(),
            payload: rest.to_vec(),
        }
    }
}

/// A public topic of the net.
fn public(name: &str) -> String {
    format!("dcnet/1/{NET}/public/{name}")
}

/// PINGREQ, and PINGRESP as the very next packet.
async fn ping(raw: &mut Raw) {
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.packet().await, Some((0xd0, vec![])));
}

fn acknowledgement(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![0x40, 2, high, low]
}

/// The broker ends the connection; MQTT 5 clients are told why before.
async fn ends(raw: &mut Raw, version: u8, reason: u8) {
    let last = raw.end().await;
    match (version, &last) {
        (4, None) => {}
        (5, Some((0xe0, body))) if body[0] == reason => {}
        _ => panic!("instead of an end with {reason:#x}: {last:x?}"),
    }
}

/// CONNECT with these flags and this payload.
fn raw_connect(version: u8, flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let mut body = string(b"MQTT");
    body.extend([version, flags, 0, 60]);
    if version == 5 {
        body.push(0);
    }
    body.extend(payload.concat());
    rig::packet(0x10, &body)
}
