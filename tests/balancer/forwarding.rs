//! What reaches the backend and what comes back: everything that concerns client and backend, unchanged, and nothing
//! that concerns only the connection.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tests::http2::{self, Http2};
use tests::origin::sha256;
use tests::wire::{Fields, chunked};
use tests::{
    Balancer, Config, End, Link, Origin, Pool, Port, Request, Step, WebSocket, Wire, eventually, response, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TRUSTING: &str = "trusted_proxies = [\"127.0.0.1/32\"]";

#[tokio::test]
async fn method_target_host_fields_and_body_are_forwarded_unchanged() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let request = Request::post("/path/%E2%82%AC/a%2Fb;c=d?q=1&q=2+%26?x", "a body")
        .with("Host", "Shop.Example:8443")
        .with("Cookie", "a=b; c=d")
        .with("Authorization", "Basic eDp5")
        .with("X-Repeated", "one")
        .with("X-Repeated", "two")
        .with("X-Empty", "");
    assert_eq!(balancer.send(&request).await.status, 200);
    let seen = a.last_request();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", request.target.as_str()));
    assert_eq!(seen.version, "HTTP/1.1");
    assert_eq!(seen.body, b"a body");
    for (name, value) in [
        ("host", "Shop.Example:8443"),
        ("cookie", "a=b; c=d"),
        ("authorization", "Basic eDp5"),
        ("x-empty", ""),
        ("content-length", "6"),
    ] {
        assert_eq!(seen.field(name), Some(value), "{name}");
    }
    assert_eq!(seen.fields.all("x-repeated"), ["one", "two"]);
}

#[tokio::test]
async fn extension_methods_are_forwarded() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PURGE"] {
        let reply = balancer.send(&Request::new(method, "/thing")).await;
        assert_eq!(reply.status, 200, "{method}");
        assert_eq!(a.last_request().method, method);
    }
}

#[tokio::test]
async fn forwarding_fields_are_rebuilt_with_the_client() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = Wire::connect_from([127, 0, 0, 9].into(), balancer.address()).await;
    wire.exchange(&Request::get("/").with("Host", "shop.example:81")).await;
    assert_client_is(&a.last_request(), "127.0.0.9", "shop.example:81");
}

#[tokio::test]
async fn forwarding_fields_of_untrusted_clients_are_ignored() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("trusted_proxies = [\"10.0.0.0/8\"]")).await;
    let lies = Request::get("/")
        .with("Host", "shop.example")
        .with("X-Forwarded-For", "1.2.3.4")
        .with("X-Forwarded-Proto", "https")
        .with("X-Forwarded-Host", "bank.example")
        .with("X-Forwarded-Port", "1")
        .with("X-Real-IP", "1.2.3.4")
        .with("Forwarded", "for=1.2.3.4;proto=https;host=bank.example");
    balancer.send(&lies).await;
    let seen = a.last_request();
    assert_client_is(&seen, "127.0.0.1", "shop.example");
    let text = seen.fields.to_string();
    assert!(!text.contains("1.2.3.4") && !text.contains("bank.example"), "{text}");
}

