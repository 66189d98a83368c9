//! Whether pulses or readings come.

use std::time::Duration;

use dcnet::units::ImpulsesPerKwh;
use tokio::time::{Instant, timeout_at};

use super::Verdict;
use crate::clock;
use crate::config::ChannelConfig;
use crate::diagnosis::{Input, Trouble, no_pulse, seconds, watts};
use crate::power::{Power, PowerMeter};
use crate::pulse::{self, LineView, PulseError};

/// What was seen of a channel in a stretch of time.
#[derive(Debug)]
pub(super) struct Seen {
    /// How long it was watched.
    pub(super) time: Duration,
    pub(super) constant: ImpulsesPerKwh,
    pub(super) pulses: u64,
    /// At the end.
    pub(super) power: Option<Power>,
    /// Whether the line was at its active level at the start.
    pub(super) was_active: bool,
    /// The line, if it has one, with what happened on it in that time.
    pub(super) line: Option<LineView>,
    /// What came of the device that is read, if one is.
    pub(super) input: Option<Input>,
}

/// Opens the sources and counts.
pub(super) async fn count(
    channels: &[ChannelConfig],
    duration: Duration,
    say: &mut impl FnMut(Verdict, String),
) {
    // One after the other, so that one that is wrong does not hide the rest.
    for channel in channels {
        let (verdict, text) = match watch(channel, duration).await {
            Ok(Some(seen)) => judge(&seen),
            Ok(None) => continue,
            Err(error) => (Verdict::Problem, error.to_string()),
        };
        say(verdict, format!("channel {}: {text}", channel.name));
    }
}

async fn watch(channel: &ChannelConfig, time: Duration) -> Result<Option<Seen>, PulseError> {
    let mut sources = pulse::open(std::slice::from_ref(channel), None)?;
    let Some(mut source) = sources.pop() else {
        return Ok(None);
    };
    let (line, input) = (source.line(), source.input());
    let was_active = line.as_ref().is_some_and(|line| line.borrow().is_active);
    let mut power = match input {
        Some(_) => PowerMeter::of_readings(channel.constant),
        None => PowerMeter::new(channel.constant, clock::monotonic()),
    };
    let (end, mut pulses) = (Instant::now() + time, 0_u64);
    while let Ok(batch) = timeout_at(end, source.next()).await {
        let batch = batch?;
        pulses = pulses.saturating_add(batch.pulses().0);
        power.observe(&batch);
    }
    Ok(Some(Seen {
        time,
        constant: channel.constant,
        pulses,
        power: power.at(clock::monotonic()),
        was_active,
        line: line.map(|line| *line.borrow()),
        input: input.map(|input| Input::from(&*input.borrow())),
    }))
}

/// What it says about the wiring, or about the device.
pub(super) fn judge(seen: &Seen) -> (Verdict, String) {
    if let Some(input) = &seen.input {
        return judge_input(seen, input);
    }
    let Seen {
        time,
        constant,
        pulses,
        ..
    } = *seen;
    let mut line = seen.line.unwrap_or_default();
    line.is_stuck |= seen.was_active && line.is_active && pulses == 0;
    let statistics = line.statistics;
    match Trouble::of(&line).first() {
        Some(trouble @ Trouble::Stuck) => (Verdict::Problem, trouble.to_string()),
        Some(trouble) => (
            Verdict::Warning,
            format!(
                "{trouble} ({} rejected, {} lost, beside {pulses} pulses)",
                statistics.rejected, statistics.lost
            ),
        ),
        None if pulses == 0 => (Verdict::Note, no_pulse(time, constant)),
        None => {
            let width = statistics.last_width.map_or_else(String::new, |width| {
                format!(", the last one {} ms wide", width.as_millis())
            });
            let (seconds, watts) = (seconds(time), watts(pulses, time, constant));
            (
                Verdict::Good,
                format!("{pulses} pulses in {seconds} s{width}: {watts:.0} W"),
            )
        }
    }
}

