//! Who may see the page: who knows the password, from wherever they ask. Only `/health` is
//! told to everybody.
//!
//! It is asked for by HTTP Basic (RFC 7617), which browsers and Prometheus both speak, and
//! which crosses the network as it is: beyond this machine it needs a proxy with TLS. The
//! page changes nothing, so there is nothing that another site could have a browser do here.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum_extra::TypedHeader;
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;
use link::permissions::{give_to_owner_of, open_private_file};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::live::Live;
use crate::store::prepare_directory;

/// The user's name that goes with the password.
pub const USER: &str = "operator";

/// Shortest password in characters.
pub const SHORTEST: usize = 10;

/// What to do while there is no password.
pub const SET_ONE: &str = "set its password with `provider-agent set-password --config FILE`";

/// So much time passes between two wrong passwords.
const PENALTY: Duration = Duration::from_secs(1);

/// Longest file of a hash in bytes.
const LONGEST_HASH: u64 = 4096;

/// The one path that is told to everybody.
pub(super) const HEALTH: &str = "/health";

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

/// Where the hash of the password is.
pub fn password_file(state_directory: &Path) -> PathBuf {
    state_directory.join("page-password")
}

/// 7 MiB and 5 passes: OWASP's Password Storage Cheat Sheet names it for argon2id.
fn argon2() -> anyhow::Result<Argon2<'static>> {
    let params = Params::new(7168, 5, 1, None)
        .map_err(|error| anyhow::anyhow!("argon2 refuses its parameters: {error}"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Sets the password of the page, of which only a hash is stored; a running agent asks for
/// it from then on.
///
/// # Errors
/// Shorter than [`SHORTEST`]; the file cannot be written, or others may enter its directory.
pub fn set_password(state_directory: &Path, password: &str) -> anyhow::Result<()> {
    ensure!(
        password.chars().count() >= SHORTEST,
        "a password of the page has at least {SHORTEST} characters"
    );
    prepare_directory(state_directory)?;
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
        written.sync_all()
    };
    write().with_context(|| format!("cannot write {}", new.display()))?;
    give_to_owner_of(state_directory, &new)?;
    std::fs::rename(&new, &file).with_context(|| format!("cannot write {}", file.display()))
}

/// Asks for the password at the terminal, or takes the first line of the standard input, and
/// sets it.
///
/// # Errors
/// As [`set_password`]; two different ones at the terminal.
pub fn ask_password(state_directory: &Path) -> anyhow::Result<()> {
    let password = if std::io::stdin().is_terminal() {
        let given = Zeroizing::new(rpassword::prompt_password("Password of the page: ")?);
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        ensure!(
            given == again,
            "the two are not the same; nothing was changed"
        );
        given
    } else {
        let mut line = Zeroizing::new(String::new());
        std::io::stdin().lock().read_line(&mut line)?;
        Zeroizing::new(line.trim_end_matches(['\r', '\n']).to_owned())
    };
    set_password(state_directory, &password)
}

/// Who is let in.
pub(super) struct Access {
    file: PathBuf,
    /// Digest, with a key of this process, of the hash and of the password that matched it
    /// last: hashing takes long.
    known: Mutex<Option<[u8; 32]>>,
    key: [u8; 32],
    /// Only one is tried at a time.
    trying: tokio::sync::Mutex<()>,
    live: Live,
}

impl Access {
    /// Asks for the password of a state directory.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub(super) fn new(state_directory: &Path, live: Live) -> anyhow::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("the operating system gives no random numbers")?;
        Ok(Self {
            file: password_file(state_directory),
            known: Mutex::new(None),
            key,
            trying: tokio::sync::Mutex::new(()),
            live,
        })
    }

    /// The stored hash, `None` if no password was set.
    fn hash(&self) -> anyhow::Result<Option<String>> {
        use std::io::Read;
        if !self.file.exists() {
            return Ok(None);
        }
        let file = open_private_file(&self.file, "the hash of the page's password", SET_ONE)?;
        let mut hash = String::new();
        file.take(LONGEST_HASH)
            .read_to_string(&mut hash)
            .with_context(|| format!("cannot read {}", self.file.display()))?;
        Ok(Some(hash.trim().to_owned()))
    }

    fn digest(&self, hash: &str, password: &str) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.key);
        digest.update(Sha256::digest(hash.as_bytes()));
        digest.update(password.as_bytes());
        digest.finalize().into()
    }

    async fn is_right(&self, hash: String, given: &str) -> bool {
        let digest = self.digest(&hash, given);
        let is_known = || {
            let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.is_some_and(|known| bool::from(known.ct_eq(&digest)))
        };
        if is_known() {
            return true;
        }
        let _one = self.trying.lock().await;
        // It may have been found right while this one waited.
        if is_known() {
            return true;
        }
        let given = Zeroizing::new(given.to_owned());
        let verified = tokio::task::spawn_blocking(move || verify(&hash, &given)).await;
        if verified.unwrap_or(false) {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
            return true;
        }
        tokio::time::sleep(PENALTY).await;
        false
    }

    /// The answer to who may not pass; `None` for who may.
    async fn refusal(&self, given: Option<Authorization<Basic>>) -> Option<Response> {
        let hash = match self.hash() {
            Ok(Some(hash)) => hash,
            Ok(None) => return Some(no_password()),
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the operator's page is closed"
                );
                let text = "The file of the password cannot be used; the agent's log says why.\n";
                return Some((StatusCode::FORBIDDEN, text).into_response());
            }
        };
        match given {
            Some(given)
                if given.username() == USER && self.is_right(hash, given.password()).await =>
            {
                None
            }
            Some(_) => {
                self.live.count_wrong_password();
                Some(unauthorised())
            }
            None => Some(unauthorised()),
        }
    }
}

