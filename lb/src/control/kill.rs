//! Ends exchanges that are open on a backend: at once, or at the deadline of a change that takes it out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Control;
use crate::backend::Backend;
use crate::change::Author;
use crate::clock;

/// How long a kill waits for the threads that carry traffic to have looked.
const LOOKING_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is looked whether a backend has finished before its deadline.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Dropped by each thread that carries traffic once its tasks have looked whether they are meant.
pub type Done = mpsc::Sender<()>;

/// The threads that carry traffic.
#[derive(Debug, Default)]
pub struct Threads(Mutex<Vec<mpsc::UnboundedSender<Done>>>);

impl Control {
    /// Tells of each kill, one thread. All tasks that carry exchanges then have to look whether theirs is meant.
    pub fn kills(&self) -> mpsc::UnboundedReceiver<Done> {
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
        let _ = tokio::time::timeout(LOOKING_TIMEOUT, all_done.recv()).await;
        let killed = backend.metrics.killed.get() - before;
        tracing::info!(%pool, backend = %backend.address, killed, by = %author, "what was open on a backend is killed");
        killed
    }

    /// Waits until nothing is open on a backend that has been taken out, and at `deadline` ends what still is; how many
    /// exchanges that were. It ends nothing when the backend is active again, or has another deadline.
    pub async fn kill_at(&self, deadline: Instant, pool: &str, backend: &Arc<Backend>, author: &Author) -> u64 {
        while backend.in_flight() > 0 {
            if backend.deadline() != Some(deadline) {
                return 0;
            }
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return self.kill(pool, backend, author).await;
            }
            tokio::time::sleep(left.min(LOOK_INTERVAL)).await;
        }
        0
    }
}
