//! HTTP/2 from clients: the same promises as over HTTP/1.1, and what only HTTP/2 makes possible.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use tests::deadline::is_acknowledgement_told;
use tests::http2::{
    self, Http2, PREFACE, frame, kind, literals, next_frame, reply, request, rest, tls, tls_over, write,
};
use tests::wire::narrow;
use tests::{Balancer, Config, End, Origin, Pool, Port, Step, eventually, response, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

const SHORT_TIMEOUTS: &str = "header_timeout = \"300ms\"\nkeepalive_timeout = \"300ms\"\nbody_timeout = \"300ms\"";

fn config<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Config {
    Config::of(origins).listener(&tls())
}

/// HEADERS of a GET, with END_STREAM, whose END_HEADERS is still to come.
fn half_a_head(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    frame(kind::HEADERS, 1, stream, &literals(&fields))
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
async fn who_keeps_a_connection_silent_is_let_go() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener(SHORT_TIMEOUTS)).await;
    let half_a_head = [PREFACE, &half_a_head(1)].concat();
    for sent in [&b""[..], b"PRI * HT", PREFACE, &half_a_head] {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, sent).await;
        rest(&mut client).await;
    }
    let balancer = Balancer::start(config([&a]).listener("keepalive_timeout = \"300ms\"")).await;
    let mut client = Http2::connect(balancer.address()).await;
    assert_eq!(client.get("/").await.status, 200);
    client.closed().await.expect("a friendly end");
}

// They had no limit for as long as another stream was served.
#[tokio::test]
async fn what_is_begun_has_to_end_in_time_whatever_else_is_served() {
    let a = Origin::start("a").await;
    let limits = "header_timeout = \"300ms\"\nbody_timeout = \"500ms\"";
    let balancer = Balancer::start(config([&a]).listener(limits)).await;
    let held = [(":method", "GET"), (":scheme", "https"), (":path", "/hold"), (":authority", "x")];
    let held = frame(kind::HEADERS, 5, 1, &literals(&held));
    let ping = frame(kind::PING, 0, 0, b"8 bytes.");
    let upload = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let upload = frame(kind::HEADERS, 4, 3, &literals(&upload));
    let content = frame(kind::DATA, 0, 3, &[b'x'; 10_000]);
    // What is begun, and what may follow for good without an end of it.
    let begun: [(Vec<u8>, &[u8]); 4] = [
        (half_a_head(3), b""),
        (half_a_head(3), &frame(kind::CONTINUATION, 0, 3, &literals(&[("x", "y")]))),
        (ping[..10].to_vec(), b""),
        ([&upload[..], &content[..100]].concat(), b""),
    ];
    for (begun, more) in begun {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, &[PREFACE, &held, &begun].concat()).await;
        let (mut from, mut to) = tokio::io::split(client);
        let dripping = async {
            while to.write_all(more).await.is_ok() && to.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        let goaway = async {
            tokio::select! {
                goaway = http2::frame_of(&mut from, kind::GOAWAY) => goaway,
                () = dripping => unreachable!("it never ends"),
            }
        };
        let goaway = within("a GOAWAY", goaway).await;
        assert_eq!(goaway.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{begun:?}");
    }
    balancer.is_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0);
    let errors = balancer.metrics().await.sum("evenkeel_http2_connection_errors_total", &[("reason", "timeout")]);
    assert_eq!(errors, 4.0);
    balancer.logs(&["WARN", "timeout", "an HTTP/2 connection"]).await;
}

