//! Why there is no answer, and work that must not hold up other answers.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// Why there is no answer, in words for whoever asked; as JSON, `{"error": …}`.
#[derive(Debug)]
pub struct Failure(pub StatusCode, pub String);

impl Failure {
    /// What was asked for cannot be.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = format!("{:#}", error.into());
        tracing::warn!(error, "the page could not answer");
        Self(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": self.1 });
        (self.0, Json(body)).into_response()
    }
}

/// Does what waits for the disk, or computes, where that holds up nobody.
///
/// # Errors
/// Those of the work; it panicked.
pub async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(work).await??)
}
