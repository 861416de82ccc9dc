//! Answers that arrive before the request was sent completely, and clients that only read after sending everything.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tests::wire::narrow;
use tests::{Balancer, Config, End, Origin, Pool, Port, Request, Step, Wire, eventually, http2, response, within};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// How long the backend does not read, before its answer and after it.
const PAUSE: Duration = Duration::from_millis(100);
const KILOBYTE: usize = 1024;

/// The received bodies, and how they ended.
type Uploads = Arc<Mutex<Vec<(Vec<u8>, End)>>>;

/// A backend that refuses each upload without reading it, and reads later. Other requests are answered with their
/// target.
struct Hasty {
    port: Port,
    uploads: Uploads,
}

impl Hasty {
    fn start() -> Self {
        let hasty = Self { port: Port::reserve(), uploads: Arc::default() };
        let (listener, uploads) = (hasty.port.listen_with_small_buffers(), Arc::clone(&hasty.uploads));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::serve(Wire::new(stream), Arc::clone(&uploads)));
            }
        });
        hasty
    }

    async fn serve(mut wire: Wire, uploads: Uploads) -> io::Result<()> {
        while let Some(request) = wire.request_head().await? {
            if request.method != "POST" {
                wire.stream.write_all(&response(200, &[], request.target)).await?;
                continue;
            }
            tokio::time::sleep(PAUSE).await;
            wire.stream.write_all(&response(401, &[], "")).await?;
            tokio::time::sleep(PAUSE).await;
            let upload = wire.request_body(&request).await?;
            uploads.lock().unwrap_or_else(PoisonError::into_inner).push(upload);
        }
        Ok(())
    }

    fn uploads(&self) -> Vec<(Vec<u8>, End)> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn upload(length: usize, is_chunked: bool) -> Request {
    let request = Request::post("/upload", vec![b'x'; length]);
    if is_chunked { request.with("Transfer-Encoding", "chunked") } else { request }
}

// A connection was kept when the body had been read from the client, although the backend had not got all of it. The
// next request, another client's, was then read as the rest of that body.
#[tokio::test]
async fn a_backend_connection_with_an_unfinished_request_is_not_reused() {
    let refusing = Origin::start("refusing").await;
    let hasty = Hasty::start();
    // Every second request is first tried on another backend.
    let pool = Pool::of("app", [&refusing]).backend(&hasty.port.address().to_string(), "").without_ejection();
    let balancer = Balancer::start(Config::default().server("threads = 1").pool(pool)).await;
    refusing.stop().await;
    let mut sent = 0;
    for is_chunked in [false, true] {
        // The capacity of the kernel's buffers. A little more waits in the balancer, which has read it from the client.
        let mut taken = 0;
        for _ in 0..2 {
            let mut wire = balancer.connect().await;
            assert_eq!(wire.exchange(&upload(2000 * KILOBYTE, is_chunked)).await.status, 401);
            sent += 1;
            eventually("the backend has read what it was sent", async || hasty.uploads().len() == sent).await;
            taken = taken.max(hasty.uploads().last().map_or(0, |(body, _)| body.len()));
        }
        for number in 0..24 {
            let length = taken + number * 2 * KILOBYTE - 24 * KILOBYTE;
            let mut wire = balancer.connect().await;
            assert_eq!(wire.exchange(&upload(length, is_chunked)).await.status, 401, "{length} bytes");
            sent += 1;
            let target = format!("/next/{number}");
            let reply = balancer.get(&target).await;
            assert_eq!((reply.status, reply.text()), (200, target), "after {length} bytes");
            eventually("the backend has read what it was sent", async || hasty.uploads().len() == sent).await;
        }
    }
    for (body, _) in hasty.uploads() {
        assert!(body.iter().all(|byte| *byte == b'x'), "a body of {} bytes contains the next request", body.len());
    }
}

const MEGABYTE: usize = 1 << 20;

/// A client's connection, plain or TLS.
trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