#[tokio::test]
async fn forwarding_fields_of_trusted_proxies_are_extended() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server(TRUSTING)).await;
    let request = Request::get("/")
        .with("Host", "inner.example")
        .with("X-Forwarded-For", "203.0.113.7, 198.51.100.2")
        .with("X-Forwarded-Proto", "https")
        .with("X-Forwarded-Host", "shop.example");
    balancer.send(&request).await;
    let seen = a.last_request();
    assert_eq!(seen.field("x-forwarded-for"), Some("203.0.113.7, 198.51.100.2, 127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("x-forwarded-host"), Some("shop.example"));

    // The same client at an address outside the trusted networks.
    let mut stranger = Wire::connect_from([127, 0, 0, 2].into(), balancer.address()).await;
    stranger.exchange(&request).await;
    assert_eq!(a.last_request().field("x-forwarded-for"), Some("127.0.0.2"));
}

/// Most proxies forward a `Forwarded` that their client made up.
#[tokio::test]
async fn one_family_of_forwarding_fields_is_trusted_and_the_other_rebuilt() {
    let a = Origin::start("a").await;
    let believing = |family: &str| format!("{TRUSTING}\nforwarded_by = \"{family}\"");
    let request = Request::get("/")
        .with("Host", "inner.example")
        .with("X-Forwarded-For", "\u{e9}, 203.0.113.7")
        .with("X-Forwarded-Proto", "https")
        .with("X-Forwarded-Host", "shop.example:8443")
        .with("X-Forwarded-Prefix", "/shop")
        .with("X-Forwarded-Server", "proxy")
        .with("Forwarded", "for=198.51.100.9;host=other.example;proto=http");
    let sticky = |pool: Pool| pool.sticky("secure = \"auto\"");
    let balancer = Balancer::start(Config::of([&a]).server(&believing("x-forwarded")).app(sticky)).await;
    let reply = balancer.send(&request).await;
    let seen = a.last_request();
    assert!(reply.set_cookie("ROUTEID").expect("a cookie").ends_with("; Secure"));
    for (name, value) in [
        ("x-forwarded-for", "unknown, 203.0.113.7, 127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example:8443"),
        ("x-forwarded-port", "8443"),
        ("x-forwarded-prefix", "/shop"),
        ("x-forwarded-server", "proxy"),
        ("x-real-ip", "203.0.113.7"),
        ("forwarded", "for=203.0.113.7;host=\"shop.example:8443\";proto=https, for=127.0.0.1"),
        ("host", "inner.example"),
    ] {
        assert_eq!(seen.field(name), Some(value), "{name}");
    }

    let balancer = Balancer::start(Config::of([&a]).server(&believing("forwarded")).app(sticky)).await;
    let reply = balancer.send(&request).await;
    let seen = a.last_request();
    assert!(!reply.set_cookie("ROUTEID").expect("a cookie").contains("Secure"));
    for (name, value) in [
        ("x-forwarded-for", Some("198.51.100.9, 127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("other.example")),
        ("x-forwarded-port", Some("80")),
        ("x-forwarded-prefix", None),
        ("x-forwarded-server", None),
        ("x-real-ip", Some("198.51.100.9")),
        (
            "forwarded",
            Some("for=198.51.100.9;host=other.example;proto=http, for=127.0.0.1;host=inner.example;proto=http"),
        ),
        ("host", Some("inner.example")),
    ] {
        assert_eq!(seen.field(name), value, "{name}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_are_not_forwarded() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let request = Request::get("/")
        .with("Connection", "keep-alive, X-Private, close")
        .with("Keep-Alive", "timeout=5")
        .with("X-Private", "hop")
        .with("X-Public", "end")
        .with("Proxy-Connection", "keep-alive")
        .with("Proxy-Authorization", "Basic eDp5")
        .with("TE", "trailers")
        .with("Upgrade", "something");
    balancer.send(&request).await;
    let seen = a.last_request();
    assert_eq!(seen.field("x-public"), Some("end"));
    for name in ["keep-alive", "x-private", "proxy-connection", "upgrade"] {
        assert_eq!(seen.fields.all(name), [""; 0], "{name}");
    }

    a.answer_with(response(
        200,
        &[("Connection", "X-Private"), ("X-Private", "hop"), ("Keep-Alive", "timeout=5"), ("X-Public", "end")],
        "body",
    ));
    let reply = balancer.get("/").await;
    assert_eq!((reply.field("x-public"), reply.text().as_str()), (Some("end"), "body"));
    assert_eq!((reply.field("x-private"), reply.field("keep-alive")), (None, None));
}

#[tokio::test]
async fn every_request_has_an_id_and_a_trusted_proxys_own_is_kept() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    // The balancer's id replaces that of the response.
    a.answer_with(response(200, &[("X-Request-Id", "the-backends")], "body"));
    let mut made = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let reply = balancer.get("/").await;
        let id = a.last_request().field("x-request-id").expect("an id").to_owned();
        assert_eq!(reply.fields.all("x-request-id"), [&id], "the client is told the same");
        assert!(id.len() >= 16 && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
        made.insert(id);
    }
    assert_eq!(made.len(), 10, "each its own");
    let own = Request::get("/").with("X-Request-Id", "7f3a-client");
    balancer.send(&own).await;
    assert_ne!(a.last_request().field("x-request-id"), Some("7f3a-client"), "anybody could say so");
    let balancer = Balancer::start(Config::of([&a]).server(TRUSTING)).await;
    let reply = balancer.send(&own).await;
    assert_eq!(a.last_request().field("x-request-id"), Some("7f3a-client"));
    assert_eq!(reply.field("x-request-id"), Some("7f3a-client"));

    let named = format!("{TRUSTING}\nrequest_id = \"X-Trace\"");
    let balancer = Balancer::start(Config::of([&a]).server(&named)).await;
    let reply = balancer.send(&own.clone().with("X-Trace", "traced")).await;
    assert_eq!((reply.field("x-trace"), reply.field("x-request-id")), (Some("traced"), Some("the-backends")));
    let seen = a.last_request();
    assert_eq!((seen.field("x-trace"), seen.field("x-request-id")), (Some("traced"), Some("7f3a-client")));
    let balancer = Balancer::start(Config::of([&a]).server("request_id = \"\"")).await;
    let reply = balancer.get("/").await;
    assert_eq!((reply.field("x-request-id"), a.last_request().field("x-request-id")), (Some("the-backends"), None));
}

#[tokio::test]
async fn a_websocket_response_has_the_request_id_and_the_sticky_cookie() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.sticky(""))).await;
    let mut wire = balancer.connect().await;
    let upgrade = Request::get("/socket")
        .with("Connection", "Upgrade")
        .with("Upgrade", "websocket")
        .with("Sec-WebSocket-Version", "13")
        .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    wire.send(upgrade.to_bytes()).await;
    let reply = wire.reply_head().await;
    assert_eq!((reply.status, reply.fields.all("x-request-id").len()), (101, 1));
    assert!(reply.field("set-cookie").is_some());
    let reply = balancer.get("/").await;
    assert_eq!((reply.fields.all("x-request-id").len(), reply.fields.all("set-cookie").len()), (1, 1));
}

#[tokio::test]
async fn a_forwarding_loop_is_answered_508() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let others = ["one.example; v=\"a,b\"", "evenkeel-0123456789abcdef"];
    let request = Request::get("/").with("CDN-Loop", others[0]).with("CDN-Loop", others[1]);
    assert_eq!(balancer.send(&request).await.status, 200);
    let fields = a.last_request().fields.all("cdn-loop").iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(fields.len() == 3 && fields[..2] == others && fields[2].starts_with("evenkeel-"), "{fields:?}");
    assert_ne!(fields[2], others[1]);
    // Whatever else is in the list, and over whichever connection.
    for list in [fields[2].clone(), format!("x, {};y=z", fields[2])] {
        let reply = balancer.send(&Request::get("/").with("CDN-Loop", &list)).await;
        assert_eq!((reply.status, a.heads()), (508, 1), "{list}: {}", reply.text());
    }
    let stripped = Request::get("/").with("Connection", "CDN-Loop").with("CDN-Loop", &fields[2]);
    assert_eq!(balancer.send(&stripped).await.status, 400, "nobody takes it away");

    // A pool that leads back to this balancer by another address: the loop ends after one round.
    let mut looping = Balancer::prepare(&Config::of([&b]));
    let link = Link::to(looping.address());
    looping.configure(
        &Config::default().pool(Pool::empty("app").backend(&link.address().to_string(), "")).route("", "/", "app"),
    );
    looping.launch();
    looping.ready().await;
    assert_eq!(looping.get("/").await.status, 508);
    // A refusal is counted once it has been sent, so the test may get here before that.
    eventually("the refusal is counted", async || {
        looping.metrics().await.sum("evenkeel_refusals_total", &[("reason", "loop")]) == 1.0
    })
    .await;
    assert_eq!(looping.metrics().await.sum("evenkeel_backend_attempts_total", &[]), 1.0);
    looping.logs(&["WARN a request came back to this balancer: one of its backends leads here host="]).await;

    // Two tiers are not a loop.
    let inner = Balancer::start(Config::of([&b])).await;
    let tier = Pool::empty("app").backend(&inner.address().to_string(), "");
    let outer = Balancer::start(Config::default().pool(tier).route("", "/", "app")).await;
    assert_eq!(outer.get("/").await.origin(), "b");
    assert_eq!(b.last_request().fields.all("cdn-loop").len(), 2);
}

