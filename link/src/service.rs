//! What a daemon tells the service manager that started it, by systemd's protocol
//! sd_notify(3): that it serves, how it is, that it stops, and that its loops turn.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is told to anybody, so a daemon
//! does the same under systemd, under another supervisor and in a terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sd_notify::NotifyState;
use tokio::time::Instant;

/// Longest time between two turns of a loop that has a [`Heartbeat`] and nothing to do:
/// 30 s, or less if the service manager's watchdog wants to hear more often. A meter in a
/// household has nothing to do nearly always, so this is most of what it costs.
///
/// Turns end at the multiples of this in UTC, so that everything that need not be exact wakes
/// the machine up together.
pub fn turn() -> Duration {
    let longest = Duration::from_secs(30);
    sd_notify::watchdog_enabled().map_or(longest, |limit| (limit / 4).min(longest))
}

/// The end of a turn that is about `wait` from now, at most half a turn before or after. A
/// `wait` that is shorter than a turn is kept as it is.
pub fn turn_in(wait: Duration) -> Instant {
    let turn = turn();
    Instant::now()
        + if wait < turn {
            wait
        } else {
            until_end_of(turn, utc(), wait)
        }
}

/// From `utc`, a time since the epoch, to the end of the turn that is nearest to `wait` after it,
/// but never to one that is over.
fn until_end_of(turn: Duration, utc: Duration, wait: Duration) -> Duration {
    let earliest = wait.saturating_sub(turn / 2);
    earliest + until_turn(utc + earliest, turn)
}

/// Until the next multiple of `turn` after `utc`, a time since the epoch.
pub fn until_turn(utc: Duration, turn: Duration) -> Duration {
    let nanos = turn.as_nanos();
    let since = utc.as_nanos().checked_rem(nanos).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanos - since).unwrap_or(u64::MAX))
}

/// Since the epoch, by a clock that may be wrong: all that hangs on it is who wakes up together.
fn utc() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// How often a daemon that has not begun to serve is looked at.
const STARTING: Duration = Duration::from_millis(50);

/// Counts the turns of a loop. Clones count the same loop.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    turns: Arc<AtomicU64>,
    turn: Duration,
}

impl Default for Heartbeat {
    /// Of a loop that turns at the end of every [`turn`].
    fn default() -> Self {
        Self::every(turn())
    }
}

impl Heartbeat {
    /// Of a loop that turns at every multiple of `turn` in UTC at least.
    pub fn every(turn: Duration) -> Self {
        Self {
            turns: Arc::default(),
            turn,
        }
    }

    /// To be called at every turn of the loop, from nowhere else.
    pub fn beat(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// When the loop is to turn even though it has nothing to do.
    pub fn due(&self) -> Instant {
        Instant::now() + until_turn(utc(), self.turn)
    }

    /// Turns since the beginning.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

/// The loops without which a daemon is not alive.
#[derive(Clone, Debug)]
pub struct Loops(Vec<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    name: &'static str,
    heartbeat: Heartbeat,
    /// Turns at the last time that all of them had turned.
    seen: u64,
}

impl Loops {
    /// Loops by their names, for the log.
    pub fn new(loops: impl IntoIterator<Item = (&'static str, Heartbeat)>) -> Self {
        let watched = |(name, heartbeat)| Watched {
            name,
            heartbeat,
            seen: 0,
        };
        Self(loops.into_iter().map(watched).collect())
    }

    /// Whether every loop has turned since this last said so.
    pub fn all_turned(&mut self) -> bool {
        let turned = self.stuck().is_empty();
        if turned {
            for watched in &mut self.0 {
                watched.seen = watched.heartbeat.turns();
            }
        }
        turned
    }

    /// The loops that have not turned since [`Self::all_turned`] last said yes.
    pub fn stuck(&self) -> Vec<&'static str> {
        let stuck = |watched: &&Watched| watched.heartbeat.turns() == watched.seen;
        self.0
            .iter()
            .filter(stuck)
            .map(|watched| watched.name)
            .collect()
    }

    /// Tells that the daemon serves once every loop has turned, then feeds the service
    /// manager's watchdog only while all of them go on turning: once one does not, nothing
    /// is told, and the daemon is killed and started again. Never returns.
    pub async fn attend(mut self) {
        while !self.all_turned() {
            tokio::time::sleep(STARTING).await;
        }
        tell(&[NotifyState::Ready]);
        if sd_notify::watchdog_enabled().is_none() {
            return std::future::pending().await;
        }
        let mut missed = 0_u32;
        loop {
            tokio::time::sleep_until(turn_in(turn())).await;
            // After the loops that turn at this moment.
            tokio::task::yield_now().await;
            if self.all_turned() {
                tell(&[NotifyState::Watchdog]);
                missed = 0;
            } else {
                missed = missed.saturating_add(1);
                if missed == 2 {
                    tracing::error!(
                        loops = ?self.stuck(),
                        "stuck; unless they go on, the service manager's watchdog ends this process"
                    );
                }
            }
        }
    }
}

/// Tells how the daemon is, in one line, for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Tells that the daemon is reading again what can change while it runs; to be followed by
/// [`reloaded`].
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no time for the service manager"),
    }
}