async fn connect(balancer: &Balancer, is_tls: bool) -> Box<dyn Connection> {
    if is_tls {
        Box::new(http2::connect_for(b"http/1.1", balancer.address()).await.expect("a TLS handshake"))
    } else {
        Box::new(TcpStream::connect(balancer.address()).await.expect("a listener"))
    }
}

/// Sends everything, then reads, and returns what arrived until the end.
async fn send_then_read(mut client: Box<dyn Connection>, request: &Request) -> io::Result<Vec<u8>> {
    client.write_all(&request.to_bytes()).await?;
    client.flush().await?;
    let mut reply = Vec::new();
    match client.read_to_end(&mut reply).await {
        // Whether the end was clean is TLS's concern; the message has its own end.
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
        _ => Ok(reply),
    }
}

// While waiting for TLS to flush, nothing else made progress: client and balancer waited for each other to read.
#[tokio::test]
async fn upload_and_response_progress_when_the_client_reads_only_at_the_end() {
    const LENGTH: usize = 24 * MEGABYTE;
    let port = Port::reserve();
    let listener = port.listen();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Streams its response while it reads the request.
                let (mut reader, mut writer) = stream.split();
                let sending = async {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                    writer.write_all(head.as_bytes()).await?;
                    writer.write_all(&vec![b'r'; LENGTH]).await
                };
                let receiving = async {
                    let mut scrap = vec![0; 64 * KILOBYTE];
                    while reader.read(&mut scrap).await? > 0 {}
                    io::Result::Ok(())
                };
                let _ = tokio::join!(sending, receiving);
            });
        }
    });
    for is_tls in [false, true] {
        let mut config = Config::default().pool(Pool::empty("app").backend(&port.address().to_string(), ""));
        if is_tls {
            config = config.listener(&http2::tls());
        }
        let balancer = Balancer::start(config).await;
        let request = Request::post("/", vec![b'x'; LENGTH]);
        let reply = within("both whole", send_then_read(connect(&balancer, is_tls).await, &request)).await;
        let reply = reply.expect("a response");
        let head = reply.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert!(reply.starts_with(b"HTTP/1.1 200"));
        assert_eq!(reply.len() - head, LENGTH, "TLS: {is_tls}");
    }
}

/// A backend that answers 401 after the head and closes with the rest unread, so that its kernel resets the connection.
async fn closes_early(mut stream: TcpStream) -> io::Result<()> {
    let mut head = vec![0; 64 * KILOBYTE];
    if stream.read(&mut head).await? > 0 {
        stream.write_all(&response(401, &[("Connection", "close")], "no")).await?;
    }
    Ok(())
}

// Lingering ended after 2 seconds and 1 MiB, and the following reset discarded the answer.
#[tokio::test]
async fn a_client_that_sends_its_whole_refused_upload_can_read_the_refusal() {
    let port = Port::reserve();
    let listener = port.listen();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(closes_early(stream));
        }
    });
    for is_tls in [false, true] {
        let config = Config::default()
            .listener("max_body_bytes = 100_000_000")
            .listener(if is_tls { http2::tls() } else { String::new() }.as_str())
            .pool(Pool::empty("app").backend(&port.address().to_string(), "").without_ejection())
            .pool(Pool::empty("nobody"))
            .route("site.example", "/early", "app")
            .route("site.example", "/nobody", "nobody");
        let balancer = Balancer::start(config).await;
        let upload = async |number: usize| {
            let length = match number {
                0 => 64 * MEGABYTE,
                1..=4 => 10 * MEGABYTE,
                _ => MEGABYTE,
            };
            let (target, status) = [("/early", 401), ("/none", 404), ("/nobody", 503), ("/large", 413)][number % 4];
            let mut request = Request::post(target, vec![b'x'; length]);
            if status == 413 {
                // The head says so; the client sends it anyway.
                request = Request::post("/early", vec![b'x'; length]).with("Content-Length", "100000001");
            }
            let request = request.with("Connection", "close");
            let reply = send_then_read(connect(&balancer, is_tls).await, &request).await;
            let reply = reply.unwrap_or_else(|e| panic!("{length} bytes to {target}, TLS: {is_tls}: {e}"));
            let reply = String::from_utf8_lossy(&reply).into_owned();
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{length} bytes to {target}: {reply:?}");
        };
        for numbers in (0..50).collect::<Vec<_>>().chunks(5) {
            within("answers", futures_util::future::join_all(numbers.iter().map(|number| upload(*number)))).await;
        }
    }
}

