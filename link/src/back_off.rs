//! How long to wait before the next attempt to connect, or to open something again.

use std::time::Duration;

/// Bounds of the waiting time between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// The shortest wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Default for BackOff {
    /// 0.5 s to 60 s.
    fn default() -> Self {
        Self {
            min: Duration::from_millis(500),
            max: Duration::from_secs(60),
        }
    }
}

/// "Decorrelated jitter": each wait is uniform between `min` and three times the
/// wait before, so that devices that lost the broker together do not return
/// together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Debug)]
pub struct Waits {
    bounds: BackOff,
    last: Duration,
}

impl Waits {
    /// The first is at most three times as long as the shortest.
    pub fn new(bounds: BackOff) -> Self {
        Self {
            bounds,
            last: bounds.min,
        }
    }

    /// Begins again with short waits if the last attempt was good for longer than the longest
    /// wait; whether it was.
    pub fn was_good_for(&mut self, time: Duration) -> bool {
        let long = time > self.bounds.max;
        if long {
            self.last = self.bounds.min;
        }
        long
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let BackOff { min, max } = self.bounds;
        let span = self
            .last
            .saturating_mul(3)
            .saturating_sub(min)
            .mul_f64(fraction());
        self.last = min.saturating_add(span).min(max);
        self.last
    }
}

/// Uniform in [0, 1). Without randomness the middle: waiting matters more than jitter.
fn fraction() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / 4_294_967_296.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds_and_differ() {
        let bounds = BackOff {
            min: Duration::from_millis(100),
            max: Duration::from_secs(2),
        };
        let mut waits = Waits::new(bounds);
        let seen: Vec<_> = (0..200).map(|_| waits.next_wait()).collect();
        assert!(seen.iter().all(|w| *w >= bounds.min && *w <= bounds.max));
        assert!(seen[0] <= bounds.min * 3);
        assert!(seen.contains(&bounds.max), "the longest wait is reached");
        assert!(seen.windows(2).any(|w| w[0] != w[1]), "there is jitter");
        assert!(!waits.was_good_for(bounds.max));
        assert!(waits.was_good_for(bounds.max + Duration::from_millis(1)));
        assert!(waits.next_wait() <= bounds.min * 3);
    }

    #[test]
    fn huge_bounds_do_not_overflow() {
        let mut waits = Waits::new(BackOff {
            min: Duration::from_secs(1),
            max: Duration::from_secs(u64::MAX / 4),
        });
        for _ in 0..200 {
            waits.next_wait();
        }
    }
}
