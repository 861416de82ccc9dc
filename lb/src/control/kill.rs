//! Kills the exchanges that are open on a backend: at once, or at the deadline of a drain.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;

use super::Control;
use crate::backend::Backend;
use crate::change::Author;
use crate::clock;

/// How long a kill waits for the traffic threads to check their exchanges.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a drain checks whether the backend has finished.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How the drain of a backend with a deadline ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DrainOutcome {
    /// False if the backend was activated again, or another deadline replaced this one.
    pub finished: bool,
    /// How many exchanges were killed at the deadline.
    pub killed: u64,
}

/// Dropped by each traffic thread once its tasks have checked whether they are killed.
pub(crate) type ThreadDone = mpsc::Sender<()>;

/// The traffic threads.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Vec<mpsc::UnboundedSender<ThreadDone>>>);

impl Control {
    /// Notifies one thread of each kill. All of its tasks with exchanges must then check whether theirs is killed.
    pub fn kills(&self) -> mpsc::UnboundedReceiver<ThreadDone> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.threads.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Kills every exchange that is open on a backend now. Returns how many.
    pub async fn kill(&self, pool: &str, backend: &Backend, author: &Author) -> u64 {
        let before = backend.metrics.killed.get();
        backend.kill();
        let (done, mut all_done) = mpsc::channel(1);
        self.threads
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|thread| thread.send(done.clone()).is_ok());
        drop(done);
        // The channel closes when the last thread has dropped its sender.
        let _ = tokio::time::timeout(KILL_TIMEOUT, all_done.recv()).await;
        let killed = backend.metrics.killed.get() - before;
        tracing::info!(%pool, backend = %backend.address, killed, by = %author, "what was open on a backend is killed");
        killed
    }

    /// Waits until a drained backend has finished: no exchange is open on it, and its sticky clients are no longer sent
    /// there. At `deadline` this ends both.
    pub async fn kill_at(
        &self,
        deadline: Instant,
        pool: &str,
        backend: &Arc<Backend>,
        author: &Author,
    ) -> DrainOutcome {
        const PENDING: DrainOutcome = DrainOutcome { finished: false, killed: 0 };
        loop {
            if backend.deadline() != Some(deadline) {
                return PENDING;
            }
            let now = clock::now();
            let found = self.snapshot().all_pools().find(|found| found.name.as_str() == pool).map(Arc::clone);
            let is_kept = found.as_ref().is_some_and(|pool| pool.keeps_clients_of(backend, now));
            let left = deadline.saturating_duration_since(now);
            if left.is_zero() || (!is_kept && backend.in_flight() == 0) {
                if !backend.end_deadline(deadline) {
                    return PENDING;
                }
                if let Some(pool) = found {
                    pool.refresh(now);
                }
                let killed = if backend.in_flight() > 0 { self.kill(pool, backend, author).await } else { 0 };
                return DrainOutcome { finished: true, killed };
            }
            tokio::time::sleep(left.min(POLL_INTERVAL)).await;
        }
    }
}
