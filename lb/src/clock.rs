//! Time, randomness and tasks, from one place, so that a simulation can set them. In production each function is the standard
//! library's, tokio's or rand's, inlined. In unit tests a thread that has entered a simulation has a clock that stands
//! still until it is moved, and a generator with a seed; the other threads have the real ones.
//!
//! A value that is read once a turn and passed down would be as deterministic, but the engine's futures, the pools and
//! the timers would all have to take it; and tokio's paused clock cannot be moved while tasks are scheduled by a seed.

#[cfg(test)]
pub(crate) mod simulated;

#[cfg(not(test))]
mod real {
    use std::time::{Instant, SystemTime};

    pub(crate) use tokio::time::{Sleep, sleep, sleep_until, timeout};

    /// The present by the clock that only runs forward.
    #[inline(always)]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// The present by the calendar.
    #[inline(always)]
    pub(crate) fn wall() -> SystemTime {
        SystemTime::now()
    }

    #[inline(always)]
    pub(crate) fn random() -> u64 {
        rand::random()
    }

    /// Has another task run.
    #[inline(always)]
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

#[cfg(not(test))]
pub(crate) use real::{Sleep, now, random, sleep, sleep_until, spawn, timeout, wall};
#[cfg(test)]
pub(crate) use simulated::{Sleep, now, random, sleep, sleep_until, spawn, timeout, wall};
