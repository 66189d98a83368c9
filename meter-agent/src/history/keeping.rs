//! Keeps the totals as time goes by.

use std::time::Duration;

use dcnet::time::Timestamp;
use link::service;
use tokio::time::Instant;

use super::{History, QUARTER, Total};
use crate::clock;
use crate::register::RegisterChannel;
use crate::register::counting::Counted;
use crate::status::View;

/// A total is as good for the charts as one of so long ago.
const FRESH: Duration = Duration::from_millis(QUARTER);

/// Keeps the totals of each quarter hour, of the start and the end, and of each moment at which a
/// total was caught up, until `stop` is done. While the clock is not known to be right, nothing
/// is kept. What cannot be written is said once, and tried again with the next quarter hour.
pub async fn keep(history: &History, view: &View, stop: impl Future<Output = ()>) {
    let mut counted = view.counted();
    let mut stop = std::pin::pin!(stop);
    let mut keeper = Keeper::new(history, view.channels());
    let mut kept = None;
    loop {
        let utc = view.utc();
        if let Some(now) = utc {
            let quarter = now.as_millis() / QUARTER;
            // A copy, for counting must not wait until it is written.
            let counts = counted.borrow_and_update().clone();
            if kept.is_some_and(|kept| kept != quarter) {
                let at = Timestamp(quarter.saturating_mul(QUARTER));
                keeper.keep(at, &counts, clock::monotonic());
                kept = Some(quarter);
            }
            if keeper.wants(&counts) {
                keeper.keep(now, &counts, clock::monotonic());
                kept = kept.or(Some(quarter));
            }
        }
        let now = utc.map_or(0, Timestamp::as_millis);
        let left = QUARTER.saturating_sub(now.checked_rem(QUARTER).unwrap_or(0));
        // The clock may be set, or get synchronised, in between.
        let wake = service::turn_in(Duration::from_secs(60))
            .min(Instant::now() + Duration::from_millis(left));
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep_until(wake) => {}
            Ok(_) = counted.wait_for(|counted| keeper.wants(counted)), if utc.is_some() => {}
        }
    }
    if let Some(now) = view.utc() {
        let counts = counted.borrow().clone();
        keeper.keep(now, &counts, clock::monotonic());
    }
}

/// What was kept last of a channel.
#[derive(Clone, Copy, Debug)]
struct Last {
    catch_ups: u64,
    /// Whether the next total comes after a time that nobody counted.
    is_break: bool,
}

struct Keeper<'a> {
    history: &'a History,
    channels: &'a [RegisterChannel],
    /// Of each channel; none before counting has begun.
    last: Vec<Last>,
    failed: bool,
}

impl<'a> Keeper<'a> {
    fn new(history: &'a History, channels: &'a [RegisterChannel]) -> Self {
        Self {
            history,
            channels,
            last: Vec::new(),
            failed: false,
        }
    }

    /// Whether there is something to keep now, besides each quarter hour: the start, or a total
    /// that was caught up.
    fn wants(&self, counted: &Counted) -> bool {
        let pairs = counted.channels.iter().zip(&self.last);
        self.last.len() != counted.channels.len()
            || pairs
                .into_iter()
                .any(|(channel, last)| channel.catch_ups != last.catch_ups)
    }

