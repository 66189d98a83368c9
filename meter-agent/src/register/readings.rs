//! What the meter's own display shows: readings that the household has set, as a log in
//! which each line stands for itself.
//!
//! ```text
//! 2026-11-22T18:30:00Z channel import reads 12345600000 mWh at 987654 pulses, crc32 1c291ca3
//! ```
//!
//! The last line of a channel holds: its reading is that line's and what was counted since.
//! Lines are only ever appended, so the file is also the record of who was told what, and
//! setting a reading never touches the total that bills and rounds are made of.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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

/// The readings set last, by channel.
#[derive(Debug)]
pub(super) struct Readings {
    path: PathBuf,
    newest: BTreeMap<String, Set>,
    /// Where the channels begin whose readings are of another register, until that is written
    /// down.
    outdated: BTreeMap<String, Set>,
}

impl Readings {
    /// Reads the log in a directory, if there is one. Lines that are not whole are told and
    /// left out.
    pub(super) fn open(directory: &Path) -> Result<Self, RegisterError> {
        let path = directory.join(NAME);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(cause) => return Err(RegisterError::Read { path, cause }),
        };
        let mut newest = BTreeMap::new();
        for (index, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.is_empty())
        {
            match decode(line) {
                Some((channel, set)) => drop(newest.insert(channel.to_owned(), set)),
                None => tracing::warn!(line = index + 1, "{} has a damaged line", path.display()),
            }
        }
        Ok(Self {
            path,
            newest,
            outdated: BTreeMap::new(),
        })
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
                self.path.display()
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
            if let Err(cause) = self.append(&encode(&channel, begin, at)) {
                self.outdated.insert(channel, begin);
                return Err(RegisterError::Write {
                    path: self.path.clone(),
                    cause,
                });
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
        self.append(&encode(channel, set, at))
            .map_err(|cause| RegisterError::Write {
                path: self.path.clone(),
                cause,
            })?;
        self.outdated.remove(channel);
        self.newest.insert(channel.to_owned(), set);
        Ok(())
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        give_what_root_made(&file, &self.path)?;
        // A line before that was torn must not swallow this one.
        file.write_all(format!("\n{line}\n").as_bytes())?;
        file.sync_all()?;
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

fn encode(channel: &str, set: Set, at: Timestamp) -> String {
    let at = i64::try_from(at.as_millis()).ok();
    let at = at.and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
    let text = format!(
        "{} channel {channel} reads {} mWh at {} pulses",
        at.unwrap_or_default(),
        set.reading.0,
        set.pulses.0
    );
    format!("{text}, crc32 {:08x}", crc32fast::hash(text.as_bytes()))
}

fn decode(line: &str) -> Option<(&str, Set)> {
    let (text, checksum) = line.rsplit_once(", crc32 ")?;
    if checksum != format!("{:08x}", crc32fast::hash(text.as_bytes())) {
        return None;
    }
    let mut words = text.split(' ').skip(1);
    let mut after = |word: &str| (words.next() == Some(word)).then(|| words.next())?;
    let channel = after("channel")?;
    let reading = MilliwattHours(after("reads")?.parse().ok()?);
    let (unit, pulses) = (words.next()?, (words.next()?, words.next()?));
    let ("mWh", ("at", pulses)) = (unit, pulses) else {
        return None;
    };
    let pulses = Pulses(pulses.parse().ok()?);
    Some((channel, Set { reading, pulses }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_is_left_out() {
        let set = Set {
            reading: MilliwattHours(12_345_600_000),
            pulses: Pulses(987),
        };
        let line = encode("import", set, Timestamp(1_795_372_200_000));
        assert!(line.starts_with("2026-11-22T"), "{line}");
        assert_eq!(decode(&line), Some(("import", set)));
        for at in 0..line.len() {
            assert_eq!(decode(&line[..at]), None);
            let mut damaged = line.clone().into_bytes();
            damaged[at] ^= 0x01;
            assert_eq!(decode(&String::from_utf8_lossy(&damaged)), None);
        }
    }
}
