//! A meter's round, by the real state machine: register boundary, submission, roster
//! verified and checked, reveal.

use std::time::Duration;

use dcnet::aggregate::Aggregate;
use dcnet::bitmap::Bitmap;
use dcnet::frame::{Frame, Unverified};
use dcnet::identity::DeviceKey;
use dcnet::membership::{Membership, Policy};
use dcnet::meter::{Meter, MeterCommand, MeterEvent};
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::pad::RosterHash;
use dcnet::reading::Boundary;
use dcnet::roster::Roster;
use dcnet::superposition::short;
use dcnet::time::{Now, Period, Timestamp};
use dcnet::topic::{All, Topic, Up};
use dcnet::units::MilliwattHours;

use crate::{Bench, timed};
use simulation::network::{Faults, Network};
use simulation::world::{START, World, at};

const MINUTE: u64 = 60_000;

/// As many rosters as a meter looks back on; before that many it has less to do.
const WARM: u64 = 96;

/// A net in which every meter has an edge to every other.
pub fn complete_net(members: usize, rounds: u64) -> Network {
    let others = u32::try_from(members - 1).unwrap();
    let policy = Policy {
        period: Period::from_secs(60).unwrap(),
        window_ms: 20_000,
        minimum_group: others,
        minimum_neighbours: 3,
        degree: others,
    };
    let mut network = Network::new(
        World::new(members, policy, &["import"]),
        Faults::default(),
        1,
    );
    network.keep_published = true;
    network.run_until((4 + rounds) * MINUTE - 10_000);
    network.check_aggregates();
    let last = network.aggregates.last().unwrap();
    assert_eq!(last.included.len(), members, "a meter is missing");
    network
}

/// CPU times of one round.
struct Times {
    /// From the boundary to the submission.
    submission: Duration,
    /// From the roster to the reveal, with the roster's signature.
    reveal: Duration,
    /// Verifying the roster's signature once more, right afterwards.
    signature: Duration,
}

/// What of a round is counted, for a row of the table.
type Part = (&'static str, fn(Times) -> Duration);

const PARTS: [Part; 5] = [
    ("", |times| times.submission + times.reveal),
    (", less the roster's signature", |times| {
        (times.submission + times.reveal).saturating_sub(times.signature)
    }),
    (": submission", |times| times.submission),
    (": roster and reveal", |times| times.reveal),
    (": the roster's signature alone", |times| times.signature),
];

/// One meter of a net; the others are played.
struct Played {
    meter: Meter,
    own: usize,
    public: dcnet::identity::PublicKey,
    provider: DeviceKey,
    membership: Membership,
    previous: RosterHash,
    /// End of the round, in milliseconds after the start.
    end: u64,
    register: u64,
}

impl Played {
    fn new(mut network: Network) -> Self {
        let membership = network.provider.membership().clone();
        let saved = network.saved_net.rosters.last().unwrap();
        let previous = Roster::verify(&saved.frame, &membership).unwrap().hash;
        let meter = network.meters.swap_remove(0);
        let own = membership.index_of(&meter.id()).unwrap();
        let mut played = Self {
            own: usize::try_from(own).unwrap(),
            public: membership.member(own).unwrap().key,
            provider: network.world.provider.key.clone(),
            previous,
            end: network.now.next_multiple_of(MINUTE),
            register: 1 << 36,
            membership,
            meter,
        };
        played.boundary();
        for _ in 0..WARM {
            played.round();
        }
        played
    }

    /// Lets the meter handle one input and returns what came out and the CPU time.
    fn handle(
        &mut self,
        input: Input<MeterCommand>,
        now: Now,
    ) -> (Vec<Output<dcnet::output::Record, MeterEvent>>, Duration) {
        let meter = &mut self.meter;
        timed(|| {
            meter.handle(input, now);
            std::iter::from_fn(|| meter.poll_output()).collect()
        })
    }

    fn boundary(&mut self) -> Duration {
        let boundary = Boundary {
            at: Timestamp(START.as_millis() + self.end),
            channels: vec![MilliwattHours(self.register)],
        };
        let input = Input::Command(MeterCommand::Boundary(boundary));
        self.handle(input, at(self.end)).1
    }

    /// One round.
    fn round(&mut self) -> Times {
        self.end += MINUTE;
        self.register += 250_000;
        let at_boundary = self.boundary();
        let (outputs, submitting) = self.handle(Input::Tick, at(self.end + 10_000));
        let submission = published(&outputs, Up::Submission);
        let digest = Frame::verify(submission, &self.public).unwrap().digest();

        let members = self.membership.members().len();
        let mut included = Bitmap::empty(members);
        (0..members).for_each(|member| included.set(member));
        let mut digests = vec![[0x5a; 8]; members];
        digests[self.own] = short(&digest);
        let head = self.membership.head();
        let period = self.membership.genesis().policy.period;
        let round = period.round_at(Timestamp(START.as_millis() + self.end - 1));
        let roster = Roster {
            round,
            log_head: head.hash,
            head_index: head.index,
            included,
            digests,
            half_open: Vec::new(),
            previous: Some(self.previous),
            issued: START,
            hash: [0; 32],
        };
        let now = at(self.end + 10_500);
        let frame = roster.sign(&self.provider, &self.membership, now.utc);
        let provider = self.provider.public();
        self.previous = Frame::verify(&frame, &provider).unwrap().digest();
        let unverified = Unverified::parse(&frame).unwrap();
        let (outputs, revealing) = self.handle(self.received(All::Roster, frame), now);
        published(&outputs, Up::Reveal);
        let (verified, verifying) = timed(|| unverified.verify(&provider));
        assert_eq!(verified.unwrap().digest(), self.previous);

        let aggregate = Aggregate {
            round,
            roster: self.previous,
            log_head: head.hash,
            members: u32::try_from(members).unwrap(),
            included: u32::try_from(members).unwrap(),
            sums: Vec::new(),
        };
        let frame = aggregate.sign(&self.provider, self.meter.net(), now.utc);
        let (outputs, _) = self.handle(self.received(All::Aggregate, frame), now);
        let ended = |output: &Output<_, MeterEvent>| {
            matches!(output, Output::Event(MeterEvent::Final { .. }))
        };
        assert!(outputs.iter().any(ended), "the round did not end");
        Times {
            submission: at_boundary + submitting,
            reveal: revealing,
            signature: verifying,
        }
    }

    fn received(&self, kind: All, payload: Vec<u8>) -> Input<MeterCommand> {
        let net = self.meter.net();
        Input::Received(vec![Received {
            topic: Topic::All { net, kind },
            payload,
        }])
    }
}

fn published(outputs: &[Output<dcnet::output::Record, MeterEvent>], wanted: Up) -> &[u8] {
    let frame = outputs.iter().find_map(|output| match output {
        Output::Publish(message) => match message.topic {
            Topic::Up { kind, .. } if kind == wanted => Some(message.payload.as_slice()),
            _ => None,
        },
        _ => None,
    });
    frame.unwrap_or_else(|| panic!("the meter published no {wanted:?}: {outputs:?}"))
}

pub fn measure(bench: &mut Bench<'_>) {
    for edges in if bench.test { vec![8] } else { vec![40, 96] } {
        let mut played = Played::new(complete_net(edges + 1, 2));
        for (part, counted) in PARTS {
            let name = format!("meter, {edges} edges{part}");
            bench.measure(&name, 40, 3, 1, |iterations| {
                (0..iterations).map(|_| counted(played.round())).sum()
            });
        }
    }
}
