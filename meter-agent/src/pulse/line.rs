//! A GPIO line as a pulse source, whatever library reads it: a thread waits for edges,
//! the source filters them and cuts time into batches.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use dcnet::units::Pulses;
use link::service::until_turn;
use tokio::sync::{mpsc, watch};

use super::edge::{Edge, EdgeFilter, EdgeLimits};
use super::{
    Batch, Channel, LineView, NextBatch, PulseError, PulseSource, RoundLength, second_after, turn,
};
use crate::clock::{self, UtcMap};

/// How long an edge may take from the wire into this process. A boundary is complete
/// so much after it.
pub const SLACK: Duration = Duration::from_millis(100);

/// While edges come without a pause, a source is told so often how far it is.
const BUSY: Duration = Duration::from_millis(50);

/// Which line of the machine. Never a chip number: those change with kernel and board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineName {
    /// By the name the board gives the line, such as `GPIO17`.
    Name(String),
    /// By the label of its chip, such as `pinctrl-bcm2711`, and its offset there.
    Offset {
        /// The chip's label.
        chip: String,
        /// From 0.
        offset: u32,
    },
}

impl std::fmt::Display for LineName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Offset { chip, offset } => write!(f, "{offset} of chip {chip}"),
        }
    }
}

/// What is common to lines of all libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineOptions {
    /// Whether a pulse pulls the line low, as an S0 output between pin and ground does.
    pub active_low: bool,
    /// The resistor inside the chip.
    pub bias: Bias,
    /// Debounce by the kernel; zero for none. Edges are stamped so much later.
    pub debounce: Duration,
    /// Minimum width and pause.
    pub limits: EdgeLimits,
}

/// The resistor inside the chip; about 50 kΩ on a Raspberry Pi, which is weak for long wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bias {
    /// None: there is an external resistor.
    Disabled,
    /// To 3.3 V.
    #[default]
    PullUp,
    /// To ground.
    PullDown,
}

/// Waits for edges of one or more lines; runs on a thread of its own.
pub trait EdgeReader: Send + 'static {
    /// The next edge and the index of its line; `None` if none came within `wait`. The edges
    /// of a line come in their order.
    ///
    /// # Errors
    /// [`PulseError::Gpio`]; the reader is not asked again.
    fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError>;
}

/// What the thread tells a source.
#[derive(Debug)]
enum Report {
    /// The line's edges since the report before. There are no others of those that had come in
    /// at this monotonic time.
    Drained(Vec<Edge>, Duration),
    Failed(String),
}

/// A line as it is when its reader starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Whose pulses it carries.
    pub channel: Channel,
    /// For messages.
    pub name: String,
    /// Minimum width and pause.
    pub limits: EdgeLimits,
    /// Whether it is active now.
    pub active: bool,
}

/// Starts the thread for `reader`. `lines` are in the order of its indices, as
/// are the sources. The thread ends when all of them are dropped.
///
/// # Errors
/// [`PulseError::Gpio`] if there can be no further thread.
pub fn start(reader: impl EdgeReader, lines: Vec<Line>) -> Result<Vec<LineSource>, PulseError> {
    let settling = |line: &Line| line.limits.width.max(line.limits.pause);
    // So late after an edge it is a pulse or none, and those who watch can see it.
    let after_edge =
        lines.iter().map(settling).max().unwrap_or_default() + SLACK + Duration::from_millis(1);
    let rounds = Arc::default();
    let (senders, sources): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .map(|line| {
            let (sender, reports) = mpsc::unbounded_channel();
            (sender, LineSource::new(line, reports, Arc::clone(&rounds)))
        })
        .unzip();
    let name = sources
        .first()
        .map_or_else(String::new, |source| source.name.clone());
    thread::Builder::new()
        .name("gpio-edges".to_owned())
        .spawn(move || read_edges(reader, after_edge, &rounds, &senders))
        .map_err(|error| PulseError::Gpio {
            line: name,
            problem: format!("cannot start a thread: {error}"),
            advice: "Raise the limit of tasks for this service",
        })?;
    Ok(sources)
}

/// Set when a source is told whose boundaries its batches are for.
type SharedRounds = Arc<OnceLock<RoundLength>>;

/// Until the next turn is complete. Nobody needs to know of silence before.
fn until_complete(utc: Duration, turn: Duration) -> Duration {
    until_turn(utc.saturating_sub(SLACK + Duration::from_millis(1)), turn)
}

