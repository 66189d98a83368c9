//! The judgement: which functions of readings the equations determine, and whether they
//! are sums over the rosters that meters accepted and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dcnet::time::Round;

use super::account::{Account, Answer, Kind, Name, ReadingOf, Unexplained, Unknown};
use super::elimination::{Form, Space};
use super::field::Element;

/// The sum over honest meters that are connected by full edges of one accepted roster.
#[derive(Clone, Debug)]
pub struct Sum {
    /// The round.
    pub round: Round,
    /// The roster.
    pub roster: Name,
    /// The channel.
    pub channel: usize,
    /// The honest meters.
    pub meters: BTreeSet<usize>,
    /// Fewest meters that it may have: `L − C + 1` of the best protected one, never below 2.
    pub bound: usize,
    value: Form<Unknown>,
    blinding: Form<Unknown>,
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (round, channel, meters) = (self.round, self.channel, list(&self.meters));
        write!(
            f,
            "the sum of round {round}, channel {channel}, over {meters}"
        )
    }
}

/// A breach of the claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Readings of one household alone follow.
    Alone {
        /// The meter.
        meter: usize,
        /// The function.
        function: String,
    },
    /// A function of readings that is no combination of sums over accepted rosters.
    Beyond {
        /// The function.
        function: String,
    },
    /// A sum over fewer meters than `L − C + 1`.
    TooSmall {
        /// The round.
        round: Round,
        /// Who is in it.
        meters: BTreeSet<usize>,
        /// How many it should have at least.
        bound: usize,
    },
    /// One reading is in two sums, so their difference follows too.
    TwoSums {
        /// The reading.
        reading: ReadingOf,
    },
    /// A meter answered two rosters of one round, or one roster for two submissions.
    TwoAnswers {
        /// The meter.
        meter: usize,
        /// The round.
        round: Round,
    },
    /// A sum over an accepted roster does not follow: the oracle misunderstands the run.
    Missing {
        /// The function.
        function: String,
    },
    /// Bytes on the wire are not what an honest meter's should be.
    Unexplained(Unexplained),
}

impl Finding {
    /// Whether readings are exposed, as opposed to a rule that is broken without harm.
    pub fn is_leak(&self) -> bool {
        matches!(
            self,
            Self::Alone { .. } | Self::Beyond { .. } | Self::TooSmall { .. } | Self::TwoSums { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone { meter, function } => {
                write!(f, "meter {meter} stands alone: {function}")
            }
            Self::Beyond { function } => write!(f, "no sum over an accepted roster: {function}"),
            Self::TooSmall {
                round,
                meters,
                bound,
            } => write!(
                f,
                "the sum over {} of round {round} should be over at least {bound} honest meters",
                list(meters)
            ),
            Self::TwoSums { reading } => write!(
                f,
                "the reading of meter {} in interval {} is in two sums",
                reading.meter, reading.interval
            ),
            Self::TwoAnswers { meter, round } => {
                write!(f, "meter {meter} gave two answers in round {round}")
            }
            Self::Missing { function } => write!(f, "should follow but does not: {function}"),
            Self::Unexplained(what) => write!(f, "unexplained: {what}"),
        }
    }
}

/// What was checked, and what was found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Corrupted meters.
    pub corrupted: BTreeSet<usize>,
    /// Honest meters that said something.
    pub honest: BTreeSet<usize>,
    /// Equations of honest meters by kind, all channels and both components.
    pub observations: BTreeMap<Kind, usize>,
    /// First and last round.
    pub rounds: Option<(Round, Round)>,
    /// The sums over accepted rosters that can be computed.
    pub sums: Vec<Sum>,
    /// Dimension of the space of functions of readings that the equations determine.
    pub learnt: usize,
    /// Breaches; empty if the claim holds.
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Whether some reading is exposed.
    pub fn leaks(&self) -> bool {
        self.findings.iter().any(Finding::is_leak)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |kind| self.observations.get(&kind).copied().unwrap_or(0);
        write!(
            f,
            "From {} superpositions, {} reveals and {} commitments of {} honest meters",
            // Two components each.
            count(Kind::Superposition) / 2,
            count(Kind::Reveal) / 2,
            count(Kind::Commitment),
            self.honest.len(),
        )?;
        if let Some((first, last)) = self.rounds {
            write!(f, " in rounds {first} to {last}")?;
        }
        match self.corrupted.len() {
            0 => write!(f, ", the provider alone learns ")?,
            _ => write!(f, ", the provider and {} learn ", list(&self.corrupted))?,
        }
        let plural = if self.learnt == 1 { "" } else { "s" };
        write!(f, "exactly {} function{plural} of readings", self.learnt)?;
        if self.findings.is_empty() {
            for (place, sum) in self.sums.iter().take(SHOWN_SUMS).enumerate() {
                let join = if place == 0 { ":" } else { ";" };
                write!(f, "{join} {sum}")?;
            }
            if self.sums.len() > SHOWN_SUMS {
                let more = self.sums.len() - SHOWN_SUMS;
                write!(f, "; {more} more sums over accepted rosters")?;
            }
            let closest = self
                .sums
                .iter()
                .min_by_key(|sum| sum.meters.len() - sum.bound);
            if let Some(closest) = closest {
                let (size, bound) = (closest.meters.len(), closest.bound);
                write!(
                    f,
                    "; the closest to its bound is over {size} honest meters, with L − C + 1 = {bound}"
                )?;
            }
            write!(f, ".")
        } else {
            write!(f, ". FOUND:")?;
            self.findings
                .iter()
                .try_for_each(|finding| write!(f, "\n  {finding}"))
        }
    }
}

