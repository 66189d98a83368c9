//! What the broker counts, for Prometheus: the OpenMetrics text format over HTTP, on
//! loopback only. No device is told from another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use page::metrics::Metrics;
use page::{Failure, with_headers};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::config::Limits;
use crate::counters::{Counters, Refusal, Traffic};
use crate::gate::Shared;

/// Who asks is a program, now and then.
const LIMITS: page::Limits = page::Limits {
    connections: 8,
    lifetime: Duration::from_secs(10),
};

/// Figures that are no counters of the broker's.
pub(crate) struct Standing {
    /// Messages of its own that came back through the router.
    pub(crate) probes: u64,
    /// Number of the revocation list in force.
    pub(crate) revocation_list: Option<u64>,
    /// Unix seconds at which the broker's certificate ends.
    pub(crate) certificate_ends: u64,
}

/// Serves `GET /metrics` until it is dropped.
pub(crate) async fn serve(socket: TcpListener, shared: Arc<Shared>, probes: Arc<AtomicU64>) {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .fallback(async || (StatusCode::NOT_FOUND, "the metrics are at /metrics\n"))
        .layer(from_fn(for_this_machine_only))
        .with_state((shared, probes));
    page::serve(socket, with_headers(router), LIMITS).await;
}

async fn metrics(
    State((shared, probes)): State<(Arc<Shared>, Arc<AtomicU64>)>,
) -> Result<Metrics, Failure> {
    Ok(text(
        &shared.registry.counters(&shared.retained),
        &shared.standing(probes.load(Relaxed)),
        &shared.registry.limits,
    )?)
}

/// A site on the internet could have its own name point here (DNS rebinding).
async fn for_this_machine_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST);
    let host = host.and_then(|host| host.to_str().ok());
    if !is_loopback(host.unwrap_or_default()) {
        return (StatusCode::MISDIRECTED_REQUEST, "for this machine only\n").into_response();
    }
    next.run(request).await
}

/// Whether a `Host` header, with or without a port, names this machine itself.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The text of a moment's figures.
fn text(counters: &Counters, standing: &Standing, limits: &Limits) -> anyhow::Result<Metrics> {
    let mut registry = Registry::with_prefix("broker");
    for (name, help, value) in [
        (
            "connections",
            "TCP connections accepted",
            counters.connections,
        ),
        (
            "sessions",
            "CONNECTs answered with success",
            counters.sessions,
        ),
        (
            "takeovers",
            "Sessions ended because the client connected again",
            counters.takeovers,
        ),
        (
            "sessions_withdrawn",
            "Sessions ended by new permissions or passwords",
            counters.withdrawn,
        ),
        (
            "reloads",
            "Files put in force while running",
            counters.reloads,
        ),
        (
            "reloads_refused",
            "Files that were not put in force",
            counters.reloads_refused,
        ),
        (
            "revocation_lists_refused",
            "Lists that were not put in force",
            counters.revocation_lists_refused,
        ),
        (
            "retained_write_failures",
            "Tries to store retained messages that failed",
            counters.retained_writes_failed,
        ),
        (
            "logs_emptied",
            "Times that a log was emptied, so that all together stay below the limit",
            counters.logs_emptied,
        ),
        (
            "messages_skipped",
            "Messages gone or expired before a client had taken those before them",
            counters.messages_skipped,
        ),
        (
            "router_probes",
            "Messages of its own that came back through the router",
            standing.probes,
        ),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
    for (name, help, value) in [
        ("sessions_open", "Sessions open now", counters.sessions_open),
        (
            "retained_messages",
            "Retained messages stored now",
            counters.retained,
        ),
        (
            "retained_messages_limit",
            "How many may be stored",
            limits.retained_messages as u64,
        ),
        (
            "topics",
            "Different topics used since the start",
            counters.topics,
        ),
        (
            "topics_limit",
            "How many there may be until the next start",
            limits.topics as u64,
        ),
        (
            "filters",
            "Different topic filters used since the start",
            counters.filters,
        ),
        (
            "filters_limit",
            "How many there may be until the next start",
            limits.filters as u64,
        ),
        (
            "revocation_list_number",
            "Number of the list in force, 0 for none",
            standing.revocation_list.unwrap_or(0),
        ),
    ] {
        registry.register(name, help, ConstGauge::new(number(value)));
    }
    registry.register_with_unit(
        "retained",
        "Topics and payloads stored now",
        Unit::Bytes,
        ConstGauge::new(number(counters.retained_bytes)),
    );
    registry.register_with_unit(
        "retained_limit",
        "How much of them may be stored",
        Unit::Bytes,
        ConstGauge::new(number(limits.retained_bytes as u64)),
    );
    registry.register_with_unit(
        "log",
        "Memory of messages that the router keeps",
        Unit::Bytes,
        ConstGauge::new(number(counters.log_bytes)),
    );
    registry.register_with_unit(
        "log_limit",
        "How much that may be",
        Unit::Bytes,
        ConstGauge::new(number(limits.memory() as u64)),
    );
    registry.register_with_unit(
        "certificate_end",
        "When the broker's certificate ends, in UTC",
        Unit::Seconds,
        ConstGauge::new(number(standing.certificate_ends)),
    );
    let refused = Labelled::default();
    for &reason in Refusal::ALL {
        add(
            &refused,
            "reason",
            reason.as_str(),
            counters.refused(reason),
        );
    }
    registry.register(
        "refused",
        "Connections, packets and permissions refused",
        refused,
    );
    let families: [Labelled; 4] = Default::default();
    for (role, traffic) in by_role(counters) {
        let values = [
            traffic.bytes_in,
            traffic.bytes_out,
            traffic.messages_in,
            traffic.messages_out,
        ];
        for (family, value) in families.iter().zip(values) {
            add(family, "role", role, value);
        }
    }
    let [bytes_in, bytes_out, messages_in, messages_out] = families;
    registry.register_with_unit(
        "received",
        "TCP payload received, TLS included",
        Unit::Bytes,
        bytes_in,
    );
    registry.register_with_unit(
        "sent",
        "TCP payload sent, TLS included",
        Unit::Bytes,
        bytes_out,
    );
    registry.register("messages_received", "PUBLISH packets accepted", messages_in);
    registry.register("messages_sent", "PUBLISH packets sent", messages_out);
    Metrics::of(&registry)
}

/// A counter for each value of a label.
type Labelled = Family<Vec<(&'static str, &'static str)>, Counter>;

fn add(family: &Labelled, label: &'static str, value: &'static str, count: u64) {
    family.get_or_create(&vec![(label, value)]).inc_by(count);
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Traffic by the role of whom it belongs to; "none" is what came of nobody known, once its
/// connection has ended.
fn by_role(counters: &Counters) -> BTreeMap<&'static str, Traffic> {
    let devices = counters
        .devices
        .values()
        .map(|(role, traffic)| (role.as_str(), traffic));
    let users = counters.users.values().map(|traffic| ("user", traffic));
    let mut sums = BTreeMap::from([("none", counters.nobodys)]);
    for (role, traffic) in devices.chain(users) {
        let sum: &mut Traffic = sums.entry(role).or_default();
        sum.bytes_in += traffic.bytes_in;
        sum.bytes_out += traffic.bytes_out;
        sum.messages_in += traffic.messages_in;
        sum.messages_out += traffic.messages_out;
    }
    sums
}
