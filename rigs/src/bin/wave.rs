//! Drives lines of the kernel's gpio-sim: `wave DIRECTORY TIMES STEP…` does the steps so many
//! times. A step is `LINE=0` or `LINE=1`, which pulls the line down or up, or a number of ms to
//! wait.
//!
//! Waits are counted from the start, so that the time the writes take does not add up.

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// The chip's directory in sysfs, with a directory `sim_gpioLINE` per line
    directory: PathBuf,
    /// How often
    times: u32,
    /// `LINE=0`, `LINE=1` or ms
    #[arg(required = true, value_parser = step)]
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pull { line: u32, up: bool },
    Wait(Duration),
}

fn step(text: &str) -> Result<Step, std::num::ParseIntError> {
    Ok(match text.split_once('=') {
        Some((line, level)) => Step::Pull {
            line: line.parse()?,
            up: level.parse::<u8>()? != 0,
        },
        None => Step::Wait(Duration::from_millis(text.parse()?)),
    })
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut due = Instant::now();
    for _ in 0..arguments.times {
        for step in &arguments.steps {
            match *step {
                Step::Pull { line, up } => pull(&arguments.directory, line, up)
                    .with_context(|| format!("cannot pull line {line}"))?,
                Step::Wait(time) => {
                    due += time;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
            }
        }
    }
    Ok(())
}

fn pull(directory: &Path, line: u32, up: bool) -> io::Result<()> {
    let file = directory.join(format!("sim_gpio{line}/pull"));
    std::fs::write(file, if up { "pull-up" } else { "pull-down" })
}
