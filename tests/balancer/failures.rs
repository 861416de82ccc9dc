//! What a client gets when something fails, and that it can always distinguish a complete response from an incomplete
//! one.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tests::http2::{self, tls_over};
use tests::wire::{Wire, chunked, narrow};
use tests::{Balancer, Config, End, Health, Link, Origin, Pool, Port, Request, Step, eventually, response, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[tokio::test]
async fn connections_refused_by_all_backends_are_502() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.without_ejection())).await;
    a.stop().await;
    b.stop().await;
    for request in [Request::get("/"), Request::post("/", "body")] {
        assert_eq!(balancer.send(&request).await.status, 502);
    }
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_backend_that_closes_before_its_response_is_502() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for steps in [
        vec![Step::Reset],
        vec![Step::Close],
        vec![Step::Send(b"HTTP/1.1 200".to_vec()), Step::Close],
        vec![Step::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n".to_vec()), Step::Hang],
        vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()), Step::Reset],
    ] {
        a.answer({
            let steps = steps.clone();
            move |_| steps.clone()
        });
        let reply = balancer.send(&Request::post("/", "body")).await;
        assert_eq!(reply.status, 502, "{steps:?}: {}", reply.text());
    }
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_response_that_is_not_http_is_502() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.without_ejection())).await;
    for head in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 OK\r\n\r\n",
        "HTTP/1.1 99999 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBad Name: x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ] {
        a.answer(move |_| vec![Step::Send(head.as_bytes().to_vec()), Step::Close]);
        let reply = balancer.get("/").await;
        assert_eq!(reply.status, 502, "{head:?}: {}", reply.text());
        a.forget_script();
        let reply = balancer.get("/").await;
        assert_eq!(reply.status, 200, "the connection of {head:?} is not used again");
    }
}

// Failures caused by a request were retried on every backend, counted against each and ejected them.
#[tokio::test]
async fn responses_over_our_limits_are_neither_retried_nor_counted_as_failures() {
    let lines = |count: usize| (0..count).map(|n| format!("X-{n}: x\r\n")).collect::<String>();
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n");
    for (head, word, logged) in [
        (
            head(&format!("X-Large: {}\r\n", "x".repeat(33_000))),
            "response-head-too-large",
            "more than [[pool]] max_head_bytes",
        ),
        (head(&lines(100)), "response-too-many-fields", "more than [[pool]] max_fields"),
        (head("Bad Name: x\r\n"), "response-head-malformed", "byte not allowed in a field name"),
        (head("Content-Length: 7\r\n"), "response-head-malformed", "Content-Length repeated"),
        (head("X-Split: a\r\rb\r\n"), "response-head-malformed", "the response's head is malformed"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned(), "unasked-upgrade", ""),
    ] {
        let [a, b] = Origin::several(["a", "b"]).await;
        for origin in [&a, &b] {
            origin.answer_with(head.clone());
        }
        let rules = "consecutive_failures = 1\nbase_time = \"60s\"";
        let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
        for request in 1..=4 {
            let reply = balancer.get("/").await;
            assert_eq!(reply.status, 502, "{word}: {}", reply.text());
            assert_eq!(a.heads() + b.heads(), request, "{word}: tried once each");
        }
        balancer.until_idle().await;
        for origin in [&a, &b] {
            let backend = balancer.backend(origin).await;
            assert_eq!((&backend["status"], &backend["failures"]), (&json!("healthy"), &json!(0)), "{word}");
        }
        let refusals = async || balancer.metrics().await.sum("evenkeel_refusals_total", &[("reason", word)]);
        eventually(word, async || refusals().await == 4.0).await;
        if !logged.is_empty() {
            balancer.logs(&["WARN", logged]).await;
            let log = balancer.log();
            assert!(!log.contains("limit=32768 value="), "how long the head is in all is not known: {log}");
            assert!(word != "response-too-many-fields" || log.contains("limit=100 value=101"), "{log}");
        }
    }
}

