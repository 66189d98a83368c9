//! Makes old rounds small while the agent runs: one transaction per round, with pauses, so that
//! the rounds under way find the database free.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dcnet::provider::ProviderCommand;
use tokio::sync::mpsc;

use crate::store::Store;
use crate::utc;

/// How often it is looked for rounds that have become old.
const EVERY: Duration = Duration::from_secs(3600);

/// After one that failed.
const RETRY: Duration = Duration::from_secs(60);

/// Between two transactions.
const PAUSE: Duration = Duration::from_millis(50);

/// Compacts until the agent has ended, at which its commands are taken by nobody.
pub(super) async fn run(path: PathBuf, kept: Duration, ended: mpsc::Sender<ProviderCommand>) {
    let mut told = String::new();
    let mut rounds = 0_u64;
    loop {
        let at = path.clone();
        let Ok(step) = tokio::task::spawn_blocking(move || step(&at, kept)).await else {
            // Cancelled: the runtime is being shut down.
            return;
        };
        let pause = match step {
            Ok(Step::Compacted) => {
                rounds += 1;
                PAUSE
            }
            Ok(Step::Shrunk) => PAUSE,
            Ok(Step::Done) => {
                if rounds > 0 {
                    tracing::info!(rounds, "the submissions of old rounds are dropped");
                }
                rounds = 0;
                told.clear();
                EVERY
            }
            Err(error) => {
                let error = format!("{error:#}");
                if error != told {
                    tracing::warn!(
                        error,
                        "cannot make old rounds small; tried again every minute"
                    );
                    told = error;
                }
                RETRY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = ended.closed() => return,
        }
    }
}

enum Step {
    Compacted,
    Shrunk,
    Done,
}

fn step(path: &Path, kept: Duration) -> anyhow::Result<Step> {
    let mut store = Store::open(path)?;
    for summary in store.nets()? {
        // By the rounds themselves: a clock that jumps ahead must not make everything old.
        let Some(newest) = summary.newest_final else {
            continue;
        };
        let period = summary.policy.period;
        let before = period.round_at(newest.start(period).minus(kept));
        if store
            .compact_round(summary.net, before, utc::now())?
            .is_some()
        {
            return Ok(Step::Compacted);
        }
    }
    Ok(if store.shrink()? {
        Step::Shrunk
    } else {
        Step::Done
    })
}
