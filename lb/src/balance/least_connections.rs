//! Fewest exchanges in flight per unit of weight; among equals, in turn by weight.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, Member, Turn, Usable};

#[derive(Debug)]
pub struct LeastConnections {
    turn: Turn,
    /// All weights are equal: turns need no lock, and a search may end with the first idle backend.
    is_even: bool,
}

/// Exchanges in flight per unit of weight.
#[derive(Debug, Clone, Copy)]
struct Load {
    in_flight: u64,
    weight: u64,
}

impl LeastConnections {
    pub fn new(members: &[Member], usable: &Usable, turn: Turn) -> Self {
        let mut weights = usable.as_slice().iter().filter_map(|&index| members.get(index as usize)).map(|m| m.weight);
        let first = weights.next();
        let is_even = weights.all(|weight| Some(weight) == first);
        turn.prepare(members, usable);
        Self { turn, is_even }
    }

    /// The search begins behind the last choice: the first of the least loaded from there is whose turn it is.
    fn in_turn(&self, candidates: &Candidates<'_>) -> Option<BackendIndex> {
        let usable = candidates.usable.as_slice();
        let start = self.turn.next.load(Ordering::Relaxed).checked_rem(usable.len())?;
        let (before, from) = usable.split_at(start);
        let mut best: Option<(usize, BackendIndex, Load)> = None;
        for (steps, &index) in from.iter().chain(before).enumerate() {
            if candidates.is_excluded(index) {
                continue;
            }
            let load = Load::of(candidates, index)?;
            if best.is_none_or(|(_, _, least)| load.is_less(least)) {
                best = Some((steps, index, load));
            }
            if load.in_flight == 0 {
                break;
            }
        }
        let (steps, index, _) = best?;
        self.turn.next.store(start + steps + 1, Ordering::Relaxed);
        Some(index)
    }

    /// The least loaded take turns by weight, as with nginx: idle backends of 10:1 get ten requests to one.
    fn by_weight(&self, candidates: &Candidates<'_>) -> Option<BackendIndex> {
        let mut best: Option<(BackendIndex, Load)> = None;
        let mut is_tie = false;
        for index in candidates.iter() {
            let load = Load::of(candidates, index)?;
            match best {
                Some((_, least)) if least.is_less(load) => {}
                Some((_, least)) if !load.is_less(least) => is_tie = true,
                _ => {
                    best = Some((index, load));
                    is_tie = false;
                }
            }
        }
        let (index, least) = best?;
        if !is_tie {
            return Some(index);
        }
        let is_least = |&index: &BackendIndex| Load::of(candidates, index).is_some_and(|load| !least.is_less(load));
        // Nobody is, if all have been given work meanwhile.
        self.turn.take(candidates.members, candidates.iter().filter(is_least)).or(Some(index))
    }
}

impl Balance for LeastConnections {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        if self.is_even { self.in_turn(candidates) } else { self.by_weight(candidates) }
    }
}

impl Load {
    fn of(candidates: &Candidates<'_>, index: BackendIndex) -> Option<Self> {
        let member = candidates.members.get(index as usize)?;
        Some(Self { in_flight: member.backend.in_flight().into(), weight: member.weight.as_u32().into() })
    }

    /// Compares the fractions without dividing.
    fn is_less(self, other: Self) -> bool {
        self.in_flight * other.weight < other.in_flight * self.weight
    }
}
