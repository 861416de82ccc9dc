//! WebSocket over HTTP/2 (RFC 8441): each is a tunnel on a stream, and all that holds for those of HTTP/1.1 holds for
//! it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use nix::sys::signal::Signal;
use serde_json::json;
use tests::balancer::backend_path;
use tests::deadline::is_acknowledgement_told;
use tests::http2::{Http2, PREFACE, frame, frame_of, kind, literals, next_frame, reply, request, tls, write};
use tests::{Balancer, Config, Origin, Pool, Port, Step, WebSocket, Wire, eventually, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// A backend that opens every tunnel and does with it what it is told.
fn backend<F: Future<Output = std::io::Result<()>> + Send>(then: impl Fn(Wire) -> F + Clone + Send + 'static) -> Port {
    let port = Port::reserve();
    let listener = port.listen_with_small_buffers();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let then = then.clone();
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                let Some(asked) = wire.request_head().await? else { return Ok(()) };
                let accept = derive_accept_key(asked.field("sec-websocket-key").unwrap_or_default().as_bytes());
                let head =
                    "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ";
                wire.stream.write_all(format!("{head}{accept}\r\n\r\n").as_bytes()).await?;
                then(wire).await
            });
        }
    });
    port
}

fn config(port: &Port) -> Config {
    Config::default().pool(Pool::empty("app").backend(&port.address().to_string(), ""))
}

#[tokio::test]
async fn websockets_share_a_connection_and_count_as_in_flight() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    for (listener, is_tls) in [(String::new(), false), (tls(), true)] {
        let balancer = Balancer::start(Config::of([&a]).listener(&listener).section(log)).await;
        let mut client = match is_tls {
            true => Http2::connect(balancer.address()).await,
            false => Http2::connect_plain(balancer.address()).await,
        };
        let mut first = WebSocket::over(&mut client, "/socket?x=1").await;
        let mut second = WebSocket::over(&mut client, "/socket").await;
        assert_eq!(first.origin, "a");
        for number in 0..100 {
            first.echo(&format!("message {number}")).await;
        }
        second.echo(&"x".repeat(300_000)).await;
        assert_eq!(client.get("/").await.status, 200, "beside them");
        assert_eq!(balancer.in_flight().await, 2);
        first.close().await;
        eventually("the closed one is no longer counted", async || balancer.in_flight().await == 1).await;
        second.echo("still here").await;
        drop(second);
        balancer.until_idle().await;
        eventually("the origin's side is closed too", async || a.open_connections() <= 1).await;
        let lines = balancer.lines("access.log", 3).await;
        let opened = lines.iter().filter(|line| line.contains("\"status\":101") && line.contains("HTTP/2.0")).count();
        assert_eq!(opened, 2, "{lines:?}");
        let counted = async || balancer.metrics().await.sum("evenkeel_requests_total", &[("code", "1xx")]) == 2.0;
        eventually("both are counted", counted).await;
    }
}

