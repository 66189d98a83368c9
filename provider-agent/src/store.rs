//! Everything a provider must keep, in one SQLite database (`docs/data-model.md`).
//!
//! Write-ahead log with `synchronous=FULL`: a commit has reached the disk (fsync)
//! when [`Journal::commit`] returns, and is there completely or not at all after a
//! crash. Other processes may read at any time, so `export` and `net show` work
//! beside the daemon.
//!
//! A round has at most one roster: `UNIQUE (net_id, round)` makes a second one a
//! failed commit, after which [`link`] publishes nothing more.

mod backup;
mod compact;
mod fault;
mod file;
mod load;
mod nets;
mod rounds;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use dcnet::aggregate::Disruption;
use dcnet::identity::DeviceId;
use dcnet::membership::{EntryKind, Membership};
use dcnet::pad::RosterHash;
use dcnet::provider::{IncludedSubmission, ProviderRecord, Published};
use dcnet::time::Round;
use dcnet::topic::NetId;
use link::Journal;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

pub(crate) use backup::copy_file;
pub use fault::{Advice, Fault};
pub use file::prepare_directory;
pub use load::{NetSummary, RoundRow, RoundStatus};
pub use nets::NetStanding;
pub(crate) use rounds::LAST_ROUND;
pub use rounds::StoredRound;

/// Name of the database in the state directory.
pub const FILE: &str = "provider.sqlite";

/// What must fit beside the rest before a database counts as writable again, in bytes: the
/// roster of some thousand meters.
const ROOM: i64 = 1 << 20;

/// A record of one net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRecord {
    /// The net.
    pub net: NetId,
    /// The change of its durable state.
    pub record: ProviderRecord,
}

/// The provider's database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Connection,
    // After the database, so that it is released last.
    lock: Option<Arc<File>>,
}

impl Store {
    /// Opens a database; makes it (mode 0600) and its directory (mode 0700) if they
    /// are missing, and brings an older schema up to date.
    ///
    /// # Errors
    /// Wide permissions; a database of another program or a newer version; damage;
    /// input/output errors.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            database: file::open(path)?,
            lock: None,
        })
    }

    /// Opens [`FILE`] in a state directory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(state_directory: &Path) -> anyhow::Result<Self> {
        Self::open(&state_directory.join(FILE))
    }

    /// Keeps a file, and the lock on it, open as long as this store is.
    pub(crate) fn hold(&mut self, lock: Arc<File>) {
        self.lock = Some(lock);
    }

    /// Closes the database and leaves all of it in the one file.
    ///
    /// # Errors
    /// Another process uses it; input/output errors.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        backup::stand_alone(&self.database)?;
        self.database.close().map_err(|(_, error)| error.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes 1 MiB and frees it again, to know that there is room and nobody in the way.
    ///
    /// # Errors
    /// What is in the way; see [`Fault::of`].
    pub fn try_writing(&mut self) -> anyhow::Result<()> {
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("DELETE FROM room", [])?;
        transaction.execute("INSERT INTO room (filler) VALUES (zeroblob(?1))", [ROOM])?;
        transaction.commit()?;
        self.database.execute("DELETE FROM room", [])?;
        Ok(())
    }

    /// Looks through the whole file for damage: structure and references.
    ///
    /// # Errors
    /// What is damaged.
    pub fn check(&self) -> anyhow::Result<()> {
        file::check(&self.database, &self.path)
    }

    /// Stores a new net: `genesis` is the frame that `membership` was opened with.
    ///
    /// # Errors
    /// A net that is stored already, or input/output errors.
    pub fn create_net(&mut self, membership: &Membership, genesis: &[u8]) -> anyhow::Result<()> {
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let rules = membership.genesis();
        let policy = rules.policy;
        transaction
            .execute(
                "INSERT INTO nets (net, name, period_s, window_ms, minimum_group, minimum_neighbours, degree) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    rules.net.0,
                    rules.name,
                    policy.period.as_secs(),
                    policy.window_ms,
                    policy.minimum_group,
                    policy.minimum_neighbours,
                    policy.degree
                ],
            )
            .with_context(|| format!("cannot store net {}", rules.net))?;
        let net_id = transaction.last_insert_rowid();
        for (channel, name) in (0i64..).zip(&rules.channels) {
            transaction.execute(
                "INSERT INTO channels (net_id, channel, name) VALUES (?1, ?2, ?3)",
                params![net_id, channel, name],
            )?;
        }
        insert_entry(
            &transaction,
            net_id,
            0,
            &membership.head().hash,
            EntryKind::Genesis,
            genesis,
        )?;
        transaction.commit()?;
        Ok(())
    }
}

