//! The end of a response that the kernel still holds for a slow client: whatever ends the connection, it arrives.
//! Clients of HTTP/2 open windows while they read, and bytes that arrive at a closed socket have the kernel reset the
//! connection and drop what it holds.

use std::time::{Duration, Instant};

use bytes::BufMut;
use nix::sys::signal::Signal;
use tests::deadline::is_acknowledgement_told;
use tests::http2::{PREFACE, frame, kind, literals, next_frame, rest, tls, tls_over, write};
use tests::{Balancer, Config, Origin, Pool, Port, Request, Wire, eventually, response, within};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Less than the kernel holds, and more than a client takes at [`BYTES_PER_SECOND`] in the two seconds for which it is
/// read after its GOAWAY.
const SIZE: usize = 600_000;
const BYTES_PER_SECOND: f64 = 150_000.0;

trait Connection: AsyncRead + AsyncWrite + Unpin {}

impl<C: AsyncRead + AsyncWrite + Unpin> Connection for C {}

/// Connects so that little of what is not read waits here.
async fn connect(balancer: &Balancer) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(20_000).expect("an option of every socket");
    let stream = within("connect", socket.connect(balancer.address())).await.expect("a listener");
    stream.set_nodelay(true).expect("an option of every socket of TCP");
    stream
}

async fn connect_by(balancer: &Balancer, has_tls: bool) -> Box<dyn Connection> {
    let tcp = connect(balancer).await;
    if has_tls { Box::new(tls_over(b"h2", tcp).await.expect("a handshake")) } else { Box::new(tcp) }
}

fn listener(has_tls: bool) -> String {
    if has_tls { tls() } else { String::new() }
}

/// A balancer before an origin that answers with [`SIZE`] bytes.
fn config(origin: &Origin, server: &str, listener: &str) -> Config {
    origin.answer_with(response(200, &[], vec![b'x'; SIZE]));
    Config::of([origin]).server(&format!("threads = 1\n{server}")).listener(listener)
}

async fn start(origin: &Origin, server: &str, listener: &str) -> Balancer {
    Balancer::start(config(origin, server, listener)).await
}

/// Waits until the kernel holds the response, of which nothing has been read.
async fn is_held(balancer: &Balancer, origin: &Origin, requests: u64) {
    eventually("the request arrived", async || origin.heads() == requests).await;
    balancer.until_idle().await;
}

/// A request over HTTP/2, in windows that are larger than its response.
fn request() -> Vec<u8> {
    let window = 50_000_000_u32.to_be_bytes();
    let fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "x")];
    let mut frames = PREFACE.to_vec();
    frames.extend(frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &window].concat()));
    frames.extend(frame(kind::WINDOW_UPDATE, 0, 0, &window));
    frames.extend(frame(kind::HEADERS, 5, 1, &literals(&fields)));
    frames
}

/// Reads frames slowly until the connection ends, and opens the windows for content. How many bytes of that came, and
/// whether a GOAWAY came behind them.
async fn read_slowly(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> (usize, bool) {
    let (began, mut came, mut is_told) = (Instant::now(), 0, false);
    let reading = async {
        while let Ok(next) = next_frame(client).await {
            is_told |= next.kind == kind::GOAWAY;
            if next.kind == kind::DATA && !next.payload.is_empty() {
                came += next.payload.len();
                let update = frame(kind::WINDOW_UPDATE, 0, 0, &(next.payload.len() as u32).to_be_bytes());
                // What has come can be read, whether or not this arrives.
                let _ = client.write_all(&update).await;
                let _ = client.flush().await;
                // Not by equal pauses: on a busy machine they take longer.
                let due = began + Duration::from_secs_f64(came as f64 / BYTES_PER_SECOND);
                tokio::time::sleep_until(due.into()).await;
            }
        }
    };
    within("the end of the connection", reading).await;
    (came, is_told)
}

#[tokio::test]
async fn a_stop_waits_until_a_client_of_http_2_has_taken_its_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let read = async |has_tls: bool| {
        let a = Origin::start("a").await;
        let mut balancer = start(&a, "", &listener(has_tls)).await;
        let mut client = connect_by(&balancer, has_tls).await;
        write(&mut client, &request()).await;
        is_held(&balancer, &a, 1).await;
        balancer.signal(Signal::SIGTERM);
        assert_eq!(read_slowly(&mut client).await, (SIZE, true), "over TLS: {has_tls}");
        assert!(balancer.process().end().await.success());
        assert!(balancer.log().contains("every exchange has finished"), "{}", balancer.log());
    };
    tokio::join!(read(false), read(true));
}

