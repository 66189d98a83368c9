//! What broker and provider take of the machine.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;

use crate::chaos::process::Process;
use crate::taken::Taken;

/// Of both.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    broker: Taken,
    provider: Taken,
}

fn of(process: &Process) -> anyhow::Result<Taken> {
    Taken::of(process.id().context("a process has ended")?)
}

impl Usage {
    /// So far.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn of(broker: &Process, provider: &Process) -> anyhow::Result<Self> {
        Ok(Self {
            broker: of(broker)?,
            provider: of(provider)?,
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