#[tokio::test]
async fn a_handshake_is_made_for_the_backend() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.sticky(""))).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let own = [("sec-websocket-key", "bWluZQ=="), ("sec-websocket-protocol", "chat"), ("origin", "https://x")];
    let mut keys = Vec::new();
    for _ in 0..2 {
        let (fields, _tunnel) = client.websocket("/socket?q", &own).await.expect("a WebSocket");
        for name in ["sec-websocket-accept", "connection", "upgrade"] {
            assert_eq!(fields.get(name), None, "{name}");
        }
        assert!(fields.get("set-cookie").is_some());
        let seen = a.last_request();
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/socket?q"));
        assert_eq!((seen.field("upgrade"), seen.field("host")), (Some("websocket"), Some("site.example")));
        assert_eq!((seen.field("sec-websocket-protocol"), seen.field("origin")), (Some("chat"), Some("https://x")));
        assert_eq!((seen.field("content-length"), seen.field("transfer-encoding")), (None, None));
        let [key] = seen.fields.all("sec-websocket-key")[..] else { panic!("{seen:?}") };
        assert_eq!(key.len(), 24, "16 bytes in base64");
        keys.push(key.to_owned());
    }
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test]
async fn each_side_can_end_it() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    // The client resets the stream.
    let (_, mut tunnel) = client.websocket("/socket", &[]).await.expect("a WebSocket");
    tunnel.send.send_reset(Reason::CANCEL);
    balancer.until_idle().await;
    eventually("the backend's side is closed", async || a.open_connections() == 0).await;
    // The client closes its side: the backend is told, and may say its last.
    let (_, mut tunnel) = client.websocket("/socket", &[]).await.expect("a WebSocket");
    tunnel.shutdown().await.expect("an open stream");
    within("the end", tunnel.read_to_end(&mut Vec::new())).await.expect("an orderly end");
    balancer.until_idle().await;
    // The client goes.
    let mut leaving = Http2::connect_plain(balancer.address()).await;
    let socket = WebSocket::over(&mut leaving, "/socket").await;
    assert_eq!(balancer.in_flight().await, 1);
    leaving.leave();
    balancer.until_idle().await;
    drop(socket);
    // The backend goes.
    let mut socket = WebSocket::over(&mut client, "/socket").await;
    socket.echo("hello").await;
    a.stop().await;
    socket.ended().await;
    balancer.until_idle().await;
    assert!(!client.is_closed());
    assert_eq!(balancer.backend(&a).await["failures"], 0);
}

#[tokio::test]
async fn the_backends_last_bytes_arrive_before_the_end() {
    let port = backend(async |mut wire: Wire| {
        wire.stream.write_all(&[b'x'; 500_000]).await?;
        wire.stream.shutdown().await?;
        wire.stream.read_to_end(&mut Vec::new()).await.map(drop)
    });
    let balancer = Balancer::start(config(&port)).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let (_, mut tunnel) = client.websocket("/", &[]).await.expect("a WebSocket");
    let mut came = Vec::new();
    within("all of it", tunnel.read_to_end(&mut came)).await.expect("an orderly end");
    assert_eq!(came.len(), 500_000);
    balancer.until_idle().await;
}

// The end of the content came behind the reset (RFC 9113 §5.1).
#[tokio::test]
async fn nothing_is_sent_on_a_websocket_that_was_reset() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/socket")];
    let fields = literals(&[&fields[..], &[(":authority", "x"), ("sec-websocket-version", "13")]].concat());
    let by_client = frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    // We are to reset it.
    let by_us = frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4]);
    for (reset, count) in [(by_client, 0), (by_us, 1)] {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &fields)].concat()).await;
        within("its head", frame_of(&mut client, kind::HEADERS)).await;
        write(&mut client, &reset).await;
        balancer.until_idle().await;
        write(&mut client, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
        let mut resets = 0;
        let reading = async {
            loop {
                match next_frame(&mut client).await.expect("a frame") {
                    frame if frame.kind == kind::PING => break,
                    frame => {
                        assert!(frame.stream != 1 || frame.kind == kind::RST_STREAM, "{frame:?}");
                        resets += usize::from(frame.kind == kind::RST_STREAM);
                    }
                }
            }
        };
        within("the answer", reading).await;
        assert_eq!(resets, count);
    }
}