#[tokio::test]
async fn a_client_of_http_2_is_not_idle_while_it_takes_its_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let read = async |has_tls: bool| {
        let a = Origin::start("a").await;
        let limits = format!("keepalive_timeout = \"100ms\"\n{}", listener(has_tls));
        let balancer = start(&a, "", &limits).await;
        let mut client = connect_by(&balancer, has_tls).await;
        write(&mut client, &request()).await;
        is_held(&balancer, &a, 1).await;
        assert_eq!(read_slowly(&mut client).await, (SIZE, true), "over TLS: {has_tls}");
    };
    tokio::join!(read(false), read(true));
}

#[tokio::test]
async fn a_client_that_takes_its_response_makes_room_for_nobody() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    let balancer = start(&a, "max_connections = 1", "").await;
    let mut client = connect(&balancer).await;
    write(&mut client, &request()).await;
    is_held(&balancer, &a, 1).await;
    let mut next = balancer.connect().await;
    next.send(Request::get("/").to_bytes()).await;
    let (read, answer) = tokio::join!(read_slowly(&mut client), next.reply());
    assert_eq!((read, answer.status), ((SIZE, true), 200));
    assert!(balancer.metrics().await.sum("evenkeel_client_connections_shed_total", &[]) >= 1.0, "once it is idle");
}

// It kept its place for `keepalive_timeout`, as if it took its response.
#[tokio::test]
async fn a_client_that_takes_nothing_of_its_response_makes_room() {
    let a = Origin::start("a").await;
    for request in [request(), Request::get("/").to_bytes()] {
        let limits = "keepalive_timeout = \"1h\"\nsend_timeout = \"500ms\"";
        let balancer = start(&a, "max_connections = 1", limits).await;
        let mut client = connect(&balancer).await;
        let before = a.heads();
        write(&mut client, &request).await;
        is_held(&balancer, &a, before + 1).await;
        assert_eq!(balancer.get("/").await.status, 200);
    }
}

/// Reads a response over HTTP/1.1 slowly, and sends the next request byte by byte meanwhile. The length of its content.
async fn read_and_send(wire: &mut Wire) -> usize {
    let request = Request::get("/").to_bytes();
    assert_eq!(wire.reply_head().await.status, 200);
    let (began, mut came, mut sent) = (Instant::now(), wire.buffer.len(), request.iter());
    wire.buffer.clear();
    while came < SIZE {
        match wire.sip(SIZE - came).await {
            0 => break,
            count => came += count,
        }
        if let Some(byte) = sent.next() {
            let _ = wire.stream.write_all(&[*byte]).await;
        }
        let due = began + Duration::from_secs_f64(came as f64 / BYTES_PER_SECOND);
        tokio::time::sleep_until(due.into()).await;
    }
    // The rest of the request.
    let _ = wire.stream.write_all(sent.as_slice()).await;
    came
}

#[tokio::test]
async fn a_request_that_crosses_a_stop_costs_a_client_no_earlier_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    let mut balancer = start(&a, "", "").await;
    let mut wire = Wire::new(connect(&balancer).await);
    wire.send(Request::get("/").to_bytes()).await;
    is_held(&balancer, &a, 1).await;
    balancer.signal(Signal::SIGTERM);
    // By then idle connections are told, too.
    eventually("new connections are refused", async || Wire::try_connect(balancer.address()).await.is_err()).await;
    assert_eq!(read_and_send(&mut wire).await, SIZE);
    assert!(wire.is_closed().await, "the next request is not answered");
    assert!(balancer.process().end().await.success());
    assert_eq!(a.heads(), 1);
}

#[tokio::test]
async fn a_client_of_http_1_is_not_idle_while_it_takes_its_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    let balancer = start(&a, "", "keepalive_timeout = \"500ms\"\nheader_timeout = \"20s\"").await;
    let mut wire = Wire::new(connect(&balancer).await);
    wire.send(Request::get("/").to_bytes()).await;
    is_held(&balancer, &a, 1).await;
    let (began, mut came) = (Instant::now(), 0);
    assert_eq!(wire.reply_head().await.status, 200);
    came += wire.buffer.len();
    wire.buffer.clear();
    while came < SIZE {
        match wire.sip(SIZE - came).await {
            0 => break,
            count => came += count,
        }
        let due = began + Duration::from_secs_f64(came as f64 / BYTES_PER_SECOND);
        tokio::time::sleep_until(due.into()).await;
    }
    assert_eq!(came, SIZE);
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200, "it was kept meanwhile");
}

/// Reloads a file whose listener is elsewhere.
async fn close_listener(balancer: &Balancer, config: &Config) {
    balancer.write(&config.text(Port::reserve().address(), balancer.admin_address()));
    balancer.change("POST", "/admin/reload", None).await;
}

