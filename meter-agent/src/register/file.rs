//! The register on disk: two generations of a small text file, each with a checksum.
//!
//! ```text
//! dcnet register 1
//! generation 42
//! channel import 1000 123456
//! crc32 1c291ca3
//! ```
//!
//! A channel line holds name, imp/kWh and pulses; empty lines fill the file up to a multiple of
//! [`BLOCK`]. A save overwrites the older of the two files in place, then fdatasync: nothing but
//! one block goes to the memory card. A file that is not there, or of another length, is made
//! anew: a temporary file, fsync, rename, fsync of the directory. So one whole generation is always
//! left, whatever a loss of power does to the other.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dcnet::units::{ImpulsesPerKwh, Pulses};
use secrets::permissions::{directory_of, give_to_owner_of};

use super::RegisterChannel;

const HEADING: &str = "dcnet register 1";
const NAMES: [&str; 2] = ["register.0", "register.1"];
const LOCK: &str = "register.lock";
const TEMPORARY: &str = "register.new";
/// Of the file's length, so that it seldom changes, in bytes.
const BLOCK: usize = 64;
/// Longer files are not ours: 16 channels take under 1 KiB.
const LENGTH_LIMIT: u64 = 64 * 1024;

/// Why a register cannot be opened, counted or saved.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// A file or directory cannot be read or made.
    #[error("register: cannot read {}: {cause}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// The total cannot be made durable.
    #[error("register: cannot write {}: {cause}; counting goes on in memory", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// Another process has the register.
    #[error("register: {} is in use by another process; stop it first", directory.display())]
    InUse {
        /// Where the register is.
        directory: PathBuf,
    },
    /// No generation is whole. A register never starts again at zero by itself.
    #[error(
        "register: both generations in {} are damaged ({detail}); restore them from a backup, or \
         move register.0 and register.1 away to start at zero",
        directory.display()
    )]
    Damaged {
        /// Where the register is.
        directory: PathBuf,
        /// What is wrong with each.
        detail: String,
    },
    /// The file was counted with another constant: its pulses would turn into other energy.
    #[error(
        "register: channel {name} was counted with {stored} imp/kWh but is configured with \
         {configured}; correct `impulses_per_kwh`, or after a change of the meter move register.0 \
         and register.1 away to start at zero"
    )]
    Constant {
        /// The channel.
        name: String,
        /// In the file.
        stored: u32,
        /// In the configuration.
        configured: u32,
    },
    /// The file has a channel that is not configured; saving would drop its total.
    #[error(
        "register: channel {0} has a total but is not configured; add it again, or move \
         register.0 and register.1 away to start at zero"
    )]
    ChannelGone(String),
    /// A batch for a channel that the register does not have.
    #[error("register: there is no channel number {0}")]
    UnknownChannel(usize),
    /// A reading of a channel that is not configured.
    #[error("register: there is no channel {0:?} in the configuration")]
    NoChannel(String),
    /// The total of a channel does not fit into 64 bits of mWh.
    #[error("register: the total of channel {0} would exceed 2^64 mWh; the batch is not counted")]
    Overflow(String),
}

/// A locked directory with the two generations.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    generation: u64,
    /// The file that the next save replaces.
    older: usize,
    /// Held for the lock.
    _lock: File,
}

#[derive(Debug, PartialEq, Eq)]
struct Generation {
    number: u64,
    channels: Vec<(String, ImpulsesPerKwh, Pulses)>,
}