fn judge_input(seen: &Seen, input: &Input) -> (Verdict, String) {
    if input.readings == 0 {
        return (Verdict::Problem, input.no_reading(seen.time));
    }
    if let Some(refused) = &input.refused {
        return (Verdict::Problem, format!("{}: {refused}", input.source));
    }
    let power = seen.power.filter(|power| !power.is_upper_bound);
    let power = power.map_or_else(String::new, |power| {
        format!(": {} W", power.milliwatts.div_ceil(1000))
    });
    let text = format!(
        "{} readings of {} in {} s{}{power}",
        input.readings,
        input.source,
        seconds(seen.time),
        input.faults()
    );
    if input.fault_count() > input.readings {
        let advice = &input.advice;
        return (
            Verdict::Warning,
            format!("{text}; most is of no use: {advice}"),
        );
    }
    (Verdict::Good, text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::pulse::edge::EdgeStatistics;

    fn seen(pulses: u64) -> Seen {
        Seen {
            time: Duration::from_secs(36),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
            pulses,
            power: None,
            was_active: false,
            line: None,
            input: None,
        }
    }

    fn judged(pulses: u64, was_active: bool, view: LineView) -> (Verdict, String) {
        judge(&Seen {
            was_active,
            line: Some(view),
            ..seen(pulses)
        })
    }

    #[test]
    fn each_way_of_wiring_it_wrong_is_told_apart() {
        let statistics = EdgeStatistics {
            last_width: Some(Duration::from_millis(90)),
            ..EdgeStatistics::default()
        };
        let view = LineView {
            statistics,
            ..LineView::default()
        };
        let (verdict, text) = judged(5, false, view);
        assert_eq!(verdict, Verdict::Good);
        assert!(
            text.contains("90 ms wide") && text.contains("500 W"),
            "{text}"
        );
        let (verdict, text) = judged(0, false, view);
        assert_eq!(verdict, Verdict::Note);
        assert!(text.contains("less than 100 W"), "{text}");
        assert!(
            !text.contains("meter-agent count"),
            "it asks the same: {text}"
        );
        let active = LineView {
            is_active: true,
            ..view
        };
        let (verdict, text) = judged(0, true, active);
        assert_eq!(verdict, Verdict::Problem);
        assert!(text.contains("swapped"), "{text}");
        let (verdict, _) = judged(1, true, active);
        assert_eq!(verdict, Verdict::Good, "a pulse went on at either end");
        let noisy = LineView {
            statistics: EdgeStatistics {
                rejected: 40,
                ..statistics
            },
            ..view
        };
        let (verdict, text) = judged(30, false, noisy);
        assert_eq!(verdict, Verdict::Warning);
        assert!(text.contains("pull-up"), "{text}");
    }

    fn read(input: Input) -> (Verdict, String) {
        let input = Input {
            source: "/dev/ttyUSB0 1.8.0".to_owned(),
            advice: "look at the head".to_owned(),
            ..input
        };
        judge(&Seen {
            input: Some(input),
            ..seen(0)
        })
    }

    #[test]
    fn a_device_is_judged_by_its_readings() {
        let faults = |times| BTreeMap::from([("parity".to_owned(), times)]);
        let silent = Input {
            faults: faults(12),
            ..Input::default()
        };
        let (verdict, text) = read(silent.clone());
        assert_eq!(verdict, Verdict::Problem);
        assert_eq!(
            text,
            "no reading of /dev/ttyUSB0 1.8.0 in 36 s, parity: 12: look at the head"
        );
        let (verdict, text) = read(Input {
            trouble: Some("it is not plugged in".to_owned()),
            ..silent
        });
        assert_eq!(verdict, Verdict::Problem);
        assert!(
            text.ends_with("1.8.0 in 36 s, parity: 12: it is not plugged in"),
            "{text}"
        );

        let well = Input {
            readings: 36,
            faults: faults(1),
            ..Input::default()
        };
        let (verdict, text) = read(well.clone());
        assert_eq!(
            verdict,
            Verdict::Good,
            "no pulse is no fault of a device that is read"
        );
        assert!(text.starts_with("36 readings of /dev/ttyUSB0") && text.contains("parity: 1"));
        let (verdict, _) = read(Input {
            faults: faults(37),
            ..well.clone()
        });
        assert_eq!(verdict, Verdict::Warning);
        let (verdict, text) = read(Input {
            refused: Some("it shows 2 kWh".to_owned()),
            ..well
        });
        assert_eq!(verdict, Verdict::Problem);
        assert!(text.contains("2 kWh"), "{text}");
    }
}
