//! What the broker counts, for Prometheus: the OpenMetrics text format over HTTP, on
//! loopback only. No device is told from another.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::counters::{Counters, Refusal, Traffic};
use crate::gate::Shared;

/// Connections at a time.
const CONNECTIONS: usize = 8;

/// How long a connection may take in all.
const LIFETIME: Duration = Duration::from_secs(10);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // It is never closed.
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, probes) = (Arc::clone(&shared), Arc::clone(&probes));
        let service = service_fn(move |request| {
            let response = answer(&request, &shared, &probes);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(LIFETIME)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever broke it off knows.
            let _ = tokio::time::timeout(LIFETIME, connection).await;
            drop(place);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    shared: &Shared,
    probes: &AtomicU64,
) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    // A site on the internet could have its own name point here (DNS rebinding).
    let host = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    if !is_loopback(host.unwrap_or_default()) {
        return plain(StatusCode::MISDIRECTED_REQUEST, "for this machine only\n");
    }
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match text(
        &shared.registry.counters(&shared.retained),
        &shared.standing(probes.load(Relaxed)),
    ) {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            let form = hyper::header::HeaderValue::from_static(OPEN_METRICS);
            response.headers_mut().insert(CONTENT_TYPE, form);
            response
        }
        Err(error) => {
            tracing::error!("{error:#}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "see the broker's log\n")
        }
    }
}

/// Whether a `Host` header, with or without a port, names this machine itself.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<hyper::http::uri::Authority>() else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// The text of a moment's figures.
fn text(counters: &Counters, standing: &Standing) -> anyhow::Result<String> {
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
            "topics",
            "Different topics used since the start",
            counters.topics,
        ),
        (
            "filters",
            "Different topic filters used since the start",
            counters.filters,
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
    let mut text = String::new();
    encode(&mut text, &registry).context("cannot write the metrics")?;
    Ok(text)
}

/// A counter for each value of a label.
type Labelled = Family<Vec<(&'static str, &'static str)>, Counter>;

fn add(family: &Labelled, label: &'static str, value: &'static str, count: u64) {
    family.get_or_create(&vec![(label, value)]).inc_by(count);
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Traffic by the role of whom it belongs to; "none" before that is known.
fn by_role(counters: &Counters) -> BTreeMap<&'static str, Traffic> {
    let mut sums: BTreeMap<&'static str, Traffic> = BTreeMap::new();
    let devices = counters
        .devices
        .values()
        .map(|(role, traffic)| (role.as_str(), traffic));
    let users = counters.users.values().map(|traffic| ("user", traffic));
    let mut known = Traffic::default();
    for (role, traffic) in devices.chain(users) {
        for sum in [sums.entry(role).or_default(), &mut known] {
            sum.bytes_in += traffic.bytes_in;
            sum.bytes_out += traffic.bytes_out;
            sum.messages_in += traffic.messages_in;
            sum.messages_out += traffic.messages_out;
        }
    }
    let total = &counters.total;
    sums.insert(
        "none",
        Traffic {
            bytes_in: total.bytes_in.saturating_sub(known.bytes_in),
            bytes_out: total.bytes_out.saturating_sub(known.bytes_out),
            messages_in: total.messages_in.saturating_sub(known.messages_in),
            messages_out: total.messages_out.saturating_sub(known.messages_out),
        },
    );
    sums
}