// It looked like an end that both sides wanted.
#[tokio::test]
async fn a_backend_that_breaks_off_ends_it_by_a_reset() {
    let port = backend(async |wire: Wire| wire.stream.set_zero_linger());
    let balancer = Balancer::start(config(&port)).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let (_, mut tunnel) = client.websocket("/", &[]).await.expect("a WebSocket");
    assert_eq!(tunnel.reset().await, Reason::CANCEL);
    balancer.until_idle().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_sent_more() {
    // The backend sends for as long as it is taken.
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&sent);
    let port = backend(move |mut wire: Wire| {
        let counted = std::sync::Arc::clone(&counted);
        async move {
            loop {
                let count = wire.stream.write(&[b'x'; 10_000]).await?;
                counted.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
            }
        }
    });
    let balancer = Balancer::start(config(&port)).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let (_, mut tunnel) = client.websocket("/", &[]).await.expect("a WebSocket");
    let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
    let mut before = 0;
    eventually("the backend is held up", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        std::mem::replace(&mut before, sent()) == sent()
    })
    .await;
    assert!(before < 20_000_000, "{before} bytes are somewhere");
    // The client takes on, and the backend goes on.
    let mut taken = vec![0; before + 1_000_000];
    within("more", tunnel.read_exact(&mut taken)).await.expect("content");

    // Nor does a client send what nobody reads; and it is noticed when it goes.
    let port = backend(|wire: Wire| async move {
        let _wire = wire;
        std::future::pending().await
    });
    let balancer = Balancer::start(config(&port)).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let (_, mut tunnel) = client.websocket("/", &[]).await.expect("a WebSocket");
    let all = tunnel.write_all(&[b'x'; 40_000_000]);
    assert!(tokio::time::timeout(Duration::from_secs(1), all).await.is_err(), "nobody reads");
    assert_eq!(balancer.in_flight().await, 1);
    tunnel.send.send_reset(Reason::CANCEL);
    balancer.until_idle().await;
}

