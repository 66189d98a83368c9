//! What an operator must know, and what to do about it.

use std::borrow::Cow;
use std::collections::VecDeque;

use dcnet::alarm::Alarm;
use dcnet::provider::{NoRoster, ProviderEvent};
use serde::{Deserialize, Serialize};

use crate::nets::NetEvent;
use crate::utc;

/// What is remembered; the agent's log has all of it.
const REMEMBERED: usize = 200;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Somebody did what nobody should.
    Alarm,
    /// Something is not as it should be.
    Warning,
    /// Something has to be done, with time.
    Notice,
}

/// Something that an operator was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When it happened last, RFC 3339 in UTC.
    pub at: String,
    /// The net, 32 hexadecimal digits; `None` for the whole agent.
    pub net: Option<String>,
    /// How much it matters.
    pub severity: Severity,
    /// What it is, for programs.
    pub kind: Cow<'static, str>,
    /// What happened.
    pub what: String,
    /// What to do.
    pub advice: Cow<'static, str>,
    /// The round, if it is about one.
    pub round: Option<u64>,
    /// How often it happened without anything else between.
    pub times: u64,
}

impl Told {
    /// What an event of a net tells; `None` if it needs nobody.
    pub(super) fn about(event: &NetEvent) -> Option<Self> {
        let (severity, kind, what, advice, round) = match &event.event {
            ProviderEvent::Alarm(alarm) => {
                let (kind, advice) = advice_on(alarm);
                let round = match alarm {
                    Alarm::Disrupted { round, .. } => Some(round.0),
                    _ => None,
                };
                (Severity::Alarm, kind, alarm.to_string(), advice, round)
            }
            // The alarm about the disruption has told it.
            ProviderEvent::Lost {
                disruption: Some(_),
                ..
            } => return None,
            ProviderEvent::Lost { round, missing, .. } if missing.is_empty() => (
                Severity::Warning,
                "lost",
                format!("round {round} is lost: reveals were missing"),
                "Its sum cannot be had any more. The agent was started again while the round waited, \
                 so it cannot tell who had revealed before that.",
                Some(round.0),
            ),
            ProviderEvent::Lost { round, missing, .. } => (
                Severity::Warning,
                "lost",
                format!(
                    "round {round} is lost: {} never revealed",
                    meters(missing.len())
                ),
                "Its sum cannot be had any more. If the same meters are missing again and again, \
                 ask their households to look at the meter; the list of members shows which they are.",
                Some(round.0),
            ),
            ProviderEvent::Pending { round, missing } => (
                Severity::Warning,
                "pending",
                format!(
                    "round {round} waits for the reveals of {}",
                    meters(missing.len())
                ),
                "Nothing has to be done at once: the meters reveal when they are back, within 24 hours. \
                 Until then the round has no sum, and they are left out of new rosters, unless the agent \
                 was started again since: what it was told before that it asks for once more.",
                Some(round.0),
            ),
            ProviderEvent::NoRoster {
                round,
                reason: NoRoster::NotListening,
                ..
            } => (
                Severity::Warning,
                "no-roster",
                format!("round {round} got no roster: the agent was not connected all the time"),
                "Meters that submitted while it was not would count their absence from a roster against you. \
                 Nothing has to be done for this round; if it happens often, look at the broker.",
                Some(round.0),
            ),
            ProviderEvent::NoRoster {
                round, submissions, ..
            } => (
                Severity::Warning,
                "no-roster",
                format!(
                    "round {round} got no roster: {} submitted",
                    meters(*submissions)
                ),
                "Too few meters took part for what the meters ask for. In a new net wait for more of them. \
                 If many are absent at once, look at the broker and at the network first.",
                Some(round.0),
            ),
            ProviderEvent::KeyChanged { provider } => (
                Severity::Notice,
                "key-changed",
                format!("the net is signed with the key of {provider} now"),
                "Once every net says so, stop the agent, move certificate.pem and key.pem from successor/ over the old ones, \
                 remove successor/ and start again. Give the new certificate to the gateway administrator.",
                None,
            ),
            _ => return None,
        };
        Some(Self {
            at: utc::text(event.at),
            net: Some(event.net.to_string()),
            severity,
            kind: kind.into(),
            what,
            advice: advice.into(),
            round,
            times: 1,
        })
    }

    /// Something about the whole agent that holds now.
    pub(super) fn now(kind: &'static str, what: String, advice: &'static str) -> Self {
        Self {
            at: utc::text(utc::now()),
            net: None,
            severity: Severity::Warning,
            kind: kind.into(),
            what,
            advice: advice.into(),
            round: None,
            times: 1,
        }
    }

    pub(super) fn is_alarm(&self) -> bool {
        self.severity == Severity::Alarm
    }
}

fn meters(number: usize) -> String {
    match number {
        1 => "1 meter".to_owned(),
        number => format!("{number} meters"),
    }
}

