//! Who may see the page: who knows the password, from wherever they ask. Only `/health` is
//! told to everybody.
//!
//! The password crosses the network as it is: beyond this machine it needs a proxy with TLS.
//! The page changes nothing, so there is nothing that another site could have a browser do here.

use std::sync::Arc;

use ::page::password::{Account, Password, Reason};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;

use super::live::Live;

/// Who has the password of the page.
pub const ACCOUNT: Account = Account {
    user: "operator",
    realm: "DC-net provider",
    command: "provider-agent set-password --config FILE",
};

/// The one path that is told to everybody.
pub(super) const HEALTH: &str = "/health";

/// Who is let in, and who counts it.
pub(super) struct Access {
    pub(super) password: Password,
    pub(super) live: Live,
}

/// Lets requests through that may pass.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    credentials: Option<TypedHeader<Authorization<Basic>>>,
    request: Request,
    next: Next,
) -> Response {
    let refusal = if request.uri().path() == HEALTH {
        None
    } else {
        let given = credentials.map(|given| given.0);
        access.password.refusal(given).await
    };
    if refusal.is_some_and(|refusal| refusal.reason == Reason::Wrong) {
        access.live.count_wrong_password();
    }
    let response = match refusal {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    access.live.count_answer(response.status());
    response
}
