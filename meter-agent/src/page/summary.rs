//! A status in a few lines of plain text, for a terminal.

use std::fmt::Write;

use dcnet::units::MilliwattHours;

use crate::energy::Kwh;
use crate::status::{CheckState, Status, StepView};

/// The lines.
pub(super) fn text(status: &Status) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write(&mut text, status);
    text
}

fn write(out: &mut String, status: &Status) -> std::fmt::Result {
    writeln!(out, "meter       {}", status.meter)?;
    writeln!(out, "net         {}", status.net)?;
    writeln!(out, "broker      {}", status.link.text)?;
    let clock = match status.synchronised {
        true if status.clock_unconfirmed => {
            "jumped ahead; nothing is submitted until `meter-agent confirm-clock` says it is right"
        }
        true => "synchronised",
        false => "not synchronised; nothing is submitted until it is",
    };
    writeln!(out, "clock       {clock}")?;
    for channel in &status.channels {
        let power = match channel.power {
            Some(power) if power.is_upper_bound => format!("at most {} W", power.milliwatts / 1000),
            Some(power) => format!("{} W", power.milliwatts / 1000),
            None => "power not known yet".to_owned(),
        };
        let reading = Kwh::from(MilliwattHours(channel.reading_mwh));
        write!(out, "{:<11} {reading} kWh, {power}", channel.name)?;
        if let Some(line) = &channel.line {
            write!(
                out,
                ", {} pulses since the start, {} edges rejected, {} missing{}",
                line.pulses,
                line.rejected,
                line.lost,
                if line.is_stuck { ", LINE STUCK" } else { "" }
            )?;
        }
        if let Some(input) = &channel.input {
            let faults: u64 = input.faults.values().sum();
            write!(out, ", {} readings, {faults} faults", input.readings)?;
            for told in [&input.trouble, &input.refused].into_iter().flatten() {
                write!(out, "\n            {told}")?;
            }
        }
        writeln!(out)?;
    }
    if let Some(error) = &status.save_error {
        writeln!(out, "register    NOT SAVED: {error}")?;
    }
    writeln!(out, "state       {}", state(status))?;
    if let (Some(live), Some(drawn)) = (status.live, status.drawn) {
        writeln!(out, "neighbours  {live} of {drawn} hid the last submission")?;
    }
    for round in status.rounds.iter().take(3) {
        write!(
            out,
            "round       {}: submission {}",
            round.round,
            step(&round.submission)
        )?;
        if round.submission.state == CheckState::Passed {
            write!(out, ", reveal {}", step(&round.reveal))?;
        }
        if let Some(included) = round.included {
            write!(out, ", sum over {included} meters")?;
        }
        writeln!(out)?;
    }
    for alarm in status.alarms.iter().take(5) {
        writeln!(
            out,
            "ALARM       {}\n            {}",
            alarm.text, alarm.advice
        )?;
    }
    Ok(())
}

fn state(status: &Status) -> String {
    if status.is_stopped {
        return "stopped for good by an alarm".to_owned();
    }
    match status.exit {
        Some(exit) if exit.done => {
            return "has left the net; everything of it is erased".to_owned();
        }
        Some(exit) if exit.left => {
            return format!("leaves the net; {} former neighbours awaited", exit.awaited);
        }
        Some(_) => return "leaves the net; the provider has not answered yet".to_owned(),
        None => {}
    }
    let members = status.members;
    let member = match status.is_member {
        true => format!("one of {members} members"),
        false => format!("no member yet of a net of {members}"),
    };
    match status.paused {
        true => format!("PAUSED by the household; {member}"),
        false => member,
    }
}

fn step(step: &StepView) -> String {
    match (step.state, &step.reason) {
        (CheckState::Passed, _) => "sent".to_owned(),
        (_, Some(reason)) => format!("not sent: {reason}"),
        (_, None) => "pending".to_owned(),
    }
}
