//! Records what a meter tells, for the household: the last rounds, the alarms, the net's rules.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dcnet::alarm::{Alarm, Silence};
use dcnet::membership::Policy;
use dcnet::meter::MeterEvent;
use dcnet::reading::Boundary;
use dcnet::superposition::Share;
use dcnet::time::{Period, Round, Timestamp};
use serde::Serialize;

use super::alarms::AlarmView;
use super::checks::{CheckState, CheckView, views, words};

/// Rounds that are shown.
const ROUNDS: usize = 10;

/// Alarms that are kept and shown; older ones are in the log.
const ALARMS: usize = 100;

/// Why nothing of an interval left the house while the meter was paused.
const PAUSED: &str = "the household had paused this meter";

/// The rules of the net.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyView {
    /// Length of a round in seconds.
    pub period_s: u32,
    /// Meters in a sum at least.
    pub minimum_group: u32,
    /// What every meter submits.
    pub channels: Vec<String>,
}

/// One round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoundView {
    /// Its number.
    pub round: u64,
    /// Begin of its interval, milliseconds since 1970.
    pub from_ms: u64,
    /// End of its interval.
    pub until_ms: u64,
    /// What was measured and what left the house, per channel of the net.
    pub values: Vec<ValueView>,
    /// The submission.
    pub submission: StepView,
    /// The answer to the roster.
    pub reveal: StepView,
    /// Neighbours that this meter drew: d.
    pub drawn: Option<usize>,
    /// Those of them whose pads are in the submission.
    pub used: Option<usize>,
    /// How many of them a roster must include: L.
    pub required: Option<u32>,
    /// Those of them that hide the reading in the sum.
    pub full: Option<usize>,
    /// Meters in the sum.
    pub included: Option<usize>,
    /// The published sum per channel, in mWh.
    pub sums_mwh: Option<Vec<u64>>,
    #[serde(skip)]
    silence: Option<Silence>,
}

/// One channel of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ValueView {
    /// Its name.
    pub channel: String,
    /// What was measured, in mWh; it stays here.
    pub reading_mwh: Option<u64>,
    /// The value of the superposition, 32 bytes in hex: what left the house.
    pub superposition: Option<String>,
}

/// One step of a round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepView {
    /// What became of it.
    pub state: CheckState,
    /// Why it was not done.
    pub reason: Option<String>,
}

/// What was recorded, at a moment.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) policy: Option<PolicyView>,
    /// Newest first.
    pub(super) rounds: Vec<RoundView>,
    pub(super) checks: Vec<CheckView>,
    /// Newest first.
    pub(super) alarms: Vec<AlarmView>,
    pub(super) drawn: Option<usize>,
    pub(super) live: Option<usize>,
    pub(super) refused: u64,
    pub(super) clock_unconfirmed: bool,
}

#[derive(Debug, Default)]
struct Records {
    net: Option<(Period, PolicyView)>,
    /// The newest boundary, and whether the meter was paused then.
    last: Option<(Boundary, bool)>,
    rounds: BTreeMap<Round, RoundView>,
    /// Older rounds are not begun any more: they were forgotten.
    oldest: Round,
    /// Drawn neighbours, and those whose pads hid the last submission.
    neighbours: Option<(usize, usize)>,
    alarms: VecDeque<AlarmView>,
    refused: u64,
    /// A jump of the clock that nobody has confirmed, perhaps from before the start.
    clock_unconfirmed: bool,
}

/// Records what happens to a meter. It has readings, and prints none.
#[derive(Default)]
pub struct Recorder(Mutex<Records>);

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder(..)")
    }
}

impl Recorder {
    /// Goes on from the alarms of before the start, newest first.
    pub fn new(alarms: Vec<AlarmView>) -> Self {
        let mut records = Records {
            alarms: alarms.into(),
            ..Records::default()
        };
        records.forget_alarms();
        Self(Mutex::new(records))
    }