/// More than a small client-side buffer holds: the rest waits in the balancer's socket, where a reset discards it.
const LARGE: usize = 100_000;

async fn is_served(balancer: &Balancer) {
    let served = async || balancer.metrics().await.sum("evenkeel_requests_total", &[]) == 1.0;
    eventually("the request is served", served).await;
}

// The balancer closed at once if nothing more had arrived yet, and the next request was answered by a reset.
#[tokio::test]
async fn pipelined_requests_do_not_truncate_the_last_response_of_a_connection() {
    let port = Port::reserve();
    let listener = port.listen();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let mut wire = Wire::new(stream);
        let request = wire.request_head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let response = response(200, &[], vec![b'x'; LARGE]);
        let (head, content) = response.split_at(response.len() - LARGE);
        wire.stream.write_all(head).await?;
        // The balancer has read the whole request, but only after forwarding the head.
        wire.request_body(&request).await?;
        wire.stream.write_all(content).await?;
        wire.rest().await;
        io::Result::Ok(())
    });
    let config = Config::default().pool(Pool::empty("app").backend(&port.address().to_string(), ""));
    let balancer = Balancer::start(config).await;
    let mut wire = Wire::new(narrow(balancer.address(), 30_000).await);
    wire.send(UNFINISHED).await;
    assert_eq!(wire.reply_head().await.field("connection"), Some("close"));
    wire.send("0\r\n\r\n").await;
    is_served(&balancer).await;
    for _ in 0..20 {
        // Cannot be sent after a reset.
        let _ = wire.stream.write_all(&Request::get("/next").to_bytes()).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (content, is_orderly) = wire.rest().await;
    assert_eq!((content.len(), is_orderly), (LARGE, true));
}

// The alert arrived at a closed socket and was answered by a reset.
#[tokio::test]
async fn a_close_notify_does_not_truncate_the_last_response_of_a_connection() {
    let a = Origin::start("a").await;
    a.answer_with(response(200, &[], vec![b'x'; LARGE]));
    let config = Config::of([&a]).listener(&http2::tls()).listener("half_close = \"answer\"");
    let balancer = Balancer::start(config).await;
    let tcp = narrow(balancer.address(), 30_000).await;
    let mut client = http2::tls_over(b"http/1.1", tcp).await.expect("a handshake");
    let request = Request::get("/").with("Connection", "close").to_bytes();
    client.write_all(&request).await.expect("a peer");
    client.flush().await.expect("a peer");
    is_served(&balancer).await;
    // The balancer has closed by now, if it closes at once.
    tokio::time::sleep(PAUSE).await;
    client.shutdown().await.expect("a peer");
    tokio::time::sleep(PAUSE).await;
    let mut reply = Vec::new();
    let ended = client.read_to_end(&mut reply).await;
    let head = reply.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!((reply.len() - head, ended.is_ok()), (LARGE, true), "{ended:?}");
}

