//! A meter under arbitrary input.

use std::collections::BTreeMap;

use dcnet::bitmap::Bitmap;
use dcnet::cbor;
use dcnet::frame::Frame;
use dcnet::identity::DeviceId;
use dcnet::meter::{Meter, MeterCommand};
use dcnet::output::{Input, Message, Output, Received, Record, StateMachine, Store};
use dcnet::reading::Boundary;
use dcnet::reveal::Reveal;
use dcnet::revocation::RevocationList;
use dcnet::roster::{HalfOpen, Roster};
use dcnet::superposition::{Submission, short};
use dcnet::time::{Round, Timestamp};
use dcnet::topic::{All, Inbox, Topic, Up};
use dcnet::units::MilliwattHours;

use super::scene::{Bytes, Changer, Clock, MINUTE, Middle, Scene, VICTIM, next_body};
use super::{SCENE, STEPS};
use crate::death::dies_before;
use crate::network::Saved;

/// A meter and what is known of its promises.
struct FuzzedMeter<'a> {
    scene: &'a Scene,
    meter: Meter,
    saved: Saved,
    clock: Clock,
    /// Digests of what was published, by round.
    submissions: BTreeMap<Round, [u8; 32]>,
    reveals: BTreeMap<Round, [u8; 32]>,
    energy: u64,
    /// Outputs until the process dies.
    dies_after: Option<usize>,
    starts: u8,
}

/// A meter, fed as the input says. Returns of how many rounds it published a reveal.
///
/// # Panics
/// If the meter does, or breaks a promise that the module names.
pub fn meter(data: &[u8]) -> usize {
    SCENE.with(|scene| {
        let mut bytes = Bytes(data);
        let fresh = bytes.byte() & 1 == 1;
        let (middle, saved) = if fresh {
            (Middle::default(), Saved::new())
        } else {
            scene.saved.clone()
        };
        let clock = Clock::new(middle.at);
        let meter = start(scene, &saved, &clock, 0);
        let mut fuzzed = FuzzedMeter {
            scene,
            meter,
            saved,
            clock,
            submissions: BTreeMap::new(),
            reveals: BTreeMap::new(),
            energy: 20_000_000,
            dies_after: None,
            starts: 0,
        };
        fuzzed.note_recorded(middle);
        let before = fuzzed.reveals.len();
        fuzzed.input(Input::Connected);
        let changer = Changer { scene };
        // Where the true course of things goes on.
        let mut next = middle.frames;
        for _ in 0..STEPS {
            if bytes.0.is_empty() {
                break;
            }
            fuzzed.step(&mut bytes, &changer, &mut next);
        }
        fuzzed.reveals.len() - before
    })
}

fn start(scene: &Scene, saved: &Saved, clock: &Clock, starts: u8) -> Meter {
    let records = saved.iter().map(|((store, key), value)| Record {
        store: *store,
        key: key.clone(),
        value: Some(value.clone()),
    });
    let config = scene.meters[VICTIM].clone();
    let mut seed = scene.seeds().1;
    seed[30] = starts;
    let meter = Meter::new(config, records.collect(), seed, clock.now());
    meter.expect("a meter starts from what it has persisted")
}

