//! A device that shows its total energy, as a pulse source: whatever reads it hands its
//! readings to a [`TotalSource`] through [`Readings`].

use std::collections::BTreeMap;
use std::sync::Arc;

use dcnet::units::{MilliwattHours, Pulses};
use tokio::sync::{mpsc, watch};

use super::total::{INSISTENT, Reading, Refusal, Refused, Totals};
use super::{NextBatch, PulseError, PulseSource};
use crate::clock;

/// Readings that wait for the register. What finds no room is dropped: the next one says it too.
const WAITING: usize = 64;

/// What has come from a device since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputStatistics {
    /// What is read: the port and its values, or broker and topic.
    pub source: Arc<str>,
    /// What to look at when nothing comes from there.
    pub advice: &'static str,
    /// Totals that were read.
    pub readings: u64,
    /// What could not be used, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Why nothing can come at present, such as a port that is gone or a broker that is down.
    pub trouble: Option<String>,
    /// Why the newest total was not taken, if it was not. Its figures are the household's alone.
    pub refused: Option<Refused>,
}

impl InputStatistics {
    /// How often there was a fault of this kind.
    pub fn fault(&self, kind: &str) -> u64 {
        self.faults.get(kind).copied().unwrap_or(0)
    }
}

/// Something that came in and is of no use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted under this name; the first of each kind is logged.
    pub kind: &'static str,
    /// What exactly, and what to do; for the log, so without any value that was read.
    pub detail: String,
}

impl Fault {
    /// A fault of a kind.
    pub fn new(kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
        }
    }
}

/// The end of the one who reads a device. It never waits.
#[derive(Clone, Debug)]
pub struct Readings {
    name: Arc<str>,
    sender: mpsc::Sender<Reading>,
    statistics: Arc<watch::Sender<InputStatistics>>,
}

impl Readings {
    /// The device shows this total now.
    pub fn reading(&self, energy: MilliwattHours) {
        self.statistics
            .send_modify(|statistics| statistics.readings += 1);
        let at = clock::monotonic();
        let _ = self.sender.try_send(Reading { energy, at });
    }

    /// Counts a fault, and logs the first of its kind.
    pub fn fault(&self, fault: &Fault) {
        count(&self.statistics, &self.name, fault);
    }

    /// Nothing can come at present for this reason, or can again.
    pub fn trouble(&self, trouble: Option<&str>) {
        self.statistics.send_if_modified(|statistics| {
            let changed = statistics.trouble.as_deref() != trouble;
            statistics.trouble = trouble.map(str::to_owned);
            changed
        });
    }

    /// What is read, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether nobody wants readings any more.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until nobody wants readings any more.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

fn count(statistics: &watch::Sender<InputStatistics>, name: &str, fault: &Fault) {
    let mut times = 0;
    statistics.send_modify(|statistics| {
        let counted = statistics.faults.entry(fault.kind).or_default();
        *counted += 1;
        times = *counted;
    });
    if times == 1 {
        tracing::warn!(
            input = name,
            "{}; further ones are only counted",
            fault.detail
        );
    } else {
        tracing::debug!(input = name, "{}", fault.detail);
    }
}

/// A device's total as a [`PulseSource`].
///
/// It ends with no error while there is a device to wait for: a port that is gone or a broker
/// that is down leaves its channel without values, and other channels go on.
#[derive(Debug)]
pub struct TotalSource {
    name: Arc<str>,
    totals: Totals,
    readings: mpsc::Receiver<Reading>,
    statistics: Arc<watch::Sender<InputStatistics>>,
    insists: bool,
}

impl TotalSource {
    /// A source called `name` in messages, and the other end. `advice` says what to look at when
    /// nothing comes.
    pub fn new(name: &str, advice: &'static str, totals: Totals) -> (Self, Readings) {
        let (sender, readings) = mpsc::channel(WAITING);
        let name: Arc<str> = name.into();
        let statistics = Arc::new(watch::Sender::new(InputStatistics {
            source: Arc::clone(&name),
            advice,
            ..InputStatistics::default()
        }));
        let source = Self {
            name: Arc::clone(&name),
            totals,
            readings,
            statistics: Arc::clone(&statistics),
            insists: false,
        };
        let ours = Readings {
            name,
            sender,
            statistics,
        };
        (source, ours)
    }

    /// What has come in so far.
    pub fn statistics(&self) -> InputStatistics {
        self.statistics.borrow().clone()
    }

    fn take(&mut self, reading: Reading) {
        let (monotonic, utc) = clock::both();
        let taken = self.totals.take(reading, monotonic, utc);
        let refusal = taken.err();
        let refused = refusal.as_ref().map(|refusal| refusal.why.clone());
        self.statistics.send_if_modified(|statistics| {
            let changed = statistics.refused != refused;
            statistics.refused = refused;
            changed
        });
        let Some(Refusal { why, in_a_row }) = refusal else {
            self.insists = false;
            return;
        };
        let text = format!("{why}; `meter-agent status` shows the figures");
        count(
            &self.statistics,
            &self.name,
            &Fault::new(why.kind(), &*text),
        );
        if in_a_row >= INSISTENT && !self.insists {
            self.insists = true;
            tracing::error!(input = %self.name, "{text}");
        }
    }
}

impl PulseSource for TotalSource {
    fn input(&self) -> Option<watch::Receiver<InputStatistics>> {
        Some(self.statistics.subscribe())
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            loop {
                if let Some(batch) = self.totals.next_batch() {
                    return Ok(batch);
                }
                match self.readings.recv().await {
                    Some(reading) => self.take(reading),
                    None => {
                        return Err(PulseError::Input {
                            input: self.name.to_string(),
                            problem: "its reader has ended".to_owned(),
                            advice: "Restart the agent",
                        });
                    }
                }
            }
        })
    }

    fn resume(&mut self, totals: &[Pulses]) {
        if let Some(total) = totals.get(self.totals.channel().0) {
            self.totals.resume(*total);
        }
    }
}
