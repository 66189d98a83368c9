//! A client's session, from CONNACK to the end: packets checked and routed,
//! deliveries written, limits kept.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use dcnet::identity::Role;
use rumqttd::protocol::{
    DisconnectReasonCode as Reason, Filter, PubAckReason, QoS, RetainForwardRule,
    SubscribeReasonCode as SubCode, UnsubAckReason,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backend::{Deliveries, Delivery, Link, RouterGone};
use crate::client::Client;
use crate::codec::{Codec, DecodeError, Incoming, Message, Version, granted};
use crate::config::now;
use crate::counters::Refusal;
use crate::gate::{Connection, Shared};
use crate::outgoing::{HIGH_WATER, Outgoing};
use crate::permission::{Permissions, is_filter, matches};
use crate::policy::Policy;
use crate::rate::Rate;
use crate::registry::{Ending, Place, Principal};
use crate::websocket;

/// Refused publishes after which a client is disconnected.
const MAX_REFUSED: u32 = 16;

/// Room for what is received next, in bytes, at the least.
const ROOM: usize = 1024;

/// How long the last bytes of a session may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// A client that got through the gate.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) principal: Arc<Principal>,
    /// What third parties may read; agents do not follow it.
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) permissions: Permissions,
    pub(crate) codec: Codec,
    pub(crate) outgoing: Outgoing,
    pub(crate) link: Link,
    pub(crate) deliveries: Deliveries,
    /// Received and not yet decoded.
    pub(crate) buffer: BytesMut,
    /// Encoded and not yet written.
    pub(crate) out: BytesMut,
    /// 1.5 times the keep-alive; zero is none.
    pub(crate) keep_alive: Duration,
    pub(crate) will: Option<Message>,
}

impl Session {
    /// Makes room for what is received next, and gives back what a long packet took.
    fn tidy(&mut self) {
        let Self { buffer, out, .. } = self;
        if buffer.is_empty() && buffer.capacity() != ROOM {
            *buffer = BytesMut::with_capacity(ROOM);
        } else if buffer.capacity() - buffer.len() < ROOM {
            buffer.reserve(4 * ROOM);
        }
        if out.is_empty() && out.capacity() > 0 {
            *out = BytesMut::new();
        }
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The connection closed or broke.
    Lost,
    /// The client sent DISCONNECT.
    Disconnected { publish_will: bool },
    /// The client did what it may not.
    Refused(Refusal, Reason),
    /// The client published what it may not; already counted.
    RefusedPublish(Refusal),
    /// The broker wanted it.
    Broker(Ending),
    /// Nothing can be routed any more.
    Router,
}

impl End {
    /// The answer would be longer than the client's maximum packet size.
    const UNANSWERABLE: Self =
        Self::Refused(Refusal::TooLarge, Reason::ImplementationSpecificError);
}

impl From<RouterGone> for End {
    fn from(_: RouterGone) -> Self {
        Self::Router
    }
}

/// A SUBSCRIBE that the router has not confirmed completely.
struct Pending {
    id: u16,
    codes: Vec<SubCode>,
    replay: Vec<String>,
    unconfirmed: usize,
}

/// What a client asked for with a filter.
#[derive(Clone, Copy)]
struct Subscription {
    qos: u8,
    retain_as_published: bool,
    /// The place in the filter's log of the message that is due, once there was one.
    due: Option<u64>,
}

/// Retained messages that are due for a subscription.
struct Replay {
    filter: String,
    /// The last topic that was looked at.
    reached: Option<String>,
}

struct Running<'a> {
    shared: &'a Shared,
    session: Session,
    subscriptions: HashMap<String, Subscription>,
    pending: VecDeque<Pending>,
    /// At most one for each subscription.
    replays: VecDeque<Replay>,
    rate: Rate,
    refused: u32,
}

