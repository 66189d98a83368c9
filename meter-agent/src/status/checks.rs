//! What a meter checks before it speaks, in words for the household
//! (`docs/protocol.md`, "What a meter checks").

use dcnet::alarm::Silence;
use serde::Serialize;

/// What is checked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Before a superposition leaves the house.
    Submission,
    /// Before a roster is answered.
    Reveal,
}

/// What became of a check, or of a step of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    /// Not decided.
    #[default]
    Open,
    /// It held.
    Passed,
    /// It did not hold: the meter stayed silent.
    Failed,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckView {
    /// What it comes before.
    pub before: Stage,
    /// What must hold.
    pub rule: &'static str,
    /// What became of it.
    pub state: CheckState,
}

struct Check {
    before: Stage,
    rule: &'static str,
    reasons: &'static [Silence],
}

const CHECKS: [Check; 15] = [
    Check {
        before: Stage::Submission,
        rule: "No alarm has stopped this meter, and it is not leaving.",
        reasons: &[Silence::Stopped, Silence::Leaving],
    },
    Check {
        before: Stage::Submission,
        rule: "The clock is synchronised, kept in step over the interval, and made no jump that nobody confirmed.",
        reasons: &[
            Silence::ClockUnsynchronised,
            Silence::ClockOutOfStep,
            Silence::ClockUnconfirmed,
        ],
    },
    Check {
        before: Stage::Submission,
        rule: "Nothing of this interval was ever submitted before.",
        reasons: &[Silence::AlreadySubmitted],
    },
    Check {
        before: Stage::Submission,
        rule: "The round still takes submissions.",
        reasons: &[Silence::WindowOver],
    },
    Check {
        before: Stage::Submission,
        rule: "This meter is a member, in the very log that the gateway administrator vouched for.",
        reasons: &[Silence::NotMember, Silence::CheckpointNotReached],
    },
    Check {
        before: Stage::Submission,
        rule: "Its neighbours were drawn by lot from enough meters.",
        reasons: &[Silence::DrawIncomplete, Silence::TooFewCandidates],
    },
    Check {
        before: Stage::Submission,
        rule: "It shares today's secrets with enough of them.",
        reasons: &[Silence::TooFewNeighbours],
    },
    Check {
        before: Stage::Reveal,
        rule: "The provider's roster is for a round that is not closed, and its keys still exist.",
        reasons: &[Silence::Closed, Silence::KeysErased],
    },
    Check {
        before: Stage::Reveal,
        rule: "No other roster of this round was answered.",
        reasons: &[Silence::SecondRoster],
    },
    Check {
        before: Stage::Reveal,
        rule: "The roster builds on the log that the submission named.",
        reasons: &[Silence::HeadNotDescendant],
    },
    Check {
        before: Stage::Reveal,
        rule: "It states what this meter submitted, bit for bit.",
        reasons: &[Silence::WrongDigest],
    },
    Check {
        before: Stage::Reveal,
        rule: "It says nothing false about the secrets that this meter used.",
        reasons: &[Silence::HalfOpenClaim],
    },
    Check {
        before: Stage::Reveal,
        rule: "The sum contains enough meters.",
        reasons: &[Silence::GroupTooSmall],
    },
    Check {
        before: Stage::Reveal,
        rule: "Few of the meters seen lately are missing from it.",
        reasons: &[Silence::PresenceTooLow],
    },
    Check {
        before: Stage::Reveal,
        rule: "Enough of the neighbours drawn by lot are in it, with the secrets that hide this meter.",
        reasons: &[Silence::TooFewFullEdges],
    },
];

