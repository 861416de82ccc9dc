//! A failed request is repeated on another backend if that is safe, and only then.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tests::balancer::backend_path;
use tests::origin::sha256;
use tests::{Balancer, Config, Origin, Pool, Port, Request, Step, Wire, eventually, response};
use tokio::io::AsyncWriteExt;
use tokio::sync::Barrier;

#[tokio::test]
async fn refused_connections_are_retried_whatever_the_method() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.without_ejection())).await;
    a.stop().await;
    let large = vec![b'x'; 300_000];
    let mut wire = balancer.connect().await;
    for request in [
        Request::get("/"),
        Request::get("/"),
        Request::new("DELETE", "/thing"),
        Request::new("OPTIONS", "/thing"),
        Request::post("/", "small"),
        Request::post("/", "small"),
        Request::post("/", large.clone()),
        Request::put("/", large.clone()),
        Request::post("/", large.clone()).with("Transfer-Encoding", "chunked"),
        Request::post("/", large.clone()).with("Transfer-Encoding", "chunked"),
        Request::new("PATCH", "/").body("patch"),
        Request::new("PATCH", "/").body("patch"),
    ] {
        let reply = wire.exchange(&request).await;
        assert_eq!(reply.status, 200, "{} {:?}: {}", request.method, request.fields, reply.text());
        let seen = reply.json();
        assert_eq!(seen["body_sha256"], sha256(&request.body), "{} arrives whole", request.method);
        assert_eq!(seen["method"], request.method.as_str());
    }
    let metrics = balancer.metrics().await;
    let refused = metrics.sum("evenkeel_backend_failures_total", &[("kind", "connect-refused")]);
    assert!(refused >= 6.0, "at least every second one met the refusal: {refused}");
    assert_eq!(metrics.sum("evenkeel_retries_total", &[("pool", "app")]), refused, "and each of these moved on");
    assert_eq!(metrics.sum("evenkeel_requests_total", &[("code", "5xx")]), 0.0);
    balancer.until_idle().await;
}

#[tokio::test]
async fn requests_that_may_have_reached_a_backend_are_retried_only_if_idempotent() {
    for (request, is_repeated) in [
        (Request::get("/"), true),
        (Request::new("HEAD", "/"), true),
        (Request::new("OPTIONS", "/"), true),
        (Request::new("DELETE", "/"), true),
        (Request::put("/", "small"), true),
        (Request::put("/", "small").with("Transfer-Encoding", "chunked"), true),
        (Request::put("/", vec![b'x'; 60_000]), true),
        (Request::put("/", vec![b'x'; 200_000]), false),
        (Request::post("/", "small"), false),
        (Request::post("/", ""), false),
        (Request::new("PATCH", "/").body("small"), false),
        (Request::new("PROPFIND", "/"), false),
    ] {
        let [a, b] = Origin::several(["a", "b"]).await;
        a.answer(|_| vec![Step::Reset]);
        let balancer = Balancer::start(Config::of([&a, &b])).await;
        let reply = balancer.send(&request).await;
        let case = format!("{} with {} bytes", request.method, request.body.len());
        assert_eq!(a.heads(), 1, "{case} met the broken backend first");
        if is_repeated {
            assert_eq!((reply.status, b.heads()), (200, 1), "{case}: {}", reply.text());
            assert_eq!(b.last_request().body, request.body, "{case} arrives whole the second time");
        } else {
            assert_eq!((reply.status, b.heads()), (502, 0), "{case}: {}", reply.text());
        }
        balancer.until_idle().await;
    }
}

