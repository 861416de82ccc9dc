//! Data in PostgreSQL.

use async_trait::async_trait;

use super::{
    Cursor, DataStore, Login, Post, Result, Signup, User, UserKey,
    wire::{Settings, Wire},
};

#[derive(Clone, Debug)]
pub struct PostgresData(Wire);

impl PostgresData {
    /// Waits for the database, and makes the tables that are missing.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let wire = Wire::new(settings)?;
        wire.start("PostgreSQL", DDL).await?;
        Ok(Self(wire))
    }

    pub fn wire(&self) -> &Wire {
        &self.0
    }
}

#[async_trait]
impl DataStore for PostgresData {
    async fn create_user(&self, user: &User) -> Result<Signup> {
        self.0.create_user(user).await
    }

    async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        self.0.user(key).await
    }

    async fn record_login(&self, login: &Login) -> Result<()> {
        self.0.record_login(login).await
    }

    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize) -> Result<Vec<Login>> {
        self.0.logins(key, after, limit).await
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        self.0.add_post(post).await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize) -> Result<Vec<Post>> {
        self.0.posts(after, limit).await
    }

    async fn ready(&self) -> Result<()> {
        self.0.ready().await
    }
}

const DDL: &str = include_str!("../../../sql/postgres.sql");
