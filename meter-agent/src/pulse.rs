//! Pulses of a meter, from every kind of source, in one form: a [`Batch`] says
//! how many pulses a channel had in `[from, until)` of UTC and that there are no
//! others before `until`.
//!
//! A batch never reaches over a whole second of UTC. Every boundary of a round is
//! a whole second (`docs/protocol.md`, "A round"), so each pulse lies on one side of
//! every boundary without a list of pulse times.

use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use dcnet::time::{Period, Timestamp};
use dcnet::units::Pulses;
use tokio::sync::watch;

pub mod d0;
pub mod edge;
#[cfg(feature = "gpiocdev")]
pub mod gpiocdev;
pub mod input;
pub mod line;
pub mod loads;
pub mod mqtt;
pub mod obis;
mod open;
pub mod optical;
pub mod payload;
pub mod profile;
pub mod replay;
pub mod retried;
#[cfg(any(
    feature = "rppal",
    all(target_os = "linux", any(target_arch = "arm", target_arch = "aarch64"))
))]
pub mod rppal;
pub mod serial;
pub mod simulated;
pub mod sml;
pub mod total;

use input::InputStatistics;
pub use open::{Begin, begin_at, open};

/// The position of a channel in the configuration, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(pub usize);

/// The pulses of one channel in `[from, until)` of UTC, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    channel: Channel,
    from: Timestamp,
    until: Timestamp,
    monotonic: Range<Duration>,
    pulses: Pulses,
    last_pulse: Option<Duration>,
    is_catching_up: bool,
    ends_a_reading: bool,
    follows_a_gap: bool,
}

impl Batch {
    /// A batch; `None` if it is empty of time or reaches over a whole second of UTC. `monotonic`
    /// is the same time on the clock of [`crate::clock::monotonic`], on which the batches of a
    /// channel join whatever happens to the UTC clock.
    pub fn new(
        channel: Channel,
        utc: Range<Timestamp>,
        monotonic: Range<Duration>,
        pulses: Pulses,
    ) -> Option<Self> {
        let Range {
            start: from,
            end: until,
        } = utc;
        (from < until && until <= second_after(from)).then_some(Self {
            channel,
            from,
            until,
            monotonic,
            pulses,
            last_pulse: None,
            is_catching_up: false,
            ends_a_reading: false,
            follows_a_gap: false,
        })
    }

    /// The same batch, whose pulses came at any time before its end, unseen.
    #[must_use]
    pub fn catching_up(self) -> Self {
        Self {
            is_catching_up: true,
            ..self
        }
    }

    /// Whether its pulses came at any time before its end.
    pub fn is_catching_up(&self) -> bool {
        self.is_catching_up
    }

    /// The same batch, at whose end a reading of the device's total was taken.
    #[must_use]
    pub fn ending_a_reading(self) -> Self {
        Self {
            ends_a_reading: true,
            ..self
        }
    }

    /// Whether a reading of the device's total was taken at its end: of what the device counts
    /// from there on nothing is known before the next one.
    pub fn ends_a_reading(&self) -> bool {
        self.ends_a_reading
    }

    /// The same batch, before which there were pulses that nobody counted.
    #[must_use]
    pub fn following_a_gap(self) -> Self {
        Self {
            follows_a_gap: true,
            ..self
        }
    }

    /// Whether pulses between the channel's batch before and this one may be missing for good.
    pub fn follows_a_gap(&self) -> bool {
        self.follows_a_gap
    }

    /// The same batch, with the monotonic time at which its last pulse began, if that is
    /// known and it has any.
    #[must_use]
    pub fn with_last_pulse(self, last_pulse: Option<Duration>) -> Self {
        Self { last_pulse, ..self }
    }

    /// When its last pulse began, on the clock of [`crate::clock::monotonic`].
    pub fn last_pulse(&self) -> Option<Duration> {
        self.last_pulse
    }

    /// Whose pulses.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// First moment covered. It is the `until` of the channel's batch before,
    /// unless this is the first one or the UTC clock was stepped.
    pub fn from(&self) -> Timestamp {
        self.from
    }

    /// Every pulse before this moment has been delivered.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// The time it covers on the clock of [`crate::clock::monotonic`].
    pub fn monotonic(&self) -> Range<Duration> {
        self.monotonic.clone()
    }

    /// How many.
    pub fn pulses(&self) -> Pulses {
        self.pulses
    }
}

/// The first whole second of UTC after `at`.
pub(crate) fn second_after(at: Timestamp) -> Timestamp {
    Timestamp(
        (at.as_millis() / 1000)
            .saturating_add(1)
            .saturating_mul(1000),
    )
}

/// The length of a round; it may become known, or change, later.
pub type RoundLength = watch::Receiver<Option<Period>>;

