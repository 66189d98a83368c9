//! What the daemon tells the service manager while its agent runs, and takes from it.

use std::convert::Infallible;

use dcnet::meter::MeterEvent;
use link::service;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};

use super::AgentControl;
use crate::home_assistant::Progress;

/// Tells the service manager that the agent serves, that its loops turn, how its link is and
/// what became of the last round, and has what can change while it runs looked at at each
/// `hangup`.
///
/// What it returns holds nothing of `control`.
pub(super) fn attend<'events>(
    events: &'events mut mpsc::Receiver<MeterEvent>,
    control: &AgentControl,
    mut hangup: Signal,
    progress: watch::Sender<Progress>,
) -> impl Future<Output = Infallible> + use<'events> {
    let loops = control.loops();
    let look = control.look_at_revocations();
    let mut reach = control.reach();
    async move {
        let mut fed = std::pin::pin!(loops.attend());
        let mut last = None;
        let mut reaching = true;
        loop {
            let state = reach.borrow_and_update().to_string();
            service::status(&match &last {
                Some(last) => format!("{state}; {last}"),
                None => state,
            });
            tokio::select! {
                () = &mut fed => {}
                changed = reach.changed(), if reaching => reaching = changed.is_ok(),
                _ = hangup.recv() => {
                    service::reloading();
                    look.notify_one();
                }
                event = events.recv() => match event {
                    Some(MeterEvent::ExitDone { .. }) => last = None,
                    Some(event) => {
                        progress.send_modify(|progress| progress.follow(&event));
                        last = about_round(&event).or(last);
                    }
                    // The agent has ended, which is told elsewhere.
                    None => return std::future::pending().await,
                },
            }
        }
    }
}

/// What an event says of a round, in words without any reading or sum.
fn about_round(event: &MeterEvent) -> Option<String> {
    match event {
        MeterEvent::Submitted { round, .. } => Some(format!("round {round}: submitted")),
        MeterEvent::Revealed {
            round, included, ..
        } => Some(format!("round {round}: revealed for {included} meters")),
        MeterEvent::Final {
            round, included, ..
        } => Some(format!("round {round}: sum over {included} meters")),
        MeterEvent::Silent { round, reason } => Some(format!("round {round}: silent: {reason}")),
        _ => None,
    }
}
