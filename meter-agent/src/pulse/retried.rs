//! A GPIO line that is opened again whenever it is refused or fails, so that it takes no other
//! channel with it.
//!
//! What its channel counted unseen meanwhile is lost. So the batch after such a gap says that it
//! follows one ([`super::Batch::follows_a_gap`]), and no interval with a gap in it is submitted.

use std::sync::Arc;
use std::time::Duration;

use link::back_off::{BackOff, Waits};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::line::LineSource;
use super::{LineView, NextBatch, PulseError, PulseSource, RoundLength};

/// Before a line is opened again.
const RETRY: BackOff = BackOff {
    min: Duration::from_secs(1),
    max: Duration::from_secs(60),
};

/// Opens a line; may block.
pub(super) type OpenLine = Arc<dyn Fn() -> Result<LineSource, PulseError> + Send + Sync>;

/// A line as a [`PulseSource`] that never fails.
pub struct RetriedLine {
    open: OpenLine,
    source: Option<LineSource>,
    opening: Option<JoinHandle<Result<LineSource, PulseError>>>,
    /// When it is opened again.
    next: Instant,
    /// When `source` was opened.
    opened: Option<Instant>,
    waits: Waits,
    has_counted: bool,
    is_after_gap: bool,
    rounds: Option<RoundLength>,
    view: watch::Sender<LineView>,
    trouble: watch::Sender<Option<String>>,
    told: Option<String>,
}

impl RetriedLine {
    /// Opens a line for the first time, and says with what error if it is refused.
    pub(super) fn new(open: OpenLine) -> (Self, Option<PulseError>) {
        Self::with_waits(open, Waits::new(RETRY))
    }

    fn with_waits(open: OpenLine, waits: Waits) -> (Self, Option<PulseError>) {
        let first = open();
        let mut line = Self {
            open,
            source: None,
            opening: None,
            next: Instant::now(),
            opened: None,
            waits,
            has_counted: false,
            is_after_gap: false,
            rounds: None,
            view: watch::Sender::default(),
            trouble: watch::Sender::default(),
            told: None,
        };
        let refused = match first {
            Ok(source) => {
                line.take(source);
                None
            }
            Err(error) => {
                line.wait(&error.to_string());
                Some(error)
            }
        };
        (line, refused)
    }

    fn take(&mut self, mut source: LineSource) {
        source.show_to(self.view.clone());
        if let Some(rounds) = &self.rounds {
            source.serve(rounds);
        }
        self.opened = Some(Instant::now());
        self.is_after_gap = self.has_counted;
        self.source = Some(source);
        if self.trouble.send_replace(None).is_some() {
            tracing::info!("{}: it is read again", self.told.as_deref().unwrap_or(""));
        }
    }

    /// There is no line for this reason; it is told, and opened again after a while.
    fn wait(&mut self, trouble: &str) {
        self.source = None;
        if let Some(opened) = self.opened.take()
            && self.waits.was_good_for(opened.elapsed())
        {
            self.told = None;
        }
        if self.told.as_deref() != Some(trouble) {
            tracing::error!("{trouble}; trying again, and the other channels go on");
            self.told = Some(trouble.to_owned());
        }
        self.trouble.send_replace(Some(trouble.to_owned()));
        self.next = Instant::now() + self.waits.next_wait();
    }
}

impl PulseSource for RetriedLine {
    fn line(&self) -> Option<watch::Receiver<LineView>> {
        Some(self.view.subscribe())
    }

