//! The household's own page, and the same figures for programs.
//!
//! It is served on an address of the household's choice ([`access`] says to whom), and through
//! a socket in the state directory, which only the agent's user may enter. Nothing here
//! reaches the provider, and nothing that comes in here can change a reading.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::page::metrics::Metrics;
use ::page::{Failure, Limits, off_the_runtime, serve};
use anyhow::Context;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::agent::{AgentControl, Orders};
use crate::history::{self, History};
use crate::status::View;

pub mod access;
mod assets;
mod export;
mod metrics;
mod summary;

use access::Access;

/// The household's browser and its Prometheus are few. Ten years as CSV over a slow network take
/// minutes.
const LIMITS: Limits = Limits {
    connections: 32,
    lifetime: Duration::from_secs(600),
};

/// Of the register's course in one answer of JSON, some hundred days.
const MOMENTS: usize = 10_000;

/// The socket in the state directory.
pub fn socket(state_directory: &Path) -> PathBuf {
    state_directory.join("agent.sock")
}

/// Where the page is served, and what is kept for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageConfig {
    /// The address; `None` for no page.
    pub listen: Option<SocketAddr>,
    /// The address on loopback of the metrics alone, if they are to have one of their own.
    pub metrics: Option<SocketAddr>,
    /// Days of the register's course that are kept on disk.
    pub history_days: u32,
}

impl Default for PageConfig {
    /// Loopback, port 8480, and what the week's chart shows.
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 8480))),
            metrics: None,
            history_days: 8,
        }
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Household {
    view: View,
    orders: Orders,
    history: Arc<History>,
}

/// A page that is being served.
pub struct Page {
    /// The address that it is served on, if it is.
    pub address: Option<SocketAddr>,
    servers: Vec<JoinHandle<()>>,
    stop: oneshot::Sender<()>,
    keeping: JoinHandle<()>,
}

impl Page {
    /// Serves the page of a running agent. What cannot be served or kept is said in the log and
    /// harms nobody: the meter comes first.
    pub async fn serve(config: PageConfig, state_directory: &Path, control: &AgentControl) -> Self {
        let directory = state_directory.to_owned();
        // That of ten years takes seconds to look through, and pulses come meanwhile.
        let opening =
            tokio::task::spawn_blocking(move || History::open(&directory, config.history_days));
        let history = opening
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let history = Arc::new(history);
        let household = Household {
            view: control.view(),
            orders: control.orders(),
            history: Arc::clone(&history),
        };
        let mut servers = Vec::new();
        match local(state_directory) {
            Ok(listener) => {
                let router = router(household.clone(), Access::Owner);
                servers.push(tokio::spawn(serve(listener, router, LIMITS)));
            }
            Err(error) => tracing::warn!("`meter-agent status` will not work: {error:#}"),
        }
        let mut address = None;
        if let Some(listen) = config.listen {
            match open(listen, state_directory).await {
                Ok((listener, access)) => {
                    address = listener.local_addr().ok();
                    tracing::info!(
                        "the household's page is at http://{}/",
                        address.unwrap_or(listen)
                    );
                    let router = router(household.clone(), access);
                    servers.push(tokio::spawn(serve(listener, router, LIMITS)));
                }
                Err(error) => tracing::warn!("there is no household's page: {error:#}"),
            }
        }
        if let Some(listen) = config.metrics {
            match open(listen, state_directory).await {
                Ok((listener, access)) => {
                    let address = listener.local_addr().unwrap_or(listen);
                    tracing::info!("the metrics are at http://{address}/metrics");
                    let router = guarded(metrics_alone(), household.clone(), access);
                    servers.push(tokio::spawn(serve(listener, router, LIMITS)));
                }
                Err(error) => tracing::warn!("there are no metrics: {error:#}"),
            }
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let keeping = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            history::keep(&household.history, &household.view, stop).await;
        });
        Self {
            address,
            servers,
            stop,
            keeping,
        }
    }

    /// Ends it; the totals of this moment are kept.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.keeping.await;
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

/// The socket for the agent's own user. The register is locked by now, so a socket that is
/// there is a dead agent's.
fn local(state_directory: &Path) -> anyhow::Result<UnixListener> {
    let path = socket(state_directory);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    UnixListener::bind(&path).with_context(|| format!("cannot listen at {}", path.display()))
}

