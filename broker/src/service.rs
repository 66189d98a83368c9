//! What the daemon tells the service manager that started it, by systemd's protocol
//! sd_notify(3), and takes from it. Without `NOTIFY_SOCKET` in the environment nothing is
//! told to anybody.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

use crate::server::Broker;

/// How often the router is looked at before the first message came through it.
const STARTING: Duration = Duration::from_millis(50);

/// How often `systemctl status` is brought up to date.
const STATUS: Duration = Duration::from_secs(10);

/// Tells that the broker serves once a message has come through its router, feeds the
/// service manager's watchdog only while further ones do, and reads its files again at each
/// `hangup`. Never returns.
pub async fn attend(broker: &Broker, mut hangup: Signal) {
    while broker.probes() == 0 {
        tokio::time::sleep(STARTING).await;
    }
    tell(&[NotifyState::Ready]);
    let reload = async {
        while hangup.recv().await.is_some() {
            if let Ok(now) = NotifyState::monotonic_usec_now() {
                tell(&[NotifyState::Reloading, now]);
            }
            broker.reload().await;
            tell(&[NotifyState::Ready]);
        }
    };
    tokio::join!(reload, feed(broker), describe(broker));
}

/// Tells that the broker stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

async fn feed(broker: &Broker) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut seen = 0;
    loop {
        let probes = broker.probes();
        if probes != seen {
            tell(&[NotifyState::Watchdog]);
            seen = probes;
        }
        tokio::time::sleep(limit / 4).await;
    }
}

async fn describe(broker: &Broker) {
    let mut ticks = tokio::time::interval(STATUS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        ticks.tick().await;
        let line = format!(
            "{} sessions, revocation list {}",
            broker.sessions_open(),
            broker
                .revocation_number()
                .map_or_else(|| "none".to_owned(), |number| number.to_string())
        );
        if told.as_ref() != Some(&line) {
            tell(&[NotifyState::Status(&line)]);
            told = Some(line);
        }
    }
}

fn tell(state: &[NotifyState]) {
    // A service manager that hears nothing does what it must; there is nothing to do here.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}