// The system calls a socket writable once a third of what it buffers has gone: until then the WebSocket was idle.
#[tokio::test]
async fn a_client_that_reads_slowly_and_steadily_keeps_its_websocket() {
    const SIZE: usize = 40_000_000;
    if !is_acknowledgement_told() {
        return;
    }
    let port = backend(async |mut wire: Wire| {
        wire.stream.write_all(&vec![b'x'; SIZE]).await?;
        wire.stream.read_to_end(&mut Vec::new()).await.map(drop)
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("tunnel_timeout = \"2s\"");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/")];
    let fields = literals(&[&fields[..], &[(":authority", "x"), ("sec-websocket-version", "13")]].concat());
    let window = 2 * SIZE as u32;
    let settings = frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
    let update = frame(kind::WINDOW_UPDATE, 0, 0, &window.to_be_bytes());
    let request = frame(kind::HEADERS, 4, 1, &fields);
    write(&mut client, &[PREFACE, &settings, &update, &request].concat()).await;
    let (begun, mut came) = (Instant::now(), 0);
    let reading = async {
        while came < SIZE {
            let is_slow = begun.elapsed() < Duration::from_secs(8);
            match client.read(&mut vec![0; if is_slow { 10_000 } else { 100_000 }]).await {
                Ok(count @ 1..) => came += count,
                _ => break,
            }
            if is_slow {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    within("all of it", reading).await;
    assert!(came >= SIZE, "{came} bytes came in {:?}", begun.elapsed());
    assert_eq!(balancer.in_flight().await, 1);
}

#[tokio::test]
async fn a_failed_websocket_is_not_answered_by_success() {
    let a = Origin::start("a").await;
    let text = "[[site]]\nhosts = [\"site.example\", \"\"]\nerror_pages = { 400 = { text = \"fine\", status = 200 } }\n\
                [[site.route]]\npath = \"/text\"\nrespond = { body = \"text\" }\n\
                [[site.route]]\npath = \"/status\"\npool = \"app\"\nintercept_errors = true\n\
                [site.route.error_pages]\n500 = { path = \"/page\", status = \"page\" }\n\
                503 = { path = \"/page\", status = 200 }\n\
                [[site.route]]\npath = \"/\"\npool = \"app\"\n";
    let config = Config::of([&a]).app(|pool| pool.ejection("consecutive_failures = 1")).sites(text);
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntext", 502),
        ("HTTP/1.1 204 No Content\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 502),
        // Such a backend may read what follows as requests (RFC 6455 §4.1).
        ("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 502),
        (
            "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            502,
        ),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        ("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302),
    ] {
        a.answer_with(answer);
        let answer = client.websocket("/", &[]).await.err().expect("no WebSocket");
        assert_eq!(answer.status, status);
    }
    a.forget_script();
    assert_eq!(client.websocket("/text", &[]).await.err().expect("no WebSocket").status, 501);
    assert_eq!(client.get("/text").await.status, 200);
    // Nor by an error page whose status is a success.
    a.answer(|request| {
        let status = request.target.strip_prefix("/status/").unwrap_or("200");
        vec![Step::Send(format!("HTTP/1.1 {status} x\r\nContent-Length: 4\r\n\r\ntext").into_bytes())]
    });
    for path in ["/status/500", "/status/503"] {
        assert_eq!(client.websocket(path, &[]).await.err().expect("no WebSocket").status, 502, "{path}");
    }
    // Nor by that of a request without a route.
    assert_eq!(client.get("/../x").await.status, 200);
    assert_eq!(client.websocket("/../x", &[]).await.err().expect("no WebSocket").status, 400);
    a.forget_script();
    let (declared, _) = [("content-length", "5")].split_at(1);
    assert_eq!(client.websocket("/", declared).await.err().expect("no WebSocket").status, 400);
    // Another protocol; and one whose client has closed its side.
    for (protocol, status) in [("connect-udp", 405), ("websocket", 400)] {
        let mut other = request("CONNECT", "/", &[("sec-websocket-version", "13")]);
        other.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        let (answer, _) = client.begin(other, true).await;
        assert_eq!(reply(answer).await.expect("a response").status, status, "{protocol}");
    }
    assert_eq!(balancer.backend(&a).await["failures"], 0, "any client may ask for what is not there");
    balancer.sees(&a, "healthy").await;
}

#[tokio::test]
async fn bytes_sent_right_behind_the_request_arrive() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/socket")];
    let fields = literals(&[&fields[..], &[(":authority", "x"), ("sec-websocket-version", "13")]].concat());
    // A text of two bytes, masked with zeroes, and the close.
    let text = frame(kind::DATA, 0, 1, b"\x81\x82\0\0\0\0hi\x88\x80\0\0\0\0");
    write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &fields), &text].concat()).await;
    let mut came = Vec::new();
    let reading = async {
        loop {
            let frame = next_frame(&mut client).await.expect("a frame");
            if frame.kind == kind::DATA {
                came.extend(frame.payload);
                if frame.flags & 1 == 1 {
                    break;
                }
            }
        }
    };
    within("the end of the stream", reading).await;
    assert!(came.starts_with(b"\x81\x02hi\x88"), "{came:?}");
}

// It ended in INTERNAL_ERROR, and the backend saw its client leave.
#[tokio::test]
async fn a_client_that_closes_its_side_at_once_has_its_websocket() {
    let port = backend(async |mut wire: Wire| {
        let mut came = Vec::new();
        wire.stream.read_to_end(&mut came).await?;
        wire.stream.write_all(&[b"came: ", &came[..]].concat()).await?;
        wire.stream.shutdown().await
    });
    let balancer = Balancer::start(config(&port)).await;
    let fields = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/")];
    let fields = literals(&[&fields[..], &[(":authority", "x"), ("sec-websocket-version", "13")]].concat());
    for content in [&b""[..], b"content"] {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        let data = frame(kind::DATA, 1, 1, content);
        write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &fields), &data].concat()).await;
        let mut came = Vec::new();
        let reading = async {
            loop {
                let frame = next_frame(&mut client).await.expect("a frame");
                assert_ne!(frame.kind, kind::RST_STREAM, "{:?}", frame.reason());
                if frame.kind == kind::DATA {
                    came.extend(frame.payload);
                    if frame.flags & 1 == 1 {
                        break;
                    }
                }
            }
        };
        within("the end of the stream", reading).await;
        assert_eq!(came, [b"came: ", content].concat());
        balancer.until_idle().await;
    }
}

