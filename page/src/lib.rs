//! What the pages that the agents serve have in common: files out of the program itself
//! ([`assets`]), a password ([`password`]), few connections at a time ([`serve`]), figures for
//! Prometheus ([`metrics`]) and answers that a browser treats with care.

pub mod assets;
mod failure;
pub mod metrics;
pub mod password;
mod serve;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::map_response;
use axum::response::Response;

pub use failure::{Failure, off_the_runtime};
pub use serve::{Limits, serve};

/// What a browser may do with an answer.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
             connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
];

/// Says in every answer what a browser may do with it: load nothing from elsewhere, show it in
/// no frame, keep no copy. Has to be the outermost layer, so that refusals say it too.
pub fn with_headers(router: Router) -> Router {
    router.layer(map_response(async |mut response: Response| {
        for (name, value) in HEADERS {
            response.headers_mut().insert(name, value);
        }
        response
    }))
}
