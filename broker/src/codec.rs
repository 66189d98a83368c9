//! MQTT 3.1.1 and 5 on one stream: rumqttd's codec behind checks that keep it
//! from panicking, and packets reduced to what a session needs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Buf, Bytes, BytesMut};
use dcnet::time::Timestamp;
use rumqttd::protocol::{
    ConnAck, ConnAckProperties, ConnectProperties, ConnectReturnCode, Disconnect,
    DisconnectProperties, DisconnectReasonCode, Filter, LastWill, LastWillProperties, Packet,
    PingResp, Protocol, PubAck, PubAckReason, Publish, PublishProperties, QoS, SubAck,
    SubscribeReasonCode, UnsubAck, UnsubAckReason, v4::V4, v5::V5,
};
use zeroize::Zeroizing;

use crate::config::now;
use crate::shape::{self, Fault};

/// Most memory of MQTT 5 properties in one PUBLISH, in bytes: the router's bounds
/// count topics and payloads only.
const MAX_PROPERTIES: usize = 1024;

/// Memory of a string besides its bytes: where it is, and the allocator's share.
const STRING: usize = 48;

/// The version a client speaks, from the protocol level of its CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1 (protocol level 4).
    V4,
    /// 5 (protocol level 5).
    V5,
}

/// A message on its way to or from a client.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    /// As it was published.
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// When it was published, for its expiry.
    pub(crate) received: Timestamp,
    pub(crate) properties: Option<PublishProperties>,
}

impl Message {
    /// In memory of its own. What the decoder gives shares that of everything received with
    /// it, and messages stay in the router for long: a short one after a long packet of another
    /// kind would keep all of it.
    fn copied(topic: &[u8], payload: &[u8]) -> Self {
        let mut both = BytesMut::with_capacity(topic.len() + payload.len());
        both.extend_from_slice(topic);
        both.extend_from_slice(payload);
        let mut payload = both.freeze();
        Self {
            topic: payload.split_to(topic.len()),
            payload,
            qos: 0,
            retain: false,
            received: now(),
            properties: None,
        }
    }

    /// Seconds it may still be delivered in at `now`, rounded up; `None` for ever.
    fn seconds_left(&self, now: Timestamp) -> Option<u32> {
        let interval = self.properties.as_ref()?.message_expiry_interval?;
        let waited = now.as_millis().saturating_sub(self.received.as_millis()) / 1000;
        Some(interval.saturating_sub(u32::try_from(waited).unwrap_or(u32::MAX)))
    }

    /// When it must not be delivered any more (MQTT 5, section 3.3.2.3.3); `None` is never.
    pub(crate) fn expiry(&self) -> Option<Timestamp> {
        let interval = self.properties.as_ref()?.message_expiry_interval?;
        let span = u64::from(interval) * 1000;
        Some(Timestamp(self.received.as_millis().saturating_add(span)))
    }

    /// Whether it must not be delivered any more at `now`.
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expiry().is_some_and(|expiry| expiry <= now)
    }

    /// Bytes that it takes to keep it.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.as_ref().map_or(0, size)
    }
}

/// User and password of a CONNECT; empty where it has none.
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Zeroizing<String>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").finish_non_exhaustive()
    }
}

/// A CONNECT.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    pub(crate) will: Option<Message>,
    /// Most unacknowledged messages the client takes at a time.
    pub(crate) receive_max: u16,
    /// Longest packet the client takes.
    pub(crate) max_packet: usize,
    /// It asks for MQTT 5 enhanced authentication.
    pub(crate) authentication: bool,
    pub(crate) login: Option<Login>,
}

/// A packet from a client, decoded.
#[expect(clippy::large_enum_variant, reason = "never stored")]
#[derive(Debug)]
pub(crate) enum Incoming {
    Connect(Box<Connect>),
    Publish {
        message: Message,
        topic: String,
        id: u16,
    },
    PubAck(u16),
    Subscribe {
        id: u16,
        filters: Vec<Filter>,
        identifier: bool,
    },
    Unsubscribe {
        id: u16,
        filters: Vec<String>,
    },
    Ping,
    Disconnect {
        publish_will: bool,
    },
    /// PUBREC, PUBREL or PUBCOMP: quality of service 2 is not offered.
    QoS2,
}

