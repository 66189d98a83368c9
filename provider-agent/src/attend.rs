//! What the daemon tells the service manager while its agent runs.

use dcnet::provider::ProviderEvent;
use link::LinkState;
use link::service::{self, Heartbeat, Loops};
use tokio::sync::watch;

use crate::agent::StoreState;
use crate::nets::NetEvent;

/// Tells the service manager that the agent serves, that its loop turns, whether it can store
/// anything, how its link is and what became of the last round. Never returns.
pub(crate) async fn attend(
    heartbeat: Heartbeat,
    mut link: watch::Receiver<LinkState>,
    mut store: watch::Receiver<StoreState>,
    mut last: watch::Receiver<String>,
) {
    let fed = Loops::new([("protocol", heartbeat)]).attend();
    let told = async {
        loop {
            let mut line = link.borrow_and_update().to_string();
            let round = last.borrow_and_update().clone();
            if !round.is_empty() {
                line = format!("{line}; {round}");
            }
            match &*store.borrow_and_update() {
                StoreState::Writable => {}
                StoreState::Slow { took } => {
                    let seconds = took.as_secs_f64();
                    line = format!("slow disk: the newest write took {seconds:.1} s; {line}");
                }
                StoreState::Waiting { problem } | StoreState::Broken { problem } => {
                    line = format!("no rounds: {problem}; {line}");
                }
            }
            service::status(&line);
            tokio::select! {
                Ok(()) = link.changed() => {}
                Ok(()) = store.changed() => {}
                Ok(()) = last.changed() => {}
                else => return,
            }
        }
    };
    tokio::join!(fed, told);
}

/// What an event says of a round, for [`attend`].
pub(crate) fn about_round(event: &NetEvent) -> Option<String> {
    let net = event.net;
    match &event.event {
        ProviderEvent::Aggregated(published) => Some(format!(
            "net {net}, round {}: sum over {} of {} meters",
            published.round,
            published.included.len(),
            published.members
        )),
        ProviderEvent::NoRoster {
            round, submissions, ..
        } => Some(format!(
            "net {net}, round {round}: no roster, {submissions} submissions"
        )),
        ProviderEvent::Pending { round, missing } => Some(format!(
            "net {net}, round {round}: {} reveals are missing",
            missing.len()
        )),
        _ => None,
    }
}
