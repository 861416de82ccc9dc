//! HTTP/2 from clients. This file: requests and responses pass as over HTTP/1.1.
//!
//! - [`malformed`]: malformed requests. [`floods`]: clients that do harm.
//! - [`streams`]: streams do not wait for each other.
//! - [`slow_clients`]: time limits and rates.
//! - [`stopping`]: the end of a connection.
//! - [`clear_text`]: HTTP/2 without TLS. [`websockets`]: tunnels on streams.

mod clear_text;
mod floods;
mod malformed;
mod slow_clients;
mod stopping;
mod streams;
mod websockets;

use std::future::poll_fn;

use bytes::Bytes;
use http::HeaderMap;
use tests::http2::{self, Http2, PREFACE, frame, kind, literals, next_frame, reply, request, tls, write};
use tests::{Balancer, Config, End, Origin, Pool, Port, Step, eventually, response, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

fn config<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Config {
    Config::of(origins).listener(&tls())
}

/// HEADERS of a GET, with END_STREAM, whose END_HEADERS is still to come.
fn half_a_head(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    frame(kind::HEADERS, 1, stream, &literals(&fields))
}

/// Answers `/{size}` with so many bytes.
fn answers_by_size(a: &Origin) {
    a.answer(|request| {
        vec![Step::Send(response(200, &[], vec![b'x'; request.target[1..].parse().expect("a number")]))]
    });
}

/// Frames of so many requests for `/{size}`, without limits on what is sent.
fn requests(count: u32, size: usize) -> Vec<u8> {
    requests_in(count, size, Some(50_000_000))
}

/// The same, with so much more window for the connection than it has at first.
fn requests_in(count: u32, size: usize, window: Option<u32>) -> Vec<u8> {
    let mut frames = PREFACE.to_vec();
    frames.extend(frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &50_000_000_u32.to_be_bytes()].concat()));
    if let Some(window) = window {
        frames.extend(frame(kind::WINDOW_UPDATE, 0, 0, &window.to_be_bytes()));
    }
    let path = format!("/{size}");
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", &path), (":authority", "x")];
    for n in 0..count {
        frames.extend(frame(kind::HEADERS, 5, 2 * n + 1, &literals(&fields)));
    }
    frames
}

#[tokio::test]
async fn requests_and_responses_pass_as_over_http_1() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    let wanted = request("POST", "/a%20b?q=%2F", &[("x-repeated", "one"), ("x-repeated", "two"), ("te", "trailers")]);
    let (answer, mut body) = client.begin(wanted, false).await;
    body.send_data(Bytes::from_static(b"a body"), true).expect("an open stream");
    let answer = reply(answer).await.expect("a response");
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    let seen = a.last_request();
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), seen.version.as_str()),
        ("POST", "/a%20b?q=%2F", "HTTP/1.1")
    );
    assert_eq!((seen.field("host"), seen.field("te")), (Some("site.example"), None));
    assert_eq!(seen.fields.all("x-repeated"), ["one", "two"]);
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.body, b"a body");

    a.answer_with("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\nConnection: x-c\r\nX-C: d\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let answer = client.get("/").await;
    assert_eq!((answer.text().as_str(), answer.end), ("abc", End::Complete));
    assert_eq!((answer.field("x-a"), answer.field("x-c"), answer.field("transfer-encoding")), (Some("b"), None, None));
    a.answer_with(response(204, &[], ""));
    assert_eq!(client.get("/").await.status, 204);
    // A large one in both directions.
    let large = vec![b'x'; 3 << 20];
    let copy = large.clone();
    a.answer(|request| vec![Step::Send(response(200, &[], request.body.len().to_string()))]);
    let (answer, mut body) = client.begin(request("PUT", "/", &[]), false).await;
    body.send_data(Bytes::from(large), true).expect("an open stream");
    assert_eq!(reply(answer).await.expect("a response").text(), copy.len().to_string());
    a.answer_with(response(200, &[], &copy));
    let answer = client.get("/").await;
    assert!(answer.body == copy, "{} bytes came", answer.body.len());
}

