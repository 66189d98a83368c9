//! A provider under arbitrary input.

use std::collections::BTreeMap;
use std::time::Duration;

use dcnet::bitmap::Bitmap;
use dcnet::frame::Unverified;
use dcnet::identity::DeviceId;
use dcnet::membership::EntryKind;
use dcnet::output::{Input, Message, Output, Received, StateMachine};
use dcnet::provider::{
    Provider, ProviderCommand, ProviderConfig, ProviderRecord, SavedNet, SavedRoster,
};
use dcnet::reveal::Reveal;
use dcnet::revocation::{RevocationList, sign_revocation};
use dcnet::roster::Roster;
use dcnet::superposition::Submission;
use dcnet::time::Round;
use dcnet::topic::{All, Inbox, Topic, Up};

use super::scene::{Bytes, Changer, Clock, MINUTE, Middle, Scene, next_body};
use super::{SCENE, STEPS};
use crate::death::dies_before;

/// A provider and what is known of its promises.
struct FuzzedProvider<'a> {
    scene: &'a Scene,
    provider: Provider,
    config: ProviderConfig,
    saved: SavedNet,
    clock: Clock,
    /// By round: the roster, and the aggregate.
    rosters: BTreeMap<Round, Vec<u8>>,
    aggregates: BTreeMap<Round, Vec<u8>>,
    dies_after: Option<usize>,
}

/// A provider, fed as the input says. Returns how many log entries, rosters and
/// aggregates it made.
///
/// # Panics
/// If the provider does, or breaks a promise that the module names.
pub fn provider(data: &[u8]) -> [usize; 3] {
    SCENE.with(|scene| {
        let mut bytes = Bytes(data);
        let orders = bytes.byte();
        let fresh = orders & 1 == 1;
        let (middle, saved) = if fresh {
            let entries = vec![scene.log[0].clone()];
            let saved = SavedNet {
                entries,
                ..SavedNet::default()
            };
            (Middle::default(), saved)
        } else {
            scene.saved_net.clone()
        };
        let mut config = scene.provider.clone();
        config.lapse_after = (orders & 2 == 2).then_some(Duration::from_secs(86_400));
        let clock = Clock::new(middle.at);
        let provider = Provider::new(config.clone(), saved.clone(), scene.seeds().0);
        let mut fuzzed = FuzzedProvider {
            scene,
            provider: provider.expect("the recorded state"),
            config,
            saved,
            clock,
            rosters: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            dies_after: None,
        };
        let before = fuzzed.saved.entries.len();
        fuzzed.input(Input::Connected);
        let changer = Changer { scene };
        let mut next = middle.frames;
        for _ in 0..STEPS {
            if bytes.0.is_empty() {
                break;
            }
            fuzzed.step(&mut bytes, &changer, &mut next);
        }
        [
            fuzzed.saved.entries.len() - before,
            fuzzed.rosters.len(),
            fuzzed.aggregates.len(),
        ]
    })
}

