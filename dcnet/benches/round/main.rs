//! What a round costs a meter and a provider, as ratios to an Ed25519-signed plain
//! reading and to Prio3Sum (32 bits, two aggregators) of the crate `prio`, all measured
//! in one run. Times are CPU times of the measuring thread, so other programs on the
//! machine disturb them little. At the end it prints the ratios beside their aims and
//! the bytes on the wire; it never fails on a time. See `docs/performance.md`.
//!
//! With `--test` everything runs once, on small nets, and nothing is measured.

mod bare;
mod meter;
mod prio3;
mod provider;
mod wire;

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

/// What is compared with: a reading in the clear, and Prio3Sum's aggregators.
struct Yardsticks<'a> {
    plain: &'a mut dyn FnMut(u64) -> Duration,
    prio3: &'a mut dyn FnMut(u64) -> Duration,
}

/// Medians over the samples of a benchmark.
struct Figures {
    /// Seconds per iteration.
    seconds: f64,
    /// Ratio to the plain reading measured within the same sample.
    to_plain: f64,
    /// Ratio to Prio3Sum's aggregators measured within the same sample.
    to_prio3: f64,
}

/// Criterion's benchmarks with the figures kept for the table.
struct Bench<'a> {
    criterion: Criterion,
    /// Runs everything once, on small nets.
    test: bool,
    yardsticks: Yardsticks<'a>,
    /// By name, in order.
    figures: Vec<(String, Figures)>,
    /// What was compared directly: name and ratio.
    compared: Vec<(String, f64)>,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Bench<'_> {
    /// Measures `run`, which does its work a number of times and returns the CPU time of
    /// the part that counts. Divides by `per`, for instance the meters of a round. The
    /// yardsticks are held against it in every sample, because the speed of a machine
    /// changes in the course of a run.
    fn measure(
        &mut self,
        name: &str,
        samples: usize,
        seconds: u64,
        per: usize,
        mut run: impl FnMut(u64) -> Duration,
    ) {
        // Long work needs a long look at the yardsticks.
        let scale = u64::try_from(per.div_ceil(500)).unwrap();
        let (plain_rounds, prio3_rounds) = (100 * scale, 20 * scale);
        let mut taken: Vec<[f64; 3]> = Vec::new();
        let mut group: BenchmarkGroup<'_, WallTime> = self.criterion.benchmark_group("round");
        group
            .sample_size(samples)
            .sampling_mode(SamplingMode::Flat)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(seconds));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let before = [
                    (self.yardsticks.plain)(plain_rounds),
                    (self.yardsticks.prio3)(prio3_rounds),
                ];
                let time = run(iterations);
                let after = [
                    (self.yardsticks.plain)(plain_rounds),
                    (self.yardsticks.prio3)(prio3_rounds),
                ];
                let each = time.as_secs_f64() / iterations as f64 / per as f64;
                let plain = (before[0] + after[0]).as_secs_f64() / (2 * plain_rounds) as f64;
                let prio3 = (before[1] + after[1]).as_secs_f64() / (2 * prio3_rounds) as f64;
                taken.push([each, each / plain, each / prio3]);
                time
            });
        });
        group.finish();
        // Those before are the warm-up's.
        let taken = taken.split_off(taken.len().saturating_sub(samples));
        let [seconds, to_plain, to_prio3] =
            [0, 1, 2].map(|column| median(taken.iter().map(|sample| sample[column])));
        let figures = Figures {
            seconds,
            to_plain,
            to_prio3,
        };
        if !taken.is_empty() {
            self.figures.push((name.to_owned(), figures));
        }
    }

    /// Compares two pieces of work directly, in turns; the median of the ratios of their
    /// CPU times.
    fn compare(
        &mut self,
        name: &str,
        mut one: impl FnMut() -> Duration,
        mut other: impl FnMut() -> Duration,
    ) {
        let turns = if self.test { 1 } else { 15 };
        let ratios = (0..turns).map(|_| one().as_secs_f64() / other().as_secs_f64());
        let ratio = median(ratios);
        self.compared.push((name.to_owned(), ratio));
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
        println!(
            "\n{:<50} {:>9} {:>10} {:>11}",
            "CPU time per meter and round", "µs", "÷ plain", "÷ Prio3Sum"
        );
        for (name, figures) in &self.figures {
            println!(
                "{name:<50} {:>9.1} {:>10.2} {:>11.2}",
                figures.seconds * 1e6,
                figures.to_plain,
                figures.to_prio3
            );
        }
        println!(
            "\n{:<50} {:>9}",
            "meters that one core serves in 900 s", "millions"
        );
        let of_provider = self
            .figures
            .iter()
            .filter(|(name, _)| name.starts_with("provider"));
        for (name, figures) in of_provider {
            println!("{name:<50} {:>9.1}", 900.0 / figures.seconds / 1e6);
        }
        let find = |name: &str| self.figures.iter().find(|(known, _)| known == name);
        println!("\n{:<68} {:>6} {:>6}", "aim", "is", "most");
        for (name, aim, against) in AIMS {
            let Some((_, figures)) = find(name) else {
                continue;
            };
            let (ratio, to) = match against {
                Against::Plain => (figures.to_plain, "signed plain reading"),
                Against::Prio3 => (figures.to_prio3, "Prio3Sum"),
            };
            verdict(&format!("{name} ÷ {to}"), ratio, *aim);
        }
        for (name, ratio) in &self.compared {
            verdict(name, *ratio, AIM_LARGE);
        }
    }
}

fn verdict(what: &str, ratio: f64, aim: f64) {
    let verdict = if ratio <= aim { "met" } else { "MISSED" };
    println!("{what:<68} {ratio:>6.2} {aim:>6.2} {verdict}");
}

#[derive(Clone, Copy)]
enum Against {
    Plain,
    Prio3,
}

const SMALL: &str = "provider, 1000 meters";
const LARGE: &str = "provider, 10000 meters (two nets)";

const AIMS: &[(&str, f64, Against)] = &[
    ("meter, 40 edges", 5.0, Against::Plain),
    (
        "meter, 40 edges, less the roster's signature",
        5.0,
        Against::Plain,
    ),
    ("meter, 96 edges", 9.0, Against::Plain),
    (
        "meter, 96 edges, less the roster's signature",
        9.0,
        Against::Plain,
    ),
    (SMALL, 0.35, Against::Prio3),
    (LARGE, 0.35, Against::Prio3),
];

/// Most that a meter may cost more at 10 000 meters than at 1000.
const AIM_LARGE: f64 = 1.05;

fn main() {
    let mut plain = bare::plain_readings();
    let mut prio3 = prio3::aggregators();
    let mut bench = Bench {
        criterion: Criterion::default().without_plots().configure_from_args(),
        test: std::env::args().any(|argument| argument == "--test"),
        yardsticks: Yardsticks {
            plain: &mut plain,
            prio3: &mut prio3,
        },
        figures: Vec::new(),
        compared: Vec::new(),
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
