//! What the meter's own display shows: readings that the household has set, as a log in
//! which each line stands for itself.
//!
//! ```text
//! 2026-11-22T18:30:00Z channel import reads 12345600000 mWh at 987654 pulses, crc32 1c291ca3
//! ```
//!
//! The last line of a channel holds: its reading is that line's and what was counted since.
//! Lines are appended, so the file is also the record of who was told what, and setting a
//! reading never touches the total that bills and rounds are made of. Only the household has
//! older lines removed, with everything else that it has deleted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dcnet::time::Timestamp;
use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};

use super::RegisterError;
use super::file::give_what_root_made;

const NAME: &str = "readings.log";

/// A reading that was set, and the total at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Set {
    reading: MilliwattHours,
    pulses: Pulses,
}

/// The file in which each reading is that was set.
#[derive(Debug)]
pub struct ReadingLog {
    path: PathBuf,
    /// Held by whoever writes.
    writing: Mutex<()>,
}

/// A reading that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetReading {
    /// When, by ISO 8601.
    pub utc: String,
    /// Of which channel.
    pub channel: String,
    /// What the display showed.
    pub reading: MilliwattHours,
    /// The register's total at that time.
    pub pulses: Pulses,
}

impl ReadingLog {
    /// The log of a register's directory.
    fn of(directory: &Path) -> Self {
        Self {
            path: directory.join(NAME),
            writing: Mutex::default(),
        }
    }

    /// All readings that were set, in the order of time. Lines that are not whole are told in
    /// the log and left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn entries(&self) -> Result<Vec<SetReading>, RegisterError> {
        let path = &self.path;
        let text = match std::fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(cause) => {
                let path = path.clone();
                return Err(RegisterError::Read { path, cause });
            }
        };
        let mut entries = Vec::new();
        for (index, line) in text.lines().enumerate() {
            match decode(line) {
                _ if line.is_empty() => {}
                Some(entry) => entries.push(entry),
                None => tracing::warn!(line = index + 1, "{} has a damaged line", path.display()),
            }
        }
        Ok(entries)
    }

    /// Keeps of each channel the reading that was set last, from which counting goes on, and
    /// erases those before.
    ///
    /// # Errors
    /// The file cannot be read or written; the last readings are in it whatever happens.
    pub fn forget(&self) -> anyhow::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut newest = BTreeMap::new();
        for entry in self.entries()? {
            newest.insert(entry.channel.clone(), entry);
        }
        if !self.path.try_exists()? {
            return Ok(());
        }
        let lines = newest.values().map(|entry| encode(entry) + "\n");
        crate::erase::replace(&self.path, &lines.collect::<String>())
    }

    fn append(&self, entry: &SetReading) -> Result<(), RegisterError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let append = || {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&self.path)?;
            give_what_root_made(&file, &self.path)?;
            // A line before that was torn must not swallow this one.
            file.write_all(format!("\n{}\n", encode(entry)).as_bytes())?;
            file.sync_all()?;
            match self.path.parent() {
                Some(directory) => File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        append().map_err(|cause| RegisterError::Write {
            path: self.path.clone(),
            cause,
        })
    }
}

/// The readings set last, by channel.
#[derive(Debug)]
pub(super) struct Readings {
    log: Arc<ReadingLog>,
    newest: BTreeMap<String, Set>,
    /// Where the channels begin whose readings are of another register, until that is written
    /// down.
    outdated: BTreeMap<String, Set>,
}

impl Readings {
    /// Reads the log in a directory, if there is one. Lines that are not whole are told and
    /// left out.
    pub(super) fn open(directory: &Path) -> Result<Self, RegisterError> {
        let log = ReadingLog::of(directory);
        let mut newest = BTreeMap::new();
        for entry in log.entries()? {
            let set = Set {
                reading: entry.reading,
                pulses: entry.pulses,
            };
            newest.insert(entry.channel, set);
        }
        Ok(Self {
            log: Arc::new(log),
            newest,
            outdated: BTreeMap::new(),
        })
    }

    pub(super) fn log(&self) -> Arc<ReadingLog> {
        Arc::clone(&self.log)
    }

    /// The channel begins at `total`. What was set at more than that was set in another register,
    /// which is gone: from here on the reading is what is counted.
    pub(super) fn begin(&mut self, channel: &str, constant: ImpulsesPerKwh, total: Pulses) {
        let outdated = self
            .newest
            .get(channel)
            .is_some_and(|set| set.pulses > total);
        if let (true, Some(reading)) = (outdated, constant.energy(total)) {
            tracing::warn!(
                channel,
                "the reading in {} is of another register; set it again",
                self.log.path.display()
            );
            self.newest.remove(channel);
            let begin = Set {
                reading,
                pulses: total,
            };
            self.outdated.insert(channel.to_owned(), begin);
        }
    }

