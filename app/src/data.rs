//! Accounts, login history and posts, and the store that keeps them.
//!
//! The contract is cut so that a distributed store without transactions can keep it: uniqueness by primary key
//! alone, ids made here, times in milliseconds, and every write repeatable.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(feature = "network")]
pub mod cratedb;
#[cfg(feature = "network")]
pub mod postgres;
pub mod sqlite;
#[cfg(feature = "network")]
pub mod wire;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use uuid::Uuid;

use crate::error::StoreError;
use crate::media::MediaName;

pub type Result<T> = std::result::Result<T, StoreError>;

/// Keeps accounts, logins and posts for every instance.
///
/// - **Repeatable:** each write may be sent again with the same ids, by a retry here or by the balancer, and has
///   the effect of one.
/// - **Uniqueness** is that of the primary key, decided by the store in one step.
/// - **Visibility:** reads by key ([`user`](Self::user)) see every finished write. Lists may lag about a second behind,
///   but hold the finished writes that their `own` names, through whichever instance.
/// - **Order** of lists: newest first, by `(time, id)`, continued after a [`Cursor`].
/// - A dropped future leaves its write either done or not done, never half done.
#[async_trait]
pub trait DataStore: fmt::Debug + Send + Sync + 'static {
    /// Adds an account unless its key is taken. Adding the same account (same id) again returns [`Signup::Created`]
    /// again.
    async fn create_user(&self, user: &User) -> Result<Signup>;

    async fn user(&self, key: &UserKey) -> Result<Option<User>>;

    async fn record_login(&self, login: &Login) -> Result<()>;

    /// The logins of one account, at most `limit`, those after `after` in list order. `own` names logins that were
    /// recorded a moment ago and must be included already. Other ids in it have no effect.
    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Login>>;

    /// Adds a post. Repeating it (same id) changes nothing, even if its content differs.
    async fn add_post(&self, post: &Post) -> Result<()>;

    /// Posts of everyone, at most `limit`, those after `after` in the order of lists. `own` as for
    /// [`logins`](Self::logins).
    async fn posts(&self, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Post>>;

    /// Whether the store answers, and what it can do.
    async fn ready(&self) -> Result<Readiness>;
}

/// What a reachable store can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Reads work, but every write fails.
    ReadsOnly,
}

/// The result of a sign-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signup {
    Created,
    /// Someone else has the name.
    Taken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub name: UserName,
    /// In PHC string format, salt and parameters included.
    pub password_hash: String,
    pub created: Millis,
}

/// One attempt to log in to an account that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub id: Uuid,
    pub user: UserKey,
    pub at: Millis,
    pub address: IpAddr,
    /// Name of the instance that handled it.
    pub instance: String,
    pub succeeded: bool,
}

impl Login {
    /// Its position in the list.
    pub fn cursor(&self) -> Cursor {
        Cursor { at: self.at, id: self.id }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    pub id: Uuid,
    pub created: Millis,
    pub author: UserName,
    pub text: String,
    pub picture: Option<Picture>,
}

impl Post {
    /// Its position in the list.
    pub fn cursor(&self) -> Cursor {
        Cursor { at: self.created, id: self.id }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub name: MediaName,
    pub alt: String,
    pub width: u32,
    pub height: u32,
}

/// A time in milliseconds since 1970: the precision that every store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Millis(pub i64);

impl Millis {
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }
}

impl From<SystemTime> for Millis {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The position after which a list continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    pub at: Millis,
    pub id: Uuid,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.0, self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (at, id) = text.split_once('.').ok_or(())?;
        Ok(Self { at: Millis(at.parse().map_err(|_| ())?), id: id.parse().map_err(|_| ())? })
    }
}

/// A name as its owner writes it: 3 to 32 letters, digits, dots, dashes and underscores of any script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

impl UserName {
    pub const MIN_CHARS: usize = 3;
    pub const MAX_CHARS: usize = 32;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The unique key of the name, which ignores case, width and composition of letters.
    pub fn key(&self) -> UserKey {
        UserKey(folded(&self.0).nfkc().collect())
    }

    /// The key of accounts from before full case folding; differs from [`key`](Self::key) for few names. Such an
    /// account is found by this key first, and nobody else can sign up with either.
    pub fn former_key(&self) -> UserKey {
        UserKey(self.0.to_lowercase().nfkc().collect())
    }

    /// A name chosen at sign-up. Stored names may follow older rules.
    pub fn chosen(text: &str) -> std::result::Result<Self, BadName> {
        let name: Self = text.parse()?;
        if name.0.chars().any(is_default_ignorable) { Err(BadName::Unseen) } else { Ok(name) }
    }
}