#[tokio::test]
async fn lingering_clients_are_shed_first() {
    let a = Origin::start("a").await;
    let listener = "max_body_bytes = 10\nlingering_time = \"1h\"\nlingering_timeout = \"1h\"";
    let config = Config::of([&a]).listener(listener).server("max_connections = 2\nthreads = 1");
    let balancer = Balancer::start(config).await;
    let mut idle = balancer.connect().await;
    assert_eq!(idle.exchange(&Request::get("/")).await.status, 200);
    // Long enough to be shed, if nobody else were there.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut refused = balancer.connect().await;
    refused.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await;
    assert_eq!(refused.reply().await.status, 413);
    assert_eq!(balancer.get("/").await.status, 200, "there is room again");
    assert_eq!(idle.exchange(&Request::get("/")).await.status, 200, "the idle one has stayed");
    assert_eq!(balancer.metrics().await.sum("evenkeel_client_connections_shed_total", &[]), 1.0);
}

// The maximum was 16.
#[tokio::test]
async fn any_number_of_interim_responses_passes_within_a_rate() {
    const INTERIM: &[u8] = b"HTTP/1.1 102 Processing\r\n\r\n";
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).app(|pool| pool.set("response_timeout = \"2s\""))).await;
    let finally = Step::Send(response(200, &[], "done"));
    let burst = vec![Step::Send(INTERIM.repeat(60)), finally.clone()];
    // The total takes longer than a response may.
    let pause = [Step::Wait(Duration::from_millis(600)), Step::Send(INTERIM.to_vec())];
    let slow = [vec![pause.to_vec(); 5].concat(), vec![finally.clone()]].concat();
    for (steps, count) in [(burst, 60), (slow, 5)] {
        a.answer(move |_| steps.clone());
        let mut wire = balancer.connect().await;
        wire.send(Request::get("/").to_bytes()).await;
        for _ in 0..count {
            assert_eq!(wire.reply_head().await.status, 102);
        }
        assert_eq!(wire.reply().await.text(), "done");
    }
    a.answer(move |_| vec![Step::Send(INTERIM.repeat(5000)), finally.clone()]);
    assert_eq!(balancer.get("/").await.status, 502);
    let reason = [("reason", "too-many-interim-responses")];
    eventually("it is counted", async || balancer.metrics().await.sum("evenkeel_refusals_total", &reason) == 1.0).await;
}

const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
const ENDED: &[u8] = b"4\r\nlast\r\n0\r\n\r\n";
/// Requests without their content: in one the client waits for 100, in the other it has begun.
const HELD_BACK: &str = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n";
const UNFINISHED: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n";

// The response was cut off once the client had delayed its content for too long.
#[tokio::test]
async fn a_response_is_passed_on_though_the_rest_of_the_request_body_never_comes() {
    let a = Origin::start("a").await;
    let pause = Step::Wait(Duration::from_secs(1));
    a.at_head(move |_| vec![Step::Send(BEGUN.to_vec()), pause.clone(), Step::Send(ENDED.to_vec()), Step::Hang]);
    let config = || Config::of([&a]).listener("body_timeout = \"200ms\"");
    let balancer = Balancer::start(config()).await;
    for request in [HELD_BACK, UNFINISHED] {
        let mut wire = balancer.connect().await;
        wire.send(request).await;
        let reply = wire.reply().await;
        assert_eq!((reply.text().as_str(), reply.end), ("firstlast", End::Complete), "{request:?}");
    }
    let balancer = Balancer::start(config().listener(&http2::tls())).await;
    for fields in [&[("expect", "100-continue")][..], &[]] {
        let mut client = http2::Http2::connect(balancer.address()).await;
        let (answer, mut body) = client.begin(http2::request("POST", "/", fields), false).await;
        if fields.is_empty() {
            body.send_data("body".into(), false).expect("an open stream");
        }
        let reply = http2::reply(answer).await.expect("a response");
        assert_eq!((reply.text().as_str(), reply.end), ("firstlast", End::Complete), "{fields:?}");
    }
}

