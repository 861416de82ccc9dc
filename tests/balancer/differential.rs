//! The same bytes to Evenkeel, nginx and HAProxy in front of one backend: every request that Evenkeel forwards is
//! understood in the same way by the others, if they forward it. Differences would allow request smuggling.

use std::net::SocketAddr;
use std::time::Duration;

use tests::haproxy::Haproxy;
use tests::nginx::Nginx;
use tests::{Balancer, Config, Origin, Wire};
use tokio::task::JoinSet;

/// The timeout for an answer. If it is too short, a proxy looks stricter than it is, never more lenient.
const PATIENCE: Duration = Duration::from_millis(500);
const AT_ONCE: usize = 48;

/// The request that the backend got, or none.
#[derive(Debug, PartialEq, Eq)]
enum Reading {
    /// The proxy refused it, waits for more, or closed the connection.
    Refused,
    Passed {
        method: String,
        target: String,
        body: String,
    },
}

const LINES: [&str; 20] = [
    "GET / HTTP/1.1",
    "GET /a?b=c HTTP/1.1",
    "HEAD / HTTP/1.0",
    "GET / HTTP/1.0",
    "POST /p HTTP/1.1",
    "PUT /p HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET http://site.example/x HTTP/1.1",
    "GET /a%2Fb HTTP/1.1",
    "GET /a%00b HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET /\tHTTP/1.1",
    "GET / HTTP/1.1 ",
    "GET / HTTP/2.0",
    "GET / http/1.1",
    "GET /",
    "G(T / HTTP/1.1",
    "GET a HTTP/1.1",
    "GET /#f HTTP/1.1",
];

const FIELDS: [&str; 22] = [
    "X-Plain: yes",
    "Content-Length: 5",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 5, 5",
    "Content-Length: +5",
    "Content-Length: 0x5",
    "Content-Length: 5 5",
    "Content-Length : 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer_Encoding: chunked",
    "X-Bare: a\rb",
    "X-Nul: a\0b",
    "Host: other.example",
    "Expect: 100-continue\r\nContent-Length: 5",
    "Upgrade: websocket",
];

const BODIES: [&str; 8] = [
    "",
    "hello",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;ext=1\r\nhello\r\n0\r\n\r\n",
    "5\nhello\n0\n\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "5\r\nhelloX\r\n0\r\n\r\n",
    "helloGET /smuggled HTTP/1.1\r\nHost: site.example\r\n\r\n",
];

#[tokio::test]
async fn forwarded_requests_mean_the_same_to_nginx_and_haproxy() {
    let origin = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&origin])).await;
    let nginx = Nginx::start(&format!(
        "server {{ listen {{listen}}; location / {{ proxy_pass http://{}; proxy_http_version 1.1; \
         proxy_set_header Host $http_host; proxy_request_buffering off; }} }}",
        origin.address()
    ))
    .await;
    let haproxy = Haproxy::start(origin.address()).await;
    let proxies = [balancer.address(), nginx.address(), haproxy.address()];
    let (mut passed, mut stricter) = (0, 0);
    let cases = cases();
    for some in cases.chunks(AT_ONCE) {
        let mut probing = JoinSet::new();
        for bytes in some.iter().cloned() {
            probing.spawn(async move {
                let [ours, theirs, others] = proxies.map(|proxy| reading(proxy, &bytes));
                let readings = tokio::join!(ours, theirs, others);
                (bytes, readings)
            });
        }
        while let Some(probed) = probing.join_next().await {
            let (bytes, (ours, theirs, others)) = probed.expect("no panic");
            let has_passed = |reading: &Reading| matches!(reading, Reading::Passed { .. });
            if !has_passed(&ours) {
                stricter += usize::from(has_passed(&theirs) || has_passed(&others));
                continue;
            }
            passed += 1;
            let agrees = |other: &Reading| !has_passed(other) || *other == ours;
            assert!(agrees(&theirs) && agrees(&others), "{bytes:?}\n{ours:?}\n{theirs:?}\n{others:?}");
        }
    }
    println!(
        "{} requests: {passed} passed and read alike, {stricter} not let through here though by another",
        cases.len()
    );
    assert!(passed > 50 && passed < cases.len());
}

fn cases() -> Vec<String> {
    let mut cases = Vec::new();
    for (number, line) in LINES.iter().enumerate() {
        for field in FIELDS {
            // A body only matters with fields about content, and unusual first lines need only a short list.
            let speaks_of_content = field.contains("ontent") || field.contains("ncoding");
            let bodies = match (speaks_of_content, number) {
                (false, _) => 1,
                (true, ..6) => BODIES.len(),
                (true, _) => 3,
            };
            let with = |body: &&str| format!("{line}\r\nHost: site.example\r\n{field}\r\n\r\n{body}");
            cases.extend(BODIES.iter().take(bodies).map(with));
        }
    }
    cases
}

/// The request that the backend gets through this proxy.
async fn reading(proxy: SocketAddr, bytes: &str) -> Reading {
    let mut wire = Wire::connect(proxy).await;
    wire.send(bytes).await;
    let method = bytes.split(' ').next().unwrap_or_default();
    let replying = async {
        loop {
            let reply = wire.try_reply(method).await?;
            if reply.status >= 200 {
                return std::io::Result::Ok(reply);
            }
        }
    };
    // A proxy that waits for more of the request has not forwarded it.
    let Ok(Ok(reply)) = tokio::time::timeout(PATIENCE, replying).await else { return Reading::Refused };
    if reply.status != 200 || reply.field("x-origin").is_none() {
        return Reading::Refused;
    }
    if method == "HEAD" {
        return Reading::Passed { method: method.to_owned(), target: String::new(), body: String::new() };
    }
    let seen = reply.json();
    let text = |key: &str| seen[key].as_str().unwrap_or_default().to_owned();
    // HAProxy forwards an absolute target unchanged, which is equivalent.
    let target = text("target").trim_start_matches("http://site.example").to_owned();
    Reading::Passed { method: text("method"), target, body: text("body") }
}