#[tokio::test]
async fn routes_match_by_host_and_longest_path() {
    let [a, b, c, d] = Origin::several(["a", "b", "c", "d"]).await;
    let config = Config::default()
        .pool(Pool::of("a", [&a]))
        .pool(Pool::of("b", [&b]))
        .pool(Pool::of("c", [&c]))
        .pool(Pool::of("d", [&d]))
        .route("", "/", "a")
        .route("", "/api", "b")
        .route("shop.example", "/", "c")
        .route("*.shop.example", "/", "d");
    let balancer = Balancer::start(config).await;
    for (host, target, origin) in [
        ("any.example", "/", "a"),
        ("any.example", "/apix", "a"),
        ("any.example", "/api", "b"),
        ("any.example", "/api?x=/", "b"),
        ("any.example", "/api/v1/things", "b"),
        ("shop.example", "/", "c"),
        ("SHOP.example:8888", "/api", "c"),
        ("www.shop.example", "/api", "d"),
        ("a.b.shop.example", "/", "d"),
        ("workshop.example", "/", "a"),
        ("127.0.0.1:80", "/", "a"),
        ("[::1]:80", "/api", "b"),
    ] {
        let reply = balancer.send(&Request::get(target).with("Host", host)).await;
        assert_eq!(reply.origin(), origin, "{host} {target}");
    }
}