/// Tells that reading again is over.
pub fn reloaded() {
    tell(&[NotifyState::Ready]);
}

/// Tells that the daemon stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(state: &[NotifyState]) {
    // A service manager that hears nothing does what it must; there is nothing to do here.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_exact_ends_with_a_turn_and_what_is_short_does_not_wait_for_one() {
        let of = |turn, utc, wait| {
            let until = until_end_of(
                Duration::from_millis(turn),
                Duration::from_millis(utc),
                Duration::from_millis(wait),
            );
            until.as_millis()
        };
        assert_eq!(of(30_000, 60_000, 0), 30_000, "this turn is over");
        assert_eq!(of(30_000, 60_001, 0), 29_999);
        assert_eq!(of(30_000, 89_999, 0), 1);
        // Woken a little late or early, it comes again after one turn, not two.
        assert_eq!(of(30_000, 60_002, 30_000), 29_998);
        assert_eq!(of(30_000, 59_998, 30_000), 30_002);
        assert_eq!(of(30_000, 60_002, 60_000), 59_998);
        assert_eq!(of(30_000, 70_000, 60_000), 50_000);
        assert_eq!(of(30_000, 80_000, 60_000), 70_000);

        let wait = Duration::from_millis(20);
        let (before, at, after) = (Instant::now(), turn_in(wait), Instant::now());
        assert!((before + wait..=after + wait).contains(&at));
    }

    #[test]
    fn one_stuck_loop_is_enough_and_it_is_named() {
        let (pulses, protocol) = (Heartbeat::default(), Heartbeat::default());
        let mut loops = Loops::new([("pulses", pulses.clone()), ("protocol", protocol.clone())]);
        assert!(!loops.all_turned(), "none has turned yet");
        pulses.beat();
        assert!(!loops.all_turned());
        assert_eq!(loops.stuck(), ["protocol"]);
        protocol.beat();
        assert!(loops.all_turned());
        assert!(!loops.all_turned(), "a turn counts once");
        protocol.beat();
        protocol.beat();
        assert_eq!(loops.stuck(), ["pulses"]);
        pulses.beat();
        assert!(loops.all_turned());
    }

    #[test]
    fn a_late_loop_is_not_held_against_those_that_turned_before_it() {
        let (early, late) = (Heartbeat::default(), Heartbeat::default());
        let mut loops = Loops::new([("early", early.clone()), ("late", late.clone())]);
        early.beat();
        for _ in 0..3 {
            assert!(!loops.all_turned());
        }
        late.beat();
        assert!(loops.all_turned());
    }
}
