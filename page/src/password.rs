//! The password of a page: its file in the state directory, and who is let in.
//!
//! It is asked for by HTTP Basic (RFC 7617), which browsers and Prometheus both speak, and
//! which crosses the network as it is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_extra::headers::Authorization;
use axum_extra::headers::authorization::Basic;
use secrets::password::{Cost, is_hash, require_long, verify};
use secrets::permissions::{open_private_file, replace_private_file};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// 7 MiB and 5 passes: OWASP's Password Storage Cheat Sheet names it for argon2id, and a small
/// machine can spare the memory.
const COST: Cost = Cost {
    memory: 7168,
    passes: 5,
};

/// So much time passes between two wrong passwords.
const PENALTY: Duration = Duration::from_secs(1);

/// Longest file of a hash in bytes.
const LONGEST_HASH: u64 = 4096;

/// Where the hash of the password is.
pub fn password_file(state_directory: &Path) -> PathBuf {
    state_directory.join("page-password")
}

/// Sets the password of a page, of which only a hash is stored, for the owner of the directory;
/// a running agent asks for it from then on.
///
/// # Errors
/// A password that is too short; the file cannot be written.
pub fn set_password(state_directory: &Path, password: &str) -> anyhow::Result<()> {
    require_long(password)?;
    let hash = COST.hash(password.as_bytes())?;
    replace_private_file(&password_file(state_directory), &hash, state_directory)
}

/// Who has a password, and in which words it is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    /// The user's name that goes with the password.
    pub user: &'static str,
    /// What a browser calls the page (RFC 9110, section 11.5). ASCII without `"` and `\`.
    pub realm: &'static str,
    /// The command that sets the password.
    pub command: &'static str,
}

/// The check of a password.
pub struct Password {
    account: Account,
    file: PathBuf,
    /// Digest, with a key of this process, of the hash and of the password that matched it
    /// last: hashing takes long.
    known: Mutex<Option<[u8; 32]>>,
    key: [u8; 32],
    /// Only one is tried at a time.
    trying: tokio::sync::Mutex<()>,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No password was set.
    NotSet,
    /// The file of the password cannot be used.
    Unusable,
    /// None was given.
    NotGiven,
    /// The user or the password is wrong.
    Wrong,
}

/// The answer to somebody who is not let in.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    account: Account,
}

