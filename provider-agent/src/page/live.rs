//! What goes on now, as the running agent tells it: how far the newest rounds are, what
//! needs attention, and what was counted since the start. The store knows the rest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use dcnet::identity::DeviceId;
use dcnet::provider::{FullEdges, Progress, Provider, ProviderEvent};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use link::{Control, LinkState, Totals};
use prometheus_client::metrics::histogram::Histogram;
use serde::Serialize;
use tokio::sync::watch;

use super::alarms::{Alarms, Told};
use crate::nets::NetEvent;
use crate::publication::{ByChannel, kwh, mean_power};
use crate::utc;

/// Rounds of a net that are shown as they pass.
const ROUNDS: usize = 12;

/// Rounds of a net that are remembered at most, those that are pending included.
const REMEMBERED: usize = 128;

/// Different reasons of refusals that are counted apart from each other.
const REASONS: usize = 64;

/// Upper bounds of what commits are counted by, in seconds.
const COMMIT_SECONDS: [f64; 8] = [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];

/// Reasons beyond [`REASONS`].
const OTHER_REASON: &str = "other";

/// What the page is told; every clone is the same.
#[derive(Clone, Debug)]
pub struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// How long commits took, in seconds.
    commits: Histogram,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    nets: BTreeMap<NetId, Net>,
    alarms: Alarms,
    driver: Option<DriverView>,
    /// When the certificate of the running agent ends.
    certificate_end: Option<Timestamp>,
    /// How long the newest commit took, if that was long.
    slow_commit: Option<Duration>,
    answers: BTreeMap<u16, u64>,
    wrong_passwords: u64,
}

/// What can be seen of the driver from outside.
#[derive(Debug)]
struct DriverView {
    link: watch::Receiver<LinkState>,
    counters: Arc<link::Counters>,
}

/// Where a round stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It takes submissions.
    #[default]
    Submissions,
    /// Its roster is out, and it takes reveals.
    Reveals,
    /// It has a verified aggregate.
    Final,
    /// It waits for reveals after its window.
    Pending,
    /// It ended without an aggregate.
    Lost,
    /// It got no roster.
    NoRoster,
}

/// A round as it passes.
#[derive(Clone, Debug, Default)]
struct Passing {
    stage: Stage,
    submitted: usize,
    included: usize,
    revealed: usize,
    missing: Vec<DeviceId>,
    full_edges: Option<FullEdges>,
    roster_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    sums: Vec<MilliwattHours>,
}

#[derive(Debug)]
struct Net {
    period: Period,
    channels: Vec<String>,
    members: u32,
    rounds: BTreeMap<Round, Passing>,
    counts: Counts,
}

/// The newest rounds of a net, copied so that views are made of them while the agent goes on.
#[derive(Debug)]
struct Newest {
    period: Period,
    channels: Vec<String>,
    members: u32,
    alarms: u64,
    /// Newest first.
    rounds: Vec<(Round, Passing)>,
}

/// What was counted in a net since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rounds that got an aggregate.
    pub finals: u64,
    /// Rounds that ended without one.
    pub lost: u64,
    /// Rounds that got no roster.
    pub no_roster: u64,
    /// Rounds that waited for reveals after their window.
    pub pending: u64,
    /// Alarms.
    pub alarms: u64,
    /// Inputs that were refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The sums, added up, by channel.
    pub energy: Vec<MilliwattHours>,
}

/// A round as the page shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundView {
    /// Its number.
    pub round: u64,
    /// First moment of its interval, RFC 3339 in UTC.
    pub start: String,
    /// First moment after it.
    pub end: String,
    /// Where it stands.
    pub stage: Stage,
    /// Meters that have submitted.
    pub submitted: usize,
    /// Meters on the roster.
    pub included: usize,
    /// Those of them that have revealed.
    pub revealed: usize,
    /// Meters that owe a reveal, where the round waits for them.
    pub missing: Vec<String>,
    /// Fewest full drawn edges of an included meter.
    pub live_neighbours_minimum: Option<usize>,
    /// Their median.
    pub live_neighbours_median: Option<usize>,
    /// Seconds from the end of the interval to the roster.
    pub roster_after_s: Option<f64>,
    /// Seconds from the end of the interval to the end of the round.
    pub ended_after_s: Option<f64>,
    /// The sum in kWh, by channel; empty unless it is final.
    pub energy_kwh: ByChannel<f64>,
    /// Mean power of all included meters together in W, by channel.
    pub power_w: ByChannel<f64>,
}

