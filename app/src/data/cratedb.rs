//! Data in CrateDB. A written row is found by primary key at once, but appears in lists only after a refresh, which
//! happens once a second and takes several times as long as the write. Instead of waiting for it, rows that a list must
//! already include are read by key, and only if the list lacks them.

use std::time::Duration;

use async_trait::async_trait;

use super::wire::{Settings, Wire, statements};
use super::{Cursor, DataStore, Login, Post, Readiness, Result, Signup, User, UserKey};
use crate::metrics::CrateDbGauges;

#[derive(Debug, Clone)]
pub struct CrateDbData(Wire);

impl CrateDbData {
    /// Waits for the cluster, and creates missing tables.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let wire = Wire::new(settings, Some(statements::SESSION))?;
        wire.start("CrateDB", DDL).await?;
        Ok(Self(wire))
    }

    pub fn wire(&self) -> &Wire {
        &self.0
    }

    /// Updates `gauges` with the state of the cluster at intervals, until dropped.
    pub async fn watch(self, gauges: CrateDbGauges, every: Duration) {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            gauges.set(self.observe().await.ok());
        }
    }

    /// The numbers of nodes, of shards, and of unassigned shards.
    async fn observe(&self) -> Result<[i64; 3]> {
        Ok([
            self.0.count(statements::NODES).await?,
            self.0.count(statements::SHARDS).await?,
            self.0.count(statements::UNASSIGNED_SHARDS).await?,
        ])
    }
}

#[async_trait]
impl DataStore for CrateDbData {
    async fn create_user(&self, user: &User) -> Result<Signup> {
        self.0.create_user(statements::CREATE_USER, user).await
    }

    async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        self.0.user(key).await
    }

    async fn record_login(&self, login: &Login) -> Result<()> {
        self.0.record_login(statements::RECORD_LOGIN, login).await
    }

    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Login>> {
        let mut page = self.0.logins(key, after, limit).await?;
        for cursor in lacking(&page, Login::cursor, after, limit, own) {
            page.extend(self.0.login_by_key(key, cursor).await?);
        }
        Ok(in_order(page, Login::cursor, after, limit))
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        self.0.add_post(statements::ADD_POST, post).await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Post>> {
        let mut page = self.0.posts(after, limit).await?;
        for cursor in lacking(&page, Post::cursor, after, limit, own) {
            page.extend(self.0.post_by_key(cursor).await?);
        }
        Ok(in_order(page, Post::cursor, after, limit))
    }

    /// Without a master, a local shard still answers while every write fails.
    async fn ready(&self) -> Result<Readiness> {
        self.0.ready().await?;
        match self.0.has_master().await {
            Ok(false) => Ok(Readiness::ReadsOnly),
            Ok(true) => Ok(Readiness::Ready),
            // The user lacks the privilege, or the node was lost in between, which the next statement reveals.
            Err(error) => {
                tracing::debug!(%error, "CrateDB does not say whether it has a master");
                Ok(Readiness::Ready)
            }
        }
    }
}

/// Rows of `own` that belong on the page and are missing there.
fn lacking<T>(
    page: &[T],
    cursor: fn(&T) -> Cursor,
    after: Option<Cursor>,
    limit: usize,
    own: &[Cursor],
) -> Vec<Cursor> {
    let last = page.last().filter(|_| page.len() >= limit).map(cursor);
    let belongs = |row: &Cursor| after.is_none_or(|after| *row < after) && last.is_none_or(|last| *row > last);
    let is_listed = |row: &Cursor| page.iter().any(|listed| cursor(listed).id == row.id);
    own.iter().filter(|row| belongs(row) && !is_listed(row)).copied().collect()
}

/// Sorts a page after rows were added. A repeated write has the time of its first attempt, which may put its row on
/// another page.
fn in_order<T>(mut page: Vec<T>, cursor: fn(&T) -> Cursor, after: Option<Cursor>, limit: usize) -> Vec<T> {
    page.retain(|row| after.is_none_or(|after| cursor(row) < after));
    page.sort_by_key(|row| std::cmp::Reverse(cursor(row)));
    page.dedup_by_key(|row| cursor(row));
    page.truncate(limit);
    page
}

pub const DDL: &str = include_str!("../../../sql/cratedb.sql");
