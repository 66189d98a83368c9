//! Leaving the net: what `meter-agent leave` does for a household that wants out.
//!
//! An agent that runs is asked to leave, and watched; without one this command does it. The
//! exit is stored before it is sent, so an interruption at any moment loses nothing: the
//! agent, or this command, goes on with it at its next start.

use std::future::Future;
use std::io::Write;

use anyhow::{Context, bail};
use dcnet::alarm::Alarm;
use dcnet::meter::{MeterCommand, MeterEvent};
use dcnet::topic::NetId;
use link::{Clock, Driver, LinkState};
use tokio::sync::mpsc;

use crate::agent::open_meter;
use crate::ask::Agent;
use crate::config::Config;
use crate::identity::{self, Identity};
use crate::standing::{HasLeft, Standing, Watched};
use crate::status::ExitView;

mod running;

/// Leaves the net of a configuration and tells on `out` what happens and what it waits for.
/// With `wait` it returns when everything is erased here, else when the log says that the
/// meter has left.
///
/// # Errors
/// Identity or state cannot be used; an alarm stopped the meter, so that it cannot leave by
/// itself; `interrupted` is done before the exit is; the agent that does it ends.
pub async fn leave(
    config: &Config,
    wait: bool,
    interrupted: impl Future<Output = ()>,
    out: impl Write,
) -> anyhow::Result<()> {
    let directory = &config.state_directory;
    match Agent::find(directory).await? {
        Some(agent) => running::leave(agent, directory, wait, interrupted, out).await,
        None => leave_alone(config, wait, interrupted, out).await,
    }
}

/// Without an agent.
async fn leave_alone(
    config: &Config,
    wait: bool,
    interrupted: impl Future<Output = ()>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let clock = if config.assume_synchronised {
        Clock::assume_synchronised()
    } else {
        Clock::system()
    };
    let now = clock.now();
    let identity = Identity::load(&config.identity, now.utc)?;
    let connection = identity::connection(
        &config.identity,
        (config.broker_host.as_str(), config.broker_port),
    )?;
    let (net, broker) = (
        identity.checkpoint.net,
        format!("{}:{}", config.broker_host, config.broker_port),
    );
    let (directory, identity) = (
        config.state_directory.clone(),
        identity.into_meter_config(config.floors.into()),
    );
    let opening = tokio::task::spawn_blocking(move || open_meter(&directory, identity, now));
    let (meter, journal) = opening
        .await
        .context("opening the state panicked")?
        .context("if the agent of this meter just starts or stops, try again")?;
    let meter = Watched::new(meter);

    let mut standing = meter.standing();
    let before = standing.borrow_and_update().clone();
    let is_begun = begin(
        net,
        before.exit.map(ExitView::from),
        (before.is_member, before.is_stopped),
        wait,
        &mut out,
    )?;
    if !is_begun {
        return Ok(());
    }
    writeln!(
        out,
        "Ctrl-C is safe: the exit goes on when this command, or the agent, runs again"
    )?;

    let link::Handle {
        commands,
        mut events,
        control,
    } = Driver::new(meter, journal, connection)
        .with_clock(clock)
        .start();
    let mut link = control.state();
    ask(&commands).await;
    tokio::pin!(interrupted);
    let mut told = String::new();
    loop {
        tokio::select! {
            () = &mut interrupted => {
                control.stop().await?;
                bail!(
                    "interrupted before the exit from net {net} was done; it goes on when this \
                     command, or the agent, runs again"
                );
            }
            event = events.recv() => match event {
                None => return control.join().await,
                Some(MeterEvent::Left) => {
                    writeln!(out, "{LEFT}")?;
                    if !wait {
                        writeln!(out, "{REST}")?;
                        return control.stop().await;
                    }
                }
                Some(MeterEvent::ExitDone { confirmed, neighbours }) => {
                    writeln!(out, "{}", done(confirmed, neighbours))?;
                    return control.stop().await;
                }
                // It was about to leave and join anew on its own account: now it may leave.
                Some(MeterEvent::Joined) => ask(&commands).await,
                Some(MeterEvent::Alarm(alarm)) => {
                    if ends_everything(&alarm) {
                        control.stop().await?;
                        bail!("{alarm}; the exit cannot go on");
                    }
                    writeln!(out, "note: {alarm}")?;
                }
                Some(_) => {}
            },
            Ok(()) = standing.changed() => {}
            Ok(()) = link.changed() => {}
        }
        let waits = waits_for(
            &link.borrow_and_update(),
            &standing.borrow_and_update(),
            &broker,
        );
        if let Some(waits) = waits.filter(|waits| *waits != told) {
            writeln!(out, "{waits}")?;
            told = waits;
        }
    }
}

