//! Each candidate in turn.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, SharedTurns};

/// How many turns of ejected or full backends a pick skips before it takes the first other one.
const MAX_SKIPPED: usize = 64;

#[derive(Debug)]
pub(super) struct RoundRobin {
    turn: SharedTurns,
}

impl RoundRobin {
    pub(super) fn new(turn: SharedTurns) -> Self {
        Self { turn }
    }
}

impl Balance for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        let usable = candidates.usable.as_slice();
        // Each pick advances by one, and one with excluded backends by a few more.
        let extra =
            if candidates.skips_ejected || candidates.skips_full { MAX_SKIPPED } else { candidates.tried.len() };
        for _ in 0..=extra {
            let turn = self.turn.next.fetch_add(1, Ordering::Relaxed);
            let index = *usable.get(turn.checked_rem(usable.len())?)?;
            if !candidates.is_excluded(index) {
                return Some(index);
            }
        }
        candidates.iter().next()
    }
}