impl FuzzedMeter<'_> {
    /// What the victim had published before the fuzzing began.
    fn note_recorded(&mut self, middle: Middle) {
        let own = self.scene.meters[VICTIM].key.id();
        for (topic, frame) in &self.scene.frames[..middle.frames] {
            if matches!(topic, Topic::Up { meter, .. } if *meter == own) {
                self.check_published(topic, frame);
            }
        }
    }

    /// The roster that the meter takes the next one to build on.
    fn last_roster(&self) -> Option<[u8; 32]> {
        let saved = self.saved.get(&(Store::Net, b"last-roster".to_vec()))?;
        let item = cbor::decode(saved).ok()?;
        let hash = item.as_array()?.last()?.as_bytes()?;
        hash.as_slice().try_into().ok()
    }

    fn check_published(&mut self, topic: &Topic, frame: &[u8]) {
        let Topic::Up { kind, .. } = topic else {
            return;
        };
        let key = self.scene.meters[VICTIM].key.public();
        let verified = Frame::verify(frame, &key).expect("its own frame");
        let digest = verified.digest();
        let (round, before) = match kind {
            Up::Submission => {
                let read = Submission::read(verified, self.scene.net, 1);
                (
                    read.expect("its own submission").round,
                    &mut self.submissions,
                )
            }
            Up::Reveal => {
                let read = Reveal::read(verified, self.scene.net, 1);
                (read.expect("its own reveal").round, &mut self.reveals)
            }
            _ => return,
        };
        let first = *before.entry(round).or_insert(digest);
        assert_eq!(first, digest, "a second {kind:?} of round {round}");
    }

    fn check_durable(&self, topic: &Topic, frame: &[u8]) {
        let Topic::Up { kind, .. } = topic else {
            return;
        };
        let record: &[u8] = match kind {
            Up::Submission | Up::Reveal => b"round/",
            Up::Register => b"registration",
            Up::Exit => b"exit",
            _ => return,
        };
        let mut records = self
            .saved
            .iter()
            .filter(|((_, key), _)| key.starts_with(record));
        let durable =
            records.any(|(_, value)| value.windows(frame.len()).any(|part| part == frame));
        assert!(durable, "{kind:?} is not durable");
    }

    fn input(&mut self, input: Input<MeterCommand>) {
        self.meter.handle(input, self.clock.now());
        while let Some(output) = self.meter.poll_output() {
            if dies_before(&mut self.dies_after, &output) {
                return self.restart();
            }
            match output {
                Output::Persist(Record { store, key, value }) => match value {
                    Some(value) => drop(self.saved.insert((store, key), value)),
                    None => drop(self.saved.remove(&(store, key))),
                },
                Output::Publish(Message { topic, payload, .. }) => {
                    self.check_durable(&topic, &payload);
                    self.check_published(&topic, &payload);
                }
                Output::Event(_) | Output::WakeAt(_) => {}
            }
        }
    }

    fn restart(&mut self) {
        self.starts = self.starts.wrapping_add(1);
        self.meter = start(self.scene, &self.saved, &self.clock, self.starts);
        self.input(Input::Connected);
    }

    fn deliver(&mut self, topic: Topic, payload: Vec<u8>) {
        self.input(Input::Received(vec![Received { topic, payload }]));
    }

    /// A topic that the broker would deliver to the meter, and now and then another.
    fn topic(&self, bytes: &mut Bytes<'_>) -> Topic {
        let (net, meter) = (self.scene.net, self.scene.meters[VICTIM].key.id());
        let peers: Vec<DeviceId> = self.scene.keys().iter().map(|key| key.id()).collect();
        match bytes.byte() % 8 {
            0..=2 => Topic::All {
                net,
                kind: All::ALL[bytes.below(All::ALL.len())],
            },
            3 | 4 => Topic::Inbox {
                net,
                meter,
                kind: Inbox::ALL[bytes.below(Inbox::ALL.len())],
            },
            5 | 6 => Topic::InboxPair {
                net,
                meter,
                peer: peers[bytes.below(peers.len())],
            },
            _ => self.scene.frames[bytes.below(self.scene.frames.len())].0,
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>, changer: &Changer<'_>, next: &mut usize) {
        match bytes.byte() % 16 {
            0 => {
                let topic = self.topic(bytes);
                let length = usize::from(bytes.byte());
                self.deliver(topic, bytes.take(length));
            }
            1 | 2 => {
                let topic = self.topic(bytes);
                let frame = self.scene.frame(bytes);
                self.deliver(topic, changer.frame(&frame, bytes, 0));
            }
            // The true course, as it was or changed.
            step @ 3..=5 => {
                for _ in 0..=bytes.byte() % 32 {
                    let Some((topic, frame)) = self.scene.frames.get(*next) else {
                        return;
                    };
                    // It takes a message a millisecond to arrive.
                    self.clock.reach(self.scene.times[*next] + 1);
                    *next += 1;
                    let frame = match step {
                        5 => changer.frame(frame, bytes, 0),
                        _ => frame.clone(),
                    };
                    // What went up to the provider reaches nobody else.
                    if !matches!(topic, Topic::Up { .. } | Topic::UpPair { .. }) {
                        self.deliver(*topic, frame);
                    }
                }
            }
            6 => self.clock.step(bytes),
            7 => {
                self.clock.step(bytes);
                self.input(Input::Tick);
            }
            8 => self.boundary(bytes),
            9 => self.entry(bytes, changer),
            10 | 11 => self.roster(bytes),
            12 => match bytes.byte() % 8 {
                0 => self.input(Input::Disconnected),
                1 => self.restart(),
                2 => self.dies_after = Some(usize::from(bytes.byte() % 16)),
                _ => self.input(Input::Connected),
            },
            13 => match bytes.byte() % 16 {
                0 => self.input(Input::Command(MeterCommand::Leave)),
                1 => {
                    let list = vec![DeviceId([bytes.byte(); 16]), self.scene.meters[1].key.id()];
                    let list = RevocationList::new(u64::from(bytes.byte()), list);
                    self.input(Input::Command(MeterCommand::Revoked(list)));
                }
                _ => self.input(Input::Command(MeterCommand::ConfirmClock)),
            },
            14 => self.input(Input::Tick),
            _ => {
                // A whole round: the boundary, and the time for its submission.
                self.boundary(bytes);
                for _ in 0..3 {
                    self.clock.monotonic += 4000;
                    self.clock.utc += 4000;
                    self.input(Input::Tick);
                }
            }
        }
    }

    fn boundary(&mut self, bytes: &mut Bytes<'_>) {
        let orders = bytes.byte();
        // Mostly at the next boundary, when it has come.
        if orders & 1 == 0 {
            let ahead = MINUTE - self.clock.utc % MINUTE;
            self.clock.utc += ahead;
            self.clock.monotonic += ahead;
        }
        let (add, take) = (u64::from(bytes.byte()), u64::from(orders / 250));
        self.energy = self
            .energy
            .saturating_add(add * 1000)
            .saturating_sub(take * 200_000);
        let channels = vec![MilliwattHours(self.energy); 1 + usize::from(orders & 0x70 == 0x70)];
        let at = Timestamp(self.clock.utc - u64::from(orders & 3 == 3) * 1000);
        let boundary = Boundary { at, channels };
        self.input(Input::Command(MeterCommand::Boundary(boundary)));
    }

    /// The next entry of the log as the meter knows it, with a body from the run.
    fn entry(&mut self, bytes: &mut Bytes<'_>, changer: &Changer<'_>) {
        let Some(log) = self.meter.membership() else {
            return;
        };
        let Some((kind, body)) = next_body(self.scene, log, bytes) else {
            return;
        };
        let by = [&self.scene.provider.key, &self.scene.successor.0];
        let in_force = by.iter().find(|key| key.public() == *log.provider().key());
        let key = in_force.unwrap_or(&by[usize::from(bytes.byte() & 1)]);
        let entry = log.sign_next(key, kind, body, self.clock.now().utc);
        let entry = match bytes.byte() {
            0..200 => entry,
            _ => changer.frame(&entry, bytes, 0),
        };
        let (net, kind) = (self.scene.net, All::Log);
        self.deliver(Topic::All { net, kind }, entry);
    }

    /// A roster for what the meter has submitted, true to it or not.
    fn roster(&mut self, bytes: &mut Bytes<'_>) {
        let Some(log) = self.meter.membership() else {
            return;
        };
        let Some((round, digest)) = self.submissions.iter().next_back() else {
            return;
        };
        let (round, digest) = (Round(round.0 + u64::from(bytes.byte() / 250)), *digest);
        let head = log.head();
        let length = usize::try_from(log.places_at(head.index)).unwrap_or(0);
        let own = self.scene.meters[VICTIM].key.id();
        let own = log.index_of(&own).and_then(|own| usize::try_from(own).ok());
        let (all, missing) = (bytes.byte() < 200, bytes.byte());
        let mut included = Bitmap::empty(length);
        for place in 0..length {
            if all || missing >> (place % 8) & 1 == 0 {
                included.set(place);
            }
        }
        let digests = included.iter().map(|place| match Some(place) == own {
            true => short(&digest),
            false => [bytes.byte(); 8],
        });
        let digests = digests.collect();
        let mut half_open = Vec::new();
        for _ in 0..bytes.byte() / 86 {
            let edge = HalfOpen {
                user: u32::from(bytes.byte() % 8),
                non_user: u32::from(bytes.byte() % 8),
            };
            half_open.push(edge);
        }
        half_open.sort_unstable();
        half_open.dedup();
        let roster = Roster {
            round,
            log_head: head.hash,
            head_index: head.index,
            included,
            digests,
            half_open,
            previous: self.last_roster().filter(|_| bytes.byte() < 240),
            issued: self.clock.now().utc,
            hash: [0; 32],
        };
        let by = [&self.scene.provider.key, &self.scene.successor.0];
        let in_force = by.iter().find(|key| key.public() == *log.provider().key());
        let key = in_force.unwrap_or(&by[0]);
        let frame = roster.sign(key, log, self.clock.now().utc);
        let (net, kind) = (self.scene.net, All::Roster);
        self.deliver(Topic::All { net, kind }, frame);
    }
}
