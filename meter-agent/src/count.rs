//! `meter-agent count`: counts for a while from the sources alone and shows it as it goes.
//!
//! On a terminal there is a line per channel, redrawn every second, and at the end the summary in
//! its place. For a script there is only the summary, and on the other output a line for
//! whatever goes wrong, once.

use std::collections::BTreeSet;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use dcnet::units::ImpulsesPerKwh;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::clock;
use crate::config::Config;
use crate::diagnosis::{Input, Trouble, no_pulse, seconds, watts};
use crate::power::PowerMeter;
use crate::pulse::input::InputStatistics;
use crate::pulse::{self, Batch, LineView, PulseError, PulseSource};

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_secs(1);

/// A terminal that does not tell how wide it is.
const USUAL_WIDTH: usize = 80;

/// Counts for `duration`, or until `interrupted`, on standard output and standard error.
///
/// # Errors
/// A source cannot be opened or read; or nothing can be written.
pub async fn count(
    config: Config,
    duration: Duration,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let sources = pulse::open(&config.channels, None)?;
    let channels = config.channels.into_iter().zip(sources);
    let counted = channels
        .map(|(channel, source)| (Row::new(channel.name, channel.constant, &*source), source))
        .collect();
    let stdout = io::stdout();
    let width = stdout.is_terminal().then(|| {
        let size = rustix::termios::tcgetwinsize(&stdout);
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        if columns == 0 { USUAL_WIDTH } else { columns }
    });
    let mut view = View::new(stdout, io::stderr(), width);
    run(counted, duration, interrupted, &mut view).await
}

