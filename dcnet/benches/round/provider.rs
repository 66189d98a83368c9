//! A provider's round: submissions verified in batches, one roster, reveals verified
//! in batches, one sum checked against the commitments.
//!
//! The meters are synthetic ([`simulation::synthetic`]), which is the same work for a provider.

use std::time::Duration;

use dcnet::aggregate::Sum;
use dcnet::bitmap::Bitmap;
use dcnet::commitment::Commitment;
use dcnet::frame::{self, Frame, Unverified};
use dcnet::graph::MemberIndex;
use dcnet::identity::{DeviceKey, PublicKey, Role};
use dcnet::membership::{Membership, NewNet, Policy};
use dcnet::opening::Opening;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{
    Provider, ProviderConfig, ProviderEvent, ProviderRecord, SavedNet, SavedRoster,
};
use dcnet::reveal::Reveal;
use dcnet::roster::Roster;
use dcnet::superposition::Submission;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::{All, NetId, Topic, Up};

use crate::{Bench, timed};
use simulation::synthetic::{SyntheticLog, SyntheticMeter, random};
use simulation::world::{Authority, START, at};

/// Messages that are handed over, and their signatures verified, together.
const BATCH: usize = 512;

/// As many rosters as a provider looks back on.
const WARM: u64 = 96;

const MINUTE: u64 = 60_000;

/// The round that ends `end` milliseconds after the start.
fn round_ending(end: u64) -> Round {
    let period = Period::from_secs(60).unwrap();
    period.round_at(Timestamp(START.as_millis() + end - 1))
}

/// A net of synthetic meters.
struct Net {
    config: ProviderConfig,
    saved: SavedNet,
    net: NetId,
    head: [u8; 32],
    meters: Vec<SyntheticMeter>,
}

impl Net {
    /// A net in which every meter drew 48 neighbours and `WARM` rounds are over.
    fn new(members: usize) -> Self {
        let authority = Authority::new(0);
        let (key, certificate) = authority.issue(Role::Provider, None);
        let genesis = NewNet {
            name: "benchmark".to_owned(),
            policy: Policy {
                period: Period::from_secs(60).unwrap(),
                window_ms: 20_000,
                minimum_group: 30,
                minimum_neighbours: 3,
                degree: 48,
            },
            channels: vec!["import".to_owned()],
            salt: [7; 16],
        }
        .sign(&key, &certificate, &authority.ca, START);
        let membership = Membership::open(&genesis, &certificate, &authority.ca).unwrap();
        let net = membership.net();
        let mut log = SyntheticLog::new(net, key.clone(), membership.head().hash, START);
        let mut keys = Vec::with_capacity(members);
        for _ in 0..members {
            let (key, certificate) = authority.issue(Role::Meter, Some(net));
            log.join(&key, &certificate);
            keys.push(key);
        }
        for key in &keys {
            log.draw(key);
        }
        let config = ProviderConfig {
            key,
            certificate,
            ca: authority.ca.clone(),
            minimum_presence: 80,
            revoked: None,
            successor: None,
            lapse_after: None,
        };
        let mut included = Bitmap::empty(members);
        (0..members).for_each(|member| included.set(member));
        let mut previous = None;
        let rosters = (1..=WARM).map(|number| {
            let roster = Roster {
                round: round_ending(number * MINUTE),
                log_head: log.head(),
                head_index: 0,
                included: included.clone(),
                digests: vec![[0x5a; 8]; members],
                half_open: Vec::new(),
                previous,
                issued: START,
                hash: [0; 32],
            };
            let frame = roster.sign(&config.key, &membership, START);
            let verified = Frame::verify(&frame, &config.key.public());
            previous = Some(verified.unwrap().digest());
            SavedRoster {
                frame,
                submissions: Vec::new(),
                pending: false,
            }
        });
        let rosters = rosters.collect();
        let entries = log.entries.into_iter().map(|entry| entry.frame);
        let saved = SavedNet {
            entries: std::iter::once(genesis).chain(entries).collect(),
            rosters,
            aggregates: Vec::new(),
        };
        let provider = Provider::new(config.clone(), saved.clone(), [1; 32]).unwrap();
        let head = provider.membership().head();
        let graph = provider.membership().graph();
        let meters = (0..).zip(keys).map(|(member, key)| {
            let neighbours = graph.neighbours(member, head.index).len();
            SyntheticMeter::new(key, neighbours, 100_000 + u64::from(member))
        });
        Self {
            meters: meters.collect(),
            head: head.hash,
            config,
            saved,
            net,
        }
    }

