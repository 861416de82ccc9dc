//! The shutdown state of the process, read by everything that behaves differently before and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use tokio::sync::watch;

/// The phase of the process. It only advances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Waiting for the first probes: not ready.
    Starting,
    Running,
    /// During `shutdown_delay`: not ready, but accepting and serving as before. Every response tells the client that it
    /// is the last on its connection (`Connection: close`, GOAWAY).
    Closing,
    /// No longer accepting. Idle connections are closed, and exchanges in flight may finish until the deadline.
    Stopping,
}

/// The shutdown state; clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<State>);

#[derive(Debug)]
struct State {
    /// A [`Phase`] as a number. Read for each response, hence not behind a lock.
    phase: AtomicU8,
    /// When exchanges are cut off; `None` before the stop.
    deadline: watch::Sender<Option<Instant>>,
}

impl Shutdown {
    pub fn new() -> Self {
        let phase = AtomicU8::new(Phase::Starting as u8);
        Self(Arc::new(State { phase, deadline: watch::Sender::new(None) }))
    }

    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Running,
            2 => Phase::Closing,
            _ => Phase::Stopping,
        }
    }

    /// Makes the process ready, whatever the health of its backends.
    pub fn run(&self) {
        self.advance(Phase::Running);
    }

    /// Begins the delay before the stop.
    pub fn close(&self) {
        self.advance(Phase::Closing);
    }

    /// Begins the stop. Exchanges that have not finished by the deadline are cut off. A second call changes the
    /// deadline.
    pub fn stop(&self, deadline: Instant) {
        self.advance(Phase::Stopping);
        self.0.deadline.send_replace(Some(deadline));
    }

    /// Waits for the stop. Returns the deadline.
    pub async fn stopping(&self) -> Instant {
        let mut deadline = self.0.deadline.subscribe();
        // The sender lives as long as this.
        deadline.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline).unwrap_or_else(Instant::now)
    }

    /// The current deadline; `None` before the stop.
    pub fn deadline(&self) -> Option<Instant> {
        *self.0.deadline.borrow()
    }

    fn advance(&self, phase: Phase) {
        self.0.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn shutdown_phases_only_advance() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.phase(), Phase::Starting);
        shutdown.run();
        assert_eq!(shutdown.phase(), Phase::Running);
        shutdown.close();
        shutdown.run();
        assert_eq!(shutdown.phase(), Phase::Closing);
        let deadline = Instant::now();
        shutdown.clone().stop(deadline);
        shutdown.close();
        assert_eq!((shutdown.phase(), shutdown.stopping().await), (Phase::Stopping, deadline));
        let earlier = deadline - std::time::Duration::from_secs(1);
        shutdown.stop(earlier);
        assert_eq!(shutdown.deadline(), Some(earlier));
    }
}