/// Why bytes are no acceptable packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecodeError {
    TooLarge,
    Malformed,
    /// Well formed, and not what a client may send (there).
    Protocol,
    /// The protocol name or level of a CONNECT is neither 3.1.1's nor 5's.
    Version,
}

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed => Self::Malformed,
            Fault::Protocol => Self::Protocol,
        }
    }
}

/// Decodes and encodes the packets of one connection.
#[derive(Debug)]
pub(crate) struct Codec {
    version: Option<Version>,
    max_packet: usize,
    /// Longest packet the client takes.
    max_outgoing: usize,
}

impl Codec {
    pub(crate) fn new(max_packet: usize) -> Self {
        Self {
            version: None,
            max_packet,
            max_outgoing: usize::MAX,
        }
    }

    /// For MQTT 5 packets of any length.
    fn unlimited() -> Self {
        Self {
            version: Some(Version::V5),
            max_packet: usize::MAX,
            max_outgoing: usize::MAX,
        }
    }

    /// The version of the client; 3.1.1 until its CONNECT was decoded.
    pub(crate) fn version(&self) -> Version {
        self.version.unwrap_or(Version::V4)
    }

    /// Takes the next whole packet out of `buffer`; `None` if it is not complete.
    pub(crate) fn decode(
        &mut self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Incoming>, DecodeError> {
        let Some(frame) = Frame::of(buffer, self.version, self.max_packet)? else {
            return Ok(None);
        };
        let body = &buffer[frame.header..frame.header + frame.length];
        let version = match self.version {
            Some(_) if frame.kind == 1 => return Err(DecodeError::Protocol),
            Some(version) => version,
            None if frame.kind != 1 => return Err(DecodeError::Protocol),
            None => *self.version.insert(connect_version(body)?),
        };
        shape::check(version, buffer[0], body)?;
        // rumqttd does not take these in all their forms, and the check leaves few.
        let simple = match (frame.kind, body) {
            (4, [high, low, ..]) => Some(Incoming::PubAck(u16::from_be_bytes([*high, *low]))),
            (14, _) => Some(Incoming::Disconnect {
                publish_will: body.first().is_some_and(|&reason| reason != 0),
            }),
            _ => None,
        };
        if let Some(packet) = simple {
            buffer.advance(frame.header + frame.length);
            return Ok(Some(packet));
        }
        let max = self.max_packet;
        // rumqttd's MQTT 5 decoder has paths that panic; one must end only this
        // connection. The buffer is not used again after an error.
        let packet = catch_unwind(AssertUnwindSafe(|| match version {
            Version::V4 => V4.read_mut(buffer, max),
            Version::V5 => V5.read_mut(buffer, max),
        }));
        match packet {
            Ok(Ok(packet)) => {
                let packet = incoming(packet)?;
                if let Incoming::Connect(connect) = &packet {
                    self.max_outgoing = connect.max_packet;
                }
                Ok(Some(packet))
            }
            Ok(Err(_)) | Err(_) => Err(DecodeError::Malformed),
        }
    }

    /// Appends a packet; `false`, and nothing appended, if the client takes none so long.
    fn write(&self, packet: Packet, out: &mut BytesMut) -> bool {
        let start = out.len();
        let written = match self.version() {
            Version::V4 => V4.write(packet, out),
            Version::V5 => V5.write(packet, out),
        };
        if let Err(error) = written {
            out.truncate(start);
            tracing::error!(%error, "cannot encode a packet");
            return false;
        }
        let fits = out.len() - start <= self.max_outgoing;
        if !fits {
            out.truncate(start);
        }
        fits
    }

    /// Answers a CONNECT. `v4` stands for reasons that 3.1.1 does not know. `false` if the
    /// client takes no packet so long.
    pub(crate) fn connack(
        &self,
        v4: ConnectReturnCode,
        v5: ConnectReturnCode,
        properties: ConnAckProperties,
        out: &mut BytesMut,
    ) -> bool {
        let (code, properties) = match self.version() {
            Version::V4 => (v4, None),
            Version::V5 => (v5, Some(properties)),
        };
        let connack = ConnAck {
            session_present: false,
            code,
        };
        self.write(Packet::ConnAck(connack, properties), out)
    }

    /// Appends a PUBLISH; `false`, and nothing appended, if the client takes none so long.
    pub(crate) fn publish(&self, message: &Message, qos: u8, id: u16, out: &mut BytesMut) -> bool {
        let left = message.seconds_left(now());
        let properties = match self.version() {
            Version::V4 => None,
            Version::V5 => message.properties.clone().map(|p| PublishProperties {
                message_expiry_interval: left,
                ..p
            }),
        };
        self.write(publish_packet(message, qos, id, properties), out)
    }

    /// Appends a PUBACK; 3.1.1 knows no reason, so only success may be sent there.
    pub(crate) fn puback(&self, id: u16, reason: PubAckReason, out: &mut BytesMut) {
        self.write(Packet::PubAck(PubAck { pkid: id, reason }, None), out);
    }

    /// Appends a SUBACK; in 3.1.1 every refusal is 0x80. `false` if the client takes no
    /// packet so long.
    pub(crate) fn suback(
        &self,
        id: u16,
        codes: &[SubscribeReasonCode],
        out: &mut BytesMut,
    ) -> bool {
        let return_codes = codes
            .iter()
            .map(|&code| match (code, self.version()) {
                (SubscribeReasonCode::Success(_), _) | (_, Version::V5) => code,
                (_, Version::V4) => SubscribeReasonCode::Failure,
            })
            .collect();
        let suback = SubAck {
            pkid: id,
            return_codes,
        };
        self.write(Packet::SubAck(suback, None), out)
    }

    /// Appends an UNSUBACK; the reasons are sent in MQTT 5 only. `false` if the client takes
    /// no packet so long.
    pub(crate) fn unsuback(
        &self,
        id: u16,
        reasons: Vec<UnsubAckReason>,
        out: &mut BytesMut,
    ) -> bool {
        self.write(Packet::UnsubAck(UnsubAck { pkid: id, reasons }, None), out)
    }

    /// Appends a PINGRESP.
    pub(crate) fn pingresp(&self, out: &mut BytesMut) {
        self.write(Packet::PingResp(PingResp), out);
    }

    /// Appends a DISCONNECT with its reason; 3.1.1 servers send none.
    pub(crate) fn disconnect(
        &self,
        reason_code: DisconnectReasonCode,
        why: &str,
        out: &mut BytesMut,
    ) {
        if self.version == Some(Version::V5) {
            // Without a property rumqttd leaves the reason code out.
            let properties = DisconnectProperties {
                session_expiry_interval: None,
                reason_string: Some(why.to_owned()),
                user_properties: Vec::new(),
                server_reference: None,
            };
            let disconnect = Packet::Disconnect(Disconnect { reason_code }, Some(properties));
            let mut packet = BytesMut::new();
            Self::unlimited().write(disconnect, &mut packet);
            match packet[..] {
                [first, _, reason, ..] if packet.len() > self.max_outgoing => {
                    out.extend_from_slice(&[first, 1, reason]);
                }
                _ => out.extend_from_slice(&packet),
            }
        }
    }
}

/// The fixed header of a complete packet.
struct Frame {
    kind: u8,
    header: usize,
    length: usize,
}

impl Frame {
    fn of(
        buffer: &[u8],
        version: Option<Version>,
        max: usize,
    ) -> Result<Option<Self>, DecodeError> {
        let Some((&first, rest)) = buffer.split_first() else {
            return Ok(None);
        };
        let kind = first >> 4;
        let flags_valid = match kind {
            0 => false,
            3 => true,
            6 | 8 | 10 => first & 0x0f == 2,
            _ => first & 0x0f == 0,
        };
        if !flags_valid {
            return Err(DecodeError::Malformed);
        }
        // What only servers send (CONNACK, SUBACK, UNSUBACK, PINGRESP), and AUTH.
        if matches!(kind, 2 | 9 | 11 | 13 | 15) {
            return Err(DecodeError::Protocol);
        }
        let Some((length, bytes)) = shape::variable_length(rest)? else {
            return Ok(None);
        };
        if length > max {
            return Err(DecodeError::TooLarge);
        }
        if version == Some(Version::V5) && shape::is_padded(length, bytes) {
            return Err(DecodeError::Malformed);
        }
        let header = 1 + bytes;
        let complete = buffer.len() >= header + length;
        Ok(complete.then_some(Self {
            kind,
            header,
            length,
        }))
    }
}

fn connect_version(body: &[u8]) -> Result<Version, DecodeError> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Ok(Version::V4),
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Ok(Version::V5),
        [0, 4, b'M', b'Q', b'T', b'T', ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            Err(DecodeError::Version)
        }
        _ => Err(DecodeError::Malformed),
    }
}

