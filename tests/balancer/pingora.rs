//! What applies in `evenkeel run` and has to be done separately in Pingora's proxy (docs/pingora.md).

use tests::{Balancer, Config, Origin, Request, eventually};

#[tokio::test]
async fn requests_are_held_to_the_limits_of_their_listener() {
    let a = Origin::start("a").await;
    let limits = "max_request_line_bytes = 300\nmax_head_bytes = 1000\nmax_fields = 20";
    let balancer = Balancer::start(Config::of([&a]).listener(limits)).await;
    let long = |bytes| Request::get(&format!("/{}", "x".repeat(bytes)));
    let large = |bytes| Request::get("/").with("X-Large", &"x".repeat(bytes));
    let many = |fields| (0..fields).fold(Request::get("/"), |request, n| request.with(&format!("X-{n}"), "1"));
    for (request, status) in
        [(long(250), 200), (long(300), 414), (large(800), 200), (large(1000), 431), (many(15), 200), (many(20), 431)]
    {
        assert_eq!(balancer.send(&request).await.status, status, "{request:?}");
    }
    for (kind, times) in [("target-too-long", 1.0), ("fields-too-large", 2.0)] {
        let counted =
            async || balancer.metrics().await.sum("evenkeel_client_failures_total", &[("kind", kind)]) == times;
        eventually(&format!("{kind} is counted"), counted).await;
    }
}

#[tokio::test]
async fn targets_with_bytes_above_ascii_are_refused_or_forwarded() {
    let a = Origin::start("a").await;
    for (rule, status) in [("reject", 400), ("pass", 200)] {
        let config = Config::of([&a]).listener(&format!("non_ascii_targets = \"{rule}\""));
        let balancer = Balancer::start(config).await;
        let mut wire = balancer.connect().await;
        wire.send("GET /caf\u{e9}?x=\u{fc} HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, status, "{rule}");
    }
    assert_eq!(a.last_request().target.as_bytes(), "/caf\u{e9}?x=\u{fc}".as_bytes());
}
