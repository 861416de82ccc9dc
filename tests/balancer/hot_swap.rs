//! The central promise: everything an operator can change is changed hundreds of times under load, and no request, no
//! count and no result about a backend is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use serde_json::{Value, json};
use tests::balancer::backend_path;
use tests::{Balancer, Config, Origin, Request, WebSocket, Wire, eventually, within};
use tokio::task::JoinSet;

const ALGORITHMS: [&str; 4] = ["weighted", "least-connections", "ip-hash", "round-robin"];

/// Changes of the algorithm; other settings are changed in between.
const SWITCHES: usize = 400;

/// Requests that must have been answered between two switches, so that every switch happens under load.
const REQUESTS_BETWEEN_SWITCHES: u64 = 10;

/// Probes continue, with a long timeout: under this load a probe may be late, and that is not what is tested.
const PROBE: &str = "path = \"/probe\"\ninterval = \"1s\"\ntimeout = \"1s\"\nfall = 20";

const FAST_CLIENTS: usize = 12;
const SLOW_CLIENTS: usize = 8;
const WEBSOCKETS: usize = 8;
const MESSAGES_PER_WEBSOCKET: usize = 100;

/// The results of the clients.
#[derive(Debug, Default)]
struct Tally {
    is_over: AtomicBool,
    requests: AtomicU64,
    slow_requests: AtomicU64,
    websockets: AtomicU64,
    messages: AtomicU64,
    failures: AtomicU64,
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_kind_under_load_lose_no_request() {
    let [a, b, c, d] = Origin::several(["a", "b", "c", "d"]).await;
    let balancer = Balancer::start(Config::of([&a, &b, &c]).app(|pool| pool.probe(PROBE))).await;
    let tally = Arc::new(Tally::default());
    let mut clients = start_clients(&balancer, &tally);
    eventually("every tunnel is open", async || tally.websockets.load(Relaxed) >= WEBSOCKETS as u64).await;

    for switch in 0..SWITCHES {
        let before = tally.requests.load(Relaxed);
        let algorithm = ALGORITHMS[(switch + 1) % 4];
        let answer = balancer.switch_algorithm(algorithm).await;
        assert_eq!(answer["pools"][0]["previous"], ALGORITHMS[switch % 4], "{answer}");
        assert_eq!(answer["pools"][0]["current"], algorithm, "{answer}");
        change_something_else(&balancer, switch, &a, &d).await;
        assert_health_is_kept(&balancer, [&a, &b, &c]).await;
        eventually("load goes on", async || tally.requests.load(Relaxed) >= before + REQUESTS_BETWEEN_SWITCHES).await;
    }

    tally.is_over.store(true, Relaxed);
    while let Some(client) = within("the end of the clients", clients.join_next()).await {
        client.expect("a client that did not panic");
    }
    balancer.until_idle().await;
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    println!(
        "{} requests, {} of them slow, {} WebSockets with {} messages, {SWITCHES} switches: {} failures",
        count(&tally.requests),
        count(&tally.slow_requests),
        count(&tally.websockets),
        count(&tally.messages),
        count(&tally.failures),
    );
    assert_eq!(count(&tally.failures), 0);
    assert!(count(&tally.requests) >= SWITCHES as u64 * REQUESTS_BETWEEN_SWITCHES);
    assert_eq!(in_flight_metric(&balancer).await, 0.0);
    let answered: usize = [&a, &b, &c, &d].map(|origin| origin.requests().len()).iter().sum();
    assert_eq!(
        answered as u64,
        count(&tally.requests) + count(&tally.websockets),
        "each request reached one origin once"
    );
}

/// Changes weights, and adds, drains and removes a backend.
async fn change_something_else(balancer: &Balancer, switch: usize, a: &Origin, d: &Origin) {
    match switch % 20 {
        3 => {
            balancer.patch(a, json!({ "weight": 5 })).await;
        }
        13 => {
            balancer.patch(a, json!({ "weight": 1 })).await;
        }
        5 => {
            let added = json!({ "address": d.address().to_string(), "weight": 2 });
            balancer.change("POST", "/admin/pools/app/backends", Some(added)).await;
            balancer.sees(d, "healthy").await;
        }
        9 => {
            balancer.patch(d, json!({ "state": "draining" })).await;
        }
        11 => {
            balancer.patch(d, json!({ "state": "active" })).await;
            balancer.sees(d, "healthy").await;
        }
        15 => {
            balancer.change("DELETE", &backend_path(d), None).await;
        }
        19 => {
            eventually("the removed backend is gone", async || balancer.backend(d).await == Value::Null).await;
        }
        _ => {}
    }
}

async fn assert_health_is_kept(balancer: &Balancer, origins: [&Origin; 3]) {
    let pool = balancer.pool().await;
    for origin in origins {
        let address = origin.address().to_string();
        let backend = pool["backends"].as_array().into_iter().flatten().find(|b| b["address"] == address.as_str());
        assert_eq!(backend.expect("a backend that stays")["status"], "healthy", "{pool}");
    }
}

async fn in_flight_metric(balancer: &Balancer) -> f64 {
    balancer.metrics().await.sum("evenkeel_backend_in_flight", &[])
}

fn start_clients(balancer: &Balancer, tally: &Arc<Tally>) -> JoinSet<()> {
    let address = balancer.address();
    let mut clients = JoinSet::new();
    for client in 0..FAST_CLIENTS {
        let tally = Arc::clone(tally);
        clients.spawn(async move {
            let request = match client % 3 {
                0 => Request::get("/fast"),
                1 => Request::post("/fast", "x".repeat(3000)),
                _ => Request::put("/fast", "y".repeat(3000)).with("Transfer-Encoding", "chunked"),
            };
            send_until_over(address, &tally, &request, &AtomicU64::new(0)).await;
        });
    }
    for client in 0..SLOW_CLIENTS {
        let tally = Arc::clone(tally);
        clients.spawn(async move {
            let request = Request::get(&format!("/slow?ms={}", 20 + 10 * client));
            send_until_over(address, &tally, &request, &tally.slow_requests).await;
        });
    }
    for _ in 0..WEBSOCKETS {
        let tally = Arc::clone(tally);
        clients.spawn(async move {
            while !tally.is_over.load(Relaxed) {
                if let Err(error) = talk_over_websocket(address, &tally).await {
                    eprintln!("WebSocket: {error}");
                    tally.failures.fetch_add(1, Relaxed);
                }
            }
        });
    }
    clients
}

async fn send_until_over(address: std::net::SocketAddr, tally: &Tally, request: &Request, kind: &AtomicU64) {
    let mut wire = Wire::connect(address).await;
    while !tally.is_over.load(Relaxed) {
        match within("an answer", wire.try_exchange(request)).await {
            Ok(reply) if reply.status == 200 && reply.json()["body_length"] == request.body.len() => {}
            other => {
                eprintln!("{} {}: {other:?}", request.method, request.target);
                tally.failures.fetch_add(1, Relaxed);
                wire = Wire::connect(address).await;
            }
        }
        tally.requests.fetch_add(1, Relaxed);
        kind.fetch_add(1, Relaxed);
    }
}

async fn talk_over_websocket(
    address: std::net::SocketAddr,
    tally: &Tally,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let mut socket = WebSocket::try_open(address, "/socket").await?;
    tally.websockets.fetch_add(1, Relaxed);
    for message in 0..MESSAGES_PER_WEBSOCKET {
        if tally.is_over.load(Relaxed) {
            break;
        }
        socket.try_echo(&format!("message {message}")).await?;
        tally.messages.fetch_add(1, Relaxed);
        tokio::task::yield_now().await;
    }
    socket.close().await;
    Ok(())
}
