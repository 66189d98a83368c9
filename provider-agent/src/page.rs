//! The operator's page, and the same figures for programs.
//!
//! It shows what the provider knows: ids of meters, who took part when, and sums; there is no
//! reading here that it could show. It can change nothing. [`access`] says who may see it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::page::metrics::Metrics;
use ::page::password::{Password, password_file};
use ::page::{Failure, Limits, off_the_runtime, serve};
use anyhow::Context;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use dcnet::time::Timestamp;
use dcnet::topic::NetId;
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use crate::{Config, utc};

pub mod access;
pub mod alarms;
mod assets;
pub mod kept;
pub mod live;
mod metrics;
mod records;
mod views;

use access::{ACCOUNT, Access};
use live::Live;
use records::{NetRow, Records};

/// Pages that may watch at a time.
const WATCHING: usize = 24;

/// A browser opens six connections, one of them for events.
const LIMITS: Limits = Limits {
    connections: 48,
    lifetime: Duration::from_secs(300),
};

/// What changes within this time is sent together.
const TOGETHER: Duration = Duration::from_millis(150);

/// How often it is looked whether the journal can be written.
const JOURNAL_EVERY: Duration = Duration::from_secs(1);

/// After a failure of the journal the agent is called unhealthy for so long; it is tried
/// again every few seconds.
const FAILED_FOR: Duration = Duration::from_secs(10);

/// Most members in one answer.
const MEMBERS: usize = 500;

/// Longest span of a load curve.
const LONGEST_SPAN: Duration = Duration::from_secs(400 * 86_400);

/// What there is to do before the page shows anything, if there is.
pub(crate) fn advice(state_directory: &std::path::Path) -> Option<String> {
    let is_set = password_file(state_directory).exists();
    (!is_set).then(|| {
        let command = ACCOUNT.command;
        format!("the operator's page shows nothing yet: set its password with `{command}`")
    })
}

/// What the handlers share.
#[derive(Clone)]
struct Operator {
    records: Arc<Records>,
    live: Live,
    journal_failed: watch::Receiver<Option<Instant>>,
    watching: Arc<Semaphore>,
}

/// A page that is being served; it ends when this is dropped.
#[derive(Debug)]
pub struct Page {
    /// The address that it is served on.
    pub address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Page {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Page {
    /// Serves the page of a configuration, if it names an address; `live` is what its agent
    /// tells. What cannot be served is said in the log and keeps no agent from running.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn serve(config: &Config, live: Live) -> Option<Self> {
        let listen = config.page.listen?;
        match Self::open(config, listen, live).await {
            Ok(page) => {
                tracing::info!("the operator's page is at http://{}/", page.address);
                if !listen.ip().is_loopback() {
                    tracing::warn!(
                        "others can reach {listen}, and the page's password crosses the network as it is; \
                         listen on 127.0.0.1 behind a proxy with TLS"
                    );
                }
                if let Some(advice) = advice(&config.state_directory) {
                    tracing::warn!("{advice}");
                }
                Some(page)
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "there is no operator's page");
                None
            }
        }
    }

    async fn open(config: &Config, listen: SocketAddr, live: Live) -> anyhow::Result<Self> {
        let records = Arc::new(Records::new(config)?);
        let access = Access {
            password: Password::new(ACCOUNT, &config.state_directory)?,
            live: live.clone(),
        };
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen at {listen}; set another [page] listen, or listen = \"\"")
        })?;
        let address = listener.local_addr()?;
        let (failed, journal_failed) = watch::channel(None);
        let watching = tokio::spawn(watch_journal(live.clone(), failed));
        let operator = Operator {
            records,
            live,
            journal_failed,
            watching: Arc::new(Semaphore::new(WATCHING)),
        };
        let serving = tokio::spawn(serve(listener, router(operator, access), LIMITS));
        Ok(Self {
            address,
            tasks: [watching, serving],
        })
    }
}

/// Notes when the journal could not be written or opened.
async fn watch_journal(live: Live, failed: watch::Sender<Option<Instant>>) {
    let mut seen = 0;
    loop {
        tokio::time::sleep(JOURNAL_EVERY).await;
        let failures = live.totals().journal_failures;
        if failures > seen {
            failed.send_replace(Some(Instant::now()));
        }
        seen = failures;
    }
}

fn router(operator: Operator, access: Access) -> Router {
    let router = ::page::assets::routes(&assets::OWN)
        .route(access::HEALTH, get(health))
        .route("/metrics", get(metrics))
        .route("/api/overview", get(overview))
        .route("/api/events", get(events))
        .route("/api/nets/{net}", get(net))
        .route("/api/nets/{net}/members", get(members))
        .route("/api/nets/{net}/graph", get(graph))
        .route("/api/nets/{net}/course", get(course))
        .fallback(nothing_here)
        .layer(middleware::from_fn_with_state(
            Arc::new(access),
            access::guard,
        ))
        .with_state(operator);
    ::page::with_headers(router)
}

