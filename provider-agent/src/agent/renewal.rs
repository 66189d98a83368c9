//! Renewed certificates are taken up when the service manager asks for a reload.

use anyhow::ensure;
use tokio::sync::Notify;

use super::check_nets;
use crate::config::Config;
use crate::identity::Identity;
use crate::store::Store;

/// Waits until `asked` is notified and the identity directory has other certificates than the
/// agent runs with. Each time that it has not, or they cannot be used, `look` is notified, so
/// that the reload comes to its end.
pub(super) async fn renewed(config: &Config, before: Identity, asked: &Notify, look: &Notify) {
    loop {
        asked.notified().await;
        let (config, before) = (config.clone(), before.clone());
        let looking = tokio::task::spawn_blocking(move || is_renewed(&config, &before));
        match looking.await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                tracing::info!("taking up renewed certificates");
                return;
            }
            Ok(Err(error)) => tracing::error!(
                error = format!("{error:#}"),
                "the agent goes on with the certificates that it has"
            ),
            // Cancelled: the runtime is being shut down.
            Err(_) => return std::future::pending().await,
        }
        look.notify_one();
    }
}

/// # Errors
/// Why the agent could not go on with what is there now.
fn is_renewed(config: &Config, before: &Identity) -> anyhow::Result<bool> {
    let now = config.identity()?;
    if certificates(&now) == certificates(before) {
        return Ok(false);
    }
    ensure!(
        now.key.id() == before.key.id(),
        "{} has another key; the next start takes it up",
        now.directory.display()
    );
    let store = Store::open_in(&config.state_directory)?;
    check_nets(&store, &now, &store.net_ids()?, config)?;
    Ok(true)
}

/// Its own, the CA's and the administrator's.
fn certificates(identity: &Identity) -> [&[u8]; 3] {
    [
        identity.certificate.der(),
        identity.ca.der(),
        identity.revocations.administrator().der(),
    ]
}