    /// The alarms that are kept, newest first.
    pub fn alarms(&self) -> Vec<AlarmView> {
        self.records().alarms.iter().cloned().collect()
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Each change is one assignment: no half of it can be seen.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rules of the net are known.
    pub fn open(&self, policy: &Policy, channels: &[String]) {
        let view = PolicyView {
            period_s: policy.period.as_secs(),
            minimum_group: policy.minimum_group,
            channels: channels.to_vec(),
        };
        self.records().net = Some((policy.period, view));
    }

    /// The register's values at the end of a round, by the net's channels. While the meter is
    /// paused it is not told of them, so that nothing of a round that begins or ends then leaves
    /// the house.
    pub fn boundary(&self, boundary: &Boundary, is_paused: bool) {
        let mut records = self.records();
        let Some((period, _)) = records.net else {
            return;
        };
        let before = records.last.replace((boundary.clone(), is_paused));
        let Some((before, was_paused)) =
            before.filter(|(before, _)| before.at.plus(period.duration()) == boundary.at)
        else {
            return;
        };
        let values = before.channels.iter().zip(&boundary.channels);
        let readings: Vec<u64> = values
            .map(|(start, end)| end.0.saturating_sub(start.0))
            .collect();
        let round = period.round_at(before.at);
        if let Some(view) = records.round(round) {
            for (value, reading) in view.values.iter_mut().zip(readings) {
                value.reading_mwh = Some(reading);
            }
            if was_paused || is_paused {
                view.submission.state = CheckState::Failed;
                view.submission.reason = Some(PAUSED.to_owned());
            }
        }
    }

    /// Forgets every reading, the rounds that are over, and the alarms, but not what says how the
    /// meter stands: the alarm that has stopped it, and what left the house last.
    pub fn forget(&self) {
        let mut records = self.records();
        records.alarms.retain(|alarm| alarm.is_final);
        let mut rounds = records.rounds.iter().rev();
        let newest = rounds
            .find(|(_, view)| view.submission.state == CheckState::Passed)
            .map(|(round, _)| *round);
        if let Some((last, _)) = records.rounds.last_key_value() {
            records.oldest = Round(last.0.saturating_add(1));
        }
        records
            .rounds
            .retain(|round, view| Some(*round) == newest || !view.is_over());
        let views = records.rounds.values_mut();
        for value in views.flat_map(|view| &mut view.values) {
            value.reading_mwh = None;
        }
    }

    /// The household has said that the clock is right.
    pub(super) fn clock_is_confirmed(&self) {
        self.records().clock_unconfirmed = false;
    }

    /// The meter has told something.
    pub fn event(&self, event: &MeterEvent, now: Timestamp) {
        let mut records = self.records();
        match event {
            MeterEvent::NetOpened { policy, channels } => {
                drop(records);
                self.open(policy, channels);
            }
            MeterEvent::Submitted {
                round,
                shares,
                drawn,
                used,
                required,
            } => {
                records.neighbours = Some((*drawn, *used));
                records.clock_unconfirmed = false;
                if let Some(view) = records.round(*round) {
                    view.submitted(shares);
                    (view.drawn, view.used) = (Some(*drawn), Some(*used));
                    view.required = Some(*required);
                }
            }
            MeterEvent::Revealed {
                round,
                included,
                full,
            } => {
                if let Some(view) = records.round(*round) {
                    view.reveal.state = CheckState::Passed;
                    (view.included, view.full) = (Some(*included), Some(*full));
                }
            }
            MeterEvent::Final {
                round,
                included,
                sums,
            } => {
                if let Some(view) = records.round(*round) {
                    view.included = usize::try_from(*included).ok();
                    view.sums_mwh = Some(sums.iter().map(|sum| sum.0).collect());
                }
            }
            MeterEvent::Silent { round, reason } => {
                records.clock_unconfirmed |= *reason == Silence::ClockUnconfirmed;
                if let Some(view) = records.round(*round) {
                    view.silent(*reason);
                }
            }
            MeterEvent::Refused { .. } => records.refused = records.refused.saturating_add(1),
            MeterEvent::Alarm(alarm) => {
                records.clock_unconfirmed |= matches!(alarm, Alarm::ClockJump { .. });
                records.alarms.push_front(AlarmView::of(alarm, now));
                records.forget_alarms();
            }
            _ => {}
        }
    }

    pub(super) fn view(&self) -> Recorded {
        let records = self.records();
        let decided = records.rounds.values().rev().find(|view| view.is_decided());
        Recorded {
            policy: records.net.as_ref().map(|(_, view)| view.clone()),
            rounds: records.rounds.values().rev().cloned().collect(),
            checks: decided.map_or_else(Vec::new, |view| {
                views(view.submission.state, view.reveal.state, view.silence)
            }),
            alarms: records.alarms.iter().cloned().collect(),
            drawn: records.neighbours.map(|(drawn, _)| drawn),
            live: records.neighbours.map(|(_, live)| live),
            refused: records.refused,
            clock_unconfirmed: records.clock_unconfirmed,
        }
    }
}

impl Records {
    /// Forgets the oldest alarms, but never the one that says why the meter has stopped.
    fn forget_alarms(&mut self) {
        while self.alarms.len() > ALARMS {
            let oldest = self.alarms.iter().rposition(|alarm| !alarm.is_final);
            self.alarms.remove(oldest.unwrap_or(ALARMS));
        }
    }

