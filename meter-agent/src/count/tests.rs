use std::collections::BTreeMap;

use dcnet::time::Timestamp;
use dcnet::units::Pulses;
use tokio::sync::oneshot;

use super::*;
use crate::pulse::edge::EdgeStatistics;
use crate::pulse::{Channel, NextBatch};

const SECOND: Duration = Duration::from_secs(1);

/// Delivers what a test gives it, and shows what it is told to.
struct Given {
    batches: mpsc::Receiver<Result<Batch, PulseError>>,
    line: watch::Receiver<LineView>,
    input: watch::Receiver<InputStatistics>,
    shows: Shows,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shows {
    Line,
    Input,
}

impl PulseSource for Given {
    fn line(&self) -> Option<watch::Receiver<LineView>> {
        (self.shows == Shows::Line).then(|| self.line.clone())
    }

    fn input(&self) -> Option<watch::Receiver<InputStatistics>> {
        (self.shows == Shows::Input).then(|| self.input.clone())
    }

    fn next(&mut self) -> NextBatch<'_> {
        Box::pin(async {
            match self.batches.recv().await {
                Some(batch) => batch,
                None => std::future::pending().await,
            }
        })
    }
}

/// A test's end of a [`Given`].
struct Ends {
    batches: mpsc::Sender<Result<Batch, PulseError>>,
    line: watch::Sender<LineView>,
    input: watch::Sender<InputStatistics>,
}

fn given(shows: Shows) -> (Row, Box<dyn PulseSource>, Ends) {
    let (batches, receiver) = mpsc::channel(10);
    let ends = Ends {
        batches,
        line: watch::Sender::default(),
        input: watch::Sender::default(),
    };
    let source = Box::new(Given {
        batches: receiver,
        line: ends.line.subscribe(),
        input: ends.input.subscribe(),
        shows,
    });
    let constant = ImpulsesPerKwh::new(1000).unwrap();
    let mut channel = Row::new("import".to_owned(), constant, &*source);
    if shows == Shows::Line {
        channel.power = PowerMeter::new(constant, 100 * SECOND);
    }
    (channel, source, ends)
}

fn batch(pulses: u64, last: Duration) -> Batch {
    let utc = Timestamp(1000)..Timestamp(2000);
    let batch = Batch::new(Channel(0), utc, last..last, Pulses(pulses)).unwrap();
    batch.with_last_pulse(Some(last))
}

