//! The program `lab`.

use std::io::IsTerminal;
use std::pin::Pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use lab::abuse;
use lab::beside;
use lab::chaos;
use lab::cli::{Arguments, Task};
use lab::demo::{self, Files, Verdict};
use lab::load;
use lab::simulate;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Something is wrong with the command line or the files it names.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log();
    let plan = match arguments.task() {
        Ok(Task::Demo(plan)) => plan,
        Ok(Task::Simulate(arguments)) => return simulated(simulate::simulate(&arguments)),
        Ok(Task::Replay(arguments)) => return simulated(simulate::replay(&arguments)),
        Ok(Task::Joins(joins)) => return joins.run(),
        Ok(Task::Oracle(oracle)) => return oracle.run(),
        Ok(Task::Chaos(arguments)) => {
            return verdict(run(async |interrupted| {
                chaos::run(&arguments, std::io::stdout(), interrupted).await
            }));
        }
        Ok(Task::Load(arguments)) => {
            return verdict(run(async |interrupted| {
                load::run(&arguments, std::io::stdout(), interrupted).await
            }));
        }
        Ok(Task::Abuse(arguments)) => {
            return verdict(run(async |interrupted| {
                abuse::run(&arguments, std::io::stdout(), interrupted).await
            }));
        }
        Ok(Task::Beside(arguments)) => {
            return verdict(run(async |interrupted| {
                beside::run(&arguments, std::io::stdout(), interrupted).await
            }));
        }
        Ok(Task::Process(process)) => {
            return verdict(process.run().map(|()| Verdict::default()));
        }
        Err(error) => return usage(error.into()),
    };
    let files = match Files::create(&plan) {
        Ok(files) => files,
        Err(error) => return usage(error),
    };
    verdict(run(async |interrupted| {
        demo::run(&plan, files, std::io::stdout(), interrupted).await
    }))
}

fn verdict(verdict: anyhow::Result<Verdict>) -> ExitCode {
    match verdict {
        Ok(Verdict { faults }) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(Verdict { faults }) => {
            for fault in faults {
                eprintln!("lab: {fault}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything held, or not, or it could not be told.
fn simulated(held: std::io::Result<bool>) -> ExitCode {
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: cannot write the result: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(error: anyhow::Error) -> ExitCode {
    eprintln!("lab: {error:#}");
    ExitCode::from(USAGE)
}

fn log() {
    // While a net forms, handshakes overtake the log entries they are for, and are
    // repeated; that is nothing to warn of here.
    let quiet = || EnvFilter::new("warn,meter_agent=error");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet());
    let filter = match broker::QUIET_ROUTER.parse() {
        Ok(quiet) => filter.add_directive(quiet),
        Err(_) => filter,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

/// Runs something on the main thread until it ends, or ends itself when it is interrupted.
fn run(
    work: impl AsyncFnOnce(Pin<Box<dyn Future<Output = ()>>>) -> anyhow::Result<Verdict>,
) -> anyhow::Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let interrupted = Box::pin(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        work(interrupted).await
    })
}