#[tokio::test]
async fn bodies_up_to_the_configured_size_are_kept_for_retries() {
    for (limit, length, status) in [(0, 0, 200), (0, 1, 502), (1000, 1000, 200), (1000, 1001, 502)] {
        let [a, b] = Origin::several(["a", "b"]).await;
        a.answer(|_| vec![Step::Reset]);
        let config = Config::of([&a, &b]).app(|pool| pool.set(&format!("retry_body_bytes = {limit}")));
        let balancer = Balancer::start(config).await;
        let reply = balancer.send(&Request::put("/", vec![b'x'; length])).await;
        assert_eq!(reply.status, status, "{length} bytes, {limit} kept: {}", reply.text());
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_no_backend_is_tried_twice() {
    for (retries, tries) in [(0, 1), (1, 2), (2, 3), (16, 4)] {
        let origins = Origin::several(["a", "b", "c", "d"]).await;
        for origin in &origins {
            origin.at_head(|_| vec![Step::Reset]);
        }
        let config = Config::of(&origins).app(|pool| pool.without_ejection().set(&format!("retries = {retries}")));
        let balancer = Balancer::start(config).await;
        assert_eq!(balancer.get("/").await.status, 502);
        let heads = origins.each_ref().map(Origin::heads);
        assert_eq!(heads.iter().sum::<u64>(), tries, "{retries} retries: {heads:?}");
        assert!(heads.iter().all(|&tries| tries <= 1), "{retries} retries: {heads:?}");
        balancer.until_idle().await;
    }
}

// A request that had used all its time was run again on every other backend, and its client waited for each.
#[tokio::test]
async fn no_attempt_begins_after_retry_timeout() {
    for (retry_timeout, tries) in [("0s", 1), ("60s", 3)] {
        let origins = Origin::several(["a", "b", "c"]).await;
        let settings = format!("response_timeout = \"150ms\"\nretry_timeout = \"{retry_timeout}\"");
        let config = Config::of(&origins).app(|pool| pool.without_ejection().set(&settings));
        let balancer = Balancer::start(config).await;
        assert_eq!(balancer.get("/hold").await.status, 504);
        // On a busy machine, an origin may notice late what the balancer has given up.
        let heads = || origins.iter().map(Origin::heads).sum::<u64>();
        eventually("the requests arrived", async || heads() >= tries).await;
        assert_eq!(heads(), tries, "retry_timeout = {retry_timeout}");
    }
}

#[tokio::test]
async fn retry_timeout_excludes_the_clients_upload() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Reset]);
    let config = Config::of([&a, &b]).app(|pool| pool.set("retry_timeout = \"2s\""));
    let balancer = Balancer::start(config).await;
    let mut wire = balancer.connect().await;
    // In chunks, so that it is not buffered before a backend is chosen.
    wire.send("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    eventually("the first one has the head", async || a.heads() == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    wire.send("4\r\nbody\r\n0\r\n\r\n").await;
    assert_eq!(wire.reply().await.origin(), "b");
    assert_eq!(b.last_request().body, b"body");
}

// The time for reading a body before a backend is chosen counted as the backend's.
#[tokio::test]
async fn retry_timeout_excludes_a_body_that_is_buffered_first() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Reset]);
    let config = Config::of([&a, &b]).app(|pool| pool.set("retry_timeout = \"1s\""));
    let balancer = Balancer::start(config).await;
    let mut wire = balancer.connect().await;
    wire.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo").await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    wire.send("dy").await;
    assert_eq!(wire.reply().await.origin(), "b");
    assert_eq!(a.heads(), 1);
    let backend = balancer.backend(&b).await;
    assert!(backend["latency_seconds"].as_f64().is_some_and(|latency| latency < 1.0), "{backend}");
}

// A retry used the pool with which the exchange had begun: drained and removed backends were still chosen. And the
// tried backends were remembered by position, which may be another backend's after a change.
#[tokio::test]
async fn a_retry_uses_the_current_pool_and_skips_backends_already_tried() {
    for (state, status) in [("active", 200), ("down", 502)] {
        let [a, b, c] = Origin::several(["a", "b", "c"]).await;
        a.at_head(|_| vec![Step::Hold, Step::Reset]);
        let pool = |pool: Pool| pool.without_ejection();
        let balancer = Balancer::start(Config::of([&a, &b]).app(pool)).await;
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/").to_bytes()).await;
        eventually("the first one has it", async || a.heads() == 1).await;
        let [first, second, third] = [&c, &a, &b].map(|origin| origin.address().to_string());
        let changed = Pool::empty("app")
            .backend(&first, &format!("state = \"{state}\""))
            .backend(&second, "")
            .backend(&third, "state = \"draining\"");
        balancer.configure(&Config::default().pool(pool(changed)));
        balancer.change("POST", "/admin/reload", None).await;
        a.release();
        let reply = wire.reply().await;
        assert_eq!((reply.status, a.heads(), b.heads()), (status, 1, 0), "c is {state}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_backend_drained_or_removed_during_a_slow_body_is_not_chosen() {
    for is_removed in [false, true] {
        let [a, b] = Origin::several(["a", "b"]).await;
        let balancer = Balancer::start(Config::of([&a, &b])).await;
        let mut wire = balancer.connect().await;
        wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo").await;
        // The exchange begins with its head, which is not visible from outside.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        if is_removed {
            balancer.change("DELETE", &backend_path(&a), None).await;
        } else {
            balancer.patch(&a, json!({ "state": "draining" })).await;
        }
        wire.send("dy").await;
        assert_eq!(wire.reply().await.origin(), "b", "removed: {is_removed}");
        assert_eq!(a.heads(), 0);
    }
}

#[tokio::test]
async fn every_algorithm_retries_on_another_backend() {
    for algorithm in ["round-robin", "weighted", "least-connections", "ip-hash"] {
        let [a, b, c] = Origin::several(["a", "b", "c"]).await;
        let config = Config::of([&a, &b, &c]).app(|pool| pool.without_ejection().algorithm(algorithm));
        let balancer = Balancer::start(config).await;
        a.stop().await;
        b.stop().await;
        assert_eq!(balancer.origins_of(8).await, vec!["c"; 8], "{algorithm}");
    }
}

#[tokio::test]
async fn a_request_whose_response_has_begun_is_not_retried() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()), Step::Reset]);
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    let reply = balancer.get("/").await;
    assert_eq!((reply.status, reply.end), (200, tests::End::CutOff));
    assert_eq!(b.heads(), 0);
}

