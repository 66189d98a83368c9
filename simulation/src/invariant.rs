//! What must hold in every run, and the report of what was checked.

use std::collections::BTreeMap;
use std::fmt;

use crate::plan::Clock;

/// Something that must hold whatever goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// An aggregate is the true sum of what its roster lists.
    Truth,
    /// A round has at most one aggregate.
    OneAggregate,
    /// The honest provider signs at most one roster per round.
    OneRoster,
    /// Nobody is in a sum, or reveals for one, of fewer meters than its minimum group.
    Group,
    /// A submitted commitment opens to what the register counted in that round.
    Reading,
    /// A meter has one submission per round, as long as its disk keeps what it stored.
    OneSubmission,
    /// No time of a register is in two submissions, as long as the disk keeps what it stored.
    OneInterval,
    /// What hides a reading is never used again, even if the disk forgets.
    FreshMasks,
    /// A meter answers one roster per round, as long as its disk keeps what it stored.
    OneReveal,
    /// A reveal answers a roster that states the meter's own submission and leaves it L full
    /// drawn edges.
    RevealChecked,
    /// What a message must not get ahead of is stored before it leaves.
    Durable,
    /// No more energy is submitted, and summed up, than the registers counted.
    Conserved,
    /// Nobody is accused of what nobody did, and a lie that is seen is named.
    Alarms,
    /// Once all faults are over, who was marked as lapsed is a candidate again by its own draw.
    Return,
    /// Once all faults are over, rounds are complete with everybody who can take part.
    Liveness,
    /// No process panics, runs forever or cannot start from its own state.
    Survival,
}

impl Invariant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Truth,
        Self::OneAggregate,
        Self::OneRoster,
        Self::Group,
        Self::Reading,
        Self::OneSubmission,
        Self::OneInterval,
        Self::FreshMasks,
        Self::OneReveal,
        Self::RevealChecked,
        Self::Durable,
        Self::Conserved,
        Self::Alarms,
        Self::Return,
        Self::Liveness,
        Self::Survival,
    ];
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truth => "aggregate is the true sum over its roster",
            Self::OneAggregate => "at most one aggregate per round",
            Self::OneRoster => "at most one roster per round",
            Self::Group => "included meters reach the minimum group",
            Self::Reading => "commitment opens to what the register counted",
            Self::OneSubmission => "one submission per meter and round",
            Self::OneInterval => "no time of a register submitted twice",
            Self::FreshMasks => "no pads and masks used for two submissions",
            Self::OneReveal => "one roster answered per meter and round",
            Self::RevealChecked => "own submission and L full edges before a reveal",
            Self::Durable => "stored before it is sent",
            Self::Conserved => "no more energy than the registers counted",
            Self::Alarms => "alarms exactly where something was done",
            Self::Return => "who has lapsed comes back by its own draw",
            Self::Liveness => "a quiet net completes its rounds with everybody",
            Self::Survival => "no panic, no endless loop, own state readable",
        })
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When it was seen, in milliseconds since the net began.
    pub time: u64,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Clock(self.time);
        write!(f, "{time} VIOLATED: {}: {}", self.invariant, self.what)
    }
}

/// What was checked, and what did not hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How often each invariant was checked.
    pub checks: BTreeMap<Invariant, u64>,
    /// What did not hold, in order.
    pub violations: Vec<Violation>,
}

impl Report {
    /// Notes one check.
    pub fn check(
        &mut self,
        invariant: Invariant,
        time: u64,
        holds: bool,
        what: impl FnOnce() -> String,
    ) {
        *self.checks.entry(invariant).or_default() += 1;
        if !holds {
            let what = what();
            self.violations.push(Violation {
                invariant,
                time,
                what,
            });
        }
    }
}
