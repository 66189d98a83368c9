//! Serves a page to few at a time: whoever opens connections and says nothing must not use up
//! what the agent's own work needs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// For the head of a request to come, and for the rest after the lifetime.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of the machine a page may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time; further ones wait. A browser opens six.
    pub connections: usize,
    /// After this a connection ends with the next answer; a browser opens another. One that
    /// carries events is cut off then, and the browser asks for them anew.
    pub lifetime: Duration,
}

/// Serves until it is dropped, and with it every connection.
pub async fn serve<L: Listener>(mut listener: L, router: Router, limits: Limits) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            tokio::select! {
                // Whoever broke it off knows.
                _ = connection.as_mut() => {}
                () = tokio::time::sleep(limits.lifetime) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(PATIENCE, connection).await;
                }
            }
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}