#[tokio::test]
async fn error_statuses_of_a_backend_are_not_retried() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    for status in [500, 502, 503, 504] {
        let reply = balancer.get(&format!("/status/{status}")).await;
        assert_eq!(reply.status, status);
        reply.origin();
    }
    assert_eq!(a.heads() + b.heads(), 4);
}

#[tokio::test]
async fn a_stale_connection_costs_no_request() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    for _ in 0..10 {
        assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        a.stop().await;
        a.restart();
    }
}

// Each attempt used another stale connection, up to 32.
#[tokio::test]
async fn any_number_of_stale_connections_costs_no_request() {
    const COUNT: usize = 40;
    let port = Port::reserve();
    let (listener, barrier) = (port.listen(), Arc::new(Barrier::new(COUNT)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let barrier = Arc::clone(&barrier);
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                let request = wire.request_head().await?;
                if request.is_some_and(|request| request.target == "/at-once") {
                    barrier.wait().await;
                }
                wire.stream.write_all(&response(200, &[], "here")).await?;
                // The next request meets the end of the connection.
                if wire.request_head().await?.is_some() {
                    wire.reset();
                }
                std::io::Result::Ok(())
            });
        }
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "");
    let balancer = Balancer::start(Config::default().server("threads = 1").pool(pool)).await;
    let asking = (0..COUNT).map(|_| balancer.get("/at-once"));
    for reply in futures_util::future::join_all(asking).await {
        assert_eq!(reply.status, 200);
    }
    balancer.until_idle().await;
    assert_eq!(balancer.get("/next").await.text(), "here");
}

// A backend that crashed on requests over kept connections was never blamed: no log line, no failure counted.
#[tokio::test]
async fn a_backend_that_breaks_off_long_after_it_was_given_the_request_has_failed() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.method.as_str() {
        // So much later that it cannot be the end of an idle connection.
        "POST" => vec![Step::Wait(Duration::from_millis(1500)), Step::Reset],
        _ => vec![Step::Send(response(200, &[], "here"))],
    });
    let balancer = Balancer::start(Config::of([&a]).server("threads = 1")).await;
    assert_eq!(balancer.get("/").await.status, 200);
    balancer.until_idle().await;
    let reply = balancer.send(&Request::post("/", "once")).await;
    assert_eq!((reply.status, a.connections()), (502, 1), "on the connection of before");
    let metrics = balancer.metrics().await;
    assert_eq!(metrics.sum("evenkeel_backend_failures_total", &[("kind", "closed")]), 1.0);
}

// Each attempt met another idle connection: six requests for one.
#[tokio::test]
async fn a_request_that_fails_its_backends_at_once_meets_one_stale_connection_at_most() {
    let backends = Origin::several(["a", "b", "c"]).await;
    for backend in &backends {
        backend.answer(|request| match request.target.as_str() {
            "/fails" => vec![Step::Reset],
            _ => vec![Step::Send(response(200, &[], "here"))],
        });
    }
    let balancer =
        Balancer::start(Config::of(&backends).server("threads = 1").app(|pool| pool.without_ejection())).await;
    for _ in 0..3 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    balancer.until_idle().await;
    let before: u64 = backends.iter().map(Origin::heads).sum();
    assert_eq!(balancer.get("/fails").await.status, 502);
    let after: u64 = backends.iter().map(Origin::heads).sum();
    assert_eq!(after - before, 4, "three attempts, and the one on an idle connection");
}

#[tokio::test]
async fn nothing_of_an_abandoned_response_reaches_the_client() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let malformed = b"HTTP/1.1 200 OK\r\nX-From: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwrong\r\nno size\r\n";
    a.answer(|_| vec![Step::Send(malformed.to_vec()), Step::Hang]);
    // The interim response is sent before the final one is known.
    let early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright";
    b.answer(|_| vec![Step::Send(early.to_vec())]);
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.without_ejection())).await;
    for _ in 0..2 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/").with("Connection", "close").to_bytes()).await;
        let (all, _) = wire.rest().await;
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(all.starts_with("HTTP/1.1 103") && all.ends_with("right"), "{all}");
        assert!(!all.contains("X-From") && !all.contains("wrong"), "{all}");
    }
}
