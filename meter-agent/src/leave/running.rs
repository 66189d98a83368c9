//! Leaving by the agent that runs: it is told to, and watched until it is done.

use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use dcnet::topic::NetId;
use serde::Deserialize;
use serde_json::json;

use super::{LEFT, REST, begin, done, exit_waits_for};
use crate::ask::Agent;
use crate::reach::{NoLinkKind, NoLinkView};
use crate::status::{ExitView, LinkView};

/// How often the agent is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// What is needed of the agent's status.
#[derive(Deserialize)]
struct Status {
    meter: Option<String>,
    net: Option<String>,
    is_member: bool,
    is_stopped: bool,
    open_rounds: usize,
    exit: Option<ExitView>,
    link: LinkView,
    no_link: Option<NoLinkView>,
}

impl Status {
    async fn of(agent: &mut Agent) -> anyhow::Result<Self> {
        agent.json("/api/status").await
    }

    fn net(&self) -> anyhow::Result<NetId> {
        let net = self.net.as_ref().and_then(|net| net.parse().ok());
        net.context("the agent's answer is of another version")
    }

    fn waits_for(&self) -> Option<String> {
        if self.link.is_connected {
            exit_waits_for(self.exit, self.open_rounds)
        } else {
            Some(format!("the agent is not connected: {}", self.link.text))
        }
    }
}

/// As [`super::leave`].
pub(super) async fn leave(
    mut agent: Agent,
    state_directory: &Path,
    wait: bool,
    interrupted: impl Future<Output = ()>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let before = Status::of(&mut agent).await?;
    let no_link = before.no_link.as_ref();
    if let Some(why) = no_link.filter(|why| why.kind != NoLinkKind::Left) {
        bail!("the agent cannot do it now: {}", why.text);
    }
    let stands = (before.is_member, before.is_stopped);
    if !begin(before.net()?, before.exit, stands, wait, &mut out)? {
        return Ok(());
    }
    let meter = before.meter.unwrap_or_default();
    let digits = meter.get(..8).unwrap_or_default();
    let confirmation = json!({ "confirm": digits });
    agent.post("/api/exit", &confirmation).await?;
    writeln!(out, "the agent does it; Ctrl-C ends only this waiting")?;

    let watched = watch(state_directory, wait, &mut out);
    tokio::select! {
        watched = watched => watched,
        () = interrupted => bail!(
            "interrupted before the exit was done; the agent goes on with it, and `meter-agent \
             status` tells how far it is"
        ),
    }
}

async fn watch(state_directory: &Path, wait: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let (mut told, mut left) = (String::new(), false);
    loop {
        // The agent serves a connection for a while only.
        let agent = Agent::find(state_directory).await?;
        let mut agent = agent.context(
            "the agent has ended before it said that the exit is done; run this command again \
             to see how far it is",
        )?;
        let status = Status::of(&mut agent).await?;
        let exit = status.exit;
        if exit.is_some_and(|exit| exit.left) && !left {
            left = true;
            writeln!(out, "{LEFT}")?;
            if !wait {
                writeln!(out, "{REST}")?;
                return Ok(());
            }
        }
        if let Some(exit) = exit.filter(|exit| exit.done) {
            let confirmed = exit.neighbours.saturating_sub(exit.awaited);
            writeln!(out, "{}", done(confirmed, exit.neighbours))?;
            return Ok(());
        }
        if status.is_stopped {
            bail!(
                "an alarm has stopped this meter, and the exit cannot go on; `meter-agent status` \
                 tells which"
            );
        }
        if let Some(waits) = status.waits_for().filter(|waits| *waits != told) {
            writeln!(out, "{waits}")?;
            told = waits;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
