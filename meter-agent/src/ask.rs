//! Asks the agent that runs on a state directory how it is, through its socket.

use std::path::Path;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::page;

/// What the agent answers to a GET: the text of `path`, such as `/status.txt`.
///
/// # Errors
/// No agent runs, or its socket belongs to another user; it answers with an error.
pub async fn ask(state_directory: &Path, path: &str) -> anyhow::Result<String> {
    let socket = page::socket(state_directory);
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "no agent answers at {}: is it running (systemctl status meter-agent), and are you \
             its user (sudo -u meter-agent …)?",
            socket.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("the agent does not speak HTTP")?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = sender
        .send_request(request)
        .await
        .context("the agent does not answer")?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    ensure!(
        status == StatusCode::OK,
        "the agent answers {status}: {text}"
    );
    Ok(text)
}
