//! The broker among enemies: it runs as a process with its usual configuration, and hostile
//! clients from thousands of loopback addresses do what they can think of, all at once. An honest
//! meter and the provider measure whether they are served all the while.
//!
//! Seeds decide what each attacker does; in which order it reaches the broker they do not.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use meter_agent::clock::utc_timestamp;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::chaos::parse_minutes;
use crate::demo::Verdict;
use crate::load::percentile;
use crate::raw::packet::publish;
use crate::system;
use crate::taken::Taken;
use crate::terminal;

mod attacks;
mod burst;
mod dice;
mod fuzz;
mod grammar;
mod honest;
mod killers;
mod setting;
mod tally;
mod watch;
mod websocket;

use crate::device::Device;
use attacks::Attacker;
use burst::Burst;
use dice::Dice;
use fuzz::Fuzzer;
use grammar::Author;
use honest::{Fare, Pair};
use killers::Killer;
use setting::Setting;
use tally::{Case, Tally};
use watch::Log;

/// Memory that the broker may have resident, in MiB: 128 for the provider's filter, 8 for each
/// other filter, 1 for each inbox, 38 for passwords that are being checked, and what is under way
/// to those who do not take it.
const MEMORY: u64 = 512;
/// The same for each connection of the burst, in KiB.
const MEMORY_PER_CONNECTION: u64 = 64;
/// For the broker to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// For the broker to notice that all attackers are gone: more than all its time limits.
const CLEANING: Duration = Duration::from_secs(60);
/// Open files besides those of connections.
const FILES: u64 = 64;
/// How often it is looked after everything.
const LOOK: Duration = Duration::from_millis(250);
/// The part of a run after which it tells how it goes.
const PARTS: u32 = 20;
/// Cases of the fuzzer that may have caused what has just been noticed.
const SUSPECT: Duration = Duration::from_secs(2);

/// How many of them are told; all are written to a file.
const TOLD: usize = 3;

/// Several of some kinds of attackers.
const SLOW_READERS: usize = 8;
const HALF_OPEN: usize = 12;
const FLOODS: usize = 3;
const RESUBSCRIBERS: usize = 2;
const TAKEOVERS: usize = 3;
const FUZZING_METERS: [&str; 3] = ["meter fuzzer 1", "meter fuzzer 2", "meter fuzzer 3"];
const FUZZING_USERS: [&str; 2] = ["user fuzzer 1", "user fuzzer 2"];
const FUZZING_STRANGERS: [&str; 2] = ["stranger fuzzer 1", "stranger fuzzer 2"];

/// Options of `abuse`.
#[derive(Debug, Args)]
pub struct AbuseArguments {
    /// How long the attacks last, in minutes, such as 60 or 0.5
    #[arg(long, value_name = "M", value_parser = parse_minutes)]
    pub minutes: Duration,
    /// Where the attackers' choices come from
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Connections that are opened in a burst and held besides
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub connections: u32,
    /// The longest that a message of the honest pair may take, in seconds
    #[arg(long, value_name = "L", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub longest: u64,
}

/// Runs until the time is over.
///
/// Only for the main thread: its end would be the end of the broker's process.
///
/// # Errors
/// What cannot be made or started. What the broker did that it must not are faults of the verdict.
pub async fn run(
    arguments: &AbuseArguments,
    mut out: impl Write,
    interrupted: impl Future<Output = ()>,
) -> anyhow::Result<Verdict> {
    let mut interrupted = std::pin::pin!(interrupted);
    let connections = u64::from(arguments.connections);
    system::allow_open_files(connections + 4096)?;
    let meters = SLOW_READERS + HALF_OPEN + FLOODS + RESUBSCRIBERS + 4 + FUZZING_METERS.len();
    let held = usize::try_from(arguments.connections)?;
    let mut setting = tokio::task::block_in_place(|| Setting::make(meters, held))?;
    setting.broker.start()?;
    crate::load::await_listener(setting.target.agents.port()).await?;
    let mut abuse = Abuse {
        log: Log::new(setting.broker.log().to_owned()),
        pair: Pair::start(&setting).await?,
        tally: Arc::default(),
        highest: Taken::default(),
        faults: Vec::new(),
        suspects: Vec::new(),
        started: Instant::now(),
        longest: Duration::from_secs(arguments.longest),
        bound: MEMORY * 1024 + connections * MEMORY_PER_CONNECTION,
        setting,
    };
    let end = tokio::select! {
        end = abuse.play(arguments, &mut out) => end,
        () = &mut interrupted => anyhow::bail!("interrupted"),
    };
    if end.is_err() || !abuse.faults.is_empty() {
        abuse.keep_traces()?;
    }
    end?;
    Ok(Verdict {
        faults: abuse.faults,
    })
}

