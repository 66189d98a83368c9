//! Durable state. [`MeterJournal`] keeps a meter's records in two SQLite files.
//!
//! **Durable.** Write-ahead log with `synchronous=FULL`: a commit has reached the
//! disk (fsync) when [`Journal::commit`] returns, and is there completely or not
//! at all after a crash.
//!
//! **One process.** An exclusive lock is held while the journal is open: two agents
//! with one state would use pads twice. Nothing opens a database file except SQLite
//! itself, or the lock would be lost ([`crate::database`]).
//!
//! **Erased is erased.** `secure_delete` overwrites what is deleted, and the
//! write-ahead log, which holds older versions of pages, is truncated after every
//! commit that erased or replaced a value. That is not enough: when SQLite moves
//! cells between pages it leaves copies in the free middle of a page, which
//! `secure_delete` does not reach (about one erasure in a thousand). So the file is
//! also rewritten (`VACUUM`) when it is opened, and during operation so often that
//! each erasing commit pays for [`REWRITE_PER_ERASURE`] bytes of the rewrite: a file
//! up to that size is rewritten by every erasing commit, that of a small net by every
//! fourth one, so every second round, and one of 1 MiB by every 128th. What the file system or flash translation layer keeps of overwritten
//! blocks is out of reach; use an encrypted volume against theft of the card.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::output::{Record, Store};
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use crate::database;

/// Bytes of file rewriting that each commit with an erasure pays for: low enough
/// not to wear out a memory card at one round in 15 minutes.
pub const REWRITE_PER_ERASURE: u64 = 8 * 1024;

/// Version of the schema, in `user_version`.
const SCHEMA: i64 = 1;

/// A durable store for the records of a state machine.
pub trait Journal: Send + 'static {
    /// What is stored.
    type Record: Send + 'static;

    /// Stores all of `records` or none, in their order; durable when it returns.
    ///
    /// # Errors
    /// Nothing may be assumed about what is stored, except that it is one of the two
    /// states before and after the call: the caller must stop and load again.
    fn commit(&mut self, records: &[Self::Record]) -> anyhow::Result<()>;
}

/// The journal of a meter: one file for the state of the net, and one for the
/// register, which outlives nets.
///
/// A commit that concerns both files writes the **register first**. A crash between
/// the two leaves the register ahead: an interval is marked as submitted while its
/// submission was not stored, and is only lost to the aggregate. The reverse order
/// could leave a stored submission whose interval is not marked, so that the same
/// consumption could be submitted twice.
#[derive(Debug)]
pub struct MeterJournal {
    net: StoreFile,
    register: StoreFile,
}

impl MeterJournal {
    /// Opens both files; makes them (mode 0600) and their directories (mode 0700)
    /// if they are missing.
    ///
    /// # Errors
    /// Wide permissions; a file in use by another process, of another store, of a
    /// newer version, or damaged; input/output errors.
    pub fn open(net_file: &Path, register_file: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            register: StoreFile::open(register_file, Store::Register)?,
            net: StoreFile::open(net_file, Store::Net)?,
        })
    }

    /// All records of a store, ordered by key.
    ///
    /// # Errors
    /// Input/output errors or a damaged file.
    pub fn load(&self, store: Store) -> anyhow::Result<Vec<Record>> {
        match store {
            Store::Net => self.net.load(),
            Store::Register => self.register.load(),
        }
    }
}

impl Journal for MeterJournal {
    type Record = Record;

    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        self.register.commit(records)?;
        self.net.commit(records)
    }
}

#[derive(Debug)]
struct StoreFile {
    path: PathBuf,
    store: Store,
    database: Connection,
    /// Bytes of rewriting that erasures have paid for since the last one.
    credit: u64,
}

fn table(store: Store) -> &'static str {
    match store {
        Store::Net => "net",
        Store::Register => "register",
    }
}

/// `application_id` of the file format, so that files cannot be confused.
fn application_id(store: Store) -> i64 {
    i64::from(u32::from_be_bytes(match store {
        Store::Net => *b"DCnt",
        Store::Register => *b"DCrg",
    }))
}

impl StoreFile {
    fn open(path: &Path, store: Store) -> anyhow::Result<Self> {
        let mut file = Self {
            path: path.to_owned(),
            store,
            database: database::open(path, "secrets")?,
            credit: 0,
        };
        file.configure().map_err(|error| {
            let busy = error
                .downcast_ref::<rusqlite::Error>()
                .and_then(rusqlite::Error::sqlite_error_code)
                == Some(ErrorCode::DatabaseBusy);
            if busy {
                anyhow::anyhow!(
                    "{} is in use by another process; one state must never be driven twice, \
                     so stop the other one first",
                    path.display()
                )
            } else {
                error.context(format!("cannot use {}", path.display()))
            }
        })?;
        Ok(file)
    }