fn incoming(packet: Packet) -> Result<Incoming, DecodeError> {
    Ok(match packet {
        Packet::Connect(connect, properties, will, will_properties, login) => {
            let login = login.map(|login| Login {
                user: login.username,
                password: Zeroizing::new(login.password),
            });
            let connect = connect_of(connect, properties, will, will_properties)?;
            Incoming::Connect(Box::new(Connect { login, ..connect }))
        }
        Packet::Publish(publish, properties) => {
            let (qos, id) = delivery(&publish);
            if properties
                .as_ref()
                .is_some_and(|p| size(p) > MAX_PROPERTIES)
            {
                return Err(DecodeError::Malformed);
            }
            Incoming::Publish {
                topic: text(&publish.topic)?,
                id,
                message: Message {
                    qos,
                    retain: publish.retain,
                    properties: properties.map(own),
                    ..Message::copied(&publish.topic, &publish.payload)
                },
            }
        }
        Packet::Subscribe(subscribe, properties) => Incoming::Subscribe {
            id: subscribe.pkid,
            filters: subscribe.filters,
            identifier: properties.is_some_and(|p| p.id.is_some()),
        },
        Packet::Unsubscribe(unsubscribe, _) => Incoming::Unsubscribe {
            id: unsubscribe.pkid,
            filters: unsubscribe.filters,
        },
        Packet::PingReq(_) => Incoming::Ping,
        Packet::PubRec(..) | Packet::PubRel(..) | Packet::PubComp(..) => Incoming::QoS2,
        _ => return Err(DecodeError::Malformed),
    })
}

