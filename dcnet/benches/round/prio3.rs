//! Prio3Sum (draft-irtf-cfrg-vdaf) over 32-bit values with two aggregators: the work on
//! the values alone, without the encryption to the aggregators, the signatures and the
//! decoding that a deployment adds.

use std::time::Duration;

use prio::vdaf::prio3::{Prio3, Prio3InputShare, Prio3PublicShare, Prio3Sum};
use prio::vdaf::{Aggregatable, Aggregator, Client, Collector, VerifyTransition};

use crate::{Bench, timed};

type Report = (
    [u8; 16],
    Prio3PublicShare<32>,
    Vec<Prio3InputShare<prio::field::Field64, 32>>,
);

const CONTEXT: &[u8] = b"dcnet benchmark";
const VERIFY_KEY: [u8; 32] = [5; 32];
const REPORTS: u64 = 256;

fn report(vdaf: &Prio3Sum, number: u64) -> Report {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    let (public, shares) = vdaf.shard(CONTEXT, &measurement(number), &nonce).unwrap();
    (nonce, public, shares)
}

/// Energies in mWh, as a household has them in a quarter of an hour.
fn measurement(number: u64) -> u64 {
    number * 7919 % 1_000_000
}

/// Both aggregators' work on a report: verification started by each, combined, finished by
/// each, and the shares added.
pub fn aggregators() -> impl FnMut(u64) -> Duration {
    let vdaf = Prio3::new_sum(2, u64::from(u32::MAX)).unwrap();
    let reports: Vec<Report> = (0..REPORTS).map(|i| report(&vdaf, i)).collect();
    move |iterations| {
        let mut aggregates = [vdaf.aggregate_init(&()), vdaf.aggregate_init(&())];
        let mut truth = 0;
        let ((), time) = timed(|| {
            for (number, (nonce, public, shares)) in (0..iterations).zip(reports.iter().cycle()) {
                truth += measurement(number % REPORTS);
                let (states, verifiers): (Vec<_>, Vec<_>) = shares
                    .iter()
                    .enumerate()
                    .map(|(id, share)| {
                        vdaf.verify_init(&VERIFY_KEY, CONTEXT, id, &(), nonce, public, share)
                            .unwrap()
                    })
                    .unzip();
                let message = vdaf
                    .verifier_shares_to_message(CONTEXT, &(), verifiers)
                    .unwrap();
                for (state, aggregate) in states.into_iter().zip(&mut aggregates) {
                    let done = vdaf.verify_next(CONTEXT, state, message.clone()).unwrap();
                    let VerifyTransition::Finish(output) = done else {
                        panic!("Prio3 has one round");
                    };
                    aggregate.accumulate(&output).unwrap();
                }
            }
        });
        let count = usize::try_from(iterations).unwrap();
        assert_eq!(vdaf.unshard(&(), aggregates, count).unwrap(), truth);
        time
    }
}

pub fn measure(bench: &mut Bench<'_>) {
    let vdaf = Prio3::new_sum(2, u64::from(u32::MAX)).unwrap();
    let mut number = 0;
    bench.measure_all("prio3sum client", || {
        number += 1;
        report(&vdaf, number)
    });
    bench.measure("prio3sum aggregators", 50, 2, 1, aggregators());
}
