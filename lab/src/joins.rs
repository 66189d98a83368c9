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
use dcnet::membership::{DEFAULT_DEGREE, Policy};
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
    /// How many neighbours a meter draws
    // With fewer, a meter that loses a neighbour may have to draw again.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_DEGREE, value_parser = clap::value_parser!(u32).range(8..=1024))]
    degree: u32,
}

/// Handshakes by their offers, each once, and who took part in them.
#[derive(Default)]
struct Counted {
    handshakes: BTreeSet<(DeviceId, DeviceId)>,
    meters: BTreeSet<DeviceId>,
    /// A meter that is to stay away.
    away: Option<DeviceId>,
}

/// How many handshakes something cost, and how many meters have a new key by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    handshakes: usize,
    meters: usize,
}

/// What was counted, and whether the newest round was complete in the end.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Each with the edges of the meter that comes: those that it drew, and those of others
    /// that drew it. An exit makes no edge.
    costs: Vec<(&'static str, Cost, usize)>,
    complete: bool,
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
    fn take(&mut self) -> Cost {
        Cost {
            handshakes: std::mem::take(&mut self.handshakes).len(),
            meters: std::mem::take(&mut self.meters).len(),
        }
    }
}

/// The edges of a meter: drawn by it, or by others that it did not draw itself.
fn edges(network: &Network, meter: usize) -> usize {
    let log = network.provider.membership();
    let own = network.member(meter);
    let (drawn, incoming) = (log.graph().drawn(own, u64::MAX), log.graph().incoming(own));
    drawn.len().saturating_add(incoming.len())
}

impl Outcome {
    /// What is not as it must be.
    fn faults(&self) -> Vec<String> {
        let too_many = self.costs.iter().filter(|(_, cost, edges)| {
            cost.handshakes > *edges || cost.meters > edges.saturating_add(1)
        });
        let mut faults: Vec<String> = too_many
            .map(|(what, cost, edges)| {
                format!(
                    "{what} cost {} handshakes of {} meters for {edges} new edges",
                    cost.handshakes, cost.meters
                )
            })
            .collect();
        if !self.complete {
            faults.push("the newest round is not complete".to_owned());
        }
        faults
    }
}

impl JoinsArguments {
    /// Plays it and prints a table; fails if a round does not add up, or if something cost
    /// more handshakes than it made edges.
    pub fn run(&self) -> ExitCode {
        let faults = self.play().faults();
        for fault in &faults {
            eprintln!("lab: {fault}");
        }
        match faults.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }

    fn play(&self) -> Outcome {
        let members = usize::try_from(self.meters).unwrap_or(usize::MAX);
        let rules = Policy {
            degree: self.degree,
            ..policy(self.meters.saturating_mul(8) / 10)
        };
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
            "{members} members, draws of {}: {} handshakes to begin with, {:.0} s of computing for all of it",
            self.degree,
            counted.borrow_mut().take().handshakes,
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
        let mut costs = Vec::new();
        let mut tell = |network: &mut Network, what, comes: Option<usize>, until: u64| {
            network.run_until(until.saturating_mul(MINUTE));
            let cost = counted.borrow_mut().take();
            println!("{what:<28} {:>11} {:>22}", cost.handshakes, cost.meters);
            costs.push((what, cost, comes.map_or(0, |meter| edges(network, meter))));
        };
        counted.borrow_mut().away = None;
        network.set_online(members, false);
        network.set_online(members, true);
        tell(&mut network, "a join", Some(members), 8);
        network.input_meter(0, Input::Command(MeterCommand::Leave));
        tell(&mut network, "an exit", None, 11);
        network.saved[1].clear();
        network.restart_meter(1);
        tell(&mut network, "a return after lost state", Some(1), 14);
        network.check_aggregates();
        let last = network.aggregates.last();
        Outcome {
            costs,
            complete: last.is_some_and(|last| last.included.len() == members),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_costs_as_many_handshakes_as_a_draw_names_and_an_exit_none() {
        let joins = JoinsArguments {
            meters: 60,
            degree: 8,
        };
        let outcome = joins.play();
        assert_eq!(outcome.faults(), [] as [String; 0]);
        let drawn = Cost {
            handshakes: 8,
            meters: 9,
        };
        let nothing = Cost {
            handshakes: 0,
            meters: 0,
        };
        let expected = [
            ("a join", drawn, 8),
            ("an exit", nothing, 0),
            ("a return after lost state", drawn, 8),
        ];
        assert_eq!(outcome.costs, expected);
    }

    #[test]
    fn more_handshakes_than_edges_and_a_round_without_somebody_are_faults() {
        let cost = |handshakes, meters| Cost { handshakes, meters };
        for (cost, complete, faults) in [
            (cost(8, 9), true, 0),
            (cost(9, 9), true, 1),
            (cost(8, 10), true, 1),
            (cost(8, 9), false, 1),
        ] {
            let costs = vec![("a join", cost, 8)];
            let outcome = Outcome { costs, complete };
            assert_eq!(outcome.faults().len(), faults, "{outcome:?}");
        }
    }
}