fn connect_of(
    connect: rumqttd::protocol::Connect,
    properties: Option<ConnectProperties>,
    will: Option<LastWill>,
    will_properties: Option<LastWillProperties>,
) -> Result<Connect, DecodeError> {
    let (receive_max, max_packet) = properties
        .as_ref()
        .map_or((None, None), |p| (p.receive_maximum, p.max_packet_size));
    let will = will.map(|will| {
        let properties = will_properties.map(|p| PublishProperties {
            payload_format_indicator: p.payload_format_indicator,
            message_expiry_interval: p.message_expiry_interval,
            response_topic: p.response_topic,
            correlation_data: p.correlation_data,
            user_properties: p.user_properties,
            content_type: p.content_type,
            ..PublishProperties::default()
        });
        Message {
            qos: will.qos as u8,
            retain: will.retain,
            properties: properties.map(own),
            ..Message::copied(&will.topic, &will.message)
        }
    });
    let oversized = |m: &Message| m.properties.as_ref().map_or(0, size) > MAX_PROPERTIES;
    if will.as_ref().is_some_and(oversized) {
        return Err(DecodeError::Malformed);
    }
    Ok(Connect {
        client_id: connect.client_id,
        clean: connect.clean_session,
        keep_alive: connect.keep_alive,
        will,
        receive_max: receive_max.unwrap_or(u16::MAX),
        max_packet: max_packet.map_or(usize::MAX, |max| max as usize),
        authentication: properties.is_some_and(|p| p.authentication_method.is_some()),
        login: None,
    })
}

