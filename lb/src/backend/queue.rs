//! The queue of exchanges that wait because all backends of the pool are at `max_connections`. First in, first out.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::plant::Bug;

#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    /// Counts the times at which capacity may have become free.
    freed: AtomicU64,
    called: Notify,
}

/// Counts a waiting exchange until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Queue {
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Read this before looking for capacity, so that capacity that becomes free in between is not missed.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// Wakes one exchange: capacity for one is free.
    pub fn free_one(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        if self.waiting() > 0 && !Bug::LostWakeup.is_planted() {
            self.called.notify_one();
        }
    }

    /// Wakes all exchanges: the limits have changed.
    pub fn free_all(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        self.called.notify_waiters();
    }

    /// Resolves when capacity may have become free since [`Self::freed`] returned `seen`. If dropped after being woken,
    /// it wakes the next one.
    pub async fn wait(&self, seen: u64) {
        let _waiting = Waiting::new(&self.waiting);
        let mut called = pin!(self.called.notified());
        called.as_mut().enable();
        if self.freed() == seen {
            called.await;
        }
    }
}

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn the_longest_waiter_is_notified_and_passes_it_on_when_it_leaves() {
        let queue = Queue::default();
        let mut cx = Context::from_waker(Waker::noop());
        let seen = queue.freed();
        let (mut first, mut second) = (Box::pin(queue.wait(seen)), Box::pin(queue.wait(seen)));
        assert!(first.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        assert_eq!(queue.waiting(), 2);
        queue.free_one();
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Ready(()));
        drop(second);
        assert_eq!(queue.waiting(), 0);
        // Capacity that became free before the wait began is not missed.
        assert_eq!(Box::pin(queue.wait(seen)).as_mut().poll(&mut cx), Poll::Ready(()));
    }
}