struct Abuse {
    setting: Setting,
    pair: Pair,
    tally: Arc<Tally>,
    log: Log,
    highest: Taken,
    faults: Vec<String>,
    /// Cases of the fuzzer that were under way when something went wrong.
    suspects: Vec<Case>,
    started: Instant,
    /// The longest that a message of the honest pair may take.
    longest: Duration,
    /// Most memory, in KiB.
    bound: u64,
}

impl Abuse {
    async fn play(
        &mut self,
        arguments: &AbuseArguments,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let begin = self.moment()?;
        self.say(
            out,
            &format!(
                "seed {}; the broker has {} MiB resident; bounds: {} MiB, {} s for a message of \
                 the honest pair",
                arguments.seed,
                begin.resident / 1024,
                self.bound / 1024,
                self.longest.as_secs()
            ),
        )?;
        let target = Arc::clone(&self.setting.target);
        let began = Instant::now();
        let opening = Burst::open(&target, usize::try_from(arguments.connections)?);
        let mut burst = opening.await.context("a connection of the burst")?;
        let held = self.moment()?;
        self.say(
            out,
            &format!(
                "{} connections in {:.1} s; {} MiB resident, {} open files",
                burst.len(),
                began.elapsed().as_secs_f64(),
                held.resident / 1024,
                held.files
            ),
        )?;
        let retaining = honest::retain(&target);
        retaining.await.context("the provider cannot retain")?;
        let mut attackers = self.attackers(arguments.seed);
        let end = Instant::now() + arguments.minutes;
        let part = arguments.minutes / PARTS;
        let mut next = Instant::now() + part;
        while Instant::now() < end && self.faults.is_empty() {
            sleep(LOOK).await;
            while let Some(ended) = attackers.try_join_next() {
                self.faults.push(format!("an attacker ended: {ended:?}"));
            }
            self.look();
            if Instant::now() >= next {
                next += part;
                self.tell(out)?;
            }
        }
        attackers.shutdown().await;
        if self.setting.broker.id().is_some() {
            self.clean(held, out).await?;
            self.all_clear(&mut burst).await?;
        }
        let fare = self.pair.finish(self.longest).await;
        self.look();
        self.report(&fare, out).await?;
        drop(burst);
        match self.setting.broker.terminate(PATIENCE).await? {
            Some(status) if status.success() => {}
            ended => self
                .faults
                .push(format!("the broker ended badly: {ended:?}")),
        }
        Ok(())
    }

