//! The contract between a state machine and the shell that drives it.
//!
//! A machine is created from what was persisted, then driven by
//! [`StateMachine::handle`]; after each call the shell drains
//! [`StateMachine::poll_output`] until it returns `None`. Outputs form **one
//! ordered queue**, and the shell keeps this promise: a [`Output::Persist`] is
//! durable (fsync) before any later [`Output::Publish`] leaves the process. A pad
//! that is used twice is a leak, so this is a privacy rule.
//!
//! A `Publish` may get lost. Machines repeat what matters until they see the
//! protocol's next step, and start over with everything outstanding on
//! [`Input::Connected`]; so the shell keeps no queue of its own across a broken
//! connection, and the persisted state of the machine is the only outbox.

use std::time::Duration;

use crate::time::Now;
use crate::topic::Topic;

/// Something that happens to a state machine.
#[derive(Debug)]
pub enum Input<C> {
    /// Messages from the broker, in order of arrival; handed over together so
    /// that signatures can be verified as one batch.
    Received(Vec<Received>),
    /// Connected and subscribed to every filter of [`StateMachine::subscriptions`].
    Connected,
    /// The connection is gone.
    Disconnected,
    /// The time asked for by [`Output::WakeAt`] has come (early or late ticks do no harm).
    Tick,
    /// A command of the machine's owner.
    Command(C),
}

/// One message from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Where it was published.
    pub topic: Topic,
    /// The bytes: one frame, not verified in any way.
    pub payload: Vec<u8>,
}

/// One message to the broker, at QoS 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where to publish.
    pub topic: Topic,
    /// The bytes.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
}

/// What a state machine asks its shell to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<P, E> {
    /// Make this durable before anything later in the queue is published.
    Persist(P),
    /// Send this.
    Publish(Message),
    /// Tell the owner.
    Event(E),
    /// Call with [`Input::Tick`] at this monotonic time; replaces an earlier wish.
    WakeAt(Duration),
}

/// A pure state machine: no files, sockets, clocks or ambient randomness.
pub trait StateMachine {
    /// What it persists.
    type Persist: Send + 'static;
    /// What it tells its owner.
    type Event: Send + 'static;
    /// What its owner tells it.
    type Command: Send + 'static;

    /// Topic filters to subscribe to, at QoS 1, on every connection.
    fn subscriptions(&self) -> Vec<String>;

    /// Handles one input. `now` never goes back on the monotonic clock.
    fn handle(&mut self, input: Input<Self::Command>, now: Now);

    /// The next output; `None` when there is nothing left to do.
    fn poll_output(&mut self) -> Option<Output<Self::Persist, Self::Event>>;
}

/// Where a meter's record belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    /// State of one net; deleted with it.
    Net,
    /// State of the physical register, shared by every net it was ever in.
    Register,
}

/// One change to a meter's durable key-value state. The value may hold keys
/// and self-masks: the store is readable by the agent alone and overwrites what
/// it deletes.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Which state it belongs to.
    pub store: Store,
    /// The key; unique within the store.
    pub key: Vec<u8>,
    /// The new value, or `None` to erase the key.
    pub value: Option<Vec<u8>>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.value.is_some() { "put" } else { "erase" };
        write!(
            f,
            "Record({verb} {:?} {})",
            self.store,
            String::from_utf8_lossy(&self.key)
        )
    }
}