    fn trouble(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.trouble.subscribe())
    }

    fn serve(&mut self, rounds: &RoundLength) {
        if let Some(source) = &mut self.source {
            source.serve(rounds);
        }
        self.rounds = Some(rounds.clone());
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            loop {
                if let Some(source) = &mut self.source {
                    match source.next().await {
                        Ok(batch) => {
                            self.has_counted = true;
                            return Ok(match std::mem::take(&mut self.is_after_gap) {
                                true => batch.following_a_gap(),
                                false => batch,
                            });
                        }
                        Err(error) => self.wait(&error.to_string()),
                    }
                }
                tokio::time::sleep_until(self.next).await;
                let opening = self.opening.get_or_insert_with(|| {
                    let open = Arc::clone(&self.open);
                    tokio::task::spawn_blocking(move || open())
                });
                let opened = opening.await;
                self.opening = None;
                match opened {
                    Ok(Ok(source)) => self.take(source),
                    Ok(Err(error)) => self.wait(&error.to_string()),
                    Err(error) => self.wait(&error.to_string()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc as blocking;

    use super::*;
    use crate::clock;
    use crate::pulse::Channel;
    use crate::pulse::edge::{Edge, EdgeLimits};
    use crate::pulse::line::{EdgeReader, Line, start};

    type Script = blocking::Receiver<Result<(usize, Edge), PulseError>>;

    struct Scripted(Script);

    impl EdgeReader for Scripted {
        fn read(&mut self, wait: Duration) -> Result<Option<(usize, Edge)>, PulseError> {
            match self.0.recv_timeout(wait) {
                Ok(result) => result.map(Some),
                Err(_) => Ok(None),
            }
        }
    }

    fn busy() -> PulseError {
        PulseError::Gpio {
            line: "GPIO17".to_owned(),
            problem: "it is held by \"heating\"".to_owned(),
            advice: "Stop the program",
        }
    }

    /// A line that is opened with one script after the other, and refused where there is none.
    fn line(scripts: Vec<Option<Script>>) -> (RetriedLine, Option<PulseError>) {
        let scripts = Mutex::new(scripts.into_iter());
        let open = move || {
            let script = scripts.lock().unwrap().next().flatten().ok_or_else(busy)?;
            let line = Line {
                channel: Channel(0),
                name: "GPIO17".to_owned(),
                limits: EdgeLimits::default(),
                active: false,
            };
            Ok(start(Scripted(script), vec![line])?.remove(0))
        };
        let waits = Waits::new(BackOff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(4),
        });
        RetriedLine::with_waits(Arc::new(open), waits)
    }

    #[tokio::test]
    async fn a_refused_line_is_opened_again_until_it_is_there() {
        let (_wire, script) = blocking::channel();
        let (mut source, refused) = line(vec![None, None, Some(script)]);
        assert!(refused.unwrap().to_string().contains("held by"));
        let trouble = source.trouble().unwrap();
        let told = trouble.borrow().clone().unwrap();
        assert!(told.contains("GPIO17") && told.contains("Stop"), "{told}");
        let batch = source.next().await.unwrap();
        assert!(!batch.follows_a_gap(), "nothing was counted before");
        assert_eq!(*trouble.borrow(), None);
    }

    #[tokio::test]
    async fn a_line_that_was_good_for_long_and_stays_away_is_tried_less_and_less_often() {
        let bounds = BackOff {
            min: Duration::from_millis(1),
            max: Duration::from_millis(50),
        };
        let refused = Arc::new(|| Err(busy()));
        let (mut source, _) = RetriedLine::with_waits(refused, Waits::new(bounds));
        source.opened = Some(Instant::now() - 2 * bounds.max);
        let mut wait = || {
            let now = Instant::now();
            source.wait("gone");
            source.next - now
        };
        assert!((0..100).map(|_| wait()).max().unwrap() > 10 * bounds.min);
    }

    #[tokio::test]
    async fn a_line_that_fails_is_opened_again_and_says_that_something_may_be_missing() {
        let (first_wire, first) = blocking::channel();
        let (second_wire, second) = blocking::channel();
        let (mut source, refused) = line(vec![Some(first), None, Some(second)]);
        assert!(refused.is_none());
        let (trouble, view) = (source.trouble().unwrap(), source.line().unwrap());
        assert!(!source.next().await.unwrap().follows_a_gap());
        first_wire.send(Err(busy())).unwrap();
        while !source.next().await.unwrap().follows_a_gap() {}
        assert_eq!(*trouble.borrow(), None);
        // Only once, and pulses are counted again.
        let now = clock::monotonic();
        for (after, active) in [(10, true), (40, false)] {
            let at = now + Duration::from_millis(after);
            let sequence = None;
            let edge = Edge {
                at,
                active,
                sequence,
            };
            second_wire.send(Ok((0, edge))).unwrap();
        }
        loop {
            let batch = source.next().await.unwrap();
            assert!(!batch.follows_a_gap());
            if batch.pulses().0 > 0 {
                break;
            }
        }
        assert_eq!(view.borrow().statistics.pulses, 1);
    }
}