impl Password {
    /// Asks for the password of a state directory, as it is at the time of asking.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn new(account: Account, state_directory: &Path) -> anyhow::Result<Self> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).context("the operating system gives no random numbers")?;
        Ok(Self {
            account,
            file: password_file(state_directory),
            known: Mutex::new(None),
            key,
            trying: tokio::sync::Mutex::new(()),
        })
    }

    /// Whether there is a password.
    ///
    /// # Errors
    /// Its file cannot be read, or others may read it.
    pub fn is_set(&self) -> anyhow::Result<bool> {
        Ok(self.hash()?.is_some())
    }

    fn hash(&self) -> anyhow::Result<Option<String>> {
        if !self.file.exists() {
            return Ok(None);
        }
        let advice = format!("run `{}`", self.account.command);
        let file = open_private_file(&self.file, "the hash of the page's password", &advice)?;
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
        if !is_hash(&hash) {
            let command = self.account.command;
            tracing::error!("the page's password file is damaged; run `{command}`");
        }
        let given = Zeroizing::new(given.to_owned());
        let verified = tokio::task::spawn_blocking(move || verify(&hash, given.as_bytes())).await;
        if verified.unwrap_or(false) {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
            return true;
        }
        tokio::time::sleep(PENALTY).await;
        false
    }

    /// Why who gives these credentials may not pass; `None` for who may.
    pub async fn refusal(&self, given: Option<Authorization<Basic>>) -> Option<Refusal> {
        let account = self.account;
        let refused = |reason| Some(Refusal { reason, account });
        let hash = match self.hash() {
            Ok(Some(hash)) => hash,
            Ok(None) => return refused(Reason::NotSet),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the page is closed");
                return refused(Reason::Unusable);
            }
        };
        match given {
            None => refused(Reason::NotGiven),
            Some(given)
                if given.username() == account.user
                    && self.is_right(hash, given.password()).await =>
            {
                None
            }
            Some(_) => refused(Reason::Wrong),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Account {
            user,
            realm,
            command,
        } = self.account;
        match self.reason {
            Reason::NotSet => {
                let text = format!(
                    "No password is set, so nothing is shown. On the machine of the agent, as its user,\n\
                     set its password with `{command}`\nand load this page again. The user is \"{user}\".\n"
                );
                (StatusCode::FORBIDDEN, text).into_response()
            }
            Reason::Unusable => {
                let text = "The file of the password cannot be used; the agent's log says why.\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            Reason::NotGiven | Reason::Wrong => {
                let challenge = format!("Basic realm=\"{realm}\", charset=\"UTF-8\"");
                let text =
                    format!("The user is \"{user}\"; the password was set with `{command}`.\n");
                let headers = [(header::WWW_AUTHENTICATE, challenge)];
                (StatusCode::UNAUTHORIZED, headers, text).into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ACCOUNT: Account = Account {
        user: "operator",
        realm: "A page",
        command: "agent set-password",
    };

    async fn reason(page: &Password, user: &str, password: &str) -> Option<Reason> {
        let refusal = page.refusal(Some(Authorization::basic(user, password)));
        refusal.await.map(|refusal| refusal.reason)
    }

    #[tokio::test]
    async fn only_the_right_password_passes_and_its_file_holds_a_hash() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path();
        let page = Password::new(ACCOUNT, state).unwrap();
        let asked = async |password| reason(&page, ACCOUNT.user, password).await;
        assert!(!page.is_set().unwrap());
        assert_eq!(asked("correct horse").await, Some(Reason::NotSet));
        assert!(set_password(state, "too short").is_err());
        set_password(state, "correct horse").unwrap();
        assert!(page.is_set().unwrap());
        let stored = std::fs::read_to_string(password_file(state)).unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=7168,t=5,p=1$"),
            "{stored}"
        );
        assert_eq!(asked("correct hors").await, Some(Reason::Wrong));
        let nothing = page.refusal(None).await.unwrap();
        assert_eq!(nothing.reason, Reason::NotGiven);
        let other = reason(&page, "household", "correct horse").await;
        assert_eq!(other, Some(Reason::Wrong));
        assert_eq!(asked("correct horse").await, None);
        assert!(page.known.lock().unwrap().is_some());
        assert_eq!(asked("correct horse").await, None);
        set_password(state, "another battery").unwrap();
        assert_eq!(asked("correct horse").await, Some(Reason::Wrong));
        assert_eq!(asked("another battery").await, None);
    }

    #[tokio::test]
    async fn a_file_that_is_no_hash_or_that_others_may_read_lets_nobody_in() {
        let directory = tempfile::tempdir().unwrap();
        let page = Password::new(ACCOUNT, directory.path()).unwrap();
        let file = password_file(directory.path());
        set_password(directory.path(), "correct horse").unwrap();
        std::fs::write(&file, "correct horse").unwrap();
        let damaged = reason(&page, ACCOUNT.user, "correct horse").await;
        assert_eq!(damaged, Some(Reason::Wrong));
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        let open = reason(&page, ACCOUNT.user, "correct horse").await;
        assert_eq!(open, Some(Reason::Unusable));
        assert!(page.is_set().is_err());
    }

    #[tokio::test]
    async fn a_refusal_names_user_command_and_realm() {
        let answer = |reason| {
            let account = ACCOUNT;
            Refusal { reason, account }.into_response()
        };
        for reason in [Reason::NotSet, Reason::Unusable] {
            assert_eq!(answer(reason).status(), StatusCode::FORBIDDEN);
        }
        for reason in [Reason::NotGiven, Reason::Wrong] {
            let answer = answer(reason);
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
            let challenge = &answer.headers()[header::WWW_AUTHENTICATE];
            assert_eq!(challenge, "Basic realm=\"A page\", charset=\"UTF-8\"");
        }
        let body = answer(Reason::NotSet).into_body();
        let body = axum::body::to_bytes(body, 4096).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("agent set-password") && text.contains("operator"));
    }
}
