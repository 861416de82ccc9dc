//! After a reload, a listener's settings apply to the next request, also on existing connections; exchanges in flight
//! are not disturbed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::http2::{Http2, PREFACE, frame, kind, literals, next_frame, request, tls, write};
use tests::{Balancer, Config, End, Origin, Pool, Port, Request, Step, WebSocket, Wire, eventually, response, within};
use tokio::net::TcpStream;

/// Sets the lines in `[[listener]]` and reloads.
async fn reload(balancer: &Balancer, a: &Origin, listener: &str) {
    balancer.configure(&Config::of([a]).listener(listener));
    assert_eq!(balancer.change("POST", "/admin/reload", None).await["warnings"], json!([]), "{listener}");
}

/// A client that has been served before the settings change.
async fn served(balancer: &Balancer) -> Wire {
    let mut wire = balancer.connect().await;
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    wire
}

#[tokio::test]
async fn max_body_bytes_changes_both_ways() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("max_body_bytes = 10")).await;
    let mut wire = served(&balancer).await;
    reload(&balancer, &a, "max_body_bytes = 100").await;
    assert_eq!(wire.exchange(&Request::post("/", "x".repeat(100))).await.status, 200);
    reload(&balancer, &a, "max_body_bytes = 10").await;
    wire.send(Request::post("/", "x".repeat(100)).to_bytes()).await;
    assert_eq!(wire.reply().await.status, 413);
}

#[tokio::test]
async fn ambiguous_names_changes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let mut wire = served(&balancer).await;
    let request = Request::get("/").with("My_Field", "1");
    for (rule, seen) in [("drop", None), ("pass", Some("1"))] {
        reload(&balancer, &a, &format!("ambiguous_names = \"{rule}\"")).await;
        assert_eq!(wire.exchange(&request).await.status, 200);
        assert_eq!(a.last_request().field("my_field"), seen, "{rule}");
    }
    reload(&balancer, &a, "ambiguous_names = \"reject\"").await;
    assert_eq!(wire.exchange(&request).await.status, 400);
}

#[tokio::test]
async fn half_close_changes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a]).listener("half_close = \"answer\"")).await;
    for (rule, is_answered) in [("cancel", false), ("answer", true)] {
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &format!("half_close = \"{rule}\"")).await;
        let before = a.heads();
        wire.send(Request::get("/hold").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before).await;
        wire.close_sending().await;
        if is_answered {
            a.release();
            assert_eq!(wire.reply().await.status, 200);
        } else {
            assert!(wire.is_closed().await);
        }
        balancer.until_idle().await;
    }
}

#[tokio::test]
async fn time_limits_change() {
    const SHORT: &str = "\"200ms\"";
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;

    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("keepalive_timeout = {SHORT}")).await;
    assert_eq!(wire.exchange(&Request::get("/")).await.status, 200);
    assert!(within("the end of an idle connection", wire.is_closed()).await);

    // A client is idle for as long as the settings allowed when it became idle.
    reload(&balancer, &a, "").await;
    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("header_timeout = {SHORT}")).await;
    wire.send("GET / HTTP/1.1\r\nHost: x\r\n").await;
    assert_eq!(within("an answer", wire.reply()).await.status, 408);

    reload(&balancer, &a, "").await;
    let mut wire = served(&balancer).await;
    reload(&balancer, &a, &format!("body_timeout = {SHORT}")).await;
    wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf").await;
    assert_eq!(within("an answer", wire.reply()).await.status, 408);

    // More than all buffers on the way hold.
    let large = response(200, &[], "x".repeat(30_000_000));
    for limit in [format!("send_timeout = {SHORT}"), "min_rate = 1000000000".to_owned()] {
        a.answer_with(response(200, &[], ""));
        reload(&balancer, &a, "").await;
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &limit).await;
        let large = large.clone();
        a.answer(move |_| vec![Step::Send(large.clone())]);
        let before = a.heads();
        wire.send(Request::get("/").to_bytes()).await;
        eventually("the request arrived", async || a.heads() > before).await;
        // The client does not read until the balancer has given up.
        balancer.until_idle().await;
        assert_eq!(wire.reply().await.end, End::CutOff, "{limit}");
    }
}