#[tokio::test]
async fn a_reload_that_closes_the_listener_costs_a_client_of_http_2_no_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let read = async |has_tls: bool| {
        let a = Origin::start("a").await;
        let config = config(&a, "", &format!("keepalive_timeout = \"500ms\"\n{}", listener(has_tls)));
        let balancer = Balancer::start(config.clone()).await;
        let mut client = connect_by(&balancer, has_tls).await;
        write(&mut client, &request()).await;
        is_held(&balancer, &a, 1).await;
        close_listener(&balancer, &config).await;
        assert_eq!(read_slowly(&mut client).await, (SIZE, true), "over TLS: {has_tls}");
    };
    tokio::join!(read(false), read(true));
}

// What it sent was read for lingering_time, whatever it had still to take.
#[tokio::test]
async fn a_request_that_follows_the_last_one_of_a_closed_listener_costs_no_response() {
    if !is_acknowledgement_told() {
        return;
    }
    let a = Origin::start("a").await;
    let limit = "lingering_time = \"500ms\"";
    let balancer = Balancer::start(Config::of([&a]).listener(limit)).await;
    let mut wire = Wire::new(connect(&balancer).await);
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    close_listener(&balancer, &config(&a, "", limit)).await;
    wire.send(Request::get("/").to_bytes()).await;
    is_held(&balancer, &a, 2).await;
    assert_eq!(read_and_send(&mut wire).await, SIZE);
    assert!(wire.is_closed().await, "the next request is not answered");
}

// A tunnel was idle when nothing could be written, whatever the client still took of the send buffer.
#[tokio::test]
async fn a_tunnel_is_not_idle_while_its_client_takes_what_was_sent() {
    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\r\n";
    const SWITCHED: &str = "HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    if !is_acknowledgement_told() {
        return;
    }
    let read = async |has_tls: bool| {
        let port = Port::reserve();
        let backend = port.listen();
        let answering = tokio::spawn(async move {
            let mut wire = Wire::new(backend.accept().await?.0);
            wire.request_head().await?;
            wire.stream.write_all(SWITCHED.as_bytes()).await?;
            wire.stream.write_all(&[b'x'; SIZE]).await?;
            wire.stream.read_exact(&mut [0]).await?;
            wire.stream.write_all(b"still here").await
        });
        let pool = Pool::empty("app").backend(&port.address().to_string(), "").set("tunnel_timeout = \"1s\"");
        let balancer = Balancer::start(Config::default().pool(pool).listener(&listener(has_tls))).await;
        let tcp = connect(&balancer).await;
        let mut client: Box<dyn Connection> = match has_tls {
            true => Box::new(tls_over(b"http/1.1", tcp).await.expect("a handshake")),
            false => Box::new(tcp),
        };
        write(&mut client, UPGRADE.as_bytes()).await;
        let (began, mut came) = (Instant::now(), Vec::new());
        let reading = async {
            while came.len() < SIZE {
                match client.read_buf(&mut (&mut came).limit(10_000)).await {
                    Ok(1..) => {}
                    ended => panic!("{ended:?} after {} bytes", came.len()),
                }
                let due = began + Duration::from_secs_f64(came.len() as f64 / BYTES_PER_SECOND);
                tokio::time::sleep_until(due.into()).await;
            }
        };
        within("what was sent", reading).await;
        write(&mut client, b"y").await;
        assert!(rest(&mut client).await.ends_with(b"still here"), "over TLS: {has_tls}");
        answering.await.expect("no panic").expect("an open connection");
    };
    tokio::join!(read(false), read(true));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_waited_for_within_limits() {
    let a = Origin::start("a").await;
    let clients = async |balancer: &Balancer| balancer.metrics().await.sum("evenkeel_client_connections", &[]);
    for is_http2 in [true, false] {
        let request = if is_http2 { request() } else { Request::get("/").to_bytes() };
        let limits = "keepalive_timeout = \"100ms\"\nsend_timeout = \"500ms\"";
        let balancer = start(&a, "", limits).await;
        let mut client = connect(&balancer).await;
        let before = a.heads();
        write(&mut client, &request).await;
        is_held(&balancer, &a, before + 1).await;
        eventually("it has to go", async || clients(&balancer).await == 0.0).await;

        let mut balancer = start(&a, "shutdown_timeout = \"500ms\"", "").await;
        let mut client = connect(&balancer).await;
        write(&mut client, &request).await;
        is_held(&balancer, &a, before + 2).await;
        balancer.stop().await;
        let is_cut_off = !balancer.log().contains("every exchange has finished");
        assert!(is_cut_off || !is_acknowledgement_told(), "{}", balancer.log());
    }
}
