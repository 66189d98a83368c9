//! The processes: this program, started again as broker, provider or meter, with the same
//! library code as the daemons.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use broker::Broker;
use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// What a process is told.
#[derive(Debug, Args)]
pub struct ProcessArguments {
    /// What it is to be
    role: Role,
    /// Its configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The process that it must not outlive
    #[arg(long, value_name = "PID")]
    parent: u32,
}

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// `broker`
    Broker,
    /// `provider-agent run`
    Provider,
    /// `meter-agent run`
    Meter,
}

impl ProcessArguments {
    /// Runs until SIGTERM, or until the parent ends.
    ///
    /// # Errors
    /// As the daemons.
    pub fn run(&self) -> anyhow::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before.
        if std::os::unix::process::parent_id() != self.parent {
            bail!("the process that started this one is gone");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let config = self.config.as_path();
        runtime.block_on(async {
            match self.role {
                Role::Broker => run_broker(config).await,
                Role::Provider => run_provider(config).await,
                Role::Meter => {
                    let config = meter_agent::config::Config::load(config)?;
                    meter_agent::agent::run(config).await
                }
            }
        })
    }
}

async fn run_broker(config: &Path) -> anyhow::Result<()> {
    let mut terminate = terminate()?;
    let broker = Broker::start(broker::Config::read(config)?).await?;
    tokio::select! {
        _ = terminate.recv() => {
            broker.stop().await;
            Ok(())
        }
        () = broker.failed() => bail!("the router has failed"),
    }
}

async fn run_provider(config: &Path) -> anyhow::Result<()> {
    let mut terminate = terminate()?;
    let config = provider_agent::Config::load(config)?;
    let mut running = provider_agent::Agent::open(&config)?.start();
    loop {
        tokio::select! {
            _ = terminate.recv() => return running.stop().await,
            event = running.events.recv() => match event {
                Some(event) => tracing::info!(event = ?event.event),
                None => return running.control.join().await,
            }
        }
    }
}

fn terminate() -> anyhow::Result<tokio::signal::unix::Signal> {
    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot wait for SIGTERM")
}

/// One of the processes, running or not; killed when dropped.
#[derive(Debug)]
pub struct Process {
    role: Role,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// One that does not run yet, with its configuration and the file for its log.
    pub fn new(role: Role, config: PathBuf, log: PathBuf) -> Self {
        Self {
            role,
            config,
            log,
            child: None,
        }
    }

    /// Starts it, unless it runs. Only for the main thread: when the thread that started it ends,
    /// so does the process.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.child.is_some() {
            return Ok(());
        }
        let log = || -> anyhow::Result<File> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.log)
                .with_context(|| format!("cannot open {}", self.log.display()))
        };
        let role = self.role.to_possible_value();
        let role = role.as_ref().map_or("", |role| role.get_name());
        let program = std::env::current_exe().context("this program's file is not known")?;
        let mut command = Command::new(program);
        command
            .args(["process", role, "--parent"])
            .arg(std::process::id().to_string())
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log()?)
            .stderr(log()?);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        self.child = Some(command.spawn().context("cannot start a process")?);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The file for its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has been started and its end was not told yet.
    pub fn is_started(&self) -> bool {
        self.child.is_some()
    }

    /// How it ended by itself, told once; `None` while it runs, or if it was not started.
    ///
    /// # Errors
    /// The system does not say.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait().context("cannot look after a process")?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// SIGKILL, as a loss of power.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("cannot kill a process")?;
            child.wait().context("cannot wait for a process")?;
        }
        Ok(())
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM, and the wait until it has ended; `None` if it does not within `patience`.
    ///
    /// # Errors
    /// The system does not allow it.
    pub async fn terminate(&mut self, patience: Duration) -> anyhow::Result<Option<ExitStatus>> {
        self.signal(Signal::TERM)?;
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.kill()?;
        Ok(None)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        match &self.child {
            // Not waited for yet, so that the number is still its own.
            Some(child) => kill_process(Pid::from_child(child), signal)
                .with_context(|| format!("cannot send {signal:?} to a process")),
            None => Ok(()),
        }
    }

    /// The last lines that it has logged.
    pub fn last_words(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n    ")
    }

    /// Lines of its log with some text.
    pub fn said(&self, text: &str) -> usize {
        let log = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).matches(text).count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::error!(error = format!("{error:#}"));
        }
    }
}
