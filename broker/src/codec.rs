//! MQTT 3.1.1 and 5 on one stream: rumqttd's codec behind checks that keep it
//! from panicking, and packets reduced to what a session needs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rumqttd::protocol::{
    ConnAck, ConnAckProperties, ConnectProperties, ConnectReturnCode, Disconnect,
    DisconnectProperties, DisconnectReasonCode, Filter, LastWill, LastWillProperties, Packet,
    PingResp, Protocol, PubAck, PubAckReason, Publish, PublishProperties, QoS, SubAck,
    SubscribeReasonCode, UnsubAck, UnsubAckReason, v4::V4, v5::V5,
};
use zeroize::Zeroizing;

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
    pub(crate) retain: bool,
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
            retain: false,
            properties: None,
        }
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
    pub(crate) will: Option<(Message, u8)>,
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
        qos: u8,
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
    /// The protocol name or level of a CONNECT is neither 3.1.1's nor 5's.
    Version,
}

/// Decodes and encodes the packets of one connection.
#[derive(Debug)]
pub(crate) struct Codec {
    version: Option<Version>,
    max_packet: usize,
}

impl Codec {
    pub(crate) fn new(max_packet: usize) -> Self {
        Self {
            version: None,
            max_packet,
        }
    }

    /// Takes packets of up to `max_packet` bytes from now on.
    pub(crate) fn allow(&mut self, max_packet: usize) {
        self.max_packet = max_packet;
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
        let Some(frame) = Frame::of(buffer, self.max_packet)? else {
            return Ok(None);
        };
        let version = match self.version {
            Some(_) if frame.kind == 1 => return Err(DecodeError::Malformed),
            Some(version) => version,
            None if frame.kind != 1 => return Err(DecodeError::Malformed),
            None => {
                let body = buffer.get(frame.header..).ok_or(DecodeError::Malformed)?;
                *self.version.insert(connect_version(body)?)
            }
        };
        let max = self.max_packet;
        // rumqttd's MQTT 5 decoder has paths that panic; one must end only this
        // connection. The buffer is not used again after an error.
        let packet = catch_unwind(AssertUnwindSafe(|| match version {
            Version::V4 => V4.read_mut(buffer, max),
            Version::V5 => V5.read_mut(buffer, max),
        }));
        match packet {
            Ok(Ok(packet)) => incoming(packet).map(Some),
            Ok(Err(_)) | Err(_) => Err(DecodeError::Malformed),
        }
    }

    fn write(&self, packet: Packet, out: &mut BytesMut) {
        let start = out.len();
        let written = match self.version() {
            Version::V4 => V4.write(packet, out),
            Version::V5 => V5.write(packet, out),
        };
        if let Err(error) = written {
            out.truncate(start);
            tracing::error!(%error, "cannot encode a packet");
        }
    }

    /// Answers a CONNECT. `v4` stands for reasons that 3.1.1 does not know.
    pub(crate) fn connack(
        &self,
        v4: ConnectReturnCode,
        v5: ConnectReturnCode,
        properties: ConnAckProperties,
        out: &mut BytesMut,
    ) {
        let (code, properties) = match self.version() {
            Version::V4 => (v4, None),
            Version::V5 => (v5, Some(properties)),
        };
        let connack = ConnAck {
            session_present: false,
            code,
        };
        self.write(Packet::ConnAck(connack, properties), out);
    }

    /// Appends a PUBLISH; `false`, and nothing appended, if it is over `max` bytes.
    pub(crate) fn publish(
        &self,
        message: &Message,
        qos: u8,
        id: u16,
        max: usize,
        out: &mut BytesMut,
    ) -> bool {
        let start = out.len();
        let mut plain = BytesMut::with_capacity(5 + message.topic.len() + message.payload.len());
        plain.extend_from_slice(&[0x30 | (qos << 1) | u8::from(message.retain)]);
        plain.extend_from_slice(&id.to_be_bytes());
        let length = u16::try_from(message.topic.len()).unwrap_or(u16::MAX);
        plain.extend_from_slice(&length.to_be_bytes());
        plain.extend_from_slice(&message.topic);
        plain.extend_from_slice(&message.payload);
        let publish = Publish::deserialize(plain.freeze());
        let properties = match self.version() {
            Version::V4 => None,
            Version::V5 => message.properties.clone(),
        };
        self.write(Packet::Publish(publish, properties), out);
        let fits = out.len().saturating_sub(start) <= max;
        if !fits {
            out.truncate(start);
        }
        fits
    }

    /// Appends a PUBACK; 3.1.1 knows no reason, so only success may be sent there.
    pub(crate) fn puback(&self, id: u16, reason: PubAckReason, out: &mut BytesMut) {
        self.write(Packet::PubAck(PubAck { pkid: id, reason }, None), out);
    }

