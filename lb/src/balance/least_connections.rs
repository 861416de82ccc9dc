//! Fewest exchanges in flight per unit of weight; equally loaded backends take turns by weight.

use std::sync::atomic::Ordering;

use crate::backend::Lease;

use super::{BackendIndex, Balance, Candidate, Candidates, Key, SharedTurns, Usable};

/// How often a request picks again because others have leased its choice first. Reaching the limit would mean a
/// starving thread.
const MAX_PICKS: usize = 16;

#[derive(Debug)]
pub(super) struct LeastConnections {
    turn: SharedTurns,
    /// All weights are equal: turns need no lock, and a search may end at the first idle backend.
    is_even: bool,
}

/// Exchanges in flight per unit of weight.
#[derive(Debug, Clone, Copy)]
struct Load {
    in_flight: u32,
    weight: u32,
}

impl LeastConnections {
    pub(super) fn new(backends: &[Candidate], usable: &Usable, turn: SharedTurns) -> Self {
        let mut weights = usable.as_slice().iter().filter_map(|&index| backends.get(index as usize)).map(|b| b.weight);
        let first = weights.next();
        let is_even = weights.all(|weight| Some(weight) == first);
        turn.prepare(backends, usable);
        Self { turn, is_even }
    }

    /// Searches from behind the last choice: the first of the least loaded backends from there has its turn.
    fn in_turn(&self, candidates: &Candidates<'_>) -> Option<(BackendIndex, Load)> {
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
        let (steps, index, load) = best?;
        self.turn.next.store(start + steps + 1, Ordering::Relaxed);
        Some((index, load))
    }

    /// Turns by weight among the least loaded, as in nginx: idle backends with weights 10:1 get requests in that ratio.
    fn by_weight(&self, candidates: &Candidates<'_>) -> Option<(BackendIndex, Load)> {
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
            return Some((index, least));
        }
        let is_least = |&index: &BackendIndex| Load::of(candidates, index).is_some_and(|load| !least.is_less(load));
        let taken = self.turn.take(candidates.backends, candidates.iter().filter(is_least));
        // None, if all have been given work in the meantime.
        let taken = taken.and_then(|index| Some((index, Load::of(candidates, index)?)));
        taken.filter(|(_, load)| !least.is_less(*load)).or(Some((index, least)))
    }

    fn least(&self, candidates: &Candidates<'_>) -> Option<(BackendIndex, Load)> {
        if self.is_even { self.in_turn(candidates) } else { self.by_weight(candidates) }
    }
}

impl Balance for LeastConnections {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        self.least(candidates).map(|(index, _)| index)
    }

    /// Counts the exchange only if the backend still has as many as when it was picked. Otherwise simultaneous requests
    /// would all go to the one that was idle.
    fn lease(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<(BackendIndex, Lease)> {
        for _ in 0..MAX_PICKS {
            let (index, load) = self.least(candidates)?;
            if let Some(lease) = candidates.lease_at(index, load.in_flight) {
                return Some((index, lease));
            }
        }
        let (index, _) = self.least(candidates)?;
        Some((index, candidates.lease(index)?))
    }
}

impl Load {
    fn of(candidates: &Candidates<'_>, index: BackendIndex) -> Option<Self> {
        let backend = candidates.backends.get(index as usize)?;
        Some(Self { in_flight: backend.endpoints.in_flight(), weight: backend.weight })
    }

    /// Compares the fractions without dividing.
    fn is_less(self, other: Self) -> bool {
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        product(self.in_flight, other.weight) < product(other.in_flight, self.weight)
    }
}
