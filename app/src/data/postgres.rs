//! Data in PostgreSQL.

use async_trait::async_trait;

use super::wire::{Settings, Wire};
use super::{Cursor, DataStore, Login, Post, Readiness, Result, Signup, User, UserKey};

#[derive(Debug, Clone)]
pub struct PostgresData(Wire);

impl PostgresData {
    /// Waits for the database, and creates missing tables.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let wire = Wire::new(settings, None)?;
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
        self.0.create_user(CREATE_USER, user).await
    }

    async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        self.0.user(key).await
    }

    async fn record_login(&self, login: &Login) -> Result<()> {
        self.0.record_login(RECORD_LOGIN, login).await
    }

    // Lists always contain every finished write, so `own` is ignored.
    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize, _own: &[Cursor]) -> Result<Vec<Login>> {
        self.0.logins(key, after, limit).await
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        self.0.add_post(ADD_POST, post).await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize, _own: &[Cursor]) -> Result<Vec<Post>> {
        self.0.posts(after, limit).await
    }

    async fn ready(&self) -> Result<Readiness> {
        self.0.ready().await.map(|()| Readiness::Ready)
    }
}

// As for CrateDB, but `DO NOTHING` waits for a concurrent transaction here.
const CREATE_USER: &str = "\
    INSERT INTO users (user_key, id, name, password_hash, created_ms) VALUES ($1, $2, $3, $4, $5) \
    ON CONFLICT (user_key) DO UPDATE SET created_ms = users.created_ms RETURNING id";
const RECORD_LOGIN: &str = "\
    INSERT INTO logins (user_key, at_ms, id, address, instance, succeeded) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
const ADD_POST: &str = "\
    INSERT INTO posts (id, created_ms, author, text, picture, picture_alt, picture_width, picture_height) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";

const DDL: &str = include_str!("../../../sql/postgres.sql");
