//! Time, randomness and tasks in one place, so that a simulation can control them. In production each function is the
//! inlined one of the standard library, tokio or rand. In unit tests, a thread that has entered a simulation has a
//! clock that only moves when told to, and a seeded generator; other threads have the real ones.
//!
//! A value that is read once per turn and passed down would be as deterministic, but the engine's futures, the pools
//! and the timers would all have to accept it; and tokio's paused clock cannot be moved while tasks are scheduled by a
//! seed.

#[cfg(test)]
pub(crate) mod simulated;

#[cfg(not(test))]
mod real {
    use std::time::{Instant, SystemTime};

    pub(crate) use tokio::time::{Sleep, sleep, sleep_until, timeout};

    /// The current time of the monotonic clock.
    #[inline(always)]
    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// The current time of the calendar.
    #[inline(always)]
    pub(crate) fn wall() -> SystemTime {
        SystemTime::now()
    }

    #[inline(always)]
    pub(crate) fn random() -> u64 {
        rand::random()
    }

    /// Spawns a task.
    #[inline(always)]
    pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

#[cfg(not(test))]
pub(crate) use real::{Sleep, now, random, sleep, sleep_until, spawn, timeout, wall};
#[cfg(test)]
pub(crate) use simulated::{Sleep, now, random, sleep, sleep_until, spawn, timeout, wall};
