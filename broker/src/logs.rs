//! What the router keeps of messages: a log for each filter, all together within a bound.
//!
//! rumqttd bounds each log by itself, counts less than a message takes, and gives nothing back:
//! what was delivered stays until newer messages of the same filter push it out. Here is counted
//! what really is taken, by the router's own rules; when that would be too much, the log that was
//! written to the longest ago is emptied by messages that take nothing, which push out all others.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use rumqttd::SegmentConfig;
use rumqttd::protocol::{Packet, Publish, PublishProperties, matches};

use crate::codec;
use crate::config::Limits;

const MIB: usize = 1024 * 1024;

/// How large a log becomes: in bytes of topics and payloads, by segment, and in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) segment: usize,
    pub(crate) segments: usize,
}

/// Of logs of all filters that [`SHAPES`] does not name.
pub(crate) const USUAL: Shape = Shape {
    segment: 2 * MIB,
    segments: 4,
};

/// By what a filter looks like. What meters send is read by the provider alone, several rounds of
/// every meter; an inbox takes the longest answer of the provider to one meter. No two overlap.
const SHAPES: [(&str, Shape); 3] = [
    (
        "dcnet/1/+/meter/+/up/#",
        Shape {
            segment: 4 * MIB,
            segments: 8,
        },
    ),
    (
        "dcnet/1/+/meter/+/inbox/#",
        Shape {
            segment: MIB / 4,
            segments: 4,
        },
    ),
    // Grows for as long as the broker runs.
    (
        PROBE,
        Shape {
            segment: 1024,
            segments: 2,
        },
    ),
];

/// The topic of the watchdog; no client may use it.
pub(crate) const PROBE: &str = "broker/probe";

/// Memory of a message besides topic, payload and properties, in bytes: its place in the segment,
/// and the allocator's share of the rest.
const MESSAGE: usize =
    size_of::<Publish>() + size_of::<Option<PublishProperties>>() + size_of::<Instant>() + 64;

/// Of a segment: it has places for 1024 messages, of which the unused ones are never touched, but
/// for a page.
const SEGMENT: usize = 4096;

/// Of a log: its name in several tables, and who waits for its messages.
const LOG: usize = 4096;

/// A log with less than that in it is left as it is: to empty it takes more than it gives.
const WORTH_IT: usize = 8 * 1024;

/// Of a log that is empty, or as good as that.
const FILTER: usize = LOG + USUAL.segments * (SEGMENT + MESSAGE) + WORTH_IT;

/// For what all share at the least: several rounds of submissions and rosters.
const COMMON: usize = 128 * MIB;

/// Never read, so that it takes no memory; as long as the longest segment.
static NOTHING: [u8; 4 * MIB] = [0; 4 * MIB];

/// The shapes of logs as the router's configuration has them.
pub(crate) fn segment_configs() -> HashMap<String, SegmentConfig> {
    let config = |shape: Shape| SegmentConfig {
        max_segment_size: shape.segment,
        max_segment_count: shape.segments,
    };
    let named = SHAPES.iter();
    named
        .map(|&(filter, shape)| (filter.to_owned(), config(shape)))
        .collect()
}

/// The smallest `limits.memory_mib` that goes with the other limits: what cannot be given up. Each
/// meter has a filter of its own.
pub(crate) fn least_mib(limits: &Limits) -> usize {
    let filters = limits.filters.max(limits.connections);
    let filters = filters.saturating_mul(FILTER.next_multiple_of(4096));
    filters.saturating_add(COMMON).div_ceil(MIB)
}

/// Messages in a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// As the router counts them.
    counted: usize,
    /// What they take.
    taken: usize,
}

#[derive(Debug)]
struct Log {
    filter: String,
    shape: Shape,
    segments: VecDeque<Segment>,
    taken: usize,
    /// When it was last written to, if there is enough in it to empty it.
    written: Option<u64>,
}

