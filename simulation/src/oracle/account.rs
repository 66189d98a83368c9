//! What honest meters said, as equations: the input of the elimination.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dcnet::time::Round;

use super::elimination::Form;
use super::field::{Element, MODULUS};

/// A number for something that is named by bytes: equal bytes are one unknown, so a value
/// that is used twice shows, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(u64);

/// The energy of one interval of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadingOf {
    /// Which interval, by the round of a net or of several nets over one register.
    pub interval: u64,
    /// The channel of the register.
    pub channel: usize,
    /// The meter.
    pub meter: usize,
}

/// What the adversary does not know. The order is the order of elimination: what is left
/// at the end are functions of readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unknown {
    /// A component of a self-mask.
    SelfMask(Name),
    /// A component of a pad of an edge.
    Pad(Name),
    /// The blinding ρ of a reading.
    Blinding(Name),
    /// The value m of a reading.
    Reading(ReadingOf),
}

impl Unknown {
    /// Smaller than every blinding and reading, greater than every self-mask and pad.
    pub const FIRST_BLINDING: Self = Self::Blinding(Name(0));
    /// Smaller than every reading, greater than everything else.
    pub const FIRST_READING: Self = Self::Reading(ReadingOf {
        interval: 0,
        channel: 0,
        meter: 0,
    });
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One component of one channel of a submission.
    Superposition,
    /// One component of one channel of a reveal.
    Reveal,
    /// The reading commitment of one channel, whose discrete logarithm is known.
    Commitment,
}

/// One equation: the value of this form is known.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Who said it.
    pub meter: usize,
    /// In which round.
    pub round: Round,
    /// What it is.
    pub kind: Kind,
    /// The form.
    pub form: Form<Unknown>,
}

/// A meter accepted a roster and answered it.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The meter.
    pub meter: usize,
    /// The round.
    pub round: Round,
    /// The roster.
    pub roster: Name,
    /// Meters at the other ends of its full edges.
    pub full: BTreeSet<usize>,
    /// Those of them that its newest draw named.
    pub drawn_full: BTreeSet<usize>,
    /// How many members that the draw named had left or were revoked by the submission's head.
    pub departed: usize,
    /// L by the protocol: of the members that the draw named, less the departed, whatever the
    /// meter counted.
    pub required: usize,
    /// Value and blinding of the reading per channel.
    pub readings: Vec<[Form<Unknown>; 2]>,
}

/// Bytes that do not say what an honest meter's should: the rows would not be true.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unexplained {
    /// The meter.
    pub meter: usize,
    /// The round.
    pub round: Round,
    /// What does not fit.
    pub what: &'static str,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "meter {}, round {}: {}",
            self.meter, self.round, self.what
        )
    }
}

/// Everything that was said in a run, by all meters. Which of them are corrupted is
/// decided when it is judged.
#[derive(Clone, Debug)]
pub struct Account {
    names: BTreeMap<Vec<u8>, Name>,
    known_to: BTreeMap<Unknown, BTreeSet<usize>>,
    logarithm: Element,
    /// The equations.
    pub observations: Vec<Observation>,
    /// The accepted rosters.
    pub answers: Vec<Answer>,
    /// What could not be turned into equations.
    pub unexplained: Vec<Unexplained>,
    /// Meters whose disk was restored from an earlier state: they may answer twice.
    pub rolled_back: BTreeSet<usize>,
}

impl Account {
    /// An empty account. The logarithm of H to the base G, which an unbounded adversary
    /// finds, follows from `seed`.
    pub fn new(seed: u64) -> Self {
        // Any element that no sum of ±1 hits by accident.
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
        Self {
            names: BTreeMap::new(),
            known_to: BTreeMap::new(),
            logarithm: Element::new(mixed % (MODULUS / 2) + MODULUS / 4),
            observations: Vec::new(),
            answers: Vec::new(),
            unexplained: Vec::new(),
            rolled_back: BTreeSet::new(),
        }
    }

    /// The name of some bytes.
    pub fn name(&mut self, bytes: &[u8]) -> Name {
        if let Some(name) = self.names.get(bytes) {
            return *name;
        }
        // 0 is the name of nothing.
        let name = Name(self.names.len() as u64 + 1);
        self.names.insert(bytes.to_vec(), name);
        name
    }

    /// Says that meters know an unknown: it is none if one of them is corrupted.
    pub fn known(&mut self, unknown: Unknown, meters: impl IntoIterator<Item = usize>) -> Unknown {
        self.known_to.entry(unknown).or_default().extend(meters);
        unknown
    }

    /// Whether the adversary knows an unknown.
    pub fn is_known(&self, unknown: &Unknown, corrupted: &BTreeSet<usize>) -> bool {
        let holders = self.known_to.get(unknown);
        holders.is_some_and(|holders| !holders.is_disjoint(corrupted))
    }

    /// What an unbounded adversary sees of a commitment: `value + blinding·log_G H`.
    pub fn commitment(&self, [value, blinding]: &[Form<Unknown>; 2]) -> Form<Unknown> {
        let mut form = value.clone();
        form.combine(blinding, self.logarithm);
        form
    }

    /// Adds an equation.
    pub fn observe(&mut self, meter: usize, round: Round, kind: Kind, form: Form<Unknown>) {
        self.observations.push(Observation {
            meter,
            round,
            kind,
            form,
        });
    }

    /// Adds what could not be explained.
    pub fn unexplained(&mut self, meter: usize, round: Round, what: &'static str) {
        let fault = Unexplained { meter, round, what };
        if !self.unexplained.contains(&fault) {
            self.unexplained.push(fault);
        }
    }

    /// The most dangerous meters removed from a set until the assumption holds: for every
    /// answer of an honest meter fewer corrupted full drawn edges than L.
    #[must_use]
    pub fn within_assumption(&self, mut corrupted: BTreeSet<usize>) -> BTreeSet<usize> {
        loop {
            let broken = self.answers.iter().find_map(|answer| {
                let bad: Vec<usize> = answer
                    .drawn_full
                    .intersection(&corrupted)
                    .copied()
                    .collect();
                let honest = !corrupted.contains(&answer.meter);
                (honest && bad.len() >= answer.required).then(|| bad.first().copied())?
            });
            match broken {
                Some(meter) => corrupted.remove(&meter),
                None => return corrupted,
            };
        }
    }
}
