//! The password file: a line `user:hash` each, the hash argon2id in PHC form.
//! It is written by the program; lines that begin with `#` stay.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use secrets::password::{Cost, is_hash, require_long};
use secrets::permissions::{directory_of, replace_private_file};

/// Longest password, in bytes.
pub const LONGEST_PASSWORD: usize = 1024;

/// Longest name of a user, in bytes.
const LONGEST_NAME: usize = 64;

/// Room for more users than may ever be.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// What every hash begins with. All have the same parameters, so that checking takes
/// the same time for each: 19 MiB and 2 passes, of OWASP's Password Storage Cheat Sheet.
const PREFIX: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

const COST: Cost = Cost {
    memory: 19_456,
    passes: 2,
};

/// Makes the hash of a password; takes as long as checking one, some 30 ms and 19 MiB.
///
/// # Errors
/// If the operating system gives no random numbers.
pub(crate) fn hash(password: &[u8]) -> anyhow::Result<String> {
    COST.hash(password)
}

/// The users and the hashes of their passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Passwords {
    users: BTreeMap<Arc<str>, Arc<str>>,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Passwords({})", self.users.len())
    }
}

impl Passwords {
    /// Reads a password file; one that does not exist has no users yet.
    ///
    /// # Errors
    /// If it cannot be read, others may read it, or a line is wrong.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let place = || format!("passwords {}", path.display());
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            metadata => metadata.with_context(place)?,
        };
        let mode = metadata.permissions().mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "{path} holds hashes of passwords but others may use it (mode {mode:04o}); run: chmod 600 {path}",
            path = path.display()
        );
        ensure!(
            metadata.len() <= MAX_FILE,
            "{} is over {MAX_FILE} bytes",
            place()
        );
        Self::parse(&fs::read_to_string(path).with_context(place)?).with_context(place)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut users = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // What stands there is not repeated: it may be a password.
            let (name, hash) = line
                .split_once(':')
                .with_context(|| format!("line {number} is not user:hash"))?;
            check_user_name(name).with_context(|| format!("line {number}"))?;
            ensure!(
                hash.starts_with(PREFIX) && is_hash(hash),
                "line {number}: not a hash that `broker set-password` made; set it again"
            );
            let twice = users.insert(Arc::from(name), Arc::from(hash));
            ensure!(
                twice.is_none(),
                "line {number}: the user {name} is there twice"
            );
        }
        Ok(Self { users })
    }

    /// The name as kept here and the hash of the password.
    pub(crate) fn get(&self, user: &str) -> Option<(&Arc<str>, &Arc<str>)> {
        self.users.get_key_value(user)
    }

    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }
}

/// Sets the password of a user in a password file; makes the file if there is none,
/// for the owner of its directory. A running broker takes it up by itself.
///
/// # Errors
/// If the name or password is unfit, or the file is wrong or cannot be written.
pub fn set_password(path: &Path, user: &str, password: &str) -> anyhow::Result<()> {
    check_user_name(user)?;
    require_long(password)?;
    ensure!(
        password.len() <= LONGEST_PASSWORD,
        "a password has at most {LONGEST_PASSWORD} bytes"
    );
    let line = format!("{user}:{}", hash(password.as_bytes())?);
    change(path, user, Some(&line)).map(|_| ())
}

/// Removes a user from a password file; a running broker ends its sessions.
///
/// # Errors
/// If there is no such user, or the file is wrong or cannot be written.
pub fn remove_user(path: &Path, user: &str) -> anyhow::Result<()> {
    let was_there = change(path, user, None)?;
    ensure!(was_there, "{} has no user {user:?}", path.display());
    Ok(())
}

/// Replaces the line of a user; tells whether there was one.
fn change(path: &Path, user: &str, line: Option<&str>) -> anyhow::Result<bool> {
    let place = || format!("cannot write {}", path.display());
    let directory = directory_of(path);
    // Two commands at once would lose what one of them wrote.
    let lock = File::open(directory).with_context(place)?;
    lock.lock().with_context(place)?;
    Passwords::read(path)?;
    let exists = path.exists();
    let old = if exists {
        fs::read_to_string(path).with_context(place)?
    } else {
        String::new()
    };
    let is_own = |line: &&str| line.split_once(':').is_some_and(|(name, _)| name == user);
    let was_there = old.lines().any(|line| is_own(&line));
    let kept = old.lines().filter(|line| !is_own(line));
    let text: String = kept.chain(line).flat_map(|line| [line, "\n"]).collect();
    replace_private_file(path, &text, if exists { path } else { directory })?;
    Ok(was_there)
}

/// Letters, digits and `.`, `_`, `@`, `-`: nothing that means something in a topic,
/// a file or a log, and no id of a certificate.
pub(crate) fn check_user_name(name: &str) -> anyhow::Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    ensure!(
        (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain),
        "{name:?} is no name of a user: it has 1 to {LONGEST_NAME} letters, digits and . _ @ -"
    );
    ensure!(
        crate::rules::device_id(name).is_none(),
        "{name:?} is no name of a user: it could be the id of a certificate"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use secrets::password::Checker;

    use super::*;

    #[test]
    fn a_password_is_stored_as_its_hash_and_other_lines_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords");
        assert!(set_password(&path, "dashboard", "too short").is_err());
        assert!(set_password(&path, "dash:board", "correct horse").is_err());
        assert!(!path.exists());
        set_password(&path, "dashboard", "correct horse").unwrap();
        let first = fs::read_to_string(&path).unwrap();
        assert!(!first.contains("horse"), "{first}");
        fs::write(&path, format!("# ours\n{first}")).unwrap();
        set_password(&path, "other", "battery staple").unwrap();
        set_password(&path, "dashboard", "another horse").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ours\nother:$argon2id$"), "{text}");
        let passwords = Passwords::read(&path).unwrap();
        assert_eq!(passwords.len(), 2);
        let (_, hash) = passwords.get("dashboard").unwrap();
        let mut checker = Checker::default();
        for _ in 0..2 {
            assert!(checker.verify(hash, b"another horse"), "used again");
            assert!(!checker.verify(hash, b"correct horse"));
        }
        assert!(!format!("{passwords:?}").contains("argon2"));
        remove_user(&path, "dashboard").unwrap();
        assert!(remove_user(&path, "dashboard").is_err());
        assert!(Passwords::read(&path).unwrap().get("dashboard").is_none());
    }

    #[test]
    fn wrong_lines_are_refused_without_repeating_them() {
        let other = "$argon2id$v=19$m=4096,t=1,p=1$c2FsdHNhbHQ$aGFzaA";
        for text in ["secret", "user:secret", "a b:secret", &format!("u:{other}")] {
            let error = format!("{:#}", Passwords::parse(text).unwrap_err());
            assert!(error.contains("line 1"), "{error}");
            assert!(
                !error.contains("secret") && !error.contains("c2Fs"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Passwords::read(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }
}