impl Log {
    /// As rumqttd's `CommitLog::append` does.
    fn append(&mut self, message: Segment) {
        let full = |last: &Segment| last.counted >= self.shape.segment;
        if self.segments.back().is_none_or(full) {
            if self.segments.len() >= self.shape.segments {
                let oldest = self.segments.pop_front();
                self.taken -= oldest.map_or(0, |oldest| SEGMENT + oldest.taken);
            }
            self.segments.push_back(Segment::default());
            self.taken += SEGMENT;
        }
        if let Some(last) = self.segments.back_mut() {
            last.counted += message.counted;
            last.taken += message.taken;
        }
        self.taken += message.taken;
    }

    fn is_worth_emptying(&self) -> bool {
        self.taken > LOG + self.shape.segments * (SEGMENT + MESSAGE) + WORTH_IT
    }
}

/// The books on all logs of a router. What is sent to the router has to be told here first.
#[derive(Debug)]
pub(crate) struct Logs {
    logs: Vec<Log>,
    /// The logs whose filters may match the topics of a [`group`].
    groups: HashMap<String, Vec<usize>>,
    /// Those that are worth emptying, by when they were last written to.
    written: BTreeSet<(u64, usize)>,
    clock: u64,
    taken: usize,
    limit: usize,
    emptied: u64,
}

impl Logs {
    /// Bounded by so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            logs: Vec::new(),
            groups: HashMap::new(),
            written: BTreeSet::new(),
            clock: 0,
            taken: 0,
            limit,
            emptied: 0,
        }
    }

    /// Bytes that all logs take.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// How often a log was emptied.
    pub(crate) fn emptied(&self) -> u64 {
        self.emptied
    }

    /// Enters what `packet` does to the logs. Returns what has to be sent to the router before it,
    /// so that there is room.
    pub(crate) fn enter(&mut self, packet: &Packet) -> Vec<Packet> {
        match packet {
            Packet::Subscribe(subscribe, _) => {
                let filters = subscribe.filters.iter();
                filters.flat_map(|filter| self.open(&filter.path)).collect()
            }
            Packet::Publish(publish, properties) => {
                let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
                let length = publish.topic.len() + publish.payload.len();
                let message = Segment {
                    counted: 4 + length,
                    taken: MESSAGE + length + properties.as_ref().map_or(0, codec::size),
                };
                let logs = self.matching(topic);
                let room = self.make_room(logs.len() * (message.taken + SEGMENT));
                for number in logs {
                    self.append(number, message);
                    self.mark(number);
                }
                room
            }
            _ => Vec::new(),
        }
    }

    fn open(&mut self, filter: &str) -> Vec<Packet> {
        let group = self.groups.entry(group(filter).to_owned()).or_default();
        let known = group.iter().filter_map(|&number| self.logs.get(number));
        if filter == PROBE || known.into_iter().any(|log| log.filter == filter) {
            return Vec::new();
        }
        group.push(self.logs.len());
        let named = SHAPES.iter().find(|(named, _)| matches(filter, named));
        self.logs.push(Log {
            filter: filter.to_owned(),
            shape: named.map_or(USUAL, |(_, shape)| *shape),
            segments: VecDeque::from([Segment::default()]),
            taken: LOG + SEGMENT,
            written: None,
        });
        let room = self.make_room(LOG + SEGMENT);
        self.taken += LOG + SEGMENT;
        room
    }

    fn matching(&self, topic: &str) -> Vec<usize> {
        let group = self.groups.get(group(topic)).into_iter().flatten();
        let matching = group.filter(|&&number| {
            let log = self.logs.get(number);
            log.is_some_and(|log| matches(topic, &log.filter))
        });
        matching.copied().collect()
    }

    fn append(&mut self, number: usize, message: Segment) {
        if let Some(log) = self.logs.get_mut(number) {
            self.taken -= log.taken;
            log.append(message);
            self.taken += log.taken;
        }
    }

    fn mark(&mut self, number: usize) {
        self.clock += 1;
        let log = self.logs.get_mut(number);
        let Some(log) = log.filter(|log| log.is_worth_emptying()) else {
            return;
        };
        if let Some(before) = log.written.replace(self.clock) {
            self.written.remove(&(before, number));
        }
        self.written.insert((self.clock, number));
    }

    /// Empties logs until so many more bytes may be taken.
    fn make_room(&mut self, wanted: usize) -> Vec<Packet> {
        let mut sent = Vec::new();
        while self.taken + wanted > self.limit {
            let Some((_, number)) = self.written.pop_first() else {
                break;
            };
            sent.extend(self.empty(number));
        }
        sent
    }

    /// Each of these messages fills a segment, the first one the newest that is there.
    fn empty(&mut self, number: usize) -> Vec<Packet> {
        let Some(log) = self.logs.get_mut(number) else {
            return Vec::new();
        };
        log.written = None;
        self.emptied += 1;
        let (topic, shape) = (a_topic(&log.filter), log.shape);
        let payload = NOTHING.get(..shape.segment).unwrap_or(&NOTHING);
        let message = Segment {
            counted: 4 + topic.len() + payload.len(),
            taken: MESSAGE,
        };
        for number in self.matching(&topic) {
            for _ in 0..=shape.segments {
                self.append(number, message);
            }
        }
        let filler = Publish::new(Bytes::from(topic), Bytes::from_static(payload), false);
        vec![Packet::Publish(filler, None); shape.segments + 1]
    }
}

