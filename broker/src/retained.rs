//! The retained messages (MQTT 3.1.1, section 3.3.1.3), kept by the front
//! because the router keeps them in memory only and replays at most 100.
//!
//! One file per topic, named by the SHA-256 of the topic and replaced
//! atomically: magic, when it was published in Unix milliseconds (big-endian),
//! and the message as an MQTT 5 PUBLISH. A thread writes them, so that an
//! acknowledged message is durable shortly after, not before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use dcnet::time::Timestamp;
use sha2::{Digest, Sha256};

use crate::codec::{self, Message};
use crate::config::{Limits, now};
use crate::permission::{is_topic, matches};

const MAGIC: &[u8; 4] = b"dcr2";
const SUFFIX: &str = "retained";

/// Between two tries to write what could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// Messages that are looked at for one part of a replay: nobody else can use the store
/// meanwhile.
const PART: usize = 256;

/// Messages in one part of a replay.
const PART_MESSAGES: usize = 16;

/// Bytes of messages after which a part of a replay is full.
const PART_BYTES: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Store {
    entries: BTreeMap<String, Message>,
    /// Those that expire, the next one first.
    expiries: BTreeSet<(Timestamp, String)>,
    bytes: usize,
    /// Whether there are files.
    durable: bool,
    /// Topics whose files are not as `entries` has it.
    dirty: BTreeSet<String>,
    writes_failed: u64,
    closed: bool,
}

impl Store {
    fn insert(&mut self, topic: &str, message: Message) {
        self.bytes += message.size();
        if let Some(expiry) = message.expiry() {
            self.expiries.insert((expiry, topic.to_owned()));
        }
        self.entries.insert(topic.to_owned(), message);
    }

    fn remove(&mut self, topic: &str) -> bool {
        let Some(message) = self.entries.remove(topic) else {
            return false;
        };
        self.bytes = self.bytes.saturating_sub(message.size());
        if let Some(expiry) = message.expiry() {
            self.expiries.remove(&(expiry, topic.to_owned()));
        }
        true
    }

    /// Notes that a topic's file has to be written or removed, if there are files.
    fn touch(&mut self, topic: String) {
        if self.durable {
            self.dirty.insert(topic);
        }
    }

    /// Drops what has expired at `now`; whether that was anything.
    fn expire(&mut self, now: Timestamp) -> bool {
        let mut any = false;
        while self.expiries.first().is_some_and(|next| next.0 <= now)
            && let Some((_, topic)) = self.expiries.pop_first()
        {
            any |= self.remove(&topic);
            self.touch(topic);
        }
        any
    }
}

/// All retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    shared: Arc<(Mutex<Store>, Condvar)>,
    writer: Mutex<Option<JoinHandle<()>>>,
    max_messages: usize,
    max_bytes: usize,
}

/// The limit on retained messages or their bytes is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// Some of the messages that match a filter.
#[derive(Debug)]
pub(crate) struct Part {
    /// In the order of their topics.
    pub(crate) messages: Vec<Message>,
    /// The topic after which the next part begins; `None` if there is none.
    pub(crate) reached: Option<String>,
}

impl Retained {
    /// Opens the directory, or keeps everything in memory without one.
    pub(crate) fn open(directory: Option<&Path>, limits: &Limits) -> anyhow::Result<Self> {
        let mut store = Store {
            durable: directory.is_some(),
            ..Store::default()
        };
        if let Some(directory) = directory {
            load(directory, &mut store)
                .with_context(|| format!("state directory {}", directory.display()))?;
        }
        let shared = Arc::new((Mutex::new(store), Condvar::new()));
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

    /// The store without what has expired.
    fn lock(&self) -> MutexGuard<'_, Store> {
        let mut store = lock(&self.shared.0);
        if store.expire(now()) {
            self.shared.1.notify_one();
        }
        store
    }

    /// Replaces the message of a topic; an empty payload removes it.
    pub(crate) fn set(&self, topic: &str, message: &Message) -> Result<(), Full> {
        let mut store = self.lock();
        if message.payload.is_empty() {
            if !store.remove(topic) {
                return Ok(());
            }
        } else {
            let old = store.entries.get(topic).map(Message::size);
            let bytes = store.bytes.saturating_sub(old.unwrap_or(0)) + message.size();
            let messages = store.entries.len() + usize::from(old.is_none());
            if bytes > self.max_bytes || messages > self.max_messages {
                return Err(Full);
            }
            store.remove(topic);
            store.insert(topic, message.clone());
        }
        store.touch(topic.to_owned());
        self.shared.1.notify_one();
        Ok(())
    }

