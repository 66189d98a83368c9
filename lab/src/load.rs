//! Many meters on one machine: broker and provider as processes, and in this one so many TLS
//! connections with real frames. The meters are synthetic ([`simulation::synthetic`]): they sign
//! what real ones sign, but check nothing, so that the machine measures broker and provider.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use dcnet::aggregate::Aggregate;
use dcnet::time::{Period, Round, Timestamp};
use meter_agent::clock::utc_timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::cli::parse_period;
use crate::demo::Verdict;
use crate::observer::Observer;
use crate::system::{self, HOST, third_party};

mod meter;
mod setting;
mod usage;

use meter::Sighting;
pub(crate) use meter::await_listener;
use setting::Setting;
use usage::Usage;

/// TLS handshakes at a time: a street does not switch on in one moment.
const CONNECTING: usize = 32;
/// For all meters to be connected.
const CONNECT_PATIENCE: Duration = Duration::from_secs(300);
/// After the last round's end, for its sum.
const PATIENCE: Duration = Duration::from_secs(15);

/// Options of `load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// How many meters take part
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(50..=7000))]
    pub meters: u32,
    /// Length of a round
    #[arg(long, value_parser = parse_period, default_value = "15s")]
    pub period: Period,
    /// How many rounds are measured
    #[arg(long, value_name = "R", default_value_t = 40,
          value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rounds: u64,
}

/// What came of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    included: u32,
    /// Since the end of the interval.
    since_end: Duration,
    /// Since the last meter handed its submission to its connection. From then on the window can
    /// close, once that submission has come through the broker.
    since_last: Duration,
    /// Since the provider closed the window: it had all submissions, or its time was over. The
    /// moment is the one that the roster states.
    since_close: Duration,
}

