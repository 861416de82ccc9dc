//! Clients that use HTTP/2 to do harm. Each is told so and leaves, memory stays bounded, other clients are served, and
//! no backend is blamed.

use std::collections::HashSet;
use std::time::Duration;

use h2::Reason;
use tests::http2::{self, Http2, PREFACE, frame, kind, literals, next_frame, write};
use tests::{Balancer, Config, Origin, Pool, eventually, response, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// More than any test makes the balancer need, and far less than what it is sent.
const MAX_GROWTH_KIB: u64 = 48 << 10;

async fn balancer(a: &Origin) -> Balancer {
    let pool = Pool::of("app", [a]).ejection("consecutive_failures = 1");
    Balancer::start(Config::default().pool(pool).server("threads = 1")).await
}

fn head(flags: u8, stream: u32, path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "x")];
    frame(kind::HEADERS, flags, stream, &literals(&fields))
}

/// The most memory that the balancer has had so far.
fn peak_kib(balancer: &mut Balancer) -> u64 {
    status_kib(balancer, "VmHWM:")
}

/// The memory that it has now.
fn resident_kib(balancer: &mut Balancer) -> u64 {
    status_kib(balancer, "VmRSS:")
}

fn status_kib(balancer: &mut Balancer, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", balancer.process().id())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Sends the preface, and then what `next` makes of 0, 1, 2 and so on, until a GOAWAY comes; with which code.
async fn flood(balancer: &Balancer, next: impl Fn(u32) -> Vec<u8> + Send + 'static) -> Reason {
    let client = TcpStream::connect(balancer.address()).await.expect("a listener");
    let (mut from, mut to) = client.into_split();
    let sending = tokio::spawn(async move {
        to.write_all(PREFACE).await?;
        for n in 0.. {
            to.write_all(&next(n)).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    let goaway = async {
        loop {
            match next_frame(&mut from).await {
                Ok(frame) if frame.kind == kind::GOAWAY && frame.reason() != Some(Reason::NO_ERROR) => {
                    break frame.reason().expect("a code");
                }
                Ok(_) => {}
                Err(e) => panic!("no GOAWAY came: {e}"),
            }
        }
    };
    let reason = within("a GOAWAY", goaway).await;
    sending.abort();
    reason
}

/// Others are served, and the backend was not blamed.
async fn nobody_is_harmed(balancer: &Balancer, a: &Origin) {
    balancer.until_idle().await;
    assert_eq!(balancer.get("/").await.status, 200);
    assert_eq!(balancer.backend(a).await["failures"], 0);
    balancer.sees(a, "healthy").await;
}

#[tokio::test]
async fn floods_end_with_the_right_error_and_bounded_memory() {
    let a = Origin::start("a").await;
    let mut balancer = balancer(&a).await;
    assert_eq!(balancer.get("/").await.status, 200);
    let before = peak_kib(&mut balancer);
    type Next = Box<dyn Fn(u32) -> Vec<u8> + Send>;
    let id = |n: u32| 2 * n + 1;
    let reset = move |n| frame(kind::RST_STREAM, 0, id(n), &8_u32.to_be_bytes());
    let whole = END_STREAM | END_HEADERS;
    let increment = |n: u32| n.to_be_bytes();
    let floods: [(&str, Reason, Next); 15] = [
        // CVE-2023-44487.
        ("rapid reset", Reason::ENHANCE_YOUR_CALM, Box::new(move |n| [head(whole, id(n), "/hold"), reset(n)].concat())),
        // CVE-2025-8671: the server is made to reset the streams itself.
        (
            "streams whose window is opened by nothing",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| {
                [head(whole, id(n), "/hold"), frame(kind::WINDOW_UPDATE, 0, id(n), &increment(0))].concat()
            }),
        ),
        (
            "streams whose window is opened too far",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| {
                [head(whole, id(n), "/hold"), frame(kind::WINDOW_UPDATE, 0, id(n), &increment(0x7fff_ffff))].concat()
            }),
        ),
        (
            "heads that are malformed",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| {
                frame(kind::HEADERS, whole, id(n), &literals(&[(":method", "GET"), ("connection", "x")]))
            }),
        ),
        // Each stream ends with STREAM_CLOSED (RFC 9113 §5.1).
        (
            "content after its end",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| [head(whole, id(n), "/hold"), frame(kind::DATA, 0, id(n), b"x")].concat()),
        ),
        // CVE-2024-27316 and others.
        (
            "continuations without end",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| match n {
                0 => head(END_STREAM, 1, "/"),
                _ => frame(kind::CONTINUATION, 0, 1, &literals(&[("x", "y")])),
            }),
        ),
        (
            "empty continuations",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| match n {
                0 => head(END_STREAM, 1, "/"),
                _ => frame(kind::CONTINUATION, 0, 1, b""),
            }),
        ),
        // CVE-2019-9518.
        (
            "empty content",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| match n {
                0 => head(END_HEADERS, 1, "/hold"),
                _ => frame(kind::DATA, 0, 1, b""),
            }),
        ),
        (
            "content of which nearly all is empty",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |n| match n {
                0 => head(END_HEADERS, 1, "/hold"),
                _ => frame(kind::DATA, 0, 1, if n % 50 == 0 { b"x" } else { b"" }),
            }),
        ),
        // CVE-2019-9513.
        (
            "priorities",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(|_| frame(kind::PRIORITY, 0, 1, b"\0\0\0\0\x10").repeat(100)),
        ),
        ("frames that nobody knows", Reason::ENHANCE_YOUR_CALM, Box::new(|_| frame(0xbe, 0, 0, b"").repeat(100))),
        (
            "windows for nothing",
            Reason::ENHANCE_YOUR_CALM,
            Box::new(move |_| frame(kind::WINDOW_UPDATE, 0, 0, &increment(1)).repeat(100)),
        ),
        ("a frame that is too long", Reason::FRAME_SIZE_ERROR, Box::new(|_| frame(kind::DATA, 0, 1, &[0; 17_000]))),
        (
            "a window beyond its limit",
            Reason::FLOW_CONTROL_ERROR,
            Box::new(move |_| frame(kind::WINDOW_UPDATE, 0, 0, &increment(0x7fff_ffff))),
        ),
        // A literal with a name whose length needs more bits than there are.
        (
            "a length that overflows",
            Reason::COMPRESSION_ERROR,
            Box::new(move |n| frame(kind::HEADERS, whole, id(n), &[0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        ),
    ];
    for (name, expected, next) in floods {
        let reason = flood(&balancer, next).await;
        assert_eq!(reason, expected, "{name}");
        nobody_is_harmed(&balancer, &a).await;
    }
    let metrics = balancer.metrics().await;
    for (reason, count) in [
        ("enhance-your-calm", 12.0),
        ("frame-size-error", 1.0),
        ("flow-control-error", 1.0),
        ("compression-error", 1.0),
    ] {
        let errors = metrics.sum("evenkeel_http2_connection_errors_total", &[("reason", reason)]);
        assert_eq!(errors, count, "{reason}");
        balancer.logs(&["WARN", reason, "an HTTP/2 connection"]).await;
    }
    let log = balancer.log();
    let logged: Vec<_> = log.lines().filter_map(|line| line.split_once("by an error of its client: ")).collect();
    let kinds: HashSet<_> = logged.iter().map(|(_, kind)| kind.split(" client=").next()).collect();
    assert!(kinds.len() > 4 && logged.len() < 15, "each kind tells what it is: {log}");
    assert_eq!(kinds.len(), logged.len(), "once for each kind: {log}");
    let grown = peak_kib(&mut balancer) - before;
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB more");
}

// Every answer allowed one more, without an end.
#[tokio::test]
async fn answers_earn_no_flood_of_resets() {
    let a = Origin::start("a").await;
    let balancer = balancer(&a).await;
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    // A window for all answers.
    write(&mut client, &[PREFACE, &frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes())].concat()).await;
    let mut id = 1;
    for _ in 0..10 {
        let asked: Vec<u8> = (0..50).flat_map(|n| head(END_STREAM | END_HEADERS, id + 2 * n, "/nowhere")).collect();
        write(&mut client, &asked).await;
        for _ in 0..50 {
            within("an answer", http2::frame_of(&mut client, kind::HEADERS)).await;
        }
        id += 100;
    }
    let reset = |id: u32| frame(kind::RST_STREAM, 0, id, &8_u32.to_be_bytes());
    let flood: Vec<u8> = (0..1_500)
        .flat_map(|n| [head(END_STREAM | END_HEADERS, id + 2 * n, "/hold"), reset(id + 2 * n)].concat())
        .collect();
    write(&mut client, &flood).await;
    let goaway = within("a GOAWAY", http2::frame_of(&mut client, kind::GOAWAY)).await;
    assert_eq!(goaway.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    nobody_is_harmed(&balancer, &a).await;
}

// A field of 4 KiB in the table, and 16,000 references to it in each head: 64 MB for a frame.
#[tokio::test]
async fn a_small_head_that_would_become_a_huge_one_is_refused() {
    let a = Origin::start("a").await;
    let mut balancer = balancer(&a).await;
    assert_eq!(balancer.get("/").await.status, 200);
    let before = peak_kib(&mut balancer);
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    let sound = literals(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]);
    // With incremental indexing; the length of the value is 127 + 3,873.
    let indexed = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    write(&mut client, PREFACE).await;
    write(&mut client, &frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &[&sound[..], &indexed].concat())).await;
    let sending = async {
        let bomb = [&sound[..], &[0xbe; 16_000]].concat();
        for n in 1..100 {
            client.write_all(&frame(kind::HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &bomb)).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    // The connection may have ended.
    let _ = within("send", sending).await;
    let goaway = within("a GOAWAY", http2::payload_of(&mut client, kind::GOAWAY)).await;
    assert_eq!(goaway[4..8], u32::from(Reason::ENHANCE_YOUR_CALM).to_be_bytes(), "{goaway:?}");
    assert!(a.heads() <= 1, "no more than the first one");
    let grown = peak_kib(&mut balancer) - before;
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB more");
    nobody_is_harmed(&balancer, &a).await;
}

// Each of them held 270 KB while its answer waited for the client's window.
#[tokio::test]
async fn heads_that_are_too_large_use_little_memory() {
    const CLIENTS: usize = 8;
    const HEADS: u32 = 45;
    let a = Origin::start("a").await;
    let mut balancer = balancer(&a).await;
    assert_eq!(balancer.get("/").await.status, 200);
    let before = resident_kib(&mut balancer);
    let sound = literals(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]);
    let indexed = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let whole = END_STREAM | END_HEADERS;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        write(&mut client, &[PREFACE, &frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])].concat()).await;
        write(&mut client, &frame(kind::HEADERS, whole, 1, &[&sound[..], &indexed].concat())).await;
        for n in 1..=HEADS {
            write(&mut client, &frame(kind::HEADERS, whole, 2 * n + 1, &[&sound[..], &[0xbe; 30]].concat())).await;
        }
        for _ in 0..=HEADS {
            within("an answer", http2::frame_of(&mut client, kind::HEADERS)).await;
        }
        clients.push(client);
    }
    let grown = resident_kib(&mut balancer).saturating_sub(before);
    assert!(grown < CLIENTS as u64 * u64::from(HEADS) * 40, "{grown} KiB more");
    drop(clients);
    assert!(a.heads() <= 1 + CLIENTS as u64, "no more than the first ones");
    nobody_is_harmed(&balancer, &a).await;
}

