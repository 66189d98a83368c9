//! Bytes on the wire per meter and round, counted on real frames.

use dcnet::topic::{All, Topic, Up};

use crate::meter::complete_net;
use crate::provider::frame_sizes;

/// What MQTT 3.1.1 adds to a payload at QoS 1: fixed header, topic, packet identifier,
/// and the PUBACK that answers.
fn mqtt(topic: &Topic, payload: usize) -> usize {
    let variable = 2 + topic.to_string().len() + 2;
    let length = match variable + payload {
        0..128 => 1,
        128..16_384 => 2,
        _ => 3,
    };
    let acknowledgement = 4;
    1 + length + variable + acknowledgement
}

/// The mean size of a kind of frame, and what MQTT adds to it.
fn mean(frames: &[(Topic, usize)], of_kind: fn(&Topic) -> bool) -> String {
    let frames: Vec<_> = frames.iter().filter(|(topic, _)| of_kind(topic)).collect();
    let (topic, _) = frames.first().expect("a round has every kind of frame");
    let total: usize = frames.iter().map(|(_, size)| size).sum();
    let payload = total.div_ceil(frames.len());
    format!("{payload} + {}", mqtt(topic, payload))
}

pub fn print(members: &[usize]) {
    println!("\nBytes per meter and round: payload + MQTT 3.1.1 at QoS 1 with its acknowledgement");
    let columns = [
        "submission up",
        "reveal up",
        "roster down",
        "aggregate down",
    ];
    print!("{:>8}", "members");
    columns.iter().for_each(|column| print!(" {column:>15}"));
    println!();
    for members in members {
        let frames = if *members < 100 {
            let published = complete_net(*members, 2).published.into_iter();
            published
                .map(|(_, message)| (message.topic, message.payload.len()))
                .collect()
        } else {
            frame_sizes(*members)
        };
        let sizes = [
            mean(&frames, |t| {
                matches!(
                    t,
                    Topic::Up {
                        kind: Up::Submission,
                        ..
                    }
                )
            }),
            mean(&frames, |t| {
                matches!(
                    t,
                    Topic::Up {
                        kind: Up::Reveal,
                        ..
                    }
                )
            }),
            mean(&frames, |t| {
                matches!(
                    t,
                    Topic::All {
                        kind: All::Roster,
                        ..
                    }
                )
            }),
            mean(&frames, |t| {
                matches!(
                    t,
                    Topic::All {
                        kind: All::Aggregate,
                        ..
                    }
                )
            }),
        ];
        print!("{members:>8}");
        sizes.iter().for_each(|size| print!(" {size:>15}"));
        println!();
    }
}
