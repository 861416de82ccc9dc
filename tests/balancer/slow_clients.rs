//! Slow clients, malicious or not: what they cost, and when they are disconnected.

use std::time::{Duration, Instant};

use tests::deadline::is_acknowledgement_told;
use tests::http2::{Http2, reply, request, tls};
use tests::{Balancer, Config, End, Origin, Pool, Port, Request, Step, Wire, eventually, response, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// More than is buffered before a backend is chosen.
const LARGE: usize = 100_000;
/// A rate that no client here reaches, required after the grace.
const BRISK: &str = "min_rate = 100000000";

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_small_body_is_buffered_before_a_backend_is_chosen() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("min_rate = 0")).await;
    let mut wire = balancer.connect().await;
    wire.send(post(10)).await;
    for _ in 0..9 {
        wire.send("x").await;
        // Another client is served meanwhile, and is the only one.
        assert_eq!(balancer.get("/").await.status, 200);
        balancer.until_idle().await;
    }
    let before = a.heads();
    wire.send("xGET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, &reply.json()["body_length"]), (200, &10.into()));
    assert_eq!(wire.reply().await.status, 200, "what follows the body is the next request");
    assert_eq!(a.heads(), before + 2);
}

#[tokio::test]
async fn a_client_that_disconnects_within_a_small_body_is_no_backend_failure() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for leave_by_reset in [true, false] {
        let mut wire = balancer.connect().await;
        wire.send(post(10) + "half").await;
        if leave_by_reset {
            wire.reset();
        }
    }
    assert_eq!(balancer.get("/").await.status, 200);
    balancer.until_idle().await;
    assert_eq!(a.heads(), 1);
    assert_eq!(balancer.backend(&a).await["failures"], 0);
}

#[tokio::test]
async fn a_dripping_body_is_408_at_min_rate() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(BRISK)).await;
    for length in [1000, LARGE] {
        let mut wire = balancer.connect().await;
        let begun = Instant::now();
        wire.send(post(length)).await;
        let dripping = async {
            wire.send("x").await;
            while !wire.has_answer_within(Duration::from_millis(100)).await {
                wire.send("x").await;
            }
        };
        within("an answer", dripping).await;
        assert_eq!(wire.reply().await.status, 408);
        assert!(begun.elapsed() > Duration::from_secs(4), "not before the grace is over: {:?}", begun.elapsed());
        assert!(wire.is_closed().await);
    }
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0, "the client's fault, not the backend's");
}

// Bytes that arrived while waiting for the backend, such as the first part, did not count.
#[tokio::test]
async fn a_client_that_has_sent_much_may_pause() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    wire.send(post(2 * LARGE)).await;
    wire.send(vec![b'x'; LARGE]).await;
    // Longer than the grace.
    tokio::time::sleep(Duration::from_secs(6)).await;
    wire.send(vec![b'x'; LARGE]).await;
    assert_eq!(wire.reply().await.status, 200);
}