fn view(width: Option<usize>) -> View<Vec<u8>, Vec<u8>> {
    View::new(Vec::new(), Vec::new(), width)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const SEEN: LineView = LineView {
    statistics: EdgeStatistics {
        pulses: 2,
        rejected: 4,
        lost: 0,
        last_width: Some(Duration::from_millis(32)),
        missed: 0,
    },
    is_active: false,
    is_stuck: false,
};

#[test]
fn a_line_is_shown_with_power_level_width_and_edges() {
    let (mut channel, _source, ends) = given(Shows::Line);
    channel.count(&batch(1, 110 * SECOND));
    channel.count(&batch(1, 146 * SECOND));
    ends.line.send_replace(SEEN);
    let at = |seconds| channel.now(seconds * SECOND);
    let rest = "line at rest, last pulse 32 ms, 4 edges rejected, 0 lost";
    assert_eq!(at(150), format!("import: 2 pulses, 100 W, {rest}"));
    assert_eq!(at(218), format!("import: 2 pulses, at most 50 W, {rest}"));
    ends.line.send_modify(|line| {
        (line.is_active, line.is_stuck) = (true, true);
        (line.statistics.lost, line.statistics.missed) = (3, 1);
    });
    assert!(at(218).contains("line active"));
    assert!(
        at(218).ends_with("3 lost, 1 missed; STUCK; EDGES LOST"),
        "{}",
        at(218)
    );
    let summary = channel.summary(60 * SECOND);
    assert!(summary.starts_with("import: 2 pulses in 60 s, 120 W on average, 4 edges rejected"));
}

#[test]
fn an_input_is_shown_with_its_readings_and_faults() {
    let (channel, _source, ends) = given(Shows::Input);
    let given = InputStatistics {
        source: "/dev/ttyUSB0 1.8.0".into(),
        advice: "look at the head",
        faults: BTreeMap::from([("parity", 5)]),
        ..InputStatistics::default()
    };
    ends.input.send_replace(given.clone());
    assert_eq!(
        channel.hint(60 * SECOND).unwrap(),
        "import: no reading of /dev/ttyUSB0 1.8.0 in 60 s, parity: 5: look at the head"
    );
    ends.input
        .send_modify(|input| input.trouble = Some("it is gone".to_owned()));
    let hint = channel.hint(60 * SECOND).unwrap();
    assert!(hint.ends_with("in 60 s, parity: 5: it is gone"), "{hint}");
    ends.input.send_replace(InputStatistics {
        readings: 7,
        faults: BTreeMap::from([("total went back", 2)]),
        ..given
    });
    let shown = channel.now(136 * SECOND);
    assert_eq!(shown, "import: 0 pulses, 7 readings, total went back: 2");
    assert_eq!(channel.hint(60 * SECOND), None, "it is read");
    assert_eq!(
        channel.summary(60 * SECOND),
        "import: 0 pulses in 60 s, 7 readings, total went back: 2"
    );
}

#[test]
fn of_a_device_only_the_time_between_its_readings_counts() {
    let (mut channel, _source, _ends) = given(Shows::Input);
    for second in 120..144 {
        let utc = Timestamp(second * 1000)..Timestamp(second * 1000 + 1000);
        let monotonic = Duration::from_secs(second)..Duration::from_secs(second + 1);
        let pulses = Pulses(u64::from(second % 8 == 7));
        let batch = Batch::new(Channel(0), utc, monotonic, pulses).unwrap();
        channel.count(&batch);
    }
    let summary = channel.summary(60 * SECOND);
    assert!(
        summary.starts_with("import: 3 pulses in 60 s, 450 W on average"),
        "{summary}"
    );
}

#[test]
fn a_terminal_is_drawn_over_and_ends_with_the_summary() {
    let (channel, _source, _ends) = given(Shows::Line);
    let channels = [channel];
    let mut view = view(Some(20));
    view.show(&channels).unwrap();
    view.show(&channels).unwrap();
    let shown = text(&view.out).to_owned();
    let lines: Vec<_> = shown.split("\x1b[1A\r\x1b[J").collect();
    assert_eq!(lines.len(), 2, "{shown:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.len() == 20 && line.ends_with('\n')),
        "{shown:?}"
    );
    view.end(&channels, 60 * SECOND).unwrap();
    let shown = text(&view.out);
    let summary = shown.rsplit("\x1b[1A\r\x1b[J").next().unwrap();
    assert!(
        summary.starts_with("import: 0 pulses in 60 s, 0 W on average"),
        "{shown:?}"
    );
}

#[test]
fn a_script_gets_the_summary_and_each_trouble_once() {
    let (channel, _source, ends) = given(Shows::Line);
    let channels = [channel];
    let mut view = view(None);
    view.show(&channels).unwrap();
    assert_eq!(text(&view.problems), "");
    ends.line.send_modify(|line| line.is_stuck = true);
    view.show(&channels).unwrap();
    ends.line
        .send_modify(|line| line.statistics.rejected = 1000);
    view.show(&channels).unwrap();
    view.end(&channels, 60 * SECOND).unwrap();
    let problems: Vec<_> = text(&view.problems).lines().collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].starts_with("import: the line is active all the time"));
    assert!(problems[1].starts_with("import: many edges were rejected"));
    let hint = "import: no pulse in 60 s: at 1000 imp/kWh that is less than 60 W. If";
    assert!(problems[2].starts_with(hint), "{}", problems[2]);
    assert_eq!(text(&view.out).lines().count(), 1);
}

#[tokio::test]
async fn an_interruption_ends_with_the_summary_of_what_was_counted() {
    let (channel, source, ends) = given(Shows::Input);
    let mut view = view(None);
    let (interrupt, interrupted) = oneshot::channel::<()>();
    let act = async {
        ends.batches.send(Ok(batch(3, 110 * SECOND))).await.unwrap();
        // Taken out of the queue one by one, so that when there is room all before is counted.
        for _ in 0..100 {
            ends.batches.send(Ok(batch(0, 110 * SECOND))).await.unwrap();
        }
        interrupt.send(()).unwrap();
    };
    let stop = async {
        let _ = interrupted.await;
    };
    let running = run(vec![(channel, source)], 3600 * SECOND, stop, &mut view);
    let (end, ()) = tokio::join!(running, act);
    end.unwrap();
    assert!(
        text(&view.out).starts_with("import: 3 pulses in "),
        "{}",
        text(&view.out)
    );
}

#[tokio::test]
async fn a_source_that_fails_ends_it_with_its_error_after_the_summary() {
    let (channel, source, ends) = given(Shows::Line);
    let mut view = view(None);
    ends.batches
        .send(Err(PulseError::NotBuilt("test")))
        .await
        .unwrap();
    let running = run(
        vec![(channel, source)],
        3600 * SECOND,
        std::future::pending(),
        &mut view,
    );
    let end = tokio::time::timeout(60 * SECOND, running).await.unwrap();
    assert!(end.unwrap_err().to_string().contains("test"));
    assert_eq!(text(&view.out).lines().count(), 1);
}
