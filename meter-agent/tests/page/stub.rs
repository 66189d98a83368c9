//! Serves the page as the agent does, with sample figures.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use meter_agent::history::{Course, Sample};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; form-action 'none'; base-uri 'none'; \
     frame-ancestors 'none'";

/// The moment of the sample figures: 2025-11-22 08:26:40 UTC.
pub const NOW_MS: i64 = 1_763_800_000_000;
const QUARTER_MS: i64 = 900_000;
const HOUR_MS: i64 = 4 * QUARTER_MS;
/// An agent does not answer for longer spans.
const MOST_MS: i64 = 10_000 * QUARTER_MS;

/// Nobody counted between these two, 03:00 and 04:30 UTC of today.
pub const GAP_MS: (i64, i64) = (
    1_763_769_600_000 + 3 * HOUR_MS,
    1_763_769_600_000 + 4 * HOUR_MS + 2 * QUARTER_MS,
);

/// What the stub answers, and what it was told.
#[derive(Debug, Default)]
pub struct State {
    /// The answer to `GET /api/status`; null makes it fail.
    pub status: Value,
    /// Whether there is a history.
    pub has_history: bool,
    /// The answer to `GET /api/history`, instead of the sample one.
    pub course: Option<Course>,
    /// Hangs up instead of answering.
    pub is_away: bool,
    /// The error with which it refuses each POST.
    pub refusal: Option<String>,
    /// Path and body of each POST.
    pub posts: Vec<(String, Value)>,
    /// How often the status was asked for.
    pub polls: usize,
    /// Paths that do not exist.
    pub missing: Vec<String>,
}

/// A server on loopback; ends when dropped.
pub struct Stub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

impl Stub {
    /// Serves a sample: `taking-part` and what another one changes of it.
    pub async fn start(sample: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            status: status(sample),
            has_history: true,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                // A browser that hangs up early is no failure.
                tokio::spawn(async move { answer(stream, &state).await.ok() });
            }
        });
        Self {
            address,
            state,
            serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The figures of a sample.
pub fn status(sample: &str) -> Value {
    let read = |name: &str| -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/page/{name}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let mut status = read("taking-part");
    if let Value::Object(changes) = read(sample) {
        for (name, value) in changes {
            status[name] = value;
        }
    }
    status
}

/// Import 200 W, from 06:00 to 07:00 UTC 800 W; export 100 W.
fn history(from: i64, until: i64, channels: &[Value]) -> Course {
    let watts = |channel: usize, hour: i64| match (channel, hour) {
        (0, 6) => 800,
        (0, _) => 200,
        _ => 100,
    };
    // Backwards from the register of now, in which the quarter of an hour is part over.
    let mut at = NOW_MS - NOW_MS % QUARTER_MS;
    let mut totals: Vec<i64> = channels
        .iter()
        .enumerate()
        .map(|(index, channel)| {
            let now = channel["energy_mwh"].as_i64().unwrap_or(0);
            now - watts(index, 8) * 1000 * (NOW_MS - at) / HOUR_MS
        })
        .collect();
    let mut samples = Vec::new();
    while at >= from {
        if at <= until && !(GAP_MS.0 < at && at < GAP_MS.1) {
            let energy = |total: &i64| u64::try_from(*total).ok();
            let sample = Sample {
                at_ms: at.try_into().unwrap(),
                energy_mwh: totals.iter().map(energy).collect(),
                // The agent was started again.
                is_break: vec![at == GAP_MS.1; totals.len()],
            };
            samples.insert(0, sample);
        }
        at -= QUARTER_MS;
        for (index, total) in totals.iter_mut().enumerate() {
            *total -= watts(index, at / HOUR_MS % 24) * 250;
        }
    }
    Course {
        channels: names(channels),
        samples,
    }
}

fn names(channels: &[Value]) -> Vec<String> {
    let name = |channel: &Value| channel["name"].as_str().unwrap().to_owned();
    channels.iter().map(name).collect()
}

async fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 || line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |wanted: &str| {
        head.iter().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim())
        })
    };
    let length = header("content-length").map_or(0, |length| length.parse().unwrap());
    let is_json = header("content-type") == Some("application/json");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let mut words = head.first().map_or("", String::as_str).split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));

    if state.lock().unwrap().is_away {
        return Ok(());
    }
    let (code, kind, content) = if method == "POST" {
        assert!(is_json, "{head:?}");
        post(path, &body, &mut state.lock().unwrap())
    } else {
        get(path, query, &mut state.lock().unwrap())
    };
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Content-Security-Policy: {POLICY}\r\nX-Content-Type-Options: nosniff\r\n\
         Connection: close\r\n\r\n",
        content.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&content).await?;
    stream.shutdown().await
}

type Answer = (&'static str, &'static str, Vec<u8>);

fn post(path: &str, body: &[u8], state: &mut State) -> Answer {
    let body: Value = serde_json::from_slice(body).unwrap();
    state.posts.push((path.to_owned(), body));
    if let Some(refusal) = &state.refusal {
        let error = json!({ "error": refusal }).to_string();
        return ("409 Conflict", "application/json", error.into_bytes());
    }
    match path {
        "/api/pause" => state.status["paused"] = json!(true),
        "/api/confirm-clock" => state.status["clock_unconfirmed"] = json!(false),
        "/api/resume" => state.status["paused"] = json!(false),
        "/api/data/delete" => state.has_history = false,
        _ => {
            state.status["exit"] =
                json!({"left": false, "neighbours": 47, "awaited": 47, "done": false});
        }
    }
    ("204 No Content", "application/json", Vec::new())
}

fn get(path: &str, query: &str, state: &mut State) -> Answer {
    let content = match path {
        "/api/status" => {
            state.polls += 1;
            if state.status.is_null() {
                return ("503 Service Unavailable", "text/plain", Vec::new());
            }
            state.status.to_string()
        }
        "/api/history" => {
            let bound = |name: &str| -> i64 {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs
                    .find(|(key, _)| *key == name)
                    .unwrap()
                    .1
                    .parse()
                    .unwrap()
            };
            assert!(bound("until") - bound("from") < MOST_MS, "{query}");
            let channels = state.status["channels"].as_array().unwrap();
            let sample = || match state.has_history {
                true => history(bound("from"), bound("until"), channels),
                false => Course {
                    channels: names(channels),
                    samples: Vec::new(),
                },
            };
            match &state.course {
                Some(course) => serde_json::to_string(course),
                None => serde_json::to_string(&sample()),
            }
            .unwrap()
        }
        _ => {
            let name = if path == "/" {
                "index.html"
            } else {
                &path[1..]
            };
            let kind = match name.rsplit_once('.').map(|(_, ending)| ending) {
                Some("html") => "text/html; charset=utf-8",
                Some("css") => "text/css",
                Some("js") => "text/javascript",
                _ => "image/svg+xml",
            };
            let source = |directory: &str| {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                std::fs::read(root.join(directory).join(name)).ok()
            };
            return match source("src/page").or_else(|| source("../page/assets")) {
                Some(content) => ("200 OK", kind, content),
                None => {
                    state.missing.push(path.to_owned());
                    ("404 Not Found", "text/plain", Vec::new())
                }
            };
        }
    };
    ("200 OK", "application/json", content.into_bytes())
}
