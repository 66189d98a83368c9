//! The oracle over real runs.

use simulation::oracle::scenario;

#[test]
fn honest_providers_learn_sums_over_rosters_and_nothing_else() {
    for seed in 0..4 {
        let report = scenario::faulty(seed);
        println!("{report}");
        assert!(report.holds(), "{report}");
    }
}

#[test]
fn hostile_providers_learn_sums_over_accepted_rosters_and_nothing_else() {
    for seed in 0..12 {
        let report = scenario::hostile(seed);
        println!("{report}");
        assert!(report.holds(), "{report}");
    }
}
