//! Asks the agent that runs on a state directory how it is, or for something, through its socket.

use std::io;
use std::path::Path;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::page;

/// A connection to the agent of a state directory.
#[derive(Debug)]
pub struct Agent(SendRequest<Full<Bytes>>);

impl Agent {
    /// Connects to it; `None` if none runs.
    ///
    /// # Errors
    /// The socket belongs to another user.
    pub async fn find(state_directory: &Path) -> anyhow::Result<Option<Self>> {
        let socket = page::socket(state_directory);
        let stream = match UnixStream::connect(&socket).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot ask the agent at {}; are you its user (sudo -u meter-agent …)?",
                        socket.display()
                    )
                });
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .context("the agent does not speak HTTP")?;
        tokio::spawn(connection);
        Ok(Some(Self(sender)))
    }

    /// What it answers to a GET of `path`, such as `/status.txt`.
    ///
    /// # Errors
    /// It has ended, or answers with an error.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<String> {
        self.send(Request::get(path).body(Full::default())?).await
    }

    /// As [`Self::get`], of JSON.
    ///
    /// # Errors
    /// As [`Self::get`]; it answers with something else.
    pub async fn json<T: DeserializeOwned>(&mut self, path: &str) -> anyhow::Result<T> {
        let text = self.get(path).await?;
        serde_json::from_str(&text).context("the agent's answer is of another version")
    }

    /// Has it do what a POST to `path` does.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&mut self, path: &str, body: &Value) -> anyhow::Result<()> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        self.send(request).await.map(|_| ())
    }

    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> anyhow::Result<String> {
        let host = header::HeaderValue::from_static("localhost");
        request.headers_mut().insert(header::HOST, host);
        self.0.ready().await.context("the agent has ended")?;
        let answer = self.0.send_request(request).await;
        let answer = answer.context("the agent does not answer")?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body).into_owned();
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(text),
            _ => bail!("the agent answers {status}: {text}"),
        }
    }
}

/// The agent of a state directory.
///
/// # Errors
/// None runs, or its socket belongs to another user.
pub async fn running(state_directory: &Path) -> anyhow::Result<Agent> {
    let agent = Agent::find(state_directory).await?;
    agent.with_context(|| {
        format!(
            "no agent answers at {}: is it running (systemctl status meter-agent)?",
            page::socket(state_directory).display()
        )
    })
}

/// What the agent answers to a GET: the text of `path`, such as `/status.txt`.
///
/// # Errors
/// As [`running`]; it answers with an error.
pub async fn ask(state_directory: &Path, path: &str) -> anyhow::Result<String> {
    running(state_directory).await?.get(path).await
}
