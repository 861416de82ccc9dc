//! Malformed requests and heads beyond the limits over HTTP/2: each ends its own stream or connection, has the code
//! that RFC 9113 names, and reaches no backend.

use h2::Reason;
use tests::http2::{self, Http2, PREFACE, frame, kind, literals, reply, request, write};
use tests::{Balancer, Origin, eventually, within};
use tokio::io::AsyncReadExt;

use super::config;

#[tokio::test]
async fn limits_on_the_head_hold() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = Http2::connect(balancer.address()).await;
    let cookie = "c".repeat(4000);
    let many: Vec<String> = (0..150).map(|number| format!("x-{number}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "y")).collect();
    let (too_large, far_too_large) = (vec![("cookie", cookie.as_str()); 10], vec![("cookie", cookie.as_str()); 30]);
    let long = format!("/{}", "p".repeat(9000));
    for (path, fields, status) in
        [("/", too_large, 431), ("/", far_too_large, 431), ("/", many, 431), (long.as_str(), Vec::new(), 414)]
    {
        let (answer, _) = client.begin(request("GET", path, &fields), true).await;
        assert_eq!(reply(answer).await.expect("a response").status, status, "{} fields", fields.len());
    }
    assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn fields_that_would_split_a_request_in_http_1_are_refused() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let sound = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let with = |name: &'static str, value: &'static str| {
        let mut fields: Vec<_> = sound.into_iter().filter(|(other, _)| *other != name).collect();
        let at = if name.starts_with(':') { 0 } else { fields.len() };
        fields.insert(at, (name, value));
        fields
    };
    let smuggled = "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled";
    for fields in [
        with("x", "y\r\nx-smuggled: z"),
        with("x", "y\nx-smuggled: z"),
        with("x", "y\0"),
        with("x\r\nx-smuggled", "z"),
        with("x:y", "z"),
        with("X-Upper", "z"),
        with("transfer-encoding", "chunked"),
        with("connection", "x-forwarded-for"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("host", "other"),
        with("content-length", "5"),
        with(":path", smuggled),
        with(":path", "/a b"),
        with(":path", "http://other/"),
        with(":path", "x"),
        with(":path", "*"),
        with(":path", ""),
        with(":path", "/%00"),
        with(":method", "GET / HTTP/1.1\r\n"),
        with(":method", "CONNECT"),
        with(":method", "TRACE"),
        with(":authority", "u@x"),
        with(":authority", "x/y"),
        with(":authority", "x\r\ny: z"),
    ] {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, PREFACE).await;
        write(&mut client, &frame(kind::HEADERS, 5, 1, &literals(&fields))).await;
        // A sound request behind it has its answer unless the connection was ended.
        let reading = async {
            let mut received = Vec::new();
            while received.len() < 1 << 20 && client.read_buf(&mut received).await.is_ok_and(|count| count > 0) {
                if has_ended(&received, 1) {
                    break;
                }
            }
        };
        within(&format!("an end of the stream with {fields:?}"), reading).await;
        assert_eq!(a.heads(), 0, "{fields:?} reached the backend: {:?}", a.requests());
    }
}

/// Whether these frames hold the end of a stream: a reset or END_STREAM.
fn has_ended(mut frames: &[u8], stream: u8) -> bool {
    while let [a, b, c, kind, flags, _, _, _, id, rest @ ..] = frames {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        if *id == stream && (*kind == 3 || (*kind < 2 && flags & 1 == 1)) {
            return true;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

// It ended the whole connection, and the requests beside it were lost.
#[tokio::test]
async fn a_malformed_request_ends_its_own_stream_alone() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let sound = [(":method", "GET"), (":scheme", "https"), (":path", "/hold"), (":authority", "x")];
    let head =
        |stream, field: &[(&str, &str)]| frame(kind::HEADERS, 5, stream, &literals(&[&sound[..], field].concat()));
    let odd = [
        ("X-Upper", "y"),
        ("x y", "z"),
        ("x:y", "z"),
        ("x\"a", "z"),
        ("", "z"),
        ("x", "a\0"),
        ("x", "a\rb"),
        ("x", "a\nb"),
        ("connection", "close"),
        (":late", "x"),
    ];
    let mut client = http2::connect(balancer.address()).await;
    write(&mut client, &[PREFACE, &head(1, &[])].concat()).await;
    for (stream, field) in (3..).step_by(2).zip(odd) {
        write(&mut client, &head(stream, &[field])).await;
        let reset = within("a reset", http2::frame_of(&mut client, kind::RST_STREAM)).await;
        assert_eq!((reset.stream, reset.reason()), (stream, Some(Reason::PROTOCOL_ERROR)), "{field:?}");
    }
    eventually("the sound one has come", async || a.heads() == 1).await;
    a.release();
    let answer = within("its answer", http2::frame_of(&mut client, kind::HEADERS)).await;
    assert_eq!(answer.stream, 1);
    assert_eq!(a.heads(), 1);
}

// Their codes were PROTOCOL_ERROR (RFC 9113 §5.1 and §4.3).
#[tokio::test]
async fn late_content_and_undecodable_fields_have_error_codes_of_their_own() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let head = |stream, path| {
        let fields = [(":method", "GET"), (":scheme", "https"), (":path", path), (":authority", "x")];
        frame(kind::HEADERS, 5, stream, &literals(&fields))
    };
    let mut client = http2::connect(balancer.address()).await;
    write(&mut client, &[PREFACE, &head(1, "/hold"), &head(3, "/"), &frame(kind::DATA, 0, 1, b"late")].concat()).await;
    let reset = within("a reset", http2::frame_of(&mut client, kind::RST_STREAM)).await;
    assert_eq!((reset.stream, reset.reason()), (1, Some(Reason::STREAM_CLOSED)));
    let answer = within("the other's answer", http2::frame_of(&mut client, kind::HEADERS)).await;
    assert_eq!(answer.stream, 3);
    write(&mut client, &frame(kind::HEADERS, 5, 5, b"\xff\xff\xff\xff\xff\xff")).await;
    let goaway = within("a GOAWAY", http2::frame_of(&mut client, kind::GOAWAY)).await;
    assert_eq!(goaway.reason(), Some(Reason::COMPRESSION_ERROR));
}

// They were trimmed, and passed on.
#[tokio::test]
async fn values_with_blanks_at_an_end_are_malformed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a])).await;
    let mut client = http2::connect(balancer.address()).await;
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let requests = [" a", "a ", "\ta", "a\t", "a"].map(|value| literals(&[&fields[..], &[("x", value)]].concat()));
    let frames = (1..).step_by(2).zip(requests).flat_map(|(stream, fields)| frame(kind::HEADERS, 5, stream, &fields));
    write(&mut client, &[PREFACE, &frames.collect::<Vec<_>>()].concat()).await;
    eventually("all are answered", async || balancer.metrics().await.sum("evenkeel_refusals_total", &[]) == 4.0).await;
    eventually("the sound one is passed on", async || a.heads() == 1).await;
    assert_eq!(balancer.metrics().await.sum("evenkeel_refusals_total", &[("reason", "malformed")]), 4.0);
}
