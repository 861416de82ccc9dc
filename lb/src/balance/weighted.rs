//! Smooth weighted round robin, nginx's `weight=`: 5:1:1 goes a a b a c a a, never a burst.

use super::{BackendIndex, Balance, Candidates, Key, Member, Turn, Usable};

#[derive(Debug)]
pub struct Weighted {
    turn: Turn,
}

impl Weighted {
    pub fn new(members: &[Member], usable: &Usable, turn: Turn) -> Self {
        turn.prepare(members, usable);
        Self { turn }
    }
}

impl Balance for Weighted {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        self.turn.take(candidates.members, candidates.iter())
    }
}
