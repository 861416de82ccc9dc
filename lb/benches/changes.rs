//! What a change at run time takes in a pool of 10,000 backends, and how long one has to wait that comes while another
//! change makes a ring for `ip-hash`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel::change::Author;
use evenkeel::config::algorithm::Algorithm;
use evenkeel::config::backend::{AdminState, Weight};
use evenkeel::config::toml;
use evenkeel::control::{ChangeOptions, ChangeOutcome, ChangeRequest, Control};
use evenkeel::metrics::Metrics;

const BACKENDS: u32 = 10_000;

fn address(i: u32) -> String {
    format!("10.{}.{}.{}:8080", i >> 16 & 255, i >> 8 & 255, i & 255)
}

fn control(algorithm: Algorithm) -> Control {
    let path = Path::new("/evenkeel.toml");
    let backends: Vec<_> = (0..BACKENDS).map(|i| format!("{{ address = \"{}\" }}", address(i))).collect();
    let text = format!(
        "[state]\npersist = false\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
         [[pool]]\nname = \"app\"\nalgorithm = \"{algorithm}\"\nbackends = [{}]",
        backends.join(", ")
    );
    let config = toml::read(&text, path).expect("valid");
    Control::new(path, config, Arc::new(Metrics::new()))
}

fn make(control: &Control, request: ChangeRequest) -> ChangeOutcome {
    let author = Author { by: "local", from: None };
    control
        .make(&request, &ChangeOptions { author, if_match: None, dry_run: false, force: false, deadline: None })
        .expect("it can be made")
}

fn change(control: &Control, backend: &str, weight: Option<Weight>, state: Option<AdminState>) -> ChangeOutcome {
    let (pool, backend) = ("app".to_owned(), backend.to_owned());
    make(control, ChangeRequest::ChangeBackend { pool, backend, weight, state })
}

/// Weights that differ from one change to the next.
fn weights() -> impl FnMut() -> Weight {
    let mut weight = 0;
    move || {
        weight = weight % 9 + 1;
        Weight::new(weight).expect("valid")
    }
}

fn changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("changes");
    group.sample_size(20);
    for algorithm in [Algorithm::Weighted, Algorithm::IpHash] {
        let (control, mut weight, backend) = (control(algorithm), weights(), address(7));
        group.bench_function(format!("weight/{algorithm}"), |b| {
            b.iter(|| change(&control, &backend, Some(weight()), None));
        });
        let mut states = [AdminState::Draining, AdminState::Active].into_iter().cycle();
        group.bench_function(format!("state/{algorithm}"), |b| {
            b.iter(|| change(&control, &backend, None, states.next()));
        });
    }
    for (first, second) in [(Algorithm::RoundRobin, Algorithm::Weighted), (Algorithm::RoundRobin, Algorithm::IpHash)] {
        let control = control(first);
        let mut algorithms = [second, first].into_iter().cycle();
        group.bench_function(format!("algorithm/{first} and {second}"), |b| {
            b.iter(|| make(&control, ChangeRequest::Algorithm { pool: None, to: algorithms.next().expect("endless") }));
        });
    }
    group.finish();
}

fn waiting(c: &mut Criterion) {
    let mut group = c.benchmark_group("changes");
    group.sample_size(20);
    let control = control(Algorithm::IpHash);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut weight = weights();
            while !is_over.load(Ordering::Relaxed) {
                change(&control, &address(7), Some(weight()), None);
            }
        });
        let mut states = [AdminState::Draining, AdminState::Active].into_iter().cycle();
        group.bench_function("state while rings are made", |b| {
            b.iter_custom(|count| {
                let mut taken = Duration::ZERO;
                for _ in 0..count {
                    // The other one is to be in the middle of its work.
                    std::thread::sleep(Duration::from_millis(5));
                    let started = std::time::Instant::now();
                    change(&control, &address(8), None, states.next());
                    taken += started.elapsed();
                }
                taken
            });
        });
        is_over.store(true, Ordering::Relaxed);
    });
    group.finish();
}

criterion_group!(benches, changes, waiting);
criterion_main!(benches);
