//! Stores whose failures the test controls.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use app::Stores;
use app::data::{self, Cursor, DataStore, Login, Post, Readiness, Signup, User, UserKey};
use app::error::StoreError;
use app::sessions::{Count, Id, Loaded, Reachability, Record, SessionStore};
use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::fixture::Site;

/// A site on embedded stores, with failures of data and sessions controlled by the test.
pub fn failing(site: &Site) -> (Stores, Fails<dyn DataStore>, Fails<dyn SessionStore>) {
    let embedded = site.stores();
    let data = Failing::of(Arc::clone(&embedded.data));
    let sessions = Failing::of(Arc::clone(&embedded.sessions));
    (Stores { data: data.clone(), sessions: sessions.clone(), ..embedded }, data, sessions)
}

/// Which operations fail, by their name and argument.
pub type Part = fn(&str, &str) -> bool;

pub type Fails<S> = Arc<Failing<S>>;

/// A store of which some operations fail.
#[derive(Debug)]
pub struct Failing<S: ?Sized> {
    part: Mutex<Option<Part>>,
    /// Each failure takes a permit.
    failures: Semaphore,
    inner: Arc<S>,
}

impl<S: ?Sized> Failing<S> {
    fn of(inner: Arc<S>) -> Arc<Self> {
        Arc::new(Self { part: Mutex::default(), failures: Semaphore::new(Semaphore::MAX_PERMITS), inner })
    }

    /// Operations for which `part` is true fail from now on.
    pub fn fails(&self, part: Part) {
        *self.part.lock().unwrap() = Some(part);
    }

    /// Failing operations do not return until they are released.
    pub fn hold_failures(&self) {
        self.failures.forget_permits(usize::MAX);
    }

    pub fn let_failures(&self, count: usize) {
        self.failures.add_permits(count);
    }

    fn is_failing(&self, operation: &str, name: &str) -> bool {
        self.part.lock().unwrap().is_some_and(|part| part(operation, name))
    }

    async fn pass(&self, operation: &str, name: &str) -> Result<(), StoreError> {
        if !self.is_failing(operation, name) {
            return Ok(());
        }
        self.failures.acquire().await.unwrap().forget();
        Err(StoreError::unavailable("away"))
    }
}

#[async_trait]
impl DataStore for Failing<dyn DataStore> {
    async fn create_user(&self, user: &User) -> data::Result<Signup> {
        self.pass("create_user", "").await?;
        self.inner.create_user(user).await
    }

    async fn user(&self, key: &UserKey) -> data::Result<Option<User>> {
        self.pass("user", "").await?;
        self.inner.user(key).await
    }

    async fn record_login(&self, login: &Login) -> data::Result<()> {
        self.pass("record_login", "").await?;
        self.inner.record_login(login).await
    }

    async fn logins(
        &self,
        key: &UserKey,
        after: Option<Cursor>,
        limit: usize,
        own: &[Cursor],
    ) -> data::Result<Vec<Login>> {
        self.inner.logins(key, after, limit, own).await
    }

    async fn add_post(&self, post: &Post) -> data::Result<()> {
        self.inner.add_post(post).await
    }

    async fn posts(&self, after: Option<Cursor>, limit: usize, own: &[Cursor]) -> data::Result<Vec<Post>> {
        self.inner.posts(after, limit, own).await
    }

    async fn ready(&self) -> data::Result<Readiness> {
        self.inner.ready().await
    }
}

#[async_trait]
impl SessionStore for Failing<dyn SessionStore> {
    async fn create(&self, record: &Record) -> Result<bool, StoreError> {
        self.pass("create", &record.id.to_string()).await?;
        self.inner.create(record).await
    }

    async fn save(&self, record: &Record) -> Result<bool, StoreError> {
        self.pass("save", &record.id.to_string()).await?;
        self.inner.save(record).await
    }

    async fn load(&self, id: &Id) -> Result<Loaded, StoreError> {
        self.pass("load", &id.to_string()).await?;
        self.inner.load(id).await
    }

    async fn delete(&self, id: &Id) -> Result<(), StoreError> {
        self.pass("delete", &id.to_string()).await?;
        self.inner.delete(id).await
    }

    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>, StoreError> {
        self.pass("enrol", name).await?;
        self.inner.enrol(name, entry, lifetime).await
    }

    async fn list(&self, name: &str) -> Result<Vec<String>, StoreError> {
        self.pass("list", name).await?;
        self.inner.list(name).await
    }

    async fn strike(&self, name: &str, entries: &[String]) -> Result<(), StoreError> {
        self.pass("strike", name).await?;
        self.inner.strike(name, entries).await
    }

    async fn count(&self, name: &str, entry: &str, window: Duration) -> Result<Count, StoreError> {
        self.pass("count", name).await?;
        self.inner.count(name, entry, window).await
    }

    async fn uncount(&self, name: &str, entry: &str) -> Result<(), StoreError> {
        self.pass("uncount", name).await?;
        self.inner.uncount(name, entry).await
    }

    async fn reach(&self) -> Result<Reachability, StoreError> {
        self.inner.reach().await
    }

    fn is_away(&self, id: &Id) -> bool {
        self.is_failing("create", &id.to_string())
    }
}
