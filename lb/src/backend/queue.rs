//! The queue of exchanges that wait because all backends of the pool are at `max_connections`. First in, first out: an
//! exchange keeps its place until it has a connection or gives up, even if it is called and finds none free.
//!
//! Nobody waits while there is capacity: whoever frees some calls the first exchange that is not called yet, and an
//! exchange that was called and leaves some calls the next one.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::plant::Bug;

/// The first number of places of exchanges that have tried no backend yet. Lower ones are of retries.
const FIRST_NEW: u64 = 1 << 63;

#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    /// Those of [`Self::waiting`] that have tried no backend yet.
    waiting_new: AtomicUsize,
    /// Counts the times at which capacity may have become free.
    freed: AtomicU64,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// By the numbers of their places.
    waiters: BTreeMap<u64, Waiter>,
    /// Number of places given so far.
    given: u64,
}

#[derive(Debug)]
enum Waiter {
    /// It has not begun to wait.
    Joined,
    Waiting(Waker),
    /// It looks for capacity next.
    Called,
}

/// A place in the queue until dropped. When dropped, it calls the next one unless it still waits to be called.
#[derive(Debug)]
pub struct Place {
    queue: Arc<Queue>,
    number: u64,
    /// [`Queue::freed`] before no capacity was found; `None` if it has not looked for any.
    seen: Option<u64>,
    leaves_capacity: bool,
}

/// Whether an exchange may have a connection before those that wait.
#[derive(Debug, Default)]
pub enum Turn {
    /// No: it has just come.
    #[default]
    New,
    /// It has had a connection, and gets the next one.
    Kept,
    /// It has waited and was called.
    Called(Box<Place>),
}

impl Queue {
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Whether any waiting exchange has tried no backend yet, and so could use any connection.
    pub fn has_new(&self) -> bool {
        self.waiting_new.load(Ordering::SeqCst) > 0
    }

    /// Read this before looking for capacity, so that capacity that becomes free in between is not missed.
    pub fn freed(&self) -> u64 {
        self.freed.load(Ordering::SeqCst)
    }

    /// Calls one exchange: capacity may have become free.
    pub fn free(&self) {
        self.freed.fetch_add(1, Ordering::SeqCst);
        if self.waiting() > 0 && !Bug::LostWakeup.is_planted() {
            self.call(0);
        }
    }

    /// A place behind all others of its kind. `is_retry`: the exchange has tried a backend, so that it may not be able
    /// to use what is free; it is called before those that have not. `seen` is [`Self::freed`] before it found no
    /// capacity, `None` if it has not looked.
    pub fn join(self: &Arc<Self>, is_retry: bool, seen: Option<u64>) -> Box<Place> {
        let mut line = self.line();
        let number = line.given + if is_retry { 0 } else { FIRST_NEW };
        line.given += 1;
        line.waiters.insert(number, Waiter::Joined);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.waiting_new.fetch_add(usize::from(!is_retry), Ordering::SeqCst);
        Box::new(Place { queue: Arc::clone(self), number, seen, leaves_capacity: true })
    }