    fn run(&self) -> Running<'_> {
        let saved = self.saved.clone();
        let mut provider = Provider::new(self.config.clone(), saved, [1; 32]).unwrap();
        provider.handle(Input::Connected, at(WARM * MINUTE));
        while provider.poll_output().is_some() {}
        Running {
            net: self,
            provider,
            end: WARM * MINUTE,
        }
    }

    fn mask(&self, end: u64, member: usize) -> Opening {
        random(end * 100_000 + u64::try_from(member).unwrap())
    }

    fn received(&self, member: usize, kind: Up, payload: Vec<u8>) -> Received {
        let meter = self.meters[member].key.id();
        let net = self.net;
        Received {
            topic: Topic::Up { net, meter, kind },
            payload,
        }
    }
}

/// A provider of a net, and the end of its newest round.
struct Running<'a> {
    net: &'a Net,
    provider: Provider,
    end: u64,
}

type Outputs = Vec<Output<ProviderRecord, ProviderEvent>>;

impl Running<'_> {
    fn handle(&mut self, messages: Vec<Received>, end: u64) -> (Outputs, Duration) {
        let mut batches: Vec<Vec<Received>> = Vec::new();
        for message in messages {
            match batches.last_mut().filter(|batch| batch.len() < BATCH) {
                Some(batch) => batch.push(message),
                None => batches.push(vec![message]),
            }
        }
        let provider = &mut self.provider;
        timed(|| {
            let mut outputs = Vec::new();
            for batch in batches {
                provider.handle(Input::Received(batch), at(end));
                outputs.extend(std::iter::from_fn(|| provider.poll_output()));
            }
            outputs
        })
    }

    /// One round; returns the CPU time. `sizes` is told the size of every frame.
    fn round(&mut self, mut sizes: impl FnMut(Topic, usize)) -> Duration {
        self.end += MINUTE;
        let (net, end, round) = (self.net, self.end, round_ending(self.end));
        let submissions = (0..).zip(&net.meters).map(|(member, meter)| {
            let mask = net.mask(end, member);
            let frame = meter.submission(net.net, round, net.head, mask, START);
            net.received(member, Up::Submission, frame)
        });
        let submissions: Vec<Received> = submissions.collect();
        submissions
            .iter()
            .for_each(|m| sizes(m.topic, m.payload.len()));
        let (outputs, submitting) = self.handle(submissions, end + 1000);
        let issued = outputs.into_iter().find_map(|output| match output {
            Output::Persist(ProviderRecord::Roster { hash, frame, .. }) => Some((hash, frame)),
            _ => None,
        });
        let (hash, roster) = issued.expect("the provider issued no roster");
        let to_all = |kind| Topic::All { net: net.net, kind };
        sizes(to_all(All::Roster), roster.len());
        let reveals = (0..).zip(&net.meters).map(|(member, meter)| {
            let frame = meter.reveal(net.net, round, hash, net.mask(end, member), START);
            net.received(member, Up::Reveal, frame)
        });
        let reveals: Vec<Received> = reveals.collect();
        reveals.iter().for_each(|m| sizes(m.topic, m.payload.len()));
        let (outputs, revealing) = self.handle(reveals, end + 2000);
        let published = outputs.into_iter().find_map(|output| match output {
            Output::Event(ProviderEvent::Aggregated(published)) => Some(published),
            _ => None,
        });
        let published = published.expect("the provider published no aggregate");
        let truth: Opening = net.meters.iter().map(|meter| meter.reading).sum();
        assert_eq!(published.included.len(), net.meters.len());
        assert_eq!(published.sums.first().map(|sum| sum.0), truth.integer());
        sizes(to_all(All::Aggregate), published.frame.len());
        submitting + revealing
    }
}