// Each held a buffer of 38 KB for the few bytes.
#[tokio::test]
async fn half_a_frame_holds_no_large_buffer() {
    const CLIENTS: usize = 300;
    let a = Origin::start("a").await;
    let mut balancer = balancer(&a).await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        write(&mut client, &[PREFACE, &head(END_STREAM | END_HEADERS, 1, "/")].concat()).await;
        within("an answer", http2::frame_of(&mut client, kind::HEADERS)).await;
        clients.push(client);
    }
    balancer.until_idle().await;
    let before = resident_kib(&mut balancer);
    for client in &mut clients {
        write(client, &frame(kind::PING, 0, 0, b"8 bytes.")).await;
        write(client, &head(END_STREAM | END_HEADERS, 3, "/")[..20]).await;
        within("an answer", http2::frame_of(client, kind::PING)).await;
    }
    // Those that were answered have been read.
    let grown = resident_kib(&mut balancer).saturating_sub(before);
    assert!(grown < CLIENTS as u64 * 8, "{grown} KiB more");
    nobody_is_harmed(&balancer, &a).await;
}

// What has to be acknowledged, by a client that reads nothing: the answers must not pile up (CVE-2019-9512, -9515).
#[tokio::test]
async fn acknowledgements_do_not_pile_up() {
    let a = Origin::start("a").await;
    let pool = Pool::of("app", [&a]).ejection("consecutive_failures = 1");
    let config = Config::default().pool(pool).server("threads = 1").listener("header_timeout = \"2s\"");
    let mut balancer = Balancer::start(config).await;
    let before = peak_kib(&mut balancer);
    for flood in [
        frame(kind::PING, 0, 0, b"8 bytes."),
        frame(kind::SETTINGS, 0, 0, b""),
        frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]),
        frame(kind::PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        frame(0xbe, 0, 0, b""),
    ] {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        let many = flood.repeat(4096);
        let sending = async {
            client.write_all(PREFACE).await?;
            loop {
                client.write_all(&many).await?;
            }
        };
        let sending: Result<std::io::Result<()>, _> = tokio::time::timeout(Duration::from_secs(20), sending).await;
        assert!(sending.is_ok(), "{:?} for ever", &flood[..9]);
        nobody_is_harmed(&balancer, &a).await;
    }
    let grown = peak_kib(&mut balancer) - before;
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB more");
}

