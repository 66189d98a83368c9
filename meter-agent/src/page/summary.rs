//! A status in a few lines of plain text, for a terminal.

use std::fmt::Write;

use dcnet::time::Timestamp;
use dcnet::units::MilliwattHours;

use crate::energy::Kwh;
use crate::identity::day;
use crate::status::{ChannelView, CheckState, Status, StepView};

/// The lines.
pub(super) fn text(status: &Status) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write(&mut text, status);
    text
}

fn write(out: &mut String, status: &Status) -> std::fmt::Result {
    let known = |id: &Option<String>| id.clone().unwrap_or_else(|| "not known".to_owned());
    writeln!(out, "meter       {}", known(&status.meter))?;
    writeln!(out, "net         {}", known(&status.net))?;
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
            // A device that has been read before may have fallen silent.
            None if channel.energy_mwh.is_some() => "power not known".to_owned(),
            None => "power not known yet".to_owned(),
        };
        write!(out, "{:<11} {}, {power}", channel.name, reading(channel))?;
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
        if let Some(trouble) = &channel.line_trouble {
            write!(out, "\n            NOT READ: {trouble}")?;
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
    if let Some(end) = status.certificate_end_ms.filter(|_| status.is_renewal_due) {
        writeln!(
            out,
            "certificate ENDS {}: ask the gateway administrator for a new one\n            \
             (\"Renewing a certificate\" in docs/operating.md)",
            day(Timestamp(end))
        )?;
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
    // Whatever has come since, the one that has stopped the meter is among them.
    let newest = status.alarms.iter().take(5);
    let finals = status.alarms.iter().skip(5).filter(|alarm| alarm.is_final);
    for alarm in newest.chain(finals) {
        writeln!(
            out,
            "ALARM       {}\n            {}",
            alarm.text, alarm.advice
        )?;
    }
    Ok(())
}

fn reading(channel: &ChannelView) -> String {
    let kwh = |energy| format!("{} kWh", Kwh::from(MilliwattHours(energy)));
    match (channel.reading_mwh, channel.energy_mwh) {
        (Some(reading), _) => kwh(reading),
        (None, Some(energy)) => format!(
            "{} counted (say what the display shows: meter-agent set-reading)",
            kwh(energy)
        ),
        (None, None) => "no reading of the device yet".to_owned(),
    }
}

fn state(status: &Status) -> String {
    if status.is_stopped {
        return "stopped for good by an alarm".to_owned();
    }
    match status.exit {
        Some(exit) if exit.done => {
            return "has left the net; everything of it is erased; it counts on".to_owned();
        }
        None if status.no_link.is_some() => {
            return "counts, and submits nothing for want of a link".to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{AlarmView, samples};

    fn lines(status: &Status) -> Vec<String> {
        text(status).lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_reading_that_nobody_knows_is_no_zero() {
        let known = lines(&samples::named("taking-part"));
        assert!(known.contains(
            &"import      987.654 kWh, 523 W, 123456 pulses since the start, 2 edges rejected, \
              0 missing"
                .to_owned()
        ));
        let unknown = lines(&samples::named("first-start"));
        let of = |channel: &str| {
            let line = unknown.iter().find(|line| line.starts_with(channel));
            line.unwrap().as_str()
        };
        assert!(of("import").contains(" 0 kWh counted (say what the display shows"));
        assert!(of("export").contains(" no reading of the device yet, power not known yet"));
    }

    #[test]
    fn the_alarm_that_stopped_the_meter_is_told_whatever_came_after_it() {
        let mut status = samples::named("stopped");
        let newer = AlarmView {
            text: "something else".to_owned(),
            is_final: false,
            ..status.alarms[0].clone()
        };
        let others = std::iter::repeat_n(newer, 20);
        status.alarms = others.chain(status.alarms).collect();
        let lines = lines(&status);
        let alarms: Vec<&String> = lines
            .iter()
            .filter(|line| line.starts_with("ALARM"))
            .collect();
        assert_eq!(alarms.len(), 6, "{lines:#?}");
        assert!(
            alarms[5].contains("two different membership logs"),
            "{lines:#?}"
        );
    }

    #[test]
    fn a_line_that_is_not_read_is_told_with_what_to_do() {
        let text = text(&samples::named("line-trouble"));
        let told = "power not known, 123456 pulses since the start, 2 edges rejected, 0 missing\n            \
                    NOT READ: GPIO line GPIO17: ";
        assert!(
            text.contains(told) && text.contains("Stop the program"),
            "{text}"
        );
    }

    #[test]
    fn a_certificate_is_told_when_it_is_time_to_renew_it() {
        let due = text(&samples::named("certificate-ends"));
        let told = "certificate ENDS 2026-01-01 08:26 UTC: ask the gateway administrator";
        assert!(due.contains(told), "{due}");
        let not_due = text(&samples::named("taking-part"));
        assert!(!not_due.contains("certificate"), "{not_due}");
    }

    #[test]
    fn a_pause_is_the_reason_of_a_round_that_was_not_sent() {
        let text = text(&samples::named("paused"));
        let reason = "submission not sent: the household had paused this meter";
        assert!(text.contains(reason), "{text}");
    }
}
