//! What one choice of a backend costs: every algorithm with 3, 16, 100 and 10 000 backends of up to 500 weights, and
//! what it takes to make the algorithm ready when the candidates change.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use evenkeel::backend::Backend;
use evenkeel::balance::{Candidates, Key, Member, Ring, SharedTurns, Usable, balance};
use evenkeel::config::algorithm::Algorithm;
use evenkeel::config::backend::Weight;
use evenkeel::metrics::BackendMetrics;

const POOLS: [u32; 4] = [3, 16, 100, 10_000];
const WEIGHTS: u32 = 500;

fn members(count: u32) -> Vec<Member> {
    let member = |i: u32| {
        let address = format!("10.{}.{}.{}:8080", i >> 16 & 255, i >> 8 & 255, i & 255).parse().expect("valid");
        Member {
            backend: Arc::new(Backend::new(address, false, BackendMetrics::unregistered(), Arc::default())),
            weight: Weight::new(1 + i * 7 % WEIGHTS).expect("valid"),
        }
    };
    (0..count).map(member).collect()
}

fn pick(c: &mut Criterion) {
    for count in POOLS {
        let members = members(count);
        let usable = Usable::new(members.len(), (0..count).collect());
        // Everybody is busy: the search for the least loaded finds no idle backend to stop at.
        let backends: Vec<_> = members.iter().map(Member::candidate).collect();
        let _leases: Vec<_> = backends.iter().map(|backend| backend.endpoints.lease(|_| false)).collect();
        for algorithm in Algorithm::ALL {
            let balance =
                balance(algorithm, &backends, &usable, &SharedTurns::default(), || Arc::new(Ring::new(&members)));
            let candidates = Candidates {
                backends: &backends,
                usable: &usable,
                tried: &[],
                skips_ejected: false,
                skips_full: false,
            };
            let mut client = 0u32;
            c.bench_with_input(BenchmarkId::new(format!("pick/{algorithm}"), count), &count, |b, _| {
                b.iter(|| {
                    client = client.wrapping_add(1);
                    let key = Key { client: Some(Ipv4Addr::from_bits(client).into()) };
                    black_box(balance.pick(black_box(&candidates), &key))
                });
            });
        }
    }
}

fn make_ready(c: &mut Criterion) {
    let mut group = c.benchmark_group("make-ready");
    group.sample_size(10);
    for count in POOLS {
        let members = members(count);
        let backends: Vec<_> = members.iter().map(Member::candidate).collect();
        let usable = Usable::new(members.len(), (0..count).collect());
        for algorithm in [Algorithm::Weighted, Algorithm::IpHash] {
            group.bench_with_input(BenchmarkId::new(algorithm.as_str(), count), &count, |b, _| {
                b.iter(|| {
                    balance(algorithm, &backends, &usable, &SharedTurns::default(), || Arc::new(Ring::new(&members)))
                });
            });
        }
    }
}

criterion_group!(benches, pick, make_ready);
criterion_main!(benches);
