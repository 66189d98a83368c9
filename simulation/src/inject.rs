//! Does to a net what a plan says.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use dcnet::alarm::Alarm;
use dcnet::identity::DeviceId;
use dcnet::meter::{MeterCommand, MeterEvent};
use dcnet::output::{Input, Message};
use dcnet::pad::RosterHash;
use dcnet::topic::{All, Inbox, Topic, Up};

use crate::fault::{Fault, Lie, Withheld};
use crate::invariant::Invariant;
use crate::lies;
use crate::network::{Crash, Faults, LyingDisk, Network, Saved, Skew};
use crate::plan::Choice;
use crate::watch::Watch;

/// What is kept from whom, by the number of the fault.
type Withholding = Rc<RefCell<BTreeMap<usize, (Vec<DeviceId>, Withheld)>>>;

/// Lies that wait for the next roster.
struct Waiting {
    meters: Vec<usize>,
    lie: Lie,
}

/// The hand that injects faults.
pub(crate) struct Injector {
    pub(crate) choice: Choice,
    /// How often each kind of fault happened.
    pub(crate) injected: BTreeMap<&'static str, u64>,
    images: BTreeMap<usize, Saved>,
    withheld: Withholding,
    waiting: Vec<Waiting>,
    crashing: Option<&'static str>,
    lying: Option<usize>,
}

impl Injector {
    pub(crate) fn new(network: &mut Network, choice: Choice) -> Self {
        let withheld = Withholding::default();
        let kept = Rc::clone(&withheld);
        let ids: Vec<DeviceId> = network.meters.iter().map(|meter| meter.id()).collect();
        network.filter = Some(Box::new(move |topic, receiver, _| {
            let kept = kept.borrow();
            let receiver = receiver.and_then(|meter| ids.get(meter));
            let mut rules = kept.values();
            !rules.any(|(meters, what)| keeps(topic, receiver, meters, *what))
        }));
        Self {
            choice,
            injected: BTreeMap::new(),
            images: BTreeMap::new(),
            withheld,
            waiting: Vec::new(),
            crashing: None,
            lying: None,
        }
    }

    fn count(&mut self, kind: &'static str) {
        *self.injected.entry(kind).or_default() += 1;
    }

    /// Copies the disk that a later fault restores.
    pub(crate) fn take_image(&mut self, number: usize, fault: &Fault, network: &Network) {
        if let Fault::OldDisk { meter, .. } = fault {
            self.images.insert(number, network.saved[*meter].clone());
        }
    }

    /// Notices what waited for its moment and has happened.
    pub(crate) fn look(&mut self, network: &mut Network, watch: &mut Watch, new: &[RosterHash]) {
        if let Some(kind) = self.crashing
            && network.crash.is_none()
        {
            self.crashing = None;
            self.count(kind);
            watch.tell(network, || format!("*** {kind}"));
        }
        if let Some(meter) = self.lying
            && network.lying.is_none()
        {
            self.lying = None;
            watch.harm.forgetful.insert(meter);
            self.count("lost last commit");
            watch.tell(network, || {
                format!("*** meter {meter} lost its last commit")
            });
        }
        for hash in new {
            for waiting in std::mem::take(&mut self.waiting) {
                self.count("false roster");
                self.lie(network, watch, *hash, &waiting);
            }
        }
    }

    /// Ends what waits for a moment that has not come.
    pub(crate) fn disarm(&mut self, network: &mut Network, watch: &mut Watch) {
        if let Some(Crash { process, .. }) = network.crash.take() {
            self.crashing = None;
            watch.tell(network, || "*** the crash comes now".to_owned());
            match process {
                Some(meter) => network.restart_meter(meter),
                None => network.restart_provider(),
            }
        }
        network.lying = None;
        self.lying = None;
        self.waiting.clear();
    }

