//! Properties of all algorithms, and of each.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::config::EjectionConfig;
use crate::health::ejection::Ejections;
use crate::metrics::BackendMetrics;

fn member(address: &str, weight: u32) -> Member {
    let address = address.parse().expect("valid address");
    Member {
        backend: Arc::new(Backend::new(address, false, BackendMetrics::unregistered(), Arc::default())),
        weight: Weight::new(weight).expect("valid weight"),
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights
        .iter()
        .enumerate()
        .map(|(i, &weight)| member(&format!("10.0.{}.{}:80", i / 250, i % 250 + 1), weight))
        .collect()
}

fn candidates(members: &[Member]) -> Vec<Candidate> {
    members.iter().map(Member::candidate).collect()
}

/// The only endpoint of a backend.
fn endpoint(member: &Member) -> Arc<Endpoint> {
    Arc::clone(&member.backend.endpoints().as_slice()[0])
}

/// Rules that eject a backend for a minute after one failure.
fn eject_at_once() -> EjectionConfig {
    EjectionConfig {
        consecutive_failures: 1,
        base_time: Duration::from_secs(60),
        max_time: Duration::from_secs(60),
        max_percent: 100,
        statuses: Vec::new(),
    }
}

fn all(members: &[Member]) -> Vec<BackendIndex> {
    (0..members.len() as BackendIndex).collect()
}

struct Bench {
    members: Vec<Member>,
    skips_ejected: bool,
    backends: Vec<Candidate>,
    usable: Usable,
    balance: Box<dyn Balance>,
}

impl Bench {
    fn new(algorithm: Algorithm, members: Vec<Member>, usable: Vec<BackendIndex>) -> Self {
        let usable = Usable::new(members.len(), usable);
        let backends = candidates(&members);
        let balance = balance(algorithm, &backends, &usable, &SharedTurns::default(), || Arc::new(Ring::new(&members)));
        Self { members, skips_ejected: true, backends, usable, balance }
    }

    fn pick(&self, client: [u8; 4], tried: &[BackendIndex]) -> Option<BackendIndex> {
        let tried: Vec<_> = tried.iter().map(|&index| endpoint(&self.members[index as usize])).collect();
        let candidates = Candidates {
            backends: &self.backends,
            usable: &self.usable,
            tried: &tried,
            skips_ejected: self.skips_ejected,
            skips_full: false,
        };
        self.balance.pick(&candidates, &Key { client: Some(Ipv4Addr::from(client).into()) })
    }

    fn lease(&self) -> Lease {
        let candidates = Candidates {
            backends: &self.backends,
            usable: &self.usable,
            tried: &[],
            skips_ejected: true,
            skips_full: false,
        };
        self.balance.lease(&candidates, &Key { client: Some(Ipv4Addr::LOCALHOST.into()) }).expect("a usable backend").1
    }

    fn picks(&self, count: usize) -> Vec<BackendIndex> {
        (0..count).filter_map(|_| self.pick([127, 0, 0, 1], &[])).collect()
    }
}

#[test]
fn every_algorithm_picks_only_usable_and_untried_backends() {
    for (algorithm, skips_ejected) in Algorithm::ALL.into_iter().flat_map(|it| [(it, true), (it, false)]) {
        let members = members(&[1, 2, 3, 4, 5]);
        let bench = Bench { skips_ejected, ..Bench::new(algorithm, members, vec![0, 2, 4]) };
        for client in 0..=255 {
            let first = bench.pick([10, 1, 1, client], &[]).expect("three are usable");
            let second = bench.pick([10, 1, 1, client], &[first]).expect("two are left");
            let third = bench.pick([10, 1, 1, client], &[first, second]).expect("one is left");
            let mut seen = vec![first, second, third];
            seen.sort_unstable();
            assert_eq!(seen, [0, 2, 4], "{algorithm}");
            assert_eq!(bench.pick([10, 1, 1, client], &seen), None, "{algorithm}");
        }
    }
}

#[test]
fn every_algorithm_counts_an_exchange_that_it_leases() {
    for (algorithm, weights) in Algorithm::ALL.into_iter().flat_map(|it| [(it, [1, 1, 1]), (it, [3, 2, 1])]) {
        let members = members(&weights);
        let usable = all(&members);
        let bench = Bench::new(algorithm, members, usable);
        let in_flight = || bench.members.iter().map(|member| member.backend.in_flight()).sum::<u32>();
        let leases: Vec<_> = (0..9).map(|_| bench.lease()).collect();
        assert_eq!(in_flight(), 9, "{algorithm}");
        drop(leases);
        assert_eq!(in_flight(), 0, "{algorithm}");
    }
}

#[test]
fn backends_are_the_same_only_in_the_same_order() {
    let these = members(&[1, 2, 3]);
    let mut those = these.clone();
    assert!(are_same_backends(&these, &those));
    those.iter_mut().for_each(|member| member.weight = Weight::ONE);
    assert!(are_same_backends(&these, &those), "with other weights");
    those.reverse();
    assert!(!are_same_backends(&these, &those), "in another order");
    assert!(!are_same_backends(&these, &these[..2]) && !are_same_backends(&these[..2], &these), "fewer, and more");
    assert!(!are_same_backends(&these, &members(&[1, 2, 3])), "other ones at the same addresses");
}

#[test]
fn every_algorithm_survives_an_empty_pool() {
    for algorithm in Algorithm::ALL {
        assert_eq!(Bench::new(algorithm, Vec::new(), Vec::new()).pick([1, 2, 3, 4], &[]), None, "{algorithm}");
    }
}

#[test]
fn round_robin_takes_turns_and_ignores_weights() {
    let members = members(&[1, 9, 1]);
    let usable = all(&members);
    assert_eq!(Bench::new(Algorithm::RoundRobin, members, usable).picks(7), [0, 1, 2, 0, 1, 2, 0]);
}

// If excluded backends had no turns of their own, the next one would get theirs.
#[test]
fn round_robin_gives_equal_turns_to_the_usable_backends() {
    let rules = eject_at_once();
    let members = members(&[1, 1, 1]);
    let usable = all(&members);
    let bench = Bench::new(Algorithm::RoundRobin, members, usable);
    let permit = Arc::new(Ejections::default()).try_acquire(1).expect("room");
    assert!(endpoint(&bench.members[1]).eject(permit, &rules, Instant::now()).is_some());
    assert_eq!(bench.picks(6), [0, 2, 0, 2, 0, 2]);
}

#[test]
fn no_algorithm_picks_or_leases_a_full_backend() {
    for algorithm in Algorithm::ALL {
        for weights in [[1, 1, 1], [3, 2, 1]] {
            let members = members(&weights);
            let (backends, usable) = (candidates(&members), Usable::new(3, all(&members)));
            let balance =
                balance(algorithm, &backends, &usable, &SharedTurns::default(), || Arc::new(Ring::new(&members)));
            let candidates =
                Candidates { backends: &backends, usable: &usable, tried: &[], skips_ejected: false, skips_full: true };
            let mut in_use = Vec::new();
            for left in (0..3).rev() {
                let backend = &members[left].backend;
                backend.set_max_connections(NonZero::new(1));
                in_use.push(endpoint(&members[left]).lease().in_use_if_allowed().expect("one is free"));
                let key = |client| Key { client: Some(Ipv4Addr::new(10, 0, 0, client).into()) };
                let picks: Vec<_> = (0..60).filter_map(|client| balance.pick(&candidates, &key(client))).collect();
                assert_eq!(picks.len(), if left == 0 { 0 } else { 60 }, "{algorithm}");
                assert!(picks.iter().all(|&index| (index as usize) < left), "{algorithm}: {picks:?}");
                assert_eq!(candidates.has_any(), left > 0);
                assert!(candidates.lease(left as BackendIndex).is_none());
            }
        }
    }
}

#[test]
fn weighted_is_smooth() {
    let members = members(&[5, 1, 1]);
    let usable = all(&members);
    let picks = Bench::new(Algorithm::Weighted, members, usable).picks(14);
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
}

/// A reference implementation of nginx's rule, for weights only.
struct ByTheBook {
    sums: Vec<i64>,
}

impl ByTheBook {
    fn new(count: usize) -> Self {
        Self { sums: vec![0; count] }
    }

    fn pick(&mut self, weights: &[u32]) -> BackendIndex {
        let mut best = 0;
        for (i, &weight) in weights.iter().enumerate() {
            self.sums[i] += i64::from(weight);
            if self.sums[i] > self.sums[best] {
                best = i;
            }
        }
        self.sums[best] -= weights.iter().copied().map(i64::from).sum::<i64>();
        best as BackendIndex
    }
}

#[test]
fn weighted_agrees_with_a_reference_implementation() {
    let many: Vec<u32> = (0..1000).map(|i| 1 + i * 7 % 500).collect();
    for weights in [
        &[5, 1, 1][..],
        &[500, 100, 100],
        &[3, 3, 3],
        &[1, 2, 3, 4, 3, 2, 1],
        &[7, 7, 2, 2, 2, 1],
        &[10, 9, 8, 7, 1, 1],
        &[1],
        &[3, 2],
        &many,
    ] {
        let members = members(weights);
        let usable = all(&members);
        let picks = Bench::new(Algorithm::Weighted, members, usable).picks(3000);
        let mut book = ByTheBook::new(weights.len());
        let expected: Vec<_> = (0..3000).map(|_| book.pick(weights)).collect();
        assert_eq!(picks, expected, "{weights:?}");
    }
}

#[test]
fn weights_may_change_between_two_picks() {
    let mut bench = Bench::new(Algorithm::Weighted, members(&[1, 1, 1]), vec![0, 1, 2]);
    let mut book = ByTheBook::new(3);
    // The weight of a backend in slow start.
    for pick in 0..500 {
        let weights = [100, 1 + pick / 5, 100];
        for (backend, weight) in bench.backends.iter_mut().zip(weights) {
            backend.weight = weight;
        }
        assert_eq!(bench.picks(1), [book.pick(&weights)], "pick {pick}");
    }
}

#[test]
fn turns_continue_when_backends_or_weights_change() {
    let turn = SharedTurns::default();
    let pick = |turn: &SharedTurns, members: &[Member], usable: &Usable, count: usize| -> Vec<BackendIndex> {
        let backends = candidates(members);
        let balance = balance(Algorithm::Weighted, &backends, usable, turn, || Arc::new(Ring::new(members)));
        let candidates =
            Candidates { backends: &backends, usable, tried: &[], skips_ejected: false, skips_full: false };
        let key = Key { client: Some(Ipv4Addr::LOCALHOST.into()) };
        (0..count).filter_map(|_| balance.pick(&candidates, &key)).collect()
    };
    let before = members(&[5, 1, 1]);
    let usable = Usable::new(3, all(&before));
    let mut picks = Vec::new();
    // A change after each pick must not restart the turns at the first backend.
    for _ in 0..7 {
        picks.extend(pick(&turn, &before, &usable, 1));
    }
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);

    // Another order and other backends.
    let after = vec![before[2].clone(), before[0].clone(), member("10.0.0.9:80", 1)];
    pick(&turn, &before, &usable, 3);
    let carried = turn.of_members(&before, &after);
    let share = pick(&carried, &after, &Usable::new(3, all(&after)), 700);
    assert_eq!(share.iter().filter(|&&index| index == 1).count(), 500);

    // What each is owed is the same part of the new weights.
    let before = members(&[3, 1]);
    let turn = SharedTurns::default();
    assert_eq!(pick(&turn, &before, &Usable::new(2, all(&before)), 1), [0]);
    let mut twice = before.clone();
    twice
        .iter_mut()
        .zip([6, 2])
        .for_each(|(member, weight)| member.weight = Weight::new(weight).expect("valid weight"));
    assert_eq!(pick(&turn, &twice, &Usable::new(2, all(&twice)), 2), [0, 1]);

    // And goes on beside a new backend.
    let turn = SharedTurns::default();
    assert_eq!(pick(&turn, &before, &Usable::new(2, all(&before)), 2), [0, 0]);
    let more = vec![before[0].clone(), before[1].clone(), member("10.0.0.9:80", 1)];
    let carried = turn.of_members(&before, &more);
    assert_eq!(pick(&carried, &more, &Usable::new(3, all(&more)), 1), [1]);

    // A thousand times the weight must not leave a debt of a thousand turns.
    let heavy = members(&[1000, 1000, 3]);
    let turn = SharedTurns::default();
    pick(&turn, &heavy, &Usable::new(3, all(&heavy)), 1);
    let mut light = heavy.clone();
    light.iter_mut().for_each(|member| member.weight = Weight::ONE);
    let share = pick(&turn, &light, &Usable::new(3, all(&light)), 30);
    for index in 0..3 {
        let count = share.iter().filter(|&&picked| picked == index).count();
        assert!((9..=11).contains(&count), "{index}: {share:?}");
    }
}

