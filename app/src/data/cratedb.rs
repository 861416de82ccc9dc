//! Data in CrateDB. What has been written is found by primary key at once, but in lists only after a refresh, which comes
//! by itself once a second: so that the author finds a post in the very next list, each write that a list shows is
//! followed by a refresh of its table.

use std::time::Duration;

use async_trait::async_trait;

use super::{
    Cursor, DataStore, Login, Post, Result, Signup, User, UserKey,
    wire::{Settings, Wire, statements},
};
use crate::metrics::CrateDbGauges;

#[derive(Clone, Debug)]
pub struct CrateDbData(Wire);

impl CrateDbData {
    /// Waits for the cluster, and makes the tables that are missing.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let wire = Wire::new(settings)?;
        wire.start("CrateDB", DDL).await?;
        Ok(Self(wire))
    }

    pub fn wire(&self) -> &Wire {
        &self.0
    }

    /// Tells `gauges` how the cluster is, now and then, until dropped.
    pub async fn watch(self, gauges: CrateDbGauges, every: Duration) {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            gauges.set(self.observe().await.ok());
        }
    }

    /// How many nodes there are, shards, and shards without a node.
    async fn observe(&self) -> Result<[i64; 3]> {
        Ok([
            self.0.count(statements::NODES).await?,
            self.0.count(statements::SHARDS).await?,
            self.0.count(statements::UNASSIGNED_SHARDS).await?,
        ])
    }

    /// Makes what was just written visible. It is safe already, so a failure only delays it.
    async fn refresh(&self, statement: &str) {
        if let Err(error) = self.0.run_plain(statement).await {
            tracing::warn!(%error, "a table could not be refreshed, what was written shows a second later");
        }
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
        self.0.record_login(statements::RECORD_LOGIN, login).await?;
        self.refresh(statements::REFRESH_LOGINS).await;
        Ok(())
    }

    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize) -> Result<Vec<Login>> {
        self.0.logins(key, after, limit).await
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        self.0.add_post(statements::ADD_POST, post).await?;
        self.refresh(statements::REFRESH_POSTS).await;
        Ok(())
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize) -> Result<Vec<Post>> {
        self.0.posts(after, limit).await
    }

    async fn ready(&self) -> Result<()> {
        self.0.ready().await
    }
}

pub const DDL: &str = include_str!("../../../sql/cratedb.sql");
