//! What a household or an operator must be told: alarms, and why a meter stayed silent.

use crate::aggregate::Disruption;
use crate::frame::FrameError;
use crate::identity::DeviceId;
use crate::membership::EntryError;
use crate::time::Round;

/// Something that needs a person's attention. Names who did what.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// The provider signed two different logs.
    #[error(
        "the provider signed two different membership logs (at entry {index}); this meter takes part no more"
    )]
    LogFork {
        /// Where they part.
        index: u64,
    },
    /// The provider's log contains an entry that breaks the rules.
    #[error("the provider signed a log entry that breaks a rule: {0}; this meter refuses it")]
    BadEntry(EntryError),
    /// The log is not the one the gateway administrator saw.
    #[error(
        "the provider's log does not contain the gateway administrator's checkpoint at entry {index}; this meter takes part no more"
    )]
    Checkpoint {
        /// The entry the checkpoint names.
        index: u64,
    },
    /// The policy of the net is below what this meter's owner allows.
    #[error(
        "the net's {what} of {policy} is below this meter's floor of {floor}; this meter takes no part"
    )]
    Floor {
        /// Which rule.
        what: &'static str,
        /// The net's value.
        policy: u32,
        /// The owner's floor.
        floor: u32,
    },
    /// The provider signed two rosters for one round.
    #[error(
        "the provider signed a second roster for round {round}; this meter answers at most one"
    )]
    SecondRoster {
        /// The round.
        round: Round,
    },
    /// The roster contradicts what this meter did.
    #[error(
        "the provider signed a roster of round {round} that says something false about this meter: {what}"
    )]
    FalseRoster {
        /// The round.
        round: Round,
        /// What is false.
        what: &'static str,
    },
    /// Timely submissions were left out too often.
    #[error(
        "the provider left {excluded} timely submissions of this meter out of its rosters within a day or a month; this meter takes part no more"
    )]
    Exclusions {
        /// How many.
        excluded: usize,
    },
    /// The register of a channel went back.
    #[error("the register of channel {channel} went back; no reading is taken")]
    RegisterWentBack {
        /// The channel.
        channel: usize,
    },
    /// The register of a channel counted more in one round than a reading holds.
    #[error(
        "the register of channel {channel} counted 2^40 mWh or more in one round; no reading is taken"
    )]
    ReadingTooLarge {
        /// The channel.
        channel: usize,
    },
    /// UTC jumped ahead by more than a period.
    #[error("the clock jumped ahead by {seconds} s; confirm it before this meter submits again")]
    ClockJump {
        /// By how much.
        seconds: u64,
    },
    /// So many drawn neighbours left that this meter cannot take part.
    #[error(
        "only {neighbours} of this meter's drawn neighbours are left, fewer than its floor of {required}; it takes part again after a new draw"
    )]
    Emergency {
        /// Drawn neighbours that are left.
        neighbours: u32,
        /// The floor.
        required: u32,
    },
    /// The provider marked a member as lapsed that took part lately.
    #[error("the provider marked meter {meter} as lapsed, although it took part lately")]
    FalseLapse {
        /// The member.
        meter: DeviceId,
    },
    /// This meter cannot take part with the state that it has.
    #[error("{0}; it leaves the net and joins anew")]
    StateLost(Loss),
    /// Somebody else signed with this device's key.
    #[error(
        "this meter's membership was ended by an exit that it did not sign here: its key is used elsewhere; it takes part no more, enrol it again with a new key"
    )]
    KeyUsedElsewhere,
    /// The gateway administrator revoked this meter.
    #[error("the gateway administrator revoked this meter; it takes part no more")]
    Revoked,
    /// A draw is not finished by the provider.
    #[error("the provider has left this meter's draw open for more than a day")]
    DrawAbandoned,
    /// A member signed two different frames where one is allowed.
    #[error("meter {meter} sent a second, different {what}")]
    Equivocation {
        /// The member.
        meter: DeviceId,
        /// What it sent twice.
        what: &'static str,
    },
    /// A fully revealed round has no valid sum.
    #[error("round {round} was disrupted: {disruption}")]
    Disrupted {
        /// The round.
        round: Round,
        /// How.
        disruption: Disruption,
    },
    /// A handshake failed in a way that only a faulty neighbour or provider causes.
    #[error("the handshake with meter {meter} failed: {reason}")]
    Handshake {
        /// The neighbour.
        meter: DeviceId,
        /// Why.
        reason: &'static str,
    },
}