#[tokio::test]
async fn ambiguous_field_names_are_handled_as_configured() {
    let a = Origin::start("a").await;
    let request = Request::get("/").with("X_Forwarded.For", "6.6.6.6").with("My_Field", "1").with("!~|", "2");
    for (rule, status, mine) in [("drop", 200, None), ("pass", 200, Some("1")), ("reject", 400, None)] {
        let listener = format!("ambiguous_names = \"{rule}\"\n{}", http2::tls());
        let plain = Balancer::start(Config::of([&a]).listener(&format!("ambiguous_names = \"{rule}\""))).await;
        assert_eq!(plain.send(&request).await.status, status, "{rule}");
        let tls = Balancer::start(Config::of([&a]).listener(&listener)).await;
        let fields = [("x_forwarded.for", "6.6.6.6"), ("my_field", "1"), ("!~|", "2")];
        let mut client = Http2::connect(tls.address()).await;
        let (answer, _) = client.begin(http2::request("GET", "/", &fields), true).await;
        assert_eq!(http2::reply(answer).await.expect("a response").status, status, "{rule} by HTTP/2");
        for seen in a.requests().iter().rev().take(2).filter(|_| status == 200) {
            assert_eq!(seen.field("x_forwarded.for"), None, "{rule}");
            assert_eq!((seen.field("my_field"), seen.field("!~|")), (mine, Some("2")), "{rule}");
        }
    }
    assert_eq!(a.requests().len(), 4);
}

/// RFC 9110 §6.6.1.
#[tokio::test]
async fn a_response_without_a_date_gets_one() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer_with(response(200, &[("Date", "the origin's")], ""));
    assert_eq!(balancer.get("/").await.field("date"), Some("the origin's"));
    a.answer_with(response(200, &[], ""));
    let reply = balancer.get("/").await;
    let date = reply.field("date").expect("a date");
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
}

#[tokio::test]
async fn responses_without_content_have_no_body() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    let head = wire.exchange(&Request::new("HEAD", "/")).await;
    assert!(head.field("content-length").is_some_and(|length| length != "0"), "{head:?}");
    assert_eq!((head.status, head.body.len()), (200, 0));

    a.answer_with("HTTP/1.1 204 No Content\r\nX-Kept: yes\r\n\r\n");
    let reply = wire.exchange(&Request::get("/")).await;
    assert_eq!((reply.status, reply.field("x-kept")), (204, Some("yes")));
    assert_eq!((reply.field("content-length"), reply.field("transfer-encoding")), (None, None));

    a.answer_with("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1234\r\n\r\n");
    let reply = wire.exchange(&Request::get("/")).await;
    assert_eq!((reply.status, reply.field("etag")), (304, Some("\"x\"")));

    a.answer_with(response(200, &[], ""));
    let reply = wire.exchange(&Request::get("/")).await;
    assert_eq!((reply.status, reply.field("content-length")), (200, Some("0")), "the connection was in step all along");
}

#[tokio::test]
async fn chunked_bodies_pass_in_both_directions() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let body = pattern(12_345);
    let request = Request::put("/", body.clone()).with("Transfer-Encoding", "chunked");
    let mut wire = balancer.connect().await;
    let reply = wire.exchange(&request).await;
    assert_eq!(reply.json()["body_sha256"], sha256(&body));

    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    bytes.extend(chunked(&body));
    a.answer_with(bytes);
    let reply = wire.exchange(&Request::get("/")).await;
    assert_eq!((reply.end, sha256(&reply.body)), (End::Complete, sha256(&body)));
}

#[tokio::test]
async fn a_response_delimited_by_close_is_reframed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\n\r\nuntil the end".to_vec()), Step::Close]);
    let reply = balancer.get("/").await;
    assert_eq!((reply.end, reply.text().as_str()), (End::Complete, "until the end"));
}

