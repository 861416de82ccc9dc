//! Each algorithm distributes requests by its rule, over real sockets; `ip-hash` is compared with nginx.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use tests::nginx::Nginx;
use tests::{Balancer, Config, Health, Origin, Pool, Request, Wire, eventually};

/// Trusts X-Forwarded-For from this machine, so that a test can act as many clients.
const TRUSTING: &str = "trusted_proxies = [\"127.0.0.0/8\"]";

#[tokio::test]
async fn round_robin_takes_each_backend_in_turn() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    for algorithm in ["round-robin", "weighted"] {
        let config = Config::of([&a, &b, &c]).app(|pool| pool.algorithm(algorithm));
        let balancer = Balancer::start(config).await;
        assert_eq!(balancer.origins_of(9).await.concat(), "abcabcabc", "{algorithm}");
    }
}

#[tokio::test]
async fn round_robin_ignores_weights() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pool = Pool::empty("app").weighted(&a, 9).weighted(&b, 1).algorithm("round-robin");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    assert_eq!(balancer.origins_of(6).await.concat(), "ababab");
}

/// Weights were silently ignored if no algorithm was set.
#[tokio::test]
async fn the_default_algorithm_respects_weights() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::default().pool(Pool::empty("app").weighted(&a, 2).weighted(&b, 1))).await;
    assert_eq!(balancer.origins_of(6).await.concat(), "abaaba");
}

#[tokio::test]
async fn weighted_spreads_five_to_one_to_one_without_bursts() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let pool = Pool::empty("app").weighted(&a, 5).weighted(&b, 1).weighted(&c, 1).algorithm("weighted");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    assert_eq!(balancer.origins_of(14).await.concat(), "aabacaaaabacaa");
}

#[tokio::test]
async fn least_connections_fills_by_weight_while_exchanges_are_slow() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let pool = Pool::empty("app").weighted(&a, 3).weighted(&b, 2).weighted(&c, 1).algorithm("least-connections");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut held = Vec::new();
    for number in 1..=12 {
        held.push(hold(&balancer).await);
        let heads = || [&a, &b, &c].map(Origin::heads).iter().sum::<u64>();
        eventually("the request arrived", async || heads() == number).await;
    }
    assert_eq!([&a, &b, &c].map(Origin::heads), [6, 4, 2]);
    assert_eq!(balancer.in_flight().await, 12);
    for origin in [&a, &b, &c] {
        origin.release();
    }
    for wire in &mut held {
        assert_eq!(wire.reply().await.status, 200);
    }
    balancer.until_idle().await;
}

#[tokio::test]
async fn least_connections_gives_idle_backends_turns_by_weight() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pool = Pool::empty("app").weighted(&a, 10).weighted(&b, 1).algorithm("least-connections");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut wire = balancer.connect().await;
    for _ in 0..44 {
        wire.exchange(&Request::get("/")).await;
        balancer.until_idle().await;
    }
    assert_eq!([a.heads(), b.heads()], [40, 4]);
}

#[tokio::test]
async fn least_connections_avoids_a_backend_that_is_busy() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.algorithm("least-connections"))).await;
    let mut held = hold(&balancer).await;
    eventually("the slow request arrived", async || a.heads() + b.heads() == 1).await;
    let (busy, idle) = if a.heads() == 1 { (&a, &b) } else { (&b, &a) };
    assert_eq!(balancer.origins_of(5).await, vec![idle.name(); 5]);
    busy.release();
    assert_eq!(held.reply().await.origin(), busy.name());
}

#[tokio::test]
async fn ip_hash_maps_clients_alike_in_two_balancers_whatever_the_order_of_backends() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let here = Balancer::start(Config::of([&a, &b, &c]).app(|pool| pool.algorithm("ip-hash"))).await;
    let there = Balancer::start(Config::of([&c, &a, &b]).app(|pool| pool.algorithm("ip-hash"))).await;
    let mut used = BTreeSet::new();
    for last in 1..=60 {
        let client = IpAddr::V4(Ipv4Addr::new(127, 0, 7, last));
        let first = origin_from(client, here.address()).await;
        assert_eq!(origin_from(client, here.address()).await, first, "{client} stays");
        assert_eq!(origin_from(client, there.address()).await, first, "{client} is sent to the same by both");
        used.insert(first);
    }
    assert_eq!(used.len(), 3, "every backend has clients: {used:?}");
}

