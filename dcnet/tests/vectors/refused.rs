//! Frames that must be refused, each for the reason that the vectors name.

use dcnet::aggregate::Aggregate;
use dcnet::checkpoint::Checkpoint;
use dcnet::frame::Frame;
use dcnet::identity::PublicKey;
use dcnet::membership::{EntryError, Membership, verify_registration};
use dcnet::reveal::Reveal;
use dcnet::revocation::{RevocationList, verify_revocation};
use dcnet::roster::Roster;
use dcnet::superposition::Submission;
use serde_json::Value;

use super::membership::log_of_changes;
use super::{Vector, World, member, pair};

/// What reading a frame says: the error's name, or `accepted`.
fn judge(world: &World, case: &Vector) -> String {
    let mut input = case.get("input").bytes();
    if let Some(times) = case.0.get("repeat").and_then(Value::as_u64) {
        input = input.repeat(times.try_into().unwrap());
    }
    let net = world.net;
    let verified = |key: &PublicKey| Frame::verify(&input, key);
    let meter = world.key(0).public();
    let pairs = Vector::file("keys").list("pairs");
    let first = || {
        let ends = |case: &&Vector| {
            let ends = [case.get("lower").index(), case.get("higher").index()];
            ends == [0, 1] || ends == [1, 0]
        };
        let case = pairs.iter().find(ends).unwrap();
        let offer = Frame::verify(
            &case.get("offer").bytes(),
            &world.key(member(case.get("lower").index())).public(),
        );
        (pair(world, case), offer.unwrap().digest())
    };
    // Whose log the case is about, after so many entries.
    let log = |entries: usize| match case.0.get("log") {
        Some(_) => log_of_changes(world, entries),
        None => world.membership(entries.min(world.log.len())),
    };
    let sender = || PublicKey::from_bytes(&case.get("key").fixed()).unwrap();
    let error = match case.get("reader").text() {
        "frame" => verified(&meter).err().map(|e| format!("{e:?}")),
        "submission" => {
            let read = verified(&meter).and_then(|frame| Submission::read(frame, net, 2));
            read.err().map(|e| format!("{e:?}"))
        }
        "reveal" => {
            let read = verified(&meter).and_then(|frame| Reveal::read(frame, net, 2));
            read.err().map(|e| format!("{e:?}"))
        }
        "roster" => Roster::verify(&input, &log(usize::MAX))
            .err()
            .map(|e| format!("{e:?}")),
        "aggregate" => {
            let read = Aggregate::verify(&input, net, &world.provider.0.public());
            read.err().map(|e| format!("{e:?}"))
        }
        "offer" => {
            let read = verified(&sender()).and_then(|frame| first().0.read_offer(frame));
            read.err().map(|e| format!("{e:?}"))
        }
        "answer" => {
            let (pair, offer) = first();
            let read = verified(&sender()).and_then(|frame| pair.read_answer(frame, &offer));
            read.err().map(|e| format!("{e:?}"))
        }
        "confirm" => {
            let pair = first().0;
            let read = verified(&sender()).and_then(|frame| pair.read_confirm(frame, pair.lower));
            read.err().map(|e| format!("{e:?}"))
        }
        "checkpoint" => {
            let read = Checkpoint::verify(&input, &world.administrator.1);
            read.err().map(|e| format!("{e:?}"))
        }
        "revocations" => {
            let read = RevocationList::verify(&input, &world.administrator.1);
            read.err().map(|e| format!("{e:?}"))
        }
        "revocation" => {
            let read = verify_revocation(&input, &world.administrator.1);
            read.err().map(|e| format!("{e:?}"))
        }
        "registration" => {
            let setup = world.vector.get("setup").time();
            let read = verify_registration(&input, net, &world.ca, setup);
            read.err().map(|e| format!("{e:?}"))
        }
        "entry" => {
            let mut log = log(case.get("after").number().try_into().unwrap());
            let head = log.head();
            // The vectors name what is wrong, wherever in the entry it stands.
            let error = log.append(&input).err().map(|error| match error {
                EntryError::Body(inside) => *inside,
                error => error,
            });
            assert_eq!(log.head(), head, "a refused entry leaves the log as it is");
            error.map(|e| format!("{e:?}"))
        }
        "genesis" => {
            let opened = Membership::open(&input, &world.provider.1, &world.ca);
            opened.err().map(|e| format!("{e:?}"))
        }
        other => panic!("no reader `{other}`"),
    };
    error.unwrap_or_else(|| "accepted".to_owned())
}

#[test]
fn bad_frames_are_refused_each_for_its_reason() {
    let (world, cases) = (World::new(), Vector::file("refused").items());
    assert!(cases.len() > 250, "only {} cases", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let verdict = judge(&world, &case);
        if verdict != case.get("error").text() {
            let (reader, name) = (case.get("reader"), case.get("name"));
            wrong.push(format!(
                "{}: {}: {verdict} instead of {}",
                reader.text(),
                name.text(),
                case.get("error").text()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