    /// Calls the first exchange that is not called yet, of those from this number on.
    fn call(&self, from: u64) {
        let mut line = self.line();
        let next = line.waiters.range_mut(from..).find(|(_, waiter)| !matches!(waiter, Waiter::Called));
        let Some((_, waiter)) = next else { return };
        let before = std::mem::replace(waiter, Waiter::Called);
        drop(line);
        if let Waiter::Waiting(waker) = before {
            waker.wake();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when the exchange is called. May be dropped and called again.
    pub async fn called(&self) {
        poll_fn(|cx| {
            let mut line = self.queue.line();
            // All that have tried no backend can use the same capacity, so the first one looks for the others too.
            let is_first = self.is_retry() || line.waiters.range(FIRST_NEW..self.number).next().is_none();
            let Some(waiter) = line.waiters.get_mut(&self.number) else { return Poll::Ready(()) };
            let is_called = match waiter {
                Waiter::Called => true,
                // What became free before it had joined called nobody, or somebody who could not use it.
                Waiter::Joined => is_first && self.seen != Some(self.queue.freed()),
                Waiter::Waiting(_) => false,
            };
            *waiter = if is_called { Waiter::Called } else { Waiter::Waiting(cx.waker().clone()) };
            if is_called { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Waits to be called again, since no capacity was found that the exchange can use. `seen` is [`Queue::freed`]
    /// before that.
    pub fn stay(&mut self, seen: u64) {
        self.seen = Some(seen);
        if self.is_retry() {
            // Others may be able to use it. Only those behind are called: two retries would call each other for ever.
            self.queue.call(self.number);
        }
        if let Some(waiter) = self.queue.line().waiters.get_mut(&self.number) {
            *waiter = Waiter::Joined;
        }
    }

    /// Leaves with the last capacity, so that there is no reason to call the next one.
    pub fn leave_none(mut self) {
        self.leaves_capacity = false;
    }

    fn is_retry(&self) -> bool {
        self.number < FIRST_NEW
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.queue.line().waiters.remove(&self.number);
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
        self.queue.waiting_new.fetch_sub(usize::from(!self.is_retry()), Ordering::SeqCst);
        if self.leaves_capacity && !matches!(left, Some(Waiter::Waiting(_))) {
            self.queue.call(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn is_called(place: &Place) -> bool {
        pin!(place.called()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn waiting<const N: usize>(queue: &Arc<Queue>, is_retry: bool) -> [Box<Place>; N] {
        let places = [(); N].map(|()| queue.join(is_retry, Some(queue.freed())));
        assert!(!places.iter().any(|place| is_called(place)));
        places
    }

    #[test]
    fn the_longest_waiter_is_called_and_passes_it_on_when_it_leaves() {
        let queue = Arc::new(Queue::default());
        let seen = queue.freed();
        let [first, second, third] = waiting(&queue, false);
        assert_eq!(queue.waiting(), 3);
        queue.free();
        assert!(is_called(&first) && !is_called(&second));
        drop(first);
        assert!(is_called(&second) && !is_called(&third));
        second.leave_none();
        assert!(!is_called(&third));
        drop(third);
        assert_eq!((queue.waiting(), queue.has_new()), (0, false));
        // Capacity that became free before the wait began is not missed.
        assert!(is_called(&queue.join(false, Some(seen))));
    }

    // It went to the end of the queue.
    #[test]
    fn who_is_called_and_finds_nothing_keeps_its_place() {
        let queue = Arc::new(Queue::default());
        let [mut first, second] = waiting(&queue, false);
        for _ in 0..3 {
            queue.free();
            assert!(is_called(&first));
            first.stay(queue.freed());
            assert!(!is_called(&first) && !is_called(&second));
        }
        queue.free();
        queue.free();
        assert!(is_called(&first) && is_called(&second), "two may have become free");
        // Something became free after it had looked.
        let seen = queue.freed();
        queue.free();
        first.stay(seen);
        assert!(is_called(&first));
    }

    #[test]
    fn retries_are_called_first_and_call_the_others() {
        let queue = Arc::new(Queue::default());
        let [new] = waiting(&queue, false);
        let [mut first, mut second] = waiting(&queue, true);
        queue.free();
        assert!(is_called(&first) && !is_called(&second) && !is_called(&new));
        first.stay(queue.freed());
        assert!(!is_called(&first) && is_called(&second) && !is_called(&new));
        second.stay(queue.freed());
        assert!(!is_called(&first) && !is_called(&second) && is_called(&new));
    }

    #[test]
    fn who_joins_behind_others_without_having_looked_is_called_in_turn() {
        let queue = Arc::new(Queue::default());
        let [first] = waiting(&queue, false);
        let second = queue.join(false, None);
        assert!(!is_called(&second));
        let third = queue.join(false, None);
        drop((first, second));
        assert!(is_called(&third), "it is first now, and has not looked");
        // The task of one that was about to look may end.
        let fourth = queue.join(false, None);
        assert!(!is_called(&fourth));
        drop(third);
        assert!(is_called(&fourth));
    }
}