#[tokio::test]
async fn a_response_streams_as_it_comes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer(|_| {
        vec![
            Step::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n".to_vec()),
            Step::Hold,
            Step::Send(b"6\r\nsecond\r\n0\r\n\r\n".to_vec()),
        ]
    });
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").with("Connection", "close").to_bytes()).await;
    assert_eq!(wire.reply_head().await.status, 200);
    // The first chunk arrives although the origin sends the second only when told to.
    within("the first chunk", async {
        while !String::from_utf8_lossy(&wire.buffer).contains("first") {
            assert_ne!(wire.stream.read_buf(&mut wire.buffer).await.expect("an open connection"), 0);
        }
    })
    .await;
    a.release();
    let (rest, _) = wire.rest().await;
    assert!(String::from_utf8_lossy(&rest).contains("second"));
}

#[tokio::test]
async fn large_bodies_arrive_intact_in_both_directions() {
    const LENGTH: usize = 50_000_000;
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let body = pattern(LENGTH);
    let hash = sha256(&body);
    let mut wire = balancer.connect().await;

    let upload = Request::post("/", body.clone());
    assert_eq!(wire.exchange(&upload).await.json()["body_sha256"], hash.as_str(), "with a length");
    let upload = upload.with("Transfer-Encoding", "chunked");
    assert_eq!(wire.exchange(&upload).await.json()["body_sha256"], hash.as_str(), "in chunks");

    a.answer_with(response(200, &[], &body));
    let download = wire.exchange(&Request::get("/")).await;
    assert_eq!((download.end, sha256(&download.body)), (End::Complete, hash));
    balancer.until_idle().await;
}

#[tokio::test]
async fn an_expectation_is_answered_before_the_body() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(wire.reply_head().await.status, 100);
    wire.send("hello").await;
    assert_eq!(wire.reply().await.json()["body"], "hello");
}

#[tokio::test]
async fn connections_to_the_backend_are_reused() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for _ in 0..20 {
        assert_eq!(balancer.get("/").await.status, 200);
        balancer.until_idle().await;
    }
    assert!(a.connections() <= 2, "{} connections for 20 requests", a.connections());
}

#[tokio::test]
async fn one_client_connection_takes_many_requests() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b])).await;
    assert_eq!(balancer.origins_of(100).await.len(), 100);
}

#[tokio::test]
async fn a_tunnel_counts_as_in_flight_until_its_end() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut first = WebSocket::open(balancer.address(), "/socket").await;
    let mut second = WebSocket::open(balancer.address(), "/socket").await;
    assert_eq!(first.origin, "a");
    for number in 0..100 {
        first.echo(&format!("message {number}")).await;
    }
    second.echo(&"x".repeat(100_000)).await;
    assert_eq!(balancer.in_flight().await, 2);
    first.close().await;
    eventually("the closed tunnel is no longer counted", async || balancer.in_flight().await == 1).await;
    second.echo("still here").await;
    second.vanish();
    balancer.until_idle().await;
    eventually("the origin's side is closed too", async || a.open_connections() == 0).await;
}

#[tokio::test]
async fn a_tunnel_ends_when_the_backend_closes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("hello").await;
    a.stop().await;
    socket.ended().await;
    balancer.until_idle().await;
}

// It was noticed only at `tunnel_timeout`.
#[tokio::test]
async fn a_tunnel_with_a_stalled_backend_ends_when_its_client_closes() {
    let port = Port::reserve();
    let listener = port.listen_with_small_buffers();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                wire.request_head().await?;
                let head = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                wire.stream.write_all(head.as_bytes()).await?;
                std::future::pending::<std::io::Result<()>>().await
            });
        }
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut wire = balancer.connect().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
    wire.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{upgrade}\r\nSec-WebSocket-Key: eA==\r\n\r\n")).await;
    assert_eq!(wire.reply_head().await.status, 101);
    // More than all buffers on the way hold.
    let all = wire.stream.write_all(&[b'x'; 40_000_000]);
    assert!(tokio::time::timeout(Duration::from_secs(2), all).await.is_err(), "nobody reads");
    assert_eq!(balancer.in_flight().await, 1);
    wire.reset();
    balancer.until_idle().await;
}

