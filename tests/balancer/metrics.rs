//! The metrics are exactly those named in the documentation, the dashboards and the alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tests::{Balancer, Config, Origin, Pool, Port, Request, eventually};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Type, labels and help of a metric.
#[derive(Debug, Default, PartialEq)]
struct Metric {
    kind: String,
    labels: BTreeSet<String>,
    help: String,
}

#[tokio::test]
async fn the_documentation_lists_exactly_the_metrics_that_are_served() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/metrics.md")).expect("readable");
    let rows = text.lines().filter(|line| line.starts_with("| `")).filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells.as_slice() else { return None };
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned()).filter(|l| !l.is_empty());
        let metric = Metric { kind: (*kind).to_owned(), labels: labels.collect(), help: (*help).to_owned() };
        Some((name.trim_matches('`').to_owned(), metric))
    });
    let documented: BTreeMap<_, _> = rows.collect();
    let served = served().await;
    for (name, metric) in &served {
        assert_eq!(documented.get(name), Some(metric), "{name} in docs/metrics.md");
    }
    assert_eq!(documented.len(), served.len(), "docs/metrics.md has metrics that are not served");
}

#[tokio::test]
async fn metrics_named_by_dashboards_alerts_and_documents_exist() {
    let served = served().await;
    let exists = |name: &str| {
        let series = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
        std::iter::once(name).chain(series).any(|name| served.contains_key(name))
    };
    let mut named = 0;
    for file in files() {
        let text = std::fs::read_to_string(&file).expect("readable");
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for word in text.split(|c| !is_part(c)).filter(|word| word.starts_with("evenkeel_")) {
            if NO_METRICS.contains(&word) {
                continue;
            }
            assert!(exists(word), "{word} in {}", file.display());
            named += 1;
        }
    }
    assert!(named > 50, "{named}");
}

/// Words that begin like a metric: the prefix itself, and the name of recording rules.
const NO_METRICS: [&str; 2] = ["evenkeel_", "evenkeel_errors"];

fn files() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    let folders = ["docs", "docs/dashboards", "grafana", "grafana/dashboards"];
    let listed = folders.iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).expect("a folder").flatten());
    let is_text = |file: &PathBuf| {
        file.extension().is_some_and(|end| ["md", "yml", "yaml", "json", "py"].iter().any(|text| end == *text))
    };
    listed
        .map(|entry| entry.path())
        .filter(is_text)
        .chain(["README.md", "compose/README.md"].map(|name| root.join(name)))
        .collect()
}

async fn served() -> BTreeMap<String, Metric> {
    let a = Origin::start("a").await;
    let named = |pool: Pool| pool.quick_probe().backend("localhost:1", "state = \"down\", max_connections = 9");
    let tls = Port::reserve();
    let files = "tls = { certificate = \"cert.pem\", key = \"key.pem\", watch_interval = \"50ms\" }";
    let section = format!("[[listener]]\naddress = \"{}\"\n{files}\n", tls.address());
    let mut balancer = Balancer::prepare(&Config::of([&a]).app(named).section(&section));
    for file in ["cert.pem", "key.pem"] {
        let data = Path::new(ROOT).join("lb/src/config/toml/test-data").join(file);
        std::fs::copy(data, balancer.file(file)).expect("a writable directory");
    }
    balancer.launch();
    balancer.ready().await;
    balancer.send(&Request::get("/")).await;
    // The metric for a file with a problem exists only while there is a problem.
    std::fs::write(balancer.file("cert.pem"), "no certificate").expect("a writable directory");
    eventually("the file is seen", async || balancer.metrics().await.has("evenkeel_certificate_problem")).await;
    let text = balancer.admin("GET", "/metrics", None).await.text();
    let mut served: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, help] => served.entry((*name).to_owned()).or_default().help = (*help).to_owned(),
            ["#", "TYPE", name, kind] => served.entry((*name).to_owned()).or_default().kind = (*kind).to_owned(),
            _ => {
                let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap_or_default(), ""));
                let family = ["_bucket", "_sum", "_count"].iter().filter_map(|suffix| name.strip_suffix(suffix));
                let family = family.chain([name]).find(|name| served.contains_key(*name));
                let labels = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
                let metric = served.get_mut(family.expect("a type before its series")).expect("just found");
                metric.labels.extend(labels.filter(|label| label != "le"));
            }
        }
    }
    served
}
