//! Smooth weighted round robin, nginx's `weight=`: 5:1:1 goes a a b a c a a, never a burst.

use super::{BackendIndex, Balance, Candidate, Candidates, Key, SharedTurns, Usable};

#[derive(Debug)]
pub(super) struct Weighted {
    turn: SharedTurns,
}

impl Weighted {
    pub(super) fn new(backends: &[Candidate], usable: &Usable, turn: SharedTurns) -> Self {
        turn.prepare(backends, usable);
        Self { turn }
    }
}

impl Balance for Weighted {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        self.turn.take(candidates.backends, candidates.iter())
    }
}