/// Ends when no source is left to report to, or with the first error.
fn read_edges(
    mut reader: impl EdgeReader,
    after_edge: Duration,
    rounds: &OnceLock<RoundLength>,
    senders: &[mpsc::UnboundedSender<Report>],
) {
    // Sent together when they say something: to wake the sources for each edge costs more than
    // all that they do with it.
    let mut edges = vec![Vec::new(); senders.len()];
    let silence = || {
        let period = rounds.get().and_then(|rounds| *rounds.borrow());
        until_complete(clock::utc(), turn(period))
    };
    // When the first of the edges came that have not been told of.
    let mut begun = None;
    let mut wait = Duration::ZERO;
    while !senders.iter().all(mpsc::UnboundedSender::is_closed) {
        let asked = clock::monotonic();
        let drained = match reader.read(wait) {
            Ok(None) if wait.is_zero() => {
                wait = silence();
                asked
            }
            // Only a look without waiting tells that there is nothing at the time of the look.
            Ok(None) => {
                wait = Duration::ZERO;
                continue;
            }
            Ok(Some((index, edge))) => {
                if let Some(edges) = edges.get_mut(index) {
                    edges.push(edge);
                }
                wait = after_edge.min(silence());
                // A line that never falls silent must not hold up the others. Edges are
                // read in order, so after a stall only those up to this one are here.
                if asked.saturating_sub(*begun.get_or_insert_with(clock::monotonic)) < BUSY {
                    continue;
                }
                asked.min(edge.at)
            }
            Err(error) => {
                let problem = error.to_string();
                for sender in senders {
                    let _ = sender.send(Report::Failed(problem.clone()));
                }
                return;
            }
        };
        begun = None;
        for (sender, edges) in senders.iter().zip(&mut edges) {
            let _ = sender.send(Report::Drained(std::mem::take(edges), drained));
        }
    }
}

/// One line as a [`PulseSource`].
#[derive(Debug)]
pub struct LineSource {
    channel: Channel,
    name: String,
    filter: EdgeFilter,
    map: UtcMap,
    reports: mpsc::UnboundedReceiver<Report>,
    rounds: SharedRounds,
    /// Pulses that are in no batch yet, by monotonic time.
    pulses: VecDeque<Duration>,
    batches: VecDeque<Batch>,
    view: watch::Sender<LineView>,
}

impl LineSource {
    fn new(line: Line, reports: mpsc::UnboundedReceiver<Report>, rounds: SharedRounds) -> Self {
        let mut map = UtcMap::new();
        let (start, utc) = clock::both();
        map.stretch(start, start, utc);
        Self {
            channel: line.channel,
            name: line.name,
            filter: EdgeFilter::new(line.limits, line.active, start),
            map,
            reports,
            rounds,
            pulses: VecDeque::new(),
            batches: VecDeque::new(),
            view: watch::Sender::default(),
        }
    }

    /// Lets those see it who watch this from before the line was opened.
    pub(super) fn show_to(&mut self, view: watch::Sender<LineView>) {
        self.view = view;
        self.show();
    }

    /// Lets others see what the filter has seen.
    fn show(&self) {
        let view = LineView {
            statistics: self.filter.statistics(),
            is_active: self.filter.is_active(),
            is_stuck: self.filter.is_stuck(),
        };
        self.view.send_if_modified(|old| {
            let changed = *old != view;
            *old = view;
            changed
        });
    }

    fn take(&mut self, report: Report) -> Result<(), PulseError> {
        match report {
            Report::Drained(edges, at) => {
                self.edges(edges);
                let (monotonic, utc) = clock::both();
                self.drained(at, monotonic, utc);
            }
            Report::Failed(problem) => {
                return Err(PulseError::Gpio {
                    line: self.name.clone(),
                    problem: format!("its edges cannot be read any more: {problem}"),
                    advice: "Check wiring and permissions, then restart the agent",
                });
            }
        }
        Ok(())
    }

    fn edges(&mut self, edges: impl IntoIterator<Item = Edge>) {
        for edge in edges {
            self.pulses.extend(self.filter.edge(edge));
        }
    }

