//! The rules of a demonstration's net: as strict as its size allows.

use std::time::Duration;

use dcnet::membership::{DEFAULT_DEGREE, HARD_FLOOR, Policy};
use dcnet::time::Period;
use meter_agent::config::Floors;

/// Share of the members that the smallest group has, in percent; also the least
/// presence that meters insist on.
pub const PRESENCE_PERCENT: u8 = 80;

/// Exclusions that a meter puts up with per day: with seconds for a round, a slow
/// machine leaves out in an hour what a month of quarter hours would.
pub const EXCLUSIONS_PER_DAY: u32 = 10_000;

/// Share of the period after its end during which submissions are taken, in percent.
const WINDOW_PERCENT: u32 = 44;

/// Longest window: more is of no use on one machine.
const LONGEST_WINDOW_MS: u32 = 10_000;

/// The smallest group of a net of `meters`.
pub fn minimum_group(meters: u32) -> u32 {
    let share = meters.saturating_mul(u32::from(PRESENCE_PERCENT));
    share.div_ceil(100).max(HARD_FLOOR + 1)
}

/// The rules of the net.
pub fn net(meters: u32, period: Period) -> Policy {
    let window = period.as_secs().saturating_mul(1000) / 100 * WINDOW_PERCENT;
    Policy {
        period,
        window_ms: window.min(LONGEST_WINDOW_MS),
        minimum_group: minimum_group(meters),
        minimum_neighbours: HARD_FLOOR,
        degree: DEFAULT_DEGREE,
    }
}

/// What the households insist on.
pub fn floors(meters: u32, period: Period) -> Floors {
    Floors {
        minimum_group: minimum_group(meters),
        minimum_neighbours: HARD_FLOOR,
        minimum_presence_percent: PRESENCE_PERCENT,
        minimum_period: period,
        max_exclusions_per_day: EXCLUSIONS_PER_DAY,
        max_exclusions_per_month_percent: 100,
    }
}

/// The window as a duration.
pub fn window(policy: &Policy) -> Duration {
    Duration::from_millis(u64::from(policy.window_ms))
}

/// What is lowered against the protocol's floors, one line each.
pub fn lowered(meters: u32, period: Period) -> Vec<String> {
    let own = floors(meters, period);
    let usual = dcnet::meter::Floors::default();
    let mut lines = Vec::new();
    if own.minimum_group < usual.minimum_group {
        lines.push(format!(
            "smallest group {} meters instead of {}: a sum of few hides little",
            own.minimum_group, usual.minimum_group
        ));
    }
    if period.as_secs() < usual.minimum_period {
        lines.push(format!(
            "shortest period {} s instead of {} s",
            period.as_secs(),
            usual.minimum_period
        ));
    }
    lines.push(format!(
        "a meter puts up with {} exclusions a day instead of {}",
        own.max_exclusions_per_day, usual.exclusions_per_day
    ));
    let drawn = meters.saturating_sub(1).min(DEFAULT_DEGREE);
    if drawn < DEFAULT_DEGREE {
        lines.push(format!(
            "{drawn} drawn neighbours per meter instead of {DEFAULT_DEGREE}: there are no more"
        ));
    }
    lines.push("the UTC clock is taken for synchronised, whatever the system says".to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_gives_a_valid_policy_with_enough_candidates() {
        for meters in 5..=1000 {
            for seconds in [1, 2, 10, 900, 86_400] {
                let period = Period::from_secs(seconds).unwrap();
                let policy = net(meters, period);
                assert_eq!(policy.check(), Ok(()), "{meters} meters, {seconds} s");
                assert!(policy.minimum_group < meters);
            }
        }
    }

    #[test]
    fn the_rule_of_three_holds_while_a_fifth_is_away() {
        for meters in 5..=49u32 {
            let drawn = meters - 1;
            let required = HARD_FLOOR.max((drawn * 3).div_ceil(5));
            assert!(minimum_group(meters) > required, "{meters}");
        }
    }
}
