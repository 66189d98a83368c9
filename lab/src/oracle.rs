//! The command `oracle`: what a provider and corrupted meters learn in simulated runs, proved
//! by elimination (`simulation::oracle`).

use std::ops::Range;
use std::process::ExitCode;

use clap::Args;
use simulation::oracle::{membership, scenario};

use crate::cli::parse_seeds;

/// Options of `oracle`.
#[derive(Debug, Args)]
pub struct OracleArguments {
    /// Per seed from A to before B one run with an honest provider over a bad network and one with
    /// a hostile provider, and both again while members come and go
    #[arg(long, value_name = "A..B", value_parser = parse_seeds, default_value = "0..20")]
    seeds: Range<u64>,
}

impl OracleArguments {
    /// Prints what was checked and found in each run; fails if anything was found.
    pub fn run(&self) -> ExitCode {
        let (mut runs, mut verdicts, mut functions, mut broken) = (0, 0, 0, Vec::new());
        for seed in self.seeds.clone() {
            let reports = [
                scenario::faulty(seed),
                scenario::hostile(seed),
                membership::honest(seed),
                membership::hostile(seed),
            ];
            for report in reports {
                println!("{report}\n");
                runs += 1;
                verdicts += report.verdicts.len();
                let learnt = report.verdicts.iter().map(|verdict| verdict.learnt);
                functions += learnt.sum::<usize>();
                if !report.holds() {
                    broken.push(seed);
                }
            }
        }
        println!(
            "{runs} runs, {verdicts} sets of corrupted meters: {functions} functions of readings follow, \
             and the claim was broken in {} runs",
            broken.len()
        );
        if broken.is_empty() {
            return ExitCode::SUCCESS;
        }
        for seed in broken {
            eprintln!(
                "lab: seed {seed} leaks; see it again with: lab oracle --seeds {seed}..{}",
                seed + 1
            );
        }
        ExitCode::FAILURE
    }
}