#[test]
fn no_algorithm_picks_a_backend_ejected_meanwhile() {
    let rules = eject_at_once();
    for algorithm in Algorithm::ALL {
        for weights in [[1, 1, 1], [3, 2, 1]] {
            let members = members(&weights);
            let usable = all(&members);
            let bench = Bench::new(algorithm, members, usable);
            let ejections = Arc::new(Ejections::default());
            for left in (0..3).rev() {
                let permit = ejections.try_acquire(3).expect("room");
                assert!(endpoint(&bench.members[left]).eject(permit, &rules, Instant::now()).is_some());
                let picks: Vec<_> = (0..60).filter_map(|client| bench.pick([10, 0, 0, client], &[])).collect();
                assert_eq!(picks.len(), if left == 0 { 0 } else { 60 }, "{algorithm}");
                assert!(picks.iter().all(|&index| (index as usize) < left), "{algorithm}: {picks:?}");
            }
        }
    }
}

#[test]
fn weighted_keeps_proportions_among_the_remaining_backends() {
    let members = members(&[5, 2, 1]);
    let picks = Bench::new(Algorithm::Weighted, members, vec![1, 2]).picks(300);
    assert_eq!(picks.iter().filter(|&&i| i == 1).count(), 200);
}

#[test]
fn least_connections_takes_turns_among_equals() {
    let members = members(&[1, 1, 1]);
    let usable = all(&members);
    assert_eq!(Bench::new(Algorithm::LeastConnections, members, usable).picks(5), [0, 1, 2, 0, 1]);
}

