//! Fewest exchanges in flight per unit of weight; among equals, each in turn.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, Turn};

#[derive(Debug)]
pub struct LeastConnections {
    turn: Turn,
}

impl LeastConnections {
    pub fn new(turn: Turn) -> Self {
        Self { turn }
    }
}

impl Balance for LeastConnections {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        let usable = candidates.usable.as_slice();
        // The search begins behind the last choice: the first of the least loaded from there is whose turn it is.
        let start = self.turn.load(Ordering::Relaxed).checked_rem(usable.len())?;
        let (before, from) = usable.split_at(start);
        let mut best: Option<(usize, BackendIndex, u64, u64)> = None;
        for (steps, &index) in from.iter().chain(before).enumerate() {
            if candidates.is_tried(index) {
                continue;
            }
            let member = candidates.members.get(index as usize)?;
            let (load, weight) = (u64::from(member.backend.in_flight()), u64::from(member.weight.as_u32()));
            // Fractions load / weight, compared without dividing.
            let is_less = best.is_none_or(|(_, _, least, of)| load * of < least * weight);
            if is_less {
                best = Some((steps, index, load, weight));
            }
            if load == 0 {
                break;
            }
        }
        let (steps, index, _, _) = best?;
        self.turn.store(start + steps + 1, Ordering::Relaxed);
        Some(index)
    }
}
