//! The households: each a meter agent with its own key, connection and journal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dcnet::identity::DeviceId;
use dcnet::meter::{Floors, MeterEvent};
use dcnet::time::{Period, Round, Timestamp};
use link::Clock;
use meter_agent::agent::{Agent, AgentControl, AgentOptions};
use meter_agent::clock::utc_timestamp;
use meter_agent::config::IdentityFiles;
use meter_agent::pulse::loads::Energies;
use meter_agent::pulse::profile::ProfileSource;
use meter_agent::pulse::replay::{AfterLastRow, Replay};
use meter_agent::pulse::simulated::{Household, Pace, Simulated};
use meter_agent::pulse::{Begin, Channel, PulseSource};
use meter_agent::register::RegisterChannel;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::absence::Gap;
use crate::truth::{Counted, Ledger, constant};

/// The name of the one channel.
pub const CHANNEL: &str = "import";

/// How many meters are started at a time.
const AT_A_TIME: usize = 8;

/// A meter to be stopped waits for the aggregate of its last round at most until this share of
/// the round is left, in percent.
const LEFT_PERCENT: u32 = 30;

/// What a household uses.
#[derive(Clone, Debug)]
pub enum Usage {
    /// A model, whose pulses go into the ledger.
    Simulated {
        /// Which household.
        seed: u64,
        /// How fast it lives.
        pace: Pace,
        /// Where its pulses are counted.
        ledger: Ledger,
    },
    /// A column of a file, row after row from `begin` on.
    Replay {
        /// The rows.
        energies: Energies,
        /// When the first row begins.
        begin: Begin,
    },
}

/// What a meter is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Its number, from 1.
    pub number: u32,
    /// Its id.
    pub id: DeviceId,
    /// Its enrolment.
    pub identity: PathBuf,
    /// Its register and journal.
    pub state: PathBuf,
    /// Where the broker is.
    pub broker: (String, u16),
    /// What it insists on.
    pub floors: Floors,
    /// Length of a round.
    pub period: Period,
    /// What it measures.
    pub usage: Usage,
}

/// A meter, running or stopped.
#[derive(Debug)]
pub struct Meter {
    parts: Parts,
    running: Option<AgentControl>,
}

impl Meter {
    /// A meter that is not running yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            running: None,
        }
    }

    /// Starts its agent.
    ///
    /// # Errors
    /// As [`Agent::start`].
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let parts = &self.parts;
        let number = parts.number;
        let identity = IdentityFiles {
            directory: parts.identity.clone(),
        };
        let channels = vec![RegisterChannel {
            name: CHANNEL.to_owned(),
            constant: constant(),
        }];
        let (host, port) = &parts.broker;
        let mut options = AgentOptions::new(
            &identity,
            (host.as_str(), *port),
            parts.floors,
            &parts.state,
            channels,
            vec![source(parts)],
        );
        options.clock = Clock::assume_synchronised();
        let handle = Agent::start(options)
            .await
            .with_context(|| format!("meter {number} cannot be started"))?;
        let mut events = handle.events;
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let MeterEvent::Alarm(alarm) = event {
                    tracing::warn!(meter = number, ?alarm);
                }
            }
        });
        self.running = Some(handle.control);
        Ok(())
    }

    /// Stops its agent, if it runs.
    ///
    /// # Errors
    /// As [`AgentControl::stop`].
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let number = self.parts.number;
        match self.running.take() {
            Some(running) => running
                .stop()
                .await
                .with_context(|| format!("meter {number} did not stop well")),
            None => Ok(()),
        }
    }
}

fn source(parts: &Parts) -> Box<dyn PulseSource> {
    let (channel, now) = (Channel(0), utc_timestamp());
    match &parts.usage {
        Usage::Simulated { seed, pace, ledger } => {
            let profile = Simulated::new(Household::draw(*seed), constant(), *pace);
            let source = Box::new(ProfileSource::new(channel, profile, now));
            let (number, period) = (parts.number, parts.period);
            Box::new(Counted::new(source, number, period, ledger.clone()))
        }
        Usage::Replay { energies, begin } => {
            let after = AfterLastRow::Stop;
            let begin = begin.clone();
            let profile = Replay::new(energies, constant(), parts.period, after, begin);
            Box::new(ProfileSource::new(channel, profile, now))
        }
    }
}

/// All meters.
#[derive(Debug)]
pub struct Fleet {
    meters: Vec<Arc<Mutex<Meter>>>,
    /// Starts, stops and starts again; no task is aborted in the middle of that.
    tasks: JoinSet<anyhow::Result<()>>,
    stopping: watch::Sender<bool>,
}