#[tokio::test]
async fn a_response_that_stalls_during_an_unfinished_upload_is_cut_off() {
    let a = Origin::start("a").await;
    a.at_head(|_| vec![Step::Send(BEGUN.to_vec()), Step::Hang]);
    let pool = |pool: Pool| pool.set("read_timeout = \"200ms\"").without_ejection();
    let config = Config::of([&a]).app(pool).listener("body_timeout = \"1h\"\nmin_rate = 0");
    let balancer = Balancer::start(config).await;
    // If a backend waits for content in vain, its pause is the client's fault.
    for (request, failures) in [(UNFINISHED, 0), (HELD_BACK, 1)] {
        let mut wire = balancer.connect().await;
        wire.send(request).await;
        let reply = wire.reply().await;
        assert_eq!((reply.text().as_str(), reply.end), ("first", End::CutOff), "{request:?}");
        balancer.until_idle().await;
        assert_eq!(balancer.backend(&a).await["failures"], failures, "{request:?}");
    }
}

#[tokio::test]
async fn upload_progress_renews_the_read_timeout_unless_the_upload_drips() {
    let a = Origin::start("a").await;
    let listener = "min_rate = 100000";
    let config = Config::of([&a]).app(|pool| pool.set("read_timeout = \"1s\"")).listener(listener);
    let balancer = Balancer::start(config).await;
    let head = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n";
    // Answers, reads everything, and continues its answer.
    a.at_head(|_| vec![Step::Send(BEGUN.to_vec())]);
    a.answer_with(ENDED);
    let mut wire = balancer.connect().await;
    wire.send(head).await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        wire.send(vec![b'x'; 100_000]).await;
    }
    assert_eq!(wire.reply().await.text(), "firstlast");
    let mut wire = balancer.connect().await;
    wire.send(head).await;
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if wire.stream.write_all(b"x").await.is_err() {
                return;
            }
            if balancer.in_flight().await == 0 {
                return;
            }
        }
    };
    within("its end", dripping).await;
    balancer.until_idle().await;
    assert_eq!(balancer.backend(&a).await["failures"], 0);
}

// The stalled upload counted against the backend, although its client did not read the answer, or although it was
// answering.
#[tokio::test]
async fn a_backend_that_answers_without_reading_the_upload_is_not_cut_off() {
    const LENGTH: usize = 24 * MEGABYTE;
    let port = Port::reserve();
    let listener = port.listen_with_small_buffers();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                let request = wire.request_head().await?.expect("a request");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                wire.stream.write_all(head.as_bytes()).await?;
                for _ in 0..24 {
                    if request.target == "/slow" {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    wire.stream.write_all(&vec![b'r'; MEGABYTE]).await?;
                }
                // Reads on, so that closing does not discard the response.
                wire.stream.read_to_end(&mut Vec::new()).await
            });
        }
    });
    let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("write_timeout = \"700ms\"");
    let pool = pool.ejection("consecutive_failures = 1");
    let listener = "max_body_bytes = 0\nmin_rate = 0";
    let balancer = Balancer::start(Config::default().pool(pool).listener(listener)).await;
    for (target, pause) in [("/slow", Duration::ZERO), ("/at-once", Duration::from_secs(1))] {
        let wire = balancer.connect().await;
        let (reader, mut writer) = wire.stream.into_split();
        let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n");
        let upload = tokio::spawn(async move {
            writer.write_all(head.as_bytes()).await?;
            writer.write_all(&vec![b'x'; LENGTH]).await?;
            io::Result::Ok(writer)
        });
        tokio::time::sleep(pause).await;
        let reading = async {
            let mut reader = BufReader::new(reader);
            let (mut line, mut content) = (String::new(), vec![0; LENGTH]);
            while line != "\r\n" {
                line.clear();
                reader.read_line(&mut line).await?;
            }
            reader.read_exact(&mut content).await?;
            io::Result::Ok(content)
        };
        let content = within("a response", reading).await.unwrap_or_else(|error| panic!("{target}: {error}"));
        assert!(content.iter().all(|byte| *byte == b'r'), "{target}");
        upload.abort();
    }
    balancer.until_idle().await;
    let backend = &balancer.pool().await["backends"][0];
    assert_eq!((&backend["failures"], &backend["status"]), (&0.into(), &"healthy".into()));
}