fn list(meters: &BTreeSet<usize>) -> String {
    let numbers: Vec<String> = meters.iter().map(ToString::to_string).collect();
    let word = if meters.len() == 1 { "meter" } else { "meters" };
    format!("{word} {}", numbers.join(", "))
}

/// Most sums that are written out.
const SHOWN_SUMS: usize = 2;

/// Most terms of a function that are written out.
const SHOWN_TERMS: usize = 8;

fn describe(form: &Form<Unknown>) -> String {
    let mut text = String::new();
    for (place, (unknown, factor)) in form.terms().enumerate() {
        if place == SHOWN_TERMS {
            text.push_str(" …");
            break;
        }
        let factor = match factor.small() {
            Some(1) => " + ".to_owned(),
            Some(-1) => " − ".to_owned(),
            Some(factor) => format!(" + {factor}·"),
            None => " + h·".to_owned(),
        };
        let name = match unknown {
            Unknown::Reading(of) => format!(
                "m[meter {}, interval {}, channel {}]",
                of.meter, of.interval, of.channel
            ),
            Unknown::Blinding(_) => "ρ".to_owned(),
            Unknown::Pad(_) => "pad".to_owned(),
            Unknown::SelfMask(_) => "self-mask".to_owned(),
        };
        text.push_str(&factor);
        text.push_str(&name);
    }
    text.trim_start_matches(" + ").trim_start().to_owned()
}

/// The meter that all readings of a form belong to, if it is one.
fn only_meter(form: &Form<Unknown>) -> Option<usize> {
    let mut meters = BTreeSet::new();
    for (unknown, _) in form.terms() {
        match unknown {
            Unknown::Reading(of) => meters.insert(of.meter),
            _ => return None,
        };
    }
    (meters.len() == 1).then(|| meters.first().copied())?
}

impl Account {
    /// Decides what the provider and the corrupted meters learn.
    pub fn judge(&self, corrupted: &BTreeSet<usize>) -> Verdict {
        let open = |form: &Form<Unknown>| form.without(|unknown| self.is_known(unknown, corrupted));
        let honest = || {
            let observations = self.observations.iter();
            observations.filter(|seen| !corrupted.contains(&seen.meter))
        };
        let mut counts = BTreeMap::new();
        honest().for_each(|seen| *counts.entry(seen.kind).or_insert(0) += 1);

        let mut findings: Vec<Finding> = self
            .unexplained
            .iter()
            .cloned()
            .map(Finding::Unexplained)
            .collect();
        let sums = self.sums(corrupted, &mut findings);
        let seen: Space<Unknown> = honest().map(|seen| open(&seen.form)).collect();
        let with_blindings = seen.from(Unknown::FIRST_BLINDING);
        let learnt = seen.from(Unknown::FIRST_READING);

        let commitments = honest().filter(|seen| seen.kind == Kind::Commitment);
        let both = sums
            .iter()
            .flat_map(|sum| [sum.value.clone(), sum.blinding.clone()]);
        let allowed_with_blindings: Space<Unknown> = commitments
            .map(|seen| open(&seen.form))
            .chain(both)
            .collect();
        let allowed: Space<Unknown> = sums.iter().map(|sum| sum.value.clone()).collect();

        for form in learnt.reduced() {
            if let Some(meter) = only_meter(&form) {
                let function = describe(&form);
                findings.push(Finding::Alone { meter, function });
            }
            if !allowed.contains(&form) {
                let function = describe(&form);
                findings.push(Finding::Beyond { function });
            }
        }
        for form in with_blindings.forms() {
            if !allowed_with_blindings.contains(form) {
                let function = describe(form);
                findings.push(Finding::Beyond { function });
            }
        }
        for sum in &sums {
            if !learnt.contains(&sum.value) || !with_blindings.contains(&sum.blinding) {
                let function = describe(&sum.value);
                findings.push(Finding::Missing { function });
            }
        }
        check_sums(&sums, &mut findings);
        let rounds = honest().map(|seen| seen.round);
        Verdict {
            corrupted: corrupted.clone(),
            honest: honest().map(|seen| seen.meter).collect(),
            observations: counts,
            rounds: rounds.clone().min().zip(rounds.max()),
            sums,
            learnt: learnt.dimension(),
            findings,
        }
    }

