//! The driver against the project's broker over real sockets.

mod support;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::bail;
use dcnet::identity::Role;
use dcnet::output::{Input, Output, Received, StateMachine};
use dcnet::time::Now;
use link::{Clock, Connection, Driver, Handle, Journal, LinkState};
use support::{Authority, PUBLIC, Testbed, message, soon, status, until};
use tokio::sync::watch::Receiver;

/// Reports every input as an event, and puts out what it is commanded to.
struct Probe {
    filters: Vec<String>,
    outputs: VecDeque<Output<u8, Seen>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Received(Vec<Received>),
    Connected,
    Disconnected,
    Tick,
    Echo(usize),
}

type Outputs = Vec<Output<u8, Seen>>;

impl StateMachine for Probe {
    type Persist = u8;
    type Event = Seen;
    type Command = Outputs;

    fn subscriptions(&self) -> Vec<String> {
        self.filters.clone()
    }

    fn handle(&mut self, input: Input<Outputs>, _now: Now) {
        let seen = match input {
            Input::Received(messages) => Seen::Received(messages),
            Input::Connected => Seen::Connected,
            Input::Disconnected => Seen::Disconnected,
            Input::Tick => Seen::Tick,
            Input::Command(outputs) => return self.outputs.extend(outputs),
        };
        self.outputs.push_back(Output::Event(seen));
    }

    fn poll_output(&mut self) -> Option<Output<u8, Seen>> {
        self.outputs.pop_front()
    }
}

/// Keeps nothing; fails at a certain commit.
struct Memory {
    commits: usize,
    fails_at: usize,
}

impl Journal for Memory {
    type Record = u8;

    fn commit(&mut self, _records: &[u8]) -> anyhow::Result<()> {
        self.commits += 1;
        if self.commits == self.fails_at {
            bail!("no space left on device");
        }
        Ok(())
    }
}

fn start_with(connection: Connection, filter: &str, fails_at: usize) -> Handle<Outputs, Seen> {
    let machine = Probe {
        filters: vec![filter.to_owned()],
        outputs: VecDeque::new(),
    };
    let journal = Memory {
        commits: 0,
        fails_at,
    };
    Driver::new(machine, journal, connection)
        .with_clock(Clock::assume_synchronised())
        .start()
}

fn start(connection: Connection) -> Handle<Outputs, Seen> {
    start_with(connection, PUBLIC, 0)
}

/// Starts, and waits for the connection.
async fn connect(connection: Connection) -> Handle<Outputs, Seen> {
    let mut handle = start(connection);
    assert_eq!(next(&mut handle).await, Seen::Connected);
    handle
}

async fn next(handle: &mut Handle<Outputs, Seen>) -> Seen {
    let next = soon("an event", handle.events.recv()).await;
    next.expect("the driver has ended")
}

async fn received(handle: &mut Handle<Outputs, Seen>, count: usize) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while payloads.len() < count {
        if let Seen::Received(batch) = next(handle).await {
            payloads.extend(batch.into_iter().map(|message| message.payload));
        }
    }
    payloads
}

/// Waits until the state of the link is as wanted.
async fn reaches(mut state: Receiver<LinkState>, wanted: impl FnMut(&LinkState) -> bool) {
    soon("the state of the link", state.wait_for(wanted))
        .await
        .unwrap();
}