/// Runs a session until it ends, then says goodbye and publishes its will if due.
pub(crate) async fn run(shared: &Shared, stream: Connection, session: Session, mut place: Place) {
    let limits = &shared.registry.limits;
    let rate = match session.principal.role {
        Role::Provider => limits.packets_per_second_of_provider,
        _ => limits.packets_per_second,
    };
    let mut running = Running {
        shared,
        session,
        subscriptions: HashMap::new(),
        pending: VecDeque::new(),
        replays: VecDeque::new(),
        rate: Rate::new(rate, Instant::now()),
        refused: 0,
    };
    let (mut read, mut write) = tokio::io::split(stream);
    tracing::debug!(client = %running.session.principal.id, "session opened");
    let end = running.work(&mut read, &mut write, &mut place).await;
    tracing::debug!(client = %running.session.principal.id, ?end, "session ended");
    running.finish(end, &mut write).await;
    // The link goes before the place, so that a takeover finds both gone.
    drop(running);
    drop(place);
}

impl Running<'_> {
    async fn work<R, W>(&mut self, read: &mut R, write: &mut W, place: &mut Place) -> End
    where
        R: AsyncReadExt + Unpin,
        W: AsyncWrite + Unpin,
    {
        let write_timeout = self.shared.registry.limits.write_timeout();
        let follows = self.session.principal.role == Role::ThirdParty;
        let mut received = Instant::now();
        // Since when bytes wait to be taken by the client.
        let mut unwritten: Option<Instant> = None;
        loop {
            if let Some(ending) = *place.ending.borrow_and_update() {
                return End::Broker(ending);
            }
            let more = match self.decode_all().await {
                Ok(more) => more,
                Err(end) => return end,
            };
            if let Err(end) = self.prepare_outgoing().await {
                return end;
            }
            self.session.tidy();
            let now = Instant::now();
            if !self.session.out.is_empty() && unwritten.is_none() {
                unwritten = Some(now);
            }
            // Whoever is held back by the broker does not miss its keep-alive.
            let reading = more == More::Bytes;
            if !reading {
                received = now;
            }
            let silence = (!self.session.keep_alive.is_zero() && reading)
                .then(|| received + self.session.keep_alive);
            let stall = unwritten.map(|since| since + write_timeout);
            let resume = match more {
                More::Later(at) => Some(at),
                _ => None,
            };
            let wake = [silence, stall, resume].into_iter().flatten().min();
            let replaying = self.may_replay();
            let Session {
                deliveries,
                buffer,
                out,
                policy,
                ..
            } = &mut self.session;
            tokio::select! {
                // Deliveries and packets are gathered before anything is written,
                // so that many share one TLS record.
                biased;
                changed = place.ending.changed() => {
                    if changed.is_err() {
                        return End::Broker(Ending::Stopping);
                    }
                }
                changed = policy.changed(), if follows => {
                    if changed.is_err() {
                        return End::Broker(Ending::Stopping);
                    }
                    if let Err(ending) = self.follow_policy() {
                        return End::Broker(ending);
                    }
                }
                delivery = deliveries.next(), if out.len() < HIGH_WATER => match delivery {
                    Ok(delivery) => if let Err(end) = self.deliver(delivery) {
                        return end;
                    },
                    Err(gone) => return gone.into(),
                },
                result = read.read_buf(buffer), if reading => match result {
                    Ok(count) if count > 0 => received = Instant::now(),
                    Err(error) if websocket::is_violation(&error) => {
                        return End::Refused(Refusal::Malformed, Reason::MalformedPacket);
                    }
                    _ => return End::Lost,
                },
                result = write_some(write, out), if unwritten.is_some() => match result {
                    Ok(Written::All) => unwritten = None,
                    Ok(Written::Some) => unwritten = Some(Instant::now()),
                    Err(_) => return End::Lost,
                },
                // There is more to be prepared, after others had their turn.
                () = tokio::task::yield_now(), if replaying => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {
                    let now = Instant::now();
                    if stall.is_some_and(|at| at <= now) {
                        return End::Refused(Refusal::SlowReader, Reason::UnspecifiedError);
                    }
                    if silence.is_some_and(|at| at <= now) {
                        return End::Refused(Refusal::KeepAlive, Reason::KeepAliveTimeout);
                    }
                }
            }
        }
    }

    /// Takes up what third parties may read now; an error if that ends the session.
    fn follow_policy(&mut self) -> Result<(), Ending> {
        let policy = Arc::clone(&self.session.policy.borrow_and_update());
        if !policy.knows(&self.session.client) {
            return Err(Ending::Password);
        }
        self.session.permissions = policy.permissions(&self.session.client);
        let permissions = &self.session.permissions;
        match self
            .subscriptions
            .keys()
            .find(|f| !permissions.may_subscribe(f))
        {
            Some(filter) => {
                let client = &self.session.principal.id;
                tracing::info!(%client, filter, "permission withdrawn");
                Err(Ending::Permission)
            }
            None => Ok(()),
        }
    }

    /// Handles the packets received so far, as far as they may be handled now.
    async fn decode_all(&mut self) -> Result<More, End> {
        loop {
            // Answers pile up, or the order of a subscription and what follows
            // it would be lost.
            if self.session.out.len() >= HIGH_WATER || !self.pending.is_empty() {
                return Ok(More::Answers);
            }
            if let Some(at) = self.rate.exhausted(Instant::now()) {
                return Ok(More::Later(at));
            }
            let before = self.session.buffer.len();
            let packet = match self.session.codec.decode(&mut self.session.buffer) {
                Ok(Some(packet)) => packet,
                Ok(None) => return Ok(More::Bytes),
                Err(DecodeError::TooLarge) => {
                    return Err(End::Refused(Refusal::TooLarge, Reason::PacketTooLarge));
                }
                Err(DecodeError::Protocol) => {
                    return Err(End::Refused(Refusal::Malformed, Reason::ProtocolError));
                }
                Err(DecodeError::Malformed | DecodeError::Version) => {
                    return Err(End::Refused(Refusal::Malformed, Reason::MalformedPacket));
                }
            };
            self.rate.spend(before - self.session.buffer.len());
            self.handle(packet).await?;
        }
    }

    async fn handle(&mut self, packet: Incoming) -> Result<(), End> {
        match packet {
            Incoming::Publish { message, topic, id } => self.publish(message, &topic, id).await,
            Incoming::PubAck(id) => {
                self.session.outgoing.acknowledged(id);
                Ok(())
            }
            Incoming::Subscribe {
                id,
                filters,
                identifier,
            } => self.subscribe(id, filters, identifier).await,
            Incoming::Unsubscribe { id, filters } => self.unsubscribe(id, filters).await,
            Incoming::Ping => {
                self.session.codec.pingresp(&mut self.session.out);
                Ok(())
            }
            Incoming::Disconnect { publish_will } => Err(End::Disconnected { publish_will }),
            Incoming::QoS2 => Err(End::Refused(Refusal::Unsupported, Reason::ProtocolError)),
            Incoming::Connect(_) => Err(End::Refused(Refusal::Malformed, Reason::ProtocolError)),
        }
    }

    async fn publish(&mut self, message: Message, topic: &str, id: u16) -> Result<(), End> {
        let qos = message.qos;
        if qos > 1 {
            return Err(End::Refused(Refusal::Unsupported, Reason::QoSNotSupported));
        }
        let alias = message.properties.as_ref().and_then(|p| p.topic_alias);
        if alias.is_some() {
            let reason = Reason::TopicAliasInvalid;
            return Err(End::Refused(Refusal::Unsupported, reason));
        }
        let registry = &self.shared.registry;
        if message.retain && !may_retain(self.session.principal.role) {
            // MQTT 5 clients were told in CONNACK (MQTT 5, 3.2.2.3.5).
            if self.session.codec.version() == Version::V5 {
                return Err(End::Refused(Refusal::Retain, Reason::RetainNotSupported));
            }
            let reason = PubAckReason::NotAuthorized;
            return self.refuse_publish(Refusal::Retain, reason, topic, qos, id);
        }
        if !self.session.permissions.may_publish(topic) {
            let reason = PubAckReason::NotAuthorized;
            return self.refuse_publish(Refusal::Publish, reason, topic, qos, id);
        }
        // Stored before it is routed: who subscribes in between sees it once or twice.
        if !registry.take_topic(&self.session.principal, topic)
            || (message.retain && self.shared.retained.set(topic, &message).is_err())
        {
            let reason = PubAckReason::QuotaExceeded;
            return self.refuse_publish(Refusal::Quota, reason, topic, qos, id);
        }
        self.session.link.publish(&message).await?;
        for traffic in [&registry.cells.total, &self.session.principal.traffic] {
            traffic.messages_in.fetch_add(1, Relaxed);
        }
        if qos == 1 {
            let out = &mut self.session.out;
            self.session.codec.puback(id, PubAckReason::Success, out);
        }
        Ok(())
    }

    /// A refused message never reaches the router. MQTT 5 clients are told;
    /// a 3.1.1 client that waits for an acknowledgement can only be disconnected
    /// or deceived (MQTT 3.1.1, 3.3.5), and is disconnected.
    fn refuse_publish(
        &mut self,
        refusal: Refusal,
        reason: PubAckReason,
        topic: &str,
        qos: u8,
        id: u16,
    ) -> Result<(), End> {
        self.refuse(refusal, topic);
        self.refused += 1;
        let deceived = qos == 1 && self.session.codec.version() == Version::V4;
        if deceived || self.refused >= MAX_REFUSED {
            return Err(End::RefusedPublish(refusal));
        }
        if qos == 1 {
            self.session.codec.puback(id, reason, &mut self.session.out);
        }
        Ok(())
    }

    async fn subscribe(
        &mut self,
        id: u16,
        filters: Vec<Filter>,
        identifier: bool,
    ) -> Result<(), End> {
        let mut pending = Pending {
            id,
            codes: Vec::with_capacity(filters.len()),
            replay: Vec::new(),
            unconfirmed: 0,
        };
        let own = self.shared.registry.filters_of(&self.session.principal);
        if filters.len() > own {
            let count = format!("{} filters at once", filters.len());
            self.refuse(Refusal::Quota, &count);
        }
        for (number, filter) in filters.into_iter().enumerate() {
            // It cannot have so many, and each costs a search for retained messages.
            if number >= own {
                pending.codes.push(SubCode::QuotaExceeded);
                continue;
            }
            let code = self.check_filter(&filter, identifier);
            pending.codes.push(code);
            let SubCode::Success(qos) = code else {
                continue;
            };
            let qos = qos as u8;
            let path = filter.path;
            let subscription = Subscription {
                qos,
                retain_as_published: filter.preserve_retain,
                due: self.subscriptions.get(&path).and_then(|old| old.due),
            };
            let old = self.subscriptions.insert(path.clone(), subscription);
            let new = old.is_none();
            if new {
                self.session.link.subscribe(1, &path).await?;
                pending.unconfirmed += 1;
            }
            match filter.retain_forward_rule {
                RetainForwardRule::OnEverySubscribe => pending.replay.push(path),
                RetainForwardRule::OnNewSubscribe if new => pending.replay.push(path),
                RetainForwardRule::OnNewSubscribe | RetainForwardRule::Never => {}
            }
        }
        self.pending.push_back(pending);
        self.answer_subscribes()
    }

    fn check_filter(&mut self, filter: &Filter, identifier: bool) -> SubCode {
        let path = &filter.path;
        let (refusal, code) = if identifier {
            (Refusal::Unsupported, SubCode::SubscriptionIdNotSupported)
        } else if path.starts_with("$share/") {
            let code = SubCode::SharedSubscriptionsNotSupported;
            (Refusal::Unsupported, code)
        } else if filter.nolocal {
            (Refusal::Unsupported, SubCode::ImplementationSpecific)
        } else if !is_filter(path) {
            (Refusal::Subscribe, SubCode::TopicFilterInvalid)
        } else if !self.session.permissions.may_subscribe(path) {
            (Refusal::Subscribe, SubCode::NotAuthorized)
        } else if !self
            .shared
            .registry
            .take_filter(&self.session.principal, path)
        {
            (Refusal::Quota, SubCode::QuotaExceeded)
        } else {
            return SubCode::Success(granted(filter.qos));
        };
        self.refuse(refusal, path);
        code
    }

    async fn unsubscribe(&mut self, id: u16, filters: Vec<String>) -> Result<(), End> {
        let mut reasons = Vec::with_capacity(filters.len());
        for filter in filters {
            reasons.push(if self.subscriptions.remove(&filter).is_some() {
                self.replays.retain(|replay| replay.filter != filter);
                self.session.link.unsubscribe(&filter).await?;
                UnsubAckReason::Success
            } else {
                UnsubAckReason::NoSubscriptionExisted
            });
        }
        let out = &mut self.session.out;
        if self.session.codec.unsuback(id, reasons, out) {
            Ok(())
        } else {
            Err(End::UNANSWERABLE)
        }
    }

    fn deliver(&mut self, delivery: Delivery) -> Result<(), End> {
        match delivery {
            Delivery::Subscribed => {
                if let Some(first) = self.pending.front_mut() {
                    first.unconfirmed = first.unconfirmed.saturating_sub(1);
                }
                self.answer_subscribes()?;
            }
            Delivery::Message {
                id,
                place,
                mut message,
            } => {
                let topic = std::str::from_utf8(&message.topic).unwrap_or_default();
                // What arrives for an ended subscription goes with the lowest quality.
                let (mut granted, mut keep_retain) = (QoS::AtMostOnce as u8, false);
                let (mut matching, mut due) = (0, None);
                for (filter, subscription) in &mut self.subscriptions {
                    if matches(topic, filter) {
                        granted = granted.max(subscription.qos);
                        keep_retain |= subscription.retain_as_published;
                        matching += 1;
                        due = Some(&mut subscription.due);
                    }
                }
                // Of several it is not known which one it comes for.
                if let (Some(place), 1, Some(due)) = (place, matching, due) {
                    let skipped = due.map_or(0, |due| place.saturating_sub(due));
                    *due = Some(place + 1);
                    let cells = &self.shared.registry.cells;
                    cells.messages_skipped.fetch_add(skipped, Relaxed);
                }
                message.retain &= keep_retain;
                let qos = message.qos.min(granted);
                self.session.outgoing.push(message, qos, Some(id));
            }
        }
        Ok(())
    }

    /// Sends the SUBACKs that are due. The retained messages of each follow; those of a filter
    /// that is subscribed to again begin anew (MQTT 3.1.1, 3.8.4).
    fn answer_subscribes(&mut self) -> Result<(), End> {
        while let Some(ready) = self.pending.pop_front_if(|p| p.unconfirmed == 0) {
            let out = &mut self.session.out;
            if !self.session.codec.suback(ready.id, &ready.codes, out) {
                return Err(End::UNANSWERABLE);
            }
            for filter in ready.replay {
                self.replays.retain(|replay| replay.filter != filter);
                self.replays.push_back(Replay {
                    filter,
                    reached: None,
                });
            }
        }
        Ok(())
    }

    /// Whether retained messages are due and the client takes what it is sent. They have to
    /// wait for what waits already: a message must not overtake an older one of its topic.
    fn may_replay(&self) -> bool {
        let Session { outgoing, out, .. } = &self.session;
        !self.replays.is_empty() && outgoing.is_idle() && out.len() < HIGH_WATER
    }

    fn replay(&mut self) {
        let Some(replay) = self.replays.front_mut() else {
            return;
        };
        let Replay { filter, reached } = replay;
        let granted = self.subscriptions.get(filter).map_or(0, |s| s.qos);
        let part = self.shared.retained.part(filter, reached.as_deref());
        for message in part.messages {
            let qos = message.qos.min(granted);
            self.session.outgoing.push(message, qos, None);
        }
        match part.reached {
            Some(topic) => replay.reached = Some(topic),
            None => {
                self.replays.pop_front();
            }
        }
    }

    async fn prepare_outgoing(&mut self) -> Result<(), End> {
        if self.may_replay() {
            self.replay();
        }
        let Session {
            outgoing,
            codec,
            out,
            ..
        } = &mut self.session;
        let count = outgoing.fill(codec, out);
        if count > 0 {
            let cells = &self.shared.registry.cells;
            for traffic in [&cells.total, &self.session.principal.traffic] {
                traffic.messages_out.fetch_add(count, Relaxed);
            }
        }
        while let Some(id) = self.session.outgoing.next_done() {
            self.session.link.ack(id).await?;
        }
        Ok(())
    }

    fn refuse(&self, refusal: Refusal, detail: &str) {
        let cells = &self.shared.registry.cells;
        self.session.principal.refuse(cells, refusal, detail);
    }

    async fn finish<W: AsyncWrite + Unpin>(&mut self, end: End, write: &mut W) {
        let reason = match end {
            End::Lost | End::Disconnected { .. } => None,
            End::Refused(refusal, reason) => {
                self.refuse(refusal, "disconnected");
                Some((reason, refusal.as_str()))
            }
            End::RefusedPublish(refusal) => Some((Reason::NotAuthorized, refusal.as_str())),
            End::Broker(ending) => {
                if matches!(ending, Ending::Password | Ending::Permission) {
                    let cells = &self.shared.registry.cells;
                    cells.withdrawn.fetch_add(1, Relaxed);
                }
                Some(ending.reason())
            }
            End::Router => Some((Reason::UnspecifiedError, "the broker has failed")),
        };
        let silent = matches!(
            end,
            End::Disconnected {
                publish_will: false
            } | End::Broker(Ending::Revoked)
        );
        if let Some(mut will) = self.session.will.take()
            && !silent
        {
            will.received = now();
            let topic = std::str::from_utf8(&will.topic).unwrap_or_default();
            let stored = !will.retain || self.shared.retained.set(topic, &will).is_ok();
            if !stored || self.session.link.publish(&will).await.is_err() {
                tracing::warn!(client = %self.session.principal.id, "its will is lost");
            }
        }
        if let Some((reason, why)) = reason {
            let out = &mut self.session.out;
            self.session.codec.disconnect(reason, why, out);
        }
        let farewell = async {
            write.write_all_buf(&mut self.session.out).await?;
            write.shutdown().await
        };
        // A client that does not listen any more needs no goodbye.
        let _ = timeout(FAREWELL, farewell).await;
    }
}

/// Whether the broker keeps messages for whoever subscribes later, which only the provider
/// needs: the store would be full of others' otherwise.
pub(crate) fn may_retain(role: Role) -> bool {
    role == Role::Provider
}

/// What has to come before more packets can be handled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    /// Bytes from the client.
    Bytes,
    /// Answers of the router, or the client taking its answers.
    Answers,
    /// Time: the client sends too fast.
    Later(Instant),
}

enum Written {
    All,
    Some,
}

/// Writes once; cancel safe.
async fn write_some<W: AsyncWrite + Unpin>(
    write: &mut W,
    out: &mut BytesMut,
) -> io::Result<Written> {
    if out.is_empty() {
        write.flush().await?;
        return Ok(Written::All);
    }
    match write.write_buf(out).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Ok(Written::Some),
    }
}