    pub(crate) fn begin(
        &mut self,
        number: usize,
        fault: &Fault,
        network: &mut Network,
        watch: &mut Watch,
    ) {
        watch.tell(network, || format!("*** {fault}"));
        match fault {
            Fault::Crash { .. } | Fault::LostCommit { .. } | Fault::FalseRoster { .. } => {}
            _ => self.count(fault.kind()),
        }
        watch.harm.submissions |= loses_submissions(fault);
        match fault {
            Fault::Weather(faults) => network.faults = *faults,
            Fault::Partition {
                meters, noticed, ..
            } => {
                for meter in meters {
                    if *noticed {
                        network.set_online(*meter, false);
                    } else {
                        network.cut[*meter] = true;
                    }
                }
            }
            Fault::BrokerRestart { .. } => network.stop_broker(),
            Fault::Crash { process, after } => {
                if network.crash.is_some() {
                    self.disarm(network, watch);
                }
                self.crashing = Some(fault.kind());
                let (process, after) = (*process, *after);
                network.crash = Some(Crash { process, after });
            }
            Fault::LostCommit { meter, after } => {
                self.lying = Some(*meter);
                let (meter, after) = (*meter, *after);
                network.lying = Some(LyingDisk { meter, after });
            }
            Fault::OldDisk { meter, .. } => {
                let image = self.images.remove(&number).unwrap_or_default();
                watch.harm.forgetful.insert(*meter);
                network.restore_disk(*meter, image);
            }
            Fault::NewDisk { meter } => {
                watch.harm.forgetful.insert(*meter);
                network.restore_disk(*meter, Saved::default());
            }
            Fault::Leave { meter } => {
                network.input_meter(*meter, Input::Command(MeterCommand::Leave));
            }
            Fault::Revocation { meter } => {
                watch.harm.revoked.insert(*meter);
                network.revoke(*meter);
            }
            Fault::KeyChange => network.change_provider_key(),
            Fault::ClockStep { meter, ahead, .. } => {
                let ahead = *ahead;
                set_clock(network, watch, *meter, |skew| skew.ahead = ahead);
            }
            Fault::ClockDrift { meter, drift, .. } => {
                let (drift, now) = (*drift, network.now);
                set_clock(network, watch, *meter, |skew| {
                    (skew.drift, skew.drifts_since) = (drift, now);
                });
            }
            Fault::Unsynchronised { meter, .. } => {
                network.skews[*meter].unsynchronised = true;
            }
            // The run lets the day pass.
            Fault::Absence { .. } => {}
            Fault::ProviderClockStep { ahead, .. } => {
                let ahead = *ahead;
                set_provider_clock(network, watch, |skew| skew.ahead = ahead);
            }
            Fault::ProviderClockDrift { drift, .. } => {
                let (drift, now) = (*drift, network.now);
                set_provider_clock(network, watch, |skew| {
                    (skew.drift, skew.drifts_since) = (drift, now);
                });
            }
            Fault::Withhold { meters, what, .. } => {
                let ids = meters.iter().map(|meter| network.meters[*meter].id());
                let kept = (ids.collect(), *what);
                watch.harm.handshakes |= matches!(what, Withheld::Handshakes | Withheld::Log);
                self.withheld.borrow_mut().insert(number, kept);
            }
            Fault::Replay { to, frames } => {
                let old = lies::old_messages(network, *to, *frames, &mut self.choice);
                old.into_iter().for_each(|old| hand_over(network, *to, old));
            }
            Fault::Garbage { to, frames } => {
                for mut bad in lies::old_messages(network, *to, *frames, &mut self.choice) {
                    lies::spoil(network, &mut bad, &mut self.choice);
                    hand_over(network, *to, bad);
                }
            }
            Fault::FalseRoster { meters, lie } => self.waiting.push(Waiting {
                meters: meters.clone(),
                lie: *lie,
            }),
            Fault::SecondRoster { meters, lie } => {
                if let Some(saved) = network.saved_net.rosters.last() {
                    let frame = saved.frame.clone();
                    let time = watch.time(network);
                    watch.roster(network, time, &frame, true);
                    let newest = network.newest_roster().hash;
                    let (meters, lie) = (meters.clone(), *lie);
                    self.lie(network, watch, newest, &Waiting { meters, lie });
                }
            }
            Fault::ForkedLog { meter } => show_fork(network, watch, *meter),
            Fault::FalseLapse { meter } => {
                watch.harm.false_lapses = true;
                network.lapse(*meter);
            }
        }
    }

