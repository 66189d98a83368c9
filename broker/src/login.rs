//! Passwords of third parties: checked few at a time, with growing pauses after
//! wrong ones, and without telling by time which users there are.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrets::password::Checker;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client::User;
use crate::codec::Login;
use crate::counters::Refusal;
use crate::passwords::{self, LONGEST_PASSWORD, Passwords};
use crate::registry::network;

/// Wrong passwords of a user from one address before pauses begin.
const FREE_PER_USER: u32 = 3;

/// The same for all users together from one address.
const FREE_PER_ADDRESS: u32 = 20;

/// The first pause; each further wrong password doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause. After as much time again without one, all is forgotten.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Addresses and users that are remembered at a time.
const REMEMBERED: usize = 16_384;

/// Checks passwords.
pub(crate) struct Logins {
    permits: Arc<Semaphore>,
    /// Those that check nothing now; there are never more than permits.
    checkers: Mutex<Vec<Checker>>,
    back_off: Mutex<BackOff>,
    hashing: RandomState,
    /// The hash of a password that nobody knows, checked for unknown users.
    decoy: Arc<str>,
}

impl Logins {
    /// For so many checks at a time.
    ///
    /// # Errors
    /// If the operating system gives no random numbers.
    pub(crate) fn new(checks: usize) -> anyhow::Result<Self> {
        let hashing = RandomState::new();
        let unknown = hashing.hash_one("decoy").to_be_bytes();
        Ok(Self {
            permits: Arc::new(Semaphore::new(checks)),
            checkers: Mutex::default(),
            back_off: Mutex::default(),
            hashing,
            decoy: passwords::hash(&unknown)?.into(),
        })
    }