/// What was sent for a WebSocket that is not opened, and looks like requests, must never be taken for some: they would
/// come from nobody that has been checked.
#[tokio::test]
async fn bytes_for_a_refused_tunnel_are_not_taken_for_a_request() {
    let a = Origin::start("a").await;
    let gone = Port::reserve();
    let text = "[[site]]\nhosts = [\"site.example\"]\n[[site.route]]\npath = \"/text\"\nrespond = { body = \"text\" }\n\
                [[site.route]]\npath = \"/moved\"\nredirect = \"https://other.example/\"\n\
                [[site.route]]\npath = \"/gone\"\npool = \"gone\"\n\
                [[site.route]]\npath = \"/app\"\npool = \"app\"\n";
    let config = Config::of([&a]).pool(Pool::empty("gone").backend(&gone.address().to_string(), "")).sites(text);
    let balancer = Balancer::start(config).await;
    let hidden = [
        "GET /app/hidden HTTP/1.1\r\nHost: site.example\r\n\r\n".repeat(3),
        "POST /app/hidden HTTP/1.1\r\nHost: site.example\r\nContent-Length: 4\r\n\r\nbody".to_owned(),
        "HEAD /app/hidden HTTP/1.1\r\nHost: site.example\r\n\r\n".to_owned(),
        "\r\nnothing that is a request\r\n\r\n".to_owned(),
    ];
    let no_socket = [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntext",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ];
    let of_backend = no_socket.map(|answer| ("/app", answer));
    let own = ["/text", "/moved", "/gone", "/nowhere"].map(|path| (path, ""));
    for ((path, answer), hidden) in of_backend.iter().chain(&own).flat_map(|case| hidden.iter().map(move |h| (case, h)))
    {
        a.answer_with(*answer);
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        let fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "site.example"),
            ("sec-websocket-version", "13"),
        ];
        let data = frame(kind::DATA, 0, 1, hidden.as_bytes());
        write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &literals(&fields)), &data].concat()).await;
        let mut ends = 0;
        let reading = async {
            loop {
                let frame = next_frame(&mut client).await.expect("a frame");
                if frame.stream == 1 && frame.kind == kind::RST_STREAM {
                    return frame.reason();
                }
                ends += usize::from(frame.stream == 1 && frame.flags & 1 == 1);
            }
        };
        let reason = within("the end of the stream, which the client leaves open", reading).await;
        assert_eq!((ends, reason), (1, Some(Reason::NO_ERROR)), "{path} {answer:?} {hidden:?}");
        let paths: Vec<_> = a.requests().into_iter().map(|request| request.target).collect();
        assert!(paths.iter().all(|path| path == "/app"), "{path} {answer:?} {hidden:?}: {paths:?}");
    }
    balancer.until_idle().await;
    assert_eq!(a.requests().len(), of_backend.len() * hidden.len());
}

#[tokio::test]
async fn one_that_stays_silent_ends() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]).app(|pool| pool.set("tunnel_timeout = \"1s\""));
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let mut socket = WebSocket::over(&mut client, "/socket").await;
    socket.echo("hello").await;
    socket.ended().await;
    balancer.until_idle().await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn a_deadline_kills_those_of_a_backend() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    let mut socket = WebSocket::over(&mut client, "/socket").await;
    let path = format!("{}?deadline=1s", backend_path(&a));
    let draining = balancer.change("PATCH", &path, Some(json!({ "state": "draining" })));
    let (drained, ()) = tokio::join!(draining, socket.echo("until then"));
    assert_eq!(drained["killed"], 1, "{drained}");
    socket.ended().await;
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0);
}

#[tokio::test]
async fn a_stop_leaves_them_until_its_deadline() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(Config::of([&a]).server("shutdown_timeout = \"2s\"")).await;
    let mut staying = Http2::connect_plain(balancer.address()).await;
    let mut socket = WebSocket::over(&mut staying, "/socket").await;
    let mut silent = Http2::connect_plain(balancer.address()).await;
    assert_eq!(silent.get("/").await.status, 200);
    balancer.signal(Signal::SIGTERM);
    silent.closed().await.expect("a friendly end");
    socket.echo("after the GOAWAY").await;
    socket.ended().await;
    balancer.process().end().await;
}

#[tokio::test]
async fn closing_many_is_no_attack() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    for _ in 0..150 {
        let (_, mut tunnel) = client.websocket("/socket", &[]).await.expect("a WebSocket");
        tunnel.send.send_data(Bytes::new(), false).expect("an open stream");
        // As browsers do when a page is left.
        tunnel.send.send_reset(Reason::CANCEL);
    }
    assert_eq!(client.get("/").await.status, 200);
}
