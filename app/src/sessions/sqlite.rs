//! Sessions in one SQLite file shared by the instances of one machine: the embedded default.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use rusqlite::{OptionalExtension, named_params};
use time::OffsetDateTime;
use tower_sessions_core::{
    SessionStore,
    session::{Id, Record},
    session_store::{Error, Result},
};

use crate::{
    error::StoreError,
    sqlite::{Database, Durability},
};

#[derive(Clone, Debug)]
pub struct SqliteSessions(Database);

impl SqliteSessions {
    /// Opens the file, creating it and its table if need be.
    pub fn open(path: &Path) -> std::result::Result<Self, StoreError> {
        Database::open(path, SCHEMA, Durability::Process).map(Self)
    }

    /// Removes what has expired, now and then, until dropped. Every instance may run it on the same file.
    pub async fn sweep(self, every: Duration) {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            match self.remove_expired(OffsetDateTime::now_utc()).await {
                Ok(0) => {}
                Ok(removed) => tracing::debug!(removed, "expired sessions removed"),
                Err(error) => tracing::warn!(%error, "expired sessions could not be removed, trying again later"),
            }
        }
    }

    /// Removes at most a batch of what had expired at `now`, so that other writers are not kept waiting.
    async fn remove_expired(&self, now: OffsetDateTime) -> std::result::Result<usize, StoreError> {
        let now = millis(now);
        self.0
            .write(move |db| {
                db.prepare_cached(
                    "DELETE FROM sessions WHERE id IN
                     (SELECT id FROM sessions WHERE expires_ms <= :now LIMIT 1000)",
                )?
                .execute(named_params! { ":now": now })
            })
            .await
    }
}

#[async_trait]
impl SessionStore for SqliteSessions {
    async fn create(&self, record: &mut Record) -> Result<()> {
        loop {
            let (id, data, expires) = columns(record)?;
            let created = self
                .0
                .write(move |db| {
                    db.prepare_cached(
                        "INSERT INTO sessions (id, data, expires_ms) VALUES (:id, :data, :expires)
                         ON CONFLICT DO NOTHING",
                    )?
                    .execute(named_params! { ":id": id, ":data": data, ":expires": expires })
                })
                .await
                .map_err(backend)?;
            if created == 1 {
                return Ok(());
            }
            record.id = Id::default();
        }
    }

    async fn save(&self, record: &Record) -> Result<()> {
        let (id, data, expires) = columns(record)?;
        self.0
            .write(move |db| {
                // An update, never an insert: a session that was ended meanwhile stays ended.
                db.prepare_cached("UPDATE sessions SET data = :data, expires_ms = :expires WHERE id = :id")?
                    .execute(named_params! { ":id": id, ":data": data, ":expires": expires })
            })
            .await
            .map_err(backend)?;
        Ok(())
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let (id, key) = (*id, id.to_string());
        let now = millis(OffsetDateTime::now_utc());
        let found = self
            .0
            .read(move |db| {
                db.prepare_cached("SELECT data, expires_ms FROM sessions WHERE id = :id AND expires_ms > :now")?
                    .query_row(named_params! { ":id": key, ":now": now }, |row| {
                        Ok((row.get::<_, String>("data")?, row.get::<_, i64>("expires_ms")?))
                    })
                    .optional()
            })
            .await
            .map_err(backend)?;
        found
            .map(|(data, expires)| {
                Ok(Record {
                    id,
                    data: serde_json::from_str(&data).map_err(|error| Error::Decode(error.to_string()))?,
                    expiry_date: OffsetDateTime::from_unix_timestamp_nanos(i128::from(expires) * 1_000_000)
                        .map_err(|error| Error::Decode(error.to_string()))?,
                })
            })
            .transpose()
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let id = id.to_string();
        self.0
            .write(move |db| {
                db.prepare_cached("DELETE FROM sessions WHERE id = :id")?.execute(named_params! { ":id": id })
            })
            .await
            .map_err(backend)?;
        Ok(())
    }
}

fn columns(record: &Record) -> Result<(String, String, i64)> {
    let data = serde_json::to_string(&record.data).map_err(|error| Error::Encode(error.to_string()))?;
    Ok((record.id.to_string(), data, millis(record.expiry_date)))
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn backend(error: StoreError) -> Error {
    match error {
        StoreError::Unavailable(_) => Error::Backend(error.to_string()),
        StoreError::Corrupt(_) => Error::Decode(error.to_string()),
    }
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, data TEXT NOT NULL, expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_ms);
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::contract;

    #[tokio::test]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.sqlite3");
        let one = SqliteSessions::open(&path).unwrap();
        let other = SqliteSessions::open(&path).unwrap();
        contract::run(&one, &other).await;
    }

    #[tokio::test]
    async fn sweeping_removes_what_has_expired_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteSessions::open(&folder.path().join("sessions.sqlite3")).unwrap();
        let now = OffsetDateTime::now_utc();
        let mut short = contract::record(now + time::Duration::minutes(1));
        let mut long = contract::record(now + time::Duration::hours(1));
        store.create(&mut short).await.unwrap();
        store.create(&mut long).await.unwrap();
        assert_eq!(store.remove_expired(now + time::Duration::minutes(2)).await.unwrap(), 1);
        assert_eq!(store.load(&short.id).await.unwrap(), None);
        assert!(store.load(&long.id).await.unwrap().is_some());
    }
}
