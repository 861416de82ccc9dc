//! Exchanges that wait until one of their pool's backends may have another connection. Who waits longest is called first.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    /// How often there may have come to be room.
    freed: AtomicU64,
    called: Notify,
}

/// Counts one that waits until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl Queue {
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// To be asked before it is looked for room, so that none is missed that comes to be meanwhile.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// There is room for one.
    pub fn free_one(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        if self.waiting() > 0 {
            self.called.notify_one();
        }
    }

    /// There may be room for any number.
    pub fn free_all(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        self.called.notify_waiters();
    }

    /// Returns once there may have come to be room since [`Self::freed`] was `seen`. One that is dropped when it has been
    /// called passes the call on.
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
    fn who_waits_longest_is_called_and_passes_the_call_on_when_it_leaves() {
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
        // Room that came to be before the wait began is not missed.
        assert_eq!(Box::pin(queue.wait(seen)).as_mut().poll(&mut cx), Poll::Ready(()));
    }
}