/// How often a source in rounds of `period` says that there was nothing: at every multiple of
/// this in UTC. Each boundary of a round is such a multiple; nobody waits for the moments in
/// between, and every wake-up costs power for ten years.
pub(crate) fn turn(period: Option<Period>) -> Duration {
    let divides = |seconds: &u32| period.is_some_and(|p| p.as_secs().is_multiple_of(*seconds));
    let seconds = [30, 10, 5, 2].into_iter().find(divides).unwrap_or(1);
    Duration::from_secs(seconds.into())
}

/// What [`PulseSource::next`] returns.
pub type NextBatch<'a> = Pin<Box<dyn Future<Output = Result<Batch, PulseError>> + Send + 'a>>;

/// What can be seen of a GPIO line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineView {
    /// Pulses and rejected, lost and missed edges since the line was opened.
    pub statistics: edge::EdgeStatistics,
    /// Whether the line is at its active level, which it is during a pulse.
    pub is_active: bool,
    /// Whether it has been for longer than any pulse lasts.
    pub is_stuck: bool,
}

/// Where the pulses of one channel come from.
pub trait PulseSource: Send {
    /// The GPIO line, if it reads one.
    fn line(&self) -> Option<watch::Receiver<LineView>> {
        None
    }

    /// What has come from the device whose total it reads, if it reads one.
    fn input(&self) -> Option<watch::Receiver<InputStatistics>> {
        None
    }

    /// Why it cannot be read at present, if it is one that is opened again then.
    fn trouble(&self) -> Option<watch::Receiver<Option<String>>> {
        None
    }

    /// Waits for the next batch. With or without pulses, all seconds up to a boundary of a
    /// round are delivered when it has passed, and at least every 30 seconds while the UTC
    /// clock runs. A source that reads a device's total delivers the seconds since the
    /// reading before with each reading.
    ///
    /// Cancel-safe: a dropped future has taken nothing out of the source.
    ///
    /// # Errors
    /// After an error the source is of no more use and has to be opened again.
    fn next(&mut self) -> NextBatch<'_>;

    /// Told once before the first [`PulseSource::next`]: the totals of the register's channels, in
    /// their order. Only a source that reads a device's total needs its own.
    fn resume(&mut self, _totals: &[Pulses]) {}

    /// Told once before the first [`PulseSource::next`] whose boundaries its batches are for.
    /// Without it a source delivers every second.
    fn serve(&mut self, _rounds: &RoundLength) {}
}

/// Why a source cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum PulseError {
    /// The load file cannot be opened or read.
    #[error("cannot read the load file {}: {cause}", path.display())]
    LoadFile {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: std::io::Error,
    },
    /// The load file says something else than Wh per interval.
    #[error("{}, line {line}: {problem}", path.display())]
    LoadRow {
        /// Which file.
        path: PathBuf,
        /// Counted from 1, the heading included.
        line: u64,
        /// What is wrong, and what should be there.
        problem: String,
    },
    /// The load file has no such column or row.
    #[error("{}: {problem}", path.display())]
    LoadRange {
        /// Which file.
        path: PathBuf,
        /// What was asked for and what there is.
        problem: String,
    },
    /// A replay was told to begin in the middle of an interval.
    #[error(
        "a replay cannot begin at {begin} ms: that is no multiple of its period of \
         {period} s; begin at the start of a round"
    )]
    Begin {
        /// Milliseconds since the epoch.
        begin: u64,
        /// Seconds.
        period: u32,
    },
    /// A GPIO line cannot be opened or read.
    #[error("GPIO line {line}: {problem}. {advice}")]
    Gpio {
        /// As it is named in the configuration.
        line: String,
        /// What the library or the kernel says.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// What reads a device's total cannot be started, or has ended.
    #[error("{input}: {problem}. {advice}")]
    Input {
        /// The port, or broker and topic.
        input: String,
        /// What went wrong.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// The program was built without this kind of source.
    #[error(
        "this meter-agent was built without the {0} source; build it with `--features {0}` \
         or choose another source"
    )]
    NotBuilt(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boundary_of_a_round_is_the_end_of_a_turn() {
        let of = |seconds| turn(Period::from_secs(seconds)).as_secs();
        assert_eq!(
            [1, 2, 4, 15, 20, 60, 900, 86_400].map(of),
            [1, 2, 2, 5, 10, 30, 30, 30]
        );
        for seconds in (1..=86_400).filter(|&seconds| Period::from_secs(seconds).is_some()) {
            assert_eq!(u64::from(seconds) % of(seconds), 0, "{seconds}");
        }
        assert_eq!(
            turn(None),
            Duration::from_secs(1),
            "any second can be a boundary"
        );
    }

    #[test]
    fn a_batch_stays_within_a_second() {
        let batch = |from, until| {
            let utc = Timestamp(from)..Timestamp(until);
            Batch::new(Channel(0), utc, Duration::ZERO..Duration::ZERO, Pulses(1)).is_some()
        };
        assert!(batch(1000, 2000));
        assert!(batch(1999, 2000));
        assert!(!batch(1999, 2001));
        assert!(!batch(1000, 2001));
        assert!(!batch(1000, 1000));
        assert!(!batch(1001, 1000));
    }
}
