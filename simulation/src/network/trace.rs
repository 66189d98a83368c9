//! What left a process, with what its disk held at that moment.

use dcnet::frame::{Notification, Unverified};
use dcnet::output::{Message, Store};
use dcnet::reading::Boundary;
use dcnet::time::Round;
use dcnet::topic::{All, Topic, Up};

use super::Network;

/// A message that left a process.
#[derive(Clone, Debug)]
pub struct Traced {
    /// When, in milliseconds since the start.
    pub time: u64,
    /// The meter; `None` for the provider.
    pub from: Option<usize>,
    /// What it sent.
    pub message: Message,
    /// How often the meter's disk had forgotten something.
    pub disk: u32,
    /// Whether the disk held what the message must not get ahead of; `None` if that is
    /// nothing.
    pub durable: Option<bool>,
    /// The record with the meter's own secrets, beside a submission.
    pub secrets: Option<Vec<u8>>,
}

/// Two looks of a meter at its register, at the two ends of a round by its clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interval {
    /// At the round's start.
    pub start: Boundary,
    /// At its end.
    pub end: Boundary,
}

impl Interval {
    /// What the register counted, per channel.
    pub fn energy(&self) -> Vec<u64> {
        let ends = self.end.channels.iter().zip(&self.start.channels);
        ends.map(|(end, start)| end.0 - start.0).collect()
    }
}

fn contains(value: &[u8], frame: &[u8]) -> bool {
    value.windows(frame.len()).any(|window| window == frame)
}

impl Network {
    pub(super) fn note(&mut self, from: Option<usize>, message: &Message) {
        if self.trace.is_none() {
            return;
        }
        let durable = match from {
            Some(meter) => self.stored_by_meter(meter, message),
            None => self.stored_by_provider(message),
        };
        let submission = is(&message.topic, Up::Submission);
        let secrets = from.filter(|_| submission).and_then(|meter| {
            let key = (Store::Net, b"device".to_vec());
            self.saved[meter].get(&key).cloned()
        });
        let traced = Traced {
            time: self.now,
            from,
            message: message.clone(),
            disk: from.map_or(0, |meter| self.disks[meter]),
            durable,
            secrets,
        };
        self.trace.get_or_insert_default().push(traced);
    }

    /// Whether what a meter repeats, and must not say differently, is in its records.
    fn stored_by_meter(&self, meter: usize, message: &Message) -> Option<bool> {
        let frame = &message.payload;
        let said = Unverified::parse(frame).map(|frame| frame.claimed().notification);
        let prefix: &[u8] = match message.topic {
            Topic::Up { kind, .. } => match kind {
                Up::Register => b"registration",
                Up::Exit => b"exit",
                Up::Draw => b"draw",
                Up::Submission | Up::Reveal => b"round/",
                _ => return None,
            },
            Topic::UpPair { .. } => match said {
                Ok(Notification::Exit) => b"exit",
                // Says that a record is gone.
                Ok(Notification::Erased) => return None,
                _ => b"edge/",
            },
            _ => return None,
        };
        // The opened nonce is signed again each time; it stands in the request's record.
        let open = said == Ok(Notification::Open);
        let records = self.saved[meter].iter();
        let mut records = records.filter(|((_, key), _)| key.starts_with(prefix));
        Some(records.any(|((_, key), value)| {
            let request = open && key.as_slice() == b"draw";
            request || contains(value, frame)
        }))
    }

    fn stored_by_provider(&self, message: &Message) -> Option<bool> {
        let (saved, frame) = (&self.saved_net, &message.payload);
        match message.topic {
            Topic::All { kind, .. } => Some(match kind {
                All::Log => saved.entries.iter().rev().any(|entry| entry == frame),
                All::Roster => saved.rosters.iter().rev().any(|r| r.frame == *frame),
                All::Aggregate => saved.aggregates.iter().rev().any(|(_, a)| a == frame),
            }),
            _ => None,
        }
    }

    /// What a meter's register counted in a round, each time the meter was told of it.
    pub fn intervals(&self, meter: usize, round: Round) -> &[Interval] {
        let intervals = self.intervals.get(&(meter, round));
        intervals.map_or(&[], Vec::as_slice)
    }
}

/// Whether a topic is for what meters send, of one kind.
pub(crate) fn is(topic: &Topic, wanted: Up) -> bool {
    matches!(topic, Topic::Up { kind, .. } if *kind == wanted)
}
