//! Who misses which measured round.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Meter I misses measured round R.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Absence {
    /// The meter's number, from 1.
    pub meter: u32,
    /// The measured round, from 0.
    pub round: u64,
}

impl FromStr for Absence {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('@').and_then(|(meter, round)| {
            Some(Self {
                meter: meter.trim().parse().ok()?,
                round: round.trim().parse().ok()?,
            })
        });
        parsed.ok_or_else(|| format!("\"{text}\" is not I@R, such as 5@3: meter 5 misses round 3"))
    }
}

/// Consecutive rounds that a meter misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// All absences of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Absences(BTreeSet<Absence>);

impl Absences {
    /// Absences in any order; what is named twice counts once.
    pub fn new(absences: impl IntoIterator<Item = Absence>) -> Self {
        Self(absences.into_iter().collect())
    }

    /// Each of them, by meter and round.
    pub fn iter(&self) -> impl Iterator<Item = Absence> {
        self.0.iter().copied()
    }

    /// Meters that miss a round, ascending.
    pub fn in_round(&self, round: u64) -> Vec<u32> {
        let missing = self.iter().filter(|absence| absence.round == round);
        missing.map(|absence| absence.meter).collect()
    }

    /// Per meter its gaps, ascending; adjacent rounds are one gap.
    pub fn gaps(&self) -> BTreeMap<u32, Vec<Gap>> {
        let mut gaps: BTreeMap<u32, Vec<Gap>> = BTreeMap::new();
        for Absence { meter, round } in self.iter() {
            let of_meter = gaps.entry(meter).or_default();
            match of_meter.last_mut() {
                Some(gap) if gap.last.saturating_add(1) == round => gap.last = round,
                _ => of_meter.push(Gap {
                    first: round,
                    last: round,
                }),
            }
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_rounds_are_one_gap() {
        let text = "5@4,5@3,2@0,5@6,5@3";
        let absences = Absences::new(text.split(',').map(|item| item.parse().unwrap()));
        let gap = |first, last| Gap { first, last };
        assert_eq!(
            absences.gaps(),
            BTreeMap::from([(2, vec![gap(0, 0)]), (5, vec![gap(3, 4), gap(6, 6)])])
        );
        assert_eq!(absences.in_round(3), [5]);
        assert_eq!(absences.in_round(1), [0u32; 0]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "5", "@", "5@", "@3", "5@3@1", "-1@3", "five@3"] {
            assert!(text.parse::<Absence>().is_err(), "{text}");
        }
    }
}
