//! Writes the login history in the background: a login must neither fail nor take longer because of its record.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::data::{DataStore, Login};

#[derive(Debug)]
pub struct History {
    data: Arc<dyn DataStore>,
    /// One permit for each record that is queued or being written.
    room: Arc<Semaphore>,
    /// Limits concurrent writes, since requests need the store's connections, too.
    writing: Arc<Semaphore>,
    lost: IntCounter,
}

impl History {
    /// `lost` counts records that could not be written.
    pub fn new(data: Arc<dyn DataStore>, lost: IntCounter) -> Self {
        let (room, writing) = (Arc::new(Semaphore::new(QUEUE_LENGTH)), Arc::new(Semaphore::new(WRITERS)));
        Self { data, room, writing, lost }
    }

    /// Writes a login in the background, whatever happens to the request. The returned future completes when it is
    /// written or lost.
    pub fn write(&self, login: Login) -> impl Future<Output = ()> + use<> {
        let room = Arc::clone(&self.room).try_acquire_owned();
        let task = room.map(|permit| {
            let (data, writing, lost) = (Arc::clone(&self.data), Arc::clone(&self.writing), self.lost.clone());
            tokio::spawn(async move {
                let (_room, _turn) = (permit, writing.acquire_owned().await);
                if let Err(error) = data.record_login(&login).await {
                    lost.inc();
                    tracing::warn!(%error, "a login could not be recorded; the member is logged in anyway");
                }
            })
        });
        if task.is_err() {
            self.lost.inc();
            tracing::warn!("a login is not recorded: {QUEUE_LENGTH} records wait to be written");
        }
        async move {
            if let Ok(task) = task {
                let _ = task.await;
            }
        }
    }

    /// Like [`write`](Self::write), and waits for a short time, so that members usually see their own login in the
    /// list.
    pub async fn write_now(&self, login: Login) {
        let _ = timeout(WRITE_TIMEOUT, self.write(login)).await;
    }

    /// Waits until everything is written, at most until `deadline`. Nothing may be added during this.
    pub async fn finish(&self, deadline: Instant) {
        let all = u32::try_from(QUEUE_LENGTH).expect("a small number");
        if timeout_at(deadline, self.room.acquire_many(all)).await.is_err() {
            let left = QUEUE_LENGTH - self.room.available_permits();
            tracing::warn!("stopping: {left} records of logins are not written");
        }
    }
}

/// Limit on queued records, each a few hundred bytes.
const QUEUE_LENGTH: usize = 1_000;
const WRITERS: usize = 2;
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