/// Case-folded text, for comparison: full case folding (Unicode §3.13), with the dotless i as i. A single step is not
/// enough: the final sigma is lower case already, and the capital sharp s has no other upper case.
fn folded(text: &str) -> String {
    let lower = text.chars().flat_map(char::to_lowercase);
    lower.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// Invisible characters, some of which count as letters (Default_Ignorable_Code_Point of Unicode's
/// DerivedCoreProperties).
pub fn is_default_ignorable(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

impl FromStr for UserName {
    type Err = BadName;

    fn from_str(text: &str) -> std::result::Result<Self, BadName> {
        // A long text is refused before it is normalised, which may multiply its length.
        if text.len() > 16 * Self::MAX_CHARS {
            return Err(BadName::Length);
        }
        let name: String = text.trim().nfkc().collect();
        if !(Self::MIN_CHARS..=Self::MAX_CHARS).contains(&name.chars().count()) {
            return Err(BadName::Length);
        }
        if !name.starts_with(char::is_alphanumeric) {
            return Err(BadName::Start);
        }
        if !name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c)) {
            return Err(BadName::Character);
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for UserName {
    type Error = BadName;

    fn try_from(text: String) -> std::result::Result<Self, BadName> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> Self {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a name was refused, for the person who chose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("A name has 3 to 32 characters.")]
    Length,
    #[error("A name starts with a letter or a digit.")]
    Start,
    #[error("A name is made of letters, digits, dots, dashes and underscores, without spaces.")]
    Character,
    #[error("There is a letter in that name that nobody can see. Take it out.")]
    Unseen,
}

/// The primary key of an account, made from a [`UserName`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserKey(String);

impl UserKey {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For stores, which read back stored keys.
    pub fn from_stored(key: String) -> Self {
        Self(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_alike_share_a_key() {
        let key = |name: &str| name.parse::<UserName>().unwrap().key();
        assert_eq!(key("Zoe"), key("zoe"));
        assert_eq!(key("Zo\u{eb}"), key("zoe\u{308}"));
        assert_eq!(key("ann１"), key("ANN1"));
        assert_ne!(key("zoe"), key("zoé"));
        for same in [["STRASSE", "straße"], ["strasse", "STRAẞE"], ["ΟΔΟΣ", "οδος"], ["οδοσ", "οδος"]]
        {
            assert_eq!(key(same[0]), key(same[1]), "{same:?}");
        }
    }

    #[test]
    fn case_folding_of_names_is_idempotent() {
        for c in ('\0'..=char::MAX).filter(|c| c.is_alphanumeric() && c.to_string().nfkc().eq([*c])) {
            let once: String = folded(&c.to_string()).nfkc().collect();
            let twice: String = folded(&once).nfkc().collect();
            assert_eq!(once, twice, "{c} U+{:04X}", u32::from(c));
            for other in c.to_lowercase().chain(c.to_uppercase()) {
                // Each letter of a case of it, where that is one letter.
                if c.to_lowercase().count() == 1 && c.to_uppercase().count() == 1 {
                    let folded: String = folded(&other.to_string()).nfkc().collect();
                    assert_eq!(folded, once, "{c} U+{:04X}", u32::from(c));
                }
            }
        }
    }

    #[test]
    fn invisible_letters_are_refused_in_new_names_but_read_in_stored_ones() {
        for unseen in ["admin\u{3164}", "a\u{115f}dmin", "\u{3164}\u{3164}\u{3164}", "admin\u{1160}", "admin\u{ffa0}"] {
            assert_eq!(UserName::chosen(unseen), Err(BadName::Unseen), "{unseen:?}");
            assert!(unseen.parse::<UserName>().is_ok());
        }
        assert!(UserName::chosen("admin").is_ok());
    }

    #[test]
    fn invalid_names_are_explained() {
        let refuse = |name: &str| name.parse::<UserName>().unwrap_err();
        assert_eq!(refuse("ab"), BadName::Length);
        assert_eq!(refuse(&"a".repeat(33)), BadName::Length);
        assert_eq!(refuse(&"a".repeat(100_000)), BadName::Length);
        assert_eq!(refuse("-abc"), BadName::Start);
        assert_eq!(refuse("a b c"), BadName::Character);
        assert_eq!(refuse("abc\u{202e}def"), BadName::Character);
        assert_eq!(refuse("<script>").to_string(), BadName::Start.to_string());
    }

    #[test]
    fn cursors_survive_the_query_string() {
        let cursor = Cursor { at: Millis(1_763_697_600_123), id: Uuid::now_v7() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert_eq!("12".parse::<Cursor>(), Err(()));
        assert_eq!("x.y".parse::<Cursor>(), Err(()));
    }
}
