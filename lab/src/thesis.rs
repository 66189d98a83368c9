//! The thesis's own demonstration: rounds of 10 s; after its fourth message a client fails,
//! the round is corrected, the client comes back, and the sums go to a text file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dcnet::units::MilliwattHours;

use crate::board::Outcome;
use crate::terminal;

/// How many clients there are. The thesis had three, and with one away only two: each of them
/// knows its own reading and so the other's.
pub const CLIENTS: u32 = 5;

/// The client that fails.
pub const CLIENT: u32 = 5;

/// Measured rounds, from 0, that it misses: the one during which it fails, after its fourth message,
/// and the one during which it is started again.
pub const MISSED: [u64; 2] = [4, 5];

/// Measured rounds of the scenario.
pub const ROUNDS: u64 = 8;

/// What is going to happen.
pub fn introduction() -> String {
    format!(
        "The thesis's demonstration, with {CLIENTS} clients instead of 3: of 3, 2 are left while one is \
         away, and each of the 2 would know the other's reading. Here everyone keeps at least 3 \
         neighbours.\nClient {CLIENT} sends 4 messages and fails; round 5 is corrected and computed over \
         the others; then it comes back, with the keys it had, and is in the sum from round 7 on."
    )
}

/// The text file with the sums, and what must be seen.
#[derive(Debug)]
pub struct Thesis {
    path: PathBuf,
    file: File,
    log_head: Option<[u8; 32]>,
    faults: Vec<String>,
    seen: u64,
}

impl Thesis {
    /// Makes the text file, or empties it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("cannot write the sums to {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            log_head: None,
            faults: Vec::new(),
            seen: 0,
        })
    }

    /// Takes a round: adds its line to the file. Returns what is to be said about it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn round(&mut self, outcome: &Outcome) -> anyhow::Result<Option<String>> {
        let line = &outcome.line;
        let sum = line.sum_mwh.map_or("no sum".to_owned(), |sums| {
            terminal::energy(MilliwattHours(sums.import))
        });
        writeln!(
            self.file,
            "round {} ({} UTC): {sum} of clients {}",
            outcome.index + 1,
            terminal::clock(outcome.end),
            terminal::numbers(&line.included),
        )
        .with_context(|| format!("cannot write to {}", self.path.display()))?;
        self.seen += 1;
        self.check(outcome);
        Ok(comment(outcome.index))
    }

    fn check(&mut self, outcome: &Outcome) {
        let mut fault = |text: String| {
            self.faults
                .push(format!("round {}: {text}", outcome.index + 1));
        };
        let away = MISSED.contains(&outcome.index);
        let expected: Vec<u32> = (1..=CLIENTS).filter(|n| !(away && *n == CLIENT)).collect();
        if outcome.line.included != expected {
            fault(format!(
                "the sum is over clients {}, not {}",
                terminal::numbers(&outcome.line.included),
                terminal::numbers(&expected)
            ));
        }
        match (self.log_head, outcome.log_head) {
            (Some(before), Some(now)) if before != now => {
                fault("the log has changed, and with it the key graph".to_owned());
            }
            (None, head) => self.log_head = head,
            _ => {}
        }
    }

    /// What was not as it should be; empty if everything was.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.faults.clone();
        if self.seen < ROUNDS {
            faults.push(format!("only {} of {ROUNDS} rounds were seen", self.seen));
        }
        faults
    }

    /// Where the sums are.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn comment(index: u64) -> Option<String> {
    let [failed, returned] = MISSED;
    let text = if index + 1 == failed {
        format!("          client {CLIENT} has sent its fourth message and fails")
    } else if index == failed {
        format!(
            "          corrected: the others' reveals remove what they share with client {CLIENT}; it \
             is started again"
        )
    } else if index == returned {
        format!(
            "          client {CLIENT} is back; it did not count this interval from its beginning, so \
             it submits nothing for it"
        )
    } else if index == returned + 1 {
        format!(
            "          client {CLIENT} takes part again; the log, and with it the key graph, is the same"
        )
    } else {
        return None;
    };
    Some(text)
}