    fn configure(&mut self) -> anyhow::Result<()> {
        let database = &self.database;
        database.busy_timeout(Duration::ZERO)?;
        database.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        // VACUUM's working copy holds every secret.
        database.pragma_update(None, "temp_store", "MEMORY")?;
        database.pragma_update(None, "secure_delete", "ON")?;
        database::use_write_ahead_log(database)?;
        database.execute_batch("BEGIN EXCLUSIVE; COMMIT;")?;
        self.migrate()?;
        let check: String = self
            .database
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if check != "ok" {
            bail!("the file is damaged ({check}); restore it or start anew");
        }
        self.rewrite()?;
        self.truncate_log()
    }

    fn migrate(&mut self) -> anyhow::Result<()> {
        let version: i64 = self.pragma("user_version")?;
        match version {
            0 => {
                let tables: i64 =
                    self.database
                        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
                if tables != 0 {
                    bail!("it is a database of another program");
                }
                let transaction = self.database.transaction()?;
                transaction.execute_batch(&format!(
                    "CREATE TABLE {} (key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;",
                    table(self.store)
                ))?;
                transaction.pragma_update(None, "application_id", application_id(self.store))?;
                transaction.pragma_update(None, "user_version", SCHEMA)?;
                transaction.commit()?;
            }
            SCHEMA => {
                if self.pragma("application_id")? != application_id(self.store) {
                    bail!("it is not a file of the store \"{}\"", table(self.store));
                }
            }
            newer => {
                bail!("it has schema version {newer}, this program knows {SCHEMA}; use a newer one")
            }
        }
        Ok(())
    }

    fn pragma(&self, name: &str) -> rusqlite::Result<i64> {
        self.database
            .pragma_query_value(None, name, |row| row.get(0))
    }

    fn load(&self) -> anyhow::Result<Vec<Record>> {
        let mut statement = self.database.prepare_cached(&format!(
            "SELECT key, value FROM {} ORDER BY key",
            table(self.store)
        ))?;
        let records = statement.query_map([], |row| {
            Ok(Record {
                store: self.store,
                key: row.get(0)?,
                value: Some(row.get(1)?),
            })
        })?;
        records
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot load {}", self.path.display()))
    }

    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let store = self.store;
        if records.iter().all(|record| record.store != store) {
            return Ok(());
        }
        let erased = self
            .write(records)
            .with_context(|| format!("cannot commit to {}", self.path.display()))?;
        if erased {
            self.purge()
                .with_context(|| format!("cannot erase values from {}", self.path.display()))?;
        }
        Ok(())
    }

    /// Whether a value was erased or replaced.
    fn write(&mut self, records: &[Record]) -> rusqlite::Result<bool> {
        let table = table(self.store);
        let mut erased = false;
        let transaction = self
            .database
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        {
            let mut old = transaction
                .prepare_cached(&format!("SELECT value = ?2 FROM {table} WHERE key = ?1"))?;
            let mut put = transaction.prepare_cached(&format!(
                "INSERT INTO {table} (key, value) VALUES (?1, ?2) \
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ))?;
            let mut erase =
                transaction.prepare_cached(&format!("DELETE FROM {table} WHERE key = ?1"))?;
            for record in records.iter().filter(|record| record.store == self.store) {
                match &record.value {
                    Some(value) => {
                        let same: Option<bool> = old
                            .query_row(params![record.key, value], |row| row.get(0))
                            .optional()?;
                        if same != Some(true) {
                            put.execute(params![record.key, value])?;
                        }
                        erased |= same == Some(false);
                    }
                    None => erased |= erase.execute(params![record.key])? > 0,
                }
            }
        }
        transaction.commit()?;
        Ok(erased)
    }

    /// Removes what an erasure leaves behind; see the head of this module.
    fn purge(&mut self) -> anyhow::Result<()> {
        let size = self
            .pragma("page_count")?
            .saturating_mul(self.pragma("page_size")?);
        self.credit = self.credit.saturating_add(REWRITE_PER_ERASURE);
        if self.credit >= u64::try_from(size).unwrap_or(0) {
            self.rewrite()?;
        }
        self.truncate_log()
    }

    fn rewrite(&mut self) -> anyhow::Result<()> {
        self.database
            .execute_batch("VACUUM")
            .context("cannot rewrite the file (it needs as much free space as it is large)")?;
        self.credit = 0;
        Ok(())
    }

    fn truncate_log(&self) -> anyhow::Result<()> {
        let busy: i64 = self
            .database
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy != 0 {
            bail!("the write-ahead log cannot be truncated: the file is busy");
        }
        Ok(())
    }
}