/// Signs a frame of a round: a submission as of a log head, or a reveal for a roster.
type Signer = fn(&SyntheticMeter, NetId, Round, [u8; 32], Opening, Timestamp) -> Vec<u8>;

/// The same work without the state machine: no log, roster, edges or copies for the store.
fn engine(meters: &[SyntheticMeter], end: u64) -> Duration {
    let net = NetId([7; 16]);
    let (round, head) = (round_ending(end), [1; 32]);
    let masks: Vec<Opening> = (0..).take(meters.len()).map(|i| random(end + i)).collect();
    let sign = |frame: Signer| {
        let frames = meters.iter().zip(&masks);
        frames
            .map(|(meter, mask)| {
                (
                    frame(meter, net, round, head, *mask, START),
                    meter.key.public(),
                )
            })
            .collect::<Vec<(Vec<u8>, PublicKey)>>()
    };
    let (submissions, reveals) = (
        sign(SyntheticMeter::submission),
        sign(SyntheticMeter::reveal),
    );
    let verify = |batch: &[(Vec<u8>, PublicKey)]| {
        let parsed = batch
            .iter()
            .map(|(frame, key)| (Unverified::parse(frame).unwrap(), *key));
        frame::verify_batch(parsed.collect())
    };
    let (sum, time) = timed(|| {
        let mut total = Opening::ZERO;
        let mut commitments = std::iter::empty::<Commitment>().sum::<Commitment>();
        for frame in submissions.chunks(BATCH).flat_map(verify) {
            let submission = Submission::read(frame.unwrap(), net, 1).unwrap();
            for share in submission.shares {
                total += share.superposition;
                commitments = commitments + share.commitment;
            }
        }
        for frame in reveals.chunks(BATCH).flat_map(verify) {
            for opening in Reveal::read(frame.unwrap(), net, 1).unwrap().openings {
                total -= opening;
            }
        }
        Sum::verify(&total, commitments, 0)
    });
    sum.expect("the sum does not open the commitments");
    time
}

/// Topic and size of every frame of a round in a net of `members`.
pub fn frame_sizes(members: usize) -> Vec<(Topic, usize)> {
    let mut all = Vec::new();
    Net::new(members)
        .run()
        .round(|topic, size| all.push((topic, size)));
    all
}

pub fn measure(bench: &mut Bench<'_>) {
    let (small, half_of_large) = if bench.test { (64, 96) } else { (1000, 5000) };
    let mut end = 0;
    for members in [small, 2 * half_of_large, 20 * half_of_large] {
        let meters: Vec<SyntheticMeter> = (0..u32::try_from(members).unwrap())
            .map(|member: MemberIndex| {
                let mut seed = [1; 32];
                seed[..4].copy_from_slice(&member.to_le_bytes());
                SyntheticMeter::new(DeviceKey::from_seed(&seed), 96, 1000)
            })
            .collect();
        let name = format!("provider engine alone, {members} meters");
        bench.measure(&name, 10, 3, members, |iterations| {
            let rounds = (0..iterations).map(|_| {
                end += MINUTE;
                engine(&meters, end)
            });
            rounds.sum()
        });
    }
    let small_net = Net::new(small);
    let mut one = small_net.run();
    let name = format!("provider, {small} meters");
    bench.measure(&name, 20, 4, small, |iterations| {
        (0..iterations).map(|_| one.round(|_, _| {})).sum()
    });
    // A roster of 10 000 meters is longer than a frame may be, so a provider runs two nets.
    let large_net = Net::new(half_of_large);
    let mut two = [large_net.run(), large_net.run()];
    let mut large = || -> Duration { two.iter_mut().map(|half| half.round(|_, _| {})).sum() };
    let meters = 2 * half_of_large;
    let name = format!("provider, {meters} meters (two nets)");
    bench.measure(&name, 10, 10, meters, |iterations| {
        (0..iterations).map(|_| large()).sum()
    });
    let repeated = meters / small;
    bench.compare(
        &format!("provider, {meters} meters ÷ {small} meters"),
        large,
        || (0..repeated).map(|_| one.round(|_, _| {})).sum(),
    );
}
