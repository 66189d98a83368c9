//! The speed limit of one client: a bucket that refills steadily and holds four
//! seconds' worth.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes that cost as much as one packet.
const BYTES_PER_UNIT: usize = 4096;

/// Seconds' worth of packets that may come at once.
const BURST_SECONDS: f64 = 4.0;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: f64,
    tokens: f64,
    updated: Instant,
}

impl Rate {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self {
            per_second,
            tokens: per_second * BURST_SECONDS,
            updated: now,
        }
    }

    /// When the next packet may be taken, if not now.
    pub(crate) fn exhausted(&mut self, now: Instant) -> Option<Instant> {
        let passed = now.duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.tokens = (self.tokens + passed * self.per_second).min(self.per_second * BURST_SECONDS);
        (self.tokens <= 0.0).then(|| {
            let wait = (1.0 - self.tokens) / self.per_second;
            now + Duration::from_secs_f64(wait)
        })
    }

    /// Counts a packet of `bytes`.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.tokens -= bytes.div_ceil(BYTES_PER_UNIT).max(1) as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let start = Instant::now();
        let mut rate = Rate::new(10, start);
        let mut taken = 0;
        while rate.exhausted(start).is_none() {
            rate.spend(100);
            taken += 1;
        }
        assert_eq!(taken, 40);
        assert!(
            rate.exhausted(start + Duration::from_millis(200)).is_none(),
            "refills"
        );
    }

    #[test]
    fn large_packets_cost_by_their_size() {
        let start = Instant::now();
        let mut rate = Rate::new(1, start);
        rate.spend(BYTES_PER_UNIT * 5);
        let until = rate.exhausted(start).unwrap();
        assert!(until >= start + Duration::from_secs(1));
    }
}
