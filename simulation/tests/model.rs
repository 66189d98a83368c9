//! Every reachable state of a small round: three meters that submit, are shown rosters
//! and reveal, and that may crash between any two outputs; a provider that shows each of
//! them whatever roster it likes, as often as it likes.
//!
//! The floors are as low as can be (a group of two, one full edge), so that two different
//! rosters would each be answered by themselves: what keeps a single reading hidden is
//! only that a meter answers one roster, the same after every crash. The pads are treated
//! as unknowns and eliminated, as in the privacy oracle.
//!
//! The meter here is the model's own (`Round::judge`, `Round::step`), since dcnet's judges
//! signed frames and keeps keys, of which there are too many states. What is shown is that the
//! rules suffice; that dcnet keeps them is for `dcnet/tests/silence`, `dcnet/tests/restart.rs`
//! and the mutants of the same rules (`answer-not-stored`, `two-rosters`,
//! `refused-not-stored`, `unbound-reveal-pads`).

use std::collections::{BTreeMap, BTreeSet};

use stateright::{Checker, Model, Property};

const METERS: u8 = 3;
const MINIMUM_GROUP: u32 = 2;

/// A set of meters as bits.
type Set = u8;

fn members(set: Set) -> impl Iterator<Item = u8> {
    (0..METERS).filter(move |meter| set & (1 << meter) != 0)
}

/// A roster: who is in it, and which submission of each (by the number of its self-mask).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Roster {
    included: Set,
    submissions: [u8; METERS as usize],
}

/// What is on a meter's disk about the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Nothing,
    Submitted { mask: u8 },
    Revealed { mask: u8, roster: Roster },
    Refused,
}

/// What a meter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Said {
    Submission { meter: u8, mask: u8 },
    Reveal { meter: u8, mask: u8, roster: Roster },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Output {
    Persist(Stage),
    Publish(Said),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Meter {
    disk: Stage,
    memory: Stage,
    /// Asked for and not done yet; a crash loses it.
    queue: Vec<Output>,
    /// Self-masks drawn so far; each is fresh.
    masks: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    meters: Vec<Meter>,
    said: BTreeSet<Said>,
    crashes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Submit(u8),
    Show(u8, Roster),
    Output(u8),
    Crash(u8),
}

/// A rule that is broken on purpose, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// Messages leave before the state they depend on is on disk.
    PublishFirst,
    /// A second roster is answered, too.
    AnswerEveryRoster,
    /// Reveal pads are the same for every roster, and every roster is answered.
    UnboundReveal,
}

struct Round {
    broken: Broken,
    /// How many crashes there may be.
    crashes: u8,
    /// The one property to look at; all if `None`.
    watched: Option<&'static str>,
}

impl Round {
    fn rosters(&self, state: &State) -> Vec<Roster> {
        let mut submitted: [Vec<u8>; METERS as usize] = Default::default();
        for said in &state.said {
            if let Said::Submission { meter, mask } = said {
                submitted[usize::from(*meter)].push(*mask);
            }
        }
        let mut rosters = Vec::new();
        for included in 1..(1u8 << METERS) {
            let mut partial = vec![[0; METERS as usize]];
            for meter in members(included) {
                let masks = &submitted[usize::from(meter)];
                let with = |mask: u8| {
                    partial.iter().map(move |roster: &[u8; METERS as usize]| {
                        let mut roster = *roster;
                        roster[usize::from(meter)] = mask;
                        roster
                    })
                };
                partial = masks.iter().flat_map(|mask| with(*mask)).collect();
            }
            let complete = partial.into_iter();
            rosters.extend(complete.map(|submissions| Roster {
                included,
                submissions,
            }));
        }
        rosters
    }

    /// What the model's meter does with a roster: of the rules before a reveal those that do
    /// not look at keys or time (`docs/protocol.md`, "What a meter checks").
    fn judge(&self, meter: u8, stage: Stage, roster: Roster) -> Option<Stage> {
        let mask = match stage {
            Stage::Submitted { mask } => mask,
            Stage::Revealed { mask, roster: one }
                if matches!(
                    self.broken,
                    Broken::AnswerEveryRoster | Broken::UnboundReveal
                ) && one != roster =>
            {
                mask
            }
            _ => return None,
        };
        let right = roster.included & (1 << meter) != 0
            && roster.submissions[usize::from(meter)] == mask
            && roster.included.count_ones() >= MINIMUM_GROUP;
        Some(if right {
            Stage::Revealed { mask, roster }
        } else {
            Stage::Refused
        })
    }