#[tokio::test]
async fn a_client_that_reads_in_sips_is_disconnected() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(BRISK)).await;
    // Spliced, and copied.
    for length in ["Content-Length: 40000000\r\n", ""] {
        let head = format!("HTTP/1.1 200 OK\r\n{length}\r\n").into_bytes();
        a.answer(move |_| vec![Step::Send(head.clone()), Step::Send(vec![b'x'; 40_000_000]), Step::Close]);
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/").to_bytes()).await;
        assert_eq!(wire.reply_head().await.status, 200);
        within("its end", async {
            while balancer.in_flight().await > 0 {
                wire.sip(10_000).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        assert!(wire.rest().await.0.len() < 40_000_000, "it was cut off");
    }
}

// The system calls a socket writable once a third of what it buffers has gone: until then nothing was written, and the
// client was taken for one that does not read.
#[tokio::test]
async fn a_client_that_reads_slowly_and_steadily_is_served_however_much_is_buffered() {
    const SIZE: usize = 40_000_000;
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    a.answer(|request| {
        // Spliced, and copied.
        let length = if request.target == "/plain" { format!("Content-Length: {SIZE}\r\n") } else { String::new() };
        let head = format!("HTTP/1.1 200 OK\r\n{length}\r\n").into_bytes();
        vec![Step::Send(head), Step::Send(vec![b'x'; SIZE]), Step::Close]
    });
    let balancer = Balancer::start(Config::of([&a]).listener("send_timeout = \"2s\"")).await;
    let read = async |path: &str| {
        let mut wire = balancer.connect().await;
        wire.send(Request::get(path).with("Connection", "close").to_bytes()).await;
        assert_eq!(wire.reply_head().await.status, 200);
        let (begun, mut came) = (Instant::now(), wire.buffer.len());
        while begun.elapsed() < Duration::from_secs(8) {
            came += wire.sip(10_000).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        wire.buffer.clear();
        // In chunks where it has no length.
        assert!(came + wire.rest().await.0.len() >= SIZE, "{path}");
    };
    tokio::join!(read("/plain"), read("/chunked"));
}

// The same towards a backend: it was taken for one that does not read, and the upload failed.
#[tokio::test]
async fn a_backend_that_reads_slowly_and_steadily_is_served_however_much_is_buffered() {
    const SIZE: usize = 40_000_000;
    if !is_acknowledgement_told() {
        return;
    }
    let port = Port::reserve();
    let listener = port.listen();
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let (begun, mut came) = (Instant::now(), 0);
        while came < SIZE {
            let is_slow = begun.elapsed() < Duration::from_secs(8);
            match stream.read(&mut vec![0; if is_slow { 10_000 } else { 100_000 }]).await? {
                0 => break,
                count => came += count,
            }
            if is_slow {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        stream.write_all(&response(200, &[], "")).await
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("write_timeout = \"2s\"");
    let balancer = Balancer::start(Config::default().pool(pool).listener("max_body_bytes = 100000000")).await;
    let mut wire = balancer.connect().await;
    assert_eq!(wire.exchange(&Request::post("/", vec![b'x'; SIZE])).await.status, 200);
    reading.await.expect("no panic").expect("an open connection");
}

/// A backend that takes little at a time for some seconds, then the rest, and answers. It can begin its response
/// before.
fn slow_backend(port: &Port, size: usize, begins_early: bool) -> tokio::task::JoinHandle<std::io::Result<()>> {
    let listener = port.listen();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        if begins_early {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await?;
        }
        let (begun, mut came) = (Instant::now(), 0);
        while came < size {
            let is_slow = begun.elapsed() < Duration::from_secs(5);
            match stream.read(&mut vec![0; if is_slow { 10_000 } else { 100_000 }]).await? {
                0 => break,
                count => came += count,
            }
            if is_slow {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let answer = if begins_early { b"done".to_vec() } else { response(200, &[], "done") };
        stream.write_all(&answer).await
    })
}

// Its time began when the request was in the send buffer, of which it still had to take megabytes: 504.
#[tokio::test]
async fn a_backend_that_still_takes_its_request_owes_no_response() {
    // Fits into the send buffer.
    const SIZE: usize = 1_200_000;
    if !is_acknowledgement_told() {
        return;
    }
    let upload = async |begins_early: bool| {
        let port = Port::reserve();
        let answering = slow_backend(&port, SIZE, begins_early);
        let limits = "response_timeout = \"2s\"\nread_timeout = \"2s\"";
        let pool = Pool::empty("app").backend(&port.address().to_string(), "").set(limits);
        let balancer = Balancer::start(Config::default().pool(pool).listener("max_body_bytes = 100000000")).await;
        let mut wire = balancer.connect().await;
        let reply = wire.exchange(&Request::post("/", vec![b'x'; SIZE])).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "done"), "begins early: {begins_early}");
        answering.await.expect("no panic").expect("an open connection");
    };
    tokio::join!(upload(false), upload(true));
}

#[tokio::test]
async fn a_backend_that_takes_nothing_of_its_request_owes_a_response_in_time() {
    let port = Port::reserve();
    // Its kernel takes what it has room for.
    let _listener = port.listen();
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("response_timeout = \"1s\"");
    let balancer = Balancer::start(Config::default().pool(pool).listener("max_body_bytes = 100000000")).await;
    let mut wire = balancer.connect().await;
    let begun = Instant::now();
    assert_eq!(wire.exchange(&Request::post("/", vec![b'x'; 1_200_000])).await.status, 504);
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

// A tunnel was idle when nothing could be written, whatever the backend still took of the send buffer.
#[tokio::test]
async fn a_tunnel_is_not_idle_while_its_backend_takes_what_was_sent() {
    const SIZE: usize = 1_200_000;
    if !is_acknowledgement_told() {
        return;
    }
    let port = Port::reserve();
    let listener = port.listen();
    let answering = tokio::spawn(async move {
        let mut wire = Wire::new(listener.accept().await?.0);
        wire.request_head().await?;
        let head = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        wire.stream.write_all(head.as_bytes()).await?;
        let (begun, mut came) = (Instant::now(), wire.buffer.len());
        while came < SIZE {
            let is_slow = begun.elapsed() < Duration::from_secs(5);
            match wire.stream.read(&mut vec![0; if is_slow { 10_000 } else { 100_000 }]).await? {
                0 => break,
                count => came += count,
            }
            if is_slow {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        wire.stream.write_all(came.to_string().as_bytes()).await
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("tunnel_timeout = \"2s\"");
    let balancer = Balancer::start(Config::default().pool(pool)).await;
    let mut wire = balancer.connect().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
    wire.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{upgrade}\r\nSec-WebSocket-Key: eA==\r\n\r\n")).await;
    assert_eq!(wire.reply_head().await.status, 101);
    wire.send(vec![b'x'; SIZE]).await;
    assert_eq!(String::from_utf8_lossy(&wire.rest().await.0), SIZE.to_string());
    answering.await.expect("no panic").expect("an open connection");
}

#[tokio::test]
async fn a_slow_client_above_min_rate_is_served() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = balancer.connect().await;
    wire.send(post(6000)).await;
    // A second of silence between pieces is more than the default rate tolerates.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        wire.send(vec![b'x'; 1000]).await;
    }
    assert_eq!(wire.reply().await.status, 200);
}

// Servers have their own timeouts for content. Five such clients caused an ejection. A reset is a failure: a server
// that has read everything closes without one.
#[tokio::test]
async fn a_backend_that_gives_up_on_a_slow_body_has_not_failed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.ejection("consecutive_failures = 1"))).await;
    for (end, reason, failures) in [(Step::Close, "closed-during-upload", 0), (Step::Reset, "reset", 1)] {
        a.at_head(move |_| vec![Step::Wait(Duration::from_millis(200)), end.clone()]);
        let mut wire = balancer.connect().await;
        wire.send(post(LARGE)).await;
        assert_eq!(wire.reply().await.status, 502);
        let backend = balancer.backend(&a).await;
        assert_eq!((&backend["failures"], &backend["status"]), (&failures.into(), &"healthy".into()));
        let labels = [("reason", reason)];
        let is_counted = async || balancer.metrics().await.sum("evenkeel_refusals_total", &labels) == 1.0;
        eventually("it is counted", is_counted).await;
    }
}

// Each line restarted the timeout.
#[tokio::test]
async fn blank_lines_keep_no_connection_open() {
    let a = Origin::start("a").await;
    let limits = "header_timeout = \"500ms\"\nkeepalive_timeout = \"500ms\"";
    let balancer = Balancer::start(Config::of([&a]).listener(limits)).await;
    for has_asked in [false, true] {
        let mut wire = balancer.connect().await;
        if has_asked {
            assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        }
        let mut pieces = 0;
        for piece in ["\r", "\n", "\r", "\n", "\r", "\n", "\r"] {
            if wire.stream.write_all(piece.as_bytes()).await.is_err() {
                break;
            }
            pieces += 1;
            if tokio::time::timeout(Duration::from_millis(400), wire.is_closed()).await == Ok(true) {
                break;
            }
        }
        assert!(pieces < 5, "{pieces} pieces, after a request: {has_asked}");
    }
}

#[tokio::test]
async fn half_closed_clients_are_answered_where_configured() {
    let a = Origin::start("a").await;
    for (setting, is_answered) in [("half_close = \"cancel\"", false), ("half_close = \"answer\"", true)] {
        let balancer = Balancer::start(Config::of([&a]).listener(setting)).await;
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("the request arrived", async || balancer.in_flight().await == 1).await;
        wire.close_sending().await;
        if is_answered {
            // The end would have been noticed by the time another client is served.
            assert_eq!(balancer.get("/").await.status, 200);
            eventually("it is the only one", async || balancer.in_flight().await == 1).await;
            a.release();
            let reply = wire.reply().await;
            assert_eq!((reply.status, reply.end), (200, End::Complete));
        } else {
            balancer.until_idle().await;
        }
        assert!(wire.is_closed().await);
        balancer.until_idle().await;
    }
    // Several requests at once, and then nothing: all are served.
    let balancer = Balancer::start(Config::of([&a]).listener("half_close = \"answer\"")).await;
    a.answer_with(response(200, &[], "here"));
    let mut wire = balancer.connect().await;
    wire.send(Request::get("/").to_bytes().repeat(3)).await;
    wire.close_sending().await;
    for _ in 0..3 {
        assert_eq!(wire.reply().await.text(), "here");
    }
    assert!(wire.is_closed().await);
}

/// Whichever thread serves the clients.
#[tokio::test]
async fn idle_clients_of_every_thread_are_shed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("max_connections = 4\nthreads = 8")).await;
    let mut idle = Vec::new();
    for _ in 0..4 {
        let mut wire = balancer.connect().await;
        assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        idle.push(wire);
    }
    for _ in 0..4 {
        let mut wire = balancer.connect().await;
        assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        idle.push(wire);
    }
}

// They were never idle for a second, so later clients were never served.
#[tokio::test]
async fn clients_that_keep_asking_make_room_too() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("max_connections = 2\nthreads = 1")).await;
    let asking = async || {
        let mut wire = balancer.connect().await;
        while wire.try_exchange(&Request::get("/")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let later = async {
        eventually("the others are served", async || a.heads() > 3).await;
        let mut wire = balancer.connect().await;
        wire.exchange(&Request::get("/")).await.status
    };
    let (first, second) = (std::pin::pin!(asking()), std::pin::pin!(asking()));
    let both = async { tokio::join!(first, second) };
    tokio::select! {
        status = later => assert_eq!(status, 200),
        _ = both => panic!("both were closed for one"),
    }
}

#[tokio::test]
async fn silent_tls_clients_are_shed() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("max_connections = 2\nthreads = 1").listener(&tls())).await;
    let _silent = [balancer.connect().await, balancer.connect().await];
    assert_eq!(Http2::connect(balancer.address()).await.get("/").await.status, 200);
    let shed = balancer.metrics().await.sum("evenkeel_client_connections_shed_total", &[]);
    assert!(shed >= 1.0, "they were given time, not shed");
}