impl Journal for Store {
    type Record = NetRecord;

    fn commit(&mut self, records: &[NetRecord]) -> anyhow::Result<()> {
        let stored_ms = now_ms();
        let path = self.path.display().to_string();
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .with_context(|| format!("cannot write to {path}"))?;
        for NetRecord { net, record } in records {
            write(&transaction, *net, record, stored_ms)
                .with_context(|| format!("cannot commit to {path} for net {net}"))?;
        }
        transaction
            .commit()
            .with_context(|| format!("cannot commit to {path}"))
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn number(value: u64) -> anyhow::Result<i64> {
    i64::try_from(value).with_context(|| format!("{value} does not fit into the database"))
}

fn write(
    transaction: &Transaction<'_>,
    net: NetId,
    record: &ProviderRecord,
    stored_ms: i64,
) -> anyhow::Result<()> {
    let net_id: i64 = transaction
        .prepare_cached("SELECT id FROM nets WHERE net = ?1")?
        .query_row([net.0], |row| row.get(0))
        .optional()?
        .context("the net is not in the database")?;
    match record {
        ProviderRecord::Entry {
            index,
            hash,
            kind,
            frame,
        } => insert_entry(transaction, net_id, *index, hash, *kind, frame),
        ProviderRecord::Roster {
            round,
            hash,
            members,
            frame,
            submissions,
        } => {
            let roster = NewRoster {
                round: *round,
                hash,
                members: *members,
                frame,
                submissions,
            };
            insert_roster(transaction, net_id, &roster, stored_ms)
        }
        ProviderRecord::Aggregate(published) => {
            insert_aggregate(transaction, net_id, published, stored_ms)
        }
        ProviderRecord::Lost {
            round,
            disruption,
            missing,
        } => close_lost(transaction, net_id, *round, *disruption, missing),
    }
}

fn insert_entry(
    transaction: &Transaction<'_>,
    net_id: i64,
    index: u64,
    hash: &[u8; 32],
    kind: EntryKind,
    frame: &[u8],
) -> anyhow::Result<()> {
    let newest: Option<i64> = transaction
        .prepare_cached("SELECT max(place) FROM entries WHERE net_id = ?1")?
        .query_row([net_id], |row| row.get(0))?;
    let (place, expected) = (
        number(index)?,
        newest.map_or(0, |newest| newest.saturating_add(1)),
    );
    ensure!(
        place == expected,
        "log entry {place} does not follow the newest one stored; entry {expected} comes next"
    );
    transaction
        .prepare_cached(
            "INSERT INTO entries (net_id, place, hash, kind, frame) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![net_id, place, hash, kind as i64, frame])
        .with_context(|| format!("cannot store log entry {index}"))?;
    Ok(())
}

struct NewRoster<'a> {
    round: Round,
    hash: &'a RosterHash,
    members: u32,
    frame: &'a [u8],
    submissions: &'a [IncludedSubmission],
}

fn insert_roster(
    transaction: &Transaction<'_>,
    net_id: i64,
    roster: &NewRoster<'_>,
    stored_ms: i64,
) -> anyhow::Result<()> {
    let round = number(roster.round.0)?;
    transaction
        .prepare_cached(
            "INSERT INTO rosters (net_id, round, hash, members, included, frame, stored_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            net_id,
            round,
            roster.hash,
            roster.members,
            i64::try_from(roster.submissions.len())?,
            roster.frame,
            stored_ms
        ])
        .with_context(|| {
            format!("the roster of round {round} is refused: a round has only one, ever")
        })?;
    let roster_id = transaction.last_insert_rowid();
    let mut submissions = transaction.prepare_cached(
        "INSERT INTO submissions (roster_id, place, meter, commitments) VALUES (?1, ?2, ?3, ?4)",
    )?;
    let mut frames = transaction.prepare_cached(
        "INSERT INTO submission_frames (roster_id, place, frame) VALUES (?1, ?2, ?3)",
    )?;
    for (place, submission) in (0i64..).zip(roster.submissions) {
        let commitments = submission.commitments.concat();
        submissions.execute(params![roster_id, place, submission.meter.0, commitments])?;
        frames.execute(params![roster_id, place, submission.frame])?;
    }
    Ok(())
}

/// Ends the pending round; what it is waiting for is its roster's id.
fn close(
    transaction: &Transaction<'_>,
    net_id: i64,
    round: Round,
    status: &str,
    lost_why: Option<String>,
) -> anyhow::Result<i64> {
    transaction
        .prepare_cached(
            "UPDATE rosters SET status = ?3, lost_why = ?4 \
             WHERE net_id = ?1 AND round = ?2 AND status = 'pending' RETURNING id",
        )?
        .query_row(params![net_id, number(round.0)?, status, lost_why], |row| {
            row.get(0)
        })
        .optional()?
        .with_context(|| format!("round {round} has no pending roster"))
}

fn prune_frames(transaction: &Transaction<'_>, roster_id: i64) -> anyhow::Result<()> {
    transaction
        .prepare_cached("DELETE FROM submission_frames WHERE roster_id = ?1")?
        .execute([roster_id])?;
    Ok(())
}

fn insert_aggregate(
    transaction: &Transaction<'_>,
    net_id: i64,
    published: &Published,
    stored_ms: i64,
) -> anyhow::Result<()> {
    let roster_id = close(transaction, net_id, published.round, "final", None)?;
    let roster: RosterHash = transaction
        .prepare_cached("SELECT hash FROM rosters WHERE id = ?1")?
        .query_row([roster_id], |row| row.get(0))?;
    ensure!(
        roster == published.roster,
        "the aggregate of round {} is of another roster than the one stored",
        published.round
    );
    transaction
        .prepare_cached(
            "INSERT INTO aggregates (roster_id, log_head, frame, stored_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![roster_id, published.log_head, published.frame, stored_ms])?;
    let mut sums = transaction
        .prepare_cached("INSERT INTO sums (roster_id, channel, mwh) VALUES (?1, ?2, ?3)")?;
    for (channel, sum) in (0i64..).zip(&published.sums) {
        sums.execute(params![roster_id, channel, number(sum.0)?])?;
    }
    prune_frames(transaction, roster_id)
}

fn close_lost(
    transaction: &Transaction<'_>,
    net_id: i64,
    round: Round,
    disruption: Option<Disruption>,
    missing: &[DeviceId],
) -> anyhow::Result<()> {
    let why = disruption.map_or_else(
        || "reveals were missing when the round closed".to_owned(),
        |disruption| disruption.to_string(),
    );
    let roster_id = close(transaction, net_id, round, "lost", Some(why))?;
    let mut silent = transaction.prepare_cached(
        "INSERT INTO missing_reveals (roster_id, place, meter) VALUES (?1, ?2, ?3)",
    )?;
    for (place, meter) in (0i64..).zip(missing) {
        silent.execute(params![roster_id, place, meter.0])?;
    }
    // An audit of a disrupted round needs what the meters sent.
    if disruption.is_none() {
        prune_frames(transaction, roster_id)?;
    }
    Ok(())
}
