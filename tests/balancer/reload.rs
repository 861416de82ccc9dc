//! The settings of a listener are in force for the next request after a reload, on connections that have been there
//! before as well; what is on its way meanwhile is not disturbed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use serde_json::json;
use tests::{Balancer, Config, End, Origin, Request, Step, Wire, eventually, response, within};

/// Has these lines in `[[listener]]` from now on, whatever was there before.
async fn reload(balancer: &Balancer, a: &Origin, listener: &str) {
    balancer.configure(&Config::of([a]).listener(listener));
    assert_eq!(balancer.change("POST", "/admin/reload", None).await["warnings"], json!([]), "{listener}");
}

/// A client that has been served before the settings change.
async fn served(balancer: &Balancer) -> Wire {
    let mut wire = balancer.connect().await;
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    wire
}

#[tokio::test]
async fn the_largest_body_changes_both_ways() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("max_body_bytes = 10")).await;
    let mut wire = served(&balancer).await;
    reload(&balancer, &a, "max_body_bytes = 100").await;
    assert_eq!(wire.exchange(&Request::post("/", "x".repeat(100))).await.status, 200);
    reload(&balancer, &a, "max_body_bytes = 10").await;
    wire.send(Request::post("/", "x".repeat(100)).to_bytes()).await;
    assert_eq!(wire.reply().await.status, 413);
}

#[tokio::test]
async fn the_rule_for_ambiguous_names_changes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = served(&balancer).await;
    let request = Request::get("/").with("My_Field", "1");
    for (rule, seen) in [("drop", None), ("pass", Some("1"))] {
        reload(&balancer, &a, &format!("ambiguous_names = \"{rule}\"")).await;
        assert_eq!(wire.exchange(&request).await.status, 200);
        assert_eq!(a.last_request().field("my_field"), seen, "{rule}");
    }
    reload(&balancer, &a, "ambiguous_names = \"reject\"").await;
    assert_eq!(wire.exchange(&request).await.status, 400);
}

#[tokio::test]
async fn half_closed_clients_are_answered_or_not() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("half_close = \"answer\"")).await;
    for (rule, is_answered) in [("cancel", false), ("answer", true)] {
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &format!("half_close = \"{rule}\"")).await;
        let before = a.heads();
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before).await;
        wire.close_sending().await;
        if is_answered {
            a.release();
            assert_eq!(wire.reply().await.status, 200);
        } else {
            assert!(wire.is_closed().await);
        }
        balancer.is_idle().await;
    }
}

#[tokio::test]
async fn time_limits_change() {
    const SHORT: &str = "\"200ms\"";
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;

    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("keepalive_timeout = {SHORT}")).await;
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    assert!(within("the end of an idle connection", wire.is_closed()).await);

    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("header_timeout = {SHORT}")).await;
    wire.send("GET / HTTP/1.1\r\nHost: x\r\n").await;
    assert_eq!(within("an answer", wire.reply()).await.status, 408);

    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("body_timeout = {SHORT}")).await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await;
    assert_eq!(within("an answer", wire.reply()).await.status, 408);

    // More than any buffer on the way holds.
    let large = response(200, &[], "x".repeat(30_000_000));
    for limit in [format!("send_timeout = {SHORT}"), "min_rate = 1000000000".to_owned()] {
        a.answer_with(response(200, &[], ""));
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &limit).await;
        let large = large.clone();
        a.answer(move |_| vec![Step::Send(large.clone())]);
        let before = a.heads();
        wire.send(Request::get("/").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before).await;
        // The client takes nothing until it has been given up.
        balancer.is_idle().await;
        assert_eq!(wire.reply().await.end, End::CutOff, "{limit}");
    }
}

#[tokio::test]
async fn lingering_changes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for limits in ["lingering_time = \"200ms\"\nlingering_timeout = \"1h\"", "lingering_timeout = \"200ms\""] {
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &format!("max_body_bytes = 10\n{limits}")).await;
        wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 413);
        let left = async || balancer.metrics().await.sum("evenkeel_client_connections", &[]) == 0.0;
        eventually("the client that still may send has been given up", left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_lose_nothing() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let address = balancer.address();
    let clients = [0; 8].map(|_| {
        let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
        tokio::spawn(async move {
            let mut wire = Wire::connect(address).await;
            while !is_over.load(Relaxed) {
                assert_eq!(wire.exchange(&Request::post("/", "x".repeat(100))).await.status, 200);
                answered.fetch_add(1, Relaxed);
            }
        })
    });
    for round in 0..40 {
        let before = answered.load(Relaxed);
        reload(&balancer, &a, &format!("max_body_bytes = {}\nsend_timeout = \"{}s\"", 100 + round, 30 + round)).await;
        eventually("load goes on", async || answered.load(Relaxed) > before + 20).await;
    }
    is_over.store(true, Relaxed);
    for client in clients {
        within("the end of a client", client).await.expect("no request was lost");
    }
}