/// What a topic and all filters that may match it have in common.
fn group(topic: &str) -> &str {
    // A filter has wildcards for the net and, below "up", for the meter.
    let mut levels = topic.split('/').skip(3);
    match (levels.next(), levels.next(), levels.next()) {
        (Some("meter"), Some(meter), Some("inbox")) => meter,
        (Some(kind), ..) => kind,
        _ => "",
    }
}

/// A topic that a filter matches, and as few others as possible.
fn a_topic(filter: &str) -> String {
    let levels = filter.split('/').map(|level| match level {
        "+" | "#" => "-",
        level => level,
    });
    levels.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttd::protocol::{QoS, RetainForwardRule, Subscribe};

    fn subscribe(filter: &str) -> Packet {
        let filter = rumqttd::protocol::Filter {
            path: filter.to_owned(),
            qos: QoS::AtLeastOnce,
            nolocal: false,
            preserve_retain: false,
            retain_forward_rule: RetainForwardRule::Never,
        };
        let filters = vec![filter];
        Packet::Subscribe(Subscribe { pkid: 1, filters }, None)
    }

    fn publish(topic: &str, length: usize) -> Packet {
        let payload = Bytes::from(vec![b'x'; length]);
        let topic = Bytes::copy_from_slice(topic.as_bytes());
        Packet::Publish(Publish::new(topic, payload, false), None)
    }

    fn inbox(meter: usize, rest: &str) -> String {
        format!("dcnet/1/n/meter/{meter}/inbox/{rest}")
    }

    /// The topics of the messages by which logs are emptied, each once.
    fn emptied(packets: &[Packet]) -> Vec<String> {
        let mut topics: Vec<_> = packets
            .iter()
            .map(|packet| match packet {
                Packet::Publish(publish, _) => String::from_utf8(publish.topic.to_vec()).unwrap(),
                _ => panic!("only messages empty a log"),
            })
            .collect();
        topics.dedup();
        topics
    }

    #[test]
    fn a_log_takes_what_its_shape_allows_however_long_it_is_written_to() {
        let mut logs = Logs::new(usize::MAX);
        logs.enter(&subscribe(&inbox(0, "#")));
        for _ in 0..10_000 {
            assert!(logs.enter(&publish(&inbox(0, "log"), 1000)).is_empty());
        }
        let full = 4 * MIB / 4;
        assert!((full * 3 / 4..full * 3 / 2).contains(&logs.taken()));
    }

    #[test]
    fn short_messages_count_with_all_they_take() {
        let mut logs = Logs::new(usize::MAX);
        logs.enter(&subscribe(&inbox(0, "#")));
        for _ in 0..1000 {
            logs.enter(&publish(&inbox(0, "log"), 0));
        }
        assert!(logs.taken() > 1000 * (MESSAGE + inbox(0, "log").len()));
    }

    #[test]
    fn no_more_than_the_limit_is_taken_and_the_newest_messages_stay() {
        let limit = 8 * MIB;
        let mut logs = Logs::new(limit);
        for meter in 0..100 {
            logs.enter(&subscribe(&inbox(meter, "#")));
        }
        let mut first = Vec::new();
        for meter in 0..100 {
            for _ in 0..500 {
                first.extend(logs.enter(&publish(&inbox(meter, "log"), 1000)));
                assert!(logs.taken() <= limit, "{} of {limit}", logs.taken());
            }
        }
        let emptied = emptied(&first);
        assert!(emptied.len() > 80, "most had to go");
        let in_order = (0..).map(|meter| inbox(meter, "-"));
        assert!(
            emptied
                .iter()
                .zip(in_order)
                .all(|(is, should)| *is == should)
        );
        assert_eq!(logs.emptied(), emptied.len() as u64);
    }

    #[test]
    fn an_emptied_log_takes_next_to_nothing() {
        let mut logs = Logs::new(MIB);
        logs.enter(&subscribe(&inbox(0, "#")));
        for _ in 0..800 {
            logs.enter(&publish(&inbox(0, "log"), 1000));
        }
        let sent = logs.empty(0);
        assert_eq!(sent.len(), 5);
        assert!(logs.taken() < LOG + 5 * (SEGMENT + MESSAGE));
    }

    #[test]
    fn filters_for_the_same_topics_are_emptied_one_after_the_other() {
        let mut logs = Logs::new(MIB);
        for rest in ["#", "+", "log", "log/#"] {
            logs.enter(&subscribe(&inbox(0, rest)));
        }
        for _ in 0..5000 {
            logs.enter(&publish(&inbox(0, "log"), 1000));
            assert!(logs.taken() <= MIB);
        }
    }

    #[test]
    fn the_least_memory_holds_every_filter() {
        let limits = Limits::default();
        let least = least_mib(&limits);
        assert!(
            limits.memory_mib >= least,
            "the default is at least {least}"
        );
        let mut logs = Logs::new(least * MIB);
        for number in 0..limits.filters {
            let filter = inbox(number, "#");
            logs.enter(&subscribe(&filter));
            logs.enter(&publish(&inbox(number, "log"), WORTH_IT));
        }
        assert_eq!(logs.emptied(), 0);
        let emptied: Vec<_> = (0..limits.filters).flat_map(|n| logs.empty(n)).collect();
        assert_eq!(emptied.len(), 5 * limits.filters);
        assert!(logs.taken() <= least * MIB);
    }

    #[test]
    fn every_filter_is_in_the_group_of_what_it_matches() {
        for (filter, topic) in [
            ("dcnet/1/+/meter/+/up/#", "dcnet/1/n/meter/m/up/log"),
            ("dcnet/1/n/meter/+/up/log", "dcnet/1/n/meter/m/up/log"),
            (
                "dcnet/1/n/meter/m/inbox/#",
                "dcnet/1/n/meter/m/inbox/pair/p",
            ),
            ("dcnet/1/n/meter/m/inbox/#", "dcnet/1/n/meter/m/inbox"),
            ("dcnet/1/n/all/#", "dcnet/1/n/all/roster"),
            ("dcnet/1/n/all/#", "dcnet/1/n/all"),
            ("dcnet/1/+/public/#", "dcnet/1/n/public/status"),
        ] {
            assert!(matches(topic, filter));
            assert_eq!(group(filter), group(topic), "{filter}");
            let own = a_topic(filter);
            assert!(matches(&own, filter), "{own}");
            assert_eq!(group(filter), group(&own), "{own}");
        }
    }
}