/// Tells what happens first; `false` if there is nothing to do, or nothing to wait for.
fn begin(
    net: NetId,
    exit: Option<ExitView>,
    (is_member, is_stopped): (bool, bool),
    wait: bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    match exit {
        Some(exit) if exit.done => writeln!(out, "{}", HasLeft(net))?,
        None if !is_member => writeln!(
            out,
            "this meter is no member of net {net}, so there is nothing to leave; its service need \
             only stay stopped"
        )?,
        None if is_stopped => bail!(
            "an alarm has stopped this meter for good, and with it its view of the log, so it \
             cannot leave by itself; ask the gateway administrator to revoke it"
        ),
        Some(exit) if exit.left && !wait => {
            writeln!(out, "this meter has left net {net} already; {REST}")?;
        }
        Some(_) => {
            writeln!(out, "going on with the exit from net {net}")?;
            return Ok(true);
        }
        None => {
            writeln!(out, "leaving net {net}: it submits nothing from here on")?;
            return Ok(true);
        }
    }
    Ok(false)
}

const LEFT: &str = "the net's log says that this meter has left";

fn done(confirmed: u32, neighbours: u32) -> String {
    format!(
        "done: {confirmed} of {neighbours} former neighbours confirmed that they erased the key \
         they shared with this meter, and so has this meter; its agent may run on, and counts for \
         this household only"
    )
}

/// What is left to do after `--no-wait`.
const REST: &str = "former neighbours have not all confirmed yet; run this command again, without \
     --no-wait, to wait for them and to erase this meter's keys";

async fn ask(commands: &mpsc::Sender<MeterCommand>) {
    // A driver that has ended tells why by its events and its end.
    let _ = commands.send(MeterCommand::Leave).await;
}

/// After these a meter takes nothing in any more.
fn ends_everything(alarm: &Alarm) -> bool {
    matches!(
        alarm,
        Alarm::LogFork { .. }
            | Alarm::Checkpoint { .. }
            | Alarm::KeyUsedElsewhere
            | Alarm::Revoked
            | Alarm::SecondRoster { .. }
            | Alarm::Exclusions { .. }
    )
}

/// What the exit of this process waits for, in one line.
fn waits_for(link: &LinkState, standing: &Standing, broker: &str) -> Option<String> {
    match link {
        LinkState::Connected => {
            exit_waits_for(standing.exit.map(ExitView::from), standing.open_rounds)
        }
        LinkState::Connecting => Some(format!("connecting to the broker {broker}")),
        LinkState::Waiting { error } => Some(format!(
            "the broker {broker} is not to be reached ({error}); trying again"
        )),
        LinkState::SubscriptionRefused { .. } => Some(format!(
            "the broker {broker} refuses this meter; trying again"
        )),
        LinkState::Stopped { .. } => None,
    }
}

/// What a meter that is connected waits for.
fn exit_waits_for(exit: Option<ExitView>, open_rounds: usize) -> Option<String> {
    let Some(exit) = exit.filter(|exit| exit.left) else {
        return Some("waiting for the provider to write the exit into the net's log".to_owned());
    };
    if exit.done {
        return None;
    }
    let mut parts = Vec::new();
    if open_rounds > 0 {
        parts.push(format!(
            "{open_rounds} open rounds that it took part in (each closes with its sum, or after a \
             day)"
        ));
    }
    if exit.awaited > 0 {
        parts.push(format!(
            "{} of {} former neighbours to confirm that they erased the shared key (two days at \
             most; one that is switched off confirms when it is back)",
            exit.awaited, exit.neighbours
        ));
    }
    (!parts.is_empty()).then(|| format!("waiting for {}", parts.join(", and for ")))
}