/// What keeps the agent from its work; for everybody, so without names.
#[derive(Serialize)]
struct Health {
    is_healthy: bool,
    reasons: Vec<&'static str>,
}

async fn health(State(operator): State<Operator>) -> Response {
    let mut reasons = Vec::new();
    if !operator.live.link().is_connected {
        reasons.push("the broker is not connected");
    }
    let failed = *operator.journal_failed.borrow();
    if failed.is_some_and(|at| at.elapsed() < FAILED_FOR) {
        reasons.push("the database cannot be written");
    }
    let records = Arc::clone(&operator.records);
    if let Err(Failure(..)) = off_the_runtime(move || records.check()).await {
        reasons.push("the database cannot be read");
    }
    let is_healthy = reasons.is_empty();
    let status = if is_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let health = Health {
        is_healthy,
        reasons,
    };
    (status, Json(health)).into_response()
}

async fn metrics(State(operator): State<Operator>) -> Result<Metrics, Failure> {
    off_the_runtime(move || metrics::of(&operator.records, &operator.live)).await
}

async fn overview(State(operator): State<Operator>) -> Result<Response, Failure> {
    let look = move || views::overview(&operator.records, &operator.live);
    Ok(Json(off_the_runtime(look).await?).into_response())
}

/// The newest rounds of all nets, at once and then whenever anything changes.
async fn events(State(operator): State<Operator>) -> Result<Response, Failure> {
    let Ok(place) = Arc::clone(&operator.watching).try_acquire_owned() else {
        let text = "too many pages watch; close one";
        return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, text.to_owned()));
    };
    let events = Sse::new(snapshots(operator.live, place));
    Ok(events.keep_alive(KeepAlive::default()).into_response())
}

fn snapshots(
    live: Live,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let changes = live.changes();
    let begin = (live, changes, place, true);
    stream::unfold(begin, |(live, mut changes, place, is_first)| async move {
        if !is_first {
            changes.changed().await.ok()?;
            tokio::time::sleep(TOGETHER).await;
        }
        changes.mark_unchanged();
        // Maps with text keys and numbers always have a JSON form.
        let event = Event::default()
            .event("now")
            .json_data(live.snapshot())
            .ok()?;
        Some((Ok(event), (live, changes, place, false)))
    })
}

async fn net(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    of_net(operator, id, |operator, row| {
        views::net(&operator.records, &operator.live, row)
    })
    .await
}

/// Which members.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
}

async fn members(
    State(operator): State<Operator>,
    Path(id): Path<String>,
    Query(part): Query<Part>,
) -> Result<Response, Failure> {
    let most = part.limit.unwrap_or(MEMBERS).min(MEMBERS);
    of_net(operator, id, move |operator, row| {
        views::members(&operator.records, &operator.live, row, (part.offset, most))
    })
    .await
}

async fn graph(
    State(operator): State<Operator>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    of_net(operator, id, |operator, row| {
        views::graph(&operator.records, &operator.live, row)
    })
    .await
}

/// From when until when, RFC 3339; the last day if it is left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Span {
    from: Option<String>,
    until: Option<String>,
}

impl Span {
    fn moments(&self) -> Result<(Timestamp, Timestamp), Failure> {
        let moment = |text: &Option<String>| {
            let moment = text.as_deref().map(utc::parse).transpose();
            moment.map_err(|error| Failure::bad_request(format!("{error:#}")))
        };
        let until = moment(&self.until)?.unwrap_or_else(utc::now);
        let day = Duration::from_secs(86_400);
        let from = moment(&self.from)?.unwrap_or_else(|| until.minus(day));
        if from >= until || until.since(from) > LONGEST_SPAN {
            let text = "from has to be before until, and not by more than 400 days";
            return Err(Failure::bad_request(text.to_owned()));
        }
        Ok((from, until))
    }
}

async fn course(
    State(operator): State<Operator>,
    Path(id): Path<String>,
    Query(span): Query<Span>,
) -> Result<Response, Failure> {
    let span = span.moments()?;
    of_net(operator, id, move |operator, row| {
        views::course(&operator.records, row, span)
    })
    .await
}

async fn nothing_here() -> Failure {
    let text = "there is nothing here; the page is at /";
    Failure(StatusCode::NOT_FOUND, text.to_owned())
}

/// Looks at a net that a path names.
async fn of_net<T: Serialize + Send + 'static>(
    operator: Operator,
    id: String,
    look: impl FnOnce(&Operator, &NetRow) -> anyhow::Result<T> + Send + 'static,
) -> Result<Response, Failure> {
    let id: NetId = id.parse().map_err(|_| {
        Failure::bad_request(format!("{id:?} is no net; write 32 hexadecimal digits"))
    })?;
    let found = off_the_runtime(move || {
        let row = operator.records.net(id)?;
        row.map(|row| look(&operator, &row)).transpose()
    });
    match found.await? {
        Some(view) => Ok(Json(view).into_response()),
        None => {
            let text = format!("there is no net {id}; /api/overview names the nets");
            Err(Failure(StatusCode::NOT_FOUND, text))
        }
    }
}