#[tokio::test]
async fn a_backend_that_does_not_speak_http_is_retried_elsewhere_and_ejected() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer_with("SSH-2.0-OpenSSH_9.2\r\n\r\n");
    let rules = "consecutive_failures = 2\nbase_time = \"60s\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    assert_eq!(balancer.origins_of(6).await.concat(), "bbbbbb");
    balancer.sees(&a, "ejected").await;
    assert_eq!(balancer.metrics().await.sum("evenkeel_backend_failures_total", &[("kind", "not-http")]), 2.0);
}

const EXPECTING: &str = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";

// A backend that ignored the expectation counted as one that does not answer.
#[tokio::test]
async fn a_client_that_expects_100_gets_exactly_one_from_backend_or_balancer() {
    let a = Origin::start("a").await;
    // An origin without a script at the head sends a 100 by itself.
    for (script, late) in [
        (vec![], false),
        (vec![Step::Wait(Duration::from_millis(300))], true),
        (vec![Step::Send(b"HTTP/1.1 103 Early Hints\r\n\r\n".to_vec()), Step::Wait(Duration::from_millis(300))], true),
    ] {
        a.at_head(move |_| script.clone());
        let pool = |pool: Pool| pool.set(&format!("continue_timeout = \"{}\"", if late { "20ms" } else { "60s" }));
        let balancer = Balancer::start(Config::of([&a]).app(pool)).await;
        let mut wire = balancer.connect().await;
        wire.send(EXPECTING).await;
        // The 103 may arrive before the 100 or after it.
        let not_103 = async |wire: &mut Wire| loop {
            match wire.reply_head().await.status {
                103 => {}
                status => return status,
            }
        };
        assert_eq!(not_103(&mut wire).await, 100);
        wire.send("body").await;
        assert_eq!(not_103(&mut wire).await, 200, "a second 100 reaches nobody");
        assert_eq!(a.last_request().body, b"body");
    }
}

#[tokio::test]
async fn a_client_that_sends_no_body_after_100_gets_408_and_no_backend_is_blamed() {
    let [a, b] = Origin::several(["a", "b"]).await;
    for origin in [&a, &b] {
        origin.at_head(|_| vec![Step::Hang]);
    }
    let pool = |pool: Pool| {
        pool.set("continue_timeout = \"20ms\"\nresponse_timeout = \"50ms\"").ejection("consecutive_failures = 1")
    };
    let config = Config::of([&a, &b]).app(pool).listener("body_timeout = \"200ms\"");
    let balancer = Balancer::start(config).await;
    for _ in 0..4 {
        let mut wire = balancer.connect().await;
        wire.send(EXPECTING).await;
        assert_eq!(wire.reply_head().await.status, 100);
        assert_eq!(wire.reply().await.status, 408);
    }
    balancer.until_idle().await;
    assert_eq!(a.heads() + b.heads(), 4, "tried once each");
    for origin in [&a, &b] {
        let backend = balancer.backend(origin).await;
        assert_eq!((&backend["status"], &backend["failures"]), (&json!("healthy"), &json!(0)));
    }
}

#[tokio::test]
async fn an_unsolicited_second_response_reaches_no_client() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut bytes = response(200, &[], "first");
    bytes.extend(response(200, &[], "smuggled"));
    a.answer_with(bytes);
    let mut wire = balancer.connect().await;
    for _ in 0..5 {
        assert_eq!(wire.exchange(&Request::get("/")).await.text(), "first");
    }
}