    fn step(&self, state: &mut State, meter: u8, stage: Stage, said: Option<Said>) {
        let meter = &mut state.meters[usize::from(meter)];
        meter.memory = stage;
        meter.queue.push(Output::Persist(stage));
        if let Some(said) = said {
            meter.queue.push(Output::Publish(said));
        }
        if self.broken == Broken::PublishFirst {
            meter.queue.reverse();
        }
    }
}

fn said_of(meter: u8, stage: Stage) -> Option<Said> {
    match stage {
        Stage::Submitted { mask } => Some(Said::Submission { meter, mask }),
        Stage::Revealed { mask, roster } => Some(Said::Reveal {
            meter,
            mask,
            roster,
        }),
        Stage::Nothing | Stage::Refused => None,
    }
}

impl Model for Round {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let meter = Meter {
            disk: Stage::Nothing,
            memory: Stage::Nothing,
            queue: Vec::new(),
            masks: 0,
        };
        vec![State {
            meters: vec![meter; usize::from(METERS)],
            said: BTreeSet::new(),
            crashes: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let rosters = self.rosters(state);
        for (number, meter) in (0..).zip(&state.meters) {
            if !meter.queue.is_empty() {
                actions.push(Action::Output(number));
            } else if meter.memory == Stage::Nothing {
                actions.push(Action::Submit(number));
            } else {
                let answered = rosters
                    .iter()
                    .filter(|roster| self.judge(number, meter.memory, **roster).is_some());
                actions.extend(answered.map(|roster| Action::Show(number, *roster)));
            }
            if state.crashes < self.crashes && !meter.queue.is_empty() {
                actions.push(Action::Crash(number));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Submit(number) => {
                let meter = &mut next.meters[usize::from(number)];
                let stage = Stage::Submitted { mask: meter.masks };
                meter.masks += 1;
                self.step(&mut next, number, stage, said_of(number, stage));
            }
            Action::Show(number, roster) => {
                let memory = next.meters[usize::from(number)].memory;
                let stage = self.judge(number, memory, roster)?;
                self.step(&mut next, number, stage, said_of(number, stage));
            }
            Action::Output(number) => {
                let meter = &mut next.meters[usize::from(number)];
                match meter.queue.remove(0) {
                    Output::Persist(stage) => meter.disk = stage,
                    Output::Publish(said) => drop(next.said.insert(said)),
                }
            }
            Action::Crash(number) => {
                next.crashes += 1;
                let meter = &mut next.meters[usize::from(number)];
                meter.memory = meter.disk;
                // What is on disk is published again.
                let again = said_of(number, meter.disk).map(Output::Publish);
                meter.queue = again.into_iter().collect();
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("a meter submits once", |_, state: &State| {
                let mut submitters = BTreeSet::new();
                state.said.iter().all(|said| match said {
                    Said::Submission { meter, .. } => submitters.insert(*meter),
                    Said::Reveal { .. } => true,
                })
            }),
            Property::always("a meter reveals once", |_, state: &State| {
                let mut revealers = BTreeSet::new();
                state.said.iter().all(|said| match said {
                    Said::Reveal { meter, .. } => revealers.insert(*meter),
                    Said::Submission { .. } => true,
                })
            }),
            Property::always("what was said is on disk", |_, state: &State| {
                state.said.iter().all(|said| {
                    let (Said::Submission { meter, .. } | Said::Reveal { meter, .. }) = said;
                    match (said, state.meters[usize::from(*meter)].disk) {
                        (_, Stage::Nothing) => false,
                        (Said::Submission { .. }, _) => true,
                        (said, disk) => said_of(*meter, disk) == Some(*said),
                    }
                })
            }),
            Property::always("no reading is known alone", |model: &Self, state| {
                !known(state, model.broken)
                    .iter()
                    .any(|readings| readings.count_ones() == 1)
            }),
            Property::sometimes("a sum over all three", |model: &Self, state| {
                known(state, model.broken).contains(&0b111)
            }),
            Property::sometimes("a sum over two", |model: &Self, state| {
                known(state, model.broken).contains(&0b011)
            }),
        ];
        all.retain(|property| self.watched.is_none_or(|name| property.name == name));
        all
    }
}

/// Unknowns of the provider's equations, the readings last so that they are eliminated last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unknown {
    Mask(u8, u8),
    SubmissionPad(u8, u8),
    RevealPad(u8, u8, Option<Roster>),
    Reading(u8),
}

/// Numbers modulo a prime are more than three meters need.
const PRIME: i64 = 65_521;

fn inverse(number: i64) -> i64 {
    let (mut result, mut base, mut exponent) = (1, number.rem_euclid(PRIME), PRIME - 2);
    while exponent > 0 {
        if exponent % 2 == 1 {
            result = result * base % PRIME;
        }
        base = base * base % PRIME;
        exponent /= 2;
    }
    result
}

type Row = BTreeMap<Unknown, i64>;

fn add(row: &mut Row, unknown: Unknown, factor: i64) {
    let sum = (row.get(&unknown).unwrap_or(&0) + factor).rem_euclid(PRIME);
    if sum == 0 {
        row.remove(&unknown);
    } else {
        row.insert(unknown, sum);
    }
}

/// Pads between a meter and the others in a set: the lower adds, the higher subtracts.
fn add_pads(row: &mut Row, meter: u8, others: Set, pad: impl Fn(u8, u8) -> Unknown) {
    for other in members(others).filter(|other| *other != meter) {
        let sign = if meter < other { 1 } else { -1 };
        add(row, pad(meter.min(other), meter.max(other)), sign);
    }
}

/// The sets of readings with an entry in a reduced basis of what the provider can compute.
fn known(state: &State, broken: Broken) -> Vec<Set> {
    let everybody = (1 << METERS) - 1;
    let rows = state.said.iter().map(|said| {
        let mut row = Row::new();
        match *said {
            Said::Submission { meter, mask } => {
                add(&mut row, Unknown::Reading(meter), 1);
                add(&mut row, Unknown::Mask(meter, mask), 1);
                add_pads(&mut row, meter, everybody, Unknown::SubmissionPad);
            }
            Said::Reveal {
                meter,
                mask,
                roster,
            } => {
                add(&mut row, Unknown::Mask(meter, mask), 1);
                let bound = (broken != Broken::UnboundReveal).then_some(roster);
                // Absent neighbours leave their submission pads to be revealed.
                let absent = everybody & !roster.included;
                add_pads(&mut row, meter, absent, Unknown::SubmissionPad);
                add_pads(&mut row, meter, roster.included, |a, b| {
                    Unknown::RevealPad(a, b, bound)
                });
                // The two stages' pads of a full edge cancel each with its own other end.
            }
        }
        row
    });
    let mut basis: Vec<(Unknown, Row)> = Vec::new();
    for mut row in rows {
        for (pivot, known) in &basis {
            if let Some(factor) = row.get(pivot).copied() {
                for (unknown, value) in known {
                    add(&mut row, *unknown, -factor * value % PRIME);
                }
            }
        }
        let Some((&pivot, &value)) = row.first_key_value() else {
            continue;
        };
        let scale = inverse(value);
        row.values_mut().for_each(|v| *v = *v * scale % PRIME);
        for (_, known) in &mut basis {
            if let Some(factor) = known.get(&pivot).copied() {
                for (unknown, value) in &row {
                    add(known, *unknown, -factor * value % PRIME);
                }
            }
        }
        basis.push((pivot, row));
    }
    let only_readings = basis
        .iter()
        .filter(|(pivot, _)| matches!(pivot, Unknown::Reading(_)));
    only_readings
        .map(|(_, row)| {
            row.keys().fold(0, |set, unknown| match unknown {
                Unknown::Reading(meter) => set | 1 << meter,
                _ => set,
            })
        })
        .collect()
}

#[test]
fn every_reachable_state_keeps_the_invariants() {
    let model = Round {
        broken: Broken::Nothing,
        crashes: 2,
        watched: None,
    };
    let checker = model.checker().spawn_bfs().join();
    println!("{} different states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000);
}

#[test]
fn every_broken_rule_is_noticed() {
    for (broken, crashes, name) in [
        (Broken::PublishFirst, 1, "a meter submits once"),
        (Broken::PublishFirst, 1, "what was said is on disk"),
        (Broken::AnswerEveryRoster, 0, "a meter reveals once"),
        (Broken::UnboundReveal, 0, "no reading is known alone"),
    ] {
        let watched = Some(name);
        let model = Round {
            broken,
            crashes,
            watched,
        };
        let checker = model.checker().spawn_bfs().join();
        let states = checker.unique_state_count();
        println!("{broken:?}: {name}: {states} different states looked at");
        assert!(
            checker.discovery(name).is_some(),
            "{broken:?}: {name} holds"
        );
    }
}