    /// Appends a SUBACK; in 3.1.1 every refusal is 0x80.
    pub(crate) fn suback(&self, id: u16, codes: &[SubscribeReasonCode], out: &mut BytesMut) {
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
        self.write(Packet::SubAck(suback, None), out);
    }

    /// Appends an UNSUBACK; the reasons are sent in MQTT 5 only.
    pub(crate) fn unsuback(&self, id: u16, reasons: Vec<UnsubAckReason>, out: &mut BytesMut) {
        self.write(Packet::UnsubAck(UnsubAck { pkid: id, reasons }, None), out);
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
            let disconnect = Disconnect { reason_code };
            self.write(Packet::Disconnect(disconnect, Some(properties)), out);
        }
    }
}

/// The fixed header of a complete packet.
struct Frame {
    kind: u8,
    header: usize,
}

impl Frame {
    fn of(buffer: &[u8], max: usize) -> Result<Option<Self>, DecodeError> {
        let Some((&first, rest)) = buffer.split_first() else {
            return Ok(None);
        };
        let kind = first >> 4;
        let flags_valid = match kind {
            3 => true,
            6 | 8 | 10 => first & 0x0f == 2,
            _ => first & 0x0f == 0,
        };
        // What only servers send (CONNACK, SUBACK, UNSUBACK, PINGRESP), AUTH and 0.
        if !flags_valid || matches!(kind, 0 | 2 | 9 | 11 | 13 | 15) {
            return Err(DecodeError::Malformed);
        }
        let mut length = 0_usize;
        for (index, &byte) in rest.iter().take(4).enumerate() {
            length |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if length > max {
                    return Err(DecodeError::TooLarge);
                }
                let header = index + 2;
                let complete = buffer.len() >= header + length;
                return Ok(complete.then_some(Self { kind, header }));
            }
        }
        if rest.len() >= 4 {
            Err(DecodeError::Malformed)
        } else {
            Ok(None)
        }
    }
}

fn connect_version(body: &[u8]) -> Result<Version, DecodeError> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, flags, ..] if flags & 1 == 0 => Ok(Version::V4),
        [0, 4, b'M', b'Q', b'T', b'T', 5, flags, ..] if flags & 1 == 0 => Ok(Version::V5),
        [0, 4, b'M', b'Q', b'T', b'T', 4 | 5, ..] => Err(DecodeError::Malformed),
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
                .is_some_and(|p| !p.subscription_identifiers.is_empty() || size(p) > MAX_PROPERTIES)
            {
                return Err(DecodeError::Malformed);
            }
            Incoming::Publish {
                topic: text(&publish.topic)?,
                qos,
                id,
                message: Message {
                    retain: publish.retain,
                    properties: properties.map(own),
                    ..Message::copied(&publish.topic, &publish.payload)
                },
            }
        }
        Packet::PubAck(puback, _) => Incoming::PubAck(puback.pkid),
        Packet::Subscribe(subscribe, properties) => Incoming::Subscribe {
            id: nonzero(subscribe.pkid)?,
            filters: subscribe.filters,
            identifier: properties.is_some_and(|p| p.id.is_some()),
        },
        Packet::Unsubscribe(unsubscribe, _) if !unsubscribe.filters.is_empty() => {
            Incoming::Unsubscribe {
                id: nonzero(unsubscribe.pkid)?,
                filters: unsubscribe.filters,
            }
        }
        Packet::PingReq(_) => Incoming::Ping,
        Packet::Disconnect(disconnect, _) => Incoming::Disconnect {
            publish_will: disconnect.reason_code == DisconnectReasonCode::DisconnectWithWillMessage,
        },
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
    if receive_max == Some(0) || max_packet == Some(0) {
        return Err(DecodeError::Malformed);
    }
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
        let message = Message {
            retain: will.retain,
            properties: properties.map(own),
            ..Message::copied(&will.topic, &will.message)
        };
        (message, will.qos as u8)
    });
    let oversized = |(m, _): &(Message, u8)| m.properties.as_ref().map_or(0, size) > MAX_PROPERTIES;
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

fn nonzero(id: u16) -> Result<u16, DecodeError> {
    if id == 0 {
        Err(DecodeError::Malformed)
    } else {
        Ok(id)
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
fn size(properties: &PublishProperties) -> usize {
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
            Err(DecodeError::Malformed)
        ));
        let mut codec = connected();
        assert!(matches!(
            codec.decode(&mut BytesMut::from(CONNECT_V5)),
            Err(DecodeError::Malformed)
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
