//! What every algorithm promises, and what each promises alone.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use super::*;
use crate::metrics::BackendMetrics;

fn member(address: &str, weight: u32) -> Member {
    let address = address.parse().expect("valid address");
    Member {
        backend: Arc::new(Backend::new(address, false, BackendMetrics::unregistered())),
        weight: Weight::new(weight).expect("valid weight"),
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights.iter().enumerate().map(|(i, &weight)| member(&format!("10.0.0.{}:80", i + 1), weight)).collect()
}

fn all(members: &[Member]) -> Vec<BackendIndex> {
    (0..members.len() as BackendIndex).collect()
}

struct Bench {
    members: Vec<Member>,
    usable: Usable,
    balance: Box<dyn Balance>,
}

impl Bench {
    fn new(algorithm: Algorithm, members: Vec<Member>, usable: Vec<BackendIndex>) -> Self {
        let usable = Usable::new(members.len(), usable);
        let balance = algorithm.balance(&members, &usable, &Turn::default(), || Arc::new(Ring::new(&members)));
        Self { members, usable, balance }
    }

    fn pick(&self, client: [u8; 4], tried: &[BackendIndex]) -> Option<BackendIndex> {
        let candidates = Candidates { members: &self.members, usable: &self.usable, tried };
        self.balance.pick(&candidates, &Key { client: Ipv4Addr::from(client).into() })
    }

    fn picks(&self, count: usize) -> Vec<BackendIndex> {
        (0..count).filter_map(|_| self.pick([127, 0, 0, 1], &[])).collect()
    }
}

#[test]
fn every_algorithm_picks_only_usable_and_untried_backends() {
    for algorithm in Algorithm::ALL {
        let members = members(&[1, 2, 3, 4, 5]);
        let bench = Bench::new(algorithm, members, vec![0, 2, 4]);
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

#[test]
fn weighted_is_smooth() {
    let members = members(&[5, 1, 1]);
    let usable = all(&members);
    let picks = Bench::new(Algorithm::Weighted, members, usable).picks(14);
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
}

#[test]
fn weighted_keeps_proportions_among_those_that_are_left() {
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
    let _busy = members[1].backend.lease();
    let usable = all(&members);
    assert_eq!(Bench::new(Algorithm::LeastConnections, members, usable).picks(6), [0, 2, 0, 2, 0, 2]);
}

#[test]
fn least_connections_fills_in_proportion_to_weight() {
    let members = members(&[4, 2, 1]);
    let usable = all(&members);
    let bench = Bench::new(Algorithm::LeastConnections, members, usable);
    let leases: Vec<_> =
        bench_iter(&bench).take(70).map(|index| bench.members[index as usize].backend.lease()).collect();
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
    for algorithm in [Algorithm::RoundRobin, Algorithm::Weighted] {
        let members = members(&[1, 1, 1, 1]);
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
        for count in counts {
            assert_eq!(count.into_inner(), 10_000, "{algorithm}");
        }
    }
}

#[test]
fn names_read_back() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.as_str().parse(), Ok(algorithm));
    }
    let error = "least-conn".parse::<Algorithm>().expect_err("no such name");
    assert!(error.contains("least-conn") && error.contains("least-connections"), "{error}");
}
