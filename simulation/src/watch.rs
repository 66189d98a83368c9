//! Reads what happens in a net after every event, and holds it against the invariants.

use std::collections::{BTreeMap, BTreeSet};

use dcnet::alarm::{Alarm, Loss};
use dcnet::bitmap::Bitmap;
use dcnet::cbor::{self, Fields};
use dcnet::commitment::commit;
use dcnet::frame::Frame;
use dcnet::meter::MeterEvent;
use dcnet::opening::Opening;
use dcnet::output::Store;
use dcnet::pad::RosterHash;
use dcnet::provider::{ProviderEvent, Published};
use dcnet::reading::{BlindingSecret, Reading};
use dcnet::reveal::Reveal;
use dcnet::roster::Roster;
use dcnet::secret::Secret;
use dcnet::superposition::{ShortDigest, Submission, short};
use dcnet::time::Day;
use dcnet::topic::{All, Topic, Up};

use crate::history::{AggregateSeen, History, RevealSeen, RosterSeen, SubmissionSeen};
use crate::invariant::Invariant;
use crate::network::{Interval, Network, Skew, Traced};

/// What was done to the meters, and so explains what they say.
#[derive(Clone, Debug, Default)]
pub struct Harm {
    /// Meters whose disk forgot something.
    pub forgetful: BTreeSet<usize>,
    /// Meters that the gateway administrator revoked.
    pub revoked: BTreeSet<usize>,
    /// Meters whose clock was wrong.
    pub wrong_clock: BTreeSet<usize>,
    /// Whether the provider's clock was wrong: it took who was here for absent since long.
    pub provider_clock: bool,
    /// Whether the provider marked meters as lapsed that were here.
    pub false_lapses: bool,
    /// Whether handshakes were withheld, or the log that tells of edges.
    pub handshakes: bool,
    /// Meters that were shown a roster that is not the provider's one.
    pub false_rosters: BTreeSet<usize>,
    /// Meters that were shown a second log.
    pub forked: BTreeSet<usize>,
    /// Whether submissions of meters that took themselves to be connected may have been lost,
    /// again and again.
    pub submissions: bool,
    /// Meters that once owed a reveal after the window.
    pub late: BTreeSet<usize>,
}

/// Whether a meter may answer nobody's handshake now.
fn is_unwell(network: &Network, meter: usize) -> bool {
    let stopped = (Store::Net, b"stopped".to_vec());
    network.saved[meter].contains_key(&stopped)
        || !network.online[meter]
        || network.cut[meter]
        || network.skews[meter] != Skew::default()
}

/// The observer of one run.
pub struct Watch {
    /// What was said.
    pub history: History,
    /// What was done.
    pub harm: Harm,
    /// Every roster by its hash, lies too.
    pub rosters: BTreeMap<RosterHash, Roster>,
    /// What happened, in lines, if somebody wants to know.
    pub story: Option<Vec<String>>,
    submissions: BTreeMap<(usize, ShortDigest), Submission>,
    /// Frames that were read, by meter and by what its disk knew.
    read: BTreeSet<(usize, u32, Vec<u8>)>,
    begin: u64,
    traced: usize,
    aggregates: usize,
    meter_events: Vec<usize>,
    provider_events: usize,
}

fn secrets(record: &[u8]) -> Option<BlindingSecret> {
    let mut fields = Fields::of(cbor::decode(record).ok()?, "device").ok()?;
    fields.fixed::<32>("mask").ok()?;
    let day = Day(fields.u32("day").ok()?);
    let mut secret = fields.fixed("blinding").ok()?;
    Some(BlindingSecret::new(day, Secret::new(&mut secret)))
}

/// What a submission's commitments open to, of what the register counted in its round.
fn open(
    network: &Network,
    meter: usize,
    submission: &Submission,
    record: &[u8],
) -> Option<(Interval, Vec<Opening>)> {
    let period = network.world.policy.period;
    let round = submission.round;
    let blinding = secrets(record)?.on(round.day(period))?;
    let intervals = network.intervals(meter, round).iter().rev();
    intervals.cloned().find_map(|interval| {
        let reading = Reading::between(&interval.start, &interval.end, period).ok()?;
        let openings = reading.openings(&blinding, network.world.net);
        let shares = submission.shares.iter().zip(&openings);
        let holds = shares.into_iter().all(|(s, o)| s.commitment == commit(o));
        holds.then_some((interval, openings))
    })
}

impl Watch {
    /// An observer of a net that has just begun.
    pub fn new(network: &Network, story: bool) -> Self {
        Self {
            history: History::new(network.world.policy.minimum_group),
            harm: Harm::default(),
            rosters: BTreeMap::new(),
            story: story.then(Vec::new),
            submissions: BTreeMap::new(),
            read: BTreeSet::new(),
            begin: network.now,
            traced: 0,
            aggregates: 0,
            meter_events: vec![0; network.meters.len()],
            provider_events: 0,
        }
    }

