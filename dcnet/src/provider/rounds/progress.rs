//! How far the rounds are, in numbers that tell nothing of any reading.

use std::collections::BTreeMap;

use super::{ProviderRound, Taken, common, place, users_of};
use crate::graph::MemberIndex;
use crate::provider::Provider;
use crate::time::Round;

/// How far a round is that is neither final nor lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It takes submissions.
    Submissions {
        /// Meters that have submitted.
        submitted: usize,
    },
    /// Its roster waits for reveals.
    Reveals {
        /// Meters on the roster.
        included: usize,
        /// Those of them that have revealed.
        revealed: usize,
        /// Full drawn edges of the included meters; `None` if another run of the provider
        /// issued the roster.
        full_edges: Option<FullEdges>,
    },
}

/// The full drawn edges of the meters on a roster: neighbours that a meter drew, and whose
/// pads both ends used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullEdges {
    /// Of the meter that has the fewest.
    pub minimum: usize,
    /// Of the meter in the middle; the lower one if there are two.
    pub median: usize,
}

impl FullEdges {
    /// Those between included submissions; `None` if there are none.
    pub(super) fn of(included: &BTreeMap<MemberIndex, Taken>) -> Option<Self> {
        let users = users_of(included);
        let full = |(member, own): (&MemberIndex, &Taken)| {
            let back = users.get(place(*member)).map_or(&[][..], Vec::as_slice);
            common(&own.drawn_used, back).count()
        };
        let mut numbers: Vec<usize> = included.iter().map(full).collect();
        numbers.sort_unstable();
        Some(Self {
            minimum: *numbers.first()?,
            median: *numbers.get(numbers.len().saturating_sub(1) / 2)?,
        })
    }
}

impl Provider {
    /// How far each round is that is neither final nor lost, oldest first.
    pub fn progress(&self) -> impl Iterator<Item = (Round, Progress)> + '_ {
        self.rounds.iter().map(|(round, state)| {
            let progress = match state {
                ProviderRound::Open(taken) => Progress::Submissions {
                    submitted: taken.len(),
                },
                ProviderRound::Issued(issued) => {
                    let included = issued.roster.included.count();
                    Progress::Reveals {
                        included,
                        revealed: included.saturating_sub(issued.missing.len()),
                        full_edges: issued.full_edges,
                    }
                }
            };
            (*round, progress)
        })
    }
}