#[test]
fn least_connections_takes_turns_among_some_equals() {
    let members = members(&[1, 1, 1]);
    let _busy = endpoint(&members[1]).lease();
    let usable = all(&members);
    assert_eq!(Bench::new(Algorithm::LeastConnections, members, usable).picks(6), [0, 2, 0, 2, 0, 2]);
}

// Two requests could be counted on the backend that both had found idle.
#[test]
fn least_connections_spreads_concurrent_picks_over_idle_backends() {
    const ROUNDS: usize = 5000;
    for weights in [[1, 1], [2, 1]] {
        let members = members(&weights);
        let usable = all(&members);
        let bench = Bench::new(Algorithm::LeastConnections, members, usable);
        let (arrived, met) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // A sleeping thread would arrive too late to meet the other.
        let meet = || {
            let both = arrived.fetch_add(1, Ordering::AcqRel) / 2 * 2 + 2;
            let mut spins = 0_u32;
            while arrived.load(Ordering::Acquire) < both {
                spins += 1;
                if spins.is_multiple_of(1000) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        meet();
                        let lease = bench.lease();
                        meet();
                        met.fetch_add(usize::from(lease.endpoint().in_flight() > 1), Ordering::Relaxed);
                        meet();
                    }
                });
            }
        });
        assert_eq!(met.into_inner(), 0, "of {ROUNDS} rounds, weights {weights:?}");
    }
}