#[tokio::test]
async fn without_a_usable_backend_the_answer_is_503_with_retry_after() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]).app(|pool| pool.quick_probe().set("panic_threshold = 0"));
    let balancer = Balancer::start(config).await;
    a.set_health(Health::Status(500));
    b.set_health(Health::Status(500));
    balancer.sees(&a, "unhealthy").await;
    balancer.sees(&b, "unhealthy").await;
    assert_unavailable(&balancer).await;
    a.set_health(Health::Status(200));
    balancer.sees(&a, "healthy").await;
    assert_eq!(balancer.get("/").await.status, 200);

    // The healthy one comes last: taking it out while the other is unhealthy would have to be forced.
    balancer.patch(&b, json!({ "state": "down" })).await;
    balancer.patch(&a, json!({ "state": "draining" })).await;
    assert_unavailable(&balancer).await;
    eventually("both are counted", async || {
        balancer.metrics().await.sum("evenkeel_requests_total", &[("code", "5xx")]) == 2.0
    })
    .await;
}

#[tokio::test]
async fn an_empty_pool_is_503() {
    let balancer = Balancer::start(Config::default().pool(Pool::empty("app"))).await;
    assert_unavailable(&balancer).await;
}

#[tokio::test]
async fn a_response_timeout_is_504() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let config = Config::of([&a, &b]).app(|pool| pool.set("response_timeout = \"150ms\""));
    let balancer = Balancer::start(config).await;
    for request in [Request::get("/hold"), Request::post("/hold", "body")] {
        assert_eq!(balancer.send(&request).await.status, 504, "{}", request.method);
    }
    balancer.until_idle().await;
    eventually("the origins were told", async || a.abandoned() + b.abandoned() == a.heads() + b.heads()).await;
}

#[tokio::test]
async fn connect_timeouts_are_retried_and_end_as_504() {
    let deaf = Deaf::new().await;
    let a = Origin::start("a").await;
    let pool = Pool::empty("app").backend(&deaf.address().to_string(), "").backend(&a.address().to_string(), "");
    let config = Config::default().pool(pool.set("connect_timeout = \"150ms\"").without_ejection());
    let balancer = Balancer::start(config).await;
    for _ in 0..2 {
        assert_eq!(balancer.send(&Request::post("/", "body")).await.origin(), "a");
    }
    balancer.patch(&a, json!({ "state": "down" })).await;
    assert_eq!(balancer.get("/").await.status, 504);
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_truncated_response_never_looks_complete() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let half = chunked(b"half a body");
    let begun = half[..half.len() - 5].to_vec();
    let chunked_head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let length_head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    for (name, beginning) in [
        ("a length, some of it", [length_head.clone(), b"half a body".to_vec()].concat()),
        ("a length, none of it", length_head),
        ("whole chunks without the last", [chunked_head.clone(), begun.clone()].concat()),
        ("half a chunk", [chunked_head.clone(), begun[..8].to_vec()].concat()),
        ("no chunk at all", chunked_head),
    ] {
        for last in [Step::Close, Step::Reset] {
            let steps = vec![Step::Send(beginning.clone()), last.clone()];
            for origin in [&a, &b] {
                let steps = steps.clone();
                origin.answer(move |_| steps.clone());
            }
            let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.without_ejection())).await;
            let mut wire = balancer.connect().await;
            let reply = within("an end", wire.try_exchange(&Request::get("/"))).await;
            match reply {
                Ok(reply) if reply.status == 200 => assert_eq!(reply.end, End::CutOff, "{name}, {last:?}: {reply:?}"),
                // Nothing had been forwarded yet, so the failure could still be reported.
                Ok(reply) => assert_eq!(reply.status, 502, "{name}, {last:?}"),
                // Closed before anything was forwarded: that is unambiguous, too.
                Err(_) => {}
            }
            balancer.until_idle().await;
        }
    }
}

/// Waits in the balancer's socket if the client does not read.
const LARGE: usize = 400_000;

/// Answers `/whole` with a response of [`LARGE`] bytes, and others with half of one twice as large.
fn break_off(origin: &Origin) {
    let whole = response(200, &[], vec![b'x'; LARGE]);
    let half =
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * LARGE).as_bytes(), &[b'x'; LARGE]].concat();
    origin.answer(move |request| match request.target.as_str() {
        "/whole" => vec![Step::Send(whole.clone())],
        "/hold" => vec![Step::Hold],
        _ => vec![Step::Send(half.clone()), Step::Close],
    });
}

