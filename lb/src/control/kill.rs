//! Ends exchanges that are open on a backend: at once, or at the deadline of a change that takes it out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;

use super::Control;
use crate::backend::Backend;
use crate::change::Author;
use crate::clock;

/// How long a kill waits for the threads that carry traffic to have looked.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether a backend has finished before its deadline.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How a backend that was taken out with a deadline has ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DrainOutcome {
    /// False when it was made active again, or another deadline took the place of this one.
    pub finished: bool,
    /// How many exchanges were killed at the deadline.
    pub killed: u64,
}

/// Dropped by each thread that carries traffic once its tasks have looked whether they are meant.
pub(crate) type ThreadDone = mpsc::Sender<()>;

/// The threads that carry traffic.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Vec<mpsc::UnboundedSender<ThreadDone>>>);

impl Control {
    /// Tells of each kill, one thread. All tasks that carry exchanges then have to look whether theirs is meant.
    pub fn kills(&self) -> mpsc::UnboundedReceiver<ThreadDone> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.threads.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Ends every exchange that is open on a backend now; how many they were.
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
        // It ends when the last thread has dropped its part.
        let _ = tokio::time::timeout(KILL_TIMEOUT, all_done.recv()).await;
        let killed = backend.metrics.killed.get() - before;
        tracing::info!(%pool, backend = %backend.address, killed, by = %author, "what was open on a backend is killed");
        killed
    }

    /// Waits until a backend that has been taken out has finished: nothing is open on it, and its sticky clients are not
    /// sent there any more. At `deadline` it ends both.
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
            let found = self.snapshot().pools.iter().find(|found| found.name.as_str() == pool).map(Arc::clone);
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
