//! What a round costs a meter and a provider, as ratios to an Ed25519-signed plain
//! reading and to Prio3Sum (32 bits, two aggregators) of the crate `prio`, all measured
//! in one run. Times are CPU times of the measuring thread, so other programs on the
//! machine disturb them little. At the end it prints the ratios beside their aims and
//! the bytes on the wire; it never fails on a time. See `docs/performance.md`.
//!
//! With `--test` everything runs once, on small nets, and nothing is measured.

#[path = "../../tests/world/mod.rs"]
mod world;

mod bare;
mod meter;
mod prio3;
mod provider;
mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use rustix::time::{ClockId, clock_gettime};

/// CPU time that this thread has used so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap();
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap())
}

/// Runs `work` and returns what it returned and the CPU time it took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = cpu_time();
    let result = work();
    (result, cpu_time() - start)
}

/// Criterion's benchmarks with the figures kept for the table.
struct Bench {
    criterion: Criterion,
    /// Runs everything once, on small nets.
    test: bool,
    /// Median seconds per iteration, by name.
    figures: BTreeMap<String, f64>,
}

impl Bench {
    /// Measures `run`, which does its work a number of times and returns the CPU time of
    /// the part that counts. Divides by `per`, for instance the meters of a round.
    fn measure(
        &mut self,
        name: &str,
        samples: usize,
        seconds: u64,
        per: usize,
        mut run: impl FnMut(u64) -> Duration,
    ) {
        let mut taken: Vec<f64> = Vec::new();
        let mut group: BenchmarkGroup<'_, WallTime> = self.criterion.benchmark_group("round");
        group
            .sample_size(samples)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(seconds));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let time = run(iterations);
                taken.push(time.as_secs_f64() / iterations as f64);
                time
            });
        });
        group.finish();
        // Those before are the warm-up's.
        let mut taken = taken.split_off(taken.len().saturating_sub(samples));
        taken.sort_by(f64::total_cmp);
        if let Some(median) = taken.get(taken.len() / 2) {
            self.figures.insert(name.to_owned(), median / per as f64);
        }
    }

    /// As [`Self::measure`], for work that needs nothing prepared.
    fn measure_all<T>(&mut self, name: &str, mut work: impl FnMut() -> T) {
        self.measure(name, 50, 2, 1, |iterations| {
            let ((), time) = timed(|| {
                for _ in 0..iterations {
                    std::hint::black_box(work());
                }
            });
            time
        });
    }

    fn table(&self) {
        println!("\n{:<58} {:>10}", "CPU time per meter and round", "µs");
        for (name, seconds) in &self.figures {
            println!("{name:<58} {:>10.1}", seconds * 1e6);
        }
        println!("\n{:<58} {:>7} {:>7}", "ratio", "is", "aim");
        for (what, of, to, aim) in AIMS {
            if let (Some(of), Some(to)) = (self.figures.get(*of), self.figures.get(*to)) {
                let ratio = of / to;
                let verdict = match aim {
                    Some(aim) if ratio <= *aim => format!("{aim:>7.2}  met"),
                    Some(aim) => format!("{aim:>7.2}  MISSED"),
                    None => String::new(),
                };
                println!("{what:<58} {ratio:>7.2} {verdict}");
            }
        }
    }
}

/// Name, numerator, denominator, aim.
const AIMS: &[(&str, &str, &str, Option<f64>)] = &[
    (
        "meter, 40 edges / signed plain reading",
        "meter, 40 edges",
        "signed plain reading",
        Some(5.0),
    ),
    (
        "meter, 96 edges / signed plain reading",
        "meter, 96 edges",
        "signed plain reading",
        Some(9.0),
    ),
    (
        "meter, 96 edges / Prio3Sum client",
        "meter, 96 edges",
        "prio3sum client",
        None,
    ),
    (
        "provider, 1000 meters / Prio3Sum aggregators",
        "provider, 1000 meters",
        "prio3sum aggregators",
        Some(0.35),
    ),
    (
        "provider, 10000 meters / Prio3Sum aggregators",
        "provider, 10000 meters (two nets of 5000)",
        "prio3sum aggregators",
        Some(0.35),
    ),
    (
        "provider, 10000 meters / 1000 meters",
        "provider, 10000 meters (two nets of 5000)",
        "provider, 1000 meters",
        Some(1.05),
    ),
    (
        "engine alone, 10000 meters / 1000 meters",
        "provider engine alone, 10000 meters",
        "provider engine alone, 1000 meters",
        None,
    ),
];

fn main() {
    let mut bench = Bench {
        criterion: Criterion::default().without_plots().configure_from_args(),
        test: std::env::args().any(|argument| argument == "--test"),
        figures: BTreeMap::new(),
    };
    bare::measure(&mut bench);
    prio3::measure(&mut bench);
    meter::measure(&mut bench);
    provider::measure(&mut bench);
    if !bench.test {
        bench.table();
    }
    let nets: &[usize] = if bench.test { &[12] } else { &[12, 48, 1000] };
    wire::print(nets);
    bench.criterion.final_summary();
}