    /// Milliseconds since the net began.
    pub fn time(&self, network: &Network) -> u64 {
        network.now - self.begin
    }

    /// Adds a line to the story.
    pub fn tell(&mut self, network: &Network, line: impl FnOnce() -> String) {
        let time = crate::plan::Clock(network.now - self.begin);
        if let Some(story) = &mut self.story {
            story.push(format!("{time} {}", line()));
        }
    }

    /// Looks at all that happened since the last time. Returns the provider's new rosters.
    pub fn observe(&mut self, network: &Network) -> Vec<RosterHash> {
        let mut rosters = Vec::new();
        let trace = network.trace.as_deref().unwrap_or_default();
        let new = trace.get(self.traced..).unwrap_or_default();
        self.traced = trace.len();
        for traced in new {
            rosters.extend(self.message(network, traced));
        }
        let new = network
            .aggregates
            .get(self.aggregates..)
            .unwrap_or_default();
        self.aggregates = network.aggregates.len();
        for published in new {
            self.aggregate(network, published);
        }
        self.events(network);
        rosters
    }

    fn message(&mut self, network: &Network, traced: &Traced) -> Option<RosterHash> {
        let time = traced.time - self.begin;
        if let Some(durable) = traced.durable {
            let report = &mut self.history.report;
            report.check(Invariant::Durable, time, durable, || {
                let topic = traced.message.topic;
                format!("{:?} published on {topic} what is not stored", traced.from)
            });
        }
        let payload = &traced.message.payload;
        match (traced.from, traced.message.topic) {
            (
                None,
                Topic::All {
                    kind: All::Roster, ..
                },
            ) => return self.roster(network, time, payload, true),
            (
                Some(meter),
                Topic::Up {
                    kind: Up::Submission,
                    ..
                },
            ) if self.is_new(meter, traced) => self.submission(network, time, meter, traced),
            (
                Some(meter),
                Topic::Up {
                    kind: Up::Reveal, ..
                },
            ) if self.is_new(meter, traced) => self.reveal(network, time, meter, traced),
            _ => {}
        }
        None
    }

    fn is_new(&mut self, meter: usize, traced: &Traced) -> bool {
        let frame = (meter, traced.disk, traced.message.payload.clone());
        self.read.insert(frame)
    }

    /// Notes a roster; its hash if it is a new one.
    pub fn roster(
        &mut self,
        network: &Network,
        time: u64,
        payload: &[u8],
        honest: bool,
    ) -> Option<RosterHash> {
        let log = network.provider.membership();
        let roster = Roster::verify(payload, log).ok()?;
        let meter = |member| network.meter_of(&log.member(member)?.id);
        let meters = roster
            .members()
            .map(|member| meter(member).unwrap_or(usize::MAX));
        let included = meters.zip(roster.digests.iter().copied()).collect();
        let (round, hash) = (roster.round, roster.hash);
        let seen = RosterSeen {
            time,
            round,
            hash,
            included,
            honest,
        };
        self.history.roster(seen);
        let new = self.rosters.insert(hash, roster).is_none();
        new.then_some(hash)
    }

    fn submission(&mut self, network: &Network, time: u64, meter: usize, traced: &Traced) {
        let key = network.world.meters[meter].key.public();
        let channels = network.register(meter).len();
        let frame = Frame::verify(&traced.message.payload, &key);
        let read = frame.and_then(|frame| Submission::read(frame, network.world.net, channels));
        let Ok(submission) = read else { return };
        let record = traced.secrets.as_deref();
        let reading = record.and_then(|record| open(network, meter, &submission, record));
        let place = (meter, short(&submission.digest));
        self.submissions.insert(place, submission.clone());
        self.history.submission(SubmissionSeen {
            time,
            meter,
            disk: traced.disk,
            submission,
            reading,
        });
    }

    fn reveal(&mut self, network: &Network, time: u64, meter: usize, traced: &Traced) {
        let key = network.world.meters[meter].key.public();
        let channels = network.register(meter).len();
        let frame = Frame::verify(&traced.message.payload, &key);
        let read = frame.and_then(|frame| Reveal::read(frame, network.world.net, channels));
        let Ok(reveal) = read else { return };
        let full = self.full_edges(network, meter, &reveal.roster).unwrap_or(0);
        self.history.reveal(&RevealSeen {
            time,
            meter,
            disk: traced.disk,
            round: reveal.round,
            roster: reveal.roster,
            full,
        });
    }