#[tokio::test]
async fn lingering_changes() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    for limits in ["lingering_time = \"200ms\"\nlingering_timeout = \"1h\"", "lingering_timeout = \"200ms\""] {
        let mut wire = served(&balancer).await;
        reload(&balancer, &a, &format!("max_body_bytes = 10\n{limits}")).await;
        wire.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").await;
        assert_eq!(wire.reply().await.status, 413);
        let left = async || balancer.metrics().await.sum("evenkeel_client_connections", &[]) == 0.0;
        eventually("the client that still may send has been given up", left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_lose_no_request() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let load = Load::start(balancer.address(), || Request::post("/", "x".repeat(100)));
    for round in 0..40 {
        reload(&balancer, &a, &format!("max_body_bytes = {}\nsend_timeout = \"{}s\"", 100 + round, 30 + round)).await;
        load.goes_on().await;
    }
    load.end().await;
}

/// How to reload.
#[derive(Debug, Clone, Copy)]
enum By {
    Signal,
    Api,
}

/// Reloads the file and waits until it is in effect.
async fn take_up(balancer: &mut Balancer, by: By) {
    match by {
        By::Api => {
            balancer.change("POST", "/admin/reload", None).await;
        }
        By::Signal => {
            let before = balancer.version().await;
            balancer.signal(Signal::SIGHUP);
            eventually("the reload", async || balancer.version().await > before).await;
            // Reloads run one after the other, each completely.
            balancer.change("POST", "/admin/reload?dry_run=true", None).await;
        }
    }
}

/// Reloads a file that must be refused for reasons with these words.
async fn refused(balancer: &mut Balancer, by: By, words: &[&str]) {
    match by {
        By::Api => {
            let reply = balancer.admin("POST", "/admin/reload", None).await;
            assert_eq!(reply.status, 400, "{}", reply.text());
            let reasons = reply.json()["detail"].as_str().expect("a reason").to_owned();
            assert!(words.iter().all(|word| reasons.contains(word)), "{words:?} in {reasons}");
        }
        By::Signal => {
            let before = balancer.log().len();
            balancer.signal(Signal::SIGHUP);
            let new_log = || balancer.log().split_off(before);
            eventually("the refusal", async || new_log().contains("the configuration is not reloaded")).await;
            // The reasons follow, one per line.
            let what = format!("the reasons with {words:?}");
            eventually(&what, async || words.iter().all(|word| new_log().contains(word))).await;
        }
    }
}

fn listener(address: SocketAddr, lines: &str) -> String {
    format!("[[listener]]\naddress = \"{address}\"\n{lines}\n")
}

async fn is_refused(address: SocketAddr) {
    eventually("connections are refused", async || Wire::try_connect(address).await.is_err()).await;
}

#[tokio::test]
async fn a_listener_can_be_added_and_removed_and_finishes_its_requests() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::start(config.clone()).await;
    let [port, port_of_six] = Port::reserve_at(["127.0.0.1", "::1"]);
    let six = port_of_six.address();
    for by in [By::Api, By::Signal] {
        let more = listener(port.address(), "max_body_bytes = 10") + &listener(six, &tls());
        balancer.configure(&config.clone().section(&more));
        take_up(&mut balancer, by).await;

        let mut wire = Wire::connect(port.address()).await;
        assert_eq!(wire.exchange(&Request::post("/", "x".repeat(10))).await.status, 200);
        let mut idle = Wire::connect(port.address()).await;
        assert_eq!(idle.exchange(&Request::get("/")).await.field("connection"), None);
        let mut quiet = Http2::connect(six).await;
        assert_eq!(quiet.get("/").await.status, 200);
        let mut busy = Http2::connect(six).await;
        let before = a.heads();
        let (held, _) = busy.begin(request("GET", "/hold", &[]), true).await;
        wire.send(Request::get("/hold").to_bytes()).await;
        let mut socket = WebSocket::open(port.address(), "/socket").await;
        eventually("the requests arrived", async || a.heads() == before + 3).await;
        // Connected, but without a request yet.
        let mut silent = Wire::connect(port.address()).await;

        balancer.configure(&config);
        take_up(&mut balancer, by).await;
        is_refused(port.address()).await;
        is_refused(six).await;
        quiet.closed().await.expect("a GOAWAY that blames nobody");
        socket.echo("still there").await;
        a.release();
        for (what, reply) in [("held", wire.reply().await), ("idle", idle.exchange(&Request::get("/")).await)] {
            assert_eq!((reply.status, reply.field("connection")), (200, Some("close")), "{by:?} {what}");
        }
        assert!(wire.is_closed().await && idle.is_closed().await);
        // With the settings that the listener had.
        silent.send(Request::post("/", "x".repeat(11)).to_bytes()).await;
        assert_eq!(silent.reply().await.status, 413, "{by:?}");
        assert_eq!(tests::http2::reply(held).await.expect("a response").status, 200, "{by:?}");
        busy.closed().await.expect("a GOAWAY that blames nobody");
        socket.echo("to the end").await;
        a.hold();
        assert_eq!(balancer.get("/").await.status, 200, "the other listener has noticed nothing");
    }
    balancer.stop().await;
}

