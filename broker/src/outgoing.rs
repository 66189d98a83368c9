//! Messages on their way to one client: what waits, what is unacknowledged, and
//! in which order the router gets its acknowledgements.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::codec::{Codec, Connect, Message};
use crate::config::now;

/// Bytes ready to be written above which nothing more is prepared.
pub(crate) const HIGH_WATER: usize = 64 * 1024;

/// Most unacknowledged messages, even if the client would take more.
const MAX_IN_FLIGHT: usize = 256;

#[derive(Debug)]
struct Waiting {
    message: Message,
    qos: u8,
    /// The router's identifier; retained messages have none.
    router: Option<u16>,
}

/// Delivered by the router and sent, or passed over.
#[derive(Debug)]
struct Sent {
    router: u16,
    client: u16,
    done: bool,
}

/// The outgoing messages of a session. The router accepts acknowledgements in
/// the order of its deliveries only; a client may send them in any order.
///
/// The router delivers at most 100 messages that are not acknowledged to it, and whoever pushes
/// retained ones does so only while nothing waits: so all of this is bounded, whatever the
/// client takes or acknowledges.
#[derive(Debug)]
pub(crate) struct Outgoing {
    waiting: VecDeque<Waiting>,
    sent: VecDeque<Sent>,
    /// The client's identifiers of retained messages that it has not acknowledged.
    retained: Vec<u16>,
    in_flight: usize,
    receive_max: usize,
    last_id: u16,
}

