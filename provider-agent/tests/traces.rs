//! What an OpenTelemetry collector is sent, as a collector decodes it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use dcnet::identity::DeviceId;
use dcnet::provider::{Dropped, NoRoster, ProviderEvent, Published};
use dcnet::time::{Period, Round, Timestamp};
use dcnet::topic::NetId;
use dcnet::units::MilliwattHours;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode as SpanStatus};
use prost::Message;
use provider_agent::NetEvent;
use provider_agent::traces::Traces;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

const NET: NetId = NetId([0xab; 16]);
/// Longer than anything takes, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A collector of traces.
struct Collector {
    address: SocketAddr,
    spans: mpsc::UnboundedReceiver<Vec<Span>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, spans) = mpsc::unbounded_channel();
        let take = move |body: Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            for of_resource in request.resource_spans {
                let attributes = of_resource.resource.unwrap().attributes;
                assert!(attributes.iter().any(|a| a.key == "service.name"));
                for of_scope in of_resource.scope_spans {
                    told.send(of_scope.spans).unwrap();
                }
            }
            StatusCode::OK
        };
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, spans }
    }

    fn traces(&self) -> Traces {
        Traces::new(&format!("http://{}/v1/traces", self.address)).unwrap()
    }

    /// So many spans, by name.
    async fn take(&mut self, count: usize) -> BTreeMap<String, Span> {
        let mut taken = BTreeMap::new();
        while taken.len() < count {
            let spans = tokio::time::timeout(DEADLINE, self.spans.recv()).await;
            for span in spans.unwrap().unwrap() {
                assert_eq!(taken.insert(span.name.clone(), span), None);
            }
        }
        taken
    }
}

fn event(at: u64, event: ProviderEvent) -> NetEvent {
    NetEvent {
        net: NET,
        at: Timestamp(at),
        latency: None,
        event,
    }
}

fn attributes(span: &Span) -> BTreeMap<&str, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::ArrayValue(array) => format!("{} values", array.values.len()),
        other => panic!("{other:?}"),
    };
    let value = |a: &opentelemetry_proto::tonic::common::v1::KeyValue| {
        text(a.value.as_ref().unwrap().value.as_ref().unwrap())
    };
    let all = span.attributes.iter();
    all.map(|a| (a.key.as_str(), value(a))).collect()
}

fn period() -> Period {
    Period::from_secs(900).unwrap()
}

/// In ns, the end of round 7 and so many milliseconds.
fn after_round(milliseconds: u64) -> u64 {
    (8 * 900_000 + milliseconds) * 1_000_000
}

fn roster() -> NetEvent {
    let roster = ProviderEvent::RosterIssued {
        round: Round(7),
        included: 61,
        dropped: vec![(DeviceId([4; 16]), Dropped::Owing); 2],
    };
    event(8 * 900_000 + 30_000, roster)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_a_trace_with_its_phases() {
    let mut collector = Collector::start().await;
    let mut traces = collector.traces();
    traces.follow(&roster(), period());
    let published = Published {
        round: Round(7),
        members: 64,
        included: vec![DeviceId([1; 16]); 61],
        sums: vec![MilliwattHours(123_456_789)],
        roster: [1; 32],
        log_head: [2; 32],
        frame: Vec::new(),
    };
    let aggregated = ProviderEvent::Aggregated(published);
    traces.follow(&event(8 * 900_000 + 31_500, aggregated), period());
    tokio::task::spawn_blocking(move || traces.stop())
        .await
        .unwrap();

    let spans = collector.take(3).await;
    let (round, submission, reveal) = (&spans["round"], &spans["submission"], &spans["reveal"]);
    let times = |span: &Span| (span.start_time_unix_nano, span.end_time_unix_nano);
    assert_eq!(times(round), (after_round(0), after_round(31_500)));
    assert_eq!(times(submission), (after_round(0), after_round(30_000)));
    assert_eq!(times(reveal), (after_round(30_000), after_round(31_500)));
    for part in [submission, reveal] {
        assert_eq!(part.parent_span_id, round.span_id);
        assert_eq!(part.trace_id, round.trace_id);
    }
    assert_eq!(
        attributes(round).into_iter().collect::<Vec<_>>(),
        [
            ("dcnet.included", "61".to_owned()),
            ("dcnet.members", "64".to_owned()),
            ("dcnet.net", NET.to_string()),
            ("dcnet.outcome", "final".to_owned()),
            ("dcnet.period_s", "900".to_owned()),
            ("dcnet.round", "7".to_owned()),
        ],
        "and no sum"
    );
    assert_eq!(attributes(submission)["dcnet.dropped"], "2");
    let status = round.status.as_ref().unwrap().code();
    assert_eq!(status, SpanStatus::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_round_is_an_error_and_names_who_is_missing() {
    let mut collector = Collector::start().await;
    let mut traces = collector.traces();
    traces.follow(&roster(), period());
    let (round, missing) = (Round(7), vec![DeviceId([3; 16])]);
    let pending = ProviderEvent::Pending {
        round,
        missing: missing.clone(),
    };
    traces.follow(&event(8 * 900_000 + 60_000, pending), period());
    let lost = ProviderEvent::Lost {
        round,
        disruption: None,
        missing,
    };
    traces.follow(&event(20 * 900_000, lost), period());
    tokio::task::spawn_blocking(move || traces.stop())
        .await
        .unwrap();

    let spans = collector.take(3).await;
    let round = &spans["round"];
    assert_eq!(attributes(round)["dcnet.outcome"], "lost");
    assert_eq!(attributes(round)["dcnet.missing"], "1 values");
    assert_eq!(round.events[0].name, "pending");
    assert_eq!(round.events[0].time_unix_nano, after_round(60_000));
    let status = round.status.as_ref().unwrap().code();
    assert_eq!(status, SpanStatus::Error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut traces = Traces::new(&format!("http://{address}/v1/traces")).unwrap();
    for round in 0..10_000 {
        let no_roster = ProviderEvent::NoRoster {
            round: Round(round),
            submissions: 1,
            reason: NoRoster::TooFew,
            dropped: Vec::new(),
            absent: Vec::new(),
        };
        traces.follow(&event((round + 1) * 900_000, no_roster), period());
    }
    let stopped = tokio::task::spawn_blocking(move || traces.stop());
    tokio::time::timeout(DEADLINE, stopped)
        .await
        .expect("it ends")
        .unwrap();
}

#[test]
fn what_is_no_url_is_refused() {
    assert!(Traces::new("no url").is_err());
}