/// A net at this moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NetNow {
    /// The net, 32 hexadecimal digits.
    pub net: String,
    /// Members now.
    pub members: u32,
    /// The newest rounds, newest first.
    pub rounds: Vec<RoundView>,
}

/// The link to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkView {
    /// Whether the agent is connected and subscribed.
    pub is_connected: bool,
    /// In words.
    pub text: String,
}

/// What a page that watches is sent whenever it changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// The link to the broker.
    pub link: LinkView,
    /// Alarms since the start.
    pub alarms: u64,
    /// The nets.
    pub nets: Vec<NetNow>,
}

impl Default for Live {
    fn default() -> Self {
        Self::after(Vec::new())
    }
}

impl Live {
    /// After what was told before this start, newest first.
    pub fn after(told: Vec<Told>) -> Self {
        let state = State {
            alarms: told.into(),
            ..State::default()
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            commits: Histogram::new(COMMIT_SECONDS),
            changes: watch::Sender::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0
            .changes
            .send_modify(|version| *version = version.wrapping_add(1));
    }

    /// A number that changes with everything that is shown.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Looks at a driver from now on, instead of the one before.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn follow(&self, control: &Control) {
        let mut link = control.state();
        self.state().driver = Some(DriverView {
            link: link.clone(),
            counters: control.counters(),
        });
        let live = self.clone();
        tokio::spawn(async move {
            loop {
                live.changed();
                // The driver is gone: another one is followed, or the agent ends.
                if link.changed().await.is_err() {
                    return live.changed();
                }
            }
        });
    }

    /// The agent runs under a certificate that ends then.
    pub fn certificate_ends(&self, at: Timestamp) {
        self.state().certificate_end = Some(at);
    }

    /// When the agent's certificate ends, once one runs.
    pub fn certificate_end(&self) -> Option<Timestamp> {
        self.state().certificate_end
    }

    /// Looks how far the rounds of a net are.
    pub fn observe(&self, provider: &Provider, now: Timestamp) {
        let genesis = provider.membership().genesis();
        let mut state = self.state();
        let net = state.nets.entry(provider.net()).or_insert_with(|| Net {
            period: genesis.policy.period,
            channels: genesis.channels.clone(),
            members: 0,
            rounds: BTreeMap::new(),
            counts: Counts::default(),
        });
        let members = provider.membership().size();
        let mut is_new = net.members != members;
        net.members = members;
        for (round, progress) in provider.progress() {
            is_new |= net.rounds.entry(round).or_default().advance(progress, now);
        }
        net.forget();
        drop(state);
        if is_new {
            self.changed();
        }
    }

    /// Takes an event of a net into account.
    pub fn take(&self, event: &NetEvent) {
        let mut state = self.state();
        let State { nets, alarms, .. } = &mut *state;
        if let Some(net) = nets.get_mut(&event.net) {
            net.take(event);
            let told = Told::about(event);
            if let Some(told) = told {
                net.counts.alarms += u64::from(told.is_alarm());
                alarms.add(told);
            }
        }
        drop(state);
        self.changed();
    }

    /// Counts a commit that took so long.
    pub fn committed(&self, took: Duration, is_slow: bool) {
        self.0.commits.observe(took.as_secs_f64());
        self.state().slow_commit = is_slow.then_some(took);
    }

    /// How long commits took, in seconds.
    pub fn commits(&self) -> Histogram {
        self.0.commits.clone()
    }

    /// How long the newest commit took, if that was long.
    pub fn slow_commit(&self) -> Option<Duration> {
        self.state().slow_commit
    }

    /// How the link is.
    pub fn link(&self) -> LinkView {
        let state = self.state();
        let link = state.driver.as_ref().map(|driver| driver.link.borrow());
        let link = link.as_deref();
        LinkView {
            is_connected: matches!(link, Some(LinkState::Connected)),
            text: link.map_or_else(|| "the agent is starting".to_owned(), ToString::to_string),
        }
    }

    /// What the driver has counted.
    pub fn totals(&self) -> Totals {
        let state = self.state();
        let driver = state.driver.as_ref();
        driver.map_or_else(Totals::default, |driver| driver.counters.totals())
    }

    /// What was counted in a net since the start.
    pub fn counts(&self, net: NetId) -> Counts {
        let state = self.state();
        let net = state.nets.get(&net);
        net.map_or_else(Counts::default, |net| net.counts.clone())
    }