/// The number of the balancer's listening sockets.
fn sockets(balancer: &mut Balancer) -> usize {
    let id = balancer.process().id();
    let descriptors = std::fs::read_dir(format!("/proc/{id}/fd")).expect("a process that runs");
    let links = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let inodes: Vec<_> = links
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables =
        ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/{id}/net/{table}")).unwrap_or_default());
    let is_listening = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.get(3) == Some(&"0A") && columns.get(9).is_some_and(|inode| inodes.iter().any(|own| own == inode))
    };
    tables.iter().flat_map(|table| table.lines()).filter(is_listening).count()
}

#[tokio::test]
async fn a_listener_that_cannot_be_opened_fails_the_whole_reload() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::start(config.clone()).await;
    let (free, taken) = (Port::reserve(), Port::reserve());
    let _taken = taken.listen();
    let busy = format!("cannot listen on {} (Address already in use", taken.address());
    let cases = [
        (
            listener(free.address(), "") + &listener(taken.address(), ""),
            vec![busy.as_str(), "evenkeel.toml:", "stop what uses port"],
        ),
        (
            listener("192.0.2.1:1".parse().expect("an address"), ""),
            vec![
                "cannot listen on 192.0.2.1:1 (Cannot assign requested address",
                "this machine has no address 192.0.2.1",
            ],
        ),
        (
            listener(free.address(), "") + "[access_log]\nfile = \"missing/access.log\"",
            vec!["missing/access.log", "change [access_log] file"],
        ),
        (listener(free.address(), "no_such_key = 1"), vec!["no_such_key"]),
    ];
    for (more, words) in &cases {
        for by in [By::Api, By::Signal] {
            let version = balancer.version().await;
            let before = sockets(&mut balancer);
            balancer.configure(&config.clone().listener("max_body_bytes = 1").section(more));
            refused(&mut balancer, by, words).await;
            assert_eq!(balancer.version().await, version);
            is_refused(free.address()).await;
            assert_eq!(balancer.send(&Request::post("/", "xx")).await.status, 200, "the old settings are in force");
            eventually("no socket is left open", async || sockets(&mut balancer) == before).await;
        }
    }
    // A dry run reports the same, and otherwise what would change.
    balancer.configure(&config.clone().section(&cases[0].0));
    let reply = balancer.admin("POST", "/admin/reload?dry_run=true", None).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains(&busy), "{}", reply.text());
    balancer.configure(&config.clone().section(&listener(free.address(), "")));
    let answer = balancer.change("POST", "/admin/reload?dry_run=true", None).await;
    assert_eq!(answer["changes"], json!([format!("listener {} added", free.address())]));
    assert_eq!(answer["dry_run"], true);
    is_refused(free.address()).await;
    take_up(&mut balancer, By::Api).await;
    assert_eq!(Wire::connect(free.address()).await.exchange(&Request::get("/")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_moves_between_all_addresses_and_one_without_failed_requests() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::start(config.clone()).await;
    let load = Load::start(balancer.address(), || Request::post("/", "x".repeat(100)));
    let here = balancer.address();
    let everywhere = SocketAddr::new([0, 0, 0, 0].into(), here.port());
    let elsewhere = SocketAddr::new([127, 0, 0, 9].into(), here.port());
    for round in 0..4 {
        for (address, reaches_all) in [(everywhere, true), (here, false)] {
            let by = if round % 2 == 0 { By::Api } else { By::Signal };
            balancer.write(&config.text(address, balancer.admin_address()));
            take_up(&mut balancer, by).await;
            load.goes_on().await;
            if reaches_all {
                assert_eq!(Wire::connect(elsewhere).await.exchange(&Request::get("/")).await.status, 200);
            } else {
                is_refused(elsewhere).await;
            }
        }
    }
    load.end().await;
}

/// The content of the answer to a request on a stream of HTTP/2, whatever the peer has sent before.
async fn content(connection: &mut TcpStream, stream: u32, host: &str) -> String {
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", host)];
    write(connection, &frame(kind::HEADERS, 5, stream, &literals(&fields))).await;
    let content = async {
        loop {
            let frame = next_frame(connection).await.expect("a frame");
            if frame.stream == stream && frame.kind == kind::DATA {
                return String::from_utf8(frame.payload).expect("text");
            }
        }
    };
    within("content", content).await
}

#[tokio::test]
async fn a_listener_that_moves_keeps_its_sites() {
    let a = Origin::start("a").await;
    let (port, other) = (Port::reserve(), Port::reserve());
    let config = |name: &str, address: &str| {
        let site = |hosts: &str, more: &str| {
            format!("[[site]]\nhosts = [\"{hosts}\"]\n{more}respond = {{ status = 200, body = \"{hosts}\" }}\n")
        };
        let sites = site("", "") + &site("own.example", &format!("listeners = [\"{name}\"]\n"));
        let named = format!("[[listener]]\nname = \"{name}\"\naddress = \"{address}\"\n");
        Config::of([&a]).section(&named).sites(&sites)
    };
    let own = || Request::get("/").with("Host", "own.example");
    let everywhere = format!("0.0.0.0:{}", port.address().port());
    let (here, there) = (port.address().to_string(), other.address().to_string());
    for (name, address, is_served) in
        [("shop", &everywhere, true), ("shop", &there, true), ("renamed", &here, true), ("renamed", &there, false)]
    {
        let mut balancer = Balancer::start(config("shop", &here)).await;
        let mut idle = Wire::connect(port.address()).await;
        assert_eq!(idle.exchange(&own()).await.text(), "own.example");
        let mut silent = Wire::connect(port.address()).await;
        let mut streams = TcpStream::connect(port.address()).await.expect("a listener");
        write(&mut streams, PREFACE).await;
        assert_eq!(content(&mut streams, 1, "own.example").await, "own.example");
        balancer.configure(&config(name, address));
        take_up(&mut balancer, By::Api).await;
        if is_served {
            for wire in [&mut idle, &mut silent] {
                assert_eq!(wire.exchange(&own()).await.text(), "own.example", "{name} at {address}");
            }
            // It crosses the GOAWAY, if there is one.
            assert_eq!(content(&mut streams, 3, "own.example").await, "own.example", "{name} at {address}");
        } else {
            // Its site belongs to another listener.
            assert!(idle.is_closed().await && silent.is_closed().await);
        }
        balancer.stop().await;
    }
}

/// Clients that send one request after the other, each on a new connection and on one that is kept, and tolerate no
/// failure.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr, request: fn() -> Request) -> Self {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |keeps: bool| {
            let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut kept = None;
                while !is_over.load(Relaxed) {
                    let mut wire = match kept.take() {
                        Some(wire) => wire,
                        None => Wire::connect(address).await,
                    };
                    let reply = wire.exchange(&request()).await;
                    assert_eq!((reply.status, reply.end), (200, End::Complete));
                    answered.fetch_add(1, Relaxed);
                    kept = (keeps && reply.field("connection").is_none()).then_some(wire);
                }
            })
        };
        let clients = [true, true, true, false, false, false].map(client).into();
        Self { is_over, answered, clients }
    }

    async fn goes_on(&self) {
        let before = self.answered.load(Relaxed);
        eventually("load goes on", async || self.answered.load(Relaxed) > before + 20).await;
    }

    async fn end(self) {
        self.is_over.store(true, Relaxed);
        for client in self.clients {
            within("the end of a client", client).await.expect("no request was lost");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_changes_under_load_and_loses_no_line() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::start(config.clone()).await;
    let section = |file: &str, format: &str| format!("[access_log]\nfile = \"{file}\"\nformat = \"{format}\"");
    let lines = |balancer: &Balancer, file: &str| {
        let text = std::fs::read_to_string(balancer.file(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    balancer.configure(&config.clone().section(&section("access.log", "json")));
    take_up(&mut balancer, By::Signal).await;
    let load = Load::start(balancer.address(), || Request::get("/counted"));
    load.goes_on().await;
    for round in 0..4 {
        let by = if round % 2 == 0 { By::Api } else { By::Signal };
        for (file, format) in [("other.log", "combined"), ("access.log", "json")] {
            balancer.configure(&config.clone().section(&section(file, format)));
            take_up(&mut balancer, by).await;
            load.goes_on().await;
        }
    }
    let answered = Arc::clone(&load.answered);
    load.end().await;
    // A line is logged as its exchange ends, to the log of that time.
    balancer.until_idle().await;
    balancer.configure(&config);
    take_up(&mut balancer, By::Api).await;
    assert_eq!(balancer.get("/unlogged").await.status, 200);
    let lost = balancer.metrics().await.sum("evenkeel_access_log_lost_total", &[]);
    balancer.stop().await;

    let (json, combined) = (lines(&balancer, "access.log"), lines(&balancer, "other.log"));
    assert!(!json.is_empty() && !combined.is_empty());
    let is_no_json =
        |line: &&String| !serde_json::from_str::<Value>(line).is_ok_and(|line| line["target"] == "/counted");
    let is_other = |line: &&String| !line.contains("\"GET /counted HTTP/1.1\" 200 ");
    assert_eq!(json.iter().find(is_no_json).or(combined.iter().find(is_other)), None);
    let total = usize::try_from(answered.load(Relaxed)).expect("a count");
    assert_eq!((json.len() + combined.len(), lost), (total, 0.0), "{} and {}", json.len(), combined.len());
}

#[tokio::test]
async fn max_connections_changes() {
    let a = Origin::start("a").await;
    let config = |most: usize| Config::of([&a]).server(&format!("threads = 1\nmax_connections = {most}"));
    let mut balancer = Balancer::start(config(1)).await;
    let mut first = served(&balancer).await;
    first.send("GET / HTTP/1.1\r\n").await;
    let mut second = balancer.connect().await;
    second.send(Request::get("/").to_bytes()).await;
    balancer.configure(&config(2));
    take_up(&mut balancer, By::Signal).await;
    assert_eq!(second.reply().await.status, 200);
    assert_eq!(balancer.metrics().await.sum("evenkeel_client_connections_limit", &[]), 2.0);
    balancer.configure(&config(1));
    take_up(&mut balancer, By::Api).await;
    first.send("Host: x\r\n\r\n").await;
    assert_eq!(first.reply().await.status, 200, "whoever is there stays");
    // Two exceed the new limit: an idle one makes room for the next.
    let mut third = balancer.connect().await;
    third.send(Request::get("/").to_bytes()).await;
    assert_eq!(third.reply().await.status, 200);
    balancer.configure(&config(100_000_000));
    refused(&mut balancer, By::Api, &["max_connections"]).await;
}

#[tokio::test]
async fn tls_can_be_turned_on_and_off_and_certificates_are_read_again() {
    let a = Origin::start("a").await;
    let config = Config::of([&a]);
    let mut balancer = Balancer::start(config.clone()).await;
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../lb/src/config/toml/test-data");
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(format!("{data}/{file}"), balancer.file(file)).expect("a writable directory");
    }
    let mut plain = served(&balancer).await;
    balancer.configure(&config.clone().listener("tls = { certificate = \"cert.pem\", key = \"key.pem\" }"));
    take_up(&mut balancer, By::Signal).await;
    // The file, its names, and the end of its validity.
    let message = |names: &str, until: &str| {
        let file = balancer.file("cert.pem").display().to_string();
        format!("listener {}: certificate {file} for {names}, valid until {until}", balancer.address())
    };
    let first = message("localhost", "2126-10-28");
    balancer.logs(&[&first]).await;
    assert_eq!(
        balancer.change("POST", "/admin/reload", None).await["changes"],
        json!([]),
        "nothing is other than before"
    );
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/balancer/check/tls");
    std::fs::copy(format!("{other}/fullchain.pem"), balancer.file("cert.pem")).expect("a writable directory");
    std::fs::copy(format!("{other}/key.pem"), balancer.file("key.pem")).expect("a writable directory");
    let renewed = balancer.change("POST", "/admin/reload", None).await["changes"].clone();
    let [renewed] = renewed.as_array().expect("a list").as_slice() else { panic!("{renewed}") };
    assert!(
        renewed.as_str().is_some_and(|text| text.starts_with(&message("shop.example, *.shop.example", ""))),
        "{renewed}"
    );
    for file in ["cert.pem", "key.pem"] {
        std::fs::copy(format!("{data}/{file}"), balancer.file(file)).expect("a writable directory");
    }
    assert_eq!(balancer.change("POST", "/admin/reload", None).await["changes"], json!([first]));
    assert_eq!(Http2::connect(balancer.address()).await.get("/").await.status, 200);
    assert!(plain.is_closed().await, "who came in plain has to come again");
    // If the file is not a certificate, nothing is lost.
    std::fs::write(balancer.file("cert.pem"), "nothing").expect("a writable directory");
    refused(&mut balancer, By::Api, &["cert.pem"]).await;
    assert_eq!(Http2::connect(balancer.address()).await.get("/").await.status, 200);
    balancer.configure(&config);
    take_up(&mut balancer, By::Api).await;
    assert_eq!(balancer.get("/").await.status, 200);
}

/// A request with a field of this many bytes, and this many other fields.
fn large(bytes: usize, fields: usize) -> Request {
    let request = Request::get("/").with("X-Large", &"x".repeat(bytes));
    (0..fields).fold(request, |request, number| request.with(&format!("X-{number}"), "1"))
}

#[tokio::test]
async fn limits_of_request_heads_change() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    let long = Request::get(&format!("/{}", "x".repeat(20_000)));
    let answers = async |status: [u16; 3]| {
        let mut wire = balancer.connect().await;
        let requests = [large(100_000, 0), large(1, 500), long.clone()];
        for (request, status) in requests.iter().zip(status) {
            let reply = wire.exchange(request).await;
            assert_eq!(reply.status, status);
            if status != 200 {
                wire = balancer.connect().await;
            }
        }
    };
    answers([431, 431, 414]).await;
    // Limits on responses are separate, and do not apply to requests.
    reload(&balancer, &a, "max_head_bytes = \"200KB\"\nmax_fields = 600\nmax_request_line_bytes = \"32KiB\"").await;
    answers([200, 200, 200]).await;
    balancer.send(&large(100_000, 500)).await;
    let seen = a.last_request();
    assert_eq!(seen.field("x-large").map(str::len), Some(100_000));
    assert!((0..500).all(|number| seen.field(&format!("x-{number}")) == Some("1")));
    reload(&balancer, &a, "max_head_bytes = 1000\nmax_fields = 4").await;
    let mut wire = served(&balancer).await;
    assert_eq!(wire.exchange(&large(10, 3)).await.status, 431, "four beside Host");
    assert_eq!(balancer.send(&large(1000, 0)).await.status, 431);
    // A request line that fills the head.
    assert_eq!(balancer.get(&format!("/{}", "x".repeat(2000))).await.status, 414);

    let with_tls = Balancer::start(Config::of([&a]).listener(&tls())).await;
    let mut client = Http2::connect(with_tls.address()).await;
    let large = "x".repeat(40_000);
    let (response, _) = client.begin(request("GET", "/", &[("x-large", &large)]), true).await;
    assert_eq!(tests::http2::reply(response).await.expect("a response").status, 431);
    reload(&with_tls, &a, &format!("{}\nmax_head_bytes = \"100KB\"", tls())).await;
    let (response, _) = client.begin(request("GET", "/", &[("x-large", &large)]), true).await;
    assert_eq!(tests::http2::reply(response).await.expect("a response").status, 200);
    assert_eq!(a.last_request().field("x-large"), Some(large.as_str()));
}

#[tokio::test]
async fn limits_of_response_heads_change() {
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"access.log\"";
    let config = |lines: &str| Config::of([&a]).section(log).app(|pool| pool.set(lines).without_ejection());
    let mut balancer = Balancer::start(config("")).await;
    let large = "x".repeat(100_000);
    let many: Vec<_> = (0..500).map(|number| (format!("X-{number}"), "1")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let large = response(200, &[("X-Large", &large)], "");
    let many = response(200, &many, "");
    for (bytes, failure, limit) in [
        (&large, "response-head-too-large", "max_head_bytes = \"200KB\""),
        (&many, "response-too-many-fields", "max_fields = 600"),
    ] {
        a.answer_with(bytes.clone());
        balancer.configure(&config(""));
        take_up(&mut balancer, By::Api).await;
        assert_eq!(balancer.get("/").await.status, 502, "{failure}");
        let has_line =
            async || std::fs::read_to_string(balancer.file("access.log")).is_ok_and(|log| log.contains(failure));
        eventually("the failure is named", has_line).await;
        balancer.configure(&config(limit));
        take_up(&mut balancer, By::Signal).await;
        let reply = balancer.get("/").await;
        assert_eq!(
            (reply.status, reply.fields.0.len() > 500 || reply.field("x-large").is_some()),
            (200, true),
            "{limit}"
        );
    }
}

// The later of two simultaneous reloads could apply the older file.
#[tokio::test]
async fn concurrent_reloads_read_the_file_one_after_the_other() {
    let a = Origin::start("a").await;
    let balancer = Balancer::start(Config::of([&a])).await;
    // Reading a pipe waits until another process writes to it.
    let file = balancer.config_file();
    std::fs::remove_file(&file).expect("the file is there");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("a program of every system").success());
    let reloads = [0; 3].map(|_| Box::pin(balancer.admin("POST", "/admin/reload", None)));
    // One reads, one waits, and a third has nothing to do.
    let (third, _, rest) = within("the third", futures_util::future::select_all(reloads)).await;
    assert_eq!(third.status, 503, "{}", third.text());
    let version = balancer.version().await;
    let writing = async {
        for (round, weight) in [(1, 2), (2, 3)] {
            let config = Config::default().pool(Pool::empty("app").weighted(&a, weight)).route("", "/", "app");
            let text = config.text(balancer.address(), balancer.admin_address());
            let file = file.clone();
            let writing = tokio::task::spawn_blocking(move || std::fs::write(file, text));
            within("the file is read", writing).await.expect("no panic").expect("somebody reads");
            eventually("it is taken up", async || balancer.version().await == version + round).await;
            assert_eq!(balancer.backend(&a).await["weight"], weight);
        }
    };
    let (replies, ()) = tokio::join!(futures_util::future::join_all(rest), writing);
    assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?}");
    assert_eq!(balancer.backend(&a).await["weight"], 3, "the newer file");
    let changes = balancer.change("GET", "/admin/changes", None).await;
    let texts = changes["changes"].as_array().expect("a list").iter().map(|change| change["reloaded"][0].to_string());
    let texts: Vec<_> = texts.collect();
    assert!(texts[0].contains("weight 3 instead of 2") && texts[1].contains("weight 2 instead of 1"), "{texts:?}");
}