    /// Keeps the totals as of `at`, which is `now` on the clock of [`clock::monotonic`]. That of
    /// a channel on which nothing is counted at present is left out: it would show an
    /// idle household.
    fn keep(&mut self, at: Timestamp, counted: &Counted, now: Duration) {
        // Before the start nobody counted either.
        let start = Last {
            catch_ups: 0,
            is_break: true,
        };
        self.last.resize(counted.channels.len(), start);
        let channels = counted.channels.iter().zip(self.channels);
        let mut totals = Vec::new();
        for ((counted, channel), last) in channels.zip(&mut self.last) {
            last.is_break |= counted.catch_ups != last.catch_ups;
            last.catch_ups = counted.catch_ups;
            let covered = counted.covered;
            if covered.is_some_and(|covered| now.saturating_sub(covered) <= FRESH) {
                totals.push(Total {
                    channel: &channel.name,
                    energy: counted.energy.0,
                    is_break: std::mem::take(&mut last.is_break),
                });
            }
        }
        if totals.is_empty() {
            return;
        }
        // A few rows per quarter hour: shorter than a task of its own would take.
        match self.history.keep(at, &totals) {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !self.failed {
                    tracing::warn!("the register's course is not kept for the charts: {error:#}");
                    self.failed = true;
                }
                // As long as nothing can be kept, there is no total before the next one.
                self.last.iter_mut().for_each(|last| last.is_break = true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dcnet::units::{ImpulsesPerKwh, MilliwattHours, Pulses};

    use super::*;
    use crate::power::PowerMeter;
    use crate::register::counting::CountedChannel;

    const MINUTE: Duration = Duration::from_secs(60);

    fn channel(is_device: bool) -> CountedChannel {
        let constant = ImpulsesPerKwh::new(1000).unwrap();
        CountedChannel {
            pulses: Pulses(0),
            energy: MilliwattHours(0),
            reading: MilliwattHours(0),
            is_reading_set: is_device,
            saved_reading: None,
            power: PowerMeter::new(constant, Duration::ZERO),
            is_device,
            is_line: !is_device,
            covered: (!is_device).then_some(Duration::ZERO),
            catch_ups: 0,
        }
    }

    /// Time, total and whether it is a break, of each channel.
    fn rows(history: &History, channels: &[RegisterChannel]) -> Vec<(u64, Vec<(u64, bool)>)> {
        let (course, _) = history.course(channels, 0..=u64::MAX, usize::MAX).unwrap();
        let row = |sample: &super::super::Sample| {
            let values = sample.energy_mwh.iter().zip(&sample.is_break);
            let values = values.filter_map(|(energy, mark)| Some(((*energy)?, *mark)));
            (sample.at_ms, values.collect())
        };
        course.samples.iter().map(row).collect()
    }

    #[test]
    fn what_a_device_counted_unseen_is_a_break_and_its_silence_no_idle_household() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(&directory.path().join("state"), 8);
        let channels = [RegisterChannel {
            name: "import".to_owned(),
            constant: ImpulsesPerKwh::new(1000).unwrap(),
        }];
        let mut keeper = Keeper::new(&history, &channels);
        let mut counted = Counted::default();
        assert!(!keeper.wants(&counted), "nothing is counted yet");
        counted.channels.push(channel(true));
        assert!(keeper.wants(&counted), "the start");
        keeper.keep(Timestamp(1), &counted, MINUTE);
        assert!(!keeper.wants(&counted));
        assert_eq!(
            rows(&history, &channels),
            [],
            "of a total that nobody knows"
        );

        let mut count = |minute: u32, energy, is_catching_up: bool| {
            let import = &mut counted.channels[0];
            import.energy = MilliwattHours(energy);
            import.covered = Some(minute * MINUTE);
            import.catch_ups += u64::from(is_catching_up);
            counted.clone()
        };
        let first = count(2, 12_345_000_000, true);
        assert!(keeper.wants(&first), "a total that was caught up");
        keeper.keep(Timestamp(2), &first, 2 * MINUTE);
        let counting = count(14, 12_345_100_000, false);
        assert!(!keeper.wants(&counting));
        keeper.keep(Timestamp(15), &counting, 15 * MINUTE);
        // The device is silent: what it would have shown is not what it showed last.
        keeper.keep(Timestamp(30), &counting, 30 * MINUTE);
        keeper.keep(Timestamp(45), &counting, 45 * MINUTE);
        let again = count(200, 12_347_000_000, true);
        keeper.keep(Timestamp(200), &again, 200 * MINUTE);
        let expected = [
            (2, vec![(12_345_000_000, true)]),
            (15, vec![(12_345_100_000, false)]),
            (200, vec![(12_347_000_000, true)]),
        ];
        assert_eq!(rows(&history, &channels)[..2], expected[..2]);
        assert_eq!(rows(&history, &channels)[2..], expected[2..]);

        // Nobody counted before another start.
        let mut keeper = Keeper::new(&history, &channels);
        let mut line = Counted::default();
        line.channels.push(channel(false));
        assert!(keeper.wants(&line));
        keeper.keep(Timestamp(300), &line, MINUTE);
        assert_eq!(rows(&history, &channels)[3], (300, vec![(0, true)]));
    }
}