fn publish_packet(
    message: &Message,
    qos: u8,
    id: u16,
    properties: Option<PublishProperties>,
) -> Packet {
    let mut plain = BytesMut::with_capacity(5 + message.topic.len() + message.payload.len());
    plain.extend_from_slice(&[0x30 | (qos << 1) | u8::from(message.retain)]);
    plain.extend_from_slice(&id.to_be_bytes());
    let length = u16::try_from(message.topic.len()).unwrap_or(u16::MAX);
    plain.extend_from_slice(&length.to_be_bytes());
    plain.extend_from_slice(&message.topic);
    plain.extend_from_slice(&message.payload);
    Packet::Publish(Publish::deserialize(plain.freeze()), properties)
}

/// A message to keep, as an MQTT 5 PUBLISH.
pub(crate) fn to_packet(message: &Message) -> Bytes {
    let codec = Codec::unlimited();
    let mut out = BytesMut::new();
    let properties = message.properties.clone();
    codec.write(
        publish_packet(message, message.qos, 1, properties),
        &mut out,
    );
    out.freeze()
}

/// The message that [`to_packet`] made these bytes of; `received` is new.
pub(crate) fn from_packet(bytes: &[u8]) -> Result<Message, DecodeError> {
    let mut buffer = BytesMut::from(bytes);
    match Codec::unlimited().decode(&mut buffer)? {
        Some(Incoming::Publish { message, .. }) if buffer.is_empty() => Ok(message),
        _ => Err(DecodeError::Malformed),
    }
}

/// Quality of service and packet identifier, which rumqttd keeps private.
pub(crate) fn delivery(publish: &Publish) -> (u8, u16) {
    let mut head = publish.clone();
    head.topic = Bytes::new();
    head.payload = Bytes::new();
    match head.serialize().first_chunk() {
        Some(&[flags, high, low]) => ((flags >> 1) & 3, u16::from_be_bytes([high, low])),
        None => (0, 0),
    }
}

fn text(bytes: &Bytes) -> Result<String, DecodeError> {
    std::str::from_utf8(bytes)
        .map(str::to_owned)
        .map_err(|_| DecodeError::Malformed)
}

/// As [`Message::copied`].
fn own(properties: PublishProperties) -> PublishProperties {
    PublishProperties {
        correlation_data: properties
            .correlation_data
            .as_deref()
            .map(Bytes::copy_from_slice),
        ..properties
    }
}

/// Memory of properties, in bytes.
pub(crate) fn size(properties: &PublishProperties) -> usize {
    let strings = [&properties.response_topic, &properties.content_type];
    let pairs = properties.user_properties.iter();
    let strings = strings.into_iter().flatten();
    let strings = strings.chain(pairs.flat_map(|(key, value)| [key, value]));
    strings.map(|text| STRING + text.len()).sum::<usize>()
        + properties.correlation_data.as_ref().map_or(0, Bytes::len)
}

