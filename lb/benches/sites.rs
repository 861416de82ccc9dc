//! What it takes to find a route among 1,000 sites of ten routes each, to make the snapshot of such a configuration,
//! and to make one in which a single site has changed.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use evenkeel::config::{Config, Secret, toml};
use evenkeel::metrics::Metrics;
use evenkeel::snapshot::{Rings, Snapshot};
use evenkeel::value::variable::Variable;
use evenkeel::value::{Facts, Presence};

const SITES: usize = 1_000;
const ROUTES: [&str; 10] =
    ["/", "/api", "/api/v2", "/api/v2/users", "/assets", "/images", "/login", "/static/css", "/static/js", "/ws"];

struct NoFacts;

impl Facts for NoFacts {
    fn write(&self, _: &Variable, _: &mut Vec<u8>) -> Presence {
        Presence::Missing
    }
}

fn config(as_sites: bool) -> Config {
    let mut text = "[state]\npersist = false\n[[listener]]\naddress = \"127.0.0.1:80\"\n\
                    [[pool]]\nname = \"app\"\nbackends = [\"127.0.0.1:1\"]\n"
        .to_owned();
    for site in 0..SITES {
        for path in ROUTES {
            text += &format!("[[route]]\nhost = \"{}\"\npath = \"{path}\"\npool = \"app\"\n", host(site));
        }
    }
    let mut config = toml::read(&text, Path::new("/evenkeel.toml")).expect("valid");
    if as_sites {
        config.sites = config.all_sites();
        config.routes.clear();
    }
    config
}

fn host(site: usize) -> String {
    format!("shop-{site}.example.com")
}

fn snapshot(config: Config, previous: Option<&Snapshot>, metrics: &Metrics) -> Snapshot {
    Snapshot::new(config, previous, &Rings::default(), metrics, &Secret::new("secret").expect("not empty"))
}

fn find(c: &mut Criterion) {
    let sites = snapshot(config(true), None, &Metrics::new()).sites;
    let paths = ["/", "/api/v2/users/7", "/static/js/app.9f3.js", "/static/x", "/zzz/of/something/else"];
    let asked: Vec<_> = (0..SITES).flat_map(|site| paths.map(|path| (host(site), path))).collect();
    let mut group = c.benchmark_group("sites");
    group.bench_function("find/one over and over", |b| {
        b.iter(|| black_box(sites.find(Some(0), black_box("shop-7.example.com"), b"/api/v2/users/7", &NoFacts)));
    });
    // By a stride that meets each once, far from the one before.
    let mut at = 0;
    group.bench_function("find/each in turn", |b| {
        b.iter(|| {
            at = (at + 2_741) % asked.len();
            let (host, path) = &asked[at];
            black_box(sites.find(Some(0), black_box(host), path.as_bytes(), &NoFacts))
        });
    });
    group.finish();
}

fn make(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot");
    group.sample_size(20);
    for (name, as_sites) in [("sites", true), ("top-level routes", false)] {
        let config = config(as_sites);
        group.bench_function(format!("cold/{name}"), |b| {
            b.iter_batched(
                || (config.clone(), Metrics::new()),
                |(config, metrics)| snapshot(config, None, &metrics),
                BatchSize::PerIteration,
            );
        });
    }
    // As after a reload: read anew, one site has another route.
    let metrics = Metrics::new();
    let first = snapshot(config(true), None, &metrics);
    let mut changed = config(true);
    let mut site = (*changed.sites[500]).clone();
    site.routes.pop();
    changed.sites[500] = Arc::new(site);
    group.bench_function("warm/one site of 1,000 changed", |b| {
        b.iter_batched(|| changed.clone(), |config| snapshot(config, Some(&first), &metrics), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, find, make);
criterion_main!(benches);
