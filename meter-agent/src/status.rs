//! What the household may see of its agent at a moment: one record that the page, the
//! `status` command and the metrics are made of.
//!
//! It holds readings, so it goes to the household only: to its own page, and through a socket
//! that only the agent's user may open.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dcnet::meter::{ExitProgress, Floors};
use dcnet::time::Timestamp;
use link::Clock;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agent::Pause;
use crate::clock;
use crate::history::Days;
use crate::identity::RENEWAL;
use crate::power::Power;
use crate::pulse::LineView;
use crate::pulse::input::InputStatistics;
use crate::pulse::total::Refused;
use crate::reach::{Enrolled, NoLinkView, Reach};
use crate::register::counting::Counted;
use crate::register::{ReadingLog, RegisterChannel, RegisterError, SetReading};
use crate::standing::Standing;

mod alarm_file;
mod alarms;
mod checks;
mod recorder;
#[cfg(test)]
pub(crate) mod samples;

pub use alarm_file::AlarmFile;
pub use alarms::AlarmView;
pub use checks::{CheckState, CheckView, Stage};
pub use recorder::{PolicyView, Recorder, RoundView, StepView, ValueView};

/// A moment of an agent.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Of this program.
    pub version: &'static str,
    /// The meter's id in its net, if its enrolment could be read since the start.
    pub meter: Option<String>,
    /// The net, likewise.
    pub net: Option<String>,
    /// When the first of the certificates that its link needs ends, likewise; milliseconds
    /// since 1970.
    pub certificate_end_ms: Option<u64>,
    /// Whether it is time to have that renewed.
    pub is_renewal_due: bool,
    /// Milliseconds since 1970 by the agent's clock.
    pub utc_ms: u64,
    /// Whether that clock is known to be right.
    pub synchronised: bool,
    /// Whether it jumped ahead and the household has not said yet that it is right.
    pub clock_unconfirmed: bool,
    /// Seconds since the agent was started.
    pub uptime_s: u64,
    /// Days for which the register's course is kept on disk; 0 for none.
    pub history_days: u32,
    /// Days before today that there may be something of, on disk or in memory.
    pub shown_days: u32,
    /// What is counted, in the order of the configuration.
    pub channels: Vec<ChannelView>,
    /// Pulses that a crash would lose.
    pub unsaved_pulses: u64,
    /// Why the register cannot be saved at present.
    pub save_error: Option<String>,
    /// The way to the broker.
    pub link: LinkView,
    /// Why there is none at all.
    pub no_link: Option<NoLinkView>,
    /// The net's rules, once they are known.
    pub policy: Option<PolicyView>,
    /// What this household insists on.
    pub floors: FloorsView,
    /// Members of the net, as far as the log is known.
    pub members: u32,
    /// Whether this meter is one of them.
    pub is_member: bool,
    /// Whether an alarm has stopped it for good.
    pub is_stopped: bool,
    /// Rounds that it takes part in and that are neither final nor closed.
    pub open_rounds: usize,
    /// Neighbours that this meter drew, as of its last submission.
    pub drawn: Option<usize>,
    /// Those of them whose pads hid it.
    pub live: Option<usize>,
    /// Whether the household has paused it.
    pub paused: bool,
    /// The exit under way, or done.
    pub exit: Option<ExitView>,
    /// The last rounds, newest first.
    pub rounds: Vec<RoundView>,
    /// What was checked in the last round in which something left the house, or was to.
    pub checks: Vec<CheckView>,
    /// Newest first.
    pub alarms: Vec<AlarmView>,
    /// Inputs that the meter refused since the start.
    pub refused: u64,
}

/// One channel.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelView {
    /// As in the configuration.
    pub name: String,
    /// Pulses per kWh.
    pub impulses_per_kwh: u32,
    /// The register's total.
    pub pulses: u64,
    /// The same in mWh; unknown until a device has shown its first total.
    pub energy_mwh: Option<u64>,
    /// What the meter's own display should show, in mWh; unknown until the household has said
    /// it once, or a device has shown its first total.
    pub reading_mwh: Option<u64>,
    /// Its power.
    pub power: Option<Power>,
    /// Its GPIO line, if it reads one.
    pub line: Option<LineStatus>,
    /// Why that line cannot be read at present.
    pub line_trouble: Option<String>,
    /// Its input, if it reads a device's total.
    pub input: Option<InputView>,
}