#[test]
fn least_connections_gives_idle_backends_turns_by_weight() {
    let members = members(&[10, 1]);
    let usable = all(&members);
    let picks = Bench::new(Algorithm::LeastConnections, members, usable).picks(110);
    assert_eq!(picks.iter().filter(|&&index| index == 0).count(), 100);
    assert_eq!(picks[..11].iter().filter(|&&index| index == 1).count(), 1, "without a burst: {picks:?}");
}

#[test]
fn least_connections_fills_in_proportion_to_weight() {
    let members = members(&[4, 2, 1]);
    let usable = all(&members);
    let bench = Bench::new(Algorithm::LeastConnections, members, usable);
    let leases: Vec<_> =
        bench_iter(&bench).take(70).map(|index| endpoint(&bench.members[index as usize]).lease()).collect();
    let loads: Vec<_> = bench.members.iter().map(|m| m.backend.in_flight()).collect();
    assert_eq!(loads, [40, 20, 10]);
    drop(leases);
    assert!(bench.members.iter().all(|m| m.backend.in_flight() == 0));
}

fn bench_iter(bench: &Bench) -> impl Iterator<Item = BackendIndex> {
    std::iter::from_fn(|| bench.pick([127, 0, 0, 1], &[]))
}

fn home_of_each_client(members: &[Member], usable: Vec<BackendIndex>) -> HashMap<u16, BackendAddressText> {
    let bench = Bench::new(Algorithm::IpHash, members.to_vec(), usable);
    let home = |client: u16| {
        let [high, low] = client.to_be_bytes();
        let index = bench.pick([10, 0, high, low], &[]).expect("usable");
        (client, members[index as usize].backend.address.to_string())
    };
    (0..5000).map(home).collect()
}
type BackendAddressText = String;

