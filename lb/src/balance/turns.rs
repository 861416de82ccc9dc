//! The state of round robin. With weights it is nginx's smooth algorithm: in each turn every backend gains its weight
//! as credit, and the one with the most credit is chosen, the first among equals, and pays the sum of the weights.
//! Weights are read in each turn, so they may change between turns.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BackendIndex, Candidate, Member, Usable, are_same_backends};
use crate::backend::Backend;

#[derive(Debug, Default)]
pub struct Turns {
    /// The next turn if all backends are equal.
    pub(super) next: AtomicUsize,
    credits: Mutex<Credits>,
}

#[derive(Debug, Default)]
struct Credits {
    of_backends: Vec<i64>,
    /// The sum of the weights that the credits were earned with, which bounds them.
    total: i64,
}

impl Turns {
    /// Turns of `former` members, continued for `members`.
    pub fn of_members(self: &Arc<Self>, former: &[Member], members: &[Member]) -> Arc<Self> {
        if are_same_backends(former, members) {
            return Arc::clone(self);
        }
        let before = self.credits();
        let id = |member: &Member| Arc::as_ptr(&member.backend);
        let known: HashMap<*const Backend, i64> =
            former.iter().map(id).zip(before.of_backends.iter().copied()).collect();
        let of_backends = members.iter().map(|member| known.get(&id(member)).copied().unwrap_or(0)).collect();
        let credits = Credits { of_backends, total: before.total };
        let next = AtomicUsize::new(self.next.load(Ordering::Relaxed));
        Arc::new(Self { next, credits: Mutex::new(credits) })
    }

    /// Prepares for turns among these backends. Credit that was earned with larger weights would otherwise be spent in
    /// bursts.
    pub fn prepare(&self, backends: &[Candidate], usable: &Usable) {
        let weight = |&index: &BackendIndex| backends.get(index as usize).map_or(0, weight_of);
        let total: i64 = usable.as_slice().iter().map(weight).sum();
        let mut credits = self.credits();
        credits.of_backends.resize(backends.len(), 0);
        let before = std::mem::replace(&mut credits.total, total);
        if before != total && before > 0 {
            for credit in &mut credits.of_backends {
                *credit = (credit.saturating_mul(total) / before).clamp(-total, total);
            }
        }
    }

    /// Takes the next turn by weight. Returns the chosen backend.
    pub fn take(&self, backends: &[Candidate], among: impl Iterator<Item = BackendIndex>) -> Option<BackendIndex> {
        let mut credits = self.credits();
        let of_backends = &mut credits.of_backends;
        let mut richest: Option<(usize, i64)> = None;
        let mut total = 0;
        for index in among {
            let position = index as usize;
            let (Some(backend), Some(credit)) = (backends.get(position), of_backends.get_mut(position)) else {
                continue;
            };
            let weight = weight_of(backend);
            total += weight;
            *credit += weight;
            if richest.is_none_or(|(_, most)| *credit > most) {
                richest = Some((position, *credit));
            }
        }
        let (position, _) = richest?;
        *of_backends.get_mut(position)? -= total;
        BackendIndex::try_from(position).ok()
    }

    fn credits(&self) -> MutexGuard<'_, Credits> {
        self.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn weight_of(backend: &Candidate) -> i64 {
    backend.weight.into()
}
