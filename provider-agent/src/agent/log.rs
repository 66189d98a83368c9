//! What happens in the nets, as log lines.

use std::collections::BTreeSet;

use dcnet::identity::DeviceId;
use dcnet::provider::{Dropped, ProviderEvent};
use dcnet::topic::Topic;

use super::HANDED_OVER;
use crate::nets::{NAMED, NetEvent};

/// Pairs of sender and reason that are remembered so as to log each refusal once.
const REFUSALS: usize = 4096;

/// The ids of some meters, as many as a line holds.
fn named(meters: &[DeviceId]) -> String {
    let mut text = String::new();
    for meter in meters.iter().take(NAMED) {
        let gap = if text.is_empty() { "" } else { ", " };
        text.push_str(&format!("{gap}{meter}"));
    }
    let more = meters.len().saturating_sub(NAMED);
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Meters whose submissions were dropped, named in one line: a net may drop some in every round.
const DROPPED: usize = 16;

/// Dropped meters with the reason of each, as many as a line holds.
fn dropped_named(dropped: &[(DeviceId, Dropped)]) -> String {
    let shown = dropped.iter().take(DROPPED);
    let mut texts: Vec<String> = shown
        .map(|(meter, why)| format!("{meter} ({why})"))
        .collect();
    let more = dropped.len().saturating_sub(DROPPED);
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts.join(", ")
}

/// Events as log lines; a refusal once per sender and reason.
#[derive(Default)]
pub(super) struct Log {
    refused: BTreeSet<(Option<DeviceId>, String)>,
}

impl Log {
    pub(super) fn write(&mut self, event: &NetEvent) {
        let net = event.net;
        match &event.event {
            ProviderEvent::Joined { meter, members } => {
                tracing::info!(%net, %meter, members, "joined");
            }
            ProviderEvent::Left { meter, members } => {
                tracing::info!(%net, %meter, members, "left by its own exit");
            }
            ProviderEvent::Revoked { meter, members } => {
                tracing::warn!(%net, %meter, members, "revoked by the gateway administrator");
            }
            ProviderEvent::Lapsed { meter } => {
                tracing::info!(%net, %meter, "was away for long: no draw names it until it draws");
            }
            ProviderEvent::KeyChanged { provider } => {
                tracing::warn!(%net, %provider, "{HANDED_OVER}");
            }
            ProviderEvent::Drawn { meter } => tracing::debug!(%net, %meter, "drawn"),
            ProviderEvent::Entered { meter } => tracing::info!(%net, %meter, "entered"),
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } if dropped.is_empty() => tracing::debug!(%net, %round, included, "roster issued"),
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } => {
                let (number, dropped) = (dropped.len(), dropped_named(dropped));
                tracing::info!(%net, %round, included, number, dropped, "roster issued without some that submitted");
            }
            ProviderEvent::NoRoster {
                round,
                submissions,
                reason,
                dropped,
                absent,
            } => {
                let (number, dropped) = (dropped.len(), dropped_named(dropped));
                let (absent_number, absent) = (absent.len(), named(absent));
                tracing::warn!(%net, %round, submissions, number, dropped, absent_number, absent, "no roster: {reason}");
            }
            ProviderEvent::Aggregated(published) => tracing::info!(
                %net,
                round = %published.round,
                included = published.included.len(),
                members = published.members,
                latency = ?event.latency.unwrap_or_default(),
                "verified aggregate"
            ),
            ProviderEvent::Pending { round, missing } => {
                let (number, missing) = (missing.len(), named(missing));
                tracing::warn!(%net, %round, number, missing, "pending: reveals are missing");
            }
            ProviderEvent::Lost { round, missing, .. } => {
                let (number, missing) = (missing.len(), named(missing));
                tracing::warn!(%net, %round, number, missing, "lost");
            }
            ProviderEvent::Refused { topic, reason } => {
                let sender = match topic {
                    Topic::Up { meter, .. } | Topic::UpPair { meter, .. } => Some(*meter),
                    _ => None,
                };
                let new = self.refused.len() < REFUSALS
                    && self.refused.insert((sender, reason.to_string()));
                if new {
                    tracing::warn!(%net, %topic, %reason, "refused; repetitions are not logged");
                } else {
                    tracing::debug!(%net, %topic, %reason, "refused");
                }
            }
            ProviderEvent::Alarm(alarm) => tracing::error!(%net, %alarm, "alarm"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use dcnet::provider::NoRoster;
    use dcnet::time::{Round, Timestamp};
    use dcnet::topic::NetId;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines of an event.
    fn lines(event: ProviderEvent) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            Log::default().write(&NetEvent {
                net: NetId([7; 16]),
                at: Timestamp(0),
                latency: None,
                event,
            });
        });
        let written = lines.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap()
    }

    fn meters(number: u16) -> Vec<DeviceId> {
        let id = |number: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&number.to_be_bytes());
            DeviceId(id)
        };
        (0..number).map(id).collect()
    }

    fn ids(text: &str) -> usize {
        text.matches(&"0".repeat(28)).count()
    }

    #[test]
    fn who_was_dropped_is_named_with_the_reason_and_of_many_some() {
        let round = Round(3);
        let all = |number, why| meters(number).into_iter().map(|id| (id, why)).collect();
        let line = lines(ProviderEvent::RosterIssued {
            round,
            included: 40,
            dropped: all(2, Dropped::Owing),
        });
        assert_eq!(line.lines().count(), 1);
        assert_eq!(
            (ids(&line), line.matches("made others wait").count()),
            (2, 2)
        );
        let line = lines(ProviderEvent::NoRoster {
            round,
            submissions: 5000,
            reason: NoRoster::TooFew,
            dropped: all(5000, Dropped::Group),
            absent: Vec::new(),
        });
        assert_eq!(line.lines().count(), 1);
        assert_eq!(ids(&line), DROPPED, "{line}");
        assert!(
            line.contains("number=5000") && line.contains("and 4984 more"),
            "{line}"
        );
        assert!(line.contains(&NoRoster::TooFew.to_string()), "{line}");
    }

    #[test]
    fn of_many_missing_meters_some_are_named_and_all_counted() {
        let round = Round(3);
        let lost_without = |missing| ProviderEvent::Lost {
            round,
            disruption: None,
            missing,
        };
        let missing = meters(5000);
        let (pending, lost) = (
            lines(ProviderEvent::Pending {
                round,
                missing: missing.clone(),
            }),
            lines(lost_without(missing)),
        );
        for line in [pending, lost] {
            assert_eq!(line.lines().count(), 1);
            assert!(line.contains("number=5000"), "{line}");
            assert!(line.contains("and 4900 more"), "{line}");
            assert_eq!(ids(&line), 100, "{line}");
        }
        let missing = meters(2);
        let line = lines(lost_without(missing));
        assert!(ids(&line) == 2 && !line.contains("more"), "{line}");
    }
}
