//! What broker and provider take of the machine.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;

use crate::chaos::process::Process;

/// Of one process.
#[derive(Clone, Copy, Debug)]
struct Taken {
    processor: Duration,
    /// Resident now, and at most so far, in KiB.
    resident: u64,
    highest: u64,
}

impl Taken {
    fn of(process: &Process) -> anyhow::Result<Self> {
        let id = process.id().context("a process has ended")?;
        let read = |name: &str| {
            let path = format!("/proc/{id}/{name}");
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
        Ok(Self {
            processor: Duration::from_millis(
                ticks * 1000 / rustix::param::clock_ticks_per_second(),
            ),
            resident: of("VmRSS:")?,
            highest: of("VmHWM:")?,
        })
    }
}

/// Of both.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    broker: Taken,
    provider: Taken,
}

impl Usage {
    /// So far.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(broker: &Process, provider: &Process) -> anyhow::Result<Self> {
        Ok(Self {
            broker: Taken::of(broker)?,
            provider: Taken::of(provider)?,
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
            "\n{:<12} {:>18} {:>16} {:>24}",
            "", "CPU s per round", "% of a core", "RSS (highest), MiB"
        )?;
        let rows = [
            ("broker", self.broker, before.broker),
            ("provider", self.provider, before.provider),
        ];
        for (name, now, before) in rows {
            let seconds = now.processor.saturating_sub(before.processor).as_secs_f64();
            writeln!(
                out,
                "{name:<12} {:>18.2} {:>16.1} {:>24}",
                seconds / f64::from(rounds.max(1)),
                100.0 * seconds / time.as_secs_f64().max(0.001),
                format!(
                    "{:.0} ({:.0})",
                    now.resident as f64 / 1024.0,
                    now.highest as f64 / 1024.0
                )
            )?;
        }
        Ok(())
    }
}