// The reset that ended it discarded what the client had still to read of it, and of the complete response before it.
#[tokio::test]
async fn the_reset_of_a_truncated_response_discards_nothing_already_sent() {
    let a = Origin::start("a").await;
    break_off(&a);
    let plain = Balancer::start(Config::of([&a]).app(|pool| pool.without_ejection())).await;
    let secure = Balancer::start(Config::of([&a]).app(|pool| pool.without_ejection()).listener(&http2::tls())).await;
    for (balancer, is_secure) in [(&plain, false), (&secure, true)] {
        for (targets, least) in [(&["/whole", "/half"][..], 2 * LARGE), (&["/half"], LARGE)] {
            let served = balancer.metrics().await.sum("evenkeel_requests_total", &[]);
            // More than one truncated response is served.
            let mut requests: Vec<u8> = targets.iter().flat_map(|target| Request::get(target).to_bytes()).collect();
            requests.extend(Request::get("/next").to_bytes());
            let mut tcp = narrow(balancer.address(), 30_000).await;
            let (came, is_orderly) = if is_secure {
                let mut tls = tls_over(b"http/1.1", tcp).await.expect("a handshake");
                tls.write_all(&requests).await.expect("a peer");
                tls.flush().await.expect("a peer");
                are_served(balancer, served + targets.len() as f64).await;
                read_to_end(&mut tls).await
            } else {
                tcp.write_all(&requests).await.expect("a peer");
                are_served(balancer, served + targets.len() as f64).await;
                read_to_end(&mut tcp).await
            };
            assert!(came > least && is_orderly, "{targets:?}, TLS: {is_secure}: {came} bytes, {is_orderly}");
        }
    }
    assert_eq!(a.heads(), 6, "none is served behind one that broke off");
}

async fn are_served(balancer: &Balancer, count: f64) {
    let served = async || balancer.metrics().await.sum("evenkeel_requests_total", &[]) == count;
    eventually("they are served as far as they come", served).await;
}

/// Reads to the end. Returns the number of bytes, and whether the end was clean.
async fn read_to_end(stream: &mut (impl AsyncRead + Unpin)) -> (usize, bool) {
    let mut received = Vec::new();
    let ended = within("the end", stream.read_to_end(&mut received)).await;
    (received.len(), ended.is_ok())
}

// A client that closes its side counts as one that has left, and a reset discarded what it had been sent.
#[tokio::test]
async fn a_client_that_half_closes_still_receives_earlier_responses() {
    let a = Origin::start("a").await;
    break_off(&a);
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = Wire::new(narrow(balancer.address(), 30_000).await);
    wire.send([Request::get("/whole").to_bytes(), Request::get("/hold").to_bytes()].concat()).await;
    eventually("the second is with the origin", async || a.heads() == 2).await;
    wire.close_sending().await;
    balancer.until_idle().await;
    let reply = wire.reply().await;
    assert_eq!((reply.body.len(), reply.end), (LARGE, End::Complete));
    assert_eq!(wire.rest().await, (Vec::new(), true));
}

#[tokio::test]
async fn a_truncated_response_delimited_by_close_ends_with_a_reset() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.without_ejection())).await;
    let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n".to_vec();
    for last in [Step::Close, Step::Reset, Step::Send(b"no size\r\n".to_vec())] {
        let steps = vec![Step::Send(chunk.clone()), last.clone()];
        a.answer(move |_| steps.clone());
        let mut wire = balancer.connect().await;
        wire.send("GET / HTTP/1.0\r\n\r\n").await;
        // Whether the head gets through before the reset depends on the network.
        if let Ok(reply) = within("an end", wire.try_reply("GET")).await
            && reply.status == 200
        {
            assert_eq!(reply.end, End::CutOff, "{last:?}");
        }
    }
}