async fn open(listen: SocketAddr, state_directory: &Path) -> anyhow::Result<(TcpListener, Access)> {
    let access = Access::of(listen, state_directory)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen at {listen}; set another address, or none"))?;
    Ok((listener, access))
}

fn metrics_alone() -> Router<Household> {
    Router::new().route("/metrics", get(metrics))
}

fn router(household: Household, access: Access) -> Router {
    let router = ::page::assets::routes(&assets::OWN)
        .merge(metrics_alone())
        .route("/api/status", get(status))
        .route("/api/history", get(course))
        .route("/history.csv", get(export::history))
        .route("/readings.csv", get(export::readings))
        .route("/rounds.csv", get(export::rounds))
        .route("/alarms.csv", get(export::alarms))
        .route("/status.txt", get(text))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .route("/api/confirm-clock", post(confirm_clock))
        .route("/api/exit", post(exit))
        .route("/api/data/delete", post(delete));
    guarded(router, household, access)
}

fn guarded(router: Router<Household>, household: Household, access: Access) -> Router {
    let guard = middleware::from_fn_with_state(Arc::new(access), access::guard);
    ::page::with_headers(router.layer(guard).with_state(household))
}

async fn status(State(household): State<Household>) -> Response {
    Json(household.view.status(household.history.days())).into_response()
}

async fn text(State(household): State<Household>) -> String {
    summary::text(&household.view.status(household.history.days()))
}

async fn metrics(State(household): State<Household>) -> Result<Metrics, Failure> {
    let status = household.view.status(household.history.days());
    Ok(metrics::of(&status, &household.view.link_totals())?)
}

/// Milliseconds since 1970, both included.
#[derive(Deserialize)]
struct Span {
    from: Option<u64>,
    until: Option<u64>,
}

async fn course(
    State(household): State<Household>,
    Query(span): Query<Span>,
) -> Result<Response, Failure> {
    let span = span.from.unwrap_or(0)..=span.until.unwrap_or(u64::MAX);
    let (course, rest) = off_the_runtime(move || {
        let channels = household.view.channels();
        household.history.course(channels, span, MOMENTS)
    })
    .await?;
    match rest {
        None => Ok(Json(course).into_response()),
        Some(_) => Err(Failure::bad_request(format!(
            "there are more than {MOMENTS} moments between `from` and `until`; ask for fewer \
             days at a time, or take /history.csv, which has all of them"
        ))),
    }
}

async fn pause(State(household): State<Household>, _: Json<Nothing>) -> Result<Done, Failure> {
    off_the_runtime(move || household.orders.pause(true)).await?;
    Ok(Done)
}

async fn resume(State(household): State<Household>, _: Json<Nothing>) -> Result<Done, Failure> {
    off_the_runtime(move || household.orders.pause(false)).await?;
    Ok(Done)
}

async fn confirm_clock(State(household): State<Household>, _: Json<Nothing>) -> Done {
    tracing::info!("the household says that the clock is right");
    household.orders.confirm_clock().await;
    household.view.clock_is_confirmed();
    Done
}

async fn delete(State(household): State<Household>, _: Json<Nothing>) -> Result<Done, Failure> {
    off_the_runtime(move || {
        household.history.delete()?;
        household.view.forget()
    })
    .await?;
    tracing::info!("the household has deleted its data");
    Ok(Done)
}

/// Of who exits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Confirmation {
    confirm: String,
}

async fn exit(
    State(household): State<Household>,
    Json(confirmation): Json<Confirmation>,
) -> Result<Done, Failure> {
    let status = household.view.status(household.history.days());
    let digits = status.meter.as_deref().and_then(|meter| meter.get(..8));
    if digits != Some(confirmation.confirm.trim()) {
        return Err(Failure::bad_request(
            "these are not the first 8 digits of this meter's id; nothing was done",
        ));
    }
    if status.exit.is_none() {
        if !household.orders.leave().await {
            return Err(Failure::bad_request(
                "this meter has no link to its net, and cannot leave without; nothing was done",
            ));
        }
        tracing::warn!("the household lets this meter leave its net");
    }
    Ok(Done)
}

/// `{}`: a body that no form of another site can send.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

struct Done;

impl IntoResponse for Done {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}
