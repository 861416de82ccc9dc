//! What the seed decides.

use std::time::Duration;

use crate::clock::simulated::random;

/// A number less than `limit`, which is not 0.
pub(super) fn below(limit: u64) -> u64 {
    random() % limit
}

pub(super) fn one_in(count: u64) -> bool {
    below(count) == 0
}

pub(super) fn between(least: u64, most: u64) -> u64 {
    least + below(most - least + 1)
}

pub(super) fn pick<T: Copy>(among: &[T]) -> T {
    among[below(among.len() as u64) as usize]
}

/// From nothing to `most`, and all sizes of number alike.
pub(super) fn size(most: u64) -> u64 {
    let bits = u64::from(most.ilog2()) + 1;
    below(1 << below(bits + 1)).min(most)
}

pub(super) fn milliseconds(least: u64, most: u64) -> Duration {
    Duration::from_millis(between(least, most))
}
