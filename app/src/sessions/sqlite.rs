//! Sessions in one SQLite file, shared by all instances on a machine: the default.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, named_params};
use time::OffsetDateTime;

use super::{Count, Id, Loaded, Reachability, Record, Result, SessionStore, TOMBSTONE_TTL};
use crate::error::StoreError;
use crate::sqlite::{Database, Durability};

#[derive(Debug, Clone)]
pub struct SqliteSessions(Database);

impl SqliteSessions {
    /// Opens the file. Creates it and its tables if necessary.
    pub fn open(path: &Path) -> std::result::Result<Self, StoreError> {
        Database::open(path, SCHEMA, Durability::Process).map(Self)
    }

    /// Regularly removes expired entries, until dropped. Every instance may run it on the same file.
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

    /// Removes at most one batch of each kind that had expired at `now`, so that other writers do not wait long.
    async fn remove_expired(&self, now: OffsetDateTime) -> Result<usize> {
        let now = millis(now);
        self.0
            .write(move |db| {
                let mut removed = 0;
                for statement in [
                    "DELETE FROM sessions WHERE id IN
                     (SELECT id FROM sessions WHERE expires_ms <= :now LIMIT 1000)",
                    "DELETE FROM session_lists WHERE (name, entry) IN
                     (SELECT name, entry FROM session_lists WHERE expires_ms <= :now LIMIT 1000)",
                    "DELETE FROM session_counted WHERE (name, entry) IN
                     (SELECT name, entry FROM session_counted WHERE expires_ms <= :now LIMIT 1000)",
                ] {
                    removed += db.prepare_cached(statement)?.execute(named_params! { ":now": now })?;
                }
                Ok(removed)
            })
            .await
    }
}

#[async_trait]
impl SessionStore for SqliteSessions {
    async fn create(&self, record: &Record) -> Result<bool> {
        let (id, data, expires) = columns(record)?;
        let created = self.0.write(move |db| {
            db.prepare_cached(
                "INSERT INTO sessions (id, data, expires_ms) VALUES (:id, :data, :expires) ON CONFLICT DO NOTHING",
            )?
            .execute(named_params! { ":id": id, ":data": data, ":expires": expires })
        });
        Ok(created.await? == 1)
    }

    async fn save(&self, record: &Record) -> Result<bool> {
        let (id, data, expires) = columns(record)?;
        let saved = self.0.write(move |db| {
            // An update, not an insert: a session that has been ended meanwhile stays ended.
            db.prepare_cached(
                "UPDATE sessions SET data = :data, expires_ms = :expires WHERE id = :id AND data <> '' AND expires_ms > :now",
            )?
            .execute(named_params! { ":id": id, ":data": data, ":expires": expires, ":now": now() })
        });
        Ok(saved.await? == 1)
    }