#[tokio::test]
async fn the_end_of_a_response_needs_no_window() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (window, chunks) in [(3, "3\r\nabc\r\n0\r\n\r\n"), (3, "3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n"), (0, "0\r\n\r\n")] {
        a.answer_with(format!("{chunked}{chunks}"));
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
        let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
        let mut content = within("a response", answer).await.expect("a response").into_body();
        let mut came = 0;
        while let Some(data) = within("content", content.data()).await {
            came += data.expect("content").len();
        }
        assert_eq!(came, window as usize);
    }
}

#[tokio::test]
async fn names_that_applications_confuse_are_dropped() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    let forged = [("x_forwarded_for", "6.6.6.6"), ("x.forwarded.for", "6.6.6.6"), ("remote_user", "root")];
    let (answer, mut body) = client.begin(request("POST", "/", &forged), false).await;
    body.send_data(Bytes::from_static(b"content"), false).expect("an open stream");
    let mut trailers = HeaderMap::new();
    for name in ["x_forwarded_for", "x-forwarded-for", "remote_user", "content-length"] {
        trailers.insert(name, "6".parse().expect("a value"));
    }
    body.send_trailers(trailers).expect("an open stream");
    assert_eq!(reply(answer).await.expect("a response").status, 200);
    let seen = a.last_request();
    assert_eq!(seen.body, b"content");
    for (name, _) in forged {
        assert_eq!(seen.field(name), None, "{name}");
    }
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    // The harness drops trailers; what follows them on the connection is the next request.
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(a.connections(), 1);
}

#[tokio::test]
async fn cookies_arrive_as_one_field() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    let cookies = [("cookie", "session=1"), ("cookie", "theme=dark; x=y"), ("cookie", "last=z")];
    let (answer, _) = client.begin(request("GET", "/", &cookies), true).await;
    assert_eq!(reply(answer).await.expect("a response").status, 200);
    assert_eq!(a.last_request().fields.all("cookie"), ["session=1; theme=dark; x=y; last=z"]);
}

/// Pingora sent the last chunk once for the content's last byte and once more for the empty frame behind it.
#[tokio::test]
async fn content_that_ends_in_an_empty_frame_has_one_last_chunk() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).server("threads = 1")).await;
    let mut client = Http2::connect(balancer.address()).await;
    for content in [&b"some content"[..], b""] {
        let (answer, mut body) = client.begin(request("POST", "/", &[]), false).await;
        if !content.is_empty() {
            body.send_data(Bytes::from_static(content), false).expect("an open stream");
        }
        // The empty frame comes alone.
        eventually("the head arrived", async || a.heads() > 0).await;
        body.send_data(Bytes::new(), true).expect("an open stream");
        assert_eq!(reply(answer).await.expect("a response").status, 200);
        assert_eq!(a.last_request().body, content);
    }
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!((a.requests().len(), a.connections()), (3, 1), "nothing came between two requests");
}

// The stream was reset behind its response, which clients that had still to end their request took for a failure.
#[tokio::test]
async fn a_request_of_a_known_length_may_end_behind_its_response() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    let fields =
        [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "x"), ("content-length", "4")];
    write(&mut client, PREFACE).await;
    for stream in [1, 3, 5] {
        let asked = [frame(kind::HEADERS, 4, stream, &literals(&fields)), frame(kind::DATA, 0, stream, b"four")];
        write(&mut client, &asked.concat()).await;
        let answered = async {
            loop {
                let frame = next_frame(&mut client).await.expect("a frame");
                if frame.stream == stream && frame.flags & 1 == 1 {
                    break;
                }
            }
        };
        within("the end of the response", answered).await;
        balancer.until_idle().await;
        write(&mut client, &frame(kind::DATA, 1, stream, b"")).await;
    }
    write(&mut client, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
    let pong = async {
        loop {
            match next_frame(&mut client).await.expect("a frame") {
                frame if frame.kind == kind::PING => break,
                frame => assert!(![kind::RST_STREAM, kind::GOAWAY].contains(&frame.kind), "{frame:?}"),
            }
        }
    };
    within("the answer", pong).await;
    assert_eq!(a.requests().len(), 3);
}

