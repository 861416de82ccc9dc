//! Wraps the stores: operations of any implementation are timed, and failures counted.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::data::{Cursor, DataStore, Login, Post, Readiness, Result, Signup, User, UserKey};
use crate::error::StoreError;
use crate::media::{Media, MediaName, MediaStore};
use crate::metrics::Metrics;
use crate::sessions::{Count, Id, Loaded, Reachability, Record, SessionStore};

/// `inner`, with metrics.
pub struct Observed<S: ?Sized> {
    inner: Arc<S>,
    metrics: Arc<Metrics>,
}

impl<S: ?Sized> Observed<S> {
    pub fn new(inner: Arc<S>, metrics: &Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { inner, metrics: Arc::clone(metrics) })
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for Observed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl DataStore for Observed<dyn DataStore> {
    async fn create_user(&self, user: &User) -> Result<Signup> {
        self.metrics.watch("data", "create_user", self.inner.create_user(user)).await
    }

    async fn user(&self, key: &UserKey) -> Result<Option<User>> {
        self.metrics.watch("data", "user", self.inner.user(key)).await
    }

    async fn record_login(&self, login: &Login) -> Result<()> {
        self.metrics.watch("data", "record_login", self.inner.record_login(login)).await
    }

    async fn logins(&self, key: &UserKey, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Login>> {
        self.metrics.watch("data", "logins", self.inner.logins(key, after, limit, own)).await
    }

    async fn add_post(&self, post: &Post) -> Result<()> {
        self.metrics.watch("data", "add_post", self.inner.add_post(post)).await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> Result<Vec<Post>> {
        self.metrics.watch("data", "posts", self.inner.posts(after, limit, own)).await
    }

    async fn ready(&self) -> Result<Readiness> {
        self.metrics.watch("data", "ready", self.inner.ready()).await
    }
}

#[async_trait]
impl MediaStore for Observed<dyn MediaStore> {
    async fn put(&self, name: &MediaName, content: tokio::fs::File) -> Result<()> {
        self.metrics.watch("media", "put", self.inner.put(name, content)).await
    }

    async fn open(
        &self,
        name: &MediaName,
        range: Option<Range<u64>>,
    ) -> std::result::Result<Option<Media>, StoreError> {
        self.metrics.watch("media", "open", self.inner.open(name, range)).await
    }

    async fn size(&self, name: &MediaName) -> Result<Option<u64>> {
        self.metrics.watch("media", "size", self.inner.size(name)).await
    }

    async fn ready(&self) -> Result<()> {
        self.metrics.watch("media", "ready", self.inner.ready()).await
    }
}

#[async_trait]
impl SessionStore for Observed<dyn SessionStore> {
    async fn create(&self, record: &Record) -> Result<bool> {
        self.metrics.watch("sessions", "create", self.inner.create(record)).await
    }

    async fn save(&self, record: &Record) -> Result<bool> {
        self.metrics.watch("sessions", "save", self.inner.save(record)).await
    }

    async fn load(&self, id: &Id) -> Result<Loaded> {
        self.metrics.watch("sessions", "load", self.inner.load(id)).await
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        self.metrics.watch("sessions", "delete", self.inner.delete(id)).await
    }

    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>> {
        self.metrics.watch("sessions", "enrol", self.inner.enrol(name, entry, lifetime)).await
    }

    async fn list(&self, name: &str) -> Result<Vec<String>> {
        self.metrics.watch("sessions", "list", self.inner.list(name)).await
    }

    async fn strike(&self, name: &str, entries: &[String]) -> Result<()> {
        self.metrics.watch("sessions", "strike", self.inner.strike(name, entries)).await
    }

    async fn count(&self, name: &str, entry: &str, window: Duration) -> Result<Count> {
        self.metrics.watch("sessions", "count", self.inner.count(name, entry, window)).await
    }

    async fn uncount(&self, name: &str, entry: &str) -> Result<()> {
        self.metrics.watch("sessions", "uncount", self.inner.uncount(name, entry)).await
    }

    async fn reach(&self) -> Result<Reachability> {
        self.metrics.watch("sessions", "reach", self.inner.reach()).await
    }

    fn is_away(&self, id: &Id) -> bool {
        self.inner.is_away(id)
    }
}
