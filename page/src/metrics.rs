//! Figures for Prometheus, in the OpenMetrics text format.

use anyhow::Context;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// The text of a moment's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics(String);

impl Metrics {
    /// Writes what is registered.
    ///
    /// # Errors
    /// A metric cannot be written.
    pub fn of(registry: &Registry) -> anyhow::Result<Self> {
        let mut text = String::new();
        encode(&mut text, registry).context("cannot write the metrics")?;
        Ok(Self(text))
    }

    /// The text itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl IntoResponse for Metrics {
    fn into_response(self) -> Response {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], self.0).into_response()
    }
}