    /// The sums over honest components of accepted rosters, where all of a component
    /// answered. One that did not leaves its neighbours' reveal pads uncancelled.
    fn sums(&self, corrupted: &BTreeSet<usize>, findings: &mut Vec<Finding>) -> Vec<Sum> {
        let mut rosters: BTreeMap<(Round, Name), BTreeMap<usize, &Answer>> = BTreeMap::new();
        let mut answered = BTreeSet::new();
        for answer in self
            .answers
            .iter()
            .filter(|a| !corrupted.contains(&a.meter))
        {
            let again = !answered.insert((answer.meter, answer.round));
            if again && !self.rolled_back.contains(&answer.meter) {
                let (meter, round) = (answer.meter, answer.round);
                findings.push(Finding::TwoAnswers { meter, round });
            }
            let of_roster = rosters.entry((answer.round, answer.roster)).or_default();
            of_roster.entry(answer.meter).or_insert(answer);
        }
        let mut sums = Vec::new();
        for ((round, roster), answers) in rosters {
            for meters in components(&answers, corrupted) {
                let members = || meters.iter().filter_map(|meter| answers.get(meter));
                let bound = members().map(|answer| {
                    let bad = answer.drawn_full.intersection(corrupted).count();
                    (answer.required + 1).saturating_sub(bad)
                });
                let bound = bound.max().unwrap_or(0).max(2);
                let channels = members().map(|answer| answer.readings.len()).max();
                for channel in 0..channels.unwrap_or(0) {
                    let total = |part: usize| {
                        let mut total = Form::default();
                        for answer in members() {
                            if let Some(reading) = answer.readings.get(channel) {
                                total.combine(&reading[part], Element::ONE);
                            }
                        }
                        total
                    };
                    sums.push(Sum {
                        round,
                        roster,
                        channel,
                        meters: meters.clone(),
                        bound,
                        value: total(0),
                        blinding: total(1),
                    });
                }
            }
        }
        sums
    }
}

/// Connected honest meters whose full edges are all answered at both ends.
fn components(
    answers: &BTreeMap<usize, &Answer>,
    corrupted: &BTreeSet<usize>,
) -> Vec<BTreeSet<usize>> {
    let mut neighbours: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for (meter, answer) in answers {
        neighbours.entry(*meter).or_default();
        for peer in answer.full.difference(corrupted) {
            neighbours.entry(*meter).or_default().insert(*peer);
            neighbours.entry(*peer).or_default().insert(*meter);
        }
    }
    let both_ends = |meter: &usize| {
        let full =
            |a: &usize, b: &usize| answers.get(a).is_some_and(|answer| answer.full.contains(b));
        let peers = neighbours.get(meter).into_iter().flatten();
        let mut peers = peers.map(|peer| full(meter, peer) && full(peer, meter));
        answers.contains_key(meter) && peers.all(|both| both)
    };
    let mut visited = BTreeSet::new();
    let mut found = Vec::new();
    for start in neighbours.keys() {
        let mut component = BTreeSet::new();
        let mut queue = vec![*start];
        while let Some(meter) = queue.pop() {
            if visited.insert(meter) {
                component.insert(meter);
                queue.extend(neighbours.get(&meter).into_iter().flatten());
            }
        }
        if !component.is_empty() && component.iter().all(both_ends) {
            found.push(component);
        }
    }
    found
}

/// Sums are large enough, and no reading is in two of them: then every combination of
/// sums is over at least as many meters as the smallest one in it.
fn check_sums(sums: &[Sum], findings: &mut Vec<Finding>) {
    let mut counted = BTreeSet::new();
    for sum in sums {
        if sum.meters.len() < sum.bound && sum.channel == 0 {
            findings.push(Finding::TooSmall {
                round: sum.round,
                meters: sum.meters.clone(),
                bound: sum.bound,
            });
        }
        for (unknown, _) in sum.value.terms() {
            if let Unknown::Reading(reading) = unknown
                && !counted.insert(reading)
            {
                findings.push(Finding::TwoSums { reading });
            }
        }
    }
}
