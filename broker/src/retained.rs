//! The retained messages (MQTT 3.1.1, section 3.3.1.3), kept by the front
//! because the router keeps them in memory only and replays at most 100.
//!
//! One file per topic, named by the SHA-256 of the topic and replaced
//! atomically: magic, when it was published in Unix milliseconds (big-endian),
//! and the message as an MQTT 5 PUBLISH. A thread writes them, so that an
//! acknowledged message is durable shortly after, not before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, ensure};
use dcnet::time::Timestamp;
use sha2::{Digest, Sha256};

use crate::codec::{self, Message};
use crate::config::{Limits, now};
use crate::permission::{is_topic, matches};

const MAGIC: &[u8; 4] = b"dcr2";
const SUFFIX: &str = "retained";

#[derive(Debug, Default)]
struct Shared {
    entries: BTreeMap<String, Message>,
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
        let old = shared.entries.get(topic).map(Message::size);
        if message.payload.is_empty() {
            if let Some(old) = old {
                shared.entries.remove(topic);
                shared.bytes = shared.bytes.saturating_sub(old);
                shared.dirty.insert(topic.to_owned());
            }
        } else {
            let bytes = shared.bytes.saturating_sub(old.unwrap_or(0)) + message.size();
            let messages = shared.entries.len() + usize::from(old.is_none());
            if bytes > self.max_bytes || messages > self.max_messages {
                return Err(Full);
            }
            shared.entries.insert(topic.to_owned(), message.clone());
            shared.bytes = bytes;
            shared.dirty.insert(topic.to_owned());
        }
        self.shared.1.notify_one();
        Ok(())
    }

    /// The messages that match a filter, in the order of their topics.
    pub(crate) fn matching(&self, filter: &str) -> Vec<Message> {
        let at = now();
        let shared = self.lock();
        shared
            .entries
            .iter()
            .filter(|(topic, message)| !message.is_expired(at) && matches(topic, filter))
            .map(|(_, message)| message.clone())
            .collect()
    }

    /// How many messages are stored.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Bytes of all topics, payloads and properties.
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
    let at = now();
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
            Ok((topic, message)) if message.is_expired(at) => {
                tracing::debug!(topic, "retained message expired");
                fs::remove_file(&path)?;
            }
            Ok((topic, message)) => {
                shared.bytes += message.size();
                shared.entries.insert(topic, message);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "skipped a retained message");
            }
        }
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> anyhow::Result<(String, Message)> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .context("not a retained message")?;
    let (received, packet) = rest.split_first_chunk().context("cut off")?;
    let mut message = codec::from_packet(packet).map_err(|_| anyhow!("damaged"))?;
    message.received = Timestamp(u64::from_be_bytes(*received));
    let topic = std::str::from_utf8(&message.topic)?.to_owned();
    ensure!(is_topic(&topic), "not a topic");
    Ok((topic, message))
}

fn write_changes(shared: &(Mutex<Shared>, Condvar), directory: &Path) {
    loop {
        let mut guard = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        while guard.dirty.is_empty() && !guard.closed {
            guard = shared.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        let changes: Vec<(String, Option<Message>)> = std::mem::take(&mut guard.dirty)
            .into_iter()
            .map(|topic| {
                let message = guard.entries.get(&topic).cloned();
                (topic, message)
            })
            .collect();
        drop(guard);
        if changes.is_empty() {
            return;
        }
        for (topic, message) in &changes {
            if let Err(error) = write(directory, topic, message.as_ref()) {
                tracing::error!(directory = %directory.display(), %error,
                    "cannot store a retained message; it is lost at a restart");
            }
        }
        if let Err(error) = File::open(directory).and_then(|d| d.sync_all()) {
            tracing::error!(directory = %directory.display(), %error, "cannot sync");
        }
    }
}

fn write(directory: &Path, topic: &str, message: Option<&Message>) -> std::io::Result<()> {
    let path = path_of(directory, topic);
    let Some(message) = message else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(MAGIC)?;
    file.write_all(&message.received.as_millis().to_be_bytes())?;
    file.write_all(&codec::to_packet(message))?;
    file.sync_all()?;
    fs::rename(&temporary, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use rumqttd::protocol::PublishProperties;

    fn message(topic: &'static str, payload: &'static [u8]) -> Message {
        Message {
            topic: Bytes::from_static(topic.as_bytes()),
            payload: Bytes::from_static(payload),
            qos: 1,
            retain: true,
            received: now(),
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
        retained.set("a/b", &message("a/b", b"1")).unwrap();
        retained.set("a/c", &message("a/c", b"2")).unwrap();
        retained.set("a/b", &message("a/b", b"3")).unwrap();
        drop(retained);
        let retained = open();
        assert_eq!(topics(&retained, "a/+"), ["a/b", "a/c"]);
        assert_eq!(retained.matching("a/b")[0].payload, "3");
        retained.set("a/b", &message("a/b", b"")).unwrap();
        drop(retained);
        assert_eq!(topics(&open(), "a/#"), ["a/c"]);
    }

    #[test]
    fn a_message_is_the_same_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Retained::open(Some(directory.path()), &Limits::default()).unwrap();
        let stored = Message {
            qos: 0,
            received: Timestamp(now().as_millis() - 30_000),
            properties: Some(PublishProperties {
                message_expiry_interval: Some(60),
                content_type: Some("text/plain".to_owned()),
                user_properties: vec![("k".to_owned(), "v".to_owned())],
                ..PublishProperties::default()
            }),
            ..message("a", b"1")
        };
        open().set("a", &stored).unwrap();
        let [read] = &open().matching("a")[..] else {
            panic!("one message");
        };
        assert_eq!(
            (read.qos, read.retain, read.received),
            (0, true, stored.received)
        );
        assert_eq!(read.properties, stored.properties);
        let expired = Message {
            received: Timestamp(now().as_millis() - 61_000),
            ..stored
        };
        open().set("a", &expired).unwrap();
        assert!(open().matching("a").is_empty());
    }

    #[test]
    fn a_damaged_file_loses_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Retained::open(Some(directory.path()), &Limits::default()).unwrap();
        open().set("a", &message("a", b"1")).unwrap();
        open().set("b", &message("b", b"1")).unwrap();
        fs::write(path_of(directory.path(), "a"), b"dcr2\0").unwrap();
        assert_eq!(topics(&open(), "#"), ["b"]);
    }

    #[test]
    fn limits_hold_and_replacing_stays_possible() {
        let limits = Limits {
            retained_messages: 1,
            ..Limits::default()
        };
        let retained = Retained::open(None, &limits).unwrap();
        retained.set("a", &message("a", b"1")).unwrap();
        assert_eq!(retained.set("b", &message("b", b"1")), Err(Full));
        retained.set("a", &message("a", b"2")).unwrap();
        assert_eq!(retained.len(), 1);
    }
}
