//! What stands on the terminal.

use std::path::Path;

use dcnet::time::{Period, Timestamp};
use dcnet::topic::{NetId, Public, Topic};
use dcnet::units::MilliwattHours;
use jiff::tz::TimeZone;

use crate::board::Outcome;
use crate::cli::{Energy, Plan};
use crate::policy;
use crate::report::Status;
use crate::system::{HOST, MEMORY, System, USUAL_PORT, third_party};
use crate::traffic::Average;

/// An energy, exact: `735 Wh`, `12.345 kWh`, `0.250 Wh`.
pub fn energy(energy: MilliwattHours) -> String {
    let (wh, rest) = (energy.0 / 1000, energy.0 % 1000);
    match (wh, rest) {
        (wh, 0) if wh < 1000 => format!("{wh} Wh"),
        (wh, 0) => format!("{}.{:03} kWh", wh / 1000, wh % 1000),
        (wh, rest) => format!("{wh}.{rest:03} Wh"),
    }
}

/// Time of day in UTC.
pub fn clock(at: Timestamp) -> String {
    i64::try_from(at.as_millis())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map(|at| at.to_zoned(TimeZone::UTC).strftime("%H:%M:%S").to_string())
        .unwrap_or_default()
}

/// A length as it is written on the command line.
pub fn length(period: Period) -> String {
    match period.as_secs() {
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}min", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// The command with which anyone with the third party's certificate reads the sums.
pub fn subscribe_command(root: &Path, port: u16, net: NetId) -> String {
    let directory = third_party(root);
    let file = |name: &str| directory.join(name).display().to_string();
    let topic = Topic::Public {
        net,
        kind: Public::Aggregate,
    };
    format!(
        "mosquitto_sub --cafile {} --cert {} --key {} -h {HOST} -p {port} -t {topic}",
        file(gateway_admin::CA_FILE),
        file(gateway_admin::CERTIFICATE_FILE),
        file(gateway_admin::KEY_FILE),
    )
}

/// What is going on, before the first round.
pub fn introduction(plan: &Plan, system: &System) -> String {
    let mut lines = vec![format!(
        "{} meters, one provider, a broker on {HOST}:{}; every connection is TLS 1.3 with a certificate \
         of a CA made for this run.",
        plan.meters, system.port
    )];
    if system.port != USUAL_PORT {
        lines.push(format!(
            "Port {USUAL_PORT} is taken, so the broker took a free one."
        ));
    }
    lines.push(match &plan.energy {
        Energy::Simulated => format!(
            "Each meter counts the pulses of a simulated household; a round of {} carries a quarter \
             of an hour of its life.",
            length(plan.period)
        ),
        Energy::Loads { loads, start_row } => format!(
            "Meter 1 to {} count the pulses of columns 1 ({}) to {} ({}) of the load file; round k \
             of {} carries row {start_row}+k.",
            plan.meters,
            loads.name(1).unwrap_or_default(),
            plan.meters,
            loads
                .name(usize::try_from(plan.meters).unwrap_or(0))
                .unwrap_or_default(),
            length(plan.period)
        ),
    });
    lines.push(
        "The provider learns the sum of a round and nothing else; a third party checks here that \
         the sum is signed by the provider and is the sum of what the meters counted."
            .to_owned(),
    );
    lines.push(format!(
        "Files, until it ends: {}{}",
        system.directory.path().display(),
        if system.directory.path().starts_with(MEMORY) {
            " (in memory, so that all the journals do not wait for one disk)"
        } else {
            ""
        }
    ));
    lines.push("Lowered for a net this small and fast:".to_owned());
    let lowered = policy::lowered(plan.meters, plan.period);
    lines.extend(lowered.into_iter().map(|line| format!("  - {line}")));
    lines.push("Read along, in another terminal:".to_owned());
    let root = system.directory.path();
    lines.push(format!(
        "  {}",
        subscribe_command(root, system.port, system.net)
    ));
    if plan.rounds.is_none() {
        lines.push("Ctrl-C ends it.".to_owned());
    }
    lines.join("\n")
}

/// The heading above the rounds.
pub fn heading() -> String {
    "UTC end    meters          sum  result              latency".to_owned()
}

/// A round in one line, and what is wrong with it in further ones.
pub fn round(outcome: &Outcome) -> String {
    let line = &outcome.line;
    let sum = line
        .sum_mwh
        .map_or("–".to_owned(), |sums| energy(MilliwattHours(sums.import)));
    let result = match (line.status, line.verified) {
        (Status::Complete, true) => "verified, correct",
        (Status::Complete, false) => "WRONG",
        (Status::Pending, _) => "PENDING",
        (Status::Lost, _) => "LOST",
    };
    let latency = line
        .latency_ms
        .map_or("–".to_owned(), |latency| format!("{latency} ms"));
    let mut text = format!(
        "{}  {:>7}  {sum:>11}  {result:<17}  {latency:>8}",
        clock(outcome.end),
        format!("{}/{}", line.included.len(), line.members),
    );
    if !outcome.unasked.is_empty() {
        text.push_str(&format!("  without meter {}", numbers(&outcome.unasked)));
    }
    for fault in &outcome.faults {
        text.push_str(&format!("\n          {fault}"));
    }
    text
}

/// `1, 2 and 3`.
pub fn numbers(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match texts.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => texts.concat(),
    }
}

/// The average traffic of a meter.
pub fn traffic(average: &Average) -> String {
    format!(
        "On the wire, per meter and round, counted by the broker (TCP payload, TLS included): \
         {} bytes sent and {} received, {:.1} and {:.1} messages.",
        average.bytes_up, average.bytes_down, average.messages_up, average.messages_down
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energies_are_written_exactly() {
        for (mwh, text) in [
            (0, "0 Wh"),
            (735_000, "735 Wh"),
            (1_000_000, "1.000 kWh"),
            (12_345_000, "12.345 kWh"),
            (250, "0.250 Wh"),
            (1_234_567, "1234.567 Wh"),
        ] {
            assert_eq!(energy(MilliwattHours(mwh)), text);
        }
    }

    #[test]
    fn times_and_lengths_read_well() {
        assert_eq!(clock(Timestamp(1_735_700_000_123)), "02:53:20");
        for (seconds, text) in [(2, "2s"), (60, "1min"), (900, "15min"), (3600, "1h")] {
            assert_eq!(length(Period::from_secs(seconds).unwrap()), text);
        }
        assert_eq!(numbers(&[4]), "4");
        assert_eq!(numbers(&[1, 2, 9]), "1, 2 and 9");
    }
}
