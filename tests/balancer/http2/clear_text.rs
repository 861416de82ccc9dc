//! HTTP/2 without TLS, on the port of HTTP/1.1: for clients that know beforehand (RFC 9113 §3.3).

use std::time::Duration;

use tests::http2::{Http2, PREFACE, connect_for, frame, kind, literals, next_frame, rest, tls, write};
use tests::{Balancer, Config, Origin, Request, Wire, eventually, within};
use tokio::net::TcpStream;
use tokio::process::Command;

/// HEADERS of a GET that is whole.
fn get(stream: u32) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")];
    frame(kind::HEADERS, 5, stream, &literals(&fields))
}

#[tokio::test]
async fn http_2_in_clear_text_shares_the_port_of_http_1() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut client = Http2::connect_plain(balancer.address()).await;
    for _ in 0..3 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.origin()), (200, "a"));
    }
    assert_eq!(a.last_request().field("x-forwarded-proto"), Some("http"));
    assert_eq!(balancer.get("/").await.status, 200, "HTTP/1.1");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"]);
    curl.arg(format!("http://{}/", balancer.address())).kill_on_drop(true);
    let output = within("curl", curl.output()).await.expect("curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 200", "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_preface_may_come_in_pieces_and_with_more_behind_it() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let sent = [PREFACE, &get(1)].concat();
    for piece in [1, 5, 18, 24, sent.len()] {
        let mut client = TcpStream::connect(balancer.address()).await.expect("a listener");
        client.set_nodelay(true).expect("an open socket");
        for bytes in sent.chunks(piece) {
            write(&mut client, bytes).await;
            // So that they are read one by one; what comes together makes the test no less true.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let answered = async { while next_frame(&mut client).await.expect("a frame").kind != kind::HEADERS {} };
        within(&format!("an answer, with pieces of {piece} bytes"), answered).await;
    }
}

#[tokio::test]
async fn a_partial_http_2_preface_is_not_http_2() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for (sent, status) in [
        ("PRI * HTTP/2.0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "505"),
        ("PRI * HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
        ("PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
        ("\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
    ] {
        let mut wire = balancer.connect().await;
        wire.send(sent).await;
        let text = String::from_utf8_lossy(&wire.rest().await.0).into_owned();
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{sent:?}: {text}");
    }
    // A connection that has had a request stays with HTTP/1.1.
    let mut wire = balancer.connect().await;
    assert_eq!(wire.exchange(&Request::new("OPTIONS", "*").with("Max-Forwards", "0")).await.status, 200);
    wire.send([PREFACE, &get(1)].concat()).await;
    assert_eq!(wire.reply().await.status, 505);
    assert_eq!(a.heads(), 0);
}

#[tokio::test]
async fn clear_text_can_be_turned_off_and_on_while_running() {
    let a = Origin::start("a").await;
    // In both, since a connection that is answered before a reload is idle after it.
    let config = || Config::of([&a]).listener("keepalive_timeout = \"100ms\"");
    let off = || config().listener("h2c = false");
    let mut balancer = Balancer::start(off()).await;
    let is_answered = async |balancer: &Balancer| {
        let mut wire = balancer.connect().await;
        wire.send([PREFACE, &get(1)].concat()).await;
        match wire.rest().await.0 {
            text if text.starts_with(b"HTTP/1.1 505") => false,
            frames => {
                assert_eq!(frames.get(3), Some(&kind::SETTINGS), "{frames:?}");
                true
            }
        }
    };
    assert!(!is_answered(&balancer).await);
    assert_eq!(balancer.get("/").await.status, 200);
    balancer.configure(&config());
    balancer.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("it is on", async || is_answered(&balancer).await).await;
    balancer.configure(&off());
    balancer.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("it is off", async || !is_answered(&balancer).await).await;
}

// Upgrade: h2c is deprecated (RFC 9113 §3.1), and passed on it would have a backend take over the connection.
#[tokio::test]
async fn an_upgrade_to_http_2_is_ignored() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let upgrade = Request::get("/").with("Connection", "Upgrade, HTTP2-Settings").with("Upgrade", "h2c");
    let answer = balancer.send(&upgrade.with("HTTP2-Settings", "AAMAAABkAAQAAP__")).await;
    assert_eq!((answer.status, answer.origin()), (200, "a"));
    let seen = a.last_request();
    assert_eq!((seen.field("upgrade"), seen.field("http2-settings")), (None, None));
}

// Over TLS it is agreed on by ALPN (RFC 9113 §3.3).
#[tokio::test]
async fn tls_clients_speak_http_2_only_if_alpn_chose_it() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener(&tls())).await;
    let mut client = connect_for(b"http/1.1", balancer.address()).await.expect("a handshake");
    write(&mut client, &[PREFACE, &get(1)].concat()).await;
    let text = rest(&mut client).await;
    assert!(text.starts_with(b"HTTP/1.1 505"), "{}", String::from_utf8_lossy(&text));
    assert_eq!(a.heads(), 0);
}

#[tokio::test]
async fn a_preface_without_an_end_is_limited() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("header_timeout = \"300ms\"")).await;
    for sent in ["PRI * HT", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut wire = Wire::connect(balancer.address()).await;
        wire.send(sent).await;
        wire.rest().await;
    }
}
