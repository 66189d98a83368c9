//! What a process takes of the machine.

use std::time::Duration;

use anyhow::Context;

/// A moment of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Time of processors, user and system.
    pub processor: Duration,
    /// Of that, in user mode.
    pub user: Duration,
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
        let (user, system) = times(&read("stat")?);
        let status = read("status")?;
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok())
                .with_context(|| format!("no {key} of a process"))
        };
        let files = std::fs::read_dir(format!("/proc/{process}/fd"));
        Ok(Self {
            processor: user.saturating_add(system),
            user,
            resident: of("VmRSS:")?,
            highest: of("VmHWM:")?,
            files: files.context("cannot see a process's files")?.count() as u64,
            threads: of("Threads:")?,
        })
    }
}

/// User and system time out of the file `stat` of a process or a thread: fields 14 and 15 of
/// proc(5). The name, field 2, may have spaces and brackets.
pub fn times(stat: &str) -> (Duration, Duration) {
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut ticks = fields.split_whitespace().skip(11);
    let mut time = || {
        let ticks: u64 = ticks
            .next()
            .and_then(|field| field.parse().ok())
            .unwrap_or(0);
        let per_second = rustix::param::clock_ticks_per_second();
        Duration::from_millis(ticks.saturating_mul(1000) / per_second)
    };
    (time(), time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let second = rustix::param::clock_ticks_per_second();
        let stat = |name: &str| {
            format!(
                "7 ({name}) S 1 2 3 4 5 6 7 8 9 10 {} {} 0 0 20 0",
                3 * second,
                second
            )
        };
        let expected = (Duration::from_secs(3), Duration::from_secs(1));
        for name in ["tokio-rt-worker", "a b", "x) R 1 (y"] {
            assert_eq!(times(&stat(name)), expected, "{name}");
        }
        assert_eq!(times(""), (Duration::ZERO, Duration::ZERO));
    }
}