#[tokio::test]
async fn backend_connections_leave_file_descriptors_for_the_rest() {
    let [a, b] = Origin::several(["a", "b"]).await;
    let pools = [Pool::of("a", [&a]), Pool::of("b", [&b])];
    let config = pools.into_iter().fold(Config::default(), Config::pool).route("", "/a", "a").route("", "/b", "b");
    let mut balancer = Balancer::prepare(&config.server("threads = 1").listener(&tls()));
    balancer.most_files = Some(512);
    balancer.launch();
    balancer.ready().await;

    // One HTTP/2 client counts as one connection and requests a hundred backends.
    let statuses = ask_at_once(&balancer, &a, "/a/hold", 500).await;
    assert!(statuses.iter().all(|status| [200, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&503), "there are too few files for this");
    // Idle connections to one backend are closed in favour of another.
    for (origin, path) in [(&a, "/a/hold"), (&b, "/b/hold")] {
        assert_eq!(ask_at_once(&balancer, origin, path, 150).await, [200; 150]);
    }
}

/// Noticing that they leave needs another file descriptor, but none that another client needs.
#[tokio::test]
async fn pipelining_clients_leave_file_descriptors_for_others() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]).server("threads = 1"));
    balancer.most_files = Some(200);
    balancer.launch();
    balancer.ready().await;
    let mut waiting = Vec::new();
    for _ in 0..45 {
        let mut wire = balancer.connect().await;
        wire.send([Request::get("/hold").to_bytes(), Request::get("/").to_bytes().repeat(1000)].concat()).await;
        waiting.push(wire);
    }
    eventually("all wait", async || balancer.in_flight().await == 45).await;
    for _ in 0..4 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    a.release();
}