// A frame was no progress before all of it had come: it ended the upload, and the connection with all its streams.
#[tokio::test]
async fn content_counts_as_it_comes_however_large_its_frame_is() {
    let a = Origin::start("a").await;
    let limits = "header_timeout = \"1s\"\nbody_timeout = \"1s\"";
    let balancer = Balancer::start(config([&a]).listener(limits)).await;
    let mut client = http2::connect(balancer.address()).await;
    let fields = [(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    write(&mut client, &[PREFACE, &frame(kind::HEADERS, 4, 1, &literals(&fields))].concat()).await;
    let content = frame(kind::DATA, 1, 1, &[b'x'; 16_000]);
    for piece in content.chunks(1_000) {
        write(&mut client, piece).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = async {
        loop {
            let frame = next_frame(&mut client).await.expect("a frame");
            if frame.stream == 1 {
                break frame;
            }
        }
    };
    let answer = within("an answer", answer).await;
    // HPACK's number for ":status 200".
    assert_eq!((answer.kind, answer.payload[0]), (kind::HEADERS, 0x88), "{answer:?}");
    assert_eq!(a.last_request().body.len(), 16_000);
}

// A third GOAWAY came before the end.
#[tokio::test]
async fn a_stop_tells_by_two_goaways() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(config([&a])).await;
    let held = [(":method", "GET"), (":scheme", "https"), (":path", "/hold"), (":authority", "x")];
    let held = [PREFACE, &frame(kind::HEADERS, 5, 1, &literals(&held))].concat();
    // One answers the PING, one does not, and one closes its side.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = http2::connect(balancer.address()).await;
        write(&mut client, &held).await;
        clients.push(client);
    }
    eventually("the requests arrived", async || a.heads() == 3).await;
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    let mut told = Vec::new();
    for (at, mut client) in clients.into_iter().enumerate() {
        let goaway = within("a GOAWAY", http2::frame_of(&mut client, kind::GOAWAY)).await;
        assert_eq!(goaway.payload, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        let ping = within("a PING", http2::frame_of(&mut client, kind::PING)).await;
        match at {
            0 => write(&mut client, &frame(kind::PING, 1, 0, &ping.payload)).await,
            1 => {}
            _ => client.shutdown().await.expect("an open connection"),
        }
        told.push(client);
    }
    // Those that are still there.
    eventually("the one that has closed is gone", async || balancer.in_flight().await == 2).await;
    a.release();
    for mut client in told.into_iter().take(2) {
        let mut goaways = Vec::new();
        let reading = async {
            while let Ok(frame) = http2::next_frame(&mut client).await {
                if frame.kind == kind::GOAWAY {
                    goaways.push(frame.payload);
                }
            }
        };
        within("the end", reading).await;
        assert_eq!(goaways, [[0, 0, 0, 1, 0, 0, 0, 0]]);
    }
    assert!(balancer.process().end().await.success());
    assert!(!balancer.log().contains("cut off"), "{}", balancer.log());
}

// Their backends had paused in the midst of their responses, and held all the turns that there are: nothing moved until
// one of them went on.
#[tokio::test]
async fn responses_that_pause_hold_up_no_others() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.target.strip_prefix("/pauses/") {
        Some(size) => {
            let size: usize = size.parse().expect("a number");
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            let chunk = [format!("{size:x}\r\n").as_bytes(), &vec![b'x'; size], b"\r\n"].concat();
            vec![Step::Send([head.as_bytes(), &chunk].concat()), Step::Hold, Step::Send(b"0\r\n\r\n".to_vec())]
        }
        None => vec![Step::Send(response(200, &[], vec![b'x'; 200_000]))],
    });
    let balancer = Balancer::start(config([&a]).server("threads = 1")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    // All of the connection's window, which the client opens no further for now.
    let mut pausing = Vec::new();
    for size in [16_383, 16_383, 16_383, 16_383, 3] {
        let (answer, _) = client.begin(request("GET", &format!("/pauses/{size}"), &[]), true).await;
        let mut content = within("a response", answer).await.expect("a response").into_body();
        let mut came = 0;
        while came < size {
            came += within("content", content.data()).await.expect("more").expect("content").len();
        }
        pausing.push((content, came));
    }
    for (content, came) in &mut pausing {
        content.flow_control().release_capacity(*came).expect("an open stream");
    }
    assert_eq!(client.get("/").await.body.len(), 200_000);
    a.release();
    for (mut content, _) in pausing {
        while let Some(rest) = within("the end", content.data()).await {
            assert!(rest.expect("an orderly end").is_empty());
        }
    }
}

#[tokio::test]
async fn pings_keep_no_connection_open() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener(SHORT_TIMEOUTS)).await;
    let mut client = http2::connect(balancer.address()).await;
    write(&mut client, PREFACE).await;
    let pinging = async {
        while client.write_all(&frame(kind::PING, 0, 0, b"8 bytes.")).await.is_ok() && client.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of a connection that only pings", pinging).await;
}

