//! A driver whose step does not end stops turning, whatever else the process still does.

mod support;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use dcnet::identity::Role;
use dcnet::output::{Input, Output, StateMachine};
use dcnet::time::Now;
use link::service::{Heartbeat, Loops};
use link::{Driver, Journal};
use support::{Authority, until};

/// Handles a command by waiting for the end of a channel.
struct Blocking;

impl StateMachine for Blocking {
    type Persist = u8;
    type Event = ();
    type Command = mpsc::Receiver<()>;

    fn subscriptions(&self) -> Vec<String> {
        Vec::new()
    }

    fn handle(&mut self, input: Input<mpsc::Receiver<()>>, _now: Now) {
        if let Input::Command(wait) = input {
            let _ = wait.recv();
        }
    }

    fn poll_output(&mut self) -> Option<Output<u8, ()>> {
        None
    }
}

struct Nothing;

impl Journal for Nothing {
    type Record = u8;

    fn commit(&mut self, _records: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_turns_without_a_broker_and_not_while_a_step_lasts() {
    let authority = Authority::new();
    // Nobody listens there.
    let connection = authority.issue("provider", Role::Provider).connection(1);
    let heartbeat = Heartbeat::every(Duration::from_millis(20));
    let handle = Driver::new(Blocking, Nothing, connection)
        .with_gauges(Arc::default(), heartbeat.clone())
        .start();
    let mut loops = Loops::new([("protocol", heartbeat.clone())]);
    until("three idle turns", || heartbeat.turns() >= 3).await;
    assert!(loops.all_turned());

    let (release, wait) = mpsc::channel();
    handle.commands.send(wait).await.unwrap();
    until("the step has begun", || {
        handle.commands.capacity() == link::driver::COMMANDS
    })
    .await;
    // The turn that took the command has begun; none follows it.
    let turns = heartbeat.turns();
    loops.all_turned();
    let further = tokio::time::timeout(Duration::from_secs(3), async {
        while heartbeat.turns() == turns {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(further.await.is_err(), "it turned while its step lasted");
    assert_eq!(loops.stuck(), ["protocol"]);

    drop(release);
    until("it turns again", || heartbeat.turns() > turns + 1).await;
    assert!(loops.all_turned());
    handle.stop().await.unwrap();
}