    /// All edges up to `at` on the monotonic clock less the slack are here: cut the
    /// time up to there into batches.
    fn drained(&mut self, at: Duration, monotonic_now: Duration, utc_now: Duration) {
        let complete = at.saturating_sub(SLACK);
        self.pulses.extend(self.filter.advance(complete));
        self.show();
        if self.filter.newly_stuck() {
            tracing::warn!(
                line = self.name,
                "the line stays active: short circuit, swapped polarity or wrong active level?"
            );
        }
        let end = complete.min(self.filter.settled_until());
        let Some(stretch) = self.map.stretch(end, monotonic_now, utc_now) else {
            return;
        };
        if stretch.stepped {
            tracing::warn!(
                line = self.name,
                utc_ms = stretch.from.as_millis(),
                "the UTC clock was stepped; boundaries in between have no value"
            );
        }
        let (mut from, mut begin) = (stretch.from, stretch.begin);
        while from < stretch.until {
            let until = stretch.until.min(second_after(from));
            let (mut count, mut last) = (0, None);
            while let Some(at) = self.pulses.pop_front_if(|at| stretch.utc_of(*at) < until) {
                count += 1;
                last = Some(at);
            }
            let end = stretch.monotonic_of(until);
            let batch = Batch::new(self.channel, from..until, begin..end, Pulses(count));
            self.batches
                .extend(batch.map(|batch| batch.with_last_pulse(last)));
            (from, begin) = (until, end);
        }
    }
}

impl PulseSource for LineSource {
    fn line(&self) -> Option<watch::Receiver<LineView>> {
        Some(self.view.subscribe())
    }

