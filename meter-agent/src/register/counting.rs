//! Counts pulses from sources into a register, saves it, and hands on its boundaries.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use dcnet::reading::Boundary;
use dcnet::time::Period;
use link::service::Heartbeat;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Register, RegisterError};
use crate::pulse::{Batch, PulseError, PulseSource};

/// When a register is saved, apart from every boundary and the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavePolicy {
    /// Whenever there is something to save for so long.
    pub every: Duration,
    /// Whenever so many pulses would be lost.
    pub pulses: u64,
}

impl Default for SavePolicy {
    /// Every 60 s, or 100 pulses: at most 1440 writes a day while little is used.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(60),
            pulses: 100,
        }
    }
}

/// Why counting ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum CountError {
    /// A source failed.
    #[error(transparent)]
    Source(#[from] PulseError),
    /// The register cannot be saved at the end.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// Boundaries that wait for the disk; older ones are given up.
const WAITING: usize = 4096;
/// After a failed save the next one is tried so much later.
const RETRY: Duration = Duration::from_secs(1);

/// Counts until `stop` is done, then saves the register.
///
/// Each boundary is sent only after a save that contains it. While saving fails,
/// counting goes on, and the boundaries follow as soon as it works again. If nobody listens
/// to `boundaries` any more, counting goes on just the same; if the listener falls so
/// far behind that the channel is full, boundaries are dropped with a warning.
///
/// `period` is the length of a round; it may become known, or change, later. `heartbeat` beats
/// at every turn, at least every second.
///
/// # Errors
/// [`CountError`] when a source fails, after a save; or if the last save fails.
pub async fn count(
    mut register: Register,
    sources: Vec<Box<dyn PulseSource>>,
    policy: SavePolicy,
    mut period: watch::Receiver<Option<Period>>,
    boundaries: mpsc::Sender<Boundary>,
    heartbeat: Heartbeat,
    stop: impl Future<Output = ()>,
) -> Result<Register, CountError> {
    let (sender, mut batches) = mpsc::channel(64 * sources.len().max(1));
    let mut tasks = JoinSet::new();
    for source in sources {
        tasks.spawn(forward(source, sender.clone()));
    }
    drop(sender);
    let mut stop = std::pin::pin!(stop);
    let mut waiting = VecDeque::new();
    let mut ticks = tokio::time::interval(policy.every.min(RETRY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut saved, mut retry) = (Instant::now(), Instant::now());
    register.set_period(*period.borrow_and_update());
    let mut open = true;
    loop {
        heartbeat.beat();
        tokio::select! {
            biased;
            () = &mut stop => break,
            Ok(()) = period.changed() => register.set_period(*period.borrow_and_update()),
            received = batches.recv(), if open => match received {
                Some(Ok(batch)) => waiting.extend(record(&mut register, &batch)),
                Some(Err(error)) => {
                    register.save()?;
                    return Err(error.into());
                }
                // No sources at all: nothing to count, but something to wait for.
                None => open = false,
            },
            _ = ticks.tick() => {}
        }
        while waiting.len() > WAITING {
            waiting.pop_front();
        }
        let due = !waiting.is_empty()
            || register.unsaved() >= policy.pulses
            || (register.unsaved() > 0 && saved.elapsed() >= policy.every);
        if due && retry <= Instant::now() {
            let (returned, result) = save(register).await;
            register = returned;
            match result {
                Ok(()) => {
                    saved = Instant::now();
                    hand_on(&mut waiting, &boundaries);
                }
                Err(error) => {
                    tracing::error!(%error, "trying again");
                    retry = Instant::now() + RETRY;
                }
            }
        }
    }
    while let Ok(Ok(batch)) = batches.try_recv() {
        waiting.extend(record(&mut register, &batch));
    }
    register.save()?;
    hand_on(&mut waiting, &boundaries);
    Ok(register)
}

async fn forward(
    mut source: Box<dyn PulseSource>,
    batches: mpsc::Sender<Result<Batch, PulseError>>,
) {
    loop {
        let next = source.next().await;
        let failed = next.is_err();
        if batches.send(next).await.is_err() || failed {
            return;
        }
    }
}

fn record(register: &mut Register, batch: &Batch) -> Vec<Boundary> {
    register.record(batch).unwrap_or_else(|error| {
        tracing::error!(%error);
        Vec::new()
    })
}

/// Saves on a thread that may block.
async fn save(mut register: Register) -> (Register, Result<(), RegisterError>) {
    let saving = tokio::task::spawn_blocking(move || {
        let result = register.save();
        (register, result)
    });
    match saving.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is being shut down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn hand_on(waiting: &mut VecDeque<Boundary>, boundaries: &mpsc::Sender<Boundary>) {
    for boundary in waiting.drain(..) {
        if let Err(mpsc::error::TrySendError::Full(boundary)) = boundaries.try_send(boundary) {
            tracing::warn!(
                utc_ms = boundary.at.as_millis(),
                "nobody takes the boundaries of the register; this one is dropped"
            );
        }
    }
}
