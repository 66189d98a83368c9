//! Which certificates were issued to which device, when and for what: one JSON
//! object per line in the administrator's directory, only ever appended to.
//!
//! The household label stands here and nowhere else. The file has mode 0600.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use dcnet::identity::{DeviceId, Role};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// One certificate issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The device.
    pub device: DeviceId,
    /// Its role.
    pub role: Role,
    /// Its net, if the certificate names one.
    pub net: Option<NetId>,
    /// When the certificate was issued, to the second.
    pub issued: Timestamp,
    /// The last moment of its validity.
    pub expires: Timestamp,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: [u8; 32],
    /// The administrator's own note of whose meter it is.
    pub household: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    device: String,
    role: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    net: Option<String>,
    issued: String,
    expires: String,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    household: Option<String>,
}

/// A moment as RFC 3339 text in UTC, to the second.
pub fn utc(at: Timestamp) -> String {
    i64::try_from(at.as_millis() / 1000)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| format!("{} ms", at.as_millis()), |t| t.to_string())
}

fn from_utc(text: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok().map(Timestamp)
}

/// Reads a device id: 32 hexadecimal digits.
pub fn device_id(text: &str) -> Option<DeviceId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).ok()?;
    Some(DeviceId(id))
}

/// Reads the word for a role.
pub fn role(text: &str) -> Option<Role> {
    Role::ALL.into_iter().find(|role| role.as_str() == text)
}

impl From<&Entry> for Line {
    fn from(entry: &Entry) -> Self {
        Self {
            device: entry.device.to_string(),
            role: entry.role.as_str().to_owned(),
            net: entry.net.map(|net| net.to_string()),
            issued: utc(entry.issued),
            expires: utc(entry.expires),
            fingerprint: hex::encode(entry.fingerprint),
            household: entry.household.clone(),
        }
    }
}

impl TryFrom<Line> for Entry {
    type Error = &'static str;

    fn try_from(line: Line) -> Result<Self, &'static str> {
        let mut fingerprint = [0; 32];
        hex::decode_to_slice(&line.fingerprint, &mut fingerprint).map_err(|_| "fingerprint")?;
        Ok(Self {
            device: device_id(&line.device).ok_or("device")?,
            role: role(&line.role).ok_or("role")?,
            net: match line.net {
                Some(net) => Some(net.parse().map_err(|_| "net")?),
                None => None,
            },
            issued: from_utc(&line.issued).ok_or("issued")?,
            expires: from_utc(&line.expires).ok_or("expires")?,
            fingerprint,
            household: line.household,
        })
    }
}

/// The open registry. While it is open no other process can open it, so two
/// administrators at once wait for each other instead of losing entries.
pub(crate) struct Registry {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

impl Registry {
    /// Opens the file, making it (mode 0600) if it is not there, and reads it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::io(path))?;
        file.lock().map_err(Error::io(path))?;
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
        file.read_to_string(&mut text).map_err(Error::io(path))?;
        let entries = parse(&text).map_err(|(line, reason)| Error::Registry {
            path: path.to_owned(),
            line,
            reason,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            entries,
        })
    }

    /// Every certificate issued, oldest first.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The newest certificate of a device.
    pub(crate) fn newest(&self, device: DeviceId) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.device == device)
    }

    /// Adds an entry; durable on return.
    pub(crate) fn append(&mut self, entry: Entry) -> Result<(), Error> {
        let mut line = serde_json::to_string(&Line::from(&entry)).map_err(|e| Error::Registry {
            path: self.path.clone(),
            line: self.entries.len() + 1,
            reason: e.to_string(),
        })?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_all())
            .map_err(Error::io(&self.path))?;
        self.entries.push(entry);
        Ok(())
    }
}

fn parse(text: &str) -> Result<Vec<Entry>, (usize, String)> {
    // An append that was cut short leaves no newline: its certificate was never handed out.
    if !text.is_empty() && !text.ends_with('\n') {
        return Err((
            text.lines().count(),
            "cut short: delete this line, its certificate was never handed out".to_owned(),
        ));
    }
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str::<Line>(line)
                .map_err(|e| (index + 1, e.to_string()))
                .and_then(|line| Entry::try_from(line).map_err(|f| (index + 1, f.to_owned())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(device: u8, household: Option<&str>) -> Entry {
        Entry {
            device: DeviceId([device; 16]),
            role: Role::Meter,
            net: Some(NetId([7; 16])),
            issued: Timestamp(1_800_000_000_000),
            expires: Timestamp(1_900_000_000_000),
            fingerprint: [9; 32],
            household: household.map(str::to_owned),
        }
    }

    #[test]
    fn entries_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.jsonl");
        let entries = [
            entry(1, Some("Elm Street 3, \"top\"\nleft")),
            entry(2, None),
        ];
        for e in &entries {
            Registry::open(&path).unwrap().append(e.clone()).unwrap();
        }
        let registry = Registry::open(&path).unwrap();
        assert_eq!(registry.entries(), entries);
        assert_eq!(registry.newest(DeviceId([2; 16])), Some(&entries[1]));
        assert_eq!(registry.newest(DeviceId([3; 16])), None);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_damaged_registry_is_named_by_line_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.jsonl");
        Registry::open(&path)
            .unwrap()
            .append(entry(1, None))
            .unwrap();
        let good = std::fs::read_to_string(&path).unwrap();
        let unknown = good.replace("\"role\"", "\"colour\":1,\"role\"");
        let other_role = good.replace("\"meter\"", "\"king\"");
        for bad in ["\n", "{}\n", &unknown, &other_role, &good[..40]] {
            let text = format!("{good}{bad}");
            std::fs::write(&path, &text).unwrap();
            let Err(Error::Registry { line, .. }) = Registry::open(&path) else {
                panic!("accepted {bad:?}");
            };
            assert_eq!(line, 2, "{bad:?}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
