//! Passwords that people choose: asked for, and stored as argon2id hashes in PHC form.

use std::io::{BufRead, IsTerminal};

use anyhow::ensure;
use argon2::password_hash::phc::Output;
use argon2::{
    Algorithm, Argon2, Block, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version,
};
use zeroize::Zeroizing;

/// Shortest password in characters.
pub const SHORTEST: usize = 10;

/// What hashing a password takes, and so what guessing it takes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl Cost {
    /// Makes the hash of a password, with a salt of its own.
    ///
    /// # Errors
    /// argon2 does not allow this cost; the operating system gives no random numbers.
    pub fn hash(self, password: &[u8]) -> anyhow::Result<String> {
        let params = Params::new(self.memory, self.passes, 1, None)
            .map_err(|error| anyhow::anyhow!("argon2 refuses its parameters: {error}"))?;
        let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password(password)
            .map_err(|error| anyhow::anyhow!("cannot hash a password: {error}"))?;
        Ok(hash.to_string())
    }
}

/// Refuses a password that is too short to be stored.
///
/// # Errors
/// Shorter than [`SHORTEST`].
pub fn require_long(password: &str) -> anyhow::Result<()> {
    ensure!(
        password.chars().count() >= SHORTEST,
        "a password has at least {SHORTEST} characters"
    );
    Ok(())
}

/// Whether a text is a hash that [`verify`] can check a password against.
pub fn is_hash(text: &str) -> bool {
    PasswordHash::new(text).is_ok()
}

/// Whether a hash is the password's; never of what is no hash. Takes the memory and the time
/// that the hash names.
pub fn verify(hash: &str, password: &[u8]) -> bool {
    PasswordHash::new(hash)
        .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

/// Checks passwords one after the other, in memory that it keeps: an allocator that gets as much
/// back for every check, and lends parts of it elsewhere in between, soon holds many times that.
#[derive(Debug, Default)]
pub struct Checker {
    memory: Vec<Block>,
}

impl Checker {
    /// As [`verify`], for argon2id alone.
    pub fn verify(&mut self, hash: &str, password: &[u8]) -> bool {
        self.output_fits(hash, password).unwrap_or(false)
    }

    /// `None` of what is no hash.
    fn output_fits(&mut self, hash: &str, password: &[u8]) -> Option<bool> {
        let hash = PasswordHash::new(hash).ok()?;
        let (salt, expected) = (hash.salt.as_ref()?, hash.hash.as_ref()?);
        let params = Params::try_from(&hash).ok()?;
        let blocks = params.block_count();
        if self.memory.len() < blocks {
            self.memory = vec![Block::new(); blocks];
        }
        let mut output = vec![0; expected.len()];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(password, salt, &mut output, &mut self.memory)
            .ok()?;
        // In constant time.
        Some(Output::new(&output).is_ok_and(|output| output == *expected))
    }
}

/// Asks for a new password twice at the terminal, or takes the first line of the standard
/// input if that is none.
///
/// # Errors
/// Two different ones at the terminal; nothing can be read.
pub fn ask(whose: &str) -> anyhow::Result<Zeroizing<String>> {
    if std::io::stdin().is_terminal() {
        let given = Zeroizing::new(rpassword::prompt_password(format!(
            "Password of {whose}: "
        ))?);
        let again = Zeroizing::new(rpassword::prompt_password("Once more: ")?);
        ensure!(
            given == again,
            "the two are not the same; nothing was changed"
        );
        return Ok(given);
    }
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(Zeroizing::new(
        line.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Cost = Cost {
        memory: 64,
        passes: 1,
    };

    #[test]
    fn a_hash_is_of_its_password_alone_whatever_it_cost() {
        let dearer = Cost {
            memory: 128,
            passes: 2,
        };
        let mut checker = Checker::default();
        for cost in [COST, dearer, COST] {
            let hash = cost.hash(b"correct horse").unwrap();
            let begin = format!("$argon2id$v=19$m={},t={},p=1$", cost.memory, cost.passes);
            assert!(hash.starts_with(&begin), "{hash}");
            assert!(is_hash(&hash) && verify(&hash, b"correct horse"));
            assert!(!verify(&hash, b"correct hors"));
            assert!(checker.verify(&hash, b"correct horse"));
            assert!(!checker.verify(&hash, b"correct hors"));
        }
        let salted = COST.hash(b"correct horse").unwrap();
        assert_ne!(salted, COST.hash(b"correct horse").unwrap());
    }

    #[test]
    fn what_is_no_hash_matches_no_password() {
        for text in ["", "correct horse", "correct$horse"] {
            assert!(!is_hash(text) && !verify(text, text.as_bytes()), "{text:?}");
            assert!(
                !Checker::default().verify(text, text.as_bytes()),
                "{text:?}"
            );
        }
        let unfinished = "$argon2id$v=19$m=64";
        assert!(!verify(unfinished, b""), "it has neither salt nor hash");
    }

    #[test]
    fn a_short_password_is_refused_by_its_characters() {
        assert!(require_long("nine char").is_err());
        assert!(require_long("äöüßäöüß").is_err(), "16 bytes");
        assert!(require_long("ten chars.").is_ok());
    }
}