#[tokio::test]
async fn an_idle_tunnel_times_out() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.set("tunnel_timeout = \"1s\""))).await;
    let mut socket = WebSocket::open(balancer.address(), "/socket").await;
    socket.echo("hello").await;
    socket.ended().await;
    balancer.until_idle().await;
    eventually("the origin's side is closed too", async || a.open_connections() == 0).await;
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_response() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer_with(response(426, &[("X-Why", "no")], "not here"));
    let request = Request::get("/socket")
        .with("Connection", "Upgrade")
        .with("Upgrade", "websocket")
        .with("Sec-WebSocket-Version", "13")
        .with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let mut wire = balancer.connect().await;
    let reply = wire.exchange(&request).await;
    assert_eq!((reply.status, reply.field("x-why"), reply.text().as_str()), (426, Some("no"), "not here"));
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_client_that_disconnects_frees_its_backend() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for leave_by_reset in [true, false] {
        let before = a.abandoned();
        let mut wires = Vec::new();
        for _ in 0..5 {
            wires.push(held(balancer.address()).await);
        }
        eventually("all requests arrived", async || balancer.in_flight().await == 5).await;
        for wire in wires {
            if leave_by_reset {
                wire.reset();
            }
        }
        balancer.until_idle().await;
        eventually("the origin was told", async || a.abandoned() == before + 5).await;
    }
}

#[tokio::test]
async fn a_client_that_disconnects_within_its_body_frees_its_backend() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf").await;
    eventually("the head arrived", async || a.heads() == 1).await;
    wire.reset();
    balancer.until_idle().await;
    assert!(a.requests().is_empty(), "half a request is none");
    let backend = balancer.backend(&a).await;
    assert_eq!(backend["failures"], 0, "the client's fault, not the backend's");
}

#[tokio::test]
async fn a_client_that_disconnects_within_the_response_frees_its_backend() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let body = pattern(30_000_000);
    a.answer_with(response(200, &[], &body));
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    assert_eq!(wire.reply_head().await.status, 200);
    wire.reset();
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

async fn held(address: SocketAddr) -> Wire {
    let mut wire = Wire::connect(address).await;
    wire.send(Request::get("/hold").to_bytes()).await;
    wire
}

/// Bytes without a period near a power of two, so that a lost or doubled block is noticed.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8 ^ (i / 65_521) as u8).collect()
}

fn assert_client_is(seen: &Request, client: &str, host: &str) {
    assert_eq!(seen.field("x-forwarded-for"), Some(client));
    assert_eq!(seen.field("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.field("x-forwarded-host"), Some(host));
    let forwarded = forwarded(&seen.fields);
    let parameters: Vec<_> = forwarded.split(';').map(|pair| pair.trim().replace('"', "")).collect();
    for expected in [format!("for={client}"), "proto=http".to_owned(), format!("host={host}")] {
        assert!(parameters.contains(&expected), "{expected} in {forwarded}");
    }
}

/// The only element of the Forwarded field (RFC 7239).
fn forwarded(fields: &Fields) -> String {
    let value = fields.get("forwarded").unwrap_or_else(|| panic!("no Forwarded in {fields}"));
    assert!(!value.contains(','), "one hop: {value}");
    value.to_owned()
}

#[tokio::test]
async fn the_test_origin_reports_requests_faithfully() {
    // The harness itself, without a balancer.
    let a = Origin::start("a").await;
    let reply = Wire::connect(a.address()).await.exchange(&Request::post("/x?y", "body")).await;
    let Value::Object(seen) = reply.json() else { panic!("{}", reply.text()) };
    assert_eq!((&seen["method"], &seen["target"], &seen["body"]), (&"POST".into(), &"/x?y".into(), &"body".into()));
}

#[tokio::test]
async fn via_is_sent_where_it_is_configured() {
    let a = Origin::start("a").await;
    let fred = Request::get("/").with("Via", "1.0 fred");
    let balancer = Balancer::start(Config::of([&a])).await;
    balancer.send(&Request::get("/")).await;
    assert_eq!(a.last_request().field("via"), None);
    balancer.send(&fred).await;
    assert_eq!(a.last_request().fields.all("via"), ["1.0 fred"]);

    let config = Config::of([&a]).server("via = \"edge-1\"");
    let balancer = Balancer::start(config.clone()).await;
    balancer.send(&fred).await;
    assert_eq!(a.last_request().fields.all("via"), ["1.0 fred", "1.1 edge-1"]);
    let mut old = Request::get("/");
    old.version = "HTTP/1.0".to_owned();
    balancer.send(&old).await;
    assert_eq!(a.last_request().field("via"), Some("1.0 edge-1"));
    let balancer = Balancer::start(config.listener(&http2::tls())).await;
    assert_eq!(Http2::connect(balancer.address()).await.get("/").await.status, 200);
    assert_eq!(a.last_request().field("via"), Some("2.0 edge-1"));
}