fn verify(hash: &str, given: &str) -> bool {
    let Ok(hash) = PasswordHash::new(hash) else {
        tracing::error!("the page's password file is damaged; {SET_ONE}");
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
    let refusal = if request.uri().path() == HEALTH {
        None
    } else {
        access.refusal(credentials.map(|given| given.0)).await
    };
    let mut response = match refusal {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    access.live.count_answer(response.status());
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

fn no_password() -> Response {
    let text = format!(
        "No password is set, so nothing is shown. On the machine of the agent, as its user,\n\
         {SET_ONE}\nand load this page again. The user is \"{USER}\".\n"
    );
    (StatusCode::FORBIDDEN, text).into_response()
}

fn unauthorised() -> Response {
    (
        StatusCode::UNAUTHORIZED,
        [(
            header::WWW_AUTHENTICATE,
            "Basic realm=\"DC-net provider\", charset=\"UTF-8\"",
        )],
        "The user is \"operator\"; the password was set with `provider-agent set-password`.\n",
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_passes_and_its_file_holds_a_hash() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let access = Access::new(&state, Live::default()).unwrap();
        let asked = |password: &str| Some(Authorization::basic(USER, password));
        let closed = access.refusal(asked("correct horse")).await.unwrap();
        assert_eq!(closed.status(), StatusCode::FORBIDDEN);
        assert!(set_password(&state, "too short").is_err());
        set_password(&state, "correct horse").unwrap();
        let stored = std::fs::read_to_string(password_file(&state)).unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"),
            "{stored}"
        );
        let refused = access.refusal(asked("correct hors")).await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert!(access.refusal(None).await.is_some());
        let other = Authorization::basic("household", "correct horse");
        assert!(access.refusal(Some(other)).await.is_some());
        assert!(access.refusal(asked("correct horse")).await.is_none());
        assert!(access.known.lock().unwrap().is_some());
        assert!(access.refusal(asked("correct horse")).await.is_none());
        set_password(&state, "another battery").unwrap();
        assert!(access.refusal(asked("correct horse")).await.is_some());
        assert!(access.refusal(asked("another battery")).await.is_none());
    }
}
