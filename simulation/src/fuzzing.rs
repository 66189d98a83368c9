//! Harnesses for arbitrary bytes: every decoder, a meter and a provider. The targets in
//! `fuzz/` and the test that replays their corpora call the same functions.
//!
//! An input is a program of small steps. Most of them deliver a frame of a recorded run,
//! changed in some places and signed again with the keys of that run, so that the bytes
//! reach the rules behind the signatures. After each output the harness asserts:
//!
//! - a frame that must survive a crash is durable before it is published;
//! - a meter publishes at most one submission and one reveal per round, over restarts;
//! - a provider publishes at most one log entry per place, and one roster and one
//!   aggregate per round, over restarts;
//! - both start again from whatever they have persisted.

mod meter;
mod provider;
mod scene;

use dcnet::aggregate::Aggregate;
use dcnet::cbor;
use dcnet::checkpoint::Checkpoint;
use dcnet::handshake::Pair;
use dcnet::identity::{CaCertificate, Certificate, PublicKey};
use dcnet::membership::{Membership, verify_registration};
use dcnet::reveal::Reveal;
use dcnet::revocation::{RevocationList, verify_revocation};
use dcnet::roster::Roster;
use dcnet::superposition::Submission;
use dcnet::topic::Topic;

use crate::world::START;
use scene::{Bytes, Changer, Scene, payload};

pub use meter::meter;
pub use provider::provider;

/// Most steps of one input.
const STEPS: usize = 96;

thread_local! {
    static SCENE: Scene = Scene::record();
}

/// Every decoder; the first byte says which.
///
/// # Panics
/// If a decoder does, or an accepted frame is not read again as the same.
pub fn frames(data: &[u8]) {
    SCENE.with(|scene| {
        let mut bytes = Bytes(data);
        let reader = bytes.byte();
        // Half of the inputs are raw, the others changes of a real frame.
        let input = if reader & 0x80 == 0 {
            bytes.0.to_vec()
        } else {
            let changer = Changer { scene };
            let frame = scene.frame(&mut bytes);
            changer.frame(&frame, &mut bytes, 0)
        };
        read(scene, reader & 0x7f, &input);
    });
}

fn read(scene: &Scene, reader: u8, input: &[u8]) {
    let provider = &scene.provider;
    match reader % 12 {
        0 => {
            if let Some(frame) = scene.verified(input) {
                let again = payload(input).and_then(|payload| cbor::decode(payload).ok());
                assert!(again.is_some(), "a verified frame has a payload");
                assert_eq!(
                    frame.header().net,
                    scene.verified(input).unwrap().header().net
                );
            }
        }
        1 => drop(Membership::open(input, &provider.certificate, &scene.ca)),
        2 => {
            // As the entry after each of the log, so that it fits somewhere.
            for before in &scene.memberships {
                let mut log = before.clone();
                if log.append(input).is_err() {
                    assert_eq!(log.head(), before.head(), "refused, yet appended");
                } else {
                    assert_eq!(log.head().index, before.head().index + 1);
                }
            }
        }
        3 => {
            let Some(log) = scene.memberships.last() else {
                return;
            };
            if let Ok(roster) = Roster::verify(input, log) {
                assert_eq!(roster.digests.len(), roster.included.count());
                assert!(
                    roster
                        .members()
                        .all(|place| roster.digest_of(place).is_some())
                );
            }
            drop(Aggregate::verify_in(input, log));
        }
        4 => {
            if let Some(frame) = scene.verified(input) {
                drop(Submission::read(frame.clone(), scene.net, 1));
                drop(Reveal::read(frame.clone(), scene.net, 1));
                let ids = scene.meters[0].key.id().min(scene.meters[1].key.id());
                let pair = Pair {
                    net: scene.net,
                    lower: ids,
                    higher: scene.meters[0].key.id().max(scene.meters[1].key.id()),
                    origin: [0; 32],
                };
                drop(pair.read_offer(frame.clone()));
                drop(pair.read_answer(frame.clone(), &[0; 32]));
                drop(pair.read_confirm(frame, ids));
            }
        }
        5 => drop(Aggregate::verify(input, scene.net, &provider.key.public())),
        6 => drop(Checkpoint::verify(input, &scene.administrator.1)),
        7 => {
            if let Ok(list) = RevocationList::verify(input, &scene.administrator.1) {
                assert!(list.devices().is_sorted());
            }
            let _ = verify_revocation(input, &scene.administrator.1);
        }
        8 => drop(verify_registration(input, scene.net, &scene.ca, START)),
        9 => {
            if let Ok(certificate) = Certificate::verify(input, &scene.ca, START) {
                assert_eq!(certificate.der(), input, "one encoding");
            }
            drop(CaCertificate::from_der(input));
            if let Some(key) = input.first_chunk() {
                let _ = PublicKey::from_bytes(key);
            }
        }
        10 => {
            if let Ok(text) = std::str::from_utf8(input)
                && let Ok(topic) = text.parse::<Topic>()
            {
                assert_eq!(topic.to_string(), text, "one spelling");
            }
        }
        _ => {
            if let Ok(item) = cbor::decode(input) {
                assert_eq!(cbor::encode(&item), input, "one encoding");
            }
        }
    }
}