// A backend that closes because its response is not read was counted as one that truncates responses, and ejected.
#[tokio::test]
async fn a_backend_that_times_out_on_a_slow_reader_is_not_blamed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.ejection("consecutive_failures = 1"))).await;
    // With a length it is spliced. It is more than all buffers on the way hold, which the system makes larger if it
    // remembers fast connections.
    for fields in ["Content-Length: 50000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n2faf080\r\n"] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}").into_bytes();
        let content = Step::SendUntilFull(vec![b'x'; 50_000_000], Duration::from_millis(300));
        a.answer(move |_| vec![Step::Send(head.clone()), content.clone(), Step::Close]);
        let before = a.given_up();
        let mut wire = Wire::new(narrow(balancer.address(), 1400).await);
        wire.send(Request::get("/").to_bytes()).await;
        assert_eq!(wire.reply_head().await.status, 200);
        eventually("the backend gives up", async || a.given_up() > before).await;
        // For longer than counts as a moment.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(balancer.in_flight().await, 1, "the client is waited for");
        let (rest, _) = wire.rest().await;
        assert!((1..50_000_000).contains(&rest.len()), "{} bytes came", rest.len());
        balancer.until_idle().await;
    }
    let backend = balancer.backend(&a).await;
    assert_eq!((&backend["status"], &backend["failures"]), (&json!("healthy"), &json!(0)));
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_off() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).app(|pool| pool.set("read_timeout = \"150ms\""));
    let balancer = Balancer::start(config).await;
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf".to_vec()), Step::Hang]);
    let reply = balancer.get("/").await;
    assert_eq!((reply.status, reply.end), (200, End::CutOff));
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_connection_lost_within_a_response_truncates_it() {
    let a = Origin::start("a").await;
    let link = Link::to(a.address());
    let config = Config::default().pool(Pool::empty("app").backend(&link.address().to_string(), ""));
    let balancer = Balancer::start(config).await;
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf".to_vec()), Step::Hang]);
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    assert_eq!(wire.reply_head().await.status, 200);
    link.cut();
    let (rest, _) = wire.rest().await;
    assert!(rest.len() < 1000);
    balancer.until_idle().await;

    a.forget_script();
    link.restore();
    assert_eq!(balancer.get("/").await.status, 200);
}

#[tokio::test]
async fn a_stalled_link_costs_a_timeout_and_recovers() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let link = Link::to(a.address());
    let pool = Pool::empty("app").backend(&link.address().to_string(), "").backend(&b.address().to_string(), "");
    let rules = "consecutive_failures = 1\nbase_time = \"700ms\"";
    let config = Config::default().pool(pool.set("response_timeout = \"500ms\"").ejection(rules));
    let balancer = Balancer::start(config).await;
    link.stall();
    let mut statuses = Vec::new();
    for _ in 0..6 {
        // A POST, because a GET would be repeated on the other backend at once.
        statuses.push(balancer.send(&Request::post("/", "body")).await.status);
    }
    assert!(statuses.iter().filter(|status| **status == 504).count() >= 1, "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 3, "the other takes over: {statuses:?}");
    link.restore();
    eventually("the stalled one is back", async || {
        let reply = balancer.get("/").await;
        reply.status == 200 && reply.origin() == "a"
    })
    .await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_the_connection_ends() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("max_body_bytes = 10000")).await;
    for request in [
        Request::post("/", vec![b'x'; 10_001]),
        Request::post("/", vec![b'x'; 5_000_000]),
        Request::post("/", vec![b'x'; 10_001]).with("Transfer-Encoding", "chunked"),
        Request::post("/", vec![b'x'; 5_000_000]).with("Transfer-Encoding", "chunked"),
    ] {
        let reply = balancer.send(&request).await;
        assert_eq!(reply.status, 413, "{} bytes, {:?}", request.body.len(), request.field("transfer-encoding"));
    }
    for request in [
        Request::post("/", vec![b'x'; 10_000]),
        Request::post("/", vec![b'x'; 10_000]).with("Transfer-Encoding", "chunked"),
    ] {
        assert_eq!(balancer.send(&request).await.status, 200);
    }
    assert!(a.requests().iter().all(|request| request.body.len() <= 10_000));
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

