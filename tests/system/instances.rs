//! Instances of the application behind a real balancer: sessions and data are shared, and users do not notice when an
//! instance stops.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::TempDir;
use tests::app::{self, Instance};
use tests::{Balancer, Config, Pool, Port, Reply, Request, eventually};

const ALGORITHMS: [&str; 4] = ["round-robin", "weighted", "least-connections", "ip-hash"];

/// Three instances with a shared folder, behind a balancer.
struct Cluster {
    balancer: Balancer,
    instances: Vec<Instance>,
    directory: TempDir,
    /// Of the instances, also while they are stopped.
    _ports: Vec<Port>,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(&[], "/healthz").await
    }

    /// With additional flags for the instances, and `probed` as the path of the probes.
    async fn start_with(flags: &[&str], probed: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let (mut instances, mut ports) = (Vec::new(), Vec::new());
        for name in ["web1", "web2", "web3"] {
            let data = directory.path().join("data");
            let port = Port::reserve();
            instances.push(Instance::start_with(name, &data, &port.address().to_string(), flags).await);
            ports.push(port);
        }
        // A busy machine may delay a probe, but hardly two in a row for as long.
        let probe = format!(
            "path = \"{probed}\"\nstatus = \"200\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 2"
        );
        let pool = instances.iter().fold(Pool::empty("app"), |pool, i| pool.backend(&i.address.to_string(), ""));
        let balancer =
            Balancer::start(Config::default().pool(pool.probe(&probe).ejection("base_time = \"300ms\""))).await;
        Self { balancer, instances, directory, _ports: ports }
    }

    async fn status(&self, instance: usize) -> String {
        let pool = self.balancer.pool().await;
        pool["backends"][instance]["status"].as_str().expect("a status").to_owned()
    }
}

#[tokio::test]
async fn a_session_works_on_every_instance_with_every_algorithm() {
    let cluster = Cluster::start().await;
    let cookie = sign_up(&cluster.balancer).await;
    for algorithm in ALGORITHMS {
        cluster.balancer.switch_algorithm(algorithm).await;
        for _ in 0..6 {
            let page = visit(&cluster.balancer, &cookie).await;
            assert_eq!(page.status, 200);
            assert!(page.text().contains("grace"), "{algorithm}: logged in");
        }
    }
}

#[tokio::test]
async fn a_killed_instance_fails_no_request_and_returns() {
    let mut cluster = Cluster::start().await;
    let cookie = sign_up(&cluster.balancer).await;
    let (is_over, visits) = (AtomicBool::new(false), AtomicU64::new(0));
    let visitors = futures_util::future::join_all((0..8).map(|_| async {
        while !is_over.load(Relaxed) {
            let page = visit(&cluster.balancer, &cookie).await;
            assert_eq!(page.status, 200, "{}", page.text());
            assert!(page.text().contains("grace"), "still logged in");
            visits.fetch_add(1, Relaxed);
        }
    }));
    let victim = &mut cluster.instances[1];
    let balancer = &cluster.balancer;
    let status = async || balancer.pool().await["backends"][1]["status"].as_str().expect("a status").to_owned();
    let data = cluster.directory.path().join("data");
    let trouble = async {
        eventually("visitors are there", async || visits.load(Relaxed) > 20).await;
        victim.kill().await;
        eventually("the dead one is out", async || status().await != "healthy").await;
        let before = visits.load(Relaxed);
        eventually("visits go on", async || visits.load(Relaxed) > before + 20).await;
        let address = victim.address.to_string();
        *victim = Instance::start("web2", &data, &address).await;
        eventually("it is back", async || status().await == "healthy").await;
        is_over.store(true, Relaxed);
    };
    tokio::join!(visitors, trouble);
}

#[tokio::test]
async fn a_frozen_instance_is_ejected_and_returns() {
    let cluster = Cluster::start().await;
    let cookie = sign_up(&cluster.balancer).await;
    cluster.instances[0].signal(Signal::SIGSTOP);
    eventually("the frozen one is out", async || cluster.status(0).await == "unhealthy").await;
    for _ in 0..6 {
        assert_eq!(visit(&cluster.balancer, &cookie).await.status, 200);
    }
    cluster.instances[0].signal(Signal::SIGCONT);
    eventually("it is back", async || cluster.status(0).await == "healthy").await;
}