// With END_STREAM it ended in INTERNAL_ERROR; 405 had no Allow.
#[tokio::test]
async fn methods_are_refused_as_over_http_1() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    for is_end in [true, false] {
        let connect = http::Request::connect("other.example:443").body(()).expect("a request");
        let (answer, _upload) = client.begin(connect, is_end).await;
        let reply = reply(answer).await.expect("a response");
        assert_eq!((reply.status, reply.field("allow").is_some()), (405, true), "{is_end}");
    }
    let (answer, _) = client.begin(request("TRACE", "/", &[]), true).await;
    let trace = reply(answer).await.expect("a response");
    assert_eq!((trace.status, trace.field("allow").is_some()), (405, true));
    assert_eq!(a.heads(), 0);
}

#[tokio::test]
async fn max_forwards_is_obeyed_as_over_http_1() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    for (method, hops, seen) in [("OPTIONS", "0", None), ("OPTIONS", "5", Some("4")), ("GET", "5", Some("5"))] {
        let (answer, _) = client.begin(request(method, "/", &[("max-forwards", hops)]), true).await;
        assert_eq!(reply(answer).await.expect("a response").status, 200);
        match seen {
            None => assert_eq!(a.heads(), 0, "ours to answer"),
            seen => assert_eq!(a.last_request().field("max-forwards"), seen),
        }
    }
}

/// Debian 12's curl takes no answer whose upload was reset before it was sent.
#[tokio::test]
async fn curl_reads_the_refusal_of_its_upload() {
    let a = Origin::start("a").await;
    let refusing = config([&a]).listener("max_body_bytes = 1000000").pool(Pool::empty("nobody"));
    let balancer = Balancer::start(refusing.route("", "/app", "app").route("", "/nobody", "nobody")).await;
    let file = balancer.file("upload");
    std::fs::write(&file, vec![b'x'; 8 << 20]).expect("a writable directory");
    for (path, fields, status) in [
        ("/app", "Content-Type: a/b", "413"),
        ("/app", "Content-Length:", "413"),
        ("/elsewhere", "Content-Length:", "404"),
        ("/nobody", "Content-Length:", "503"),
    ] {
        for _ in 0..5 {
            let mut curl = Command::new("curl");
            curl.args([
                "-sSk",
                "--http2",
                "-o",
                "-",
                "-w",
                "\n%{http_version} %{http_code}",
                "-X",
                "POST",
                "-H",
                fields,
            ]);
            curl.arg("-T").arg(&file).arg(format!("https://{}{path}", balancer.address())).kill_on_drop(true);
            let output = within("curl", curl.output()).await.expect("curl");
            let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{path} {fields}: {errors}{text}");
            assert!(text.ends_with(&format!("\n2 {status}")) && text.starts_with(status), "{path} {fields}: {text}");
        }
    }
}

#[tokio::test]
async fn a_truncated_response_is_not_taken_for_a_whole_one() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).app(Pool::without_ejection)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let heads = ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"];
    for head in heads {
        let text = format!("HTTP/1.1 200 OK\r\n{head}");
        a.answer(move |_| vec![Step::Send(text.clone().into_bytes()), Step::Close]);
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.end), (200, End::CutOff), "{head:?}");
    }
    // An empty size of a chunk is not the end.
    a.answer_with("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n\r\n\r\n");
    assert_eq!(client.get("/").await.status, 502);
    a.answer(|_| vec![Step::Send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall".to_vec()), Step::Close]);
    let answer = client.get("/").await;
    assert_eq!((answer.text().as_str(), answer.end), ("all", End::Complete));
}

#[tokio::test]
async fn interim_responses_and_expectations_pass() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    a.at_head(|request| match request.field("expect") {
        Some(_) => vec![Step::Send(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())],
        None => Vec::new(),
    });
    let mut client = Http2::connect(balancer.address()).await;
    let fields = [("expect", "100-continue"), ("content-length", "4")];
    let (mut answer, mut body) = client.begin(request("POST", "/", &fields), false).await;
    let interim = within("100", poll_fn(|cx| answer.poll_informational(cx))).await;
    assert_eq!(interim.expect("an interim response").expect("100").status(), 100);
    body.send_data(Bytes::from_static(b"body"), true).expect("an open stream");
    assert_eq!(reply(answer).await.expect("a response").status, 200);
    assert_eq!(a.last_request().body, b"body");
}

