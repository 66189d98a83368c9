//! Leaving the net: what `meter-agent leave` does for a household that wants out.
//!
//! The exit is stored before it is sent, so an interruption at any moment loses nothing: the
//! agent, or this command, goes on with it at its next start.

use std::future::Future;
use std::io::Write;

use anyhow::{Context, bail};
use dcnet::alarm::Alarm;
use dcnet::meter::{MeterCommand, MeterEvent};
use link::{Clock, Driver, LinkState};
use tokio::sync::mpsc;

use crate::agent::{AgentOptions, open_meter};
use crate::config::Config;
use crate::standing::{HasLeft, Standing, Watched};

/// Leaves the net of a configuration and tells on `out` what happens and what it waits for.
/// With `wait` it returns when everything is erased here, else when the log says that the
/// meter has left.
///
/// # Errors
/// The agent runs; identity or state cannot be used; an alarm stopped the meter, so that
/// it cannot leave by itself; `interrupted` is done before the exit is.
pub async fn leave(
    config: &Config,
    wait: bool,
    interrupted: impl Future<Output = ()>,
    mut out: impl Write,
) -> anyhow::Result<()> {
    let options = AgentOptions::without_sources(config)?;
    let (net, broker) = (
        options.meter.checkpoint.net,
        format!("{}:{}", config.broker_host, config.broker_port),
    );
    let clock = if config.assume_synchronised {
        Clock::assume_synchronised()
    } else {
        Clock::system()
    };
    let (directory, now) = (options.state_directory.clone(), clock.now());
    let opening = tokio::task::spawn_blocking(move || open_meter(&directory, options.meter, now));
    let (meter, journal) = opening
        .await
        .context("opening the state panicked")?
        .context("if the agent of this meter runs, stop its service first, then leave")?;
    let meter = Watched::new(meter);

    let mut standing = meter.standing();
    let before = standing.borrow_and_update().clone();
    match before.exit {
        Some(exit) if exit.done => {
            writeln!(out, "{}", HasLeft(net))?;
            return Ok(());
        }
        None if !before.is_member => {
            writeln!(
                out,
                "this meter is no member of net {net}, so there is nothing to leave; its service \
                 need only stay stopped"
            )?;
            return Ok(());
        }
        None if before.is_stopped => bail!(
            "an alarm has stopped this meter for good, and with it its view of the log, so it \
             cannot leave by itself; ask the gateway administrator to revoke it"
        ),
        Some(exit) if exit.left && !wait => {
            writeln!(out, "this meter has left net {net} already; {REST}")?;
            return Ok(());
        }
        Some(_) => writeln!(out, "going on with the exit from net {net}")?,
        None => writeln!(out, "leaving net {net}: it submits nothing from here on")?,
    }
    writeln!(
        out,
        "Ctrl-C is safe: the exit goes on when this command, or the agent, runs again"
    )?;

    let link::Handle {
        commands,
        mut events,
        control,
    } = Driver::new(meter, journal, options.connection)
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
                    writeln!(out, "the net's log says that this meter has left")?;
                    if !wait {
                        writeln!(out, "{REST}")?;
                        return control.stop().await;
                    }
                }
                Some(MeterEvent::ExitDone { confirmed, neighbours }) => {
                    writeln!(
                        out,
                        "done: {confirmed} of {neighbours} former neighbours confirmed that they \
                         erased the key they shared with this meter, and so has this meter; its \
                         service need not run any more"
                    )?;
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

/// What the exit waits for, in one line.
fn waits_for(link: &LinkState, standing: &Standing, broker: &str) -> Option<String> {
    match link {
        LinkState::Connected => {}
        LinkState::Connecting => return Some(format!("connecting to the broker {broker}")),
        LinkState::Waiting { error } => {
            return Some(format!(
                "the broker {broker} is not to be reached ({error}); trying again"
            ));
        }
        LinkState::SubscriptionRefused { .. } => {
            return Some(format!(
                "the broker {broker} refuses this meter; trying again"
            ));
        }
        LinkState::Stopped { .. } => return None,
    }
    let Some(exit) = standing.exit.filter(|exit| exit.left) else {
        return Some("waiting for the provider to write the exit into the net's log".to_owned());
    };
    if exit.done {
        return None;
    }
    let mut parts = Vec::new();
    if standing.open_rounds > 0 {
        parts.push(format!(
            "{} open rounds that it took part in (each closes with its sum, or after a day)",
            standing.open_rounds
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