impl FuzzedProvider<'_> {
    fn input(&mut self, input: Input<ProviderCommand>) {
        self.provider.handle(input, self.clock.now());
        while let Some(output) = self.provider.poll_output() {
            if dies_before(&mut self.dies_after, &output) {
                return self.restart();
            }
            match output {
                Output::Persist(record) => self.persist(record),
                Output::Publish(message) => self.check_durable(&message),
                Output::Event(_) | Output::WakeAt(_) => {}
            }
        }
    }

    fn persist(&mut self, record: ProviderRecord) {
        match record {
            ProviderRecord::Entry { index, frame, .. } => {
                let place = usize::try_from(index).expect("a short log");
                assert_eq!(place, self.saved.entries.len(), "one entry per place");
                self.saved.entries.push(frame);
            }
            ProviderRecord::Roster {
                round,
                frame,
                submissions,
                ..
            } => {
                let before = self.rosters.insert(round, frame.clone());
                assert!(before.is_none(), "a second roster of round {round}");
                let submissions = submissions.into_iter().map(|s| s.frame).collect();
                self.saved.rosters.push(SavedRoster {
                    frame,
                    submissions,
                    pending: true,
                });
            }
            ProviderRecord::Aggregate(published) => {
                let round = published.round;
                let before = self.aggregates.insert(round, published.frame.clone());
                assert!(before.is_none(), "a second aggregate of round {round}");
                self.saved.aggregates.push((round, published.frame));
                self.no_longer_pending(round);
            }
            ProviderRecord::Lost { round, .. } => {
                assert!(!self.aggregates.contains_key(&round), "lost, yet final");
                self.no_longer_pending(round);
            }
        }
    }

    fn no_longer_pending(&mut self, round: Round) {
        let log = self.provider.membership();
        for saved in &mut self.saved.rosters {
            let roster = Roster::verify(&saved.frame, log).expect("its own roster");
            saved.pending &= roster.round != round;
        }
    }

    fn check_durable(&self, message: &Message) {
        let Message { topic, payload, .. } = message;
        let saved = &self.saved;
        let durable = match topic {
            Topic::All { kind: All::Log, .. }
            | Topic::Inbox {
                kind: Inbox::Log, ..
            } => saved.entries.contains(payload),
            Topic::All {
                kind: All::Roster, ..
            }
            | Topic::Inbox {
                kind: Inbox::Roster,
                ..
            } => saved.rosters.iter().any(|roster| roster.frame == *payload),
            Topic::InboxPair { .. } => true,
            _ => saved.aggregates.iter().any(|(_, frame)| frame == payload),
        };
        assert!(durable, "{topic} is not durable");
    }

    fn restart(&mut self) {
        let provider = Provider::new(self.config.clone(), self.saved.clone(), [1; 32]);
        self.provider = provider.expect("a provider starts from what it has persisted");
        self.input(Input::Connected);
    }

    fn topic(&self, bytes: &mut Bytes<'_>) -> Topic {
        let net = self.scene.net;
        let ids: Vec<DeviceId> = self.scene.keys().iter().map(|key| key.id()).collect();
        let meter = ids[bytes.below(ids.len())];
        match bytes.byte() % 8 {
            0 => Topic::UpPair {
                net,
                meter,
                peer: ids[bytes.below(ids.len())],
            },
            1 => self.scene.frames[bytes.below(self.scene.frames.len())].0,
            _ => Topic::Up {
                net,
                meter,
                kind: Up::ALL[bytes.below(Up::ALL.len())],
            },
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>, changer: &Changer<'_>, next: &mut usize) {
        match bytes.byte() % 16 {
            0 => {
                let topic = self.topic(bytes);
                let length = usize::from(bytes.byte());
                let payload = bytes.take(length);
                self.input(Input::Received(vec![Received { topic, payload }]));
            }
            1 | 2 => {
                let mut messages = Vec::new();
                for _ in 0..=bytes.byte() % 4 {
                    let topic = self.topic(bytes);
                    let frame = self.scene.frame(bytes);
                    let payload = changer.frame(&frame, bytes, 0);
                    messages.push(Received { topic, payload });
                }
                self.input(Input::Received(messages));
            }
            step @ 3..=6 => {
                for _ in 0..=bytes.byte() % 64 {
                    let Some((topic, frame)) = self.scene.frames.get(*next) else {
                        break;
                    };
                    let at = self.scene.times[*next] + 1;
                    *next += 1;
                    if matches!(topic, Topic::Up { .. } | Topic::UpPair { .. }) {
                        let payload = match step {
                            6 => changer.frame(frame, bytes, 0),
                            _ => frame.clone(),
                        };
                        let topic = *topic;
                        // It takes a message a millisecond to arrive.
                        self.clock.reach(at);
                        let message = Received { topic, payload };
                        self.input(Input::Received(vec![message]));
                    }
                }
            }
            7 => self.clock.step(bytes),
            8 => {
                self.clock.step(bytes);
                self.input(Input::Tick);
            }
            9 | 10 => self.submissions(bytes),
            11 => self.reveals(bytes),
            12 => match bytes.byte() % 8 {
                0 => self.input(Input::Disconnected),
                1 => self.restart(),
                2 => self.dies_after = Some(usize::from(bytes.byte() % 16)),
                3 => {
                    self.config.successor = Some(self.scene.successor.clone());
                    self.restart();
                }
                _ => self.input(Input::Connected),
            },
            13 => self.revoke(bytes),
            14 => self.membership_frame(bytes),
            _ => self.input(Input::Tick),
        }
    }

    fn revoke(&mut self, bytes: &mut Bytes<'_>) {
        let (key, administrator) = &self.scene.administrator;
        let meter = self.scene.meters[bytes.below(self.scene.meters.len())]
            .key
            .id();
        let revocation = sign_revocation(key, meter, self.clock.now().utc);
        let other = self.scene.frame(bytes);
        let command = ProviderCommand::Revoked {
            list: RevocationList::new(u64::from(bytes.byte()), vec![meter]),
            administrator: match bytes.byte() {
                0..240 => administrator.clone(),
                _ => self.scene.provider.certificate.clone(),
            },
            revocations: vec![revocation, other],
        };
        self.input(Input::Command(command));
    }

    /// Recorded submissions, made ones of the round that has ended last.
    fn submissions(&mut self, bytes: &mut Bytes<'_>) {
        let log = self.provider.membership();
        let (net, head) = (self.scene.net, log.head());
        let round =
            Round((self.clock.utc / MINUTE).saturating_sub(1 + u64::from(bytes.byte() / 250)));
        let who = bytes.byte();
        let mut messages = Vec::new();
        for (place, config) in self.scene.meters.iter().enumerate() {
            if who >> place & 1 == 1 {
                continue;
            }
            let meter = config.key.id();
            let of_meter = |(topic, _): &&(Topic, Vec<u8>)| matches!(topic, Topic::Up { meter: m, kind: Up::Submission, .. } if *m == meter);
            let recorded = self.scene.frames.iter().find(of_meter);
            let recorded = recorded.and_then(|(_, frame)| self.scene.verified(frame));
            let Some(Ok(mut submission)) = recorded.map(|f| Submission::read(f, net, 1)) else {
                continue;
            };
            let change = bytes.byte();
            let neighbours = log
                .index_of(&meter)
                .map_or(0, |member| log.graph().neighbours(member, u64::MAX).len());
            let mut used = Bitmap::empty(neighbours);
            for edge in 0..neighbours {
                if change < 200 || bytes.byte() & 1 == 0 {
                    used.set(edge);
                }
            }
            submission.round = round;
            submission.log_head = head.hash;
            submission.edges = used.as_bytes().to_vec();
            submission.minimum_group = 4 + u32::from(change % 4);
            submission.minimum_neighbours = 3;
            let payload = submission.sign(&config.key, net, self.clock.now().utc);
            let kind = Up::Submission;
            let topic = Topic::Up { net, meter, kind };
            messages.push(Received { topic, payload });
        }
        self.input(Input::Received(messages));
    }

    /// Reveals for the newest roster, with openings of the run.
    fn reveals(&mut self, bytes: &mut Bytes<'_>) {
        let net = self.scene.net;
        let newest = self.saved.rosters.last();
        let Some(Ok(roster)) = newest.map(|r| Roster::verify(&r.frame, self.provider.membership()))
        else {
            return;
        };
        let who = bytes.byte();
        let mut messages = Vec::new();
        for (place, config) in self.scene.meters.iter().enumerate() {
            let meter = config.key.id();
            let of_meter = |(topic, _): &&(Topic, Vec<u8>)| matches!(topic, Topic::Up { meter: m, kind: Up::Reveal, .. } if *m == meter);
            let recorded = self.scene.frames.iter().find(of_meter);
            let recorded = recorded.and_then(|(_, frame)| self.scene.verified(frame));
            let Some(Ok(mut reveal)) = recorded.map(|f| Reveal::read(f, net, 1)) else {
                continue;
            };
            if who >> place & 1 == 1 {
                continue;
            }
            reveal.round = roster.round;
            reveal.roster = roster.hash;
            let payload = reveal.sign(&config.key, net, self.clock.now().utc);
            let topic = Topic::Up {
                net,
                meter,
                kind: Up::Reveal,
            };
            messages.push(Received { topic, payload });
        }
        self.input(Input::Received(messages));
    }

    /// What a member or a stranger may send about its membership now.
    fn membership_frame(&mut self, bytes: &mut Bytes<'_>) {
        let log = self.provider.membership();
        let Some((kind, body)) = next_body(self.scene, log, bytes) else {
            return;
        };
        let kind = match kind {
            EntryKind::Join => Up::Register,
            EntryKind::Leave => Up::Exit,
            EntryKind::Invite | EntryKind::Draw => Up::Draw,
            _ => return,
        };
        let Some(frame) = body.as_array().and_then(|body| body.first()?.as_bytes()) else {
            return;
        };
        let Some(meter) = Unverified::parse(frame).ok().map(|f| f.claimed().client) else {
            return;
        };
        let (net, payload) = (self.scene.net, frame.clone());
        let topic = Topic::Up { net, meter, kind };
        self.input(Input::Received(vec![Received { topic, payload }]));
    }
}
