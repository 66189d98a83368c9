//! The command `joins`: how many handshakes and meters a join, an exit and a return
//! after a loss of state concern, and what one round costs, in a simulated net.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use clap::Args;
use dcnet::frame::{Notification, Unverified};
use dcnet::identity::DeviceId;
use dcnet::meter::MeterCommand;
use dcnet::output::Input;
use dcnet::topic::Topic;
use simulation::network::{Faults, Network};
use simulation::world::{World, policy};

const MINUTE: u64 = 60_000;

/// Options of `joins`.
#[derive(Debug, Args)]
pub struct JoinsArguments {
    /// How many meters are members before
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    meters: u32,
}

/// Handshakes by their offers, each once, and who took part in them.
#[derive(Default)]
struct Counted {
    handshakes: BTreeSet<(DeviceId, DeviceId)>,
    meters: BTreeSet<DeviceId>,
    /// A meter that is to stay away.
    away: Option<DeviceId>,
}

impl Counted {
    /// Counts a message that is delivered; false if it is not to be.
    fn see(&mut self, topic: &Topic, payload: &[u8]) -> bool {
        if let Topic::UpPair { meter, peer, .. } = topic
            && Unverified::parse(payload)
                .is_ok_and(|frame| frame.claimed().notification == Notification::Offer)
        {
            self.handshakes.insert((*meter, *peer));
            self.meters.extend([*meter, *peer]);
        }
        !matches!(topic, Topic::Up { meter, .. } if Some(*meter) == self.away)
    }

    /// What was counted; begins anew.
    fn take(&mut self) -> (usize, usize) {
        let handshakes = std::mem::take(&mut self.handshakes);
        let meters = std::mem::take(&mut self.meters);
        (handshakes.len(), meters.len())
    }
}

impl JoinsArguments {
    /// Plays it and prints a table; fails if a round does not add up.
    pub fn run(&self) -> ExitCode {
        let members = usize::try_from(self.meters).unwrap_or(usize::MAX);
        let rules = policy(self.meters.saturating_mul(8) / 10);
        let degree = rules.degree;
        let mut world = World::new(members.saturating_add(1), rules, &["import"]);
        for meter in &mut world.meters {
            meter.floors.exclusions_per_day = 1000;
        }
        let mut network = Network::new(world, Faults::default(), 1);
        let counted = Rc::new(RefCell::new(Counted {
            away: network.meters.last().map(dcnet::meter::Meter::id),
            ..Counted::default()
        }));
        let seeing = Rc::clone(&counted);
        network.filter = Some(Box::new(move |topic, _, payload| {
            seeing.borrow_mut().see(topic, payload)
        }));
        let began = Instant::now();
        network.run_until(5 * MINUTE);
        println!(
            "{members} members, draws of {degree}: {} handshakes to begin with, {:.0} s of computing for all of it",
            counted.borrow_mut().take().0,
            began.elapsed().as_secs_f64()
        );
        let round = Instant::now();
        network.run_until(6 * MINUTE);
        println!(
            "one round of {members} meters and the provider: {:.1} s on one core",
            round.elapsed().as_secs_f64()
        );
        println!(
            "{:<28} {:>11} {:>22}",
            "", "handshakes", "meters with a new key"
        );
        let tell = |network: &mut Network, what: &str, until: u64| {
            network.run_until(until.saturating_mul(MINUTE));
            let (handshakes, meters) = counted.borrow_mut().take();
            println!("{what:<28} {handshakes:>11} {meters:>22}");
        };
        counted.borrow_mut().away = None;
        network.set_online(members, false);
        network.set_online(members, true);
        tell(&mut network, "a join", 8);
        network.input_meter(0, Input::Command(MeterCommand::Leave));
        tell(&mut network, "an exit", 11);
        network.saved[1].clear();
        network.restart_meter(1);
        tell(&mut network, "a return after lost state", 14);
        network.check_aggregates();
        match network.aggregates.last() {
            Some(last) if last.included.len() == members => ExitCode::SUCCESS,
            _ => {
                eprintln!("lab: the newest round is not complete");
                ExitCode::FAILURE
            }
        }
    }
}