    fn serve(&mut self, rounds: &RoundLength) {
        // Every line of a reader serves the same register.
        let _ = self.rounds.set(rounds.clone());
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            loop {
                if let Some(batch) = self.batches.pop_front() {
                    return Ok(batch);
                }
                match self.reports.recv().await {
                    Some(report) => self.take(report)?,
                    None => {
                        return Err(PulseError::Gpio {
                            line: self.name.clone(),
                            problem: "its reader has ended".to_owned(),
                            advice: "Restart the agent",
                        });
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use dcnet::time::Timestamp;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn source() -> LineSource {
        let (_, reports) = mpsc::unbounded_channel();
        let mut source = LineSource::new(
            Line {
                channel: Channel(0),
                name: "GPIO17".to_owned(),
                limits: EdgeLimits::default(),
                active: false,
            },
            reports,
            SharedRounds::default(),
        );
        source.filter = EdgeFilter::new(EdgeLimits::default(), false, Duration::ZERO);
        source.map = UtcMap::new();
        source
            .map
            .stretch(Duration::ZERO, Duration::ZERO, 10_000 * MS);
        source
    }

    fn pulse(source: &mut LineSource, at: u32) {
        for (at, active) in [(at, true), (at + 30, false)] {
            source.edges([Edge {
                at: at * MS,
                active,
                sequence: None,
            }]);
        }
    }

    fn batches(source: &mut LineSource) -> Vec<(u64, u64, u64)> {
        source
            .batches
            .drain(..)
            .map(|b| (b.from().as_millis(), b.until().as_millis(), b.pulses().0))
            .collect()
    }

    #[test]
    fn silence_is_told_once_a_turn_when_that_is_complete() {
        for (utc, turn, wait) in [
            (10_000, 1000, 101),
            (10_100, 1000, 1),
            (10_101, 1000, 1000),
            (10_102, 1000, 999),
            (10_999, 1000, 102),
            (10_101, 5000, 5000),
            (12_000, 5000, 3101),
        ] {
            assert_eq!(until_complete(utc * MS, turn * MS), wait * MS, "{utc}");
        }
    }

    #[test]
    fn a_pulse_on_the_boundary_belongs_to_the_later_second() {
        let mut source = source();
        pulse(&mut source, 999);
        pulse(&mut source, 1999);
        pulse(&mut source, 2000 + 50);
        source.drained(2600 * MS, 2600 * MS, 12_600 * MS);
        assert_eq!(
            batches(&mut source),
            [
                (10_000, 11_000, 1),
                (11_000, 12_000, 1),
                (12_000, 12_500, 1)
            ]
        );
        let mut source = self::source();
        pulse(&mut source, 1000);
        source.drained(2000 * MS, 2000 * MS, 12_000 * MS);
        assert_eq!(
            batches(&mut source),
            [(10_000, 11_000, 0), (11_000, 11_900, 1)]
        );
    }

    #[test]
    fn time_is_complete_only_up_to_the_slack_and_an_unsettled_pulse() {
        let mut source = source();
        source.drained(1050 * MS, 1050 * MS, 11_050 * MS);
        assert_eq!(batches(&mut source), [(10_000, 10_950, 0)]);
        source.edges([Edge {
            at: 995 * MS,
            active: true,
            sequence: None,
        }]);
        source.drained(1110 * MS, 1110 * MS, 11_110 * MS);
        assert_eq!(
            batches(&mut source),
            [(10_950, 10_995, 0)],
            "it might still become a pulse"
        );
        source.drained(1200 * MS, 1200 * MS, 11_200 * MS);
        assert_eq!(
            batches(&mut source),
            [(10_995, 11_000, 1), (11_000, 11_100, 0)]
        );
    }

    #[test]
    fn a_clock_step_loses_no_pulse() {
        let mut source = source();
        pulse(&mut source, 500);
        source.drained(1000 * MS, 1000 * MS, 11_000 * MS);
        pulse(&mut source, 1500);
        source.drained(2000 * MS, 2000 * MS, 7_212_000 * MS);
        pulse(&mut source, 2500);
        source.drained(3000 * MS, 3000 * MS, 13_000 * MS);
        let all = batches(&mut source);
        assert_eq!(all.iter().map(|b| b.2).sum::<u64>(), 3);
        assert!(all.iter().any(|b| b.0 == 7_210_900), "{all:?}");
        assert_eq!(all.last().map(|b| b.1), Some(12_900));
    }

    struct Scripted(blocking::Receiver<Result<(usize, Edge), PulseError>>);

    impl EdgeReader for Scripted {
        fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError> {
            match self.0.recv_timeout(wait) {
                Ok(result) => result.map(Some),
                Err(_) => Ok(None),
            }
        }
    }

    /// A line with edges at these times, which fails when all has been told.
    struct Wire {
        edges: VecDeque<(Duration, bool)>,
        is_over: bool,
    }

    impl EdgeReader for Wire {
        fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError> {
            let until = clock::monotonic() + wait;
            let Some((at, active)) = self.edges.pop_front_if(|(at, _)| *at <= until) else {
                if self.is_over {
                    return Err(PulseError::NotBuilt("test"));
                }
                self.is_over = self.edges.is_empty() && wait.is_zero();
                thread::sleep(wait);
                return Ok(None);
            };
            thread::sleep(at.saturating_sub(clock::monotonic()));
            let edge = Edge {
                at,
                active,
                sequence: None,
            };
            Ok(Some((0, edge)))
        }
    }

    /// Each report wakes the source up.
    #[test]
    fn a_pulse_of_any_length_is_one_report() {
        let (_period, period) = watch::channel(dcnet::time::Period::from_secs(900));
        let rounds = OnceLock::from(period);
        for length in [30, 100] {
            // Not while a turn ends, which is told too.
            let left = until_complete(clock::utc(), 30_000 * MS);
            let after = if left < 1000 * MS {
                left
            } else {
                Duration::ZERO
            };
            let begin = clock::monotonic() + after + 50 * MS;
            let edges = [(begin, true), (begin + length * MS, false)];
            let wire = Wire {
                edges: edges.into(),
                is_over: false,
            };
            let (sender, mut reports) = mpsc::unbounded_channel();
            read_edges(wire, 121 * MS, &rounds, &[sender]);
            let mut told = Vec::new();
            while let Ok(Report::Drained(edges, _)) = reports.try_recv() {
                if edges.len() + told.len() > 0 {
                    told.push(edges.len());
                }
            }
            assert_eq!(told, [2], "{length} ms");
        }
    }

    #[tokio::test]
    async fn two_lines_of_one_reader_are_kept_apart_and_errors_reach_both() {
        let (wire, script) = blocking::channel();
        let lines = [0, 1].map(|index| Line {
            channel: Channel(index),
            name: format!("GPIO{index}"),
            limits: EdgeLimits::default(),
            active: false,
        });
        let mut sources = start(Scripted(script), lines.into()).unwrap();
        let now = clock::monotonic();
        for (line, after, active) in [(1, 10, true), (1, 40, false)] {
            let at = now + after * MS;
            let edge = Edge {
                at,
                active,
                sequence: None,
            };
            wire.send(Ok((line, edge))).unwrap();
        }
        let until = clock::utc_timestamp().plus(Duration::from_millis(300));
        for (source, expected) in sources.iter_mut().zip([0, 1]) {
            let mut pulses = 0;
            let mut position = Timestamp(0);
            while position < until {
                let batch = source.next().await.unwrap();
                pulses += batch.pulses().0;
                position = batch.until();
            }
            assert_eq!(pulses, expected);
        }
        wire.send(Err(PulseError::NotBuilt("test"))).unwrap();
        for source in &mut sources {
            while source.next().await.is_ok() {}
        }
    }
}
