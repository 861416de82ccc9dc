//! Each candidate in turn.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, Turn};

#[derive(Debug)]
pub struct RoundRobin {
    turn: Turn,
}

impl RoundRobin {
    pub fn new(turn: Turn) -> Self {
        Self { turn }
    }
}

impl Balance for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        let usable = candidates.usable.as_slice();
        // Each turn taken moves on by one, and a request that has tried some takes at most that many extra turns.
        for _ in 0..=candidates.tried.len() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let index = *usable.get(turn.checked_rem(usable.len())?)?;
            if !candidates.is_tried(index) {
                return Some(index);
            }
        }
        usable.iter().copied().find(|&index| !candidates.is_tried(index))
    }
}
