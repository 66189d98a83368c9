//! When to ask for log entries or rosters that were missed: once at a new
//! connection, then while something is known to be missing, and not again before
//! the answer had time to come.

use std::time::Duration;

/// Messages after which an answer is taken to be complete: the provider sends no
/// more for one request.
const ANSWER: usize = 256;

/// The state of one kind of request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CatchUp {
    asked: Option<Duration>,
    answered: usize,
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
            suspected: self.suspected,
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

    /// Whether to ask now; the caller does so if true.
    pub(crate) fn ask(&mut self, behind: bool, now: Duration, pace: Duration) -> bool {
        if !behind && !self.probe {
            self.asked = None;
            return false;
        }
        let due = self.asked.is_none_or(|at| now >= at.saturating_add(pace));
        if due || self.answered >= ANSWER {
            self.asked = Some(now);
            self.answered = 0;
            return true;
        }
        false
    }

    /// When to look again.
    pub(crate) fn next_due(&self, pace: Duration) -> Option<Duration> {
        self.asked.map(|at| at.saturating_add(pace))
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
        assert!(!catch_up.ask(false, at(0), PACE));
        assert!(catch_up.ask(true, at(1), PACE));
        assert!(!catch_up.ask(true, at(2), PACE));
        assert!(catch_up.ask(true, at(3), PACE));
        assert!(!catch_up.ask(false, at(4), PACE));
        assert!(catch_up.ask(true, at(4), PACE));
    }

    #[test]
    fn a_full_answer_is_followed_by_the_next_request() {
        let mut catch_up = CatchUp::default();
        assert!(catch_up.ask(true, at(0), PACE));
        (0..ANSWER).for_each(|_| catch_up.answered());
        assert!(catch_up.ask(true, at(0), PACE));
        assert!(!catch_up.ask(true, at(0), PACE));
    }

    #[test]
    fn a_probe_asks_until_it_is_answered() {
        let mut catch_up = CatchUp::default();
        catch_up.probe();
        assert!(catch_up.ask(false, at(0), PACE));
        assert!(catch_up.ask(false, at(2), PACE));
        catch_up.answered();
        assert!(!catch_up.ask(false, at(4), PACE));
    }

    #[test]
    fn a_suspicion_that_comes_again_with_the_answer_asks_once_per_pace() {
        let mut catch_up = CatchUp::default();
        let asked = (0..10).filter(|half_seconds| {
            let now = Duration::from_millis(half_seconds * 500);
            catch_up.answered();
            catch_up.ask(false, now, PACE);
            catch_up.suspect(now, PACE);
            catch_up.ask(false, now, PACE)
        });
        assert_eq!(asked.collect::<Vec<u64>>(), [0, 4, 8]);
    }
}
