//! What an alarm means for the household, and what it can do.

use dcnet::alarm::{Alarm, Loss};
use dcnet::time::Timestamp;
use serde::{Deserialize, Serialize};

/// An alarm, explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmView {
    /// When it was raised, by the agent's clock: milliseconds since 1970.
    pub utc_ms: u64,
    /// What happened, and who did it.
    pub text: String,
    /// What it means, and what to do.
    pub advice: String,
    /// Whether it has stopped the meter for good.
    pub is_final: bool,
}

impl AlarmView {
    /// An alarm that was raised at a moment.
    pub(super) fn of(alarm: &Alarm, at: Timestamp) -> Self {
        Self {
            utc_ms: at.as_millis(),
            text: alarm.to_string(),
            advice: advice(alarm).to_owned(),
            is_final: is_final(alarm),
        }
    }
}

/// Whether a meter that raises it takes part no more, also after a restart.
fn is_final(alarm: &Alarm) -> bool {
    matches!(
        alarm,
        Alarm::LogFork { .. }
            | Alarm::Checkpoint { .. }
            | Alarm::Exclusions { .. }
            | Alarm::KeyUsedElsewhere
            | Alarm::Revoked
    )
}

/// What an alarm means for the household, and what to do.
fn advice(alarm: &Alarm) -> &'static str {
    match alarm {
        Alarm::LogFork { .. } => {
            "The provider shows different meters different lists of members, which could single \
             out a household. Your meter has stopped for good and nothing more leaves the house. \
             Tell the gateway administrator; only a new enrolment lets it take part again."
        }
        Alarm::Checkpoint { .. } => {
            "The provider's list of members is not the one that the gateway administrator \
             vouched for. Your meter has stopped for good. Tell the gateway administrator."
        }
        Alarm::BadEntry(_) => {
            "The entry was refused and nothing of yours was revealed. As long as it stands in \
             the log, your meter cannot follow it. Tell the gateway administrator and the \
             provider."
        }
        Alarm::Floor { .. } => {
            "The net promises less protection than you insist on, or draws fewer neighbours than \
             you ask for, so your meter takes no part. Ask the provider for a net that fits, or \
             lower the floor in the configuration after reading what it protects you from."
        }
        Alarm::SecondRoster { .. } => {
            "Two rosters for one round, answered both, would show your reading as their \
             difference. Your meter answered at most one, so nothing was learnt. Tell the \
             provider; if it happens again, leave the net."
        }
        Alarm::FalseRoster { .. } => {
            "Your meter did not answer, so nothing was learnt. Tell the provider; if it happens \
             again, leave the net."
        }
        Alarm::Exclusions { .. } => {
            "Sums with gaps that somebody chooses could be used to work out your readings over \
             weeks. Your meter has stopped for good. Check that its connection is reliable, \
             and tell the gateway administrator."
        }
        Alarm::RegisterWentBack { .. } => {
            "A register only ever counts up. Check the meter and the state directory; if it was \
             restored from a backup, set the reading again."
        }
        Alarm::ReadingTooLarge { .. } => {
            "No household uses so much within one interval. Check in the configuration what a \
             pulse is worth, and the last reading that was set."
        }
        Alarm::ClockJump { .. } => {
            "Nothing is submitted until somebody confirms that the clock is right: check the \
             time that the page shows, then press “The clock is right”, or give the command \
             `meter-agent confirm-clock`."
        }
        Alarm::Emergency { .. } => {
            "Too many of the neighbours that hide your readings have left. Your meter waits and \
             asks for new ones by itself; nothing is to be done."
        }
        Alarm::FalseLapse { .. } => {
            "A member that was there was marked as gone. Your meter goes on counting it, so \
             your protection is the same. Tell the provider."
        }
        Alarm::StateLost(Loss::State) => {
            "Your meter's keys were lost, probably with a disk or a backup. It leaves and joins \
             anew by itself; set the reading if the register was lost, too."
        }
        Alarm::StateLost(Loss::Keys { .. }) => {
            "Either your meter lost secrets that it shares with its neighbours, with a disk or a \
             backup, or they or the provider do not answer. Nothing of yours was revealed. It \
             leaves and joins anew by itself, and so gets new neighbours; if it happens again, \
             tell the provider."
        }
        Alarm::StateLost(Loss::Age) => {
            "Secrets are renewed every day, and after more than 400 days yours fit no neighbour's \
             any more. Your meter leaves and joins anew by itself; nothing is to be done."
        }
        Alarm::KeyUsedElsewhere => {
            "Somebody else has the private key of this meter, or a copy of its disk was in use. \
             Your meter has stopped for good. Enrol it again with a new key."
        }
        Alarm::Revoked => {
            "The gateway administrator has barred this device, for example because it was \
             reported lost. Your meter has stopped for good. Ask there."
        }
        Alarm::DrawAbandoned => {
            "Your meter cannot take part until its neighbours are drawn. It keeps asking. Tell \
             the provider if it lasts."
        }
        Alarm::Equivocation { .. } => {
            "That meter is broken or dishonest. What it said second was refused, and your \
             readings are as safe as before."
        }
        Alarm::Disrupted { .. } => {
            "Somebody in the group sent nonsense, so this round has no sum. Nothing of yours \
             was learnt; the next round is a new one."
        }
        Alarm::Handshake { .. } => {
            "The message was refused: a secret that both already share stays in use, and without \
             one your meter waits for a right message. Nothing is to be done: if too few \
             neighbours share a secret with it for a day, it leaves and joins anew by itself. \
             If it concerns many neighbours, tell the provider."
        }
    }
}
