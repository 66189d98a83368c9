//! Where a meter stands in its net, in figures: what the household is told while it waits.

use dcnet::meter::{ExitProgress, Meter, MeterCommand, MeterEvent, Stopped};
use dcnet::output::{Input, Output, Record, StateMachine};
use dcnet::time::Now;
use dcnet::topic::NetId;
use tokio::sync::watch;

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
    pub exit: Option<ExitProgress>,
}

/// The meter of this state has left its net for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this meter has left net {0}: the exit is done and its keys are erased; it counts for this \
     household only. To take part again, move {0}.db in its state directory away (never \
     register/), and restart it"
)]
pub struct HasLeft(
    /// The net.
    pub NetId,
);

/// A meter whose standing others can watch.
pub(crate) struct Watched {
    meter: Meter,
    standing: watch::Sender<Standing>,
}

impl Watched {
    pub(crate) fn new(meter: Meter) -> Self {
        Self::told_to(meter, watch::Sender::default())
    }

    /// As [`Self::new`], for those who watch another one already.
    pub(crate) fn told_to(meter: Meter, standing: watch::Sender<Standing>) -> Self {
        let watched = Self { meter, standing };
        watched.publish();
        watched
    }

    /// For the meter that takes this one's place.
    pub(crate) fn teller(&self) -> watch::Sender<Standing> {
        self.standing.clone()
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
            is_stopped: self.meter.stopped().is_some_and(Stopped::is_for_good),
            open_rounds: self.meter.open_rounds().len(),
            exit: self.meter.exit(),
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
        if output.is_none() {
            self.publish();
        }
        output
    }
}