/// What a meter lacks that only a new membership brings back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// The log has a membership or an open draw of this device that its state knows nothing of.
    #[error("the state of this meter was lost")]
    State,
    /// Handshakes with drawn neighbours were not answered for a day.
    #[error(
        "for a day only {live} of this meter's drawn neighbours have had a key with it, fewer than the {required} that it needs"
    )]
    Keys {
        /// Drawn neighbours with a key.
        live: u32,
        /// L: so many are needed.
        required: u32,
    },
    /// The secrets are from more than 400 days ago.
    #[error("this meter was away for more than 400 days, and its secrets are too old")]
    Age,
}

/// Why a meter does not submit or reveal in a round. Each is a rule of
/// `docs/protocol.md`, "What a meter checks".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Silence {
    /// An earlier alarm stopped this meter.
    #[error("an alarm stopped this meter")]
    Stopped,
    /// The clock is not synchronised.
    #[error("the clock is not synchronised")]
    ClockUnsynchronised,
    /// UTC and the monotonic clock disagree by more than 2 % over the interval.
    #[error("the clock was not in step with the monotonic clock over the interval")]
    ClockOutOfStep,
    /// A jump of the clock is not confirmed.
    #[error("a jump of the clock is not confirmed")]
    ClockUnconfirmed,
    /// The meter leaves the net, or has left it.
    #[error("the meter leaves the net, or has left it")]
    Leaving,
    /// The interval starts before the end of one already submitted.
    #[error("the register's time was submitted already")]
    AlreadySubmitted,
    /// The round's window is over.
    #[error("the window of the round is over")]
    WindowOver,
    /// The log has not reached the administrator's checkpoint, or the provider that this
    /// meter was enrolled with.
    #[error("the log has not reached the gateway administrator's checkpoint")]
    CheckpointNotReached,
    /// The meter is not a member yet.
    #[error("not a member yet")]
    NotMember,
    /// There is no complete draw, or a newer one is under way.
    #[error("the newest draw is not complete")]
    DrawIncomplete,
    /// The newest draw had fewer candidates than the minimum group.
    #[error("the newest draw had too few candidates")]
    TooFewCandidates,
    /// Fewer drawn neighbours with a key than L.
    #[error("too few handshakes with drawn neighbours are done")]
    TooFewNeighbours,
    /// The round is closed by this meter's clock.
    #[error("the round is closed")]
    Closed,
    /// The roster's log head does not descend from the one in the submission.
    #[error("the roster's log head does not descend from the submission's")]
    HeadNotDescendant,
    /// The roster does not state this meter's submission.
    #[error("the roster states another submission of this meter")]
    WrongDigest,
    /// A half-open claim contradicts what this meter used.
    #[error("the roster contradicts which pads this meter used")]
    HalfOpenClaim,
    /// Fewer included meters than the minimum group.
    #[error("too few meters are included")]
    GroupTooSmall,
    /// Fewer included meters than the share of those lately seen.
    #[error("too many of the lately seen meters are missing")]
    PresenceTooLow,
    /// Fewer full drawn edges than L.
    #[error("too few full drawn edges")]
    TooFewFullEdges,
    /// Another roster was accepted or refused for the round.
    #[error("another roster was seen for the round")]
    SecondRoster,
    /// Keys of the round's day are erased.
    #[error("the keys of the round's day are erased")]
    KeysErased,
}

/// Input that was refused and counted; never fatal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A frame was refused.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A log entry, registration, draw request or opened draw was refused.
    #[error("{0}")]
    Entry(#[from] EntryError),
    /// It came on a topic where it does not belong.
    #[error("it came on a topic where it does not belong")]
    Topic,
    /// No such edge is in the key graph, or it is not for this meter.
    #[error("no such edge")]
    Edge,
    /// It is for a round that is over, too far ahead, or unknown.
    #[error("it is for no current round")]
    Round,
    /// A value breaks a rule.
    #[error("{0}")]
    Rule(&'static str),
    /// The sender is on the revocation list.
    #[error("the sender is revoked")]
    Revoked,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_provider_did_is_said_of_the_provider() {
        let round = Round(7);
        for alarm in [
            Alarm::LogFork { index: 3 },
            Alarm::BadEntry(EntryError::Rule("a second Genesis")),
            Alarm::SecondRoster { round },
            Alarm::FalseRoster {
                round,
                what: "which pads it used",
            },
            Alarm::Exclusions { excluded: 6 },
            Alarm::DrawAbandoned,
        ] {
            let text = alarm.to_string();
            assert!(text.starts_with("the provider "), "{text}");
        }
    }
}
