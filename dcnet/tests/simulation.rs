//! Whole nets in virtual time: every published aggregate equals the truth.

use dcnet::identity::DeviceId;
use dcnet::topic::Topic;
use simulation::network::{Faults, Network};
use simulation::world::{World, policy};

const MINUTE: u64 = 60_000;

#[test]
fn five_meters_agree_on_their_first_rounds() {
    let world = World::new(5, policy(4), &["import"]);
    let mut network = Network::new(
        world,
        Faults {
            delay: 50,
            ..Faults::default()
        },
        1,
    );
    network.run_until(6 * MINUTE);
    network.check_aggregates();
    assert!(
        network.aggregates.len() >= 4,
        "{:?}",
        network.meter_events[0]
    );
    assert!(network.aggregates.iter().all(|a| a.included.len() == 5));
}

#[test]
fn sixty_four_meters_and_a_hundred_rounds_with_absences_and_a_bad_network() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(20_260_101);
    let mut world = World::new(64, policy(40), &["import", "export"]);
    for meter in &mut world.meters {
        // This network loses submissions for good; a meter takes that for exclusions.
        meter.floors.exclusions_per_day = 100;
        meter.floors.exclusions_per_month = 100;
    }
    let faults = Faults {
        loss: 2,
        duplicates: 5,
        delay: 400,
    };
    let mut network = Network::new(world, faults, seed);
    for minute in 1..=103 {
        network.run_until(minute * MINUTE - 1000);
        for meter in 0..64 {
            let absent = minute > 4 && network.random(100) < 3;
            network.set_online(meter, !absent);
        }
    }
    (0..64).for_each(|meter| network.set_online(meter, true));
    network.run_until(110 * MINUTE);
    network.check_aggregates();
    let complete = network.aggregates.len();
    let with_absences = network
        .aggregates
        .iter()
        .filter(|a| a.included.len() < 64)
        .count();
    println!("{complete} aggregates, {with_absences} of them without some meters");
    assert!(complete >= 100, "only {complete} rounds were complete");
    assert!(with_absences >= 30, "absences were not exercised");
}

#[test]
fn meters_draw_again_when_the_membership_has_doubled() {
    let world = World::new(10, policy(4), &["import"]);
    let mut network = Network::new(world, Faults::default(), 3);
    let late: Vec<DeviceId> = (5..10).map(|meter| network.meters[meter].id()).collect();
    network.filter = Some(Box::new(
        move |topic, _, _| !matches!(topic, Topic::Up { meter, .. } if late.contains(meter)),
    ));
    let candidates = |network: &Network, meter: usize| -> Vec<u32> {
        let log = network.provider.membership();
        let member = log.index_of(&network.meters[meter].id()).unwrap();
        let draws = log.graph().draws(member).iter();
        draws.map(|draw| draw.candidates).collect()
    };
    network.run_until(4 * MINUTE);
    assert_eq!(candidates(&network, 0), [4]);
    assert_eq!(network.aggregates.last().unwrap().included.len(), 5);

    network.filter = None;
    for meter in 5..10 {
        network.set_online(meter, false);
        network.set_online(meter, true);
    }
    network.run_until(9 * MINUTE);
    for meter in 0..5 {
        assert_eq!(candidates(&network, meter), [4, 9], "meter {meter}");
    }
    network.check_aggregates();
    assert_eq!(network.aggregates.last().unwrap().included.len(), 10);
}