/// Why a meter was silent, in words for the household.
pub(super) fn words(reason: Silence) -> &'static str {
    match reason {
        Silence::Stopped => "an alarm has stopped this meter",
        Silence::ClockUnsynchronised => "the clock is not synchronised",
        Silence::ClockOutOfStep => "the clock did not run evenly over the interval",
        Silence::ClockUnconfirmed => "a jump of the clock is not confirmed",
        Silence::Leaving => "this meter leaves the group, or has left it",
        Silence::AlreadySubmitted => "this time was submitted before",
        Silence::WindowOver => "it was too late for this round",
        Silence::CheckpointNotReached => {
            "the list of members is not complete up to where the gateway administrator saw it"
        }
        Silence::NotMember => "this meter was no member of the group yet",
        Silence::DrawIncomplete => "the neighbours of this meter were not drawn yet",
        Silence::TooFewCandidates => "there were too few meters to draw neighbours from",
        Silence::TooFewNeighbours => "too few neighbours shared a secret with this meter",
        Silence::Closed => "the round was closed",
        Silence::HeadNotDescendant => {
            "the roster builds on another list of members than the one that this meter knows"
        }
        Silence::WrongDigest => "the roster states something else than this meter has sent",
        Silence::HalfOpenClaim => {
            "the roster says something false about the secrets that this meter used"
        }
        Silence::GroupTooSmall => "too few meters were in the sum",
        Silence::PresenceTooLow => "too many of the meters seen lately were missing",
        Silence::TooFewFullEdges => "too few of this meter's neighbours were in the sum",
        Silence::SecondRoster => "there was another roster for this round",
        Silence::KeysErased => "the keys of that day are erased",
    }
}

/// All checks, for a round whose steps became this; `reason` is why it was silent.
pub(super) fn views(
    submission: CheckState,
    reveal: CheckState,
    reason: Option<Silence>,
) -> Vec<CheckView> {
    let state = |check: &Check| {
        let step = match check.before {
            Stage::Submission => submission,
            Stage::Reveal => reveal,
        };
        match (step, reason) {
            (CheckState::Failed, Some(reason)) if check.reasons.contains(&reason) => {
                CheckState::Failed
            }
            // The first that fails ends it; which ones were looked at before is not told.
            (CheckState::Failed, _) => CheckState::Open,
            (step, _) => step,
        }
    };
    let view = |check: &Check| CheckView {
        before: check.before,
        rule: check.rule,
        state: state(check),
    };
    CHECKS.iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reason; the match fails to compile when one is added.
    fn all() -> Vec<Silence> {
        use Silence::*;
        let all = vec![
            Stopped,
            ClockUnsynchronised,
            ClockOutOfStep,
            ClockUnconfirmed,
            Leaving,
            AlreadySubmitted,
            WindowOver,
            CheckpointNotReached,
            NotMember,
            DrawIncomplete,
            TooFewCandidates,
            TooFewNeighbours,
            Closed,
            HeadNotDescendant,
            WrongDigest,
            HalfOpenClaim,
            GroupTooSmall,
            PresenceTooLow,
            TooFewFullEdges,
            SecondRoster,
            KeysErased,
        ];
        for reason in &all {
            match reason {
                Stopped | ClockUnsynchronised | ClockOutOfStep | ClockUnconfirmed | Leaving
                | AlreadySubmitted | WindowOver | CheckpointNotReached | NotMember
                | DrawIncomplete | TooFewCandidates | TooFewNeighbours | Closed
                | HeadNotDescendant | WrongDigest | HalfOpenClaim | GroupTooSmall
                | PresenceTooLow | TooFewFullEdges | SecondRoster | KeysErased => {}
            }
        }
        all
    }

    #[test]
    fn every_reason_for_silence_belongs_to_exactly_one_check() {
        for reason in all() {
            let of = CHECKS
                .iter()
                .filter(|check| check.reasons.contains(&reason));
            assert_eq!(of.count(), 1, "{reason:?}");
        }
    }

    #[test]
    fn only_the_check_that_failed_is_told_as_failed_and_a_finished_step_passed_all_of_its_own() {
        let views = views(
            CheckState::Passed,
            CheckState::Failed,
            Some(Silence::GroupTooSmall),
        );
        for view in views {
            let expected = match view.before {
                Stage::Submission => CheckState::Passed,
                Stage::Reveal if view.rule.contains("contains enough") => CheckState::Failed,
                Stage::Reveal => CheckState::Open,
            };
            assert_eq!(view.state, expected, "{}", view.rule);
        }
    }
}