/// A GPIO line.
#[derive(Clone, Debug, Serialize)]
pub struct LineStatus {
    /// Whether it is at the level that it has during a pulse.
    pub is_active: bool,
    /// Whether it has been for longer than any pulse lasts.
    pub is_stuck: bool,
    /// Since the agent was started.
    pub pulses: u64,
    /// Edges of pulses or pauses that were too short.
    pub rejected: u64,
    /// Edges that are missing.
    pub lost: u64,
}

/// What has come from a device that shows a total.
#[derive(Clone, Debug, Serialize)]
pub struct InputView {
    /// The port, or broker and topic.
    pub source: String,
    /// What to look at when nothing comes.
    pub advice: &'static str,
    /// Totals that were read.
    pub readings: u64,
    /// What could not be used, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Why nothing can come at present.
    pub trouble: Option<String>,
    /// Why the newest total was not taken, with its figures.
    pub refused: Option<String>,
}

impl From<&InputStatistics> for InputView {
    fn from(statistics: &InputStatistics) -> Self {
        Self {
            source: statistics.source.to_string(),
            advice: statistics.advice,
            readings: statistics.readings,
            faults: statistics.faults.clone(),
            trouble: statistics.trouble.clone(),
            refused: statistics.refused.as_ref().map(Refused::figures),
        }
    }
}

/// The link to the broker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkView {
    /// Whether messages go both ways.
    pub is_connected: bool,
    /// In one line, for people.
    pub text: String,
}

/// What a household insists on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FloorsView {
    /// Meters in a sum.
    pub minimum_group: u32,
    /// Full drawn edges.
    pub minimum_neighbours: u32,
    /// Of the meters seen lately, in percent.
    pub minimum_presence_percent: u32,
    /// Seconds.
    pub minimum_period_s: u32,
    /// Submissions left out per day.
    pub max_exclusions_per_day: u32,
    /// Submissions left out per month, in percent.
    pub max_exclusions_per_month_percent: u32,
}

impl From<Floors> for FloorsView {
    fn from(floors: Floors) -> Self {
        Self {
            minimum_group: floors.minimum_group,
            minimum_neighbours: floors.minimum_neighbours,
            minimum_presence_percent: floors.minimum_presence,
            minimum_period_s: floors.minimum_period,
            max_exclusions_per_day: floors.exclusions_per_day,
            max_exclusions_per_month_percent: floors.exclusions_per_month,
        }
    }
}

/// How far an exit is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ExitView {
    /// Whether the log says so.
    pub left: bool,
    /// Former neighbours.
    pub neighbours: u32,
    /// Those that have not confirmed that they erased the pair key.
    pub awaited: u32,
    /// Whether everything is erased.
    pub done: bool,
}

impl From<ExitProgress> for ExitView {
    fn from(exit: ExitProgress) -> Self {
        Self {
            left: exit.left,
            neighbours: exit.neighbours,
            awaited: exit.awaited,
            done: exit.done,
        }
    }
}

/// Where the parts of a [`Status`] come from. Clones see the same agent.
#[derive(Clone, Debug)]
pub struct View {
    pub(crate) enrolled: watch::Receiver<Option<Enrolled>>,
    pub(crate) floors: Floors,
    pub(crate) clock: Clock,
    pub(crate) started: Duration,
    pub(crate) channels: Vec<RegisterChannel>,
    pub(crate) counted: watch::Receiver<Counted>,
    pub(crate) lines: Vec<Option<watch::Receiver<LineView>>>,
    pub(crate) troubles: Vec<Option<watch::Receiver<Option<String>>>>,
    pub(crate) inputs: Vec<Option<watch::Receiver<InputStatistics>>>,
    pub(crate) reach: watch::Receiver<Reach>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) alarm_file: Arc<AlarmFile>,
    pub(crate) reading_log: Arc<ReadingLog>,
    pub(crate) pause: Pause,
    pub(crate) link_counters: Arc<link::Counters>,
}

impl View {
    /// What has been counted, and the changes.
    pub fn counted(&self) -> watch::Receiver<Counted> {
        self.counted.clone()
    }

    /// What is counted.
    pub fn channels(&self) -> &[RegisterChannel] {
        &self.channels
    }

    /// The link's counters at this moment.
    pub fn link_totals(&self) -> link::Totals {
        self.link_counters.totals()
    }

