//! A provider on the log of the vectors makes the very roster and aggregate of the round.

use std::time::Duration;

use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::provider::{
    Provider, ProviderCommand, ProviderConfig, ProviderEvent, ProviderRecord, SavedNet,
};
use dcnet::time::{Now, Timestamp};
use dcnet::topic::{Topic, Up};

use super::{Vector, World, member};

/// A provider that was started on the log of the vectors.
struct Running {
    provider: Provider,
    frames: Vec<Vec<u8>>,
    published: Vec<Vec<u8>>,
}

impl Running {
    fn handle(&mut self, input: Input<ProviderCommand>, at: Timestamp, start: Timestamp) {
        let now = Now {
            monotonic: at.since(start) + Duration::from_secs(1),
            utc: at,
            synchronised: true,
        };
        self.provider.handle(input, now);
        while let Some(output) = self.provider.poll_output() {
            match output {
                Output::Persist(ProviderRecord::Roster { frame, .. }) => self.frames.push(frame),
                Output::Event(ProviderEvent::Aggregated(published)) => {
                    self.frames.push(published.frame)
                }
                Output::Event(ProviderEvent::Refused { reason, .. }) => panic!("{reason}"),
                Output::Publish(message) => self.published.push(message.payload),
                _ => {}
            }
        }
    }
}

#[test]
fn a_provider_makes_the_roster_and_the_aggregate_of_the_round() {
    let (world, case) = (World::new(), Vector::file("round"));
    let (key, certificate) = world.provider.clone();
    let config = ProviderConfig {
        key,
        certificate,
        ca: world.ca.clone(),
        minimum_presence: 80,
        revoked: None,
        successor: None,
        lapse_after: None,
    };
    let saved = SavedNet {
        entries: world.log.clone(),
        ..SavedNet::default()
    };
    let provider = Provider::new(config, saved, [1; 32]).unwrap();
    let mut running = Running {
        provider,
        frames: Vec::new(),
        published: Vec::new(),
    };
    let start = world.vector.get("start").time();
    running.handle(Input::Connected, start, start);
    let message = |meter: &Vector, kind, key| {
        let topic = Topic::Up {
            net: world.net,
            meter: world.id(member(meter.get("member").index())),
            kind,
        };
        Received {
            topic,
            payload: meter.get(key).bytes(),
        }
    };
    let meters = case.list("meters");
    let submissions = meters
        .iter()
        .map(|meter| message(meter, Up::Submission, "submission"));
    let at = meters.last().unwrap().get("submission_at").time();
    running.handle(Input::Received(submissions.collect()), at, start);
    assert!(running.frames.is_empty(), "one meter may still come");
    running.handle(Input::Tick, case.get("roster_at").time(), start);
    assert_eq!(running.frames, [case.get("roster").bytes()]);

    let aggregate_at = case.get("aggregate_at").time();
    for meter in &meters {
        assert_eq!(running.frames.len(), 1, "no sum before the last reveal");
        let reveal = message(meter, Up::Reveal, "reveal");
        running.handle(Input::Received(vec![reveal]), aggregate_at, start);
    }
    assert_eq!(running.frames[1..], [case.get("aggregate").bytes()]);
    for frame in &running.frames {
        assert!(running.published.contains(frame));
    }
}