    async fn load(&self, id: &Id) -> Result<Loaded> {
        let (id, key) = (*id, id.to_string());
        let found = self.0.read(move |db| {
            db.prepare_cached("SELECT data, expires_ms FROM sessions WHERE id = :id AND expires_ms > :now")?
                .query_row(named_params! { ":id": key, ":now": now() }, |row| {
                    Ok((row.get::<_, String>("data")?, row.get::<_, i64>("expires_ms")?))
                })
                .optional()
        });
        match found.await? {
            None => Ok(Loaded::Nothing),
            Some((data, _)) if data.is_empty() => Ok(Loaded::Ended),
            Some((data, expires)) => Ok(Loaded::Session(Record {
                id,
                data: serde_json::from_str(&data).map_err(StoreError::corrupt)?,
                expiry_date: OffsetDateTime::from_unix_timestamp_nanos(i128::from(expires) * 1_000_000)
                    .map_err(StoreError::corrupt)?,
            })),
        }
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let (id, expires) = (id.to_string(), after(TOMBSTONE_TTL));
        let deleted = self.0.write(move |db| {
            // An ended session has no data.
            db.prepare_cached("UPDATE sessions SET data = '', expires_ms = :expires WHERE id = :id AND data <> ''")?
                .execute(named_params! { ":id": id, ":expires": expires })
        });
        deleted.await?;
        Ok(())
    }

    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>> {
        let (name, entry, expires) = (name.to_owned(), entry.to_owned(), after(lifetime));
        self.0
            .write(move |db| {
                let transaction = db.unchecked_transaction()?;
                // Does not extend an expired entry that has not been removed yet.
                transaction
                    .prepare_cached("DELETE FROM session_lists WHERE name = :name AND expires_ms <= :now")?
                    .execute(named_params! { ":name": name, ":now": now() })?;
                transaction
                    .prepare_cached("UPDATE session_lists SET expires_ms = :expires WHERE name = :name")?
                    .execute(named_params! { ":name": name, ":expires": expires })?;
                transaction
                    .prepare_cached(
                        "INSERT INTO session_lists (name, entry, place, expires_ms) VALUES (:name, :entry,
                             (SELECT coalesce(max(place), 0) + 1 FROM session_lists WHERE name = :name), :expires)
                         ON CONFLICT DO UPDATE SET place = excluded.place",
                    )?
                    .execute(named_params! { ":name": name, ":entry": entry, ":expires": expires })?;
                let listed = listed(&transaction, &name)?;
                transaction.commit()?;
                Ok(listed)
            })
            .await
    }

    async fn list(&self, name: &str) -> Result<Vec<String>> {
        let name = name.to_owned();
        self.0.read(move |db| listed(db, &name)).await
    }

    async fn strike(&self, name: &str, entries: &[String]) -> Result<()> {
        let (name, entries) = (name.to_owned(), entries.to_vec());
        self.0
            .write(move |db| {
                let mut statement =
                    db.prepare_cached("DELETE FROM session_lists WHERE name = :name AND entry = :entry")?;
                for entry in &entries {
                    statement.execute(named_params! { ":name": name, ":entry": entry })?;
                }
                Ok(())
            })
            .await
    }

    async fn count(&self, name: &str, entry: &str, window: Duration) -> Result<Count> {
        let (name, entry, expires) = (name.to_owned(), entry.to_owned(), after(window));
        let counted = self.0.write(move |db| {
            let transaction = db.unchecked_transaction()?;
            transaction
                .prepare_cached("DELETE FROM session_counted WHERE name = :name AND expires_ms <= :now")?
                .execute(named_params! { ":name": name, ":now": now() })?;
            // All entries of a window expire with the first one.
            transaction
                .prepare_cached(
                    "INSERT INTO session_counted (name, entry, expires_ms) VALUES (:name, :entry,
                         (SELECT coalesce(min(expires_ms), :expires) FROM session_counted WHERE name = :name))
                     ON CONFLICT DO NOTHING",
                )?
                .execute(named_params! { ":name": name, ":entry": entry, ":expires": expires })?;
            let counted = transaction
                .prepare_cached("SELECT count(*), min(expires_ms) FROM session_counted WHERE name = :name")?
                .query_row(named_params! { ":name": name }, |row| Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?)))?;
            transaction.commit()?;
            Ok(counted)
        });
        let (number, expires) = counted.await?;
        let left = u64::try_from(expires - now()).unwrap_or_default();
        Ok(Count { number, left: Duration::from_millis(left) })
    }

    async fn uncount(&self, name: &str, entry: &str) -> Result<()> {
        let (name, entry) = (name.to_owned(), entry.to_owned());
        let uncounted = self.0.write(move |db| {
            db.prepare_cached("DELETE FROM session_counted WHERE name = :name AND entry = :entry")?
                .execute(named_params! { ":name": name, ":entry": entry })
        });
        uncounted.await?;
        Ok(())
    }

    async fn reach(&self) -> Result<Reachability> {
        self.load(&Id::default()).await?;
        Ok(Reachability::Whole)
    }
}

fn listed(db: &Connection, name: &str) -> rusqlite::Result<Vec<String>> {
    db.prepare_cached("SELECT entry FROM session_lists WHERE name = :name AND expires_ms > :now ORDER BY place")?
        .query_map(named_params! { ":name": name, ":now": now() }, |row| row.get("entry"))?
        .collect()
}

fn columns(record: &Record) -> Result<(String, String, i64)> {
    let data = serde_json::to_string(&record.data).map_err(StoreError::corrupt)?;
    Ok((record.id.to_string(), data, millis(record.expiry_date)))
}

fn now() -> i64 {
    millis(OffsetDateTime::now_utc())
}

fn after(time: Duration) -> i64 {
    now().saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
}

fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, data TEXT NOT NULL, expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_ms);
CREATE TABLE IF NOT EXISTS session_lists (
    name TEXT NOT NULL, entry TEXT NOT NULL, place INTEGER NOT NULL, expires_ms INTEGER NOT NULL,
    PRIMARY KEY (name, entry)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_lists_expiry ON session_lists (expires_ms);
CREATE TABLE IF NOT EXISTS session_counted (
    name TEXT NOT NULL, entry TEXT NOT NULL, expires_ms INTEGER NOT NULL,
    PRIMARY KEY (name, entry)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS session_counted_expiry ON session_counted (expires_ms);
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
    async fn sweeping_removes_exactly_the_expired_sessions() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteSessions::open(&folder.path().join("sessions.sqlite3")).unwrap();
        let now = OffsetDateTime::now_utc();
        let short = contract::record(now + time::Duration::minutes(1));
        let long = contract::record(now + time::Duration::hours(1));
        for record in [&short, &long] {
            assert!(store.create(record).await.unwrap());
        }
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        for (name, lifetime) in [("short", minute), ("long", hour)] {
            store.enrol(name, "entry", lifetime).await.unwrap();
            store.count(name, "one", lifetime).await.unwrap();
        }
        assert_eq!(store.remove_expired(now + time::Duration::minutes(2)).await.unwrap(), 3);
        assert_eq!(store.load(&short.id).await.unwrap(), Loaded::Nothing);
        assert!(store.load(&long.id).await.unwrap().session().is_some());
        assert_eq!((store.list("short").await.unwrap().len(), store.list("long").await.unwrap().len()), (0, 1));
        assert_eq!(store.count("short", "another", hour).await.unwrap().number, 1);
        assert_eq!(store.count("long", "another", hour).await.unwrap().number, 2);
    }
}