    /// The next messages that match a filter, after a topic or from the first one on. Few
    /// at a time, so that neither the store is held for long nor much is under way to a
    /// client.
    pub(crate) fn part(&self, filter: &str, after: Option<&str>) -> Part {
        let beginning = beginning(filter);
        let from = match after {
            Some(topic) => Bound::Excluded(topic),
            None => Bound::Included(beginning),
        };
        let mut part = Part {
            messages: Vec::new(),
            reached: None,
        };
        let store = self.lock();
        let entries = store.entries.range::<str, _>((from, Bound::Unbounded));
        let mut bytes = 0;
        for (looked_at, (topic, message)) in entries.enumerate() {
            if !topic.starts_with(beginning) {
                part.reached = None;
                break;
            }
            let full = part.messages.len() >= PART_MESSAGES || bytes >= PART_BYTES;
            if full || looked_at >= PART {
                return part;
            }
            if matches(topic, filter) {
                bytes += message.size();
                part.messages.push(message.clone());
            }
            part.reached = Some(topic.clone());
        }
        part.reached = None;
        part
    }

    /// How many messages are stored.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Bytes of all topics, payloads and properties.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// How often changes could not be written.
    pub(crate) fn writes_failed(&self) -> u64 {
        self.lock().writes_failed
    }

