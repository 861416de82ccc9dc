//! Each candidate in turn.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, SharedTurns};

/// Turns of ejected or full backends that are passed over in a pick before the first of the others is taken.
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
        // Each turn taken moves on by one, and a request to which some are closed takes a few turns more.
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
