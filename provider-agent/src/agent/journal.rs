//! The store as the driver's journal: what keeps it from being written is told, and waited for
//! if it may clear.

use std::sync::Arc;

use anyhow::anyhow;
use dcnet::time::Now;
use link::Journal;
use tokio::sync::watch;

use crate::nets::Nets;
use crate::store::{Fault, NetRecord, Store};

/// Whether the agent can store what it does. While it cannot, nothing is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreState {
    /// It can.
    #[default]
    Writable,
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
#[derive(Clone, Debug, Default)]
pub(super) struct Teller(Arc<watch::Sender<StoreState>>);

impl Teller {
    pub(super) fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.0.subscribe()
    }

    fn tell(&self, state: StoreState) {
        self.0.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }

    /// Tells why a database cannot be used; gives the error with what to do.
    fn failed(&self, path: &std::path::Path, error: anyhow::Error) -> anyhow::Error {
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
        let committed = self.store.commit(records);
        committed.map_err(|error| self.teller.failed(self.store.path(), error))
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
        if let StoreState::Broken { problem } = &*teller.0.borrow() {
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