#[tokio::test]
async fn without_a_limit_bodies_of_any_size_pass() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("max_body_bytes = 0")).await;
    let reply = balancer.send(&Request::post("/", vec![b'x'; 70_000_000])).await;
    assert_eq!((reply.status, &reply.json()["body_length"]), (200, &json!(70_000_000)));
}

#[tokio::test]
async fn no_route_is_404() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).route("shop.example", "/only", "app")).await;
    for (host, target, status) in [
        ("shop.example", "/only", 200),
        ("shop.example", "/else", 404),
        ("other.example", "/only", 404),
        ("shop.example", "/ONLY", 404),
    ] {
        let reply = balancer.send(&Request::get(target).with("Host", host)).await;
        assert_eq!(reply.status, status, "{host}{target}");
    }
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_head_is_408() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("header_timeout = \"200ms\"")).await;
    let mut wire = balancer.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await;
    assert_eq!(wire.reply().await.status, 408);
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_body_is_408() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("body_timeout = \"200ms\"")).await;
    let mut wire = balancer.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf").await;
    assert_eq!(wire.reply().await.status, 408);
    assert!(wire.is_closed().await);
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

#[tokio::test]
async fn an_idle_client_connection_is_closed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("keepalive_timeout = \"200ms\"")).await;
    let mut wire = balancer.connect().await;
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    assert!(wire.is_closed().await, "nothing but the end follows");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("send_timeout = \"200ms\"")).await;
    a.answer_with(response(200, &[], vec![b'x'; 40_000_000]));
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    assert_eq!(wire.reply_head().await.status, 200);
    balancer.until_idle().await;
}