async fn command(handle: &Handle<Outputs, Seen>, outputs: Outputs) {
    soon("the command is taken", handle.commands.send(outputs))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_out_and_come_in_in_order() {
    let testbed = Testbed::start().await;
    let mut observer = testbed.observer().await;
    let mut handle = connect(testbed.connection()).await;
    assert_eq!(*handle.control.state().borrow(), LinkState::Connected);

    let sent: Vec<Vec<u8>> = (0..1000_u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let mut outputs: Outputs = Vec::new();
    for payload in &sent {
        outputs.push(Output::Persist(1));
        outputs.push(Output::Publish(message(payload.clone())));
    }
    command(&handle, outputs).await;
    assert_eq!(received(&mut handle, 1000).await, sent);
    for payload in &sent {
        assert_eq!(&observer.next().await, payload);
    }
    until("all is acknowledged", || {
        handle.control.totals().acknowledged == 1000
    })
    .await;
    let totals = handle.control.totals();
    assert_eq!(
        (totals.connects, totals.published, totals.received),
        (1, 1000, 1000)
    );
    assert_eq!((totals.bytes_out, totals.bytes_in), (4000, 4000));
    assert_eq!(
        (totals.commits, totals.records),
        (1, 1000),
        "one transaction for one step"
    );
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_restart_leads_to_a_new_subscription() {
    let mut testbed = Testbed::start().await;
    let mut handle = connect(testbed.connection()).await;
    testbed.stop_broker().await;
    assert_eq!(next(&mut handle).await, Seen::Disconnected);
    let state = handle.control.state();
    reaches(state, |s| matches!(s, LinkState::Waiting { .. })).await;
    command(
        &handle,
        vec![
            Output::Publish(message("lost")),
            Output::Event(Seen::Echo(1)),
        ],
    )
    .await;
    assert_eq!(next(&mut handle).await, Seen::Echo(1));
    assert_eq!(handle.control.totals().dropped_offline, 1);

    testbed.start_broker().await;
    assert_eq!(next(&mut handle).await, Seen::Connected);
    testbed.publisher().await.publish_status("after").await;
    assert_eq!(
        received(&mut handle, 1).await,
        [b"after".to_vec()],
        "subscribed again; nothing old was sent"
    );
    assert_eq!(handle.control.totals().connects, 2);
    assert!(handle.control.totals().failures >= 1);
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_is_told_and_nothing_is_sent_again_by_the_shell() {
    let testbed = Testbed::start().await;
    let proxy = testbed.proxy().await;
    proxy.control.withhold_from.store(1, Ordering::SeqCst);
    let mut observer = testbed.observer().await;
    let mut handle = connect(testbed.provider.connection(proxy.port)).await;
    command(&handle, vec![Output::Publish(message("unacknowledged"))]).await;
    assert_eq!(observer.next().await, b"unacknowledged");
    proxy.control.cut();
    assert_eq!(next(&mut handle).await, Seen::Disconnected);
    assert_eq!(next(&mut handle).await, Seen::Connected);
    command(&handle, vec![Output::Publish(message("new"))]).await;
    assert_eq!(observer.next().await, b"new");
    until("both are counted", || {
        handle.control.totals().published == 2
    })
    .await;
    assert_eq!(handle.control.totals().connects, 2);
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_subscription_is_told() {
    let testbed = Testbed::start().await;
    let forbidden = "dcnet/1/+/meter/+/inbox/#";
    let mut handle = start_with(testbed.connection(), forbidden, 0);
    let refused = LinkState::SubscriptionRefused {
        filters: vec![forbidden.to_owned()],
    };
    reaches(handle.control.state(), |state| *state == refused).await;
    command(&handle, vec![Output::Event(Seen::Echo(1))]).await;
    assert_eq!(next(&mut handle).await, Seen::Echo(1), "never connected");
    assert_eq!(handle.control.totals().connects, 0);
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_commit_ends_all_publishing() {
    let testbed = Testbed::start().await;
    let mut observer = testbed.observer().await;
    let mut handle = start_with(testbed.connection(), PUBLIC, 3);
    assert_eq!(next(&mut handle).await, Seen::Connected);
    let state = handle.control.state();
    let both = |text: &str| vec![Output::Persist(0), Output::Publish(message(text))];
    command(&handle, both("one")).await;
    assert_eq!(observer.next().await, b"one");
    command(&handle, both("two")).await;
    assert_eq!(observer.next().await, b"two");
    command(&handle, both("three")).await;
    // Already in the queue of commands; must never be handled.
    let _ = handle
        .commands
        .try_send(vec![Output::Publish(message("four"))]);
    soon("the events end", async {
        while handle.events.recv().await.is_some() {}
    })
    .await;
    let error = soon("the driver ends", handle.control.join())
        .await
        .unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("journal") && error.contains("no space left"),
        "{error}"
    );
    reaches(state, |s| {
        matches!(s, LinkState::Stopped { error: Some(_) })
    })
    .await;
    testbed.publisher().await.publish_status("marker").await;
    assert_eq!(
        observer.next().await,
        b"marker",
        "nothing after the failed commit was published"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_fails_for_a_while_is_opened_again() {
    let testbed = Testbed::start().await;
    let mut observer = testbed.observer().await;
    let machine = || Probe {
        filters: vec![PUBLIC.to_owned()],
        outputs: VecDeque::new(),
    };
    let journal = |fails_at| Memory {
        commits: 0,
        fails_at,
    };
    let mut tries = 0;
    let mut handle = Driver::new(machine(), journal(2), testbed.connection())
        .with_clock(Clock::assume_synchronised())
        .with_reopen(Box::new(move |_| {
            tries += 1;
            if tries == 1 {
                bail!("still no space left on device");
            }
            Ok((machine(), journal(0)))
        }))
        .start();
    assert_eq!(next(&mut handle).await, Seen::Connected);
    let both = |text: &str| vec![Output::Persist(0), Output::Publish(message(text))];
    command(&handle, both("one")).await;
    assert_eq!(observer.next().await, b"one");
    command(&handle, both("two")).await;
    soon("the commit fails", async {
        while handle.control.totals().journal_failures == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // As long as nothing can be kept, nothing is handled.
    command(&handle, both("three")).await;
    let mut seen = next(&mut handle).await;
    while matches!(seen, Seen::Received(_)) {
        seen = next(&mut handle).await;
    }
    assert_eq!(seen, Seen::Connected, "the new machine begins anew");
    command(&handle, both("four")).await;
    assert_eq!(observer.next().await, b"four");
    let totals = handle.control.totals();
    assert_eq!((totals.journal_failures, totals.connects), (2, 1));
    assert!(totals.dropped_no_journal >= 1);
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_topics_and_long_payloads_are_counted_and_dropped() {
    let testbed = Testbed::start().await;
    let mut handle = connect(testbed.connection()).await;
    let mut publisher = testbed.publisher().await;
    let topic = status().to_string();
    let unknown = format!("dcnet/1/{}/public/unheard-of", support::NET);
    publisher.publish(&unknown, "x").await;
    publisher.publish(&topic, vec![0; 64 * 1024 + 1]).await;
    publisher.publish(&topic, vec![7; 64 * 1024]).await;
    assert_eq!(received(&mut handle, 1).await, [vec![7; 64 * 1024]]);
    let outputs = vec![
        Output::Publish(message(vec![0; 64 * 1024 + 1])),
        Output::Publish(message(vec![8; 64 * 1024])),
    ];
    command(&handle, outputs).await;
    assert_eq!(received(&mut handle, 1).await, [vec![8; 64 * 1024]]);
    let totals = handle.control.totals();
    assert_eq!(
        (
            totals.dropped_topic,
            totals.dropped_oversized,
            totals.dropped_too_long
        ),
        (1, 1, 1)
    );
    assert_eq!(totals.connects, 1, "no connection was lost over it");
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_owner_stops_nothing() {
    let testbed = Testbed::start().await;
    let mut observer = testbed.observer().await;
    let mut handle = connect(testbed.connection()).await;
    let events = (0..link::driver::EVENTS + 10).map(|n| Output::Event(Seen::Echo(n)));
    command(&handle, events.collect()).await;
    command(&handle, vec![Output::Publish(message("still working"))]).await;
    assert_eq!(observer.next().await, b"still working");
    assert!(handle.control.totals().dropped_events >= 10);
    assert_eq!(
        next(&mut handle).await,
        Seen::Echo(0),
        "the oldest are kept"
    );
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_takes_nothing_stops_nothing() {
    let testbed = Testbed::start().await;
    let proxy = testbed.proxy().await;
    let mut connection = testbed.provider.connection(proxy.port);
    connection.max_queued_messages = 100;
    let mut handle = connect(connection).await;
    proxy.control.deaf.store(true, Ordering::SeqCst);
    // Far more than all buffers between here and there hold.
    for n in 0..20 {
        let mut outputs: Outputs = (0..50)
            .map(|_| Output::Publish(message(vec![0; 60_000])))
            .collect();
        outputs.push(Output::Event(Seen::Echo(n)));
        command(&handle, outputs).await;
        while next(&mut handle).await != Seen::Echo(n) {}
    }
    assert!(handle.control.totals().dropped_full > 0);
    soon("it stops all the same", handle.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_machine_is_woken_when_it_asks() {
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    // Nobody listens there: time and commands need no broker.
    let mut handle = start(provider.connection(1));
    let early = Output::WakeAt(Duration::from_millis(1));
    let never = Output::WakeAt(Duration::MAX);
    command(&handle, vec![early]).await;
    assert_eq!(next(&mut handle).await, Seen::Tick);
    let soon_again = Output::WakeAt(Duration::from_millis(50));
    command(&handle, vec![never.clone(), soon_again]).await;
    assert_eq!(next(&mut handle).await, Seen::Tick, "the last wish counts");
    command(
        &handle,
        vec![
            Output::WakeAt(Duration::from_secs(3600)),
            never,
            Output::Event(Seen::Echo(0)),
        ],
    )
    .await;
    assert_eq!(next(&mut handle).await, Seen::Echo(0));
    handle.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_sends_what_is_queued_and_says_farewell() {
    let testbed = Testbed::start().await;
    let mut observer = testbed.observer().await;
    let mut publisher = testbed.publisher().await;
    let proxy = testbed.proxy().await;
    for farewell in [true, false] {
        let mut connection = testbed.provider.connection(proxy.port);
        connection.last_will = Some(message("will"));
        let mut handle = connect(connection).await;
        let mut outputs: Outputs = (0..100_u8).map(|n| Output::Publish(message([n]))).collect();
        outputs.push(Output::Event(Seen::Echo(0)));
        command(&handle, outputs).await;
        while next(&mut handle).await != Seen::Echo(0) {}
        if farewell {
            soon("it stops", handle.stop()).await.unwrap();
        }
        for n in 0..100_u8 {
            assert_eq!(observer.next().await, [n]);
        }
        if farewell {
            publisher.publish_status("marker").await;
            assert_eq!(observer.next().await, b"marker", "no will after a farewell");
        } else {
            proxy.control.cut();
            assert_eq!(observer.next().await, b"will", "a will without one");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_broker_of_our_own_ca_is_talked_to() {
    let foreign = Testbed::start().await;
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    let handle = start(provider.connection(foreign.port));
    reaches(
        handle.control.state(),
        |s| matches!(s, LinkState::Waiting { error } if error.contains("certificate")),
    )
    .await;
    assert_eq!(handle.control.totals().connects, 0);
    handle.stop().await.unwrap();
}

#[test]
fn keys_that_others_may_read_and_strange_files_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let authority = Authority::new();
    let provider = authority.issue("provider", Role::Provider);
    let other = authority.issue("other", Role::Provider);
    let open = |host: &str, ca, certificate, key| {
        let result = Connection::from_pem_files(host, 1, ca, certificate, key);
        format!("{:#}", result.expect_err("must be refused"))
    };
    let (ca, certificate, key) = (&provider.ca, &provider.certificate, &provider.key);
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = open("localhost", ca, certificate, key);
    assert!(
        error.contains("chmod 600") && error.contains("provider.key"),
        "{error}"
    );
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = open("localhost", ca, &other.certificate, key);
    assert!(error.contains("does not belong to the key"), "{error}");
    let error = open("localhost", key, certificate, key);
    assert!(error.contains("no CERTIFICATE block"), "{error}");
    let error = open("two words", ca, certificate, key);
    assert!(error.contains("two words"), "{error}");
    let connection = Connection::from_pem_files("localhost", 1, ca, certificate, key).unwrap();
    assert_eq!(connection.client_id, provider.id().to_string());
    assert!(!format!("{connection:?}").contains("PRIVATE"));
}