    /// Ends a fault that lasts.
    pub(crate) fn end(
        &mut self,
        number: usize,
        fault: &Fault,
        network: &mut Network,
        watch: &mut Watch,
    ) {
        watch.tell(network, || format!("*** over: {fault}"));
        match fault {
            Fault::Partition { meters, .. } => {
                for meter in meters {
                    network.cut[*meter] = false;
                    network.set_online(*meter, true);
                }
            }
            Fault::BrokerRestart { .. } => {
                network.connect_provider();
                (0..network.meters.len()).for_each(|meter| network.set_online(meter, true));
            }
            Fault::ClockStep { meter, .. } | Fault::ClockDrift { meter, .. } => {
                set_clock(network, watch, *meter, |skew| {
                    (skew.ahead, skew.drift) = (0, 0);
                });
                confirm_clock(network, *meter);
            }
            Fault::Unsynchronised { meter, .. } => {
                network.skews[*meter].unsynchronised = false;
            }
            Fault::ProviderClockStep { .. } | Fault::ProviderClockDrift { .. } => {
                set_provider_clock(network, watch, |skew| *skew = Skew::default());
            }
            Fault::Withhold { .. } => drop(self.withheld.borrow_mut().remove(&number)),
            _ => {}
        }
    }

    /// Everything is well from now on, and owners confirm their clocks.
    pub(crate) fn heal(&mut self, network: &mut Network, watch: &mut Watch) {
        self.disarm(network, watch);
        network.filter = None;
        network.faults = Faults {
            delay: 50,
            ..Faults::default()
        };
        network.connect_provider();
        network.provider_skew = Skew::default();
        network.input_provider(Input::Tick);
        for meter in 0..network.meters.len() {
            network.cut[meter] = false;
            network.skews[meter] = Skew::default();
            network.look_at_clock(meter);
            network.set_online(meter, true);
            confirm_clock(network, meter);
        }
    }

    /// Shows meters a false roster beside a true one. One that has answered the true one
    /// must say so.
    fn lie(&mut self, network: &mut Network, watch: &mut Watch, hash: RosterHash, lie: &Waiting) {
        let Some(roster) = watch.rosters.get(&hash).cloned() else {
            return;
        };
        for meter in &lie.meters {
            let made = lies::falsify(network, &roster, lie.lie, *meter, &mut self.choice);
            let Some(frame) = made.filter(|_| network.online[*meter] && !network.cut[*meter])
            else {
                continue;
            };
            let time = watch.time(network);
            let Some(lied) = watch.roster(network, time, &frame, false) else {
                continue;
            };
            watch.tell(network, || format!("*** meter {meter} sees a false roster"));
            let mut events = network.meter_events[*meter].iter();
            // Alone the newest answer is certain to be known still, and without other lies.
            let answered = events.any(|event| matches!(event, MeterEvent::Revealed { round, .. } if *round == roster.round));
            let sane = !watch.harm.forgetful.contains(meter)
                && !watch.harm.false_rosters.contains(meter)
                && !watch.harm.forked.contains(meter)
                && network.skews[*meter] == Skew::default()
                && watch.history.aggregate_of(roster.round).is_none();
            watch.harm.false_rosters.insert(*meter);
            let before = network.alarms(*meter).len();
            network.show_roster(*meter, frame);
            if answered && sane && lied != hash && !stopped(network, *meter) {
                let round = roster.round;
                let alarm = Alarm::SecondRoster { round };
                let said = network.alarms(*meter).split_off(before).contains(&alarm);
                let report = &mut watch.history.report;
                report.check(Invariant::Alarms, time, said, || {
                    format!("meter {meter} says nothing about a second roster of round {round}")
                });
            }
        }
    }
}

fn stopped(network: &Network, meter: usize) -> bool {
    let key = (dcnet::output::Store::Net, b"stopped".to_vec());
    network.saved[meter].contains_key(&key)
}

