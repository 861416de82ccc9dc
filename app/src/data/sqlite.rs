//! Data in one SQLite file shared by the instances of one machine: the embedded default.

use std::path::Path;

use async_trait::async_trait;
use rusqlite::types::Type;
use rusqlite::{Row, named_params};
use uuid::Uuid;

use super::{Cursor, DataStore, Login, Millis, Picture, Post, Readiness, Result, Signup, User, UserKey};
use crate::sqlite::{Database, Durability};

#[derive(Debug, Clone)]
pub struct SqliteData(Database);

impl SqliteData {
    /// Opens the file, and creates it and its tables if necessary.
    pub fn open(path: &Path) -> Result<Self> {
        Database::open(path, SCHEMA, Durability::Machine).map(Self)
    }
}

#[async_trait]
impl DataStore for SqliteData {
    async fn create_user(&self, user: &User) -> Result<Signup> {
        let user = user.clone();
        self.0
            .write(move |db| {
                let key = user.name.key();
                db.prepare_cached(
                    "INSERT INTO users (user_key, id, name, password_hash, created_ms)
                     VALUES (:user_key, :id, :name, :password_hash, :created_ms) ON CONFLICT DO NOTHING",
                )?
                .execute(named_params! {
                    ":user_key": key.as_str(),
                    ":id": user.id.to_string(),
                    ":name": user.name.as_str(),
                    ":password_hash": user.password_hash,
                    ":created_ms": user.created.0,
                })?;
                let holder: String = db
                    .prepare_cached("SELECT id FROM users WHERE user_key = :user_key")?
                    .query_one(named_params! { ":user_key": key.as_str() }, |row| row.get("id"))?;
                Ok(if holder == user.id.to_string() { Signup::Created } else { Signup::Taken })
            })
            .await
    }

    async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        let key = key.clone();
        self.0
            .read(move |db| {
                let mut query = db.prepare_cached("SELECT * FROM users WHERE user_key = :user_key")?;
                let mut users = query.query_map(named_params! { ":user_key": key.as_str() }, user)?;
                users.next().transpose()
            })
            .await
    }

    async fn record_login(&self, login: &Login) -> Result<()> {
        let login = login.clone();
        self.0
            .write(move |db| {
                db.prepare_cached(
                    "INSERT INTO logins (user_key, at_ms, id, address, instance, succeeded)
                     VALUES (:user_key, :at_ms, :id, :address, :instance, :succeeded) ON CONFLICT DO NOTHING",
                )?
                .execute(named_params! {
                    ":user_key": login.user.as_str(),
                    ":at_ms": login.at.0,
                    ":id": login.id.to_string(),
                    ":address": login.address.to_string(),
                    ":instance": login.instance,
                    ":succeeded": login.succeeded,
                })?;
                Ok(())
            })
            .await
    }

    // Lists always contain every finished write, so `own` is ignored.
    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize, _own: &[Cursor]) -> Result<Vec<Login>> {
        let key = key.clone();
        self.0
            .read(move |db| {
                let (at_ms, id) = start(after);
                db.prepare_cached(
                    "SELECT * FROM logins
                     WHERE user_key = :user_key AND (at_ms < :at_ms OR (at_ms = :at_ms AND id < :id))
                     ORDER BY at_ms DESC, id DESC LIMIT :limit",
                )?
                .query_map(
                    named_params! { ":user_key": key.as_str(), ":at_ms": at_ms, ":id": id, ":limit": rows(limit) },
                    login,
                )?
                .collect()
            })
            .await
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        let post = post.clone();
        self.0
            .write(move |db| {
                let picture = post.picture.as_ref();
                db.prepare_cached(
                    "INSERT INTO posts (id, created_ms, author, text, picture, picture_alt, picture_width, picture_height)
                     VALUES (:id, :created_ms, :author, :text, :picture, :alt, :width, :height) ON CONFLICT DO NOTHING",
                )?
                .execute(named_params! {
                    ":id": post.id.to_string(),
                    ":created_ms": post.created.0,
                    ":author": post.author.as_str(),
                    ":text": post.text,
                    ":picture": picture.map(|p| p.name.to_string()),
                    ":alt": picture.map(|p| p.alt.as_str()),
                    ":width": picture.map(|p| p.width),
                    ":height": picture.map(|p| p.height),
                })?;
                Ok(())
            })
            .await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize, _own: &[Cursor]) -> Result<Vec<Post>> {
        self.0
            .read(move |db| {
                let (at_ms, id) = start(after);
                db.prepare_cached(
                    "SELECT * FROM posts WHERE created_ms < :at_ms OR (created_ms = :at_ms AND id < :id)
                     ORDER BY created_ms DESC, id DESC LIMIT :limit",
                )?
                .query_map(named_params! { ":at_ms": at_ms, ":id": id, ":limit": rows(limit) }, post)?
                .collect()
            })
            .await
    }

    async fn ready(&self) -> Result<Readiness> {
        let query = "SELECT count(*) FROM users WHERE user_key = ''";
        self.0.read(move |db| db.query_one(query, [], |_| Ok(Readiness::Ready))).await
    }
}

/// The start of a list: after the cursor, or at the beginning.
fn start(after: Option<Cursor>) -> (i64, String) {
    after.map_or((i64::MAX, String::new()), |cursor| (cursor.at.0, cursor.id.to_string()))
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        id: parsed(row, "id")?,
        name: parsed(row, "name")?,
        password_hash: row.get("password_hash")?,
        created: Millis(row.get("created_ms")?),
    })
}

fn login(row: &Row<'_>) -> rusqlite::Result<Login> {
    Ok(Login {
        id: parsed(row, "id")?,
        user: UserKey::from_stored(row.get("user_key")?),
        at: Millis(row.get("at_ms")?),
        address: parsed(row, "address")?,
        instance: row.get("instance")?,
        succeeded: row.get("succeeded")?,
    })
}

fn post(row: &Row<'_>) -> rusqlite::Result<Post> {
    let picture = match row.get::<_, Option<String>>("picture")? {
        None => None,
        Some(_) => Some(Picture {
            name: parsed(row, "picture")?,
            alt: row.get("picture_alt")?,
            width: row.get("picture_width")?,
            height: row.get("picture_height")?,
        }),
    };
    Ok(Post {
        id: parsed::<Uuid>(row, "id")?,
        created: Millis(row.get("created_ms")?),
        author: parsed(row, "author")?,
        text: row.get("text")?,
        picture,
    })
}

fn parsed<T>(row: &Row<'_>, column: &str) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

/// The primary keys have the order of the lists, so that the table itself is the index.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS users (
    user_key TEXT PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL,
    password_hash TEXT NOT NULL, created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS logins (
    user_key TEXT NOT NULL, at_ms INTEGER NOT NULL, id TEXT NOT NULL,
    address TEXT NOT NULL, instance TEXT NOT NULL, succeeded INTEGER NOT NULL,
    PRIMARY KEY (user_key, at_ms, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS posts (
    id TEXT PRIMARY KEY, created_ms INTEGER NOT NULL, author TEXT NOT NULL, text TEXT NOT NULL,
    picture TEXT, picture_alt TEXT, picture_width INTEGER, picture_height INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS posts_newest ON posts (created_ms DESC, id DESC);
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.sqlite3");
        let one = SqliteData::open(&path).unwrap();
        let other = SqliteData::open(&path).unwrap();
        contract::run(&one, &other).await;
    }
}
