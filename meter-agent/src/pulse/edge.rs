//! From edges on a wire to pulses: a level counts only once it has held for long enough.
//!
//! An S0 pulse and the pause after it last at least 30 ms each (DIN EN 62053-31);
//! bouncing contacts and interference are shorter. A change to the active level is
//! accepted after it has held for the minimum width, a change back after it has held
//! for the minimum pause; whatever does not hold is rejected and counted. So bounce at
//! either end of a pulse never makes a second one, nor does it hide the first.

use std::time::Duration;

/// How long a level must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// Minimum width of a pulse; 20 ms unless configured.
    pub width: Duration,
    /// Minimum pause between pulses; 20 ms unless configured.
    pub pause: Duration,
    /// A line that stays active longer than this is stuck: a short circuit, swapped
    /// polarity or a wrong active level.
    pub stuck: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            width: Duration::from_millis(20),
            pause: Duration::from_millis(20),
            stuck: Duration::from_secs(10),
        }
    }
}

/// One edge, stamped by the kernel on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// When.
    pub at: Duration,
    /// Whether the line became active.
    pub active: bool,
    /// Its number among the edges of the line, as the kernel counts them; one more than
    /// that of the edge before, unless edges got lost. It begins again after 2³² edges.
    /// `None` from a kernel that does not count them (before 5.10).
    pub sequence: Option<u32>,
}

/// What a filter has seen; totals since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeStatistics {
    /// Pulses accepted.
    pub pulses: u64,
    /// Edges of pulses or pauses that were too short.
    pub rejected: u64,
    /// Edges that got lost: the kernel's buffer was full, so numbers are missing.
    pub lost: u64,
    /// How long the newest pulse was that has ended.
    pub last_width: Option<Duration>,
    /// Edges to the level that the line had already, so that one between them is missing.
    pub missed: u64,
}

/// The state machine of one line. It is told every edge and, in between, how far
/// time has got; it returns the pulses by the time of their first edge.
#[derive(Debug)]
pub struct EdgeFilter {
    limits: EdgeLimits,
    /// The level that last held long enough, and since when.
    held: (bool, Duration),
    /// A change that has not held long enough yet, and when it came.
    candidate: Option<Duration>,
    now: Duration,
    /// Number of the edge before.
    sequence: Option<u32>,
    stuck_told: bool,
    statistics: EdgeStatistics,
}

impl EdgeFilter {
    /// A filter for a line that is `active` or not at time `at`. A pulse that is going on
    /// already is not counted: it began before.
    pub fn new(limits: EdgeLimits, active: bool, at: Duration) -> Self {
        Self {
            limits,
            held: (active, at),
            candidate: None,
            now: at,
            sequence: None,
            stuck_told: false,
            statistics: EdgeStatistics::default(),
        }
    }

    /// Takes an edge. Returns the time of the pulse that is certain by now, if there is one.
    /// An edge stamped before the one before it is taken at that one's time.
    pub fn edge(&mut self, edge: Edge) -> Option<Duration> {
        let pulse = self.advance(edge.at);
        let at = self.now;
        let numbers = self.sequence.zip(edge.sequence);
        self.sequence = edge.sequence;
        let lost = numbers.map_or(0, |(before, this)| {
            this.wrapping_sub(before).wrapping_sub(1)
        });
        self.statistics.lost = self.statistics.lost.saturating_add(u64::from(lost));
        if edge.active == self.level() {
            self.statistics.missed = self.statistics.missed.saturating_add(1);
        } else if self.candidate.take().is_some() {
            self.statistics.rejected = self.statistics.rejected.saturating_add(2);
        } else {
            self.candidate = Some(at);
        }
        pulse
    }

    /// Says that there was no further edge before `now`. Returns as [`EdgeFilter::edge`].
    pub fn advance(&mut self, now: Duration) -> Option<Duration> {
        self.now = self.now.max(now);
        let since = self.candidate?;
        let active = !self.held.0;
        let limit = if active {
            self.limits.width
        } else {
            self.limits.pause
        };
        if self.now.saturating_sub(since) < limit {
            return None;
        }
        self.candidate = None;
        if self.held.0 && !active {
            self.statistics.last_width = Some(since.saturating_sub(self.held.1));
        }
        self.held = (active, since);
        self.stuck_told = false;
        if !active {
            return None;
        }
        self.statistics.pulses = self.statistics.pulses.saturating_add(1);
        Some(since)
    }

    /// Every pulse that began before this time has been returned.
    pub fn settled_until(&self) -> Duration {
        match self.candidate {
            Some(since) if !self.held.0 => since,
            _ => self.now,
        }
    }

    /// Whether the line has been active for longer than any pulse lasts.
    pub fn is_stuck(&self) -> bool {
        let (active, since) = self.held;
        active && self.now.saturating_sub(since) >= self.limits.stuck
    }

    /// True once per time that the line is stuck at the active level.
    pub fn newly_stuck(&mut self) -> bool {
        self.is_stuck() && !std::mem::replace(&mut self.stuck_told, true)
    }

    /// Totals so far.
    pub fn statistics(&self) -> EdgeStatistics {
        self.statistics
    }

    /// Whether the level that last held long enough is the active one.
    pub fn is_active(&self) -> bool {
        self.held.0
    }