    /// The newest rounds of a net, newest first.
    pub fn rounds(&self, net: NetId) -> Vec<RoundView> {
        let newest = self.state().nets.get(&net).map(Net::newest);
        newest.map_or_else(Vec::new, |newest| newest.views())
    }

    /// Who owes a reveal to a round that waits for it.
    pub fn owing(&self, net: NetId) -> Vec<DeviceId> {
        let state = self.state();
        let rounds = state.nets.get(&net).into_iter().flat_map(|n| &n.rounds);
        let pending = rounds.filter(|(_, round)| round.stage == Stage::Pending);
        let mut owing: Vec<DeviceId> = pending
            .flat_map(|(_, round)| round.missing.iter().copied())
            .collect();
        owing.sort_unstable();
        owing.dedup();
        owing
    }

    /// The newest of what was told of all nets, before this start too, newest first.
    pub fn alarms(&self) -> Vec<Told> {
        self.state().alarms.newest_first()
    }

    /// Everything that passes.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.link(), &self.newest())
    }

    /// Only this is done while the agent's next step may wait.
    fn newest(&self) -> Vec<(NetId, Newest)> {
        let state = self.state();
        let newest = state.nets.iter().map(|(id, net)| (*id, net.newest()));
        newest.collect()
    }

    /// Counts an answer of the page.
    pub fn count_answer(&self, status: StatusCode) {
        let mut state = self.state();
        let count = state.answers.entry(status.as_u16()).or_default();
        *count = count.saturating_add(1);
    }

    /// Counts a wrong password or user.
    pub fn count_wrong_password(&self) {
        let mut state = self.state();
        state.wrong_passwords = state.wrong_passwords.saturating_add(1);
    }

    /// Answers of the page by status, and wrong passwords.
    pub fn requests(&self) -> (BTreeMap<u16, u64>, u64) {
        let state = self.state();
        (state.answers.clone(), state.wrong_passwords)
    }
}

impl Snapshot {
    fn of(link: LinkView, nets: &[(NetId, Newest)]) -> Self {
        let now = |(id, net): &(NetId, Newest)| NetNow {
            net: id.to_string(),
            members: net.members,
            rounds: net.views(),
        };
        Self {
            at: utc::text(utc::now()),
            link,
            alarms: nets.iter().map(|(_, net)| net.alarms).sum(),
            nets: nets.iter().map(now).collect(),
        }
    }
}

impl Newest {
    fn views(&self) -> Vec<RoundView> {
        let view = |(round, passing): &(Round, Passing)| passing.view(*round, self);
        self.rounds.iter().map(view).collect()
    }
}

impl Passing {
    /// Whether anything changed.
    fn advance(&mut self, progress: Progress, now: Timestamp) -> bool {
        let before = (self.stage, self.submitted, self.included, self.revealed);
        match progress {
            Progress::Submissions { submitted } => self.submitted = submitted,
            Progress::Reveals {
                included,
                revealed,
                full_edges,
            } => {
                if self.stage == Stage::Submissions {
                    self.stage = Stage::Reveals;
                    // Of a roster that an earlier run issued it is not known.
                    self.roster_at = full_edges.map(|_| now);
                }
                self.submitted = self.submitted.max(included);
                (self.included, self.revealed) = (included, revealed);
                self.full_edges = full_edges;
            }
        }
        before != (self.stage, self.submitted, self.included, self.revealed)
    }

    fn end(&mut self, stage: Stage, at: Timestamp) {
        self.stage = stage;
        self.ended_at = Some(at);
    }

    fn view(&self, round: Round, net: &Newest) -> RoundView {
        let after = |at: Option<Timestamp>| {
            at.map(|at| at.since(round.end(net.period)).as_millis() as f64 / 1000.0)
        };
        let by_channel = |value: &dyn Fn(MilliwattHours) -> f64| {
            let sums = self.sums.iter().map(|sum| value(*sum));
            ByChannel(net.channels.iter().cloned().zip(sums).collect())
        };
        RoundView {
            round: round.0,
            start: utc::text(round.start(net.period)),
            end: utc::text(round.end(net.period)),
            stage: self.stage,
            submitted: self.submitted,
            included: self.included,
            revealed: self.revealed,
            missing: self.missing.iter().map(ToString::to_string).collect(),
            live_neighbours_minimum: self.full_edges.map(|edges| edges.minimum),
            live_neighbours_median: self.full_edges.map(|edges| edges.median),
            roster_after_s: after(self.roster_at),
            ended_after_s: after(self.ended_at),
            energy_kwh: by_channel(&kwh),
            power_w: by_channel(&|sum| mean_power(sum, net.period)),
        }
    }
}

