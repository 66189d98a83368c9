//! A grammar of MQTT 3.1.1 and 5: sequences of packets of every type with every property, valid,
//! or nearly.

use super::dice::Dice;
use crate::raw::packet::{packet, properties, publish_with, string, variable};

/// Who writes the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// A meter, after CONNECT.
    Meter,
    /// A user, after CONNECT.
    User,
    /// Somebody unknown, with its CONNECT.
    Stranger,
}

/// What a writer may use.
#[derive(Clone, Debug)]
pub struct Names {
    /// The client identifier.
    pub client: String,
    /// What topics that may be published to begin with; empty if there are none.
    pub publish: String,
    /// What filters that may be subscribed to begin with.
    pub subscribe: String,
    /// User and password.
    pub login: Option<(&'static str, &'static str)>,
}

#[derive(Clone, Copy)]
enum Form {
    Byte,
    Two,
    Four,
    Variable,
    Text,
    Binary,
    Pair,
}

/// Every property of MQTT 5 (2.2.2.2).
const PROPERTIES: [(u8, Form); 27] = [
    (1, Form::Byte),
    (2, Form::Four),
    (3, Form::Text),
    (8, Form::Text),
    (9, Form::Binary),
    (11, Form::Variable),
    (17, Form::Four),
    (18, Form::Text),
    (19, Form::Two),
    (21, Form::Text),
    (22, Form::Binary),
    (23, Form::Byte),
    (24, Form::Four),
    (25, Form::Byte),
    (26, Form::Text),
    (28, Form::Text),
    (31, Form::Text),
    (33, Form::Two),
    (34, Form::Two),
    (35, Form::Two),
    (36, Form::Byte),
    (37, Form::Byte),
    (38, Form::Pair),
    (39, Form::Four),
    (40, Form::Byte),
    (41, Form::Byte),
    (42, Form::Byte),
];

const OF_CONNECT: &[u8] = &[17, 21, 22, 23, 25, 33, 34, 38, 39];
const OF_WILL: &[u8] = &[1, 2, 3, 8, 9, 24, 38];
const OF_PUBLISH: &[u8] = &[1, 2, 3, 8, 9, 11, 35, 38];
/// Without what the broker does not offer: topic alias and subscription identifier.
const OF_POLITE_PUBLISH: &[u8] = &[1, 2, 3, 9, 38];
const OF_ACKNOWLEDGEMENT: &[u8] = &[31, 38];
const OF_SUBSCRIBE: &[u8] = &[11, 38];
const OF_DISCONNECT: &[u8] = &[17, 28, 31, 38];
const OF_AUTH: &[u8] = &[21, 22, 31, 38];
const OF_SERVER: &[u8] = &[18, 19, 26, 31, 36, 37, 38, 39, 40, 41, 42];

/// Topics that may not, or not everywhere, be used.
const ODD_TOPICS: [&[u8]; 16] = [
    b"",
    b"#",
    b"+",
    b"+/+/#",
    b"a/#/b",
    b"/",
    b"////////////////",
    b"$SYS/broker",
    b"$share/group/#",
    b"broker/probe",
    b"dcnet/1/+/meter/+/up/#",
    b"\xc3\xa9/x",
    b"\xff\xfe",
    b"a\0b",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbfx",
];

/// Writes packets of one version.
pub struct Grammar<'a> {
    /// Where choices come from.
    pub dice: &'a mut Dice,
    /// 4 or 5.
    pub version: u8,
    /// What is used where everything is right.
    pub names: &'a Names,
    /// In how many of a hundred choices something is taken that is not, or hardly, right.
    pub odd: usize,
}