    /// The view of a round; `None` before the net's rules are known, and of a round older
    /// than those that are shown or that was forgotten.
    fn round(&mut self, round: Round) -> Option<&mut RoundView> {
        let (period, policy) = self.net.as_ref()?;
        if round < self.oldest && !self.rounds.contains_key(&round) {
            return None;
        }
        self.rounds
            .entry(round)
            .or_insert_with(|| RoundView::new(round, *period, &policy.channels));
        while self.rounds.len() > ROUNDS {
            self.rounds.pop_first();
        }
        self.rounds.get_mut(&round)
    }
}

impl RoundView {
    fn new(round: Round, period: Period, channels: &[String]) -> Self {
        let value = |channel: &String| ValueView {
            channel: channel.clone(),
            ..ValueView::default()
        };
        Self {
            round: round.0,
            from_ms: round.start(period).as_millis(),
            until_ms: round.end(period).as_millis(),
            values: channels.iter().map(value).collect(),
            submission: StepView::default(),
            reveal: StepView::default(),
            drawn: None,
            used: None,
            required: None,
            full: None,
            included: None,
            sums_mwh: None,
            silence: None,
        }
    }

    fn submitted(&mut self, shares: &[Share]) {
        self.submission.state = CheckState::Passed;
        for (value, share) in self.values.iter_mut().zip(shares) {
            let opening = share.superposition.to_bytes();
            let (superposition, _) = opening.split_at(32);
            value.superposition = Some(hex::encode(superposition));
        }
    }

    /// Of a round that was submitted it is the reveal that was not done.
    fn silent(&mut self, reason: Silence) {
        let step = match self.submission.state {
            CheckState::Passed => &mut self.reveal,
            CheckState::Open | CheckState::Failed => &mut self.submission,
        };
        step.state = CheckState::Failed;
        step.reason = Some(words(reason).to_owned());
        self.silence = Some(reason);
    }

    /// Whether nothing of it is to come.
    fn is_over(&self) -> bool {
        let steps = [&self.submission, &self.reveal];
        self.sums_mwh.is_some() || steps.iter().any(|step| step.state == CheckState::Failed)
    }

    /// Whether the meter has checked it to an end. Of one that was kept from it by a pause it has
    /// checked nothing.
    fn is_decided(&self) -> bool {
        self.silence.is_some() || self.reveal.state != CheckState::Open
    }
}

#[cfg(test)]
mod tests;
