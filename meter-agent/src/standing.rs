//! Where a meter stands in its net, in figures: what the household is told while it waits.

use std::collections::BTreeSet;

use dcnet::cbor::{self, Fields};
use dcnet::frame::FrameError;
use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, Output, Record, StateMachine, Store};
use dcnet::time::Now;
use dcnet::topic::NetId;
use tokio::sync::watch;

/// Names of a meter's records (`dcnet::meter`, what it persists).
const EXIT: &[u8] = b"exit";
const STOPPED: &[u8] = b"stopped";
const ROUND: &[u8] = b"round/";

/// Most former neighbours: members of a net.
const NEIGHBOURS: usize = 1 << 16;

/// Where a meter stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Members of the net, as far as the log is known.
    pub members: u32,
    /// Whether this meter is one of them.
    pub is_member: bool,
    /// Whether an alarm has stopped it for good.
    pub is_stopped: bool,
    /// Rounds that it takes part in and that are neither final nor closed.
    pub open_rounds: usize,
    /// The exit under way, or done.
    pub exit: Option<Exit>,
}

/// How far an exit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Whether the log says so.
    pub left: bool,
    /// Former neighbours, once it left.
    pub neighbours: u32,
    /// Those that have not confirmed that they erased the pair key.
    pub awaited: u32,
    /// Whether everything is done and erased.
    pub done: bool,
}

impl Exit {
    /// Reads the record of an exit; `None` for one after which the meter joins anew, which
    /// is no wish of its owner.
    fn read(value: &[u8]) -> Result<Option<Self>, FrameError> {
        let mut fields = Fields::of(cbor::decode(value)?, "exit")?;
        fields.item("frame")?;
        fields.item("join")?;
        let again = fields.uint("again", 1)? == 1;
        let left = !fields.array("left", 1)?.is_empty();
        let neighbours = fields.u32("neighbours")?;
        let awaited = fields.array("awaited", NEIGHBOURS)?.len();
        let done = fields.uint("done", 1)? == 1;
        fields.end()?;
        Ok((!again).then_some(Self {
            left,
            neighbours,
            awaited: u32::try_from(awaited).unwrap_or(u32::MAX),
            done,
        }))
    }
}

/// The meter of this state has left its net for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this meter has left net {0}: the exit is done and its keys are erased, so there is nothing to \
     run; disable its service. To take part again, move {0}.db in its state directory away \
     (never register/), and start it"
)]
pub struct HasLeft(
    /// The net.
    pub NetId,
);

/// What is read from a meter's records.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    rounds: BTreeSet<Vec<u8>>,
    exit: Option<Exit>,
    is_stopped: bool,
}

impl Notes {
    /// Reads what a meter is about to be made from.
    pub(crate) fn of(saved: &[Record]) -> Self {
        let mut notes = Self::default();
        saved.iter().for_each(|record| notes.take(record));
        notes
    }

    fn take(&mut self, record: &Record) {
        if record.store != Store::Net {
            return;
        }
        let value = record.value.as_deref();
        if record.key == EXIT {
            // The meter itself refuses to start on a record that cannot be read.
            self.exit = value.and_then(|value| Exit::read(value).ok().flatten());
        } else if record.key == STOPPED {
            self.is_stopped = value.is_some();
        } else if record.key.starts_with(ROUND) {
            if value.is_some() {
                self.rounds.insert(record.key.clone());
            } else {
                self.rounds.remove(&record.key);
            }
        }
    }
}

/// A meter whose standing others can watch.
pub(crate) struct Watched {
    meter: Meter,
    notes: Notes,
    standing: watch::Sender<Standing>,
}

impl Watched {
    /// A meter that was made from the records of `notes`.
    pub(crate) fn new(meter: Meter, notes: Notes) -> Self {
        let watched = Self {
            meter,
            notes,
            standing: watch::Sender::default(),
        };
        watched.publish();
        watched
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// The standing, and its changes.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    fn publish(&self) {
        let membership = self.meter.membership();
        let standing = Standing {
            members: membership.map_or(0, |log| log.size()),
            is_member: membership.is_some_and(|log| log.active(&self.meter.id()).is_some()),
            is_stopped: self.notes.is_stopped,
            open_rounds: self.notes.rounds.len(),
            exit: self.notes.exit,
        };
        self.standing.send_if_modified(|old| {
            let changed = *old != standing;
            *old = standing;
            changed
        });
    }
}

impl StateMachine for Watched {
    type Persist = Record;
    type Event = MeterEvent;
    type Command = MeterCommand;

    fn subscriptions(&self) -> Vec<String> {
        self.meter.subscriptions()
    }

    fn handle(&mut self, input: Input<MeterCommand>, now: Now) {
        self.meter.handle(input, now);
    }

    fn poll_output(&mut self) -> Option<Output<Record, MeterEvent>> {
        let output = self.meter.poll_output();
        match &output {
            Some(Output::Persist(record)) => self.notes.take(record),
            Some(_) => {}
            None => self.publish(),
        }
        output
    }
}
