//! The access logs of sites and routes: which requests have a line, in which file, and what it says.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::http2::{self, Http2};
use tests::{Balancer, Config, Origin, Port, Request, eventually, found_eventually, response};

/// A site for every host. `lines` end with its routes.
fn config(origin: &Origin, lines: &str) -> Config {
    Config::of([origin]).sites(&format!("[[site]]\nname = \"shop\"\nhosts = [\"\"]\n{lines}"))
}

#[tokio::test]
async fn a_line_of_ones_own_tells_what_each_phase_knew() {
    let a = Origin::start("a").await;
    a.answer_with(response(201, &[("X-Kind", "book"), ("Server", "secret")], "four"));
    let lines = "response_headers = { set = { X-Sent = \"$route\" }, remove = [\"Server\"] }\n\
        [[site.route]]\nname = \"items\"\nregex = '^/items/(?<id>[0-9]+)$'\npool = \"app\"\n\
        rewrite = { to = \"/v1/$id?$args\" }\n\
        access_log = { file = \"own.log\", format = '$remote_addr $request_method $request_uri $host $http_x_tag $arg_q \
        $cookie_c $1 $id $uri [$args] $site $route $pool $status $upstream_status $upstream_addr $upstream_http_x_kind \
        $upstream_http_server $sent_http_x_sent $sent_http_server $attempts $failure $body_bytes_sent $server_protocol \
        $scheme $$ $http_none' }\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    let request =
        Request::get("/items/17?q=x").with("Host", "Shop.Example").with("X-Tag", "tag").with("Cookie", "b=1; c=crumb");
    let reply = balancer.send(&request).await;
    assert_eq!((reply.status, a.last_request().target.as_str()), (201, "/v1/17?q=x"));
    let expected = format!(
        "127.0.0.1 GET /items/17?q=x shop.example tag x crumb 17 17 /items/17 [q=x] shop items app 201 201 {} book secret \
         items - 1 - 4 HTTP/1.1 http $ -",
        a.address()
    );
    assert_eq!(balancer.lines("own.log", 1).await, [expected]);
}

#[tokio::test]
async fn a_request_has_a_line_in_each_log_that_takes_it() {
    let a = Origin::start("a").await;
    let lines = "access_log = { file = \"all.json\", format = \"json\" }\n\
        [[site.route]]\npath = \"/\"\nrespond = { body = \"fine\" }\n\
        access_log = [{ keep_outer = true, file = \"combined.log\", format = \"combined\" }, \
        { file = \"errors.log\", format = \"error $uri\", when = { status = \"400-599\" }, or_share = 0 }, \
        { file = \"api.log\", format = \"api $uri\", when = { query = { key = \"~^a\" }, methods = [\"GET\"] } }, \
        { file = \"both.log\", format = \"in $uri\", when = { status = \"200\" } }, \
        { file = \"both.log\", format = \"out $uri\", when = { status = \"404\" }, or_share = 1.0 }, \
        { file = \"none.log\", format = \"$uri\", share = 0 }, \
        { file = \"others.log\", format = \"$uri\", when = { status = \"404\" }, share = 0, or_share = 1.0 }]\n\
        [[site.route]]\npath = \"/lost\"\nrespond = { status = 404 }\n\
        access_log = [{ file = \"errors.log\", format = \"error $uri\", when = { status = \"400-599\" } }]\n";
    let balancer = Balancer::start(config(&a, lines)).await;
    // Lines of one connection are in order.
    let mut wire = balancer.connect().await;
    for target in ["/1?key=abc", "/2?key=b", "/lost"] {
        wire.exchange(&Request::get(target).with("User-Agent", "\"me\"")).await;
    }
    wire.exchange(&Request::post("/3?key=a", "body")).await;
    let json = balancer.lines("all.json", 3).await;
    let first: Value = serde_json::from_str(&json[0]).expect("JSON");
    for (field, value) in [
        ("target", json!("/1?key=abc")),
        ("status", json!(200)),
        ("bytes", json!(4)),
        ("user_agent", json!("\"me\"")),
        ("pool", Value::Null),
    ] {
        assert_eq!(first[field], value, "{field} in {first}");
    }
    let combined = balancer.lines("combined.log", 3).await;
    assert!(combined[0].ends_with("\"GET /1?key=abc HTTP/1.1\" 200 4 \"-\" \"\\x22me\\x22\""), "{}", combined[0]);
    assert_eq!(balancer.lines("api.log", 1).await, ["api /1"]);
    assert_eq!(balancer.lines("errors.log", 1).await, ["error /lost"]);
    assert_eq!(balancer.lines("both.log", 6).await, ["in /1", "out /1", "in /2", "out /2", "in /3", "out /3"]);
    assert_eq!(balancer.lines("others.log", 3).await, ["/1", "/2", "/3"]);
    assert_eq!(balancer.lines("none.log", 0).await, [""; 0]);
}