/// What one of the two files holds.
enum Slot {
    Missing,
    Damaged(&'static str),
    Whole(Generation),
}

impl Files {
    pub(super) fn open(directory: &Path) -> Result<Self, RegisterError> {
        let failed = |path: &Path, cause| RegisterError::Read {
            path: path.to_path_buf(),
            cause,
        };
        std::fs::create_dir_all(directory)
            .and_then(|()| give_what_root_made(&File::open(directory)?, directory))
            .map_err(|e| failed(directory, e))?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|lock| give_what_root_made(&lock, &path).map(|()| lock))
            .map_err(|e| failed(&path, e))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RegisterError::InUse {
                directory: directory.to_path_buf(),
            },
            TryLockError::Error(cause) => failed(&path, cause),
        })?;
        let mut files = Self {
            directory: directory.to_path_buf(),
            generation: 0,
            older: 0,
            _lock: lock,
        };
        let [first, second] = files.slots()?;
        let number = |slot: &Slot| match slot {
            Slot::Whole(generation) => generation.number,
            Slot::Missing | Slot::Damaged(_) => 0,
        };
        files.generation = number(&first).max(number(&second));
        files.older = usize::from(number(&first) > number(&second));
        Ok(files)
    }

    /// The totals of `channels`: of every whole generation the larger, zero for a channel
    /// that is in none.
    pub(super) fn read(&self, channels: &[RegisterChannel]) -> Result<Vec<Pulses>, RegisterError> {
        let (mut whole, mut damage) = (Vec::new(), Vec::new());
        for (slot, name) in self.slots()?.into_iter().zip(NAMES) {
            match slot {
                Slot::Missing => {}
                Slot::Damaged(why) => damage.push(format!("{name}: {why}")),
                Slot::Whole(generation) => whole.push(generation),
            }
        }
        let detail = damage.join(", ");
        if whole.is_empty() && !damage.is_empty() {
            return Err(RegisterError::Damaged {
                directory: self.directory.clone(),
                detail,
            });
        }
        if !damage.is_empty() {
            tracing::warn!(
                detail,
                "one generation of the register is damaged; going on from the other, which may \
                 be one save older"
            );
        }
        let mut totals = vec![Pulses(0); channels.len()];
        for (name, constant, pulses) in whole.into_iter().flat_map(|whole| whole.channels) {
            let Some((channel, total)) = channels
                .iter()
                .zip(totals.iter_mut())
                .find(|(channel, _)| channel.name == name)
            else {
                return Err(RegisterError::ChannelGone(name));
            };
            if channel.constant != constant {
                return Err(RegisterError::Constant {
                    name,
                    stored: constant.get(),
                    configured: channel.constant.get(),
                });
            }
            *total = (*total).max(pulses);
        }
        Ok(totals)
    }

    pub(super) fn write(
        &mut self,
        channels: &[RegisterChannel],
        totals: &[Pulses],
    ) -> Result<(), RegisterError> {
        let number = self.generation.saturating_add(1);
        let generation = Generation {
            number,
            channels: channels
                .iter()
                .zip(totals)
                .map(|(channel, total)| (channel.name.clone(), channel.constant, *total))
                .collect(),
        };
        let path = self.slot_path(self.older);
        let text = generation.encode();
        overwrite(&path, &text)
            .and_then(|done| {
                if done {
                    Ok(())
                } else {
                    self.replace(&path, &text)
                }
            })
            .map_err(|cause| RegisterError::Write { path, cause })?;
        self.generation = number;
        self.older = 1 - self.older;
        Ok(())
    }

    fn replace(&self, path: &Path, text: &str) -> io::Result<()> {
        let temporary = self.directory.join(TEMPORARY);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        give_what_root_made(&file, &temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(&self.directory)?.sync_all()
    }

    fn slots(&self) -> Result<[Slot; 2], RegisterError> {
        Ok([self.slot(0)?, self.slot(1)?])
    }

    fn slot(&self, index: usize) -> Result<Slot, RegisterError> {
        let path = self.slot_path(index);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(LENGTH_LIMIT).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Generation::decode(&bytes).map_or_else(Slot::Damaged, Slot::Whole)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Slot::Missing),
            Err(cause) => Err(RegisterError::Read { path, cause }),
        }
    }

    fn slot_path(&self, index: usize) -> PathBuf {
        let [first, second] = NAMES;
        self.directory.join(if index == 0 { first } else { second })
    }
}

/// Gives a file or directory of root to the owner of the directory it is in: what root makes with a
/// command must be the agent's.
pub(super) fn give_what_root_made(file: &File, path: &Path) -> io::Result<()> {
    if file.metadata()?.uid() != 0 {
        return Ok(());
    }
    give_to_owner_of(directory_of(path), path).map_err(io::Error::other)
}

/// Whether there was a file of the text's length to take it.
fn overwrite(path: &Path, text: &str) -> io::Result<bool> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() != text.len() as u64 {
        return Ok(false);
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    Ok(true)
}

impl Generation {
    fn encode(&self) -> String {
        let mut text = format!("{HEADING}\ngeneration {}\n", self.number);
        for (name, constant, pulses) in &self.channels {
            text += &format!("channel {name} {} {}\n", constant.get(), pulses.0);
        }
        let checksum = crc32fast::hash(text.as_bytes());
        text += &format!("crc32 {checksum:08x}\n");
        let length = text.len().next_multiple_of(BLOCK);
        text.extend(std::iter::repeat_n('\n', length - text.len()));
        text
    }

    /// Accepts exactly what `encode` writes, byte for byte.
    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "not text")?;
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return Err("not a register file of version 1");
        }
        let number = lines
            .next()
            .and_then(|line| line.strip_prefix("generation "))
            .and_then(|number| number.parse().ok())
            .ok_or("no generation")?;
        let channels = lines
            .take_while(|line| !line.starts_with("crc32 "))
            .map(|line| {
                let mut words = line.strip_prefix("channel ")?.split(' ');
                let name = words.next()?.to_owned();
                let constant = ImpulsesPerKwh::new(words.next()?.parse().ok()?)?;
                let pulses = Pulses(words.next()?.parse().ok()?);
                Some((name, constant, pulses))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or("a channel line is damaged")?;
        let generation = Self { number, channels };
        if generation.encode() == text {
            Ok(generation)
        } else {
            Err("the checksum does not match")
        }
    }
}
