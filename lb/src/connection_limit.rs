//! Limits on connections, as semaphores: of clients, of backends, of TLS handshakes. When the limit of clients is
//! reached, idle clients are shed and new ones wait in the listen queue of the kernel. So the clients that are served
//! get good service, and files remain for backends and the admin API.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::clock::{self, timeout};

/// Idle clients that are shed at once at most. It is more than one, so that the next clients need not wait.
const MAX_SHED_AT_ONCE: usize = 32;
/// How long to wait for a permit before more idle clients are shed.
const SHED_INTERVAL: Duration = Duration::from_millis(100);
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct ConnectionLimit {
    limit: AtomicUsize,
    in_use: AtomicUsize,
    freed: Notify,
    warned: Mutex<Option<Instant>>,
    /// Logged when the limit is reached.
    warning: &'static str,
}

const CONNECTIONS_EXHAUSTED: &str = "no more clients can be served at once: idle ones have to leave, new ones wait ([server] max_connections, and the limit on open files, say how many)";
const HANDSHAKES_EXHAUSTED: &str = "no more clients can begin TLS at once: those that are slow with it have to leave, new ones wait ([server] max_handshakes says how many); plain listeners and clients whose handshake is over are served as before";

/// Counts one connection until dropped.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<ConnectionLimit>);

impl ConnectionLimit {
    pub fn new(limit: usize) -> Arc<Self> {
        Self::with_warning(limit, CONNECTIONS_EXHAUSTED)
    }

    pub fn for_handshakes(limit: usize) -> Arc<Self> {
        Self::with_warning(limit, HANDSHAKES_EXHAUSTED)
    }

    fn with_warning(limit: usize, warning: &'static str) -> Arc<Self> {
        Arc::new(Self {
            warning,
            limit: AtomicUsize::new(limit),
            in_use: AtomicUsize::new(0),
            freed: Notify::new(),
            warned: Mutex::new(None),
        })
    }

    /// Waits for a permit. `shed` is called with the number of idle clients to shed while there is none.
    pub async fn acquire(self: &Arc<Self>, mut shed: impl FnMut(usize)) -> ConnectionPermit {
        loop {
            let freed = self.freed.notified();
            if let Some(acquire) = self.try_acquire() {
                return acquire;
            }
            self.warn();
            shed((self.limit() / 8).clamp(1, MAX_SHED_AT_ONCE));
            let _ = timeout(SHED_INTERVAL, freed).await;
        }
    }

    /// A permit, unless the limit is reached.
    pub fn try_acquire(self: &Arc<Self>) -> Option<ConnectionPermit> {
        let in_use = self
            .in_use
            .try_update(Ordering::AcqRel, Ordering::Acquire, |in_use| (in_use < self.limit()).then_some(in_use + 1));
        in_use.ok().map(|_| ConnectionPermit(Arc::clone(self)))
    }

    /// A permit for something optional: only while at least half of the permits are free.
    pub fn try_acquire_spare(self: &Arc<Self>) -> Option<ConnectionPermit> {
        if self.in_use() < self.limit().div_ceil(2) { self.try_acquire() } else { None }
    }

    /// A permit beyond the limit, for a client that is accepted already and cannot wait.
    pub fn acquire_over_limit(self: &Arc<Self>) -> ConnectionPermit {
        self.in_use.fetch_add(1, Ordering::AcqRel);
        ConnectionPermit(Arc::clone(self))
    }

    pub fn is_full(&self) -> bool {
        self.in_use() >= self.limit()
    }

    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes the limit. Connections beyond a lower one stay until new clients need their permits.
    pub fn resize(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    fn warn(&self) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|warned| clock::now().saturating_duration_since(warned) > WARNING_INTERVAL) {
            *warned = Some(clock::now());
            tracing::warn!(clients = self.limit(), "{}", self.warning);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if self.0.in_use.fetch_sub(1, Ordering::AcqRel) >= self.0.limit() {
            self.0.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acquire_waits_at_the_limit() {
        let limit = ConnectionLimit::new(2);
        let nobody = |_| panic!("there is room");
        let first = limit.acquire(nobody).await;
        let _second = limit.acquire(nobody).await;
        let asked = AtomicUsize::new(0);
        let ask = |_| {
            asked.fetch_add(1, Ordering::Relaxed);
        };
        let mut third = std::pin::pin!(limit.acquire(ask));
        assert!(timeout(SHED_INTERVAL * 3, &mut third).await.is_err());
        assert_eq!(limit.in_use(), 2);
        assert!(asked.load(Ordering::Relaxed) > 1, "asks again until there is room");
        drop(first);
        let _third = third.await;
        assert_eq!(limit.in_use(), 2);
        let beyond = limit.acquire_over_limit();
        assert_eq!(limit.in_use(), 3);
        drop(beyond);
        assert_eq!(limit.in_use(), 2);
    }

    #[tokio::test]
    async fn raising_the_limit_wakes_waiters() {
        let limit = ConnectionLimit::new(1);
        let _first = limit.acquire(|_| {}).await;
        let mut second = std::pin::pin!(limit.acquire(|_| {}));
        assert!(timeout(Duration::ZERO, &mut second).await.is_err());
        limit.resize(2);
        let _second = second.await;
        limit.resize(1);
        assert!(limit.is_full());
        assert!(timeout(SHED_INTERVAL * 2, limit.acquire(|_| {})).await.is_err());
    }
}
