//! The seeded simulation, as a library and as a command.

use std::process::Command;

use simulation::invariant::Invariant;
use simulation::plan::{Plan, Sizes};
use simulation::run::{Outcome, run};

fn plans(seeds: std::ops::Range<u64>, hostile: bool) -> Vec<Plan> {
    let sizes = Sizes {
        hostile,
        ..Sizes::default()
    };
    seeds.map(|seed| Plan::new(seed, sizes)).collect()
}

/// Plays plans; none violates anything.
fn play(plans: &[Plan]) -> Vec<Outcome> {
    let outcomes: Vec<Outcome> = plans.iter().map(|plan| run(plan, false)).collect();
    for (plan, outcome) in plans.iter().zip(&outcomes) {
        let violations = &outcome.report.violations;
        assert!(
            violations.is_empty(),
            "{plan}{violations:#?}\n{}",
            plan.command()
        );
    }
    outcomes
}

#[test]
fn honest_nets_keep_every_promise_whatever_fails() {
    let outcomes = play(&plans(0..12, false));
    assert!(outcomes.iter().map(|outcome| outcome.sums).sum::<u64>() > 40);
    // A lapse takes a day and is rare; simulation/tests/faults.rs makes some.
    let usual = Invariant::ALL.iter().filter(|i| **i != Invariant::Return);
    for invariant in usual {
        let checks = outcomes
            .iter()
            .filter_map(|o| o.report.checks.get(invariant));
        assert!(checks.sum::<u64>() > 0, "never checked: {invariant}");
    }
}

#[test]
fn hostile_providers_get_nothing_that_they_must_not() {
    let outcomes = play(&plans(0..12, true));
    let lies = outcomes.iter().flat_map(|outcome| outcome.injected.keys());
    assert!(lies.filter(|kind| kind.contains("roster")).count() > 0);
}

#[test]
fn a_seed_gives_the_same_story_twice() {
    for plan in [&plans(5..6, false)[0], &plans(6..7, true)[0]] {
        let (first, second) = (run(plan, true), run(plan, true));
        assert!(first.story.len() > 100);
        assert_eq!(first.story, second.story);
        assert_eq!(first.report, second.report);
    }
}

#[test]
fn the_command_prints_the_table_and_ends_well() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args([
            "simulate", "--seeds", "0..2", "--rounds", "2", "--meters", "5",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for line in ["invariant", "old disk image", "2 seeds", "0 seeds failed"] {
        assert!(text.contains(line), "{line} is missing in {text}");
    }
}

#[test]
fn replay_tells_the_story_of_a_seed() {
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args([
            "replay",
            "--seed",
            "1",
            "--rounds",
            "2",
            "--meters",
            "5",
            "--hostile",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("seed 1: 5 meters, 2 rounds"), "{text}");
    assert!(text.contains("all faults are over"), "{text}");
    assert!(text.contains("Submitted"), "{text}");
}