impl Grammar<'_> {
    fn odd(&mut self) -> bool {
        let odd = self.odd;
        self.dice.chance(odd)
    }

    /// A sequence after CONNECT.
    pub fn sequence(&mut self) -> Vec<Vec<u8>> {
        let count = 1 + self.dice.below(12);
        (0..count).map(|_| self.any()).collect()
    }

    /// A CONNECT, mostly, and packets after it.
    pub fn beginning(&mut self) -> Vec<Vec<u8>> {
        let count = self.dice.below(4);
        let first = if self.odd() {
            self.any()
        } else {
            self.connect()
        };
        let rest = (0..count).map(|_| self.any());
        std::iter::once(first).chain(rest).collect()
    }

    /// A sequence that the broker must serve, and at the end answer every PINGREQ; how many there
    /// are.
    pub fn polite(&mut self) -> (Vec<Vec<u8>>, usize) {
        self.odd = 0;
        let mut packets = Vec::new();
        let mut pings = 1;
        for _ in 0..self.dice.below(10) {
            packets.push(match self.dice.below(5) {
                0 | 1 if !self.names.publish.is_empty() => self.publish(),
                2 => self.subscribe(),
                3 => self.unsubscribe(),
                _ => {
                    pings += 1;
                    vec![0xc0, 0]
                }
            });
        }
        packets.push(vec![0xc0, 0]);
        (packets, pings)
    }

    fn any(&mut self) -> Vec<u8> {
        match self.dice.below(24) {
            0..7 => self.publish(),
            7..11 => self.subscribe(),
            11..13 => self.unsubscribe(),
            13 => vec![0xc0, 0],
            14..17 => self.acknowledgement(),
            17 => self.disconnect(),
            18 => self.auth(),
            19 => self.connect(),
            20 => self.connack(),
            21 => self.suback(),
            22 => packet(0xd0, &[]),
            _ => {
                let length = self.dice.below(40);
                let first = self.dice.byte();
                packet(first, &self.dice.bytes(length))
            }
        }
    }

    /// CONNECT.
    pub fn connect(&mut self) -> Vec<u8> {
        let mut body = match self.dice.below(100) {
            _ if !self.odd() => string(b"MQTT"),
            0..50 => string(b"MQIsdp"),
            _ => self.text(),
        };
        body.push(if self.odd() {
            self.dice.byte()
        } else {
            self.version
        });
        let will = self.dice.chance(30).then(|| self.dice.below(2) as u8);
        let login = self.names.login.filter(|_| !self.dice.chance(self.odd));
        let mut flags = if self.dice.chance(80) { 2 } else { 0 };
        if let Some(qos) = will {
            flags |= 4 | (qos << 3);
            flags |= if self.dice.chance(50) { 0x20 } else { 0 };
        }
        flags |= if login.is_some() { 0xc0 } else { 0 };
        body.push(if self.odd() { self.dice.byte() } else { flags });
        let keep_alive = self.dice.pick(&[0_u16, 1, 10, 60, 600, u16::MAX]);
        body.extend(keep_alive.to_be_bytes());
        body.extend(self.properties(OF_CONNECT));
        let id = self.names.client.clone();
        body.extend(if self.odd() {
            self.text()
        } else {
            string(id.as_bytes())
        });
        if will.is_some() {
            body.extend(self.properties(OF_WILL));
            let topic = self.topic();
            body.extend(string(&topic));
            body.extend(self.binary());
        }
        if let Some((user, password)) = login {
            for text in [user, password] {
                body.extend(if self.odd() {
                    self.text()
                } else {
                    string(text.as_bytes())
                });
            }
        }
        packet(0x10, &body)
    }

    fn publish(&mut self) -> Vec<u8> {
        let allowed = if self.odd == 0 {
            OF_POLITE_PUBLISH
        } else {
            OF_PUBLISH
        };
        let topic = self.topic();
        let mut flags = self.dice.below(2) as u8 * 2;
        if self.odd() {
            flags = self.dice.below(16) as u8;
        }
        let id = self.id();
        let properties = self.fields(allowed);
        let length = self.length();
        let payload = self.dice.bytes(length);
        publish_with(self.version, &topic, flags, id, &properties, &payload)
    }

    fn acknowledgement(&mut self) -> Vec<u8> {
        let first = self.dice.pick(&[0x40, 0x40, 0x40, 0x50, 0x62, 0x70]);
        let mut body = self.id().to_be_bytes().to_vec();
        if self.version == 5 && self.dice.chance(50) {
            body.push(self.dice.byte());
            body.extend(self.properties(OF_ACKNOWLEDGEMENT));
        }
        packet(first, &body)
    }

    fn subscribe(&mut self) -> Vec<u8> {
        let mut body = self.id().to_be_bytes().to_vec();
        let allowed = if self.odd == 0 {
            &[38][..]
        } else {
            OF_SUBSCRIBE
        };
        body.extend(self.properties(allowed));
        for _ in 0..self.filters() {
            let filter = self.filter();
            body.extend(string(&filter));
            let options = self.dice.below(3) as u8;
            let handling = match self.version {
                5 => (self.dice.below(3) as u8) << 4,
                _ => 0,
            };
            body.push(if self.odd() {
                self.dice.byte()
            } else {
                options | handling
            });
        }
        packet(0x82, &body)
    }

    fn unsubscribe(&mut self) -> Vec<u8> {
        let mut body = self.id().to_be_bytes().to_vec();
        body.extend(self.properties(&[38]));
        for _ in 0..self.filters() {
            let filter = self.filter();
            body.extend(string(&filter));
        }
        packet(0xa2, &body)
    }

    fn filters(&mut self) -> usize {
        if self.odd() {
            self.dice.pick(&[0, 60, 400])
        } else {
            1 + self.dice.below(4)
        }
    }

    fn disconnect(&mut self) -> Vec<u8> {
        match self.version {
            5 if self.dice.chance(60) => {
                let mut body = vec![if self.odd() { self.dice.byte() } else { 4 }];
                body.extend(self.properties(OF_DISCONNECT));
                packet(0xe0, &body)
            }
            _ => packet(0xe0, &[]),
        }
    }

    fn auth(&mut self) -> Vec<u8> {
        let mut body = vec![self.dice.pick(&[0, 0x18, 0x19])];
        body.extend(self.properties(OF_AUTH));
        packet(0xf0, &body)
    }

    fn connack(&mut self) -> Vec<u8> {
        let mut body = vec![self.dice.below(2) as u8, 0];
        body.extend(self.properties(OF_SERVER));
        packet(0x20, &body)
    }

    fn suback(&mut self) -> Vec<u8> {
        let first = self.dice.pick(&[0x90, 0xb0]);
        let mut body = self.id().to_be_bytes().to_vec();
        body.extend(self.properties(OF_ACKNOWLEDGEMENT));
        body.push(self.dice.byte());
        packet(first, &body)
    }

    fn id(&mut self) -> u16 {
        if self.odd() {
            self.dice.pick(&[0, u16::MAX, 0x8000])
        } else {
            1 + self.dice.below(200) as u16
        }
    }

    fn properties(&mut self, allowed: &[u8]) -> Vec<u8> {
        let fields = self.fields(allowed);
        properties(self.version, &fields)
    }

    fn fields(&mut self, allowed: &[u8]) -> Vec<u8> {
        if self.version != 5 {
            return Vec::new();
        }
        let mut left = allowed.to_vec();
        let mut fields = Vec::new();
        for _ in 0..self.dice.pick(&[0, 0, 1, 1, 2, 3]) {
            if self.odd() {
                let (id, form) = self.dice.pick(&PROPERTIES);
                fields.extend(self.field(id, form));
                continue;
            }
            if left.is_empty() {
                break;
            }
            let id = left.swap_remove(self.dice.below(left.len()));
            let known = PROPERTIES.iter().find(|(known, _)| *known == id);
            if let Some(&(id, form)) = known {
                fields.extend(self.field(id, form));
            }
        }
        if self.odd() {
            // One twice, one that does not exist, or a part of one.
            match self.dice.below(3) {
                0 => fields.extend_from_within(..),
                1 => fields.push(self.dice.byte()),
                _ => fields.truncate(self.dice.below(fields.len() + 1)),
            }
        }
        fields
    }

    fn field(&mut self, id: u8, form: Form) -> Vec<u8> {
        let mut field = vec![id];
        match form {
            // Each of them is a flag, but for two, of which 0 and 1 are values as well.
            Form::Byte if self.odd() => field.push(self.dice.byte()),
            Form::Byte => field.push(self.dice.below(2) as u8),
            Form::Two | Form::Four => {
                let high = if matches!(form, Form::Four) { 2 } else { 0 };
                let odd = self.odd();
                field.extend((0..high).map(|_| u8::from(!odd)));
                let value: u16 = if odd {
                    self.dice.pick(&[0, u16::MAX])
                } else {
                    1000
                };
                field.extend(value.to_be_bytes());
            }
            Form::Variable => {
                let value = self.dice.pick(&[0, 1, 127, 128, 268_435_455]);
                field.extend(variable(value));
            }
            Form::Text => field.extend(self.text()),
            Form::Binary => field.extend(self.binary()),
            Form::Pair => {
                field.extend(self.text());
                field.extend(self.text());
            }
        }
        field
    }

    /// A string with its length.
    fn text(&mut self) -> Vec<u8> {
        if self.odd() {
            return match self.dice.below(3) {
                0 => string(self.dice.pick(&ODD_TOPICS)),
                1 => {
                    let length = self.length();
                    string(&self.dice.bytes(length))
                }
                // Longer than it is.
                _ => [self.dice.bytes(2), b"short".to_vec()].concat(),
            };
        }
        let length = self.dice.below(20);
        let letters = (0..length).map(|_| b'a' + self.dice.below(26) as u8);
        string(&letters.collect::<Vec<_>>())
    }

    fn binary(&mut self) -> Vec<u8> {
        let length = self.dice.below(60);
        string(&self.dice.bytes(length))
    }

    fn length(&mut self) -> usize {
        if self.odd() {
            self.dice
                .pick(&[0, 127, 128, 255, 256, 1024, 16_383, 16_384, 65_535, 70_000])
        } else {
            self.dice.below(100)
        }
    }

    fn topic(&mut self) -> Vec<u8> {
        if self.odd() {
            return self.odd_topic();
        }
        // Few, since the broker counts every one that it ever sees.
        let last = self.dice.below(40);
        format!("{}{last}", self.names.publish).into_bytes()
    }

    fn filter(&mut self) -> Vec<u8> {
        if self.odd() {
            return self.odd_topic();
        }
        let last = self.dice.pick(&["a", "b", "#"]);
        format!("{}{last}", self.names.subscribe).into_bytes()
    }

    fn odd_topic(&mut self) -> Vec<u8> {
        match self.dice.below(5) {
            0 => {
                let length = self.length();
                vec![b'x'; length]
            }
            1 => {
                let last = self.dice.pick(&ODD_TOPICS);
                [self.names.publish.as_bytes(), last].concat()
            }
            2 => format!("{}{}", self.names.subscribe, self.dice.below(1000)).into_bytes(),
            _ => self.dice.pick(&ODD_TOPICS).to_vec(),
        }
    }
}

