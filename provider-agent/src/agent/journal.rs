//! The store as the driver's journal: what keeps it from being written is told, and waited for
//! if it may clear.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use dcnet::time::Now;
use link::Journal;
use tokio::sync::watch;

use crate::nets::Nets;
use crate::page::live::Live;
use crate::store::{Fault, NetRecord, Store};

/// A commit that takes longer is told: in a round there are several, one after the other.
const SLOW: Duration = Duration::from_secs(1);

/// Whether the agent can store what it does. While it cannot, nothing is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It can.
    #[default]
    Writable,
    /// It can, but the newest commit took long. Nothing is lost; rounds are late.
    Slow {
        /// How long.
        took: Duration,
    },
    /// Not now; it is tried again every few seconds, and rounds go on by themselves then.
    Waiting {
        /// Why, and what to do.
        problem: String,
    },
    /// Never again with this database as it is.
    Broken {
        /// Why, and what to do.
        problem: String,
    },
}

/// Tells what became of the store; clones tell the same watchers.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    state: Arc<watch::Sender<StoreState>>,
    live: Live,
}

impl Teller {
    /// Tells a page's figures too.
    pub(super) fn new(live: Live) -> Self {
        Self {
            state: Arc::default(),
            live,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.state.subscribe()
    }

    fn tell(&self, state: StoreState) {
        self.state.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }

    /// Tells how long a commit took, if that is long or was until now.
    fn committed(&self, path: &Path, took: Duration) {
        let is_slow = took > SLOW;
        self.live.committed(took, is_slow);
        let was_slow = matches!(&*self.state.borrow(), StoreState::Slow { .. });
        if is_slow {
            if !was_slow {
                tracing::warn!(
                    ?took,
                    "writing to {path} is slow: its disk is busy or failing (`dmesg`), or another process \
                     writes there (`fuser -v {path}` names it); nothing is lost, but rounds are late by as much",
                    path = path.display()
                );
            }
            self.tell(StoreState::Slow { took });
        } else if was_slow {
            tracing::info!("writing to {} is quick again", path.display());
            self.tell(StoreState::Writable);
        }
    }

    /// Tells why a database cannot be used; gives the error with what to do.
    fn failed(&self, path: &Path, error: anyhow::Error) -> anyhow::Error {
        let Some(fault) = Fault::of(&error) else {
            self.tell(StoreState::Broken {
                problem: format!("{error:#}"),
            });
            return error;
        };
        let problem = fault.advice(path).to_string();
        let told = format!("{problem}; until then nothing is published, and rounds go on after it");
        self.tell(StoreState::Waiting { problem });
        error.context(told)
    }
}

/// A store whose failures are told.
pub(super) struct ToldStore {
    store: Store,
    teller: Teller,
}

impl ToldStore {
    pub(super) fn new(store: Store, teller: Teller) -> Self {
        Self { store, teller }
    }
}

impl Journal for ToldStore {
    type Record = NetRecord;

    fn commit(&mut self, records: &[NetRecord]) -> anyhow::Result<()> {
        let begun = Instant::now();
        match self.store.commit(records) {
            Ok(()) => {
                self.teller.committed(self.store.path(), begun.elapsed());
                Ok(())
            }
            Err(error) => Err(self.teller.failed(self.store.path(), error)),
        }
    }
}

/// How a driver gets its machine and journal anew by `open`, which is not tried any more once
/// it is certain that it fails.
pub(super) fn reopen(
    path: std::path::PathBuf,
    teller: Teller,
    mut open: impl FnMut() -> anyhow::Result<(Nets, Store)> + Send + 'static,
) -> link::Reopen<Nets, ToldStore> {
    Box::new(move |_: Now| {
        if let StoreState::Broken { problem } = &*teller.state.borrow() {
            return Err(anyhow!("{problem}"));
        }
        match open() {
            Ok((nets, store)) => {
                teller.tell(StoreState::Writable);
                Ok((nets, ToldStore::new(store, teller.clone())))
            }
            Err(error) => Err(teller.failed(&path, error)),
        }
    })
}