/// The statuses of this many simultaneous requests over HTTP/2.
async fn ask_at_once(balancer: &Balancer, origin: &Origin, path: &str, count: u64) -> Vec<u16> {
    origin.hold();
    origin.answer(|_| vec![Step::Hold, Step::Send(response(200, &[], ""))]);
    let asked = async || balancer.metrics().await.sum("evenkeel_requests_total", &[]) as u64;
    let in_flight = async || balancer.metrics().await.sum("evenkeel_backend_in_flight", &[]) as u64;
    let before = asked().await;
    let (mut clients, mut answers) = (Vec::new(), Vec::new());
    for begun in 0..count {
        if begun % 100 == 0 {
            clients.push(Http2::connect(balancer.address()).await);
        }
        let client = clients.last_mut().expect("a client");
        answers.push(client.begin(request("GET", path, &[]), true).await.0);
    }
    eventually("all are served or refused", async || in_flight().await + asked().await - before == count).await;
    origin.release();
    let mut statuses = Vec::new();
    for answer in answers {
        statuses.push(reply(answer).await.expect("an answer").status);
    }
    eventually("all have ended", async || in_flight().await == 0).await;
    statuses
}

#[tokio::test]
async fn at_the_limit_idle_clients_are_shed_and_new_ones_wait() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).server("max_connections = 8\nthreads = 2")).await;
    let clients = async || balancer.metrics().await.sum("evenkeel_client_connections", &[]);
    assert_eq!(balancer.metrics().await.sum("evenkeel_client_connections_limit", &[]), 8.0);

    // First silent clients, some of which have been served before: they make room for those with requests.
    let mut silent = Vec::new();
    for served in [true, false].repeat(4) {
        let mut wire = balancer.connect().await;
        if served {
            assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
        }
        silent.push(wire);
    }
    for _ in 0..20 {
        assert_eq!(balancer.get("/").await.status, 200);
    }
    let shed = balancer.metrics().await.sum("evenkeel_client_connections_shed_total", &[]);
    assert!((1.0..=8.0).contains(&shed), "{shed}");
    drop(silent);
    eventually("all have left", async || clients().await == 0.0).await;

    // Busy clients stay: new ones wait until one of them is done, and nobody is refused.
    let mut busy = Vec::new();
    for _ in 0..8 {
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/hold").to_bytes()).await;
        busy.push(wire);
    }
    eventually("all are busy", async || balancer.in_flight().await == 8).await;
    let mut late = balancer.connect().await;
    late.send(Request::get("/").to_bytes()).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), late.reply()).await.is_err(), "there is no room");
    assert_eq!(balancer.in_flight().await, 8, "the admin API answers all the same");
    a.release();
    for wire in &mut busy {
        assert_eq!(wire.reply().await.status, 200);
    }
    assert_eq!(late.reply().await.status, 200);
}