#[test]
fn ip_hash_does_not_depend_on_the_order_of_backends() {
    let forward = members(&[1, 2, 3, 1]);
    let mut backward = forward.clone();
    backward.reverse();
    assert_eq!(home_of_each_client(&forward, all(&forward)), home_of_each_client(&backward, all(&backward)));
}

#[test]
fn ip_hash_moves_only_the_clients_of_the_lost_backend() {
    let members = members(&[1, 1, 1, 1]);
    let before = home_of_each_client(&members, all(&members));
    let after = home_of_each_client(&members, vec![0, 1, 3]);
    let lost = members[2].backend.address.to_string();
    for (client, home) in &before {
        if *home == lost {
            assert_ne!(after[client], lost);
        } else {
            assert_eq!(after[client], *home);
        }
    }
}

#[test]
fn ip_hash_moves_the_same_clients_when_the_backend_leaves_the_pool() {
    let members = members(&[1, 1, 1, 1]);
    let unusable = home_of_each_client(&members, vec![0, 1, 3]);
    let left: Vec<_> = [0, 1, 3].map(|i: usize| members[i].clone()).to_vec();
    assert_eq!(unusable, home_of_each_client(&left, all(&left)));
}

#[test]
fn ip_hash_spreads_in_proportion_to_weight() {
    let members = members(&[1, 1, 2]);
    let homes = home_of_each_client(&members, all(&members));
    let heavy = members[2].backend.address.to_string();
    let share = homes.values().filter(|home| **home == heavy).count() as f64 / homes.len() as f64;
    assert!((0.42..0.58).contains(&share), "{share}");
}

#[test]
fn turns_are_exact_under_threads() {
    for (algorithm, weights) in [
        (Algorithm::RoundRobin, [1, 1, 1, 1]),
        (Algorithm::Weighted, [1, 1, 1, 1]),
        (Algorithm::Weighted, [5, 1, 1, 1]),
        (Algorithm::LeastConnections, [2, 4, 1, 1]),
    ] {
        let members = members(&weights);
        let usable = all(&members);
        let bench = Bench::new(algorithm, members, usable);
        let counts: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in bench.picks(10_000) {
                        counts[index as usize].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        for (count, weight) in counts.into_iter().zip(weights) {
            assert_eq!(count.into_inner() as u32, 40_000 * weight / weights.iter().sum::<u32>(), "{algorithm}");
        }
    }
}

#[test]
fn algorithm_names_parse_back() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.as_str().parse(), Ok(algorithm));
    }
    let error = "least-conn".parse::<Algorithm>().expect_err("no such name");
    assert!(error.contains("least-conn") && error.contains("least-connections"), "{error}");
}
