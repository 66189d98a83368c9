//! What a process takes of the machine.

use std::time::Duration;

use anyhow::Context;

/// A moment of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Time of processors, user and system.
    pub processor: Duration,
    /// Resident memory now, in KiB.
    pub resident: u64,
    /// The most so far, in KiB.
    pub highest: u64,
    /// Open files.
    pub files: u64,
    /// Threads.
    pub threads: u64,
}

impl Taken {
    /// Of a process that runs, by its id.
    ///
    /// # Errors
    /// It does not run.
    pub fn of(process: u32) -> anyhow::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{process}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let statistics = read("stat")?;
        // User and system time are the fields 14 and 15 of proc(5); the name may have spaces.
        let fields = statistics.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        let status = read("status")?;
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {key} of a process"))
        };
        let files = std::fs::read_dir(format!("/proc/{process}/fd"));
        Ok(Self {
            processor: Duration::from_millis(
                ticks * 1000 / rustix::param::clock_ticks_per_second(),
            ),
            resident: of("VmRSS:")?,
            highest: of("VmHWM:")?,
            files: files.context("cannot see a process's files")?.count() as u64,
            threads: of("Threads:")?,
        })
    }
}