fn keeps(topic: &Topic, receiver: Option<&DeviceId>, meters: &[DeviceId], what: Withheld) -> bool {
    let (all, inbox, up) = match what {
        Withheld::Log => (Some(All::Log), Some(Inbox::Log), None),
        Withheld::Rosters => (Some(All::Roster), Some(Inbox::Roster), None),
        Withheld::Aggregates => (Some(All::Aggregate), Some(Inbox::Aggregate), None),
        Withheld::Handshakes => (None, None, None),
        Withheld::Submissions => (None, None, Some(Up::Submission)),
        Withheld::Reveals => (None, None, Some(Up::Reveal)),
    };
    match topic {
        Topic::All { kind, .. } => {
            Some(*kind) == all && receiver.is_some_and(|meter| meters.contains(meter))
        }
        Topic::Inbox { meter, kind, .. } => Some(*kind) == inbox && meters.contains(meter),
        Topic::Up { meter, kind, .. } => Some(*kind) == up && meters.contains(meter),
        Topic::InboxPair { meter, .. } => {
            matches!(what, Withheld::Handshakes) && meters.contains(meter)
        }
        _ => false,
    }
}

/// Whether submissions may not reach the provider, or not count there, while the meter takes
/// itself to be connected.
fn loses_submissions(fault: &Fault) -> bool {
    match fault {
        Fault::Partition { noticed, .. } => !noticed,
        Fault::Weather(faults) => faults.loss > 10,
        Fault::Crash { process: None, .. }
        | Fault::BrokerRestart { .. }
        | Fault::ProviderClockStep { .. }
        | Fault::ProviderClockDrift { .. }
        | Fault::Withhold { .. }
        | Fault::FalseRoster { .. }
        | Fault::SecondRoster { .. }
        | Fault::ForkedLog { .. }
        | Fault::FalseLapse { .. } => true,
        _ => false,
    }
}

fn set_clock(
    network: &mut Network,
    watch: &mut Watch,
    meter: usize,
    change: impl FnOnce(&mut Skew),
) {
    watch.harm.wrong_clock.insert(meter);
    change(&mut network.skews[meter]);
    network.look_at_clock(meter);
}

fn set_provider_clock(network: &mut Network, watch: &mut Watch, change: impl FnOnce(&mut Skew)) {
    watch.harm.provider_clock = true;
    change(&mut network.provider_skew);
    network.input_provider(Input::Tick);
}

fn confirm_clock(network: &mut Network, meter: usize) {
    // The machine must have seen the jump before the owner can say that it is right.
    network.input_meter(meter, Input::Tick);
    network.input_meter(meter, Input::Command(MeterCommand::ConfirmClock));
}

fn hand_over(network: &mut Network, to: Option<usize>, message: Message) {
    match to {
        None if network.provider_online => network.deliver_up(message.topic, message.payload),
        Some(meter) if network.online[meter] && !network.cut[meter] => {
            network.deliver(meter, message.topic, message.payload);
        }
        _ => {}
    }
}

/// Shows a meter a second log. One that knows the true entry must say so and stop.
fn show_fork(network: &mut Network, watch: &mut Watch, meter: usize) {
    let fork = lies::fork(network).filter(|_| network.online[meter] && !network.cut[meter]);
    let Some((index, entry)) = fork else { return };
    let head = network.meters[meter]
        .membership()
        .map(|log| log.head().index);
    let noticed = head.is_some_and(|head| head >= index) && !watch.harm.forked.contains(&meter);
    watch.harm.forked.insert(meter);
    let was_stopped = stopped(network, meter);
    let before = (network.disks[meter], network.crash.is_some());
    network.show_entry(meter, entry);
    // One that died on it, or whose disk lost what it stored of it, starts without it.
    let lives_on = before == (network.disks[meter], network.crash.is_some());
    if noticed && !was_stopped && lives_on {
        let named = network.alarms(meter).contains(&Alarm::LogFork { index });
        let time = watch.time(network);
        let ended = stopped(network, meter);
        watch
            .history
            .report
            .check(Invariant::Alarms, time, named && ended, || {
                format!("meter {meter} goes on although it saw a second log entry {index}")
            });
    }
}
