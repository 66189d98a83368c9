//! What was tried, and what came of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Cases of the fuzzer that are remembered: more than are played in a moment.
const REMEMBERED: usize = 400;

/// What the broker did with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Served it, or bore it until the attacker left.
    Borne,
    /// Refused the connection, or ended it.
    Ended,
}

/// A case of the fuzzer.
#[derive(Clone, Debug)]
pub struct Case {
    /// Whose, and which.
    pub name: String,
    /// What was sent after CONNECT, if one is not among it, write by write.
    pub writes: Vec<Vec<u8>>,
}

impl Case {
    /// Name and bytes, each write for itself, on a line.
    pub fn line(&self) -> String {
        let writes: Vec<String> = self.writes.iter().map(hex::encode).collect();
        format!("{}: {}\n", self.name, writes.join(" "))
    }
}

#[derive(Debug, Default)]
struct Counts {
    attacks: BTreeMap<&'static str, [u64; 2]>,
    recent: VecDeque<(Instant, Case)>,
    faults: Vec<String>,
}

/// Everything that attackers report.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an attempt.
    pub fn count(&self, attack: &'static str, fate: Fate) {
        let mut counts = self.lock();
        let [tried, ended] = counts.attacks.entry(attack).or_default();
        *tried += 1;
        *ended += u64::from(fate == Fate::Ended);
    }

    /// Remembers a case that is about to be played.
    pub fn play(&self, case: Case) {
        let mut counts = self.lock();
        if counts.recent.len() >= REMEMBERED {
            counts.recent.pop_front();
        }
        counts.recent.push_back((Instant::now(), case));
    }

    /// Cases that began within `span` before now, oldest first.
    pub fn recent(&self, span: Duration) -> Vec<Case> {
        let counts = self.lock();
        let recent = counts.recent.iter();
        let recent = recent.filter(|(begun, _)| begun.elapsed() <= span);
        recent.map(|(_, case)| case.clone()).collect()
    }

    /// Notes that the broker did what it must not.
    pub fn fault(&self, fault: String) {
        self.lock().faults.push(fault);
    }

    /// Takes what was noted.
    pub fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().faults)
    }

    /// Attempts of each attack, and how many of them the broker ended.
    pub fn attacks(&self) -> BTreeMap<&'static str, [u64; 2]> {
        self.lock().attacks.clone()
    }
}
