//! Rounds as traces for an OpenTelemetry collector, if the configuration names one
//! (`traces.endpoint`).
//!
//! A round is a trace: a span `round` from the end of its interval until it has a sum, is lost
//! or got no roster, with a span `submission` until the roster and a span `reveal` after it.
//! The spans are made from the agent's own events when the round has ended, by the round's own
//! times. They carry numbers of meters and ids, never a reading or a sum.
//!
//! Everything waits here for nothing: spans that a collector does not take in time are dropped.
//!
//! Source of the form: OTLP 1.x over HTTP, protobuf
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use dcnet::provider::ProviderEvent;
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use opentelemetry::trace::{Span, SpanBuilder, Status, TraceContextExt, TracerProvider};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, SpanData};

use crate::nets::{NAMED, NetEvent};

/// Rounds of all nets that are followed at a time; the oldest are given up.
const OPEN: usize = 1024;
/// For one message to the collector.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A round with a roster that has not ended.
#[derive(Debug)]
struct Open {
    roster_at: Timestamp,
    included: usize,
    dropped: usize,
    pending_at: Option<Timestamp>,
}

/// Makes spans of rounds; dropping it does not wait for what is under way.
#[derive(Debug)]
pub struct Traces {
    spans: SdkTracerProvider,
    tracer: SdkTracer,
    open: BTreeMap<(Round, NetId), Open>,
}

/// How a round ended.
enum Outcome<'a> {
    Final { included: usize, members: u32 },
    Lost { missing: &'a [String] },
    NoRoster { submissions: usize },
}

impl Traces {
    /// Sends to a collector, such as `http://127.0.0.1:4318/v1/traces`. It need not be there
    /// yet.
    ///
    /// # Errors
    /// The endpoint is no URL.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(endpoint)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(TIMEOUT)
            .build()
            .with_context(|| format!("traces.endpoint is {endpoint:?}"))?;
        let exporter = Told {
            exporter,
            endpoint: endpoint.to_owned(),
            failing: AtomicBool::new(false),
        };
        let resource = Resource::builder()
            .with_service_name("provider-agent")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let spans = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        Ok(Self {
            tracer: spans.tracer("provider-agent"),
            spans,
            open: BTreeMap::new(),
        })
    }

    /// Takes an event of a net with this period into account.
    pub fn follow(&mut self, event: &NetEvent, period: Period) {
        let NetEvent { net, at, .. } = event;
        let net = (*net, period);
        match &event.event {
            ProviderEvent::RosterIssued {
                round,
                included,
                dropped,
            } => {
                let open = Open {
                    roster_at: *at,
                    included: *included,
                    dropped: dropped.len(),
                    pending_at: None,
                };
                self.open.insert((*round, net.0), open);
                if self.open.len() > OPEN {
                    self.open.pop_first();
                }
            }
            ProviderEvent::Pending { round, .. } => {
                if let Some(open) = self.open.get_mut(&(*round, net.0)) {
                    open.pending_at.get_or_insert(*at);
                }
            }
            ProviderEvent::Aggregated(published) => {
                let outcome = Outcome::Final {
                    included: published.included.len(),
                    members: published.members,
                };
                self.end(net, published.round, *at, &outcome);
            }
            ProviderEvent::Lost { round, missing, .. } => {
                let missing: Vec<String> = missing
                    .iter()
                    .take(NAMED)
                    .map(ToString::to_string)
                    .collect();
                let outcome = Outcome::Lost { missing: &missing };
                self.end(net, *round, *at, &outcome);
            }
            ProviderEvent::NoRoster {
                round, submissions, ..
            } => {
                let outcome = Outcome::NoRoster {
                    submissions: *submissions,
                };
                self.end(net, *round, *at, &outcome);
            }
            _ => {}
        }
    }

    /// Makes the spans of a round that has ended.
    fn end(&mut self, (net, period): (NetId, Period), round: Round, at: Timestamp, how: &Outcome) {
        let open = self.open.remove(&(round, net));
        let began = time(round.end(period));
        let mut attributes = vec![
            KeyValue::new("dcnet.net", net.to_string()),
            KeyValue::new("dcnet.round", whole(round.0)),
            KeyValue::new("dcnet.period_s", i64::from(period.as_secs())),
        ];
        let status = match how {
            Outcome::Final { included, members } => {
                attributes.push(KeyValue::new("dcnet.outcome", "final"));
                attributes.push(KeyValue::new("dcnet.included", whole(*included)));
                attributes.push(KeyValue::new("dcnet.members", i64::from(*members)));
                Status::Ok
            }
            Outcome::Lost { missing } => {
                let names: Vec<StringValue> = missing.iter().map(|id| id.clone().into()).collect();
                attributes.push(KeyValue::new("dcnet.outcome", "lost"));
                let names = Value::Array(Array::String(names));
                attributes.push(KeyValue::new("dcnet.missing", names));
                Status::error("reveals are missing")
            }
            Outcome::NoRoster { submissions } => {
                attributes.push(KeyValue::new("dcnet.outcome", "no-roster"));
                attributes.push(KeyValue::new("dcnet.submissions", whole(*submissions)));
                Status::error("too few submissions")
            }
        };
        let mut span = SpanBuilder::from_name("round")
            .with_start_time(began)
            .with_attributes(attributes)
            .start_with_context(&self.tracer, &Context::new());
        if let Some(pending) = open.as_ref().and_then(|open| open.pending_at) {
            span.add_event_with_timestamp("pending", time(pending), Vec::new());
        }
        span.set_status(status);
        let context = Context::new().with_span(span);
        let part = |name, from, until, attributes: Vec<KeyValue>| {
            SpanBuilder::from_name(name)
                .with_start_time(from)
                .with_attributes(attributes)
                .start_with_context(&self.tracer, &context)
                .end_with_timestamp(until);
        };
        let roster_at = open.as_ref().map_or(at, |open| open.roster_at);
        let of_roster = open.as_ref().map_or_else(Vec::new, |open| {
            vec![
                KeyValue::new("dcnet.included", whole(open.included)),
                KeyValue::new("dcnet.dropped", whole(open.dropped)),
            ]
        });
        // A roster of before this start was not seen.
        if open.is_some() || matches!(how, Outcome::NoRoster { .. }) {
            part("submission", began, time(roster_at), of_roster);
        }
        if open.is_some() {
            part("reveal", time(roster_at), time(at), Vec::new());
        }
        context.span().end_with_timestamp(time(at));
    }

    /// Sends what is ready and ends; blocks for about five seconds at most.
    pub fn stop(self) {
        // Why nothing could be sent is told when it happens.
        let _ = self.spans.shutdown_with_timeout(TIMEOUT);
    }
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_millis())
}

fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Tells once when the collector cannot be reached, and once when it can again.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    endpoint: String,
    failing: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !failed_before => tracing::warn!(
                endpoint = self.endpoint,
                %error,
                "traces are not taken and dropped; rounds go on"
            ),
            Ok(()) if failed_before => {
                tracing::info!(endpoint = self.endpoint, "traces are taken again");
            }
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