#[tokio::test]
async fn a_rolling_restart_fails_no_request() {
    let mut cluster = Cluster::start().await;
    let cookie = sign_up(&cluster.balancer).await;
    let data = cluster.directory.path().join("data");
    for place in 0..3 {
        let address = cluster.instances[place].address.to_string();
        let path = format!("/admin/pools/app/backends/{address}");
        cluster.balancer.change("PATCH", &path, Some(json!({ "state": "draining" }))).await;
        let idle = async || cluster.balancer.pool().await["backends"][place]["in_flight"] == 0;
        eventually("it has nothing to do", idle).await;
        cluster.instances[place].stop().await;
        let name = cluster.instances[place].name.clone();
        assert!(visit(&cluster.balancer, &cookie).await.text().contains("grace"));
        cluster.instances[place] = Instance::start(&name, &data, &address).await;
        cluster.balancer.change("PATCH", &path, Some(json!({ "state": "active" }))).await;
        eventually("it takes part again", async || cluster.status(place).await == "healthy").await;
        assert!(visit(&cluster.balancer, &cookie).await.text().contains("grace"), "sessions outlive their instance");
    }
    assert_eq!(cluster.balancer.metrics().await.sum("evenkeel_requests_total", &[("code", "5xx")]), 0.0);
}

/// When the listener and idle connections closed as soon as the stop was announced, POSTs in flight to them were lost:
/// the balancer must not send a POST again.
#[tokio::test]
async fn a_rolling_restart_by_signal_loses_no_post() {
    let mut cluster = Cluster::start_with(&["--shutdown-delay", "2s"], "/readyz").await;
    let cookie = sign_up(&cluster.balancer).await;
    let (is_over, posted) = (AtomicBool::new(false), AtomicU64::new(0));
    let (balancer, instances, data) =
        (&cluster.balancer, &mut cluster.instances, cluster.directory.path().join("data"));
    let authors = futures_util::future::join_all((0..8).map(|author| {
        let (cookie, is_over, posted) = (&cookie, &is_over, &posted);
        async move {
            let mut texts = Vec::new();
            while !is_over.load(Relaxed) {
                let text = format!("post {} of author {author}.", texts.len());
                let reply = balancer.send(&app::post(&text).with("Cookie", cookie)).await;
                assert_eq!(reply.status, 303, "{text} {}", reply.text());
                texts.push(text);
                posted.fetch_add(1, Relaxed);
            }
            texts
        }
    }));
    let more = async || {
        let before = posted.load(Relaxed);
        eventually("posts go on", async || posted.load(Relaxed) > before + 20).await;
    };
    let restarts = async {
        more().await;
        for instance in instances {
            let (name, address) = (instance.name.clone(), instance.address.to_string());
            instance.stop().await;
            more().await;
            *instance = Instance::start_with(&name, &data, &address, &["--shutdown-delay", "2s"]).await;
            let backends = async || balancer.pool().await["backends"].as_array().expect("a list").clone();
            eventually("all take part", async || backends().await.iter().all(|one| one["status"] == "healthy")).await;
            more().await;
        }
        is_over.store(true, Relaxed);
    };
    let (texts, ()) = tokio::join!(authors, restarts);
    let mut pages = String::new();
    let mut next = Some("/posts/".to_owned());
    while let Some(path) = next {
        let page = balancer.send(&Request::get(&path)).await.text();
        next = page
            .split_once("/posts/?after=")
            .map(|(_, rest)| format!("/posts/?after={}", rest.split('"').next().expect("the end of the address")));
        pages.push_str(&page);
    }
    for text in texts.iter().flatten() {
        assert_eq!(pages.matches(text.as_str()).count(), 1, "{text}");
    }
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_requests_total", &[("code", "5xx")]), 0.0);
    // No attempt failed either: the balancer knew of the stop before a connection could be refused.
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[]), 0.0);
}

#[tokio::test]
async fn the_application_sees_the_clients_address() {
    let cluster = Cluster::start().await;
    let cookie = sign_up(&cluster.balancer).await;
    let request = Request::get("/accounts/logs/").with("Host", "site.example").with("Cookie", &cookie);
    let page = cluster.balancer.send(&request).await;
    assert_eq!(page.status, 200, "{}", page.text());
    assert!(page.text().contains("127.0.0.1"), "{}", page.text());
}

/// Signs up a member and returns the session's cookie.
async fn sign_up(balancer: &Balancer) -> String {
    let reply = balancer.send(&app::sign_up("grace")).await;
    assert_eq!(reply.status, 303, "{}", reply.text());
    app::cookies(&reply)
}

async fn visit(balancer: &Balancer, cookie: &str) -> Reply {
    balancer.send(&Request::get("/").with("Cookie", cookie)).await
}
