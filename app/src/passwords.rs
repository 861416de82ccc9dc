//! Password hashing: argon2id, outside of the async threads and with limited concurrency, because each hash takes tens
//! of milliseconds and megabytes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;
use unicode_normalization::UnicodeNormalization;

use crate::error::Error;

/// The cost of one hash. More memory or more passes make guessing more expensive, and logging in as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    pub memory_kib: u32,
    pub passes: u32,
}

impl Cost {
    /// The minimum outside of tests: memory times passes in KiB, from the five equivalent settings that OWASP
    /// recommends (7 MiB with 5 passes to 46 MiB with 1).
    pub const FLOOR_KIB_PASSES: u64 = 7168 * 5;
    pub const FLOOR_MEMORY_KIB: u32 = 7168;
    /// Only for tests: almost no work.
    pub const TRIVIAL: Self = Self { memory_kib: 8, passes: 1 };

    pub fn is_enough(self) -> bool {
        self.memory_kib >= Self::FLOOR_MEMORY_KIB
            && u64::from(self.memory_kib) * u64::from(self.passes) >= Self::FLOOR_KIB_PASSES
    }
}

/// A password as typed. Does not print.
#[derive(Clone, Default, serde::Deserialize)]
#[serde(from = "String")]
pub struct Password(String);

impl Password {
    pub const MIN_CHARS: usize = 8;
    pub const MAX_CHARS: usize = 256;

    pub fn length(&self) -> usize {
        self.0.chars().count()
    }
}

impl From<String> for Password {
    /// Composes letters, so that a password does not depend on the keyboard.
    fn from(typed: String) -> Self {
        // A longer one cannot be right, so normalising it would be wasted work.
        if typed.len() > 4 * Self::MAX_CHARS { Self(typed) } else { Self(typed.nfc().collect()) }
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[derive(Clone)]
pub struct Passwords {
    hasher: Argon2<'static>,
    permits: Arc<Semaphore>,
    /// Separate from those: many signups must not prevent logins.
    signups: Arc<Semaphore>,
    /// Compared with if there is no account, so that the response time does not reveal which names exist.
    decoy: Arc<str>,
}

impl Passwords {
    /// `jobs` limits concurrent password checks. One new hash can be computed in addition.
    pub fn new(cost: Cost, jobs: usize) -> anyhow::Result<Self> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None)
            .map_err(|error| anyhow::anyhow!("argon2 does not take {cost:?}: {error}"))?;
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = hasher
            .hash_password(b"nobody's password")
            .map_err(|error| anyhow::anyhow!("argon2 cannot hash: {error}"))?;
        Ok(Self {
            hasher,
            permits: Arc::new(Semaphore::new(jobs)),
            signups: Arc::new(Semaphore::new(1)),
            decoy: decoy.to_string().into(),
        })
    }

    /// The hash to store, in PHC string format.
    pub async fn hash(&self, password: Password) -> Result<String, Error> {
        let hasher = self.hasher.clone();
        compute(&self.signups, move || {
            Ok(hasher.hash_password(password.0.as_bytes()).map_err(Error::internal)?.to_string())
        })
        .await
    }

    /// Whether `password` matches `hash`. Without a hash it takes equally long and returns false.
    pub async fn verify(&self, password: Password, hash: Option<String>) -> Result<bool, Error> {
        let (hasher, decoy) = (self.hasher.clone(), Arc::clone(&self.decoy));
        compute(&self.permits, move || {
            let expected = PasswordHash::new(hash.as_deref().unwrap_or(&decoy)).map_err(Error::internal)?;
            match hasher.verify_password(password.0.as_bytes(), &expected) {
                Ok(()) => Ok(hash.is_some()),
                Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                Err(error) => Err(Error::internal(error)),
            }
        })
        .await
    }
}

/// Runs `work` when a permit is free. Fails if that would take too long.
async fn compute<T, F>(permits: &Arc<Semaphore>, work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    let turn = tokio::time::timeout(QUEUE_TIMEOUT, Arc::clone(permits).acquire_owned()).await;
    let permit = turn.map_err(|_| Error::Busy)?.map_err(Error::internal)?;
    tokio::task::spawn_blocking(move || {
        // Held by the work itself: a client that disconnects does not free the permit before the work is done.
        let _permit = permit;
        work()
    })
    .await
    .map_err(Error::internal)?
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").field("free", &self.permits.available_permits()).finish()
    }
}

const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords() -> Passwords {
        Passwords::new(Cost::TRIVIAL, 2).unwrap()
    }

    fn typed(text: &str) -> Password {
        Password::from(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_verifies_only_against_its_own_hash() {
        let passwords = passwords();
        let hash = passwords.hash(typed("correct horse")).await.unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(passwords.verify(typed("correct horse"), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify(typed("wrong horse"), Some(hash)).await.unwrap());
    }

    // Many signups prevented everybody from logging in.
    #[tokio::test]
    async fn signups_do_not_delay_logins() {
        let passwords = passwords();
        let _signing_up = passwords.signups.acquire_many(1).await.unwrap();
        assert!(!passwords.verify(typed("correct horse"), None).await.unwrap());
        let _logging_in = passwords.permits.acquire_many(2).await.unwrap();
        drop(_signing_up);
        passwords.hash(typed("correct horse")).await.unwrap();
    }

    #[tokio::test]
    async fn the_password_of_the_decoy_logs_nobody_in() {
        assert!(!passwords().verify(typed("nobody's password"), None).await.unwrap());
    }

    #[tokio::test]
    async fn composed_and_decomposed_letters_are_the_same_password() {
        let passwords = passwords();
        let hash = passwords.hash(typed("pässword")).await.unwrap();
        assert!(passwords.verify(typed("pa\u{308}ssword"), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn hashes_made_at_another_cost_still_verify() {
        let dear = Passwords::new(Cost { memory_kib: 64, passes: 2 }, 1).unwrap();
        let hash = dear.hash(typed("correct horse")).await.unwrap();
        assert!(passwords().verify(typed("correct horse"), Some(hash)).await.unwrap());
    }

    #[test]
    fn the_recommended_costs_are_enough_and_less_is_not() {
        for (memory_kib, passes) in [(47_104, 1), (19_456, 2), (12_288, 3), (9_216, 4), (7_168, 5)] {
            assert!(Cost { memory_kib, passes }.is_enough());
        }
        assert!(!Cost { memory_kib: 19_456, passes: 1 }.is_enough());
        assert!(!Cost { memory_kib: 1_024, passes: 100 }.is_enough());
    }

    #[test]
    fn a_password_does_not_print() {
        assert_eq!(format!("{:?}", typed("secret")), "Password(..)");
    }
}