#[tokio::test]
async fn early_hints_pass() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    a.answer_with("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab");
    let mut client = Http2::connect(balancer.address()).await;
    let (mut answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let interim = within("103", poll_fn(|cx| answer.poll_informational(cx))).await;
    let interim = interim.expect("an interim response").expect("103");
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</x>".parse().expect("a value")));
    assert_eq!(reply(answer).await.expect("a response").text(), "ab");
}

/// A backend of one connection.
fn backend<F: Future<Output = std::io::Result<()>> + Send>(
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (Port, Config) {
    let port = Port::reserve();
    let listener = port.listen();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        serve(stream).await
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "");
    (port, Config::default().pool(pool).listener(&tls()))
}

// Those of responses were dropped. What routes, frames or authenticates a message has no place in them (RFC 9110
// §6.5.1).
#[tokio::test]
async fn trailers_pass_both_ways_except_forbidden_ones() {
    let (sender, seen) = tokio::sync::oneshot::channel();
    let (_port, config) = backend(async move |mut stream: TcpStream| {
        let mut came = Vec::new();
        while !came.ends_with(b"x-sum: 6\r\n\r\n") {
            if stream.read_buf(&mut came).await? == 0 {
                break;
            }
        }
        let _ = sender.send(String::from_utf8_lossy(&came).into_owned());
        let trailers = "X-Sum: 9\r\nContent-Length: 3\r\nConnection: x\r\nSet-Cookie: a=b\r\nHost: x\r\n";
        let text = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n{trailers}\r\n");
        stream.write_all(text.as_bytes()).await
    });
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut body) = client.begin(request("POST", "/", &[]), false).await;
    body.send_data(Bytes::from_static(b"content"), false).expect("an open stream");
    let mut trailers = HeaderMap::new();
    for (name, value) in [("host", "y"), ("content-length", "3"), ("authorization", "x"), ("x-sum", "6")] {
        trailers.insert(name, value.parse().expect("a value"));
    }
    body.send_trailers(trailers).expect("an open stream");
    let seen = within("the request", seen).await.expect("a request");
    assert!(seen.ends_with("7\r\ncontent\r\n0\r\nx-sum: 6\r\n\r\n"), "{seen}");
    let mut content = within("a response", answer).await.expect("a response").into_body();
    while let Some(data) = within("content", content.data()).await {
        assert_eq!(&*data.expect("content"), b"abc");
    }
    let trailers = within("trailers", content.trailers()).await.expect("an open stream").expect("trailers");
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"9".parse().expect("a value")), "{trailers:?}");
}

#[tokio::test]
async fn both_directions_stream_at_once() {
    let (_port, config) = backend(async move |mut stream: TcpStream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
        // The chunks of the request are those of the response.
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await.map(drop)
    });
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut body) = client.begin(request("POST", "/", &[]), false).await;
    let mut content = within("a response", answer).await.expect("a response").into_body();
    for number in 0..20 {
        let text = format!("message {number}");
        body.send_data(Bytes::from(text.clone()), false).expect("an open stream");
        let back = within("an echo", content.data()).await.expect("more").expect("content");
        assert_eq!(back, text);
    }
    body.send_data(Bytes::new(), true).expect("an open stream");
    while let Some(rest) = within("the end", content.data()).await {
        assert!(rest.expect("an orderly end").is_empty());
    }
    balancer.until_idle().await;
}

// The log counted up to 16 KiB that no window had been opened for.
#[tokio::test]
async fn the_log_has_the_bytes_sent_of_an_aborted_response() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], vec![b'x'; 1 << 20]));
    let log = "[access_log]\nfile = \"access.log\"";
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"300ms\"").section(log)).await;
    let mut client = http2::connect(balancer.address()).await;
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    write(&mut client, &[PREFACE, &frame(kind::HEADERS, 5, 1, &literals(&fields))].concat()).await;
    let lines = balancer.lines("access.log", 1).await;
    let line: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(line["bytes"], 65_535, "a window: {line}");
}

