//! Random choices, all from the seed of the run.

use std::time::Duration;

use crate::clock::simulated::random;

/// A number below `limit`, which must not be 0.
pub(super) fn below(limit: u64) -> u64 {
    random() % limit
}

pub(super) fn one_in(count: u64) -> bool {
    below(count) == 0
}

pub(super) fn between(min: u64, max: u64) -> u64 {
    min + below(max - min + 1)
}

pub(super) fn pick<T: Copy>(among: &[T]) -> T {
    among[below(among.len() as u64) as usize]
}

/// From 0 to `max`, on a logarithmic scale.
pub(super) fn size(max: u64) -> u64 {
    let bits = u64::from(max.ilog2()) + 1;
    below(1 << below(bits + 1)).min(max)
}

pub(super) fn milliseconds(min: u64, max: u64) -> Duration {
    Duration::from_millis(between(min, max))
}