/// Counts from sources, each with the channel it is of, and shows it.
///
/// # Errors
/// A source cannot be read; or nothing can be written.
pub async fn run<O: Write, P: Write>(
    sources: Vec<(Row, Box<dyn PulseSource>)>,
    duration: Duration,
    interrupted: impl Future<Output = ()>,
    view: &mut View<O, P>,
) -> anyhow::Result<()> {
    let (sender, mut batches) = mpsc::channel(64);
    let mut tasks = tokio::task::JoinSet::new();
    let mut channels = Vec::new();
    for (index, (channel, source)) in sources.into_iter().enumerate() {
        channels.push(channel);
        tasks.spawn(forward(index, source, sender.clone()));
    }
    let begun = Instant::now();
    let mut end = std::pin::pin!(tokio::time::sleep(duration));
    let mut interrupted = std::pin::pin!(interrupted);
    let mut ticks = tokio::time::interval(REDRAW);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = None;
    loop {
        tokio::select! {
            biased;
            () = &mut interrupted => break,
            () = &mut end => break,
            _ = ticks.tick() => view.show(&channels).context("cannot write")?,
            // There is always a sender.
            Some((index, next)) = batches.recv() => match next {
                Ok(batch) => {
                    if let Some(channel) = channels.get_mut(index) {
                        channel.count(&batch);
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            },
        }
    }
    view.end(&channels, begun.elapsed().min(duration))
        .context("cannot write")?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

async fn forward(
    index: usize,
    mut source: Box<dyn PulseSource>,
    batches: mpsc::Sender<(usize, Result<Batch, PulseError>)>,
) {
    loop {
        let next = source.next().await;
        let failed = next.is_err();
        if batches.send((index, next)).await.is_err() || failed {
            return;
        }
    }
}

/// One channel as it is shown: what is known of it since counting began.
#[derive(Debug)]
pub struct Row {
    name: String,
    constant: ImpulsesPerKwh,
    pulses: u64,
    /// The time of which it is known how many there were.
    covered: Duration,
    power: PowerMeter,
    line: Option<watch::Receiver<LineView>>,
    input: Option<watch::Receiver<InputStatistics>>,
}

impl Row {
    /// A channel that is counted from now on, of this source.
    pub fn new(name: String, constant: ImpulsesPerKwh, source: &dyn PulseSource) -> Self {
        let input = source.input();
        Self {
            name,
            constant,
            pulses: 0,
            covered: Duration::ZERO,
            power: match input {
                Some(_) => PowerMeter::of_readings(constant),
                None => PowerMeter::new(constant, clock::monotonic()),
            },
            line: source.line(),
            input,
        }
    }

    fn count(&mut self, batch: &Batch) {
        let time = batch.monotonic();
        self.pulses = self.pulses.saturating_add(batch.pulses().0);
        self.covered += time.end.saturating_sub(time.start);
        self.power.observe(batch);
    }

    fn line(&self) -> Option<LineView> {
        self.line.as_ref().map(|line| *line.borrow())
    }

    fn input(&self) -> Option<Input> {
        self.input
            .as_ref()
            .map(|input| Input::from(&*input.borrow()))
    }

    /// How it stands at a moment of the monotonic clock, in one line.
    fn now(&self, monotonic: Duration) -> String {
        let mut text = format!("{}: {} pulses", self.name, self.pulses);
        if let Some(power) = self.power.at(monotonic) {
            let bound = if power.is_upper_bound { "at most " } else { "" };
            text += &format!(", {bound}{} W", power.milliwatts.div_ceil(1000));
        }
        if let Some(line) = self.line() {
            let level = if line.is_active { "active" } else { "at rest" };
            text += &format!(", line {level}");
            if let Some(width) = line.statistics.last_width {
                text += &format!(", last pulse {} ms", width.as_millis());
            }
        }
        text + &self.health()
    }

    /// What came of the counting, in one line.
    fn summary(&self, elapsed: Duration) -> String {
        let (name, pulses) = (&self.name, self.pulses);
        let (elapsed, health) = (seconds(elapsed), self.health());
        let observed = self.observed(Duration::from_secs_f64(elapsed));
        let average = match observed.is_zero() {
            // Before a second reading.
            true => String::new(),
            false => format!(
                ", {:.0} W on average",
                watts(pulses, observed, self.constant)
            ),
        };
        format!("{name}: {pulses} pulses in {elapsed} s{average}{health}")
    }

    /// The time that the pulses came in: all of it, or what lies between readings.
    fn observed(&self, elapsed: Duration) -> Duration {
        match self.input {
            Some(_) => self.covered,
            None => elapsed.max(Duration::from_millis(100)),
        }
    }

    /// What to do if there was nothing to count.
    fn hint(&self, elapsed: Duration) -> Option<String> {
        let name = &self.name;
        match self.input() {
            Some(input) if input.readings == 0 => {
                Some(format!("{name}: {}", input.no_reading(elapsed)))
            }
            Some(Input { refused, .. }) => refused.map(|refused| format!("{name}: {refused}")),
            None if self.pulses > 0 => None,
            None => {
                let elapsed = elapsed.max(Duration::from_secs(1));
                Some(format!("{name}: {}", no_pulse(elapsed, self.constant)))
            }
        }
    }

    /// Counters of what may go wrong, as the rest of a line, and what does.
    fn health(&self) -> String {
        let mut text = String::new();
        if let Some(line) = self.line() {
            let seen = line.statistics;
            let (rejected, lost, missed) = (seen.rejected, seen.lost, seen.missed);
            text += &format!(", {rejected} edges rejected, {lost} lost");
            if missed > 0 {
                text += &format!(", {missed} missed");
            }
        }
        if let Some(input) = self.input() {
            text += &format!(", {} readings{}", input.readings, input.faults());
        }
        for trouble in self.troubles() {
            text += &format!("; {}", trouble.word());
        }
        text
    }

    fn troubles(&self) -> Vec<Trouble> {
        self.line().map_or_else(Vec::new, |line| Trouble::of(&line))
    }
}

/// Where it is shown.
#[derive(Debug)]
pub struct View<O, P> {
    out: O,
    problems: P,
    /// Columns of the terminal; `None` if it is none.
    width: Option<usize>,
    /// Lines that are drawn again.
    drawn: usize,
    /// What was told already, by the channel's place.
    told: BTreeSet<(usize, Trouble)>,
}

impl<O: Write, P: Write> View<O, P> {
    /// Shows the counting on `out`, which is a terminal of `width` columns or, with `None`, none.
    /// Then `problems` takes a line for whatever goes wrong.
    pub fn new(out: O, problems: P, width: Option<usize>) -> Self {
        Self {
            out,
            problems,
            width,
            drawn: 0,
            told: BTreeSet::new(),
        }
    }

    fn show(&mut self, channels: &[Row]) -> io::Result<()> {
        let Some(width) = self.width else {
            return self.tell(channels);
        };
        self.erase()?;
        let now = clock::monotonic();
        for channel in channels {
            // A line that wraps could not be drawn over.
            let line: String = channel.now(now).chars().take(width.max(2) - 1).collect();
            writeln!(self.out, "{line}")?;
        }
        self.drawn = channels.len();
        self.out.flush()
    }

    /// Tells what has gone wrong since.
    fn tell(&mut self, channels: &[Row]) -> io::Result<()> {
        for (index, channel) in channels.iter().enumerate() {
            for trouble in channel.troubles() {
                if self.told.insert((index, trouble)) {
                    writeln!(self.problems, "{}: {trouble}", channel.name)?;
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, channels: &[Row], elapsed: Duration) -> io::Result<()> {
        self.erase()?;
        for channel in channels {
            writeln!(self.out, "{}", channel.summary(elapsed))?;
        }
        self.out.flush()?;
        self.tell(channels)?;
        for hint in channels.iter().filter_map(|channel| channel.hint(elapsed)) {
            writeln!(self.problems, "{hint}")?;
        }
        Ok(())
    }

    /// Up to the first line that was drawn, and everything from there on erased (ECMA-48, CUU and
    /// ED).
    fn erase(&mut self) -> io::Result<()> {
        if self.drawn > 0 {
            write!(self.out, "\x1b[{}A\r\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