    fn attackers(&self, seed: u64) -> JoinSet<()> {
        let mut attackers = JoinSet::new();
        let target = &self.setting.target;
        let mut meters = target.meters.iter().cloned();
        let mut meter = || meters.next().expect("as many meters as attackers");
        let dice = |purpose: &str, number: usize| Dice::new(seed, purpose, number as u64);
        let attacker = |device: Device| Attacker {
            device,
            target: Arc::clone(target),
            tally: Arc::clone(&self.tally),
        };
        for number in 0..SLOW_READERS {
            attackers.spawn(attacker(meter()).slow_reader(dice("slow", number)));
        }
        for number in 0..HALF_OPEN {
            attackers.spawn(attacker(meter()).half_open(dice("half", number)));
        }
        for number in 0..FLOODS {
            attackers.spawn(attacker(meter()).flood(dice("flood", number)));
        }
        for number in 0..RESUBSCRIBERS {
            attackers.spawn(attacker(meter()).resubscriber(dice("resubscriber", number)));
        }
        let taken = meter();
        for number in 0..TAKEOVERS {
            attackers.spawn(attacker(taken.clone()).takeover(dice("takeover", number)));
        }
        attackers.spawn(attacker(meter()).crowd(dice("crowd", 0)));
        let any = meter();
        attackers.spawn(attacker(any.clone()).connect_storm(dice("storm", 0)));
        attackers.spawn(attacker(any).guesser(dice("guesser", 0)));
        let killer = Killer {
            device: meter(),
            target: Arc::clone(target),
            tally: Arc::clone(&self.tally),
        };
        attackers.spawn(killer.run(dice("killer", 0)));
        let mut fuzzer = |author, device, name| {
            let fuzzer = Fuzzer {
                author,
                device,
                target: Arc::clone(target),
                tally: Arc::clone(&self.tally),
                seed,
                name,
            };
            attackers.spawn(fuzzer.run());
        };
        for name in FUZZING_METERS {
            fuzzer(Author::Meter, Some(meter()), name);
        }
        for name in FUZZING_USERS {
            fuzzer(Author::User, None, name);
        }
        for name in FUZZING_STRANGERS {
            fuzzer(Author::Stranger, None, name);
        }
        let (target, tally) = (Arc::clone(target), Arc::clone(&self.tally));
        attackers.spawn(async move {
            if let Err(error) = honest::keep_busy(target).await {
                tally.fault(format!("{error:#}"));
                std::future::pending().await
            }
        });
        attackers
    }

    fn moment(&mut self) -> anyhow::Result<Taken> {
        let process = self.setting.broker.id().context("the broker has ended")?;
        let moment = Taken::of(process)?;
        let highest = &mut self.highest;
        highest.resident = highest.resident.max(moment.highest);
        highest.files = highest.files.max(moment.files);
        highest.threads = highest.threads.max(moment.threads);
        Ok(moment)
    }

    /// Whether everything is as it must be.
    fn look(&mut self) {
        let before = self.faults.len();
        match self.setting.broker.ended() {
            Ok(None) => {}
            ended => {
                let words = self.setting.broker.last_words(12);
                self.faults
                    .push(format!("the broker ended ({ended:?}):\n    {words}"));
            }
        }
        match self.moment() {
            Ok(moment) if moment.resident > self.bound => self.faults.push(format!(
                "the broker has {} MiB resident, {} are allowed",
                moment.resident / 1024,
                self.bound / 1024
            )),
            Ok(_) => {}
            Err(error) => self.faults.push(format!("{error:#}")),
        }
        match self.log.mistakes() {
            Ok(lines) => self.faults.extend(lines),
            Err(error) => self.faults.push(format!("{error:#}")),
        }
        let (oldest, broken) = self.pair.trouble();
        if oldest > self.longest {
            self.faults.push(format!(
                "a message of the honest pair is under way for {:.1} s",
                oldest.as_secs_f64()
            ));
        }
        if let Some(error) = broken {
            self.faults
                .push(format!("the honest pair lost a connection: {error}"));
        }
        self.faults.extend(self.tally.take_faults());
        if self.faults.len() > before {
            self.suspects = self.tally.recent(SUSPECT);
        }
    }