// Its connection was closed, but the system kept the unread data for it.
#[tokio::test]
async fn a_tls_client_that_does_not_read_is_reset() {
    let a = Origin::start("a").await;
    let listener = format!("{}\nsend_timeout = \"200ms\"", http2::tls());
    let balancer = Balancer::start(Config::of([&a]).listener(&listener)).await;
    a.answer_with(response(200, &[], vec![b'x'; 40_000_000]));
    let mut client = http2::connect_for(b"http/1.1", balancer.address()).await.expect("a TLS handshake");
    client.write_all(&Request::get("/").to_bytes()).await.expect("a peer");
    eventually("it is asked", async || a.heads() == 1).await;
    balancer.until_idle().await;
    let read = within("the end", client.read_to_end(&mut Vec::new())).await;
    assert_eq!(read.map_err(|e| e.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

// It was noticed only at `write_timeout`, and logged as 504. If the client has closed instead, its kernel says so only
// once we have read everything.
#[tokio::test]
async fn a_client_that_disconnects_during_a_stalled_upload_is_noticed() {
    let port = Port::reserve();
    let _never_reads = port.listen_with_small_buffers();
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("write_timeout = \"1h\"");
    let log = "[access_log]\nfile = \"access.log\"";
    let balancer = Balancer::start(Config::default().pool(pool).section(log)).await;
    let mut wire = balancer.connect().await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n").await;
    // More than all buffers on the way hold.
    let all = wire.stream.write_all(&[b'x'; 40_000_000]);
    assert!(tokio::time::timeout(Duration::from_secs(2), all).await.is_err(), "nobody reads");
    assert_eq!(balancer.in_flight().await, 1);
    wire.reset();
    balancer.until_idle().await;
    eventually("it is logged", async || {
        let lines = std::fs::read_to_string(balancer.file("access.log")).unwrap_or_default();
        lines.contains("\"status\":499") && lines.contains("client-gone")
    })
    .await;
}

// Over TLS it was noticed only at `write_timeout`, and counted against the backend.
#[tokio::test]
async fn a_tls_client_that_disconnects_during_a_stalled_upload_is_noticed() {
    let port = Port::reserve();
    let _never_reads = port.listen_with_small_buffers();
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("write_timeout = \"1h\"");
    let balancer = Balancer::start(Config::default().pool(pool).listener(&http2::tls())).await;
    let mut client = http2::connect_for(b"http/1.1", balancer.address()).await.expect("a TLS handshake");
    client.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n").await.expect("a peer");
    let all = client.write_all(&[b'x'; 40_000_000]);
    assert!(tokio::time::timeout(Duration::from_secs(2), all).await.is_err(), "nobody reads");
    assert_eq!(balancer.in_flight().await, 1);
    client.get_ref().0.set_zero_linger().expect("an open socket");
    drop(client);
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_client_that_disconnects_behind_many_pipelined_requests_is_noticed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for by_reset in [true, false] {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("it is with the backend", async || balancer.in_flight().await == 1).await;
        wire.send(Request::get("/next").to_bytes().repeat(1000)).await;
        // Served in between, so that the others have progressed as far as they can.
        assert_eq!(balancer.get("/").await.status, 200);
        match by_reset {
            true => wire.reset(),
            false => drop(wire),
        }
        balancer.until_idle().await;
    }
}

#[tokio::test]
async fn a_client_that_disconnects_while_connecting_to_a_backend_is_noticed() {
    let deaf = Deaf::new().await;
    let pool = Pool::empty("app").backend(&deaf.address().to_string(), "").set("connect_timeout = \"1h\"");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    eventually("it is tried", async || balancer.in_flight().await == 1).await;
    drop(wire);
    balancer.until_idle().await;
}

async fn assert_unavailable(balancer: &Balancer) {
    let reply = balancer.get("/").await;
    assert_eq!(reply.status, 503, "{}", reply.text());
    let seconds = reply.field("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{:?}", reply.fields);
}

/// Listens, but its queue is full: connections to it are neither accepted nor refused.
struct Deaf {
    _listener: tokio::net::TcpListener,
    _port: Port,
    address: SocketAddr,
    _queue: Vec<TcpStream>,
}

impl Deaf {
    async fn new() -> Self {
        let port = Port::reserve();
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option of every socket");
        socket.bind(port.address()).expect("a reserved port");
        let listener = socket.listen(1).expect("a bound socket");
        let mut queue = Vec::new();
        let is_full = async |queue: &mut Vec<TcpStream>| {
            let attempt = TcpStream::connect(port.address());
            match tokio::time::timeout(std::time::Duration::from_millis(300), attempt).await {
                Ok(stream) => {
                    queue.push(stream.expect("a listener"));
                    false
                }
                Err(_) => true,
            }
        };
        while !is_full(&mut queue).await {}
        Self { _listener: listener, address: port.address(), _port: port, _queue: queue }
    }

    fn address(&self) -> SocketAddr {
        self.address
    }
}

// Success was counted with the response's head, so such a backend was never ejected.
#[tokio::test]
async fn a_backend_that_always_truncates_responses_is_ejected() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf".to_vec()), Step::Close]);
    let rules = "consecutive_failures = 3\nbase_time = \"60s\"";
    let balancer = Balancer::start(Config::of([&a, &b]).app(|pool| pool.ejection(rules))).await;
    for _ in 0..6 {
        let mut wire = balancer.connect().await;
        let _ = wire.try_exchange(&Request::get("/")).await;
    }
    eventually("it is put aside", async || balancer.pool().await["backends"][0]["status"] == "ejected").await;
    for _ in 0..6 {
        assert_eq!(balancer.get("/").await.origin(), "b");
    }
}

// An exchange reports to the pool with which it began, which a change has replaced.
#[tokio::test]
async fn an_ejection_outlives_a_swap_of_the_configuration() {
    let [a, b] = Origin::several(["a", "b"]).await;
    a.answer(|_| vec![Step::Hold, Step::Reset]);
    let rules = "consecutive_failures = 1\nbase_time = \"60s\"";
    let pool = |pool: Pool| pool.set("retries = 0").ejection(rules);
    let balancer = Balancer::start(Config::of([&a, &b]).app(pool)).await;
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes()).await;
    eventually("it is with the one that holds it", async || a.heads() == 1).await;
    balancer.switch_algorithm("least-connections").await;
    a.release();
    eventually("it is put aside", async || balancer.pool().await["backends"][0]["status"] == "ejected").await;
    a.answer_with(response(200, &[("X-Origin", "a")], "back"));
    eventually("nobody asks it", async || {
        let mut origins = Vec::new();
        for _ in 0..6 {
            origins.push(balancer.get("/").await.origin().to_owned());
        }
        origins.iter().all(|origin| origin == "b")
    })
    .await;
}

// Closing a socket with unread data resets it, which discards what the client has not read yet.
#[tokio::test]
async fn a_stray_line_break_does_not_truncate_the_last_response_of_a_connection() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], "x".repeat(3_000_000)));
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    let mut bytes = Request::get("/").with("Connection", "close").to_bytes();
    bytes.extend_from_slice(b"\r\n");
    wire.send(bytes).await;
    let reply = within("an answer", wire.try_reply("GET")).await.expect("a whole answer");
    assert_eq!((reply.status, reply.body.len()), (200, 3_000_000));
}

