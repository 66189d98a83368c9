//! When to ask for log entries or rosters that were missed: once at a new
//! connection, then while something is known to be missing, and not again before
//! the answer had time to come; ever more rarely while answers lead nowhere.

use std::time::Duration;

/// Messages after which an answer is taken to be complete: the provider sends no
/// more for one request.
const ANSWER: usize = 256;

/// Binary logarithm of the longest time between two requests whose answers lead nowhere, in paces.
const LONGEST_WAIT: u32 = 6;

/// The state of one kind of request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CatchUp {
    asked: Option<Duration>,
    /// How far the caller was then.
    position: u64,
    answered: usize,
    /// Requests in a row that were answered but got the caller nowhere.
    fruitless: u32,
    probe: bool,
    suspected: Option<Duration>,
}

impl CatchUp {
    /// Asks at the next opportunity even if nothing is known to be missing.
    pub(crate) fn probe(&mut self) {
        *self = Self {
            asked: None,
            answered: 0,
            probe: true,
            ..*self
        };
    }

    /// As [`Self::probe`], but at most once per pace: what raised the suspicion may come again
    /// with the answer.
    pub(crate) fn suspect(&mut self, now: Duration, pace: Duration) {
        let due = |at: Duration| now >= at.saturating_add(pace);
        if self.suspected.is_none_or(due) {
            self.probe();
            self.suspected = Some(now);
        }
    }

    /// A part of an answer came.
    pub(crate) fn answered(&mut self) {
        self.answered = self.answered.saturating_add(1);
        self.probe = false;
    }

    /// Whether to ask now; the caller does so if true. Answers move `position`, if they are of
    /// any use.
    pub(crate) fn ask(
        &mut self,
        behind: bool,
        position: u64,
        now: Duration,
        pace: Duration,
    ) -> bool {
        if !behind && !self.probe {
            self.asked = None;
            self.fruitless = 0;
            return false;
        }
        let moved = position != self.position;
        if moved {
            self.fruitless = 0;
        }
        let due = self.next_due(pace).is_none_or(|due| now >= due);
        let is_part_of_more = moved && self.answered >= ANSWER;
        if !due && !is_part_of_more {
            return false;
        }
        if !moved && self.asked.is_some() && self.answered > 0 {
            self.fruitless = self.fruitless.saturating_add(1).min(LONGEST_WAIT);
        }
        self.asked = Some(now);
        self.position = position;
        self.answered = 0;
        true
    }

    /// When to look again.
    pub(crate) fn next_due(&self, pace: Duration) -> Option<Duration> {
        let wait = pace.saturating_mul(1 << self.fruitless);
        self.asked.map(|at| at.saturating_add(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_asks_once_per_pace_while_behind() {
        let mut catch_up = CatchUp::default();
        assert!(!catch_up.ask(false, 0, at(0), PACE));
        assert!(catch_up.ask(true, 0, at(1), PACE));
        assert!(!catch_up.ask(true, 0, at(2), PACE));
        assert!(catch_up.ask(true, 0, at(3), PACE));
        assert!(!catch_up.ask(false, 0, at(4), PACE));
        assert!(catch_up.ask(true, 0, at(4), PACE));
    }

    #[test]
    fn a_full_answer_is_followed_by_the_next_request() {
        let mut catch_up = CatchUp::default();
        assert!(catch_up.ask(true, 0, at(0), PACE));
        (0..ANSWER).for_each(|_| catch_up.answered());
        assert!(catch_up.ask(true, 256, at(0), PACE));
        assert!(!catch_up.ask(true, 256, at(0), PACE));
    }

    #[test]
    fn answers_that_lead_nowhere_are_asked_for_ever_more_rarely() {
        let mut catch_up = CatchUp::default();
        let asked = |catch_up: &mut CatchUp, position: u64, from: u64, until: u64| {
            let asked = (from..until).filter(|second| {
                let asks = catch_up.ask(true, position, at(*second), PACE);
                (0..if asks { ANSWER } else { 0 }).for_each(|_| catch_up.answered());
                asks
            });
            asked.collect::<Vec<u64>>()
        };
        assert_eq!(asked(&mut catch_up, 7, 0, 20), [0, 2, 6, 14]);
        let longest = asked(&mut catch_up, 7, 20, 1000);
        let waits = longest.windows(2).map(|pair| pair[1] - pair[0]);
        assert_eq!(waits.max(), Some(PACE.as_secs() << LONGEST_WAIT));
        assert_eq!(asked(&mut catch_up, 8, 1000, 1002), [1000]);
    }

    #[test]
    fn lost_answers_are_asked_for_once_per_pace() {
        let mut catch_up = CatchUp::default();
        let asked = (0..10).filter(|second| catch_up.ask(true, 7, at(*second), PACE));
        assert_eq!(asked.collect::<Vec<u64>>(), [0, 2, 4, 6, 8]);
    }

    #[test]
    fn a_probe_asks_until_it_is_answered() {
        let mut catch_up = CatchUp::default();
        catch_up.probe();
        assert!(catch_up.ask(false, 0, at(0), PACE));
        assert!(catch_up.ask(false, 0, at(2), PACE));
        catch_up.answered();
        assert!(!catch_up.ask(false, 0, at(4), PACE));
    }

    #[test]
    fn a_suspicion_that_comes_again_with_the_answer_asks_once_per_pace() {
        let mut catch_up = CatchUp::default();
        let asked = (0..10).filter(|half_seconds| {
            let now = Duration::from_millis(half_seconds * 500);
            catch_up.answered();
            catch_up.ask(false, 0, now, PACE);
            catch_up.suspect(now, PACE);
            catch_up.ask(false, 0, now, PACE)
        });
        assert_eq!(asked.collect::<Vec<u64>>(), [0, 4, 8]);
    }
}
