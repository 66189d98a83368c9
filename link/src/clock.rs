//! The clocks a state machine is driven by, read from the operating system.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dcnet::time::{Now, Timestamp};

/// systemd-timesyncd makes this file at its first synchronisation after boot
/// (systemd-timesyncd.service(8), "Files").
const TIMESYNCD: &str = "/run/systemd/timesync/synchronized";

/// How long an answer of the operating system is used before it is asked again.
const REFRESH: Duration = Duration::from_secs(60);

/// Gives [`Now`]: monotonic time since the clock was made, UTC, and whether UTC
/// can be trusted. A clone is the same clock.
#[derive(Clone)]
pub struct Clock {
    start: Instant,
    synchronised: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Clock {
    /// UTC counts as synchronised when the operating system says so: see
    /// [`system_is_synchronised`].
    pub fn system() -> Self {
        let state = Arc::new(SystemState::default());
        Self::with(move || SystemState::get(&state))
    }

    /// UTC always counts as synchronised; for machines whose clock is set by means
    /// the operating system does not know of.
    pub fn assume_synchronised() -> Self {
        Self::with(|| true)
    }

    /// `synchronised` is asked on every input of the machine, so it must answer at once.
    pub fn with(synchronised: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self {
            start: Instant::now(),
            synchronised: Arc::new(synchronised),
        }
    }

    /// The time now. `monotonic` never goes back; a UTC clock before 1970 reads as
    /// 1970 and not synchronised.
    pub fn now(&self) -> Now {
        // Asked first: UTC is set before it counts as synchronised.
        let synchronised = (self.synchronised)();
        let (monotonic, since_epoch) = self.both();
        let utc = since_epoch.and_then(|d| u64::try_from(d.as_millis()).ok());
        Now {
            monotonic,
            utc: Timestamp(utc.unwrap_or(0)),
            synchronised: utc.is_some() && synchronised,
        }
    }

    /// Both clocks at one moment. A thread that loses its processor between two
    /// looks would make them seem out of step, so such a look is taken again.
    fn both(&self) -> (Duration, Option<Duration>) {
        let mut tries = 0;
        loop {
            let before = self.start.elapsed();
            let utc = SystemTime::now().duration_since(UNIX_EPOCH).ok();
            let monotonic = self.start.elapsed();
            tries += 1;
            if monotonic.saturating_sub(before) < Duration::from_millis(1) || tries == 10 {
                return (monotonic, utc);
            }
        }
    }

    /// The instant at which `monotonic` of [`Self::now`] reaches a value; `None` if
    /// that is too far off to be represented.
    pub fn instant(&self, monotonic: Duration) -> Option<Instant> {
        self.start.checked_add(monotonic)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// Whether the operating system holds UTC for synchronised: systemd-timesyncd's
/// marker exists, or `timedatectl` reports `NTPSynchronized=yes`, which is the
/// kernel's `STA_UNSYNC` flag (adjtimex(2)) and thus covers chrony and ntpd too.
/// Starts a process, so it may take a while.
pub fn system_is_synchronised() -> bool {
    Path::new(TIMESYNCD).exists() || kernel_is_synchronised()
}

fn kernel_is_synchronised() -> bool {
    Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout.trim_ascii() == b"yes")
}

/// The last answer of the operating system; asked again in the background, since
/// `timedatectl` may take seconds where there is no system bus.
#[derive(Default)]
struct SystemState {
    synchronised: AtomicBool,
    asked: Mutex<Option<Instant>>,
}

impl SystemState {
    fn get(this: &Arc<Self>) -> bool {
        let mut asked = this.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_none_or(|at| at.elapsed() >= REFRESH) {
            let first = asked.replace(Instant::now()).is_none();
            if first && Path::new(TIMESYNCD).exists() {
                this.synchronised.store(true, Ordering::Relaxed);
            }
            let state = Arc::clone(this);
            std::thread::spawn(move || {
                let answer = system_is_synchronised();
                if state.synchronised.swap(answer, Ordering::Relaxed) != answer {
                    tracing::info!(synchronised = answer, "the UTC clock");
                }
            });
        }
        this.synchronised.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_does_not_go_back_and_utc_is_now() {
        let clock = Clock::assume_synchronised();
        let first = clock.now();
        let second = clock.now();
        assert!(second.monotonic >= first.monotonic);
        assert!(first.utc > Timestamp(1_700_000_000_000));
        assert!(first.synchronised);
    }

    #[test]
    fn the_owner_decides_what_synchronised_means() {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        let clock = Clock::with(move || seen.load(Ordering::Relaxed));
        assert!(!clock.now().synchronised);
        flag.store(true, Ordering::Relaxed);
        assert!(clock.now().synchronised);
    }

    #[test]
    fn a_monotonic_time_becomes_an_instant() {
        let clock = Clock::assume_synchronised();
        let later = clock.instant(Duration::from_secs(3)).unwrap();
        assert_eq!(later.duration_since(clock.start), Duration::from_secs(3));
        assert!(clock.instant(Duration::MAX).is_none());
    }
}