    fn level(&self) -> bool {
        self.held.0 != self.candidate.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Edges alternate, the first to active; returns pulse times in ms and the filter.
    fn run(edges: &[u32], end: u32) -> (Vec<u128>, EdgeFilter) {
        let mut filter = EdgeFilter::new(EdgeLimits::default(), false, Duration::ZERO);
        let mut pulses = Vec::new();
        for (index, &at) in edges.iter().enumerate() {
            pulses.extend(filter.edge(Edge {
                at: at * MS,
                active: index % 2 == 0,
                sequence: None,
            }));
        }
        pulses.extend(filter.advance(end * MS));
        (pulses.iter().map(Duration::as_millis).collect(), filter)
    }

    #[test]
    fn table_of_wave_forms() {
        // what, edges in ms, pulses at, rejected edges
        let table: &[(&str, &[u32], &[u128], u64)] = &[
            ("clean pulses", &[100, 130, 200, 230], &[100, 200], 0),
            (
                "shortest pulse and pause",
                &[100, 120, 140, 160],
                &[100, 140],
                0,
            ),
            ("a pulse too short", &[100, 119], &[], 2),
            ("a spike of no width", &[100, 100], &[], 2),
            (
                "bounce on closing",
                &[100, 101, 102, 104, 105, 140],
                &[105],
                4,
            ),
            ("bounce on opening", &[100, 140, 141, 142, 150], &[100], 4),
            ("a pause too short", &[100, 140, 159, 190], &[100], 2),
            (
                "relay chatter without end",
                &[100, 105, 110, 115, 120, 125],
                &[],
                6,
            ),
            ("a pulse going on at the end", &[100], &[100], 0),
        ];
        for (what, edges, pulses, rejected) in table {
            let (found, filter) = run(edges, 1000);
            assert_eq!(&found, pulses, "{what}");
            assert_eq!(filter.statistics().rejected, *rejected, "{what}");
            assert_eq!(filter.statistics().pulses, pulses.len() as u64, "{what}");
            let width = filter.statistics().last_width;
            assert!(
                width.is_none_or(|width| width >= 20 * MS),
                "{what}: {width:?}"
            );
        }
    }

    #[test]
    fn gaps_in_the_numbers_are_lost_edges() {
        let mut filter = EdgeFilter::new(EdgeLimits::default(), false, Duration::ZERO);
        let mut edge = |at, active, sequence| {
            filter.edge(Edge {
                at: at * MS,
                active,
                sequence,
            });
            filter.statistics().lost
        };
        assert_eq!(edge(100, true, Some(u32::MAX - 1)), 0);
        assert_eq!(edge(140, false, Some(u32::MAX)), 0);
        assert_eq!(edge(200, true, Some(0)), 0, "the numbers begin again");
        assert_eq!(edge(300, false, Some(5)), 4);
        assert_eq!(edge(400, true, None), 4, "a kernel that does not count");
        assert_eq!(edge(500, false, Some(9)), 4);
    }

    #[test]
    fn a_line_that_is_active_at_the_start_is_no_pulse() {
        let mut filter = EdgeFilter::new(EdgeLimits::default(), true, Duration::ZERO);
        assert_eq!(filter.advance(1000 * MS), None);
        let edge = |at, active| Edge {
            at: at * MS,
            active,
            sequence: None,
        };
        assert_eq!(filter.edge(edge(1000, false)), None);
        assert_eq!(filter.edge(edge(1100, true)), None);
        assert_eq!(filter.edge(edge(1130, false)), Some(1100 * MS));
    }

    #[test]
    fn a_pulse_is_settled_only_when_it_is_wide_enough() {
        let (pulses, mut filter) = run(&[100], 110);
        assert!(pulses.is_empty());
        assert_eq!(filter.settled_until(), 100 * MS);
        assert_eq!(filter.advance(120 * MS), Some(100 * MS));
        assert_eq!(filter.settled_until(), 120 * MS);
    }

    #[test]
    fn a_stuck_line_is_told_once_and_counts_once() {
        let (pulses, mut filter) = run(&[100], 200);
        assert_eq!(pulses, [100]);
        assert!(!filter.newly_stuck());
        filter.advance(20_000 * MS);
        assert!(filter.newly_stuck());
        assert!(!filter.newly_stuck());
        assert_eq!(filter.statistics().pulses, 1);
    }

    #[test]
    fn a_lost_edge_invents_no_pulse() {
        let mut filter = EdgeFilter::new(EdgeLimits::default(), false, Duration::ZERO);
        let up = |at| Edge {
            at: at * MS,
            active: true,
            sequence: None,
        };
        assert_eq!(filter.edge(up(100)), None);
        assert_eq!(filter.edge(up(200)), Some(100 * MS));
        assert_eq!(filter.advance(400 * MS), None);
        assert_eq!(filter.statistics().missed, 1);
    }

    proptest! {
        #[test]
        fn a_bouncing_train_counts_exactly_its_pulses(
            train in prop::collection::vec((25u32..100, 25u32..5000, 0u32..4, 0u32..4), 0..50),
        ) {
            let (mut at, mut edges) = (1000, Vec::new());
            for (width, pause, closing, opening) in &train {
                for _ in 0..*closing {
                    edges.extend([at, at + 1]);
                    at += 2;
                }
                edges.push(at);
                at += width;
                for _ in 0..*opening {
                    edges.extend([at, at + 1]);
                    at += 2;
                }
                edges.push(at);
                at += pause;
            }
            let (pulses, _) = run(&edges, at + 1000);
            prop_assert_eq!(pulses.len(), train.len());
        }
    }
}
