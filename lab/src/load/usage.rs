//! What broker and provider take of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;

use crate::chaos::process::Process;
use crate::taken::{Taken, times};

/// Threads with less than one part in so many of their process's time are left out.
const SHARE: u32 = 100;

/// Of both.
#[derive(Clone, Debug)]
pub struct Usage {
    broker: OfProcess,
    provider: OfProcess,
}

#[derive(Clone, Debug)]
struct OfProcess {
    taken: Taken,
    /// Those that run, by their ids.
    threads: BTreeMap<u32, Thread>,
}

#[derive(Clone, Debug)]
struct Thread {
    name: String,
    user: Duration,
    system: Duration,
}

/// A line of the report: times since a moment.
struct Line {
    name: String,
    user: Duration,
    system: Duration,
}

impl Usage {
    /// So far.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(broker: &Process, provider: &Process) -> anyhow::Result<Self> {
        Ok(Self {
            broker: OfProcess::of(broker)?,
            provider: OfProcess::of(provider)?,
        })
    }

    /// What was taken since `before`, a time and some rounds ago.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn report(
        &self,
        before: &Self,
        time: Duration,
        rounds: u32,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        writeln!(
            out,
            "\n{:<32} {:>10} {:>10} {:>12} {:>20}",
            "CPU s per round", "user", "system", "% of a core", "RSS (highest), MiB"
        )?;
        let rounds = f64::from(rounds.max(1));
        let seconds = time.as_secs_f64().max(0.001);
        let mut row = |line: &Line, memory: &str| {
            let (user, system) = (line.user.as_secs_f64(), line.system.as_secs_f64());
            writeln!(
                out,
                "{:<32} {:>10.3} {:>10.3} {:>12.1} {memory:>20}",
                line.name,
                user / rounds,
                system / rounds,
                100.0 * (user + system) / seconds,
            )
        };
        for (name, now, before) in [
            ("broker", &self.broker, &before.broker),
            ("provider", &self.provider, &before.provider),
        ] {
            let mib = |kib: u64| kib as f64 / 1024.0;
            let memory = format!(
                "{:.0} ({:.0})",
                mib(now.taken.resident),
                mib(now.taken.highest)
            );
            let (whole, threads) = now.since(before, name);
            row(&whole, &memory)?;
            for thread in threads {
                row(&thread, "")?;
            }
        }
        Ok(())
    }
}

impl OfProcess {
    fn of(process: &Process) -> anyhow::Result<Self> {
        let id = process.id().context("a process has ended")?;
        Ok(Self {
            taken: Taken::of(id)?,
            threads: threads(id)?,
        })
    }

    /// The process, and its threads by what they took, the first the most.
    fn since(&self, before: &Self, name: &str) -> (Line, Vec<Line>) {
        let system = |taken: &Taken| taken.processor.saturating_sub(taken.user);
        let whole = Line {
            name: name.to_owned(),
            user: self.taken.user.saturating_sub(before.taken.user),
            system: system(&self.taken).saturating_sub(system(&before.taken)),
        };
        let mut rest = Line {
            name: "  threads that ended".to_owned(),
            ..whole
        };
        let mut lines = Vec::new();
        for (id, thread) in &self.threads {
            let earlier = before.threads.get(id);
            let (user, system) = earlier.map_or_else(Default::default, |t| (t.user, t.system));
            let line = Line {
                name: format!("  {} ({id})", thread.name),
                user: thread.user.saturating_sub(user),
                system: thread.system.saturating_sub(system),
            };
            rest.user = rest.user.saturating_sub(line.user);
            rest.system = rest.system.saturating_sub(line.system);
            lines.push(line);
        }
        lines.push(rest);
        let least = whole.total() / SHARE;
        lines.retain(|line| line.total() > least);
        lines.sort_by_key(|line| std::cmp::Reverse(line.total()));
        (whole, lines)
    }
}

impl Line {
    fn total(&self) -> Duration {
        self.user.saturating_add(self.system)
    }
}

/// The threads of a process. One that ends meanwhile is left out.
fn threads(process: u32) -> anyhow::Result<BTreeMap<u32, Thread>> {
    let tasks = format!("/proc/{process}/task");
    let tasks = fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?;
    let mut threads = BTreeMap::new();
    for task in tasks {
        let task = task?;
        let id = task.file_name().to_str().and_then(|id| id.parse().ok());
        let read = |name: &str| fs::read_to_string(task.path().join(name)).ok();
        if let (Some(id), Some(name), Some(stat)) = (id, read("comm"), read("stat")) {
            let (user, system) = times(&stat);
            let name = name.trim_end().to_owned();
            threads.insert(id, Thread { name, user, system });
        }
    }
    Ok(threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(user: u64, system: u64, threads: &[(u32, &str, u64, u64)]) -> OfProcess {
        let seconds = Duration::from_secs;
        let threads = threads.iter().map(|(id, name, user, system)| {
            let thread = Thread {
                name: (*name).to_owned(),
                user: seconds(*user),
                system: seconds(*system),
            };
            (*id, thread)
        });
        OfProcess {
            taken: Taken {
                processor: seconds(user + system),
                user: seconds(user),
                ..Taken::default()
            },
            threads: threads.collect(),
        }
    }

    #[test]
    fn a_processs_time_is_split_among_its_threads_and_those_that_ended() {
        let before = moment(100, 50, &[(1, "main", 90, 40), (2, "worker", 5, 5)]);
        let threads = [
            (1, "main", 90, 40),
            (2, "worker", 8, 6),
            (3, "writer", 100, 0),
        ];
        let now = moment(208, 52, &threads);
        let (whole, lines) = now.since(&before, "broker");
        assert_eq!((whole.user.as_secs(), whole.system.as_secs()), (108, 2));
        let lines: Vec<_> = lines
            .iter()
            .map(|line| {
                (
                    line.name.as_str(),
                    line.user.as_secs(),
                    line.system.as_secs(),
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                ("  writer (3)", 100, 0),
                ("  threads that ended", 5, 1),
                ("  worker (2)", 3, 1),
            ]
        );
    }

    #[test]
    fn the_threads_of_a_process_have_its_names() {
        let named = std::thread::Builder::new().name("measured".to_owned());
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (told, began) = std::sync::mpsc::channel();
        let thread = named.spawn(move || {
            told.send(()).unwrap();
            let _ = ended.recv();
        });
        began.recv().unwrap();
        let threads = threads(std::process::id()).unwrap();
        assert!(threads.values().any(|thread| thread.name == "measured"));
        drop(end);
        thread.unwrap().join().unwrap();
    }
}
