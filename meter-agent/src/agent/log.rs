//! Events of the protocol as lines of the log, in plain words. No line holds a
//! reading, a sum or a secret.

use std::collections::HashSet;

use dcnet::alarm::{Alarm, Silence};
use dcnet::membership::Policy;
use dcnet::meter::MeterEvent;
use dcnet::topic::Topic;
use tokio::sync::watch;

use crate::standing::Standing;

/// Different refusals that are told; further ones are only counted.
const REFUSALS: usize = 256;

/// Writes events to the log. A refusal is told once per sender and reason, since
/// anyone can cause as many as the broker lets through.
#[derive(Debug)]
pub(super) struct EventLog {
    refusals: HashSet<(String, String)>,
    /// Smallest group that the household insists on, and that the net has.
    minimum_group: (u32, Option<u32>),
    standing: watch::Receiver<Standing>,
    /// Whether it was told that the net is too small.
    too_small: bool,
}

impl EventLog {
    /// Tells the events of a meter whose owner insists on a smallest group.
    pub(super) fn new(minimum_group: u32, standing: watch::Receiver<Standing>) -> Self {
        Self {
            refusals: HashSet::new(),
            minimum_group: (minimum_group, None),
            standing,
            too_small: false,
        }
    }

    /// The rules of the net are known.
    pub(super) fn open(&mut self, policy: &Policy) {
        self.minimum_group.1 = Some(policy.minimum_group);
    }

    pub(super) fn write(&mut self, event: &MeterEvent) {
        match event {
            MeterEvent::NetOpened { policy, channels } => {
                self.open(policy);
                tracing::info!(
                    "the net has rounds of {} s, sums over at least {} meters, and the channels {}",
                    policy.period.as_secs(),
                    policy.minimum_group,
                    channels.join(", ")
                );
            }
            MeterEvent::Joined => tracing::info!("this meter is a member of the net"),
            MeterEvent::NotMember => {
                tracing::warn!("this meter is no member of the net, so it cannot leave it");
            }
            MeterEvent::Left => tracing::info!(
                "this meter has left the net; it waits for open rounds and for its former neighbours"
            ),
            MeterEvent::ExitDone {
                confirmed,
                neighbours,
            } => tracing::info!(
                "the exit is done: {confirmed} of {neighbours} former neighbours confirmed that \
                 they erased the pair key, and so has this meter"
            ),
            MeterEvent::ProviderChanged => {
                tracing::info!("the provider signs with a new key from here on");
            }
            MeterEvent::Drawn { neighbours } => {
                tracing::info!("the draw is done: {neighbours} neighbours");
            }
            MeterEvent::Entered { neighbours } => tracing::info!(
                "{neighbours} drawn neighbours share a key with this meter; it can take part"
            ),
            MeterEvent::Submitted { round, .. } => {
                self.too_small = false;
                tracing::info!("round {round}: submitted");
            }
            MeterEvent::Revealed {
                round, included, ..
            } => {
                tracing::info!("round {round}: revealed for a sum over {included} meters");
            }
            MeterEvent::Final {
                round, included, ..
            } => tracing::info!("round {round}: the sum over {included} meters is published"),
            MeterEvent::Silent { round, reason } => {
                self.net_is_too_small(*reason);
                if is_usual_before_taking_part(*reason) {
                    tracing::info!("round {round}: silent: {reason}");
                } else {
                    tracing::warn!("round {round}: silent: {reason}");
                }
            }
            MeterEvent::Refused { topic, reason } => self.refused(topic, &reason.to_string()),
            MeterEvent::Alarm(alarm) => write_alarm(alarm),
        }
    }

    /// Tells once that the meter waits because its net has too few members, and for how many.
    fn net_is_too_small(&mut self, reason: Silence) {
        let (own, Some(policy)) = self.minimum_group else {
            return;
        };
        let members = self.standing.borrow().members;
        let floor = own.max(policy);
        let waits = matches!(reason, Silence::TooFewCandidates | Silence::DrawIncomplete);
        // Itself is no candidate for its own draw.
        if !waits || self.too_small || members > floor {
            return;
        }
        self.too_small = true;
        let whose = if own > policy {
            "the floors.minimum_group of this meter's configuration"
        } else {
            "the net's smallest group"
        };
        tracing::warn!(
            "the net has {members} member{} now; this meter waits until it has {}, because {whose} \
             is {floor} besides itself: a sum over fewer would hide too little",
            if members == 1 { "" } else { "s" },
            floor.saturating_add(1)
        );
    }

    fn refused(&mut self, topic: &Topic, reason: &str) {
        let sender = sender(topic);
        let key = (sender, reason.to_owned());
        if self.refusals.len() >= REFUSALS || self.refusals.contains(&key) {
            return;
        }
        tracing::warn!(
            "refused what came from {} on {topic}: {reason}; more of it is only counted",
            key.0
        );
        self.refusals.insert(key);
        if self.refusals.len() == REFUSALS {
            tracing::warn!("{REFUSALS} kinds of refusal were told; further ones are only counted");
        }
    }
}

/// A handshake comes from the neighbour, everything else from the provider.
fn sender(topic: &Topic) -> String {
    match topic {
        Topic::InboxPair { peer, .. } => format!("meter {peer}"),
        _ => "the provider".to_owned(),
    }
}

/// What every meter goes through between its enrolment and its first round.
fn is_usual_before_taking_part(reason: Silence) -> bool {
    matches!(
        reason,
        Silence::NotMember
            | Silence::CheckpointNotReached
            | Silence::DrawIncomplete
            | Silence::Leaving
            | Silence::TooFewCandidates
            | Silence::TooFewNeighbours
    )
}

fn write_alarm(alarm: &Alarm) {
    match alarm {
        Alarm::ClockJump { .. } => {
            tracing::warn!(
                "alarm: {alarm}; if the clock is right, say so: meter-agent confirm-clock"
            );
        }
        Alarm::DrawAbandoned
        | Alarm::Equivocation { .. }
        | Alarm::Disrupted { .. }
        | Alarm::Handshake { .. } => tracing::warn!("alarm: {alarm}"),
        _ => tracing::error!("alarm: {alarm}"),
    }
}
