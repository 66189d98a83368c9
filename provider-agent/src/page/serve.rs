//! Serves the page to few at a time: whoever opens connections and says nothing must not use up
//! what the protocol needs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at a time. A browser opens six, one of them for events.
const CONNECTIONS: usize = 48;

/// For the head of a request to come, and for the rest after [`LIFETIME`].
const PATIENCE: Duration = Duration::from_secs(5);

/// After this a connection ends with the next answer; a browser opens another. One that
/// carries events is cut off then, and the browser asks for them anew.
const LIFETIME: Duration = Duration::from_secs(300);

/// Wait after a connection could not be accepted, for want of file descriptors for instance.
const BREATHER: Duration = Duration::from_millis(200);

/// Serves until it is dropped, and with it every connection.
pub(super) async fn serve(listener: TcpListener, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(BREATHER).await;
            continue;
        };
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
                () = tokio::time::sleep(LIFETIME) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = tokio::time::timeout(PATIENCE, connection).await;
                }
            }
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}