impl Fleet {
    /// Meters that do not run yet.
    pub fn new(parts: Vec<Parts>) -> Self {
        let meters = parts.into_iter().map(Meter::new);
        Self {
            meters: meters.map(|meter| Arc::new(Mutex::new(meter))).collect(),
            tasks: JoinSet::new(),
            stopping: watch::Sender::new(false),
        }
    }

    /// Starts all meters. May be dropped before it is done; then [`Fleet::stop`] is next.
    ///
    /// # Errors
    /// The first that cannot be started.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        for meter in &self.meters {
            if self.tasks.len() >= AT_A_TIME {
                finish_one(&mut self.tasks).await?;
            }
            let meter = Arc::clone(meter);
            self.tasks
                .spawn(async move { meter.lock().await.start().await });
        }
        while !self.tasks.is_empty() {
            finish_one(&mut self.tasks).await?;
        }
        Ok(())
    }

    /// From now on stops a meter in time to miss the rounds of its gaps, and starts it in time
    /// for the round after.
    pub fn keep_gaps(&mut self, number: u32, gaps: Vec<Gap>, rounds: Rounds) {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(meter) = self.meters.get(index).cloned() {
            let stopping = self.stopping.subscribe();
            self.tasks.spawn(keep_gaps(meter, gaps, rounds, stopping));
        }
    }

    /// Waits for a failure of a meter that keeps gaps; never returns without one.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return error.into(),
                Some(Ok(Ok(()))) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Stops all meters.
    ///
    /// # Errors
    /// The first that failed or did not stop well; the others are stopped all the same.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.stopping.send_replace(true);
        let mut end = Ok(());
        while !self.tasks.is_empty() {
            end = end.and(finish_one(&mut self.tasks).await);
        }
        for meter in self.meters {
            self.tasks
                .spawn(async move { meter.lock().await.stop().await });
        }
        while !self.tasks.is_empty() {
            end = end.and(finish_one(&mut self.tasks).await);
        }
        end
    }
}

async fn finish_one(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match tasks.join_next().await {
        Some(result) => result?,
        None => Ok(()),
    }
}

/// When which round is, and which one is final.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// Length of a round.
    pub period: Period,
    /// The first measured round.
    pub first: Round,
    /// The newest round with a published aggregate.
    pub newest: watch::Receiver<Option<Round>>,
}

impl Rounds {
    fn measured(&self, index: u64) -> Round {
        Round(self.first.0.saturating_add(index))
    }

    /// Waits for the interval of `round`, and in it until the aggregate of the round before is
    /// published, or there is hardly time left. False when everything is to stop.
    async fn before_is_published(
        &mut self,
        round: Round,
        stopping: &mut watch::Receiver<bool>,
    ) -> bool {
        let (period, newest) = (self.period, &mut self.newest);
        let before = Round(round.0.saturating_sub(1));
        let waiting = async {
            sleep_until(round.start(period)).await;
            let published = newest.wait_for(|newest| *newest >= Some(before));
            let left = latest(round, period).since(utc_timestamp());
            if tokio::time::timeout(left, published).await.is_err() {
                tracing::warn!(%before, "not published in time for a meter to be stopped or started");
            }
        };
        tokio::select! {
            () = waiting => true,
            _ = stopping.wait_for(|stopping| *stopping) => false,
        }
    }
}

/// A meter misses round r if it does not count through r's interval. What it sent for r−1 is
/// done when r−1's aggregate is published, during r's interval: then it is stopped. It is started
/// again during the interval of the last round it misses, so that it counts the next from
/// its beginning.
async fn keep_gaps(
    meter: Arc<Mutex<Meter>>,
    gaps: Vec<Gap>,
    mut rounds: Rounds,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    for gap in gaps {
        let (first, last) = (rounds.measured(gap.first), rounds.measured(gap.last));
        if !rounds.before_is_published(first, &mut stopping).await {
            return Ok(());
        }
        meter.lock().await.stop().await?;
        if last > first && !rounds.before_is_published(last, &mut stopping).await {
            return Ok(());
        }
        meter.lock().await.start().await?;
    }
    Ok(())
}

fn latest(round: Round, period: Period) -> Timestamp {
    let left = period.duration() * LEFT_PERCENT / 100;
    round.end(period).minus(left)
}

/// Sleeps until the UTC clock shows `at`.
pub async fn sleep_until(at: Timestamp) {
    loop {
        let left = at.since(utc_timestamp());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}

/// Where a meter's register and journal are, below the directory of a run.
pub fn state_directory(root: &Path, number: u32) -> PathBuf {
    root.join("meters").join(number.to_string()).join("state")
}