// CVE-2019-9511 and -9517: a client asks for much and opens no window, or opens it by a byte at a time, or reads
// nothing.
#[tokio::test]
async fn responses_that_no_client_reads_are_abandoned() {
    let a = Origin::start("a").await;
    a.answer(|_| vec![tests::Step::Send(response(200, &[], vec![b'x'; 1 << 20]))]);
    let pool = Pool::of("app", [&a]).ejection("consecutive_failures = 1");
    let config = Config::default().pool(pool).server("threads = 1");
    let mut balancer = Balancer::start(config.listener("send_timeout = \"1s\"\nmin_rate = 1000")).await;
    let before = peak_kib(&mut balancer);
    let whole = END_STREAM | END_HEADERS;
    for (window, drips) in [(0, false), (0, true), (0x7fff_ffff_u32, false)] {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        let settings = [&[0, 4][..], &window.to_be_bytes()].concat();
        write(&mut client, &[PREFACE, &frame(kind::SETTINGS, 0, 0, &settings)].concat()).await;
        for n in 0..90 {
            write(&mut client, &head(whole, 2 * n + 1, "/")).await;
        }
        eventually("they are being answered", async || balancer.in_flight().await > 0).await;
        let (mut from, mut to) = client.into_split();
        let dripping = async {
            if !drips {
                return std::future::pending::<std::io::Result<()>>().await;
            }
            loop {
                to.write_all(&frame(kind::WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let reading = async { while drips && next_frame(&mut from).await.is_ok() {} };
        tokio::select! {
            biased;
            () = balancer.until_idle() => {}
            _ = async { tokio::join!(dripping, reading) } => {}
        }
    }
    let grown = peak_kib(&mut balancer) - before;
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB more");
    assert_eq!(balancer.backend(&a).await["failures"], 0);
    balancer.sees(&a, "healthy").await;
}

/// A client of many streams has as many as are allowed, and its others wait or are refused, which it may repeat.
#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_may_be_repeated() {
    let a = Origin::start("a").await;
    let balancer = balancer(&a).await;
    let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
    write(&mut client, PREFACE).await;
    // The client has said that it knows the limit.
    write(&mut client, &frame(kind::SETTINGS, 1, 0, b"")).await;
    for n in 0..101 {
        write(&mut client, &head(END_STREAM | END_HEADERS, 2 * n + 1, "/hold")).await;
    }
    let refused = async {
        loop {
            let frame = next_frame(&mut client).await.expect("a frame");
            if let Some(reason) = frame.reason() {
                break (frame.kind, frame.stream, reason);
            }
        }
    };
    let refused = within("a refusal", refused).await;
    assert_eq!(refused, (kind::RST_STREAM, 201, Reason::REFUSED_STREAM));
    eventually("the others arrived", async || a.heads() == 100).await;
    a.release();
    nobody_is_harmed(&balancer, &a).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    assert_eq!(client.get("/").await.status, 200);
}
