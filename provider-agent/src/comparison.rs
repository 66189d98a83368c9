//! Whether a database, a restored one above all, holds what an aggregate names that the provider
//! had published.
//!
//! An aggregate can show that rosters or log entries are missing, and then the meters never
//! answer this database again. It cannot show that nothing is: later entries, and rosters of
//! rounds that got no sum, leave no trace in it. So it shortens the wait of a restored net that
//! cannot go on, and lets no net go on earlier (see [`crate::backup`]).

use anyhow::{Context, ensure};
use dcnet::aggregate::Aggregate;
use dcnet::roster::Roster;
use dcnet::time::Round;
use dcnet::topic::NetId;
use serde::Serialize;

use crate::identity::Identity;
use crate::net::membership;
use crate::store::Store;

/// What of a published aggregate is in a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The net, 32 hexadecimal digits.
    pub net: String,
    /// The round of the aggregate.
    pub round: u64,
    /// The newest round with an aggregate here.
    pub newest_round: Option<u64>,
    /// Whether the roster that it is the sum of is here.
    pub has_roster: bool,
    /// Whether the log entry that it names is here.
    pub has_log_head: bool,
    /// Index of the newest log entry here.
    pub log_index: u64,
}

impl Comparison {
    /// Compares an aggregate as the provider signed it, such as the retained message on
    /// `public/aggregate/cbor`, with what is stored of its net.
    ///
    /// # Errors
    /// There is no such net; its log does not verify; the frame is no aggregate of it that this
    /// provider signed, or of another roster than the one stored for its round.
    pub fn read(
        store: &Store,
        identity: &Identity,
        net: NetId,
        frame: &[u8],
    ) -> anyhow::Result<Self> {
        let log = membership(store, identity, net)?;
        let aggregate = Aggregate::verify_in(frame, &log)
            .or_else(|_| Aggregate::verify(frame, net, log.provider().key()))
            .context("it is no aggregate of this net that this provider signed")?;
        let round = aggregate.round;
        let stored = store.round(net, round)?;
        if let Some(stored) = &stored {
            let roster = Roster::verify(&stored.roster, &log)
                .with_context(|| format!("the stored roster of round {round} does not verify"))?;
            ensure!(
                roster.hash == aggregate.roster,
                "it is of another roster than the one stored for round {round}: this round has had two; \
                 stop the agent, keep both files and tell the gateway administrator"
            );
        }
        Ok(Self {
            net: net.to_string(),
            round: round.0,
            newest_round: store.net(net)?.newest_final.map(|Round(round)| round),
            has_roster: stored.is_some(),
            has_log_head: log.index_of_entry(&aggregate.log_head).is_some(),
            log_index: log.head().index,
        })
    }

    /// Whether everything that the aggregate names is here.
    pub fn is_as_new(&self) -> bool {
        self.has_roster && self.has_log_head
    }
}