/// Name and advice of an alarm. Those that only meters raise get the general one.
fn advice_on(alarm: &Alarm) -> (&'static str, &'static str) {
    match alarm {
        Alarm::Equivocation { .. } => (
            "equivocation",
            "One device signs twice: its key or its state is probably in use in two places, such as a copied memory card \
             or a restored backup. Ask the household to run it once only. If others may know the key, have the gateway \
             administrator revoke the meter and enrol it again.",
        ),
        Alarm::Disrupted { .. } => (
            "disrupted",
            "At least one meter on the roster sent what does not fit its commitment, so there is no sum. What the meters sent \
             is kept for an audit. If it happens again, compare which meters are on all of these rosters, and tell the gateway \
             administrator.",
        ),
        _ => (
            "alarm",
            "Note what it says and when, look at the agent's log around that time, and tell the gateway administrator.",
        ),
    }
}

/// The newest of what was told.
#[derive(Debug, Default)]
pub(super) struct Alarms(VecDeque<Told>);

impl Alarms {
    /// Adds one; a repetition of the net's newest warning takes its place.
    pub(super) fn add(&mut self, mut told: Told) {
        if let Some(place) = self.0.iter().rposition(|before| before.net == told.net)
            && let Some(before) = self.0.get(place)
            && before.kind == told.kind
            && !told.is_alarm()
        {
            told.times = before.times.saturating_add(1);
            self.0.remove(place);
        }
        self.0.push_back(told);
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    pub(super) fn newest_first(&self) -> Vec<Told> {
        self.0.iter().rev().cloned().collect()
    }
}

impl From<Vec<Told>> for Alarms {
    /// From the newest first.
    fn from(told: Vec<Told>) -> Self {
        Self(told.into_iter().take(REMEMBERED).rev().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dcnet::time::{Round, Timestamp};
    use dcnet::topic::NetId;

    fn told(event: ProviderEvent) -> Option<Told> {
        Told::about(&NetEvent {
            net: NetId([7; 16]),
            at: Timestamp(1_769_882_400_000),
            latency: None,
            event,
        })
    }

    #[test]
    fn repeated_warnings_are_one_and_alarms_stay_apart() {
        let no_roster = |round| {
            let (round, submissions) = (Round(round), 1);
            told(ProviderEvent::NoRoster {
                round,
                submissions,
                reason: NoRoster::TooFew,
                dropped: Vec::new(),
                absent: Vec::new(),
            })
            .unwrap()
        };
        let lost = |round| {
            let missing = vec![dcnet::identity::DeviceId([1; 16])];
            let round = Round(round);
            told(ProviderEvent::Lost {
                round,
                disruption: None,
                missing,
            })
            .unwrap()
        };
        let equivocation = || {
            let (meter, what) = (dcnet::identity::DeviceId([1; 16]), "reveal");
            told(ProviderEvent::Alarm(Alarm::Equivocation { meter, what })).unwrap()
        };
        let mut alarms = Alarms::default();
        alarms.add(no_roster(1));
        alarms.add(no_roster(2));
        alarms.add(equivocation());
        alarms.add(equivocation());
        alarms.add(lost(3));
        alarms.add(lost(4));
        alarms.add(no_roster(5));
        let newest = alarms.newest_first();
        let seen: Vec<_> = newest
            .iter()
            .map(|told| (told.kind.as_ref(), told.round, told.times))
            .collect();
        assert_eq!(
            seen,
            [
                ("no-roster", Some(5), 1),
                ("lost", Some(4), 2),
                ("equivocation", None, 1),
                ("equivocation", None, 1),
                ("no-roster", Some(2), 2)
            ]
        );
        assert!(lost(3).what.contains("1 meter never"), "{}", lost(3).what);
    }

    #[test]
    fn a_lost_round_is_no_alarm_of_the_protocol() {
        let (round, missing) = (Round(1), vec![dcnet::identity::DeviceId([1; 16])]);
        for missing in [missing, Vec::new()] {
            let disruption = None;
            let lost = told(ProviderEvent::Lost {
                round,
                disruption,
                missing,
            });
            let lost = lost.unwrap();
            assert_eq!((lost.kind.as_ref(), lost.is_alarm()), ("lost", false));
        }
    }

    #[test]
    fn a_disrupted_round_is_told_once_and_a_join_is_no_alarm() {
        let (round, missing) = (Round(1), Vec::new());
        let disruption = Some(dcnet::aggregate::Disruption::Value(0));
        let lost = ProviderEvent::Lost {
            round,
            disruption,
            missing,
        };
        assert_eq!(told(lost), None);
        let meter = dcnet::identity::DeviceId([1; 16]);
        assert_eq!(told(ProviderEvent::Joined { meter, members: 1 }), None);
    }
}