    /// Drawn edges of a meter that are full by a roster and the submission that it states.
    fn full_edges(&self, network: &Network, meter: usize, roster: &RosterHash) -> Option<usize> {
        let roster = self.rosters.get(roster)?;
        let log = network.provider.membership();
        // A meter that joined anew has several places; the roster states one of them.
        let id = network.meters[meter].id();
        let mut places = (0..).zip(log.members()).filter(|(_, place)| place.id == id);
        let (own, submission) = places.find_map(|(place, _)| {
            let digest = roster.digest_of(place)?;
            Some((place, self.submissions.get(&(meter, digest))?))
        })?;
        let head = log.index_of_entry(&submission.log_head)?;
        let neighbours = log.graph().neighbours(own, head);
        let used = Bitmap::from_bytes(submission.edges.clone(), neighbours.len(), "edges").ok()?;
        let drawn = log.graph().drawn(own, head);
        let full = used.iter().filter_map(|place| neighbours.get(place));
        let full = full.filter(|peer| {
            let mut claims = roster.half_open.iter();
            let claimed = claims.any(|claim| claim.user == own && claim.non_user == **peer);
            drawn.contains(peer) && roster.includes(**peer) && !claimed
        });
        Some(full.count())
    }

    fn aggregate(&mut self, network: &Network, published: &Published) {
        let included = network.included(published);
        let sums: Vec<u64> = published.sums.iter().map(|sum| sum.0).collect();
        let (time, round) = (self.time(network), published.round);
        self.history.aggregate(AggregateSeen {
            time,
            round,
            roster: published.roster,
            included,
            sums,
        });
    }

    fn events(&mut self, network: &Network) {
        for (meter, events) in network.meter_events.iter().enumerate() {
            let new = events.get(self.meter_events[meter]..).unwrap_or_default();
            self.meter_events[meter] = events.len();
            for event in new {
                if let MeterEvent::Alarm(alarm) = event {
                    self.check_alarm(network, Some(meter), alarm);
                }
                self.tell(network, || format!("meter {meter}: {event:?}"));
            }
        }
        let events = &network.provider_events;
        let new = events.get(self.provider_events..).unwrap_or_default();
        self.provider_events = events.len();
        for event in new {
            match event {
                ProviderEvent::Alarm(alarm) => self.check_alarm(network, None, alarm),
                ProviderEvent::Pending { missing, .. } => {
                    let meters = missing.iter().filter_map(|id| network.meter_of(id));
                    self.harm.late.extend(meters);
                }
                _ => {}
            }
            self.tell(network, || match event {
                ProviderEvent::Aggregated(published) => {
                    let included = network.included(published);
                    format!(
                        "provider: sum of round {} over {included:?}",
                        published.round
                    )
                }
                event => format!("provider: {event:?}"),
            });
        }
    }

    /// Nobody is accused of what nobody did.
    fn check_alarm(&mut self, network: &Network, by: Option<usize>, alarm: &Alarm) {
        let harm = &self.harm;
        let is_in = |set: &BTreeSet<usize>| by.is_some_and(|meter| set.contains(&meter));
        let explained = match alarm {
            Alarm::LogFork { .. } | Alarm::BadEntry(_) | Alarm::Checkpoint { .. } => {
                is_in(&harm.forked)
            }
            Alarm::SecondRoster { .. } => is_in(&harm.false_rosters),
            Alarm::FalseRoster { .. } => is_in(&harm.false_rosters) || is_in(&harm.forgetful),
            Alarm::ClockJump { .. } => is_in(&harm.wrong_clock),
            Alarm::Exclusions { .. } => harm.submissions,
            // By its own clock, a meter may have seen another only lately.
            Alarm::FalseLapse { .. } => {
                harm.false_lapses || harm.provider_clock || is_in(&harm.wrong_clock)
            }
            Alarm::StateLost(Loss::State) | Alarm::KeyUsedElsewhere => is_in(&harm.forgetful),
            Alarm::StateLost(Loss::Keys { .. }) => {
                let mut meters = 0..network.meters.len();
                let lost = harm.handshakes || !harm.forgetful.is_empty();
                lost || meters.any(|meter| is_unwell(network, meter))
            }
            Alarm::Revoked => is_in(&harm.revoked),
            // Who left, for whatever reason, may leave others with too few neighbours.
            Alarm::Emergency { .. } => {
                let log = network.provider.membership();
                log.members().iter().any(|member| !member.is_active())
            }
            Alarm::DrawAbandoned => is_in(&harm.forgetful) || is_in(&harm.wrong_clock),
            Alarm::Equivocation { meter, .. } => {
                let meter = network.meter_of(meter);
                meter.is_some_and(|meter| harm.forgetful.contains(&meter))
            }
            Alarm::Handshake { meter, .. } => {
                let meter = network.meter_of(meter);
                is_in(&harm.forgetful) || meter.is_some_and(|meter| harm.forgetful.contains(&meter))
            }
            _ => false,
        };
        let time = self.time(network);
        let report = &mut self.history.report;
        report.check(Invariant::Alarms, time, explained, || match by {
            Some(meter) => format!("meter {meter} raises a false alarm: {alarm}"),
            None => format!("the provider raises a false alarm: {alarm}"),
        });
    }
}
