//! The rules of a net, fixed in its Genesis: a change is a new net.

use ciborium::Value;

use super::MAX_MEMBERS;
use crate::cbor::{self, Fields};
use crate::frame::FrameError;
use crate::time::Period;

/// The rules of a net, fixed in its Genesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Length of a round.
    pub period: Period,
    /// How long after the end of a round submissions are taken, in milliseconds.
    pub window_ms: u32,
    /// Fewest included meters of a roster, and fewest candidates of a draw; at least 3.
    pub minimum_group: u32,
    /// Fewest full drawn edges of a meter in a roster; at least 3, and no more than are drawn.
    pub minimum_neighbours: u32,
    /// Neighbours that a draw draws.
    pub degree: u32,
}

/// Default number of drawn neighbours: with 10 % corrupted meters the chance that
/// 60 % of 48 drawn neighbours are corrupted is below 2⁻⁴⁰ for a whole net.
pub const DEFAULT_DEGREE: u32 = 48;

/// The hard floor of neighbours and of the group: the thesis's rule of three.
pub const HARD_FLOOR: u32 = 3;

impl Policy {
    /// Checks the bounds of every rule.
    ///
    /// # Errors
    /// The name of the field that is out of bounds.
    pub fn check(&self) -> Result<(), &'static str> {
        let members = u32::try_from(MAX_MEMBERS).unwrap_or(u32::MAX);
        let period_ms = self.period.as_secs().saturating_mul(1000);
        if !(100..=period_ms).contains(&self.window_ms) {
            Err("window")
        } else if !(HARD_FLOOR..=members).contains(&self.minimum_group) {
            Err("minimum group")
        } else if !(HARD_FLOOR..=1024).contains(&self.degree) {
            Err("degree")
        } else if !(HARD_FLOOR..=self.degree).contains(&self.minimum_neighbours) {
            Err("minimum neighbours")
        } else {
            Ok(())
        }
    }
}

/// The rules as they stand in a Genesis.
pub(super) fn write(policy: &Policy) -> Value {
    cbor::array([
        cbor::uint(policy.period.as_secs()),
        cbor::uint(policy.window_ms),
        cbor::uint(policy.minimum_group),
        cbor::uint(policy.minimum_neighbours),
        cbor::uint(policy.degree),
    ])
}

pub(super) fn read(item: Value) -> Result<Policy, FrameError> {
    let mut fields = Fields::of(item, "policy")?;
    let period = Period::from_secs(fields.u32("period")?).ok_or(FrameError::Bound("period"))?;
    let policy = Policy {
        period,
        window_ms: fields.u32("window")?,
        minimum_group: fields.u32("minimum group")?,
        minimum_neighbours: fields.u32("minimum neighbours")?,
        degree: fields.u32("degree")?,
    };
    fields.end()?;
    policy.check().map_err(FrameError::Bound)?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_full_edges_are_asked_for_than_are_drawn() {
        let policy = |minimum_neighbours, degree| Policy {
            period: Period::from_secs(60).unwrap(),
            window_ms: 1000,
            minimum_group: 3,
            minimum_neighbours,
            degree,
        };
        assert_eq!(policy(6, 6).check(), Ok(()));
        assert_eq!(policy(7, 6).check(), Err("minimum neighbours"));
        assert_eq!(policy(3, 2).check(), Err("degree"));
        assert_eq!(policy(1024, 1025).check(), Err("degree"));
    }
}