    /// Who gives this user and password from this address.
    ///
    /// # Errors
    /// [`Refusal::Login`], or [`Refusal::BackOff`] without looking at the password.
    pub(crate) async fn check(
        self: &Arc<Self>,
        passwords: &Passwords,
        address: IpAddr,
        login: Option<Login>,
    ) -> Result<User, Refusal> {
        let Some(login) = login else {
            return Err(Refusal::Login);
        };
        let address = network(address);
        let keys = [
            Key::User(address, self.hashing.hash_one(&login.user)),
            Key::Address(address),
        ];
        let known = passwords.get(&login.user);
        let user = known.map(|(name, hash)| User {
            name: Arc::clone(name),
            hash: Arc::clone(hash),
        });
        self.may_try(&keys)?;
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            return Err(Refusal::Login);
        };
        // Others may have failed while this one waited.
        self.may_try(&keys)?;
        let logins = Arc::clone(self);
        // It ends and counts even if nobody waits for it any more.
        let check = tokio::task::spawn_blocking(move || {
            let hash = user.as_ref().map_or(&logins.decoy, |user| &user.hash);
            let right = login.password.len() <= LONGEST_PASSWORD
                && logins.verify(hash, login.password.as_bytes());
            let user = user.filter(|_| right);
            let mut back_off = logins.lock();
            match &user {
                Some(_) => back_off.succeeded(&keys[0]),
                None => {
                    let count = back_off.failed(&keys, Instant::now());
                    drop(back_off);
                    if count.is_power_of_two() {
                        let user = login.user.chars().take(64).flat_map(char::escape_default);
                        let user: String = user.collect();
                        tracing::warn!(%address, user, count, "wrong user or password");
                    }
                }
            }
            drop(permit);
            user
        });
        check.await.ok().flatten().ok_or(Refusal::Login)
    }

    fn verify(&self, hash: &str, password: &[u8]) -> bool {
        let free = || self.checkers.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = free().pop();
        let mut checker = idle.unwrap_or_default();
        let right = checker.verify(hash, password);
        free().push(checker);
        right
    }

    fn may_try(&self, keys: &[Key]) -> Result<(), Refusal> {
        if self.lock().pauses(keys, Instant::now()) {
            return Err(Refusal::BackOff);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BackOff> {
        self.back_off.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose wrong passwords are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    /// A user, by the hash of its name, from one address: strangers elsewhere
    /// cannot lock a user out.
    User(IpAddr, u64),
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// Nothing is checked before.
    until: Instant,
}

/// Wrong passwords of late.
#[derive(Debug, Default)]
struct BackOff {
    failures: HashMap<Key, Failures>,
}

impl BackOff {
    fn pauses(&self, keys: &[Key], now: Instant) -> bool {
        let failures = keys.iter().filter_map(|key| self.failures.get(key));
        failures.into_iter().any(|failures| failures.until > now)
    }

    /// Counts a wrong password; returns how many there were for the first key.
    fn failed(&mut self, keys: &[Key; 2], now: Instant) -> u32 {
        if self.failures.len() + keys.len() > REMEMBERED {
            self.failures.retain(|_, f| f.until + LONGEST_PAUSE > now);
        }
        if self.failures.len() + keys.len() > REMEMBERED {
            // More addresses at once than can be remembered: the most harmless half goes.
            let mut counts: Vec<u32> = self.failures.values().map(|f| f.count).collect();
            let middle = counts.len() / 2;
            let median = *counts.select_nth_unstable(middle).1;
            self.failures.retain(|_, f| f.count > median);
        }
        keys.map(|key| {
            let failures = self.failures.entry(key).or_insert(Failures {
                count: 0,
                until: now,
            });
            if failures.until + LONGEST_PAUSE <= now {
                failures.count = 0;
            }
            failures.count = failures.count.saturating_add(1);
            let free = match key {
                Key::User(..) => FREE_PER_USER,
                Key::Address(_) => FREE_PER_ADDRESS,
            };
            failures.until = now + pause(failures.count, free);
            failures.count
        })[0]
    }

    fn succeeded(&mut self, key: &Key) {
        self.failures.remove(key);
    }
}

fn pause(count: u32, free: u32) -> Duration {
    match count.checked_sub(free) {
        None => Duration::ZERO,
        Some(beyond) => FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow(beyond))
            .min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(last: u8, user: u64) -> [Key; 2] {
        let address = IpAddr::from([192, 0, 2, last]);
        [Key::User(address, user), Key::Address(address)]
    }

    #[test]
    fn pauses_grow_and_are_forgotten() {
        let mut back_off = BackOff::default();
        let start = Instant::now();
        let mine = keys(1, 7);
        for _ in 0..FREE_PER_USER - 1 {
            back_off.failed(&mine, start);
            assert!(!back_off.pauses(&mine, start));
        }
        back_off.failed(&mine, start);
        assert!(back_off.pauses(&mine, start));
        let second = start + FIRST_PAUSE;
        assert!(!back_off.pauses(&mine, second));
        back_off.failed(&mine, second);
        assert!(back_off.pauses(&mine, second + FIRST_PAUSE));
        assert!(!back_off.pauses(&mine, second + 2 * FIRST_PAUSE));
        assert!(!back_off.pauses(&keys(2, 7), second), "elsewhere");
        assert!(!back_off.pauses(&keys(1, 8), second), "another user");
        for _ in 0..40 {
            back_off.failed(&mine, second);
        }
        assert!(!back_off.pauses(&mine, second + LONGEST_PAUSE));
        let later = second + 2 * LONGEST_PAUSE;
        assert_eq!(back_off.failed(&mine, later), 1);
    }

    #[test]
    fn an_address_that_tries_many_users_has_to_wait() {
        let mut back_off = BackOff::default();
        let now = Instant::now();
        for user in 0..u64::from(FREE_PER_ADDRESS) {
            assert!(!back_off.pauses(&keys(1, user), now));
            back_off.failed(&keys(1, user), now);
        }
        assert!(back_off.pauses(&keys(1, 99), now));
        back_off.succeeded(&keys(1, 3)[0]);
        assert!(back_off.pauses(&keys(1, 3), now), "the address still waits");
    }

    #[test]
    fn memory_is_bounded() {
        let mut back_off = BackOff::default();
        let now = Instant::now();
        for number in 0..3 * REMEMBERED as u32 {
            let address = IpAddr::from(number.to_be_bytes());
            back_off.failed(&[Key::User(address, 1), Key::Address(address)], now);
            assert!(back_off.failures.len() <= REMEMBERED);
        }
    }
}