#[tokio::test]
async fn idle_clients_make_room() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).server("max_connections = 8\nthreads = 1")).await;
    let mut silent = Vec::new();
    for count in 0..8 {
        if count % 2 == 0 {
            silent.push(http2::connect(balancer.address()).await);
        } else {
            let mut client = Http2::connect(balancer.address()).await;
            assert_eq!(client.get("/").await.status, 200);
            tokio::spawn(async move { client.closed().await });
        }
    }
    let mut client = within("room for another client", Http2::connect(balancer.address())).await;
    assert_eq!(client.get("/").await.status, 200);
    assert!(balancer.metrics().await.sum("evenkeel_client_connections_shed_total", &[]) >= 1.0);
}

#[tokio::test]
async fn uploads_that_never_end_are_nobodys_failure_but_the_clients() {
    let origins = Origin::several(["a", "b"]).await;
    let pool = Pool::of("app", &origins).ejection("consecutive_failures = 1");
    let settings = format!("{}\n{SHORT_TIMEOUTS}", tls());
    let balancer = Balancer::start(Config::default().pool(pool).listener(&settings)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let mut uploads = Vec::new();
    for count in 0..100 {
        // Small ones are read before a backend is chosen; the others are under way to one.
        let length = if count % 2 == 0 { "10" } else { "1000000" };
        let (answer, mut body) = client.begin(request("POST", "/", &[("content-length", length)]), false).await;
        body.send_data(Bytes::from_static(b"begun"), false).expect("an open stream");
        uploads.push((answer, body));
    }
    for (answer, _body) in uploads {
        if let Ok(answer) = reply(answer).await {
            assert_eq!(answer.status, 408);
        }
    }
    balancer.is_idle().await;
    for origin in &origins {
        assert_eq!(balancer.backend(origin).await["failures"], 0);
        balancer.sees(origin, "healthy").await;
    }
}

// Forty of them used to leave no window to the rest of their connection, for as long as `write_timeout` after the
// client had reset them.
#[tokio::test]
async fn uploads_that_nobody_reads_hold_up_no_others() {
    let a = Origin::start("a").await;
    let port = Port::reserve();
    let _never_read = port.listen_with_small_buffers();
    let stuck = Pool::empty("stuck").backend(&port.address().to_string(), "").without_ejection();
    let config = config([&a]).pool(stuck).route("", "/", "app").route("", "/stuck", "stuck");
    let balancer = Balancer::start(config).await;
    let mut client = Http2::connect(balancer.address()).await;
    let mut uploads = Vec::new();
    for _ in 0..40 {
        let (answer, mut body) = client.begin(request("POST", "/stuck", &[]), false).await;
        body.send_data(Bytes::from(vec![b'x'; 1 << 20]), false).expect("an open stream");
        uploads.push((answer, body));
    }
    // Until the buffers are full: too short a pause would hide the fault, never make one.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (answer, mut body) = client.begin(request("POST", "/", &[]), false).await;
    body.send_data(Bytes::from(vec![b'y'; 256 << 10]), true).expect("an open stream");
    assert_eq!(reply(answer).await.expect("a response").status, 200);
    for (_, body) in &mut uploads {
        body.send_reset(Reason::CANCEL);
    }
    balancer.is_idle().await;
    assert_eq!(client.get("/").await.status, 200);
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
        balancer.is_idle().await;
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
async fn what_would_be_another_request_in_http_1_goes_no_further() {
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
async fn late_content_and_fields_that_cannot_be_read_are_told_from_other_errors() {
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
async fn a_response_that_breaks_off_is_no_whole_one() {
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
async fn trailers_pass_both_ways_but_those_that_must_not() {
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
    balancer.is_idle().await;
}

#[tokio::test]
async fn a_stop_waits_for_streams_and_not_for_silence() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(config([&a])).await;
    let mut silent = Http2::connect(balancer.address()).await;
    assert_eq!(silent.get("/").await.status, 200);
    // These would not even answer a GOAWAY.
    let mut deaf = http2::connect(balancer.address()).await;
    write(&mut deaf, &[PREFACE, &half_a_head(1)].concat()).await;
    let mut mute = http2::connect(balancer.address()).await;
    let mut busy = Http2::connect(balancer.address()).await;
    let (answer, _) = busy.begin(request("GET", "/hold", &[]), true).await;
    eventually("the request arrived", async || a.heads() == 2).await;
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    silent.closed().await.expect("a friendly end");
    rest(&mut deaf).await;
    rest(&mut mute).await;
    assert!(!busy.is_closed());
    a.release();
    let answer = reply(answer).await.expect("a response");
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    busy.closed().await.expect("a friendly end");
    assert!(balancer.process().end().await.success());
    assert!(!balancer.log().contains("cut off"), "{}", balancer.log());
}

#[tokio::test]
async fn a_window_that_is_opened_after_the_stop_is_used() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::start(config([&a])).await;
    let content = vec![b'x'; 200_000];
    a.answer_with(response(200, &[], &content));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let (_, mut body) = within("a response", answer).await.expect("a response").into_parts();
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    // Longer than whatever carries nothing has to end.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut received = 0;
    while let Some(data) = within("content", body.data()).await {
        let data = data.expect("all of the content");
        received += data.len();
        body.flow_control().release_capacity(data.len()).expect("an open stream");
    }
    assert_eq!(received, content.len());
    client.closed().await.expect("a friendly end");
    assert!(balancer.process().end().await.success());
}

#[tokio::test]
async fn a_large_response_holds_up_no_small_one() {
    let a = Origin::start("a").await;
    a.answer(|request| {
        vec![Step::Send(response(200, &[], vec![b'x'; if request.target == "/" { 10 } else { 64 << 20 }]))]
    });
    let balancer = Balancer::start(config([&a])).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/large", &[]), true).await;
    let (_, mut body) = within("a response", answer).await.expect("a response").into_parts();
    let large = tokio::spawn(async move {
        let mut received = 0;
        while let Some(data) = body.data().await {
            received += data.expect("content").len();
        }
        received
    });
    assert_eq!(client.get("/").await.body.len(), 10);
    assert!(!large.is_finished(), "the small one came behind the large one");
    assert_eq!(large.await.expect("no panic"), 64 << 20);
}

// What TLS held of a response was taken for sent: a stop gave it a second, and cut it off.
#[tokio::test]
async fn a_stop_waits_for_what_tls_has_still_to_send() {
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let mut balancer = Balancer::start(config([&a])).await;
    // Some size is more than the sockets take and less than the buffers do besides.
    let sizes: Vec<usize> = (1..=12).map(|n| n * 30_000).collect();
    let mut clients = Vec::new();
    for size in &sizes {
        let mut client = tls_over(b"h2", narrow(balancer.address(), 1400).await).await.expect("a handshake");
        write(&mut client, &requests(1, *size)).await;
        clients.push(client);
    }
    eventually("all requests have come", async || a.heads() == 12).await;
    let served = async || balancer.metrics().await.sum("evenkeel_requests_total", &[]);
    eventually("all that fit into buffers are served", async || served().await >= 4.0).await;
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    // Longer than a connection has to close.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for (client, size) in clients.iter_mut().zip(sizes) {
        let came = rest(client).await.len();
        assert!(came > size, "{came} bytes came of a response of {size}");
    }
    assert!(balancer.process().end().await.success());
}

#[tokio::test]
async fn a_stop_waits_for_no_refused_upload() {
    let a = Origin::start("a").await;
    let listener = "max_body_bytes = 10\nlingering_time = \"1h\"\nlingering_timeout = \"1h\"";
    let mut balancer = Balancer::start(config([&a]).listener(listener)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, _upload) = client.begin(request("POST", "/", &[("content-length", "1000")]), false).await;
    assert_eq!(reply(answer).await.expect("a response").status, 413);
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(balancer.process().end().await.success());
    assert!(!balancer.log().contains("cut off"), "{}", balancer.log());
}

// It used to be noticed when the backend read on, or after `write_timeout`.
#[tokio::test]
async fn a_client_that_cancels_an_upload_which_nobody_takes_is_noticed() {
    let a = Origin::start("a").await;
    a.at_head(|_| vec![Step::Hold]);
    let balancer = Balancer::start(config([&a]).listener("max_body_bytes = 100000000")).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
    // More than the buffers on the way hold.
    upload.send_data(vec![b'x'; 50_000_000].into(), false).expect("an open stream");
    eventually("the head arrived", async || a.heads() == 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    upload.send_reset(Reason::CANCEL);
    drop(answer);
    balancer.is_idle().await;
}

// `min_rate` used to hold for HTTP/1.1 alone.
#[tokio::test]
async fn a_stream_is_as_slow_as_its_whole_connection() {
    let a = Origin::start("a").await;
    // Far more than the rate demands, however slow the machine is.
    a.answer_with(response(200, &[], vec![b'x'; 10_000]));
    let balancer = Balancer::start(config([&a]).listener("min_rate = 1000")).await;
    let drip = async |is_busy: bool| {
        let mut client = Http2::connect(balancer.address()).await;
        let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
        let answering = tokio::spawn(reply(answer));
        let begun = Instant::now();
        // Longer than the grace.
        while !answering.is_finished() && begun.elapsed() < Duration::from_secs(8) {
            let _ = upload.send_data(Bytes::from_static(b"x"), false);
            if is_busy {
                assert_eq!(client.get("/").await.status, 200);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = upload.send_data(Bytes::new(), true);
        answering.await.expect("no panic").expect("a response").status
    };
    let (alone, busy) = tokio::join!(drip(false), drip(true));
    assert_eq!((alone, busy), (408, 200));
    balancer.is_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

// PINGs, or responses on other streams, used to keep it open for good.
#[tokio::test]
async fn a_stream_whose_window_stays_shut_ends_whatever_else_moves() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"500ms\"")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let mut content = within("a head", answer).await.expect("a response").into_body();
    let ended = tokio::spawn(async move { content.data().await });
    let busy = async {
        while !ended.is_finished() {
            let (answer, _) = client.begin(request("HEAD", "/", &[]), true).await;
            assert_eq!(answer.await.expect("a response").status(), 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of the stream", busy).await;
    let Ok(Some(Err(reset))) = ended.await else { panic!("content that no window was opened for") };
    assert!(reset.is_reset(), "{reset}");
    let mut client = http2::connect(balancer.address()).await;
    let settings = frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let asked = frame(kind::HEADERS, 5, 1, &literals(&fields));
    write(&mut client, &[PREFACE, &settings, &asked].concat()).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    let reset = tokio::spawn(async move { http2::frame_of(&mut reading, kind::RST_STREAM).await });
    let pinging = async {
        while !reset.is_finished() {
            write(&mut writing, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("a reset", pinging).await;
}

// A byte of window renewed `send_timeout`, and `min_rate` was asked of all streams together.
#[tokio::test]
async fn a_stream_whose_window_is_opened_too_slowly_ends_whatever_else_moves() {
    let a = Origin::start("a").await;
    a.answer(|request| match request.method.as_str() {
        "HEAD" => vec![Step::Send(response(204, &[], ""))],
        _ => vec![Step::Send(response(200, &[], vec![b'x'; 10_000]))],
    });
    let balancer = Balancer::start(config([&a]).listener("min_rate = 1000")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let mut content = within("a head", answer).await.expect("a response").into_body();
    let sipping = tokio::spawn(async move {
        while let Some(data) = content.data().await {
            let sip = data?.len();
            tokio::time::sleep(Duration::from_millis(100)).await;
            content.flow_control().release_capacity(sip)?;
        }
        Ok::<_, h2::Error>(())
    });
    let busy = async {
        while !sipping.is_finished() {
            let (answer, _) = client.begin(request("HEAD", "/", &[]), true).await;
            assert_eq!(answer.await.expect("a response").status(), 204);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the end of the stream", busy).await;
    let reset = sipping.await.expect("no panic").expect_err("content that is taken too slowly");
    assert!(reset.is_reset(), "{reset}");
}

/// Answers `/{size}` with so many bytes.
fn answers_by_size(a: &Origin) {
    a.answer(|request| {
        vec![Step::Send(response(200, &[], vec![b'x'; request.target[1..].parse().expect("a number")]))]
    });
}

// Each byte of the connection's window was progress of all streams that waited for it.
#[tokio::test]
async fn streams_end_whose_connection_opens_its_window_by_single_bytes() {
    // By the second setting all of them do. By the first as many are left as get a byte in this time.
    let drip = async |limits: &str, ended: usize| {
        let a = Origin::start("a").await;
        answers_by_size(&a);
        let balancer = Balancer::start(config([&a]).listener(limits)).await;
        let client = http2::connect(balancer.address()).await;
        let (mut reading, mut writing) = tokio::io::split(client);
        write(&mut writing, &requests_in(100, 1 << 20, None)).await;
        let resets = tokio::spawn(async move {
            for _ in 0..ended {
                http2::frame_of(&mut reading, kind::RST_STREAM).await;
            }
        });
        let dripping = async {
            while !resets.is_finished() {
                write(&mut writing, &frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        within("the end of the streams", dripping).await;
        resets.await.expect("no panic");
        let left = 100 - ended as u64;
        eventually("their backends are free", async || balancer.in_flight().await <= left).await;
    };
    tokio::join!(drip("send_timeout = \"500ms\"\nmin_rate = 0", 80), drip("min_rate = 1000000", 100));
}

// What other streams had sent in the meantime must not be counted against one whose turn has not come.
#[tokio::test]
async fn streams_that_wait_for_the_turns_of_others_are_not_slow() {
    const WINDOW: u32 = 64_000;
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"2s\"\nmin_rate = 1000")).await;
    let client = http2::connect(balancer.address()).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    write(&mut writing, &requests_in(100, 40_000, None)).await;
    let came = tokio::spawn(async move {
        let mut came = 0;
        while came < 100 * 40_000 {
            let frame = next_frame(&mut reading).await.expect("an open connection");
            assert_ne!(frame.kind, kind::RST_STREAM, "after {came} bytes");
            came += if frame.kind == kind::DATA { frame.payload.len() } else { 0 };
        }
    });
    // A frame for each of them takes longer than `send_timeout`.
    let opening = async {
        while !came.is_finished() {
            write(&mut writing, &frame(kind::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes())).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    within("all content", opening).await;
    came.await.expect("all content");
}

// The system calls a socket writable once a third of what it buffers has gone: until then nothing was written, and the
// client was taken for one that does not read.
#[tokio::test]
async fn a_client_that_reads_slowly_and_steadily_is_served_however_much_is_buffered() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let balancer = Balancer::start(config([&a]).listener("send_timeout = \"2s\"")).await;
    let mut client = http2::connect(balancer.address()).await;
    let size = 40_000_000;
    write(&mut client, &requests(1, size)).await;
    let (begun, mut came) = (Instant::now(), 0);
    let reading = async {
        while came < size {
            let mut sip = vec![0; if begun.elapsed() < Duration::from_secs(8) { 10_000 } else { 100_000 }];
            match client.read(&mut sip).await {
                Ok(count @ 1..) => came += count,
                _ => break,
            }
            if sip.len() == 10_000 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    within("all of it", reading).await;
    assert!(came >= size, "{came} bytes came in {:?}", begun.elapsed());
}

// The log counted up to 16 KiB that no window had been opened for.
#[tokio::test]
async fn the_log_tells_how_much_of_a_response_was_sent() {
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

// The lease used to be kept until the refusal was written.
#[tokio::test]
async fn a_refusal_that_a_client_does_not_read_holds_no_backend() {
    let a = Origin::start("a").await;
    a.at_head(|_| vec![Step::Hold]);
    let balancer = Balancer::start(config([&a]).listener("max_body_bytes = 100000\nsend_timeout = \"1h\"")).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = Http2::over(tests::http2::connect(balancer.address()).await, builder).await;
    let (answer, mut upload) = client.begin(request("POST", "/", &[]), false).await;
    eventually("the head arrived", async || a.heads() == 1).await;
    upload.send_data(vec![b'x'; 200_000].into(), false).expect("an open stream");
    let answer = within("a head", answer).await.expect("a response");
    assert_eq!(answer.status(), 413);
    balancer.is_idle().await;
}

#[tokio::test]
async fn a_client_that_cancels_lets_its_backend_go_and_must_not_do_only_that() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).app(Pool::without_ejection)).await;
    let mut client = Http2::connect(balancer.address()).await;
    let (answer, mut stream) = client.begin(request("GET", "/hold", &[]), true).await;
    eventually("the request arrived", async || a.heads() == 1).await;
    stream.send_reset(Reason::CANCEL);
    drop(answer);
    eventually("the backend is left", async || a.abandoned() == 1).await;
    balancer.is_idle().await;
    assert_eq!(client.get("/").await.status, 200);

    let cancelling = async {
        // Many at once: over time, some are forgiven.
        'connected: loop {
            let mut begun = Vec::new();
            for _ in 0..20 {
                let Ok(mut sender) = client.sender.clone().ready().await else { break 'connected };
                let Ok(one) = sender.send_request(request("GET", "/hold", &[]), true) else { break 'connected };
                begun.push(one);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            for (_, mut stream) in begun {
                stream.send_reset(Reason::CANCEL);
            }
        }
    };
    within("the end of a connection that cancels everything", cancelling).await;
    let error = client.closed().await.expect_err("an end with a reason");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
}

// The connection was closed at once after the GOAWAY, which resets it while the client writes: the client failed to
// write before it had read why it has to leave.
#[tokio::test]
async fn a_client_that_still_writes_can_read_why_it_has_to_leave() {
    const END_STREAM_AND_HEADERS: u8 = 5;
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).app(Pool::without_ejection)).await;
    let mut client = http2::connect(balancer.address()).await;
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/hold"), (":authority", "x")];
    let cancelled = |n: u32| {
        let head = frame(kind::HEADERS, END_STREAM_AND_HEADERS, 2 * n + 1, &literals(&fields));
        let reset = frame(kind::RST_STREAM, 0, 2 * n + 1, &u32::from(Reason::CANCEL).to_be_bytes());
        [head, reset].concat()
    };
    write(&mut client, PREFACE).await;
    write(&mut client, &(0..1_500).flat_map(cancelled).collect::<Vec<u8>>()).await;
    let goaway = within("a GOAWAY", http2::payload_of(&mut client, kind::GOAWAY)).await;
    for _ in 0..50 {
        write(&mut client, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(goaway[4..8], u32::from(Reason::ENHANCE_YOUR_CALM).to_be_bytes(), "{goaway:?}");
}

/// A connection is not idle while a response is on its way, however long that takes.
#[tokio::test]
async fn what_a_slow_reader_has_still_to_get_is_not_cut_off() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(config([&a]).listener("keepalive_timeout = \"100ms\"")).await;
    let content = vec![b'x'; 40_000];
    a.answer_with(response(200, &[], &content));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000).initial_connection_window_size(1000);
    let mut client = Http2::over(http2::connect(balancer.address()).await, builder).await;
    let (answer, _) = client.begin(request("GET", "/", &[]), true).await;
    let (_, mut body) = within("a response", answer).await.expect("a response").into_parts();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut received = 0;
    while let Some(data) = within("content", body.data()).await {
        let data = data.expect("all of the content");
        received += data.len();
        body.flow_control().release_capacity(data.len()).expect("an open stream");
    }
    assert_eq!(received, content.len());
}

// What a client cancelled was counted as a malformed request, and among the WebSockets.
#[tokio::test]
async fn whose_fault_a_failure_is_is_told_as_over_http_1() {
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

// Once all of them were in buffers, the client had `keepalive_timeout` and `send_timeout` for everything; and a stream
// had `send_timeout` until its turn came, whatever the client took meanwhile.
#[tokio::test]
async fn a_client_that_reads_slowly_and_without_pause_has_all_responses() {
    let a = Origin::start("a").await;
    answers_by_size(&a);
    let settings = format!("{}\nkeepalive_timeout = \"200ms\"\nsend_timeout = \"1500ms\"", tls());
    let balancer = Balancer::start(Config::of([&a]).listener(&settings)).await;
    // What fits into the buffer of a stream, and what does not. It is read so fast that a third of a full send buffer
    // takes less than the limit: the system reports no less as progress.
    let buffered = read_in_sips(&balancer, 50, 60_000);
    let streaming = read_in_sips(&balancer, 100, 80_000);
    tokio::join!(buffered, streaming);
}

/// Asks for so many responses of so many bytes at once. For a time they are read slowly, then they all have to come.
async fn read_in_sips(balancer: &Balancer, count: u32, size: usize) {
    const BYTES_PER_SECOND: f64 = 800_000.0;
    let mut client = tls_over(b"h2", narrow(balancer.address(), 1400).await).await.expect("a handshake");
    write(&mut client, &requests(count, size)).await;
    let (begun, mut came) = (Instant::now(), 0);
    let reading = async {
        while came < count as usize * size {
            match client.read(&mut [0; 16_000]).await {
                Ok(count @ 1..) => came += count,
                _ => break,
            }
            if begun.elapsed() < Duration::from_secs(4) {
                // Not by equal pauses: on a busy machine they take longer.
                let due = begun + Duration::from_secs_f64(came as f64 / BYTES_PER_SECOND);
                tokio::time::sleep_until(due.into()).await;
            }
        }
    };
    within("all of it", reading).await;
    assert!(came >= count as usize * size, "{came} of {count} * {size} bytes came in {:?}", begun.elapsed());
}

#[tokio::test]
async fn refusals_are_told_as_over_http_1() {
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