/// Half of the requests, and those of a status all: the bounds are ten standard deviations away.
#[tokio::test]
async fn a_share_of_the_requests_is_logged() {
    let a = Origin::start("a").await;
    let lines = "[[site.route]]\npath = \"/\"\nrespond = { status = 204 }\n\
        access_log = [{ file = \"half.log\", format = \"$uri\", share = 0.5 }, \
        { file = \"errors.log\", format = \"$status\", when = { status = \"500-599\" }, or_share = 0.25 }, \
        { file = \"all.log\", format = \"$uri\" }]\n";
    let mut balancer = Balancer::start(config(&a, lines)).await;
    let mut wire = balancer.connect().await;
    for _ in 0..1000 {
        wire.exchange(&Request::get("/x")).await;
    }
    balancer.stop().await;
    let count = |file| fs::read_to_string(balancer.file(file)).expect("a log").lines().count();
    assert_eq!(count("all.log"), 1000);
    assert!((342..=658).contains(&count("half.log")), "{}", count("half.log"));
    assert!((113..=387).contains(&count("errors.log")), "{}", count("errors.log"));
}

#[tokio::test]
async fn files_are_opened_again_on_sigusr1_and_by_a_reload() {
    let a = Origin::start("a").await;
    let of = |file: &str| {
        config(
            &a,
            &format!(
                "access_log = {{ file = \"{file}\", format = \"$uri\" }}\n[[site.route]]\npath = \"/\"\npool = \"app\"\n"
            ),
        )
    };
    let mut balancer = Balancer::start(of("one.log")).await;
    balancer.get("/first").await;
    balancer.lines("one.log", 1).await;
    fs::rename(balancer.file("one.log"), balancer.file("one.log.1")).expect("a log");
    balancer.signal(Signal::SIGUSR1);
    found_eventually("a line in the new file", async || {
        balancer.get("/second").await;
        fs::read_to_string(balancer.file("one.log")).ok().filter(|text| text.contains("/second"))
    })
    .await;
    assert!(fs::read_to_string(balancer.file("one.log.1")).expect("a file").starts_with("/first\n"));

    // A request that began before the reload ends in the log that it began with.
    let begun = a.heads();
    let mut wire = balancer.connect().await;
    wire.send("POST /held HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\nx").await;
    eventually("the request has begun", async || a.heads() > begun).await;
    balancer.configure(&of("two.log"));
    balancer.change("POST", "/admin/reload", None).await;
    balancer.get("/third").await;
    assert_eq!(balancer.lines("two.log", 1).await, ["/third"]);
    wire.send("x".repeat(69_999)).await;
    assert_eq!(wire.reply().await.status, 200);
    found_eventually("the held request's line", async || {
        fs::read_to_string(balancer.file("one.log")).ok().filter(|text| text.ends_with("/held\n"))
    })
    .await;
    assert_eq!(balancer.lines("two.log", 1).await, ["/third"]);

    // A file that cannot be opened leaves everything as it was.
    balancer.configure(&of("missing/x.log"));
    let refused = balancer.admin("POST", "/admin/reload", None).await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    assert!(refused.text().contains("missing/x.log"), "{}", refused.text());
    balancer.get("/fourth").await;
    assert_eq!(balancer.lines("two.log", 2).await, ["/third", "/fourth"]);
    assert_eq!(balancer.metrics().await.sum("evenkeel_access_log_lost_total", &[]), 0.0);
}

#[tokio::test]
async fn a_line_tells_of_tls_and_http2() {
    let a = Origin::start("a").await;
    let tls = Port::reserve();
    let lines = "access_log = { file = \"own.log\", format = \"$scheme $server_protocol $http2 $uri\" }\n\
        [[site.route]]\npath = \"/\"\npool = \"app\"\n";
    let section = format!("[[listener]]\naddress = \"{}\"\n{}\n", tls.address(), http2::tls());
    let balancer = Balancer::start(config(&a, lines).section(&section)).await;
    let mut client = Http2::connect(tls.address()).await;
    let request = http::Request::get("https://site.example/x").body(()).expect("a request");
    let (reply, _) = client.begin(request, true).await;
    assert_eq!(http2::reply(reply).await.expect("a response").status, 200);
    assert_eq!(balancer.lines("own.log", 1).await, ["https HTTP/2.0 h2 /x"]);
    balancer.get("/y").await;
    assert_eq!(balancer.lines("own.log", 2).await[1], "http HTTP/1.1 - /y");
}