// What a client cancelled was counted as a malformed request, and among the WebSockets.
#[tokio::test]
async fn failures_are_attributed_as_over_http_1() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let rules = "consecutive_failures = 1\nbase_time = \"60s\"";
    let config = config([&a, &b]).section("[access_log]\nfile = \"access.log\"").app(|pool| pool.ejection(rules));
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, _) = client.begin(request("GET", "/hold", &[]), true).await;
    eventually("a backend has it", async || a.heads() + b.heads() == 1).await;
    drop(answer);
    let counted = async |status: u16, count: f64| {
        eventually("it is counted", async || {
            let labels = [("pool", "app"), ("status", &*status.to_string())];
            balancer.metrics().await.sum("evenkeel_responses_total", &labels) == count
        })
        .await;
    };
    counted(499, 1.0).await;
    for origin in [&a, &b] {
        let fields: String = (0..100).map(|n| format!("X-{n}: x\r\n")).collect();
        origin.answer_with(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"));
    }
    assert_eq!(client.get("/").await.status, 502);
    assert_eq!(a.heads() + b.heads(), 2, "tried once");
    counted(502, 1.0).await;
    for words in [
        "\"status\":499",
        "\"refusal\":null,\"failure\":\"client-gone\"",
        "\"refusal\":\"response-too-many-fields\",\"failure\":\"response-too-many-fields\"",
    ] {
        eventually("it is logged", async || {
            let log = std::fs::read_to_string(balancer.file("access.log")).unwrap_or_default();
            log.contains(words)
        })
        .await;
    }
    assert_eq!(balancer.metrics().await.sum("evenkeel_refusals_total", &[("reason", "malformed")]), 0.0);
    for origin in [&a, &b] {
        let backend = balancer.backend(origin).await;
        assert_eq!((&backend["status"], &backend["failures"]), (&"healthy".into(), &0.into()), "{backend}");
    }
}

#[tokio::test]
async fn refusals_are_reported_as_over_http_1() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    a.stop().await;
    let mut client = Http2::connect(balancer.address()).await;
    for (accept, kind) in [("text/html", "text/html; charset=utf-8"), ("application/json", "application/problem+json")]
    {
        for method in ["GET", "HEAD"] {
            let (answer, _) = client.begin(request(method, "/", &[("accept", accept)]), true).await;
            let reply = reply(answer).await.expect("a response");
            assert_eq!((reply.status, reply.field("content-type")), (502, Some(kind)), "{method}");
            let id = reply.field("x-request-id").expect("an id");
            assert_eq!(reply.text().contains(id), method == "GET", "{}", reply.text());
        }
    }
}

#[tokio::test]
async fn h2spec_finds_nothing() {
    let program = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), std::path::PathBuf::from);
    let program = program.join("h2spec/h2spec");
    assert!(program.exists(), "h2spec is missing: `make tools-test` builds it, with Go");
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], "some content"));
    // In clear text, what is no preface is a malformed request of HTTP/1.1, and has an answer.
    for (listener, flags, expected) in [
        (tls(), &["--tls", "--insecure"][..], "146 tests, 146 passed, 0 skipped, 0 failed"),
        (String::new(), &[], "146 tests, 145 passed, 0 skipped, 1 failed"),
    ] {
        let balancer = Balancer::start(Config::of([&a]).app(Pool::without_ejection).listener(&listener)).await;
        let mut h2spec = Command::new(&program);
        h2spec.args(["--strict", "--port", &balancer.address().port().to_string()]).args(flags).kill_on_drop(true);
        let output = h2spec.output().await.expect("h2spec");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(expected), "{flags:?}: {text}");
        let failed: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix('×')).collect();
        assert!(failed.iter().all(|title| title.contains("Sends invalid connection preface")), "{failed:?}");
    }
}
