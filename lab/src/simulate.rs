//! Many simulated nets, one per seed, and one of them again.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use simulation::fault::Fault;
use simulation::invariant::{Invariant, Violation};
use simulation::plan::{Plan, Sizes};
use simulation::run::{self, Outcome};
use simulation::shrink::shrink;

use crate::cli::{ReplayArguments, SimulateArguments};

/// How often the progress line is renewed.
const PROGRESS: Duration = Duration::from_secs(1);

/// Failing seeds that are told in full and made small; of more only the command is told.
const TOLD: usize = 5;

/// Sums over seeds.
#[derive(Clone, Debug, Default)]
struct Total {
    seeds: u64,
    injected: BTreeMap<&'static str, u64>,
    checks: BTreeMap<Invariant, (u64, u64)>,
    excused: BTreeMap<&'static str, u64>,
    sums: u64,
    events: u64,
    days: u64,
    stalled: u64,
    round_time: Duration,
    failed: Vec<u64>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.seeds += 1;
        for (kind, times) in &outcome.injected {
            *self.injected.entry(kind).or_default() += times;
        }
        for (invariant, checks) in &outcome.report.checks {
            self.checks.entry(*invariant).or_default().0 += checks;
        }
        for violation in &outcome.report.violations {
            self.checks.entry(violation.invariant).or_default().1 += 1;
        }
        for (reason, times) in &outcome.excused {
            *self.excused.entry(reason).or_default() += times;
        }
        self.sums += outcome.sums;
        self.events += outcome.events;
        self.days += u64::from(outcome.needed_a_day);
        self.stalled += u64::from(outcome.sums == 0);
        self.round_time += outcome.round_time;
        if outcome.failed() {
            self.failed.push(seed);
        }
    }

    fn table(&self, out: &mut impl Write, wall: Duration) -> io::Result<()> {
        writeln!(out, "\n{:<52} {:>10}", "fault", "injected")?;
        for kind in Fault::kinds() {
            let times = self.injected.get(kind).copied().unwrap_or(0);
            writeln!(out, "{kind:<52} {times:>10}")?;
        }
        writeln!(
            out,
            "\n{:<52} {:>10} {:>10}",
            "invariant", "checks", "violations"
        )?;
        for invariant in Invariant::ALL {
            let (checks, violations) = self.checks.get(invariant).copied().unwrap_or((0, 0));
            let name = invariant.to_string();
            writeln!(out, "{name:<52} {checks:>10} {violations:>10}")?;
        }
        if !self.excused.is_empty() {
            writeln!(
                out,
                "\n{:<75} {:>7}",
                "liveness not asked, because", "times"
            )?;
            for (reason, times) in &self.excused {
                writeln!(out, "{reason:<75} {times:>7}")?;
            }
        }
        let seeds = u32::try_from(self.seeds).unwrap_or(u32::MAX).max(1);
        writeln!(
            out,
            "\n{} seeds, {} events, {} sums ({} seeds without any); {} nets needed a day to recover",
            self.seeds, self.events, self.sums, self.stalled, self.days
        )?;
        writeln!(
            out,
            "wall time {:.1} s; one quiet round of one net takes {:.1} ms on one core",
            wall.as_secs_f64(),
            (self.round_time / seeds).as_secs_f64() * 1000.0
        )?;
        writeln!(out, "{} seeds failed", self.failed.len())
    }
}

/// Plays every seed and prints what came out; whether everything held.
///
/// # Errors
/// If standard output cannot be written to.
pub fn simulate(arguments: &SimulateArguments) -> io::Result<bool> {
    let sizes = Sizes::from(arguments.sizes);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads.map_or(cores, usize::from);
    let mut out = io::stdout().lock();
    quiet_panics();
    play_all(&arguments.seeds, sizes, threads, &mut out)
}

/// A panic of a machine is caught and told with its seed.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn play_all(
    seeds: &Range<u64>,
    sizes: Sizes,
    threads: usize,
    out: &mut impl Write,
) -> io::Result<bool> {
    let begun = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let mut total = Total::default();
    thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run::run(&Plan::new(seed, sizes), false);
                    if sender.send((seed, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut told = begun;
        for (seed, outcome) in results {
            total.add(seed, &outcome);
            for violation in &outcome.report.violations {
                writeln!(out, "seed {seed}: {violation}")?;
            }
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                progress(&total, seeds, begun.elapsed());
            }
        }
        Ok::<(), io::Error>(())
    })?;
    let wall = begun.elapsed();
    for seed in total.failed.iter().take(TOLD) {
        tell_failure(&Plan::new(*seed, sizes), out)?;
    }
    for seed in total.failed.iter().skip(TOLD) {
        writeln!(out, "{}", Plan::new(*seed, sizes).command())?;
    }
    total.table(out, wall)?;
    Ok(total.failed.is_empty())
}

fn progress(total: &Total, seeds: &Range<u64>, elapsed: Duration) {
    let mut error = io::stderr();
    let (begin, end) = if error.is_terminal() {
        ("\r", "")
    } else {
        ("", "\n")
    };
    // Nobody who reads the result misses the progress.
    let _ = write!(
        error,
        "{begin}{} of {} seeds, {} failed, {:.0} s{end}",
        total.seeds,
        seeds.end - seeds.start,
        total.failed.len(),
        elapsed.as_secs_f64()
    );
}

/// Prints a failing plan, how to play it again, and the smallest plan that fails alike.
fn tell_failure(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let outcome = run::run(plan, false);
    writeln!(out, "\n{plan}")?;
    for violation in &outcome.report.violations {
        writeln!(out, "{violation}")?;
    }
    writeln!(out, "again: {}", plan.command())?;
    let small = smallest(plan, &outcome.report.violations);
    writeln!(out, "shrunk ({} --shrink): {small}", plan.command())?;
    for violation in run::run(&small, false).report.violations {
        writeln!(out, "{violation}")?;
    }
    Ok(())
}

/// The smallest plan that violates what the first violation did.
fn smallest(plan: &Plan, violations: &[Violation]) -> Plan {
    let Some(first) = violations.first() else {
        return plan.clone();
    };
    shrink(plan, |plan| {
        let outcome = run::run(plan, false);
        let mut violations = outcome.report.violations.iter();
        violations.any(|violation| violation.invariant == first.invariant)
    })
}

/// Plays one seed and prints the story; whether everything held.
///
/// # Errors
/// If standard output cannot be written to.
pub fn replay(arguments: &ReplayArguments) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    quiet_panics();
    let mut plan = Plan::new(arguments.seed, arguments.sizes.into());
    if arguments.shrink {
        plan = smallest(&plan, &run::run(&plan, false).report.violations);
    }
    let outcome = run::run(&plan, true);
    write!(out, "{plan}")?;
    for line in &outcome.story {
        writeln!(out, "{line}")?;
    }
    for violation in &outcome.report.violations {
        writeln!(out, "{violation}")?;
    }
    let mut total = Total::default();
    total.add(plan.seed, &outcome);
    total.table(&mut out, Duration::ZERO)?;
    Ok(!outcome.failed())
}