/// Spoils some packets of a sequence: bits, lengths, ends, copies, order, others in between.
pub fn mutate(packets: &mut Vec<Vec<u8>>, dice: &mut Dice) {
    for _ in 0..dice.below(4) {
        let which = dice.below(packets.len().max(1));
        let other = dice.below(packets.len().max(1));
        let Some(packet) = packets.get_mut(which).filter(|packet| !packet.is_empty()) else {
            return;
        };
        let at = dice.below(packet.len());
        match dice.below(9) {
            0 | 1 => packet[at] ^= 1 << dice.below(8),
            2 => packet[at] = dice.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            // The length of the packet.
            3 => {
                if let Some(length) = packet.get_mut(1) {
                    *length = dice.byte();
                }
            }
            4 => packet.truncate(at),
            5 => {
                let more = dice.below(20);
                let bytes = dice.bytes(more);
                packet.splice(at..at, bytes);
            }
            6 => {
                let copy = packet.clone();
                packets.insert(which, copy);
            }
            7 => packets.swap(which, other),
            _ => {
                packets.remove(which);
            }
        }
    }
}

/// Cuts bytes into the writes in which they are sent.
pub fn cut(bytes: &[u8], dice: &mut Dice) -> Vec<Vec<u8>> {
    let most = match dice.below(6) {
        0 => 1 + dice.below(3),
        1 => 1 + dice.below(60),
        _ => bytes.len().max(1),
    };
    // So many writes that it does not take long.
    let most = most.max(bytes.len() / 200);
    let mut rest = bytes;
    let mut writes = Vec::new();
    while !rest.is_empty() {
        let (write, after) = rest.split_at((1 + dice.below(most)).min(rest.len()));
        writes.push(write.to_vec());
        rest = after;
    }
    if most >= bytes.len() {
        return vec![bytes.to_vec()];
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::packet::split;

    fn names() -> Names {
        Names {
            client: "client".to_owned(),
            publish: "up/".to_owned(),
            subscribe: "inbox/".to_owned(),
            login: None,
        }
    }

    fn sequence(number: u64) -> Vec<Vec<u8>> {
        let mut dice = Dice::new(1, "test", number);
        let mut grammar = Grammar {
            dice: &mut dice,
            version: 4 + (number % 2) as u8,
            names: &names(),
            odd: 20,
        };
        let mut packets = grammar.beginning();
        packets.extend(grammar.sequence());
        packets
    }

    #[test]
    fn a_seed_gives_the_same_packets_twice_and_they_are_framed() {
        for number in 0..200 {
            let packets = sequence(number);
            assert_eq!(packets, sequence(number));
            for packet in packets {
                let (_, _, rest) = split(&packet).expect("a whole packet");
                assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn every_type_of_packet_is_written() {
        let kinds: std::collections::BTreeSet<u8> = (0..400)
            .flat_map(sequence)
            .map(|packet| packet[0] >> 4)
            .collect();
        assert_eq!(kinds.len(), 16, "{kinds:?}");
    }

    #[test]
    fn cutting_loses_no_byte() {
        for number in 0..100 {
            let mut dice = Dice::new(1, "test", number);
            let bytes = dice.bytes(number as usize * 10);
            assert_eq!(cut(&bytes, &mut dice).concat(), bytes);
        }
    }
}