/// The quality of service granted for a requested one: 2 becomes 1.
pub(crate) fn granted(requested: QoS) -> QoS {
    match requested {
        QoS::AtMostOnce => QoS::AtMostOnce,
        QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONNECT_V5: &[u8] = &[
        0x10, 0x10, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 3, b'a', b'b', b'c',
    ];

    fn connected() -> Codec {
        let mut codec = Codec::new(1024);
        let mut buffer = BytesMut::from(CONNECT_V5);
        assert!(matches!(
            codec.decode(&mut buffer),
            Ok(Some(Incoming::Connect(_)))
        ));
        codec
    }

    #[test]
    fn the_first_packet_is_one_connect() {
        let mut codec = Codec::new(1024);
        let ping = [0xc0, 0];
        assert!(matches!(
            codec.decode(&mut BytesMut::from(&ping[..])),
            Err(DecodeError::Protocol)
        ));
        let mut codec = connected();
        assert!(matches!(
            codec.decode(&mut BytesMut::from(CONNECT_V5)),
            Err(DecodeError::Protocol)
        ));
    }

    #[test]
    fn a_packet_is_decoded_only_when_complete() {
        for end in 0..CONNECT_V5.len() {
            let mut codec = Codec::new(1024);
            let mut buffer = BytesMut::from(&CONNECT_V5[..end]);
            assert!(matches!(codec.decode(&mut buffer), Ok(None)), "{end} bytes");
        }
    }

    #[test]
    fn a_packet_over_the_limit_is_refused_by_its_header() {
        let mut codec = connected();
        let mut buffer = BytesMut::from(&[0x30, 0xff, 0xff, 0x03][..]);
        assert!(matches!(
            codec.decode(&mut buffer),
            Err(DecodeError::TooLarge)
        ));
    }

    /// A PUBLISH of quality 0 with properties.
    fn publish(properties: &[u8]) -> Vec<u8> {
        let body = [
            &[0, 1, b't', properties.len() as u8],
            properties,
            b"payload",
        ]
        .concat();
        [&[0x30, body.len() as u8], body.as_slice()].concat()
    }

    #[test]
    fn a_message_does_not_keep_what_was_received_with_it() {
        let correlation_data = [9, 0, 1, b'c'];
        let mut buffer = BytesMut::from(publish(&correlation_data).as_slice());
        let received = buffer.as_ptr_range();
        let Ok(Some(Incoming::Publish { message, .. })) = connected().decode(&mut buffer) else {
            panic!("no message");
        };
        let correlation_data = message.properties.and_then(|p| p.correlation_data).unwrap();
        for (kept, text) in [
            (message.topic, &b"t"[..]),
            (message.payload, b"payload"),
            (correlation_data, b"c"),
        ] {
            assert_eq!(kept, text);
            assert!(!received.contains(&kept.as_ptr()), "{kept:?}");
        }
    }

    #[test]
    fn empty_properties_cost_what_they_take_of_the_memory() {
        let decode = |pairs: usize| {
            let properties = [38, 0, 0, 0, 0].repeat(pairs);
            connected().decode(&mut BytesMut::from(publish(&properties).as_slice()))
        };
        assert!(matches!(decode(10), Ok(Some(Incoming::Publish { .. }))));
        assert!(matches!(decode(11), Err(DecodeError::Malformed)));
    }

    fn random_numbers() -> impl FnMut() -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    #[test]
    fn random_connects_never_unwind_out_of_the_decoder() {
        let mut random = random_numbers();
        for _ in 0..200_000 {
            let length = random() as usize % 64;
            let level = 4 + random() as u8 % 2;
            let mut packet = vec![0x10, 7 + length as u8, 0, 4, b'M', b'Q', b'T', b'T', level];
            packet.extend((0..length).map(|_| random() as u8 % 48));
            let _ = Codec::new(1024).decode(&mut BytesMut::from(&packet[..]));
        }
    }

    #[test]
    fn random_bytes_never_unwind_out_of_the_decoder() {
        let mut random = random_numbers();
        for _ in 0..200_000 {
            let mut codec = connected();
            let kind = [0x30, 0x32, 0x3d, 0x40, 0x50, 0x62, 0x70, 0x82, 0xa2, 0xe0];
            let first = kind[random() as usize % kind.len()];
            let length = random() as usize % 48;
            let mut packet = vec![first, length as u8];
            packet.extend((0..length).map(|_| {
                let byte = random();
                // Small numbers are plausible lengths and property identifiers.
                (if byte & 0x100 == 0 { byte % 48 } else { byte }) as u8
            }));
            let _ = codec.decode(&mut BytesMut::from(&packet[..]));
        }
    }
}
