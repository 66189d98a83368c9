//! Who may see the page.
//!
//! On loopback everybody on this machine. A name in the `Host` header other than those of
//! loopback is refused there, or a site on the internet could have its own name point here
//! and read along in the household's browser (DNS rebinding). On any other address a password is
//! asked for ([`::page::password`]): whoever can listen there can read it. Orders come as JSON, which no form of another site can send
//! without asking first (Fetch standard, "CORS protocol").

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ::page::password::{Account, Password};
use anyhow::ensure;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;

/// Who has the password of the page.
pub const ACCOUNT: Account = Account {
    user: "household",
    realm: "Electricity meter",
    command: "meter-agent set-password",
};

/// Whom the page is served to.
pub(crate) enum Access {
    /// Who may open the socket.
    Owner,
    /// Everybody on this machine.
    Machine,
    /// Who knows the password.
    Password(Box<Password>),
}

impl Access {
    /// What an address asks for.
    ///
    /// # Errors
    /// It is not loopback and there is no password, or others may read its file.
    pub(crate) fn of(listen: SocketAddr, state_directory: &Path) -> anyhow::Result<Self> {
        if listen.ip().is_loopback() {
            return Ok(Self::Machine);
        }
        let password = Password::new(ACCOUNT, state_directory)?;
        ensure!(
            password.is_set()?,
            "others can reach {listen}, so a password is needed: run `{}`",
            ACCOUNT.command
        );
        Ok(Self::Password(Box::new(password)))
    }
}

/// Lets requests through that may pass.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    credentials: Option<TypedHeader<Authorization<Basic>>>,
    request: Request,
    next: Next,
) -> Response {
    let refusal = match &*access {
        Access::Owner => None,
        Access::Machine => (!is_loopback(host(&request))).then(wrong_host),
        Access::Password(password) => {
            let refusal = password.refusal(credentials.map(|given| given.0)).await;
            refusal.map(IntoResponse::into_response)
        }
    };
    match refusal {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn host(request: &Request) -> &str {
    let host = request.headers().get(header::HOST);
    host.and_then(|host| host.to_str().ok()).unwrap_or("")
}

/// Whether a `Host` header, with or without a port, names this machine itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn wrong_host() -> Response {
    (
        StatusCode::MISDIRECTED_REQUEST,
        "This page is served to this machine only, as http://localhost or http://127.0.0.1\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use ::page::password::set_password;

    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:8480",
            "127.0.0.1",
            "127.0.0.1:8480",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:8480",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            ":8480",
            "localhost.example.net",
            "evil.example:8480",
            "192.168.1.4",
            "127.0.0.1.example.net",
            "[fe80::1]:8480",
            "localhost:",
            "localhost:80:80",
        ] {
            assert!(!is_loopback(host) || host == "localhost:", "{host}");
        }
    }

    #[test]
    fn beyond_this_machine_there_has_to_be_a_password() {
        let directory = tempfile::tempdir().unwrap();
        let lan: SocketAddr = "0.0.0.0:8480".parse().unwrap();
        let missing = Access::of(lan, directory.path()).err().unwrap();
        assert!(
            missing.to_string().contains("meter-agent set-password"),
            "{missing}"
        );
        let here = "127.0.0.1:8480".parse().unwrap();
        let here = Access::of(here, directory.path()).unwrap();
        assert!(matches!(here, Access::Machine));
        set_password(directory.path(), "correct horse").unwrap();
        let access = Access::of(lan, directory.path()).unwrap();
        assert!(matches!(access, Access::Password(_)));
    }
}
