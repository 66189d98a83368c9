//! The retained messages (MQTT 3.1.1, section 3.3.1.3), kept by the front
//! because the router keeps them in memory only and replays at most 100.
//!
//! One file per topic, named by the SHA-256 of the topic and replaced
//! atomically: magic, expiry in Unix milliseconds (0 = never), length of the
//! topic, topic, payload; numbers big-endian. A thread writes them, so that
//! an acknowledged message is durable shortly after, not before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use bytes::Bytes;
use rumqttd::protocol::PublishProperties;
use sha2::{Digest, Sha256};

use crate::codec::Message;
use crate::config::{Limits, now};
use crate::permission::{is_topic, matches};

const MAGIC: &[u8; 4] = b"dcr1";
const SUFFIX: &str = "retained";

#[derive(Clone, Debug)]
struct Entry {
    payload: Bytes,
    /// Unix milliseconds; 0 is never.
    expires: u64,
}

#[derive(Debug, Default)]
struct Shared {
    entries: BTreeMap<String, Entry>,
    bytes: usize,
    dirty: BTreeSet<String>,
    closed: bool,
}

/// All retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    writer: Mutex<Option<JoinHandle<()>>>,
    max_messages: usize,
    max_bytes: usize,
}

/// The limit on retained messages or their bytes is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Retained {
    /// Opens the directory, or keeps everything in memory without one.
    pub(crate) fn open(directory: Option<&Path>, limits: &Limits) -> anyhow::Result<Self> {
        let mut shared = Shared::default();
        if let Some(directory) = directory {
            load(directory, &mut shared)
                .with_context(|| format!("state directory {}", directory.display()))?;
        }
        let shared = Arc::new((Mutex::new(shared), Condvar::new()));
        let writer = match directory {
            None => None,
            Some(directory) => {
                let (shared, directory) = (Arc::clone(&shared), directory.to_owned());
                let thread = std::thread::Builder::new().name("broker-retained".to_owned());
                Some(thread.spawn(move || write_changes(&shared, &directory))?)
            }
        };
        Ok(Self {
            shared,
            writer: Mutex::new(writer),
            max_messages: limits.retained_messages,
            max_bytes: limits.retained_bytes,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the message of a topic; an empty payload removes it.
    pub(crate) fn set(&self, topic: &str, message: &Message) -> Result<(), Full> {
        let shared = &mut *self.lock();
        let old = shared
            .entries
            .get(topic)
            .map(|e| topic.len() + e.payload.len());
        if message.payload.is_empty() {
            if let Some(old) = old {
                shared.entries.remove(topic);
                shared.bytes = shared.bytes.saturating_sub(old);
                shared.dirty.insert(topic.to_owned());
            }
        } else {
            let new = topic.len() + message.payload.len();
            let bytes = shared.bytes.saturating_sub(old.unwrap_or(0)) + new;
            let messages = shared.entries.len() + usize::from(old.is_none());
            if bytes > self.max_bytes || messages > self.max_messages {
                return Err(Full);
            }
            let seconds = message
                .properties
                .as_ref()
                .and_then(|p| p.message_expiry_interval);
            let entry = Entry {
                payload: message.payload.clone(),
                expires: seconds.map_or(0, |s| now().as_millis() + u64::from(s) * 1000),
            };
            shared.entries.insert(topic.to_owned(), entry);
            shared.bytes = bytes;
            shared.dirty.insert(topic.to_owned());
        }
        self.shared.1.notify_one();
        Ok(())
    }

    /// The messages that match a filter, in the order of their topics.
    pub(crate) fn matching(&self, filter: &str) -> Vec<Message> {
        let at = now().as_millis();
        let shared = self.lock();
        let live = |entry: &Entry| entry.expires == 0 || entry.expires > at;
        shared
            .entries
            .iter()
            .filter(|(topic, entry)| live(entry) && matches(topic, filter))
            .map(|(topic, entry)| Message {
                topic: Bytes::copy_from_slice(topic.as_bytes()),
                payload: entry.payload.clone(),
                retain: true,
                properties: (entry.expires > 0).then(|| PublishProperties {
                    message_expiry_interval: Some(
                        u32::try_from((entry.expires - at).div_ceil(1000)).unwrap_or(u32::MAX),
                    ),
                    ..PublishProperties::default()
                }),
            })
            .collect()
    }

    /// How many messages are stored.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Bytes of all topics and payloads.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Waits until everything is on disk. Nothing is written after it.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.shared.1.notify_one();
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        self.close();
    }
}

fn path_of(directory: &Path, topic: &str) -> PathBuf {
    let name = hex::encode(Sha256::digest(topic));
    directory.join(format!("{name}.{SUFFIX}"))
}

fn load(directory: &Path, shared: &mut Shared) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let at = now().as_millis();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some(SUFFIX) => {}
            // Left by a crash before it took its place.
            Some("tmp") => {
                fs::remove_file(&path)?;
                continue;
            }
            _ => continue,
        }
        match parse(&fs::read(&path)?) {
            Ok((topic, entry)) if entry.expires > 0 && entry.expires <= at => {
                tracing::debug!(topic, "retained message expired");
                fs::remove_file(&path)?;
            }
            Ok((topic, entry)) => {
                shared.bytes += topic.len() + entry.payload.len();
                shared.entries.insert(topic, entry);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "skipped a retained message");
            }
        }
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> anyhow::Result<(String, Entry)> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .context("not a retained message")?;
    let (expires, rest) = rest.split_first_chunk().context("cut off")?;
    let (length, rest) = rest.split_first_chunk().context("cut off")?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (topic, payload) = rest.split_at_checked(length).context("cut off")?;
    let topic = std::str::from_utf8(topic)?;
    ensure!(is_topic(topic), "not a topic");
    let entry = Entry {
        payload: Bytes::copy_from_slice(payload),
        expires: u64::from_be_bytes(*expires),
    };
    Ok((topic.to_owned(), entry))
}

