//! Makes a failing plan as small as possible.

use crate::plan::Plan;

/// Runs of a plan that shrinking may cost at most.
const TRIES: usize = 300;

/// The smallest plan found that still fails: faults are left out, many at once and one by
/// one, then meters and rounds are halved.
pub fn shrink(plan: &Plan, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut best = plan.clone();
    let mut tries = TRIES;
    let mut still_fails = |plan: &Plan| {
        tries = tries.saturating_sub(1);
        tries > 0 && fails(plan)
    };
    loop {
        let before = best.clone();
        let mut size = best.faults.len().next_power_of_two();
        while size > 0 {
            let mut from = 0;
            while from < best.faults.len() {
                let to = (from + size).min(best.faults.len());
                let smaller = best.without(from..to);
                if still_fails(&smaller) {
                    best = smaller;
                } else {
                    from = to;
                }
            }
            size /= 2;
        }
        for meters in [best.meters / 2, best.meters - 1] {
            if (5..best.meters).contains(&meters) {
                let smaller = best.with_meters(meters);
                if still_fails(&smaller) {
                    best = smaller;
                    break;
                }
            }
        }
        for rounds in [best.rounds / 2, best.rounds - 1] {
            if (1..best.rounds).contains(&rounds) {
                let smaller = best.with_rounds(rounds);
                if still_fails(&smaller) {
                    best = smaller;
                    break;
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::plan::Sizes;

    #[test]
    fn what_does_not_matter_falls_away() {
        let hostile = Sizes {
            hostile: true,
            ..Sizes::default()
        };
        let plans = (0..).map(|seed| Plan::new(seed, hostile));
        let is_crash = |fault: &Fault| matches!(fault, Fault::Crash { process: None, .. });
        let crashes = |plan: &Plan| plan.faults.iter().any(|i| is_crash(&i.fault));
        let mut plans = plans.filter(|plan| crashes(plan) && plan.faults.len() > 5);
        let small = shrink(&plans.next().unwrap(), crashes);
        assert_eq!(small.faults.len(), 1);
        assert_eq!((small.meters, small.rounds > 0), (5, true));
        assert!(crashes(&small));
    }

    #[test]
    fn a_plan_in_which_everything_matters_stays_as_it_is() {
        let plan = Plan::new(3, Sizes::default());
        assert_eq!(shrink(&plan, |smaller| *smaller == plan), plan);
    }
}
