//! Malformed and malicious input, byte by byte, with the correct answer to each. Numbers are sections of RFC 9110 and
//! RFC 9112. A refused request must not reach a backend, nor may anything hidden behind it.

use tests::{Balancer, Config, End, Origin, Request, Step, Wire, response, within};
use tokio::io::AsyncWriteExt;

/// The allowed answers, and the request.
struct Row {
    name: &'static str,
    answers: &'static [u16],
    request: &'static [u8],
}

const fn row(name: &'static str, answers: &'static [u16], request: &'static [u8]) -> Row {
    Row { name, answers, request }
}

/// Follows every refused request in the same segment; a program that answers it has been tricked into a second request.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";

const REFUSED: &[Row] = &[
    // Framing: 9112, 6.
    row("two lengths that differ", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    row("two lengths that agree", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
    row("a list of lengths", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2, 2\r\n\r\nab"),
    row("a length with a plus", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: +2\r\n\r\nab"),
    row("a length below zero", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: -2\r\n\r\nab"),
    row("a hexadecimal length", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0x2\r\n\r\nab"),
    row("an empty length", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: \r\n\r\n"),
    row("a length that overflows", &[400, 413], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 18446744073709551618\r\n\r\nab"),
    row("a length with words", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2 bytes\r\n\r\nab"),
    row("an unknown coding", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip\r\n\r\nab"),
    row("chunked not last", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    row("chunked after another", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    row("chunked twice", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    row("two codings", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
    row("identity", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: identity\r\n\r\n"),
    row("almost chunked", &[400, 501], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    row("a coding in HTTP/1.0", &[400], b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    // Host: 9112, 3.2.
    row("no host", &[400], b"GET / HTTP/1.1\r\n\r\n"),
    row("two hosts", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n"),
    row("the same host twice", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n"),
    row("a host with a path", &[400], b"GET / HTTP/1.1\r\nHost: a.example/x\r\n\r\n"),
    row("a host with a query", &[400], b"GET / HTTP/1.1\r\nHost: a.example?x\r\n\r\n"),
    row("a host with a fragment", &[400], b"GET / HTTP/1.1\r\nHost: a.example#x\r\n\r\n"),
    row("a host with a backslash", &[400], b"GET / HTTP/1.1\r\nHost: a.example\\x\r\n\r\n"),
    row("a host with a user", &[400], b"GET / HTTP/1.1\r\nHost: user@a.example\r\n\r\n"),
    row("a host with a space", &[400], b"GET / HTTP/1.1\r\nHost: a.example b.example\r\n\r\n"),
    row("a host with a comma", &[400], b"GET / HTTP/1.1\r\nHost: a.example,b.example\r\n\r\n"),
    row("a host with a scheme", &[400], b"GET / HTTP/1.1\r\nHost: http://a.example\r\n\r\n"),
    row("a host with a bad port", &[400], b"GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n"),
    row("a host with a huge port", &[400], b"GET / HTTP/1.1\r\nHost: a.example:65536\r\n\r\n"),
    row("a host that is half an address", &[400], b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    row("a host that is no address", &[400], b"GET / HTTP/1.1\r\nHost: [a.example]\r\n\r\n"),
    row("a target against its host", &[400], b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    // Fields: 9112, 5, and 9110, 5.5.
    row("a space before the colon", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A : b\r\n\r\n"),
    row("a coding with a space before the colon", &[400], b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    row("a folded line", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\r\n c\r\n\r\n"),
    row("a fold first", &[400], b"GET / HTTP/1.1\r\n Host: a.example\r\n\r\n"),
    row("a line without a colon", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nnonsense\r\n\r\n"),
    row("an empty name", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\n: b\r\n\r\n"),
    row("a name with a quote", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX\"A: b\r\n\r\n"),
    row("a NUL in a value", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\0c\r\n\r\n"),
    row("a bare CR in a value", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\rc\r\n\r\n"),
    row("a control character in a value", &[400], b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: b\x01c\r\n\r\n"),
    // The request line: 9112, 3.
    row("no version", &[400, 505], b"GET /\r\nHost: a.example\r\n\r\n"),
    row("a future version", &[400, 505], b"GET / HTTP/3.0\r\nHost: a.example\r\n\r\n"),
    row("a version of the wrong case", &[400, 505], b"GET / http/1.1\r\nHost: a.example\r\n\r\n"),
    row("a version of two digits", &[400, 505], b"GET / HTTP/1.11\r\nHost: a.example\r\n\r\n"),
    row("a method that is no token", &[400], b"GE(T / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("a star with GET", &[400], b"GET * HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("an escaped NUL in the path", &[400], b"GET /a%00b HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    // Methods and expectations.
    row("CONNECT", &[405, 501], b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"),
    row("TRACE", &[405, 501], b"TRACE / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("an unknown expectation", &[417], b"GET / HTTP/1.1\r\nHost: a.example\r\nExpect: 200-maybe\r\n\r\n"),
    row(
        "length and coding",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    row(
        "coding and length",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ),
    row("a target without its slash", &[400], b"GET path HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("an authority with GET", &[400], b"GET a.example:80 HTTP/1.1\r\nHost: a.example:80\r\n\r\n"),
    row("a fragment in the target", &[400], b"GET /a#b HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("a control character in the target", &[400], b"GET /a\x01b HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    row("spaces within the target", &[400], b"GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n"),
];

/// Malformed chunks. The head is valid, so a backend may have begun to read the request; it must not get all of it.
const BROKEN_CHUNKS: &[Row] = &[
    row(
        "no number",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nab\r\n0\r\n\r\n",
    ),
    row(
        "a negative size",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n\r\n",
    ),
    row(
        "a size with a prefix",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n",
    ),
    row(
        "a size that overflows",
        &[400, 413],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000002\r\nab\r\n0\r\n\r\n",
    ),
    row(
        "a chunk longer than it says",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    ),
    row(
        "a bare LF in chunks",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n",
    ),
    row(
        "an empty chunk size",
        &[400],
        b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\r\nab\r\n0\r\n\r\n",
    ),
];

#[tokio::test]
async fn malformed_requests_are_refused_and_smuggle_nothing() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let wrong = wrong_answers(&balancer, &a, REFUSED, true).await;
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), REFUSED.len(), wrong.join("\n"));
}

#[tokio::test]
async fn malformed_chunks_are_refused_and_smuggle_nothing() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let wrong = wrong_answers(&balancer, &a, BROKEN_CHUNKS, false).await;
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), BROKEN_CHUNKS.len(), wrong.join("\n"));
}

#[tokio::test]
async fn too_long_request_lines_and_heads_get_their_own_status() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a.example\r\n\r\n", "x".repeat(2 << 20));
    let long_field = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX-Long: {}\r\n\r\n", "x".repeat(2 << 20));
    let fields: String = (0..1000).map(|i| format!("X-{i}: y\r\n")).collect();
    let many_fields = format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n");
    for (request, status) in [(long_target, 414), (long_field, 431), (many_fields, 431)] {
        assert_eq!(answer(&balancer, request.as_bytes()).await, Some(status));
    }
    assert_eq!(a.heads(), 0);
}

#[tokio::test]
async fn a_client_that_drips_its_head_is_408_at_the_deadline() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("header_timeout = \"500ms\"")).await;
    let mut wire = balancer.connect().await;
    wire.send("GET / HTTP/1.1\r\nHost: a.example\r\nX-Slow: ").await;
    let dripping = async {
        while !wire.has_answer_within(std::time::Duration::from_millis(50)).await {
            wire.send("x").await;
        }
    };
    within("408", dripping).await;
    assert_eq!(wire.reply().await.status, 408);
}

#[tokio::test]
async fn rare_but_valid_requests_are_served() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for (name, request) in [
        ("an absolute target", &b"GET http://a.example/x?y HTTP/1.1\r\nHost: a.example\r\n\r\n"[..]),
        ("an absolute target without a path", b"GET http://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("a star with OPTIONS", b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("HTTP/1.0 without a host", b"GET / HTTP/1.0\r\n\r\n"),
        ("an empty line first", b"\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        ("fields of odd spelling", b"GET / HTTP/1.1\r\nhOsT:a.example\r\nx-a:\t b \t\r\n\r\n"),
        ("bytes beyond ASCII in a value", b"GET / HTTP/1.1\r\nHost: a.example\r\nX-A: \xc3\xa9\r\n\r\n"),
        ("chunked in capitals", b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n"),
        (
            "a chunk extension",
            b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0\r\n\r\n",
        ),
        (
            "trailers",
            b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-T: c\r\n\r\n",
        ),
        ("a query with an escaped NUL", b"GET /?a=%00 HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    ] {
        let before = a.requests().len();
        assert_eq!(answer(&balancer, request).await, Some(200), "{name}");
        assert_eq!(a.requests().len(), before + 1, "{name}");
    }
}

#[tokio::test]
async fn http_1_0_clients_get_only_what_http_1_0_defines() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer_with("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n");
    let mut wire = balancer.connect().await;
    wire.send("GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.field("transfer-encoding"), reply.text().as_str()), (200, None, "ab"));
    assert!(wire.is_closed().await);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let requests = ["/1", "/2", "/3"].map(|target| Request::get(target).to_bytes()).concat();
    let mut wire = balancer.connect().await;
    wire.send(requests).await;
    for target in ["/1", "/2", "/3"] {
        assert_eq!(wire.reply().await.json()["target"], target);
    }
}

#[tokio::test]
async fn max_forwards_is_obeyed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let options = |hops: &str| Request::new("OPTIONS", "/").with("Max-Forwards", hops);
    assert_eq!(balancer.send(&options("0")).await.status / 100, 2);
    assert_eq!(a.heads(), 0, "zero hops are none");
    assert_eq!(balancer.send(&options("5")).await.status, 200);
    assert_eq!(a.last_request().field("max-forwards"), Some("4"));
    balancer.send(&Request::get("/").with("Max-Forwards", "5")).await;
    assert_eq!(a.last_request().field("max-forwards"), Some("5"), "it means nothing with GET");
}

#[tokio::test]
async fn an_upgrade_without_its_connection_option_is_no_upgrade() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let request = Request::get("/").with("Upgrade", "websocket").with("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let reply = balancer.send(&request).await;
    assert_eq!(reply.status, 200);
    assert_eq!(a.last_request().field("upgrade"), None);
}

#[tokio::test]
async fn bytes_after_a_declined_upgrade_are_the_next_request_or_dropped() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    a.answer(|request| match request.target.as_str() {
        "/socket" => vec![Step::Send(tests::response(403, &[], "no"))],
        _ => vec![Step::Send(tests::response(200, &[], "yes"))],
    });
    let mut wire = balancer.connect().await;
    let upgrade = b"GET /socket HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    wire.send([&upgrade[..], b"\x81\x05hello"].concat()).await;
    assert_eq!(wire.reply().await.status, 403);
    let (rest, _) = wire.rest().await;
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest:?}");
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn malformed_responses_are_502_or_corrected() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.without_ejection())).await;
    for (name, response, status) in [
        ("two lengths that agree", &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"[..], 502),
        ("a list of lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", 502),
        (
            "length and coding",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
        ),
        ("an unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 502),
        ("a 101 that nobody asked for", b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
        ("a length with 204", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nab", 204),
        ("a coding with 204", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 204),
        ("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", 200),
        (
            "an interim response first",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab",
            200,
        ),
    ] {
        a.answer(move |_| vec![Step::Send(response.to_vec()), Step::Close]);
        let mut wire = balancer.connect().await;
        let reply = wire.exchange(&Request::get("/")).await;
        assert_eq!(reply.status, status, "{name}: {reply:?}");
        assert_eq!(reply.version, "HTTP/1.1", "{name}");
        if status == 204 {
            assert_eq!((reply.field("content-length"), reply.field("transfer-encoding")), (None, None), "{name}");
        }
        // In every case, the client's connection stays in sync or ends.
        a.forget_script();
        if let Ok(next) = within("the next answer", wire.try_exchange(&Request::get("/next"))).await {
            assert_eq!(next.json()["target"], "/next", "{name}");
        }
    }
}

/// The rows with a wrong answer, each with what happened.
async fn wrong_answers(balancer: &Balancer, origin: &Origin, rows: &[Row], at_head: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for Row { name, answers, request } in rows {
        let (heads, whole) = (origin.heads(), origin.requests().len());
        let status = answer(balancer, &[request, SMUGGLED].concat()).await;
        let is_refused = status.is_some_and(|status| answers.contains(&status));
        let reached = if at_head { origin.heads() > heads } else { origin.requests().len() > whole };
        let is_smuggled = origin.requests().iter().any(|request| request.target == "/smuggled");
        if !is_refused || reached || is_smuggled {
            wrong.push(format!("{name}: {status:?}, not {answers:?}; reached: {reached}; smuggled: {is_smuggled}"));
        }
    }
    balancer.until_idle().await;
    wrong
}

/// The status of the first response to these bytes, after reading to the end of the connection; `None`: closed without
/// one.
async fn answer(balancer: &Balancer, request: &[u8]) -> Option<u16> {
    let mut wire: Wire = balancer.connect().await;
    // A peer that refuses may close before it has read everything.
    let _ = wire.stream.write_all(request).await;
    let status = within("an answer", wire.try_reply("GET")).await.ok().map(|reply| reply.status);
    let _ = wire.stream.shutdown().await;
    wire.rest().await;
    status
}

// All extensions of a response were counted together, and a response with more than 4,096 bytes of them was cut off and
// counted against its backend.
#[tokio::test]
async fn any_number_of_chunk_extensions_of_a_response_is_ignored() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for chunk in 0..200 {
        bytes.extend(format!("5;signature={chunk:064x}\r\nchunk\r\n").into_bytes());
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    a.answer_with(bytes);
    let reply = balancer.get("/").await;
    assert_eq!((reply.status, reply.body.len(), reply.end), (200, 1000, End::Complete));
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0);
}

// Blank bytes that arrived alone were ignored, whatever they were, and half a line end was lost.
#[tokio::test]
async fn blank_lines_before_a_request_are_treated_alike_however_they_are_split() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (blank, status) in
        [("\r\n", 200), ("\r\n\r\n\r\n\r\n", 200), ("\r\n\r\n\r\n\r\n\r\n", 400), ("\n", 400), ("\r\r\n", 400)]
    {
        for has_asked in [false, true] {
            for is_cut in [false, true] {
                let mut wire = balancer.connect().await;
                if has_asked {
                    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
                }
                let pieces = if is_cut { 1 } else { blank.len() };
                for piece in blank.as_bytes().chunks(pieces) {
                    // After the refusal nobody reads on.
                    let _ = wire.stream.write_all(piece).await;
                    if is_cut {
                        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    }
                }
                let _ = wire.stream.write_all(request.as_bytes()).await;
                let reply = wire.reply().await;
                assert_eq!(reply.status, status, "{blank:?}, cut: {is_cut}, after a request: {has_asked}");
            }
        }
    }
}

// Data for a WebSocket that was not opened counted as the client's next request, as in nginx and HAProxy.
#[tokio::test]
async fn bytes_after_a_websocket_that_is_not_opened_are_not_a_request() {
    let a = Origin::start("a").await;
    // Refuses WebSockets.
    a.answer(|request| {
        let status = request.target.trim_start_matches("/status/").parse().unwrap_or(200);
        vec![Step::Send(response(status, &[], "text"))]
    });
    let sites = "[[site]]\nhosts = [\"a.example\"]\n[[site.route]]\npath = \"/\"\npool = \"app\"\n\
                 [[site.route]]\npath = \"/own\"\nrespond = { status = 200, body = \"own\" }\n";
    let balancer = Balancer::start(Config::of([&a]).sites(sites)).await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (first, status, heads) in [
        ("GET /status/403 HTTP/1.1\r\nHost: a.example\r\n", 403, 1),
        ("GET /status/200 HTTP/1.1\r\nHost: a.example\r\n", 200, 1),
        ("GET /own HTTP/1.1\r\nHost: a.example\r\n", 200, 0),
        ("GET / HTTP/1.1\r\nHost: other.example\r\n", 404, 0),
        // These are not correct handshakes, but the client may mean one anyway.
        ("POST /status/200 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n", 200, 1),
        ("GET /status/200 HTTP/1.0\r\nHost: a.example\r\nConnection: keep-alive\r\n", 200, 1),
    ] {
        let before = a.heads();
        let mut wire = balancer.connect().await;
        wire.send([first.as_bytes(), upgrade.as_bytes(), b"\r\n", SMUGGLED].concat()).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.end), (status, End::Complete), "{first}");
        assert_eq!(reply.field("connection"), Some("close"), "{first}");
        assert!(wire.is_closed().await, "{first}");
        assert_eq!(a.heads() - before, heads, "{first}");
    }
    // Another protocol is ignored; curl offers this one with every request.
    let mut wire = balancer.connect().await;
    let other = upgrade.replace("websocket", "h2c");
    wire.send([b"GET / HTTP/1.1\r\nHost: a.example\r\n", other.as_bytes(), b"\r\n", SMUGGLED].concat()).await;
    assert_eq!((wire.reply().await.status, wire.reply().await.status), (200, 200));
}