#[tokio::test]
async fn ip_hash_moves_only_the_clients_of_a_lost_backend() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let config = Config::of([&a, &b, &c]).server(TRUSTING).app(|pool| pool.algorithm("ip-hash").quick_probe());
    let balancer = Balancer::start(config).await;
    let clients = clients();
    let before = choices(balancer.address(), &clients).await;

    c.set_health(Health::Status(503));
    balancer.sees(&c, "unhealthy").await;
    let without = choices(balancer.address(), &clients).await;
    for (client, origin) in &before {
        match origin.as_str() {
            "c" => assert_ne!(without[client], "c", "{client}"),
            stays => assert_eq!(without[client], stays, "{client}"),
        }
    }
    let moved_to: BTreeSet<_> =
        before.iter().filter(|(_, origin)| *origin == "c").map(|(client, _)| without[client].as_str()).collect();
    assert_eq!(moved_to.into_iter().collect::<String>(), "ab", "the lost backend's clients are shared out");

    c.set_health(Health::Status(200));
    balancer.sees(&c, "healthy").await;
    assert_eq!(choices(balancer.address(), &clients).await, before);
}

#[tokio::test]
async fn ip_hash_chooses_the_same_backend_as_nginx() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let weights = [(&a, 1), (&b, 2), (&c, 5)];
    let servers: String =
        weights.iter().map(|(origin, weight)| format!("server {} weight={weight};\n", origin.address())).collect();
    let nginx = Nginx::start(&format!(
        "upstream app {{\nhash $remote_addr consistent;\n{servers}}}\n\
         server {{\nlisten {{listen}};\nset_real_ip_from 127.0.0.1;\nreal_ip_header X-Forwarded-For;\n\
         location / {{ proxy_pass http://app; }}\n}}"
    ))
    .await;
    let pool = weights.iter().fold(Pool::empty("app"), |pool, (origin, weight)| pool.weighted(origin, *weight));
    let balancer = Balancer::start(Config::default().server(TRUSTING).pool(pool.algorithm("ip-hash"))).await;

    let clients = clients();
    assert!(clients.len() >= 300);
    let by_nginx = choices(nginx.address(), &clients).await;
    let by_us = choices(balancer.address(), &clients).await;
    assert_eq!(by_us, by_nginx);
    let used: BTreeSet<_> = by_us.values().collect();
    assert_eq!(used.len(), 3, "the comparison means something: {used:?}");
}

#[tokio::test]
async fn a_new_algorithm_applies_from_the_next_request() {
    let [a, b, c] = Origin::several(["a", "b", "c"]).await;
    let balancer = Balancer::start(Config::of([&a, &b, &c])).await;
    balancer.patch(&b, json!({ "weight": 7 })).await;
    let mut wire = balancer.connect().await;
    for (algorithm, distinct) in [("round-robin", 3), ("ip-hash", 1), ("weighted", 3), ("ip-hash", 1)] {
        balancer.switch_algorithm(algorithm).await;
        let mut origins = Vec::new();
        for _ in 0..9 {
            origins.push(wire.exchange(&Request::get("/")).await.origin().to_owned());
        }
        let used: BTreeSet<_> = origins.iter().collect();
        assert_eq!(used.len(), distinct, "{algorithm}: {origins:?}");
        if algorithm == "weighted" {
            assert_eq!(origins.iter().filter(|origin| *origin == "b").count(), 7, "{origins:?}");
        }
    }
}

async fn hold(balancer: &Balancer) -> Wire {
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/hold").to_bytes()).await;
    wire
}

async fn origin_from(client: IpAddr, balancer: SocketAddr) -> String {
    Wire::connect_from(client, balancer).await.exchange(&Request::get("/")).await.origin().to_owned()
}

/// Addresses from many networks of both families, in canonical form.
fn clients() -> Vec<String> {
    let ipv4 = (0..220u32).map(|i| Ipv4Addr::from(0x0a00_0001u32.wrapping_add(i.wrapping_mul(19_088_743))).to_string());
    let ipv6 = (0..100u128).map(|i| {
        let bits = (0x2001_0db8u128 << 96) | (i << 64) | (i * i * i);
        std::net::Ipv6Addr::from(bits).to_string()
    });
    let special = ["::1", "1.1.1.1", "255.255.255.254", "fe80::1", "2001:db8::", "2001:db8:0:1::1"];
    let mut clients: Vec<_> = ipv4.chain(ipv6).chain(special.map(str::to_owned)).collect();
    clients.sort();
    clients.dedup();
    clients
}

/// The origin that answers each client.
async fn choices(address: SocketAddr, clients: &[String]) -> BTreeMap<String, String> {
    let mut wire = Wire::connect(address).await;
    let mut choices = BTreeMap::new();
    for client in clients {
        let reply = wire.exchange(&Request::get("/").with("X-Forwarded-For", client)).await;
        choices.insert(client.clone(), reply.origin().to_owned());
    }
    choices
}