    /// Waits until everything is on disk, or was tried once more. Nothing is written after it.
    pub(crate) fn close(&self) {
        lock(&self.shared.0).closed = true;
        self.shared.1.notify_one();
        let writer = lock(&self.writer).take();
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What every topic that matches a filter begins with: its levels before the first wildcard.
fn beginning(filter: &str) -> &str {
    let levels = filter.split(['+', '#']).next().unwrap_or_default();
    // "a/#" matches "a", too (MQTT 3.1.1, 4.7.1.2).
    levels.strip_suffix('/').unwrap_or(levels)
}

fn path_of(directory: &Path, topic: &str) -> PathBuf {
    let name = hex::encode(Sha256::digest(topic));
    directory.join(format!("{name}.{SUFFIX}"))
}

fn load(directory: &Path, store: &mut Store) -> anyhow::Result<()> {
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
                store.insert(&topic, message);
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

fn write_changes(shared: &(Mutex<Store>, Condvar), directory: &Path) {
    let mut failing = false;
    loop {
        let mut store = lock(&shared.0);
        if failing {
            let waited = shared
                .1
                .wait_timeout_while(store, RETRY, |store| !store.closed);
            store = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let idle = |store: &mut Store| store.dirty.is_empty() && !store.closed;
        let waited = shared.1.wait_while(store, idle);
        store = waited.unwrap_or_else(PoisonError::into_inner);
        let closed = store.closed;
        let changes: Vec<(String, Option<Message>)> = std::mem::take(&mut store.dirty)
            .into_iter()
            .map(|topic| {
                let message = store.entries.get(&topic).cloned();
                (topic, message)
            })
            .collect();
        drop(store);
        if changes.is_empty() {
            return;
        }
        match write_all(directory, changes) {
            Ok(()) => {
                if failing {
                    tracing::info!(directory = %directory.display(),
                        "retained messages are stored again");
                }
                failing = false;
            }
            Err((failed, error)) => {
                let directory = directory.display();
                if closed {
                    let count = failed.len();
                    tracing::error!(%directory, %error, count, "retained messages are lost");
                    return;
                }
                if !failing {
                    tracing::error!(%directory, %error,
                        "cannot store retained messages, which would be lost at a restart; trying \
                         again every second: make room there, or see who may write there");
                }
                failing = true;
                let mut store = lock(&shared.0);
                store.writes_failed += 1;
                store.dirty.extend(failed);
            }
        }
    }
}

/// Writes changes; an error comes with the topics that it is about.
fn write_all(
    directory: &Path,
    changes: Vec<(String, Option<Message>)>,
) -> Result<(), (Vec<String>, io::Error)> {
    let (mut written, mut failed) = (Vec::new(), Vec::new());
    let mut reason = None;
    for (topic, message) in changes {
        match write(directory, &topic, message.as_ref()) {
            Ok(()) => written.push(topic),
            Err(error) => {
                reason = Some(error);
                failed.push(topic);
            }
        }
    }
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        reason = Some(error);
        failed.append(&mut written);
    }
    match reason {
        None => Ok(()),
        Some(error) => Err((failed, error)),
    }
}

fn write(directory: &Path, topic: &str, message: Option<&Message>) -> io::Result<()> {
    let path = path_of(directory, topic);
    let Some(message) = message else {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    let temporary = path.with_extension("tmp");
    let replace = || {
        let mut file = File::create(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&message.received.as_millis().to_be_bytes())?;
        file.write_all(&codec::to_packet(message))?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    replace().inspect_err(|_| {
        // On a full disk it would be in the way of others.
        let _ = fs::remove_file(&temporary);
    })
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

    /// All messages that match, however many parts that takes.
    fn matching(retained: &Retained, filter: &str) -> Vec<Message> {
        let (mut messages, mut after) = (Vec::new(), None);
        loop {
            let part = retained.part(filter, after.as_deref());
            messages.extend(part.messages);
            match part.reached {
                Some(topic) => after = Some(topic),
                None => return messages,
            }
        }
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<Bytes> {
        let messages = matching(retained, filter).into_iter();
        messages.map(|message| message.topic).collect()
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
        assert_eq!(matching(&retained, "a/b")[0].payload, "3");
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
        let [read] = &matching(&open(), "a")[..] else {
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
        assert!(matching(&open(), "a").is_empty());
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

    fn expiring(topic: &'static str, seconds: u32) -> Message {
        Message {
            properties: Some(PublishProperties {
                message_expiry_interval: Some(seconds),
                ..PublishProperties::default()
            }),
            ..message(topic, b"1")
        }
    }

    /// Waits for what another thread does.
    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_replay_comes_in_parts_and_holds_the_store_for_a_part_only() {
        let retained = Retained::open(None, &Limits::default()).unwrap();
        let set = |topic: String, length: usize| {
            let payload = Bytes::from(vec![1; length]);
            let message = Message {
                topic: Bytes::from(topic.clone()),
                payload,
                ..message("", b"")
            };
            retained.set(&topic, &message).unwrap();
        };
        for number in 0..3 * PART {
            set(format!("a/{number:05}"), 1);
        }
        set("a".to_owned(), 1);
        set("b".to_owned(), 1);
        for number in 0..4 {
            set(format!("c/{number}"), PART_BYTES / 2 + 1);
        }
        let all = retained.part("a/#", None);
        assert_eq!(all.messages.len(), PART_MESSAGES);
        assert_eq!(all.messages[0].topic, "a");
        assert_eq!(matching(&retained, "a/#").len(), 3 * PART + 1);
        assert_eq!(matching(&retained, "a/+").len(), 3 * PART);
        assert_eq!(retained.part("c/+", None).messages.len(), 2, "by bytes");
        let rare = retained.part("+/0", None);
        assert!(
            rare.messages.is_empty() && rare.reached.is_some(),
            "in vain"
        );
        assert_eq!(topics(&retained, "+/0"), ["c/0"]);
        let one = retained.part("b", None);
        assert_eq!((one.messages.len(), one.reached), (1, None), "no search");
    }

    #[test]
    fn what_has_expired_is_neither_counted_nor_kept() {
        let directory = tempfile::tempdir().unwrap();
        let limits = Limits {
            retained_messages: 2,
            ..Limits::default()
        };
        let retained = Retained::open(Some(directory.path()), &limits).unwrap();
        retained.set("a", &expiring("a", 3600)).unwrap();
        let written = path_of(directory.path(), "a");
        until("it is on disk", || written.exists());
        // It is replaced by one that ends at once.
        retained.set("a", &expiring("a", 0)).unwrap();
        retained.set("b", &message("b", b"1")).unwrap();
        assert_eq!(retained.len(), 1);
        assert_eq!(retained.bytes(), message("b", b"1").size());
        retained.set("c", &message("c", b"1")).unwrap();
        assert_eq!(topics(&retained, "#"), ["b", "c"]);
        until("its file is gone", || !written.exists());
        // One that lasts takes the place of one that does not.
        retained.set("b", &expiring("b", 0)).unwrap();
        retained.set("b", &message("b", b"2")).unwrap();
        assert_eq!(topics(&retained, "b"), ["b"]);
        assert!(lock(&retained.shared.0).expiries.is_empty());
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let open = || Retained::open(Some(&state), &Limits::default()).unwrap();
        let retained = open();
        retained.set("a", &message("a", b"1")).unwrap();
        retained.set("b", &message("b", b"1")).unwrap();
        until("both are on disk", || path_of(&state, "b").exists());
        // Nothing can be written where no directory is.
        let aside = directory.path().join("aside");
        fs::rename(&state, &aside).unwrap();
        fs::write(&state, "in the way").unwrap();
        retained.set("a", &message("a", b"2")).unwrap();
        retained.set("b", &message("b", b"")).unwrap();
        until("a failure", || retained.writes_failed() > 0);
        retained.set("c", &message("c", b"3")).unwrap();
        fs::remove_file(&state).unwrap();
        fs::rename(&aside, &state).unwrap();
        let stored = |topic| parse(&fs::read(path_of(&state, topic)).ok()?).ok();
        until("they are on disk, and the removed one is not", || {
            let newer = stored("a").is_some_and(|(_, message)| message.payload == "2");
            newer && stored("b").is_none() && stored("c").is_some()
        });
        // It does not try for ever when the broker stops.
        fs::rename(&state, &aside).unwrap();
        retained.set("a", &message("a", b"4")).unwrap();
        retained.close();
    }
}
