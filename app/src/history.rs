//! Writes the login history beside the requests: a login must not fail, nor take longer, because its record does.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::data::{DataStore, Login};

#[derive(Debug)]
pub struct History {
    data: Arc<dyn DataStore>,
    /// One permit for each record that may wait or be written; held by the work itself.
    room: Arc<Semaphore>,
    /// Records written at once: others need the store's connections as well.
    writing: Arc<Semaphore>,
    lost: IntCounter,
}

impl History {
    /// `lost` counts the records that could not be written.
    pub fn new(data: Arc<dyn DataStore>, lost: IntCounter) -> Self {
        let (room, writing) = (Arc::new(Semaphore::new(QUEUE_LENGTH)), Arc::new(Semaphore::new(WRITERS)));
        Self { data, room, writing, lost }
    }

    /// Has a login written, whatever becomes of the request. What comes back ends when it is, or cannot be.
    pub fn write(&self, login: Login) -> impl Future<Output = ()> + use<> {
        let room = Arc::clone(&self.room).try_acquire_owned();
        let task = room.map(|permit| {
            let (data, writing, lost) = (Arc::clone(&self.data), Arc::clone(&self.writing), self.lost.clone());
            tokio::spawn(async move {
                let (_room, _turn) = (permit, writing.acquire_owned().await);
                if let Err(error) = data.record_login(&login).await {
                    lost.inc();
                    tracing::warn!(%error, "a login could not be recorded; who logged in is logged in all the same");
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

    /// As [`write`](Self::write), and waits a little, so that one's own login is in the list that one looks at next.
    pub async fn write_now(&self, login: Login) {
        let _ = timeout(WRITE_TIMEOUT, self.write(login)).await;
    }

    /// Waits until everything is written, at most until `deadline`. Nothing may be added meanwhile.
    pub async fn finish(&self, deadline: Instant) {
        let all = u32::try_from(QUEUE_LENGTH).expect("a small number");
        if timeout_at(deadline, self.room.acquire_many(all)).await.is_err() {
            let left = QUEUE_LENGTH - self.room.available_permits();
            tracing::warn!("stopping: {left} records of logins are not written");
        }
    }
}

/// Records that wait, each a few hundred bytes.
const QUEUE_LENGTH: usize = 1_000;
const WRITERS: usize = 2;
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
