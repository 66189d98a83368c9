//! What an agent that runs tells of its broker and its channels. Its lines, ports and broker are left
//! to it: whoever opened them too would take edges and bytes away, or throw it out.

use std::time::Duration;

use dcnet::units::ImpulsesPerKwh;
use serde::Deserialize;

use super::Verdict;
use super::channels::{Seen, judge};
use crate::ask;
use crate::config::Config;
use crate::diagnosis::Input;
use crate::power::Power;
use crate::pulse::LineView;
use crate::pulse::edge::EdgeStatistics;
use crate::reach::{NoLinkKind, NoLinkView};
use crate::status::LinkView;

/// What is needed of its status.
#[derive(Deserialize)]
struct Status {
    link: LinkView,
    no_link: Option<NoLinkView>,
    channels: Vec<Channel>,
}

#[derive(Deserialize)]
struct Channel {
    name: String,
    impulses_per_kwh: u32,
    pulses: u64,
    power: Option<Power>,
    line: Option<Line>,
    line_trouble: Option<String>,
    input: Option<Input>,
}

#[derive(Deserialize)]
struct Line {
    is_active: bool,
    is_stuck: bool,
    pulses: u64,
    rejected: u64,
    lost: u64,
}

impl Status {
    async fn of(config: &Config) -> anyhow::Result<Self> {
        // A connection is served for a while only.
        let mut agent = ask::running(&config.state_directory).await?;
        agent.json("/api/status").await
    }
}

impl Channel {
    /// What came since `before`, `time` ago.
    fn since(self, before: &Self, time: Duration) -> Option<Seen> {
        let line = self
            .line
            .zip(before.line.as_ref())
            .map(|(now, before)| LineView {
                statistics: EdgeStatistics {
                    pulses: now.pulses.saturating_sub(before.pulses),
                    rejected: now.rejected.saturating_sub(before.rejected),
                    lost: now.lost.saturating_sub(before.lost),
                    ..EdgeStatistics::default()
                },
                is_active: now.is_active,
                is_stuck: now.is_stuck,
            });
        let input = self.input.zip(before.input.as_ref());
        Some(Seen {
            time,
            constant: ImpulsesPerKwh::new(self.impulses_per_kwh)?,
            pulses: self.pulses.saturating_sub(before.pulses),
            power: self.power,
            was_active: before.line.as_ref().is_some_and(|line| line.is_active),
            line,
            input: input.map(|(now, before)| now.since(before)),
        })
    }
}

/// Asks the agent twice, `duration` apart.
pub(super) async fn ask(
    config: &Config,
    duration: Duration,
    say: &mut impl FnMut(Verdict, String),
) {
    let before = match Status::of(config).await {
        Ok(before) => before,
        Err(error) => {
            say(
                Verdict::Warning,
                format!(
                    "the register is in use, but its agent tells nothing: {error:#}. Broker and \
                     channels are left alone, since it may be using them"
                ),
            );
            return;
        }
    };
    say(
        Verdict::Good,
        "the agent runs; the rest is what it tells".to_owned(),
    );
    if let Some(why) = &before.no_link {
        let verdict = match why.kind {
            NoLinkKind::Left => Verdict::Note,
            _ => Verdict::Problem,
        };
        say(verdict, why.text.clone());
    } else if before.link.is_connected {
        say(Verdict::Good, "it is connected to the broker".to_owned());
    } else {
        say(
            Verdict::Warning,
            format!(
                "{}: pulses are counted, but nothing is submitted; stop the agent and run this \
                 again to see which part fails",
                before.link.text
            ),
        );
    }
    tokio::time::sleep(duration).await;
    let after = match Status::of(config).await {
        Ok(after) => after,
        Err(error) => {
            say(Verdict::Problem, format!("{error:#}"));
            return;
        }
    };
    for channel in after.channels {
        let name = channel.name.clone();
        if let Some(trouble) = channel.line_trouble {
            say(Verdict::Problem, format!("channel {name}: {trouble}"));
            continue;
        }
        let earlier = before.channels.iter().find(|other| other.name == name);
        if let Some(seen) = earlier.and_then(|earlier| channel.since(earlier, duration)) {
            let (verdict, text) = judge(&seen);
            say(verdict, format!("channel {name}: {text}"));
        }
    }
}
