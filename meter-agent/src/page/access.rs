//! Who may see the page.
//!
//! On loopback everybody on this machine. A name in the `Host` header other than those of
//! loopback is refused there, or a site on the internet could have its own name point here
//! and read along in the household's browser (DNS rebinding). On any other address a password is
//! asked for, by HTTP Basic (RFC 7617), which crosses the network as it is: whoever
//! can listen there can read it. Orders come as JSON, which no form of another site can send
//! without asking first (Fetch standard, "CORS protocol").

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;
use link::permissions::require_private_file;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::HEADERS;

/// The user's name that goes with the password.
pub const USER: &str = "household";

/// Shortest password.
pub const SHORTEST: usize = 10;

/// So much time passes between two wrong passwords.
const PENALTY: Duration = Duration::from_secs(1);

/// Whom the page is served to.
pub(crate) enum Access {
    /// Who may open the socket.
    Owner,
    /// Everybody on this machine.
    Machine,
    /// Who knows the password.
    Password(Box<Password>),
}

/// A password, as its hash.
pub(crate) struct Password {
    hash: String,
    /// Digest, with a key of this process, of what was right last: hashing takes long.
    known: Mutex<Option<[u8; 32]>>,
    key: [u8; 32],
    /// Only one is tried at a time.
    trying: tokio::sync::Mutex<()>,
}

/// Where the hash of the password is.
pub fn password_file(state_directory: &Path) -> PathBuf {
    state_directory.join("page-password")
}

/// 7 MiB and 5 passes: OWASP's Password Storage Cheat Sheet names it for argon2id, and a small
/// machine can spare the memory.
fn argon2() -> anyhow::Result<Argon2<'static>> {
    let params = Params::new(7168, 5, 1, None)
        .map_err(|error| anyhow::anyhow!("argon2 refuses its parameters: {error}"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Sets the password of the page, of which only a hash is stored. It is asked for from the next
/// start of the agent on.
///
/// # Errors
/// Shorter than [`SHORTEST`]; the file cannot be written.
pub fn set_password(state_directory: &Path, password: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    ensure!(
        password.chars().count() >= SHORTEST,
        "a password of the page has at least {SHORTEST} characters"
    );
    let hash = argon2()?
        .hash_password(password.as_bytes())
        .map_err(|error| anyhow::anyhow!("cannot hash the password: {error}"))?
        .to_string();
    let (file, new) = (
        password_file(state_directory),
        state_directory.join("page-password.new"),
    );
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut written = options.open(&new)?;
        written.write_all(hash.as_bytes())?;
        written.sync_all()?;
        std::fs::rename(&new, &file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

impl Access {
    /// What an address asks for.
    ///
    /// # Errors
    /// It is not loopback and there is no password, or others may read its file.
    pub(crate) fn of(listen: SocketAddr, state_directory: &Path) -> anyhow::Result<Self> {
        let file = password_file(state_directory);
        if listen.ip().is_loopback() {
            return Ok(Self::Machine);
        }
        ensure!(
            file.exists(),
            "others can reach {listen}, so a password is needed: run `meter-agent set-password`"
        );
        require_private_file(&file, "the hash of the page's password")?;
        let hash = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("the operating system gives no random numbers")?;
        Ok(Self::Password(Box::new(Password {
            hash: hash.trim().to_owned(),
            known: Mutex::new(None),
            key,
            trying: tokio::sync::Mutex::new(()),
        })))
    }
}

impl Password {
    fn digest(&self, password: &str) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.key);
        digest.update(password.as_bytes());
        digest.finalize().into()
    }

    async fn is_right(self: &Password, given: &str) -> bool {
        let digest = self.digest(given);
        let known = || *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let matches = |known: Option<[u8; 32]>| known.is_some_and(|k| bool::from(k.ct_eq(&digest)));
        if matches(known()) {
            return true;
        }
        let _one = self.trying.lock().await;
        // It may have been found right while this one waited.
        if matches(known()) {
            return true;
        }
        let (hash, given) = (self.hash.clone(), given.to_owned());
        let verified = tokio::task::spawn_blocking(move || verify(&hash, &given)).await;
        if verified.unwrap_or(false) {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
            return true;
        }
        tokio::time::sleep(PENALTY).await;
        false
    }
}

fn verify(hash: &str, given: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        tracing::error!("the page's password file is damaged; run `meter-agent set-password`");
        return false;
    };
    argon2().is_ok_and(|argon2| argon2.verify_password(given.as_bytes(), &hash).is_ok())
}

/// Lets requests through that may pass, and says in each answer what a browser may do with it.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    credentials: Option<TypedHeader<Authorization<Basic>>>,
    request: Request,
    next: Next,
) -> Response {
    let refusal = match &*access {
        Access::Owner => None,
        Access::Machine => (!is_loopback(host(&request))).then(wrong_host),
        Access::Password(password) => match credentials {
            Some(TypedHeader(given))
                if given.username() == USER && password.is_right(given.password()).await =>
            {
                None
            }
            _ => Some(unauthorised()),
        },
    };
    let mut response = match refusal {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
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

fn unauthorised() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        [(
            header::WWW_AUTHENTICATE,
            "Basic realm=\"Electricity meter\", charset=\"UTF-8\"",
        )],
        "The user is \"household\"; the password was set with `meter-agent set-password`.\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn only_the_right_password_passes_and_its_file_holds_a_hash() {
        let directory = tempfile::tempdir().unwrap();
        let lan: SocketAddr = "0.0.0.0:8480".parse().unwrap();
        let missing = Access::of(lan, directory.path()).err().unwrap();
        assert!(
            missing.to_string().contains("meter-agent set-password"),
            "{missing}"
        );
        assert!(set_password(directory.path(), "too short").is_err());
        set_password(directory.path(), "correct horse").unwrap();
        let stored = std::fs::read_to_string(password_file(directory.path())).unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"),
            "{stored}"
        );
        let Access::Password(password) = Access::of(lan, directory.path()).unwrap() else {
            panic!("no password asked for")
        };
        assert!(!password.is_right("correct hors").await);
        assert!(password.is_right("correct horse").await);
        assert!(password.known.lock().unwrap().is_some());
        assert!(password.is_right("correct horse").await);
        assert!(!password.is_right("incorrect").await);
    }
}