    /// The moment by the agent's clock, if that is known to be right.
    pub fn utc(&self) -> Option<Timestamp> {
        let now = self.clock.now();
        now.synchronised.then_some(now.utc)
    }

    /// The readings that were set, in the order of time.
    ///
    /// # Errors
    /// As [`ReadingLog::entries`].
    pub fn set_readings(&self) -> Result<Vec<SetReading>, RegisterError> {
        self.reading_log.entries()
    }

    /// Forgets what the household may delete, on the disk too: readings, rounds that are over,
    /// alarms. What says how the meter stands, and from where it counts on, stays.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.alarm_file.forget(&self.recorder)?;
        self.reading_log.forget()
    }

    /// The household has said that the clock is right.
    pub fn clock_is_confirmed(&self) {
        self.recorder.clock_is_confirmed();
    }

    /// This moment. `days` says for how long there is the register's course.
    pub fn status(&self, days: Days) -> Status {
        let now = self.clock.now();
        let standing = self.standing.borrow().clone();
        let reach = self.reach.borrow().clone();
        let enrolled = *self.enrolled.borrow();
        let counted = self.counted.borrow().clone();
        let recorded = self.recorder.view();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            meter: enrolled.map(|enrolled| enrolled.meter.to_string()),
            net: enrolled.map(|enrolled| enrolled.net.to_string()),
            certificate_end_ms: enrolled.map(|enrolled| enrolled.end.as_millis()),
            is_renewal_due: now.synchronised
                && !standing.exit.is_some_and(|exit| exit.done)
                && enrolled.is_some_and(|enrolled| now.utc.plus(RENEWAL) > enrolled.end),
            utc_ms: now.utc.as_millis(),
            synchronised: now.synchronised,
            clock_unconfirmed: recorded.clock_unconfirmed,
            uptime_s: clock::monotonic().saturating_sub(self.started).as_secs(),
            history_days: days.on_disk,
            shown_days: days.shown,
            channels: self.channel_views(&counted),
            unsaved_pulses: counted.unsaved,
            save_error: counted.save_error,
            link: LinkView {
                is_connected: reach.is_connected(),
                text: reach.to_string(),
            },
            no_link: NoLinkView::of(&reach),
            policy: recorded.policy,
            floors: self.floors.into(),
            members: standing.members,
            is_member: standing.is_member,
            is_stopped: standing.is_stopped,
            open_rounds: standing.open_rounds,
            drawn: recorded.drawn,
            live: recorded.live,
            paused: self.pause.is_paused(),
            exit: standing.exit.map(ExitView::from),
            rounds: recorded.rounds,
            checks: recorded.checks,
            alarms: recorded.alarms,
            refused: recorded.refused,
        }
    }

    fn channel_views(&self, counted: &Counted) -> Vec<ChannelView> {
        let now = clock::monotonic();
        let views = self.channels.iter().enumerate().map(|(place, channel)| {
            let counted = counted.channels.get(place);
            let known = counted.filter(|counted| counted.is_known());
            let read = known.filter(|counted| counted.is_reading_set);
            let line = self.lines.get(place).and_then(Option::as_ref);
            let input = self.inputs.get(place).and_then(Option::as_ref);
            let trouble = self.troubles.get(place).and_then(Option::as_ref);
            let line_trouble = trouble.and_then(|trouble| trouble.borrow().clone());
            // Of a line that is not read no pulse says nothing.
            let power = counted.filter(|_| line_trouble.is_none());
            ChannelView {
                name: channel.name.clone(),
                impulses_per_kwh: channel.constant.get(),
                pulses: counted.map_or(0, |counted| counted.pulses.0),
                energy_mwh: known.map(|counted| counted.energy.0),
                reading_mwh: read.map(|counted| counted.reading.0),
                power: power.and_then(|counted| counted.power_at(now)),
                line: line.map(|line| line_status(&line.borrow())),
                line_trouble,
                input: input.map(|input| InputView::from(&*input.borrow())),
            }
        });
        views.collect()
    }
}

fn line_status(view: &LineView) -> LineStatus {
    LineStatus {
        is_active: view.is_active,
        is_stuck: view.is_stuck,
        pulses: view.statistics.pulses,
        rejected: view.statistics.rejected,
        lost: view.statistics.lost.saturating_add(view.statistics.missed),
    }
}