fn write_changes(shared: &(Mutex<Shared>, Condvar), directory: &Path) {
    loop {
        let mut guard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while guard.dirty.is_empty() && !guard.closed {
            guard = shared.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        let changes: Vec<(String, Option<Entry>)> = std::mem::take(&mut guard.dirty)
            .into_iter()
            .map(|topic| {
                let entry = guard.entries.get(&topic).cloned();
                (topic, entry)
            })
            .collect();
        drop(guard);
        if changes.is_empty() {
            return;
        }
        for (topic, entry) in &changes {
            if let Err(error) = write(directory, topic, entry.as_ref()) {
                tracing::error!(directory = %directory.display(), %error,
                    "cannot store a retained message; it is lost at a restart");
            }
        }
        if let Err(error) = File::open(directory).and_then(|d| d.sync_all()) {
            tracing::error!(directory = %directory.display(), %error, "cannot sync");
        }
    }
}

fn write(directory: &Path, topic: &str, entry: Option<&Entry>) -> std::io::Result<()> {
    let path = path_of(directory, topic);
    let Some(entry) = entry else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(MAGIC)?;
    file.write_all(&entry.expires.to_be_bytes())?;
    file.write_all(&u16::try_from(topic.len()).unwrap_or(0).to_be_bytes())?;
    file.write_all(topic.as_bytes())?;
    file.write_all(&entry.payload)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &'static [u8]) -> Message {
        Message {
            topic: Bytes::new(),
            payload: Bytes::from_static(payload),
            retain: true,
            properties: None,
        }
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<Bytes> {
        retained
            .matching(filter)
            .into_iter()
            .map(|m| m.topic)
            .collect()
    }

    #[test]
    fn messages_survive_reopening_and_removal_does_too() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Retained::open(Some(directory.path()), &Limits::default()).unwrap();
        let retained = open();
        retained.set("a/b", &message(b"1")).unwrap();
        retained.set("a/c", &message(b"2")).unwrap();
        retained.set("a/b", &message(b"3")).unwrap();
        drop(retained);
        let retained = open();
        assert_eq!(topics(&retained, "a/+"), ["a/b", "a/c"]);
        assert_eq!(retained.matching("a/b")[0].payload, "3");
        retained.set("a/b", &message(b"")).unwrap();
        drop(retained);
        assert_eq!(topics(&open(), "a/#"), ["a/c"]);
    }

    #[test]
    fn a_damaged_file_loses_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Retained::open(Some(directory.path()), &Limits::default()).unwrap();
        open().set("a", &message(b"1")).unwrap();
        open().set("b", &message(b"1")).unwrap();
        fs::write(path_of(directory.path(), "a"), b"dcr1\0").unwrap();
        assert_eq!(topics(&open(), "#"), ["b"]);
    }

    #[test]
    fn limits_hold_and_replacing_stays_possible() {
        let limits = Limits {
            retained_messages: 1,
            ..Limits::default()
        };
        let retained = Retained::open(None, &limits).unwrap();
        retained.set("a", &message(b"1")).unwrap();
        assert_eq!(retained.set("b", &message(b"1")), Err(Full));
        retained.set("a", &message(b"2")).unwrap();
        assert_eq!(retained.len(), 1);
    }
}
