//! The plain reading that everything is compared with, and a meter's cryptography
//! without its state machine.

use std::hint::black_box;
use std::time::Duration;

use curve25519_dalek::scalar::Scalar;
use dcnet::cbor;
use dcnet::commitment::commit;
use dcnet::frame::{self, Notification};
use dcnet::identity::DeviceKey;
use dcnet::opening::{Opening, PadSum};
use dcnet::pad::{PadKeys, PairKey};
use dcnet::reveal::Reveal;
use dcnet::secret::Secret;
use dcnet::superposition::{Share, Submission, self_mask};
use dcnet::time::{Day, Round};
use dcnet::topic::NetId;

use crate::{Bench, timed};
use simulation::world::START;

const NET: NetId = NetId([7; 16]);

/// Readings in the clear, in signed frames: what a meter without any privacy would send.
pub fn plain_readings() -> impl FnMut(u64) -> Duration {
    let key = DeviceKey::from_seed(&[1; 32]);
    let mut energy = 0u64;
    move |iterations| {
        let ((), time) = timed(|| {
            for _ in 0..iterations {
                energy += 1;
                let data = cbor::array([cbor::uint(29_453_760u64), cbor::uint(energy)]);
                black_box(frame::sign(
                    &key,
                    NET,
                    START,
                    Notification::Submission,
                    data,
                ));
            }
        });
        time
    }
}

/// A meter's share of a round: pads, self-mask, commitment and two signatures, but no
/// rule checked and no roster verified.
fn cryptography(key: &DeviceKey, pads: &[PadKeys], device: &Secret, round: Round) -> Vec<u8> {
    let roster = [9; 32];
    let (mut first, mut second) = (PadSum::new(), PadSum::new());
    for (place, keys) in pads.iter().enumerate() {
        let adds = place % 2 == 0;
        first.include(keys.submission(round, 0).bytes(), adds);
        second.include(keys.reveal(&roster, round, 0).bytes(), adds);
    }
    let mask = self_mask(device, &[3; 32], NET, round, 0);
    let reading = Opening {
        value: Scalar::from(123_456u64),
        blinding: mask.blinding,
    };
    let share = Share {
        superposition: reading + first.finish() + mask,
        commitment: commit(&reading),
    };
    let submission = Submission {
        sender: key.id(),
        round,
        log_head: [1; 32],
        minimum_group: 40,
        minimum_neighbours: 29,
        edges: vec![0xff; pads.len().div_ceil(8)],
        shares: vec![share],
        digest: [0; 32],
    };
    black_box(submission.sign(key, NET, START));
    let reveal = Reveal {
        sender: key.id(),
        round,
        roster,
        openings: vec![mask + second.finish()],
    };
    reveal.sign(key, NET, START)
}

pub fn measure(bench: &mut Bench<'_>) {
    bench.measure("signed plain reading", 50, 2, 1, plain_readings());
    let key = DeviceKey::from_seed(&[1; 32]);
    let device = Secret::new(&mut [2; 32]);
    for edges in [40u8, 96] {
        let pads: Vec<PadKeys> = (0..edges)
            .map(|edge| PairKey::new(Day(20_454), Secret::new(&mut [edge; 32])).pad_keys(NET))
            .collect();
        let mut round = 29_453_760;
        bench.measure_all(
            &format!("meter's cryptography alone, {edges} edges"),
            || {
                round += 1;
                cryptography(&key, &pads, &device, Round(round))
            },
        );
    }
}
