//! How connections of HTTP/2 end: by GOAWAY, after what was begun on them, and so that the client can read why.

use std::time::Duration;

use h2::Reason;
use tests::http2::{self, Http2, PREFACE, frame, kind, literals, reply, request, rest, tls_over, write};
use tests::wire::narrow;
use tests::{Balancer, End, Origin, Pool, eventually, response, within};
use tokio::io::AsyncWriteExt;

use super::{answers_by_size, config, half_a_head, requests};

// A third GOAWAY came before the end.
#[tokio::test]
async fn a_stop_sends_two_goaways() {
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

#[tokio::test]
async fn idle_clients_are_shed() {
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
    let answer = within("a response", answer).await.expect("a response");
    balancer.signal(nix::sys::signal::Signal::SIGTERM);
    // Longer than whatever carries nothing has to end.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let reply = http2::whole(answer).await;
    assert_eq!((reply.end, reply.body.len()), (End::Complete, content.len()));
    client.closed().await.expect("a friendly end");
    assert!(balancer.process().end().await.success());
}

// What TLS held of a response was taken for sent: a stop gave it a second, and cut it off.
#[tokio::test]
async fn a_stop_waits_for_bytes_that_tls_has_buffered() {
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

// The connection was closed at once after the GOAWAY, which resets it while the client writes: the client failed to
// write before it had read why it has to leave.
#[tokio::test]
async fn a_client_that_still_writes_can_read_the_reason_for_goaway() {
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