/// Runs until all rounds are over.
///
/// # Errors
/// What cannot be made or started. Rounds that are not complete or not true are faults of the
/// verdict.
pub async fn run(
    arguments: &LoadArguments,
    mut out: impl Write,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<Verdict> {
    let mut interrupted = std::pin::pin!(interrupted);
    let LoadArguments {
        meters,
        period,
        rounds,
    } = *arguments;
    system::allow_open_files(u64::from(meters) * 2 + 512)?;
    writeln!(
        out,
        "making keys, certificates and the log of {meters} meters"
    )?;
    let mut setting = tokio::task::block_in_place(|| Setting::make(meters, period))?;
    setting.broker.start()?;
    await_listener(setting.port).await?;
    setting.provider.start()?;
    let root = setting.directory.path();
    let mut observer = Observer::start(HOST, setting.port, &third_party(root), setting.net).await?;

    writeln!(out, "connecting")?;
    let begun = std::time::Instant::now();
    let (sightings, mut seen) = mpsc::unbounded_channel();
    let mut connections = JoinSet::new();
    let turns = Arc::new(Semaphore::new(CONNECTING));
    for household in std::mem::take(&mut setting.households) {
        let net = Arc::clone(&setting.rules);
        connections.spawn(meter::run(
            household,
            net,
            Arc::clone(&turns),
            sightings.clone(),
        ));
    }
    drop(sightings);
    let connected = tokio::time::timeout(CONNECT_PATIENCE, all_connected(&mut seen, meters));
    tokio::select! {
        connected = connected => connected.context("not all meters are connected in time")??,
        () = &mut interrupted => bail!("interrupted while the meters connected"),
    }
    writeln!(
        out,
        "{meters} connections in {:.1} s",
        begun.elapsed().as_secs_f64()
    )?;

    // The present round has begun before everybody was there.
    let first = Round(period.round_at(utc_timestamp()).0 + 1);
    let last = Round(first.0 + rounds - 1);
    let provider_key = setting.provider_key;
    let truth = setting.sum;
    let mut outcomes: BTreeMap<Round, Outcome> = BTreeMap::new();
    let mut faults = Vec::new();
    let (mut before, mut began) = (None, std::time::Instant::now());
    let deadline = last.end(period).plus(PATIENCE);
    loop {
        let left = deadline.since(utc_timestamp());
        tokio::select! {
            message = observer.seen.recv() => {
                let message = message.context("the third party's subscription has ended")?;
                let aggregate = Aggregate::verify(&message.payload, setting.net, &provider_key)
                    .context("no aggregate of the provider on the public topic")?;
                if aggregate.round < first {
                    continue;
                }
                if before.is_none() {
                    // Without the first round, of which the meters' connecting is part.
                    before = Some(Usage::of(&setting.broker, &setting.provider)?);
                    began = std::time::Instant::now();
                }
                let sum = aggregate.sums.first().map(|sum| sum.energy);
                if aggregate.included == meters && sum != Some(truth) {
                    faults.push(format!("round {}: {sum:?} instead of {truth:?}", aggregate.round.0));
                }
                let (round, included) = (aggregate.round, aggregate.included);
                let since_end = message.at.since(round.end(period));
                let since_last = setting.rules.since_last_submission(round, message.at);
                let since_last = since_last.unwrap_or_default();
                let since_close = setting.rules.since_close(round, message.at).unwrap_or_default();
                writeln!(
                    out,
                    "round {}: {included} of {meters}, {:.2} s after its end, {:.2} s after the last submission, \
                     {:.2} s after the window closed",
                    round.0,
                    since_end.as_secs_f64(),
                    since_last.as_secs_f64(),
                    since_close.as_secs_f64()
                )?;
                let is_last = round >= last;
                outcomes.insert(round, Outcome { included, since_end, since_last, since_close });
                if is_last {
                    break;
                }
            }
            sighting = seen.recv() => match sighting {
                Some(Sighting::Connected) => {}
                Some(Sighting::Lost(why)) => faults.push(format!("a meter lost its connection: {why}")),
                None => bail!("no meter is left"),
            },
            () = tokio::time::sleep(left) => break,
            () = &mut interrupted => break,
        }
    }
    let after = Usage::of(&setting.broker, &setting.provider)?;
    let ended = period.round_at(utc_timestamp());
    for round in (first.0..=last.0.min(ended.0.saturating_sub(1))).map(Round) {
        match outcomes.get(&round) {
            Some(outcome) if outcome.included == meters => {}
            Some(outcome) => faults.push(format!(
                "round {}: {} of {meters}",
                round.0, outcome.included
            )),
            None => faults.push(format!("round {}: no sum", round.0)),
        }
    }
    if let Some(before) = before {
        let window = Duration::from_millis(setting.rules.window_ms.into());
        report(&mut out, &outcomes, meters, window)?;
        let rounds = u32::try_from(outcomes.len().saturating_sub(1)).unwrap_or(u32::MAX);
        after.report(&before, began.elapsed(), rounds, &mut out)?;
    }
    connections.abort_all();
    drop(observer);
    for process in [&mut setting.provider, &mut setting.broker] {
        process.terminate(PATIENCE).await?;
    }
    Ok(Verdict { faults })
}

async fn all_connected(
    seen: &mut mpsc::UnboundedReceiver<Sighting>,
    meters: u32,
) -> anyhow::Result<()> {
    for _ in 0..meters {
        match seen.recv().await {
            Some(Sighting::Connected) => {}
            Some(Sighting::Lost(why)) => bail!("a meter cannot connect: {why}"),
            None => bail!("the meters have ended"),
        }
    }
    Ok(())
}

/// The value that so many percent do not exceed.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or_default()
}

fn report(
    out: &mut impl Write,
    outcomes: &BTreeMap<Round, Outcome>,
    meters: u32,
    window: Duration,
) -> std::io::Result<()> {
    let complete = outcomes.values().filter(|o| o.included == meters).count();
    writeln!(
        out,
        "\n{complete} of {} sums were of all meters",
        outcomes.len()
    )?;
    writeln!(
        out,
        "{:<44} {:>8} {:>8}",
        "seconds until the sum was published", "p50", "p99"
    )?;
    let mut row = |name: &str, of: fn(&Outcome) -> Duration| {
        let mut times: Vec<Duration> = outcomes.values().map(of).collect();
        times.sort();
        let [half, most] = [50, 99].map(|percent| percentile(&times, percent).as_secs_f64());
        writeln!(out, "{name:<44} {half:>8.2} {most:>8.2}")
    };
    row("since the interval's end", |outcome| outcome.since_end)?;
    row("since the last submission was sent", |outcome| {
        outcome.since_last
    })?;
    row("since the window closed", |outcome| outcome.since_close)?;
    writeln!(
        out,
        "The window closes when the provider has the submissions of all, at the latest {:.2} s after the\n\
         interval's end; the moment is the one that its roster states.",
        window.as_secs_f64()
    )
}

/// How long until `at`; nothing if that is past.
fn until(at: Timestamp) -> Duration {
    at.since(utc_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let seconds: Vec<Duration> = (1..=200).map(Duration::from_secs).collect();
        assert_eq!(percentile(&seconds, 50), Duration::from_secs(100));
        assert_eq!(percentile(&seconds, 99), Duration::from_secs(198));
        assert_eq!(percentile(&seconds[..1], 50), Duration::from_secs(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
