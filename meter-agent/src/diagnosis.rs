//! What a stretch of counting says of a channel, in words for whoever set it up.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use dcnet::units::ImpulsesPerKwh;

use crate::pulse::LineView;
use crate::pulse::input::InputStatistics;

/// A share of rejected edges above this looks like interference.
const MANY_REJECTED: u64 = 4;

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Trouble {
    /// Active for longer than any pulse lasts.
    Stuck,
    /// Many edges are rejected.
    Bouncing,
    /// The kernel or this process did not keep up.
    Lost,
}

impl Trouble {
    /// All there is, the worst first.
    pub(crate) fn of(line: &LineView) -> Vec<Self> {
        let seen = line.statistics;
        let found = [
            (Self::Stuck, line.is_stuck),
            (
                Self::Bouncing,
                seen.rejected > MANY_REJECTED.max(seen.pulses / 10),
            ),
            (Self::Lost, seen.lost > 0),
        ];
        let found = found.into_iter().filter(|(_, is_so)| *is_so);
        found.map(|(trouble, _)| trouble).collect()
    }

    /// In a word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Stuck => "STUCK",
            Self::Bouncing => "BOUNCING",
            Self::Lost => "EDGES LOST",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stuck => {
                "the line is active all the time: S0+ and S0- swapped, a short circuit, or the \
                 wrong `active` level"
            }
            Self::Bouncing => {
                "many edges were rejected as too short: a long wire, a missing pull-up of 1 to \
                 4.7 kOhm, or a relay nearby; see docs/wiring.md"
            }
            Self::Lost => "edges got lost: the machine is too busy",
        })
    }
}

/// Watts of so many pulses in a time.
pub(crate) fn watts(pulses: u64, time: Duration, constant: ImpulsesPerKwh) -> f64 {
    pulses as f64 * 3.6e6 / (f64::from(constant.get()) * time.as_secs_f64())
}

/// A time in seconds, to a tenth.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

/// A line carried no pulse in a time.
pub(crate) fn no_pulse(time: Duration, constant: ImpulsesPerKwh) -> String {
    format!(
        "no pulse in {} s: at {} imp/kWh that is less than {} W. If the meter's LED blinks: \
         wiring, polarity, or another pin; else look for longer (`--seconds`)",
        seconds(time),
        constant.get(),
        watts(1, time, constant).ceil()
    )
}

/// What has come from a device that shows its total.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Input {
    /// The port, or broker and topic.
    pub(crate) source: String,
    /// What to look at when nothing comes.
    pub(crate) advice: String,
    /// Totals that were read.
    pub(crate) readings: u64,
    /// What could not be used, by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Why nothing can come at present.
    pub(crate) trouble: Option<String>,
    /// Why the newest total was not taken, with its figures.
    pub(crate) refused: Option<String>,
}

impl From<&InputStatistics> for Input {
    fn from(seen: &InputStatistics) -> Self {
        let faults = seen.faults.iter();
        Self {
            source: seen.source.to_string(),
            advice: seen.advice.to_owned(),
            readings: seen.readings,
            faults: faults.map(|(kind, n)| ((*kind).to_owned(), *n)).collect(),
            trouble: seen.trouble.clone(),
            refused: seen.refused.as_ref().map(|refused| refused.figures()),
        }
    }
}

impl Input {
    /// What has come since `before`.
    pub(crate) fn since(self, before: &Self) -> Self {
        let faults = self.faults.into_iter().filter_map(|(kind, times)| {
            let earlier = before.faults.get(&kind).copied().unwrap_or(0);
            let times = times.saturating_sub(earlier);
            (times > 0).then_some((kind, times))
        });
        Self {
            faults: faults.collect(),
            readings: self.readings.saturating_sub(before.readings),
            ..self
        }
    }

    /// How often there was something of no use.
    pub(crate) fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }

    /// The faults as the rest of a sentence; nothing if there were none.
    pub(crate) fn faults(&self) -> String {
        let faults = self.faults.iter();
        let told = faults.map(|(kind, times)| format!(", {kind}: {times}"));
        told.collect()
    }

    /// Nothing could be read in a time.
    pub(crate) fn no_reading(&self, time: Duration) -> String {
        let why = self.trouble.as_ref().unwrap_or(&self.advice);
        let (source, seconds, faults) = (&self.source, seconds(time), self.faults());
        format!("no reading of {source} in {seconds} s{faults}: {why}")
    }
}
