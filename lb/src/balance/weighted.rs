//! Smooth weighted round robin, nginx's: each turn every backend gains its weight, the richest is chosen and pays
//! the sum of all. The order repeats after the sum of the weights, so it is written down once, when the candidates
//! change, and a pick is one step along it.

use std::sync::atomic::Ordering;

use super::{BackendIndex, Balance, Candidates, Key, Member, Turn, Usable};

/// Longest order that is written down: 16 MiB. Beyond it the weights are scaled down to fit.
const LONGEST_ORDER: u64 = 1 << 22;

#[derive(Debug)]
pub struct Weighted {
    order: Box<[BackendIndex]>,
    turn: Turn,
}

impl Weighted {
    pub fn new(members: &[Member], usable: &Usable, turn: Turn) -> Self {
        let weight = |&index: &BackendIndex| {
            members.get(index as usize).map(|member| (index, u64::from(member.weight.as_u32())))
        };
        Self { order: smooth_order(usable.as_slice().iter().filter_map(weight).collect()), turn }
    }
}

impl Balance for Weighted {
    fn pick(&self, candidates: &Candidates<'_>, _key: &Key) -> Option<BackendIndex> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(self.order.len())?;
        let (before, from) = self.order.split_at(turn);
        from.iter().chain(before).copied().find(|&index| !candidates.is_tried(index))
    }
}

/// Backends of one weight. They are chosen in their order, so the class needs one cursor instead of a sum each.
struct Class {
    weight: i64,
    members: Vec<BackendIndex>,
    /// Who is next, and how often everybody before it was chosen more than it.
    next: usize,
    rounds: i64,
}

/// One whole period of the smooth order.
fn smooth_order(mut weights: Vec<(BackendIndex, u64)>) -> Box<[BackendIndex]> {
    scale_to_fit(&mut weights);
    let total: u64 = weights.iter().map(|(_, weight)| weight).sum();
    let mut classes = classes(&weights);
    let total = total as i64;
    // In turn t a backend that was chosen c times owns t * weight - c * total.
    let choose = |turn: i64| {
        let riches = |class: &Class| turn * class.weight - class.rounds * total;
        let mut best: Option<&mut Class> = None;
        for class in &mut classes {
            let better = best.as_ref().is_none_or(|best| {
                let (mine, theirs) = (riches(class), riches(best));
                mine > theirs || (mine == theirs && class.members[class.next] < best.members[best.next])
            });
            if better {
                best = Some(class);
            }
        }
        best.map(Class::take)
    };
    (1..=total).map_while(choose).collect()
}

fn classes(weights: &[(BackendIndex, u64)]) -> Vec<Class> {
    let mut by_weight = std::collections::BTreeMap::<u64, Vec<BackendIndex>>::new();
    for &(index, weight) in weights {
        by_weight.entry(weight).or_default().push(index);
    }
    let class = |(weight, members)| Class { weight: weight as i64, members, next: 0, rounds: 0 };
    by_weight.into_iter().map(class).collect()
}

impl Class {
    fn take(&mut self) -> BackendIndex {
        let index = self.members[self.next];
        self.next += 1;
        if self.next == self.members.len() {
            self.next = 0;
            self.rounds += 1;
        }
        index
    }
}

fn scale_to_fit(weights: &mut [(BackendIndex, u64)]) {
    let divisor = weights.iter().map(|&(_, weight)| weight).reduce(greatest_common_divisor).unwrap_or(1).max(1);
    let total: u64 = weights.iter().map(|(_, weight)| weight / divisor).sum();
    for (_, weight) in weights {
        *weight /= divisor;
        if total > LONGEST_ORDER {
            *weight = (*weight * LONGEST_ORDER / total).max(1);
        }
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(weights: &[u64]) -> String {
        let weights = weights.iter().enumerate().map(|(i, &w)| (i as BackendIndex, w)).collect();
        smooth_order(weights).iter().map(|&i| char::from(b'a' + i as u8)).collect()
    }

    /// The rule as nginx writes it, one sum for each backend.
    fn by_the_book(weights: &[u64]) -> Vec<BackendIndex> {
        let total: i64 = weights.iter().sum::<u64>() as i64;
        let mut sums = vec![0i64; weights.len()];
        let choose = |_| {
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum += weight as i64;
            }
            let mut best = 0;
            for i in 1..sums.len() {
                if sums[i] > sums[best] {
                    best = i;
                }
            }
            sums[best] -= total;
            best as BackendIndex
        };
        (0..total).map(choose).collect()
    }

    #[test]
    fn five_to_one_to_one_is_spread() {
        assert_eq!(order(&[5, 1, 1]), "aabacaa");
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(order(&[3, 3, 3]), "abc");
    }

    #[test]
    fn a_common_divisor_shortens_the_order() {
        assert_eq!(order(&[500, 100, 100]), "aabacaa");
    }

    #[test]
    fn classes_agree_with_the_rule_by_the_book() {
        for weights in
            [&[5, 1, 1][..], &[1, 2, 3, 4, 3, 2, 1], &[7, 7, 2, 2, 2, 1], &[10, 9, 8, 7, 1, 1], &[1], &[3, 2]]
        {
            let pairs = weights.iter().enumerate().map(|(i, &w)| (i as BackendIndex, w)).collect();
            assert_eq!(smooth_order(pairs).to_vec(), by_the_book(weights), "{weights:?}");
        }
    }

    #[test]
    fn a_large_pool_with_many_weights_stays_within_the_longest_order() {
        let weights: Vec<_> = (0..10_000).map(|i| (i as BackendIndex, 500 + u64::from(i as u32 % 499))).collect();
        let order = smooth_order(weights);
        assert!(order.len() as u64 <= LONGEST_ORDER + 10_000);
    }

    #[test]
    fn nothing_to_choose_from_is_no_order() {
        assert!(smooth_order(Vec::new()).is_empty());
    }
}