    /// Writes down that readings are outdated, so that they stay so when the total has passed
    /// what they were set at.
    pub(super) fn save(&mut self, at: Timestamp) -> Result<(), RegisterError> {
        while let Some((channel, begin)) = self.outdated.pop_first() {
            if let Err(error) = self.log.append(&begin.of(&channel, at)) {
                self.outdated.insert(channel, begin);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether somebody has ever said what the display of a channel shows.
    pub(super) fn is_set(&self, channel: &str) -> bool {
        self.newest.contains_key(channel)
    }

    /// What the display of a channel shows at a total.
    pub(super) fn of(
        &self,
        channel: &str,
        constant: ImpulsesPerKwh,
        total: Pulses,
    ) -> Option<MilliwattHours> {
        let counted = constant.energy(total)?;
        let Some(set) = self.newest.get(channel) else {
            return Some(counted);
        };
        let since = counted.checked_sub(constant.energy(set.pulses)?)?;
        set.reading.checked_add(since)
    }

    /// Sets a reading, durably.
    pub(super) fn set(
        &mut self,
        channel: &str,
        reading: MilliwattHours,
        pulses: Pulses,
        at: Timestamp,
    ) -> Result<(), RegisterError> {
        let set = Set { reading, pulses };
        self.log.append(&set.of(channel, at))?;
        self.outdated.remove(channel);
        self.newest.insert(channel.to_owned(), set);
        Ok(())
    }
}

impl Set {
    fn of(self, channel: &str, at: Timestamp) -> SetReading {
        let at = i64::try_from(at.as_millis()).ok();
        let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
        SetReading {
            utc: at.unwrap_or_default().to_string(),
            channel: channel.to_owned(),
            reading: self.reading,
            pulses: self.pulses,
        }
    }
}

fn encode(entry: &SetReading) -> String {
    let text = format!(
        "{} channel {} reads {} mWh at {} pulses",
        entry.utc, entry.channel, entry.reading.0, entry.pulses.0
    );
    format!("{text}, crc32 {:08x}", crc32fast::hash(text.as_bytes()))
}

fn decode(line: &str) -> Option<SetReading> {
    let (text, checksum) = line.rsplit_once(", crc32 ")?;
    if checksum != format!("{:08x}", crc32fast::hash(text.as_bytes())) {
        return None;
    }
    let mut words = text.split(' ');
    let utc = words.next()?.to_owned();
    let mut after = |word: &str| (words.next() == Some(word)).then(|| words.next())?;
    let channel = after("channel")?.to_owned();
    let reading = MilliwattHours(after("reads")?.parse().ok()?);
    let (unit, pulses) = (words.next()?, (words.next()?, words.next()?));
    let ("mWh", ("at", pulses)) = (unit, pulses) else {
        return None;
    };
    let pulses = Pulses(pulses.parse().ok()?);
    Some(SetReading {
        utc,
        channel,
        reading,
        pulses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(channel: &str, at: u64, reading: u64) -> SetReading {
        let set = Set {
            reading: MilliwattHours(reading),
            pulses: Pulses(987),
        };
        set.of(channel, Timestamp(at))
    }

    #[test]
    fn a_damaged_line_is_left_out() {
        let entry = set("import", 1_795_372_200_000, 12_345_600_000);
        let line = encode(&entry);
        assert!(line.starts_with("2026-11-22T"), "{line}");
        assert_eq!(decode(&line), Some(entry));
        for at in 0..line.len() {
            assert_eq!(decode(&line[..at]), None);
            let mut damaged = line.clone().into_bytes();
            damaged[at] ^= 0x01;
            assert_eq!(decode(&String::from_utf8_lossy(&damaged)), None);
        }
    }

    #[test]
    fn what_is_forgotten_is_every_reading_but_the_last_of_each_channel() {
        let directory = tempfile::tempdir().unwrap();
        let log = ReadingLog::of(directory.path());
        log.forget().unwrap();
        assert!(!log.path.exists(), "nothing was ever set");
        let [old, export, new] = [
            set("import", 1000, 7_770_000),
            set("export", 2000, 1),
            set("import", 3000, 8_880_000),
        ];
        for entry in [&old, &export, &new] {
            log.append(entry).unwrap();
        }
        assert_eq!(log.entries().unwrap(), [old, export.clone(), new.clone()]);
        log.forget().unwrap();
        assert_eq!(log.entries().unwrap(), [export, new.clone()]);
        let text = std::fs::read_to_string(&log.path).unwrap();
        assert!(!text.contains("7770000"), "{text}");
        let readings = Readings::open(directory.path()).unwrap();
        let constant = ImpulsesPerKwh::new(1000).unwrap();
        let shown = readings.of("import", constant, new.pulses);
        assert_eq!(shown, Some(new.reading), "it is what is counted on from");
    }
}