impl Outgoing {
    pub(crate) fn new(connect: &Connect) -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            retained: Vec::new(),
            in_flight: 0,
            receive_max: usize::from(connect.receive_max).min(MAX_IN_FLIGHT),
            last_id: 0,
        }
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a message; `router` is the identifier the router waits to see acknowledged.
    pub(crate) fn push(&mut self, message: Message, qos: u8, router: Option<u16>) {
        self.waiting.push_back(Waiting {
            message,
            qos,
            router,
        });
    }

    /// Encodes as many messages as the client may be sent now; returns how many.
    pub(crate) fn fill(&mut self, codec: &Codec, out: &mut BytesMut) -> u64 {
        let mut count = 0;
        while out.len() < HIGH_WATER {
            let Some(Waiting {
                message,
                qos,
                router,
            }) = self
                .waiting
                .pop_front_if(|next| next.qos == 0 || self.in_flight < self.receive_max)
            else {
                break;
            };
            let client = if qos == 0 { 0 } else { self.free_id() };
            // A client is not told of messages longer than it takes (MQTT 5, 3.1.2.11.4).
            let fits = !message.is_expired(now()) && codec.publish(&message, qos, client, out);
            let done = qos == 0 || !fits;
            self.in_flight += usize::from(!done);
            count += u64::from(fits);
            match router {
                Some(router) => self.sent.push_back(Sent {
                    router,
                    client,
                    done,
                }),
                None if !done => self.retained.push(client),
                None => {}
            }
        }
        count
    }

    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = self.last_id;
            let taken = self.sent.iter().any(|s| !s.done && s.client == id);
            if !taken && !self.retained.contains(&id) {
                return id;
            }
        }
    }

    /// Notes a PUBACK. One for nothing that is under way is ignored.
    pub(crate) fn acknowledged(&mut self, id: u16) {
        let sent = self.sent.iter_mut().find(|s| !s.done && s.client == id);
        let retained = self.retained.iter().position(|&client| client == id);
        match (sent, retained) {
            (Some(sent), _) => sent.done = true,
            (None, Some(at)) => {
                self.retained.swap_remove(at);
            }
            (None, None) => return,
        }
        self.in_flight -= 1;
    }

    /// The next identifier to acknowledge to the router, in its order.
    pub(crate) fn next_done(&mut self) -> Option<u16> {
        let sent = self.sent.pop_front_if(|sent| sent.done)?;
        Some(sent.router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use dcnet::time::Timestamp;
    use rumqttd::protocol::PublishProperties;

    fn outgoing(receive_max: u16) -> Outgoing {
        Outgoing::new(&Connect {
            client_id: String::new(),
            clean: true,
            keep_alive: 0,
            will: None,
            receive_max,
            max_packet: usize::MAX,
            authentication: false,
            login: None,
        })
    }

    fn message(length: usize) -> Message {
        Message {
            topic: Bytes::from_static(b"a"),
            payload: Bytes::from(vec![0; length]),
            qos: 1,
            retain: false,
            received: now(),
            properties: None,
        }
    }

    #[test]
    fn acknowledgements_reach_the_router_in_its_order() {
        let (codec, mut out) = (Codec::new(1024), BytesMut::new());
        let mut outgoing = outgoing(100);
        for router in [7, 8, 9] {
            outgoing.push(message(1), 1, Some(router));
        }
        assert_eq!(outgoing.fill(&codec, &mut out), 3);
        outgoing.acknowledged(3);
        outgoing.acknowledged(2);
        outgoing.acknowledged(2);
        outgoing.acknowledged(99);
        assert_eq!(outgoing.next_done(), None);
        outgoing.acknowledged(1);
        let order = std::iter::from_fn(|| outgoing.next_done());
        assert_eq!(order.collect::<Vec<_>>(), [7, 8, 9]);
    }

    #[test]
    fn the_clients_receive_maximum_is_kept() {
        let (codec, mut out) = (Codec::new(1024), BytesMut::new());
        let mut outgoing = outgoing(1);
        outgoing.push(message(1), 1, Some(1));
        outgoing.push(message(1), 1, Some(2));
        assert_eq!(outgoing.fill(&codec, &mut out), 1);
        outgoing.acknowledged(1);
        assert_eq!(outgoing.fill(&codec, &mut out), 1);
    }

    #[test]
    fn a_message_too_long_for_the_client_counts_as_delivered() {
        let mut codec = Codec::new(1024);
        // Its maximum packet size is 50.
        let connect = b"\x10\x13\0\x04MQTT\x05\x02\0\0\x05\x27\0\0\0\x32\0\x01a";
        let decoded = codec.decode(&mut BytesMut::from(&connect[..]));
        assert!(matches!(decoded, Ok(Some(_))));
        let (mut outgoing, mut out) = (outgoing(1), BytesMut::new());
        outgoing.push(message(100), 1, Some(1));
        assert_eq!(outgoing.fill(&codec, &mut out), 0);
        assert!(out.is_empty());
        assert_eq!(outgoing.next_done(), Some(1));
    }

    #[test]
    fn an_expired_message_counts_as_delivered() {
        let (codec, mut out) = (Codec::new(1024), BytesMut::new());
        let mut outgoing = outgoing(1);
        let expired = Message {
            received: Timestamp(now().as_millis() - 2000),
            properties: Some(PublishProperties {
                message_expiry_interval: Some(1),
                ..PublishProperties::default()
            }),
            ..message(1)
        };
        outgoing.push(expired, 1, Some(1));
        assert_eq!(outgoing.fill(&codec, &mut out), 0);
        assert_eq!(outgoing.next_done(), Some(1));
    }

    #[test]
    fn retained_messages_leave_nothing_behind_a_message_that_is_never_acknowledged() {
        let codec = Codec::new(1024);
        let mut outgoing = outgoing(100);
        outgoing.push(message(1), 1, Some(7));
        outgoing.fill(&codec, &mut BytesMut::new());
        for _ in 0..10_000 {
            for qos in [0, 1] {
                outgoing.push(message(1), qos, None);
                assert_eq!(outgoing.fill(&codec, &mut BytesMut::new()), 1);
            }
            outgoing.acknowledged(outgoing.last_id);
            assert_eq!(outgoing.next_done(), None);
        }
        assert_eq!((outgoing.sent.len(), outgoing.retained.len()), (1, 0));
        outgoing.acknowledged(1);
        assert_eq!(outgoing.next_done(), Some(7));
    }
}