#[tokio::test]
async fn refusals_have_the_format_of_accept_and_the_request_id() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).app(|pool| pool.without_ejection().set("retries = 0"));
    let balancer = Balancer::start(config.section("[access_log]\nfile = \"access.log\"")).await;
    a.stop().await;
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for (accept, kind) in [
        (Some(browser), "text/html; charset=utf-8"),
        (Some("application/json"), "application/problem+json"),
        (Some("*/*"), "text/plain; charset=utf-8"),
        (None, "text/plain; charset=utf-8"),
    ] {
        let ask = |method: &str| {
            let request = Request::new(method, "/");
            if let Some(accept) = accept { request.with("Accept", accept) } else { request }
        };
        let mut wire = balancer.connect().await;
        let reply = wire.exchange(&ask("GET")).await;
        assert_eq!((reply.status, reply.field("content-type")), (502, Some(kind)));
        assert_eq!(reply.field("content-length"), Some(reply.body.len().to_string().as_str()));
        let id = reply.field("x-request-id").expect("an id").to_owned();
        let text = reply.text();
        assert!(text.contains(&id) && text.contains("the backend refused the connection"), "{text}");
        assert!(!text.contains(&a.address().to_string()) && !text.contains("127.0.0.1"), "{text}");
        if kind.ends_with("json") {
            let json = reply.json();
            assert_eq!((&json["status"], &json["request_id"]), (&json!(502), &json!(id)), "{json}");
        }
        eventually("the access log has the id", async || {
            std::fs::read_to_string(balancer.file("access.log")).is_ok_and(|log| log.contains(&id))
        })
        .await;
        // All ids have the same length, so a HEAD gets the same Content-Length.
        let head = wire.exchange(&ask("HEAD")).await;
        assert_eq!((head.status, head.field("content-type"), head.body.len()), (502, Some(kind), 0));
        assert_eq!(head.field("content-length"), reply.field("content-length"));
        assert_eq!(wire.exchange(&ask("GET")).await.status, 502, "the connection goes on");
    }
    // Malformed requests have an id, too.
    let mut wire = balancer.connect().await;
    wire.send("GET / HTTP/1.1\r\nAccept: text/html\r\nno colon\r\n\r\n").await;
    let reply = wire.reply().await;
    let id = reply.field("x-request-id").expect("an id");
    assert!(reply.status == 400 && reply.text().contains(id), "{}", reply.text());
}
