//! Throttles the log of repeated failures. The first of each kind is logged. Further ones are counted, and the count is
//! logged every ten seconds. So a backend that fails every request writes two lines for each kind, then one every ten
//! seconds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long failures are counted before the count is logged.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The repeated failures of one backend, by name.
#[derive(Debug, Default)]
pub struct RepeatedFailures {
    kinds: Mutex<Vec<Kind>>,
    /// Whether `kinds` is not empty, readable without the lock.
    is_counting: AtomicBool,
}

#[derive(Debug)]
struct Kind {
    word: &'static str,
    /// When the window began.
    since: Instant,
    /// Failures in this window that were not logged.
    more: u64,
}

/// The number of failures of one kind that were not logged individually.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuppressedFailures {
    pub word: &'static str,
    pub count: u64,
    /// The length of the window.
    pub within: Duration,
}

impl RepeatedFailures {
    /// Counts a failure. Returns true if it is to be logged individually.
    pub fn note(&self, word: &'static str, now: Instant) -> bool {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kind) = kinds.iter_mut().find(|kind| kind.word == word) {
            kind.more += 1;
            return false;
        }
        kinds.push(Kind { word, since: now, more: 0 });
        self.is_counting.store(true, Ordering::Release);
        true
    }

    /// Returns the counts of windows that are over. A kind without further failures is logged individually again next
    /// time.
    pub fn take(&self, now: Instant) -> Vec<SuppressedFailures> {
        self.take_older(WINDOW, now)
    }

    /// Returns all counts, also those of windows that are not over.
    pub fn take_all(&self, now: Instant) -> Vec<SuppressedFailures> {
        self.take_older(Duration::ZERO, now)
    }

    fn take_older(&self, window: Duration, now: Instant) -> Vec<SuppressedFailures> {
        let mut suppressed = Vec::new();
        if !self.is_counting.load(Ordering::Acquire) {
            return suppressed;
        }
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.retain_mut(|kind| {
            let within = now.saturating_duration_since(kind.since);
            if within < window {
                return true;
            }
            let count = std::mem::take(&mut kind.more);
            if count > 0 {
                suppressed.push(SuppressedFailures { word: kind.word, count, within });
            }
            kind.since = now;
            count > 0
        });
        self.is_counting.store(!kinds.is_empty(), Ordering::Release);
        suppressed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_a_kind_is_logged_and_others_are_counted_per_window() {
        let repeats = RepeatedFailures::default();
        let start = Instant::now();
        let words = |suppressed: &[SuppressedFailures]| {
            suppressed.iter().map(|more| (more.word, more.count)).collect::<Vec<_>>()
        };
        assert!(repeats.note("reset", start));
        for _ in 0..312 {
            assert!(!repeats.note("reset", start));
        }
        assert!(repeats.note("closed", start), "another kind");
        assert_eq!(repeats.take(start + WINDOW / 2), []);
        assert_eq!(words(&repeats.take(start + WINDOW)), [("reset", 312)]);
        assert!(!repeats.note("reset", start + WINDOW), "it goes on");
        assert!(repeats.note("closed", start + WINDOW), "it had ended");
        assert_eq!(words(&repeats.take(start + WINDOW * 2)), [("reset", 1)]);
        assert_eq!(repeats.take(start + WINDOW * 3), []);
        assert!(!repeats.is_counting.load(Ordering::Acquire));
        assert!(repeats.note("reset", start + WINDOW * 3));
    }
}