impl Net {
    fn newest(&self) -> Newest {
        let newest = self.rounds.iter().rev().take(ROUNDS);
        Newest {
            period: self.period,
            channels: self.channels.clone(),
            members: self.members,
            alarms: self.counts.alarms,
            rounds: newest
                .map(|(round, passing)| (*round, passing.clone()))
                .collect(),
        }
    }

    fn take(&mut self, NetEvent { at, event, .. }: &NetEvent) {
        let counts = &mut self.counts;
        let rounds = &mut self.rounds;
        match event {
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } => {
                let passing = rounds.entry(*round).or_default();
                passing.submitted = included.saturating_add(dropped.len());
                passing.roster_at = Some(*at);
            }
            ProviderEvent::NoRoster {
                round, submissions, ..
            } => {
                counts.no_roster = counts.no_roster.saturating_add(1);
                let passing = rounds.entry(*round).or_default();
                passing.submitted = *submissions;
                passing.end(Stage::NoRoster, *at);
            }
            ProviderEvent::Aggregated(published) => {
                counts.finals = counts.finals.saturating_add(1);
                counts
                    .energy
                    .resize(published.sums.len(), MilliwattHours(0));
                for (total, sum) in counts.energy.iter_mut().zip(&published.sums) {
                    total.0 = total.0.saturating_add(sum.0);
                }
                let passing = rounds.entry(published.round).or_default();
                passing.included = published.included.len();
                passing.revealed = passing.included;
                passing.submitted = passing.submitted.max(passing.included);
                passing.missing.clear();
                passing.sums.clone_from(&published.sums);
                passing.end(Stage::Final, *at);
            }
            ProviderEvent::Pending { round, missing } => {
                let passing = rounds.entry(*round).or_default();
                // An agent that was started again tells it again.
                let is_new = passing.stage != Stage::Pending;
                counts.pending = counts.pending.saturating_add(u64::from(is_new));
                passing.stage = Stage::Pending;
                passing.missing.clone_from(missing);
            }
            ProviderEvent::Lost { round, missing, .. } => {
                counts.lost = counts.lost.saturating_add(1);
                let passing = rounds.entry(*round).or_default();
                passing.missing.clone_from(missing);
                passing.end(Stage::Lost, *at);
            }
            ProviderEvent::Refused { reason, .. } => {
                let mut reason = reason.to_string();
                if counts.refused.len() >= REASONS && !counts.refused.contains_key(&reason) {
                    reason = OTHER_REASON.to_owned();
                }
                let count = counts.refused.entry(reason).or_default();
                *count = count.saturating_add(1);
            }
            _ => {}
        }
        self.forget();
    }

    /// Drops the oldest rounds; of those that are pending only what is far too much.
    fn forget(&mut self) {
        let surplus = self.rounds.len().saturating_sub(ROUNDS);
        let old: Vec<Round> = self
            .rounds
            .iter()
            .take(surplus)
            .filter(|(_, passing)| passing.stage != Stage::Pending)
            .map(|(round, _)| *round)
            .collect();
        for round in old {
            self.rounds.remove(&round);
        }
        while self.rounds.len() > REMEMBERED {
            self.rounds.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_made_while_the_agent_goes_on() {
        let live = Live::default();
        let id = NetId([7; 16]);
        let mut net = Net {
            period: Period::from_secs(900).unwrap(),
            channels: vec!["import".to_owned()],
            members: 3,
            rounds: BTreeMap::new(),
            counts: Counts::default(),
        };
        let rounds = (0..20).map(|round| (Round(round), Passing::default()));
        net.rounds.extend(rounds);
        live.state().nets.insert(id, net);
        let (link, newest) = (live.link(), live.newest());

        // A step of the protocol that would take long.
        let mut agent = live.state();
        agent.nets.clear();
        let snapshot = Snapshot::of(link, &newest);
        let [now] = snapshot.nets.as_slice() else {
            panic!("{snapshot:?}");
        };
        assert_eq!(
            (now.net.as_str(), now.members),
            (id.to_string().as_str(), 3)
        );
        let shown: Vec<u64> = now.rounds.iter().map(|round| round.round).collect();
        assert_eq!(shown, (8..20).rev().collect::<Vec<_>>());
    }
}