    /// Waits until nothing of the attackers is left.
    async fn clean(&mut self, held: Taken, out: &mut impl Write) -> anyhow::Result<()> {
        let wanted = held.files + FILES;
        let end = Instant::now() + CLEANING;
        loop {
            let moment = self.moment()?;
            if moment.files <= wanted {
                let mib = moment.resident / 1024;
                let what = format!(
                    "the attackers are gone; {mib} MiB resident, {} open files",
                    moment.files
                );
                return self.say(out, &what);
            }
            if Instant::now() > end {
                self.faults.push(format!(
                    "{} open files when all attackers are gone, {} before they came",
                    moment.files, held.files
                ));
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }

    /// Publishes to the connections that were held all the time.
    async fn all_clear(&mut self, burst: &mut Burst) -> anyhow::Result<()> {
        let mut provider = honest::provider(&self.setting.target).await?;
        provider
            .send(&publish(4, burst::topic().as_bytes(), 2, 1, b"!"))
            .await?;
        provider.expect().await?;
        let served = burst.served(self.longest).await;
        if served < burst.len() {
            self.faults.push(format!(
                "{served} of the {} connections that were held got a message in the end",
                burst.len()
            ));
        }
        Ok(())
    }

    fn tell(&mut self, out: &mut impl Write) -> anyhow::Result<()> {
        let attempts: u64 = self.tally.attacks().values().map(|[tried, _]| tried).sum();
        let moment = self.moment()?;
        let fare = self.pair.fare();
        let what = format!(
            "{attempts} attempts; {} MiB, {} open files, {} threads; {} honest messages, at most {:.2} s",
            moment.resident / 1024,
            moment.files,
            moment.threads,
            fare.took.len(),
            fare.took.last().copied().unwrap_or_default().as_secs_f64()
        );
        self.say(out, &what)
    }

    async fn report(&mut self, fare: &Fare, out: &mut impl Write) -> anyhow::Result<()> {
        let mut table = format!(
            "\n{:<48} {:>10} {:>20}\n",
            "attack", "attempts", "ended by the broker"
        );
        for (name, [tried, ended]) in self.tally.attacks() {
            table += &format!("{name:<48} {tried:>10} {ended:>20}\n");
        }
        table += &format!("\n{:<48} {:>10}\n", "refused by the broker", "times");
        if self.setting.broker.id().is_some() {
            let metrics = watch::metrics(self.setting.target.metrics).await?;
            for (name, value) in &metrics {
                let reason = name.strip_prefix("broker_refused_total{reason=\"");
                if let (Some(reason), true) = (reason, *value > 0.0) {
                    table += &format!("{:<48} {value:>10}\n", reason.trim_end_matches("\"}"));
                }
            }
        }
        for (place, count) in &self.log.panics {
            table += &format!(
                "{:<48} {count:>10}\n",
                format!("decoder's panic in {place}")
            );
        }
        if fare.missing > 0 {
            self.faults
                .push(format!("{} honest messages are lost", fare.missing));
        }
        let [half, most, all] = [50, 99, 100].map(|p| percentile(&fare.took, p).as_secs_f64());
        if all > self.longest.as_secs_f64() {
            self.faults
                .push(format!("a message of the honest pair took {all:.1} s"));
        }
        let highest = self.highest;
        table += &format!(
            "\nhonest pair: {} messages, {} lost, {} twice; p50 {half:.3} s, p99 {most:.3} s, longest \
             {all:.3} s\nbroker: at most {} MiB resident, {} open files, {} threads",
            fare.sent,
            fare.missing,
            fare.again,
            highest.resident / 1024,
            highest.files,
            highest.threads
        );
        writeln!(out, "{table}").context("cannot write to the terminal")
    }

    fn say(&self, out: &mut impl Write, text: &str) -> anyhow::Result<()> {
        let (clock, passed) = (terminal::clock(utc_timestamp()), self.started.elapsed());
        writeln!(out, "{clock} {:7.1} s  {text}", passed.as_secs_f64())
            .and_then(|()| out.flush())
            .context("cannot write to the terminal")
    }

    /// The broker's log outlives a run that failed, and the cases that may be why are put beside it.
    fn keep_traces(&mut self) -> anyhow::Result<()> {
        self.setting.directory.disable_cleanup(true);
        let directory = self.setting.directory.path();
        let lines: String = self.suspects.iter().map(Case::line).collect();
        crate::chaos::setting::write(&directory.join("cases.txt"), &lines)?;
        eprintln!(
            "lab: in {} are the broker's log and, in cases.txt, what the fuzzers were sending:",
            directory.display()
        );
        for case in self.suspects.iter().rev().take(TOLD) {
            eprint!("{}", case.line());
        }
        Ok(())
    }
}
